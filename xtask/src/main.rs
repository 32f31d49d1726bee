//! `cargo xtask`: builds, tests, benches and shows weir.
//!
//! Results go to standard output; progress and what other tools say, to standard error.

mod bpf;
mod process;
mod toolchain;
mod workspace;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use process::CommandExt as _;
use workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, tests, benches and shows weir")]
struct Args {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the BPF object
    BuildBpf {
        /// Where to write it, instead of where the weir binary takes it from
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Build the weir binary with the BPF object in it
    Build {
        /// Build for debugging
        #[arg(long)]
        debug: bool,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    let workspace = Workspace::find()?;
    match args.command {
        Task::BuildBpf { out } => build_bpf(&workspace, out),
        Task::Build { debug } => {
            build_bpf(&workspace, None)?;
            let mut cargo = workspace.cargo();
            cargo.args(["build", "--package=weir"]);
            if !debug {
                cargo.arg("--release");
            }
            cargo.run()
        }
    }
}

fn build_bpf(workspace: &Workspace, out: Option<PathBuf>) -> Result<()> {
    let out = match out {
        Some(out) => std::path::absolute(out).context("find the current directory")?,
        None => workspace.bpf_object(),
    };
    let options = bpf::Options {
        install: true,
        ..Default::default()
    };
    bpf::build(&workspace.root, &workspace.bpf_work(), &out, options)
}
