//! The frames that announce a VIP: gratuitous ARP and unsolicited neighbour advertisements.

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
/// ff02::1, and the MAC that goes with it (RFC 2464 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac::new([0x33, 0x33, 0, 0, 0, 1]);
/// Neighbour discovery demands it of the receiver (RFC 4861 7.1.2).
const HOP_LIMIT: u8 = 255;

/// The frame that tells everybody on the link that `vip` is at `mac`.
pub fn announcement(vip: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    match vip {
        IpAddr::V4(vip) => gratuitous_arp(vip, Mac::new(mac).into()),
        IpAddr::V6(vip) => unsolicited_advertisement(vip, Mac::new(mac).into()),
    }
}

/// An ARP request for the own address, which updates whoever already knows it (RFC 826, RFC 5227
/// 2.3).
fn gratuitous_arp(vip: Ipv4Addr, mac: WireMac) -> Vec<u8> {
    let eth = Eth { destination: BROADCAST.into(), source: mac, ethertype: ethertype::ARP };
    let ip = u32::from_ne_bytes(vip.octets());
    let arp = Arp {
        hardware: arp::ETHERNET,
        protocol: ethertype::IPV4,
        hardware_length: 6,
        protocol_length: 4,
        operation: arp::REQUEST,
        sender_mac: mac,
        sender_ip: ip,
        target_mac: Mac::new([0; 6]).into(),
        target_ip: ip,
    };
    [bytemuck::bytes_of(&eth), bytemuck::bytes_of(&arp)].concat()
}

/// A neighbour advertisement to all nodes that overrides what they know (RFC 4861 4.4, 7.2.6).
fn unsolicited_advertisement(vip: Ipv6Addr, mac: WireMac) -> Vec<u8> {
    let eth = Eth { destination: ALL_NODES_MAC.into(), source: mac, ethertype: ethertype::IPV6 };
    let mut message = Neighbour {
        icmp: Icmp { kind: v6::ADVERTISEMENT, code: 0, checksum: 0, rest: [v6::OVERRIDE, 0, 0, 0] },
        target: bytemuck::cast(vip.octets()),
    };
    let option = LinkLayer { kind: v6::TARGET_LINK_LAYER, length: 1, mac };
    let length = (size_of::<Neighbour>() + size_of::<LinkLayer>()) as u16;
    let ip = Ipv6 {
        version_class: 0x60,
        payload_length: length.to_be(),
        next_header: proto::ICMPV6,
        hop_limit: HOP_LIMIT,
        source: bytemuck::cast(vip.octets()),
        destination: bytemuck::cast(ALL_NODES.octets()),
        ..Ipv6::default()
    };
    let words = [bytemuck::bytes_of(&message), bytemuck::bytes_of(&option)].concat();
    let pseudo = checksum::pseudo_header(&vip.into(), &ALL_NODES.into(), proto::ICMPV6, length);
    let sum = words
        .chunks_exact(2)
        .map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]])))
        .sum::<u64>();
    message.icmp.checksum = !checksum::fold(pseudo + sum);
    let (eth, ip) = (bytemuck::bytes_of(&eth), bytemuck::bytes_of(&ip));
    [eth, ip, bytemuck::bytes_of(&message), bytemuck::bytes_of(&option)].concat()
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
}
