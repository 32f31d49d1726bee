//! How quick tables are: one by one, following a change, and thousands at once.
//!
//! Time is the wall's; processor time is given beside it, since it tells a slow builder from a busy
//! machine.

use super::{Build, Change, Fleet, pool, seed};
use anyhow::{Context, Result};
use lb_common::table::{Backend, DEFAULT_SLOTS, Table};
use nix::time::{ClockId, clock_gettime};
use std::{
    thread,
    time::{Duration, Instant},
};

const SERVICES: usize = 10_000;
const BACKENDS: u32 = 10;
const THREADS: usize = 2;
/// Tables that a build time is taken from.
const BUILDS: usize = 40;
/// Changes that a latency percentile is taken from.
const CHANGES: u32 = 400;

/// Building one table from nothing.
pub fn build(backends: u32, weighted: bool) -> Result<Build> {
    let mut times = Times::default();
    for service in 0..BUILDS {
        let pool = pool(service, backends, weighted);
        times.add(|| Table::build(&pool, DEFAULT_SLOTS, &seed("build")))?;
    }
    let [min_us, median_us] = [0, 50].map(|percent| percentile(&mut times.wall, percent));
    Ok(Build { backends, weighted, min_us, median_us })
}

/// One backend out and in again, each in turn.
pub fn change(backends: u32, weighted: bool) -> Result<Change> {
    let full = pool(0, backends, weighted);
    let mut out = vec![0; DEFAULT_SLOTS.into()];
    let mut table = Table::build(&full, DEFAULT_SLOTS, &seed("change"));
    let mut times = Times::default();
    for n in 0..CHANGES {
        let mut pool = full.clone();
        if n % 2 == 0 {
            pool.remove((n / 2 % backends) as usize);
        }
        times.add(|| follow(&mut table, &pool, &mut out))?;
    }
    let [median_us, p99_us] = [50, 99].map(|percent| percentile(&mut times.wall, percent));
    let p99_cpu_us = percentile(&mut times.cpu, 99);
    Ok(Change { backends, weighted, median_us, p99_us, p99_cpu_us })
}

/// All services at once: first built, then each loses one backend, as when a node dies.
pub fn fleet() -> Result<Vec<Fleet>> {
    let full: Vec<_> = (0..SERVICES).map(|service| pool(service, BACKENDS, false)).collect();
    let mut fewer = full.clone();
    for (service, pool) in fewer.iter_mut().enumerate() {
        pool.remove(service % pool.len());
    }
    let mut arena = vec![1; SERVICES * usize::from(DEFAULT_SLOTS)];
    let mut tables = Vec::new();
    let mut times = Times::default();
    times.add(|| {
        tables.resize(SERVICES, Table::build(&[], DEFAULT_SLOTS, &seed("fleet")));
        follow_all(&mut tables, &full, &mut arena);
    })?;
    times.add(|| follow_all(&mut tables, &fewer, &mut arena))?;
    let whats = ["all services built", "a backend taken from each service"];
    let rows = whats.into_iter().zip(times.wall).zip(times.cpu).map(|((what, wall), cpu)| Fleet {
        what,
        services: SERVICES,
        backends: BACKENDS,
        threads: THREADS,
        seconds: wall.as_secs_f64(),
        cpu_seconds: cpu.as_secs_f64(),
    });
    Ok(rows.collect())
}

fn follow_all(tables: &mut [Table], pools: &[Vec<Backend>], arena: &mut [u32]) {
    let slots = usize::from(DEFAULT_SLOTS);
    let each = tables.len().div_ceil(THREADS);
    let shares =
        tables.chunks_mut(each).zip(pools.chunks(each)).zip(arena.chunks_mut(each * slots));
    thread::scope(|scope| {
        for ((tables, pools), arena) in shares {
            scope.spawn(move || {
                for ((table, pool), out) in
                    tables.iter_mut().zip(pools).zip(arena.chunks_mut(slots))
                {
                    follow(table, pool, out);
                }
            });
        }
    });
}

/// What an agent does for a service whose pool has changed; ids are made up.
fn follow(table: &mut Table, pool: &[Backend], out: &mut [u32]) {
    *table = table.updated(pool);
    let ids: Vec<u32> = (1..).take(table.backends().len()).collect();
    table.owners(out, &ids);
}

#[derive(Default)]
pub(super) struct Times {
    pub(super) wall: Vec<Duration>,
    /// Of all threads.
    pub(super) cpu: Vec<Duration>,
}

impl Times {
    pub(super) fn add<T>(&mut self, work: impl FnOnce() -> T) -> Result<T> {
        let cpu =
            || clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("read the processor time");
        let (wall_start, cpu_start) = (Instant::now(), cpu()?);
        let result = work();
        let (wall, cpu_end) = (wall_start.elapsed(), cpu()?);
        self.wall.push(wall);
        self.cpu.push((cpu_end - cpu_start).into());
        Ok(result)
    }
}

/// In microseconds; 0 % is the least.
pub(in crate::bench) fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    times[times.len() * percent / 100].as_secs_f64() * 1e6
}
