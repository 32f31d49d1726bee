//! Keeps what proved good: checkpoints for the next life, and the mark that this one ended in order.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::task::JoinHandle;

use super::report::unix_ms;
use crate::{
    model::{Intent, Problem},
    sources::{
        checkpoint::{self, Digest},
        trust::Trust,
    },
};

/// An intent is good once the agent has lived so long after it was applied.
const GOOD_AFTER: Duration = Duration::from_secs(5);

/// Of large intents that change all the time: at least so many times as long as the last one took.
const REST_SHARE: u32 = 100;

/// After a checkpoint could not be written.
const RETRY: Duration = Duration::from_secs(30);

/// What is to be written, once it has proved good.
struct Candidate {
    intent: Arc<Intent>,
    asked: Digest,
    due: Instant,
}

/// The checkpoints that this life writes.
pub struct Keep {
    state_dir: PathBuf,
    trust: Arc<Mutex<Trust>>,
    /// In force by now.
    applied: Option<Arc<Intent>>,
    candidate: Option<Candidate>,
    /// What the newest checkpoint holds.
    written: Option<Arc<Intent>>,
    writing: Option<(Arc<Intent>, JoinHandle<io::Result<Duration>>)>,
    /// How long the last one took.
    took: Duration,
    /// What was wrong with the files of the lives before.
    found: Vec<String>,
    /// Why the newest could not be written.
    unwritten: Option<String>,
}

impl Keep {
    /// `newest` and `found` are what was there at the start.
    pub fn new(
        state_dir: PathBuf,
        trust: Arc<Mutex<Trust>>,
        newest: Option<Intent>,
        found: Vec<String>,
    ) -> Self {
        Self {
            state_dir,
            trust,
            applied: None,
            candidate: None,
            written: newest.map(Arc::new),
            writing: None,
            took: Duration::ZERO,
            found,
            unwritten: None,
        }
    }

    /// The data plane holds this.
    pub fn applied(&mut self, intent: &Arc<Intent>) {
        if self.applied.as_ref().is_none_or(|known| !Arc::ptr_eq(known, intent)) {
            self.applied = Some(intent.clone());
        }
    }

    /// Writes what has proved good by now, beside the loop. To be called every now and then.
    pub async fn tend(&mut self, now: Instant) {
        if self.writing.as_ref().is_some_and(|(_, task)| !task.is_finished()) {
            return;
        }
        self.settle(now).await;
        if let Some(Candidate { intent, asked, .. }) = self.candidate.take_if(|it| it.due <= now) {
            let (state_dir, kept) = (self.state_dir.clone(), intent.clone());
            let write = move || {
                let start = Instant::now();
                checkpoint::write(&state_dir, &kept, asked, unix_ms(SystemTime::now()))?;
                Ok(start.elapsed())
            };
            self.writing = Some((intent, tokio::task::spawn_blocking(write)));
        } else if self.candidate.is_none() {
            self.candidate = self.next(now + GOOD_AFTER.max(self.took * REST_SHARE));
        }
    }

    /// What is in force and not on disk.
    fn next(&self, due: Instant) -> Option<Candidate> {
        let intent = self.applied.clone().filter(|it| self.written.as_ref() != Some(it))?;
        let asked = self.trust.lock().unwrap_or_else(PoisonError::into_inner).tried()?;
        Some(Candidate { intent, asked, due })
    }

    fn note(&mut self, intent: Arc<Intent>, written: io::Result<Duration>, now: Instant) {
        match written {
            Ok(took) => {
                self.took = took;
                tracing::debug!("checkpoint written");
                self.written = Some(intent);
                self.unwritten = None;
            }
            Err(error) => {
                let dir = self.state_dir.display();
                tracing::error!(%error, %dir, "the checkpoint cannot be written");
                self.unwritten = Some(format!(
                    "{dir}: the checkpoint cannot be written: {error}; a restart without a good \
                     configuration would serve an older one, or none"
                ));
                self.candidate = self.next(now + RETRY);
            }
        }
    }

    /// Waits for what is being written.
    async fn settle(&mut self, now: Instant) {
        if let Some((intent, task)) = self.writing.take() {
            let written = task.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            self.note(intent, written, now);
        }
    }

    /// The agent ends in order: what is in force is good.
    pub async fn end(&mut self, now: Instant) {
        self.settle(now).await;
        self.candidate = self.next(now);
        self.tend(now).await;
        self.settle(now).await;
        self.trust.lock().unwrap_or_else(PoisonError::into_inner).end();
    }

    /// What is wrong with checkpoints.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        let messages = self.found.iter().chain(&self.unwritten);
        messages.map(|message| Problem { object: "Agent".into(), message: message.clone() })
    }
}
