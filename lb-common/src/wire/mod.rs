//! Headers as they stand on the wire. Alignment 1, any bits are valid, so a bounds check is all
//! that a reader needs. Fields of more than one byte keep network order; `Be16` and `Be32` say so.

pub mod arp;
pub mod eth;
pub mod geneve;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod l4;

/// A header that any bytes are valid for, at any address.
pub use bytemuck::Pod as Wire;

/// Sixteen bits in network order.
pub type Be16 = u16;
/// Thirty-two bits in network order.
pub type Be32 = u32;

/// Declares headers: packed, plain, of a fixed size.
macro_rules! header {
    ($(#[$meta:meta])* $name:ident, $size:literal { $($(#[$field_meta:meta])* $field:ident: $type:ty,)+ }) => {
        $(#[$meta])*
        #[repr(C, packed)]
        #[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)+ }
        const _: () = assert!(core::mem::size_of::<$name>() == $size);
    };
}
use header;
