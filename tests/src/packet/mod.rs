//! Frames for tests: a builder, a checker of checksums and a readable difference.
//!
//! Written from the RFCs and from the design's description of the tunnel. Shares no code with
//! `lb_common::wire` or `lb_common::checksum`: a mistake there must show here.

mod build;
mod check;
mod tunnel;

pub use build::{Frame, Mac, Network, Transport};
pub use check::{check, describe, difference, hex, unwrap_tunnel};
pub use tunnel::{Outer, Probe, Tunnel, kind};

/// The Internet checksum (RFC 1071) of the bytes of all parts; all but the last have an even length.
pub(crate) fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let sum = parts
        .iter()
        .fold(etherparse::checksum::Sum16BitWords::new(), |sum, part| sum.add_slice(part));
    // etherparse sums words as they stand in memory.
    u16::from_be(sum.ones_complement())
}

/// Pseudo header of RFC 9293 3.1 (IPv4) and RFC 8200 8.1 (IPv6).
pub(crate) fn pseudo_header(
    source: std::net::IpAddr,
    destination: std::net::IpAddr,
    proto: u8,
    length: usize,
) -> Vec<u8> {
    use std::net::IpAddr::{V4, V6};
    let mut bytes = Vec::with_capacity(40);
    match (source, destination) {
        (V4(source), V4(destination)) => {
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            bytes.extend([0, proto]);
            bytes.extend((length as u16).to_be_bytes());
        }
        (V6(source), V6(destination)) => {
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            bytes.extend((length as u32).to_be_bytes());
            bytes.extend([0, 0, 0, proto]);
        }
        _ => panic!("{source} and {destination} are of two families"),
    }
    bytes
}
