//! Addresses and ports as they stand on the wire.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytemuck::{Pod, Zeroable};

/// IPv6 address, or IPv4 address mapped into `::ffff:0:0/96` (RFC 4291 2.5.5.2).
///
/// Two words whose bytes in memory are the sixteen bytes of the wire, so that BPF compares and
/// copies words and not bytes. All that weir runs on is little-endian: the first byte of the wire is
/// the lowest of its word.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
pub struct Addr {
    halves: [u64; 2],
}

/// Lower half of the second word of every mapped IPv4 address.
const MAPPED: u32 = u32::from_le_bytes([0, 0, 0xff, 0xff]);

impl Addr {
    pub const UNSET: Self = Self { halves: [0; 2] };

    #[inline(always)]
    pub const fn from_halves(halves: [u64; 2]) -> Self {
        Self { halves }
    }

    /// From the four bytes of an IPv4 address, as one word in memory order.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self { halves: [0, (word as u64) << 32 | MAPPED as u64] }
    }

    #[inline(always)]
    pub const fn halves(&self) -> [u64; 2] {
        self.halves
    }

    /// The IPv4 address in memory order; meaningful only where [`Self::is_v4`].
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        (self.halves[1] >> 32) as u32
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.halves[0] == 0 && self.halves[1] as u32 == MAPPED
    }

    /// `::`, which no map key uses.
    #[inline(always)]
    pub const fn is_unset(&self) -> bool {
        self.halves[0] | self.halves[1] == 0
    }

    /// The sixteen bytes of the wire.
    pub fn octets(&self) -> [u8; 16] {
        bytemuck::cast(self.halves)
    }

    pub fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self.octets()).to_canonical()
    }
}

impl From<[u8; 16]> for Addr {
    fn from(octets: [u8; 16]) -> Self {
        Self { halves: bytemuck::cast(octets) }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        ip.to_ipv6_mapped().octets().into()
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        ip.octets().into()
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => ip.into(),
        }
    }
}

/// Port in network order: its two bytes in memory are the two bytes of the wire.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Pod, Zeroable)]
pub struct Port(u16);

impl Port {
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }

    /// From a word loaded from the wire without conversion.
    #[inline(always)]
    pub const fn from_wire(word: u16) -> Self {
        Self(word)
    }

    /// The word to store on the wire without conversion.
    #[inline(always)]
    pub const fn wire(self) -> u16 {
        self.0
    }

    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// IP protocol numbers (IANA).
pub mod proto {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AH: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// The five-tuple of a flow, seen from the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Flow {
    pub client: Addr,
    pub vip: Addr,
    pub client_port: Port,
    pub vip_port: Port,
    pub proto: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_and_plain_addresses_survive_the_round_trip() {
        let v4: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
        let v6: IpAddr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into();
        assert!(Addr::from(v4).is_v4() && !Addr::from(v6).is_v4());
        assert_eq!((Addr::from(v4).to_ip(), Addr::from(v6).to_ip()), (v4, v6));
        assert_eq!(Addr::from_v4_word(u32::from_ne_bytes([192, 0, 2, 1])), v4.into());
    }

    #[test]
    fn ports_are_stored_as_on_the_wire() {
        assert_eq!(bytemuck::bytes_of(&Port::new(0x1f90)), [0x1f, 0x90]);
        assert_eq!(Port::new(8080).get(), 8080);
    }
}
