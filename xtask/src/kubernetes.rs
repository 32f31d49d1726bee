//! Builds what `tests/kubernetes` describes: etcd, the API server, the controller manager and kubectl as one binary, in the
//! user's cache, once for each state of that folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::go;
use crate::process::CommandExt as _;
use crate::workspace::{Workspace, hash_files, tool_cache};

/// Tells tests where the binary is.
pub const BINARY: &str = "WEIR_KUBERNETES_BIN";
/// The Go module, below the tree's root.
const MODULE: &str = "tests/kubernetes";
/// The module that holds the variables which name the version.
const VERSION_PACKAGE: &str = "k8s.io/component-base/version";

/// What one binary holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Parts {
    /// etcd, kube-apiserver, kube-controller-manager, kubectl.
    ControlPlane,
    /// The same, and kubelet, kube-proxy and kube-scheduler.
    WithNodes,
}

/// One build of Kubernetes.
pub struct Kubernetes {
    module: PathBuf,
    parts: Parts,
    /// Of Kubernetes, such as `v1.37.2`.
    pub version: String,
    /// Of Go, such as `go1.26.8`.
    pub go: String,
    binary: PathBuf,
}

impl Kubernetes {
    /// What this tree asks for, built or not.
    pub fn of(workspace: &Workspace, parts: Parts) -> Result<Self> {
        let module = workspace.root.join(MODULE);
        let file = module.join("go.mod");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let version = go::word_after(&text, "require k8s.io/kubernetes ")?.to_owned();
        let go = go::word_after(&text, "toolchain ")?.to_owned();
        let hash = hash_files(&workspace.root, &[MODULE])?;
        let suffix = if parts == Parts::WithNodes { "-full" } else { "" };
        let binary = tool_cache()?.join(format!("kubernetes-{version}-{hash:016x}{suffix}"));
        Ok(Self { module, parts, version, go, binary })
    }

    /// Where the binary is, or will be once built.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    pub fn is_built(&self) -> bool {
        self.binary.is_file()
    }

    /// Builds the binary unless it is there; with `install` false that is refused.
    pub fn ensure(&self, install: bool) -> Result<&Path> {
        if self.is_built() {
            return Ok(&self.binary);
        }
        if !install {
            bail!("Kubernetes {} is missing at {}", self.version, self.binary.display());
        }
        let what = format!("Kubernetes {}", self.version);
        go::build_once(&self.binary, &what, "13 minutes of one core", |work| self.build(work))?;
        Ok(&self.binary)
    }

    fn build(&self, work: &Path) -> Result<PathBuf> {
        let go = go::toolchain(&self.go, work)?;
        let built = work.join("kubernetes");
        let mut command = go::command(&go, work);
        // With the same flags the binary is the same, byte by byte.
        command
            .current_dir(&self.module)
            .args(["build", "-trimpath", "-buildvcs=false", "-o"])
            .arg(&built);
        if self.parts == Parts::WithNodes {
            command.arg("-tags=full");
        }
        command.args(["-ldflags", &self.linker_flags()?, "."]).run_quietly()?;
        Ok(built)
    }

    /// Without these the servers would call themselves v0.0.0 and judge by it what is too old for them.
    fn linker_flags(&self) -> Result<String> {
        let mut numbers = self.version.trim_start_matches('v').split('.');
        let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
            bail!("{} is no version of Kubernetes", self.version);
        };
        let values = [
            ("gitVersion", self.version.as_str()),
            ("gitMajor", major),
            ("gitMinor", minor),
            ("gitTreeState", "clean"),
            ("buildDate", "1970-01-01T00:00:00Z"),
        ];
        let values = values.map(|(name, value)| format!(" -X {VERSION_PACKAGE}.{name}={value}"));
        Ok(format!("-s -w{}", values.concat()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(go_mod: &str) -> (tempfile::TempDir, Workspace) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(MODULE)).unwrap();
        fs::write(dir.path().join(MODULE).join("go.mod"), go_mod).unwrap();
        let workspace = Workspace { root: dir.path().into(), target: dir.path().join("target") };
        (dir, workspace)
    }

    const GO_MOD: &str =
        "module m\ngo 1.26.0\ntoolchain go1.26.8\nrequire k8s.io/kubernetes v1.37.2\n";

    #[test]
    fn go_mod_names_both_versions() {
        let (_dir, workspace) = tree(GO_MOD);
        let kubernetes = Kubernetes::of(&workspace, Parts::ControlPlane).unwrap();
        assert_eq!((&*kubernetes.version, &*kubernetes.go), ("v1.37.2", "go1.26.8"));
        let flags = kubernetes.linker_flags().unwrap();
        assert!(
            flags.contains(".gitVersion=v1.37.2 ") && flags.contains(".gitMinor=37 "),
            "{flags}"
        );
    }

    #[test]
    fn go_mod_without_a_version_is_an_error() {
        let (_dir, workspace) = tree("module m\n");
        assert!(Kubernetes::of(&workspace, Parts::ControlPlane).is_err());
    }

    #[test]
    fn every_change_of_the_module_asks_for_another_binary() {
        let (_a, before) = tree(GO_MOD);
        let (_b, after) = tree(GO_MOD);
        let binary = |workspace: &Workspace, parts| {
            Kubernetes::of(workspace, parts).unwrap().binary().to_owned()
        };
        assert_eq!(binary(&before, Parts::ControlPlane), binary(&after, Parts::ControlPlane));
        assert_ne!(binary(&before, Parts::ControlPlane), binary(&before, Parts::WithNodes));
        fs::write(after.root.join(MODULE).join("main.go"), "package main").unwrap();
        assert_ne!(binary(&before, Parts::ControlPlane), binary(&after, Parts::ControlPlane));
    }
}
