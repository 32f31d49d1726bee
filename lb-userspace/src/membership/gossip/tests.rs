use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::membership::topic::Topic;

const KEY: &str = "key";

fn key(name: &str) -> Key {
    Key::new(Topic::CARD, name)
}

fn name(index: usize) -> String {
    format!("node-{index}")
}

fn address(index: usize) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + index as u32)), 7946)
}

/// Agents in one process with one clock, and a network that can lose, delay and separate.
struct Lab {
    now: Instant,
    agents: Vec<Option<Gossip>>,
    flying: Vec<(Instant, SocketAddr, SocketAddr, Vec<u8>)>,
    /// Datagrams between agents of different sides are lost.
    side: Vec<u8>,
    loss: f64,
    rng: StdRng,
    changes: Vec<Vec<Change>>,
    longest: usize,
}

impl Lab {
    const LATENCY: Duration = Duration::from_micros(200);

    fn new(count: usize) -> Self {
        let now = Instant::now();
        let mut lab = Self {
            now,
            agents: Vec::new(),
            flying: Vec::new(),
            side: vec![0; count],
            loss: 0.0,
            rng: StdRng::seed_from_u64(7),
            changes: vec![Vec::new(); count],
            longest: 0,
        };
        lab.agents = (0..count).map(|_| None).collect();
        (0..count).for_each(|index| lab.start(index, 1));
        lab
    }

    fn start(&mut self, index: usize, incarnation: u64) {
        let mut agent =
            Gossip::new(&name(index), incarnation, index as u64 * 1000 + incarnation, self.now);
        let nodes = (0..self.agents.len()).map(|it| (name(it), vec![address(it)])).collect();
        agent.set_nodes(&nodes, &[], self.now);
        self.agents[index] = Some(agent);
        self.changes[index].clear();
    }

    fn agent(&mut self, index: usize) -> &mut Gossip {
        self.agents[index].as_mut().unwrap()
    }

    fn publish(&mut self, index: usize, entry: &str, value: &str, urgent: bool) {
        let now = self.now;
        let value = (!value.is_empty()).then(|| value.as_bytes().to_vec());
        self.agent(index).publish(key(entry), value, urgent, now);
    }

    fn value(&self, at: usize, of: usize, entry: &str) -> Option<String> {
        let agent = self.agents[at].as_ref()?;
        let value = agent.get(&name(of), &key(entry))?;
        Some(String::from_utf8(value.to_vec()).unwrap())
    }

    fn collect(&mut self) {
        for index in 0..self.agents.len() {
            let Some(agent) = &mut self.agents[index] else { continue };
            let (sent, changes) = (agent.take_datagrams(), agent.take_changes());
            for (to, bytes) in sent {
                self.longest = self.longest.max(bytes.len());
                self.flying.push((self.now + Self::LATENCY, address(index), to, bytes));
            }
            self.changes[index].extend(changes);
            for pull in self.agent(index).take_pulls() {
                self.stream(index, &pull);
            }
        }
    }

    /// A stream that takes no time.
    fn stream(&mut self, asker: usize, pull: &Pull) {
        let now = self.now;
        let asked = (0..self.agents.len()).find(|it| address(*it) == pull.address).unwrap();
        let together = self.side[asker] == self.side[asked];
        if let Some(agent) = self.agents[asked].as_mut().filter(|_| together)
            && let Some(mut serving) = agent.serve(&pull.request, now)
        {
            let mut chunks = Vec::new();
            while let Some(chunk) = agent.next_chunk(&mut serving) {
                assert!(chunk.len() <= 60 << 10);
                chunks.push(chunk);
            }
            let asker = self.agent(asker);
            chunks.iter().for_each(|chunk| asker.on_chunk(&pull.node, chunk, now).unwrap());
        }
        self.agent(asker).on_pulled(&pull.node, now);
        let changes = self.agent(asker).take_changes();
        self.changes[asker].extend(changes);
    }

    fn step(&mut self) {
        self.collect();
        let flying = self.flying.iter().map(|it| it.0).min();
        let timers = self.agents.iter().flatten().filter_map(Gossip::next_timer).min();
        self.now = self.now.max(flying.into_iter().chain(timers).min().unwrap());
        let now = self.now;
        let due: Vec<_> = self.flying.extract_if(.., |it| it.0 <= now).collect();
        for (_, from, to, bytes) in due {
            let at = |address: SocketAddr| match address.ip() {
                IpAddr::V4(ip) => u32::from(ip) as usize - 0x0a00_0000,
                IpAddr::V6(_) => unreachable!(),
            };
            let (sender, receiver) = (at(from), at(to));
            let lost = self.loss > 0.0 && self.rng.random_bool(self.loss);
            if lost || self.side[sender] != self.side[receiver] {
                continue;
            }
            if let Some(agent) = &mut self.agents[receiver] {
                agent.on_datagram(from, &bytes, now).unwrap();
            }
        }
        for agent in self.agents.iter_mut().flatten().filter(|it| it.next_timer() <= Some(now)) {
            agent.on_timer(now);
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
        self.collect();
    }

    /// Runs until it is so; returns how long it took.
    fn until(&mut self, what: &str, so: impl Fn(&Self) -> bool) -> Duration {
        let (start, mut checked) = (self.now, self.now);
        while !so(self) {
            assert!(self.now < start + Duration::from_secs(60), "not within 60 s: {what}");
            while self.now < checked + Duration::from_millis(1) {
                self.step();
            }
            checked = self.now;
        }
        self.now - start
    }

    fn until_all_heard(&mut self) -> Duration {
        self.until("all hear all", |lab| {
            let count = lab.agents.iter().flatten().count();
            lab.agents.iter().flatten().all(|agent| agent.heard().len() == count - 1)
        })
    }

    fn all_know(&self, of: usize, entry: &str, value: Option<&str>) -> bool {
        (0..self.agents.len())
            .filter(|it| self.agents[*it].is_some())
            .all(|at| self.value(at, of, entry).as_deref() == value)
    }
}

#[test]
fn agents_started_together_hear_each_other_within_two_seconds() {
    for count in [2, 3, 10, 50] {
        let took = Lab::new(count).until_all_heard();
        println!("{count} agents hear each other after {took:?}");
        assert!(took < Duration::from_secs(if count > 10 { 10 } else { 2 }), "{count}: {took:?}");
    }
}

#[test]
fn urgent_change_reaches_ten_members_at_once_and_the_others_by_passing_on() {
    // The lab looks only when something happens, a few ms late.
    for (count, most) in [(10, 10), (50, 50)] {
        let mut lab = Lab::new(count);
        lab.until_all_heard();
        lab.publish(0, KEY, "value", true);
        let took = lab.until("known", |lab| lab.all_know(0, KEY, Some("value")));
        println!("urgent change known to {count} after {took:?}");
        assert!(took <= Duration::from_millis(most), "{count}: {took:?}");
    }
}

#[test]
fn changes_reach_all_in_spite_of_loss() {
    let mut lab = Lab::new(20);
    lab.loss = 0.3;
    lab.until_all_heard();
    for round in 0..5 {
        for index in 0..20 {
            lab.publish(index, KEY, &format!("{round}"), round % 2 == 0);
        }
        lab.run(Duration::from_millis(50));
    }
    let took = lab.until("known", |lab| (0..20).all(|of| lab.all_know(of, KEY, Some("4"))));
    println!("20 changes known to 20 with 30 % loss after {took:?}");
    assert!(lab.longest <= PLAIN_MOST);
}

#[test]
fn entry_that_ended_is_told_once_and_stays_gone() {
    let mut lab = Lab::new(3);
    lab.until_all_heard();
    lab.publish(0, KEY, "value", false);
    lab.until("known", |lab| lab.all_know(0, KEY, Some("value")));
    let version = lab.agent(1).version(&name(0), &key(KEY)).unwrap();
    lab.publish(0, KEY, "", false);
    lab.until("gone", |lab| lab.all_know(0, KEY, None));
    assert!(lab.agent(1).version(&name(0), &key(KEY)).unwrap() > version);
    lab.run(Duration::from_secs(3));
    let values: Vec<_> = lab.changes[1].iter().map(|it| it.value.is_some()).collect();
    assert_eq!(values, [true, false]);
}

#[test]
fn agent_that_dies_is_not_heard_and_its_word_stays() {
    let mut lab = Lab::new(5);
    lab.until_all_heard();
    lab.publish(4, KEY, "value", false);
    lab.until("known", |lab| lab.all_know(4, KEY, Some("value")));
    lab.agents[4] = None;
    let took = lab.until_all_heard();
    println!("dead agent no longer heard after {took:?}");
    assert!(lab.all_know(4, KEY, Some("value")));
}

#[test]
fn restarted_agent_keeps_what_it_says_again_and_ends_the_rest() {
    let mut lab = Lab::new(3);
    lab.until_all_heard();
    lab.publish(0, "kept", "value", false);
    lab.publish(0, "forgotten", "value", false);
    lab.until("known", |lab| lab.all_know(0, "forgotten", Some("value")));
    let version = lab.agent(1).version(&name(0), &key("kept"));
    lab.agents[0] = None;
    lab.changes[1].clear();
    lab.start(0, 2);
    lab.publish(0, "kept", "value", false);
    lab.run(SETTLE - Duration::from_secs(1));
    assert_eq!(lab.value(1, 0, "forgotten").as_deref(), Some("value"), "not yet known to be over");
    assert!(
        lab.agent(1).version(&name(0), &key("kept")) > version,
        "versions rise across restarts"
    );
    lab.until("over", |lab| lab.value(1, 0, "forgotten").is_none());
    assert!(lab.all_know(0, "kept", Some("value")));
    assert!(lab.changes[1].iter().all(|it| it.key == key("forgotten") || it.value.is_some()));
}

#[test]
fn agent_whose_clock_was_set_back_is_heard_again() {
    let mut lab = Lab::new(3);
    lab.until_all_heard();
    lab.agents[0] = None;
    lab.start(0, 1000);
    lab.publish(0, KEY, "before", false);
    lab.until("known", |lab| lab.all_know(0, KEY, Some("before")));
    lab.agents[0] = None;
    lab.start(0, 5);
    lab.publish(0, KEY, "after", false);
    lab.until("known", |lab| lab.all_know(0, KEY, Some("after")));
    lab.until_all_heard();
}

#[test]
fn sides_of_a_healed_partition_learn_what_they_missed() {
    let mut lab = Lab::new(6);
    lab.until_all_heard();
    lab.side = vec![0, 0, 0, 1, 1, 1];
    lab.until("both sides alone", |lab| {
        lab.agents.iter().flatten().all(|it| it.heard().len() == 2)
    });
    (0..6).for_each(|index| lab.publish(index, KEY, "value", true));
    lab.run(Duration::from_secs(5));
    assert_eq!(lab.value(0, 3, KEY), None);
    lab.side = vec![0; 6];
    let heard = lab.until_all_heard();
    let took = lab.until("known", |lab| (0..6).all(|of| lab.all_know(of, KEY, Some("value"))));
    println!("healed: heard after {heard:?}, all known {took:?} later");
}

#[test]
fn joiner_pulls_what_all_others_said() {
    let mut lab = Lab::new(4);
    lab.agents[3] = None;
    lab.until_all_heard();
    for index in 0..3 {
        (0..500).for_each(|entry| lab.publish(index, &format!("entry {entry}"), "value", false));
    }
    lab.run(Duration::from_secs(5));
    lab.start(3, 1);
    let took = lab.until("joined", |lab| lab.changes[3].len() == 1500);
    println!("joiner has 1,500 entries after {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn many_changes_at_once_are_pulled_and_flood_nobody() {
    let mut lab = Lab::new(10);
    lab.until_all_heard();
    let before = lab.agent(0).counts().datagrams;
    (0..20_000).for_each(|entry| {
        lab.publish(0, &format!("entry {entry}"), "0123456789012345678901234567890123456789", false)
    });
    let took = lab.until("known", |lab| lab.changes[1..].iter().all(|it| it.len() == 20_000));
    println!("20,000 changes known to 10 after {took:?}");
    assert!(lab.agent(0).counts().datagrams - before < 500);
}

#[test]
fn audience_hears_what_is_said_to_it_and_nobody_else_does() {
    let mut lab = Lab::new(5);
    lab.until_all_heard();
    let nodes =
        |list: &[usize]| list.iter().map(|it| Arc::from(name(*it))).collect::<BTreeSet<_>>();
    let now = lab.now;
    lab.loss = 0.5;
    lab.agent(0).publish_to("pool", &nodes(&[1, 2]), key("a"), Some(b"1".to_vec()), now);
    lab.until("told", |lab| [1, 2].iter().all(|at| lab.value(*at, 0, "a").is_some()));
    let now = lab.now;
    lab.agent(0).publish_to("pool", &nodes(&[2, 3]), key("b"), Some(b"2".to_vec()), now);
    lab.until("new member told", |lab| {
        lab.value(3, 0, "a").is_some() && lab.value(2, 0, "b").is_some()
    });
    lab.until("former member drops it", |lab| lab.value(1, 0, "a").is_none());
    assert_eq!(lab.value(4, 0, "a"), None);
    let now = lab.now;
    lab.agent(0).end_audience("pool", now);
    lab.until("ended", |lab| [2, 3].iter().all(|at| lab.value(*at, 0, "a").is_none()));
    let now = lab.now;
    lab.agent(0).publish_to("pool", &nodes(&[2]), key("c"), Some(b"3".to_vec()), now);
    lab.until("said again", |lab| lab.value(2, 0, "c").is_some());
}

#[test]
fn nodes_that_are_not_configured_are_no_members() {
    let mut lab = Lab::new(4);
    let few = (0..3).map(|it| (name(it), vec![address(it)])).collect();
    let now = lab.now;
    lab.agent(0).set_nodes(&few, &[], now);
    lab.publish(3, KEY, "value", true);
    lab.run(Duration::from_secs(10));
    assert_eq!(lab.agent(0).heard().len(), 2);
    assert_eq!(lab.value(0, 3, KEY), None);
    assert!(lab.agent(0).counts().strangers > 0);
    let now = lab.now;
    let all = (0..4).map(|it| (name(it), vec![address(it)])).collect();
    lab.agent(0).set_nodes(&all, &[], now);
    lab.until_all_heard();
    lab.until("known", |lab| lab.all_know(3, KEY, Some("value")));
    let now = lab.now;
    lab.agent(0).set_nodes(&few, &[], now);
    let gone = lab.agent(0).take_changes();
    assert_eq!(gone.iter().map(|it| it.value.is_none()).collect::<Vec<_>>(), [true]);
}

#[test]
fn seed_alone_is_enough_to_be_found() {
    let mut lab = Lab::new(2);
    let now = lab.now;
    let nowhere = |own: usize, other| [(name(own), vec![]), (name(other), vec![])].into();
    lab.agent(0).set_nodes(&nowhere(0, 1), &[address(1)], now);
    lab.agent(1).set_nodes(&nowhere(1, 0), &[], now);
    lab.until_all_heard();
}

#[test]
fn limits_refuse_and_count() {
    let mut lab = Lab::new(1);
    let now = lab.now;
    let agent = lab.agent(0);
    agent.publish(key("long"), Some(vec![0; 16 << 10]), false, now);
    assert_eq!(agent.counts().refused, 0);
    agent.publish(key("long"), Some(vec![0; (16 << 10) + 1]), false, now);
    agent.publish(Key::new(Topic::CARD, vec![0; 256]), Some(Vec::new()), false, now);
    assert_eq!((agent.counts().refused, agent.size().0), (2, 1));
    assert_eq!(agent.get(&name(0), &key("long")).unwrap().len(), 16 << 10, "the old value stays");
}

#[test]
fn idle_cost_per_member_does_not_grow_with_the_group() {
    let mut costs = Vec::new();
    for count in [10, 40] {
        let mut lab = Lab::new(count);
        lab.until_all_heard();
        lab.run(Duration::from_secs(20));
        let cost = |lab: &mut Lab| {
            let sum =
                |lab: &Lab| lab.agents.iter().flatten().map(|it| it.counts().bytes).sum::<u64>();
            let before = sum(lab);
            lab.run(Duration::from_secs(60));
            (sum(lab) - before) / 60 / count as u64
        };
        let idle = cost(&mut lab);
        lab.publish(0, KEY, "value", false);
        let busy = cost(&mut lab);
        println!("{count} members: {idle} bytes/s each idle, {busy} with one change in a minute");
        costs.push(idle);
    }
    assert!(costs.iter().all(|cost| *cost < 250), "{costs:?}");
}

/// Datagrams of a small group, as agents really send them.
fn recorded() -> Vec<Vec<u8>> {
    let mut lab = Lab::new(3);
    lab.publish(1, KEY, "value", true);
    let mut recorded = Vec::new();
    for _ in 0..300 {
        lab.step();
        recorded.extend(lab.flying.iter().filter(|it| it.2 == address(0)).map(|it| it.3.clone()));
    }
    recorded
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn members_gone_mad_harm_nobody(
        picks in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)),
            1..20,
        ),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        static RECORDED: std::sync::LazyLock<Vec<Vec<u8>>> = std::sync::LazyLock::new(recorded);
        let mut lab = Lab::new(3);
        let mut now = lab.now;
        let agent = lab.agent(0);
        let _malformed = agent.on_datagram(address(1), &noise, now);
        let _malformed = agent.on_chunk(&name(1), &noise, now);
        for (pick, changes) in picks {
            let mut bytes = pick.get(&RECORDED).clone();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let _malformed = agent.on_datagram(address(1), &bytes, now);
            now += Duration::from_millis(100);
            agent.on_timer(now);
            for pull in agent.take_pulls() {
                let _malformed = agent.on_chunk(&pull.node, &bytes, now);
                agent.on_pulled(&pull.node, now);
            }
            prop_assert!(agent.take_datagrams().iter().all(|it| it.1.len() <= PLAIN_MOST));
            agent.take_changes();
        }
    }
}
