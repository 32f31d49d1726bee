//! Hundreds or thousands of conversations of one client that go on while everything changes, each at its own pace, and what
//! became of each.
//!
//! One thread inside the client's network carries them all. A conversation is *broken* when an exchange ends in an error,
//! takes longer than [`PATIENCE`], or is answered by another server than the first; it then ends and is reported once.
//! Never opens one again by itself.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};

use crate::{
    lab::Host,
    random::Random,
    traffic::{
        Failure,
        long::{By, Conversation},
    },
};

/// An exchange, or an opening, that takes longer has failed. TCP has sent five times by then.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Between two messages of one conversation.
const PACES: (Duration, Duration) = (Duration::from_millis(300), Duration::from_millis(6000));
/// One of so many says nothing from an event's begin to its end.
const ONE_IDLE_OF: u64 = 4;
/// When all are asked to speak, they do so spread over this time.
const ROUND: Duration = Duration::from_millis(1500);
/// Between two looks at how far a round is.
const LOOK: Duration = Duration::from_millis(20);

/// A client with its conversations. Dropping it ends them.
pub struct Crowd {
    shared: Arc<Shared>,
    handle: Handle,
    phase: watch::Sender<Phase>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    next: Mutex<u64>,
}

/// What all conversations are told.
#[derive(Clone, Copy, Debug, Default)]
struct Phase {
    /// Idle ones say nothing.
    quiet: bool,
    /// Everyone speaks once after it was raised.
    round: u64,
}

#[derive(Default)]
struct Shared {
    living: Mutex<BTreeMap<u64, Member>>,
    losses: Mutex<Losses>,
}

struct Member {
    by: By,
    server: String,
    task: AbortHandle,
    /// The last round in which it was answered.
    round: u64,
}

/// What went wrong since it was last asked for.
#[derive(Clone, Debug, Default)]
pub struct Losses {
    /// Conversations that broke, with their server.
    pub broken: Vec<Broken>,
    /// Openings that failed.
    pub unborn: Vec<Failure>,
    /// Openings that did not.
    pub born: usize,
    /// The slowest opening.
    pub opening: Duration,
    /// The longest exchange by TCP.
    pub longest: Duration,
    /// Datagrams that had to be sent again.
    pub resent: u64,
}

impl Losses {
    pub fn is_empty(&self) -> bool {
        self.broken.is_empty() && self.unborn.is_empty()
    }
}

#[derive(Clone, Debug)]
pub struct Broken {
    pub by: By,
    pub server: String,
    pub from: Option<SocketAddr>,
    pub to: SocketAddr,
    pub failure: Failure,
}

impl Crowd {
    /// A client that says nothing yet. Raises this process's limit of open files to `files` where it is lower.
    pub fn new(client: &Host, files: u64) -> Result<Self> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if soft < files {
            setrlimit(Resource::RLIMIT_NOFILE, files, hard.max(files))
                .context("raise the limit of open files")?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = client.spawn_thread("crowd", move || {
            // An error is the sender's end: stop too.
            drop(runtime.block_on(stopped));
        })?;
        Ok(Self {
            shared: Arc::default(),
            handle,
            phase: watch::Sender::default(),
            stop: Some(stop),
            thread: Some(thread),
            next: Mutex::default(),
        })
    }

    /// Opens `count` more conversations with `targets` in turn, spread over `time`. Returns at once.
    pub fn open(&self, by: By, targets: &[SocketAddr], count: usize, time: Duration) {
        for at in 0..count {
            let id = {
                let mut next = lock(&self.next);
                *next += 1;
                *next
            };
            let delay = time * at as u32 / count.max(1) as u32;
            let to = targets[at % targets.len()];
            let (shared, phase) = (Arc::clone(&self.shared), self.phase.subscribe());
            let (tell, told) = oneshot::channel();
            let task = self.handle.spawn(async move {
                sleep(delay).await;
                // Only after its handle is known, or it could not be ended.
                if let Ok(task) = told.await {
                    live(Life { id, by, to, task, shared, phase }).await;
                }
            });
            drop(tell.send(task.abort_handle()));
        }
    }

    /// Waits until `count` openings have succeeded or failed since losses were last taken.
    pub fn wait_open(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE * 3;
        loop {
            let done = {
                let losses = lock(&self.shared.losses);
                losses.born + losses.unborn.len()
            };
            if done >= count {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{done} of {count} conversations were opened");
            std::thread::sleep(LOOK);
        }
    }

    /// Silences the idle ones, or lets them go on.
    pub fn quiet(&self, quiet: bool) {
        self.phase.send_modify(|phase| phase.quiet = quiet);
    }

    /// Has every conversation, idle ones too, exchange a message, and waits until each has or is broken.
    pub fn round(&self) -> Result<()> {
        self.phase.send_modify(|phase| phase.round += 1);
        let round = self.phase.borrow().round;
        // One exchange may be under way, the round's own comes after it.
        let deadline = Instant::now() + ROUND + PATIENCE * 2 + Duration::from_secs(5);
        loop {
            let behind = lock(&self.shared.living).values().filter(|m| m.round < round).count();
            if behind == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{behind} conversations neither spoke nor broke");
            std::thread::sleep(LOOK);
        }
    }

    /// What went wrong since the last call.
    pub fn take(&self) -> Losses {
        std::mem::take(&mut lock(&self.shared.losses))
    }

    /// How many conversations live, by TCP and by UDP.
    pub fn living(&self) -> (usize, usize) {
        let living = lock(&self.shared.living);
        let tcp = living.values().filter(|member| member.by == By::Tcp).count();
        (tcp, living.len() - tcp)
    }

    /// How many conversations each server has.
    pub fn servers(&self) -> BTreeMap<String, usize> {
        let mut servers = BTreeMap::new();
        for member in lock(&self.shared.living).values() {
            *servers.entry(member.server.clone()).or_default() += 1;
        }
        servers
    }

    /// Ends all conversations with a server, as clients do that have said all.
    pub fn end_with(&self, server: &str) {
        let mut living = lock(&self.shared.living);
        living.retain(|_, member| {
            let ends = member.server == server;
            if ends {
                member.task.abort();
            }
            !ends
        });
    }

    /// Ends the oldest conversations until `most` are left of a kind.
    pub fn shrink(&self, by: By, most: usize) {
        let mut living = lock(&self.shared.living);
        let ids: Vec<_> = living.iter().filter(|(_, m)| m.by == by).map(|(id, _)| *id).collect();
        for id in &ids[..ids.len().saturating_sub(most)] {
            if let Some(member) = living.remove(id) {
                member.task.abort();
            }
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed by it.
            drop(thread.join());
        }
    }
}

/// One conversation from its opening on.
struct Life {
    id: u64,
    by: By,
    to: SocketAddr,
    task: AbortHandle,
    shared: Arc<Shared>,
    phase: watch::Receiver<Phase>,
}

async fn live(mut life: Life) {
    let from = Instant::now();
    let opened = timeout(PATIENCE, Conversation::open(life.by, life.to)).await;
    let mut conversation = match opened.unwrap_or(Err(Failure::Timeout)) {
        Ok(conversation) => conversation,
        Err(failure) => {
            lock(&life.shared.losses).unborn.push(failure);
            return;
        }
    };
    let mut heard = life.phase.borrow_and_update().round;
    let server = conversation.server().to_owned();
    let member = Member { by: life.by, server, task: life.task.clone(), round: heard };
    lock(&life.shared.living).insert(life.id, member);
    {
        let mut losses = lock(&life.shared.losses);
        losses.born += 1;
        losses.opening = losses.opening.max(from.elapsed());
    }
    let mut random = Random::new(life.id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let idle = (random.next() >> 33).is_multiple_of(ONE_IDLE_OF);
    loop {
        let Some(round) = life.turn(idle, &mut heard, &mut random).await else {
            return;
        };
        if round {
            sleep(between((Duration::ZERO, ROUND), &mut random)).await;
        }
        let (from, resent) = (Instant::now(), conversation.resent);
        let outcome = timeout(PATIENCE, conversation.exchange()).await;
        let outcome = outcome.unwrap_or(Err(Failure::Timeout));
        let mut losses = lock(&life.shared.losses);
        losses.resent += conversation.resent - resent;
        if life.by == By::Tcp {
            losses.longest = losses.longest.max(from.elapsed());
        }
        if let Err(failure) = outcome {
            let server = conversation.server().to_owned();
            let from = conversation.local_addr();
            losses.broken.push(Broken { by: life.by, server, from, to: life.to, failure });
            lock(&life.shared.living).remove(&life.id);
            return;
        }
        if let Some(member) = lock(&life.shared.living).get_mut(&life.id) {
            member.round = heard;
        }
    }
}

impl Life {
    /// Waits until it is to speak; whether a round asks for it. None: the crowd ends.
    async fn turn(&mut self, idle: bool, heard: &mut u64, random: &mut Random) -> Option<bool> {
        let pace = sleep(between(PACES, random));
        tokio::pin!(pace);
        loop {
            let Phase { quiet, round } = *self.phase.borrow_and_update();
            if round > *heard {
                *heard = round;
                return Some(true);
            }
            tokio::select! {
                () = &mut pace, if !(idle && quiet) => return Some(false),
                changed = self.phase.changed() => changed.ok()?,
            }
        }
    }
}

fn between((least, most): (Duration, Duration), random: &mut Random) -> Duration {
    least + (most - least).mul_f64((random.next() >> 33) as f64 / (1_u64 << 31) as f64)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
