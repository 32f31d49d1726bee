//! How even and how steady tables are, weir's and Maglev's.
//!
//! Maglev gets the same backends, the same seeds (they key its hash) and the same number of slots,
//! which is a prime as it needs.

use super::{Figures, Quality, Spread, backend, pool, seed};
use crate::maglev;
use anyhow::Result;
use lb_common::table::{Backend, DEFAULT_SLOTS, Table};
use std::collections::BTreeMap;

/// Evenness and steadiness of pools of `backends`, over the seeds with these names.
pub fn measure(backends: u32, seeds: &[String]) -> Result<Quality> {
    let (mut weir, mut maglev) = (Vec::new(), Vec::new());
    for (number, name) in (0..).zip(seeds) {
        let seed = seed(name);
        let pool = pool(0, backends, false);
        let mut fewer = pool.clone();
        let leaver = fewer.remove((number % backends) as usize);
        let mut more = pool.clone();
        more.push(backend(0, backends, 1));
        let joiner = more[backends as usize];

        let mut table = Table::build(&pool, DEFAULT_SLOTS, &seed);
        let owners = [owners(&table), follow(&mut table, &fewer), follow(&mut table, &more)];
        weir.push(Sample::new(&pool, &owners, leaver, joiner));
        let owners = [
            maglev::owners(&pool, seed)?,
            maglev::owners(&fewer, seed)?,
            maglev::owners(&more, seed)?,
        ];
        maglev.push(Sample::new(&pool, &owners, leaver, joiner));
    }
    Ok(Quality { backends, weir: figures(&weir), maglev: figures(&maglev) })
}

/// One seed's figures, in the order of `Figures`.
struct Sample([f64; 4]);

impl Sample {
    /// `owners` of the pool, of the pool without `leaver` and of the pool with `joiner`.
    fn new(pool: &[Backend], owners: &[Vec<Backend>; 3], leaver: Backend, joiner: Backend) -> Self {
        let [base, fewer, more] = owners;
        let mut loads: BTreeMap<Backend, u32> = pool.iter().map(|&b| (b, 0)).collect();
        for owner in base {
            *loads.entry(*owner).or_default() += 1;
        }
        let share = base.len() as f64 / pool.len() as f64;
        let load = |load: Option<&u32>| load.map_or(0.0, |&load| f64::from(load) / share);
        let excess = |other: &[Backend], changed: Backend| {
            let moved =
                base.iter().zip(other).filter(|&(a, b)| a != b && *a != changed && *b != changed);
            moved.count() as f64 / base.len() as f64
        };
        Self([
            load(loads.values().max()) - 1.0,
            1.0 - load(loads.values().min()),
            excess(fewer, leaver),
            excess(more, joiner),
        ])
    }
}

fn figures(samples: &[Sample]) -> Figures {
    let spread = |i: usize| {
        let values = || samples.iter().map(|s| s.0[i]);
        Spread {
            mean: values().sum::<f64>() / samples.len() as f64,
            worst: values().fold(0.0, f64::max),
        }
    };
    Figures {
        over_provision: spread(0),
        under_provision: spread(1),
        excess_remove: spread(2),
        excess_add: spread(3),
    }
}

fn owners(table: &Table) -> Vec<Backend> {
    (0..DEFAULT_SLOTS)
        .filter_map(|slot| table.owner(slot))
        .map(|i| table.backends()[usize::from(i)])
        .collect()
}

fn follow(table: &mut Table, pool: &[Backend]) -> Vec<Backend> {
    *table = table.updated(pool);
    owners(table)
}
