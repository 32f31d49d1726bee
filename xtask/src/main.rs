//! `cargo xtask`: builds, tests, benches and shows weir, and sets the machine up for it.
//!
//! Results go to standard output; progress and what other tools say, to standard error.

mod bpf;
mod cargo_output;
mod check;
mod cluster;
mod crds;
mod doctor;
mod go;
mod helm;
mod image;
mod kubernetes;
mod process;
mod revision;
mod rustc;
mod setup;
mod suite;
mod toolchain;
mod weir;
mod workspace;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};

use helm::Helm;
use kubernetes::{Kubernetes, Parts};
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
    /// Show the outage as it was, then with weir, on namespaces of this machine
    Demo(Run),
    /// Show weir in a real cluster: pods behind a Service are replaced and moved under load
    Cluster(Run),
    /// Run all tests, or some layers of them
    Test {
        #[command(flatten)]
        setup: Setup,
        /// Run this layer only; may be given several times
        #[arg(long, value_name = "LAYER")]
        only: Vec<suite::Layer>,
    },
    /// Measure: `packet` (also `--against REV`), `tables`, `health`, `failover`, `consistency`, `gossip` or
    /// `membership`
    Bench(Run),
    /// Build the weir binary with the BPF object in it
    Build {
        #[command(flatten)]
        setup: Setup,
        /// Build for debugging
        #[arg(long)]
        debug: bool,
        /// Also build `weir-next`, of another layout: what upgrades are tested with
        #[arg(long)]
        next: bool,
    },
    /// Build the BPF object
    BuildBpf {
        #[command(flatten)]
        setup: Setup,
        /// Where to write it, instead of where the weir binary takes it from
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Build the Kubernetes that tests run against, unless it is there, and say where it is
    BuildKubernetes {
        #[command(flatten)]
        setup: Setup,
        /// With what a real node runs: kubelet, kube-proxy and the scheduler
        #[arg(long)]
        full: bool,
    },
    /// Build the Helm that renders and tests the chart, unless it is there, and say where it is
    BuildHelm {
        #[command(flatten)]
        setup: Setup,
    },
    /// Write deploy/weir.yaml, the chart's objects for who has no Helm
    Manifests {
        #[command(flatten)]
        setup: Setup,
    },
    /// Build the container image, an OCI archive; the same sources and compiler make the same bytes
    Image {
        #[command(flatten)]
        setup: Setup,
        /// Make only what is in it, for another builder: its root folder
        #[arg(long)]
        root: bool,
    },
    /// Write the definitions of weir's objects in Kubernetes, deploy/crds, from the Rust types
    Crds,
    /// Check who may know whom in the sources, and that deploy/crds is as the Rust types say
    Check,
    /// Say what this machine has and what is missing
    Doctor {
        /// How to print it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[derive(clap::Args)]
struct Setup {
    /// Fail where something is missing, instead of installing it
    #[arg(long)]
    no_install: bool,
}

/// A program of lb-tests, built and run with the weir binary beside it.
#[derive(clap::Args)]
struct Run {
    #[command(flatten)]
    setup: Setup,
    /// Handed to the program; `--help` after `--` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

fn main() -> Result<()> {
    if let Some(why_not) = rustc::become_it() {
        return Err(why_not).context("start the compiler of the BPF programs");
    }
    let args = Args::parse();
    let workspace = Workspace::find()?;
    match args.command {
        Task::Demo(run) => run_program(&workspace, "demo", &run),
        Task::Cluster(run) => cluster::run(&workspace, &run.setup, &run.args),
        Task::Test { setup, only } => suite::run(&workspace, !setup.no_install, &only),
        Task::Bench(mut run) => {
            run.args = revision::resolve(&workspace, &run.args, !run.setup.no_install)?;
            run_program(&workspace, "bench", &run)
        }
        Task::Build { setup, debug, next } => {
            let profile = if debug { "debug" } else { "release" };
            build_bpf(&workspace, &setup, None)?;
            if next {
                weir::build_next(&workspace, profile)?;
            }
            weir::build(&workspace, profile)
        }
        Task::BuildBpf { setup, out } => build_bpf(&workspace, &setup, out),
        Task::BuildKubernetes { setup, full } => {
            let parts = if full { Parts::WithNodes } else { Parts::ControlPlane };
            setup::ensure(&setup::to_build_kubernetes(&workspace, parts)?, !setup.no_install)?;
            println!("{}", Kubernetes::of(&workspace, parts)?.binary().display());
            Ok(())
        }
        Task::BuildHelm { setup } => {
            setup::ensure(&setup::to_build_helm(&workspace)?, !setup.no_install)?;
            println!("{}", Helm::of(&workspace)?.binary().display());
            Ok(())
        }
        Task::Manifests { setup } => {
            setup::ensure(&setup::to_build_helm(&workspace)?, !setup.no_install)?;
            helm::write_manifests(&workspace)
        }
        Task::Image { setup, root } => {
            build_bpf(&workspace, &setup, None)?;
            if !root {
                return image::build(&workspace)?.print();
            }
            println!("{}", image::build_root(&workspace)?.display());
            Ok(())
        }
        Task::Crds => crds::write(&workspace),
        Task::Check => {
            check::run(&workspace)?;
            crds::check(&workspace)
        }
        Task::Doctor { output } => doctor::run(&workspace, matches!(output, Output::Json)),
    }
}

fn build_bpf(workspace: &Workspace, setup: &Setup, out: Option<PathBuf>) -> Result<()> {
    let install = !setup.no_install;
    setup::ensure(&setup::to_build(), install)?;
    let out = match out {
        Some(out) => std::path::absolute(out).context("find the current directory")?,
        None => workspace.bpf_object(),
    };
    let options = bpf::Options { install, ..Default::default() };
    bpf::build(&workspace.root, &workspace.bpf_work(), &out, options)
}

/// The bench that upgrades agents.
const CHURN: &str = "churn";
/// The one that needs a Kubernetes.
const KUBERNETES: &str = "kubernetes";

fn run_program(workspace: &Workspace, program: &str, run: &Run) -> Result<()> {
    setup::ensure(&setup::to_run(), !run.setup.no_install)?;
    build_bpf(workspace, &run.setup, None)?;
    let mut cargo = workspace.cargo();
    if run.args.first().is_some_and(|name| name == CHURN) {
        cargo.env(weir::NEXT, weir::build_next(workspace, "release")?);
    }
    if run.args.first().is_some_and(|name| name == KUBERNETES) {
        setup::ensure(
            &setup::to_build_kubernetes(workspace, Parts::ControlPlane)?,
            !run.setup.no_install,
        )?;
        cargo.env(kubernetes::BINARY, Kubernetes::of(workspace, Parts::ControlPlane)?.binary());
    }
    weir::build(workspace, "release")?;
    cargo
        .args(["run", "--quiet", "--release", "--package=lb-tests", "--bin", program, "--"])
        .args(&run.args)
        .env(weir::PRODUCT, workspace.weir("release"));
    setup::run_as_root(&mut cargo)?;
    cargo.run()
}
