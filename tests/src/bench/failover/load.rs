//! The client that never stops: at every beat a new connection and one small request, whatever became of those before.
//!
//! A request that has no answer within [`DEADLINE`] has failed, so the kernel's retransmission of a SYN (after 1 s) hides
//! no outage. Nothing is retried. One thread inside the client's network does it all, so at most `DEADLINE / beat` requests
//! are open.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{lab::Host, traffic::Failure};

/// A request that takes longer has failed.
pub const DEADLINE: Duration = Duration::from_millis(250);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n";
const SUCCESS: &str = "HTTP/1.1 200 ";

/// One request and what became of it. Times are of CLOCK_MONOTONIC, as everywhere in this bench.
#[derive(Clone, Debug)]
pub struct Sample {
    pub sent: Instant,
    /// When the answer was complete, or the request given up.
    pub done: Instant,
    /// How late the client itself was: its beat waited this long for a processor.
    pub late: Duration,
    /// The name of the server that answered.
    pub outcome: Result<String, Failure>,
}

/// A running client. Dropping it ends its thread.
pub struct Load {
    stop: Arc<AtomicBool>,
    samples: mpsc::Receiver<Sample>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Starts to ask `target` from `client` once in every `beat`.
    pub fn start(client: &Host, target: SocketAddr, beat: Duration) -> Result<Self> {
        let (report, samples) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let until = Arc::clone(&stop);
        let thread = client.spawn_thread("client", move || {
            runtime.block_on(async {
                let mut beats = interval(beat);
                beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
                while !until.load(Ordering::Relaxed) {
                    let due = beats.tick().await.into_std();
                    tokio::spawn(sample(target, due, report.clone()));
                }
            });
        })?;
        Ok(Self { stop, samples, thread: Some(thread) })
    }

    /// What was done since the last call, in the order in which it was done.
    pub fn take(&self) -> Vec<Sample> {
        self.samples.try_iter().collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed by it.
            drop(thread.join());
        }
    }
}

async fn sample(target: SocketAddr, due: Instant, report: mpsc::Sender<Sample>) {
    let sent = Instant::now();
    let outcome = timeout(DEADLINE, ask(target)).await.unwrap_or(Err(Failure::Timeout));
    let late = sent.saturating_duration_since(due);
    // Nobody listens any more at the very end.
    drop(report.send(Sample { sent, done: Instant::now(), late, outcome }));
}

async fn ask(target: SocketAddr) -> Result<String, Failure> {
    let mut stream = TcpStream::connect(target).await?;
    stream.write_all(REQUEST).await?;
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await?;
    let text = String::from_utf8_lossy(&heard);
    match text.split_once("\r\n\r\n") {
        Some((head, server)) if head.starts_with(SUCCESS) => Ok(server.to_owned()),
        Some((head, _)) => Err(Failure::Wrong(head.lines().next().unwrap_or_default().to_owned())),
        None => Err(Failure::Closed),
    }
}
