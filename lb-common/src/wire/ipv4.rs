//! IPv4 (RFC 791).

use super::{Be16, Be32, header};

header!(Ipv4, 20 {
    /// 4 in the upper half, header length in words in the lower.
    version_ihl: u8,
    /// DSCP in the upper six bits, ECN in the lower two (RFC 2474, RFC 3168).
    tos: u8,
    total_length: Be16,
    id: Be16,
    /// Flags in the upper three bits, offset in units of eight bytes in the rest.
    fragment: Be16,
    ttl: u8,
    proto: u8,
    checksum: Be16,
    source: Be32,
    destination: Be32,
});

/// Don't fragment.
pub const DF: u16 = 0x4000u16.to_be();
/// More fragments, or a fragment offset: either makes a packet a fragment.
pub const FRAGMENT_MASK: u16 = 0x3fffu16.to_be();
