//! The way to other nodes: next hops, who may tunnel to us, and this node's uplinks.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

use crate::{abi::MAX_UPLINKS, net::Addr};

/// Value of `HOPS`, per node index: all that an encapsulated packet to that node needs.
///
/// Written as whole 64-bit words; a reader that meets a change of MAC halfway sends one packet to
/// the former MAC, which the network drops, and nothing worse.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Hop {
    /// Interface to leave by; 0: no way known.
    pub ifindex: u32,
    /// Bytes of IP packet that the way carries, outer headers included.
    pub mtu: u32,
    /// Of the next hop.
    pub destination_mac: [u8; 6],
    /// Of the interface.
    pub source_mac: [u8; 6],
    /// [`flags`]. Changed by one store.
    pub flags: u32,
    /// Outer addresses, of one family.
    pub source: Addr,
    pub destination: Addr,
    pub reserved2: u64,
}
const _: () = assert!(size_of::<Hop>() == 64);

pub mod flags {
    /// The node's data plane is silent: none of its backends is a candidate.
    pub const DEAD: u32 = 1;
    /// The node's agent is silent and cannot claim: its backends count as claiming every slot that
    /// they owned in an earlier epoch.
    pub const CLAIMS_ALL: u32 = 1 << 1;
}

/// Value of `MEMBERS`, keyed by [`Addr`]: a configured node, which may tunnel to us.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Member {
    /// Index into `HOPS`; 0: this node.
    pub node: u32,
    pub reserved: u32,
    #[cfg(feature = "next-layout")]
    pub next: u64,
}
#[cfg(not(feature = "next-layout"))]
const _: () = assert!(size_of::<Member>() == 8);

/// One interface that carries clients' traffic.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Uplink {
    /// 0: unused.
    pub ifindex: u32,
    pub mac: [u8; 6],
    pub reserved: [u8; 6],
}

/// The only value of `UPLINKS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Uplinks {
    pub list: [Uplink; MAX_UPLINKS],
}
const _: () = assert!(size_of::<Uplinks>() == 16 * MAX_UPLINKS);

map_types!(Hop, Member, Uplinks);
