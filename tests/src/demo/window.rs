//! What clients felt between two moments. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde::Serialize;

use super::load::Sample;

/// A failed request may end this long after an event, and no later.
pub const GRACE: Duration = Duration::from_secs(3);

/// From an event to the end of the look at it. A request belongs to the window in which it ended.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub from: Instant,
    pub to: Instant,
}

/// What the requests to one target, or to all, came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Felt {
    pub requests: u64,
    pub failures: u64,
    /// The longest time in which no answer of a target came.
    pub longest_gap_ms: u64,
    /// From the event to the end of the last request that failed.
    pub last_failure_ms: Option<u64>,
    /// How often each server answered.
    pub servers: BTreeMap<String, u64>,
    /// How often a request failed in which way.
    pub causes: BTreeMap<String, u64>,
}

impl Window {
    /// What `target` looked like. `samples` in the order in which they were done.
    pub fn felt(self, samples: &[Sample], target: usize) -> Felt {
        let mut felt = Felt::default();
        let mut good = self.from;
        let mut gap = Duration::ZERO;
        for sample in samples.iter().filter(|s| s.target == target && self.holds(s)) {
            felt.requests += 1;
            match &sample.outcome {
                Ok(server) => {
                    gap = gap.max(sample.done.saturating_duration_since(good));
                    good = good.max(sample.done);
                    *felt.servers.entry(server.clone()).or_default() += 1;
                }
                Err(failure) => {
                    felt.failures += 1;
                    let after = millis(sample.done - self.from);
                    felt.last_failure_ms = felt.last_failure_ms.max(Some(after));
                    *felt.causes.entry(failure.to_string()).or_default() += 1;
                }
            }
        }
        felt.longest_gap_ms = millis(gap.max(self.to.saturating_duration_since(good)));
        felt
    }

    /// The servers that answered `target`.
    pub fn servers(self, samples: &[Sample], target: usize) -> BTreeSet<String> {
        self.felt(samples, target).servers.into_keys().collect()
    }

    fn holds(self, sample: &Sample) -> bool {
        (self.from..self.to).contains(&sample.done)
    }
}

impl Felt {
    /// Both together: sums, and the worse of each time.
    pub fn and(mut self, other: &Self) -> Self {
        self.requests += other.requests;
        self.failures += other.failures;
        self.longest_gap_ms = self.longest_gap_ms.max(other.longest_gap_ms);
        self.last_failure_ms = self.last_failure_ms.max(other.last_failure_ms);
        for (mine, theirs) in
            [(&mut self.servers, &other.servers), (&mut self.causes, &other.causes)]
        {
            for (name, count) in theirs {
                *mine.entry(name.clone()).or_default() += count;
            }
        }
        self
    }

    /// Clients were asked for no more patience than [`GRACE`]; there were some.
    pub fn survived(&self) -> bool {
        let grace = millis(GRACE);
        self.requests > self.failures
            && self.longest_gap_ms <= grace
            && self.last_failure_ms.is_none_or(|last| last <= grace)
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::Failure;

    /// Requests that took 10 ms each and ended at these times; those marked false failed.
    fn samples(start: Instant, ends: &[(u64, bool)]) -> Vec<Sample> {
        let sample = |&(end, good): &(u64, bool)| Sample {
            target: 0,
            sent: start + Duration::from_millis(end) - Duration::from_millis(10),
            done: start + Duration::from_millis(end),
            outcome: if good { Ok("worker-1".into()) } else { Err(Failure::Timeout) },
        };
        ends.iter().map(sample).collect()
    }

    fn felt(ends: &[(u64, bool)]) -> Felt {
        let start = Instant::now() + Duration::from_secs(1);
        let window = Window { from: start, to: start + Duration::from_secs(8) };
        window.felt(&samples(start, ends), 0)
    }

    #[test]
    fn a_gap_lasts_from_one_answer_to_the_next() {
        let ends = [(100, true), (600, false), (1500, true), (7900, true)];
        let felt = felt(&ends);
        assert_eq!((felt.requests, felt.failures), (4, 1));
        assert_eq!(felt.longest_gap_ms, 6400);
        assert_eq!(felt.last_failure_ms, Some(600));
    }

    #[test]
    fn silence_up_to_the_end_is_a_gap() {
        assert_eq!(felt(&[(1000, true)]).longest_gap_ms, 7000);
        assert_eq!(felt(&[]).longest_gap_ms, 8000);
    }

    #[test]
    fn survival_needs_answers_and_an_end_of_failures_in_time() {
        let answers = |until: u64| (0..until).map(|n| (n * 100 + 1, true));
        let with = |end, good| answers(80).chain([(end, good)]).collect::<Vec<_>>();
        assert!(felt(&with(2999, false)).survived());
        assert!(!felt(&with(3100, false)).survived());
        assert!(!felt(&answers(40).collect::<Vec<_>>()).survived(), "silent");
        assert!(!felt(&[]).survived());
    }

    #[test]
    fn requests_that_ended_outside_do_not_count() {
        assert_eq!(felt(&[(8000, false), (8500, true)]).requests, 0);
    }
}
