//! The only place that touches BPF: loads, attaches, pins, reads back and writes the maps.

pub mod inspect;
pub mod object;
