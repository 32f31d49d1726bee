//! What the clients felt, as a table for people and a document for programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::load::{Kind, Sample};

/// What `--json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    schema: &'static str,
    /// No request failed, and there were some of either kind in every step.
    pub ok: bool,
    /// From nothing to nodes that are ready.
    nodes_ready_ms: u64,
    /// From the Service's creation to its addresses.
    addresses_ms: u64,
    steps: Vec<Step>,
}

/// One event and what the clients felt of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    name: String,
    /// From the event's begin until all was calm again.
    took_ms: u64,
    pub fresh: Felt,
    pub kept: Felt,
}

/// What the requests of one kind came to.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Felt {
    pub requests: u64,
    pub failures: u64,
    /// The slowest that was answered.
    slowest_ms: u64,
    /// How many pods answered.
    pods: usize,
    /// How often a request failed in which way.
    causes: BTreeMap<String, u64>,
}

impl Report {
    pub fn new(nodes_ready: Duration, addresses: Duration, steps: Vec<Step>) -> Self {
        let good = |felt: &Felt| felt.requests > 0 && felt.failures == 0;
        let ok = !steps.is_empty() && steps.iter().all(|s| good(&s.fresh) && good(&s.kept));
        Self {
            schema: "weir.cluster/v1",
            ok,
            nodes_ready_ms: millis(nodes_ready),
            addresses_ms: millis(addresses),
            steps,
        }
    }
}

impl Step {
    /// From what ended between then and now.
    pub fn new(name: &str, from: Instant, samples: &[Sample]) -> Self {
        let felt = |kind| Felt::of(samples.iter().filter(|sample| sample.kind == kind));
        Self {
            name: name.to_owned(),
            took_ms: millis(from.elapsed()),
            fresh: felt(Kind::Fresh),
            kept: felt(Kind::Kept),
        }
    }
}

impl Felt {
    pub fn of<'s>(samples: impl Iterator<Item = &'s Sample>) -> Self {
        let mut felt = Self::default();
        let mut pods = BTreeSet::new();
        for sample in samples {
            felt.requests += 1;
            match &sample.outcome {
                Ok(pod) => {
                    pods.insert(pod);
                    felt.slowest_ms = felt.slowest_ms.max(millis(sample.took));
                }
                Err(failure) => {
                    felt.failures += 1;
                    *felt.causes.entry(failure.to_string()).or_default() += 1;
                }
            }
        }
        felt.pods = pods.len();
        felt
    }
}

impl fmt::Display for Report {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            to,
            "two nodes ready after {:.1} s, the Service had its addresses after {} ms\n",
            self.nodes_ready_ms as f64 / 1000.0,
            self.addresses_ms
        )?;
        writeln!(
            to,
            "{:28} {:>7}   {:^34}   {:^34}",
            "", "", "fresh connections", "kept connections, 1 s a request"
        )?;
        let columns =
            format!("{:>8} {:>8} {:>11} {:>4}", "requests", "failed", "slowest ms", "pods");
        writeln!(to, "{:28} {:>7}   {columns}   {columns}", "event", "took s")?;
        for step in &self.steps {
            writeln!(
                to,
                "{:28} {:7.1}   {}   {}",
                step.name,
                step.took_ms as f64 / 1000.0,
                step.fresh,
                step.kept
            )?;
        }
        let causes = self.steps.iter().flat_map(|s| s.fresh.causes.iter().chain(&s.kept.causes));
        causes.into_iter().try_for_each(|(cause, count)| writeln!(to, "  {count} × {cause}"))?;
        let said = if self.ok {
            "No request failed, and every pod saw the client's own address."
        } else {
            "Requests FAILED."
        };
        writeln!(to, "\n{said}")
    }
}

impl fmt::Display for Felt {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, failures, slowest_ms, pods, .. } = self;
        write!(to, "{requests:8} {failures:8} {slowest_ms:11} {pods:4}")
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::Failure;

    fn step(samples: &[(Kind, bool)]) -> Step {
        let now = Instant::now();
        let sample = |&(kind, good): &(Kind, bool)| Sample {
            kind,
            took: Duration::from_millis(7),
            outcome: if good { Ok("web-1".into()) } else { Err(Failure::Reset) },
        };
        Step::new("event", now, &samples.iter().map(sample).collect::<Vec<_>>())
    }

    fn is_ok(steps: Vec<Step>) -> bool {
        Report::new(Duration::ZERO, Duration::ZERO, steps).ok
    }

    #[test]
    fn report_is_good_only_if_both_kinds_were_asked_and_none_failed() {
        let (fresh, kept) = ((Kind::Fresh, true), (Kind::Kept, true));
        assert!(is_ok(vec![step(&[fresh, kept])]));
        assert!(!is_ok(vec![]));
        assert!(!is_ok(vec![step(&[fresh, kept]), step(&[fresh])]));
        assert!(!is_ok(vec![step(&[fresh, kept, (Kind::Kept, false)])]));
        assert!(!is_ok(vec![step(&[fresh, kept, (Kind::Fresh, false)])]));
    }
}
