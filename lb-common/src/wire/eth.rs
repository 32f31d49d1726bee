//! Ethernet II and VLAN tags (IEEE 802.3, 802.1Q, 802.1ad).

use super::{Be16, header};

header!(Eth, 14 {
    destination: [u8; 6],
    source: [u8; 6],
    ethertype: Be16,
});

header!(
    /// What follows the type 0x8100 or 0x88a8.
    Vlan, 4 {
    tag: Be16,
    ethertype: Be16,
});

/// EtherTypes in network order.
pub mod ethertype {
    pub const IPV4: u16 = 0x0800u16.to_be();
    pub const ARP: u16 = 0x0806u16.to_be();
    pub const VLAN: u16 = 0x8100u16.to_be();
    pub const QINQ: u16 = 0x88a8u16.to_be();
    pub const IPV6: u16 = 0x86ddu16.to_be();
}
