//! Nobody dies who lives: a fleet on processors that are all busy, and how often an agent took another node for dead.

use std::{
    collections::BTreeMap,
    hint,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::Serialize;

use super::{
    felt::{Felt, felt},
    load::Load,
    site::{BEAT, PORT, Site},
    system::Weir,
};
use crate::lab::Lab;

const NODES: usize = 10;
/// Between two looks at the client, whose samples would pile up.
const LOOK: Duration = Duration::from_secs(1);

/// `weir.bench-calm/v1`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub schema: &'static str,
    pub nodes: usize,
    pub minutes: u64,
    /// Threads that did nothing but count, one for each processor.
    pub busy_threads: usize,
    /// Deaths that agents reported in that time, by who reported; the goal is none.
    pub deaths: BTreeMap<String, usize>,
    /// What a client felt meanwhile.
    pub felt: Felt,
    pub met: bool,
}

/// Watches a calm fleet for `minutes` and prints what it saw.
pub fn run(minutes: u64, json: bool) -> Result<bool> {
    let site = Site::build(NODES)?;
    let weir = Weir::start(&site)?;
    let busy_threads = thread::available_parallelism()?.get();
    let stop = AtomicBool::new(false);
    let before = weir.deaths();
    let felt = thread::scope(|scope| {
        for _ in 0..busy_threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    hint::spin_loop();
                }
            });
        }
        let felt = watch(&site, Duration::from_secs(60 * minutes));
        stop.store(true, Ordering::Relaxed);
        felt
    })?;
    let new = |(node, deaths): (String, usize)| {
        let deaths = deaths - before.get(&node).copied().unwrap_or_default();
        (deaths > 0).then_some((node, deaths))
    };
    let deaths: BTreeMap<_, _> = weir.deaths().into_iter().filter_map(new).collect();
    let met = deaths.is_empty();
    let schema = "weir.bench-calm/v1";
    let report = Report { schema, nodes: NODES, minutes, busy_threads, deaths, felt, met };
    crate::bench::show(&report, json, print)?;
    Ok(report.met)
}

fn watch(site: &Site, time: Duration) -> Result<Felt> {
    let target = SocketAddr::new(Lab::vips(0)[0], PORT);
    let load = Load::start(&site.lab.clients()[0], target, BEAT)?;
    let from = Instant::now();
    let mut samples = Vec::new();
    while from.elapsed() < time {
        thread::sleep(LOOK);
        samples.extend(load.take());
    }
    Ok(felt(&samples, from, Instant::now()))
}

fn print(report: &Report) {
    println!(
        "{} nodes, {} busy threads, {} minutes: nodes taken for dead: {} (none allowed): {}",
        report.nodes,
        report.busy_threads,
        report.minutes,
        report.deaths.values().sum::<usize>(),
        if report.met { "met" } else { "MISSED" }
    );
    for (node, deaths) in &report.deaths {
        println!("  {node} reported {deaths}");
    }
    let felt = &report.felt;
    println!(
        "  a client: {} of {} requests failed, longest gap {:.0} ms, itself late by {:.0} ms at most",
        felt.failed, felt.requests, felt.longest_gap_ms, felt.client_late_ms
    );
}
