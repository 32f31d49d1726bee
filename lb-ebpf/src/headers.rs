//! Whole headers for what weir itself sends: outer headers and answers.

use lb_common::{
    checksum,
    net::Addr,
    wire::{
        ipv4::{DF, Ipv4},
        ipv6::Ipv6,
    },
};

/// TTL and hop limit of what this node itself sends.
pub const TTL: u8 = 64;

/// IPv4 without options. Never fragmented, so the identification may be 0 (RFC 6864 4.1).
#[inline(always)]
pub fn ipv4(source: &Addr, destination: &Addr, proto: u8, length: u16, tos: u8) -> Ipv4 {
    let sum = u16::from_ne_bytes([0x45, tos]) as u64
        + length.to_be() as u64
        + DF as u64
        + u16::from_ne_bytes([TTL, proto]) as u64
        + source.v4_word() as u64
        + destination.v4_word() as u64;
    Ipv4 {
        version_ihl: 0x45,
        tos,
        total_length: length.to_be(),
        id: 0,
        fragment: DF,
        ttl: TTL,
        proto,
        checksum: !checksum::fold(sum),
        source: source.v4_word(),
        destination: destination.v4_word(),
    }
}

/// IPv6 without extensions; `length` is the payload's.
#[inline(always)]
pub fn ipv6(source: &Addr, destination: &Addr, proto: u8, length: u16, tos: u8) -> Ipv6 {
    Ipv6 {
        version_class: 0x60 | tos >> 4,
        class_flow: tos << 4,
        flow: 0,
        payload_length: length.to_be(),
        next_header: proto,
        hop_limit: TTL,
        source: (*source).into(),
        destination: (*destination).into(),
    }
}
