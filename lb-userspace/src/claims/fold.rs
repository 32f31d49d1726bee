//! Folds what members say, this one too, into [`Consensus`].
//!
//! Keeps all of it, also of the dead, whose claims only do not count. A change costs what it is about: a
//! frontend that nobody speaks of stays the same `Arc`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use super::wire::{self, Descent, Listing, decode_claim};
use crate::{
    membership::{Change, Topic},
    model::{Life, Members},
    plan::{
        FrontendKey,
        flows::{Claimed, Consensus, Displaced, Lineage},
    },
};

/// A member's claim.
#[derive(Debug)]
struct Heard {
    claim: Displaced,
    digest: u32,
}

/// What one member has applied, by its own word.
#[derive(Debug, Default)]
struct View {
    listed: BTreeMap<u8, BTreeMap<FrontendKey, Listing>>,
    /// Sums of its claims that have arrived.
    sums: BTreeMap<FrontendKey, u32>,
}

#[derive(Debug)]
pub struct Fold {
    own: Arc<str>,
    claims: BTreeMap<FrontendKey, BTreeMap<(SocketAddr, Arc<str>), Heard>>,
    views: BTreeMap<Arc<str>, View>,
    descents: BTreeMap<FrontendKey, BTreeMap<Arc<str>, Descent>>,
    recent: Arc<BTreeMap<FrontendKey, Lineage>>,
    dead: BTreeSet<Arc<str>>,
    /// Frontends whose claims changed.
    stale: BTreeSet<FrontendKey>,
    consensus: Consensus,
    changed: bool,
    malformed: u64,
}

impl Fold {
    pub fn new(own: Arc<str>) -> Self {
        Self {
            own,
            claims: BTreeMap::new(),
            views: BTreeMap::new(),
            descents: BTreeMap::new(),
            recent: Arc::default(),
            dead: BTreeSet::new(),
            stale: BTreeSet::new(),
            consensus: Consensus::default(),
            changed: false,
            malformed: 0,
        }
    }

    /// Entries that made no sense since the last call.
    pub fn take_malformed(&mut self) -> u64 {
        std::mem::take(&mut self.malformed)
    }

    /// Takes what a member says, this one or another.
    pub fn on_change(&mut self, change: &Change) {
        let Change { origin, key, value } = change;
        let value = value.as_deref();
        let read = match key.topic {
            Topic::CLAIM => self.hear_claim(origin, &key.name, value),
            Topic::VIEW => self.hear_view(origin, &key.name, value),
            Topic::LINEAGE => self.hear_lineage(origin, &key.name, value),
            _ => Some(()),
        };
        self.malformed += u64::from(read.is_none());
    }

    /// The dead know no flows any more. Those that are only mute do.
    pub fn set_members(&mut self, members: &Members) {
        let dead = members.nodes.iter().filter(|(_, member)| member.life == Life::Dead);
        let dead: BTreeSet<Arc<str>> = dead.map(|(name, _)| name.as_str().into()).collect();
        let moved: BTreeSet<_> = self.dead.symmetric_difference(&dead).cloned().collect();
        self.dead = dead;
        if moved.is_empty() {
            return;
        }
        let concerned = self
            .claims
            .iter()
            .filter(|(_, claims)| claims.keys().any(|(_, origin)| moved.contains(origin)));
        self.stale.extend(concerned.map(|(frontend, _)| *frontend));
    }

    /// What this node's data plane holds: sets of others are told as differences from it.
    pub fn set_recent(&mut self, recent: &Arc<BTreeMap<FrontendKey, Lineage>>) {
        if Arc::ptr_eq(&self.recent, recent) {
            return;
        }
        self.recent = recent.clone();
        let lineages = self.descents.keys().filter_map(|it| Some((*it, self.lineage(it)?)));
        let lineages: BTreeMap<_, _> = lineages.collect();
        self.changed |= self.consensus.lineages != lineages;
        self.consensus.lineages = lineages;
    }

    /// What all say, if it changed since the last call.
    pub fn take(&mut self) -> Option<Arc<Consensus>> {
        for frontend in std::mem::take(&mut self.stale) {
            let claimed = self.claimed(&frontend);
            let before = self.consensus.claims.get(&frontend);
            if before.map(|it| &**it) == claimed.as_ref() {
                continue;
            }
            self.changed = true;
            match claimed {
                Some(claimed) => drop(self.consensus.claims.insert(frontend, claimed.into())),
                None => drop(self.consensus.claims.remove(&frontend)),
            }
        }
        std::mem::take(&mut self.changed).then(|| Arc::new(self.consensus.clone()))
    }

    /// Whether [`Self::take`] may have something.
    pub fn is_stale(&self) -> bool {
        self.changed || !self.stale.is_empty()
    }

    fn hear_claim(&mut self, origin: &Arc<str>, name: &[u8], value: Option<&[u8]>) -> Option<()> {
        let (frontend, backend) = wire::read_claim_name(name)?;
        let claim = value.map(decode_claim);
        let claims = self.claims.entry(frontend).or_default();
        let at = (backend, origin.clone());
        let former = match value {
            // One that cannot be read counts among those that have arrived.
            Some(value) => {
                let claim = claim.clone().flatten().unwrap_or_default();
                claims.insert(at, Heard { claim, digest: wire::digest(name, value) })
            }
            None => claims.remove(&at),
        };
        if claims.is_empty() {
            self.claims.remove(&frontend);
        }
        let view = self.views.entry(origin.clone()).or_default();
        let sum = view.sums.entry(frontend).or_default();
        *sum = sum.wrapping_sub(former.map_or(0, |it| it.digest));
        *sum = sum.wrapping_add(value.map_or(0, |value| wire::digest(name, value)));
        if *sum == 0 {
            view.sums.remove(&frontend);
        }
        self.stale.insert(frontend);
        self.confirm(origin, wire::bucket(&frontend), Some(frontend));
        claim.is_none_or(|claim| claim.is_some()).then_some(())
    }

    fn hear_view(&mut self, origin: &Arc<str>, name: &[u8], value: Option<&[u8]>) -> Option<()> {
        let [bucket] = *<&[u8; 1]>::try_from(name).ok()?;
        let list = value.map_or_else(|| Some(BTreeMap::new()), wire::decode_view);
        let read = list.is_some().then_some(());
        let list = list.unwrap_or_default();
        let view = self.views.entry(origin.clone()).or_default();
        let former = view.listed.insert(bucket, list).unwrap_or_default();
        let list = &view.listed[&bucket];
        let over = |frontend: &FrontendKey, epoch: &u64| {
            former.contains_key(frontend) && list.get(frontend).is_none_or(|it| it.epoch != *epoch)
        };
        if let Some(confirmed) = self.consensus.views.get_mut(origin)
            && confirmed.iter().any(|(frontend, epoch)| over(frontend, epoch))
        {
            Arc::make_mut(confirmed).retain(|frontend, epoch| !over(frontend, epoch));
            self.changed = true;
        }
        self.confirm(origin, bucket, None);
        read
    }

    /// What a member lists counts once all its claims there have arrived; what they become later is no
    /// matter.
    fn confirm(&mut self, origin: &Arc<str>, bucket: u8, only: Option<FrontendKey>) {
        let Some(View { listed, sums }) = self.views.get(origin) else { return };
        let Some(list) = listed.get(&bucket) else { return };
        let known = self.consensus.views.get(origin);
        let complete = |(frontend, listing): (&FrontendKey, &Listing)| {
            let arrived = sums.get(frontend).copied().unwrap_or_default() == listing.sum;
            let known = known.is_some_and(|it| it.contains_key(frontend));
            (arrived && !known).then_some((*frontend, listing.epoch))
        };
        let news: Vec<_> = match only {
            Some(frontend) => {
                list.get_key_value(&frontend).and_then(complete).into_iter().collect()
            }
            None => list.iter().filter_map(complete).collect(),
        };
        if !news.is_empty() {
            self.changed = true;
            let confirmed = self.consensus.views.entry(origin.clone()).or_default();
            Arc::make_mut(confirmed).extend(news);
        }
    }

    fn hear_lineage(&mut self, origin: &Arc<str>, name: &[u8], value: Option<&[u8]>) -> Option<()> {
        let frontend = wire::read_frontend_name(name)?;
        if *origin == self.own {
            return Some(());
        }
        let descent = value.map(Descent::decode);
        let descents = self.descents.entry(frontend).or_default();
        match descent.clone().flatten() {
            Some(descent) => drop(descents.insert(origin.clone(), descent)),
            None => drop(descents.remove(origin)),
        }
        if descents.is_empty() {
            self.descents.remove(&frontend);
        }
        let before = self.consensus.lineages.get(&frontend);
        let now = self.lineage(&frontend);
        if before != now.as_ref() {
            self.changed = true;
            match now {
                Some(now) => drop(self.consensus.lineages.insert(frontend, now)),
                None => drop(self.consensus.lineages.remove(&frontend)),
            }
        }
        descent.is_none_or(|it| it.is_some()).then_some(())
    }

    /// The longest that others tell of what is in force here.
    fn lineage(&self, frontend: &FrontendKey) -> Option<Lineage> {
        let Lineage { epoch, owners, .. } = self.recent.get(frontend)?;
        let fitting = self.descents.get(frontend)?.values().filter(|it| it.epoch == *epoch);
        let longest =
            fitting.reduce(|best, it| if it.length() > best.length() { it } else { best })?;
        let past = longest.past(owners).into_iter().map(Arc::new).collect();
        Some(Lineage { epoch: *epoch, owners: owners.clone(), past })
    }

    fn claimed(&self, frontend: &FrontendKey) -> Option<Claimed> {
        let mut claimed = Claimed::default();
        for ((backend, origin), Heard { claim, .. }) in self.claims.get(frontend)? {
            if self.dead.contains(origin) {
                continue;
            }
            for slot in &claim.slots {
                claimed.slots.entry(*slot).or_default().insert(*backend);
            }
            let flows = (claim.flows, origin.clone());
            // Of several members that speak for one backend, the one with the most.
            let said = claimed.flows.entry(*backend).or_insert_with(|| flows.clone());
            if said.0 < flows.0 {
                *said = flows;
            }
        }
        (!claimed.flows.is_empty()).then_some(claimed)
    }
}

#[cfg(test)]
#[path = "fold_tests.rs"]
mod tests;
