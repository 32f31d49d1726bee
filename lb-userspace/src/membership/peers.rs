//! Decides which nodes are alive, from rounds of probes.
//!
//! Pure: time, packets and nonces come in, packets to send come out. A node is alive while any of
//! its addresses answers. What this process itself was too late for counts against nobody.
//!
//! A node starts unknown, and unknown counts as not alive; its first answer makes it alive at once,
//! silence for `fall` rounds makes it dead. So an agent that starts has a verdict on everybody
//! within `fall` intervals (at once where all answer), and waits for it before it announces.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_common::abi::TUNNEL_VERSION;

use super::{
    Alive,
    packet::{self, Answer},
};

/// Rounds whose answers still count when they come late.
const ROUNDS_KEPT: usize = 8;

/// What probes hold and when silence means death.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Between two rounds.
    pub interval: Duration,
    /// Silent rounds in a row that make a node dead.
    pub fall: u32,
    /// Answered rounds in a row that bring it back.
    pub rise: u32,
    pub vni: u32,
    /// This node's: first bytes of a hash of the shared seed.
    pub seed_tag: [u8; 8],
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    #[default]
    Unknown,
    Alive,
    Dead,
}

/// One other node as status shows it. Ages are as of the time of the report.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize)]
pub struct PeerStatus {
    pub state: PeerState,
    /// None: it never answered.
    pub last_answer_ms: Option<u64>,
    /// Of the last answer.
    pub round_trip_us: Option<u64>,
    /// The address that answered last.
    pub address: Option<IpAddr>,
    /// In hexadecimal; changes with every boot of the node.
    pub boot_id: Option<String>,
    /// Age of its agent's heartbeat, the time since its last answer added. None: no agent yet.
    pub heartbeat_age_ms: Option<u64>,
    /// Layout version of its maps.
    pub layout: Option<u32>,
    /// Version of its tunnel header where it is not ours.
    pub other_version: Option<u8>,
    /// It holds another seed: its tables are not ours.
    pub other_seed: bool,
}

/// A probe to send: where to and its payload.
pub type Probe = (IpAddr, [u8; packet::LENGTH]);

/// All other nodes.
#[derive(Debug)]
pub struct Peers {
    rules: Rules,
    own_name: String,
    peers: BTreeMap<String, Peer>,
    /// Whose address it is.
    names: BTreeMap<IpAddr, String>,
    last_round: Option<Instant>,
    ready: bool,
}

#[derive(Debug, Default)]
struct Peer {
    addresses: Vec<IpAddr>,
    state: PeerState,
    /// Rounds in a row that speak against the state.
    against: u32,
    /// Whether a valid answer came since the last round.
    heard: bool,
    /// Probes that may still be answered, oldest first.
    asked: VecDeque<Asked>,
    last: Option<Heard>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    nonce: u64,
    address: IpAddr,
    at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    answer: Answer,
    address: IpAddr,
    at: Instant,
    round_trip: Duration,
}

impl Peers {
    pub fn new(rules: Rules, own_name: String) -> Self {
        let (peers, names) = (BTreeMap::new(), BTreeMap::new());
        Self { rules, own_name, peers, names, last_round: None, ready: false }
    }

    /// Takes the configured nodes over, this one among them or not. Known ones keep their state.
    pub fn set_nodes(&mut self, nodes: &BTreeMap<String, Vec<IpAddr>>) {
        self.peers.retain(|name, _| nodes.contains_key(name));
        self.names.clear();
        for (name, addresses) in nodes.iter().filter(|(name, _)| **name != self.own_name) {
            self.peers.entry(name.clone()).or_default().addresses.clone_from(addresses);
            self.names.extend(addresses.iter().map(|address| (*address, name.clone())));
        }
        self.settle();
    }

    /// Ends the round before and begins the next: returns its probes.
    ///
    /// The caller feeds all answers that have arrived first. `nonce` gives numbers that others
    /// cannot guess.
    pub fn round(&mut self, now: Instant, mut nonce: impl FnMut() -> u64) -> Vec<Probe> {
        let late = self.last_round.is_some_and(|last| now - last > self.rules.interval * 2);
        self.last_round = Some(now);
        let mut probes = Vec::new();
        for (name, peer) in &mut self.peers {
            // One that was never asked owes no answer.
            if peer.heard || (!late && !peer.asked.is_empty()) {
                peer.end_round(&self.rules, name);
            }
            peer.heard = false;
            for &address in &peer.addresses {
                let nonce = nonce();
                if peer.asked.len() >= ROUNDS_KEPT * peer.addresses.len() {
                    peer.asked.pop_front();
                }
                peer.asked.push_back(Asked { nonce, address, at: now });
                probes.push((address, packet::probe(self.rules.vni, self.rules.seed_tag, nonce)));
            }
        }
        self.settle();
        probes
    }

    /// Takes a packet from `address` at the tunnel port; true if it made an unknown node alive.
    pub fn on_packet(&mut self, address: IpAddr, payload: &[u8], now: Instant) -> bool {
        let Some(answer) = packet::answer(self.rules.vni, payload) else { return false };
        let Some(peer) = self.names.get(&address).and_then(|name| self.peers.get_mut(name)) else {
            return false;
        };
        // Taken out, so that no answer counts twice.
        let matches = |asked: &Asked| asked.nonce == answer.nonce && asked.address == address;
        let Some(asked) =
            peer.asked.iter().position(matches).and_then(|index| peer.asked.remove(index))
        else {
            return false;
        };
        peer.heard = true;
        peer.last = Some(Heard { answer, address, at: now, round_trip: now - asked.at });
        let first = peer.state == PeerState::Unknown;
        if first {
            (peer.state, peer.against) = (PeerState::Alive, 0);
            self.settle();
        }
        first
    }

    /// Who is alive.
    pub fn alive(&self) -> Alive {
        let answering = self.peers.iter().filter(|(_, peer)| peer.state == PeerState::Alive);
        let names =
            answering.map(|(name, _)| name.clone()).chain([self.own_name.clone()]).collect();
        Alive { ready: self.ready, names }
    }

    /// All other nodes for status.
    pub fn report(&self, now: Instant) -> BTreeMap<String, PeerStatus> {
        let status = |peer: &Peer| peer.report(&self.rules, now);
        self.peers.iter().map(|(name, peer)| (name.clone(), status(peer))).collect()
    }

    /// Ready once nobody is unknown, and then for good: a node that is configured later is unknown
    /// for a moment, which is no reason to stop.
    fn settle(&mut self) {
        self.ready |= self.peers.values().all(|peer| peer.state != PeerState::Unknown);
    }
}

impl Peer {
    fn end_round(&mut self, rules: &Rules, name: &str) {
        let (agrees, needed, other) = match self.state {
            PeerState::Alive | PeerState::Unknown => (self.heard, rules.fall, PeerState::Dead),
            PeerState::Dead => (!self.heard, rules.rise, PeerState::Alive),
        };
        self.against = if agrees { 0 } else { self.against + 1 };
        if self.against >= needed {
            tracing::info!(node = name, from = ?self.state, to = ?other, "data plane of node");
            (self.state, self.against) = (other, 0);
        }
    }

    fn report(&self, rules: &Rules, now: Instant) -> PeerStatus {
        let mut status = PeerStatus { state: self.state, ..PeerStatus::default() };
        let Some(heard) = &self.last else { return status };
        let age = millis(now - heard.at);
        status.last_answer_ms = Some(age);
        status.round_trip_us = u64::try_from(heard.round_trip.as_micros()).ok();
        status.address = Some(heard.address);
        status.boot_id = Some(format!("{:032x}", u128::from_be_bytes(heard.answer.boot_id)));
        status.heartbeat_age_ms = heard.answer.heartbeat_age.map(|then| u64::from(then) + age);
        status.layout = Some(heard.answer.layout);
        status.other_version =
            (heard.answer.version != TUNNEL_VERSION).then_some(heard.answer.version);
        status.other_seed = heard.answer.seed_tag != rules.seed_tag;
        status
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
