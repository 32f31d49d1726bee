//! Frontends and VIPs: what a client's packet is looked up by.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

use crate::net::{Addr, Port};

/// Address, port and protocol: the key of `FRONTENDS` (a VIP's) and of `LOCAL_BACKENDS`, and the
/// value of `FRONTEND_OF` (service index → what `egress` puts back).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Pod, Zeroable)]
pub struct Endpoint {
    pub addr: Addr,
    pub port: Port,
    pub proto: u8,
    /// Always zero: keys are compared byte by byte. Two words, so that BPF clears them by two stores.
    pub pad: u8,
    pub pad2: u32,
}
const _: () = assert!(size_of::<Endpoint>() == 24);

impl Endpoint {
    #[inline(always)]
    pub const fn new(addr: Addr, port: Port, proto: u8) -> Self {
        Self { addr, port, proto, pad: 0, pad2: 0 }
    }
}

/// Value of `FRONTENDS`: two stable service indices, and what is asked of clients before all else.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Frontend {
    /// Service for clients outside the cluster.
    pub outside: u32,
    /// Service for clients on the nodes.
    pub inside: u32,
    /// [`frontend_flags`].
    pub flags: u32,
}
const _: () = assert!(size_of::<Frontend>() == 12);

pub mod frontend_flags {
    /// Only clients in one of its networks in `SOURCE_RANGES`; without any, nobody.
    pub const RANGES: u32 = 1;
}

/// Key of `SOURCE_RANGES`: a network whose clients a frontend takes. As the kernel wants keys of such
/// maps: the number of bits that count, then the bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
pub struct SourceRange {
    /// Of all that follows.
    pub bits: u32,
    /// The frontend's services without the last bit.
    pub frontend: u32,
    pub addr: Addr,
}
const _: () = assert!(size_of::<SourceRange>() == 24);

impl SourceRange {
    /// A network by the length of its prefix; that of IPv4 counts the mapped form's 96 bits too.
    #[inline(always)]
    pub const fn network(frontend: u32, addr: Addr, length: u32) -> Self {
        Self { bits: u32::BITS + length, frontend, addr }
    }

    /// The networks that one client is in.
    #[inline(always)]
    pub const fn of_client(frontend: u32, client: Addr) -> Self {
        Self::network(frontend, client, 128)
    }

    /// Length of the network's prefix, as above.
    pub const fn length(&self) -> u32 {
        self.bits.saturating_sub(u32::BITS)
    }
}

/// Value of `VIPS`, keyed by [`Addr`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Vip {
    /// Interface on which this node answers ARP and NDP for the VIP; 0: it announces it nowhere.
    pub announced_on: u32,
    /// [`vip_flags`].
    pub flags: u32,
}
const _: () = assert!(size_of::<Vip>() == 8);

pub mod vip_flags {
    /// Answer ICMP and ICMPv6 echo.
    pub const ECHO: u32 = 1;
}

/// `VIP_FILTER` is a bitmap over hashed addresses: a clear bit proves "no VIP", so that traffic
/// that is not ours costs one array look-up instead of a hash look-up.
pub const FILTER_WORDS: u32 = 1024;

/// Where an address stands in `VIP_FILTER`: (word, bit mask).
#[inline(always)]
pub fn filter_position(addr: &Addr) -> (u32, u64) {
    let [first, second] = addr.halves();
    let folded = first.rotate_left(23) ^ second;
    let mixed = ((folded ^ folded >> 32) as u32).wrapping_mul(0x9e37_79b1);
    (mixed >> 22, 1 << ((mixed >> 16) & 63))
}

map_types!(Endpoint, Frontend, SourceRange, Vip, Addr);
