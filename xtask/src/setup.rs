//! Installs what a task needs and the machine lacks: Debian packages, rustup components, bpf-linker, Kubernetes, Helm.
//!
//! Says what it installs, touches nothing that is there, and with `install` false only says what is
//! missing. Never adds package sources and never replaces a tool-chain.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::helm::Helm;
use crate::kubernetes::{Kubernetes, Parts};
use crate::process::{CommandExt as _, has_program, is_root};
use crate::toolchain;
use crate::workspace::Workspace;

/// One thing that a task needs.
pub struct Need {
    /// What it is, for people.
    pub what: String,
    /// What it is for.
    pub why: &'static str,
    pub met: bool,
    pub source: Source,
}

/// Where a missing thing comes from.
pub enum Source {
    /// Debian packages.
    Apt(Vec<String>),
    /// A component of rustup's tool-chain.
    Rustup(&'static str),
    /// Built by cargo into the user's cache.
    BpfLinker,
    /// Built by Go into the user's cache.
    Kubernetes(Kubernetes),
    /// Likewise.
    Helm(Helm),
}

impl Need {
    fn apt(what: &str, why: &'static str, met: bool, packages: &[&str]) -> Self {
        let packages = packages.iter().map(|&package| package.into()).collect();
        Self { what: what.into(), why, met, source: Source::Apt(packages) }
    }

    /// How a person would get it.
    pub fn fix(&self) -> String {
        match &self.source {
            Source::Apt(packages) => format!("apt-get install {}", packages.join(" ")),
            Source::Rustup(component) => format!("rustup component add {component}"),
            Source::BpfLinker => "cargo xtask build-bpf builds it".into(),
            Source::Kubernetes(_) => "cargo xtask build-kubernetes builds it".into(),
            Source::Helm(_) => "cargo xtask build-helm builds it".into(),
        }
    }
}

/// What building the BPF object needs.
pub fn to_build() -> Vec<Need> {
    let found = toolchain::probe();
    let llvm = format!("llvm-{}", toolchain::LLVM);
    let llvm_dev = format!("{llvm}-dev");
    vec![
        Need::apt(
            "rustc with the sources of core (rustup's nightly with rust-src, or the distribution's)",
            "compiles the BPF programs",
            toolchain::choose(&found).is_some(),
            &["rustc-web", "cargo-web", "rust-web-src"],
        ),
        Need::apt(
            &format!("LLVM {} with headers", toolchain::LLVM),
            "bpf-linker is built against it",
            toolchain::has_llvm(),
            &[&llvm_dev, &llvm],
        ),
        Need {
            what: format!("bpf-linker {}", toolchain::BPF_LINKER),
            why: "links the BPF programs",
            met: toolchain::bpf_linker_version().is_some(),
            source: Source::BpfLinker,
        },
    ]
}

/// What the lab, the demo and the agent call at run time.
pub fn to_run() -> Vec<Need> {
    vec![
        Need::apt("ip", "shows and changes what the lab set up", has_program("ip"), &["iproute2"]),
        Need::apt(
            "nft",
            "is the balanced entry in the demo's first act",
            has_program("nft"),
            &["nftables"],
        ),
    ]
}

/// What tests against a real API server need. Go is not among it once they are built.
pub fn to_build_kubernetes(workspace: &Workspace, parts: Parts) -> Result<Vec<Need>> {
    let kubernetes = Kubernetes::of(workspace, parts)?;
    let built = kubernetes.is_built();
    let go = go(&kubernetes.go, "builds Kubernetes", built);
    let what = format!("Kubernetes {}", kubernetes.version);
    let why = "is what tests of Kubernetes run against";
    Ok(vec![go, Need { what, why, met: built, source: Source::Kubernetes(kubernetes) }])
}

/// What the chart is rendered and tested with. Go is not among it once it is built.
pub fn to_build_helm(workspace: &Workspace) -> Result<Vec<Need>> {
    let helm = Helm::of(workspace)?;
    let built = helm.is_built();
    let go = go(&helm.go, "builds Helm", built);
    let what = format!("Helm {}", helm.version);
    let why = "renders the chart, and installs it in tests";
    Ok(vec![go, Need { what, why, met: built, source: Source::Helm(helm) }])
}

fn go(version: &str, why: &'static str, built: bool) -> Need {
    let what = format!("Go ({version}, or any that can fetch it)");
    Need::apt(&what, why, built || has_program("go"), &["golang-go"])
}

/// What only the test layers need.
pub fn to_lint(workspace: &Workspace) -> Vec<Need> {
    let component = |what: &'static str, verb: &str| Need {
        what: format!("cargo {verb}"),
        why: "checks the sources",
        met: workspace.cargo().args([verb, "--version"]).stdout_of().is_ok(),
        source: Source::Rustup(what),
    };
    let mut needs = vec![component("rustfmt", "fmt"), component("clippy", "clippy")];
    // A nightly's clippy is its owner's choice; the distribution's comes with the compiler.
    let found = toolchain::probe();
    let chosen = toolchain::choose(&found);
    if chosen.is_none_or(|chosen| chosen.needs_bootstrap) {
        needs.push(Need::apt(
            "clippy of the distribution's tool-chain",
            "checks the BPF programs",
            chosen.is_some_and(|chosen| chosen.has_clippy),
            &["rust-web-clippy"],
        ));
    }
    needs
}

/// Installs what is not met; with `install` false that is an error that names everything.
pub fn ensure(needs: &[Need], install: bool) -> Result<()> {
    let missing: Vec<_> = needs.iter().filter(|need| !need.met).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !install {
        bail!("missing, and --no-install was given:\n{}", list(&missing));
    }
    let packages = packages_of(&missing);
    if !packages.is_empty() {
        if !has_program("apt-get") {
            bail!(
                "this is no Debian; install by hand what these packages hold there:\n{}",
                list(&missing)
            );
        }
        eprintln!("installing Debian packages: {}", packages.join(" "));
        apt_install(&packages).with_context(|| format!("install {}", packages.join(" ")))?;
    }
    for need in &missing {
        match &need.source {
            Source::Apt(_) => {}
            Source::Rustup(component) => {
                eprintln!("installing the rustup component {component}");
                Command::new("rustup").args(["component", "add", component]).run_quietly()?;
            }
            Source::BpfLinker => {
                toolchain::ensure_bpf_linker(true)?;
            }
            Source::Kubernetes(kubernetes) => {
                kubernetes.ensure(true)?;
            }
            Source::Helm(helm) => {
                helm.ensure(true)?;
            }
        }
    }
    Ok(())
}

/// Lets `command`, a cargo command that runs a program, run that program as root.
pub fn run_as_root(command: &mut Command) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    if Command::new("sudo").args(["-n", "true"]).stdout_of().is_err() {
        bail!("namespaces and BPF need root: run this as root, or where sudo asks for no password");
    }
    let version = Command::new("rustc").arg("-vV").stdout_of()?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc names no host")?;
    let runner = format!("CARGO_TARGET_{}_RUNNER", host.to_uppercase().replace(['-', '.'], "_"));
    command.env(runner, "sudo -n -E");
    Ok(())
}

fn packages_of<'a>(missing: &[&'a Need]) -> Vec<&'a str> {
    missing
        .iter()
        .filter_map(|need| match &need.source {
            Source::Apt(packages) => Some(packages.iter().map(String::as_str)),
            _ => None,
        })
        .flatten()
        .collect()
}

fn list(missing: &[&Need]) -> String {
    missing
        .iter()
        .map(|need| format!("  {}: {}; {}", need.what, need.why, need.fix()))
        .collect::<Vec<_>>()
        .join("\n")
}

/// A fresh machine has no package lists yet, an old one stale ones: then they are fetched, once.
fn apt_install(packages: &[&str]) -> Result<()> {
    let install =
        || apt_get(&["install", "--yes", "--no-install-recommends"]).args(packages).run_quietly();
    let has_lists = Path::new("/var/lib/apt/lists")
        .read_dir()
        .is_ok_and(|mut lists| lists.any(|entry| entry.is_ok_and(|e| e.path().is_file())));
    if has_lists && install().is_ok() {
        return Ok(());
    }
    apt_get(&["update"]).run_quietly()?;
    install()
}

fn apt_get(args: &[&str]) -> Command {
    let mut command = if is_root() {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("apt-get");
        sudo
    };
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(met: bool) -> Need {
        Need::apt("a tool", "does a thing", met, &["tool-package"])
    }

    #[test]
    fn what_is_there_is_not_installed() {
        ensure(&[need(true)], true).unwrap();
        ensure(&[need(true)], false).unwrap();
    }

    #[test]
    fn refusal_names_what_is_missing_and_how_to_get_it() {
        let error = ensure(&[need(true), need(false)], false).unwrap_err().to_string();
        assert!(error.contains("a tool: does a thing; apt-get install tool-package"), "{error}");
    }

    #[test]
    fn only_what_is_missing_is_asked_of_apt() {
        let other = Need::apt("other", "does another", false, &["a", "b"]);
        assert_eq!(packages_of(&[&other]), ["a", "b"]);
    }
}
