//! IPv6 and its extension headers (RFC 8200).

use super::{Be16, header};
use crate::net::Addr;

header!(
    /// An [`Addr`] on the wire, as two words: copied by them and not by sixteen bytes.
    WireAddr, 16 {
    first: u64,
    last: u64,
});

impl From<Addr> for WireAddr {
    #[inline(always)]
    fn from(addr: Addr) -> Self {
        let [first, last] = addr.halves();
        Self { first, last }
    }
}

impl From<WireAddr> for Addr {
    #[inline(always)]
    fn from(addr: WireAddr) -> Self {
        Self::from_halves([addr.first, addr.last])
    }
}

header!(Ipv6, 40 {
    /// 6, and the upper half of the traffic class.
    version_class: u8,
    /// The lower half of the traffic class, and the upper four bits of the flow label.
    class_flow: u8,
    flow: Be16,
    payload_length: Be16,
    next_header: u8,
    hop_limit: u8,
    source: WireAddr,
    destination: WireAddr,
});

impl Ipv6 {
    /// DSCP and ECN, as IPv4 has them in its second byte.
    #[inline(always)]
    pub const fn traffic_class(&self) -> u8 {
        self.version_class << 4 | self.class_flow >> 4
    }

    #[inline(always)]
    pub const fn set_traffic_class(&mut self, class: u8) {
        self.version_class = self.version_class & 0xf0 | class >> 4;
        self.class_flow = self.class_flow & 0x0f | class << 4;
    }
}

header!(
    /// Start of every extension header but the fragment header.
    Extension, 2 {
    next_header: u8,
    /// In units of eight bytes, the first eight not counted.
    length: u8,
});
