//! The builder: one Ethernet frame from fields, all lengths and checksums right unless asked.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, TcpHeader};

use super::{internet_checksum, pseudo_header};

pub type Mac = [u8; 6];

/// What stands behind Ethernet.
#[derive(Clone, Debug)]
pub enum Network {
    Ip,
    /// EtherType and bytes.
    Other(u16, Vec<u8>),
}

/// What stands behind IP.
#[derive(Clone, Debug)]
pub enum Transport {
    Tcp {
        source: u16,
        destination: u16,
        flags: u8,
        seq: u32,
        ack: u32,
        window: u16,
        options: Vec<u8>,
    },
    Udp {
        source: u16,
        destination: u16,
    },
    /// ICMP or ICMPv6, by the family of the addresses: type, code and the four bytes that follow
    /// the checksum.
    Icmp {
        kind: u8,
        code: u8,
        rest: [u8; 4],
    },
    /// Protocol number; the payload is all there is.
    Other(u8),
}

/// A frame to be.
#[derive(Clone, Debug)]
pub struct Frame {
    destination_mac: Mac,
    source_mac: Mac,
    tags: Vec<(u16, u16)>,
    network: Network,
    source: IpAddr,
    destination: IpAddr,
    tos: u8,
    ttl: u8,
    id: u16,
    dont_fragment: bool,
    flow_label: u32,
    fragment: Option<(u16, bool)>,
    options: Vec<u8>,
    extensions: Vec<(u8, Vec<u8>)>,
    transport: Transport,
    payload: Vec<u8>,
    without_checksum: bool,
    keep: usize,
    trailer: usize,
}

impl Frame {
    /// An IP packet without transport, between two locally administered MACs.
    pub fn ip(source: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> Self {
        let (source, destination) = (source.into(), destination.into());
        assert_eq!(source.is_ipv4(), destination.is_ipv4(), "{source} to {destination}");
        Self {
            destination_mac: [2, 0, 0, 0, 0, 2],
            source_mac: [2, 0, 0, 0, 0, 1],
            tags: Vec::new(),
            network: Network::Ip,
            source,
            destination,
            tos: 0,
            ttl: 64,
            id: 0,
            dont_fragment: true,
            flow_label: 0,
            fragment: None,
            options: Vec::new(),
            extensions: Vec::new(),
            transport: Transport::Other(253),
            payload: Vec::new(),
            without_checksum: false,
            keep: usize::MAX,
            trailer: 0,
        }
    }

    /// A frame of another EtherType.
    pub fn other(ethertype: u16, bytes: &[u8]) -> Self {
        Self {
            network: Network::Other(ethertype, bytes.to_vec()),
            ..Self::ip(Ipv6Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED)
        }
    }

    /// ARP (RFC 826): `operation` 1 asks, 2 answers.
    pub fn arp(
        operation: u16,
        sender: (Mac, std::net::Ipv4Addr),
        target: (Mac, std::net::Ipv4Addr),
    ) -> Self {
        let mut bytes = vec![0, 1, 8, 0, 6, 4];
        bytes.extend(operation.to_be_bytes());
        bytes.extend(sender.0);
        bytes.extend(sender.1.octets());
        bytes.extend(target.0);
        bytes.extend(target.1.octets());
        Self::other(0x0806, &bytes)
    }

    /// Neighbour solicitation (RFC 4861 4.3) to the target's solicited-node group, with the source
    /// link-layer option unless the source is `::` (duplicate address detection).
    pub fn solicitation(source: Ipv6Addr, mac: Mac, target: Ipv6Addr) -> Self {
        let low = target.octets();
        let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
        group[13..].copy_from_slice(&low[13..]);
        let mut body = low.to_vec();
        if !source.is_unspecified() {
            body.extend([1, 1]);
            body.extend(mac);
        }
        Self::ip(source, Ipv6Addr::from(group))
            .macs([0x33, 0x33, 0xff, low[13], low[14], low[15]], mac)
            .ttl(255)
            .icmp(135, 0, [0; 4])
            .payload(&body)
    }

    /// Neighbour advertisement (RFC 4861 4.4) with the target link-layer option; `flags` is the
    /// first byte behind the checksum (R, S, O from the top).
    pub fn advertisement(
        source: Ipv6Addr,
        destination: Ipv6Addr,
        target: Ipv6Addr,
        flags: u8,
        mac: Mac,
    ) -> Self {
        let mut body = target.octets().to_vec();
        body.extend([2, 1]);
        body.extend(mac);
        Self::ip(source, destination).ttl(255).icmp(136, 0, [flags, 0, 0, 0]).payload(&body)
    }

    pub fn macs(mut self, destination: Mac, source: Mac) -> Self {
        (self.destination_mac, self.source_mac) = (destination, source);
        self
    }

    /// Addresses again, to derive one frame from another.
    pub fn addresses(mut self, source: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> Self {
        (self.source, self.destination) = (source.into(), destination.into());
        self
    }

    /// Adds an 802.1Q tag behind those that are there.
    pub fn vlan(self, id: u16) -> Self {
        self.tag(0x8100, id)
    }

    /// Adds a tag with any type, such as 0x88a8.
    pub fn tag(mut self, ethertype: u16, id: u16) -> Self {
        self.tags.push((ethertype, id));
        self
    }

    /// DSCP and ECN: the second byte of IPv4, the traffic class of IPv6.
    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    pub fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    pub fn may_fragment(mut self) -> Self {
        self.dont_fragment = false;
        self
    }

    pub fn flow_label(mut self, label: u32) -> Self {
        self.flow_label = label;
        self
    }

    /// Makes it a fragment: offset in units of eight bytes, more to come. The payload stays.
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some((offset, more));
        self.dont_fragment = false;
        self
    }

    /// IPv4 options, a multiple of four bytes.
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// Adds an IPv6 extension header of `units` times eight bytes: a PadN option (RFC 8200 4.2), or a
    /// routing header without segments left.
    pub fn extension(mut self, number: u8, units: usize) -> Self {
        assert!((1..=32).contains(&units));
        let mut body = vec![0; units * 8 - 2];
        body[0] = 1;
        body[1] = (units * 8 - 4) as u8;
        if number == 43 {
            // A routing header that has done its work: no segments left.
            body[..2].fill(0);
        }
        self.extensions.push((number, body));
        self
    }

    /// TCP with flags as letters, such as `"SA"`.
    pub fn tcp(mut self, source: u16, destination: u16, letters: &str) -> Self {
        let flags = letters.chars().fold(0, |flags, letter| {
            let bit = "FSRPAUEC".find(letter).unwrap_or_else(|| panic!("no TCP flag {letter}"));
            flags | 1 << bit
        });
        self.transport = Transport::Tcp {
            source,
            destination,
            flags,
            seq: 1000,
            ack: 0,
            window: 65_000,
            options: Vec::new(),
        };
        self
    }

    pub fn seq(mut self, number: u32) -> Self {
        let Transport::Tcp { seq, .. } = &mut self.transport else { panic!("not TCP") };
        *seq = number;
        self
    }

    pub fn ack(mut self, number: u32) -> Self {
        let Transport::Tcp { ack, .. } = &mut self.transport else { panic!("not TCP") };
        *ack = number;
        self
    }

    pub fn window(mut self, size: u16) -> Self {
        let Transport::Tcp { window, .. } = &mut self.transport else { panic!("not TCP") };
        *window = size;
        self
    }

    /// TCP options, a multiple of four bytes.
    pub fn tcp_options(mut self, bytes: &[u8]) -> Self {
        let Transport::Tcp { options, .. } = &mut self.transport else { panic!("not TCP") };
        *options = bytes.to_vec();
        self
    }

    /// The option of maximum segment size (RFC 9293 3.7.1).
    pub fn mss(self, mss: u16) -> Self {
        let [high, low] = mss.to_be_bytes();
        self.tcp_options(&[2, 4, high, low])
    }

    pub fn udp(mut self, source: u16, destination: u16) -> Self {
        self.transport = Transport::Udp { source, destination };
        self
    }

    /// Other ports for TCP or UDP.
    pub fn ports(mut self, from: u16, to: u16) -> Self {
        match &mut self.transport {
            Transport::Tcp { source, destination, .. } | Transport::Udp { source, destination } => {
                (*source, *destination) = (from, to);
            }
            _ => panic!("no ports"),
        }
        self
    }

    /// Leaves the transport's checksum 0.
    pub fn no_checksum(mut self) -> Self {
        self.without_checksum = true;
        self
    }

    pub fn icmp(mut self, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        self.transport = Transport::Icmp { kind, code, rest };
        self
    }

    /// Another protocol number.
    pub fn proto(mut self, number: u8) -> Self {
        self.transport = Transport::Other(number);
        self
    }

    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.payload = bytes.to_vec();
        self
    }

    /// A payload of `length` bytes that are not all equal.
    pub fn payload_length(self, length: usize) -> Self {
        let bytes: Vec<u8> = (0..length).map(|i| (i * 7 + i / 256) as u8).collect();
        self.payload(&bytes)
    }

    /// Cuts the frame, after lengths and checksums were computed.
    pub fn truncate(mut self, length: usize) -> Self {
        self.keep = length;
        self
    }

    /// Adds bytes behind the packet, as short frames have them on Ethernet.
    pub fn trailer(mut self, length: usize) -> Self {
        self.trailer = length;
        self
    }

    /// The whole frame.
    pub fn build(&self) -> Vec<u8> {
        let (ethertype, packet) = match &self.network {
            Network::Ip if self.source.is_ipv4() => (0x0800, self.packet()),
            Network::Ip => (0x86dd, self.packet()),
            Network::Other(ethertype, bytes) => (*ethertype, bytes.clone()),
        };
        let mut frame = self.destination_mac.to_vec();
        frame.extend(self.source_mac);
        for (ethertype, tag) in &self.tags {
            frame.extend(ethertype.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(u16::to_be_bytes(ethertype));
        frame.extend(packet);
        frame.extend(std::iter::repeat_n(0xee, self.trailer));
        frame.truncate(self.keep);
        frame
    }

    /// The IP packet alone.
    pub fn packet(&self) -> Vec<u8> {
        let (proto, segment) = self.segment();
        let mut packet = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (offset, more) = self.fragment.unwrap_or_default();
                let mut header = Ipv4Header {
                    dscp: (self.tos >> 2).try_into().unwrap(),
                    ecn: (self.tos & 3).try_into().unwrap(),
                    identification: self.id,
                    dont_fragment: self.dont_fragment,
                    more_fragments: more,
                    fragment_offset: IpFragOffset::try_new(offset).unwrap(),
                    time_to_live: self.ttl,
                    protocol: IpNumber(proto),
                    source: source.octets(),
                    destination: destination.octets(),
                    options: self.options.as_slice().try_into().unwrap(),
                    ..Default::default()
                };
                header.set_payload_len(segment.len()).unwrap();
                header.header_checksum = header.calc_header_checksum();
                header.to_bytes().to_vec()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (first, extensions) = self.extension_bytes(proto);
                let mut header =
                    (6 << 28 | u32::from(self.tos) << 20 | self.flow_label).to_be_bytes().to_vec();
                header.extend(((extensions.len() + segment.len()) as u16).to_be_bytes());
                header.extend([first, self.ttl]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(extensions);
                header
            }
            _ => unreachable!("`ip` checks the families"),
        };
        packet.extend(segment);
        packet
    }

    /// The chain of extension headers, the fragment header last; and the number of its first.
    fn extension_bytes(&self, proto: u8) -> (u8, Vec<u8>) {
        let mut chain = self.extensions.clone();
        if let Some((offset, more)) = self.fragment {
            let mut body = (offset << 3 | u16::from(more)).to_be_bytes().to_vec();
            body.extend(u32::from(self.id).to_be_bytes());
            chain.push((44, body));
        }
        let mut bytes = Vec::new();
        for (index, (number, body)) in chain.iter().enumerate() {
            bytes.push(chain.get(index + 1).map_or(proto, |next| next.0));
            bytes.push(match number {
                44 => 0,
                // The authentication header alone counts in words (RFC 4302 2.2).
                51 => (body.len() + 2) as u8 / 4 - 2,
                _ => (body.len() + 2) as u8 / 8 - 1,
            });
            bytes.extend(body);
        }
        (chain.first().map_or(proto, |first| first.0), bytes)
    }

    /// Protocol number and transport header with payload.
    fn segment(&self) -> (u8, Vec<u8>) {
        let v6 = self.source.is_ipv6();
        let (proto, mut bytes, checksum_at) = match &self.transport {
            Transport::Tcp { source, destination, flags, seq, ack, window, options } => {
                let mut header = TcpHeader::new(*source, *destination, *seq, *window);
                header.acknowledgment_number = *ack;
                header.set_options_raw(options).unwrap();
                let mut bytes = header.to_bytes().to_vec();
                bytes[13] = *flags;
                (6, bytes, 16)
            }
            Transport::Udp { source, destination } => {
                let mut bytes = source.to_be_bytes().to_vec();
                bytes.extend(destination.to_be_bytes());
                bytes.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                bytes.extend([0, 0]);
                (17, bytes, 6)
            }
            Transport::Icmp { kind, code, rest } => {
                let mut bytes = vec![*kind, *code, 0, 0];
                bytes.extend(rest);
                (if v6 { 58 } else { 1 }, bytes, 2)
            }
            Transport::Other(proto) => return (*proto, self.payload.clone()),
        };
        bytes.extend(&self.payload);
        if !self.without_checksum {
            let pseudo = match proto {
                1 => Vec::new(),
                _ => pseudo_header(self.source, self.destination, proto, bytes.len()),
            };
            let sum = match internet_checksum(&[&pseudo, &bytes]) {
                0 if proto == 17 => 0xffff,
                sum => sum,
            };
            bytes[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        (proto, bytes)
    }
}
