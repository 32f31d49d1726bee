//! The receiver: what comes out of the tunnel, and who may put something in.

use lb_common::abi::LAYOUT_VERSION;
use lb_common::globals::state;
use lb_common::reason::Reason;
use lb_tests::packet::{Frame, Outer, Probe, Tunnel, kind};
use lb_tests::rig::{
    BOOT_ID, GATEWAY_MAC, NODE_MAC, Rig, SEED_TAG, TUNNEL_PORT, VNI, YIELD_AFTER, boot_now, own,
    peer,
};

use crate::world::{self, *};

const SOURCE_PORT: u16 = 0xc123;

/// Outer headers of the other node's tunnel packets.
pub fn outer(over_v6: bool) -> Outer {
    Outer::new(peer(over_v6), own(over_v6), SOURCE_PORT, TUNNEL_PORT).macs(NODE_MAC, GATEWAY_MAC)
}

pub fn tunnel(v6: bool) -> Tunnel {
    Tunnel::new(VNI, SEED_TAG, local_backend(v6), BACKEND_PORT)
}

/// A client's frame as it lies in the tunnel, and as the backend must get it.
fn inner(v6: bool, proto: u8) -> (Frame, Frame) {
    let frame = to_port(v6, proto, LOCAL).ttl(63);
    let delivered =
        frame.clone().addresses(client(v6), local_backend(v6)).ports(CLIENT_PORT, BACKEND_PORT);
    (frame, delivered)
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (v6, proto) in kinds() {
        for over_v6 in [false, true] {
            let name =
                format!("{} over {}", world::kind(v6, proto), if over_v6 { "v6" } else { "v4" });
            delivered(&mut rows, &name, v6, proto, over_v6);
            refused(&mut rows, &name, v6, proto, over_v6);
        }
    }
    for over_v6 in [false, true] {
        malformed(&mut rows, over_v6);
        probes(&mut rows, over_v6);
        for v6 in [false, true] {
            yields(&mut rows, v6, over_v6);
        }
    }
    rows
}

fn delivered(rows: &mut Vec<Row>, name: &str, v6: bool, proto: u8, over_v6: bool) {
    let (frame, out) = inner(v6, proto);
    let mut row = |what: &str, carried: Frame, out: &Frame, counts: &[Reason]| {
        rows.push(Row::passed(format!("{name}: {what}"), &carried, counts, out));
    };
    let carry = |frame: &Frame| tunnel(v6).carry(&outer(over_v6), &frame.packet());
    row("plain", carry(&frame), &out, &[Reason::Received]);
    row("one tag", carry(&frame).vlan(7), &out.clone().vlan(7), &[Reason::Received]);
    row(
        "two tags",
        carry(&frame).tag(0x88a8, 7).vlan(8),
        &out.clone().tag(0x88a8, 7).vlan(8),
        &[Reason::Received],
    );
    let (marked, marked_out) = (frame.clone().tos(0xba), out.clone().tos(0xbb));
    row("congestion mark goes inside", carry(&marked).tos(0xbb), &marked_out, &[Reason::Received]);
    row(
        "inner congestion mark stays",
        carry(&marked_out.clone().addresses(client(v6), vip(v6)).ports(CLIENT_PORT, LOCAL)),
        &marked_out,
        &[Reason::Received],
    );
    row("outer DSCP is left outside", carry(&frame).tos(0xb8), &out, &[Reason::Received]);
    let with_sum = Outer {
        frame: Frame::ip(peer(over_v6), own(over_v6)).macs(NODE_MAC, GATEWAY_MAC),
        ..outer(over_v6)
    };
    row(
        "outer checksum, as other senders may fill it",
        tunnel(v6).carry(&with_sum, &frame.packet()),
        &out,
        &[Reason::Received],
    );
    let foreign = Tunnel { seed_tag: *b"another!", ..tunnel(v6) };
    row(
        "another seed",
        foreign.carry(&outer(over_v6), &frame.packet()),
        &out,
        &[Reason::Received, Reason::ForeignSeed],
    );
    let newer = Tunnel { version: 99, ..tunnel(v6) };
    row(
        "another version",
        newer.carry(&outer(over_v6), &frame.packet()),
        &out,
        &[Reason::Received, Reason::ForeignVersion],
    );
    let slots = Tunnel { slots: 7, ..tunnel(v6) };
    row(
        "another number of slots",
        slots.carry(&outer(over_v6), &frame.packet()),
        &out,
        &[Reason::Received, Reason::ForeignSlots],
    );
    let visited = Tunnel { visited: [7; 7], data_flags: 3, ..tunnel(v6) };
    row(
        "visited, young and last",
        visited.carry(&outer(over_v6), &frame.packet()),
        &out,
        &[Reason::Received],
    );
}

fn refused(rows: &mut Vec<Row>, name: &str, v6: bool, proto: u8, over_v6: bool) {
    let (frame, _) = inner(v6, proto);
    let mut row = |what: &str, carried: Frame, why: Reason| {
        rows.push(Row::dropped(format!("{name}: {what}"), &carried, why));
    };
    let carry = |frame: Frame| tunnel(v6).carry(&outer(over_v6), &frame.packet());
    let forged =
        Outer::new(addr(over_v6, "10.0.0.66", "fd00::66"), own(over_v6), SOURCE_PORT, TUNNEL_PORT);
    row("sender is no member", tunnel(v6).carry(&forged, &frame.packet()), Reason::NotMember);
    row(
        "frontend that is not here",
        carry(frame.clone().ports(CLIENT_PORT, CLOSED)),
        Reason::UnknownFrontend,
    );
    row(
        "destination that is no VIP",
        carry(frame.clone().addresses(client(v6), stranger(v6))),
        Reason::UnknownFrontend,
    );
    let wrong = [
        ("backend of another node", Tunnel { backend: remote_backend(v6), ..tunnel(v6) }),
        ("backend's port is another", Tunnel { backend_port: 1, ..tunnel(v6) }),
    ];
    for (what, tunnel) in wrong {
        let last = Tunnel { data_flags: 2, ..tunnel };
        row(what, last.carry(&outer(over_v6), &frame.packet()), Reason::UnknownBackend);
    }
    for (what, backend) in [("other family", local_backend(!v6)), ("none", "::".parse().unwrap())] {
        let protocol = tunnel(v6).protocol;
        let meant = Tunnel { backend, protocol, ..tunnel(v6) };
        let name = format!("backend meant is of {what}");
        row(&name, meant.carry(&outer(over_v6), &frame.packet()), Reason::UnknownBackend);
    }
    row(
        "source is this node",
        carry(frame.clone().addresses(own(v6), vip(v6))),
        Reason::LocalSource,
    );
    row("marked for who knows no marks", carry(frame.clone()).tos(3), Reason::EcnInconsistent);
    row(
        "fragment inside",
        carry(frame.clone().fragment(0, true).payload_length(24)),
        Reason::Fragment,
    );
    row("other protocol inside", carry(frame.clone().icmp(8, 0, [0; 4])), Reason::UnknownFrontend);
    if v6 && proto == UDP {
        row("no checksum inside", carry(frame.clone().no_checksum()), Reason::NoChecksum);
    }
    if v6 {
        let five = (0..5).fold(frame.clone(), |frame, _| frame.extension(60, 1));
        row("five extension headers inside", carry(five), Reason::ExtensionHeaders);
    }
}

/// Tunnel packets that are not of weir's form.
fn malformed(rows: &mut Vec<Row>, over_v6: bool) {
    let (frame, _) = inner(false, TCP);
    let base = tunnel(false);
    let changes: [(&str, Tunnel); 8] = [
        ("version", Tunnel { version_length: 0x40 | 12, ..base.clone() }),
        ("options too short", Tunnel { version_length: 11, ..base.clone() }),
        ("options too long", Tunnel { version_length: 13, ..base.clone() }),
        ("inner type", Tunnel { protocol: 0x6558, ..base.clone() }),
        ("network", Tunnel { vni: VNI + 1, ..base.clone() }),
        ("class", Tunnel { class: 0x0102, ..base.clone() }),
        ("option type", Tunnel { kind: 0x80, ..base.clone() }),
        ("option length", Tunnel { length: 10, ..base.clone() }),
    ];
    let family = if over_v6 { "v6" } else { "v4" };
    for (name, tunnel) in changes {
        let carried = tunnel.carry(&outer(over_v6), &frame.packet());
        rows.push(Row::dropped(
            format!("tunnel over {family}: wrong {name}"),
            &carried,
            Reason::BadTunnel,
        ));
    }
    let short = outer(over_v6).frame.udp(SOURCE_PORT, TUNNEL_PORT).payload_length(20);
    rows.push(Row::dropped(
        format!("tunnel over {family}: no room for the option"),
        &short,
        Reason::BadTunnel,
    ));
    // The packet inside says IPv4, its bytes do not.
    let liar = base.carry(&outer(over_v6), &inner(true, TCP).0.packet());
    rows.push(Row::dropped(
        format!("tunnel over {family}: v6 packet called v4"),
        &liar,
        Reason::Truncated,
    ));
    let empty = base.carry(&outer(over_v6), &[]);
    rows.push(Row::dropped(
        format!("tunnel over {family}: nothing inside"),
        &empty,
        Reason::Truncated,
    ));
    let for_others = Outer::new(peer(over_v6), stranger(over_v6), SOURCE_PORT, TUNNEL_PORT)
        .macs(NODE_MAC, GATEWAY_MAC);
    rows.push(Row::untouched(
        format!("tunnel over {family}: for another node"),
        &base.carry(&for_others, &frame.packet()),
    ));
    // The own address shares its bit in the filter with a VIP: that must not close the tunnel.
    let (frame, out) = inner(false, TCP);
    let carried = tunnel(false).carry(&outer(over_v6), &frame.packet());
    rows.push(
        Row::passed(
            format!("tunnel over {family}: own address shares a VIP's bit"),
            &carried,
            &[Reason::Received],
            &out,
        )
        .changed(move |rig| rig.mark(own(over_v6).into()).unwrap()),
    );
}

fn probes(rows: &mut Vec<Row>, over_v6: bool) {
    let family = if over_v6 { "v6" } else { "v4" };
    let probe = Probe::ask(VNI, SEED_TAG, *b"nonce123");
    let asked = probe.frame(&outer(over_v6));
    let mut boot_id = [0; 16];
    boot_id[..8].copy_from_slice(&BOOT_ID[0].to_le_bytes());
    boot_id[8..].copy_from_slice(&BOOT_ID[1].to_le_bytes());
    let back = Outer::new(own(over_v6), peer(over_v6), TUNNEL_PORT, SOURCE_PORT)
        .macs(GATEWAY_MAC, NODE_MAC);
    let answer = |age| {
        Probe {
            kind: kind::PROBE_ANSWER,
            boot_id,
            heartbeat_age: age,
            layout: LAYOUT_VERSION,
            ..probe
        }
        .frame(&back)
    };
    rows.push(Row::answered(
        format!("probe over {family}: no agent yet"),
        &asked,
        Reason::ProbeAnswered,
        &answer(u32::MAX),
    ));
    rows.push(Row::answered(
        format!("probe over {family}: tagged"),
        &asked.clone().vlan(9),
        Reason::ProbeAnswered,
        &answer(u32::MAX).vlan(9),
    ));
    // Boot time in the far future: the age is 0, never negative.
    rows.push(
        Row::answered(
            format!("probe over {family}: heartbeat just now"),
            &asked,
            Reason::ProbeAnswered,
            &answer(0),
        )
        .changed(|rig| rig.state(state::HEARTBEAT, u64::MAX / 2).unwrap()),
    );
    let foreign = Probe { seed_tag: *b"another!", ..probe }.frame(&outer(over_v6));
    rows.push(Row::answered(
        format!("probe over {family}: another seed hears ours"),
        &foreign,
        Reason::ProbeAnswered,
        &answer(u32::MAX),
    ));
    let newer = Probe { version: 9, ..probe }.frame(&outer(over_v6));
    rows.push(Row::answered(
        format!("probe over {family}: another version hears ours"),
        &newer,
        Reason::ProbeAnswered,
        &answer(u32::MAX),
    ));
    let forged =
        Outer::new(addr(over_v6, "10.0.0.66", "fd00::66"), own(over_v6), SOURCE_PORT, TUNNEL_PORT);
    rows.push(Row::dropped(
        format!("probe over {family}: prober is no member"),
        &probe.frame(&forged),
        Reason::NotMember,
    ));
    let heard = Probe { kind: kind::PROBE_ANSWER, ..probe }.frame(&outer(over_v6));
    rows.push(Row::passed(
        format!("probe over {family}: answer to ours"),
        &heard,
        &[Reason::ProbeAnswerPassed],
        &heard,
    ));
}

fn yields(rows: &mut Vec<Row>, v6: bool, over_v6: bool) {
    let family = |v6| if v6 { "v6" } else { "v4" };
    let name = |what: &str| format!("yield of {} over {}: {what}", family(v6), family(over_v6));
    let of = |vip, outer: &Outer| Tunnel::yields(VNI, SEED_TAG, vip).carry(outer, &[]);
    let frame = of(vip(v6), &outer(over_v6));
    let heartbeat = |age_ms: u64| {
        move |rig: &mut Rig| {
            rig.state(state::HEARTBEAT, boot_now() - age_ms * 1_000_000).unwrap();
        }
    };
    let mute = heartbeat(u64::from(YIELD_AFTER) + 1000);
    rows.push(Row::dropped(name("mute"), &frame, Reason::YieldTaken).changed(mute));
    rows.push(Row::dropped(name("no agent yet"), &frame, Reason::YieldTaken).changed(|_| {}));
    rows.push(
        Row::dropped(name("tagged"), &frame.clone().vlan(9), Reason::YieldTaken).changed(|_| {}),
    );
    let newer = Tunnel { version: 9, ..Tunnel::yields(VNI, SEED_TAG, vip(v6)) };
    let newer = newer.carry(&outer(over_v6), &[]);
    rows.push(Row::dropped(name("newer"), &newer, Reason::YieldTaken).changed(|_| {}));
    let recent = heartbeat(u64::from(YIELD_AFTER) - 2000);
    let alive = Row::dropped(name("agent lives"), &frame, Reason::YieldRefused);
    rows.push(alive.changed(recent));
    for (what, address) in [("of another's VIP", other_vip(v6)), ("no VIP", stranger(v6))] {
        let frame = of(address, &outer(over_v6));
        rows.push(Row::dropped(name(what), &frame, Reason::YieldRefused));
    }
    let forged = addr(over_v6, "10.0.0.66", "fd00::66");
    let forged = Outer::new(forged, own(over_v6), SOURCE_PORT, TUNNEL_PORT);
    rows.push(Row::dropped(name("forged"), &of(vip(v6), &forged), Reason::NotMember));
}
