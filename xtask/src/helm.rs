//! Helm, of the version that `tests/helm` names, and what it makes of the chart: `deploy/weir.yaml`, for who has no Helm.
//!
//! Building it takes five minutes of one core, so what needs it is the layer of tests that needs Go anyway: that the file is
//! as the chart says is checked there, and not by `cargo xtask check`, which shall take seconds on a fresh machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::go;
use crate::process::CommandExt as _;
use crate::workspace::{Workspace, hash_files, tool_cache};

/// Tells tests where the binary is.
pub const BINARY: &str = "WEIR_HELM_BIN";
/// The Go module, below the tree's root.
const MODULE: &str = "tests/helm";
/// Helm's own program.
const PROGRAM: &str = "helm.sh/helm/v4/cmd/helm";
/// What the chart is rendered to, and with which values.
const MANIFESTS: &str = "deploy/weir.yaml";
const RENDER: [&str; 5] = [
    "template",
    "weir",
    "deploy/chart/weir",
    "--namespace=weir-system",
    "--values=deploy/plain-values.yaml",
];

/// One build of Helm.
pub struct Helm {
    module: PathBuf,
    /// Of Helm, such as `v4.3.1`.
    pub version: String,
    /// Of Go, such as `go1.26.8`.
    pub go: String,
    binary: PathBuf,
}

impl Helm {
    /// What this tree asks for, built or not.
    pub fn of(workspace: &Workspace) -> Result<Self> {
        let module = workspace.root.join(MODULE);
        let file = module.join("go.mod");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let version = go::word_after(&text, "helm.sh/helm/v4 ")?.to_owned();
        let go = go::word_after(&text, "toolchain ")?.to_owned();
        let hash = hash_files(&workspace.root, &[MODULE])?;
        let binary = tool_cache()?.join(format!("helm-{version}-{hash:016x}"));
        Ok(Self { module, version, go, binary })
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
            bail!("Helm {} is missing at {}", self.version, self.binary.display());
        }
        let what = format!("Helm {}", self.version);
        go::build_once(&self.binary, &what, "5 minutes of one core", |work| self.build(work))?;
        Ok(&self.binary)
    }

    fn build(&self, work: &Path) -> Result<PathBuf> {
        let built = work.join("helm");
        go::command(&go::toolchain(&self.go, work)?, work)
            .current_dir(&self.module)
            .args(["build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o"])
            .arg(&built)
            .arg(PROGRAM)
            .run_quietly()?;
        Ok(built)
    }
}

/// Writes the manifests. Helm must be there.
pub fn write_manifests(workspace: &Workspace) -> Result<()> {
    let helm = Helm::of(workspace)?;
    let mut render = Command::new(helm.binary());
    let rendered = render.args(RENDER).current_dir(&workspace.root).stdout_of()?;
    let text = format!(
        "# weir on every node, made of deploy/chart/weir by `cargo xtask manifests`; docs/install.md says how to install it.\n\
         # Edit the ConfigMap (uplinks!) and the image, and make the Secret first:\n\
         #   kubectl --namespace weir-system create secret generic weir --from-literal=seed=$(openssl rand -hex 32)\n\
         {rendered}"
    );
    let path = workspace.root.join(MANIFESTS);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}
