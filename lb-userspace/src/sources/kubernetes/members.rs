//! Which endpoints of a Service's port take new flows, which keep those that they have.
//!
//! Pure. The API alone says what exists: an endpoint that is absent is absent. It says which of them are
//! ready too, with two exceptions, as an API server that has lost sight of the nodes calls everything not
//! ready although all of it serves:
//!
//! 1. An endpoint that turned not ready while nobody hears its node's kubelet (Node Ready is Unknown), but
//!    gossip hears the node, keeps its last readiness.
//! 2. Of a pool that the API leaves without any usable endpoint, those that were ready within the last
//!    [`WINDOW`] before that are kept while our own probe does not find them down. One that a probe found
//!    down stays out until the API calls it ready again. Where nothing can be probed (UDP), the API decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::near::Hinted;
use crate::model::{Check, Health, Intent, Pool, Target, Verdicts, intent};

/// Endpoints that turned not ready within this before a pool ran empty did so together.
pub const WINDOW: Duration = Duration::from_secs(60);

/// Word of endpoints and of their node come by different ways: so much earlier an endpoint may turn not ready
/// than its node turns unknown, and still be a victim of that.
const RACE: Duration = Duration::from_secs(10);

/// An endpoint of one Service port, of all slices.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Found {
    /// Name of its node.
    pub node: String,
    /// While it terminates only where the Service publishes addresses that are not ready.
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub hinted: Hinted,
}

impl Found {
    /// It ends, and serves only where no other one does.
    pub fn is_last_resort(&self) -> bool {
        self.terminating && !self.ready
    }
}

/// By address and port.
pub type Endpoints = BTreeMap<SocketAddr, Found>;

/// What is known of nodes beside their objects.
#[derive(Clone, Debug, Default)]
pub struct NodeView<'a> {
    /// Nodes whose kubelet is silent but whose data plane is heard, by name, with when that was first seen.
    pub half_dead: BTreeMap<&'a str, Instant>,
}

/// The readiness of before. Part of no checkpoint: the members of one say it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Memory {
    /// By object.
    pools: BTreeMap<String, Past>,
    /// When a node was first seen to be unknown.
    pub(super) unknown: BTreeMap<String, Instant>,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Past {
    /// The API called them ready when it was asked last.
    ready: BTreeSet<SocketAddr>,
    /// They are still there, and were ready once.
    unready: BTreeMap<SocketAddr, Unready>,
    /// When the API left the pool without ready ones.
    emptied: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Unready {
    since: Instant,
    /// A probe agreed with the API.
    given_up: bool,
}

/// Who serves a port.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Chosen {
    /// They take new flows.
    pub usable: BTreeSet<SocketAddr>,
    /// They keep those that they have.
    pub ending: BTreeSet<SocketAddr>,
    /// How many of the usable ones the API calls not ready.
    pub held: usize,
}

impl Memory {
    /// What served by a checkpoint was ready.
    pub fn of(intent: &Intent) -> Self {
        let mut memory = Self::default();
        let objects = intent.frontends.values();
        for object in objects.filter(|it| it.name.starts_with(intent::OF_SERVICE)) {
            let Pool::Members(members) = &object.pool else { continue };
            let target = object.ports.first().map_or(0, |port| port.target_port);
            let serving = members.iter().filter(|member| !member.terminating);
            let ready = serving
                .map(|member| SocketAddr::new(member.address, member.port.unwrap_or(target)))
                .collect();
            memory.pools.insert(object.name.clone(), Past { ready, ..Past::default() });
        }
        memory
    }

    /// Forgets one object.
    pub fn forget(&mut self, object: &str) {
        self.pools.remove(object);
    }

    /// Forgets all other objects.
    pub fn retain(&mut self, known: impl Fn(&str) -> bool) {
        self.pools.retain(|object, _| known(object));
    }

    /// Decides for one object. `local_only`: every node chooses among its own endpoints.
    pub fn choose(
        &mut self,
        object: &str,
        endpoints: &Endpoints,
        nodes: &NodeView<'_>,
        (check, verdicts): (Option<&Check>, &Verdicts),
        local_only: bool,
        now: Instant,
    ) -> Chosen {
        if !self.pools.contains_key(object) {
            self.pools.insert(object.to_owned(), Past::default());
        }
        let Some(past) = self.pools.get_mut(object) else { return Chosen::default() };
        past.note(endpoints, now);
        let ready = |address: &SocketAddr, found: &Found| {
            found.ready || !found.terminating && past.excused(address, &found.node, nodes)
        };
        let mut chosen = Chosen::default();
        let of_pool = |policy: &mut dyn FnMut(BTreeMap<&SocketAddr, &Found>)| match local_only {
            false => policy(endpoints.iter().collect()),
            true => by_node(endpoints).into_values().for_each(policy),
        };
        of_pool(&mut |group| {
            let set: BTreeSet<SocketAddr> =
                group.iter().filter(|it| ready(it.0, it.1)).map(|it| **it.0).collect();
            chosen.usable.extend(match set.is_empty() {
                false => set,
                true => fallback(&group),
            });
        });
        if chosen.usable.is_empty()
            && let Some(check) = check
        {
            chosen.usable = past.keep(check, verdicts);
        }
        let terminating = endpoints.iter().filter(|(_, found)| found.terminating);
        let ending = terminating.map(|(address, _)| *address);
        chosen.ending = ending.filter(|address| !chosen.usable.contains(address)).collect();
        let unready = |address: &&SocketAddr| {
            endpoints.get(address).is_some_and(|it| !it.ready && !it.terminating)
        };
        chosen.held = chosen.usable.iter().filter(unready).count();
        chosen
    }
}

fn by_node(endpoints: &Endpoints) -> BTreeMap<&str, BTreeMap<&SocketAddr, &Found>> {
    let mut groups: BTreeMap<&str, BTreeMap<&SocketAddr, &Found>> = BTreeMap::new();
    for (address, found) in endpoints {
        groups.entry(&found.node).or_default().insert(address, found);
    }
    groups
}

/// Where none is ready, those that still serve while they end.
fn fallback(group: &BTreeMap<&SocketAddr, &Found>) -> BTreeSet<SocketAddr> {
    group.iter().filter(|(_, it)| it.serving && it.terminating).map(|(it, _)| **it).collect()
}

impl Past {
    fn note(&mut self, endpoints: &Endpoints, now: Instant) {
        self.unready.retain(|address, _| endpoints.get(address).is_some_and(|it| !it.terminating));
        let before = std::mem::take(&mut self.ready);
        for (address, found) in endpoints {
            if found.ready {
                self.ready.insert(*address);
                self.unready.remove(address);
            } else if before.contains(address) && !found.terminating {
                self.unready.insert(*address, Unready { since: now, given_up: false });
            }
        }
        match self.ready.is_empty() {
            true => self.emptied = self.emptied.or(Some(now)),
            false => self.emptied = None,
        }
    }

    /// Whether an endpoint is not ready only because nobody hears its node's kubelet.
    fn excused(&self, address: &SocketAddr, node: &str, nodes: &NodeView<'_>) -> bool {
        let unready = self.unready.get(address);
        let since = nodes.half_dead.get(node);
        unready.zip(since).is_some_and(|(unready, unknown)| unready.since + RACE >= *unknown)
    }

    /// Those that ran out of readiness together, and that no probe finds down.
    fn keep(&mut self, check: &Check, verdicts: &Verdicts) -> BTreeSet<SocketAddr> {
        let Some(emptied) = self.emptied else { return BTreeSet::new() };
        let mut kept = BTreeSet::new();
        for (address, unready) in &mut self.unready {
            let target =
                Target { address: intent::probe_address(*address, check), check: check.clone() };
            unready.given_up |= matches!(verdicts.get(&target), Some(Health::Down(_)));
            if !unready.given_up && unready.since + WINDOW >= emptied {
                kept.insert(*address);
            }
        }
        kept
    }
}
