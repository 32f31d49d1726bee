//! One origin's entries for one audience, with the order in which they changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Included},
    sync::Arc,
};

use super::{
    AHEAD_MOST, BYTES_MOST, ENTRIES_MOST, ENTRY_COST, NAME_MOST, TOMBSTONES_MOST, VALUE_MOST,
    delta::{Delta, Item, Mark, base},
};
use crate::membership::topic::{Key, Topic};

/// What all logs of one origin hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub entries: usize,
    pub bytes: usize,
}

#[derive(Debug)]
struct Slot {
    version: u64,
    /// None: a tombstone.
    value: Option<Arc<[u8]>>,
    /// Of an earlier incarnation or missing in a full answer: over when the log is complete.
    doubtful: bool,
}

/// A changed entry.
pub type Changed = (Key, Option<Arc<[u8]>>);

/// What a delta did.
#[derive(Debug, Default)]
pub struct Applied {
    /// It told something that was not known: to be passed on.
    pub news: bool,
    /// The sender knows more than this log has now.
    pub behind: bool,
    /// Items beyond a limit.
    pub refused: u64,
    pub changes: Vec<Changed>,
}

/// Versions in here are absolute (see [`base`]).
#[derive(Debug, Default)]
pub struct Log {
    incarnation: u64,
    /// Every change up to here is in.
    version: u64,
    /// The newest version that anybody told of.
    latest: u64,
    /// Tombstones up to here are forgotten: who has less needs everything.
    floor: u64,
    settled: bool,
    /// Whether any slot is doubtful.
    doubts: bool,
    slots: BTreeMap<Arc<Key>, Slot>,
    order: BTreeMap<u64, Arc<Key>>,
    tombstones: BTreeSet<u64>,
    /// Ranges that are in beyond a gap.
    ahead: Vec<(u64, u64)>,
}

impl Log {
    /// An own log whose versions begin after `above`: one of this name may have been there before.
    pub fn new(incarnation: u64, above: u64, settled: bool) -> Self {
        let start = base(incarnation) + above;
        Self {
            incarnation,
            version: start,
            latest: start,
            floor: start,
            settled,
            ..Self::default()
        }
    }

    pub fn mark(&self) -> Mark {
        Mark { incarnation: self.incarnation, version: self.version - base(self.incarnation) }
    }

    /// Somebody has more than is in here.
    pub fn is_behind(&self) -> bool {
        self.version < self.latest
    }

    /// Takes the word that the log has got to `mark` somewhere; true if that is news.
    pub fn tell(&mut self, mark: Mark) -> bool {
        if !mark.is_sound() || mark.incarnation < self.incarnation {
            return false;
        }
        if mark.incarnation > self.incarnation {
            self.restart(mark.incarnation);
        }
        let told = base(mark.incarnation) + mark.version;
        let news = told > self.latest;
        self.latest = self.latest.max(told);
        news
    }

    pub fn slot_version(&self, key: &Key) -> Option<u64> {
        self.slots.get(key).map(|slot| slot.version)
    }

    pub fn get(&self, key: &Key) -> Option<&Arc<[u8]>> {
        self.slots.get(key)?.value.as_ref()
    }

    /// Entries that are not over.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Arc<[u8]>)> {
        self.slots.iter().filter_map(|(key, slot)| Some((&**key, slot.value.as_ref()?)))
    }

    /// Own change: the next version. False if it exceeds a limit, then nothing changed.
    pub fn publish(&mut self, key: Key, value: Option<&[u8]>, usage: &mut Usage) -> bool {
        if value.is_none() && self.get(&key).is_none() {
            return true;
        }
        let version = self.version + 1;
        let done = self.put(key, version, value, usage);
        if done {
            (self.version, self.latest) = (version, version);
        }
        done
    }

    /// From now on everything that was to be said has been said. A version of its own, so that all hear of it.
    pub fn settle(&mut self) {
        self.settled = true;
        self.version += 1;
        self.latest = self.version;
    }

    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// Own log under a later incarnation: all entries get new versions.
    pub fn rebase(&mut self, incarnation: u64) {
        let keys: Vec<_> = std::mem::take(&mut self.order).into_values().collect();
        self.incarnation = incarnation;
        self.version = base(incarnation);
        self.tombstones.clear();
        for key in keys {
            let Some(slot) = self.slots.get_mut(&key) else { continue };
            self.version += 1;
            slot.version = self.version;
            if slot.value.is_none() {
                self.tombstones.insert(self.version);
            }
            self.order.insert(self.version, key);
        }
        (self.latest, self.floor) = (self.version, base(incarnation));
    }

    /// Takes what another member says of this log. Applies items beyond a gap too (each has its own
    /// version), but the log counts as complete only up to the gap.
    pub fn apply(&mut self, delta: &Delta<'_>, usage: &mut Usage) -> Applied {
        let mut applied = Applied::default();
        let latest = Mark { incarnation: delta.incarnation, version: delta.latest };
        let sound = latest.is_sound() && delta.from <= delta.to && delta.to <= delta.latest;
        if !sound || delta.incarnation < self.incarnation {
            return applied;
        }
        applied.news = self.tell(latest) || (delta.settled && !self.settled);
        self.settled |= delta.settled;
        let start = base(self.incarnation);
        let (from, to) = (start + delta.from, start + delta.to);
        if delta.full {
            self.doubt_between(from, to);
            self.floor = self.floor.max(to);
        }
        for item in &delta.items {
            if item.version <= delta.from || item.version > delta.to {
                continue;
            }
            let (key, version) = (Key::new(Topic(item.topic), item.name), start + item.version);
            match self.slots.get_mut(&key) {
                Some(slot) if slot.version == version => slot.doubtful = false,
                Some(slot) if slot.version > version => {}
                slot => {
                    let there = slot.is_some_and(|slot| slot.value.is_some());
                    if !self.put(key.clone(), version, item.value, usage) {
                        applied.refused += 1;
                        continue;
                    }
                    applied.news = true;
                    if there || item.value.is_some() {
                        applied.changes.push((key, item.value.map(Arc::from)));
                    }
                }
            }
        }
        self.extend(from, to);
        applied.behind = self.is_behind();
        self.purge(usage, &mut applied.changes);
        applied
    }

    /// Changes above `from`, oldest first, of about `budget` bytes, up to the version they reach.
    /// `from` counts from the start of the incarnation, as all versions in a delta.
    pub fn after(&self, from: u64, budget: usize) -> (Vec<Item<'_>>, u64) {
        let start = base(self.incarnation);
        let (mut items, mut left, mut reached) = (Vec::new(), budget, from);
        if start + from >= self.version {
            return (items, from);
        }
        for (version, key) in self.order.range((Excluded(start + from), Included(self.version))) {
            let value = self.slots.get(key).and_then(|slot| slot.value.as_deref());
            let version = version - start;
            let item = Item { version, topic: key.topic.0, name: &key.name, value };
            let Some(rest) = left.checked_sub(item.size()) else { return (items, reached) };
            (left, reached) = (rest, version);
            items.push(item);
        }
        (items, self.version - start)
    }

    /// Who is at a version below this one needs everything.
    pub fn floor(&self) -> u64 {
        self.floor - base(self.incarnation)
    }

    /// Gives what all entries hold back to the origin's budget.
    pub fn clear(&mut self, usage: &mut Usage) {
        for key in self.slots.keys().cloned().collect::<Vec<_>>() {
            self.remove(&key, usage);
        }
    }

    /// A delta of this log with these items.
    pub fn delta<'a>(
        &self,
        origin: &'a str,
        log: &'a str,
        items: Vec<Item<'a>>,
        range: (u64, u64),
    ) -> Delta<'a> {
        Delta {
            origin,
            log,
            incarnation: self.incarnation,
            from: range.0,
            to: range.1,
            latest: self.latest - base(self.incarnation),
            settled: self.settled,
            urgent: false,
            full: false,
            items,
        }
    }

    fn restart(&mut self, incarnation: u64) {
        let start = base(incarnation);
        self.slots.values_mut().for_each(|slot| slot.doubtful = true);
        (self.doubts, self.settled) = (!self.slots.is_empty(), false);
        self.incarnation = incarnation;
        (self.version, self.latest, self.floor) = (start, start, start);
        self.ahead.clear();
    }

    fn doubt_between(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        for (_, key) in self.order.range((Excluded(from), Included(to))) {
            if let Some(slot) = self.slots.get_mut(key) {
                slot.doubtful = true;
                self.doubts = true;
            }
        }
    }

    /// Notes that everything in `from..=to` is in.
    fn extend(&mut self, from: u64, to: u64) {
        if from > self.version {
            if to > from && self.ahead.len() < AHEAD_MOST {
                self.ahead.push((from, to));
            }
            return;
        }
        self.version = self.version.max(to);
        while let Some(at) = self.ahead.iter().position(|(from, _)| *from <= self.version) {
            self.version = self.version.max(self.ahead.swap_remove(at).1);
        }
    }

    /// Ends what is doubtful once the log is complete.
    fn purge(&mut self, usage: &mut Usage, changes: &mut Vec<Changed>) {
        if !self.doubts || !self.settled || self.is_behind() {
            return;
        }
        self.doubts = false;
        let over: Vec<_> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.doubtful)
            .map(|(key, _)| key.clone())
            .collect();
        for key in over {
            if self.remove(&key, usage).is_some_and(|slot| slot.value.is_some()) {
                changes.push((Key::clone(&key), None));
            }
        }
    }

    fn remove(&mut self, key: &Key, usage: &mut Usage) -> Option<Slot> {
        let slot = self.slots.remove(key)?;
        self.order.remove(&slot.version);
        self.tombstones.remove(&slot.version);
        usage.entries -= 1;
        usage.bytes -= cost(key, slot.value.as_deref());
        Some(slot)
    }

    /// Sets an entry. A tombstone always fits where something was.
    fn put(&mut self, key: Key, version: u64, value: Option<&[u8]>, usage: &mut Usage) -> bool {
        let old = self.remove(&key, usage);
        let fits = key.name.len() <= NAME_MOST
            && value.is_none_or(|value| value.len() <= VALUE_MOST)
            && usage.entries < ENTRIES_MOST
            && usage.bytes + cost(&key, value) <= BYTES_MOST;
        let (slot, done) = match old {
            Some(old) if !fits => (old, false),
            None if !fits => return false,
            _ => (Slot { version, value: value.map(Arc::from), doubtful: false }, true),
        };
        usage.entries += 1;
        usage.bytes += cost(&key, slot.value.as_deref());
        if slot.value.is_none() {
            self.tombstones.insert(slot.version);
        }
        let key = Arc::new(key);
        self.order.insert(slot.version, key.clone());
        self.slots.insert(key, slot);
        while self.tombstones.len() > TOMBSTONES_MOST {
            let Some(oldest) = self.tombstones.pop_first() else { break };
            self.floor = self.floor.max(oldest);
            if let Some(key) = self.order.get(&oldest).cloned() {
                self.remove(&key, usage);
            }
        }
        done
    }
}

fn cost(key: &Key, value: Option<&[u8]>) -> usize {
    key.name.len() + value.map_or(0, <[u8]>::len) + ENTRY_COST
}
