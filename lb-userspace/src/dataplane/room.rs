//! Who has which place: free blocks of the owners arena, free indices of the other arrays. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Free blocks, as disjoint runs that never touch each other. Block 0 is never free.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Arena {
    /// Start → length.
    free: BTreeMap<u32, u32>,
}

impl Arena {
    /// An arena of so many blocks, all free but block 0.
    pub fn new(blocks: u32) -> Self {
        Self { free: (blocks > 1).then(|| (1, blocks - 1)).into_iter().collect() }
    }

    /// Takes the first run that is long enough; none when there is none.
    pub fn take(&mut self, blocks: u32) -> Option<u32> {
        let (&start, _) = self.free.iter().find(|&(_, &length)| length >= blocks)?;
        self.reserve(start, blocks).then_some(start)
    }

    /// Takes these very blocks; false, and nothing taken, where they are not all free.
    #[must_use]
    pub fn reserve(&mut self, start: u32, blocks: u32) -> bool {
        let Some((&run, &length)) = self.free.range(..=start).next_back() else { return false };
        let (before, end) = (start - run, run + length);
        if u64::from(before) + u64::from(blocks) > u64::from(length) {
            return false;
        }
        self.free.remove(&run);
        if before > 0 {
            self.free.insert(run, before);
        }
        if start + blocks < end {
            self.free.insert(start + blocks, end - start - blocks);
        }
        true
    }

    /// Gives taken blocks back.
    pub fn give(&mut self, mut start: u32, mut blocks: u32) {
        if let Some((&run, &length)) = self.free.range(..start).next_back()
            && run + length == start
        {
            self.free.remove(&run);
            (start, blocks) = (run, length + blocks);
        }
        if let Some(length) = self.free.remove(&(start + blocks)) {
            blocks += length;
        }
        self.free.insert(start, blocks);
    }

    /// How many blocks are free.
    pub fn free(&self) -> u32 {
        self.free.values().sum()
    }
}

/// Free indices. Handed out in a circle, so that one is reused as late as possible.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Indices {
    free: BTreeSet<u32>,
    next: u32,
}

impl Indices {
    /// All below `end` are free, but 0.
    pub fn new(end: u32) -> Self {
        Self { free: (1..end).collect(), next: 1 }
    }

    pub fn take(&mut self) -> Option<u32> {
        let index = *self.free.range(self.next..).next().or(self.free.first())?;
        self.reserve(index).then_some(index)
    }

    /// Takes this very index; false where it is not free.
    #[must_use]
    pub fn reserve(&mut self, index: u32) -> bool {
        self.next = index + 1;
        self.free.remove(&index)
    }

    pub fn give(&mut self, index: u32) {
        self.free.insert(index);
    }

    pub fn is_free(&self, index: u32) -> bool {
        self.free.contains(&index)
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_neighbours_join_in_any_order() {
        let whole = Arena::new(100);
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [2, 1, 0]] {
            let mut arena = whole.clone();
            let taken = [arena.take(10), arena.take(20), arena.take(5)].map(Option::unwrap);
            assert_eq!((taken, arena.free()), ([1, 11, 31], 64));
            for at in order {
                arena.give(taken[at], [10, 20, 5][at]);
            }
            assert_eq!(arena, whole);
        }
    }

    #[test]
    fn what_is_taken_cannot_be_taken_again() {
        let mut arena = Arena::new(10);
        assert!(arena.reserve(3, 4) && !arena.reserve(6, 1) && !arena.reserve(2, 2));
        assert!(!arena.reserve(0, 1) && !arena.reserve(9, 2));
        assert_eq!((arena.take(3), arena.take(3), arena.take(2)), (Some(7), None, Some(1)));
        assert_eq!((arena.free(), arena.take(1)), (0, None));
    }

    #[test]
    fn an_index_is_reused_only_after_all_others() {
        let mut indices = Indices::new(4);
        assert_eq!(indices.take(), Some(1));
        indices.give(1);
        assert_eq!([indices.take(), indices.take(), indices.take()], [Some(2), Some(3), Some(1)]);
        assert_eq!(indices.take(), None);
    }
}
