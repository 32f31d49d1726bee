//! The tunnel: Geneve (RFC 8926) without inner Ethernet, with one option of fixed size.
//!
//! The receiver takes its packets from the frame by XDP, so no stack sees the outer UDP checksum:
//! it is 0 over IPv4 and IPv6 alike (RFC 6935, RFC 6936), and any value is accepted.

use super::{Be16, Be32, header, ipv6::WireAddr};
use crate::net::{Addr, Port};

header!(
    /// The base header.
    Geneve, 8 {
    /// Version 0, length of all options in words.
    version_length: u8,
    /// Control and critical bits.
    flags: u8,
    /// EtherType of the inner packet.
    protocol: Be16,
    /// Virtual network identifier in the upper 24 bits.
    vni: Be32,
});

header!(
    /// Head of one option.
    OptionHead, 4 {
    class: Be16,
    kind: u8,
    /// Reserved bits, length of the body in words.
    length: u8,
});

header!(
    /// Body of [`kind::DATA`]: which backend is meant and who was asked before.
    Data, 44 {
    version: u8,
    /// [`data_flags`].
    flags: u8,
    /// Of the sender's table; 0: not told.
    slots: Be16,
    /// Eight bytes, as memory holds them.
    seed_tag: u64,
    backend: WireAddr,
    backend_port: Be16,
    visited: Visited,
});

header!(
    /// [`VISITED`] fingerprints of backends visited, 0 for an empty place.
    Visited, 14 {
    first: u64,
    second: u32,
    third: u16,
});

header!(
    /// Body of [`kind::PROBE`] and [`kind::PROBE_ANSWER`]. A probe fills version, seed tag and
    /// nonce; the answer returns the nonce and fills in the rest with its own.
    Probe, 44 {
    version: u8,
    reserved: u8,
    reserved2: u16,
    seed_tag: [u8; 8],
    /// The prober's, returned as it is.
    nonce: [u32; 2],
    /// Changes with every boot of the node that answers.
    boot_id: [u32; 4],
    /// Age of the agent's heartbeat in ms, `u32::MAX` where there never was one; network order.
    heartbeat_age: Be32,
    /// Layout version of the maps; network order.
    layout: Be32,
});

/// All of a data packet's headers behind UDP.
pub const HEADERS: usize = 8 + 4 + 44;

header!(
    /// Base header, option head and body of a data packet, always of this one form.
    DataHeader, 56 {
    base: Geneve,
    option: OptionHead,
    data: Data,
});

header!(
    /// Base header, option head and body of a probe or its answer.
    ProbeHeader, 56 {
    base: Geneve,
    option: OptionHead,
    probe: Probe,
});

/// Backends a packet may have visited before it is sent on with *last*.
pub const VISITED: usize = 7;

/// Bytes that the tunnel adds to an IP packet: outer IP, UDP, Geneve and option.
pub const OVERHEAD_V4: u32 = 20 + 8 + HEADERS as u32;
pub const OVERHEAD_V6: u32 = 40 + 8 + HEADERS as u32;

/// First byte of the base header: version 0, twelve words of options.
pub const VERSION_LENGTH: u8 = 12;

/// Option class, from the experimental range (RFC 8926 7).
pub const CLASS: u16 = 0xff01u16.to_be();

/// Length byte of our options, in words.
pub const OPTION_LENGTH: u8 = 11;

/// Option types. The critical bit is set: who does not know them must drop.
pub mod kind {
    pub const DATA: u8 = 0x81;
    pub const PROBE: u8 = 0x82;
    pub const PROBE_ANSWER: u8 = 0x83;
    /// Asks a node whose agent is silent to leave a VIP alone: a [`super::Data`] that names the VIP in
    /// place of the backend, its port 0.
    pub const YIELD: u8 = 0x84;
}

/// Flags of the base header: critical options present.
pub const CRITICAL: u8 = 0x40;

pub mod data_flags {
    /// Set by any hop that holds the frontend young.
    pub const YOUNG: u8 = 1;
    /// Deliver, whatever is known.
    pub const LAST: u8 = 1 << 1;
}

/// VNI as the base header holds it.
#[inline(always)]
pub const fn vni_word(vni: u32) -> Be32 {
    (vni << 8).to_be()
}

impl Data {
    #[inline(always)]
    pub const fn backend_addr(&self) -> Addr {
        Addr::from_halves([self.backend.first, self.backend.last])
    }

    #[inline(always)]
    pub const fn backend_port(&self) -> Port {
        Port::from_wire(self.backend_port)
    }
}
