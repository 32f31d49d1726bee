//! `cargo xtask bench packet`: what one packet costs, in ns, by `BPF_PROG_TEST_RUN`.
//!
//! Every run goes through a wrapper program that restores the packet and chooses a flow, because
//! `repeat` alone would hand each run the output of the last. The product's own object is measured;
//! the control, the classic design with a flow table in the forwarder, is in the bench's object and
//! has maps of its own of the same sizes and contents. All cells run in one process on one CPU, in
//! interleaved rounds, so that a busy machine hurts all alike. Figures contain the wrapper; the rows
//! `floor` say what that is. With `--against`, the object of an earlier revision is measured in the
//! same rounds ([`against`]).
//!
//! Keys of `--json` (schema `weir.bench.packet/v1`; keys are only ever added): `cpu`, `kernel`,
//! `services`, `rounds`, `repeat`, `rows` (`name`, `flows`, `min_ns`, `median_ns`), `programs` (`name`,
//! `verified_instructions`, `translated_bytes`), `goals` (`name`, `at_most`, `measured`, `met`), `memory`
//! (`map`, `entries`, `bytes`, `bytes_per_flow`), and `against`, null or `revision`, `rows` (as above,
//! and `min_ratio`, `median_ratio`: now / then), `programs`, `remarks`.

mod against;
mod cells;
#[path = "../../../lb-ebpf/bench/template.rs"]
mod template;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use aya::maps::{MapData, ProgramArray};
use aya::programs::ProgramFd;
use lb_common::abi::{map, program};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

use super::Goal;
use crate::rig::{self, Rig};
use against::{Against, Earlier};
use cells::{Cell, Hook, Loaded, SERVICES};

const SCHEMA: &str = "weir.bench.packet/v1";

/// Numbers of flows that each row is measured at.
const FLOWS: [u32; 3] = [1, 65_536, 524_288];

/// Rounds unless the options say otherwise, and runs of each cell in a round.
const ROUNDS: NonZeroUsize = NonZeroUsize::new(21).expect("not zero");
const REPEAT: u32 = 100_000;
/// Fewest and most runs that warm a cell in each round, uncounted: twice its flows between these.
const WARM: (u32, u32) = (10_000, 150_000);

/// Kernel memory that one flow may cost, in bytes.
const FLOW_BYTES: f64 = 128.0;

/// How to measure.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The object of an earlier revision, to be measured beside today's; `cargo xtask bench packet
    /// --against REV` builds it and hands it on.
    #[arg(long, value_name = "OBJECT")]
    pub against: Option<PathBuf>,
    /// Fewer are quicker and less sure.
    #[arg(long, value_name = "NUMBER", default_value_t = ROUNDS)]
    pub rounds: NonZeroUsize,
}

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
    pub memory: Vec<Memory>,
    pub against: Option<Against>,
    pub goals: Vec<Goal>,
}

/// What the kernel accounts for a map of arrivals.
#[derive(Debug, Serialize)]
pub struct Memory {
    pub map: &'static str,
    pub entries: u32,
    pub bytes: u64,
    pub bytes_per_flow: f64,
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
pub fn run(options: &Options, json: bool) -> Result<Report> {
    let bench = bench_object()?;
    let product = rig::product()?;
    pin_to_one_cpu()?;
    let mut rigs = Rigs {
        product: Rig::load(&product, cells::SIZES)?,
        bench: Rig::load(&bench, cells::SIZES)?,
        earlier: options.against.as_deref().map(Earlier::load).transpose()?,
    };
    let cells = cells::all(&mut rigs)?;
    let comparable = against::comparable(&mut rigs, &cells)?;
    let (rows, earlier_rows) = measure(&mut rigs, &cells, &comparable, options.rounds.get())?;
    let memory = memory(&rigs.product)?;
    let earlier = rigs.earlier.take();
    let against = earlier.map(|earlier| earlier.compared(&rows, earlier_rows)).transpose()?;
    let mut programs = sizes(&rigs.product)?;
    programs.extend(sizes(&rigs.bench)?);
    let mut goals = goals(&rows)?;
    let per_flow = memory.iter().map(|map| map.bytes_per_flow).fold(0.0, f64::max);
    goals.push(Goal::at_most("kernel memory per flow, bytes", FLOW_BYTES, per_flow));
    goals.extend(against.iter().flat_map(against::goals));
    let report = Report {
        schema: SCHEMA,
        cpu: cpu_model(),
        kernel: nix::sys::utsname::uname()?.release().to_string_lossy().into_owned(),
        services: SERVICES,
        rounds: options.rounds.get(),
        repeat: REPEAT,
        rows,
        programs,
        memory,
        against,
        goals,
    };
    super::show(&report, json, print)?;
    Ok(report)
}

/// The product's object, the bench's with wrappers, floors and control, and an earlier product's.
pub(super) struct Rigs {
    pub product: Rig,
    pub bench: Rig,
    pub earlier: Option<Earlier>,
}

/// What the kernel says of a rig's programs.
fn sizes(rig: &Rig) -> Result<Vec<ProgramSize>> {
    let sizes = rig.program_sizes()?.into_iter();
    Ok(sizes
        .map(|(name, verified_instructions, translated_bytes)| ProgramSize {
            name,
            verified_instructions,
            translated_bytes,
        })
        .collect())
}

/// Bytes that a flow costs: all that is accounted for its map, whose room is taken when it is made.
fn memory(product: &Rig) -> Result<Vec<Memory>> {
    let of = |map| {
        let (entries, bytes) = product.memory(map)?;
        Ok(Memory { map, entries, bytes, bytes_per_flow: bytes as f64 / entries as f64 })
    };
    [map::OPENING, map::ESTABLISHED, map::DATAGRAMS].into_iter().map(of).collect()
}

/// `WEIR_BENCH_OBJECT`, or what `cargo xtask build-bpf` left in the target directory.
pub(super) fn bench_object() -> Result<Vec<u8>> {
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

/// One program that meets a cell at a number of flows, and the mean ns of each round.
struct Run<'c> {
    cell: &'c Cell,
    flows: u32,
    program: ProgramFd,
    is_earlier: bool,
    samples: Vec<u64>,
}

/// Rows of today, and those of the earlier object in comparable cells.
fn measure(
    rigs: &mut Rigs,
    cells: &[Cell],
    comparable: &[bool],
    rounds: usize,
) -> Result<(Vec<Row>, Vec<Row>)> {
    let mut runs = Vec::new();
    for (cell, comparable) in cells.iter().zip(comparable) {
        for flows in FLOWS {
            let mut run = |rig: &Rig, name, is_earlier| -> Result<()> {
                let (program, samples) = (rig.program(name)?, Vec::with_capacity(rounds));
                runs.push(Run { cell, flows, program, is_earlier, samples });
                Ok(())
            };
            match cell.program {
                Loaded::Product(name) => run(&rigs.product, name, false)?,
                Loaded::Bench(name) => run(&rigs.bench, name, false)?,
            }
            if let (Loaded::Product(name), Some(earlier), true) =
                (cell.program, &rigs.earlier, comparable)
            {
                run(&earlier.rig, name, true)?;
            }
        }
    }
    for round in 0..=rounds {
        for run in &mut runs {
            // The first round meets every flow and is not counted.
            if round == 0 {
                timed(&mut rigs.bench, run, run.flows.saturating_mul(6).max(WARM.0))?;
                continue;
            }
            let warm = run.flows.saturating_mul(2).clamp(WARM.0, WARM.1);
            timed(&mut rigs.bench, run, warm)?;
            run.samples.push(timed(&mut rigs.bench, run, REPEAT)?);
        }
    }
    let (earlier, now): (Vec<_>, Vec<_>) = runs.into_iter().partition(|run| run.is_earlier);
    let rows = |runs: Vec<Run>| runs.into_iter().map(Run::row).collect();
    Ok((rows(now), rows(earlier)))
}

impl Run<'_> {
    fn row(mut self) -> Row {
        self.samples.sort_unstable();
        Row {
            name: self.cell.name,
            flows: self.flows,
            min_ns: self.samples[0],
            median_ns: self.samples[self.samples.len() / 2],
        }
    }
}

/// Mean ns of `repeat` runs of one cell.
fn timed(bench: &mut Rig, run: &Run, repeat: u32) -> Result<u64> {
    let Run { cell, flows, program, .. } = run;
    bench.set("TEMPLATES", 0, cell.template(*flows))?;
    let (wrapper, slot) = match cell.hook {
        Hook::Xdp => ("bench_xdp", "XDP_UNDER_TEST"),
        Hook::Tc => ("bench_tc", "TC_UNDER_TEST"),
    };
    let mut under_test: ProgramArray<&mut MapData> = bench.map(slot)?;
    under_test.set(0, program, 0).with_context(|| format!("{}: tail call", cell.name))?;
    let (verdict, ns) = bench.time(wrapper, &cell.frame, repeat)?;
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
    println!("\n{:<20}{:>16}{:>16}{:>16}", "map", "entries", "bytes", "bytes a flow");
    for Memory { map, entries, bytes, bytes_per_flow } in &report.memory {
        println!("{map:<20}{entries:>16}{bytes:>16}{bytes_per_flow:>16.1}");
    }
    if let Some(against) = &report.against {
        against::print(against, &report.programs);
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
