//! Slot tables: those in force, and those of before, which fill what the others leave.
//!
//! A table of before is normally the one that was in force and costs nothing. It never takes room that a
//! table in force needs: the oldest give way, and are counted.

use lb_common::{
    abi::map,
    service::{Record, blocks},
    table::{RANKS, Table},
};

use super::{
    ApplyError, Work,
    held::{As, HeldFrontend, Holding, Place, Segment},
    wants::{Want, holding, place},
};
use crate::{
    dataplane::store::{Step, Store, WriteError},
    plan::{
        desired::FrontendKey,
        flows::{Former, Owners, PAST},
        owners::{Pool, address, fill},
    },
};

/// The room for tables of before.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Reserve {
    /// Blocks that they may fill now, and that they do.
    pub room: u32,
    pub filled: u32,
    /// How many have been dropped for want of room since the agent started.
    pub dropped: u64,
}

/// A record's past places.
pub fn blocks_of(past: &[(Place, u32)]) -> [u32; PAST] {
    let mut blocks = [0; PAST];
    let held = past.iter().filter(|(_, first)| *first != 0);
    for (block, (_, first)) in blocks.iter_mut().zip(held) {
        *block = *first;
    }
    blocks
}

/// Which owner of each slot a table of before names.
type Ranks = Vec<[Option<u16>; RANKS]>;

impl<S: Store> Work<'_, S> {
    /// The segment that holds the wanted table: one that does, or a new one.
    pub(super) fn segment(&mut self, want: &Want, table: &Table) -> Result<u32, ApplyError> {
        if table.backends().is_empty() {
            return Ok(0);
        }
        if let Some(first) = self.held.by_holding.get(&want.holding) {
            return Ok(*first);
        }
        let mut slots = std::mem::take(&mut self.slots);
        fill(&mut slots, table, &want.pool, &want.ids);
        let first = self.place(want, &slots);
        self.slots = slots;
        first
    }

    /// Where these slots stand: where they did by what was read back, or in new blocks.
    fn place(&mut self, want: &Want, slots: &[u32]) -> Result<u32, ApplyError> {
        if let Some(first) = self.same_table(want.key, want.holding, slots) {
            return Ok(first);
        }
        let blocks = blocks(slots.len() as u32);
        let first = loop {
            if let Some(first) = self.held.arena.take(blocks) {
                break first;
            }
            let dropped = self.drop_oldest(true)?;
            if !self.reclaim() && !dropped {
                let used: u32 = self.held.segments.values().map(|segment| segment.blocks).sum();
                let capacity = (used + self.held.arena.free() + 1) as usize;
                return Err(self.full(map::OWNERS, capacity).into());
            }
        };
        self.write_table(first, want.holding, slots)
    }

    fn write_table(
        &mut self,
        first: u32,
        holding: Holding,
        slots: &[u32],
    ) -> Result<u32, ApplyError> {
        self.store.write(Step::Slots(first, slots))?;
        let blocks = blocks(slots.len() as u32);
        let segment = Segment { blocks, users: [0; 2], holding: Some(holding) };
        self.held.segments.insert(first, segment);
        self.held.by_holding.insert(holding, first);
        Ok(first)
    }

    /// The segment as read back for a frontend, if it holds these very slots.
    fn same_table(&mut self, key: FrontendKey, holding: Holding, slots: &[u32]) -> Option<u32> {
        let record = self.held.frontends.get(&key)?.record;
        let same = |first: &u32| {
            let segment = self.held.segments.get(first);
            segment.is_some_and(|segment| segment.holding.is_none())
                && self.store.slots(*first, record.slots) == slots
        };
        let mut tables = [record.owners, record.inside].into_iter().chain(record.past);
        let first = tables.find(|first| record.slots as usize == slots.len() && same(first))?;
        self.held.segments.get_mut(&first)?.holding = Some(holding);
        self.held.by_holding.insert(holding, first);
        Some(first)
    }

    /// The tables for a frontend's past places beside the one in force, each named once more; 0 for
    /// those without room.
    pub(super) fn past(
        &mut self,
        want: &Want,
        table: &Table,
        in_force: u32,
    ) -> Result<Vec<(Place, u32)>, ApplyError> {
        let (mut past, mut ranks) = (Vec::new(), None);
        let desired = self.desired;
        for former in &desired.frontends[&want.key].past {
            let place = place(former, want.holding);
            let first = match self.standing(want.key, place) {
                Some(first) => self.stay(want.key, first, in_force)?,
                None => match former {
                    Former::Held(_) => 0,
                    Former::Owners(_, owners) => self.former_table(want, owners)?,
                    Former::Rank(rank) => {
                        let ranks = ranks.get_or_insert_with(|| table.ranks().collect());
                        self.rank_table(want, table, ranks, *rank)?
                    }
                },
            };
            self.held.name(first, As::Past);
            past.push((place, first));
        }
        Ok(past)
    }

    /// Where the table of a past place stands already: in a past place, or in force. 0: it was dropped.
    fn standing(&self, key: FrontendKey, place: Place) -> Option<u32> {
        let held = self.held.frontends.get(&key)?;
        let in_force = match place {
            Place::Set(set) => held.set == Some(set),
            Place::Block(first) => held.record.owners == first,
            Place::Rank(..) => false,
        };
        let past = held.past.iter().find(|(known, _)| *known == place);
        past.map(|(_, first)| *first).or(in_force.then_some(held.record.owners))
    }

    /// A table that stands, where it may go on to as one of before; 0: there is no room.
    fn stay(&mut self, key: FrontendKey, first: u32, in_force: u32) -> Result<u32, ApplyError> {
        // Only this frontend has it in force, and that ends.
        let ends = |held: &HeldFrontend| held.record.owners == first && first != in_force;
        let ends = self.held.frontends.get(&key).is_some_and(ends);
        let segment = self.held.segments.get(&first).filter(|it| ends && it.users[0] == 1);
        let Some(blocks) = segment.map(|segment| segment.blocks) else { return Ok(first) };
        Ok(if self.make_room(blocks, blocks)? { first } else { 0 })
    }

    /// A table of before that does not stand: a set that others told of, or that was read back.
    fn former_table(&mut self, want: &Want, owners: &Owners) -> Result<u32, ApplyError> {
        let pool = Pool::new(owners.iter(), want.pool.slots, self.tables.seed());
        let id = |backend| {
            let held = self.held.backends.get(&address(backend));
            held.map_or(0, |held| held.id.0)
        };
        let ids: Vec<u32> = pool.backends.iter().map(id).collect();
        if ids.iter().all(|id| *id == 0) {
            return Ok(0);
        }
        let holding = holding(pool.digest, &ids);
        if let Some(first) = self.held.by_holding.get(&holding) {
            return Ok(*first);
        }
        let table = self.tables.table(&pool);
        let mut slots = std::mem::take(&mut self.slots);
        fill(&mut slots, &table, &pool, &ids);
        let first = self.keep(want.key, holding, &slots);
        self.slots = slots;
        first
    }

    /// The table of a rank.
    fn rank_table(
        &mut self,
        want: &Want,
        table: &Table,
        ranks: &Ranks,
        rank: u8,
    ) -> Result<u32, ApplyError> {
        let known = |backend| {
            let at = want.pool.backends.iter().position(|it| it == backend);
            at.map_or(0, |at| want.ids[at])
        };
        let ids: Vec<u32> = table.backends().iter().map(known).collect();
        let column = usize::from(rank).saturating_sub(1).min(RANKS - 1);
        let id =
            |ranks: &[Option<u16>; RANKS]| ranks[column].map_or(0, |index| ids[usize::from(index)]);
        let slots: Vec<u32> = ranks.iter().map(id).collect();
        if slots.iter().all(|id| *id == 0) {
            return Ok(0);
        }
        // Told apart from every set's table by the hash of all that it holds.
        let holding = holding(u64::from(rank), &slots);
        if let Some(first) = self.held.by_holding.get(&holding) {
            return Ok(*first);
        }
        self.keep(want.key, holding, &slots)
    }

    /// Writes a table of before where there is room; else 0.
    fn keep(
        &mut self,
        key: FrontendKey,
        holding: Holding,
        slots: &[u32],
    ) -> Result<u32, ApplyError> {
        if let Some(first) = self.same_table(key, holding, slots) {
            return Ok(first);
        }
        let blocks = blocks(slots.len() as u32);
        if !self.make_room(blocks, 0)? {
            return Ok(0);
        }
        match self.held.arena.take(blocks) {
            Some(first) => self.write_table(first, holding, slots),
            None => {
                *self.dropped += 1;
                Ok(0)
            }
        }
    }

    /// Whether tables of before may fill so many blocks more when so many are no longer in force: older
    /// ones give way.
    fn make_room(&mut self, blocks: u32, freed: u32) -> Result<bool, ApplyError> {
        while self.held.blocks[1] + blocks > self.held.past_room(freed) {
            if !self.drop_oldest(false)? {
                *self.dropped += 1;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Drops the oldest table of before, if it is not of this turn or `any` may go; false: there is none.
    fn drop_oldest(&mut self, any: bool) -> Result<bool, ApplyError> {
        let oldest = self.held.ages.first().copied();
        let Some((aged, key)) = oldest.filter(|(aged, _)| any || *aged < self.turn) else {
            return Ok(false);
        };
        let former = self.held.frontends.get(&key).cloned().unwrap_or_default();
        let mut past = former.past.clone();
        let Some((_, dropped)) = past.iter_mut().rev().find(|(_, first)| *first != 0) else {
            return Ok(self.held.ages.remove(&(aged, key)));
        };
        let dropped = std::mem::take(dropped);
        let record = Record { past: blocks_of(&past), ..former.record };
        let held = match self.switch(key, Some(&former), record) {
            Err(ApplyError::Write(WriteError::Full { .. })) => return Ok(false),
            switched => switched?,
        };
        self.held.frontends.insert(key, HeldFrontend { past, ..held });
        if record.past == [0; PAST] {
            self.held.ages.remove(&(aged, key));
        }
        self.freed.records.push(former.record_index());
        self.forget(dropped, As::Past);
        *self.dropped += 1;
        Ok(true)
    }

    /// A record names a table no more, which goes with the last one.
    pub(super) fn forget(&mut self, first: u32, named: As) {
        self.held.unname(first, named);
        if self.held.segments.get(&first).is_none_or(|segment| segment.users != [0; 2]) {
            return;
        }
        if let Some(segment) = self.held.segments.remove(&first) {
            if let Some(holding) = segment.holding {
                self.held.by_holding.remove(&holding);
            }
            self.freed.segments.push((first, segment.blocks));
        }
    }
}
