//! Backends, services and frontends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    thread,
};

use lb_common::{
    abi::map,
    backend::{Backend, BackendId},
    frontend::Endpoint,
    hash::fingerprint,
    net::Port,
    service::{Record, ServiceWord},
    table::Table,
};

use super::{
    ApplyError, Work,
    held::{As, Held, HeldBackend, HeldFrontend, Place},
    ranges,
    tables::blocks_of,
    wants::{Want, flags},
};
use crate::{
    dataplane::store::{Step, Store, WriteError},
    model::{Problem, Protocol},
    plan::{
        DesiredBackend,
        desired::FrontendKey,
        flows::PAST,
        owners::{Job, Making},
    },
    threads,
};

/// Fewer frontends than this to look at: not worth a thread.
const WORTH_A_THREAD: usize = 256;

/// Tables replaced until their places are sent on the way to be free: a change of all tables goes on
/// while grace periods pass.
const RECYCLE: usize = 64;

impl<S: Store> Work<'_, S> {
    /// Ends what a former agent left between two steps.
    pub(super) fn mend(&mut self) -> Result<(), ApplyError> {
        for (index, word) in std::mem::take(&mut self.held.orphans) {
            self.store.write(Step::Service(index, word.next(0)))?;
        }
        for (key, index, record) in std::mem::take(&mut self.held.torn) {
            let Some(frontend) = self.held.frontends.get_mut(&key) else { continue };
            frontend.words[1] = frontend.words[1].next(frontend.record_index());
            self.store.write(Step::Service(frontend.services()[1], frontend.words[1]))?;
            self.release(index, &record);
        }
        for number in std::mem::take(&mut self.held.strays) {
            self.remove_claims(number)?;
            self.remove_ranges(number)?;
        }
        Ok(())
    }

    /// Gives every wanted backend of these an id, and says which of them are local.
    pub(super) fn put_backends(&mut self, of: &BTreeSet<SocketAddr>) -> Result<(), ApplyError> {
        let wanted = self.desired;
        for (address, backend) in of.iter().filter_map(|key| wanted.backends.get_key_value(key)) {
            match self.put_backend(*address, backend) {
                Ok(()) => {}
                Err(ApplyError::Write(full @ WriteError::Full { .. })) => {
                    self.starve(format!("Backend/{address}"), &full);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn put_backend(
        &mut self,
        address: SocketAddr,
        wanted: &DesiredBackend,
    ) -> Result<(), ApplyError> {
        let local = wanted.node == self.node;
        let node = match local {
            true => 0,
            false => match self.held.nodes.get(&wanted.node) {
                Some(node) => *node,
                None => return Err(self.full(map::HOPS, self.held.hops.len()).into()),
            },
        };
        let id = match self.held.backends.get_mut(&address) {
            Some(held) if held.node == node => held.id,
            Some(held) => {
                self.store.write(Step::Move(held.id, node))?;
                held.node = node;
                held.id
            }
            None => self.begin(address, node)?,
        };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let endpoint = endpoint(address, protocol);
            let wanted = (local && wanted.protocols.contains(&protocol)).then_some(id);
            let held = self.held.locals.get(&endpoint).copied();
            match wanted {
                Some(id) if held != Some(id) => {
                    self.store.write(Step::Local(endpoint, id))?;
                    self.held.locals.insert(endpoint, id);
                }
                None if held.is_some() => {
                    self.store.write(Step::NotLocal(endpoint))?;
                    self.held.locals.remove(&endpoint);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Begins a life at an index that is free.
    fn begin(&mut self, address: SocketAddr, node: u32) -> Result<BackendId, ApplyError> {
        while self.held.backend_indices.free() == 0 && self.reclaim() {}
        let Some(index) = self.held.backend_indices.take() else {
            return Err(self.full(map::BACKENDS, self.held.lives.len()).into());
        };
        let id = BackendId::new(index, self.held.lives[index as usize]).next_life();
        let (addr, port) = (address.ip().into(), Port::new(address.port()));
        let fingerprint = fingerprint(&self.keys.flow, &addr, port);
        self.store.write(Step::Begin(&Backend {
            addr,
            id,
            node,
            port,
            fingerprint,
            reserved: 0,
        }))?;
        self.held.backends.insert(address, HeldBackend { id, node });
        Ok(id)
    }

    /// Ends the lives of those that nobody wants.
    pub(super) fn remove_backends(&mut self, of: &BTreeSet<SocketAddr>) -> Result<(), ApplyError> {
        let gone = |address: &&SocketAddr| !self.desired.backends.contains_key(address);
        let gone: Vec<_> = of.iter().filter(gone).copied().collect();
        for address in gone {
            let Some(HeldBackend { id, .. }) = self.held.backends.get(&address).copied() else {
                continue;
            };
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let endpoint = endpoint(address, protocol);
                if self.held.locals.contains_key(&endpoint) {
                    self.store.write(Step::NotLocal(endpoint))?;
                    self.held.locals.remove(&endpoint);
                }
            }
            self.store.write(Step::End(id))?;
            self.held.backends.remove(&address);
            self.held.lives[id.index() as usize] = id.generation();
            self.freed.backends.push(id.index());
        }
        Ok(())
    }

    /// Gives every wanted frontend of these its table; what could not be done, by frontend.
    pub(super) fn put_frontends(
        &mut self,
        of: &BTreeSet<FrontendKey>,
    ) -> Result<BTreeMap<FrontendKey, Problem>, ApplyError> {
        let mut problems = BTreeMap::new();
        let mut tried = Vec::new();
        let wanted = self.desired;
        for (key, frontend) in of.iter().filter_map(|key| wanted.frontends.get_key_value(key)) {
            let mut problem = |message| {
                let object = format!("Frontend/{}", frontend.object);
                problems.insert(*key, Problem { object, message });
            };
            let held = self.held.frontends.get(key).filter(|held| held.record.slots != 0);
            let slots = held.map_or(frontend.slots, |held| held.record.slots);
            if slots != frontend.slots {
                problem(format!(
                    "{} asks for {} slots but keeps its {slots}: they are fixed for a frontend's \
                     life; remove it and add it again to change them",
                    shown(key),
                    frontend.slots,
                ));
            }
            match u16::try_from(slots) {
                Ok(slots) => tried.push((*key, frontend, slots)),
                Err(_) => problem(format!("{slots} slots are more than a table can have")),
            }
        }
        let (held, seed) = (&*self.held, self.tables.seed());
        let wants = threads::map(&tried, WORTH_A_THREAD, |(key, frontend, slots)| {
            Want::new(held, seed, *key, frontend, *slots)
        });
        let wants: Vec<Want> = wants.into_iter().flatten().collect();
        problems.append(&mut self.put_wanted(&wants)?);
        Ok(problems)
    }

    /// Writes tables while the next ones are made.
    fn put_wanted(&mut self, wants: &[Want]) -> Result<BTreeMap<FrontendKey, Problem>, ApplyError> {
        let mut problems = BTreeMap::new();
        let former = |want: &Want| self.held.frontends.get(&want.key)?.table.clone();
        let former: Vec<_> = wants.iter().map(former).collect();
        let missing = self.tables.missing(wants.iter().map(|want| &want.pool));
        let jobs: Vec<_> = (wants.iter().zip(&former).zip(&missing))
            .filter(|(_, missing)| **missing)
            .map(|((want, former), _)| Job { pool: &want.pool, former: former.as_ref() })
            .collect();
        let seed = *self.tables.seed();
        thread::scope(|scope| {
            let mut making = Making::start(scope, &jobs, seed);
            for (want, missing) in wants.iter().zip(&missing) {
                let table = match missing.then(|| making.next()).flatten() {
                    Some(table) => {
                        self.tables.share(want.pool.digest, &table);
                        table
                    }
                    None => self.tables.table(&want.pool),
                };
                let message = match self.put_frontend(want, table) {
                    Ok(lack) => lack.map(|lack| format!("{} {lack}", shown(&want.key))),
                    Err(ApplyError::Write(full @ WriteError::Full { .. })) => {
                        self.starved = true;
                        Some(format!("{} is not as wanted: {full}", shown(&want.key)))
                    }
                    Err(error) => return Err(error),
                };
                if let Some(message) = message {
                    let object = format!("Frontend/{}", self.desired.frontends[&want.key].object);
                    problems.insert(want.key, Problem { object, message });
                }
                if self.freed.segments.len() >= RECYCLE {
                    self.recycle();
                }
            }
            Ok(problems)
        })
    }

    /// Gives a frontend what it should hold; what it lacks, where only ranges or claims do not fit.
    fn put_frontend(
        &mut self,
        want: &Want,
        table: Arc<Table>,
    ) -> Result<Option<String>, ApplyError> {
        // Whom it takes must not wait for room that a table lacks.
        let closed = self.put_ranges(want.key)?;
        let first = self.segment(want, &table)?;
        // From here on whatever makes room leaves it alone.
        self.held.name(first, As::InForce);
        let inside = match self.inside(want) {
            Ok(inside) => inside,
            Err(error) => {
                self.forget(first, As::InForce);
                return Err(error);
            }
        };
        let past = self.past(want, &table, first)?;
        let number = self.held.frontends.get(&want.key).map(|held| held.number);
        let full = match number {
            Some(number) => self.put_claims(number, want)?,
            None => None,
        };
        let in_force = [first, inside];
        if let Err(error) = self.put_record(want, in_force, &table, &past, full.is_some()) {
            in_force.iter().for_each(|first| self.forget(*first, As::InForce));
            past.iter().for_each(|(_, first)| self.forget(*first, As::Past));
            return Err(error);
        }
        let (closed, full) = match number {
            Some(_) => (closed, full),
            // Both are by the number of a frontend, which it has only now.
            None => (self.put_ranges(want.key)?, self.claim_anew(want, &table)?),
        };
        let closed =
            closed.map(|full| format!("is closed to clients of some source ranges: {full}"));
        let crowded = || {
            full.map(|full| format!("asks earlier owners instead of those who claim flows: {full}"))
        };
        Ok(closed.or_else(crowded))
    }

    /// The segment of the table for sockets, named once more; 0 where it has none of its own.
    fn inside(&mut self, want: &Want) -> Result<u32, ApplyError> {
        let Some(want) = &want.inside else { return Ok(0) };
        let table = self.tables.table(&want.pool);
        let first = self.segment(want, &table)?;
        self.held.name(first, As::InForce);
        Ok(first)
    }

    /// Makes a record of these tables current, unless it is. They are named for it already.
    fn put_record(
        &mut self,
        want: &Want,
        [owners, inside]: [u32; 2],
        table: &Arc<Table>,
        past: &[(Place, u32)],
        crowded: bool,
    ) -> Result<(), ApplyError> {
        let record = Record {
            owners,
            inside,
            slots: table.slots() as u32,
            past: blocks_of(past),
            flags: flags(self.desired.frontends[&want.key].flags, crowded),
            epoch: want.pool.digest,
            ..Record::default()
        };
        let former = self.held.frontends.get(&want.key).cloned();
        let same = |it: &&HeldFrontend| it.record == record && it.record_index() != 0;
        let held = match former.as_ref().filter(same) {
            Some(former) => former.clone(),
            None => self.switch(want.key, former.as_ref(), record)?,
        };
        let (was, aged) = former.as_ref().map_or((&[][..], 0), |it| (&it.past[..], it.aged));
        self.held.ages.remove(&(aged, want.key));
        let aged = if was == past { aged } else { self.turn };
        if record.past != [0; PAST] {
            self.held.ages.insert((aged, want.key));
        }
        let held = HeldFrontend {
            holding: Some(want.holding),
            inside: want.inside.as_deref().map(|it| it.holding),
            set: Some(want.set),
            table: Some(table.clone()),
            past: past.to_vec(),
            aged,
            crowded,
            ..held
        };
        let index = held.record_index();
        self.held.frontends.insert(want.key, held);
        if let Some(former) = former {
            // The same record is named once more than it is.
            let freed = if former.record_index() == index { 0 } else { former.record_index() };
            self.release(freed, &former.record);
        }
        Ok(())
    }

    /// The claims of a frontend that has just come.
    fn claim_anew(
        &mut self,
        want: &Want,
        table: &Arc<Table>,
    ) -> Result<Option<WriteError>, ApplyError> {
        let Some(held) = self.held.frontends.get(&want.key).cloned() else { return Ok(None) };
        let full = self.put_claims(held.number, want)?;
        if full.is_some() {
            let in_force = [held.record.owners, held.record.inside];
            in_force.iter().for_each(|first| self.held.name(*first, As::InForce));
            held.past.iter().for_each(|(_, first)| self.held.name(*first, As::Past));
            self.put_record(want, in_force, table, &held.past, true)?;
        }
        Ok(full)
    }

    /// Writes a record and makes it current for both services, of a new frontend or a held one.
    pub(super) fn switch(
        &mut self,
        key: FrontendKey,
        former: Option<&HeldFrontend>,
        record: Record,
    ) -> Result<HeldFrontend, ApplyError> {
        let full = |held: &Held| {
            let no_number = former.is_none() && held.frontend_numbers.free() == 0;
            held.records.free() == 0 || no_number
        };
        while full(self.held) && self.reclaim() {}
        let number = match former {
            Some(former) => former.number,
            None => match self.held.frontend_numbers.take() {
                Some(number) => number,
                None => return Err(self.full(map::SERVICES, self.held.frontends.len()).into()),
            },
        };
        let Some(index) = self.held.records.take() else {
            if former.is_none() {
                self.held.frontend_numbers.give(number);
            }
            return Err(self.full(map::RECORDS, self.held.frontends.len()).into());
        };
        let words = former.map_or([ServiceWord::default(); 2], |former| former.words);
        let words = words.map(|word| word.next(index));
        let mut held = former.cloned().unwrap_or_default();
        (held.number, held.words, held.record) = (number, words, record);
        self.store.write(Step::Record(index, &record))?;
        if former.is_none() {
            for service in held.services() {
                self.store.write(Step::FrontendOf(service, key.endpoint()))?;
            }
        }
        for (service, word) in held.services().into_iter().zip(words) {
            self.store.write(Step::Service(service, word))?;
        }
        if former.is_none() {
            let wanted = &self.desired.frontends[&key];
            held.flags = ranges::flags(wanted);
            // It is never open to more than it should be: what does not fit is tried again, and told.
            self.add_ranges(number, &ranges::networks(number, wanted))?;
            let added = self.store.write(Step::Frontend(key.endpoint(), held.frontend()));
            if let Err(error) = added {
                // The caller takes back what the record names.
                self.end_words(&held)?;
                self.remove_ranges(number)?;
                return Err(error.into());
            }
        }
        Ok(held)
    }

    /// Removes those that nobody wants.
    pub(super) fn remove_frontends(
        &mut self,
        of: &BTreeSet<FrontendKey>,
    ) -> Result<(), ApplyError> {
        let gone = |key: &&FrontendKey| !self.desired.frontends.contains_key(key);
        let gone: Vec<_> = of.iter().filter(gone).copied().collect();
        for key in gone {
            let Some(held) = self.held.frontends.get(&key).cloned() else { continue };
            self.store.write(Step::NoFrontend(key.endpoint()))?;
            self.held.frontends.remove(&key);
            self.held.ages.remove(&(held.aged, key));
            self.end_services(&held)?;
        }
        Ok(())
    }

    /// Ends a pair of services that no frontend leads to.
    fn end_services(&mut self, held: &HeldFrontend) -> Result<(), ApplyError> {
        self.end_words(held)?;
        self.remove_claims(held.number)?;
        self.remove_ranges(held.number)?;
        self.release(0, &held.record);
        Ok(())
    }

    fn end_words(&mut self, held: &HeldFrontend) -> Result<(), ApplyError> {
        for (service, word) in held.services().into_iter().zip(held.words) {
            self.store.write(Step::Service(service, word.next(0)))?;
        }
        self.freed.records.extend(Some(held.record_index()).filter(|index| *index != 0));
        self.freed.frontends.push(held.number);
        Ok(())
    }

    /// A record is no longer current (0: it is), and names its tables no more.
    pub(super) fn release(&mut self, index: u32, record: &Record) {
        self.freed.records.extend(Some(index).filter(|index| *index != 0));
        [record.owners, record.inside].iter().for_each(|first| self.forget(*first, As::InForce));
        record.past.iter().for_each(|first| self.forget(*first, As::Past));
    }

    pub(super) fn full(&self, map: &'static str, capacity: usize) -> WriteError {
        WriteError::Full { map, capacity: u32::try_from(capacity).unwrap_or(u32::MAX) }
    }
}

fn endpoint(address: SocketAddr, protocol: Protocol) -> Endpoint {
    Endpoint::new(address.ip().into(), Port::new(address.port()), protocol.number())
}

fn shown(key: &FrontendKey) -> String {
    format!("{}/{}", SocketAddr::new(key.address, key.port), key.protocol)
}
