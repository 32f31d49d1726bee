use lb_common::wire::geneve::kind;

use super::*;

const INTERVAL: Duration = Duration::from_millis(100);

/// Nodes `a` (this one), `b` (two addresses) and `c`, probed in rounds whose answers the test chooses.
struct Cluster {
    peers: Peers,
    now: Instant,
    nonce: u64,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn nodes() -> BTreeMap<String, Vec<IpAddr>> {
    BTreeMap::from([
        ("a".into(), vec![ip("192.0.2.1")]),
        ("b".into(), vec![ip("192.0.2.2"), ip("2001:db8::2")]),
        ("c".into(), vec![ip("192.0.2.3")]),
    ])
}

fn rules() -> Rules {
    Rules { interval: INTERVAL, fall: 3, rise: 3, vni: 7, seed_tag: *b"seed-tag" }
}

fn answer_to(probe: &[u8]) -> Vec<u8> {
    let mut answer = probe.to_vec();
    answer[10] = kind::PROBE_ANSWER;
    answer
}

impl Cluster {
    fn new() -> Self {
        let mut peers = Peers::new(rules(), "a".into());
        peers.set_nodes(&nodes());
        Self { peers, now: Instant::now(), nonce: 0 }
    }

    fn probes(&mut self) -> Vec<Probe> {
        let nonce = &mut self.nonce;
        self.peers.round(self.now, || {
            *nonce += 1;
            *nonce
        })
    }

    /// One round whose probes to `answering` are answered, and the time to the next round.
    fn round(&mut self, answering: &[&str]) {
        for (address, probe) in self.probes() {
            if answering.iter().any(|name| ip(name) == address) {
                self.peers.on_packet(address, &answer_to(&probe), self.now + INTERVAL / 10);
            }
        }
        self.now += INTERVAL;
    }

    fn rounds(&mut self, count: usize, answering: &[&str]) {
        for _ in 0..count {
            self.round(answering);
        }
    }

    fn names(&self) -> String {
        self.peers.alive().names.into_iter().collect()
    }
}

const ALL: [&str; 3] = ["192.0.2.2", "2001:db8::2", "192.0.2.3"];

#[test]
fn first_answers_make_nodes_alive_at_once_and_the_agent_ready() {
    let mut cluster = Cluster::new();
    assert_eq!((cluster.names().as_str(), cluster.peers.alive().ready), ("a", false));
    cluster.round(&ALL);
    assert_eq!((cluster.names().as_str(), cluster.peers.alive().ready), ("abc", true));
}

#[test]
fn silence_from_the_start_is_a_verdict_after_fall_rounds() {
    let mut cluster = Cluster::new();
    cluster.rounds(3, &["192.0.2.3"]);
    assert!(!cluster.peers.alive().ready);
    cluster.round(&["192.0.2.3"]);
    assert_eq!((cluster.names().as_str(), cluster.peers.alive().ready), ("ac", true));
}

#[test]
fn a_node_alone_is_ready_at_once() {
    let mut peers = Peers::new(rules(), "a".into());
    peers.set_nodes(&BTreeMap::from([("a".into(), vec![])]));
    assert!(peers.alive().ready);
}

#[test]
fn a_node_dies_after_fall_silent_rounds_and_returns_after_rise_answered_ones() {
    let mut cluster = Cluster::new();
    cluster.rounds(2, &ALL);
    let without_c = &ALL[..2];
    cluster.rounds(3, without_c);
    assert_eq!(cluster.names(), "abc", "two silent rounds have ended");
    cluster.round(without_c);
    assert_eq!(cluster.names(), "ab");
    cluster.rounds(3, &ALL);
    assert_eq!(cluster.names(), "ab", "two answered rounds have ended");
    cluster.round(&ALL);
    assert_eq!(cluster.names(), "abc");
}

#[test]
fn one_answer_between_silent_rounds_starts_the_count_again() {
    let mut cluster = Cluster::new();
    cluster.rounds(2, &ALL);
    for _ in 0..5 {
        cluster.rounds(2, &ALL[..2]);
        cluster.round(&ALL);
    }
    assert_eq!(cluster.names(), "abc");
}

#[test]
fn a_node_of_two_families_lives_while_either_answers() {
    let mut cluster = Cluster::new();
    cluster.rounds(10, &["2001:db8::2", "192.0.2.3"]);
    assert_eq!(cluster.names(), "abc");
    cluster.rounds(10, &["192.0.2.2", "192.0.2.3"]);
    assert_eq!(cluster.names(), "abc");
}

#[test]
fn rounds_that_this_process_was_late_for_count_against_nobody() {
    let mut cluster = Cluster::new();
    cluster.rounds(2, &ALL);
    for _ in 0..10 {
        cluster.round(&[]);
        cluster.now += INTERVAL * 2;
    }
    assert_eq!(cluster.names(), "abc");
}

#[test]
fn answers_that_need_longer_than_an_interval_keep_a_node_alive() {
    let mut cluster = Cluster::new();
    let mut under_way = VecDeque::new();
    for _ in 0..20 {
        under_way.push_back(cluster.probes());
        if under_way.len() > 3 {
            for (address, probe) in under_way.pop_front().unwrap() {
                cluster.peers.on_packet(address, &answer_to(&probe), cluster.now);
            }
        }
        cluster.now += INTERVAL;
    }
    assert_eq!(cluster.names(), "abc");
    let report = cluster.peers.report(cluster.now);
    assert_eq!(report["b"].round_trip_us, Some(300_000));
}

#[test]
fn forged_repeated_and_misplaced_answers_do_not_count() {
    let mut cluster = Cluster::new();
    let (address, probe) = cluster.probes()[0];
    let now = cluster.now;
    let mut forged = answer_to(&probe);
    forged[24] ^= 1;
    assert!(!cluster.peers.on_packet(address, &forged, now), "another nonce");
    let answer = answer_to(&probe);
    assert!(!cluster.peers.on_packet(ip("198.51.100.9"), &answer, now), "another address");
    assert!(!cluster.peers.on_packet(address, &answer[..40], now), "cut short");
    assert!(cluster.peers.on_packet(address, &answer, now));
    assert!(!cluster.peers.on_packet(address, &answer, now), "again");
    // The one answer counts for one round, however often it is repeated.
    for _ in 0..5 {
        cluster.now += INTERVAL;
        cluster.probes();
        cluster.peers.on_packet(address, &answer, cluster.now);
    }
    assert_eq!(cluster.names(), "a");
}

#[test]
fn another_seed_is_reported_and_kills_nobody() {
    let mut cluster = Cluster::new();
    let (address, probe) = cluster.probes()[2];
    let mut answer = answer_to(&probe);
    answer[16..24].copy_from_slice(b"another!");
    answer[12] = 9;
    answer[48..56].copy_from_slice(&[0, 0, 0, 10, 0, 0, 0, 1]);
    cluster.peers.on_packet(address, &answer, cluster.now);
    let report = cluster.peers.report(cluster.now + INTERVAL);
    let status = &report["c"];
    assert_eq!(
        (status.state, status.other_seed, status.other_version),
        (PeerState::Alive, true, Some(9))
    );
    assert_eq!((status.last_answer_ms, status.heartbeat_age_ms), (Some(100), Some(110)));
    assert_eq!(report["b"], PeerStatus::default());
}

#[test]
fn nodes_that_are_configured_later_or_removed_leave_the_others_as_they_are() {
    let mut cluster = Cluster::new();
    cluster.rounds(2, &ALL);
    let mut changed = nodes();
    changed.remove("b");
    changed.insert("d".into(), vec![ip("192.0.2.4")]);
    cluster.peers.set_nodes(&changed);
    assert_eq!((cluster.names().as_str(), cluster.peers.alive().ready), ("ac", true));
    cluster.round(&["192.0.2.3", "192.0.2.4"]);
    assert_eq!(cluster.names(), "acd");
}
