//! What the maps hold, and which places are free.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::{
    backend::BackendId,
    frontend::{Endpoint, Vip, filter_position},
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

/// A frontend's pair of services, by its number.
#[derive(Clone, Debug)]
pub struct HeldFrontend {
    pub number: u32,
    /// Words of the services for clients outside and inside the cluster.
    pub words: [ServiceWord; 2],
    /// Of both; index 0: none.
    pub record: Record,
    /// None: as read back, not yet compared with what it should hold.
    pub holding: Option<Holding>,
    pub table: Option<Arc<Table>>,
}

impl HeldFrontend {
    pub fn services(&self) -> [u32; 2] {
        [2 * self.number, 2 * self.number + 1]
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
    /// Records that name it.
    pub users: u32,
    /// None: as read back.
    pub holding: Option<Holding>,
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
    /// Frontends whose second service still has another record, with its index and first block.
    pub torn: Vec<(FrontendKey, u32, u32)>,
    pub arena: Arena,
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
            records: Indices::new(len(contents.records.len())),
            frontend_numbers: Indices::new(len(contents.services.len() / 2)),
            backend_indices: Indices::new(len(contents.backends.len())),
            node_indices: Indices::new(len(contents.hops.len())),
        };
        held.read_backends(&contents);
        held.read_frontends(&contents);
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
                    self.use_segment(record.owners, blocks(record.slots));
                }
                record
            });
            if words[0].record() != words[1].record() {
                self.torn.push((key, words[1].record(), records[1].owners));
            }
            let (record, table) = (records[0], None);
            let held = HeldFrontend { number, words, record, holding: None, table };
            self.frontends.insert(key, held);
        }
        let services = (0..).zip(&contents.services).skip(2);
        let words = services.map(|(index, word)| (index, ServiceWord(*word)));
        let numbers = &self.frontend_numbers;
        let orphan = |index: &u32| numbers.is_free(*index / 2);
        self.orphans = words.filter(|(index, word)| word.record() != 0 && orphan(index)).collect();
    }

    fn use_segment(&mut self, first: u32, blocks: u32) {
        if first == 0 {
            return;
        }
        if let Some(segment) = self.segments.get_mut(&first) {
            segment.users += 1;
        } else if self.arena.reserve(first, blocks) {
            self.segments.insert(first, Segment { blocks, users: 1, holding: None });
        }
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

fn frontend_key(endpoint: &Endpoint) -> Option<FrontendKey> {
    let protocol = match endpoint.proto {
        proto::TCP => Protocol::Tcp,
        proto::UDP => Protocol::Udp,
        _ => return None,
    };
    Some(FrontendKey { address: endpoint.addr.to_ip(), port: endpoint.port.get(), protocol })
}
