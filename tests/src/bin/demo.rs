//! `cargo xtask demo`: the outage as it was, and survived. Exit status 0 only if both were seen.

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Parser;
use lb_tests::demo::{self, Options};

#[derive(Parser)]
#[command(about = "Replays the outage on namespaces of this machine, as it was and with weir")]
struct Args {
    /// Print one JSON document; the live lines go to stderr
    #[arg(long)]
    json: bool,
    /// Go on after an event that was not survived
    #[arg(long)]
    keep_going: bool,
    /// How long to look at each event with weir
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u64,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let ok = demo::run(Options {
        json: args.json,
        keep_going: args.keep_going,
        event: Duration::from_secs(args.seconds),
    })?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
