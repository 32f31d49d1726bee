//! Which sets of backends were in force before, which frontends are young, whose lives go on: what a plan
//! must hold beside the sets of now so that no flow to a living backend breaks.
//!
//! Owners change at once, always. The set that was in force becomes a past one, and the frontend is young
//! until all living agents say that they hold the same set and have claimed what they still know of others.
//! Pure: time comes in, and a change costs what changed, not what there is.

mod kept;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::{
    service::flags::{ALWAYS_YOUNG, YOUNG},
    table::{RANKS, Seed},
};

use super::{
    Desired, Edited, FrontendKey,
    flows::{Claimed, Consensus, Former, Lineage, Owners, PAST},
    owners::Pool,
};
use crate::model::Members;
use kept::Kept;

/// Times and limits of all frontends' histories.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Sets enter a history at least this far apart; one that is in force for less may never do.
    pub apart: Duration,
    /// A frontend is young for at least this long: scans must have begun after the last flow that the
    /// former set placed.
    pub young: Duration,
    /// How long a frontend counts as lately changed. A change that is older is no longer waited for
    /// where a member says nothing of the frontend.
    pub lately: Duration,
    /// How long a node without history waits for one of another's before ranks stand in for it.
    pub ranks: Duration,
    /// A backend that left every pool lives at least this long: longer than claims take to arrive.
    pub linger: Duration,
    /// Most backends that live on after they left every pool, and an eighth more for a moment; the first that
    /// left end first.
    pub kept: usize,
    /// Least time between two looks at who agrees.
    pub rest: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            apart: Duration::from_secs(1),
            young: Duration::from_secs(5),
            lately: Duration::from_secs(60),
            ranks: Duration::from_secs(2),
            linger: Duration::from_secs(10),
            kept: 1024,
            rest: Duration::from_millis(200),
        }
    }
}

/// How a plan differs from the one that was remembered last.
#[derive(Clone, Copy, Debug)]
pub enum Changed<'a> {
    /// It was made anew; this was the one before, as remembered (empty: there was none).
    Anew(&'a Desired),
    /// Only these frontends' owners.
    Owners(&'a BTreeSet<FrontendKey>),
    /// Only pools.
    Pools(&'a Edited),
}

/// What remembering changed in a plan, beside its owners.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Touched {
    pub frontends: BTreeSet<FrontendKey>,
    pub backends: BTreeSet<SocketAddr>,
}

/// What a former agent's data plane holds of one frontend.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Left {
    pub epoch: u64,
    pub young: bool,
    /// Its tables, the one in force first, then those of before: first block (0: none), and who owns slots
    /// in it. Weights are not known.
    pub tables: Vec<(u32, Arc<Owners>)>,
}

/// For people: what is not settled.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Unsettled {
    /// Young frontends.
    pub young: usize,
    /// When the set changed of the one that has been young for longest.
    pub since: Option<Instant>,
    /// How many of them wait for each member, of those that have lasted long enough.
    pub waiting: BTreeMap<Arc<str>, usize>,
    /// Backends that live on after they left every pool.
    pub kept: usize,
    /// How many ended before their time because there were too many.
    pub cut_short: u64,
}

/// The sets of all frontends.
#[derive(Debug)]
pub struct History {
    seed: Seed,
    rules: Rules,
    lines: BTreeMap<FrontendKey, Line>,
    young: BTreeSet<FrontendKey>,
    /// Lately changed, or young.
    recent: BTreeSet<FrontendKey>,
    /// When to look at a frontend again, whatever comes.
    looks: BTreeSet<(Instant, FrontendKey)>,
    kept: Kept,
    /// What was heard when it was last looked at.
    consensus: Arc<Consensus>,
    members: Arc<Members>,
    /// Something was heard that may let frontends settle.
    heard: bool,
    looked: Option<Instant>,
    deadline: Option<Instant>,
}

/// One frontend's sets.
#[derive(Debug)]
struct Line {
    epoch: u64,
    owners: Arc<Owners>,
    /// The table in force is a former agent's, from this block on.
    held: Option<u32>,
    /// Newest first, at most [`PAST`].
    past: Vec<Earlier>,
    slots: u32,
    /// The tables depend on the node: nobody is waited for.
    alone: bool,
    young: bool,
    /// When the set in force came.
    changed: Instant,
    /// When a set last entered `past`.
    entered: Option<Instant>,
    /// The set in force was in `past` before: it returns there.
    returned: bool,
    /// Since when this node has the frontend, where it had no part in what was before.
    joined: Option<Instant>,
    ranks: bool,
    /// Epoch and length of the last lineage that was taken from others.
    borrowed: Option<(u64, usize)>,
    /// Who was waited for last: who asks first is answered soonest.
    waits_for: Option<Arc<str>>,
}

#[derive(Debug)]
struct Earlier {
    former: Former,
    owners: Arc<Owners>,
}

impl History {
    pub fn new(seed: Seed, rules: Rules) -> Self {
        Self {
            seed,
            kept: Kept::default(),
            rules,
            lines: BTreeMap::new(),
            young: BTreeSet::new(),
            recent: BTreeSet::new(),
            looks: BTreeSet::new(),
            consensus: Arc::default(),
            members: Arc::default(),
            heard: false,
            looked: None,
            deadline: None,
        }
    }

    /// Goes on where a former agent stopped: what its data plane holds. Before anything is remembered.
    pub fn resume(&mut self, left: BTreeMap<FrontendKey, Left>, now: Instant) {
        for (key, Left { epoch, young, tables }) in left {
            let mut tables = tables.into_iter();
            let Some((first, owners)) = tables.next() else { continue };
            let past = tables.filter(|(first, _)| *first != 0);
            let earlier = |(first, owners)| Earlier { former: Former::Held(first), owners };
            let line = Line {
                past: past.map(earlier).collect(),
                held: Some(first),
                young,
                ..Line::new(epoch, owners, now)
            };
            self.lines.insert(key, line);
            if young {
                self.look_at(key, now);
            }
        }
    }

    /// Takes over what changed in a plan and what was heard, and writes into the plan what is to be held
    /// beside it: past sets, claims, youth, backends whose lives go on.
    pub fn remember(
        &mut self,
        plan: &mut Desired,
        changed: Changed<'_>,
        consensus: &Arc<Consensus>,
        members: &Arc<Members>,
        now: Instant,
    ) -> Touched {
        let mut touched = Touched::default();
        let new_words = !Arc::ptr_eq(&self.consensus, consensus);
        self.heard |= new_words || !Arc::ptr_eq(&self.members, members);
        self.members = members.clone();
        let former = std::mem::replace(&mut self.consensus, consensus.clone());
        let mut changed_lines = match changed {
            Changed::Anew(before) => {
                self.lines.retain(|key, _| plan.frontends.contains_key(key));
                self.young.retain(|key| plan.frontends.contains_key(key));
                self.recent.retain(|key| plan.frontends.contains_key(key));
                // The new plan holds none of those that were kept.
                let is_pooled = |address: &SocketAddr| plan.backends.contains_key(address);
                self.kept.leave(&before.backends, is_pooled, plan, now);
                self.kept.unwrite();
                plan.frontends.keys().copied().collect()
            }
            Changed::Owners(keys) => keys.clone(),
            Changed::Pools(edited) => {
                let is_pooled = |address: &SocketAddr| edited.pooled.contains(address);
                self.kept.leave(&edited.left, is_pooled, plan, now);
                edited.frontends.clone()
            }
        };
        changed_lines.iter().for_each(|key| self.follow(plan, *key, now));
        match changed {
            Changed::Anew(_) => {
                let claims = &consensus.claims;
                claims.iter().for_each(|(key, it)| self.claim(plan, *key, Some(it), &mut touched));
            }
            Changed::Owners(_) | Changed::Pools(_) if new_words => {
                for key in differing(&former.claims, &consensus.claims, Arc::ptr_eq) {
                    self.claim(plan, key, consensus.claims.get(&key), &mut touched);
                }
            }
            Changed::Owners(_) | Changed::Pools(_) => {}
        }
        changed_lines.append(&mut self.look(now));
        touched.frontends.extend(changed_lines.into_iter().filter(|key| self.write(plan, key)));
        self.kept.write(plan, &mut touched.backends);
        if self.looked == Some(now) || self.kept.is_due(&self.rules, now) {
            self.end_lives(plan, &mut touched, now);
        }
        self.deadline = self.next_look();
        touched
    }

    /// When remembering again may bring something new although nothing changed.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The frontends whose set changed lately, with their sets. Costs as much as there are.
    pub fn recent(&self) -> Arc<BTreeMap<FrontendKey, Lineage>> {
        let line = |key: &FrontendKey| {
            let line = self.lines.get(key)?;
            let past = line.past.iter().map(|earlier| earlier.owners.clone()).collect();
            Some((*key, Lineage { epoch: line.epoch, owners: line.owners.clone(), past }))
        };
        Arc::new(self.recent.iter().filter_map(line).collect())
    }

    /// What is not settled, for people. Costs as much as there are young frontends.
    pub fn unsettled(&self) -> Unsettled {
        let lines = self.young.iter().filter_map(|key| self.lines.get(key));
        let mut unsettled = Unsettled {
            young: self.young.len(),
            since: lines.clone().map(|line| line.changed).min(),
            kept: self.kept.len(),
            cut_short: self.kept.cut_short(),
            ..Unsettled::default()
        };
        for member in lines.filter_map(|line| line.waits_for.clone()) {
            *unsettled.waiting.entry(member).or_default() += 1;
        }
        unsettled
    }

    /// Takes over a frontend's owners.
    fn follow(&mut self, plan: &mut Desired, key: FrontendKey, now: Instant) {
        let Some(wanted) = plan.frontends.get_mut(&key) else { return };
        let alone = wanted.flags & ALWAYS_YOUNG != 0;
        let same = |line: &&mut Line| {
            line.held.is_none() && (&line.owners, line.slots) == (&wanted.owners, wanted.slots)
        };
        if let Some(line) = self.lines.get_mut(&key).filter(same) {
            line.alone = alone;
            // Two of equal sets are one too many.
            wanted.owners = line.owners.clone();
            return;
        }
        let (owners, epoch) = (&wanted.owners, epoch(&wanted.owners, wanted.slots, &self.seed));
        let line = self.lines.entry(key).or_insert_with(|| {
            let joined = Some(now);
            Line { joined, young: true, ..Line::new(epoch, owners.clone(), now) }
        });
        line.slots = wanted.slots;
        line.alone = alone;
        match line.epoch == epoch {
            // As a former agent left it.
            true => (line.owners, line.held) = (owners.clone(), None),
            false => line.change(epoch, owners.clone(), &self.rules, now),
        }
        if line.young {
            self.look_at(key, now);
        }
    }

    /// From now on this frontend is looked at whenever something is heard.
    fn look_at(&mut self, key: FrontendKey, now: Instant) {
        self.young.insert(key);
        self.recent.insert(key);
        self.looks.insert((now, key));
    }

    /// Takes over a frontend's claims.
    fn claim(
        &mut self,
        plan: &mut Desired,
        key: FrontendKey,
        claimed: Option<&Arc<Claimed>>,
        touched: &mut Touched,
    ) {
        let Some(wanted) = plan.frontends.get_mut(&key) else { return };
        wanted.claims = claimed.cloned();
        touched.frontends.insert(key);
        if let Some(claimed) = claimed {
            self.kept.claimed(key.protocol, claimed, plan);
        }
    }

    /// Looks at the frontends that are due; at all young ones if something was heard.
    fn look(&mut self, now: Instant) -> BTreeSet<FrontendKey> {
        let mut due = BTreeSet::new();
        while let Some((at, key)) = self.looks.first().copied()
            && at <= now
        {
            self.looks.pop_first();
            due.insert(key);
        }
        if self.heard && self.looked.is_none_or(|at| now >= at + self.rules.rest) {
            due.extend(&self.young);
            (self.heard, self.looked) = (false, Some(now));
        }
        let Self { lines, members, consensus, rules, seed, young, recent, looks, kept, .. } = self;
        let others = Others::new(members, consensus);
        for key in &due {
            let Some(line) = lines.get_mut(key) else { continue };
            if line.young {
                line.borrow(key, &others, seed, rules, now);
                line.settle(key, &others, rules, now);
            }
            if !line.young && young.remove(key) {
                kept.look();
            }
            match line.next_look(rules, now) {
                Some(at) => drop(looks.insert((at, *key))),
                None if line.young => {}
                None => drop(recent.remove(key)),
            }
        }
        due
    }

    /// Writes into the plan what a frontend has beside its owners; whether that is new.
    fn write(&self, plan: &mut Desired, key: &FrontendKey) -> bool {
        let (Some(line), Some(wanted)) = (self.lines.get(key), plan.frontends.get_mut(key)) else {
            return false;
        };
        let young = if line.young { YOUNG } else { 0 };
        let (flags, past) = (wanted.flags & !YOUNG | young, line.formers());
        let new = (wanted.flags, &wanted.past) != (flags, &past);
        (wanted.flags, wanted.past) = (flags, past);
        new
    }

    /// Ends the lives that nobody needs any more.
    fn end_lives(&mut self, plan: &mut Desired, touched: &mut Touched, now: Instant) {
        let Self { kept, lines, young, consensus, rules, .. } = self;
        let young = young.iter().filter_map(|key| lines.get(key));
        let past = young.flat_map(|line| &line.past).flat_map(|earlier| earlier.owners.keys());
        let claimed = consensus.claims.values().flat_map(|claimed| claimed.flows.keys());
        kept.end(plan, past.chain(claimed), rules, now, &mut touched.backends);
    }

    fn next_look(&self) -> Option<Instant> {
        let rest = self.looked.filter(|_| self.heard).map(|at| at + self.rules.rest);
        let look = self.looks.first().map(|(at, _)| *at);
        let kept = self.kept.next_look(&self.rules);
        [rest, look, kept].into_iter().flatten().min()
    }
}

/// What the members say of all frontends.
struct Others<'a> {
    own: &'a str,
    ready: bool,
    lineages: &'a BTreeMap<FrontendKey, Lineage>,
    /// Of those whose agents live, this one too: they are waited for.
    views: Vec<(&'a str, Option<&'a BTreeMap<FrontendKey, u64>>)>,
}

impl<'a> Others<'a> {
    fn new(members: &'a Members, consensus: &'a Consensus) -> Self {
        let heard = members.nodes.keys().filter(|name| members.has_agent(name));
        let views =
            heard.map(|name| (name.as_str(), consensus.views.get(name.as_str()).map(|it| &**it)));
        let lineages = &consensus.lineages;
        Self { own: &members.own, ready: members.ready, lineages, views: views.collect() }
    }

    /// What a member says of a frontend.
    fn says(view: Option<&BTreeMap<FrontendKey, u64>>, key: &FrontendKey) -> Option<u64> {
        view?.get(key).copied()
    }

    /// Whether another member changed it lately.
    fn lately(&self, key: &FrontendKey) -> bool {
        self.views.iter().any(|(name, view)| *name != self.own && Self::says(*view, key).is_some())
    }
}

impl Line {
    fn new(epoch: u64, owners: Arc<Owners>, now: Instant) -> Self {
        Self {
            epoch,
            owners,
            held: None,
            past: Vec::new(),
            slots: 0,
            alone: false,
            young: false,
            changed: now,
            entered: None,
            returned: false,
            joined: None,
            ranks: false,
            borrowed: None,
            waits_for: None,
        }
    }

    /// Another set comes into force.
    fn change(&mut self, epoch: u64, owners: Arc<Owners>, rules: &Rules, now: Instant) {
        let before = std::mem::replace(&mut self.owners, owners);
        let former = match self.held.take() {
            Some(first) => Former::Held(first),
            None => Former::Owners(self.epoch, before.clone()),
        };
        self.epoch = epoch;
        let length = self.past.len();
        self.past.retain(|earlier| !earlier.is(epoch));
        let apart = self.returned || self.entered.is_none_or(|at| now >= at + rules.apart);
        self.returned = self.past.len() < length;
        // Who owned nothing knows nothing.
        if apart && !before.is_empty() {
            self.past.retain(|earlier| earlier.former != former);
            self.past.insert(0, Earlier { former, owners: before });
            self.past.truncate(PAST);
            self.entered = Some(now);
        }
        (self.changed, self.young) = (now, true);
    }

    /// Fills the free past places with what others remember, or with ranks where nobody says anything.
    fn borrow(
        &mut self,
        key: &FrontendKey,
        others: &Others<'_>,
        seed: &Seed,
        rules: &Rules,
        now: Instant,
    ) {
        let Some(lineage) = others.lineages.get(key) else {
            let waited = |at| now >= at + rules.ranks;
            self.ranks = self.joined.is_some_and(waited) && others.lately(key);
            return;
        };
        self.ranks = false;
        let known = (lineage.epoch, lineage.past.len());
        if self.borrowed == Some(known) || self.past.len() >= PAST {
            return;
        }
        self.borrowed = Some(known);
        let past = lineage.past.iter().map(|owners| (epoch(owners, self.slots, seed), owners));
        for (epoch, owners) in [(lineage.epoch, &lineage.owners)].into_iter().chain(past) {
            let known = epoch == self.epoch || self.past.iter().any(|earlier| earlier.is(epoch));
            if !known && !owners.is_empty() && self.past.len() < PAST {
                let former = Former::Owners(epoch, owners.clone());
                self.past.push(Earlier { former, owners: owners.clone() });
            }
        }
    }

    /// Ends youth when all agree.
    fn settle(&mut self, key: &FrontendKey, others: &Others<'_>, rules: &Rules, now: Instant) {
        let lasted = now >= self.changed + rules.young;
        self.waits_for = None;
        if !lasted || !(self.alone || others.ready) {
            return;
        }
        let old = now >= self.changed + rules.lately;
        let disagrees = |said: Option<u64>| said.map_or(!old, |epoch| epoch != self.epoch);
        let mut views = others.views.iter().filter(|_| !self.alone);
        let waits_for = views.find(|(_, view)| disagrees(Others::says(*view, key)));
        self.waits_for = waits_for.map(|(name, _)| Arc::from(*name));
        if self.waits_for.is_none() {
            (self.young, self.joined, self.ranks) = (false, None, false);
        }
    }

    /// When time alone may change something.
    fn next_look(&self, rules: &Rules, now: Instant) -> Option<Instant> {
        let ranks = self.joined.map(|at| at + rules.ranks);
        let times = [ranks, Some(self.changed + rules.young), Some(self.changed + rules.lately)];
        times.into_iter().flatten().filter(|at| *at > now).min()
    }

    /// What stands in the past places.
    fn formers(&self) -> Vec<Former> {
        let past = self.past.iter().map(|earlier| earlier.former.clone());
        let ranks = (2..=RANKS as u8).filter(|_| self.ranks).map(Former::Rank);
        past.chain(ranks).take(PAST).collect()
    }
}

impl Earlier {
    fn is(&self, epoch: u64) -> bool {
        matches!(self.former, Former::Owners(former, _) if former == epoch)
    }
}

/// Names a set: equal on all nodes that have the same set, number of slots and seed.
pub fn epoch(owners: &Owners, slots: u32, seed: &Seed) -> u64 {
    // More slots than a table can have are refused elsewhere.
    Pool::new(owners.iter(), u16::try_from(slots).unwrap_or(u16::MAX), seed).digest
}

/// Keys whose values differ, by one walk over both.
fn differing<V>(
    old: &BTreeMap<FrontendKey, V>,
    new: &BTreeMap<FrontendKey, V>,
    same: impl Fn(&V, &V) -> bool,
) -> BTreeSet<FrontendKey> {
    let changed = new.iter().filter(|(key, it)| !old.get(key).is_some_and(|old| same(old, it)));
    let gone = old.keys().filter(|key| !new.contains_key(key));
    changed.map(|(key, _)| key).chain(gone).copied().collect()
}
