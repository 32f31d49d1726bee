//! One node of the simulation: its data plane, its agent and what both send.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::{
    abi::LAYOUT_VERSION,
    wire::geneve::{ProbeHeader, kind},
};
use rand::RngExt;

use super::{Event, Sim, Turn, address, index_of, name, rules};
use crate::{
    membership::{
        gossip::Pull,
        machine::{Facts, Machine, Settings},
        packet,
        topic::Change,
    },
    model::Members,
};

const GOSSIP_PORT: u16 = 7946;
/// A gateway that is there answers after this; one that isn't is given up after the other.
const GATEWAY_ANSWERS: Duration = Duration::from_millis(1);
const GATEWAY_GIVEN_UP: Duration = Duration::from_millis(300);
/// Age of the heartbeat of an agent that runs.
const HEARTBEAT: Duration = Duration::from_millis(50);
/// What Ethernet, IPv4 and UDP add to a payload, and what sealing adds to a datagram.
const HEADERS: usize = 42;
const SEAL: usize = 40;

/// What an agent does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Process {
    Gone,
    Runs,
    /// Kept from running; what arrives waits for it.
    Stalled,
    Stopped,
}

/// What travels between nodes.
pub enum Parcel {
    Probe([u8; packet::LENGTH]),
    Answer([u8; packet::LENGTH]),
    Datagram(Vec<u8>),
    Request(Box<Pull>),
    Stream(Vec<Vec<u8>>),
}

/// What one node sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Probes, answers to others' probes, agents' datagrams, streams served.
    pub probes: u64,
    pub answers: u64,
    pub datagrams: u64,
    pub streams: u64,
    /// All of it, with the headers of Ethernet, IP and UDP.
    pub bytes: u64,
}

pub struct Site {
    pub powered: bool,
    /// The gateway answers it.
    pub gateway: bool,
    pub process: Process,
    pub machine: Option<Machine>,
    boot_id: [u8; 16],
    /// When its agent gave its last sign of life; None: none did.
    heartbeat: Option<Instant>,
    incarnation: u64,
    /// When its timer fires; other events about it are of a timer set before.
    timer: Option<Instant>,
    inbox: Vec<(usize, Parcel)>,
    pub traffic: Traffic,
    /// What other tasks would have been told.
    pub changes: Vec<Change>,
    /// The view whose changes were noted last.
    noted: Arc<Members>,
    born: Instant,
}

impl Site {
    pub fn new(now: Instant) -> Self {
        Self {
            powered: false,
            gateway: true,
            process: Process::Gone,
            machine: None,
            boot_id: [0; 16],
            heartbeat: None,
            incarnation: 0,
            timer: None,
            inbox: Vec::new(),
            traffic: Traffic::default(),
            changes: Vec::new(),
            noted: Arc::default(),
            born: now,
        }
    }

    pub fn boot(&mut self, boot_id: [u8; 16]) {
        (self.powered, self.boot_id, self.heartbeat) = (true, boot_id, None);
    }

    pub fn start(
        &mut self,
        index: usize,
        nodes: &BTreeMap<String, Vec<IpAddr>>,
        random: [u8; 32],
        at: Instant,
    ) {
        // As the wall clock's milliseconds, and later than the life before.
        let clock = 1_000_000 + (at - self.born).as_millis() as u64;
        self.incarnation = clock.max(self.incarnation + 1);
        let settings = Settings {
            node: name(index),
            rules: rules(),
            gossip_port: GOSSIP_PORT,
            incarnation: self.incarnation,
            random,
        };
        let mut machine = Machine::new(&settings, at);
        machine.set_nodes(nodes, &[], at);
        machine.set_facts(Facts { version: "1".into(), ..Facts::default() });
        machine.set_applied(true);
        (self.machine, self.process, self.timer) = (Some(machine), Process::Runs, Some(at));
        self.inbox.clear();
    }

    pub fn pause(&mut self, process: Process, now: Instant) {
        if self.process == Process::Runs {
            self.heartbeat = Some(now - HEARTBEAT);
        }
        self.process = process;
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.process == Process::Runs && self.timer == Some(now)
    }

    /// What its data plane says to a probe.
    fn answer(&self, probe: &[u8; packet::LENGTH], now: Instant) -> [u8; packet::LENGTH] {
        let age = match self.process {
            Process::Runs => Some(HEARTBEAT),
            _ => self.heartbeat.map(|at| now - at),
        };
        let mut answer: ProbeHeader = bytemuck::cast(*probe);
        answer.option.kind = kind::PROBE_ANSWER;
        answer.probe.boot_id = bytemuck::cast(self.boot_id);
        answer.probe.heartbeat_age = age.map_or(u32::MAX, |age| age.as_millis() as u32).to_be();
        answer.probe.layout = LAYOUT_VERSION.to_be();
        bytemuck::cast(answer)
    }
}

impl Sim {
    pub(super) fn arrive(&mut self, from: usize, to: usize, parcel: Parcel) {
        let now = self.now;
        let site = &mut self.sites[to];
        match (parcel, site.process) {
            _ if !site.powered => {}
            (Parcel::Probe(probe), _) => {
                let answer = site.answer(&probe, now);
                site.traffic.answers += 1;
                self.send(to, from, Parcel::Answer(answer));
            }
            (_, Process::Gone) => {}
            (parcel, Process::Runs) => {
                self.take(from, to, parcel);
                self.poll(to);
            }
            (parcel, Process::Stalled | Process::Stopped) => site.inbox.push((from, parcel)),
        }
    }

    /// An agent runs: it reads what has arrived, then looks at its timers.
    pub(super) fn wake(&mut self, site: usize) {
        for (from, parcel) in std::mem::take(&mut self.sites[site].inbox) {
            self.take(from, site, parcel);
        }
        let now = self.now;
        if let Some(machine) = &mut self.sites[site].machine {
            if machine.next_timer().is_none_or(|at| at <= now) {
                machine.on_timer(now);
            }
            self.poll(site);
        }
    }

    fn take(&mut self, from: usize, to: usize, parcel: Parcel) {
        let now = self.now;
        let Some(machine) = &mut self.sites[to].machine else { return };
        match parcel {
            Parcel::Probe(_) => {}
            Parcel::Answer(answer) => {
                machine.on_packet(address(from), &answer, now);
            }
            Parcel::Datagram(plain) => {
                let from = SocketAddr::new(address(from), GOSSIP_PORT);
                machine.on_datagram(from, &plain, now).expect("agents write what agents read");
            }
            Parcel::Request(pull) => {
                let Some(mut serving) = machine.gossip().serve(&pull.request, now) else { return };
                let gossip = machine.gossip();
                let chunks = std::iter::from_fn(|| gossip.next_chunk(&mut serving)).collect();
                self.sites[to].traffic.streams += 1;
                self.send(to, from, Parcel::Stream(chunks));
            }
            Parcel::Stream(chunks) => {
                for chunk in chunks {
                    let taken = machine.gossip().on_chunk(&name(from), &chunk, now);
                    taken.expect("agents write what agents read");
                }
                machine.gossip().on_pulled(&name(from), now);
                machine.note_pulled(true);
            }
        }
    }

    /// Does what an agent wants done.
    pub(super) fn poll(&mut self, site: usize) {
        let now = self.now;
        let Some(machine) = &mut self.sites[site].machine else { return };
        let output = machine.poll(now);
        let next = machine.next_timer();
        for (to, probe) in output.probes {
            self.sites[site].traffic.probes += 1;
            self.send(site, index_of(to), Parcel::Probe(probe));
        }
        for (to, plain) in output.datagrams {
            self.sites[site].traffic.datagrams += 1;
            self.send(site, index_of(to.ip()), Parcel::Datagram(plain));
        }
        for pull in output.pulls {
            self.send(site, index_of(pull.address.ip()), Parcel::Request(Box::new(pull)));
        }
        if output.ask_gateway {
            let answered = self.sites[site].gateway;
            let wait = if answered { GATEWAY_ANSWERS } else { GATEWAY_GIVEN_UP };
            self.schedule(now + wait, Event::Gateway { site, answered });
        }
        self.sites[site].changes.extend(output.changes);
        if let Some(members) = output.members {
            self.note(site, members);
        }
        if let Some(at) = next
            .map(|at| at.max(now))
            .filter(|at| Some(*at) != self.sites[site].timer || *at == now)
        {
            self.sites[site].timer = Some(at);
            self.schedule(at, Event::Timer { site });
        }
    }

    fn note(&mut self, observer: usize, members: Arc<Members>) {
        let before = std::mem::replace(&mut self.sites[observer].noted, Arc::clone(&members));
        for (subject, (name, member)) in members.nodes.iter().enumerate() {
            if before.nodes.get(name).map(|it| it.life) != Some(member.life) {
                self.turns.push(Turn { at: self.now, observer, subject, life: member.life });
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, parcel: Parcel) {
        let (length, reliable) = match &parcel {
            Parcel::Probe(bytes) | Parcel::Answer(bytes) => (bytes.len(), false),
            Parcel::Datagram(bytes) => (bytes.len() + SEAL, false),
            Parcel::Request(_) => (0, true),
            Parcel::Stream(chunks) => (chunks.iter().map(Vec::len).sum(), true),
        };
        self.sites[from].traffic.bytes += (length + HEADERS) as u64;
        let lost = !reliable && self.weather.loss > 0.0 && self.rng.random_bool(self.weather.loss);
        if !lost && !self.cuts.contains(&(from, to)) {
            let at = self.now + self.weather.latency + self.up_to(self.weather.latency);
            self.schedule(at, Event::Arrives { from, to, parcel });
        }
    }
}
