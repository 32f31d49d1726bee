//! From first choices to owners: deferred acceptance under capacities.
//!
//! Wanted is the greedy matching: all (slot, backend) pairs in falling score, each taken while the
//! slot is free and the backend below capacity. A pair has one score, by which slots rank backends
//! and backends rank slots, so that matching is the only stable one, and deferred acceptance finds
//! it in any order: a slot asks its best backend, a full backend keeps its best slots and refuses
//! the rest, which ask their next. Only slots of full backends are scored. (Gale and Shapley 1962;
//! one common order makes the stable matching unique.)

use super::score::{Columns, Score};
use alloc::{collections::BinaryHeap, vec, vec::Vec};
use core::cmp::Reverse;

/// What a full backend holds; the slot that it would give up first is on top. Of equal scores it
/// prefers the lower slot.
type Held = BinaryHeap<Reverse<(Score, Reverse<u16>)>>;

/// The slots that their first choice refuses, each with its owner, by slot.
///
/// `first[slot]` is the index of the slot's best backend. The sum of `capacity` must be at least
/// the number of slots: then every slot gets an owner.
pub(super) fn settle(columns: &Columns, first: &[u16], capacity: &[u32]) -> Vec<(u16, u16)> {
    let mut round = Round {
        columns,
        capacity,
        load: loads(first, capacity.len()),
        owner: first.to_vec(),
        held: vec![Held::new(); capacity.len()],
        free: Vec::new(),
    };
    round.ask_first();
    let mut asked = Vec::new();
    while let Some(slot) = round.free.pop() {
        round.ask_next(slot);
        asked.push(slot);
    }
    asked.sort_unstable();
    asked.dedup();
    let owners = asked.into_iter().map(|slot| (slot, round.owner[usize::from(slot)]));
    owners.filter(|&(slot, owner)| owner != first[usize::from(slot)]).collect()
}

/// How many slots each backend has. Counts in four places at once: neighbours often have one owner, and
/// what was written just now is slow to read.
fn loads(owner: &[u16], backends: usize) -> Vec<u32> {
    const LANES: usize = 4;
    let mut counts = vec![[0u32; LANES]; backends];
    let (whole, rest) = owner.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            counts[usize::from(chunk[lane])][lane] += 1;
        }
    }
    for &index in rest {
        counts[usize::from(index)][0] += 1;
    }
    counts.iter().map(|lanes| lanes.iter().sum()).collect()
}

struct Round<'a> {
    columns: &'a Columns,
    capacity: &'a [u32],
    load: Vec<u32>,
    owner: Vec<u16>,
    /// Empty until a backend has refused a slot for the first time.
    held: Vec<Held>,
    /// Slots that were refused and have not asked on yet.
    free: Vec<u16>,
}

impl Round<'_> {
    /// All slots ask their first choice at once.
    fn ask_first(&mut self) {
        let asking = self.by_owner();
        let mut start = 0;
        for (i, &capacity) in self.capacity.iter().enumerate() {
            let slots = &asking[start..start + self.load[i] as usize];
            start += slots.len();
            if self.load[i] <= capacity {
                continue;
            }
            let mut asking = Vec::with_capacity(slots.len());
            self.columns.subset(&[i as u16]).best(slots, |slot, _, score| {
                asking.push(Reverse((score, Reverse(slot))));
            });
            asking.select_nth_unstable(capacity as usize);
            let refused = asking.drain(capacity as usize..);
            self.free.extend(refused.map(|Reverse((_, Reverse(slot)))| slot));
            self.held[i] = asking.into();
            self.load[i] = capacity;
        }
    }

    /// All slots, those of the first backend first; each backend's in order.
    fn by_owner(&self) -> Vec<u16> {
        let mut end = 0;
        let starts = self.load.iter().map(|load| {
            let start = end;
            end += *load as usize;
            start
        });
        let mut next: Vec<usize> = starts.collect();
        let mut sorted = vec![0; self.owner.len()];
        for (slot, &index) in (0..).zip(&self.owner) {
            let next = &mut next[usize::from(index)];
            sorted[*next] = slot;
            *next += 1;
        }
        sorted
    }

    /// A refused slot asks the best backend that would have it. Those that refused it hold better
    /// ones only, for good.
    fn ask_next(&mut self, slot: u16) {
        let mut best: Option<(Score, u16)> = None;
        for column in self.columns.iter() {
            let score = self.columns.score_in(slot, column);
            if best.is_none_or(|(best, _)| score > best)
                && self.would_have(column.index, score, slot)
            {
                best = Some((score, column.index));
            }
        }
        let Some((score, index)) = best else { return };
        let i = usize::from(index);
        if self.load[i] == self.capacity[i] && self.held[i].is_empty() {
            self.held[i] = self.holdings(index);
        }
        self.owner[usize::from(slot)] = index;
        let held = &mut self.held[i];
        if !held.is_empty() {
            held.push(Reverse((score, Reverse(slot))));
        }
        if self.load[i] < self.capacity[i] {
            self.load[i] += 1;
        } else if let Some(Reverse((_, Reverse(refused)))) = held.pop() {
            self.free.push(refused);
        }
    }

    /// Whether the backend has room, or holds a worse slot, or is yet to find out.
    fn would_have(&self, index: u16, score: Score, slot: u16) -> bool {
        match self.held[usize::from(index)].peek() {
            Some(Reverse(worst)) => (score, Reverse(slot)) > *worst,
            None => true,
        }
    }

    /// The slots of a backend that has become full without refusing any.
    fn holdings(&self, index: u16) -> Held {
        let own = (0..).zip(&self.owner).filter(|&(_, &owner)| owner == index);
        own.map(|(slot, _)| Reverse((self.columns.score(slot, index), Reverse(slot)))).collect()
    }
}
