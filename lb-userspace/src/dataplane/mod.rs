//! The only place that touches BPF: loads, attaches, pins, reads back and writes the maps.

pub mod apply;
pub mod attach;
mod batch;
pub mod connect;
pub mod fake;
pub mod grace;
pub mod hooks;
pub mod inspect;
pub mod keys;
pub mod load;
pub mod maps;
pub mod migrate;
pub mod mmap;
pub mod object;
mod raw;
pub mod room;
pub mod scan;
pub mod sockets;
pub mod spec;
pub mod store;
