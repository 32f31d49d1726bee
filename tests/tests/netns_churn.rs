//! Long conversations while backends, forwarders and agents come and go: none breaks. Needs root and `WEIR_BIN`.
//!
//! The long form is `cargo xtask bench churn`.

use lb_tests::bench::churn::{self, Kind, Options, Record};

fn options(events: &[Kind], kills: usize) -> Options {
    Options {
        connections: 300,
        flows: 40,
        events: events.to_vec(),
        rounds: 1,
        kills,
        upgrades: 0,
        pause_ms: 500,
        control: false,
    }
}

fn broken(records: &[Record]) -> Vec<&Record> {
    let lost = |record: &&Record| {
        record.broken_connections + record.broken_flows + record.unborn.len() > 0
    };
    records.iter().filter(lost).collect()
}

#[test]
fn no_conversation_breaks_when_backends_forwarders_and_agents_change() {
    let events =
        [Kind::Added, Kind::ForwarderLeft, Kind::Removed, Kind::ForwarderJoined, Kind::AllAtOnce];
    let records = churn::measure_weir(&options(&events, 2)).unwrap();
    assert_eq!(records.len(), events.len() + 2);
    assert!(broken(&records).is_empty(), "{:#?}", broken(&records));
}

/// What the test above would say of forwarders that remember flows.
#[test]
fn conversations_break_at_forwarders_that_remember_them() {
    let events = [Kind::Added, Kind::ForwarderLeft, Kind::AllAtOnce];
    let records = churn::measure_control(&options(&events, 0)).unwrap();
    assert!(!broken(&records).is_empty(), "{records:#?}");
}
