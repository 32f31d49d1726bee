//! The clients that never stop, outside of the cluster.
//!
//! - *fresh*: 50 times a second a connection of its own with one request, whatever became of those before;
//! - *kept*: [`KEPT`] connections with a request that takes the pod a second, one after the other, for as long as the pod
//!   keeps the connection.
//!
//! The Service's addresses are asked in turn. Every answer must name the client's own address and port as those that the pod sees. Nothing is retried; what comes
//! after [`DEADLINE`] has failed.

use std::{
    net::{IpAddr, SocketAddr},
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
    traffic::{
        Failure,
        http::{Answer, Connection},
    },
};

/// Between two fresh connections.
const BEAT: Duration = Duration::from_millis(20);
/// Time for a client's kernel to send twice again what was lost; that it had to is seen in the slowest request.
const DEADLINE: Duration = Duration::from_secs(3);
/// Threads that take turns, so many that one is free again even if its request had to time out.
const LANES: u32 = (DEADLINE.as_millis() / BEAT.as_millis()) as u32 + 2;
/// Connections that are kept.
const KEPT: u32 = 8;

/// Which client asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Fresh,
    Kept,
}

/// One request and what became of it.
#[derive(Clone, Debug)]
pub struct Sample {
    pub kind: Kind,
    /// Until the answer was complete, or the request was given up.
    pub took: Duration,
    /// The pod that answered.
    pub outcome: Result<String, Failure>,
}

/// Running clients. Dropping them ends their threads.
pub struct Load {
    stop: Arc<AtomicBool>,
    samples: mpsc::Receiver<Sample>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Asks all `addresses`, at the ports for fresh and for kept connections, from `client`.
    pub fn start(client: &Host, addresses: [IpAddr; 2], [fresh, kept]: [u16; 2]) -> Result<Self> {
        let (report, samples) = mpsc::channel();
        let mut load = Self { stop: Arc::default(), samples, threads: Vec::new() };
        let start = Instant::now();
        let address = |number: u32| addresses[number as usize % addresses.len()];
        for number in 0..LANES {
            let to = SocketAddr::new(address(number), fresh);
            let asker = Asker { stop: Arc::clone(&load.stop), report: report.clone() };
            let lane = move || asker.fresh(to, start + BEAT * number);
            load.threads.push(client.spawn_thread("fresh", lane)?);
        }
        for number in 0..KEPT {
            let to = SocketAddr::new(address(number), kept);
            let asker = Asker { stop: Arc::clone(&load.stop), report: report.clone() };
            load.threads.push(client.spawn_thread("kept", move || asker.kept(to))?);
        }
        Ok(load)
    }

    /// What was done since the last call.
    pub fn take(&self) -> Vec<Sample> {
        self.samples.try_iter().collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            drop(thread.join());
        }
    }
}

struct Asker {
    stop: Arc<AtomicBool>,
    report: mpsc::Sender<Sample>,
}

impl Asker {
    fn fresh(self, to: SocketAddr, first: Instant) {
        let mut next = first;
        loop {
            thread::sleep(next.saturating_duration_since(Instant::now()));
            next += BEAT * LANES;
            let ask =
                || Connection::open(to, DEADLINE).and_then(|mut connection| ask(&mut connection));
            if self.told(Kind::Fresh, ask).is_none() {
                return;
            }
        }
    }

    fn kept(self, to: SocketAddr) {
        let mut connection = None;
        loop {
            let ask = || {
                let mut open = match connection.take() {
                    Some(open) => open,
                    None => Connection::open(to, DEADLINE)?,
                };
                let answer = ask(&mut open)?;
                connection = (!answer.last).then_some(open);
                Ok(answer)
            };
            match self.told(Kind::Kept, ask) {
                None => return,
                // Refusals come at once.
                Some(false) => thread::sleep(BEAT),
                Some(true) => {}
            }
        }
    }

    /// Asks and tells; whether the answer was right. None: it is time to end.
    fn told(&self, kind: Kind, ask: impl FnOnce() -> Result<Answer, Failure>) -> Option<bool> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let sent = Instant::now();
        let outcome = ask().map(|answer| pod(&answer).to_owned());
        let right = outcome.is_ok();
        let sample = Sample { kind, took: sent.elapsed(), outcome };
        self.report.send(sample).ok().map(|()| right)
    }
}

/// One request, whose answer must say that the pod sees this very client.
fn ask(connection: &mut Connection) -> Result<Answer, Failure> {
    let own = connection.local_addr()?.to_string();
    let answer = connection.get(DEADLINE)?;
    match (answer.status, answer.server.split_once(' ')) {
        (200, Some((_, seen))) if seen == own => Ok(answer),
        _ => Err(Failure::Wrong(format!("{} {:?} to {own}", answer.status, answer.server))),
    }
}

/// `POD CLIENT`
fn pod(answer: &Answer) -> &str {
    answer.server.split(' ').next().unwrap_or_default()
}
