//! The contract between weir's BPF programs and its agent.
//!
//! Map keys and values, wire headers, hashes, the slot-table builder, checksums, reasons and the
//! receiver's decisions. No I/O, no policy, and it knows no other part of weir. Compiles for BPF
//! without `alloc`; the feature `user` adds the table builder and `aya::Pod`.
#![no_std]

#[cfg(any(feature = "user", test))]
extern crate alloc;
#[cfg(test)]
extern crate std;

/// Lets user space hand a map type to aya. Bounded on [`bytemuck::Pod`], whose derive refuses
/// padding, so what the macro promises has been checked.
macro_rules! map_types {
    ($($type:ty),+ $(,)?) => {$(
        const _: () = {
            const fn is_pod<T: bytemuck::Pod>() {}
            is_pod::<$type>();
        };
        // SAFETY: `bytemuck::Pod`, checked above, asks for all that `aya::Pod` does.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type {}
    )+};
}

pub use bytemuck;

pub mod abi;
pub mod arrival;
pub mod backend;
pub mod chain;
pub mod checksum;
pub mod claim;
pub mod decide;
pub mod frontend;
pub mod globals;
pub mod hash;
pub mod hop;
pub mod net;
pub mod reason;
pub mod service;
pub mod siphash;
pub mod socket;
#[cfg(any(feature = "user", test))]
pub mod table;
pub mod wire;
