//! From a plan to the maps: the only writer.
//!
//! Level-triggered: what is wanted is compared with what the maps hold, as read back, and every step
//! can be repeated. What nobody wants any more goes first, in the order VIPs, frontends; then comes
//! what is new, in the order nodes, backends, tables, frontends, VIPs; then what nothing names any
//! longer. So a stop after any step leaves every VIP forwarding to living backends.
//!
//! A set that changes, the one that it replaces and the word that the frontend is young come into force by
//! the same switch. Claims of a frontend are written before a record that is no longer young.
//!
//! A frontend's source ranges are there before it says that it has some, and go after: at no moment does it
//! take clients that neither the former list nor the new one names, or shut out those that both do.
//!
//! Never edits what a BPF program may be reading: tables and records are written where nothing points,
//! switched to by one word, and their places reused after a grace period only.

mod around;
mod claims;
mod held;
mod left;
mod pools;
mod ranges;
mod tables;
#[cfg(test)]
mod tests;
mod wants;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
};

use lb_common::hop::{Hop, Uplink};

use super::{
    grace::{Freed, Grace, Synchronize},
    keys::Keys,
    maps::ReadError,
    store::{Store, WriteError},
};
use crate::{
    model::Problem,
    plan::{Desired, desired::FrontendKey, owners::Tables},
};
use held::Held;
pub use tables::Reserve;

/// What of a plan may differ from the plan applied before.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Scope {
    All,
    Part {
        /// Nodes, VIPs and this node's surroundings.
        around: bool,
        /// Only these frontends and backends; also those that the plan no longer holds.
        frontends: BTreeSet<FrontendKey>,
        backends: BTreeSet<SocketAddr>,
    },
}

impl Scope {
    /// Whether some frontend may differ.
    pub fn has_frontends(&self) -> bool {
        !matches!(self, Self::Part { frontends, .. } if frontends.is_empty())
    }

    /// What differs between two plans; `around` tells whether the surroundings do.
    pub fn between(old: &Desired, new: &Desired, around: bool) -> Self {
        Self::Part {
            around: around || (&old.nodes, &old.vips) != (&new.nodes, &new.vips),
            frontends: differing(&old.frontends, &new.frontends),
            backends: differing(&old.backends, &new.backends),
        }
    }
}

/// Keys whose values differ, by one walk over both.
fn differing<K: Copy + Ord, V: PartialEq>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> BTreeSet<K> {
    let mut changed = BTreeSet::new();
    let mut old = old.iter().peekable();
    for (key, value) in new {
        while let Some((gone, _)) = old.next_if(|(former, _)| *former < key) {
            changed.insert(*gone);
        }
        if old.next_if(|(former, _)| *former == key).map(|(_, former)| former) != Some(value) {
            changed.insert(*key);
        }
    }
    changed.extend(old.map(|(gone, _)| *gone));
    changed
}

/// What this node knows of its surroundings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Surroundings {
    /// The way to each other node that has one, by name.
    pub hops: BTreeMap<String, Hop>,
    /// The interface on which this node announces a VIP, for those that it announces.
    pub announced: BTreeMap<IpAddr, u32>,
    pub uplinks: Vec<Uplink>,
    /// The smallest MTU of the uplinks; 0: unknown.
    pub mtu: u32,
}

/// Why a plan could not be applied. What was written before stays, and the next attempt reads back
/// first.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("no thread for grace periods: {0}")]
    Thread(#[source] io::Error),
}

/// One node's data plane, by its maps.
pub struct DataPlane<S> {
    store: S,
    /// Name of this node.
    node: String,
    keys: Keys,
    tables: Tables,
    grace: Grace,
    /// What the maps hold; none before they were read and after a failure.
    held: Option<Held>,
    /// By object; what could not be served.
    problems: BTreeMap<FrontendKey, Problem>,
    /// Counts what was applied.
    turn: u64,
    /// Tables of before that were dropped for want of room.
    dropped: u64,
}

impl<S: Store> DataPlane<S> {
    pub fn new(
        store: S,
        node: &str,
        seed: &[u8; 16],
        synchronize: Synchronize,
    ) -> Result<Self, ApplyError> {
        Ok(Self {
            store,
            node: node.to_owned(),
            keys: Keys::of(seed),
            tables: Tables::new(*seed),
            grace: Grace::start(synchronize).map_err(ApplyError::Thread)?,
            held: None,
            problems: BTreeMap::new(),
            turn: 0,
            dropped: 0,
        })
    }

    /// Makes the maps hold what is wanted, as far as `scope` says that it may differ. What cannot be
    /// held becomes a problem of its object; all else is served.
    pub fn apply(
        &mut self,
        desired: &Desired,
        around: &Surroundings,
        scope: &Scope,
    ) -> Result<Vec<Problem>, ApplyError> {
        let (mut held, scope) = match self.held.take() {
            Some(mut held) => {
                held.reuse(self.grace.ready());
                (held, scope)
            }
            None => {
                // What this agent or its predecessor has just freed looks free already.
                self.grace.pass();
                (Held::read(&self.store)?, &Scope::All)
            }
        };
        self.turn += 1;
        let mut work = Work {
            turn: self.turn,
            dropped: &mut self.dropped,
            store: &mut self.store,
            node: &self.node,
            keys: &self.keys,
            tables: &mut self.tables,
            grace: &mut self.grace,
            held: &mut held,
            freed: Freed::default(),
            desired,
            around,
            problems: Vec::new(),
            starved: false,
            slots: Vec::new(),
        };
        let mut result = work.run(scope, &mut self.problems);
        if result.is_ok() && work.starved && work.reclaim() {
            // What went last may be the room that something lacked.
            while work.reclaim() {}
            work.problems.clear();
            result = work.run(&Scope::All, &mut self.problems);
        }
        let freed = std::mem::take(&mut work.freed);
        let mut problems = std::mem::take(&mut work.problems);
        self.grace.retire(freed);
        self.store.rest();
        result?;
        self.held = Some(held);
        problems.extend(self.problems.values().cloned());
        problems.sort();
        problems.dedup();
        Ok(problems)
    }

    /// Waits until all that was freed can be used again.
    pub fn settle(&mut self) {
        let freed = self.grace.wait();
        if let Some(held) = &mut self.held {
            held.reuse(freed);
        }
    }

    /// Whether the maps forward something: a former agent filled them.
    pub fn serves(&self) -> Result<bool, ApplyError> {
        Ok(!self.store.read()?.frontends.is_empty())
    }

    /// VIPs that this node answers for, by the maps, and on which interface: without those that others
    /// took while no agent lived here.
    pub fn announced(&self) -> Result<BTreeMap<IpAddr, u32>, ApplyError> {
        let mut announced: BTreeMap<IpAddr, u32> = match &self.held {
            Some(held) => held.vips.iter().map(|(vip, held)| (*vip, held.announced_on)).collect(),
            None => {
                let vips = self.store.read()?.vips;
                vips.iter().map(|(vip, held)| (vip.to_ip(), held.announced_on)).collect()
            }
        };
        announced.retain(|_, interface| *interface != 0);
        for taken in self.store.yields()? {
            announced.remove(&taken.to_ip());
        }
        Ok(announced)
    }

    /// How many different tables are in force.
    pub fn tables_held(&self) -> usize {
        let in_force = |held: &Held| held.segments.values().filter(|it| it.users[0] > 0).count();
        self.held.as_ref().map_or(0, in_force)
    }

    /// Counts what was applied since the agent started, also in vain.
    pub fn turn(&self) -> u64 {
        self.turn
    }

    /// The room for tables of before.
    pub fn reserve(&self) -> Reserve {
        let held = self.held.as_ref();
        let (room, filled) = held.map_or((0, 0), |held| (held.past_room(0), held.blocks[1]));
        Reserve { room, filled, dropped: self.dropped }
    }

    pub fn store(&self) -> &S {
        &self.store
    }
}

/// One pass over the maps.
struct Work<'a, S> {
    /// Which it is.
    turn: u64,
    dropped: &'a mut u64,
    store: &'a mut S,
    node: &'a str,
    keys: &'a Keys,
    tables: &'a mut Tables,
    grace: &'a mut Grace,
    held: &'a mut Held,
    /// Named by nothing any more; goes to the grace period at the end.
    freed: Freed,
    desired: &'a Desired,
    around: &'a Surroundings,
    problems: Vec<Problem>,
    /// Some map was full.
    starved: bool,
    /// Room for the slots of one table.
    slots: Vec<u32>,
}

impl<S: Store> Work<'_, S> {
    fn run(
        &mut self,
        scope: &Scope,
        of_frontends: &mut BTreeMap<FrontendKey, Problem>,
    ) -> Result<(), ApplyError> {
        let (around, frontends, backends) = match scope {
            Scope::All => {
                of_frontends.clear();
                let held = self.held.frontends.keys();
                let frontends = held.chain(self.desired.frontends.keys()).copied().collect();
                let held = self.held.backends.keys();
                (true, frontends, held.chain(self.desired.backends.keys()).copied().collect())
            }
            Scope::Part { around, frontends, backends } => {
                // Others took VIPs while this agent was silent: what it holds for true may be so no more.
                let around = *around || !self.store.yields()?.is_empty();
                (around, frontends.clone(), backends.clone())
            }
        };
        self.mend()?;
        if around {
            self.remove_vips()?;
        }
        self.remove_frontends(&frontends)?;
        if around {
            self.put_nodes()?;
        }
        self.put_backends(&backends)?;
        for key in &frontends {
            of_frontends.remove(key);
        }
        of_frontends.append(&mut self.put_frontends(&frontends)?);
        if around {
            self.put_vips()?;
        }
        self.remove_backends(&backends)?;
        if around {
            self.remove_nodes()?;
            self.put_state()?;
        }
        Ok(())
    }

    /// A map is full: the object goes without, all else goes on.
    fn starve(&mut self, object: String, full: &WriteError) {
        self.starved = true;
        self.problem(object, full.to_string());
    }

    fn problem(&mut self, object: String, message: String) {
        self.problems.push(Problem { object, message });
    }

    /// Sends what was freed on its way, and takes what has come back.
    fn recycle(&mut self) {
        self.grace.retire(std::mem::take(&mut self.freed));
        self.held.reuse(self.grace.ready());
    }

    /// Waits for something that is on its way to be free, where a map is full; false if nothing is.
    fn reclaim(&mut self) -> bool {
        self.grace.retire(std::mem::take(&mut self.freed));
        let freed = self.grace.some();
        let came = freed.is_some();
        self.held.reuse(freed.unwrap_or_default());
        came
    }
}
