//! What it costs a node to look through its arrivals, in processor time. Real maps, no traffic.

use anyhow::Result;
use serde::Serialize;
use std::{fmt::Write, net::Ipv4Addr, time::Duration};
use weir::{dataplane::maps::ArrivalMap, model::Protocol, plan::FrontendKey};

use super::Goal;
use crate::plane::{Plane, key, seen};

const ARRIVALS: u32 = 262_144;
const FRONTENDS: u16 = 200;
/// Of each frontend, all on this node.
const BACKENDS: u16 = 4;
const SCANS: usize = 9;
/// Goal, for all arrivals.
const MOST_MS: f64 = 100.0;

/// `weir.bench.claims/v1`.
#[derive(Debug, Serialize)]
pub struct ClaimsReport {
    pub schema: &'static str,
    pub arrivals: u32,
    pub frontends: u16,
    pub scans: Vec<Cost>,
    pub goals: Vec<Goal>,
}

/// Milliseconds of processor time.
#[derive(Debug, Serialize)]
pub struct Cost {
    pub what: &'static str,
    pub displaced: u64,
    pub min_ms: f64,
    pub median_ms: f64,
}

pub fn run(json: bool) -> Result<ClaimsReport> {
    let mut plane = Plane::new(&text(false))?;
    let mut ids = Vec::new();
    for n in 0..BACKENDS {
        ids.push(plane.backend(([10, 1, 0, n as u8 + 1], 8080).into())?);
    }
    let now = Duration::from_secs(1);
    let mut flows = Vec::new();
    for n in 0..ARRIVALS {
        let port = 1000 + (n % u32::from(FRONTENDS)) as u16;
        let address = [198, 51, 100, 1].into();
        let service = plane.service(&FrontendKey { address, port, protocol: Protocol::Tcp })?;
        let client = Ipv4Addr::from_bits(0x6440_0000 + n);
        let id = ids[(n / u32::from(FRONTENDS)) as usize % ids.len()];
        flows.push((key(client, 40_000, id), seen(service, 0, now)?));
    }
    plane.arrive(ArrivalMap::Established, flows)?;
    let mut scans = vec![measure(&plane, "pools of four, three flows in four displaced")?];
    plane.apply(&text(true))?;
    scans.push(measure(&plane, "one of four drained")?);
    let slowest = scans.iter().map(|it| it.median_ms).fold(0.0, f64::max);
    let goals = vec![Goal::at_most(format!("ms for {ARRIVALS} arrivals"), MOST_MS, slowest)];
    let schema = "weir.bench.claims/v1";
    let report = ClaimsReport { schema, arrivals: ARRIVALS, frontends: FRONTENDS, scans, goals };
    super::show(&report, json, print)?;
    Ok(report)
}

fn measure(plane: &Plane, what: &'static str) -> Result<Cost> {
    let mut scanner = plane.scanner()?;
    let (mut costs, mut displaced) = (Vec::new(), 0);
    for _ in 0..SCANS {
        let scan = scanner.scan()?;
        displaced = scan.displaced.values().flatten().map(|(_, found)| found.flows).sum();
        costs.push(scan.cost.as_secs_f64() * 1e3);
    }
    costs.sort_by(f64::total_cmp);
    Ok(Cost { what, displaced, min_ms: costs[0], median_ms: costs[SCANS / 2] })
}

/// The frontends are ports of one address, and share a pool.
fn text(first_drained: bool) -> String {
    let mut text = String::from(
        "apiVersion: weir.dev/v1alpha1
kind: Agent
metadata: {name: cluster}
spec: {node: here, uplinks: [lo], seed: 0123456789abcdef}
---
apiVersion: weir.dev/v1alpha1
kind: Node
metadata: {name: here}
spec: {addresses: [192.0.2.1]}
---
",
    );
    for object in 0..FRONTENDS / PORTS {
        text += "apiVersion: weir.dev/v1alpha1\nkind: Frontend\n";
        // Writing to a text never fails.
        let _ = writeln!(text, "metadata: {{name: web-{object}}}\nspec:");
        text += "  addresses: [198.51.100.1]\n  ports:\n";
        for n in 0..PORTS {
            let port = 1000 + object * PORTS + n;
            let _ = writeln!(text, "  - {{port: {port}, targetPort: 8080}}");
        }
        text += "  pool:\n    members:\n";
        for n in 1..=BACKENDS {
            let drained = first_drained && n == 1;
            let _ =
                writeln!(text, "    - {{address: 10.1.0.{n}, node: here, terminating: {drained}}}");
        }
        text += "---\n";
    }
    text
}

/// Ports of one object.
const PORTS: u16 = 10;

fn print(report: &ClaimsReport) {
    println!(
        "{} arrivals over {} frontends, processor time of a scan",
        report.arrivals, report.frontends
    );
    for Cost { what, displaced, min_ms, median_ms } in &report.scans {
        println!(
            "  {what}: {displaced} displaced, {min_ms:.1} ms at least, {median_ms:.1} ms median"
        );
    }
    for Goal { name, at_most, measured, met } in &report.goals {
        println!(
            "  {}  {name}: {measured:.1}, at most {at_most}",
            if *met { "ok  " } else { "FAIL" }
        );
    }
}
