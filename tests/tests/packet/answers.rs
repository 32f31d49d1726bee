//! What weir answers itself: ARP, neighbour discovery, echo, refusals, "too big".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::abi::{YIELD_LIFE, map};
use lb_common::frontend::Vip;
use lb_common::net::Addr;
use lb_common::reason::Reason;
use lb_tests::packet::{Frame, Mac};
use lb_tests::rig::{GATEWAY_MAC, NO_HEADROOM, NODE_MAC, OTHER_UPLINK, Rig, boot_now};

use crate::world::*;

const BROADCAST: Mac = [0xff; 6];

fn v4(addr: IpAddr) -> Ipv4Addr {
    let IpAddr::V4(addr) = addr else { panic!("{addr} is not IPv4") };
    addr
}

fn v6(addr: IpAddr) -> Ipv6Addr {
    let IpAddr::V6(addr) = addr else { panic!("{addr} is not IPv6") };
    addr
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    arp(&mut rows);
    discovery(&mut rows);
    for v6 in [false, true] {
        echo(&mut rows, v6);
        resets(&mut rows, v6);
        unreachable(&mut rows, v6);
        for proto in [TCP, UDP] {
            too_big(&mut rows, v6, proto);
        }
    }
    rows
}

fn arp(rows: &mut Vec<Row>) {
    let (asker, target) = ((GATEWAY_MAC, v4(client(false))), ([0; 6], v4(vip(false))));
    let request = Frame::arp(1, asker, target).macs(BROADCAST, GATEWAY_MAC);
    let answer = Frame::arp(2, (NODE_MAC, target.1), asker).macs(GATEWAY_MAC, NODE_MAC);
    rows.push(Row::answered("ARP for a VIP", &request, Reason::ArpAnswered, &answer));
    rows.push(Row::answered(
        "ARP for a VIP, tagged",
        &request.clone().vlan(7),
        Reason::ArpAnswered,
        &answer.clone().vlan(7),
    ));
    rows.push(Row::answered(
        "ARP for a VIP, to our MAC",
        &request.clone().macs(NODE_MAC, GATEWAY_MAC),
        Reason::ArpAnswered,
        &answer,
    ));
    let probe =
        Frame::arp(1, (GATEWAY_MAC, Ipv4Addr::UNSPECIFIED), target).macs(BROADCAST, GATEWAY_MAC);
    let defence = Frame::arp(2, (NODE_MAC, target.1), (GATEWAY_MAC, Ipv4Addr::UNSPECIFIED))
        .macs(GATEWAY_MAC, NODE_MAC);
    rows.push(Row::answered(
        "ARP probe for a VIP (RFC 5227)",
        &probe,
        Reason::ArpAnswered,
        &defence,
    ));
    let padded = request.clone().trailer(18);
    rows.push(Row::answered(
        "ARP for a VIP, padded",
        &padded,
        Reason::ArpAnswered,
        &answer.clone().trailer(18),
    ));

    let other = Frame::arp(1, asker, ([0; 6], v4(other_vip(false)))).macs(BROADCAST, GATEWAY_MAC);
    rows.push(Row::dropped(
        "ARP for a VIP that another node announces",
        &other,
        Reason::NotAnnounced,
    ));
    rows.push(
        Row::dropped("ARP for a VIP announced on the other uplink", &request, Reason::NotAnnounced)
            .changed(|rig| {
                rig.vip(vip(false), Vip { announced_on: OTHER_UPLINK, flags: 0 }).unwrap();
            }),
    );
    yielded(rows, false, &request, (Reason::ArpAnswered, &answer));
    for (what, claimed) in [("a VIP", vip(false)), ("another's VIP", other_vip(false))] {
        let claimed = (GATEWAY_MAC, v4(claimed));
        let announcement = Frame::arp(1, claimed, ([0; 6], claimed.1)).macs(BROADCAST, GATEWAY_MAC);
        let claims = &[Reason::VipClaimed];
        let name = format!("ARP announcement of {what} by another host");
        rows.push(Row::passed(name, &announcement, claims, &announcement));
    }
    let host = (GATEWAY_MAC, v4(stranger(false)));
    rows.push(Row::untouched(
        "ARP announcement of a host",
        &Frame::arp(1, host, ([0; 6], host.1)).macs(BROADCAST, GATEWAY_MAC),
    ));
    let stranger = Frame::arp(1, asker, ([0; 6], v4(stranger(false)))).macs(BROADCAST, GATEWAY_MAC);
    rows.push(Row::untouched("ARP for another host", &stranger));
    rows.push(Row::untouched(
        "ARP for a VIP, to another MAC",
        &request.clone().macs([2, 0, 0, 0, 0, 0x55], GATEWAY_MAC),
    ));
    rows.push(Row::untouched(
        "ARP answer about a VIP",
        &Frame::arp(2, (GATEWAY_MAC, target.1), (NODE_MAC, asker.1)).macs(NODE_MAC, GATEWAY_MAC),
    ));
    rows.push(Row::untouched("ARP cut short", &request.clone().truncate(41)));
}

/// What another node took is not answered for, as long as that is said again and again.
fn yielded(rows: &mut Vec<Row>, v6: bool, request: &Frame, answer: (Reason, &Frame)) {
    let name = |what: &str| format!("{} for a VIP, {what}", if v6 { "NS" } else { "ARP" });
    let said = move |before: u64| {
        move |rig: &mut Rig| {
            let at = boot_now().saturating_sub(before);
            rig.insert(map::YIELDS, Addr::from(vip(v6)), at).unwrap();
        }
    };
    let taken = Row::dropped(name("yielded"), request, Reason::NotAnnounced);
    rows.push(taken.changed(said(YIELD_LIFE / 2)));
    let forgotten = Row::answered(name("yielded long ago"), request, answer.0, answer.1);
    rows.push(forgotten.changed(said(YIELD_LIFE + 1)));
}

fn discovery(rows: &mut Vec<Row>) {
    let (asker, target) = (v6(client(true)), v6(vip(true)));
    let request = Frame::solicitation(asker, GATEWAY_MAC, target);
    // Solicited and override (RFC 4861 4.4).
    let answer =
        Frame::advertisement(target, asker, target, 0x60, NODE_MAC).macs(GATEWAY_MAC, NODE_MAC);
    rows.push(Row::answered("NS for a VIP", &request, Reason::NdpAnswered, &answer));
    yielded(rows, true, &request, (Reason::NdpAnswered, &answer));
    rows.push(Row::answered(
        "NS for a VIP, tagged",
        &request.clone().vlan(7),
        Reason::NdpAnswered,
        &answer.clone().vlan(7),
    ));
    let detection = Frame::solicitation(Ipv6Addr::UNSPECIFIED, GATEWAY_MAC, target);
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let defence = Frame::advertisement(target, all_nodes, target, 0x20, NODE_MAC)
        .macs([0x33, 0x33, 0, 0, 0, 1], NODE_MAC);
    rows.push(Row::answered(
        "NS for a VIP, duplicate address detection",
        &detection,
        Reason::NdpAnswered,
        &defence,
    ));
    let unicast = request.clone().addresses(asker, target).macs(NODE_MAC, GATEWAY_MAC);
    rows.push(Row::answered("NS for a VIP, unicast", &unicast, Reason::NdpAnswered, &answer));

    let other = Frame::solicitation(asker, GATEWAY_MAC, v6(other_vip(true)));
    rows.push(Row::dropped(
        "NS for a VIP that another node announces",
        &other,
        Reason::NotAnnounced,
    ));
    rows.push(Row::untouched(
        "NS for another host",
        &Frame::solicitation(asker, GATEWAY_MAC, v6(stranger(true))),
    ));
    let beyond = unicast.clone().ttl(254);
    rows.push(Row::dropped("NS from beyond this link, unicast", &beyond, Reason::IcmpIgnored));
    rows.push(Row::untouched("NS from beyond this link", &request.clone().ttl(254)));
    rows.push(Row::untouched("NS with a code", &request.clone().icmp(135, 1, [0; 4])));
    rows.push(Row::untouched(
        "router solicitation",
        &Frame::ip(asker, all_nodes).ttl(255).icmp(133, 0, [0; 4]),
    ));
    // The group's address shares its bit in the filter with a VIP: the NS must still be answered.
    let group: Ipv6Addr = "ff02::1:ff00:1".parse().unwrap();
    rows.push(
        Row::answered("NS whose group shares a VIP's bit", &request, Reason::NdpAnswered, &answer)
            .changed(move |rig| rig.mark(group.into()).unwrap()),
    );
}

fn echo(rows: &mut Vec<Row>, v6: bool) {
    let family = if v6 { "v6" } else { "v4" };
    let (ask, reply) = if v6 { (128, 129) } else { (8, 0) };
    for (name, length) in [("56 bytes", 56), ("none", 0), ("odd", 33), ("1,400 bytes", 1400)] {
        let request = to_vip(v6).icmp(ask, 0, [1, 2, 3, 4]).payload_length(length).ttl(17);
        let answer = from_vip(v6).icmp(reply, 0, [1, 2, 3, 4]).payload_length(length);
        rows.push(Row::answered(
            format!("{family} echo, {name}"),
            &request,
            Reason::EchoAnswered,
            &answer,
        ));
    }
    let request = to_vip(v6).icmp(ask, 0, [0xff; 4]).payload(&[0xff; 64]).vlan(7);
    let answer = from_vip(v6).icmp(reply, 0, [0xff; 4]).payload(&[0xff; 64]).vlan(7);
    rows.push(Row::answered(
        format!("{family} echo, all ones and a tag"),
        &request,
        Reason::EchoAnswered,
        &answer,
    ));
    let unanswered = to_vip(v6).addresses(client(v6), other_vip(v6)).icmp(ask, 0, [0; 4]);
    rows.push(Row::dropped(
        format!("{family} echo to a VIP that answers none"),
        &unanswered,
        Reason::IcmpIgnored,
    ));
    let timestamp = to_vip(v6).icmp(if v6 { 139 } else { 13 }, 0, [0; 4]).payload_length(12);
    rows.push(Row::dropped(
        format!("{family} another ICMP request"),
        &timestamp,
        Reason::IcmpIgnored,
    ));
    let reply_to_vip = to_vip(v6).icmp(reply, 0, [0; 4]).payload_length(12);
    rows.push(Row::dropped(
        format!("{family} echo reply to a VIP"),
        &reply_to_vip,
        Reason::IcmpIgnored,
    ));
}

fn resets(rows: &mut Vec<Row>, v6: bool) {
    let family = if v6 { "v6" } else { "v4" };
    for (port, why) in [(CLOSED, Reason::RefusedNoFrontend), (EMPTY, Reason::RefusedNoBackend)] {
        let segment =
            |letters: &str| to_vip(v6).tcp(CLIENT_PORT, port, letters).seq(u32::MAX).ack(500);
        let reset = |letters: &str| from_vip(v6).tcp(port, CLIENT_PORT, letters).window(0);
        let mut row = |name: &str, frame: Frame, answer: Frame| {
            rows.push(Row::answered(
                format!("{family} RST for {name}, {}", why.name()),
                &frame,
                why,
                &answer,
            ));
        };
        // A SYN takes one number; the answer acknowledges it across the wrap.
        row("SYN", segment("S").ack(0), reset("RA").seq(0).ack(0));
        row("SYN with options", segment("S").ack(0).mss(1460), reset("RA").seq(0).ack(0));
        row("SYN with data", segment("S").ack(0).payload(b"abc"), reset("RA").seq(0).ack(3));
        row("SYN, padded", segment("S").ack(0).trailer(6), reset("RA").seq(0).ack(0));
        row("FIN without ACK", segment("F").payload(b"abc"), reset("RA").seq(0).ack(3));
        row("ACK", segment("A"), reset("R").seq(500).ack(0));
        row("data", segment("PA").payload_length(500), reset("R").seq(500).ack(0));
        row("SYN-ACK", segment("SA"), reset("R").seq(500).ack(0));
        row("tagged ACK", segment("A").vlan(7), reset("R").seq(500).ack(0).vlan(7));
        for letters in ["R", "RA", "SR"] {
            let name = format!("{family} no RST for {letters}, {}", why.name());
            rows.push(Row::dropped(name, &segment(letters), Reason::StrayReset));
        }
    }
}

/// What is quoted of a packet: its IP header and eight bytes.
fn quote(frame: &Frame, v6: bool) -> Vec<u8> {
    let packet = frame.packet();
    let header = if v6 { 40 } else { usize::from(packet[0] & 15) * 4 };
    packet[..header + 8].to_vec()
}

fn unreachable(rows: &mut Vec<Row>, v6: bool) {
    let family = if v6 { "v6" } else { "v4" };
    let (port_unreachable, protocol) =
        if v6 { ((1, 4, [0; 4]), (4, 1, [0, 0, 0, 6])) } else { ((3, 3, [0; 4]), (3, 2, [0; 4])) };
    let mut row =
        |name: String, frame: Frame, (kind, code, rest): (u8, u8, [u8; 4]), why: Reason| {
            let answer = from_vip(v6).icmp(kind, code, rest).payload(&quote(&frame, v6));
            rows.push(Row::answered(format!("{family} {name}"), &frame, why, &answer));
        };
    for (port, why) in [(CLOSED, Reason::RefusedNoFrontend), (EMPTY, Reason::RefusedNoBackend)] {
        let frame = to_vip(v6).udp(CLIENT_PORT, port);
        row(
            format!("unreachable for UDP, {}", why.name()),
            frame.clone().payload_length(100),
            port_unreachable,
            why,
        );
        row(
            format!("unreachable for empty UDP, {}", why.name()),
            frame.clone(),
            port_unreachable,
            why,
        );
        row(
            format!("unreachable for padded UDP, {}", why.name()),
            frame.clone().trailer(18),
            port_unreachable,
            why,
        );
    }
    row(
        "unreachable for another protocol".into(),
        to_vip(v6).proto(132).payload_length(30),
        protocol,
        Reason::RefusedNoFrontend,
    );
    if !v6 {
        let frame = to_vip(v6).udp(CLIENT_PORT, CLOSED).payload_length(9);
        row(
            "unreachable for UDP with IP options".into(),
            frame.clone().options(&[0x94, 4, 0, 0]),
            port_unreachable,
            Reason::RefusedNoFrontend,
        );
        row(
            "unreachable for UDP with most IP options".into(),
            frame.options(&[1; 40]),
            port_unreachable,
            Reason::RefusedNoFrontend,
        );
    }
    let udp = to_vip(v6).udp(CLIENT_PORT, CLOSED);
    rows.push(
        Row::dropped(format!("{family} unreachable without headroom"), &udp, Reason::NoRoom)
            .changed(|rig| rig.metadata = NO_HEADROOM),
    );
}

fn too_big(rows: &mut Vec<Row>, v6: bool, proto: u8) {
    let kind = kind(v6, proto);
    let ip = if v6 { 40 } else { 20 };
    let transport = if proto == TCP { 20 } else { 8 };
    for (port, tunnel_mtu) in [(REMOTE, 1500 - 84), (REMOTE_OVER_V6, 1500 - 104)] {
        let rest = [0, 0, (tunnel_mtu >> 8) as u8, tunnel_mtu as u8];
        let (kind_number, code) = if v6 { (2, 0) } else { (3, 4) };
        let frame =
            |length: usize| to_port(v6, proto, port).payload_length(length - ip - transport);
        for length in [tunnel_mtu + 1, 1500] {
            let frame = frame(length);
            let answer = from_vip(v6).icmp(kind_number, code, rest).payload(&quote(&frame, v6));
            let name = format!("{kind} {length} bytes are too big for {tunnel_mtu}");
            rows.push(Row::answered(name, &frame, Reason::TooBig, &answer));
        }
    }
}

/// A row whose limit is used up; the window passes, so it is run until it was fast enough.
pub fn limited() -> Row {
    let frame = to_vip(false).tcp(CLIENT_PORT, CLOSED, "S");
    Row::dropped("refusals beyond the limit", &frame, Reason::RefusalLimited)
        .changed(|rig| rig.refusals(u64::MAX).unwrap())
}
