//! `cargo xtask bench packet`: what one packet costs, in ns, by `BPF_PROG_TEST_RUN`.
//!
//! Every run goes through a wrapper program that restores the packet and chooses a flow, because
//! `repeat` alone would hand each run the output of the last. The product's own object is measured;
//! the control, the classic design with a flow table in the forwarder, is in the bench's object and
//! has maps of its own of the same sizes and contents. All cells run in one process on one CPU, in
//! interleaved rounds, so that a busy machine hurts all alike. Figures contain the wrapper; the rows
//! `floor` say what that is.
//!
//! Keys of `--json` (schema `weir.bench.packet/v1`; keys are only ever added): `cpu`, `kernel`,
//! `services`, `rounds`, `repeat`, `rows` (`name`, `flows`, `min_ns`, `median_ns`), `programs` (`name`,
//! `verified_instructions`, `translated_bytes`), `goals` (`name`, `at_most`, `measured`, `met`).

mod cells;
#[path = "../../../lb-ebpf/bench/template.rs"]
mod template;

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use aya::maps::{MapData, ProgramArray};
use lb_common::abi::program;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

use super::Goal;
use crate::rig::{self, Rig};
use cells::{Cell, Hook, SERVICES};
use template::Template;

const SCHEMA: &str = "weir.bench.packet/v1";

/// Numbers of flows that each row is measured at.
const FLOWS: [u32; 3] = [1, 65_536, 524_288];

/// Rounds, and runs of each cell in a round.
const ROUNDS: usize = 21;
const REPEAT: u32 = 100_000;
/// Fewest and most runs that warm a cell in each round, uncounted: twice its flows between these.
const WARM: (u32, u32) = (10_000, 150_000);

// SAFETY: `Template` is `bytemuck::Pod`, which asks for all that `aya::Pod` does.
unsafe impl aya::Pod for Template {}

/// What the bench found.
#[derive(Debug, Serialize)]
pub struct Report {
    pub schema: &'static str,
    pub cpu: String,
    pub kernel: String,
    pub services: usize,
    pub rounds: usize,
    pub repeat: u32,
    pub rows: Vec<Row>,
    pub programs: Vec<ProgramSize>,
    pub goals: Vec<Goal>,
}

/// One cell: a kind of packet at a number of flows.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: &'static str,
    pub flows: u32,
    pub min_ns: u64,
    pub median_ns: u64,
}

/// What the kernel made of a program.
#[derive(Debug, Serialize)]
pub struct ProgramSize {
    pub name: String,
    pub verified_instructions: u32,
    pub translated_bytes: u32,
}

/// Measures, prints, and returns what was found.
pub fn run(json: bool) -> Result<Report> {
    let bench = bench_object()?;
    let product = rig::product()?;
    pin_to_one_cpu()?;
    let mut rigs = Rigs {
        product: Rig::load(&product, cells::SIZES)?,
        bench: Rig::load(&bench, cells::SIZES)?,
    };
    let cells = cells::all(&mut rigs)?;
    let rows = measure(&mut rigs, &cells)?;
    let goals = goals(&rows)?;
    let mut programs = Vec::new();
    for (name, verified_instructions, translated_bytes) in
        rigs.product.program_sizes()?.into_iter().chain(rigs.bench.program_sizes()?)
    {
        programs.push(ProgramSize { name, verified_instructions, translated_bytes });
    }
    let report = Report {
        schema: SCHEMA,
        cpu: cpu_model(),
        kernel: nix::sys::utsname::uname()?.release().to_string_lossy().into_owned(),
        services: SERVICES,
        rounds: ROUNDS,
        repeat: REPEAT,
        rows,
        programs,
        goals,
    };
    super::show(&report, json, print)?;
    Ok(report)
}

/// The product's object, and the bench's with wrappers, floors and control.
pub(super) struct Rigs {
    pub product: Rig,
    pub bench: Rig,
}

/// `WEIR_BENCH_OBJECT`, or what `cargo xtask build-bpf` left in the target directory.
fn bench_object() -> Result<Vec<u8>> {
    let path = match env::var_os("WEIR_BENCH_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => {
            let own = env::current_exe().context("find this program")?;
            let target = own.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
            target.context("this program lies in no target directory")?.join("bpf/weir-bench.o")
        }
    };
    fs::read(&path)
        .with_context(|| format!("read {}: run `cargo xtask build-bpf` first", path.display()))
}

/// Per-CPU state and caches are those of one CPU: the last, which fewest interrupts use.
fn pin_to_one_cpu() -> Result<()> {
    let cpus = std::thread::available_parallelism().context("count the CPUs")?.get();
    let mut set = CpuSet::new();
    set.set(cpus - 1)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("stay on one CPU")
}

fn measure(rigs: &mut Rigs, cells: &[Cell]) -> Result<Vec<Row>> {
    let mut samples = vec![Vec::with_capacity(ROUNDS); cells.len() * FLOWS.len()];
    for round in 0..=ROUNDS {
        for (index, cell) in cells.iter().enumerate() {
            for (column, flows) in FLOWS.into_iter().enumerate() {
                // The first round meets every flow and is not counted.
                if round == 0 {
                    timed(rigs, cell, flows, flows.saturating_mul(6).max(WARM.0))?;
                    continue;
                }
                timed(rigs, cell, flows, flows.saturating_mul(2).clamp(WARM.0, WARM.1))?;
                samples[index * FLOWS.len() + column].push(timed(rigs, cell, flows, REPEAT)?);
            }
        }
    }
    let rows = cells.iter().flat_map(|cell| FLOWS.map(|flows| (cell.name, flows))).zip(samples);
    Ok(rows
        .map(|((name, flows), mut samples)| {
            samples.sort_unstable();
            Row { name, flows, min_ns: samples[0], median_ns: samples[samples.len() / 2] }
        })
        .collect())
}

/// Mean ns of `repeat` runs of one cell.
fn timed(rigs: &mut Rigs, cell: &Cell, flows: u32, repeat: u32) -> Result<u64> {
    let template = cell.template(flows);
    rigs.bench.set("TEMPLATES", 0, template)?;
    let (wrapper, slot) = match cell.hook {
        Hook::Xdp => ("bench_xdp", "XDP_UNDER_TEST"),
        Hook::Tc => ("bench_tc", "TC_UNDER_TEST"),
    };
    let mut under_test: ProgramArray<&mut MapData> = rigs.bench.map(slot)?;
    under_test.set(0, &cell.program, 0).with_context(|| format!("{}: tail call", cell.name))?;
    let (verdict, ns) = rigs.bench.time(wrapper, &cell.frame, repeat)?;
    ensure!(
        verdict == cell.verdict,
        "{} at {flows} flows: verdict {verdict}, not {}",
        cell.name,
        cell.verdict
    );
    Ok(ns)
}

/// The figures that must hold, each on minima of this run.
fn goals(rows: &[Row]) -> Result<Vec<Goal>> {
    let min = |name: &str, flows: u32| -> Result<f64> {
        let row = rows.iter().find(|row| row.name == name && row.flows == flows);
        Ok(row.with_context(|| format!("no row {name} at {flows} flows"))?.min_ns as f64)
    };
    let [one, _, many] = FLOWS;
    let (forward, control) = ("forward_v4_tcp", "control_v4_tcp");
    Ok(vec![
        Goal::at_most(
            "forward v4 TCP / control, 1 flow",
            0.9,
            min(forward, one)? / min(control, one)?,
        ),
        Goal::at_most(
            "forward v4 TCP / control, 512 k flows",
            0.35,
            min(forward, many)? / min(control, many)?,
        ),
        Goal::at_most(
            "forward v4 TCP, 512 k flows / 1 flow",
            1.4,
            min(forward, many)? / min(forward, one)?,
        ),
        Goal::at_most(
            "not ours v4 - floor, ns",
            20.0,
            min("not_ours_v4", one)? - min("floor", one)?,
        ),
        Goal::at_most(
            "not ours v6 - floor, ns",
            20.0,
            min("not_ours_v6", one)? - min("floor", one)?,
        ),
    ])
}

fn print(report: &Report) {
    println!("{} · kernel {} · {} services loaded", report.cpu, report.kernel, report.services);
    println!(
        "ns a packet, wrapper included: min / median of {} rounds of {} runs\n",
        report.rounds, report.repeat
    );
    println!("{:<20}{:>16}{:>16}{:>16}", "", "1 flow", "64 k flows", "512 k flows");
    for cells in report.rows.chunks(FLOWS.len()) {
        let figures: String = cells
            .iter()
            .map(|row| format!("{:>16}", format!("{} / {}", row.min_ns, row.median_ns)))
            .collect();
        println!("{:<20}{figures}", cells[0].name);
    }
    println!("\n{:<20}{:>16}{:>16}", "program", "verified insns", "bytes");
    for program in &report.programs {
        println!(
            "{:<20}{:>16}{:>16}",
            program.name, program.verified_instructions, program.translated_bytes
        );
    }
    println!();
    for goal in &report.goals {
        let word = if goal.met { "met" } else { "MISSED" };
        println!("{word:<7} {}: {:.2} (at most {})", goal.name, goal.measured, goal.at_most);
    }
}

fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':'])).to_owned()
}

/// Names of the product's programs, as rows use them.
const INGRESS: &str = program::INGRESS;
const EGRESS: &str = program::EGRESS;
