//! The only place that touches BPF: loads, attaches, pins, reads back and writes the maps.

pub mod inspect;
pub mod maps;
pub mod mmap;
pub mod object;
pub mod spec;
