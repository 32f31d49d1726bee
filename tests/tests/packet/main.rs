//! The fate of every packet: verdict, bytes and all counter changes, a row a case.
//!
//! Needs the BPF object and the right to load it; touches no interface.

mod answers;
mod arrivals;
mod chain;
mod egress;
mod forward;
mod limits;
mod ranges;
mod receive;
mod robust;
mod scan;
mod world;

use std::collections::BTreeSet;

use lb_common::reason::Reason;

use world::{Row, run};

fn all() -> Vec<Row> {
    [
        forward::rows(),
        receive::rows(),
        chain::rows(),
        limits::rows(),
        ranges::rows(),
        vec![limits::new_flow().0],
        answers::rows(),
        vec![answers::limited()],
        egress::rows(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn every_reason_has_a_row() {
    let covered: BTreeSet<Reason> = all().iter().flat_map(|row| row.counts.clone()).collect();
    let missing: Vec<_> = Reason::ALL.iter().filter(|reason| !covered.contains(reason)).collect();
    assert!(missing.is_empty(), "no row for {missing:?}");
}

#[test]
fn names_of_rows_are_unique() {
    let mut seen = BTreeSet::new();
    for row in all() {
        assert!(seen.insert(row.name.clone()), "two rows are called {}", row.name);
    }
}

#[test]
fn clients_packets_go_where_the_slot_says() {
    run(forward::rows());
}

#[test]
fn tunnelled_packets_reach_the_backend_or_are_dropped_with_their_reason() {
    run(receive::rows());
}

#[test]
fn what_weir_answers_itself_is_right() {
    run(answers::rows());
}

#[test]
fn packets_of_unknown_flows_go_to_who_may_know_them() {
    run(chain::rows());
}

#[test]
fn clients_outside_of_the_ranges_are_dropped_by_forwarder_and_receiver() {
    run(ranges::rows());
}

#[test]
fn what_strays_may_cost_is_limited() {
    limits::rows().iter().for_each(|row| world::run_in_time(row, world::rig()));
    let (row, rig) = limits::new_flow();
    world::run_in_time(&row, rig);
}

#[test]
fn refusals_stop_at_the_limit() {
    world::run_in_time(&answers::limited(), world::rig());
}

#[test]
fn answers_of_backends_get_the_vip_back() {
    run(egress::rows());
}
