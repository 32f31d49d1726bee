//! What the maps hold, and which places are free.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::{
    backend::BackendId,
    claim::Claim,
    frontend::{Endpoint, Frontend, SourceRange, Vip, filter_position},
    hop::{Hop, Uplinks},
    net::{Addr, proto},
    service::{Record, ServiceWord, blocks},
    table::Table,
};

use super::super::{
    grace::Freed,
    maps::ReadError,
    room::{Arena, Indices},
    store::{Contents, Store},
};
use crate::{model::Protocol, plan::desired::FrontendKey};

/// What a segment of the arena holds: digest of the pool, and of the ids of its backends.
pub type Holding = (u64, u64);

/// Of the blocks that tables in force leave, one in so many may hold tables of before: the rest is for
/// changes.
const PAST_SHARE: u32 = 2;

/// What stands in a past place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// The table of the set with this digest.
    Set(u64),
    /// As read back: from this block on.
    Block(u32),
    /// A rank of the table that the holding names.
    Rank(u8, Holding),
}

/// A frontend's pair of services, by its number.
#[derive(Clone, Debug, Default)]
pub struct HeldFrontend {
    pub number: u32,
    /// Words of the services for clients outside and inside the cluster.
    pub words: [ServiceWord; 2],
    /// [`lb_common::frontend::frontend_flags`].
    pub flags: u32,
    /// Of both; index 0: none.
    pub record: Record,
    /// None: as read back, not yet compared with what it should hold.
    pub holding: Option<Holding>,
    /// Of the table for sockets, where it has one of its own.
    pub inside: Option<Holding>,
    /// Digest of the whole set in force, also of those that have no id; none as read back.
    pub set: Option<u64>,
    pub table: Option<Arc<Table>>,
    /// What should stand in the past places, and the first block of its table; 0: dropped.
    pub past: Vec<(Place, u32)>,
    /// The turn in which the places changed last.
    pub aged: u64,
    /// Not all of its claims fit the map.
    pub crowded: bool,
}

impl HeldFrontend {
    pub fn services(&self) -> [u32; 2] {
        [2 * self.number, 2 * self.number + 1]
    }

    /// What leads to them.
    pub fn frontend(&self) -> Frontend {
        let [outside, inside] = self.services();
        Frontend { outside, inside, flags: self.flags }
    }

    /// Index of the record that both services should name.
    pub fn record_index(&self) -> u32 {
        self.words[0].record()
    }
}

#[derive(Clone, Copy, Debug)]
pub struct HeldBackend {
    pub id: BackendId,
    pub node: u32,
}

#[derive(Clone, Debug)]
pub struct Segment {
    pub blocks: u32,
    /// Records that name it in force, and as one of before.
    pub users: [u32; 2],
    /// None: as read back.
    pub holding: Option<Holding>,
}

impl Segment {
    /// Only kept for flows that a former set placed.
    fn is_past(&self) -> bool {
        self.users[0] == 0 && self.users[1] > 0
    }
}

/// How a record names a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum As {
    InForce,
    Past,
}

#[derive(Debug)]
pub struct Held {
    pub frontends: BTreeMap<FrontendKey, HeldFrontend>,
    pub backends: HashMap<SocketAddr, HeldBackend>,
    /// The last life of each index, to be followed by the next.
    pub lives: Vec<u32>,
    pub locals: HashMap<Endpoint, BackendId>,
    /// By first block.
    pub segments: BTreeMap<u32, Segment>,
    pub by_holding: HashMap<Holding, u32>,
    /// Blocks of tables that are in force, and of those that are only kept.
    pub blocks: [u32; 2],
    /// Frontends with tables of before, by the turn in which those changed last.
    pub ages: BTreeSet<(u64, FrontendKey)>,
    /// By number of the frontend, also of one that is gone: what each slot's entry holds.
    pub claims: HashMap<u32, BTreeMap<u16, Claim>>,
    /// The same for the networks of its clients.
    pub ranges: HashMap<u32, BTreeSet<SourceRange>>,
    /// Numbers with claims or ranges that no frontend has: a former agent stopped between two steps.
    pub strays: Vec<u32>,
    pub members: BTreeMap<Addr, u32>,
    /// Index of each node other than this one.
    pub nodes: BTreeMap<String, u32>,
    pub hops: Vec<Hop>,
    pub vips: BTreeMap<IpAddr, Vip>,
    pub filter: Vec<u64>,
    pub state: Vec<u64>,
    pub uplinks: Option<Uplinks>,
    /// Services that no frontend names: a former agent stopped between two steps.
    pub orphans: Vec<(u32, ServiceWord)>,
    /// Frontends whose second service still has another record, with its index.
    pub torn: Vec<(FrontendKey, u32, Record)>,
    pub arena: Arena,
    /// Blocks that tables can have.
    pub arena_blocks: u32,
    pub records: Indices,
    pub frontend_numbers: Indices,
    pub backend_indices: Indices,
    pub node_indices: Indices,
}

impl Held {
    /// Reads everything back. What no look-up can reach is free.
    pub fn read(store: &impl Store) -> Result<Self, ReadError> {
        let contents = store.read()?;
        let len = |list: usize| u32::try_from(list).unwrap_or(u32::MAX);
        let mut held = Self {
            frontends: BTreeMap::new(),
            backends: HashMap::new(),
            lives: Vec::new(),
            locals: contents.locals.iter().copied().collect(),
            segments: BTreeMap::new(),
            by_holding: HashMap::new(),
            blocks: [0; 2],
            ages: BTreeSet::new(),
            claims: HashMap::new(),
            ranges: HashMap::new(),
            strays: Vec::new(),
            members: contents.members.iter().map(|(addr, member)| (*addr, member.node)).collect(),
            nodes: BTreeMap::new(),
            hops: contents.hops.clone(),
            vips: contents.vips.iter().map(|(addr, vip)| (addr.to_ip(), *vip)).collect(),
            filter: contents.filter.clone(),
            state: contents.state.clone(),
            uplinks: None,
            orphans: Vec::new(),
            torn: Vec::new(),
            arena: Arena::new(contents.blocks),
            arena_blocks: contents.blocks.saturating_sub(1),
            records: Indices::new(len(contents.records.len())),
            frontend_numbers: Indices::new(len(contents.services.len() / 2)),
            backend_indices: Indices::new(len(contents.backends.len())),
            node_indices: Indices::new(len(contents.hops.len())),
        };
        held.read_backends(&contents);
        held.read_frontends(&contents);
        for (key, claim) in &contents.claims {
            let Ok(slot) = u16::try_from(key.slot) else { continue };
            held.claims.entry(key.frontend).or_default().insert(slot, *claim);
        }
        for range in &contents.ranges {
            held.ranges.entry(range.frontend).or_default().insert(*range);
        }
        let stray = |number: &&u32| held.frontend_numbers.is_free(**number);
        let numbers = held.claims.keys().chain(held.ranges.keys());
        held.strays = numbers.filter(stray).copied().collect();
        for index in held.members.values() {
            // Several addresses of one node share its index.
            let _ = held.node_indices.reserve(*index);
        }
        Ok(held)
    }

    fn read_backends(&mut self, contents: &Contents) {
        for (index, backend) in (0..).zip(&contents.backends) {
            let free = backend.id == BackendId::NONE;
            self.lives.push(if free { backend.node } else { backend.id.generation() });
            if !free && backend.id.index() == index && self.backend_indices.reserve(index) {
                let address = SocketAddr::new(backend.addr.to_ip(), backend.port.get());
                self.backends.insert(address, HeldBackend { id: backend.id, node: backend.node });
            }
        }
    }

    fn read_frontends(&mut self, contents: &Contents) {
        let word = |index: u32| {
            ServiceWord(contents.services.get(index as usize).copied().unwrap_or_default())
        };
        for (endpoint, frontend) in &contents.frontends {
            let number = frontend.outside / 2;
            let Some(key) = frontend_key(endpoint) else { continue };
            if !self.frontend_numbers.reserve(number) {
                continue;
            }
            let words = [word(2 * number), word(2 * number + 1)];
            let records = words.map(|word| {
                let index = word.record();
                let record = contents.records.get(index as usize).copied().unwrap_or_default();
                if self.records.reserve(index) {
                    self.read_segment(record.owners, &record, As::InForce);
                    self.read_segment(record.inside, &record, As::InForce);
                    record
                        .past
                        .iter()
                        .for_each(|first| self.read_segment(*first, &record, As::Past));
                }
                record
            });
            if words[0].record() != words[1].record() {
                self.torn.push((key, words[1].record(), records[1]));
            }
            let record = records[0];
            let past = record.past.iter().filter(|first| **first != 0);
            let past: Vec<_> = past.map(|first| (Place::Block(*first), *first)).collect();
            if !past.is_empty() {
                self.ages.insert((0, key));
            }
            let (holding, inside, set, table) = (None, None, None, None);
            let (aged, crowded) = (0, false);
            let flags = frontend.flags;
            let held = HeldFrontend {
                number,
                words,
                flags,
                record,
                holding,
                inside,
                set,
                table,
                past,
                aged,
                crowded,
            };
            self.frontends.insert(key, held);
        }
        let services = (0..).zip(&contents.services).skip(2);
        let words = services.map(|(index, word)| (index, ServiceWord(*word)));
        let numbers = &self.frontend_numbers;
        let orphan = |index: &u32| numbers.is_free(*index / 2);
        self.orphans = words.filter(|(index, word)| word.record() != 0 && orphan(index)).collect();
    }

    fn read_segment(&mut self, first: u32, record: &Record, named: As) {
        let blocks = blocks(record.slots);
        if first != 0 && !self.segments.contains_key(&first) && self.arena.reserve(first, blocks) {
            self.segments.insert(first, Segment { blocks, users: [0; 2], holding: None });
        }
        self.name(first, named);
    }

    /// One more record names a table.
    pub fn name(&mut self, first: u32, named: As) {
        self.count(first, named, |users| users + 1);
    }

    /// One record fewer names a table.
    pub fn unname(&mut self, first: u32, named: As) {
        self.count(first, named, |users| users.saturating_sub(1));
    }

    fn count(&mut self, first: u32, named: As, count: impl FnOnce(u32) -> u32) {
        let Some(segment) = self.segments.get_mut(&first) else { return };
        let filled = |segment: &Segment| {
            let in_force = if segment.users[0] > 0 { segment.blocks } else { 0 };
            [in_force, if segment.is_past() { segment.blocks } else { 0 }]
        };
        let before = filled(segment);
        let users = &mut segment.users[named as usize];
        *users = count(*users);
        for ((blocks, before), now) in self.blocks.iter_mut().zip(before).zip(filled(segment)) {
            *blocks = *blocks + now - before;
        }
    }

    /// Blocks that tables of before may fill once so many are no longer in force.
    pub fn past_room(&self, freed: u32) -> u32 {
        (self.arena_blocks + freed).saturating_sub(self.blocks[0]) / PAST_SHARE
    }

    /// What grace has returned is free.
    pub fn reuse(&mut self, freed: Freed) {
        for (first, blocks) in freed.segments {
            self.arena.give(first, blocks);
        }
        freed.records.into_iter().for_each(|index| self.records.give(index));
        freed.backends.into_iter().for_each(|index| self.backend_indices.give(index));
        freed.frontends.into_iter().for_each(|index| self.frontend_numbers.give(index));
        freed.nodes.into_iter().for_each(|index| self.node_indices.give(index));
    }

    /// The filter's words that the held VIPs and `more` need.
    pub fn wanted_filter(&self, more: impl Iterator<Item = IpAddr>) -> Vec<u64> {
        let mut words = vec![0; self.filter.len()];
        for vip in self.vips.keys().copied().chain(more) {
            let (word, bit) = filter_position(&vip.into());
            if let Some(word) = words.get_mut(word as usize) {
                *word |= bit;
            }
        }
        words
    }
}

pub fn frontend_key(endpoint: &Endpoint) -> Option<FrontendKey> {
    let (address, port) = (endpoint.addr.to_ip(), endpoint.port.get());
    Some(FrontendKey { address, port, protocol: protocol(endpoint)? })
}

pub fn protocol(endpoint: &Endpoint) -> Option<Protocol> {
    match endpoint.proto {
        proto::TCP => Some(Protocol::Tcp),
        proto::UDP => Some(Protocol::Udp),
        _ => None,
    }
}
