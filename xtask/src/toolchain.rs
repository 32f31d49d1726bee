//! Finds what builds the BPF object: a Rust compiler that takes unstable flags and has the sources of
//! `core`, LLVM, and bpf-linker.
//!
//! The choice is a pure function of the probe ([`choose`]); nothing here installs Rust tool-chains.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::CommandExt as _;
use crate::workspace::tool_cache;

/// The LLVM that bpf-linker is built for; it reads the bitcode of any compiler that is not newer.
pub const LLVM: u32 = 22;
/// The version of bpf-linker that the programs are tested with.
pub const BPF_LINKER: &str = "0.13.0";

/// A compiler that might build the object, as found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Toolchain {
    /// For people: `nightly-…` or `distribution`.
    pub name: String,
    pub cargo: PathBuf,
    pub rustc: PathBuf,
    /// The first line of `rustc -vV`.
    pub version: String,
    /// Its LLVM's major version.
    pub llvm: u32,
    /// Where the sources of its library are, if they are.
    pub sources: PathBuf,
    /// The sources of `core` and their lock lie there.
    pub has_sources: bool,
    /// A stable compiler that must be told to take unstable flags.
    pub needs_bootstrap: bool,
    pub has_clippy: bool,
}

impl Toolchain {
    /// Why it cannot build the object; `None`: it can.
    pub fn refusal(&self) -> Option<String> {
        if self.llvm > LLVM {
            Some(format!("its LLVM {} is newer than bpf-linker's {LLVM}", self.llvm))
        } else if !self.has_sources {
            Some("it has no rust-src".into())
        } else {
            None
        }
    }

    /// A command of this tool-chain's cargo that no other tool-chain's variables lead astray.
    pub fn cargo(&self) -> Command {
        self.command(&self.cargo)
    }

    /// Its clippy, by its path: cargo would take the `cargo-clippy` of rustup, which comes first in
    /// most search paths.
    pub fn clippy(&self) -> Command {
        let mut command = self.command(&self.cargo.with_file_name("cargo-clippy"));
        command.env("CARGO", &self.cargo);
        command
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        clear_rust_variables(&mut command);
        command.env("RUSTC", &self.rustc);
        if self.needs_bootstrap {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    fn at(name: &str, bin: &Path, needs_bootstrap: bool) -> Option<Self> {
        let (cargo, rustc) = (bin.join("cargo"), bin.join("rustc"));
        if !cargo.is_file() || !rustc.is_file() {
            return None;
        }
        let ask = |args: &[&str]| {
            let mut command = Command::new(&rustc);
            clear_rust_variables(&mut command);
            command.args(args).stdout_of().ok()
        };
        let version = ask(&["-vV"])?;
        let sysroot = ask(&["--print=sysroot"])?;
        let sources = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
        let library = sources.join("library");
        Some(Self {
            name: name.into(),
            version: version.lines().next()?.into(),
            llvm: llvm_major(&version)?,
            has_sources: library.join("Cargo.lock").is_file()
                && library.join("core/src/lib.rs").is_file(),
            sources,
            needs_bootstrap,
            has_clippy: bin.join("cargo-clippy").is_file(),
            cargo,
            rustc,
        })
    }
}

/// Every tool-chain that is here, best first: rustup's nightlies, then the distribution's.
pub fn probe() -> Vec<Toolchain> {
    let nightlies =
        Command::new("rustup").args(["toolchain", "list"]).stdout_of().unwrap_or_default();
    let mut found: Vec<_> = nightlies
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .filter_map(|name| {
            let rustc = Command::new("rustup")
                .args(["which", "rustc", "--toolchain", name])
                .stdout_of()
                .ok()?;
            Toolchain::at(name, Path::new(rustc.trim()).parent()?, false)
        })
        .collect();
    found.extend(Toolchain::at("distribution", Path::new("/usr/bin"), true));
    found
}

/// The first that can build the object.
pub fn choose(found: &[Toolchain]) -> Option<&Toolchain> {
    found.iter().find(|toolchain| toolchain.refusal().is_none())
}

/// Where LLVM's headers, libraries and tools are: `LLVM_PREFIX`, or as Debian has it.
pub fn llvm_prefix() -> PathBuf {
    env::var_os("LLVM_PREFIX")
        .map(PathBuf::from)
        .unwrap_or_else(|| format!("/usr/lib/llvm-{LLVM}").into())
}

/// Whether bpf-linker can be built against the LLVM there, and objects stripped by it.
pub fn has_llvm() -> bool {
    let prefix = llvm_prefix();
    prefix.join("bin/llvm-strip").is_file() && prefix.join("include/llvm-c/Core.h").is_file()
}

/// Where bpf-linker is, or will be once built.
pub fn bpf_linker_path() -> Result<PathBuf> {
    Ok(tool_cache()?.join(format!("bpf-linker-{BPF_LINKER}/bin/bpf-linker")))
}

/// bpf-linker's answer to `--version`, if it is built and still runs.
pub fn bpf_linker_version() -> Option<String> {
    let version = Command::new(bpf_linker_path().ok()?).arg("--version").stdout_of().ok()?;
    let version = version.trim();
    version.ends_with(BPF_LINKER).then(|| version.to_owned())
}

/// Builds bpf-linker into the cache unless it is there; with `install` false that is refused.
pub fn ensure_bpf_linker(install: bool) -> Result<PathBuf> {
    let path = bpf_linker_path()?;
    if bpf_linker_version().is_some() {
        return Ok(path);
    }
    if !install {
        bail!("bpf-linker {BPF_LINKER} is missing at {}", path.display());
    }
    let root = path.ancestors().nth(2).context("the tool cache is the root directory")?;
    eprintln!("installing bpf-linker {BPF_LINKER} into {} (once, a minute or two)", root.display());
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{LLVM}")])
        .arg("--root")
        .arg(root)
        .env("LLVM_PREFIX", llvm_prefix())
        // Its build must not fill the tree's target directory.
        .env_remove("CARGO_TARGET_DIR")
        .current_dir("/")
        .run_quietly()
        .context("build bpf-linker")?;
    Ok(path)
}

fn llvm_major(version: &str) -> Option<u32> {
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

/// Rustup's proxies and `cargo run` leave variables that would make one tool-chain call another's parts.
fn clear_rust_variables(command: &mut Command) {
    let by_name = env::vars_os().map(|(name, _)| name).filter(|name| {
        let name = name.to_string_lossy();
        name.starts_with("RUST") || name == "LD_LIBRARY_PATH" || is_cargo_setting(&name)
    });
    for name in by_name.collect::<Vec<OsString>>() {
        command.env_remove(name);
    }
}

/// All of cargo's variables, except where it keeps its registry and how it reaches it.
fn is_cargo_setting(name: &str) -> bool {
    name == "CARGO"
        || name.starts_with("CARGO_")
            && name != "CARGO_HOME"
            && !["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toolchain(name: &str, llvm: u32, has_sources: bool) -> Toolchain {
        Toolchain {
            name: name.into(),
            cargo: "cargo".into(),
            rustc: "rustc".into(),
            version: "rustc 1.96.0".into(),
            llvm,
            sources: "/usr/lib/rustlib/src/rust".into(),
            has_sources,
            needs_bootstrap: false,
            has_clippy: false,
        }
    }

    #[test]
    fn nightly_with_sources_is_preferred_to_the_distribution() {
        let found = [toolchain("nightly", 22, true), toolchain("distribution", 22, true)];
        assert_eq!(choose(&found).unwrap().name, "nightly");
    }

    #[test]
    fn nightly_without_sources_gives_way() {
        let found = [toolchain("nightly", 22, false), toolchain("distribution", 22, true)];
        assert_eq!(choose(&found).unwrap().name, "distribution");
    }

    #[test]
    fn nightly_with_a_newer_llvm_gives_way() {
        let found = [toolchain("nightly", LLVM + 1, true), toolchain("distribution", 19, true)];
        assert_eq!(choose(&found).unwrap().name, "distribution");
    }

    #[test]
    fn nothing_fit_chooses_nothing() {
        assert_eq!(choose(&[]), None);
        assert_eq!(choose(&[toolchain("nightly", 22, false)]), None);
    }

    #[test]
    fn llvm_version_is_read_from_the_compilers_own_words() {
        assert_eq!(llvm_major("rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }

    #[test]
    fn only_the_registry_settings_of_cargo_survive() {
        for kept in
            ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_HTTP_PROXY", "CARGO_REGISTRIES_X_INDEX"]
        {
            assert!(!is_cargo_setting(kept), "{kept}");
        }
        for dropped in
            ["CARGO", "CARGO_TARGET_DIR", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"]
        {
            assert!(is_cargo_setting(dropped), "{dropped}");
        }
    }
}
