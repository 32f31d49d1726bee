//! What strays and floods may cost.

use lb_common::abi::{budget, program};
use lb_common::chain::{PLACES, SENDS, STRAYS};
use lb_common::claim::CLAIMANTS;
use lb_common::reason::Reason;
use lb_common::service::PAST;
use lb_tests::packet::Tunnel;
use lb_tests::rig::{Action, Rig, SEED_TAG, VNI};

use crate::chain::{By, CLAIMED, PASSED, Rows, YOUNG, carried};
use crate::world::*;

/// Rows whose limit is used up.
pub fn rows() -> Vec<Row> {
    let mut all = Vec::new();
    for (v6, proto) in kinds() {
        let mut rows = Rows { v6, proto, rows: Vec::new() };
        let packet = rows.to(CLAIMED);
        let beside = [Reason::SendsLimited];
        if proto == TCP {
            let frame = rows.frame(&By::Client, &packet);
            let row = Row::dropped(rows.name("sends are used up"), &frame, Reason::Unsettled);
            rows.rows.push(Row { counts: vec![Reason::Unsettled, Reason::SendsLimited], ..row });
        } else {
            rows.delivered("sends are used up", &By::Client, &packet, local_backend(v6), &beside);
        }
        let row = rows.rows.pop().expect("a row was made");
        rows.rows.push(row.changed(|rig| rig.budget(budget::SENDS, SENDS).unwrap()));
        if proto == TCP {
            let frame = rows.to(LOCAL);
            let row =
                Row::dropped(rows.name("strays fill their part"), &frame, Reason::StrayLimited);
            rows.rows.push(row.changed(|rig| rig.budget(budget::STRAYS, STRAYS).unwrap()));
        }
        all.append(&mut rows.rows);
    }
    all
}

/// How many sends, and how many openings, `count` strays of different clients cost this node.
fn cost(rig: &mut Rig, v6: bool, port: u16, by: Option<Tunnel>, count: u16) -> (u64, usize) {
    rig.clear_arrivals().unwrap();
    rig.reasons().unwrap();
    for client_port in 1..=count {
        rig.budget(budget::STRAYS, 0).unwrap();
        let packet = to_port(v6, TCP, port).ports(client_port, port);
        let frame = match &by {
            None => packet,
            Some(tunnel) => carried(tunnel, &packet),
        };
        rig.verdict(program::INGRESS, &frame.build()).unwrap();
    }
    let reasons = rig.reasons().unwrap().0;
    let of = |reason| reasons.get(&reason).copied().unwrap_or(0);
    (of(Reason::SentOn) + of(Reason::SentLast), rig.arrivals().unwrap().opening.len())
}

#[test]
fn stray_costs_a_node_no_send_in_quiet_and_one_at_most() {
    const STRAYS: u16 = 200;
    for v6 in [false, true] {
        let mut rig = rig();
        let tunnel = Tunnel::new(VNI, SEED_TAG, local_backend(v6), BACKEND_PORT);
        for (what, port, by, at_most) in [
            ("quiet", LOCAL, None, 0),
            ("quiet, from the tunnel", LOCAL, Some(tunnel.clone()), 0),
            ("quiet, with sets of before", PASSED, None, 0),
            ("by a forwarder of another view", REMOTE, Some(tunnel), 1),
            ("claimed", CLAIMED, None, 1),
            ("young", YOUNG, None, 1),
        ] {
            let (sends, openings) = cost(&mut rig, v6, port, by, STRAYS);
            let each = sends as f64 / f64::from(STRAYS);
            println!("{what}: {each:.2} sends a stray on one node, {openings} openings");
            assert!(sends <= at_most * u64::from(STRAYS), "{what}: {sends} sends");
        }
    }
    assert_eq!(PLACES, 1 + CLAIMANTS + PAST, "the most that all nodes together may send");
}

#[test]
fn prefix_that_opened_its_share_opens_no_more_in_that_second() {
    const LIMIT: u32 = 1000;
    for v6 in [false, true] {
        let mut rig = limiting_rig(LIMIT);
        let from =
            |host: u32| addr(v6, &format!("198.51.100.{host}"), &format!("2001:db8:c::{host:x}"));
        let mut open = |client, port| {
            let syn = to_vip(v6).tcp(CLIENT_PORT, port, "S").addresses(client, vip(v6));
            rig.verdict(program::INGRESS, &syn.build()).unwrap().0
        };
        // More than a second's share, so that one second at least is full however long this takes.
        let sent = 20 * LIMIT;
        let passed = (0..sent).filter(|_| open(from(7), REMOTE) == Action::Tx).count() as u32;
        assert!(passed >= LIMIT, "{passed} of {sent} passed");
        let full = (0..2 * LIMIT).any(|_| open(from(8), REMOTE) == Action::Drop);
        assert!(
            full,
            "{passed} of {sent} passed, and another client of the prefix opened its share"
        );
        let other = addr(v6, "198.51.101.7", "2001:db8:d::7");
        assert_eq!(open(other, REMOTE), Action::Tx, "another prefix");
        let segment = to_port(v6, TCP, REMOTE).build();
        assert_eq!(rig.verdict(program::INGRESS, &segment).unwrap().0, Action::Tx, "no SYN");
    }
}

/// A SYN beyond the limit of its source's prefix.
pub fn new_flow() -> (Row, Rig) {
    let syn = to_vip(false).tcp(CLIENT_PORT, REMOTE, "S");
    let row = Row::dropped("new flows beyond the limit", &syn, Reason::NewFlowLimited);
    let row = row.changed(move |rig| {
        rig.verdict(program::INGRESS, &syn.build()).unwrap();
        rig.reasons().unwrap();
    });
    (row, limiting_rig(1))
}
