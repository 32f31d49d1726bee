//! ICMP (RFC 792), ICMPv6 (RFC 4443), neighbour discovery (RFC 4861).

use super::{Be16, eth::WireMac, header, ipv6::WireAddr};

header!(
    /// The eight bytes that all messages start with; `rest` depends on the type.
    Icmp, 8 {
    kind: u8,
    code: u8,
    checksum: Be16,
    rest: [u8; 4],
});

header!(
    /// Neighbour solicitation and advertisement without options (RFC 4861 4.3, 4.4).
    Neighbour, 24 {
    icmp: Icmp,
    target: WireAddr,
});

header!(
    /// The target link-layer address option (RFC 4861 4.6.1).
    LinkLayer, 8 {
    kind: u8,
    /// In units of eight bytes.
    length: u8,
    mac: WireMac,
});

/// ICMP types.
pub mod v4 {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    pub const ECHO: u8 = 8;
    /// Codes of `UNREACHABLE`.
    pub const PROTOCOL_UNREACHABLE: u8 = 2;
    pub const PORT_UNREACHABLE: u8 = 3;
    pub const FRAGMENTATION_NEEDED: u8 = 4;
}

/// ICMPv6 types.
pub mod v6 {
    pub const UNREACHABLE: u8 = 1;
    pub const PACKET_TOO_BIG: u8 = 2;
    pub const PARAMETER_PROBLEM: u8 = 4;
    pub const ECHO: u8 = 128;
    pub const ECHO_REPLY: u8 = 129;
    pub const SOLICITATION: u8 = 135;
    pub const ADVERTISEMENT: u8 = 136;
    /// Codes of `UNREACHABLE`.
    pub const PORT_UNREACHABLE: u8 = 4;
    /// Code of `PARAMETER_PROBLEM`: unrecognised next header.
    pub const UNKNOWN_NEXT_HEADER: u8 = 1;
    /// Options: source and target link-layer address.
    pub const SOURCE_LINK_LAYER: u8 = 1;
    pub const TARGET_LINK_LAYER: u8 = 2;
    /// Flags of an advertisement, first byte of `rest`.
    pub const SOLICITED: u8 = 0x40;
    pub const OVERRIDE: u8 = 0x20;
}
