//! The BPF object of an earlier revision, for `cargo xtask bench packet --against REV`.
//!
//! The revision's whole tree is laid out apart and its own xtask builds the object, so its sources,
//! flags and pins count and not today's. Objects stay in the user's cache, by commit. Never touches
//! the tree that we run from, nor git's list of work trees.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::CommandExt as _;
use crate::toolchain;
use crate::workspace::{Workspace, cache};

const AGAINST: &str = "--against";

/// Arguments for the bench in which each `--against REV` names the revision's object instead.
pub fn resolve(workspace: &Workspace, args: &[String], install: bool) -> Result<Vec<String>> {
    let mut resolved = Vec::with_capacity(args.len());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let revision = match arg.strip_prefix(AGAINST) {
            Some("") => args.next().context("--against needs a revision")?,
            Some(rest) if rest.starts_with('=') => &rest[1..],
            _ => {
                resolved.push(arg.clone());
                continue;
            }
        };
        let object = object(workspace, revision, install)?;
        let path = object.to_str().context("the path of the cache is no text")?;
        resolved.extend([AGAINST.into(), path.to_owned()]);
    }
    Ok(resolved)
}

/// Path of the revision's object, `COMMIT.o`; built unless it is there from the compiler in use.
fn object(workspace: &Workspace, revision: &str, install: bool) -> Result<PathBuf> {
    let found = toolchain::probe();
    let Some(toolchain) = toolchain::choose(&found) else {
        bail!("no tool-chain builds the BPF programs: `cargo xtask doctor` says what is missing");
    };
    let commit = commit(workspace, revision)?;
    let dir = cache()?.join("revisions");
    let object = dir.join(format!("{commit}.o"));
    // Objects of two compilers would compare the compilers.
    let stamp = dir.join(format!("{commit}.compiler"));
    let is_fresh = fs::read_to_string(&stamp).is_ok_and(|version| version == toolchain.version);
    if !(is_fresh && object.is_file()) {
        eprintln!("building the BPF object of {revision} ({commit})");
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        build(workspace, &commit, &object, install).with_context(|| {
            format!("{revision} builds no BPF object here, so nothing can be compared with it")
        })?;
        fs::write(&stamp, &toolchain.version)
            .with_context(|| format!("write {}", stamp.display()))?;
    }
    Ok(object)
}

/// The commit that a revision names.
fn commit(workspace: &Workspace, revision: &str) -> Result<String> {
    let mut git = git(workspace);
    git.args(["rev-parse", "--verify", "--quiet", "--end-of-options"]);
    let commit = git.arg(format!("{revision}^{{commit}}")).stdout_of();
    Ok(commit.with_context(|| format!("git knows no revision {revision}"))?.trim().to_owned())
}

fn build(workspace: &Workspace, commit: &str, object: &Path, install: bool) -> Result<()> {
    // One place for all: paths are among the compiler's flags, and other flags build `core` anew.
    let tree = object.with_file_name("tree");
    // What an interrupted run may have left.
    let _ = fs::remove_dir_all(&tree);
    let built = lay_out(workspace, commit, &tree).and_then(|()| {
        let out = tree.join("weir.o");
        let mut cargo = workspace.cargo();
        cargo.current_dir(&tree);
        cargo.env("CARGO_TARGET_DIR", workspace.target.join("revisions"));
        cargo.env("CARGO_PROFILE_DEV_DEBUG", "0");
        cargo.args(["run", "--quiet", "--locked", "--package=xtask", "--", "build-bpf"]);
        if !install {
            cargo.arg("--no-install");
        }
        cargo.arg("--out").arg(&out).run_quietly()?;
        fs::rename(&out, object).with_context(|| format!("write {}", object.display()))
    });
    fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
    built
}

/// Writes all files of a commit into a new folder, by an index of their own.
fn lay_out(workspace: &Workspace, commit: &str, tree: &Path) -> Result<()> {
    fs::create_dir(tree).with_context(|| format!("create {}", tree.display()))?;
    let index = tree.join(".index");
    let mut read = git(workspace);
    read.env("GIT_INDEX_FILE", &index).args(["read-tree", commit]).run_quietly()?;
    let mut write = git(workspace);
    write.env("GIT_INDEX_FILE", &index).args(["checkout-index", "--all"]);
    write.arg(format!("--prefix={}/", tree.display())).run_quietly()?;
    ensure!(tree.join("xtask").is_dir(), "it has no xtask");
    Ok(())
}

fn git(workspace: &Workspace) -> Command {
    let mut git = Command::new("git");
    git.arg("-C").arg(&workspace.root);
    git
}
