//! Where things are: the source tree, its target directory, the user's cache.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{self, CommandExt as _};

/// The tree that xtask was built from, and where its builds go.
pub struct Workspace {
    pub root: PathBuf,
    pub target: PathBuf,
}

impl Workspace {
    /// Asks cargo, so that `CARGO_TARGET_DIR` and configuration files count.
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask lies in no workspace")?
            .to_owned();
        let text =
            cargo(&root).args(["metadata", "--format-version=1", "--no-deps"]).stdout_of()?;
        let metadata: serde_json::Value =
            serde_json::from_str(&text).context("read cargo's metadata")?;
        let target = metadata["target_directory"]
            .as_str()
            .context("cargo's metadata names no target directory")?
            .into();
        Ok(Self { root, target })
    }

    /// A cargo command for this tree, by the tool-chain that runs xtask.
    pub fn cargo(&self) -> Command {
        cargo(&self.root)
    }

    /// The BPF object that lb-userspace embeds.
    pub fn bpf_object(&self) -> PathBuf {
        self.target.join("bpf/weir.o")
    }

    /// The same for the build of the next layout.
    pub fn next_bpf_object(&self) -> PathBuf {
        self.target.join("bpf-next/weir.o")
    }

    /// Where the BPF programs' own builds go.
    pub fn bpf_work(&self) -> PathBuf {
        self.target.join("bpf-build")
    }

    /// The `weir` binary of a profile's directory, `debug` or `release`.
    pub fn weir(&self, profile: &str) -> PathBuf {
        self.target.join(profile).join("weir")
    }

    /// The same of the next layout.
    pub fn next_weir(&self, profile: &str) -> PathBuf {
        self.target.join(profile).join("weir-next")
    }
}

/// Tools that are slow to build live here, outside of any tree.
pub fn tool_cache() -> Result<PathBuf> {
    Ok(cache()?.join("tools"))
}

/// What outlives the target directory.
pub fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => env::home_dir().context("neither XDG_CACHE_HOME nor HOME is set")?.join(".cache"),
    };
    Ok(base.join("weir"))
}

/// Cargo's own folder, with the sources of what comes from registries.
pub fn cargo_home() -> Result<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(env::home_dir()?.join(".cargo")));
    home.context("neither CARGO_HOME nor HOME is set")
}

/// Hash over names and contents of files and of all files in folders, in a fixed order; `inputs` are below `source`.
pub fn hash_files(source: &Path, inputs: &[&str]) -> Result<u64> {
    let mut files = Vec::new();
    for input in inputs {
        list_files(&source.join(input), &mut files)?;
    }
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        let name = file.strip_prefix(source).unwrap_or(&file).as_os_str();
        let text = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        for part in [name.as_encoded_bytes(), &text] {
            // Lengths keep ("ab", "c") and ("a", "bc") apart.
            hasher.write_usize(part.len());
            hasher.write(part);
        }
    }
    Ok(hasher.finish())
}

fn list_files(path: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        into.push(path.to_owned());
        return Ok(());
    }
    let entries = fs::read_dir(path).with_context(|| format!("list {}", path.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", path.display()))?;
        list_files(&entry.path(), into)?;
    }
    Ok(())
}

fn cargo(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    process::forget_package(&mut command);
    command
}
