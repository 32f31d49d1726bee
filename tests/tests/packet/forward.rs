//! The forwarder: where a client's packet goes.

use std::net::IpAddr;

use lb_common::reason::Reason;
use lb_tests::packet::{Frame, Outer, Tunnel};
use lb_tests::rig::{
    Action, NO_HEADROOM, NODE_MAC, PEER_MAC, SEED_TAG, SLOTS, TUNNEL_PORT, VNI, own, peer,
};

use crate::world::*;

/// The tunnel packet that carries `inner` to the other node over IPv4 or IPv6.
pub fn carried(over_v6: bool, v6: bool, inner: &Frame, port: u16, tos: u8) -> Frame {
    let outer = Outer::new(own(over_v6), peer(over_v6), port, TUNNEL_PORT)
        .macs(PEER_MAC, NODE_MAC)
        .with(|frame| frame.tos(tos));
    let tunnel = Tunnel::new(VNI, SEED_TAG, remote_backend(v6), BACKEND_PORT);
    Tunnel { slots: SLOTS as u16, ..tunnel }.carry(&outer, &inner.packet())
}

fn delivered(frame: &Frame, v6: bool) -> Frame {
    frame.clone().addresses(client(v6), local_backend(v6)).ports(CLIENT_PORT, BACKEND_PORT)
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (v6, proto) in kinds() {
        let kind = kind(v6, proto);
        local(&mut rows, &kind, v6, proto);
        remote(&mut rows, &kind, v6, proto);
        dropped(&mut rows, &kind, v6, proto);
    }
    for v6 in [false, true] {
        not_ours(&mut rows, v6);
    }
    headers(&mut rows);
    rows
}

fn local(rows: &mut Vec<Row>, kind: &str, v6: bool, proto: u8) {
    let frame = to_port(v6, proto, LOCAL);
    let row = |name: &str, frame: &Frame| {
        Row::passed(
            format!("{kind} local: {name}"),
            frame,
            &[Reason::DeliveredLocal],
            &delivered(frame, v6),
        )
    };
    rows.push(row("plain", &frame));
    rows.push(row("one tag", &frame.clone().vlan(7)));
    rows.push(row("two tags", &frame.clone().tag(0x88a8, 7).vlan(8)));
    rows.push(row("TTL 1 is the kernel's business", &frame.clone().ttl(1)));
    rows.push(row("DSCP and ECN stay", &frame.clone().tos(0xb9)));
    rows.push(row("bytes behind the packet stay", &frame.clone().payload(b"x").trailer(9)));
    rows.push(row("no payload", &frame.clone().payload(&[])));
    rows.push(row("odd payload", &frame.clone().payload(b"abc")));
    rows.push(row("1,500 bytes", &frame.clone().payload_length(if v6 { 1440 } else { 1460 })));
    if proto == UDP && !v6 {
        rows.push(row("without checksum stays without", &frame.clone().no_checksum()));
    }
}

fn remote(rows: &mut Vec<Row>, kind: &str, v6: bool, proto: u8) {
    let mut row = |name: &str, port: u16, action: Action, change: fn(Frame) -> Frame, tos: u8| {
        let frame = change(to_port(v6, proto, port));
        let inner = frame.clone().ttl(63);
        let tags = change;
        rows.push(Row::tunnelled(
            format!("{kind} remote: {name}"),
            &frame,
            action,
            move |source| {
                let over_v6 = port == REMOTE_OVER_V6;
                let outer = carried(over_v6, v6, &inner, source, tos);
                // The tags are those of the client's frame.
                if name_has_tags(&inner) { tags(outer) } else { outer }
            },
        ));
    };
    row("plain", REMOTE, Action::Tx, |frame| frame, 0);
    row("over IPv6", REMOTE_OVER_V6, Action::Tx, |frame| frame, 0);
    row("by another interface", REMOTE_ELSEWHERE, Action::Redirect, |frame| frame, 0);
    row("one tag", REMOTE, Action::Tx, |frame| frame.vlan(7), 0);
    row("two tags", REMOTE, Action::Tx, |frame| frame.tag(0x88a8, 7).vlan(8), 0);
    row("DSCP and ECN go outside", REMOTE, Action::Tx, |frame| frame.tos(0xb9), 0xb9);
    row(
        "DSCP and ECN go outside over IPv6",
        REMOTE_OVER_V6,
        Action::Tx,
        |frame| frame.tos(0xba),
        0xba,
    );
    row("no payload", REMOTE, Action::Tx, |frame| frame.payload(&[]), 0);
    row("one byte payload", REMOTE_OVER_V6, Action::Tx, |frame| frame.payload(b"x"), 0);
}

fn name_has_tags(frame: &Frame) -> bool {
    let bytes = frame.build();
    matches!(bytes[12..14], [0x81, 0] | [0x88, 0xa8])
}

fn dropped(rows: &mut Vec<Row>, kind: &str, v6: bool, proto: u8) {
    let mut row = |name: &str, frame: Frame, why: Reason| {
        rows.push(Row::dropped(format!("{kind}: {name}"), &frame, why));
    };
    let to = |port| to_port(v6, proto, port);
    row("TTL 1 ends before the tunnel", to(REMOTE).ttl(1), Reason::TtlExceeded);
    row("TTL 0 ends before the tunnel", to(REMOTE).ttl(0), Reason::TtlExceeded);
    row("slot names a backend that has left", to(STALE), Reason::StaleOwner);
    row("no next hop", to(NOWHERE), Reason::NoHop);
    row("local only, none here", to(LOCAL_ONLY), Reason::LocalOnly);
    row("first fragment", to(LOCAL).fragment(0, true).payload_length(24), Reason::Fragment);
    row("later fragment", to(LOCAL).fragment(9, false), Reason::Fragment);
    row(
        "cut in the transport header",
        to(LOCAL).payload(&[]).truncate(if v6 { 60 } else { 40 }),
        Reason::Truncated,
    );
    if v6 && proto == UDP {
        row("without checksum", to(LOCAL).no_checksum(), Reason::NoChecksum);
    }
    let frame = to(REMOTE);
    rows.push(
        Row::dropped(format!("{kind}: driver without headroom"), &frame, Reason::NoRoom)
            .changed(|rig| rig.metadata = NO_HEADROOM),
    );
}

/// Whatever is for no VIP leaves as it came.
fn not_ours(rows: &mut Vec<Row>, v6: bool) {
    let family = if v6 { "v6" } else { "v4" };
    let mut row = |name: &str, frame: Frame| {
        rows.push(Row::untouched(format!("{family} not ours: {name}"), &frame))
    };
    let base = Frame::ip(client(v6), stranger(v6))
        .macs(NODE_MAC, lb_tests::rig::GATEWAY_MAC)
        .payload_length(20);
    row("TCP", base.clone().tcp(1, 80, "S"));
    row("UDP", base.clone().udp(1, 80));
    row("fragment", base.clone().udp(1, 80).fragment(0, true).payload_length(24));
    row("later fragment", base.clone().udp(1, 80).fragment(5, false));
    row("echo", base.clone().icmp(if v6 { 128 } else { 8 }, 0, [0; 4]));
    row("unknown protocol", base.clone().proto(253));
    row("TTL 1", base.clone().ttl(1).tcp(1, 80, "S"));
    row("two tags", base.clone().tcp(1, 80, "S").vlan(1).vlan(2));
    row("three tags", base.clone().tcp(1, 80, "S").vlan(1).vlan(2).vlan(3));
    row(
        "VIP of a frame for another MAC",
        to_port(v6, TCP, LOCAL).macs([2, 0, 0, 0, 0, 0x55], NODE_MAC),
    );
    row("VIP as source", Frame::ip(vip(v6), client(v6)).tcp(80, 1, "SA"));
    if v6 {
        let IpAddr::V4(vip) = vip(false) else { unreachable!("a literal") };
        let frame = to_port(v6, TCP, LOCAL).addresses(client(v6), vip.to_ipv6_mapped());
        row("mapped form of an IPv4 VIP", frame);
        row("extension headers", base.clone().extension(0, 1).extension(60, 3).tcp(1, 80, "S"));
        row(
            "more extension headers than are walked",
            (0..9).fold(base.clone(), |frame, _| frame.extension(60, 1)).tcp(1, 80, "S"),
        );
        row("authentication header", base.clone().extension(51, 3).tcp(1, 80, "S"));
    } else {
        row("IP options", base.clone().options(&[0x94, 4, 0, 0]).tcp(1, 80, "S"));
        row("most IP options", base.clone().options(&[1; 40]).udp(1, 80));
    }
    // The filter's bit is set, but no such VIP is there.
    let frame = base.clone().tcp(1, 80, "S");
    rows.push(
        Row::untouched(format!("{family} not ours: shares a VIP's bit in the filter"), &frame)
            .changed(move |rig| {
                rig.mark(stranger(v6).into()).unwrap();
            }),
    );
    let frame = to_port(v6, TCP, LOCAL);
    rows.push(
        Row::untouched(format!("{family} not ours: VIP on an interface that is no uplink"), &frame)
            .changed(|rig| {
                rig.set(lb_common::abi::map::UPLINKS, 0, lb_common::hop::Uplinks::default())
                    .unwrap();
            }),
    );
}

/// What only one family has.
fn headers(rows: &mut Vec<Row>) {
    let v4 = to_port(false, TCP, LOCAL).options(&[0x94, 4, 0, 0]);
    rows.push(Row::passed(
        "v4 IP options are kept",
        &v4,
        &[Reason::DeliveredLocal],
        &delivered(&v4, false),
    ));
    let most = to_port(false, UDP, LOCAL).options(&[1; 40]);
    rows.push(Row::passed(
        "v4 most IP options are kept",
        &most,
        &[Reason::DeliveredLocal],
        &delivered(&most, false),
    ));
    let remote = to_port(false, UDP, REMOTE).options(&[0x94, 4, 0, 0]);
    let inner = remote.clone().ttl(63);
    rows.push(Row::tunnelled(
        "v4 IP options go through the tunnel",
        &remote,
        Action::Tx,
        move |port| carried(false, false, &inner, port, 0),
    ));

    for (name, numbers) in [("one", vec![0]), ("two", vec![0, 60]), ("four", vec![0, 60, 43, 60])] {
        for proto in [TCP, UDP] {
            let frame = numbers
                .iter()
                .fold(to_port(true, proto, LOCAL), |frame, number| frame.extension(*number, 2));
            let name = format!("{}: extension headers, {name}", kind(true, proto));
            // A routing header of padding has no segments left: it changes no address.
            rows.push(Row::passed(
                name,
                &frame,
                &[Reason::DeliveredLocal],
                &delivered(&frame, true),
            ));
        }
    }
    let five = (0..5).fold(to_port(true, TCP, LOCAL), |frame, _| frame.extension(60, 1));
    rows.push(Row::dropped("v6 five extension headers", &five, Reason::ExtensionHeaders));
    let authenticated = to_port(true, TCP, LOCAL).extension(51, 3);
    rows.push(Row::dropped("v6 authentication header", &authenticated, Reason::ExtensionHeaders));
    let labelled = to_port(true, TCP, LOCAL).flow_label(0xabcde).tos(0x2e);
    rows.push(Row::passed(
        "v6 flow label stays",
        &labelled,
        &[Reason::DeliveredLocal],
        &delivered(&labelled, true),
    ));
}
