//! The result, as a table for people and as JSON (schema `weir.demo/v1`) for programs.

use std::{collections::BTreeSet, fmt, net::SocketAddr, time::Duration};

use serde::Serialize;

use super::window::{Felt, GRACE};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub schema: &'static str,
    /// The outage was reproduced, and survived with weir.
    pub ok: bool,
    pub as_it_was: AsItWas,
    pub with_weir: WithWeir,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AsItWas {
    /// Nothing sent after the event was answered, although the other servers lived.
    pub reproduced: bool,
    /// Who answered at its own address during the outage.
    pub servers_alive: BTreeSet<String>,
    pub event: Event,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WithWeir {
    /// Every event was, and in the end all servers answered again.
    pub survived: bool,
    /// From the start of the agents until every server had answered for every VIP for a second.
    pub ready_ms: u64,
    pub events: Vec<Event>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub name: String,
    /// No failure and no silence beyond the time of grace, for any target.
    pub survived: bool,
    #[serde(flatten)]
    pub felt: Felt,
    pub targets: Vec<TargetFelt>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetFelt {
    pub target: String,
    pub vip: SocketAddr,
    #[serde(flatten)]
    pub felt: Felt,
}

impl Report {
    pub fn new(as_it_was: AsItWas, with_weir: WithWeir) -> Self {
        Self {
            schema: "weir.demo/v1",
            ok: as_it_was.reproduced && with_weir.survived,
            as_it_was,
            with_weir,
        }
    }
}

impl WithWeir {
    pub fn new(ready: Duration) -> Self {
        Self { survived: true, ready_ms: ready.as_millis() as u64, events: Vec::new() }
    }

    pub fn add(&mut self, event: Event) {
        self.survived &= event.survived;
        self.events.push(event);
    }
}

impl Event {
    pub fn new(name: String, targets: Vec<TargetFelt>) -> Self {
        let felt = targets.iter().fold(Felt::default(), |sum, target| sum.and(&target.felt));
        Self { name, survived: targets.iter().all(|target| target.felt.survived()), felt, targets }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        heading(to, "As it was")?;
        row(to, &self.as_it_was.event)?;
        heading(to, "With weir")?;
        self.with_weir.events.iter().try_for_each(|event| row(to, event))?;
        let was = if self.as_it_was.reproduced { "reproduced" } else { "NOT reproduced" };
        let survived = if self.with_weir.survived { "survived" } else { "NOT survived" };
        writeln!(
            to,
            "\nThe outage as it was: {was}. With weir: {survived} (failures for at most {} s after an event, none after; ready {:.1} s after the agents' start).",
            GRACE.as_secs(),
            self.with_weir.ready_ms as f64 / 1000.0,
        )
    }
}

fn heading(to: &mut fmt::Formatter<'_>, what: &str) -> fmt::Result {
    writeln!(
        to,
        "{what:38} {:>8}  {:>8}  {:>14}  {:>17}   longest gap by target, ms",
        "requests", "failures", "longest gap ms", "last failure at ms"
    )
}

fn row(to: &mut fmt::Formatter<'_>, event: &Event) -> fmt::Result {
    let felt = &event.felt;
    let last = felt.last_failure_ms.map_or("-".into(), |last| last.to_string());
    let by_target = event.targets.iter();
    let by_target: Vec<_> = by_target
        .map(|target| format!("{} {}", target.target, target.felt.longest_gap_ms))
        .collect();
    writeln!(
        to,
        "  {:36} {:8}  {:8}  {:14}  {:>18}   {}",
        event.name,
        felt.requests,
        felt.failures,
        felt.longest_gap_ms,
        last,
        by_target.join(", ")
    )
}
