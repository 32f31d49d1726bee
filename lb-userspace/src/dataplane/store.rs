//! The one way by which maps are written: single steps, each whole for readers. The kernel's maps
//! and the fake both take them.

use std::io;

use aya::maps::MapError;
use lb_common::{
    abi::{BLOCK_SLOTS, map},
    backend::{Backend, BackendId},
    claim::{Claim, ClaimKey},
    frontend::{Endpoint, Frontend, SourceRange, Vip},
    hop::{Hop, Member, Uplinks},
    net::Addr,
    service::{Record, ServiceWord},
};

use super::maps::{Maps, Ranges, ReadError, Table};

/// One write. Those of several words say which one makes it valid.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// Word 0, with the interface, last; or first, where there is no way.
    Hop(u32, &'a Hop),
    Member(Addr, Member),
    NoMember(Addr),
    /// A life begins: id and node last.
    Begin(&'a Backend),
    /// A living backend's node changed: one word.
    Move(BackendId, u32),
    /// A life ends: one word. The node of a free entry holds the generation that was, so that the
    /// next life gets another one, also from an agent that started in between.
    End(BackendId),
    Local(Endpoint, BackendId),
    NotLocal(Endpoint),
    /// Slots from a block on that nothing names.
    Slots(u32, &'a [u32]),
    /// A record that nothing names.
    Record(u32, &'a Record),
    FrontendOf(u32, Endpoint),
    /// The switch: one word.
    Service(u32, ServiceWord),
    Frontend(Endpoint, Frontend),
    NoFrontend(Endpoint),
    Claim(ClaimKey, Claim),
    NoClaim(ClaimKey),
    /// Clients of the network are taken.
    Range(SourceRange),
    NoRange(SourceRange),
    Filter(u32, u64),
    Vip(Addr, Vip),
    NoVip(Addr),
    NoYield(Addr),
    State(u32, u64),
    Uplinks(&'a Uplinks),
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("map {map} is full at {capacity} entries: raise its limit in the Agent object")]
    Full { map: &'static str, capacity: u32 },
    #[error("map {map} has no index {index}")]
    Beyond { map: &'static str, index: u32 },
    #[error("map {map} cannot be written: {source}")]
    Failed {
        map: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Everything a store holds, as read back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    pub frontends: Vec<(Endpoint, Frontend)>,
    /// By index.
    pub services: Vec<u64>,
    pub records: Vec<Record>,
    pub backends: Vec<Backend>,
    pub hops: Vec<Hop>,
    pub filter: Vec<u64>,
    pub state: Vec<u64>,
    pub locals: Vec<(Endpoint, BackendId)>,
    pub members: Vec<(Addr, Member)>,
    pub vips: Vec<(Addr, Vip)>,
    pub claims: Vec<(ClaimKey, Claim)>,
    pub ranges: Vec<SourceRange>,
    /// Blocks of the owners arena.
    pub blocks: u32,
}

/// Where a data plane's state is kept.
pub trait Store {
    fn write(&mut self, step: Step<'_>) -> Result<(), WriteError>;
    fn read(&self) -> Result<Contents, ReadError>;
    /// The slots of a table that starts at a block.
    fn slots(&self, first: u32, slots: u32) -> Vec<u32>;
    /// VIPs that others took while no agent lived here, as the data plane noted them by now.
    fn yields(&self) -> Result<Vec<Addr>, ReadError>;
    /// Gives back what only writing needs: nothing will be written for a while.
    fn rest(&mut self) {}
}

/// Where the id stands in a [`Backend`], in words of 64 bits; its node is in the same word.
const BACKEND_ID_WORD: usize = std::mem::offset_of!(Backend, id) / 8;
const _: () = assert!(std::mem::offset_of!(Backend, id) % 8 == 0);
const _: () = assert!(std::mem::offset_of!(Backend, node) == BACKEND_ID_WORD * 8 + 4);

fn id_word(id: BackendId, node: u32) -> u64 {
    bytemuck::cast([id.0, node])
}

impl Store for Maps {
    fn write(&mut self, step: Step<'_>) -> Result<(), WriteError> {
        let beyond = |map, index| {
            move |done: bool| match done {
                true => Ok(()),
                false => Err(WriteError::Beyond { map, index }),
            }
        };
        match step {
            Step::Hop(index, hop) => {
                let stopped = hop.ifindex != 0 || self.hops.set_word(index, 0, 0);
                beyond(map::HOPS, index)(stopped && self.hops.set(index, hop, 0))
            }
            Step::Member(addr, member) => self.members.put(addr, member),
            Step::NoMember(addr) => self.members.remove(&addr),
            Step::Begin(backend) => {
                let index = backend.id.index();
                beyond(map::BACKENDS, index)(self.backends.set(index, backend, BACKEND_ID_WORD))
            }
            Step::Move(id, node) => {
                let word = id_word(id, node);
                let done = self.backends.set_word(id.index(), BACKEND_ID_WORD, word);
                beyond(map::BACKENDS, id.index())(done)
            }
            Step::End(id) => {
                let word = id_word(BackendId::NONE, id.generation());
                let done = self.backends.set_word(id.index(), BACKEND_ID_WORD, word);
                beyond(map::BACKENDS, id.index())(done)
            }
            Step::Local(endpoint, id) => self.local_backends.put(endpoint, id),
            Step::NotLocal(endpoint) => self.local_backends.remove(&endpoint),
            Step::Slots(first, slots) => {
                self.owners.release(OWNERS_MAPPED);
                let (whole, rest) = slots.as_chunks::<{ BLOCK_SLOTS as usize }>();
                let end = first + whole.len() as u32;
                beyond(map::OWNERS, first)(self.owners.set_all(first, whole))?;
                if rest.is_empty() {
                    return Ok(());
                }
                let mut last = [0; BLOCK_SLOTS as usize];
                last[..rest.len()].copy_from_slice(rest);
                beyond(map::OWNERS, end)(self.owners.set_all(end, &[last]))
            }
            Step::Record(index, record) => {
                beyond(map::RECORDS, index)(self.records.set(index, record, 0))
            }
            Step::FrontendOf(index, endpoint) => {
                let done = self.frontend_of.set(index, endpoint, 0);
                done.map_err(|error| write_error(map::FRONTEND_OF, 0, error))
            }
            Step::Service(index, word) => {
                beyond(map::SERVICES, index)(self.services.set_word(index, 0, word.0))
            }
            Step::Frontend(endpoint, frontend) => self.frontends.put(endpoint, frontend),
            Step::NoFrontend(endpoint) => self.frontends.remove(&endpoint),
            Step::Claim(key, claim) => self.claims.put(key, claim),
            Step::NoClaim(key) => self.claims.remove(&key),
            Step::Range(range) => self.source_ranges.put(range),
            Step::NoRange(range) => self.source_ranges.remove(range),
            Step::Filter(index, word) => {
                beyond(map::VIP_FILTER, index)(self.vip_filter.set_word(index, 0, word))
            }
            Step::Vip(addr, vip) => self.vips.put(addr, vip),
            Step::NoVip(addr) => self.vips.remove(&addr),
            Step::NoYield(addr) => self.yields.remove(&addr),
            Step::State(index, word) => {
                beyond(map::STATE, index)(self.state.set_word(index, 0, word))
            }
            Step::Uplinks(uplinks) => {
                let done = self.uplinks.set(0, uplinks, 0);
                done.map_err(|error| write_error(map::UPLINKS, 0, error))
            }
        }
    }

    fn read(&self) -> Result<Contents, ReadError> {
        Ok(Contents {
            frontends: self.frontends.iter().collect::<Result<_, _>>()?,
            services: self.services.iter().map(|(_, word)| word).collect(),
            records: self.records.iter().map(|(_, record)| record).collect(),
            backends: self.backends.iter().map(|(_, backend)| backend).collect(),
            hops: self.hops.iter().map(|(_, hop)| hop).collect(),
            filter: self.vip_filter.iter().map(|(_, word)| word).collect(),
            state: self.state.iter().map(|(_, word)| word).collect(),
            locals: self.local_backends.iter().collect::<Result<_, _>>()?,
            members: self.members.iter().collect::<Result<_, _>>()?,
            vips: self.vips.iter().collect::<Result<_, _>>()?,
            claims: self.claims.iter().collect::<Result<_, _>>()?,
            ranges: self.source_ranges.iter().collect::<Result<_, _>>()?,
            blocks: self.owners.entries(),
        })
    }

    fn slots(&self, first: u32, slots: u32) -> Vec<u32> {
        self.slots_at(first, slots)
    }

    fn yields(&self) -> Result<Vec<Addr>, ReadError> {
        self.yields.iter().map(|entry| Ok(entry?.0)).collect()
    }

    fn rest(&mut self) {
        // By far the largest map.
        self.owners.release(0);
    }
}

impl<K: aya::Pod, V: aya::Pod> Table<K, V> {
    fn put(&mut self, key: K, value: V) -> Result<(), WriteError> {
        self.map.insert(key, value, 0).map_err(|error| write_error(self.name, self.capacity, error))
    }

    /// Succeeds also where there is no such key.
    pub(super) fn remove(&mut self, key: &K) -> Result<(), WriteError> {
        removed(self.name, self.capacity, self.map.remove(key))
    }
}

impl Ranges {
    fn put(&mut self, range: SourceRange) -> Result<(), WriteError> {
        let put = self.map.insert(&Self::key(range), PRESENT, 0);
        put.map_err(|error| write_error(map::SOURCE_RANGES, self.capacity, error))
    }

    /// Succeeds also where there is no such network.
    fn remove(&mut self, range: SourceRange) -> Result<(), WriteError> {
        removed(map::SOURCE_RANGES, self.capacity, self.map.remove(&Self::key(range)))
    }
}

/// Windows of the slot tables that are mapped at a time: of half a megabyte each.
const OWNERS_MAPPED: usize = 32;

/// Value of every entry of which only the presence counts.
const PRESENT: u32 = 1;

fn removed(
    map: &'static str,
    capacity: u32,
    result: Result<(), MapError>,
) -> Result<(), WriteError> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(error) => match write_error(map, capacity, error) {
            WriteError::Failed { source, .. } if source.kind() == io::ErrorKind::NotFound => Ok(()),
            error => Err(error),
        },
    }
}

fn write_error(map: &'static str, capacity: u32, error: MapError) -> WriteError {
    match error {
        MapError::SyscallError(error) => match error.io_error.raw_os_error() {
            // The first of hash maps, the second of tries.
            Some(libc::E2BIG | libc::ENOSPC) => WriteError::Full { map, capacity },
            _ => WriteError::Failed { map, source: error.io_error },
        },
        error => WriteError::Failed { map, source: io::Error::other(error) },
    }
}
