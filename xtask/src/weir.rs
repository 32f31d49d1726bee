//! Builds the weir binary: the product, and the build of the next layout that upgrades are tested with.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::bpf;
use crate::process::CommandExt as _;
use crate::workspace::Workspace;

/// Tells tests and benches where the product's binary is.
pub const PRODUCT: &str = "WEIR_BIN";
/// The same for the binary of the next layout.
pub const NEXT: &str = "WEIR_NEXT_BIN";

/// Builds the product's binary, with the BPF object that is there.
pub fn build(workspace: &Workspace, profile: &str) -> Result<()> {
    cargo_build(workspace, profile, &[])
}

/// Builds the programs and the binary of the next layout, and says where it is. Cargo puts it in the
/// product's place first, so the product must be built afterwards.
pub fn build_next(workspace: &Workspace, profile: &str) -> Result<PathBuf> {
    let options = bpf::Options { next_layout: true, ..Default::default() };
    bpf::build(&workspace.root, &workspace.bpf_work(), &workspace.next_bpf_object(), options)?;
    cargo_build(workspace, profile, &["--features=next-layout"])?;
    let (built, next) = (workspace.weir(profile), workspace.next_weir(profile));
    fs::rename(&built, &next).with_context(|| format!("rename {}", built.display()))?;
    Ok(next)
}

fn cargo_build(workspace: &Workspace, profile: &str, more: &[&str]) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--package=weir"]).args(more);
    if profile == "release" {
        cargo.arg("--release");
    }
    cargo.run_quietly()
}
