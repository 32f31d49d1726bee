//! A large cluster behind a real API server: how long a cold start of an agent takes until all of it is in the maps, and
//! how long a change of one endpoint takes to get there while a hundred a second come.
//!
//! One agent on one node, in the lab, beside etcd and kube-apiserver on the same processors. All endpoints are on that
//! node, and nobody probes them: `bench health` says what probes cost. Each change replaces one endpoint of a Service by
//! another one; it counts from the API server's answer to it, so after the commit, to the moment in which the slot table
//! of the new set is in force in the maps, found by looking at them twice a millisecond.

mod cluster;
mod usage;

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use serde::Serialize;
use weir::dataplane::maps::Maps;

use super::{Goal, tables::speed::percentile};
use crate::{
    fleet::{self, Fleet},
    kube::{Cluster, Server},
    lab::{Lab, Node},
};
use cluster::{Change, Size};
use usage::Usage;

/// Seconds; milliseconds; bytes.
const COLD: f64 = 10.0;
const CHANGE_MS: f64 = 100.0;
const RESIDENT: f64 = 300e6;

/// For what has goals far below.
const PATIENCE: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_micros(500);
/// Between two looks at whether a cold start is over: looking takes as long as there are frontends.
const LOOK_AT_ALL: Duration = Duration::from_millis(20);
/// Frontends whose slots are looked at one by one.
const SAMPLES: usize = 100;

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Services, each of one port
    #[arg(long, default_value_t = 10_000)]
    pub services: usize,
    /// Endpoints of each
    #[arg(long, default_value_t = 10)]
    pub endpoints: usize,
    /// VIPs that they share
    #[arg(long, default_value_t = 1000)]
    pub vips: usize,
    /// Changes a second
    #[arg(long, default_value_t = 100)]
    pub rate: usize,
    /// How long changes come
    #[arg(long, default_value_t = 60)]
    pub seconds: usize,
}

/// `weir.bench-kubernetes/v1`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub schema: &'static str,
    pub services: usize,
    pub endpoints: usize,
    pub vips: usize,
    pub cold: Cold,
    pub changes: Changes,
    pub goals: Vec<Goal>,
}

/// From the start of the agent's process, which finds nothing of an earlier life, until all frontends are in the maps.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cold {
    pub seconds: f64,
    /// The agent's processor time until then.
    pub cpu_seconds: f64,
    pub memory: usage::Memory,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    pub count: usize,
    /// As they were answered.
    pub per_second: f64,
    /// From the API server's answer, in ms.
    pub median_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// From before the request was sent, in ms: the commit lies between.
    pub from_request_p99_ms: f64,
    /// Processors that the agent used meanwhile.
    pub processors: f64,
    pub memory: usage::Memory,
}

pub fn run(options: &Options, json: bool) -> Result<Report> {
    let report = measure(options)?;
    super::show(&report, json, print)?;
    Ok(report)
}

fn measure(options: &Options) -> Result<Report> {
    let Options { services, endpoints, vips, rate, seconds } = *options;
    let size = Size { services, endpoints, vips };
    let lab = Lab::builder().nodes(1, 0).build()?;
    let node = &lab.nodes()[0];
    let cluster = Cluster::on(&[node]).start()?;
    let server = cluster.server();
    eprintln!("makes {services} Services with {endpoints} endpoints each");
    cluster::fill(server, size, node.name())?;

    let account = cluster::account(&cluster)?;
    let (url, kubeconfig) = (server.url(), account.join("kubeconfig"));
    let kubeconfig = kubeconfig.display();
    let kubernetes = format!("kubernetes: {{servers: [\"{url}\"], kubeconfig: {kubeconfig}}}\n");
    let fleet = Fleet::prepare_with(&lab, &(kubernetes + &size.limits()), "")?;
    eprintln!("starts the agent");
    let start = Instant::now();
    let agent = fleet.start_agent(node)?;
    let maps = programmed(&fleet, node, size)?;
    let seconds_cold = start.elapsed().as_secs_f64();
    let usage = Usage::of(&agent)?;
    let cold =
        Cold { seconds: seconds_cold, cpu_seconds: usage.cpu.as_secs_f64(), memory: usage.memory };

    eprintln!("cold start {seconds_cold:.2} s; changes {rate} endpoints a second for {seconds} s");
    let before = (Instant::now(), Usage::of(&agent)?);
    let made = changes(&maps, server, size, (rate, seconds))?;
    let (passed, after) = (before.0.elapsed(), Usage::of(&agent)?);
    let cpu = after.cpu.saturating_sub(before.1.cpu);
    let changes = made.report(cpu.as_secs_f64() / passed.as_secs_f64(), after.memory)?;
    let goals = vec![
        Goal::at_most("cold start, seconds", COLD, cold.seconds),
        Goal::at_most("a change, p99, milliseconds", CHANGE_MS, changes.p99_ms),
        Goal::at_most("resident memory, bytes", RESIDENT, changes.memory.resident as f64),
    ];
    let schema = "weir.bench-kubernetes/v1";
    Ok(Report { schema, services, endpoints, vips, cold, changes, goals })
}

/// Waits until a new agent's maps hold everything.
fn programmed(fleet: &Fleet<'_>, node: &Node, size: Size) -> Result<Maps> {
    let deadline = Instant::now() + PATIENCE;
    let mut maps = None;
    loop {
        ensure!(fleet.agent(node).is_running()?, "the agent ended: {}", fleet.log(node));
        if maps.is_none() {
            // Not before the agent has pinned them all.
            maps = Maps::open(&fleet::pin_dir(node)).ok();
        }
        if let Some(maps) = maps.take_if(|maps| holds_all(maps, size).unwrap_or_default()) {
            return Ok(maps);
        }
        if Instant::now() > deadline {
            bail!("not all is served: {}", fleet.ask(node, &["status"])?["problems"]);
        }
        thread::sleep(LOOK_AT_ALL);
    }
}

fn holds_all(maps: &Maps, size: Size) -> Result<bool> {
    // Frontends are written in their order, VIPs after them.
    if maps.vips.get(&size.vip(size.vips - 1).into())?.is_none() {
        return Ok(false);
    }
    for number in 0..size.services {
        let Some(record) = record(maps, size, number)? else { return Ok(false) };
        if number % (size.services / SAMPLES).max(1) == 0 {
            let owners = maps.owners_of(&record);
            let living = |id| maps.backend(id).is_some();
            ensure!(!owners.is_empty() && owners.into_iter().all(living), "a slot without owner");
        }
    }
    Ok(true)
}

fn record(maps: &Maps, size: Size, number: usize) -> Result<Option<lb_common::service::Record>> {
    let Some(frontend) = maps.frontends.get(&size.frontend(number))? else { return Ok(None) };
    Ok(maps.service(frontend.outside).map(|service| service.record))
}

/// What became of the changes.
struct Made {
    changes: Vec<Change>,
    /// When each was found in the maps.
    seen: Vec<Instant>,
    passed: Duration,
}

impl Made {
    fn report(self, processors: f64, memory: usage::Memory) -> Result<Changes> {
        ensure!(!self.changes.is_empty(), "nothing was changed");
        let since = |from: fn(&Change) -> Instant| {
            let pairs = self.changes.iter().zip(&self.seen);
            // The watch may tell the agent before the answer is here.
            pairs.map(move |(change, seen)| seen.saturating_duration_since(from(change)))
        };
        let mut latencies: Vec<_> = since(|it| it.answered).collect();
        let max = latencies.iter().max().copied().unwrap_or_default();
        let mut from_request: Vec<_> = since(|it| it.sent).collect();
        let ms = |times: &mut Vec<Duration>, percent| percentile(times, percent) / 1e3;
        Ok(Changes {
            count: self.changes.len(),
            per_second: self.changes.len() as f64 / self.passed.as_secs_f64(),
            median_ms: ms(&mut latencies, 50),
            p99_ms: ms(&mut latencies, 99),
            max_ms: max.as_secs_f64() * 1e3,
            from_request_p99_ms: ms(&mut from_request, 99),
            processors,
            memory,
        })
    }
}

/// Changes endpoints while another thread looks at the maps.
fn changes(maps: &Maps, server: &Server<'_>, size: Size, pace: (usize, usize)) -> Result<Made> {
    let watcher = Watcher::new(maps, size)?;
    let (begun, beginnings) = mpsc::channel();
    thread::scope(|scope| {
        let watcher = scope.spawn(move || watcher.run(&beginnings));
        let start = Instant::now();
        let changes = cluster::change(server, size, pace, begun)?;
        let passed = start.elapsed();
        let seen = watcher.join().map_err(|_| anyhow!("the watcher panicked"))??;
        Ok(Made { changes, seen, passed })
    })
}

/// Looks at the maps for changes.
struct Watcher<'a> {
    maps: &'a Maps,
    /// Index in the maps and the set known last, by number of the Service.
    services: Vec<(u32, u64)>,
    /// Number of the change, and of its Service.
    awaited: Vec<(usize, usize)>,
    seen: Vec<Option<Instant>>,
}

impl<'a> Watcher<'a> {
    fn new(maps: &'a Maps, size: Size) -> Result<Self> {
        let service = |number| {
            let frontend = maps.frontends.get(&size.frontend(number))?;
            let index = frontend.context("a frontend is gone")?.outside;
            Ok((index, maps.service(index).map_or(0, |service| service.record.epoch)))
        };
        let services = (0..size.services).map(service).collect::<Result<_>>()?;
        Ok(Self { maps, services, awaited: Vec::new(), seen: Vec::new() })
    }

    /// Returns when each change was there first, once all are.
    fn run(mut self, beginnings: &mpsc::Receiver<usize>) -> Result<Vec<Instant>> {
        // Of the end of changes.
        let mut deadline = None;
        loop {
            let more = loop {
                match beginnings.try_recv() {
                    Ok(service) => {
                        self.awaited.push((self.seen.len(), service));
                        self.seen.push(None);
                    }
                    Err(error) => break error == mpsc::TryRecvError::Empty,
                }
            };
            self.look();
            if !more && self.awaited.is_empty() {
                return Ok(self.seen.into_iter().flatten().collect());
            }
            if !more {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
                ensure!(Instant::now() < deadline, "{} changes do not come", self.awaited.len());
            }
            thread::sleep(LOOK);
        }
    }

    fn look(&mut self) {
        let Self { maps, services, awaited, seen } = self;
        awaited.retain(|(change, number)| {
            let (index, known) = &mut services[*number];
            let now = maps.service(*index).map_or(*known, |service| service.record.epoch);
            if now == *known {
                return true;
            }
            (*known, seen[*change]) = (now, Some(Instant::now()));
            false
        });
    }
}

fn print(report: &Report) {
    let Report { services, endpoints, vips, cold, changes, .. } = report;
    println!("{services} Services with {endpoints} endpoints each on {vips} VIPs");
    println!(
        "cold start: {:.2} s until all is in the maps, {:.2} s of processor; {}",
        cold.seconds, cold.cpu_seconds, cold.memory
    );
    println!(
        "{} changes, {:.1} a second: median {:.1} ms, p99 {:.1} ms, at most {:.1} ms from the answer (p99 {:.1} ms from the \
         request); {:.2} processors; {}",
        changes.count,
        changes.per_second,
        changes.median_ms,
        changes.p99_ms,
        changes.max_ms,
        changes.from_request_p99_ms,
        changes.processors,
        changes.memory
    );
    for goal in &report.goals {
        let met = if goal.met { "met" } else { "MISSED" };
        println!(
            "{met:<6} {:<40} {:>16.2} (at most {:.2})",
            goal.name, goal.measured, goal.at_most
        );
    }
}
