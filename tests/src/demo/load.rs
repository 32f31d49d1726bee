//! The client that never stops: for every target a new connection and one request, again and again.
//!
//! Each target is asked at a fixed beat, whatever became of the requests before: the lanes of a target (threads) take
//! turns, and there are so many of them that one is free again when its turn comes, even if its request had to time out.
//! Nothing is retried.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    lab::Host,
    traffic::{Failure, http},
};

/// Between two requests to one target.
pub const BEAT: Duration = Duration::from_millis(40);
/// A request that takes longer has failed.
pub const DEADLINE: Duration = Duration::from_millis(500);
/// Threads per target, so that a turn of all of them takes longer than a request may.
const LANES: u32 = (DEADLINE.as_millis() / BEAT.as_millis()) as u32 + 2;

/// One request and what became of it.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Index of the target.
    pub target: usize,
    pub sent: Instant,
    /// When the answer was complete, or the request given up.
    pub done: Instant,
    /// The name of the server that answered.
    pub outcome: Result<String, Failure>,
}

/// A running client. Dropping it ends its threads.
pub struct Load {
    stop: Arc<AtomicBool>,
    samples: mpsc::Receiver<Sample>,
    lanes: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts to ask every target from `client`.
    pub fn start(client: &Host, targets: &[SocketAddr]) -> Result<Self> {
        let (report, samples) = mpsc::channel();
        let mut load = Self { stop: Arc::default(), samples, lanes: Vec::new() };
        let start = Instant::now();
        for (target, &address) in targets.iter().enumerate() {
            for number in 0..LANES {
                // Targets are asked in turn, not all in one moment.
                let shift = BEAT * target as u32 / targets.len() as u32;
                let lane = Lane {
                    target,
                    address,
                    next: start + shift + BEAT * number,
                    stop: Arc::clone(&load.stop),
                    report: report.clone(),
                };
                let name = format!("ask-{target}-{number}");
                load.lanes.push(client.spawn_thread(&name, move || lane.run())?);
            }
        }
        Ok(load)
    }

    /// What was done since the last call, in the order in which it was done.
    pub fn take(&self) -> Vec<Sample> {
        self.samples.try_iter().collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for lane in self.lanes.drain(..) {
            // A lane that panicked has said so.
            drop(lane.join());
        }
    }
}

struct Lane {
    target: usize,
    address: SocketAddr,
    next: Instant,
    stop: Arc<AtomicBool>,
    report: mpsc::Sender<Sample>,
}

impl Lane {
    fn run(mut self) {
        loop {
            thread::sleep(self.next.saturating_duration_since(Instant::now()));
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let sent = Instant::now();
            let outcome = http::get(self.address, DEADLINE).server().map(str::to_owned);
            let sample = Sample { target: self.target, sent, done: Instant::now(), outcome };
            if self.report.send(sample).is_err() {
                return;
            }
            self.next += BEAT * LANES;
        }
    }
}
