//! Asks every target of this member for ever, tells the others, hears them, and hands on what follows.
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
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{interval, sleep_until},
};

use super::{
    Failure, Prober, Streak,
    combine::{Combine, Publication},
};
use crate::{
    membership::topic::Change,
    model::{Health, Members, Target, Targets, UnixTime, Verdicts},
    watched::Watched as _,
};

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

/// Between two looks at whether probes had to wait for their turn, and others sent what is no word.
const REPORT: Duration = Duration::from_secs(60);

/// A change of verdict, from the task that was given this number.
type Found = (u64, Health);

/// What the runner must know beside its channels.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    pub seed: [u8; 16],
    /// This life of the agent: greater than that of any life before.
    pub run: u64,
}

/// Whom the runner follows and tells.
pub struct Channels {
    pub targets: watch::Receiver<Arc<Targets>>,
    pub members: watch::Receiver<Arc<Members>>,
    /// What other members say. May end before the others.
    pub words: mpsc::UnboundedReceiver<Vec<Change>>,
    /// This member's own words, for all others; at most one a target and change of its verdict.
    pub publish: mpsc::UnboundedSender<Publication>,
    /// Notified of changed verdicts; renewed without a notice when only their causes changed.
    pub verdicts: watch::Sender<Arc<Verdicts>>,
}

/// Probes what of `targets` this member should until the sender of those, or of the members, is gone;
/// keeps `verdicts` true.
///
/// Needs a multi-threaded runtime for thousands of targets. Raises the limit on open files to the
/// hard limit.
pub async fn run(settings: Settings, channels: Channels) {
    let Channels { mut targets, mut members, mut words, publish, verdicts } = channels;
    let (sender, mut found) = mpsc::channel::<Found>(QUEUE);
    let limit = in_flight();
    let shared = Arc::new(Shared {
        prober: Prober::new(),
        turns: Semaphore::new(limit),
        waited: AtomicU64::new(0),
        changes: sender,
    });
    let mut checks = Checks::new(shared.clone());
    let mut combine = Combine::new(&settings.node, settings.seed, settings.run);
    combine.set_members(&members.copy_and_update(), unix_time());
    combine.set_targets(&targets.copy_and_update(), unix_time());
    let mut report = interval(REPORT);
    let (mut dirty, mut published, mut malformed) = (false, Instant::now(), 0);
    loop {
        if combine.take_reassigned() {
            checks.follow(&combine.mine());
        }
        for publication in combine.take_publications() {
            // Without anybody to tell, this node still serves itself.
            let _ = publish.send(publication);
        }
        dirty |= combine.take_touched();
        let publish_at = published + COALESCE;
        tokio::select! {
            biased;
            () = sleep_until(publish_at.into()), if dirty => {
                renew(&verdicts, combine.verdicts());
                (dirty, published) = (false, Instant::now());
            }
            changed = targets.changed() => {
                if changed.is_err() {
                    return;
                }
                combine.set_targets(&targets.copy_and_update(), unix_time());
            }
            changed = members.changed() => {
                if changed.is_err() {
                    return;
                }
                combine.set_members(&members.copy_and_update(), unix_time());
            }
            Some(changes) = words.recv() => {
                let now = unix_time();
                malformed += changes.iter().filter(|it| combine.on_change(it, now).is_err()).count();
            }
            Some((task, health)) = found.recv() => {
                if let Some(target) = checks.note(task, &health) {
                    combine.on_probe(target, &health, unix_time());
                }
            }
            Some(_ended) = checks.tasks.join_next() => {}
            _ = report.tick() => {
                let waited = shared.waited.swap(0, Ordering::Relaxed);
                if waited > 0 {
                    tracing::warn!(waited, limit, "health checks came late: too many in flight");
                }
                if std::mem::take(&mut malformed) > 0 {
                    tracing::warn!("other members sent verdicts that are none");
                }
            }
        }
    }
}

/// Hands verdicts on; only those that changed are worth a notice.
fn renew(verdicts: &watch::Sender<Arc<Verdicts>>, latest: &Verdicts) {
    verdicts.send_if_modified(|former| {
        let state = |verdicts: &Verdicts| (verdicts.turn(), verdicts.removals());
        let changed = state(former) != state(latest);
        *former = Arc::new(latest.clone());
        changed
    });
}

/// What all tasks use.
struct Shared {
    prober: Prober,
    turns: Semaphore,
    /// Probes that found all turns taken.
    waited: AtomicU64,
    changes: mpsc::Sender<Found>,
}

struct Watched {
    task: u64,
    abort: AbortHandle,
}

/// The tasks that probe, one a target.
struct Checks {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    watched: BTreeMap<Arc<Target>, Watched>,
    names: BTreeMap<u64, Arc<Target>>,
    next_task: u64,
}

impl Checks {
    fn new(shared: Arc<Shared>) -> Self {
        let (watched, names) = (BTreeMap::new(), BTreeMap::new());
        Self { shared, tasks: JoinSet::new(), watched, names, next_task: 0 }
    }

    /// Ends what is not wanted, starts what is new at once.
    fn follow(&mut self, wanted: &BTreeSet<Arc<Target>>) {
        let names = &mut self.names;
        self.watched.retain(|target, watched| {
            let keep = wanted.contains(target);
            if !keep {
                watched.abort.abort();
                names.remove(&watched.task);
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
    }

    /// Tells of one change and whose it is. A change of a task that was ended since is void.
    fn note(&self, task: u64, health: &Health) -> Option<&Arc<Target>> {
        let target = self.names.get(&task)?;
        match health {
            Health::Down(reason) => {
                tracing::warn!(target_address = %target.address, %reason, "health check down");
            }
            Health::Up | Health::Unknown => {
                tracing::info!(target_address = %target.address, "health check up");
            }
        }
        Some(target)
    }
}

/// Probes one target until aborted.
async fn watch_target(shared: Arc<Shared>, task: u64, target: Arc<Target>, start: Instant) {
    let mut streak = Streak::new(start);
    let mut local_failure = false;
    loop {
        sleep_until(streak.due().into()).await;
        if shared.turns.available_permits() == 0 {
            shared.waited.fetch_add(1, Ordering::Relaxed);
        }
        let Ok(turn) = shared.turns.acquire().await else { return };
        // Its state is large; between probes a target should cost next to nothing.
        let result = Box::pin(shared.prober.probe(target.address, &target.check)).await;
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

/// The clock of the day.
fn unix_time() -> UnixTime {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
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
