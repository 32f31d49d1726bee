use lb_common::wire::geneve::kind;

use super::*;

const MS: Duration = Duration::from_millis(1);
const INTERVAL: Duration = Duration::from_millis(100);

/// Node `a` and its probes, answered as the test says; what others report is given by hand.
struct Bench {
    watch: Watch,
    start: Instant,
    now: Instant,
    /// Heartbeat age that a node's data plane tells; absent: it is silent.
    answering: BTreeMap<String, Option<u32>>,
    under_way: BTreeMap<(Instant, u64), (IpAddr, Vec<u8>)>,
    delay: Duration,
    nonce: u64,
    /// What the gateway answers at once, if anything.
    gateway: Option<bool>,
    questions: usize,
    told: BTreeMap<String, Report>,
    probes: usize,
}

fn rules() -> Rules {
    let hold_downs = HoldDowns::default();
    let (seed, seed_tag) = (*b"sixteen bytes ok", *b"seed-tag");
    Rules { interval: INTERVAL, fall: 3, rise: 3, vni: 7, seed, seed_tag, hold_downs }
}

fn address(name: &str) -> IpAddr {
    let number = name.bytes().fold(0u32, |sum, byte| sum * 31 + u32::from(byte));
    IpAddr::V4((0x0a00_0000 | (number & 0xff_ffff)).into())
}

fn cluster(names: &str) -> BTreeMap<String, Vec<IpAddr>> {
    names.split(' ').map(|name| (name.to_owned(), vec![address(name)])).collect()
}

impl Bench {
    fn new(names: &str) -> Self {
        let mut watch = Watch::new(rules(), "a");
        watch.set_nodes(&cluster(names));
        let start = Instant::now();
        let answering = names.split(' ').map(|name| (name.to_owned(), Some(5))).collect();
        Self {
            watch,
            start,
            now: start,
            answering,
            under_way: BTreeMap::new(),
            delay: MS,
            nonce: 0,
            gateway: Some(true),
            questions: 0,
            told: BTreeMap::new(),
            probes: 0,
        }
    }

    /// A cluster that has found everybody alive.
    fn settled(names: &str) -> Self {
        let mut bench = Self::new(names);
        bench.run(1000);
        assert_eq!(bench.lives(Life::Alive), names.replace(' ', ""));
        bench
    }

    fn silence(&mut self, names: &str) {
        self.answering.retain(|name, _| !names.split(' ').any(|silent| silent == name));
    }

    fn answer(&mut self, name: &str, heartbeat: u32) {
        self.answering.insert(name.into(), Some(heartbeat));
    }

    /// `origin` tells what it finds of `subject`.
    fn word(&mut self, origin: &str, subject: &str, finding: Finding) {
        self.watch.on_report(origin, subject, Report { finding, void: 0 });
        self.decide();
    }

    fn decide(&mut self) {
        self.watch.decide(self.now);
        if self.watch.take_question() {
            self.questions += 1;
            if let Some(answer) = self.gateway {
                self.watch.on_gateway(answer, self.now);
                self.watch.decide(self.now);
            }
        }
        for (name, report) in self.watch.take_reports() {
            self.told.insert(name.to_string(), report);
        }
        for (to, probe) in self.watch.take_probes() {
            self.probes += 1;
            let name = self.answering.iter().find(|(name, _)| address(name) == to);
            if let Some((_, heartbeat)) = name {
                let mut answer = probe.to_vec();
                answer[10] = kind::PROBE_ANSWER;
                answer[48..52].copy_from_slice(&heartbeat.unwrap_or(u32::MAX).to_be_bytes());
                answer[55] = 1;
                self.under_way.insert((self.now + self.delay, self.nonce), (to, answer));
                self.nonce += 1;
            }
        }
    }

    fn step(&mut self, late: Duration) {
        let timer = self.watch.next_timer().map(|at| at + late);
        let packet = self.under_way.first_key_value().map(|((at, _), _)| *at);
        self.now = timer.into_iter().chain(packet).min().unwrap().max(self.now);
        while let Some(packet) = self.under_way.first_entry() {
            if packet.key().0 > self.now {
                break;
            }
            let (from, payload) = packet.remove();
            self.watch.on_packet(from, &payload, self.now);
        }
        if timer.is_some_and(|at| at <= self.now) {
            let nonce = &mut self.nonce;
            let mut next = || {
                *nonce += 1;
                *nonce
            };
            self.watch.on_timer(self.now, &mut next);
        }
        self.decide();
    }

    fn run(&mut self, milliseconds: u32) {
        let end = self.now + MS * milliseconds;
        self.decide();
        while self.watch.next_timer().is_some_and(|at| at <= end)
            || self.under_way.first_key_value().is_some_and(|((at, _), _)| *at <= end)
        {
            self.step(Duration::ZERO);
        }
        self.now = end;
        self.decide();
    }

    /// Runs until a node is dead; milliseconds.
    fn death_of(&mut self, name: &str) -> u128 {
        let start = self.now;
        while self.life(name) != Life::Dead {
            assert!(self.now < start + Duration::from_secs(10), "{name} doesn't die");
            self.run(1);
        }
        (self.now - start).as_millis()
    }

    fn life(&self, name: &str) -> Life {
        self.watch.members(self.now)[name].life
    }

    fn lives(&self, life: Life) -> String {
        let members = self.watch.members(self.now);
        members.iter().filter(|(_, it)| it.life == life).map(|(name, _)| name.as_str()).collect()
    }

    fn status(&self, name: &str) -> NodeStatus {
        self.watch.status(self.now).remove(name).unwrap()
    }
}

#[test]
fn first_answers_make_nodes_alive_at_once_and_the_view_ready() {
    let mut bench = Bench::new("a b c");
    assert_eq!((bench.lives(Life::Alive).as_str(), bench.watch.ready()), ("a", false));
    bench.run(10);
    assert_eq!((bench.lives(Life::Alive).as_str(), bench.watch.ready()), ("abc", true));
    assert!(bench.watch.members(bench.now)["b"].serves, "nothing was taken from it");
}

#[test]
fn silence_from_the_start_is_a_verdict_of_own_probes_alone_and_costs_no_hold_down() {
    let mut bench = Bench::new("a b c");
    bench.silence("b");
    bench.run(250);
    assert!(!bench.watch.ready());
    bench.run(100);
    assert_eq!((bench.life("b"), bench.watch.ready()), (Life::Dead, false));
    bench.run(1700);
    assert_eq!((bench.watch.ready(), bench.questions), (true, 0), "nobody is waited for longer");
    assert_eq!(bench.told["b"].finding, Finding::Unheard, "accuses nobody");
    bench.answer("b", 5);
    bench.run(500);
    assert!(bench.watch.members(bench.now)["b"].serves);
    assert_eq!(bench.status("b").deaths, 0);
}

#[test]
fn a_node_alone_is_ready_at_once() {
    let mut bench = Bench::new("a");
    bench.decide();
    assert!(bench.watch.ready() && bench.watch.next_timer().is_none());
}

#[test]
fn one_observer_alone_removes_nobody_and_tells_what_it_finds() {
    let mut bench = Bench::settled("a b c");
    bench.silence("c");
    bench.run(5000);
    assert_eq!((bench.life("c"), bench.questions), (Life::Alive, 0));
    assert_eq!(bench.told["c"].finding, Finding::Silent);
    assert_eq!(bench.watch.members(bench.now)["a"].unreachable, ["c".to_owned()].into());
    bench.answer("c", 5);
    bench.run(150);
    assert_eq!(bench.told["c"], Report::default(), "one answer takes the report back");
}

#[test]
fn a_node_that_all_find_silent_dies_within_a_round_and_a_half_after_two_silent_ones() {
    for phase in (0..100).step_by(7) {
        let mut bench = Bench::settled("a b c");
        bench.run(phase);
        bench.silence("c");
        bench.word("b", "c", Finding::Silent);
        let took = bench.death_of("c");
        assert!((250..=350).contains(&took), "{took} ms at phase {phase}");
        assert_eq!(bench.questions, 0);
    }
}

#[test]
fn what_two_others_report_of_three_is_enough_even_if_it_answers_here() {
    let mut bench = Bench::settled("a b c d");
    bench.word("b", "d", Finding::Silent);
    assert_eq!(bench.life("d"), Life::Alive);
    bench.word("c", "d", Finding::Silent);
    assert_eq!(bench.life("d"), Life::Dead);
    bench.run(1000);
    assert_eq!(bench.life("d"), Life::Dead, "as long as they say so");
    bench.word("b", "d", Finding::Answers);
    assert_eq!(bench.life("d"), Life::Alive);
}

#[test]
fn reports_of_the_dead_the_mute_and_the_doubtful_do_not_count() {
    let mut bench = Bench::settled("a b c d e f");
    bench.silence("f");
    bench.answer("b", 2000);
    bench.run(500);
    for witness in ["b", "nobody"] {
        bench.word(witness, "f", Finding::Silent);
    }
    assert_eq!(bench.life("f"), Life::Alive, "a mute one and a stranger");
    bench.word("c", "f", Finding::Silent);
    assert_eq!(bench.life("f"), Life::Alive, "two of four");
    bench.silence("d");
    bench.run(400);
    assert_eq!(bench.life("f"), Life::Dead, "two of three: d is silent here");
}

#[test]
fn two_that_die_at_once_are_no_witnesses_for_each_other() {
    let mut bench = Bench::settled("a b c d e");
    bench.silence("d e");
    bench.run(400);
    for subject in ["d", "e"] {
        bench.word("b", subject, Finding::Silent);
    }
    assert_eq!(bench.lives(Life::Dead), "de");
    assert_eq!(bench.questions, 0, "two of five are less than half");
}

#[test]
fn who_is_left_alone_asks_the_gateway_and_takes_its_word() {
    let mut bench = Bench::settled("a b c");
    bench.silence("b c");
    let took = bench.death_of("b");
    assert!((350..=460).contains(&took), "{took} ms");
    assert_eq!((bench.lives(Life::Dead).as_str(), bench.questions), ("bc", 1));
}

#[test]
fn who_reaches_neither_others_nor_the_gateway_keeps_everything_until_somebody_answers() {
    let mut bench = Bench::settled("a b");
    bench.gateway = Some(false);
    bench.silence("b");
    bench.run(5000);
    assert_eq!((bench.life("b"), bench.watch.isolated()), (Life::Alive, true));
    assert!((4..=6).contains(&bench.questions), "{}", bench.questions);
    bench.answer("b", 5);
    bench.run(150);
    assert_eq!((bench.life("b"), bench.watch.isolated()), (Life::Alive, false));
    bench.silence("b");
    bench.run(2000);
    bench.gateway = Some(true);
    bench.run(1200);
    assert_eq!((bench.life("b"), bench.watch.isolated()), (Life::Dead, false));
}

#[test]
fn an_uplink_that_returns_while_the_gateway_is_asked_kills_nobody() {
    let mut bench = Bench::settled("a b c");
    bench.gateway = None;
    bench.silence("b c");
    bench.run(400);
    assert_eq!(bench.questions, 1);
    bench.answer("b", 5);
    bench.answer("c", 5);
    bench.watch.on_gateway(true, bench.now);
    bench.run(1000);
    assert_eq!(bench.lives(Life::Alive), "abc");
}

#[test]
fn deaths_that_began_an_isolation_are_taken_back() {
    let mut bench = Bench::settled("a b c d e");
    bench.gateway = Some(false);
    for witness in ["b", "c", "d"] {
        bench.word(witness, "e", Finding::Silent);
    }
    assert_eq!(bench.life("e"), Life::Dead);
    bench.silence("b c d e");
    bench.run(600);
    assert!(bench.watch.isolated());
    assert_eq!((bench.lives(Life::Alive).as_str(), bench.status("e").deaths), ("abcde", 0));
}

#[test]
fn late_verdicts_count_against_nobody() {
    let mut bench = Bench::settled("a b c");
    bench.word("b", "c", Finding::Silent);
    bench.silence("c");
    for _ in 0..100 {
        bench.step(INTERVAL + MS * 50);
    }
    assert!(bench.now > bench.start + Duration::from_secs(5));
    assert_eq!(bench.life("c"), Life::Alive);
}

#[test]
fn answers_that_need_longer_than_an_interval_keep_a_node_alive() {
    let mut bench = Bench::new("a b");
    bench.delay = MS * 251;
    bench.run(5000);
    assert_eq!(bench.life("b"), Life::Alive);
    assert_eq!(bench.status("b").suspected_by, BTreeSet::new());
    assert_eq!(bench.status("b").round_trip_us, Some(251_000));
}

#[test]
fn a_returned_node_needs_rise_rounds_and_waits_out_its_hold_down() {
    let mut bench = Bench::settled("a b c");
    bench.silence("c");
    bench.word("b", "c", Finding::Silent);
    bench.death_of("c");
    bench.run(2000);
    bench.word("b", "c", Finding::Answers);
    bench.answer("c", 5);
    bench.run(199);
    assert_eq!(bench.life("c"), Life::Dead);
    bench.run(200);
    let member = &bench.watch.members(bench.now)["c"];
    assert_eq!((member.life, member.serves), (Life::Alive, false));
    let status = bench.status("c");
    assert!(status.held_for_ms.is_some_and(|left| left > 700) && status.deaths == 1);
    bench.watch.take_changed();
    bench.run(1000);
    assert!(bench.watch.take_changed() && bench.watch.members(bench.now)["c"].serves);
}

#[test]
fn a_silent_agent_is_mute_then_mute_for_long_and_stays_a_server() {
    let mut bench = Bench::settled("a b c");
    for (heartbeat, life, long) in
        [(900, Life::Alive, false), (1100, Life::Mute, false), (5100, Life::Mute, true)]
    {
        bench.answer("c", heartbeat);
        bench.run(200);
        let member = &bench.watch.members(bench.now)["c"];
        assert_eq!((member.life, member.mute_long, member.serves), (life, long, true));
    }
    assert_eq!(bench.told["c"], Report { finding: Finding::MuteLong, void: 0 });
    bench.answer("c", 5);
    bench.run(200);
    assert_eq!(bench.life("c"), Life::Alive);
}

#[test]
fn a_card_is_void_until_a_newer_one_after_its_node_died() {
    let mut bench = Bench::settled("a b c");
    bench.watch.on_card("c", 7);
    bench.silence("c");
    bench.word("b", "c", Finding::Silent);
    bench.death_of("c");
    assert_eq!(bench.watch.void("c"), 7);
    assert_eq!(bench.told["c"], Report { finding: Finding::Silent, void: 7 });
    bench.word("b", "c", Finding::Answers);
    bench.answer("c", 5);
    bench.run(500);
    assert_eq!((bench.life("c"), bench.watch.void("c")), (Life::Alive, 7));
    bench.watch.on_card("c", 8);
    bench.run(1);
    assert_eq!((bench.watch.void("c"), bench.told["c"]), (0, Report::default()));
}

#[test]
fn others_voids_hold_here_too_and_this_node_learns_of_its_own() {
    let mut bench = Bench::settled("a b c");
    let void = Report { finding: Finding::Answers, void: 9 };
    bench.watch.on_report("b", "c", void);
    bench.watch.on_report("b", "a", void);
    assert_eq!((bench.watch.void("c"), bench.watch.void("a"), bench.watch.void("b")), (9, 9, 0));
}

#[test]
fn a_node_that_only_this_one_cannot_reach_lives_by_the_word_of_others() {
    let mut bench = Bench::new("a b c");
    bench.silence("c");
    bench.watch.set_heard(&["b".into(), "c".into()].into());
    bench.run(1500);
    assert_eq!(bench.life("c"), Life::Dead);
    bench.run(1500);
    assert_eq!(bench.life("c"), Life::Alive);
    assert_eq!(bench.watch.members(bench.now)["a"].unreachable, ["c".to_owned()].into());
    assert!(bench.watch.awaits_answers());
}

#[test]
fn in_a_large_cluster_a_few_are_watched_and_all_were_asked_once() {
    let names: Vec<String> =
        ["a".to_owned()].into_iter().chain((0..199).map(|n| format!("n{n}"))).collect();
    let mut bench = Bench::new(&names.join(" "));
    bench.run(3000);
    assert!(bench.watch.ready());
    assert!(bench.watch.members(bench.now).values().all(|member| member.life == Life::Alive));
    let watched = bench.watch.status(bench.now).values().filter(|node| node.watched).count();
    assert!((1..=15).contains(&watched), "{watched}");
    let before = bench.probes;
    bench.run(10_000);
    let rate = (bench.probes - before) / 10;
    assert!(rate <= watched.max(3) * 10 + 10, "{rate} probes a second for {watched} nodes");
}

#[test]
fn an_unwatched_node_keeps_its_state_until_others_report_it() {
    let names: Vec<String> =
        ["a".to_owned()].into_iter().chain((0..49).map(|n| format!("n{n}"))).collect();
    let mut bench = Bench::new(&names.join(" "));
    bench.run(2000);
    let status = bench.watch.status(bench.now);
    let (name, _) = status.iter().find(|(_, it)| !it.watched).unwrap();
    bench.silence(name);
    bench.run(5000);
    assert_eq!(bench.life(name), Life::Alive);
    let ticket = |name: &str| Ticket::new(&rules().seed, name);
    let others = status.keys().filter(|other| *other != name);
    let watchers = duty::watchers(ticket(name), others.map(|other| (ticket(other), other.clone())));
    for (count, watcher) in watchers.iter().enumerate() {
        assert_eq!(bench.life(name) == Life::Dead, count >= 3, "{count} of five");
        bench.word(watcher, name, Finding::Silent);
    }
    bench.run(1000);
    bench.answer(name, 5);
    watchers.iter().for_each(|watcher| bench.word(watcher, name, Finding::Answers));
    bench.run(2500);
    assert_eq!(bench.life(name), Life::Alive, "own probes find it again");
}

#[test]
fn a_node_cut_off_from_a_large_cluster_looks_at_everybody_and_is_isolated() {
    let names: Vec<String> =
        ["a".to_owned()].into_iter().chain((0..49).map(|n| format!("n{n}"))).collect();
    let mut bench = Bench::new(&names.join(" "));
    bench.run(2000);
    bench.gateway = Some(false);
    bench.answering.clear();
    bench.run(1000);
    assert!(bench.watch.isolated());
    assert_eq!(bench.lives(Life::Dead), "");
}

#[test]
fn forged_repeated_and_misplaced_answers_do_not_count() {
    let mut bench = Bench::new("a b");
    bench.silence("b");
    bench.watch.decide(bench.now);
    let mut nonce = || 42;
    bench.watch.on_timer(bench.now, &mut nonce);
    let (to, probe) = bench.watch.take_probes()[0];
    let mut answer = probe.to_vec();
    answer[10] = kind::PROBE_ANSWER;
    let mut forged = answer.clone();
    forged[24] ^= 1;
    let now = bench.now;
    assert!(!bench.watch.on_packet(to, &forged, now), "another nonce");
    assert!(!bench.watch.on_packet(address("c"), &answer, now), "another address");
    assert!(!bench.watch.on_packet(to, &answer[..40], now), "cut short");
    assert!(bench.watch.on_packet(to, &answer, now));
    assert!(!bench.watch.on_packet(to, &answer, now), "again");
}

#[test]
fn skew_is_told_with_both_sides_and_the_remedy() {
    let status = NodeStatus {
        layout: Some(9),
        other_version: Some(8),
        other_seed: true,
        ..NodeStatus::default()
    };
    let problems = status.problems("b", "a");
    assert_eq!(problems.len(), 3);
    for (problem, theirs) in problems.iter().zip(["version 8", "layout 9", "another seed"]) {
        assert_eq!(problem.object, "Node/b");
        assert!(problem.message.contains(theirs) && problem.message.contains(" a"), "{problem:?}");
    }
    assert_eq!(NodeStatus::default().problems("b", "a"), []);
}

#[test]
fn nodes_that_are_configured_later_or_removed_leave_the_others_as_they_are() {
    let mut bench = Bench::settled("a b c");
    bench.watch.on_report("d", "c", Report { finding: Finding::Silent, void: 0 });
    bench.watch.set_nodes(&cluster("a c d"));
    bench.answer("d", 5);
    assert_eq!((bench.lives(Life::Alive).as_str(), bench.watch.ready()), ("ac", true));
    bench.run(10);
    assert_eq!(bench.lives(Life::Alive), "acd");
    assert_eq!(bench.watch.members(bench.now)["d"].unreachable, ["c".to_owned()].into());
}
