//! ARP for IPv4 over Ethernet (RFC 826).

use super::{Be16, Be32, eth::WireMac, header};

header!(Arp, 28 {
    hardware: Be16,
    protocol: Be16,
    hardware_length: u8,
    protocol_length: u8,
    operation: Be16,
    sender_mac: WireMac,
    sender_ip: Be32,
    target_mac: WireMac,
    target_ip: Be32,
});

pub const ETHERNET: u16 = 1u16.to_be();
pub const REQUEST: u16 = 1u16.to_be();
pub const REPLY: u16 = 2u16.to_be();
