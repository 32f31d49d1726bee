//! The table: one row for each system, cluster size and kind of event, made of recorded events alone.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{
    kind::{EVENTS_FOR_P99, Goal, Kind},
    results::Record,
    site::LONGEST,
};

/// At an agent that is stopped, requests may fail so close to the moment at which the VIP's move was seen.
const CLOSE_TO_MOVE_MS: f64 = 1000.0;

/// `weir.bench-failover/v1`. All times are milliseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub schema: &'static str,
    pub revision: String,
    pub label: Option<String>,
    /// What was set, of the bench and of each system.
    pub settings: Vec<Settings>,
    pub rows: Vec<Row>,
    /// No goal was missed.
    pub ok: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    pub of: String,
    pub text: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub system: String,
    pub nodes: usize,
    pub kind: String,
    /// What it is at this system, where that is not what the kind says.
    pub remark: Option<&'static str>,
    pub revisions: BTreeSet<String>,
    pub events: usize,
    /// How many there are to be.
    pub of_events: usize,
    /// From the event to the start of the last request that failed; events that had no end are [`Row::endless`].
    pub min: f64,
    pub median: f64,
    pub greatest: f64,
    /// From 200 events on.
    pub p99: Option<f64>,
    /// Events that were still felt when the bench gave up.
    pub endless: usize,
    /// Events that hit a node which the router still used though another one announced.
    pub astray: usize,
    /// Requests that failed at one event.
    pub median_failed: f64,
    pub most_failed: u64,
    pub failed_on_return: u64,
    pub longest_gap: f64,
    pub client_late: f64,
    pub goal: Option<String>,
    pub met: Option<bool>,
}

impl Row {
    /// Of the events of one row, at least one.
    pub fn new(kind: Kind, records: &[&Record], of_events: usize, is_weir: bool) -> Option<Self> {
        let first = records.first()?;
        let last = sorted(records.iter().map(|record| record.outcome.felt.last_failed_ms));
        let failed = sorted(records.iter().map(|record| record.outcome.felt.failed as f64));
        let most = |value: fn(&Record) -> f64| records.iter().map(|r| value(r)).fold(0.0, f64::max);
        let p99 = (records.len() >= EVENTS_FOR_P99).then(|| rank(&last, 0.99));
        let goal = if is_weir { kind.goal() } else { None };
        let endless = records.iter().filter(|record| !record.outcome.over).count();
        let worst = p99.unwrap_or_else(|| rank(&last, 1.0));
        Some(Self {
            system: first.system.clone(),
            nodes: first.nodes,
            kind: kind.name(),
            remark: None,
            revisions: records.iter().map(|record| record.revision.clone()).collect(),
            events: records.len(),
            of_events,
            min: rank(&last, 0.0),
            median: rank(&last, 0.5),
            greatest: rank(&last, 1.0),
            p99,
            endless,
            astray: records.iter().filter(|record| record.outcome.astray).count(),
            median_failed: rank(&failed, 0.5),
            most_failed: most(|record| record.outcome.felt.failed as f64) as u64,
            failed_on_return: records.iter().map(|record| record.outcome.failed_on_return).sum(),
            longest_gap: most(|record| record.outcome.felt.longest_gap_ms),
            client_late: most(|record| record.outcome.felt.client_late_ms),
            goal: goal.map(text_of),
            met: goal.map(|goal| endless == 0 && is_met(goal, records, worst)),
        })
    }
}

fn text_of(goal: Goal) -> String {
    match goal {
        Goal::Within(limit) => format!("p99 <= {} ms", limit.as_millis()),
        Goal::Nothing => "nothing".into(),
        Goal::OnlyAtMove => "only at the move".into(),
    }
}

fn is_met(goal: Goal, records: &[&Record], worst: f64) -> bool {
    let only_at_move = |record: &&Record| {
        let felt = &record.outcome.felt;
        record.outcome.moved_ms.is_some_and(|moved| {
            let near = moved - CLOSE_TO_MOVE_MS..=moved + CLOSE_TO_MOVE_MS;
            felt.failed == 0
                || near.contains(&felt.first_failed_ms) && near.contains(&felt.last_failed_ms)
        })
    };
    match goal {
        Goal::Within(limit) => worst <= limit.as_secs_f64() * 1e3,
        Goal::Nothing => records.iter().all(|record| record.outcome.felt.failed == 0),
        Goal::OnlyAtMove => records.iter().all(only_at_move),
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The nearest-rank quantile of sorted values, at least one; 0 gives the least, 1 the greatest.
fn rank(values: &[f64], share: f64) -> f64 {
    let at = (share * values.len() as f64).ceil() as usize;
    values[at.clamp(1, values.len()) - 1]
}

/// Prints the table for people.
pub fn print(report: &Report) {
    println!("Revision of the code measured: {}", report.revision);
    for settings in &report.settings {
        println!("\n{}:\n  {}", settings.of, settings.text.trim().replace('\n', "\n  "));
    }
    println!(
        "\nFrom the event to the start of the last request that failed, ms; requests that failed:\n\n\
         {:<25}{:>6} {:<15}{:>8}{:>9}{:>9}{:>13}{:>16}{:>8}{:>9}{:>7}  goal",
        "system",
        "nodes",
        "event",
        "events",
        "min",
        "median",
        "p99 or max",
        "failed (most)",
        "return",
        "gap",
        "late"
    );
    for row in &report.rows {
        print_row(row);
    }
    println!(
        "\nevents: measured of wanted. p99 from {EVENTS_FOR_P99} events on, else the maximum. failed (most): requests of the \
         median event and of the worst.\nreturn: requests that failed while all was put back, of all events together. gap: \
         longest time without an answer. late: how late the client itself was at most."
    );
    let remarks: BTreeSet<_> = report.rows.iter().filter_map(|row| row.remark).collect();
    remarks.iter().for_each(|remark| println!("{remark}"));
}

fn print_row(row: &Row) {
    let worst = match (row.endless, row.p99) {
        (1.., _) => format!("no end: {}", row.endless),
        (0, Some(p99)) => format!("p99 {p99:.0}"),
        (0, None) => format!("max {:.0}", row.greatest),
    };
    let goal = match (&row.goal, row.met) {
        (Some(goal), Some(true)) => format!("{goal}: met"),
        (Some(goal), _) => format!("{goal}: MISSED"),
        _ => String::new(),
    };
    let endless = format!("> {}", LONGEST.as_millis());
    let median =
        if row.endless * 2 > row.events { &endless } else { &format!("{:.0}", row.median) };
    let min = if row.endless == row.events { &endless } else { &format!("{:.0}", row.min) };
    println!(
        "{:<25}{:>6} {:<15}{:>8}{:>9}{:>9}{:>13}{:>16}{:>8}{:>9.0}{:>7.0}  {goal}",
        row.system,
        row.nodes,
        row.kind,
        format!("{}/{}", row.events, row.of_events),
        min,
        median,
        worst,
        format!("{:.0} ({})", row.median_failed, row.most_failed),
        row.failed_on_return,
        row.longest_gap,
        row.client_late,
    );
    if row.astray > 0 {
        println!(
            "{:31} astray {}: the router still used a node that did not announce",
            "", row.astray
        );
    }
    if row.revisions.len() > 1 {
        let revisions: Vec<_> = row.revisions.iter().map(String::as_str).collect();
        println!("{:31} of revisions {}", "", revisions.join(", "));
    }
}
