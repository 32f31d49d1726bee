//! TCP (RFC 9293) and UDP (RFC 768).

use super::{Be16, Be32, header};

header!(Tcp, 20 {
    source: Be16,
    destination: Be16,
    seq: Be32,
    ack: Be32,
    /// Header length in words, in the upper half.
    offset: u8,
    flags: u8,
    window: Be16,
    checksum: Be16,
    urgent: Be16,
});

header!(Udp, 8 {
    source: Be16,
    destination: Be16,
    length: Be16,
    checksum: Be16,
});

header!(
    /// The MSS option, and the start of any other (RFC 9293 3.2).
    Mss, 4 {
    kind: u8,
    length: u8,
    value: Be16,
});

/// TCP option kinds (RFC 9293 3.1).
pub mod option {
    pub const END: u8 = 0;
    pub const NOP: u8 = 1;
    pub const MSS: u8 = 2;
}
