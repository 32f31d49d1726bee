//! The measuring half of `cargo xtask bench`. Exit status 1 if a goal is missed.

use anyhow::Result;
use clap::{Parser, Subcommand};
use lb_tests::bench;
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
    /// The data plane: ns a packet, beside the classic design.
    Packet,
    /// Slot tables: quality beside Maglev, speed, and the way from a plan to the kernel's maps.
    Tables,
    /// Of `tables`: only the way to the maps.
    Maps,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let goals = match args.bench {
        Bench::Packet => bench::packet::run(args.json)?.goals,
        Bench::Tables => bench::tables::run(args.json)?.goals,
        Bench::Maps => bench::tables::run_maps(args.json)?.goals,
    };
    Ok(if goals.iter().all(|goal| goal.met) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
