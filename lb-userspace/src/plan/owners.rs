//! Slot tables for the pools of all frontends: each made once, from the frontend's former one where
//! there is one. Pure but for the threads it builds on.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    num::{NonZeroU16, NonZeroUsize},
    sync::{Arc, Weak},
    thread,
};

use lb_common::{
    net::Port,
    table::{Backend, Seed, Table, digest},
};

/// Fewer tables than this to make: not worth a second thread.
const WORTH_A_THREAD: usize = 4;

/// Entries of the cache at which it is first swept.
const FIRST_SWEEP: usize = 64;

/// Most threads that build.
const MAX_THREADS: usize = 8;

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

    /// The tables of these pools, in their order; each with its frontend's former table, from which
    /// it is made where the number of slots is the same.
    pub fn of(&mut self, wanted: &[(&Pool, Option<&Arc<Table>>)]) -> Vec<Arc<Table>> {
        if self.held.len() >= self.sweep_at {
            self.held.retain(|_, table| table.strong_count() > 0);
            self.sweep_at = FIRST_SWEEP.max(2 * self.held.len());
        }
        let is_held = |digest| self.held.get(digest).is_some_and(|table| table.strong_count() > 0);
        let mut seen = BTreeSet::new();
        let missing: Vec<_> = wanted
            .iter()
            .filter(|(pool, _)| !is_held(&pool.digest) && seen.insert(pool.digest))
            .collect();
        let made: BTreeMap<u64, Arc<Table>> = thread::scope(|scope| {
            let share = missing.len().div_ceil(threads(missing.len())).max(1);
            let mut shares = missing.chunks(share);
            let own = shares.next().unwrap_or_default();
            let others: Vec<_> = shares.map(|share| scope.spawn(|| self.make(share))).collect();
            let mut made = self.make(own);
            for other in others {
                match other.join() {
                    Ok(more) => made.extend(more),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            made.into_iter().collect()
        });
        self.held.extend(made.iter().map(|(digest, table)| (*digest, Arc::downgrade(table))));
        wanted.iter().map(|(pool, _)| self.table(pool)).collect()
    }

    /// The table of one pool, made where nobody holds it.
    fn table(&mut self, pool: &Pool) -> Arc<Table> {
        if let Some(table) = self.held.get(&pool.digest).and_then(Weak::upgrade) {
            return table;
        }
        let table = Arc::new(Table::build(&pool.backends, pool.slots, &self.seed));
        self.held.insert(pool.digest, Arc::downgrade(&table));
        table
    }

    fn make(&self, share: &[&(&Pool, Option<&Arc<Table>>)]) -> Vec<(u64, Arc<Table>)> {
        let table = |(pool, former): &(&Pool, Option<&Arc<Table>>)| {
            let former = former.filter(|former| former.slots() == usize::from(pool.slots));
            let table = match former {
                Some(former) => {
                    let mut table = Table::clone(former);
                    table.update(&pool.backends);
                    table
                }
                None => Table::build(&pool.backends, pool.slots, &self.seed),
            };
            (pool.digest, Arc::new(table))
        };
        share.iter().map(|wanted| table(wanted)).collect()
    }
}

fn threads(tables: usize) -> usize {
    match tables {
        ..WORTH_A_THREAD => 1,
        _ => thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_THREADS),
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

    #[test]
    fn equal_pools_share_a_table_and_an_increment_equals_a_rebuild() {
        let pools: Vec<Pool> = (0..20)
            .map(|n| pool(&["10.0.0.1:80", "[2001:db8::1]:80", &format!("10.0.1.{}:80", n % 10)]))
            .collect();
        let mut tables = Tables::new([7; 16]);
        let none: Vec<_> = pools.iter().map(|pool| (pool, None)).collect();
        let first = tables.of(&none);
        assert!(Arc::ptr_eq(&first[0], &first[10]) && !Arc::ptr_eq(&first[0], &first[1]));

        let smaller = pool(&["10.0.0.1:80", "[2001:db8::1]:80"]);
        let next = tables.of(&[(&smaller, Some(&first[3]))]);
        assert_eq!(*next[0], Table::build(&smaller.backends, 251, &[7; 16]));
        let backends: Vec<_> = next[0].backends().iter().map(address).collect();
        assert_eq!(backends.len(), 2);
        assert!(backends.contains(&"10.0.0.1:80".parse().unwrap()));
    }

    #[test]
    fn tables_that_nobody_holds_are_forgotten() {
        let mut tables = Tables::new([7; 16]);
        for n in 0..500 {
            drop(tables.of(&[(&pool(&[&format!("10.0.{}.{}:80", n / 250, n % 250)]), None)]));
        }
        assert!(tables.held.len() <= FIRST_SWEEP, "{}", tables.held.len());
    }
}
