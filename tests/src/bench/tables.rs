//! Slot tables: how even, how steady and how quick they are, beside Maglev.
//!
//! First the algorithm alone, then from a plan to the kernel's maps. Quality is measured at the
//! product's default number of slots, over seeds with names, so that it can be repeated exactly.

pub mod maps;
pub mod quality;
pub mod speed;

use super::Goal;
use anyhow::Result;
use lb_common::{
    net::Port,
    table::{Backend, DEFAULT_SLOTS, Seed},
};
use serde::Serialize;
use siphasher::sip::SipHasher24;
use std::{hash::Hasher, net::Ipv6Addr, num::NonZeroU16};

/// Pool sizes for quality and for building.
const SIZES: [u32; 5] = [2, 10, 30, 100, 200];
/// Pool sizes for changes, each with its goal for the 99th percentile in microseconds.
const CHANGED: [(u32, f64); 2] = [(10, 1000.0), (100, 10_000.0)];
/// Goals for a whole fleet, in seconds: built; one backend taken from each service.
const FLEET: [f64; 2] = [1.2, 0.5];
/// Goals for 10,000 services from plan to maps: seconds; seconds when a node dies; bytes of all maps.
const FILLED: (f64, f64, f64) = (2.0, 0.5, 250e6);
const SEEDS: usize = 20;

/// `weir.bench.tables/v1`. Shares are of 1: 0.006 is 0.6 %.
#[derive(Debug, Serialize)]
pub struct TablesReport {
    pub schema: &'static str,
    pub slots: u16,
    pub seeds: Vec<String>,
    pub quality: Vec<Quality>,
    pub build: Vec<Build>,
    pub change: Vec<Change>,
    pub fleet: Vec<Fleet>,
    /// From plan to maps.
    pub maps: maps::Filled,
    pub goals: Vec<Goal>,
}

/// One pool size: weir's tables and Maglev's.
#[derive(Debug, Serialize)]
pub struct Quality {
    pub backends: u32,
    pub weir: Figures,
    pub maglev: Figures,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figures {
    /// The most loaded backend's slots beyond the fair share, as a share of that.
    pub over_provision: Spread,
    /// What the least loaded backend lacks of the fair share, as a share of that.
    pub under_provision: Spread,
    /// Excess disruption, of all slots, when one backend leaves.
    pub excess_remove: Spread,
    /// Excess disruption, of all slots, when one backend comes.
    pub excess_add: Spread,
}

/// Over the seeds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub mean: f64,
    pub worst: f64,
}

/// Building one table from nothing.
#[derive(Debug, Serialize)]
pub struct Build {
    pub backends: u32,
    /// Each backend has a weight of its own, instead of all the same.
    pub weighted: bool,
    pub min_us: f64,
    pub median_us: f64,
}

/// One backend comes or goes: updating the table and writing all owners.
#[derive(Debug, Serialize)]
pub struct Change {
    pub backends: u32,
    pub weighted: bool,
    pub median_us: f64,
    pub p99_us: f64,
    /// In processor time: what is left of `p99_us` when nothing else wants the processor.
    pub p99_cpu_us: f64,
}

/// Many services with pools of their own, on two threads, owners written to memory.
#[derive(Debug, Serialize)]
pub struct Fleet {
    pub what: &'static str,
    pub services: usize,
    pub backends: u32,
    pub threads: usize,
    pub seconds: f64,
    /// Processor time of all threads together.
    pub cpu_seconds: f64,
}

/// Measures all, prints the tables unless `json`, and returns the report.
pub fn run(json: bool) -> Result<TablesReport> {
    let seeds: Vec<String> = (0..SEEDS).map(|i| format!("seed-{i:02}")).collect();
    let mut quality = Vec::new();
    let (mut build, mut change) = (Vec::new(), Vec::new());
    for backends in SIZES {
        quality.push(quality::measure(backends, &seeds)?);
    }
    for weighted in [false, true] {
        for backends in SIZES {
            build.push(speed::build(backends, weighted)?);
        }
        for (backends, _) in CHANGED {
            change.push(speed::change(backends, weighted)?);
        }
    }
    let fleet = speed::fleet()?;
    let maps = maps::measure()?;
    let mut goals = goals(&quality, &change, &fleet);
    goals.extend(maps_goals(&maps));
    let report = TablesReport {
        schema: "weir.bench.tables/v1",
        slots: DEFAULT_SLOTS,
        seeds,
        quality,
        build,
        change,
        fleet,
        maps,
        goals,
    };
    super::show(&report, json, print)?;
    Ok(report)
}

/// `weir.bench.maps/v1`: the part `maps` of the other report.
#[derive(Debug, Serialize)]
pub struct MapsReport {
    pub schema: &'static str,
    pub maps: maps::Filled,
    pub goals: Vec<Goal>,
}

/// Measures only the way from a plan to the maps.
pub fn run_maps(json: bool) -> Result<MapsReport> {
    let maps = maps::measure()?;
    let report = MapsReport { schema: "weir.bench.maps/v1", goals: maps_goals(&maps), maps };
    super::show(&report, json, |report| {
        print_maps(&report.maps);
        print_goals(&report.goals);
    })?;
    Ok(report)
}

fn seed(name: &str) -> Seed {
    let half = |n: u8| {
        let mut hasher = SipHasher24::new();
        hasher.write_u8(n);
        hasher.write(name.as_bytes());
        hasher.finish().to_le_bytes()
    };
    let mut seed = [0; 16];
    seed[..8].copy_from_slice(&half(0));
    seed[8..].copy_from_slice(&half(1));
    seed
}

/// The `n`th backend of the `service`th pool: distinct for all up to 65,536 of each.
fn backend(service: usize, n: u32, weight: u16) -> Backend {
    let addr = Ipv6Addr::from_bits(0xfd << 120 | (service as u128) << 32 | u128::from(n)).into();
    Backend {
        addr,
        port: Port::new(8080),
        weight: NonZeroU16::new(weight).unwrap_or(NonZeroU16::MIN),
    }
}

fn pool(service: usize, backends: u32, weighted: bool) -> Vec<Backend> {
    (0..backends)
        .map(|n| backend(service, n, if weighted { 1 + (n % 100) as u16 } else { 1 }))
        .collect()
}

fn goals(quality: &[Quality], change: &[Change], fleet: &[Fleet]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for q in quality {
        let n = q.backends;
        goals.push(Goal::at_most(
            format!("over-provision at {n}"),
            0.06,
            q.weir.over_provision.worst,
        ));
        for (what, ours, theirs) in [
            ("remove 1", q.weir.excess_remove, q.maglev.excess_remove),
            ("add 1", q.weir.excess_add, q.maglev.excess_add),
        ] {
            goals.push(Goal::at_most(
                format!("excess beside Maglev, {what} at {n}"),
                0.55 * theirs.mean,
                ours.mean,
            ));
            if n == 30 {
                goals.push(Goal::at_most(format!("excess, {what} at {n}"), 0.006, ours.mean));
            }
        }
    }
    for (c, (_, limit)) in change.iter().filter(|c| !c.weighted).zip(CHANGED) {
        let name = format!("p99 of a change at {}, microseconds", c.backends);
        goals.push(Goal::at_most(name, limit, c.p99_us));
    }
    for (f, limit) in fleet.iter().zip(FLEET) {
        goals.push(Goal::at_most(format!("{}, seconds", f.what), limit, f.seconds));
    }
    goals
}

fn maps_goals(filled: &maps::Filled) -> Vec<Goal> {
    let (first, death, bytes) = FILLED;
    let steps = filled.steps.iter().zip([first, death]);
    let steps = steps.map(|(step, seconds)| {
        Goal::at_most(format!("{}, seconds", step.what), seconds, step.seconds)
    });
    let memory = Goal::at_most("maps, bytes", bytes, filled.memory.total as f64);
    let change = |change: &maps::Change| {
        let limit = CHANGED.iter().find(|(backends, _)| *backends as usize == change.backends)?.1;
        let (backends, services) = (change.backends, change.services);
        let name =
            format!("p99 to maps of a change at {backends}, {services} services, microseconds");
        Some(Goal::at_most(name, limit, change.p99_us))
    };
    steps.chain([memory]).chain(filled.changes.iter().filter_map(change)).collect()
}

fn print(report: &TablesReport) {
    println!("Quality at {} slots, {} seeds, mean (worst), %:\n", report.slots, report.seeds.len());
    println!(
        "{:>8} {:<8}{:>16}{:>16}{:>16}{:>16}",
        "backends", "", "over", "under", "excess -1", "excess +1"
    );
    for q in &report.quality {
        for (name, f) in [("weir", q.weir), ("maglev", q.maglev)] {
            let cells = [f.over_provision, f.under_provision, f.excess_remove, f.excess_add];
            let cells = cells.map(|s| {
                format!("{:16}", format!("{:8.3} ({:.3})", 100.0 * s.mean, 100.0 * s.worst))
            });
            println!("{:>8} {name:<8}{}", q.backends, cells.concat());
        }
    }
    println!(
        "\nBuilding one table, microseconds:\n\n{:>8} {:<9}{:>10}{:>10}",
        "backends", "weights", "min", "median"
    );
    for b in &report.build {
        println!(
            "{:>8} {:<9}{:>10.0}{:>10.0}",
            b.backends,
            weights(b.weighted),
            b.min_us,
            b.median_us
        );
    }
    println!(
        "\nOne backend out or in, all owners written, microseconds:\n\n{:>8} {:<9}{:>10}{:>10}{:>10}",
        "backends", "weights", "median", "p99", "p99 cpu"
    );
    for c in &report.change {
        println!(
            "{:>8} {:<9}{:>10.0}{:>10.0}{:>10.0}",
            c.backends,
            weights(c.weighted),
            c.median_us,
            c.p99_us,
            c.p99_cpu_us
        );
    }
    println!();
    for f in &report.fleet {
        print!("{} services x {} backends, {} threads: ", f.services, f.backends, f.threads);
        println!("{}: {:.3} s ({:.3} s cpu)", f.what, f.seconds, f.cpu_seconds);
    }
    print_maps(&report.maps);
    print_goals(&report.goals);
}

fn print_goals(goals: &[Goal]) {
    println!("\nGoals:\n");
    for g in goals {
        let met = if g.met { "met" } else { "MISSED" };
        println!("{met:<6} {:<62} {:>16.6} (at most {:.6})", g.name, g.measured, g.at_most);
    }
}

fn print_maps(filled: &maps::Filled) {
    println!("\nPlan to maps, seconds:\n");
    for s in &filled.steps {
        println!(
            "{:<48} {:>8.3} ({:.3} plan, {:.3} cpu)",
            s.what, s.seconds, s.plan_seconds, s.cpu_seconds
        );
    }
    println!("\nOne backend down or up, plan to maps, microseconds:\n");
    println!(
        "{:>8} {:>8}{:>10}{:>10}{:>10}{:>10}{:>13}{:>13}",
        "services", "backends", "min", "median", "p99", "p99 cpu", "median plan", "p99 maps"
    );
    for c in &filled.changes {
        println!(
            "{:>8} {:>8}{:>10.0}{:>10.0}{:>10.0}{:>10.0}{:>13.0}{:>13.0}",
            c.services,
            c.backends,
            c.min_us,
            c.median_us,
            c.p99_us,
            c.p99_cpu_us,
            c.plan_median_us,
            c.maps_p99_us
        );
    }
    println!("\nMaps, bytes:\n");
    let memory = &filled.memory;
    for (name, bytes) in &memory.maps {
        println!("{name:<24}{bytes:>14}");
    }
    for (name, bytes) in [
        ("all", memory.total),
        ("of it current tables", memory.current_tables),
        ("of it flows", memory.flows),
        ("of it for earlier sets", memory.history_reserve),
    ] {
        println!("{name:<24}{bytes:>14}");
    }
}

fn weights(weighted: bool) -> &'static str {
    if weighted { "mixed" } else { "equal" }
}
