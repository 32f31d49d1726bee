//! Flows that break while their pool changes: weir's own code in [`crate::consistency`], beside Maglev
//! alone and Maglev with a flow table in each forwarder. In virtual time; equal options, equal figures.

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::Goal;
use crate::consistency::{self, Mode, Scenario, Settings, Tally, Without};

/// What to simulate.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Flows of each story
    #[arg(long, default_value_t = 40_000)]
    flows: usize,
    /// Another seed, other flows and other chances
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds from one step of a story to the next
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    interval: u64,
    /// Stories whose name contains this; all, if it is not given
    #[arg(long, default_value = "")]
    only: String,
}

/// `weir.bench.consistency/v1`. Shares are of 1: 0.006 is 0.6 %.
#[derive(Debug, Serialize)]
pub struct ConsistencyReport {
    pub schema: &'static str,
    pub flows: usize,
    pub seed: u64,
    pub interval_s: u64,
    pub rows: Vec<Row>,
    pub goals: Vec<Goal>,
}

/// One story in one mode.
#[derive(Debug, Serialize)]
pub struct Row {
    pub scenario: String,
    /// `equal` or `hard`.
    pub mode: Mode,
    /// Flows that broke, of all.
    pub broken: f64,
    pub goal: f64,
    /// The same flows under the baselines.
    pub maglev: f64,
    pub maglev_tracked: f64,
    pub tally: Tally,
}

/// Simulates all, prints the table unless `json`, and returns the report.
pub fn run(options: &Options, json: bool) -> Result<ConsistencyReport> {
    let Options { flows, seed, interval, ref only } = *options;
    let mut rows = Vec::new();
    for scenario in Scenario::all().iter().filter(|it| it.name.contains(only)) {
        for mode in [Mode::Equal, Mode::Hard] {
            let without = Without::default();
            let settings = Settings { mode, without, flows, interval_s: interval, seed };
            let tally = consistency::run(scenario, &settings)?;
            let share = |count: usize| count as f64 / flows.max(1) as f64;
            rows.push(Row {
                scenario: scenario.name.clone(),
                mode,
                broken: share(tally.broken()),
                goal: if mode == Mode::Hard { scenario.hard_goal } else { 0.0 },
                maglev: share(tally.maglev),
                maglev_tracked: share(tally.tracked),
                tally,
            });
        }
    }
    let goal = |row: &Row| {
        let name = format!("broken flows, {}, {} views", row.scenario, row.mode.name());
        Goal::at_most(name, row.goal, row.broken)
    };
    let report = ConsistencyReport {
        schema: "weir.bench.consistency/v1",
        flows,
        seed,
        interval_s: interval,
        goals: rows.iter().map(goal).collect(),
        rows,
    };
    super::show(&report, json, print)?;
    Ok(report)
}

fn print(report: &ConsistencyReport) {
    println!(
        "Broken flows of {}, %; a step every {} s; seed {}. Hard: 20 % of nodes without history, new \
         backends on nodes\nthat just joined, 20 % of nodes one step behind; 75 % of flows change \
         forwarder at each step in both.\n",
        report.flows, report.interval_s, report.seed
    );
    println!(
        "{:<22}{:<7}{:>9}{:>9} {:<7}{:>9}{:>16}{:>11}{:>13}{:>11}",
        "",
        "views",
        "weir",
        "goal",
        "",
        "Maglev",
        "Maglev + table",
        "sends/pkt",
        "sent again",
        "most sends"
    );
    for row in &report.rows {
        let Row { tally, .. } = row;
        println!(
            "{:<22}{:<7}{:>9.4}{:>9.4} {:<7}{:>9.2}{:>16.2}{:>11.4}{:>13}{:>11}",
            row.scenario,
            row.mode.name(),
            100.0 * row.broken,
            100.0 * row.goal,
            if row.broken <= row.goal { "met" } else { "MISSED" },
            100.0 * row.maglev,
            100.0 * row.maglev_tracked,
            tally.sends as f64 / tally.packets.max(1) as f64,
            tally.again,
            tally.most_sends
        );
    }
}
