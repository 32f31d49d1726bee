//! Ethernet II and VLAN tags (IEEE 802.3, 802.1Q, 802.1ad).

use super::{Be16, header};

/// A MAC address as two words: copied by two loads and two stores and not by six.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mac {
    first: u32,
    last: u16,
}

impl Mac {
    #[inline(always)]
    pub const fn new(bytes: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = bytes;
        Self { first: u32::from_ne_bytes([a, b, c, d]), last: u16::from_ne_bytes([e, f]) }
    }

    /// Multicast or broadcast (IEEE 802.3 3.2.3). All that weir runs on is little-endian.
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.first & 1 != 0
    }

    /// Sum of its words, for checksums.
    #[inline(always)]
    pub const fn sum(self) -> u64 {
        self.first as u64 + self.last as u64
    }
}

header!(
    /// A [`Mac`] on the wire.
    WireMac, 6 {
    first: u32,
    last: u16,
});

impl From<Mac> for WireMac {
    #[inline(always)]
    fn from(mac: Mac) -> Self {
        Self { first: mac.first, last: mac.last }
    }
}

impl From<WireMac> for Mac {
    #[inline(always)]
    fn from(mac: WireMac) -> Self {
        Self { first: mac.first, last: mac.last }
    }
}

header!(Eth, 14 {
    destination: WireMac,
    source: WireMac,
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
