//! What is asked of all logs in each round, kept while they change, so that a round costs the same
//! however many members there are: a hash per bucket of origins, and which logs are behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{BUCKETS, bucket, delta::Mark, hash};

/// How far a log is, and whether more is known elsewhere.
pub type Progress = (Mark, bool);

#[derive(Debug)]
pub struct Sums {
    /// Over origin, incarnation and version of the logs for all.
    hashes: [u64; BUCKETS],
    /// Logs for all that are behind.
    behind: [u32; BUCKETS],
    /// Origins with an audience's log that is behind.
    sources: BTreeSet<Arc<str>>,
    shares: BTreeMap<Arc<str>, Share>,
}

/// What one origin adds to the sums.
#[derive(Debug, Default)]
struct Share {
    hash: u64,
    is_behind: bool,
    /// Audiences whose logs are behind.
    audiences: BTreeSet<Arc<str>>,
}

impl Sums {
    pub fn new() -> Self {
        let (sources, shares) = (BTreeSet::new(), BTreeMap::new());
        Self { hashes: [0; BUCKETS], behind: [0; BUCKETS], sources, shares }
    }

    /// Takes what has become of a log; none: it is no longer there.
    pub fn note(&mut self, origin: &Arc<str>, log: &str, progress: Option<Progress>) {
        let share = self.shares.entry(origin.clone()).or_default();
        let is_behind = progress.is_some_and(|(_, is_behind)| is_behind);
        if log.is_empty() {
            let hash = progress.map_or(0, |(mark, _)| hash(origin, "", mark));
            let bucket = bucket(origin);
            let sum = &mut self.hashes[bucket];
            *sum = sum.wrapping_sub(share.hash).wrapping_add(hash);
            self.behind[bucket] += u32::from(is_behind);
            self.behind[bucket] -= u32::from(share.is_behind);
            (share.hash, share.is_behind) = (hash, is_behind);
            return;
        }
        if is_behind {
            share.audiences.insert(log.into());
        } else {
            share.audiences.remove(log);
        }
        match share.audiences.is_empty() {
            true => self.sources.remove(origin),
            false => self.sources.insert(origin.clone()),
        };
    }

    /// Nothing of this origin counts any more.
    pub fn forget(&mut self, origin: &Arc<str>) {
        self.note(origin, "", None);
        self.shares.remove(origin);
        self.sources.remove(origin);
    }

    pub fn hashes(&self) -> [u64; BUCKETS] {
        self.hashes
    }

    /// Buckets with logs for all that are behind, and an origin that is behind with an audience's.
    pub fn behind(&self) -> (u64, Option<&Arc<str>>) {
        let buckets = self.behind.iter().enumerate().filter(|(_, logs)| **logs > 0);
        (buckets.fold(0, |all, (bucket, _)| all | 1 << bucket), self.sources.last())
    }
}
