//! What membership as a whole costs each node, probes of data planes and gossip together, in clusters that no lab holds: the
//! agents' own state machines in virtual time. What gossip alone costs, sealing included, says [`super::gossip`].

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use weir::membership::sim::{Cost, Load, measure};

use super::Goal;

/// Cluster sizes, all simulated. Each step of virtual time takes a turn of every member, so larger ones take hours.
const MEMBERS: [usize; 3] = [10, 100, 300];
/// Virtual time in which all find each other, and in which costs are counted.
const SETTLE: Duration = Duration::from_secs(10);
const COUNTED: Duration = Duration::from_secs(20);
/// Flat: the largest cluster's node sends at most so many times what the smallest one's sends.
const FLAT: f64 = 2.0;

/// `weir.bench-membership/v1`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MembershipReport {
    pub schema: &'static str,
    pub settle_s: u64,
    pub counted_s: u64,
    pub costs: Vec<Cost>,
    pub goals: Vec<Goal>,
}

/// Simulates all sizes, prints the table unless `json`, and returns the report.
pub fn run(json: bool) -> Result<MembershipReport> {
    let mut costs = Vec::new();
    for load in [Load::Idle, Load::DeathEachMinute] {
        for members in MEMBERS {
            eprintln!("simulating {members} members, {load:?}");
            costs.push(measure(members, load, SETTLE, COUNTED));
        }
    }
    let goals = [Load::Idle, Load::DeathEachMinute].into_iter().filter_map(|load| {
        let mut of_load = costs.iter().filter(|cost| cost.load == load);
        let (least, most) = (of_load.next()?, of_load.next_back()?);
        let (name, ratio) = (
            format!("bytes of a node, most members over fewest, {load:?}"),
            most.bytes / least.bytes,
        );
        Some(Goal::at_most(name, FLAT, ratio))
    });
    let report = MembershipReport {
        schema: "weir.bench-membership/v1",
        settle_s: SETTLE.as_secs(),
        counted_s: COUNTED.as_secs(),
        goals: goals.collect(),
        costs,
    };
    super::show(&report, json, print)?;
    Ok(report)
}

fn print(report: &MembershipReport) {
    println!(
        "Membership's cost per node and second; all simulated, {} s of virtual time; the processor's share includes the \
         simulated network:\n\n{:>8} {:<16}{:>10}{:>12}{:>9}{:>9}{:>11}{:>12}",
        report.counted_s,
        "members",
        "load",
        "bytes",
        "most bytes",
        "probes",
        "answers",
        "datagrams",
        "cpu us"
    );
    for cost in &report.costs {
        println!(
            "{:>8} {:<16}{:>10.0}{:>12.0}{:>9.1}{:>9.1}{:>11.1}{:>12.0}",
            cost.members,
            format!("{:?}", cost.load),
            cost.bytes,
            cost.most_bytes,
            cost.probes,
            cost.answers,
            cost.datagrams,
            cost.processor * 1e6
        );
    }
    for goal in &report.goals {
        let met = if goal.met { "met" } else { "MISSED" };
        println!("{met:<6} {:<62} {:>8.2} (at most {:.2})", goal.name, goal.measured, goal.at_most);
    }
}
