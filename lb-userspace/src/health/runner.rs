//! Asks every target for ever and publishes what comes out.
//!
//! One task a target, so no target waits for another's answer and none is asked twice at once.
//! A target that is no longer wanted ends with its task, and its verdict goes with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, Hasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{interval, sleep_until},
};

use super::{Failure, Prober, Streak};
use crate::model::{Health, Target, Verdicts};

/// Probes in flight at once, unless the limit on open files leaves less. A probe that waits for its
/// turn is late, never failed.
pub const MAX_IN_FLIGHT: usize = 4096;
/// Descriptors left to the rest of the agent.
const SPARE_DESCRIPTORS: u64 = 512;
/// Distance between the first probes of targets that appear together.
const START_SPREAD: Duration = Duration::from_micros(100);
/// Changes closer together than this are published as one.
const COALESCE: Duration = Duration::from_millis(5);
/// Changes under way from the tasks; a full queue makes tasks wait, and loses nothing.
const QUEUE: usize = 1024;

/// Between two looks at whether probes had to wait for their turn.
const WAIT_REPORT: Duration = Duration::from_secs(60);

/// A change of verdict, from the task that was given this number.
type Change = (u64, Health);

struct Watched {
    task: u64,
    abort: AbortHandle,
}

/// Probes what `targets` names until its sender is gone, and keeps `verdicts` true.
///
/// Needs a multi-threaded runtime for thousands of targets. Raises the limit on open files to the
/// hard limit.
pub async fn run(
    mut targets: watch::Receiver<Arc<BTreeSet<Target>>>,
    verdicts: watch::Sender<Arc<Verdicts>>,
) {
    let (sender, mut changes) = mpsc::channel::<Change>(QUEUE);
    let limit = in_flight();
    let shared = Arc::new(Shared {
        prober: Prober::new(),
        turns: Semaphore::new(limit),
        waited: AtomicU64::new(0),
        changes: sender,
    });
    let mut checks = Checks::new(shared.clone());
    let mut wait_report = interval(WAIT_REPORT);
    let mut latest = Verdicts::new();
    let mut published = Instant::now();
    let mut dirty = checks.follow(&targets.borrow_and_update().clone(), &mut latest);
    loop {
        let publish_at = published + COALESCE;
        tokio::select! {
            biased;
            () = sleep_until(publish_at.into()), if dirty => {
                verdicts.send_replace(Arc::new(latest.clone()));
                (dirty, published) = (false, Instant::now());
            }
            changed = targets.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = targets.borrow_and_update().clone();
                dirty |= checks.follow(&wanted, &mut latest);
            }
            Some((task, health)) = changes.recv() => dirty |= checks.note(task, health, &mut latest),
            Some(_ended) = checks.tasks.join_next() => {}
            _ = wait_report.tick() => {
                let waited = shared.waited.swap(0, Ordering::Relaxed);
                if waited > 0 {
                    tracing::warn!(waited, limit, "health checks came late: too many in flight");
                }
            }
        }
    }
}

/// What all tasks use.
struct Shared {
    prober: Prober,
    turns: Semaphore,
    /// Probes that found all turns taken.
    waited: AtomicU64,
    changes: mpsc::Sender<Change>,
}

/// The tasks that probe, one a target.
struct Checks {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    watched: BTreeMap<Target, Watched>,
    names: BTreeMap<u64, Target>,
    next_task: u64,
}

impl Checks {
    fn new(shared: Arc<Shared>) -> Self {
        let (watched, names) = (BTreeMap::new(), BTreeMap::new());
        Self { shared, tasks: JoinSet::new(), watched, names, next_task: 0 }
    }

    /// Ends what is not wanted, starts what is new. True if a verdict went away.
    fn follow(&mut self, wanted: &BTreeSet<Target>, latest: &mut Verdicts) -> bool {
        let before = latest.len();
        let names = &mut self.names;
        self.watched.retain(|target, watched| {
            let keep = wanted.contains(target);
            if !keep {
                watched.abort.abort();
                names.remove(&watched.task);
                latest.remove(target);
            }
            keep
        });
        let mut start = Instant::now();
        for target in wanted {
            if self.watched.contains_key(target) {
                continue;
            }
            let task = self.next_task;
            self.next_task += 1;
            let probing = watch_target(self.shared.clone(), task, target.clone(), start);
            let abort = self.tasks.spawn(probing);
            self.watched.insert(target.clone(), Watched { task, abort });
            self.names.insert(task, target.clone());
            start += START_SPREAD;
        }
        latest.len() != before
    }

    /// Takes one change over. A change of a task that was ended since is void.
    fn note(&self, task: u64, health: Health, latest: &mut Verdicts) -> bool {
        let Some(target) = self.names.get(&task) else { return false };
        match &health {
            Health::Down(reason) => {
                tracing::warn!(target_address = %target.address, %reason, "health check down");
            }
            Health::Up | Health::Unknown => {
                tracing::info!(target_address = %target.address, "health check up");
            }
        }
        latest.insert(target.clone(), health);
        true
    }
}

/// Probes one target until aborted.
async fn watch_target(shared: Arc<Shared>, task: u64, target: Target, start: Instant) {
    let mut streak = Streak::new(start);
    let mut local_failure = false;
    loop {
        sleep_until(streak.due().into()).await;
        if shared.turns.available_permits() == 0 {
            shared.waited.fetch_add(1, Ordering::Relaxed);
        }
        let Ok(turn) = shared.turns.acquire().await else { return };
        let result = shared.prober.probe(target.address, &target.check).await;
        drop(turn);
        let could_not_ask = matches!(result, Err(Failure::Local(_)));
        if could_not_ask && !local_failure {
            tracing::warn!(target_address = %target.address, error = ?result, "health check not made");
        }
        local_failure = could_not_ask;
        let result = match result {
            Ok(()) => Some(Ok(())),
            Err(Failure::Target(reason)) => Some(Err(reason)),
            Err(Failure::Local(_)) => None,
        };
        if let Some(health) = result.and_then(|result| streak.on_probe(result, &target.check))
            && shared.changes.send((task, health)).await.is_err()
        {
            return;
        }
        streak.schedule(&target.check, random(), Instant::now());
    }
}

/// Raises the soft limit on open files to the hard one; returns the probes that it allows at once.
fn in_flight() -> usize {
    let descriptors =
        getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, hard)| {
            match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
                Ok(()) => hard,
                Err(error) => {
                    tracing::warn!(%error, soft, hard, "limit on open files not raised");
                    soft
                }
            }
        });
    let usable =
        usize::try_from(descriptors.saturating_sub(SPARE_DESCRIPTORS)).unwrap_or(usize::MAX);
    usable.clamp(1, MAX_IN_FLIGHT)
}

/// A number that no two calls share by intent: std keys every hasher anew from the system's
/// randomness.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
