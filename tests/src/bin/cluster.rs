//! `cargo xtask cluster`: weir in a real cluster. Exit status 0 only if no request failed.

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Parser;
use lb_tests::cluster::{self, Options};

#[derive(Parser)]
#[command(
    about = "Runs a Kubernetes cluster of two real nodes with weir on namespaces of this machine"
)]
struct Args {
    /// Print one JSON document; what happens goes to stderr
    #[arg(long)]
    json: bool,
    /// How long to look on after each event
    #[arg(long, value_name = "N", default_value_t = 5)]
    seconds: u64,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let ok = cluster::run(Options { json: args.json, calm: Duration::from_secs(args.seconds) })?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
