//! The measuring half of `cargo xtask bench`. Exit status 1 if a goal is missed.

use anyhow::Result;
use clap::{Parser, Subcommand};
use lb_tests::{
    bench::{self, Goal},
    traffic::http,
};
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Measures weir and holds it against its goals")]
struct Args {
    #[command(subcommand)]
    bench: Bench,
    /// Print one JSON document instead of tables.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Bench {
    /// The data plane: ns a packet, beside the classic design and an earlier revision.
    Packet(bench::packet::Options),
    /// Slot tables: quality beside Maglev, speed, and the way from a plan to the kernel's maps.
    Tables,
    /// Of `tables`: only the way to the maps.
    Maps,
    /// Health checks: 10,000 targets on one node.
    Health,
    /// A large Kubernetes cluster: cold start of an agent, and changes of endpoints.
    Kubernetes(bench::kubernetes::Options),
    /// Claims: what it costs to look through the arrivals.
    Claims,
    /// What clients feel when nodes, agents, cables and servers fail.
    Failover(bench::failover::Options),
    /// Long conversations while backends, forwarders and agents come, go and die.
    Churn(bench::churn::Options),
    /// Floods of strays beside established connections.
    Flood(bench::flood::Options),
    /// Flows that break while pools change, simulated, beside Maglev without and with flow tables.
    Consistency(bench::consistency::Options),
    /// What gossip costs a member of a small and of a large group, in virtual time.
    Gossip,
    /// What probes and gossip together cost a node, in virtual time.
    Membership,
    /// A server that `failover` starts.
    #[command(hide = true)]
    Serve { name: String, port: u16 },
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let met = |goals: &[Goal]| goals.iter().all(|goal| goal.met);
    let all_met = match args.bench {
        Bench::Packet(options) => met(&bench::packet::run(&options, args.json)?.goals),
        Bench::Tables => met(&bench::tables::run(args.json)?.goals),
        Bench::Maps => met(&bench::tables::run_maps(args.json)?.goals),
        Bench::Health => met(&bench::health::run(args.json)?.goals),
        Bench::Kubernetes(options) => met(&bench::kubernetes::run(&options, args.json)?.goals),
        Bench::Failover(options) => bench::failover::run(&options, args.json)?,
        Bench::Churn(options) => bench::churn::run(&options, args.json)?,
        Bench::Flood(options) => met(&bench::flood::run(&options, args.json)?.goals),
        Bench::Claims => met(&bench::claims::run(args.json)?.goals),
        Bench::Consistency(options) => met(&bench::consistency::run(&options, args.json)?.goals),
        Bench::Gossip => met(&bench::gossip::run(args.json)?.goals),
        Bench::Membership => met(&bench::membership::run(args.json)?.goals),
        Bench::Serve { name, port } => {
            http::serve_forever(&name, port)?;
            true
        }
    };
    Ok(if all_met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
