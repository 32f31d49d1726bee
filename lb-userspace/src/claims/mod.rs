//! Which backends still know flows of slots that others own: found here, told to all, heard from all.
//!
//! A scan of the arrivals that begins after a turn of the data plane finds this node's displaced flows. They
//! go into [`Consensus`] at once, then to the other members as claims; only then is the turn listed in this
//! member's view: who reads that a member has applied an epoch knows its claims too. All members hear all
//! claims, as any of them may forward a flow into a slot that nobody owns. `wire`, `fold` and `publish` are
//! pure; the rest of it is in here and never waits for anybody.

pub mod fold;
pub mod publish;
mod wire;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, spawn_blocking},
    time::sleep_until,
};

use self::{
    fold::Fold,
    publish::{Publisher, Recent, heard},
};
use crate::{
    dataplane::scan::{Scan, ScanError},
    membership::{Change, Publication},
    model::Members,
    plan::flows::{Applied, Consensus},
    watched::Watched as _,
};

/// Between the starts of two scans, and so between two claims of one frontend.
const SCAN_REST: Duration = Duration::from_secs(1);
/// The same while claims are out or frontends are young: claims end when they are untrue.
const SCAN_CLAIMED: Duration = Duration::from_secs(5);
/// The same while nothing happens.
const SCAN_QUIET: Duration = Duration::from_secs(30);
/// A scan may take one part in so many of a processor.
const SCAN_SHARE: u32 = 20;
/// Between two times that others' words become one [`Consensus`].
const TELL_REST: Duration = Duration::from_millis(20);
/// And that may take one part in so many of a processor.
const TELL_SHARE: u32 = 10;
/// Between two reports of what made no sense or found no room.
const REPORT: Duration = Duration::from_secs(60);

/// Reads the arrivals. Takes some time.
pub type Scanning = Box<dyn FnMut() -> Result<Scan, ScanError> + Send>;

/// How this task and the agent's others talk.
pub struct Channels {
    pub applied: watch::Receiver<Arc<Applied>>,
    /// What other members say of claims, views and lineages.
    pub heard: mpsc::UnboundedReceiver<Vec<Change>>,
    pub members: watch::Receiver<Arc<Members>>,
    pub publish: mpsc::UnboundedSender<Publication>,
    pub consensus: watch::Sender<Arc<Consensus>>,
    /// What the last scan found; for status.
    pub scanned: watch::Sender<Arc<Scan>>,
}

/// Keeps claims true until the agent's other tasks are gone. `node` is this node's name.
pub async fn run(node: &str, scanning: Scanning, channels: Channels) {
    Claims::new(node, scanning, channels).run().await;
}

struct Claims {
    own: Arc<str>,
    channels: Channels,
    fold: Fold,
    publisher: Publisher,
    /// None while it runs.
    scanning: Option<Scanning>,
    /// What the data plane held when the last scan began, and when that was.
    scanned: (Arc<Applied>, Option<Instant>),
    cost: Duration,
    failed: bool,
    tell_at: Instant,
}

impl Claims {
    fn new(node: &str, scanning: Scanning, channels: Channels) -> Self {
        let own: Arc<str> = node.into();
        let applied = channels.applied.copy();
        Self {
            fold: Fold::new(own.clone()),
            own,
            publisher: Publisher::default(),
            scanning: Some(scanning),
            scanned: (applied, None),
            cost: Duration::ZERO,
            failed: false,
            tell_at: Instant::now(),
            channels,
        }
    }

    async fn run(mut self) {
        let mut running: Option<Running> = None;
        let mut report = tokio::time::interval(REPORT);
        loop {
            let (scan_at, tell_at) = (self.scan_at(), self.tell_at);
            let stale = self.fold.is_stale();
            tokio::select! {
                (scanning, scan) = ended(&mut running) => {
                    self.scanning = Some(scanning);
                    running = None;
                    self.on_scan(scan);
                }
                () = sleep_until(scan_at.into()), if running.is_none() => {
                    running = self.start_scan();
                }
                () = sleep_until(tell_at.into()), if stale => self.tell(),
                changed = self.channels.applied.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let applied = self.channels.applied.copy_and_update();
                    self.fold.set_recent(&applied.recent);
                }
                changed = self.channels.members.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let members = self.channels.members.copy_and_update();
                    self.fold.set_members(&members);
                }
                Some(changes) = self.channels.heard.recv() => {
                    changes.iter().for_each(|change| self.fold.on_change(change));
                }
                _ = report.tick() => self.report(),
            }
        }
    }

    /// When the next scan is due.
    fn scan_at(&self) -> Instant {
        let (applied, Some(began)) = &self.scanned else { return Instant::now() };
        let recent = self.channels.applied.copy().recent.clone();
        let rest = match () {
            () if recent != applied.recent => SCAN_REST,
            () if self.publisher.claims_any() || !recent.is_empty() => SCAN_CLAIMED,
            () => SCAN_QUIET,
        };
        *began + rest.max(self.cost * SCAN_SHARE)
    }

    fn start_scan(&mut self) -> Option<Running> {
        let mut scanning = self.scanning.take()?;
        self.scanned = (self.channels.applied.copy(), Some(Instant::now()));
        Some(spawn_blocking(move || {
            let scan = scanning();
            (scanning, scan)
        }))
    }

    fn on_scan(&mut self, scan: Result<Scan, ScanError>) {
        let scan = match scan {
            Ok(scan) => Arc::new(scan),
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::error!(%error, "arrivals cannot be read; claims stay as they are");
                }
                return;
            }
        };
        (self.failed, self.cost) = (false, scan.cost);
        let Scan { arrivals, forgotten, cost, .. } = &*scan;
        tracing::debug!(arrivals, forgotten, ?cost, "scanned");
        // What was changed meanwhile waits for the next scan.
        let (applied, latest) = (&self.scanned.0, self.channels.applied.copy());
        let same =
            |frontend: &_, epoch| latest.recent.get(frontend).is_some_and(|it| it.epoch == epoch);
        let recent = applied.recent.iter().filter(|(frontend, it)| same(*frontend, it.epoch));
        let recent: Recent = recent.map(|(frontend, it)| (*frontend, it.clone())).collect();
        let members = self.channels.members.copy();

        let claims = self.publisher.claims(&scan.displaced);
        let views = self.publisher.views(&recent);
        let lineages = self.publisher.lineages(&recent, &members);
        let all: Vec<_> = claims.into_iter().chain(views).chain(lineages).collect();
        all.iter().for_each(|it| self.fold.on_change(&heard(&self.own, it)));
        self.tell();
        for publication in all {
            // A receiver that is gone shows as its task's end.
            let _ = self.channels.publish.send(publication);
        }
        self.channels.scanned.send_replace(scan);
    }

    /// Tells the data plane what all say.
    fn tell(&mut self) {
        let start = Instant::now();
        if let Some(consensus) = self.fold.take() {
            self.channels.consensus.send_replace(consensus);
        }
        self.tell_at = start + TELL_REST.max(start.elapsed() * TELL_SHARE);
    }

    fn report(&mut self) {
        let malformed = self.fold.take_malformed();
        if malformed > 0 {
            tracing::warn!(malformed, "other members sent claims that cannot be read");
        }
        let left_out = self.publisher.left_out();
        if left_out > 0 {
            tracing::warn!(left_out, "too many displaced flows to tell of all");
        }
    }
}

type Running = JoinHandle<(Scanning, Result<Scan, ScanError>)>;

/// The end of a scan that runs; never where none does.
async fn ended(running: &mut Option<Running>) -> (Scanning, Result<Scan, ScanError>) {
    match running {
        Some(scan) => match scan.await {
            Ok(ended) => ended,
            // It panicked, which is this task's end too, or the agent ends.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_cancelled) => std::future::pending().await,
            },
        },
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
