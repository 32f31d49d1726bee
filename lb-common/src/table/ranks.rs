//! Who else may own a slot: what a receiver asks when it has no history.
//!
//! A table with another set of backends answers exactly, but there are too many sets. This comes
//! close: first the best ranked backend that would take the slot as the table stands, then the
//! others as the slot prefers them, since a full one may have had room. When one backend leaves a
//! pool of 3 to 200 at the default slots, the new owner is of rank 2 for 92 to 98 % of its slots,
//! and of rank 2 to 4 for 97 to 100 %; the same holds for the owner before one joined.

use super::{
    Table, capacities,
    score::{Columns, Score},
};
use alloc::{vec, vec::Vec};
use core::cmp::Reverse;

/// Ranks of a slot: its owner and three to follow.
pub const RANKS: usize = 4;

impl Table {
    /// For each slot its owner and who is likely to own it if those before are not there, or owned
    /// it before they came. None where there are fewer backends.
    pub fn ranks(&self) -> impl Iterator<Item = [Option<u16>; RANKS]> {
        let columns = Columns::new(&self.seed, &self.backends);
        let floors = self.floors(&columns);
        (0..self.slots() as u16).map(move |slot| {
            let owner = self.owner(slot);
            let (mut heir, mut preferred) = (None, [None; RANKS - 1]);
            for column in columns.iter().filter(|column| Some(column.index) != owner) {
                let score = columns.score_in(slot, column);
                let mut candidate = Some((score, Reverse(column.index)));
                if floors[usize::from(column.index)] < Some(score) {
                    heir = heir.max(candidate);
                }
                for place in &mut preferred {
                    if candidate > *place {
                        core::mem::swap(place, &mut candidate);
                    }
                }
            }
            let others = preferred.into_iter().filter(|&other| other != heir).flatten();
            let followers = heir.into_iter().chain(others).map(|(_, Reverse(index))| index);
            let mut ranks = [None; RANKS];
            for (rank, index) in ranks.iter_mut().zip(owner.into_iter().chain(followers)) {
                *rank = Some(index);
            }
            ranks
        })
    }

    /// What a slot must score to be taken by a full backend: more than the worst that it holds.
    /// None: there is room.
    fn floors(&self, columns: &Columns) -> Vec<Option<Score>> {
        let mut load = vec![0; self.backends.len()];
        let mut worst: Vec<Option<Score>> = vec![None; self.backends.len()];
        for slot in 0..self.slots() as u16 {
            let Some(index) = self.owner(slot) else {
                continue;
            };
            let score = columns.score(slot, index);
            let worst = &mut worst[usize::from(index)];
            *worst = Some(worst.map_or(score, |worst| worst.min(score)));
            load[usize::from(index)] += 1;
        }
        for ((worst, load), capacity) in
            worst.iter_mut().zip(load).zip(capacities(&self.backends, self.slots()))
        {
            if load < capacity {
                *worst = None;
            }
        }
        worst
    }
}
