//! Source ranges: whom a frontend takes, at the forwarder and again at the receiver.

use std::net::IpAddr;

use lb_common::reason::Reason;
use lb_tests::packet::Frame;
use lb_tests::rig::{Action, Outcome, Rig};

use crate::egress::{accept, ack, syn};
use crate::forward::carried;
use crate::receive::{outer, tunnel};
use crate::world::*;

/// A client's frame for a port of the VIP.
fn from(client: IpAddr, v6: bool, proto: u8, port: u16) -> Frame {
    to_port(v6, proto, port).addresses(client, vip(v6))
}

/// The same as the other node forwards it to the backend here.
fn tunnelled(client: IpAddr, v6: bool, proto: u8, port: u16, over_v6: bool) -> Frame {
    tunnel(v6).carry(&outer(over_v6), &from(client, v6, proto, port).ttl(63).packet())
}

fn taken(name: String, frame: &Frame, client: IpAddr, v6: bool) -> Row {
    let delivered =
        frame.clone().addresses(client, local_backend(v6)).ports(CLIENT_PORT, BACKEND_PORT);
    Row::passed(name, frame, &[Reason::DeliveredLocal], &delivered)
}

/// Another list for a port.
fn list(v6: bool, proto: u8, port: u16, networks: &[(IpAddr, u32)]) -> impl Fn(&mut Rig) + use<> {
    let networks = networks.to_vec();
    move |rig| {
        let service = rig.service_index(vip(v6), port, proto).unwrap();
        rig.ranges(service, &networks).unwrap();
    }
}

/// 0.0.0.0/0 or ::/0.
fn everybody(v6: bool) -> [(IpAddr, u32); 1] {
    [(addr(v6, "0.0.0.0", "::"), 0)]
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (v6, proto) in kinds() {
        let kind = kind(v6, proto);
        forwarded(&mut rows, &kind, v6, proto);
        lists(&mut rows, &kind, v6, proto);
        for over_v6 in [false, true] {
            let name = format!("{kind} over {}", if over_v6 { "v6" } else { "v4" });
            received(&mut rows, &name, (v6, proto), over_v6);
        }
    }
    rows
}

fn forwarded(rows: &mut Vec<Row>, kind: &str, v6: bool, proto: u8) {
    let frame = from(client(v6), v6, proto, GUARDED);
    let inner = frame.clone().ttl(63);
    let name = format!("{kind} guarded: inside, to another node");
    rows.push(Row::tunnelled(name, &frame, Action::Tx, move |source| {
        carried(false, v6, &inner, source, 0)
    }));
    let frame = from(client(v6), v6, proto, GUARDED_LOCAL);
    rows.push(taken(format!("{kind} guarded: inside, here"), &frame, client(v6), v6));
    for (what, port) in [
        ("to another node", GUARDED),
        ("here", GUARDED_LOCAL),
        ("without a backend, and not refused", GUARDED_EMPTY),
    ] {
        let frame = from(outsider(v6), v6, proto, port);
        rows.push(Row::dropped(
            format!("{kind} guarded: outside, {what}"),
            &frame,
            Reason::SourceDenied,
        ));
    }
    let tagged = from(outsider(v6), v6, proto, GUARDED).vlan(7);
    let name = format!("{kind} guarded: outside, tagged");
    rows.push(Row::dropped(name, &tagged, Reason::SourceDenied));
    if proto == TCP {
        let syn = to_vip(v6).addresses(outsider(v6), vip(v6)).tcp(CLIENT_PORT, GUARDED, "S");
        let name = format!("{kind} guarded: SYN from outside");
        rows.push(Row::dropped(name, &syn, Reason::SourceDenied));
    }
}

/// First and last addresses of networks, and lists of other forms.
fn lists(rows: &mut Vec<Row>, kind: &str, v6: bool, proto: u8) {
    let inside = ["203.0.113.128", "203.0.113.255", "198.51.100.0"];
    let inside_v6 = ["2001:db8:d::", "2001:db8:d:0:ffff:ffff:ffff:ffff", "2001:db8:c::"];
    for (v4_text, v6_text) in inside.into_iter().zip(inside_v6) {
        let client = addr(v6, v4_text, v6_text);
        let frame = from(client, v6, proto, GUARDED_LOCAL);
        rows.push(taken(format!("{kind} guarded: {client} is inside"), &frame, client, v6));
    }
    let outside = ["203.0.113.127", "203.0.114.0", "198.51.99.255"];
    let outside_v6 = ["2001:db8:c:ffff::", "2001:db8:d:1::", "2001:db8:b:ffff:ffff:ffff:ffff:ffff"];
    for (v4_text, v6_text) in outside.into_iter().zip(outside_v6) {
        let client = addr(v6, v4_text, v6_text);
        let frame = from(client, v6, proto, GUARDED_LOCAL);
        let name = format!("{kind} guarded: {client} is outside");
        rows.push(Row::dropped(name, &frame, Reason::SourceDenied));
    }
    let frame = from(outsider(v6), v6, proto, GUARDED_LOCAL);
    let name = format!("{kind} guarded: everybody of the family");
    let open = list(v6, proto, GUARDED_LOCAL, &everybody(v6));
    rows.push(taken(name, &frame, outsider(v6), v6).changed(open));
    let one = [(outsider(v6), if v6 { 128 } else { 32 })];
    let name = format!("{kind} guarded: a single client");
    let single = list(v6, proto, GUARDED_LOCAL, &one);
    rows.push(taken(name, &frame, outsider(v6), v6).changed(single));
    let own = from(client(v6), v6, proto, GUARDED_LOCAL);
    for (what, frame, port, networks) in [
        ("family without a network", &own, GUARDED_LOCAL, &[][..]),
        ("another single client", &own, GUARDED_LOCAL, &one[..]),
        ("list of another port", &frame, GUARDED, &everybody(v6)[..]),
    ] {
        let row = Row::dropped(format!("{kind} guarded: {what}"), frame, Reason::SourceDenied);
        rows.push(row.changed(list(v6, proto, port, networks)));
    }
}

fn received(rows: &mut Vec<Row>, name: &str, (v6, proto): (bool, u8), over_v6: bool) {
    let frame = from(client(v6), v6, proto, GUARDED_LOCAL).ttl(63);
    let delivered = frame.addresses(client(v6), local_backend(v6)).ports(CLIENT_PORT, BACKEND_PORT);
    let inside = tunnelled(client(v6), v6, proto, GUARDED_LOCAL, over_v6);
    let row = Row::passed(
        format!("{name} guarded: received from inside"),
        &inside,
        &[Reason::Received],
        &delivered,
    );
    rows.push(row);
    let outside = tunnelled(outsider(v6), v6, proto, GUARDED_LOCAL, over_v6);
    let name = format!("{name} guarded: received from outside, as a forwarder's list is older");
    rows.push(Row::dropped(name, &outside, Reason::SourceDenied));
}

/// What a run made of the frame, which counts for no service where it was denied.
#[track_caller]
fn met(outcome: &Outcome, reason: Reason) {
    assert_eq!(outcome.reasons, [reason]);
    assert_eq!(outcome.services.is_empty(), reason != Reason::DeliveredLocal, "{reason:?}");
}

#[test]
fn connection_ends_and_goes_on_with_the_list() {
    for v6 in [false, true] {
        let mut rig = rig();
        let service = rig.service_index(vip(v6), LOCAL, TCP).unwrap();
        met(&rig.ingress(&syn(v6).build()).unwrap(), Reason::DeliveredLocal);
        rig.egress(&accept(v6).build()).unwrap();
        met(&rig.ingress(&ack(v6).build()).unwrap(), Reason::DeliveredLocal);
        let known = rig.arrivals().unwrap();
        assert_eq!(known.established.len(), 1);

        rig.ranges(service, &[(outsider(v6), if v6 { 128 } else { 32 })]).unwrap();
        met(&rig.ingress(&ack(v6).build()).unwrap(), Reason::SourceDenied);
        let answer = rig.egress(&accept(v6).tcp(BACKEND_PORT, CLIENT_PORT, "PA").build()).unwrap();
        assert_eq!(answer.reasons, [Reason::Returned], "answers still leave as the VIP's");

        rig.ranges(service, &ranges(v6)).unwrap();
        met(&rig.ingress(&ack(v6).build()).unwrap(), Reason::DeliveredLocal);
        assert_eq!(rig.arrivals().unwrap().established.len(), 1);
    }
}

#[test]
fn receiver_stops_a_known_flow_that_its_list_no_longer_names() {
    for (v6, over_v6) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut rig = rig();
        let service = rig.service_index(vip(v6), LOCAL, UDP).unwrap();
        let frame = tunnelled(client(v6), v6, UDP, LOCAL, over_v6).build();
        assert_eq!(rig.ingress(&frame).unwrap().reasons, [Reason::Received]);
        assert_eq!(rig.ingress(&frame).unwrap().reasons, [Reason::Received]);
        rig.ranges(service, &[]).unwrap();
        assert_eq!(rig.ingress(&frame).unwrap().reasons, [Reason::SourceDenied]);
    }
}

/// The VIP itself is open to all: the list is of a frontend's clients.
#[test]
fn echo_and_ports_without_a_frontend_are_answered_whatever_the_lists_say() {
    for v6 in [false, true] {
        let mut rig = rig();
        let ping = to_vip(v6).icmp(if v6 { 128 } else { 8 }, 0, [1, 2, 3, 4]).payload_length(40);
        let ping = ping.addresses(outsider(v6), vip(v6)).build();
        assert_eq!(rig.ingress(&ping).unwrap().reasons, [Reason::EchoAnswered]);
        let closed = from(outsider(v6), v6, TCP, CLOSED).build();
        assert_eq!(rig.ingress(&closed).unwrap().reasons, [Reason::RefusedNoFrontend]);
    }
}
