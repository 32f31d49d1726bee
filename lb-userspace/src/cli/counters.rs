//! `weir counters`: what happened to packets. Pure beside its arguments.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use lb_common::reason::Counter;
use serde::Serialize;

use super::{
    args::Output,
    output::{View, or_dash, table},
    snapshot::Sight,
};

#[derive(Args, Debug)]
pub struct CountersArgs {
    /// Per frontend instead of per reason
    #[arg(long)]
    pub frontends: bool,
    /// Per backend instead of per reason
    #[arg(long, conflicts_with = "frontends")]
    pub backends: bool,
    /// Also list what was never counted
    #[arg(long)]
    pub all: bool,
    /// Every SECONDS show what was counted since the last time, until interrupted
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub watch: Option<Duration>,
    #[command(flatten)]
    pub output: Output,
}

/// Longest interval of `--watch`.
const MAX_WATCH_SECONDS: f64 = 86_400.0;

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "must be a number of seconds".to_owned())?;
    if !(0.1..=MAX_WATCH_SECONDS).contains(&seconds) {
        return Err(format!("must be between 0.1 and {MAX_WATCH_SECONDS} seconds"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// What is counted by.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    Reason,
    Frontend,
    Backend,
}

impl CountersArgs {
    pub fn by(&self) -> By {
        match (self.frontends, self.backends) {
            (true, _) => By::Frontend,
            (_, true) => By::Backend,
            _ => By::Reason,
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Counters {
    by: By,
    /// Seconds since the look before, of which these are the differences; null: since the maps were
    /// made.
    interval_s: Option<f64>,
    counters: Vec<Row>,
    /// Rows of zero are for programs, and for people who ask.
    #[serde(skip)]
    zeros: bool,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    name: String,
    /// `handled`, `answered`, `passed` or `dropped`; null beside reasons.
    kind: Option<&'static str>,
    /// What the reason means, or the name of the frontend's object or the backend's node.
    help: String,
    packets: u64,
    bytes: u64,
}

impl Counters {
    pub fn new(sight: Sight<'_>, by: By, zeros: bool) -> Self {
        let counters = match by {
            By::Reason => reasons(sight),
            By::Frontend => frontends(sight),
            By::Backend => backends(sight),
        };
        Self { by, interval_s: None, counters, zeros }
    }

    /// What was added since an earlier look; one that started anew counts from zero.
    pub fn since(&self, earlier: &Self, interval: Duration) -> Self {
        let before: BTreeMap<_, _> =
            earlier.counters.iter().map(|before| (before.name.as_str(), before)).collect();
        let mut counters = self.counters.clone();
        for row in &mut counters {
            if let Some(before) = before.get(row.name.as_str()) {
                let anew = row.packets < before.packets || row.bytes < before.bytes;
                if !anew {
                    row.packets -= before.packets;
                    row.bytes -= before.bytes;
                }
            }
        }
        Self { interval_s: Some(interval.as_secs_f64()), counters, ..*self }
    }
}

fn row(name: String, kind: Option<&'static str>, help: String, counter: Counter) -> Row {
    Row { name, kind, help, packets: counter.packets, bytes: counter.bytes }
}

fn reasons(sight: Sight<'_>) -> Vec<Row> {
    let rows = sight.maps.reasons.iter().map(|(reason, counter)| {
        row(reason.name().into(), Some(reason.kind().name()), reason.help().into(), *counter)
    });
    rows.collect()
}

fn frontends(sight: Sight<'_>) -> Vec<Row> {
    let rows = sight.maps.frontends.iter().map(|(door, frontend)| {
        let object = sight.planned(*door).map(|planned| planned.object.clone());
        row(door.to_string(), None, object.unwrap_or_default(), frontend.counter)
    });
    rows.collect()
}

fn backends(sight: Sight<'_>) -> Vec<Row> {
    let rows = sight.maps.backends.values().map(|backend| {
        row(backend.address.to_string(), None, sight.node_name(backend.node), backend.counter)
    });
    rows.collect()
}

impl View for Counters {
    const SCHEMA: &'static str = "weir.counters/v1";

    fn text(&self) -> String {
        let rows: Vec<_> = self
            .counters
            .iter()
            .filter(|row| self.zeros || row.packets > 0 || row.bytes > 0)
            .collect();
        if rows.is_empty() {
            return "nothing counted\n".into();
        }
        let cells = rows.iter().map(|row| {
            [
                row.name.clone(),
                row.packets.to_string(),
                row.bytes.to_string(),
                or_dash(row.kind.unwrap_or_default()),
                or_dash(&row.help),
            ]
        });
        let (first, last) = match self.by {
            By::Reason => ("REASON", "MEANING"),
            By::Frontend => ("FRONTEND", "OBJECT"),
            By::Backend => ("BACKEND", "NODE"),
        };
        match self.by {
            By::Reason => table([first, ">PACKETS", ">BYTES", "KIND", last], cells),
            By::Frontend | By::Backend => table(
                [first, ">PACKETS", ">BYTES", last],
                cells.map(|[name, packets, bytes, _, help]| [name, packets, bytes, help]),
            ),
        }
    }
}
