//! Slot tables for the pools of all frontends: each made once, from the frontend's former one where
//! there is one. Pure but for the threads it builds on.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    num::NonZeroU16,
    slice,
    sync::{
        Arc, Weak,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::Scope,
    vec,
};

use lb_common::{
    net::Port,
    table::{Backend, Seed, Table, digest},
};

use crate::threads;

/// Fewer tables than this to make: not worth a thread.
const WORTH_A_THREAD: usize = 8;

/// Most tables that are handed over at once, and most such batches that a thread makes ahead.
const BATCH: usize = 16;
const AHEAD: usize = 16;

/// Entries of the cache at which it is first swept.
const FIRST_SWEEP: usize = 64;

/// A pool that wants a table.
#[derive(Clone, Debug)]
pub struct Pool {
    pub backends: Vec<Backend>,
    pub slots: u16,
    /// Names the table: equal digests, equal tables.
    pub digest: u64,
}

impl Pool {
    /// Owners with weight 0 own nothing and are left out.
    pub fn new<'a>(
        owners: impl Iterator<Item = (&'a SocketAddr, &'a u16)>,
        slots: u16,
        seed: &Seed,
    ) -> Self {
        let backends: Vec<Backend> = owners
            .filter_map(|(address, weight)| {
                let (addr, port) = (address.ip().into(), Port::new(address.port()));
                Some(Backend { addr, port, weight: NonZeroU16::new(*weight)? })
            })
            .collect();
        let digest = digest(&backends, slots, seed);
        Self { backends, slots, digest }
    }
}

/// Where a backend of a table listens.
pub fn address(backend: &Backend) -> SocketAddr {
    SocketAddr::new(backend.addr.to_ip(), backend.port.get())
}

/// All tables that some frontend holds, by digest.
#[derive(Debug)]
pub struct Tables {
    seed: Seed,
    held: BTreeMap<u64, Weak<Table>>,
    /// Entries at which those of tables that are gone are swept out.
    sweep_at: usize,
}

impl Tables {
    pub fn new(seed: Seed) -> Self {
        Self { seed, held: BTreeMap::new(), sweep_at: FIRST_SWEEP }
    }

    pub fn seed(&self) -> &Seed {
        &self.seed
    }

    /// Which of these pools have a table that nobody holds, each digest once.
    pub fn missing<'p>(&mut self, pools: impl Iterator<Item = &'p Pool>) -> Vec<bool> {
        if self.held.len() >= self.sweep_at {
            self.held.retain(|_, table| table.strong_count() > 0);
            self.sweep_at = FIRST_SWEEP.max(2 * self.held.len());
        }
        let is_held = |digest| self.held.get(digest).is_some_and(|table| table.strong_count() > 0);
        let mut seen = BTreeSet::new();
        pools.map(|pool| !is_held(&pool.digest) && seen.insert(pool.digest)).collect()
    }

    /// Shares a table from now on, for as long as somebody holds it.
    pub fn share(&mut self, digest: u64, table: &Arc<Table>) {
        self.held.insert(digest, Arc::downgrade(table));
    }

    /// The table of one pool, made where nobody holds it.
    pub fn table(&mut self, pool: &Pool) -> Arc<Table> {
        if let Some(table) = self.held.get(&pool.digest).and_then(Weak::upgrade) {
            return table;
        }
        let table = Arc::new(Table::build(&pool.backends, pool.slots, &self.seed));
        self.share(pool.digest, &table);
        table
    }
}

/// A table to be made.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    pub pool: &'a Pool,
    /// The frontend's table up to now, from which it is made where the number of slots is the same.
    pub former: Option<&'a Arc<Table>>,
}

impl Job<'_> {
    fn make(&self, seed: &Seed) -> Arc<Table> {
        let Self { pool, former } = self;
        let former = former.filter(|former| former.slots() == usize::from(pool.slots));
        let table = match former {
            Some(former) => former.updated(&pool.backends),
            None => Table::build(&pool.backends, pool.slots, seed),
        };
        Arc::new(table)
    }
}

/// Writes what stands in the slots of a pool's table; `ids` are those of the pool's backends, in their
/// order. Nothing for a table without backends.
pub fn fill(slots: &mut Vec<u32>, table: &Table, pool: &Pool, ids: &[u32]) {
    slots.clear();
    if table.backends().is_empty() {
        return;
    }
    let known: BTreeMap<&Backend, u32> = pool.backends.iter().zip(ids.iter().copied()).collect();
    let id = |backend| known.get(backend).copied().unwrap_or_default();
    let ids: Vec<u32> = table.backends().iter().map(id).collect();
    slots.resize(table.slots(), 0);
    table.owners(slots, &ids);
}

/// Tables as they become ready, in the order of their jobs. Others are made meanwhile, on threads that
/// end with the last one, or when this is dropped.
pub enum Making<'a> {
    Here { jobs: slice::Iter<'a, Job<'a>>, seed: Seed },
    There { threads: Vec<Receiver<Vec<Arc<Table>>>>, turn: usize, ready: vec::IntoIter<Arc<Table>> },
}

impl<'a> Making<'a> {
    pub fn start<'scope>(scope: &'scope Scope<'scope, '_>, jobs: &'a [Job<'a>], seed: Seed) -> Self
    where
        'a: 'scope,
    {
        let count = threads::processors().min(jobs.len() / WORTH_A_THREAD);
        if count == 0 {
            return Self::Here { jobs: jobs.iter(), seed };
        }
        let batch = jobs.len().div_ceil(4 * count).min(BATCH);
        let start = |first: usize| {
            let (sender, receiver) = sync_channel(AHEAD);
            let mine = jobs.chunks(batch).skip(first).step_by(count);
            scope.spawn(move || make(mine, &seed, &sender));
            receiver
        };
        Self::There {
            threads: (0..count).map(start).collect(),
            turn: 0,
            ready: Vec::new().into_iter(),
        }
    }
}

fn make<'a>(
    batches: impl Iterator<Item = &'a [Job<'a>]>,
    seed: &Seed,
    to: &SyncSender<Vec<Arc<Table>>>,
) {
    for batch in batches {
        // Nobody waits any more after an error.
        if to.send(batch.iter().map(|job| job.make(seed)).collect()).is_err() {
            return;
        }
    }
}

impl Iterator for Making<'_> {
    type Item = Arc<Table>;

    fn next(&mut self) -> Option<Arc<Table>> {
        match self {
            Self::Here { jobs, seed } => jobs.next().map(|job| job.make(seed)),
            Self::There { threads, turn, ready } => {
                if let Some(table) = ready.next() {
                    return Some(table);
                }
                *ready = threads[*turn].recv().ok()?.into_iter();
                *turn = (*turn + 1) % threads.len();
                ready.next()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(addresses: &[&str]) -> Pool {
        let owners: BTreeMap<SocketAddr, u16> =
            addresses.iter().map(|address| (address.parse().unwrap(), 1)).collect();
        Pool::new(owners.iter(), 251, &[7; 16])
    }

    /// The tables of these pools, as a data plane gets them.
    fn tables(of: &mut Tables, pools: &[Pool], former: Option<&Arc<Table>>) -> Vec<Arc<Table>> {
        let missing = of.missing(pools.iter());
        let ids: Vec<u32> = (1..100).collect();
        let jobs: Vec<_> = (pools.iter().zip(&missing))
            .filter(|(_, missing)| **missing)
            .map(|(pool, _)| Job { pool, former })
            .collect();
        let (seed, mut slots) = (*of.seed(), Vec::new());
        std::thread::scope(|scope| {
            let mut making = Making::start(scope, &jobs, seed);
            let table = |(pool, missing): (&Pool, &bool)| {
                if !missing {
                    return of.table(pool);
                }
                let table = making.next().unwrap();
                fill(&mut slots, &table, pool, &ids[..pool.backends.len()]);
                for (slot, id) in (0..).zip(&slots) {
                    let owner = table.owner(slot).unwrap();
                    let wanted = pool.backends[*id as usize - 1];
                    assert_eq!(table.backends()[usize::from(owner)], wanted);
                }
                of.share(pool.digest, &table);
                table
            };
            pools.iter().zip(&missing).map(table).collect()
        })
    }

    #[test]
    fn equal_pools_share_a_table_and_an_increment_equals_a_rebuild() {
        for count in [20, 2000] {
            let pools: Vec<Pool> = (0..count)
                .map(|n| {
                    let n = n % (count / 2);
                    let last = format!("10.0.{}.{}:80", 1 + n / 250, n % 250);
                    pool(&["10.0.0.1:80", "[2001:db8::1]:80", &last])
                })
                .collect();
            let mut known = Tables::new([7; 16]);
            let first = tables(&mut known, &pools, None);
            assert!(
                Arc::ptr_eq(&first[0], &first[count / 2]) && !Arc::ptr_eq(&first[0], &first[1])
            );
            for (table, pool) in first.iter().zip(&pools) {
                assert_eq!(**table, Table::build(&pool.backends, 251, &[7; 16]));
            }

            let smaller = [pool(&["10.0.0.1:80", "[2001:db8::1]:80"])];
            let next = tables(&mut known, &smaller, Some(&first[3]));
            assert_eq!(*next[0], Table::build(&smaller[0].backends, 251, &[7; 16]));
            let backends: Vec<_> = next[0].backends().iter().map(address).collect();
            assert_eq!(backends.len(), 2);
            assert!(backends.contains(&"10.0.0.1:80".parse().unwrap()));
        }
    }

    #[test]
    fn threads_that_nobody_waits_for_end() {
        let pools: Vec<Pool> =
            (0..2000).map(|n| pool(&[&format!("10.0.{}.{}:80", n / 250, n % 250)])).collect();
        let jobs: Vec<_> = pools.iter().map(|pool| Job { pool, former: None }).collect();
        std::thread::scope(|scope| {
            let mut making = Making::start(scope, &jobs, [7; 16]);
            assert_eq!(making.next().map(|table| table.slots()), Some(251));
        });
    }

    #[test]
    fn tables_that_nobody_holds_are_forgotten() {
        let mut known = Tables::new([7; 16]);
        for n in 0..500 {
            let pool = pool(&[&format!("10.0.{}.{}:80", n / 250, n % 250)]);
            drop(tables(&mut known, &[pool], None));
        }
        assert!(known.held.len() <= FIRST_SWEEP, "{}", known.held.len());
    }
}
