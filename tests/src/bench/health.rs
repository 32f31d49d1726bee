//! What it costs to probe 10,000 targets, and to hear one word among as many.
//!
//! Runs the product's own runner in this process against one listener, which every address of
//! 127.0.0.0/8 leads to. Costs of the listener's own thread are left out; those of the kernel for both
//! ends of a loopback connection are in.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};
use serde::Serialize;
use tokio::{
    net::TcpSocket,
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use weir::{
    health::{
        self, Channels, Settings,
        combine::Combine,
        word::{Word, name},
    },
    membership::topic::{Change, Key, Topic},
    model::{Check, CheckKind, Health, Members, Target, Targets, Verdicts},
};

use super::Goal;

const TARGETS: u32 = 10_000;
const INTERVAL: Duration = Duration::from_secs(2);
/// How long it is watched, after all have been judged.
const WATCHED: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);
const BACKLOG: u32 = 4096;
/// Words that a percentile is taken from.
const WORDS: usize = 1000;
const SEED: [u8; 16] = [1; 16];
/// Shares of one processor, and bytes a target.
const PROCESSOR: f64 = 1.0;
const BYTES: f64 = 4096.0;
/// Microseconds from a word to the verdicts that hold it.
const WORD_US: f64 = 200.0;

/// `weir.bench.health/v1`.
#[derive(Debug, Serialize)]
pub struct HealthReport {
    pub schema: &'static str,
    pub targets: u32,
    pub interval_seconds: f64,
    /// From the start until all were judged.
    pub judged_seconds: f64,
    /// Probes a second in the time watched.
    pub probes_per_second: f64,
    /// Processor time by time, all threads but the listener's.
    pub processors: f64,
    pub bytes_per_target: f64,
    pub word: WordCost,
    pub goals: Vec<Goal>,
}

/// From another member's word to a copy of all verdicts that holds it.
#[derive(Debug, Serialize)]
pub struct WordCost {
    pub median_us: f64,
    pub p99_us: f64,
}

pub fn run(json: bool) -> Result<HealthReport> {
    let word = word()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut report = runtime.block_on(probe(word))?;
    runtime.shutdown_background();
    report.goals = vec![
        Goal::at_most("processors", PROCESSOR, report.processors),
        Goal::at_most("bytes a target", BYTES, report.bytes_per_target),
        Goal::at_most("one word, median microseconds", WORD_US, report.word.median_us),
    ];
    super::show(&report, json, print)?;
    Ok(report)
}

fn print(report: &HealthReport) {
    let HealthReport { targets, interval_seconds, judged_seconds, .. } = report;
    println!("{targets} TCP targets every {interval_seconds} s: judged in {judged_seconds:.2} s");
    println!("{:.0} probes/s, {:.2} processors", report.probes_per_second, report.processors);
    println!("{:.0} bytes a target", report.bytes_per_target);
    let WordCost { median_us, p99_us } = report.word;
    println!("one word among {targets} targets: median {median_us:.1} us, p99 {p99_us:.1} us");
    for goal in &report.goals {
        let met = if goal.met { "met" } else { "MISSED" };
        println!(
            "{met:<6} {:<40} {:>12.2} (at most {:.2})",
            goal.name, goal.measured, goal.at_most
        );
    }
}

/// All targets on one node, by number.
fn targets(port: u16, node: &str) -> Arc<Targets> {
    let check = Check {
        kind: CheckKind::Tcp,
        port: None,
        interval: INTERVAL,
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 2,
        jitter_percent: 10,
    };
    let target = |n: u32| Target {
        address: SocketAddr::from(([127, 1, (n >> 8) as u8, n as u8], port)),
        check: check.clone(),
    };
    let node: Arc<str> = node.into();
    Arc::new((0..TARGETS).map(|n| (Arc::new(target(n)), node.clone())).collect())
}

/// The listener's connections and processor time in ns so far.
#[derive(Default)]
struct Served {
    connections: AtomicU64,
    cpu: AtomicU64,
}

fn listen() -> Result<(u16, Arc<Served>)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(([0, 0, 0, 0], 0).into())?;
    let listener = socket.listen(BACKLOG)?.into_std()?;
    listener.set_nonblocking(false)?;
    let (port, served) = (listener.local_addr()?.port(), Arc::new(Served::default()));
    let count = served.clone();
    thread::spawn(move || {
        while listener.accept().is_ok() {
            count.connections.fetch_add(1, Ordering::Relaxed);
            let cpu = cpu(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap_or_default();
            count.cpu.store(cpu.as_nanos() as u64, Ordering::Relaxed);
        }
    });
    Ok((port, served))
}

fn cpu(of: ClockId) -> Result<Duration> {
    Ok(clock_gettime(of)?.into())
}

/// Bytes of memory that this process holds.
fn resident() -> Result<f64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = statm.split(' ').nth(1).context("no resident pages")?.parse()?;
    Ok(pages * sysconf(SysconfVar::PAGE_SIZE)?.context("no page size")? as f64)
}

async fn probe(word: WordCost) -> Result<HealthReport> {
    let (port, served) = listen()?;
    let (wanted, targets_in) = watch::channel(Arc::default());
    let (_members, members_in) = watch::channel(Arc::new(Members::assumed("here", ["here"])));
    let (_words, words_in) = mpsc::unbounded_channel();
    let (publish, mut published) = mpsc::unbounded_channel();
    let (verdicts, mut verdicts_out) = watch::channel(Arc::<Verdicts>::default());
    let settings = Settings { node: "here".into(), seed: SEED, run: 1 };
    let channels =
        Channels { targets: targets_in, members: members_in, words: words_in, publish, verdicts };
    let before = resident()?;
    let runner = tokio::spawn(health::run(settings, channels));
    let start = Instant::now();
    wanted.send_replace(targets(port, "here"));
    let all = verdicts_out.wait_for(|all| all.len() == TARGETS as usize);
    timeout(PATIENCE, all).await.context("not all judged")??;
    let judged_seconds = start.elapsed().as_secs_f64();

    let count = || {
        Ok::<_, anyhow::Error>((
            Instant::now(),
            cpu(ClockId::CLOCK_PROCESS_CPUTIME_ID)?,
            served.cpu.load(Ordering::Relaxed),
            served.connections.load(Ordering::Relaxed),
        ))
    };
    let first = count()?;
    sleep(WATCHED).await;
    let last = count()?;
    let seconds = (last.0 - first.0).as_secs_f64();
    let listener = Duration::from_nanos(last.2 - first.2);
    let bytes_per_target = (resident()? - before) / f64::from(TARGETS);
    let verdicts = verdicts_out.borrow().clone();
    ensure!(
        verdicts.iter().all(|(_, health)| *health == Health::Up),
        "a target was judged wrongly"
    );
    let words = std::iter::from_fn(|| published.try_recv().ok()).count();
    ensure!(words == TARGETS as usize, "{words} words for {TARGETS} changes");
    runner.abort();
    Ok(HealthReport {
        schema: "weir.bench.health/v1",
        targets: TARGETS,
        interval_seconds: INTERVAL.as_secs_f64(),
        judged_seconds,
        probes_per_second: (last.3 - first.3) as f64 / seconds,
        processors: (last.1 - first.1).saturating_sub(listener).as_secs_f64() / seconds,
        bytes_per_target,
        word,
        goals: Vec::new(),
    })
}

/// What one more word costs this node, where all targets are another's.
fn word() -> Result<WordCost> {
    let (targets, now) = (targets(80, "there"), Duration::ZERO);
    let mut combine = Combine::new("here", SEED, 1);
    combine.set_members(&Members::assumed("here", ["here", "there"]), now);
    combine.set_targets(&targets, now);
    let names: Vec<_> = targets.keys().map(|target| name(&SEED, target)).collect();
    let mut say = |name: &[u8; 16], up: bool| {
        let health = if up { Health::Up } else { Health::Down("refused".into()) };
        let value = Word::new(1, &health).map(|word| word.encode().into());
        let key = Key::new(Topic::VERDICT, *name);
        combine.on_change(&Change { origin: "there".into(), key, value }, now)?;
        Ok::<_, anyhow::Error>(combine.verdicts().clone())
    };
    for name in &names {
        say(name, true)?;
    }
    let mut held = BTreeMap::new();
    let mut times = Vec::new();
    for n in 0..WORDS {
        let start = Instant::now();
        let latest = say(&names[n * 7 % names.len()], false)?;
        times.push(start.elapsed());
        // Somebody still reads an earlier one.
        held.insert(n % 2, latest);
    }
    let mut percentile = |percent| super::tables::speed::percentile(&mut times, percent);
    Ok(WordCost { median_us: percentile(50), p99_us: percentile(99) })
}
