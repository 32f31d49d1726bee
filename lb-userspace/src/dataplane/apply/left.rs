//! What a former agent's data plane holds, in the words of a plan.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::{
    backend::{Backend, BackendId},
    net::Addr,
    service::{ServiceWord, flags::YOUNG},
};

use super::{
    ApplyError, DataPlane,
    held::{frontend_key, protocol},
};
use crate::{
    dataplane::store::{Contents, Store},
    plan::{
        Desired, DesiredBackend, DesiredNode, desired::FrontendKey, flows::Owners, history::Left,
    },
};

impl<S: Store> DataPlane<S> {
    /// What is held now: each frontend's sets, and a plan of nothing but the backends that live, on those
    /// of the configured nodes that are known. For the first plan of an agent to follow.
    pub fn left(
        &self,
        nodes: &BTreeMap<String, DesiredNode>,
    ) -> Result<(BTreeMap<FrontendKey, Left>, Desired), ApplyError> {
        let contents = self.store.read()?;
        let mut sets =
            Sets { store: &self.store, backends: &contents.backends, known: HashMap::new() };
        let mut frontends = BTreeMap::new();
        for (endpoint, frontend) in &contents.frontends {
            let word = contents.services.get(frontend.outside as usize).copied();
            let index = ServiceWord(word.unwrap_or_default()).record();
            let record = contents.records.get(index as usize).filter(|_| index != 0);
            let (Some(key), Some(record)) = (frontend_key(endpoint), record) else { continue };
            let past = record.past.into_iter().filter(|first| *first != 0);
            let tables = [record.owners].into_iter().chain(past);
            let tables = tables.map(|first| (first, sets.owners(first, record.slots))).collect();
            let young = record.flags & YOUNG != 0;
            frontends.insert(key, Left { epoch: record.epoch, young, tables });
        }
        let backends = living(&contents, &self.names(&contents, nodes));
        Ok((frontends, Desired { backends, ..Desired::default() }))
    }

    /// Names of the nodes by their indices.
    fn names<'a>(
        &'a self,
        contents: &Contents,
        nodes: &'a BTreeMap<String, DesiredNode>,
    ) -> HashMap<u32, &'a str> {
        let members: BTreeMap<Addr, u32> =
            contents.members.iter().map(|(addr, member)| (*addr, member.node)).collect();
        let index = |node: &DesiredNode| {
            node.addresses.iter().find_map(|it| members.get(&Addr::from(*it)).copied())
        };
        let names = nodes.iter().filter_map(|(name, node)| Some((index(node)?, name.as_str())));
        names.filter(|(index, _)| *index != 0).chain([(0, self.node.as_str())]).collect()
    }
}

/// All living backends on nodes with a name.
fn living(contents: &Contents, names: &HashMap<u32, &str>) -> BTreeMap<SocketAddr, DesiredBackend> {
    let living = contents.backends.iter().filter(|backend| backend.id != BackendId::NONE);
    let mut backends: BTreeMap<_, _> = living
        .filter_map(|backend| {
            let node = (*names.get(&backend.node)?).to_owned();
            Some((address(backend), DesiredBackend { node, protocols: BTreeSet::new() }))
        })
        .collect();
    for (endpoint, _) in &contents.locals {
        let address = SocketAddr::new(endpoint.addr.to_ip(), endpoint.port.get());
        if let (Some(backend), Some(protocol)) = (backends.get_mut(&address), protocol(endpoint)) {
            backend.protocols.insert(protocol);
        }
    }
    backends
}

fn address(backend: &Backend) -> SocketAddr {
    SocketAddr::new(backend.addr.to_ip(), backend.port.get())
}

/// Who owns slots, by the first block of each table; tables are shared.
struct Sets<'a, S> {
    store: &'a S,
    backends: &'a [Backend],
    known: HashMap<u32, Arc<Owners>>,
}

impl<S: Store> Sets<'_, S> {
    /// The owners that live; weights are not known.
    fn owners(&mut self, first: u32, slots: u32) -> Arc<Owners> {
        if let Some(owners) = self.known.get(&first) {
            return owners.clone();
        }
        let mut ids = self.store.slots(first, slots);
        ids.sort_unstable();
        ids.dedup();
        let living = |id: u32| {
            let backend = self.backends.get(BackendId(id).index() as usize)?;
            (id != 0 && backend.id.0 == id).then(|| (address(backend), 1))
        };
        let owners: Arc<Owners> = Arc::new(ids.into_iter().filter_map(living).collect());
        self.known.insert(first, owners.clone());
        owners
    }
}
