//! The tunnel by hand: Geneve (RFC 8926) without inner Ethernet, one option of weir.
//!
//! Layout of the option's body, from the design: version, flags, slots (2), seed tag (8),
//! backend's address (16, IPv4 mapped) and port (2), seven fingerprints (14).

use std::net::IpAddr;

use super::{Frame, Mac};

/// Option types.
pub mod kind {
    pub const DATA: u8 = 0x81;
    pub const PROBE: u8 = 0x82;
    pub const PROBE_ANSWER: u8 = 0x83;
    pub const YIELD: u8 = 0x84;
}

/// Outer headers of a tunnel frame.
#[derive(Clone, Debug)]
pub struct Outer {
    pub frame: Frame,
    pub source_port: u16,
    pub port: u16,
}

impl Outer {
    /// Between two nodes, as weir sends it: no UDP checksum.
    pub fn new(source: IpAddr, destination: IpAddr, source_port: u16, port: u16) -> Self {
        Self { frame: Frame::ip(source, destination).no_checksum(), source_port, port }
    }

    pub fn macs(mut self, destination: Mac, source: Mac) -> Self {
        self.frame = self.frame.macs(destination, source);
        self
    }

    /// Changes what is neither address nor port.
    pub fn with(mut self, change: impl FnOnce(Frame) -> Frame) -> Self {
        self.frame = change(self.frame);
        self
    }

    fn carry(&self, payload: &[u8]) -> Frame {
        self.frame.clone().udp(self.source_port, self.port).payload(payload)
    }
}

/// What the headers of a data packet say.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// First byte of the base header: version and length of options in words.
    pub version_length: u8,
    pub flags: u8,
    pub protocol: u16,
    pub vni: u32,
    pub class: u16,
    pub kind: u8,
    pub length: u8,
    pub version: u8,
    pub data_flags: u8,
    /// Of the sender's table; 0: not told.
    pub slots: u16,
    pub seed_tag: [u8; 8],
    pub backend: IpAddr,
    pub backend_port: u16,
    pub visited: [u16; 7],
}

impl Tunnel {
    /// Nothing visited, no flags, no number of slots.
    pub fn new(vni: u32, seed_tag: [u8; 8], backend: IpAddr, backend_port: u16) -> Self {
        Self {
            version_length: 12,
            flags: 0x40,
            protocol: if backend.is_ipv4() { 0x0800 } else { 0x86dd },
            vni,
            class: 0xff01,
            kind: kind::DATA,
            length: 11,
            version: 1,
            data_flags: 0,
            slots: 0,
            seed_tag,
            backend,
            backend_port,
            visited: [0; 7],
        }
    }

    /// The header that tells a node to leave `vip` alone.
    pub fn yields(vni: u32, seed_tag: [u8; 8], vip: IpAddr) -> Self {
        Self { kind: kind::YIELD, protocol: 0, ..Self::new(vni, seed_tag, vip, 0) }
    }

    fn base(&self) -> Vec<u8> {
        let mut bytes = vec![self.version_length, self.flags];
        bytes.extend(self.protocol.to_be_bytes());
        bytes.extend((self.vni << 8).to_be_bytes());
        bytes.extend(self.class.to_be_bytes());
        bytes.extend([self.kind, self.length]);
        bytes
    }

    /// The frame that carries `inner`, an IP packet.
    pub fn carry(&self, outer: &Outer, inner: &[u8]) -> Frame {
        let mut bytes = self.base();
        bytes.extend([self.version, self.data_flags]);
        bytes.extend(self.slots.to_be_bytes());
        bytes.extend(self.seed_tag);
        bytes.extend(match self.backend {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        });
        bytes.extend(self.backend_port.to_be_bytes());
        for fingerprint in self.visited {
            bytes.extend(fingerprint.to_ne_bytes());
        }
        bytes.extend(inner);
        outer.carry(&bytes)
    }
}

/// A probe or its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub kind: u8,
    pub vni: u32,
    pub version: u8,
    pub seed_tag: [u8; 8],
    pub nonce: [u8; 8],
    pub boot_id: [u8; 16],
    pub heartbeat_age: u32,
    pub layout: u32,
}

impl Probe {
    /// A probe as a prober sends it.
    pub fn ask(vni: u32, seed_tag: [u8; 8], nonce: [u8; 8]) -> Self {
        Self {
            kind: kind::PROBE,
            vni,
            version: 1,
            seed_tag,
            nonce,
            boot_id: [0; 16],
            heartbeat_age: 0,
            layout: 0,
        }
    }

    pub fn frame(&self, outer: &Outer) -> Frame {
        let mut bytes = Tunnel {
            kind: self.kind,
            protocol: 0,
            ..Tunnel::new(self.vni, self.seed_tag, std::net::Ipv4Addr::UNSPECIFIED.into(), 0)
        }
        .base();
        bytes.extend([self.version, 0, 0, 0]);
        bytes.extend(self.seed_tag);
        bytes.extend(self.nonce);
        bytes.extend(self.boot_id);
        bytes.extend(self.heartbeat_age.to_be_bytes());
        bytes.extend(self.layout.to_be_bytes());
        outer.carry(&bytes)
    }
}
