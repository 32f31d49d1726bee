//! What gossip costs a member of a group of 10, 100 and 1,000, in virtual time: the agents' own state
//! machines and seals, without sockets and processes.
//!
//! Bytes are those of sealed datagrams, without headers of UDP and IP. CPU is what all calls of one agent take on
//! this machine, sealing among them, per second of virtual time.

use super::Goal;
use anyhow::{Context, Result};
use serde::Serialize;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    net::SocketAddr,
    time::{Duration, Instant},
};
use weir::membership::{
    gossip::Gossip,
    seal::{Keys, OVERHEAD, Opened, Seal},
    topic::{Key, Topic},
};

const SIZES: [usize; 3] = [10, 100, 1000];
/// For members to find each other and to fall silent about it.
const WARM_UP: Duration = Duration::from_secs(40);
const MEASURED: Duration = Duration::from_secs(30);
const LATENCY: Duration = Duration::from_micros(200);
/// Goal: the cost of the largest group beside that of the smallest.
const FLATNESS: f64 = 4.0;

/// `weir.bench.gossip/v1`.
#[derive(Debug, Serialize)]
pub struct GossipReport {
    pub schema: &'static str,
    pub sizes: Vec<Size>,
    pub goals: Vec<Goal>,
}

/// One group; everything per member.
#[derive(Debug, Serialize)]
pub struct Size {
    pub members: usize,
    /// Until everybody hears everybody, all having started at once.
    pub joined_seconds: f64,
    pub idle: Cost,
    /// One member of the group changes an entry every second.
    pub one_change_a_second: Cost,
    /// Until the last member knows of an urgent change.
    pub urgent_ms: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cost {
    pub datagrams_per_second: f64,
    pub bytes_per_second: f64,
    /// Microseconds per second.
    pub cpu_us_per_second: f64,
}

pub fn run(json: bool) -> Result<GossipReport> {
    let sizes = SIZES.iter().map(|members| measure(*members)).collect::<Result<Vec<_>>>()?;
    let most = |cost: fn(&Size) -> f64| sizes.iter().map(cost).fold(0.0, f64::max);
    let growth = most(|it| it.idle.bytes_per_second) / sizes[0].idle.bytes_per_second;
    let goals = vec![
        Goal::at_most("idle bytes beside those of ten members", FLATNESS, growth),
        Goal::at_most("idle bytes/s per member", 1_000.0, most(|it| it.idle.bytes_per_second)),
        Goal::at_most("urgent change known to all, ms", 100.0, most(|it| it.urgent_ms)),
    ];
    let report = GossipReport { schema: "weir.bench.gossip/v1", sizes, goals };
    super::show(&report, json, print)?;
    Ok(report)
}

fn print(report: &GossipReport) {
    println!("Per member, in virtual time: idle | one change a second in the group");
    for Size { members, joined_seconds, idle, one_change_a_second: busy, urgent_ms } in
        &report.sizes
    {
        println!(
            "{members:5} members: {:6.1} datagrams/s {:7.0} bytes/s {:6.0} µs/s | {:6.1} {:7.0} {:6.0} | \
             joined in {joined_seconds:.1} s, urgent change known after {urgent_ms:.1} ms",
            idle.datagrams_per_second,
            idle.bytes_per_second,
            idle.cpu_us_per_second,
            busy.datagrams_per_second,
            busy.bytes_per_second,
            busy.cpu_us_per_second,
        );
    }
    for goal in &report.goals {
        let met = if goal.met { "met" } else { "MISSED" };
        println!("{met}: {} at most {} (measured {:.1})", goal.name, goal.at_most, goal.measured);
    }
}

fn measure(members: usize) -> Result<Size> {
    let mut group = Group::new(members)?;
    let start = group.now;
    while !group.agents.iter().all(|(it, _)| it.heard().len() == members - 1) {
        group.run(Duration::from_millis(500));
    }
    let joined_seconds = (group.now - start).as_secs_f64();
    group.run(WARM_UP);
    let idle = group.cost(|_| {});
    let one_change_a_second = group.cost(|group| group.publish(group.turn, false));
    group.publish(1, true);
    let (published, first) = (group.now, key(1));
    let version = group.agents[1].0.version(&name(1), &first);
    let knows = |agent: &Gossip| agent.version(&name(1), &first) == version;
    while !group.agents.iter().all(|(it, _)| knows(it)) {
        group.run(Duration::from_millis(1));
    }
    let urgent_ms = (group.now - published).as_secs_f64() * 1e3;
    Ok(Size { members, joined_seconds, idle, one_change_a_second, urgent_ms })
}

/// A datagram under way: when it arrives, to whom, from whom, its bytes.
type Flying = Reverse<(Instant, usize, usize, Vec<u8>)>;

struct Group {
    now: Instant,
    agents: Vec<(Gossip, Seal)>,
    flying: BinaryHeap<Flying>,
    timers: BTreeSet<(Instant, usize)>,
    /// By agent, as in `timers`.
    due: Vec<Option<Instant>>,
    busy: Duration,
    turn: usize,
}

impl Group {
    fn new(members: usize) -> Result<Self> {
        let now = Instant::now();
        let nodes: BTreeMap<_, _> = (0..members).map(|it| (name(it), vec![address(it)])).collect();
        let agent = |index: usize| {
            let mut gossip = Gossip::new(&name(index), 1, index as u64, now);
            gossip.set_nodes(&nodes, &[], now);
            let mut random = [0; 32];
            random[..8].copy_from_slice(&(index as u64 + 1).to_be_bytes());
            let keys = Keys::new(&[[7; 32]]).context("no key")?;
            Ok((gossip, Seal::new(keys, &random, now)))
        };
        let agents = (0..members).map(agent).collect::<Result<Vec<_>>>()?;
        let (flying, timers) = (BinaryHeap::new(), (0..members).map(|it| (now, it)).collect());
        let (due, busy) = (vec![Some(now); members], Duration::ZERO);
        let mut group = Self { now, agents, flying, timers, due, busy, turn: 0 };
        (0..members).for_each(|index| group.publish(index, false));
        Ok(group)
    }

    fn publish(&mut self, index: usize, urgent: bool) {
        let value = self.now.elapsed().as_nanos().to_be_bytes();
        let (agent, _) = &mut self.agents[index];
        agent.publish(key(index), Some(value.to_vec()), urgent, self.now);
        self.turn = (index + 1) % self.agents.len();
        self.collect(index);
    }

    fn cost(&mut self, each_second: impl Fn(&mut Self)) -> Cost {
        let (before, busy) = (self.sent(), self.busy);
        for _ in 0..MEASURED.as_secs() {
            each_second(self);
            self.run(Duration::from_secs(1));
        }
        let per = MEASURED.as_secs_f64() * self.agents.len() as f64;
        let after = self.sent();
        let datagrams = (after.0 - before.0) as f64;
        Cost {
            datagrams_per_second: datagrams / per,
            bytes_per_second: ((after.1 - before.1) as f64 + datagrams * OVERHEAD as f64) / per,
            cpu_us_per_second: (self.busy - busy).as_secs_f64() * 1e6 / per,
        }
    }

    fn sent(&self) -> (u64, u64) {
        let counts = self.agents.iter().map(|(agent, _)| agent.counts());
        counts.fold((0, 0), |sum, it| (sum.0 + it.datagrams, sum.1 + it.bytes))
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let timer = self.timers.first().map(|it| it.0);
            let arrival = self.flying.peek().map(|Reverse(it)| it.0);
            let Some(next) = timer.into_iter().chain(arrival).min().filter(|it| *it <= end) else {
                break;
            };
            self.now = self.now.max(next);
            let start = Instant::now();
            let index = match (arrival, self.flying.pop()) {
                (Some(at), Some(Reverse((_, to, from, bytes)))) if at == next => {
                    self.receive(to, from, &bytes);
                    to
                }
                (_, flying) => {
                    self.flying.extend(flying);
                    let Some((_, index)) = self.timers.pop_first() else { break };
                    self.due[index] = None;
                    self.agents[index].0.on_timer(self.now);
                    index
                }
            };
            self.collect(index);
            self.busy += start.elapsed();
        }
        self.now = end;
    }

    fn receive(&mut self, to: usize, from: usize, bytes: &[u8]) {
        let (agent, seal) = &mut self.agents[to];
        match seal.open(address(from), bytes, self.now) {
            Opened::Plain(list) => {
                for plain in list {
                    agent.on_datagram(address(from), &plain, self.now).expect("agents are sound");
                }
            }
            Opened::Reply(reply) => {
                self.flying.push(Reverse((self.now + LATENCY, from, to, reply)));
            }
            Opened::Held => {}
            Opened::Ignored(why) => panic!("ignored: {why:?}"),
        }
    }

    fn collect(&mut self, index: usize) {
        let (agent, seal) = &mut self.agents[index];
        for (to, plain) in agent.take_datagrams() {
            let sealed = seal.seal(&plain, self.now);
            self.flying.push(Reverse((self.now + LATENCY, number(to), index, sealed)));
        }
        agent.take_changes();
        for pull in agent.take_pulls() {
            let asked = number(pull.address);
            let (other, _) = &mut self.agents[asked];
            let mut chunks = Vec::new();
            if let Some(mut serving) = other.serve(&pull.request, self.now) {
                chunks.extend(std::iter::from_fn(|| other.next_chunk(&mut serving)));
            }
            let (agent, _) = &mut self.agents[index];
            for chunk in chunks {
                agent.on_chunk(&pull.node, &chunk, self.now).expect("agents are sound");
            }
            agent.on_pulled(&pull.node, self.now);
            self.reschedule(asked);
        }
        self.reschedule(index);
    }

    fn reschedule(&mut self, index: usize) {
        let due = self.agents[index].0.next_timer();
        if self.due[index] != due {
            self.due[index].map(|at| self.timers.remove(&(at, index)));
            due.map(|at| self.timers.insert((at, index)));
            self.due[index] = due;
        }
    }
}

fn key(index: usize) -> Key {
    Key::new(Topic::CARD, index.to_be_bytes())
}

fn name(index: usize) -> String {
    format!("node-{index}")
}

fn address(index: usize) -> SocketAddr {
    let [.., high, low] = index.to_be_bytes();
    SocketAddr::from(([10, 0, high, low], 6085))
}

fn number(address: SocketAddr) -> usize {
    match address {
        SocketAddr::V4(it) => {
            let [.., high, low] = it.ip().octets();
            usize::from(high) << 8 | usize::from(low)
        }
        SocketAddr::V6(_) => unreachable!("all addresses are of `address`"),
    }
}
