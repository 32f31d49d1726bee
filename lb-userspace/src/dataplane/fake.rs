//! A data plane in plain memory, with the same limits: for tests and measurements without root.

use std::collections::BTreeMap;

use lb_common::{
    abi::{BLOCK_SLOTS, map},
    backend::{Backend, BackendId},
    claim::{Claim, ClaimKey},
    frontend::{Endpoint, FILTER_WORDS, Frontend, SourceRange, Vip},
    globals::state,
    hop::{Hop, Member, Uplinks},
    net::Addr,
    service::{OwnerBlock, Record, ServiceWord},
};

use super::{
    maps::ReadError,
    spec::Spec,
    store::{Contents, Step, Store, WriteError},
};
use crate::model::Limits;

/// Every map as vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct Fake {
    pub frontends: Hash<Endpoint, Frontend>,
    pub locals: Hash<Endpoint, BackendId>,
    pub vips: Hash<Addr, Vip>,
    pub yields: Hash<Addr, u64>,
    pub members: Hash<Addr, Member>,
    pub claims: Hash<ClaimKey, Claim>,
    pub ranges: Hash<SourceRange, ()>,
    pub frontend_of: Vec<Endpoint>,
    pub services: Vec<u64>,
    pub records: Vec<Record>,
    pub owners: Vec<OwnerBlock>,
    pub backends: Vec<Backend>,
    pub hops: Vec<Hop>,
    pub filter: Vec<u64>,
    pub state: Vec<u64>,
    pub uplinks: Uplinks,
    /// Steps taken so far.
    pub steps: usize,
    /// Steps after which every write fails.
    pub stop_after: Option<usize>,
}

/// A hash map of limited size, its keys by their bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Hash<K, V> {
    name: &'static str,
    capacity: u32,
    entries: BTreeMap<Vec<u8>, (K, V)>,
}

impl<K: bytemuck::Pod, V: Copy> Hash<K, V> {
    pub fn put(&mut self, key: K, value: V) -> Result<(), WriteError> {
        let bytes = bytemuck::bytes_of(&key).to_vec();
        if self.entries.len() >= self.capacity as usize && !self.entries.contains_key(&bytes) {
            return Err(WriteError::Full { map: self.name, capacity: self.capacity });
        }
        self.entries.insert(bytes, (key, value));
        Ok(())
    }

    fn remove(&mut self, key: &K) {
        self.entries.remove(bytemuck::bytes_of(key));
    }

    pub fn get(&self, key: &K) -> Option<V> {
        self.entries.get(bytemuck::bytes_of(key)).map(|(_, value)| *value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (K, V)> {
        self.entries.values().copied()
    }
}

impl Fake {
    pub fn new(limits: &Limits) -> Self {
        let entries = |name| Spec::of(name).and_then(|spec| spec.entries(limits)).unwrap_or(0);
        let len = |name| entries(name) as usize;
        Self {
            frontends: hash(map::FRONTENDS, entries(map::FRONTENDS)),
            locals: hash(map::LOCAL_BACKENDS, entries(map::LOCAL_BACKENDS)),
            vips: hash(map::VIPS, entries(map::VIPS)),
            yields: hash(map::YIELDS, entries(map::YIELDS)),
            members: hash(map::MEMBERS, entries(map::MEMBERS)),
            claims: hash(map::CLAIMS, entries(map::CLAIMS)),
            ranges: hash(map::SOURCE_RANGES, entries(map::SOURCE_RANGES)),
            frontend_of: vec![Endpoint::default(); len(map::FRONTEND_OF)],
            services: vec![0; len(map::SERVICES)],
            records: vec![Record::default(); len(map::RECORDS)],
            owners: vec![OwnerBlock::default(); len(map::OWNERS)],
            backends: vec![Backend::default(); len(map::BACKENDS)],
            hops: vec![Hop::default(); len(map::HOPS)],
            filter: vec![0; FILTER_WORDS as usize],
            state: vec![0; state::ENTRIES as usize],
            uplinks: Uplinks::default(),
            steps: 0,
            stop_after: None,
        }
    }

    /// The record that is current for a service.
    pub fn record(&self, service: u32) -> Option<&Record> {
        match ServiceWord(*self.services.get(service as usize)?).record() {
            0 => None,
            record => self.records.get(record as usize),
        }
    }
}

fn hash<K, V>(name: &'static str, capacity: u32) -> Hash<K, V> {
    Hash { name, capacity, entries: BTreeMap::new() }
}

fn set<T>(map: &'static str, list: &mut [T], index: u32, value: T) -> Result<(), WriteError> {
    let place = list.get_mut(index as usize).ok_or(WriteError::Beyond { map, index })?;
    *place = value;
    Ok(())
}

impl Store for Fake {
    fn write(&mut self, step: Step<'_>) -> Result<(), WriteError> {
        if self.stop_after.is_some_and(|most| self.steps >= most) {
            let source = std::io::Error::other("stopped");
            return Err(WriteError::Failed { map: "all", source });
        }
        self.steps += 1;
        match step {
            Step::Hop(index, hop) => set(map::HOPS, &mut self.hops, index, *hop)?,
            Step::Member(addr, member) => self.members.put(addr, member)?,
            Step::NoMember(addr) => self.members.remove(&addr),
            Step::Begin(backend) => {
                set(map::BACKENDS, &mut self.backends, backend.id.index(), *backend)?;
            }
            Step::Move(id, node) => {
                let backend = Backend { node, ..self.backends[id.index() as usize] };
                set(map::BACKENDS, &mut self.backends, id.index(), backend)?;
            }
            Step::End(id) => {
                let node = id.generation();
                let former = self.backends[id.index() as usize];
                let ended = Backend { id: BackendId::NONE, node, ..former };
                set(map::BACKENDS, &mut self.backends, id.index(), ended)?;
            }
            Step::Local(endpoint, id) => self.locals.put(endpoint, id)?,
            Step::NotLocal(endpoint) => self.locals.remove(&endpoint),
            Step::Slots(first, slots) => {
                for (index, chunk) in (first..).zip(slots.chunks(BLOCK_SLOTS as usize)) {
                    let mut block = OwnerBlock::default();
                    block[..chunk.len()].copy_from_slice(chunk);
                    set(map::OWNERS, &mut self.owners, index, block)?;
                }
            }
            Step::Record(index, record) => set(map::RECORDS, &mut self.records, index, *record)?,
            Step::FrontendOf(index, endpoint) => {
                set(map::FRONTEND_OF, &mut self.frontend_of, index, endpoint)?;
            }
            Step::Service(index, word) => set(map::SERVICES, &mut self.services, index, word.0)?,
            Step::Frontend(endpoint, frontend) => self.frontends.put(endpoint, frontend)?,
            Step::NoFrontend(endpoint) => self.frontends.remove(&endpoint),
            Step::Claim(key, claim) => self.claims.put(key, claim)?,
            Step::NoClaim(key) => self.claims.remove(&key),
            Step::Range(range) => self.ranges.put(range, ())?,
            Step::NoRange(range) => self.ranges.remove(&range),
            Step::Filter(index, word) => set(map::VIP_FILTER, &mut self.filter, index, word)?,
            Step::Vip(addr, vip) => self.vips.put(addr, vip)?,
            Step::NoVip(addr) => self.vips.remove(&addr),
            Step::NoYield(addr) => self.yields.remove(&addr),
            Step::State(index, word) => set(map::STATE, &mut self.state, index, word)?,
            Step::Uplinks(uplinks) => self.uplinks = *uplinks,
        }
        Ok(())
    }

    fn read(&self) -> Result<Contents, ReadError> {
        Ok(Contents {
            frontends: self.frontends.iter().collect(),
            services: self.services.clone(),
            records: self.records.clone(),
            backends: self.backends.clone(),
            hops: self.hops.clone(),
            filter: self.filter.clone(),
            state: self.state.clone(),
            locals: self.locals.iter().collect(),
            members: self.members.iter().collect(),
            vips: self.vips.iter().collect(),
            claims: self.claims.iter().collect(),
            ranges: self.ranges.iter().map(|(range, ())| range).collect(),
            blocks: self.owners.len() as u32,
        })
    }

    fn slots(&self, first: u32, slots: u32) -> Vec<u32> {
        let owners = self.owners.iter().skip(first as usize).flatten().copied();
        if first == 0 { Vec::new() } else { owners.take(slots as usize).collect() }
    }

    fn yields(&self) -> Result<Vec<Addr>, ReadError> {
        Ok(self.yields.iter().map(|(addr, _)| addr).collect())
    }
}
