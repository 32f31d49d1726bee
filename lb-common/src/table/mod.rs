//! Builds slot tables: which backend owns which slot (bounded rendezvous).
//!
//! A pure function of a set of backends, the number of slots and the shared seed, in integers only:
//! every node computes the same table whatever order or history led it there, and services with
//! equal pools share one. User space only.
//!
//! - Each (slot, backend) pair has a [`score()`]. All pairs in falling score, each taken while the
//!   slot is free and the backend below its capacity, give the owners.
//! - A backend's capacity is its fair share and a bound beyond: 5 %, or 2 % where there are
//!   [`TIGHT_SHARE`] slots a backend.
//! - Of more backends than `slots / MIN_SHARE` only the best ranked own slots; [`Table::left_out`]
//!   counts the others.
//!
//! The table remembers only the first choice of each slot (a byte a slot, or two where there are
//! more backends than a byte counts) and the few owners that differ from it (four bytes each).
//! [`Table::updated`] repairs the first choices, which is where nearly all scoring is, and settles
//! the owners anew; building is the same from an empty table, so an increment cannot differ from a
//! rebuild.

mod choices;
mod ranks;
mod score;
mod settle;

pub use ranks::RANKS;
pub use score::{Score, score};

use crate::{
    net::{Addr, Port},
    siphash,
};
use alloc::{vec, vec::Vec};
use choices::Choices;
use core::{
    cmp::{Ordering, Reverse},
    num::NonZeroU16,
};
use score::Columns;

/// The secret that all nodes share; keys every hash.
pub type Seed = [u8; 16];

/// Slots of a frontend that asks for no number of its own. A prime, though multiply-shift would not
/// need one.
pub const DEFAULT_SLOTS: u16 = 4093;
/// Fewer slots than this a backend would make shares too coarse: so many backends own no slots.
pub const MIN_SHARE: u16 = 20;
/// Slots a backend from which on shares are so even that the bound is [`TIGHT_BOUND`].
pub const TIGHT_SHARE: u64 = 1000;
/// What a backend may own beyond its fair share, in hundredths of it.
pub const BOUND: u64 = 5;
/// The bound where there are at least [`TIGHT_SHARE`] slots a backend.
pub const TIGHT_BOUND: u64 = 2;
/// No backend: a first choice in a table that has none.
const NONE: u16 = u16::MAX;

/// What a table needs to know of a backend. Ordered by its bytes: address, port, weight as on a
/// wire.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Backend {
    pub addr: Addr,
    pub port: Port,
    /// Its share of the slots is its weight over the sum of all weights.
    pub weight: NonZeroU16,
}

impl Backend {
    fn key(&self) -> ([u8; 16], u16, u16) {
        (self.addr.octets(), self.port.get(), self.weight.get())
    }
}

impl Ord for Backend {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Backend {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A slot table and what it takes to follow its pool.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Table {
    seed: Seed,
    /// Those that own slots, sorted; what indices mean.
    backends: Vec<Backend>,
    left_out: usize,
    /// The best ranked backend of each slot.
    first: Choices,
    /// The slots that their first choice has no room for, with their owners; sorted by slot.
    moved: Vec<(u16, u16)>,
}

impl Table {
    /// The table of these backends, in any order. Of several with the same address and port the
    /// greatest weight counts. Without backends no slot has an owner.
    pub fn build(backends: &[Backend], slots: u16, seed: &Seed) -> Self {
        let first = Choices::none(slots);
        let none =
            Self { seed: *seed, backends: Vec::new(), left_out: 0, first, moved: Vec::new() };
        none.updated(backends)
    }

    /// The table of another set of backends: exactly what `build` would make, for less the less has changed.
    ///
    /// A backend that left costs one score per remaining backend for each slot that preferred it, a
    /// new one two scores a slot; settling costs up to one score a slot, and one a backend for each
    /// slot that is refused.
    pub fn updated(&self, backends: &[Backend]) -> Self {
        let (chosen, left_out) = choose(backends, self.first.len(), &self.seed);
        if chosen == self.backends {
            return Self { left_out, ..self.clone() };
        }
        let columns = Columns::new(&self.seed, &chosen);
        let (new_index, added) = compare(&self.backends, &chosen);

        let mut first = self.first.unpack();
        // Without branches: nothing foretells which slots have lost their choice.
        let (mut orphans, mut count) = (vec![0; first.len()], 0);
        for (slot, first) in (0..).zip(&mut first) {
            *first = new_index.get(usize::from(*first)).copied().unwrap_or(NONE);
            orphans[count] = slot;
            count += usize::from(*first == NONE);
        }
        orphans.truncate(count);
        if !added.is_empty() {
            let kept = (0..).zip(first.iter()).filter(|&(_, first)| *first != NONE);
            let kept: Vec<u16> = kept.map(|(slot, _)| slot).collect();
            columns.subset(&added).best(&kept, |slot, index, score| {
                let first = &mut first[usize::from(slot)];
                if (score, Reverse(index)) > (columns.score(slot, *first), Reverse(*first)) {
                    *first = index;
                }
            });
        }
        columns.best(&orphans, |slot, index, _| first[usize::from(slot)] = index);
        let moved = match chosen.is_empty() {
            true => Vec::new(),
            false => settle::settle(&columns, &first, &capacities(&chosen, first.len())),
        };
        let first = Choices::pack(&first, chosen.len());
        Self { seed: self.seed, backends: chosen, left_out, first, moved }
    }

    /// The backends that own slots, sorted: an index into this is what the table's other answers
    /// mean.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// How many backends of the pool own no slots because there are too few slots for all.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// How many slots the table has.
    pub fn slots(&self) -> usize {
        self.first.len()
    }

    /// The owner of a slot. None if there is no backend or no such slot.
    pub fn owner(&self, slot: u16) -> Option<u16> {
        let index = match self.moved.binary_search_by_key(&slot, |&(slot, _)| slot) {
            Ok(at) => self.moved[at].1,
            Err(_) => self.first.get(slot)?,
        };
        (index != NONE).then_some(index)
    }

    /// Writes each slot's owner to `out`, as `ids[index]`; 0 where there is none.
    ///
    /// `ids` belongs to [`Table::backends`], element by element; `out` holds as many elements as
    /// there are slots and is written in order, then at the slots that moved, and never read.
    pub fn owners(&self, out: &mut [u32], ids: &[u32]) {
        debug_assert!(out.len() == self.slots() && ids.len() == self.backends.len());
        self.first.name(out, ids);
        for &(slot, index) in &self.moved {
            out[usize::from(slot)] = ids[usize::from(index)];
        }
    }
}

/// How many slots each backend may own: its share and the bound beyond, rounded down, but at
/// least its share rounded up, so that all slots find room.
fn capacities(backends: &[Backend], slots: usize) -> Vec<u32> {
    let slots = slots as u64;
    let total: u64 = backends.iter().map(|b| u64::from(b.weight.get())).sum();
    let tight = slots >= TIGHT_SHARE * backends.len() as u64;
    let bound = if tight { TIGHT_BOUND } else { BOUND };
    let capacity = |b: &Backend| {
        let share = slots * u64::from(b.weight.get());
        share.div_ceil(total).max(share * (100 + bound) / (100 * total)) as u32
    };
    backends.iter().map(capacity).collect()
}

/// Names a set of backends with a number of slots under a seed: equal digests, equal tables. Order
/// and repetition of the backends do not matter.
pub fn digest(backends: &[Backend], slots: u16, seed: &Seed) -> u64 {
    let mut message = Vec::with_capacity(20 * backends.len() + 2);
    for backend in sorted(backends) {
        let (addr, port, weight) = backend.key();
        message.extend_from_slice(&addr);
        message.extend_from_slice(&port.to_be_bytes());
        message.extend_from_slice(&weight.to_be_bytes());
    }
    message.extend_from_slice(&slots.to_be_bytes());
    siphash::hash(siphash::key(seed), &message)
}

/// Each address and port once, with its greatest weight, in order.
fn sorted(backends: &[Backend]) -> Vec<Backend> {
    let mut sorted = backends.to_vec();
    sorted.sort_unstable();
    sorted.dedup_by(|next, kept| {
        let same = (next.addr, next.port) == (kept.addr, kept.port);
        if same {
            kept.weight = next.weight;
        }
        same
    });
    sorted
}

/// The backends that own slots, sorted, and the number of the others.
fn choose(backends: &[Backend], slots: usize, seed: &Seed) -> (Vec<Backend>, usize) {
    let mut chosen = sorted(backends);
    let limit = (slots / usize::from(MIN_SHARE)).max(1);
    let left_out = chosen.len().saturating_sub(limit);
    if left_out > 0 {
        chosen.sort_by_cached_key(|b| Reverse(score::admission(seed, b)));
        chosen.truncate(limit);
        chosen.sort_unstable();
    }
    (chosen, left_out)
}

/// Walks two sorted sets: for each of the old its index among the new (or `NONE`), and the new ones
/// that are not old.
fn compare(old: &[Backend], new: &[Backend]) -> (Vec<u16>, Vec<u16>) {
    let index_in = |set: &[Backend], b| set.binary_search(b).map_or(NONE, |i| i as u16);
    let new_index = old.iter().map(|b| index_in(new, b)).collect();
    let added = (0..).zip(new).filter(|(_, b)| index_in(old, b) == NONE).map(|(i, _)| i).collect();
    (new_index, added)
}
