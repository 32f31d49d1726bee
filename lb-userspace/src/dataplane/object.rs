//! The BPF object that the build put into this binary.
//!
//! A plain `cargo build` without the BPF tool-chain leaves it empty, so that everything else builds and
//! tests anywhere; the agent must then refuse to start, with [`NOT_BUILT`].

/// The object file: ELF, eight-byte aligned as its parser needs. Empty where it was not built.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weir.o"));

/// What to say where the object is missing.
pub const NOT_BUILT: &str = "this weir was built without its data plane: run `cargo xtask build`";

/// Whether this binary carries a data plane.
pub fn is_built() -> bool {
    !OBJECT.is_empty()
}
