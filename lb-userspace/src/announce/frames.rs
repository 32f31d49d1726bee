//! ARP and neighbour discovery as bytes: what announces a VIP (gratuitous ARP, unsolicited neighbour
//! advertisements), what asks for an address, and what others say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::{
    checksum,
    net::proto,
    wire::{
        arp::{self, Arp},
        eth::{Eth, Mac, WireMac, ethertype},
        icmp::{Icmp, LinkLayer, Neighbour, v6},
        ipv6::Ipv6,
    },
};

const BROADCAST: Mac = Mac::new([0xff; 6]);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Without the last three bytes, which are the target's (RFC 4291 2.7.1).
const SOLICITED_NODE: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0);
/// Neighbour discovery demands it of the receiver (RFC 4861 7.1.2).
const HOP_LIMIT: u8 = 255;

/// The frame that tells everybody on the link that `vip` is at `mac`.
pub fn announcement(vip: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    match vip {
        IpAddr::V4(vip) => gratuitous_arp(vip, Mac::new(mac).into()),
        IpAddr::V6(vip) => unsolicited_advertisement(vip, Mac::new(mac).into()),
    }
}

/// The frame that asks everybody on the link who has `target`; none where `source`, an address of this
/// host, is of the other family.
pub fn question(target: IpAddr, source: IpAddr, mac: [u8; 6]) -> Option<Vec<u8>> {
    let mac = Mac::new(mac).into();
    match (target, source) {
        (IpAddr::V4(target), IpAddr::V4(source)) => Some(arp_request(target, source, mac)),
        (IpAddr::V6(target), IpAddr::V6(source)) => Some(solicitation(target, source, mac)),
        _ => None,
    }
}

/// Somebody says that an address is at a MAC.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Claim {
    pub address: IpAddr,
    pub mac: [u8; 6],
}

impl Claim {
    /// What an untagged frame claims: an ARP packet its sender's address (RFC 5227 2.4), a neighbour
    /// advertisement its target. None: it is neither, or is cut short.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let eth: Eth = read(frame, 0)?;
        let at = size_of::<Eth>();
        if eth.ethertype == ethertype::ARP {
            let arp: Arp = read(frame, at)?;
            let address = Ipv4Addr::from(arp.sender_ip.to_ne_bytes());
            let ours = arp.hardware == arp::ETHERNET && arp.protocol == ethertype::IPV4;
            let claims = ours && !address.is_unspecified();
            return claims
                .then(|| Self { address: address.into(), mac: bytemuck::cast(arp.sender_mac) });
        }
        let ip: Ipv6 = read(frame, at)?;
        let message: Neighbour = read(frame, at + size_of::<Ipv6>())?;
        let advertises = eth.ethertype == ethertype::IPV6
            && ip.next_header == proto::ICMPV6
            && ip.hop_limit == HOP_LIMIT
            && message.icmp.kind == v6::ADVERTISEMENT;
        // A solicited answer need not repeat the MAC (RFC 4861 4.4).
        let option: Option<LinkLayer> =
            read(frame, at + size_of::<Ipv6>() + size_of::<Neighbour>());
        let said = option.filter(|it| it.kind == v6::TARGET_LINK_LAYER && it.length == 1);
        let mac = said.map_or(eth.source, |it| it.mac);
        let address = Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>(message.target));
        advertises.then(|| Self { address: address.into(), mac: bytemuck::cast(mac) })
    }
}

fn read<T: bytemuck::AnyBitPattern>(frame: &[u8], at: usize) -> Option<T> {
    Some(bytemuck::pod_read_unaligned(frame.get(at..at + size_of::<T>())?))
}

/// An ARP request for the own address, which updates whoever already knows it (RFC 826, RFC 5227
/// 2.3).
fn gratuitous_arp(vip: Ipv4Addr, mac: WireMac) -> Vec<u8> {
    arp_request(vip, vip, mac)
}

fn arp_request(target: Ipv4Addr, source: Ipv4Addr, mac: WireMac) -> Vec<u8> {
    let eth = Eth { destination: BROADCAST.into(), source: mac, ethertype: ethertype::ARP };
    let arp = Arp {
        hardware: arp::ETHERNET,
        protocol: ethertype::IPV4,
        hardware_length: 6,
        protocol_length: 4,
        operation: arp::REQUEST,
        sender_mac: mac,
        sender_ip: u32::from_ne_bytes(source.octets()),
        target_mac: Mac::new([0; 6]).into(),
        target_ip: u32::from_ne_bytes(target.octets()),
    };
    [bytemuck::bytes_of(&eth), bytemuck::bytes_of(&arp)].concat()
}

/// A neighbour advertisement to all nodes that overrides what they know (RFC 4861 4.4, 7.2.6).
fn unsolicited_advertisement(vip: Ipv6Addr, mac: WireMac) -> Vec<u8> {
    let message = Message { kind: v6::ADVERTISEMENT, flags: v6::OVERRIDE, target: vip };
    message.frame(vip, ALL_NODES, v6::TARGET_LINK_LAYER, mac)
}

/// A neighbour solicitation to the target's group (RFC 4861 4.3, 7.2.2).
fn solicitation(target: Ipv6Addr, source: Ipv6Addr, mac: WireMac) -> Vec<u8> {
    let group = Ipv6Addr::from_bits(SOLICITED_NODE.to_bits() | target.to_bits() & 0xff_ffff);
    let message = Message { kind: v6::SOLICITATION, flags: 0, target };
    message.frame(source, group, v6::SOURCE_LINK_LAYER, mac)
}

/// A message of neighbour discovery.
struct Message {
    kind: u8,
    flags: u8,
    target: Ipv6Addr,
}

impl Message {
    /// To a group, with one option that holds `mac`.
    fn frame(&self, source: Ipv6Addr, group: Ipv6Addr, option: u8, mac: WireMac) -> Vec<u8> {
        let [.., a, b, c, d] = group.octets();
        let destination = Mac::new([0x33, 0x33, a, b, c, d]).into();
        let eth = Eth { destination, source: mac, ethertype: ethertype::IPV6 };
        let mut message = Neighbour {
            icmp: Icmp { kind: self.kind, code: 0, checksum: 0, rest: [self.flags, 0, 0, 0] },
            target: bytemuck::cast(self.target.octets()),
        };
        let option = LinkLayer { kind: option, length: 1, mac };
        let length = (size_of::<Neighbour>() + size_of::<LinkLayer>()) as u16;
        let ip = Ipv6 {
            version_class: 0x60,
            payload_length: length.to_be(),
            next_header: proto::ICMPV6,
            hop_limit: HOP_LIMIT,
            source: bytemuck::cast(source.octets()),
            destination: bytemuck::cast(group.octets()),
            ..Ipv6::default()
        };
        let words = [bytemuck::bytes_of(&message), bytemuck::bytes_of(&option)].concat();
        let pseudo = checksum::pseudo_header(&source.into(), &group.into(), proto::ICMPV6, length);
        let sum = words
            .chunks_exact(2)
            .map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]])))
            .sum::<u64>();
        message.icmp.checksum = !checksum::fold(pseudo + sum);
        let (eth, ip) = (bytemuck::bytes_of(&eth), bytemuck::bytes_of(&ip));
        [eth, ip, bytemuck::bytes_of(&message), bytemuck::bytes_of(&option)].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0xaa, 0xbb, 0xcc];

    #[test]
    fn ipv4_is_announced_by_a_gratuitous_request() {
        let mut want = vec![0xff; 6];
        want.extend(MAC);
        want.extend([0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1]);
        want.extend(MAC);
        want.extend([192, 0, 2, 10, 0, 0, 0, 0, 0, 0, 192, 0, 2, 10]);
        assert_eq!(announcement("192.0.2.10".parse().unwrap(), MAC), want);
    }

    #[test]
    fn ipv6_is_announced_by_an_overriding_advertisement_to_all_nodes() {
        let vip: Ipv6Addr = "2001:db8::10".parse().unwrap();
        let frame = announcement(vip.into(), MAC);
        let (all_nodes, vip) = (ALL_NODES.octets(), vip.octets());
        let mut want = vec![0x33, 0x33, 0, 0, 0, 1];
        want.extend(MAC);
        want.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
        want.extend(vip);
        want.extend(all_nodes);
        want.extend([136, 0, frame[56], frame[57], 0x20, 0, 0, 0]);
        want.extend(vip);
        want.extend([2, 1]);
        want.extend(MAC);
        assert_eq!(frame, want);
        // Over the pseudo header (addresses, length 32, next header 58) and the message, the words
        // add up to all ones (RFC 1071 1).
        let words =
            frame[22..].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum = words.sum::<u32>() + 32 + 58;
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }

    #[test]
    fn questions_name_the_host_that_asks() {
        let asked = question("192.0.2.10".parse().unwrap(), "192.0.2.7".parse().unwrap(), MAC);
        let mut want = vec![0xff; 6];
        want.extend(MAC);
        want.extend([0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1]);
        want.extend(MAC);
        want.extend([192, 0, 2, 7, 0, 0, 0, 0, 0, 0, 192, 0, 2, 10]);
        assert_eq!(asked, Some(want));

        let (target, host) = ("2001:db8::12:3456".parse().unwrap(), "fe80::7".parse().unwrap());
        let frame = question(target, host, MAC).unwrap();
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        let group: Ipv6Addr = "ff02::1:ff12:3456".parse().unwrap();
        assert_eq!(frame[38..54], group.octets());
        assert_eq!((frame[54], frame[21], &frame[78..80]), (135, 255, &[1, 1][..]));
        assert_eq!(question(target, "192.0.2.7".parse().unwrap(), MAC), None);
    }

    #[test]
    fn claims_are_read_and_nothing_else_is() {
        let claim = |address: &str| Some(Claim { address: address.parse().unwrap(), mac: MAC });
        for vip in ["192.0.2.10", "2001:db8::10"] {
            let frame = announcement(vip.parse().unwrap(), MAC);
            assert_eq!(Claim::read(&frame), claim(vip));
            for length in 0..42 {
                assert_eq!(Claim::read(&frame[..length]), None, "{vip} cut at {length}");
            }
        }
        let mut bare = announcement("2001:db8::10".parse().unwrap(), MAC);
        bare.truncate(78);
        assert_eq!(Claim::read(&bare), claim("2001:db8::10"), "by the sender's MAC");
        bare[21] = 254;
        assert_eq!(Claim::read(&bare), None, "from beyond the link");
        let probe = question("192.0.2.9".parse().unwrap(), "0.0.0.0".parse().unwrap(), MAC);
        assert_eq!(Claim::read(&probe.unwrap()), None);
        let asks = question("2001:db8::9".parse().unwrap(), "2001:db8::7".parse().unwrap(), MAC);
        assert_eq!(Claim::read(&asks.unwrap()), None);
    }
}
