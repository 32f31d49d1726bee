//! The compiled BPF object.
