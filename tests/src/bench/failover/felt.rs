//! What the client felt between two moments. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::load::Sample;

/// What requests came to from an event on. Times are milliseconds after the event.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Felt {
    pub requests: u64,
    pub failed: u64,
    /// When the first and the last request that failed were started; 0: nothing failed, or only what was under way.
    pub first_failed_ms: f64,
    pub last_failed_ms: f64,
    /// The longest time without an answer.
    pub longest_gap_ms: f64,
    /// The most that the client was late with a request; much of it makes the other figures worthless.
    pub client_late_ms: f64,
    /// How often a request failed in which way.
    pub causes: BTreeMap<String, u64>,
}

/// Of the requests that ended in `from..to`, in the order in which they ended.
pub fn felt(samples: &[Sample], from: Instant, to: Instant) -> Felt {
    let mut felt = Felt::default();
    let (mut good, mut gap, mut late) = (from, Duration::ZERO, Duration::ZERO);
    for sample in samples.iter().filter(|sample| (from..to).contains(&sample.done)) {
        felt.requests += 1;
        late = late.max(sample.late);
        match &sample.outcome {
            Ok(_) => {
                gap = gap.max(sample.done.saturating_duration_since(good));
                good = good.max(sample.done);
            }
            Err(failure) => {
                let after = millis(sample.sent.saturating_duration_since(from));
                let first = felt.failed == 0 || after < felt.first_failed_ms;
                felt.first_failed_ms = if first { after } else { felt.first_failed_ms };
                felt.failed += 1;
                felt.last_failed_ms = felt.last_failed_ms.max(after);
                *felt.causes.entry(failure.to_string()).or_default() += 1;
            }
        }
    }
    felt.longest_gap_ms = millis(gap.max(to.saturating_duration_since(good)));
    felt.client_late_ms = millis(late);
    felt
}

/// Whether since `from` nothing failed, and every one of so many servers answered.
pub fn is_calm(samples: &[Sample], from: Instant, servers: usize) -> bool {
    let since = samples.iter().filter(|sample| sample.sent >= from);
    let answers: Option<BTreeSet<&str>> =
        since.map(|sample| sample.outcome.as_deref().ok()).collect();
    answers.is_some_and(|names| names.len() == servers)
}

/// When the last request that failed was started.
pub fn last_failure(samples: &[Sample]) -> Option<Instant> {
    samples.iter().filter(|sample| sample.outcome.is_err()).map(|sample| sample.sent).max()
}

pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::Failure;

    const MS: Duration = Duration::from_millis(1);

    /// Requests started at these milliseconds: answers after 1 ms, failures after 250.
    fn samples(start: Instant, sent: &[(u32, bool)]) -> Vec<Sample> {
        let sample = |&(sent, good): &(u32, bool)| Sample {
            sent: start + MS * sent,
            done: start + MS * (sent + if good { 1 } else { 250 }),
            late: MS,
            outcome: if good { Ok(format!("server-{}", sent % 20)) } else { Err(Failure::Timeout) },
        };
        let mut samples: Vec<_> = sent.iter().map(sample).collect();
        samples.sort_by_key(|sample| sample.done);
        samples
    }

    #[test]
    fn an_outage_lasts_until_the_last_failed_request_was_started() {
        let start = Instant::now();
        let samples =
            samples(start, &[(0, true), (10, false), (300, false), (310, true), (900, true)]);
        let felt = felt(&samples, start, start + 1000 * MS);
        assert_eq!((felt.requests, felt.failed, felt.last_failed_ms), (5, 2, 300.0));
        assert_eq!(felt.first_failed_ms, 10.0);
        assert_eq!((felt.longest_gap_ms, felt.client_late_ms), (590.0, 1.0));
    }

    #[test]
    fn a_request_under_way_at_the_event_counts_as_failed_at_once() {
        let start = Instant::now();
        let samples = samples(start, &[(90, false)]);
        let felt = felt(&samples, start + 100 * MS, start + 400 * MS);
        assert_eq!((felt.failed, felt.last_failed_ms, felt.longest_gap_ms), (1, 0.0, 300.0));
    }

    #[test]
    fn calm_needs_every_server_and_no_failure() {
        let start = Instant::now();
        let two = samples(start, &[(0, true), (10, true)]);
        assert!(is_calm(&two, start, 2));
        assert!(!is_calm(&two, start, 3));
        assert!(!is_calm(&two, start + MS, 2));
        assert!(!is_calm(&samples(start, &[(0, true), (10, true), (20, false)]), start, 2));
    }
}
