//! What agents tell each other: who can be talked to ([`swim`]) and what each says ([`super::board`]).
//!
//! A state machine without I/O: datagrams, the time and publications come in; datagrams, changes and wishes
//! to pull go out. Changes are told to a few members at random and by them to others, urgent ones at once;
//! what gets lost is found by comparing one hash with a random member every second, and pulled.
//!
//! What others send never panics and never grows anything beyond a named limit. SWIM's "down" kills no
//! node: it only says who cannot be talked to.

mod message;
mod node;
mod pull;
mod rumours;
mod send;
mod swim;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

pub(super) use self::message::{decode, encode};
use self::{
    message::{Datagram, Identity, Word},
    node::Node,
    pull::Pulling,
    rumours::{Rumour, Rumours},
    send::{some, sum},
    swim::{Effects, Swim},
};
pub use self::{
    message::{Malformed, PLAIN_MOST},
    pull::{Pull, Serving},
};
use super::{
    board::{BUCKETS, Board, Delta, Outcome},
    topic::{Change, Key},
};

/// Between two comparisons with a random member, and between repetitions of what audiences should know.
const ROUND: Duration = Duration::from_secs(1);
/// The same while nobody is heard: then it is spent on finding somebody.
const LONELY_ROUND: Duration = Duration::from_millis(250);
/// Changes that are not urgent wait for others this long.
const BATCH: Duration = Duration::from_millis(20);
/// Between two times that changes are told, as long as there are any.
const SPREAD: Duration = Duration::from_millis(200);
/// Random members told at a time.
const SPREAD_TO: usize = 3;
/// An urgent change goes to all members up to this many, else to [`URGENT_TO`].
const SMALL: usize = 16;
const URGENT_TO: usize = 8;
/// To how many a receiver passes an urgent change on.
const PASS_TO: usize = 3;
/// Nodes not heard that are asked to join per round.
const ASK: usize = 3;
/// Datagrams of own changes told at a time; what is beyond is pulled.
const BURST: usize = 8;
/// How often audiences are told how far their log is after its last change.
const REPEATS: u32 = 3;
/// What an agent has not said again this long after its start it no longer says.
const SETTLE: Duration = Duration::from_secs(5);
/// At most one change of incarnation because of others' memory per this time.
const REJOIN: Duration = Duration::from_secs(1);

/// What was sent, refused and ignored since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    pub datagrams: u64,
    pub bytes: u64,
    /// Datagrams that are none of ours although sealed by one of us.
    pub malformed: u64,
    /// Datagrams, members and changes that name nodes that are not configured.
    pub strangers: u64,
    /// Entries beyond a limit.
    pub refused: u64,
    /// Changes that were no longer told because there were too many.
    pub dropped_rumours: u64,
    pub pulls: u64,
    pub served: u64,
    /// Incarnations taken because others remembered a later one.
    pub rejoins: u64,
}

impl Counts {
    /// All of them, by the name that status gives them.
    pub fn by_name(&self) -> [(&'static str, u64); 9] {
        [
            ("datagrams", self.datagrams),
            ("bytes", self.bytes),
            ("malformed", self.malformed),
            ("strangers", self.strangers),
            ("refused", self.refused),
            ("dropped_rumours", self.dropped_rumours),
            ("pulls", self.pulls),
            ("served", self.served),
            ("rejoins", self.rejoins),
        ]
    }
}

/// How far an own log for an audience has been told.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    version: u64,
    repeats: u32,
}

/// One agent's side of the gossip.
#[derive(Debug)]
pub struct Gossip {
    own: Arc<str>,
    swim: Swim,
    board: Board,
    nodes: BTreeMap<Arc<str>, Node>,
    heard: Arc<BTreeSet<Arc<str>>>,
    seeds: Vec<SocketAddr>,
    rumours: Rumours,
    /// By audience; the log for all under the empty name.
    told: BTreeMap<Arc<str>, Told>,
    pulling: Pulling,
    out: Vec<(SocketAddr, Vec<u8>)>,
    rng: StdRng,
    next_round: Instant,
    next_spread: Option<Instant>,
    last_spread: Option<Instant>,
    settle_at: Option<Instant>,
    last_rejoin: Option<Instant>,
    counts: Counts,
}

impl Gossip {
    /// `incarnation` is greater at each start: milliseconds of the wall clock will do (see [`Board::new`]).
    /// All that is random comes from `rng_seed`.
    pub fn new(own: &str, incarnation: u64, rng_seed: u64, now: Instant) -> Self {
        let own: Arc<str> = own.into();
        let identity = Identity { name: own.clone(), incarnation };
        Self {
            swim: Swim::new(identity, rng_seed),
            board: Board::new(own.clone(), incarnation),
            nodes: BTreeMap::new(),
            heard: Arc::default(),
            seeds: Vec::new(),
            rumours: Rumours::default(),
            told: BTreeMap::new(),
            pulling: Pulling::default(),
            out: Vec::new(),
            rng: StdRng::seed_from_u64(!rng_seed),
            next_round: now,
            next_spread: None,
            last_spread: None,
            settle_at: Some(now + SETTLE),
            last_rejoin: None,
            counts: Counts::default(),
            own,
        }
    }

    /// Configured nodes, this one among them or not, with where their agents listen (several addresses of one
    /// node: whichever answers). Seeds are further addresses to ask while nobody is heard.
    pub fn set_nodes(
        &mut self,
        nodes: &BTreeMap<String, Vec<SocketAddr>>,
        seeds: &[SocketAddr],
        now: Instant,
    ) {
        let mut before = std::mem::take(&mut self.nodes);
        for (name, addresses) in nodes.iter().filter(|(name, _)| **name != *self.own) {
            let (name, mut node) = before
                .remove_entry(&**name)
                .unwrap_or_else(|| (name.as_str().into(), Node::default()));
            node.set_addresses(addresses);
            self.nodes.insert(name, node);
        }
        self.seeds = seeds.to_vec();
        self.board.set_origins(self.nodes.keys());
        self.swim.set_size(self.nodes.len() + 1);
        self.note_heard();
        self.next_round = self.next_round.min(now);
    }

    /// Sets (or ends) an own entry for all members. `urgent`: several are told within this call, and tell others at
    /// once; else changes of [`BATCH`] travel together.
    pub fn publish(&mut self, key: Key, value: Option<Vec<u8>>, urgent: bool, now: Instant) {
        let before = self.own_version("");
        self.board.publish("", key, value.as_deref());
        let version = self.own_version("");
        if version == before {
            return;
        }
        if urgent {
            for (node, bytes) in self.tell_urgently(version) {
                self.say(&node, &[bytes], now);
            }
        }
        self.spread_soon(now);
    }

    /// Sets (or ends) an own entry for an audience: these nodes and nobody else. The log of an audience is one;
    /// nodes that are new in it get all of it, and those that left drop it.
    pub fn publish_to(
        &mut self,
        audience: &str,
        nodes: &BTreeSet<Arc<str>>,
        key: Key,
        value: Option<Vec<u8>>,
        now: Instant,
    ) {
        debug_assert!(!audience.is_empty(), "the empty name is the log for all");
        self.board.publish(audience, key, value.as_deref());
        let left = self.board.set_audience(audience, nodes.clone());
        left.iter().for_each(|node| self.compare_with(node, now));
        self.told.entry(audience.into()).or_default();
        self.spread_soon(now);
    }

    /// Ends an audience with all that was said to it.
    pub fn end_audience(&mut self, audience: &str, now: Instant) {
        self.told.remove(audience);
        for node in self.board.end_audience(audience) {
            self.compare_with(&node, now);
        }
    }

    /// Datagrams to be sealed and sent.
    pub fn take_datagrams(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut self.out)
    }

    /// Changes of others' entries, oldest first, also where the value is the same as before.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.board.take_changes()
    }

    /// Version of the latest value known of an entry, also an own one; rises across restarts of the origin.
    pub fn version(&self, origin: &str, key: &Key) -> Option<u64> {
        self.board.version(origin, key)
    }

    /// The latest value known of an entry, also an own one.
    pub fn get(&self, origin: &str, key: &Key) -> Option<&Arc<[u8]>> {
        self.board.get(origin, key)
    }

    /// Configured nodes whose agents can be talked to, this one not among them. The same `Arc` while
    /// nothing changed.
    pub fn heard(&self) -> Arc<BTreeSet<Arc<str>>> {
        Arc::clone(&self.heard)
    }

    fn note_heard(&mut self) {
        let active = self.swim.active().filter(|name| self.nodes.contains_key(*name));
        self.heard = Arc::new(active.cloned().collect());
    }

    pub fn counts(&self) -> Counts {
        let (refused, dropped_rumours) = (self.board.refused(), self.rumours.dropped());
        Counts { refused, dropped_rumours, ..self.counts }
    }

    /// Entries and bytes held, of all origins.
    pub fn size(&self) -> (usize, usize) {
        self.board.size()
    }

    /// Tells some members that this agent goes.
    pub fn leave(&mut self, now: Instant) {
        let effects = self.swim.leave(now);
        self.perform(effects, now);
    }

    /// Takes the next incarnation: this process was asleep, so that others may hold it for dead.
    pub fn rejoin(&mut self, now: Instant) {
        let incarnation = self.swim.own().incarnation.saturating_add(1);
        let effects = self.swim.rejoin(incarnation, now);
        self.perform(effects, now);
        self.next_round = now;
    }

    /// Takes a datagram that [`super::seal`] has opened.
    pub fn on_datagram(
        &mut self,
        from: SocketAddr,
        plain: &[u8],
        now: Instant,
    ) -> Result<(), Malformed> {
        let result = self.read(from, plain, now);
        self.counts.malformed += u64::from(result.is_err());
        result
    }

    /// When [`Self::on_timer`] has something to do next.
    pub fn next_timer(&self) -> Option<Instant> {
        let pull = self.pulling.due();
        [Some(self.next_round), self.next_spread, self.settle_at, self.swim.next_timer(), pull]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does all that is due.
    pub fn on_timer(&mut self, now: Instant) {
        while let Some(effects) = self.swim.on_timer(now) {
            self.perform(effects, now);
        }
        if self.settle_at.is_some_and(|at| at <= now) {
            self.settle_at = None;
            self.board.settle();
            self.spread_soon(now);
        }
        if self.next_round <= now {
            self.round(now);
        }
        if self.next_spread.is_some_and(|at| at <= now) {
            self.spread(now);
        }
        if self.pulling.due().is_some_and(|at| at <= now) {
            self.pull(now);
        }
    }

    fn read(&mut self, from: SocketAddr, plain: &[u8], now: Instant) -> Result<(), Malformed> {
        let (sender, word) = match decode(plain)? {
            Datagram::Swim(data) => (Swim::sender(data)?, Err(data)),
            Datagram::Word { sender, word } => (sender, Ok(word)),
        };
        let Some(node) = self.nodes.get_mut(&sender.name) else {
            self.counts.strangers += 1;
            return Ok(());
        };
        node.hear(from, now);
        if sender.incarnation < node.incarnation {
            let word = Word::Outlived { incarnation: node.incarnation };
            self.send_word(&sender.name, word, now);
        } else {
            node.incarnation = sender.incarnation;
        }
        match word {
            Err(data) => {
                let nodes = &self.nodes;
                let known = |name: &str| nodes.contains_key(name) || *name == *self.own;
                let effects = self.swim.on_data(data, known, now)?;
                self.perform(effects, now);
            }
            Ok(Word::Say(deltas)) => {
                for bytes in deltas {
                    self.hear_delta(&sender.name, bytes, now)?;
                }
            }
            Ok(Word::Compare { shared, audiences }) => {
                let hashes = self.board.hashes();
                if shared != sum(&hashes) {
                    self.send_word(&sender.name, Word::Hashes(hashes.to_vec()), now);
                }
                if audiences != self.board.audience_hash(&sender.name, &self.own) {
                    self.pulling.want_audiences(&sender.name, now);
                }
            }
            Ok(Word::Hashes(theirs)) => {
                let theirs: [u64; BUCKETS] = theirs.try_into().map_err(|_| Malformed)?;
                if theirs != self.board.hashes() {
                    self.pulling.want_difference(&sender.name, theirs, now);
                }
            }
            Ok(Word::Hello) => {
                let effects = self.swim.announce(sender, now);
                self.perform(effects, now);
            }
            Ok(Word::Outlived { incarnation }) => self.outlive(incarnation, now),
        }
        Ok(())
    }

    fn hear_delta(
        &mut self,
        sender: &Arc<str>,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), Malformed> {
        let delta: Delta<'_> = decode(bytes)?;
        let outcome = self.apply(&delta, sender, now);
        if !outcome.news || !delta.log.is_empty() || delta.full {
            return Ok(());
        }
        let Some((origin, _)) = self.nodes.get_key_value(delta.origin) else { return Ok(()) };
        let origin = origin.clone();
        let mut told = 0;
        if delta.urgent {
            for node in self.some_heard(PASS_TO, |it| it != sender && *it != origin) {
                told = 1;
                self.say(&node, &[bytes.to_vec()], now);
            }
        }
        self.rumours.add(Rumour::new(&delta, origin, bytes.to_vec(), told));
        self.spread_soon(now);
        Ok(())
    }

    /// Takes what a member says of a log, from a datagram or a stream.
    fn apply(&mut self, delta: &Delta<'_>, sender: &Arc<str>, now: Instant) -> Outcome {
        let outcome = self.board.apply(delta);
        self.react(outcome, sender, now);
        outcome
    }

    fn react(&mut self, outcome: Outcome, sender: &Arc<str>, now: Instant) {
        self.counts.strangers += u64::from(outcome.stranger);
        if outcome.behind {
            self.pulling.want_rest(sender, now);
        }
        if let Some(incarnation) = outcome.outlived {
            self.counts.rejoins += 1;
            self.board.rebase(incarnation + 1);
            self.told.values_mut().for_each(|told| told.version = 0);
            self.spread_soon(now);
        }
    }

    /// Others remember this node in a later incarnation: its clock was set back, or it runs twice.
    fn outlive(&mut self, incarnation: u64, now: Instant) {
        let soon = self.last_rejoin.is_some_and(|last| now < last + REJOIN);
        if incarnation > self.swim.own().incarnation && !soon {
            self.last_rejoin = Some(now);
            self.counts.rejoins += 1;
            let effects = self.swim.rejoin(incarnation.saturating_add(1), now);
            self.perform(effects, now);
        }
    }

    fn perform(&mut self, effects: Effects, now: Instant) {
        self.counts.strangers += effects.strangers;
        if effects.moved {
            self.note_heard();
        }
        for (to, data) in effects.sends {
            self.send(&to.name, &Datagram::Swim(&data), now);
        }
        for name in effects.came {
            let alone = self.swim.active().all(|it| *it == name);
            if alone || self.board.audience_hash(&self.own, &name) != 0 {
                self.compare_with(&name, now);
            }
        }
    }

    /// Looks for nodes that are not heard, and compares with one that is.
    fn round(&mut self, now: Instant) {
        let heard = self.heard();
        let missing = self.nodes.keys().filter(|name| !heard.contains(*name)).cloned();
        for name in some(missing.collect(), ASK, &mut self.rng) {
            let incarnation = self.nodes.get(&name).map_or(0, |node| node.incarnation);
            let effects = self.swim.announce(Identity { name, incarnation }, now);
            self.perform(effects, now);
        }
        if heard.is_empty() {
            let hello =
                encode(&Datagram::Word { sender: self.swim.own().clone(), word: Word::Hello });
            for seed in some(self.seeds.clone(), ASK, &mut self.rng) {
                self.push(seed, hello.clone());
            }
        }
        for node in some(heard.iter().cloned().collect(), 1, &mut self.rng) {
            self.compare_with(&node, now);
        }
        if !matches!(self.board.behind(), (0, None)) {
            self.pulling.want_more(now);
        }
        self.repeat_to_audiences(now);
        let period = if heard.is_empty() { LONELY_ROUND } else { ROUND };
        // Not all members at the same instant.
        self.next_round = now + period.mul_f64(self.rng.random_range(0.9..1.1));
    }

    /// Tells audiences again how far their logs are: a datagram may have been lost.
    fn repeat_to_audiences(&mut self, now: Instant) {
        let due: Vec<_> =
            self.told.iter().filter(|it| it.1.repeats > 0).map(|it| it.0.clone()).collect();
        for audience in due {
            let Some(delta) = self.board.own_after(&audience, u64::MAX >> 1, 0) else { continue };
            let bytes = encode(&delta);
            for node in self.board.audience(&audience).cloned().collect::<Vec<_>>() {
                self.say(&node, std::slice::from_ref(&bytes), now);
            }
            self.told.entry(audience).and_modify(|told| told.repeats -= 1);
        }
    }

    /// Tells changes to some members.
    fn spread(&mut self, now: Instant) {
        (self.next_spread, self.last_spread) = (None, Some(now));
        self.tell_audiences(now);
        for rumour in self.own_rumours("") {
            self.rumours.add(rumour);
        }
        let heard = self.heard();
        let often = (3 + (heard.len() + 1).ilog2()).min(2 * heard.len() as u32);
        for node in some(heard.iter().cloned().collect(), SPREAD_TO, &mut self.rng) {
            let rumours = self.rumours.take(self.say_budget(), often);
            self.say(&node, &rumours, now);
        }
        // Without members rumours wait for the first to be heard.
        if !self.rumours.is_empty() {
            self.next_spread = Some(now + SPREAD);
        }
    }

    fn tell_audiences(&mut self, now: Instant) {
        for audience in self.told.keys().filter(|it| !it.is_empty()).cloned().collect::<Vec<_>>() {
            let deltas: Vec<_> =
                self.own_rumours(&audience).into_iter().map(|it| it.bytes).collect();
            if deltas.is_empty() {
                continue;
            }
            self.told.entry(audience.clone()).and_modify(|told| told.repeats = REPEATS);
            for node in self.board.audience(&audience).cloned().collect::<Vec<_>>() {
                self.say(&node, &deltas, now);
            }
        }
    }
}
