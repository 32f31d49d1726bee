//! What this member says of claims, views and lineages: the difference to what it said before.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::siphash;

use super::wire::{self, Descent, LISTED_MOST, Listing};
use crate::{
    membership::{Key, Publication, Topic},
    model::Members,
    plan::{
        FrontendKey,
        flows::{Displaced, Lineage},
    },
};

/// Claims that one member publishes; those with the fewest flows stay untold beyond.
pub const CLAIMS_MOST: usize = 150_000;
/// Members that publish a frontend's lineage: one may die.
const TELLERS: usize = 2;
/// A changed number of flows alone is worth telling from one part in so many on.
const WORTH_TELLING: u64 = 10;
/// Orders members by frontend; it needs no secret.
const TELLER_KEY: [u64; 2] = [u64::from_le_bytes(*b"tellers1"), u64::from_le_bytes(*b"tellers2")];

/// Displaced flows of this node, by frontend and backend.
pub type Claims = BTreeMap<FrontendKey, BTreeMap<SocketAddr, Displaced>>;
/// Frontends that changed lately.
pub type Recent = BTreeMap<FrontendKey, Lineage>;

#[derive(Debug)]
struct Said {
    claim: Displaced,
    digest: u32,
}

/// What was published, and so stands.
#[derive(Debug, Default)]
pub struct Publisher {
    claims: BTreeMap<(FrontendKey, SocketAddr), Said>,
    views: BTreeMap<u8, Vec<u8>>,
    lineages: BTreeMap<FrontendKey, Vec<u8>>,
    /// Claims and frontends that found no room the last time.
    left_out: [usize; 2],
}

impl Publisher {
    /// Whether any claim stands.
    pub fn claims_any(&self) -> bool {
        !self.claims.is_empty()
    }

    /// What is not told because there is too much of it.
    pub fn left_out(&self) -> usize {
        self.left_out.iter().sum()
    }

    /// Claims that are new, changed or over. At most once a second, by whoever scans.
    pub fn claims(&mut self, displaced: &Claims) -> Vec<Publication> {
        let all = displaced.iter().flat_map(|(frontend, claims)| {
            claims.iter().map(|(backend, claim)| ((*frontend, *backend), claim))
        });
        let mut all: Vec<_> = all.collect();
        self.left_out[0] = all.len().saturating_sub(CLAIMS_MOST);
        if self.left_out[0] > 0 {
            all.sort_by_key(|((frontend, backend), claim)| {
                (std::cmp::Reverse(claim.flows), *frontend, *backend)
            });
            all.truncate(CLAIMS_MOST);
        }
        let mut former = std::mem::take(&mut self.claims);
        let mut publications = Vec::new();
        for (at, claim) in all {
            let said = match former.remove(&at) {
                Some(said) if !is_worth_telling(&said.claim, claim) => said,
                _ => {
                    let key = wire::claim_key(&at.0, at.1);
                    let value = wire::encode_claim(claim);
                    let digest = wire::digest(&key.name, &value);
                    publications.push((key, Some(value)));
                    Said { claim: claim.clone(), digest }
                }
            };
            self.claims.insert(at, said);
        }
        let over = former.into_keys();
        publications
            .extend(over.map(|(frontend, backend)| (wire::claim_key(&frontend, backend), None)));
        publications
    }

    /// What the data plane holds, after the claims of a scan that began since.
    pub fn views(&mut self, recent: &Recent) -> Vec<Publication> {
        let mut sums = BTreeMap::<FrontendKey, u32>::new();
        for ((frontend, _), said) in &self.claims {
            let sum = sums.entry(*frontend).or_default();
            *sum = sum.wrapping_add(said.digest);
        }
        let mut lists = BTreeMap::<u8, BTreeMap<FrontendKey, Listing>>::new();
        for (frontend, lineage) in recent {
            let sum = sums.get(frontend).copied().unwrap_or_default();
            let list = lists.entry(wire::bucket(frontend)).or_default();
            list.insert(*frontend, Listing { epoch: lineage.epoch, sum });
        }
        let beyond = |list: &BTreeMap<_, _>| list.len().saturating_sub(LISTED_MOST);
        self.left_out[1] = lists.values().map(beyond).sum();
        let views = lists.into_iter().map(|(bucket, list)| (bucket, wire::encode_view(&list)));
        let key = |bucket: &u8| Key::new(Topic::VIEW, [*bucket]);
        difference(&mut self.views, views.collect(), key)
    }

    /// Sets of before, where this member is one of those that tell them.
    pub fn lineages(&mut self, recent: &Recent, members: &Members) -> Vec<Publication> {
        let alive = members.nodes.keys().filter(|name| members.has_agent(name));
        let mut alive: BTreeSet<&str> = alive.map(String::as_str).collect();
        alive.insert(&members.own);
        let mine = recent.iter().filter(|(frontend, lineage)| {
            !lineage.past.is_empty() && tells(frontend, &members.own, &alive)
        });
        let told = mine
            .filter_map(|(frontend, lineage)| Some((*frontend, Descent::of(lineage).encode()?)));
        difference(&mut self.lineages, told.collect(), wire::lineage_key)
    }
}

/// Whether others should hear of it.
fn is_worth_telling(said: &Displaced, now: &Displaced) -> bool {
    said.slots != now.slots || said.flows.abs_diff(now.flows) > said.flows / WORTH_TELLING
}

/// Whether a member is one of the first by rendezvous.
fn tells(frontend: &FrontendKey, own: &str, alive: &BTreeSet<&str>) -> bool {
    let key = siphash::hash(TELLER_KEY, &wire::frontend_name(frontend));
    let mine = rank(key, own);
    alive.iter().filter(|name| rank(key, name) > mine).take(TELLERS).count() < TELLERS
}

fn rank(key: u64, name: &str) -> (u64, &str) {
    (siphash::hash([TELLER_KEY[0], key], name.as_bytes()), name)
}

/// Makes `former` what is `now`; returns what changed.
fn difference<K: Ord + Copy>(
    former: &mut BTreeMap<K, Vec<u8>>,
    now: BTreeMap<K, Vec<u8>>,
    key: impl Fn(&K) -> Key,
) -> Vec<Publication> {
    let over = former.keys().filter(|it| !now.contains_key(it)).map(|it| (key(it), None));
    let changed = now.iter().filter(|(it, value)| former.get(it) != Some(value));
    let changed = changed.map(|(it, value)| (key(it), Some(value.clone())));
    let publications = over.chain(changed).collect();
    *former = now;
    publications
}

/// A publication as this member hears itself.
pub fn heard(own: &Arc<str>, (key, value): &Publication) -> crate::membership::Change {
    let value = value.as_deref().map(Arc::from);
    crate::membership::Change { origin: own.clone(), key: key.clone(), value }
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
