//! `test`: all layers of tests, cheapest first, each with its time, and a table at the end.
//!
//! A layer that ran no test counts as skipped, and skipped is not passed: the suite then fails.

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::cargo_output::Counts;
use crate::helm::Helm;
use crate::kubernetes::{Kubernetes, Parts};
use crate::process::CommandExt as _;
use crate::workspace::Workspace;
use crate::{bpf, check, helm, kubernetes, setup, weir};

/// The layers, in the order in which they run.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Layer {
    /// Formatting of all sources
    Fmt,
    /// Who may know whom
    Rules,
    /// The BPF programs build without a warning
    Bpf,
    /// Clippy over everything, warnings denied
    Clippy,
    /// Unit and doc tests: neither root nor BPF needed
    Unit,
    /// Packets through the real programs by test-run: needs root
    Packet,
    /// Nodes, clients and routers as network namespaces: needs root
    Netns,
    /// Real API servers, etcd and controller managers in such namespaces: needs root
    Kube,
}

/// How a layer ended.
#[derive(Debug, Eq, PartialEq)]
enum Outcome {
    Passed,
    Failed(String),
    /// It should have run, and did not in full.
    Skipped(String),
    /// `--only` named others.
    NotAsked,
}

struct Row {
    layer: Layer,
    outcome: Outcome,
    counts: Counts,
    time: Duration,
}

/// Runs the layers in `only`, or all where it is empty; an error if one of them did not pass.
pub fn run(workspace: &Workspace, install: bool, only: &[Layer]) -> Result<()> {
    let mut needs = setup::to_build();
    needs.extend(setup::to_run());
    needs.extend(setup::to_lint(workspace));
    let asked = |layer: Layer| only.is_empty() || only.contains(&layer);
    if asked(Layer::Kube) {
        needs.extend(setup::to_build_kubernetes(workspace, Parts::ControlPlane)?);
        needs.extend(setup::to_build_helm(workspace)?);
    }
    setup::ensure(&needs, install)?;

    let rows: Vec<_> = Layer::value_variants()
        .iter()
        .map(|&layer| {
            if !asked(layer) {
                return Row::new(layer, Outcome::NotAsked, Counts::default(), Duration::ZERO);
            }
            eprintln!("== {layer}");
            let start = Instant::now();
            let mut counts = Counts::default();
            let outcome = run_layer(workspace, layer, &mut counts)
                .unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
            let row = Row::new(layer, outcome, counts, start.elapsed());
            eprintln!("== {row}");
            row
        })
        .collect();
    report(&rows)
}

fn run_layer(workspace: &Workspace, layer: Layer, counts: &mut Counts) -> Result<Outcome> {
    match layer {
        Layer::Fmt => {
            workspace.cargo().args(["fmt", "--all", "--check"]).run_quietly()?;
            let bpf = ["fmt", "--check", "--manifest-path=lb-ebpf/Cargo.toml"];
            workspace.cargo().args(bpf).run_quietly()?;
            Ok(Outcome::Passed)
        }
        Layer::Rules => check::run(workspace).map(|()| Outcome::Passed),
        Layer::Bpf => {
            build_bpf(workspace, true)?;
            Ok(Outcome::Passed)
        }
        Layer::Clippy => {
            let all = ["clippy", "--workspace", "--all-targets", "--", "-Dwarnings"];
            workspace.cargo().args(all).run_quietly()?;
            if !bpf::clippy(&workspace.root, &workspace.bpf_work())? {
                eprintln!("no clippy with the BPF tool-chain: the layer bpf denies its warnings");
            }
            Ok(Outcome::Passed)
        }
        Layer::Unit => {
            let defaults = cargo_test(workspace.cargo().args(["test", "--no-fail-fast"]), counts)?;
            let rig = ["test", "--no-fail-fast", "--package=lb-tests", "--lib"];
            let rig = cargo_test(workspace.cargo().args(rig), counts)?;
            Ok(verdict(defaults && rig, *counts))
        }
        Layer::Packet => kernel_tests(workspace, layer, "packet*", &[], counts),
        // Labs share the machine's cores, and their timing is part of what they test.
        Layer::Netns => {
            kernel_tests(workspace, layer, "netns*", &["--", "--test-threads=1"], counts)
        }
        Layer::Kube => kernel_tests(workspace, layer, "kube*", &["--", "--test-threads=1"], counts),
    }
}

/// Tests that load the object and run as root. Builds what they use first, so that a stale object or
/// binary is never what was tested.
fn kernel_tests(
    workspace: &Workspace,
    layer: Layer,
    files: &str,
    args: &[&str],
    counts: &mut Counts,
) -> Result<Outcome> {
    build_bpf(workspace, false)?;
    let mut command = workspace.cargo();
    if layer == Layer::Netns {
        command.env(weir::NEXT, weir::build_next(workspace, "debug")?);
    }
    if layer == Layer::Kube {
        command.env(kubernetes::BINARY, Kubernetes::of(workspace, Parts::ControlPlane)?.binary());
        command.env(helm::BINARY, Helm::of(workspace)?.binary());
    }
    weir::build(workspace, "debug")?;
    command
        .args(["test", "--no-fail-fast", "--package=lb-tests", "--test", files])
        .args(args)
        .env(weir::PRODUCT, workspace.weir("debug"));
    setup::run_as_root(&mut command)?;
    Ok(verdict(cargo_test(&mut command, counts)?, *counts))
}

fn build_bpf(workspace: &Workspace, deny_warnings: bool) -> Result<()> {
    let options = bpf::Options { deny_warnings, ..Default::default() };
    bpf::build(&workspace.root, &workspace.bpf_work(), &workspace.bpf_object(), options)
}

fn cargo_test(command: &mut Command, counts: &mut Counts) -> Result<bool> {
    command.run_with_lines(|line| {
        if let Some(result) = Counts::from_line(line) {
            *counts += result;
        }
    })
}

/// Green only if tests ran and all of them did.
fn verdict(succeeded: bool, counts: Counts) -> Outcome {
    match counts {
        Counts { failed: 1.., .. } => Outcome::Failed(format!("{} tests failed", counts.failed)),
        _ if !succeeded => Outcome::Failed("cargo test failed".into()),
        Counts { passed: 0, .. } => Outcome::Skipped("no test ran".into()),
        Counts { ignored: 1.., .. } => {
            Outcome::Skipped(format!("{} tests ignored", counts.ignored))
        }
        _ => Outcome::Passed,
    }
}

/// Prints the table and, alone on the last line, the sum of what ran.
fn report(rows: &[Row]) -> Result<()> {
    println!();
    for row in rows {
        println!("{row}");
    }
    let mut total = Counts::default();
    for row in rows {
        total += row.counts;
    }
    let bad: Vec<_> = rows.iter().filter(|row| !row.is_green()).collect();
    // A layer may fail with no failed test: it does not compile, say. The sum must show that too.
    let failed_without_test = bad.iter().filter(|row| row.counts.failed == 0).count() as u64;
    println!("\n{} passed, {} failed", total.passed, total.failed + failed_without_test);
    if !bad.is_empty() {
        let names: Vec<_> = bad.iter().map(|row| row.layer.to_string()).collect();
        bail!("these layers did not pass: {}", names.join(", "));
    }
    Ok(())
}

impl Row {
    fn new(layer: Layer, outcome: Outcome, counts: Counts, time: Duration) -> Self {
        Self { layer, outcome, counts, time }
    }

    fn is_green(&self) -> bool {
        matches!(self.outcome, Outcome::Passed | Outcome::NotAsked)
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.to_possible_value();
        f.write_str(name.as_ref().map_or("", |name| name.get_name()))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, why) = match &self.outcome {
            Outcome::Passed => ("passed", ""),
            Outcome::Failed(why) => ("failed", why.as_str()),
            Outcome::Skipped(why) => ("skipped", why.as_str()),
            Outcome::NotAsked => ("not asked for", ""),
        };
        let layer = self.layer.to_string();
        write!(f, "{layer:<8} {word:<13} {:>7.1} s", self.time.as_secs_f64())?;
        if self.counts != Counts::default() {
            write!(f, "  {} passed, {} failed", self.counts.passed, self.counts.failed)?;
        }
        // The reason may be a whole story; the log above has it.
        match why.lines().next() {
            Some(why) => write!(f, "  {why}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(outcome: Outcome, failed: u64) -> Row {
        let counts = Counts { passed: 2, failed, ignored: 0 };
        Row::new(Layer::Packet, outcome, counts, Duration::ZERO)
    }

    #[test]
    fn layer_is_green_only_if_tests_ran_and_all_of_them_did() {
        let counts = |passed, failed, ignored| Counts { passed, failed, ignored };
        assert_eq!(verdict(true, counts(3, 0, 0)), Outcome::Passed);
        assert!(matches!(verdict(true, counts(0, 0, 0)), Outcome::Skipped(_)));
        assert!(matches!(verdict(true, counts(3, 0, 1)), Outcome::Skipped(_)));
        assert!(matches!(verdict(false, counts(3, 1, 0)), Outcome::Failed(_)));
        assert!(matches!(verdict(false, counts(0, 0, 0)), Outcome::Failed(_)));
        assert!(matches!(verdict(true, counts(3, 1, 0)), Outcome::Failed(_)));
    }

    #[test]
    fn suite_fails_on_a_failed_or_skipped_layer() {
        assert!(report(&[row(Outcome::Passed, 0), row(Outcome::Failed("x".into()), 1)]).is_err());
        assert!(report(&[row(Outcome::Passed, 0), row(Outcome::Skipped("x".into()), 0)]).is_err());
    }

    #[test]
    fn suite_passes_where_all_asked_for_did() {
        assert!(report(&[row(Outcome::Passed, 0), row(Outcome::NotAsked, 0)]).is_ok());
    }
}
