//! A cluster in virtual time: the agents' own state machines, with a network, data planes, gateways and
//! schedulers that fail as told. The same seed gives the same run.
//!
//! Nothing of it runs in the agent: tests hold membership to its promises with it, and the bench counts
//! what membership costs in clusters that no lab holds.

mod cost;
mod site;

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeSet, BinaryHeap},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use self::site::{Parcel, Process, Site};
use super::{machine::Machine, topic::Change, watch::Rules};
use crate::model::{HoldDowns, Life, Members};

pub use self::cost::{Cost, Load, measure};
pub use self::site::Traffic;

/// How the network and the machines behave.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// A packet needs this long, and up to as much again at random.
    pub latency: Duration,
    /// Share of packets lost.
    pub loss: f64,
    /// Every agent is kept from running for up to this long, every two seconds or so.
    pub stalls: Duration,
}

impl Default for Weather {
    fn default() -> Self {
        Self { latency: Duration::from_micros(100), loss: 0.0, stalls: Duration::ZERO }
    }
}

/// Between two stalls of an agent, at most.
const STALL_EVERY: Duration = Duration::from_secs(4);
/// Agents that start at once do so within this time.
const START_SPREAD: Duration = Duration::from_millis(100);

enum Event {
    Arrives { from: usize, to: usize, parcel: Parcel },
    Timer { site: usize },
    Gateway { site: usize, answered: bool },
    Stall { site: usize },
    StallEnds { site: usize },
}

struct Due {
    at: Instant,
    number: u64,
    event: Event,
}

impl Due {
    fn key(&self) -> (Instant, u64) {
        (self.at, self.number)
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// One node's view of another has changed.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    pub at: Instant,
    pub observer: usize,
    pub subject: usize,
    pub life: Life,
}

/// The cluster.
pub struct Sim {
    pub now: Instant,
    pub weather: Weather,
    /// Changes of views since this was cleared last.
    pub turns: Vec<Turn>,
    sites: Vec<Site>,
    queue: BinaryHeap<Reverse<Due>>,
    events: u64,
    /// Packets from the first to the second are lost.
    cuts: BTreeSet<(usize, usize)>,
    rng: StdRng,
}

pub fn name(index: usize) -> String {
    format!("node-{index:04}")
}

fn address(index: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + index as u32))
}

fn index_of(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(address) => (u32::from(address) - 0x0a00_0000) as usize,
        IpAddr::V6(_) => unreachable!("nodes of the simulation have IPv4 addresses"),
    }
}

/// What all agents of the simulation run with: the defaults.
pub fn rules() -> Rules {
    Rules {
        interval: Duration::from_millis(100),
        fall: 3,
        rise: 3,
        vni: 7,
        seed: *b"sixteen bytes ok",
        seed_tag: *b"seed-tag",
        hold_downs: HoldDowns::default(),
    }
}

impl Sim {
    /// `count` nodes that are off.
    pub fn new(count: usize, seed: u64) -> Self {
        let now = Instant::now();
        Self {
            now,
            weather: Weather::default(),
            turns: Vec::new(),
            sites: (0..count).map(|_| Site::new(now)).collect(),
            queue: BinaryHeap::new(),
            events: 0,
            cuts: BTreeSet::new(),
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// `count` nodes that have run for three seconds.
    pub fn settled(count: usize, seed: u64) -> Self {
        let mut sim = Self::new(count, seed);
        (0..count).for_each(|site| sim.power_on(site));
        sim.run(Duration::from_secs(3));
        sim.turns.clear();
        sim
    }

    /// A node boots, its agent starts.
    pub fn power_on(&mut self, site: usize) {
        let boot_id = self.rng.random();
        self.sites[site].boot(boot_id);
        self.start_agent(site);
    }

    pub fn power_off(&mut self, site: usize) {
        self.kill_agent(site);
        self.sites[site].powered = false;
    }

    /// A new life of an agent begins, within [`START_SPREAD`].
    pub fn start_agent(&mut self, site: usize) {
        let random = self.rng.random();
        let at = self.now + self.up_to(START_SPREAD);
        let nodes = (0..self.sites.len()).map(|it| (name(it), vec![address(it)])).collect();
        self.sites[site].start(site, &nodes, random, at);
        self.schedule(at, Event::Timer { site });
        if !self.weather.stalls.is_zero() {
            self.schedule_stall(site);
        }
    }

    /// As SIGKILL does.
    pub fn kill_agent(&mut self, site: usize) {
        self.sites[site].pause(Process::Gone, self.now);
        self.sites[site].machine = None;
    }

    /// As SIGSTOP does.
    pub fn stop_agent(&mut self, site: usize) {
        self.sites[site].pause(Process::Stopped, self.now);
    }

    /// As SIGCONT does.
    pub fn resume_agent(&mut self, site: usize) {
        self.sites[site].process = Process::Runs;
        self.wake(site);
    }

    pub fn set_gateway(&mut self, site: usize, answers: bool) {
        self.sites[site].gateway = answers;
    }

    /// Nothing from any of `from` reaches any of `to` any more.
    pub fn cut(&mut self, from: &[usize], to: &[usize]) {
        self.cuts.extend(from.iter().flat_map(|from| to.iter().map(|to| (*from, *to))));
    }

    /// Nothing passes between both groups any more.
    pub fn part(&mut self, one: &[usize], other: &[usize]) {
        self.cut(one, other);
        self.cut(other, one);
    }

    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    /// Gives an agent that runs something to do.
    pub fn tell(&mut self, site: usize, act: impl FnOnce(&mut Machine, Instant)) {
        if let Some(machine) = &mut self.sites[site].machine {
            act(machine, self.now);
            self.poll(site);
        }
    }

    /// The agent of a node, if it has one.
    pub fn machine(&self, site: usize) -> Option<&Machine> {
        self.sites[site].machine.as_ref()
    }

    /// What a node's agent holds; None: it has none.
    pub fn members(&self, site: usize) -> Option<&Arc<Members>> {
        self.machine(site).map(Machine::members)
    }

    pub fn life(&self, observer: usize, subject: usize) -> Life {
        let life = |members: &Arc<Members>| members.nodes.get(&name(subject)).map(|it| it.life);
        self.members(observer).and_then(life).unwrap_or_default()
    }

    pub fn traffic(&self, site: usize) -> Traffic {
        self.sites[site].traffic
    }

    /// What other tasks of a node would have been told since the last call.
    pub fn take_changes(&mut self, site: usize) -> Vec<Change> {
        std::mem::take(&mut self.sites[site].changes)
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.queue.peek().is_some_and(|Reverse(due)| due.at <= end) {
            let Some(Reverse(due)) = self.queue.pop() else { break };
            self.now = due.at;
            self.happen(due.event);
        }
        self.now = end;
    }

    /// Lets time pass until it is so, at a millisecond's resolution; None: it isn't so within `most`.
    pub fn until(&mut self, most: Duration, so: impl Fn(&Self) -> bool) -> Option<Duration> {
        let begin = self.now;
        while !so(self) {
            if self.now >= begin + most {
                return None;
            }
            self.run(Duration::from_millis(1));
        }
        Some(self.now - begin)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrives { from, to, parcel } => self.arrive(from, to, parcel),
            Event::Timer { site } if self.sites[site].is_due(self.now) => self.wake(site),
            Event::Timer { .. } => {}
            Event::Gateway { site, answered } => {
                self.tell(site, |machine, now| machine.on_gateway(answered, now));
            }
            Event::Stall { site } => {
                if self.sites[site].process == Process::Runs {
                    self.sites[site].pause(Process::Stalled, self.now);
                    let end = self.now + self.up_to(self.weather.stalls);
                    self.schedule(end, Event::StallEnds { site });
                }
                self.schedule_stall(site);
            }
            Event::StallEnds { site } => {
                if self.sites[site].process == Process::Stalled {
                    self.resume_agent(site);
                }
            }
        }
    }

    fn schedule(&mut self, at: Instant, event: Event) {
        self.events += 1;
        self.queue.push(Reverse(Due { at, number: self.events, event }));
    }

    fn schedule_stall(&mut self, site: usize) {
        let at = self.now + self.up_to(STALL_EVERY);
        self.schedule(at, Event::Stall { site });
    }

    fn up_to(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.rng.random())
    }
}

/// The time that holds for `share` of the sorted times.
pub fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).ceil() as usize).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
