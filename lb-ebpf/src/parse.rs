//! From bytes to what the stages look at. Never decides: it says what is there, or the reason why
//! it cannot be read.

use lb_common::{
    decide::Segment,
    net::{Addr, Flow, Port, proto},
    reason::Reason,
    wire::{
        eth::{Eth, Mac, Vlan, ethertype},
        ipv4::{FRAGMENT_MASK, Ipv4},
        ipv6::{Extension, Ipv6},
        l4::{Tcp, Udp},
    },
};

use crate::frame::View;

/// IPv6 extension headers that are walked; more are refused (Linux hosts send none or one).
const MAX_EXTENSIONS: usize = 4;

/// Where an Ethernet header ends, and its tags, so that it can be written again elsewhere.
#[derive(Clone, Copy)]
pub struct Link {
    /// Type of what the tags and the header carry.
    pub ethertype: u16,
    /// Where the IP header starts: 14, 18 or 22.
    pub l3: usize,
    /// Types that announce the tags, and the tags; meaningful up to `l3`.
    pub types: [u16; 2],
    pub tags: [u16; 2],
}

impl Link {
    /// Reads the header and at most two tags (IEEE 802.1ad).
    #[inline(always)]
    pub fn read(view: &View<'_>) -> Result<Self, Reason> {
        let mut link = Self {
            ethertype: view.at::<Eth>(0)?.ethertype,
            l3: size_of::<Eth>(),
            types: [0; 2],
            tags: [0; 2],
        };
        if is_tag(link.ethertype) {
            link.read_tag(view, 0)?;
            if is_tag(link.ethertype) {
                link.read_tag(view, 1)?;
            }
        }
        Ok(link)
    }

    #[inline(always)]
    fn read_tag(&mut self, view: &View<'_>, index: usize) -> Result<(), Reason> {
        let vlan = view.at::<Vlan>(self.l3)?;
        self.types[index] = self.ethertype;
        self.tags[index] = vlan.tag;
        self.ethertype = vlan.ethertype;
        self.l3 += size_of::<Vlan>();
        Ok(())
    }

    /// Writes the header at the start of the frame, tags kept.
    #[inline(always)]
    pub fn write(&self, view: &mut View<'_>, macs: Macs) -> Result<(), Reason> {
        let tagged = self.l3 > size_of::<Eth>();
        *view.at_mut::<Eth>(0)? = Eth {
            destination: macs.destination.into(),
            source: macs.source.into(),
            ethertype: if tagged { self.types[0] } else { self.ethertype },
        };
        if tagged {
            let twice = self.l3 > size_of::<Eth>() + size_of::<Vlan>();
            let ethertype = if twice { self.types[1] } else { self.ethertype };
            *view.at_mut::<Vlan>(size_of::<Eth>())? = Vlan { tag: self.tags[0], ethertype };
            if twice {
                *view.at_mut::<Vlan>(size_of::<Eth>() + size_of::<Vlan>())? =
                    Vlan { tag: self.tags[1], ethertype: self.ethertype };
            }
        }
        Ok(())
    }
}

/// The addresses of an Ethernet header.
#[derive(Clone, Copy)]
pub struct Macs {
    pub destination: Mac,
    pub source: Mac,
}

impl Macs {
    #[inline(always)]
    pub fn read(view: &View<'_>) -> Result<Self, Reason> {
        let eth = view.at::<Eth>(0)?;
        Ok(Self { destination: eth.destination.into(), source: eth.source.into() })
    }

    /// Those of an answer out of the same interface.
    #[inline(always)]
    pub fn swapped(self) -> Self {
        Self { destination: self.source, source: self.destination }
    }
}

#[inline(always)]
fn is_tag(kind: u16) -> bool {
    kind == ethertype::VLAN || kind == ethertype::QINQ
}

/// An IP header.
#[derive(Clone, Copy)]
pub struct Ip {
    pub source: Addr,
    pub destination: Addr,
    /// Protocol behind the extension headers.
    pub proto: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    pub v6: bool,
    pub fragment: bool,
    pub l3: usize,
    pub l4: usize,
    /// Bytes from `l3` to the packet's end, as the header says.
    pub length: usize,
}

impl Ip {
    /// Reads the header at `l3`, options and extension headers included. The packet's own length is
    /// checked against the linear part and, where it goes on behind that, against `whole`.
    #[inline(always)]
    pub fn read(
        view: &View<'_>,
        l3: usize,
        ethertype: u16,
        whole: impl FnOnce() -> usize,
    ) -> Result<Self, Reason> {
        let ip = if ethertype == ethertype::IPV6 {
            Self::read_v6(view, l3)?
        } else {
            Self::read_v4(view, l3)?
        };
        let end = l3 + ip.length;
        if ip.l4 > end || end > view.len() && end > whole() {
            return Err(Reason::Truncated);
        }
        Ok(ip)
    }

    #[inline(always)]
    fn read_v4(view: &View<'_>, l3: usize) -> Result<Self, Reason> {
        let header = view.at::<Ipv4>(l3)?;
        let header_length = (header.version_ihl & 15) as usize * 4;
        if header.version_ihl >> 4 != 4 || header_length < size_of::<Ipv4>() {
            return Err(Reason::Truncated);
        }
        Ok(Self {
            source: Addr::from_v4_word(header.source),
            destination: Addr::from_v4_word(header.destination),
            proto: header.proto,
            ttl: header.ttl,
            tos: header.tos,
            v6: false,
            fragment: header.fragment & FRAGMENT_MASK != 0,
            l3,
            l4: l3 + header_length,
            length: u16::from_be(header.total_length) as usize,
        })
    }

    #[inline(always)]
    fn read_v6(view: &View<'_>, l3: usize) -> Result<Self, Reason> {
        let header = view.at::<Ipv6>(l3)?;
        if header.version_class >> 4 != 6 {
            return Err(Reason::Truncated);
        }
        let mut ip = Self {
            source: header.source.into(),
            destination: header.destination.into(),
            proto: header.next_header,
            ttl: header.hop_limit,
            tos: header.traffic_class(),
            v6: true,
            fragment: false,
            l3,
            l4: l3 + size_of::<Ipv6>(),
            length: size_of::<Ipv6>() + u16::from_be(header.payload_length) as usize,
        };
        for _ in 0..MAX_EXTENSIONS {
            match ip.proto {
                proto::TCP | proto::UDP | proto::ICMPV6 => return Ok(ip),
                proto::HOP_BY_HOP | proto::ROUTING | proto::DESTINATION_OPTIONS => {
                    let extension = view.at::<Extension>(ip.l4)?;
                    ip.proto = extension.next_header;
                    ip.l4 += 8 + extension.length as usize * 8;
                }
                proto::FRAGMENT => {
                    ip.fragment = true;
                    return Ok(ip);
                }
                proto::AH => return Err(Reason::ExtensionHeaders),
                // A protocol that is not carried: to be refused, not walked.
                _ => return Ok(ip),
            }
        }
        match ip.proto {
            proto::TCP | proto::UDP | proto::ICMPV6 => Ok(ip),
            _ => Err(Reason::ExtensionHeaders),
        }
    }

    /// The flow of a client's TCP or UDP packet, whose header must be whole.
    #[inline(always)]
    pub fn flow(&self, view: &View<'_>) -> Result<Flow, Reason> {
        let (source, destination, length) = if self.proto == proto::TCP {
            let tcp = view.at::<Tcp>(self.l4)?;
            (tcp.source, tcp.destination, size_of::<Tcp>())
        } else {
            let udp = view.at::<Udp>(self.l4)?;
            if self.v6 && udp.checksum == 0 {
                return Err(Reason::NoChecksum);
            }
            (udp.source, udp.destination, size_of::<Udp>())
        };
        if self.l4 + length > self.l3 + self.length {
            return Err(Reason::Truncated);
        }
        Ok(Flow {
            client: self.source,
            vip: self.destination,
            client_port: Port::from_wire(source),
            vip_port: Port::from_wire(destination),
            proto: self.proto,
        })
    }

    /// What a TCP header says.
    #[inline(always)]
    pub fn segment(&self, view: &View<'_>) -> Result<Segment, Reason> {
        let tcp = view.at::<Tcp>(self.l4)?;
        Ok(Segment { flags: tcp.flags, seq: u32::from_be(tcp.seq), ack: u32::from_be(tcp.ack) })
    }
}
