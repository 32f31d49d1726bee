//! Membership of one node as one state machine: [`Gossip`] between agents and [`Watch`] over data
//! planes, out of which come [`Members`] and what other tasks tell each other.
//!
//! Inputs only note; [`Machine::poll`] draws the conclusions and gives all there is to do. It follows
//! every batch of inputs. Nothing here reads a clock or does I/O; the same machine runs in the agent
//! and in the simulation.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::{abi::LAYOUT_VERSION, net::Addr};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    gossip::{Counts, Gossip, Malformed, Pull},
    own::{Others, OwnWord},
    topic::{Change, Key, Topic},
    watch::{Finding, NodeStatus, Probe, Report, Rules, Watch},
};
use crate::model::{Card, CardInterface, Life, MemberState, Members, Problem};

/// Between two views, except for deaths and returns: of many changes at a time not each is seen.
const VIEW_EVERY: Duration = Duration::from_millis(20);
/// A member does not reach a living one when it has said so for so long.
const UNREACHED_AFTER: Duration = Duration::from_secs(1);
/// A timer later than this means that the process slept: others may hold it for dead.
const SLEPT: Duration = Duration::from_secs(1);

/// What the machine must know beside the nodes. A change needs a restart.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    pub rules: Rules,
    /// Where agents listen, the same on all nodes.
    pub gossip_port: u16,
    /// Greater at each start: milliseconds of the wall clock.
    pub incarnation: u64,
    /// Cannot be guessed: nonces of probes come from it.
    pub random: [u8; 32],
}

/// What this node tells others of itself, beside what the machine knows.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// Of the program.
    pub version: String,
    pub labels: BTreeMap<String, String>,
    /// On which it may announce.
    pub interfaces: Vec<CardInterface>,
}

/// All there is to do after some inputs.
#[derive(Debug, Default)]
pub struct Output {
    /// To send from the tunnel socket.
    pub probes: Vec<Probe>,
    /// To seal and send.
    pub datagrams: Vec<(SocketAddr, Vec<u8>)>,
    /// Streams to open; each ends with [`Gossip::on_pulled`] and [`Machine::note_pulled`].
    pub pulls: Vec<Pull>,
    /// Ask the gateways and tell [`Machine::on_gateway`].
    pub ask_gateway: bool,
    /// The new view, if it changed.
    pub members: Option<Arc<Members>>,
    /// Changes of entries that other tasks deal with.
    pub changes: Vec<Change>,
}

/// What one member says, as far as the machine reads it.
#[derive(Debug, Default)]
struct Said {
    card: Option<Arc<Card>>,
    /// Of the card.
    version: u64,
    announces: BTreeSet<IpAddr>,
}

#[derive(Debug)]
pub struct Machine {
    own: String,
    seed_tag: [u8; 8],
    gossip_port: u16,
    mute: Duration,
    gossip: Gossip,
    watch: Watch,
    word: OwnWord,
    /// Since when a member (first) does not reach a living one, and when the next of these words counts.
    unreached: BTreeMap<(String, String), Instant>,
    unreached_at: Option<Instant>,
    facts: Facts,
    rng: StdRng,
    said: BTreeMap<Arc<str>, Said>,
    drained: BTreeSet<String>,
    heard: Arc<BTreeSet<Arc<str>>>,
    /// A member has told all it knows.
    pulled: bool,
    /// This node's published card.
    card: Option<Arc<Card>>,
    members: Arc<Members>,
    changed: bool,
    viewed: Option<Instant>,
    changes: Vec<Change>,
    next: Option<Instant>,
}

impl Machine {
    pub fn new(settings: &Settings, now: Instant) -> Self {
        let rules = settings.rules;
        let mut rng = StdRng::from_seed(settings.random);
        let gossip = Gossip::new(&settings.node, settings.incarnation, rng.next_u64(), now);
        Self {
            own: settings.node.clone(),
            seed_tag: rules.seed_tag,
            gossip_port: settings.gossip_port,
            mute: rules.hold_downs.mute,
            gossip,
            watch: Watch::new(rules, &settings.node),
            word: OwnWord::new(rules.hold_downs, now),
            unreached: BTreeMap::new(),
            unreached_at: None,
            facts: Facts::default(),
            rng,
            said: BTreeMap::new(),
            drained: BTreeSet::new(),
            heard: Arc::default(),
            pulled: false,
            card: None,
            members: Arc::default(),
            changed: true,
            viewed: None,
            changes: Vec::new(),
            next: None,
        }
    }

    /// Configured nodes, this one among them, and further addresses of agents to ask.
    pub fn set_nodes(
        &mut self,
        nodes: &BTreeMap<String, Vec<IpAddr>>,
        seeds: &[SocketAddr],
        now: Instant,
    ) {
        let agents = |addresses: &Vec<IpAddr>| {
            addresses.iter().map(|address| SocketAddr::new(*address, self.gossip_port)).collect()
        };
        let agents = nodes.iter().map(|(name, it)| (name.clone(), agents(it))).collect();
        self.gossip.set_nodes(&agents, seeds, now);
        self.watch.set_nodes(nodes);
        self.changed = true;
    }

    pub fn set_facts(&mut self, facts: Facts) {
        self.changed |= self.facts != facts;
        self.facts = facts;
    }

    /// Whether the data plane holds all that is wanted of it.
    pub fn set_applied(&mut self, applied: bool) {
        self.changed |= self.word.applied != applied;
        self.word.applied = applied;
    }

    /// This node hands its VIPs over and goes.
    pub fn set_leaving(&mut self, leaving: bool) {
        self.changed |= self.word.leaving != leaving;
        self.word.leaving = leaving;
    }

    /// Nodes that an administrator has drained from forwarding, this one or others.
    pub fn set_drained(&mut self, drained: BTreeSet<String>) {
        self.changed |= self.drained != drained;
        self.word.drained = drained.contains(&self.own);
        self.drained = drained;
    }

    /// VIPs for which this node's data plane answers.
    pub fn set_announced(&mut self, vips: &BTreeSet<IpAddr>, now: Instant) {
        let own: Arc<str> = self.own.as_str().into();
        let before =
            std::mem::replace(&mut self.said.entry(own).or_default().announces, vips.clone());
        for (vip, value) in before
            .difference(vips)
            .map(|vip| (vip, None))
            .chain(vips.difference(&before).map(|vip| (vip, Some(Vec::new()))))
        {
            let key = Key::new(Topic::ANNOUNCES, Addr::from(*vip).octets());
            self.gossip.publish(key, value, true, now);
            self.changed = true;
        }
    }

    /// Sets or ends an entry of another task for all members.
    pub fn publish(&mut self, key: Key, value: Option<Vec<u8>>, urgent: bool, now: Instant) {
        self.gossip.publish(key, value, urgent, now);
    }

    /// Audiences, streams and what else only concerns gossip.
    pub fn gossip(&mut self) -> &mut Gossip {
        &mut self.gossip
    }

    /// Takes a packet from `address` at the tunnel port; false if it is no answer to a probe of ours.
    pub fn on_packet(&mut self, address: IpAddr, payload: &[u8], now: Instant) -> bool {
        self.watch.on_packet(address, payload, now)
    }

    /// Takes an agent's datagram that was opened.
    pub fn on_datagram(
        &mut self,
        from: SocketAddr,
        plain: &[u8],
        now: Instant,
    ) -> Result<(), Malformed> {
        self.gossip.on_datagram(from, plain, now)
    }

    /// Whether a gateway answered. Without any gateway: whether the uplink has a carrier.
    pub fn on_gateway(&mut self, answered: bool, now: Instant) {
        self.watch.on_gateway(answered, now);
    }

    /// A stream that gossip wanted has ended; `complete`: with all that the other had to say.
    pub fn note_pulled(&mut self, complete: bool) {
        self.pulled |= complete;
        self.changed = true;
    }

    /// Does what is due. All packets that have arrived were fed before.
    pub fn on_timer(&mut self, now: Instant) {
        let slept = self.next.map_or(Duration::ZERO, |due| now.saturating_duration_since(due));
        if slept > SLEPT {
            tracing::warn!(?slept, "this process did not run");
            self.gossip.rejoin(now);
            if slept >= self.mute {
                self.word.hold_back(now);
            }
            self.changed = true;
        }
        let rng = &mut self.rng;
        self.watch.on_timer(now, &mut || rng.next_u64());
        self.gossip.on_timer(now);
        self.changed |= self.word.next_timer().is_some_and(|at| at <= now);
        self.changed |= self.unreached_at.is_some_and(|at| at <= now);
    }

    /// When [`Machine::on_timer`] has something to do.
    pub fn next_timer(&self) -> Option<Instant> {
        self.next
    }

    /// Draws the conclusions from all inputs and gives what is to be done.
    pub fn poll(&mut self, now: Instant) -> Output {
        self.listen();
        self.watch.decide(now);
        for (name, report) in self.watch.take_reports() {
            let urgent = report.finding == Finding::Silent || report.void > 0;
            let key = Key::new(Topic::REPORT, name.as_bytes());
            self.gossip.publish(key, report.encode(), urgent, now);
        }
        let members = self.conclude(now);
        // What waits for the next view waits for nothing else.
        let view = self.viewed.map(|at| at + VIEW_EVERY).filter(|_| self.changed);
        let own = view.or(self.word.next_timer());
        self.unreached_at = self.unreached_counts(now);
        let timers = [self.watch.next_timer(), self.gossip.next_timer(), own, self.unreached_at];
        self.next = timers.into_iter().flatten().min();
        Output {
            probes: self.watch.take_probes(),
            datagrams: self.gossip.take_datagrams(),
            pulls: self.gossip.take_pulls(),
            ask_gateway: self.watch.take_question(),
            members,
            changes: std::mem::take(&mut self.changes),
        }
    }

    /// The view as of the last poll.
    pub fn members(&self) -> &Arc<Members> {
        &self.members
    }

    /// All other nodes for status.
    pub fn status(&self, now: Instant) -> BTreeMap<String, NodeStatus> {
        self.watch.status(now)
    }

    pub fn counts(&self) -> Counts {
        self.gossip.counts()
    }

    /// Where nodes do not fit together: both sides and the remedy.
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        let own = &self.own;
        let of_data_planes = self.status(now);
        let of_data_planes =
            of_data_planes.iter().flat_map(|(name, status)| status.problems(name, own));
        let of_agents = self.said.iter().filter_map(|(name, said)| {
            let theirs = &said.card.as_ref()?.version;
            let ours = &self.facts.version;
            (**name != **own && theirs != ours).then(|| Problem {
                object: format!("Node/{name}"),
                message: format!(
                    "it runs weir {theirs}, {own} runs {ours}: run one version on both"
                ),
            })
        });
        of_data_planes.chain(of_agents).collect()
    }

    /// Takes up what gossip brought.
    fn listen(&mut self) {
        let heard = self.gossip.heard();
        if !Arc::ptr_eq(&heard, &self.heard) {
            self.watch.set_heard(&heard);
            self.heard = heard;
            self.changed = true;
        }
        for change in self.gossip.take_changes() {
            match change.key.topic {
                Topic::CARD => self.hear_card(&change),
                Topic::REPORT => {
                    let report = change.value.as_deref().map(Report::decode).unwrap_or_default();
                    if let Ok(subject) = std::str::from_utf8(&change.key.name) {
                        self.watch.on_report(&change.origin, subject, report);
                    }
                }
                Topic::ANNOUNCES => self.hear_announces(&change),
                _ => self.changes.push(change),
            }
        }
    }

    fn hear_card(&mut self, change: &Change) {
        let said = self.said.entry(Arc::clone(&change.origin)).or_default();
        // A card that cannot be read is none: its version counts all the same.
        let card = change.value.as_deref().and_then(|value| serde_json::from_slice(value).ok());
        said.card = card.map(Arc::new);
        let version = self.gossip.version(&change.origin, &change.key).unwrap_or_default();
        said.version = version;
        self.watch.on_card(&change.origin, version);
        self.changed = true;
    }

    fn hear_announces(&mut self, change: &Change) {
        let Ok(octets) = <[u8; 16]>::try_from(change.key.name.as_slice()) else { return };
        let vip = Addr::from(octets).to_ip();
        let said = self.said.entry(Arc::clone(&change.origin)).or_default();
        self.changed |= match change.value {
            Some(_) => said.announces.insert(vip),
            None => said.announces.remove(&vip),
        };
    }

    /// Makes the view anew where something changed, and says what follows from it.
    fn conclude(&mut self, now: Instant) -> Option<Arc<Members>> {
        self.changed |= self.watch.take_changed();
        let at_once = self.watch.take_moved();
        let soon = self.viewed.is_some_and(|at| now < at + VIEW_EVERY);
        if !self.changed || (soon && !at_once) {
            return None;
        }
        (self.changed, self.viewed) = (false, Some(now));
        let void = self.word.learn_void(self.watch.void(&self.own), now);
        let mut members = self.view(now);
        if self.speak(&members, void, now) {
            members = self.view(now);
        }
        (*self.members != members).then(|| {
            self.members = Arc::new(members);
            Arc::clone(&self.members)
        })
    }

    /// Who is first to miss a node that dies is not cut off from it: only what stays so counts.
    fn settle_unreached(&mut self, nodes: &mut BTreeMap<String, MemberState>, now: Instant) {
        let mut since = BTreeMap::new();
        for (name, member) in nodes {
            member.unreachable.retain(|subject| {
                let key = (name.clone(), subject.clone());
                let first = self.unreached.get(&key).copied().unwrap_or(now);
                since.insert(key, first);
                first + UNREACHED_AFTER <= now
            });
        }
        self.unreached = since;
    }

    /// When somebody's word that it does not reach a node begins to count.
    fn unreached_counts(&self, now: Instant) -> Option<Instant> {
        let counts = self.unreached.values().map(|first| *first + UNREACHED_AFTER);
        counts.filter(|at| *at > now).min()
    }

    fn view(&mut self, now: Instant) -> Members {
        let mut nodes = self.watch.members(now);
        self.settle_unreached(&mut nodes, now);
        for (name, member) in &mut nodes {
            let Some(said) = self.said.get(name.as_str()) else { continue };
            member.announces.clone_from(&said.announces);
            let Some(card) = &said.card else { continue };
            member.announcing = card.announcing
                && !card.leaving
                && !self.drained.contains(name)
                && said.version > self.watch.void(name);
            member.card = Some(Arc::clone(card));
        }
        if let Some(own) = nodes.get_mut(&self.own) {
            own.heard = true;
        }
        let (ready, isolated) = (self.watch.ready(), self.watch.isolated());
        Members { own: self.own.clone(), ready, isolated, nodes }
    }

    /// Publishes this node's card if it has changed, or if the last one is void; true if so.
    fn speak(&mut self, members: &Members, void: bool, now: Instant) -> bool {
        let announcing = self.word.announcing(self.others(members), now);
        if self.card.is_none() && !announcing && !self.word.may_speak(now) {
            return false;
        }
        let card = Card {
            version: self.facts.version.clone(),
            seed_tag: self.seed_tag,
            layout: LAYOUT_VERSION,
            labels: self.facts.labels.clone(),
            interfaces: self.facts.interfaces.clone(),
            announcing,
            leaving: self.word.leaving || self.word.drained,
        };
        let key = Key::new(Topic::CARD, "");
        if !void && self.card.as_deref() == Some(&card) {
            return false;
        }
        let before = self.card.as_deref().map(|card| (card.announcing, card.leaving));
        let urgent = void || before != Some((card.announcing, card.leaving));
        let bytes = serde_json::to_vec(&card).expect("names and numbers always encode");
        self.gossip.publish(key, Some(bytes), urgent, now);
        let card = Arc::new(card);
        let version = self.gossip.version(&self.own, &Key::new(Topic::CARD, ""));
        let said = self.said.entry(self.own.as_str().into()).or_default();
        (said.card, said.version) = (Some(Arc::clone(&card)), version.unwrap_or_default());
        self.card = Some(card);
        true
    }

    fn others(&self, members: &Members) -> Others {
        let others = || members.nodes.iter().filter(|(name, _)| **name != self.own);
        let has_card = |name: &Arc<str>| self.said.get(name).is_some_and(|it| it.card.is_some());
        Others {
            ready: members.ready,
            any: others().any(|(_, member)| member.life.forwards()),
            announce: others().any(|(_, it)| it.life == Life::Alive && it.announcing),
            known: !self.heard.is_empty() && (self.pulled || self.heard.iter().all(has_card)),
            answered: !self.watch.awaits_answers(),
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
