//! Decides which nodes live, from own probes and from what other members report.
//!
//! Every node is probed by a few others ([`duty`]); what they find ([`eye`]) they tell everybody
//! ([`report`]), and everybody judges alike ([`judge`]): most of a node's watchers must find it silent,
//! two at least. Where nobody else is left to say so, or half of all fell silent at once, the gateway
//! is asked first ([`gateway`]). What dies, returns and is held back is [`fate`]'s.
//!
//! Pure: time, packets, reports and nonces come in, probes, reports, a question and views come out. All
//! inputs only note what they bring; [`Watch::decide`] draws the conclusions and must follow them.
//!
//! A node starts unknown, which counts as not alive. Its first answer makes it alive at once; silence
//! for `fall` rounds makes it dead by own probes alone, for nothing is taken from it.

mod assign;
pub mod duty;
mod eye;
mod fate;
mod gateway;
mod judge;
mod report;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use duty::Ticket;
use eye::{Eye, Gist};
use fate::Fate;
use gateway::Gateway;

use super::packet;
use crate::model::{HoldDowns, Life, MemberState};

pub use eye::Probe;
pub use fate::hold_down;
pub use report::{Finding, Report};
pub use status::NodeStatus;

/// What probes hold and when silence means death.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Between two rounds.
    pub interval: Duration,
    /// Silent rounds in a row that count as silence.
    pub fall: u32,
    /// Answered rounds in a row that bring a dead node back.
    pub rise: u32,
    pub vni: u32,
    /// Shared by all nodes: who watches whom is keyed with it.
    pub seed: [u8; 16],
    /// First bytes of a hash of the shared seed.
    pub seed_tag: [u8; 8],
    pub hold_downs: HoldDowns,
}

impl Rules {
    /// Within this time all that fell silent at once is found silent.
    fn suspicion(&self) -> Duration {
        self.interval * (self.fall + 1)
    }
}

/// A node that joins waits for others no longer than this.
pub const JOIN_MOST: Duration = Duration::from_secs(2);

/// All other nodes.
#[derive(Debug)]
pub struct Watch {
    rules: Rules,
    own: Arc<str>,
    own_ticket: Ticket,
    nodes: BTreeMap<Arc<str>, Node>,
    /// Whose address it is.
    names: BTreeMap<IpAddr, Arc<str>>,
    /// Which eye has something to do when.
    due: BTreeSet<(Instant, Arc<str>)>,
    /// When a decision may change by time alone.
    wake: Option<Instant>,
    /// When conclusions were drawn first.
    started: Option<Instant>,
    /// What others say of each node, of this one too.
    words: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Report>>,
    gateway: Gateway,
    /// Nodes that were neither found alive nor dead yet.
    unknown: usize,
    ready: bool,
    isolated: bool,
    /// After isolation deaths wait until then.
    healing: Option<Instant>,
    /// Something came in that may change a decision.
    dirty: bool,
    changed: bool,
    /// Somebody died or returned.
    moved: bool,
    probes: Vec<Probe>,
    reports: Vec<(Arc<str>, Report)>,
}

#[derive(Debug, Default)]
struct Node {
    ticket: Ticket,
    /// Nodes that can watch it and rank above this one.
    ahead: usize,
    /// It can watch others: counted in their `ahead`.
    able: bool,
    eye: Eye,
    pace: Duration,
    fate: Fate,
    /// What this node told others of it last.
    said: Report,
    card: u64,
    /// Its agent is heard by gossip.
    heard: bool,
    /// It is dead, but since then all that is known speaks for it; how long that must hold.
    pardoned: Option<(Instant, Duration)>,
    /// Members that speak and find it silent; whether its own word counts.
    accusers: usize,
    trusted: bool,
}

impl Watch {
    pub fn new(rules: Rules, own: &str) -> Self {
        Self {
            rules,
            own: own.into(),
            own_ticket: Ticket::new(&rules.seed, own),
            nodes: BTreeMap::new(),
            names: BTreeMap::new(),
            due: BTreeSet::new(),
            wake: None,
            started: None,
            words: BTreeMap::new(),
            gateway: Gateway::new(rules.interval),
            unknown: 0,
            ready: false,
            isolated: false,
            healing: None,
            dirty: true,
            changed: true,
            moved: false,
            probes: Vec::new(),
            reports: Vec::new(),
        }
    }

    /// Takes the configured nodes over, this one among them or not. Known ones keep their state.
    pub fn set_nodes(&mut self, nodes: &BTreeMap<String, Vec<IpAddr>>) {
        self.nodes.retain(|name, _| nodes.contains_key(&**name));
        self.due.retain(|(_, name)| nodes.contains_key(&**name));
        self.names.clear();
        for (name, addresses) in nodes.iter().filter(|(name, _)| **name != *self.own) {
            let name: Arc<str> = name.as_str().into();
            self.names.extend(addresses.iter().map(|address| (*address, Arc::clone(&name))));
            let ticket = Ticket::new(&self.rules.seed, &name);
            let node = self.nodes.entry(name).or_insert_with(|| Node {
                ticket,
                able: true,
                ..Node::default()
            });
            node.eye.addresses.clone_from(addresses);
        }
        self.unknown = self.nodes.values().filter(|it| it.fate.life == Life::Unknown).count();
        self.rank_all();
        self.dirty = true;
    }

    /// Takes a packet from `address` at the tunnel port; false if it is no answer to a probe of ours.
    pub fn on_packet(&mut self, address: IpAddr, payload: &[u8], now: Instant) -> bool {
        let Some(answer) = packet::answer(self.rules.vni, payload) else { return false };
        let Some(node) = self.names.get(&address).and_then(|name| self.nodes.get_mut(name)) else {
            return false;
        };
        let before = node.eye.gist(&self.rules);
        let counts = node.eye.on_answer(address, answer, now);
        if counts && node.fate.life == Life::Unknown {
            // A start brings as many first answers as there are nodes: conclusions wait for the last.
            let finding = node.finding(&self.rules).unwrap_or_default();
            node.fate.observe(finding, node.card);
            self.unknown -= 1;
            self.dirty |= self.ready || self.unknown == 0;
        } else {
            self.dirty |= node.matters(before, &self.rules);
        }
        counts
    }

    /// What another member says of a node, this one among them. Kept also of nodes that aren't
    /// configured yet.
    pub fn on_report(&mut self, origin: &str, subject: &str, report: Report) {
        let words = self.words.entry(subject.into()).or_default();
        if report == Report::default() {
            words.remove(origin);
        } else {
            words.insert(origin.into(), report);
        }
        if words.is_empty() {
            self.words.remove(subject);
        }
        self.dirty = true;
    }

    /// The version of a node's card that is known now.
    pub fn on_card(&mut self, origin: &str, version: u64) {
        if let Some(node) = self.nodes.get_mut(origin) {
            node.card = version;
            self.dirty |= node.fate.void > 0;
            node.fate.on_card(version);
        }
    }

    /// Whose agents gossip hears.
    pub fn set_heard(&mut self, heard: &BTreeSet<Arc<str>>) {
        for (name, node) in &mut self.nodes {
            let heard = heard.contains(name);
            self.dirty |= heard != node.heard && node.fate.life == Life::Dead;
            node.heard = heard;
        }
    }

    /// Whether a gateway answered the question of [`Watch::take_question`]. Without any gateway the
    /// answer is yes. Whoever is silent is asked once more: an uplink that returns brings them all.
    pub fn on_gateway(&mut self, answered: bool, now: Instant) {
        self.gateway.on_answer(answered, now);
        for (name, node) in self.nodes.iter_mut().filter(|(_, node)| node.eye.is_open()) {
            let silent = node.eye.gist(&self.rules).finding.is_some_and(Finding::is_unreached);
            if answered && silent && node.fate.life.forwards() {
                node.reschedule(name, &mut self.due, |eye| eye.open(now));
            }
        }
        self.dirty = true;
    }

    /// Probes and judges what is due. All packets that have arrived were fed before. `nonce` gives
    /// numbers that others cannot guess.
    pub fn on_timer(&mut self, now: Instant, nonce: &mut dyn FnMut() -> u64) {
        while self.due.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, name)) = self.due.pop_first() else { break };
            let Some(node) = self.nodes.get_mut(&name) else { continue };
            let before = node.eye.gist(&self.rules);
            node.eye.step(now, node.pace, &self.rules, nonce, &mut self.probes);
            self.dirty |= node.matters(before, &self.rules);
            self.due.extend(node.eye.due().map(|at| (at, name)));
        }
        self.dirty |= self.wake.is_some_and(|at| at <= now);
    }

    /// When [`Watch::on_timer`] has something to do.
    pub fn next_timer(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at).into_iter().chain(self.wake).min()
    }

    pub fn take_probes(&mut self) -> Vec<Probe> {
        std::mem::take(&mut self.probes)
    }

    /// What this node has to say anew; the default report says nothing.
    pub fn take_reports(&mut self) -> Vec<(Arc<str>, Report)> {
        std::mem::take(&mut self.reports)
    }

    /// The gateway is to be asked now.
    pub fn take_question(&mut self) -> bool {
        self.gateway.take_question()
    }

    /// Views may have changed since this was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Lives have changed since this was asked last: not to be waited with.
    pub fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Every other node was found alive or dead once.
    pub fn ready(&self) -> bool {
        self.ready
    }

    pub fn isolated(&self) -> bool {
        self.isolated
    }

    /// Whether a node of which gossip hears has not yet answered a probe: its data plane may not know
    /// this one as a sender.
    pub fn awaits_answers(&self) -> bool {
        self.nodes.values().any(|node| node.heard && node.eye.last.is_none())
    }

    /// Cards of a node up to this version are void, by the word of this node or of one that lives. Of
    /// this node itself: by the word of others.
    pub fn void(&self, name: &str) -> u64 {
        let own = self.nodes.get(name).map_or(0, |node| node.fate.void);
        let others = self.words_on(name).filter(|(origin, _)| self.speaks(origin));
        others.map(|(_, word)| word.void).max().unwrap_or(0).max(own)
    }

    /// All configured nodes, as far as probes and reports tell.
    pub fn members(&self, now: Instant) -> BTreeMap<String, MemberState> {
        let mut members: BTreeMap<String, MemberState> =
            self.nodes.iter().map(|(name, node)| (name.to_string(), node.member(now))).collect();
        let own = MemberState { life: Life::Alive, serves: true, ..MemberState::default() };
        members.insert(self.own.to_string(), own);
        let living = self.nodes.iter().filter(|(_, node)| node.fate.life.forwards());
        for name in living.clone().map(|(name, _)| name).chain([&self.own]) {
            for (origin, _) in self.words_on(name).filter(|(_, it)| it.finding.is_unreached()) {
                if let Some(member) = members.get_mut(&**origin) {
                    member.unreachable.insert(name.to_string());
                }
            }
        }
        let unreached =
            living.filter(|(_, it)| it.finding(&self.rules).is_some_and(Finding::is_unreached));
        if let Some(own) = members.get_mut(&*self.own) {
            own.unreachable = unreached.map(|(name, _)| name.to_string()).collect();
        }
        members
    }

    /// All other nodes for status.
    pub fn status(&self, now: Instant) -> BTreeMap<String, NodeStatus> {
        let status =
            |(name, node): (&Arc<str>, &Node)| (name.to_string(), self.status_of(name, node, now));
        self.nodes.iter().map(status).collect()
    }

    fn words_on(&self, name: &str) -> impl Iterator<Item = (&Arc<str>, &Report)> {
        self.words.get(name).into_iter().flatten()
    }

    /// Its reports count: it lives and has an agent.
    fn speaks(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|node| node.fate.life == Life::Alive)
    }
}

impl Node {
    fn member(&self, now: Instant) -> MemberState {
        MemberState {
            life: self.fate.life,
            mute_long: self.fate.mute_long,
            serves: self.fate.serves(now),
            heard: self.heard,
            ..MemberState::default()
        }
    }

    /// What this node's own probes find.
    fn finding(&self, rules: &Rules) -> Option<Finding> {
        self.eye.gist(rules).finding
    }

    /// Changes when an eye is due, and its place in the queue with it.
    fn reschedule(
        &mut self,
        name: &Arc<str>,
        due: &mut BTreeSet<(Instant, Arc<str>)>,
        change: impl FnOnce(&mut Eye),
    ) {
        if let Some(at) = self.eye.due() {
            due.remove(&(at, Arc::clone(name)));
        }
        change(&mut self.eye);
        due.extend(self.eye.due().map(|at| (at, Arc::clone(name))));
    }

    fn matters(&self, before: Gist, rules: &Rules) -> bool {
        before != self.eye.gist(rules)
    }
}

#[cfg(test)]
mod tests;
