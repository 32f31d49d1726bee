//! What the data plane remembers of flows: the three maps after each step of a connection.

use lb_common::abi::map;
use lb_common::arrival::{Arrival, ArrivalKey, flags};
use lb_common::net::Port;
use lb_common::reason::Reason;
use lb_tests::rig::{Action, Rig, Target};

use crate::egress::{BACKEND_SEQ, CLIENT_SEQ, accept, ack, from_backend, handshake, syn};
use crate::world::*;

/// The key under which the client's flow to the local backend stands.
fn key(rig: &mut Rig, v6: bool, proto: u8) -> ArrivalKey {
    let target = Target { addr: local_backend(v6), port: BACKEND_PORT, node: 0 };
    let id = rig.backend(target, proto).unwrap();
    ArrivalKey::new(client(v6).into(), Port::new(CLIENT_PORT), id)
}

/// The only arrival of a map, its key checked.
#[track_caller]
fn only(list: &[(ArrivalKey, Arrival)], key: ArrivalKey) -> Arrival {
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!(list[0].0, key);
    list[0].1
}

#[test]
fn syn_makes_an_opening_that_its_retransmit_keeps() {
    for v6 in [false, true] {
        let mut rig = rig();
        let key = key(&mut rig, v6, TCP);
        rig.ingress(&syn(v6).build()).unwrap();
        let arrivals = rig.arrivals().unwrap();
        let opening = only(&arrivals.opening, key);
        assert_eq!((opening.client_seq, opening.backend_seq, opening.flags()), (CLIENT_SEQ, 0, 0));
        assert!(arrivals.established.is_empty() && arrivals.datagrams.is_empty());

        rig.egress(&accept(v6).build()).unwrap();
        let noted = only(&rig.arrivals().unwrap().opening, key);
        assert_eq!(noted.backend_seq, BACKEND_SEQ.wrapping_add(1));
        assert_eq!(noted.flags(), flags::BACKEND_SPOKE);

        rig.ingress(&syn(v6).build()).unwrap();
        assert_eq!(
            only(&rig.arrivals().unwrap().opening, key).backend_seq,
            noted.backend_seq,
            "retransmit"
        );

        rig.ingress(&syn(v6).seq(5).build()).unwrap();
        let renewed = only(&rig.arrivals().unwrap().opening, key);
        assert_eq!((renewed.client_seq, renewed.flags()), (5, 0), "another SYN");
    }
}

#[test]
fn ack_of_what_the_backend_sent_promotes_to_established() {
    for v6 in [false, true] {
        let mut rig = rig();
        let key = key(&mut rig, v6, TCP);
        handshake(&mut rig, v6);
        let arrivals = rig.arrivals().unwrap();
        assert!(arrivals.opening.is_empty(), "{arrivals:?}");
        let established = only(&arrivals.established, key);
        assert_eq!(established.service, service_of(&mut rig, v6));
    }
}

/// The index of the frontend `LOCAL`, as its counter shows it.
fn service_of(rig: &mut Rig, v6: bool) -> u32 {
    let outcome = rig.ingress(&ack(v6).build()).unwrap();
    *outcome.services.keys().next().unwrap()
}

#[test]
fn ack_of_what_nobody_sent_promotes_nothing() {
    for v6 in [false, true] {
        let mut rig = rig();
        rig.ingress(&syn(v6).build()).unwrap();
        rig.ingress(&ack(v6).build()).unwrap();
        assert!(rig.arrivals().unwrap().established.is_empty(), "the backend was silent");
        rig.egress(&accept(v6).build()).unwrap();
        rig.ingress(&ack(v6).ack(BACKEND_SEQ).build()).unwrap();
        assert!(rig.arrivals().unwrap().established.is_empty(), "one number too low");
        rig.ingress(
            &ack(v6).tcp(CLIENT_PORT, LOCAL, "RA").ack(BACKEND_SEQ.wrapping_add(1)).build(),
        )
        .unwrap();
        assert!(rig.arrivals().unwrap().established.is_empty(), "a reset");
    }
}

#[test]
fn stray_segment_is_delivered_and_stays_an_opening() {
    for v6 in [false, true] {
        let mut rig = rig();
        let key = key(&mut rig, v6, TCP);
        let outcome = rig.ingress(&ack(v6).build()).unwrap();
        assert_eq!((outcome.action, outcome.reasons), (Action::Pass, vec![Reason::DeliveredLocal]));
        only(&rig.arrivals().unwrap().opening, key);
        // The backend's refusal is no sign of a connection.
        rig.egress(&from_backend(v6).tcp(BACKEND_PORT, CLIENT_PORT, "R").seq(1).build()).unwrap();
        rig.ingress(&ack(v6).ack(1).build()).unwrap();
        assert!(rig.arrivals().unwrap().established.is_empty());
    }
}

#[test]
fn stray_reset_is_delivered_and_makes_no_arrival() {
    for v6 in [false, true] {
        let mut rig = rig();
        let outcome = rig.ingress(&to_vip(v6).tcp(CLIENT_PORT, LOCAL, "R").build()).unwrap();
        assert_eq!((outcome.action, outcome.reasons), (Action::Pass, vec![Reason::DeliveredLocal]));
        assert!(rig.arrivals().unwrap().opening.is_empty());
    }
}

#[test]
fn lost_maps_are_made_again_by_traffic_of_both_sides() {
    for v6 in [false, true] {
        let mut rig = rig();
        handshake(&mut rig, v6);
        rig.clear_arrivals().unwrap();
        rig.ingress(&ack(v6).build()).unwrap();
        let data =
            from_backend(v6).tcp(BACKEND_PORT, CLIENT_PORT, "PA").seq(900).payload_length(10);
        assert_eq!(rig.egress(&data.build()).unwrap().reasons, [Reason::Returned]);
        rig.ingress(&ack(v6).ack(910).build()).unwrap();
        let arrivals = rig.arrivals().unwrap();
        assert_eq!((arrivals.opening.len(), arrivals.established.len()), (0, 1), "{arrivals:?}");
    }
}

#[test]
fn fins_and_resets_are_noted() {
    for v6 in [false, true] {
        let mut rig = rig();
        let key = key(&mut rig, v6, TCP);
        handshake(&mut rig, v6);
        let flags_now = |rig: &mut Rig| only(&rig.arrivals().unwrap().established, key).flags();
        let spoke = flags::BACKEND_SPOKE;
        rig.ingress(&to_vip(v6).tcp(CLIENT_PORT, LOCAL, "FA").build()).unwrap();
        assert_eq!(flags_now(&mut rig), spoke | flags::CLIENT_FIN);
        let backend =
            |letters: &str| from_backend(v6).tcp(BACKEND_PORT, CLIENT_PORT, letters).build();
        rig.egress(&backend("R")).unwrap();
        assert_eq!(flags_now(&mut rig), spoke | flags::CLIENT_FIN | flags::BACKEND_RST);
        rig.egress(&backend("FA")).unwrap();
        assert_eq!(
            flags_now(&mut rig),
            spoke | flags::CLIENT_FIN | flags::BACKEND_FIN,
            "undone by a later segment"
        );
    }
}

#[test]
fn closed_connection_has_its_last_segments_and_none_of_the_ports_next_one() {
    for v6 in [false, true] {
        let mut rig = rig();
        handshake(&mut rig, v6);
        rig.ingress(&to_vip(v6).tcp(CLIENT_PORT, LOCAL, "FA").build()).unwrap();
        let last = from_backend(v6).tcp(BACKEND_PORT, CLIENT_PORT, "FA").seq(5000);
        rig.egress(&last.build()).unwrap();
        rig.ingress(&ack(v6).ack(5001).build()).unwrap();
        assert!(rig.arrivals().unwrap().opening.is_empty(), "of the closed connection");
        // Without a forwarder that knows better it ends here, as a stray.
        rig.ingress(&ack(v6).ack(0x8000_0000).build()).unwrap();
        assert_eq!(rig.arrivals().unwrap().opening.len(), 1, "of another connection");
    }
}

#[test]
fn syn_ack_to_a_direct_client_ends_what_was_known() {
    for v6 in [false, true] {
        let mut rig = rig();
        handshake(&mut rig, v6);
        assert_eq!(
            rig.egress(&accept(v6).ack(7).build()).unwrap().reasons,
            [Reason::ReturnNotOpening]
        );
        assert!(rig.arrivals().unwrap().established.is_empty());
    }
}

#[test]
fn syn_ack_that_crosses_the_clients_answer_ends_nothing() {
    for v6 in [false, true] {
        let mut rig = rig();
        let key = key(&mut rig, v6, TCP);
        handshake(&mut rig, v6);
        let before = only(&rig.arrivals().unwrap().established, key);
        assert_eq!(rig.egress(&accept(v6).build()).unwrap().reasons, [Reason::Returned]);
        assert_eq!(only(&rig.arrivals().unwrap().established, key), before);
    }
}

#[test]
fn arrival_of_an_earlier_life_of_the_backend_is_not_known() {
    for v6 in [false, true] {
        let mut rig = rig();
        let mut key = key(&mut rig, v6, TCP);
        let service = service_of(&mut rig, v6);
        rig.clear_arrivals().unwrap();
        key.backend = key.backend.next_life();
        rig.arrival(map::ESTABLISHED, key, Arrival { service, ..Default::default() }).unwrap();
        let data = from_backend(v6).tcp(BACKEND_PORT, CLIENT_PORT, "A");
        assert_eq!(rig.egress(&data.build()).unwrap().reasons, [Reason::ReturnUnknown]);
    }
}

#[test]
fn datagrams_make_one_arrival_a_flow() {
    for v6 in [false, true] {
        let mut rig = rig();
        let key = key(&mut rig, v6, UDP);
        let first = rig.ingress(&to_port(v6, UDP, LOCAL).build()).unwrap();
        rig.ingress(&to_port(v6, UDP, LOCAL).build()).unwrap();
        let arrivals = rig.arrivals().unwrap();
        let datagram = only(&arrivals.datagrams, key);
        assert_eq!(Some(&datagram.service), first.services.keys().next());
        assert!(arrivals.opening.is_empty() && arrivals.established.is_empty());
        // The client turns to another frontend of the backend: answers follow it.
        let second = rig.ingress(&to_port(v6, UDP, ALSO_LOCAL).build()).unwrap();
        let datagram = only(&rig.arrivals().unwrap().datagrams, key);
        assert_eq!(Some(&datagram.service), second.services.keys().next());
    }
}

#[test]
fn forwarder_remembers_nothing() {
    for (v6, proto) in kinds() {
        let mut rig = rig();
        rig.ingress(&to_port(v6, proto, REMOTE).build()).unwrap();
        assert_eq!(rig.arrivals().unwrap(), Default::default());
    }
}

#[test]
fn services_and_backends_are_counted_once_a_packet() {
    for (v6, proto) in kinds() {
        let mut rig = rig();
        for (port, backends) in [(LOCAL, 1), (REMOTE, 1), (EMPTY, 0), (CLOSED, 0)] {
            let frame = to_port(v6, proto, port).vlan(7);
            let outcome = rig.ingress(&frame.build()).unwrap();
            let services = usize::from(port != CLOSED);
            assert_eq!(
                (outcome.services.len(), outcome.backends.len()),
                (services, backends),
                "{port}"
            );
            for counter in outcome.services.values().chain(outcome.backends.values()) {
                assert_eq!(
                    (counter.packets, counter.bytes as usize),
                    (1, frame.packet().len()),
                    "{port}"
                );
            }
        }
    }
}

#[test]
fn client_affinity_ignores_the_port() {
    for (v6, proto) in kinds() {
        let mut rig = rig();
        let mut by_client = std::collections::BTreeSet::new();
        for host in 1..=32 {
            let from = addr(v6, &format!("198.51.100.{host}"), &format!("2001:db8:c::{host:x}"));
            let mut backends = std::collections::BTreeSet::new();
            for port in [1024, 2000, 40_000, 65_535] {
                let frame = to_port(v6, proto, AFFINE).addresses(from, vip(v6)).ports(port, AFFINE);
                backends.extend(rig.ingress(&frame.build()).unwrap().backends.into_keys());
            }
            assert_eq!(backends.len(), 1, "{from} met {backends:?}");
            by_client.extend(backends);
        }
        assert_eq!(by_client.len(), 2, "all clients met one backend");
    }
}
