//! Builds the BPF object from a source tree, unless its inputs have not changed.
//!
//! Takes the tree as an argument, so that an earlier revision's object can be built beside today's.
//! Never installs anything but bpf-linker, and that only where the caller allows it.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::CommandExt as _;
use crate::rustc;
use crate::toolchain::{self, Toolchain};
use crate::workspace::{cargo_home, hash_files};

/// What the object depends on, below a source tree's root. The root's manifest is in it because
/// lb-common inherits its edition and dependencies from there.
const INPUTS: &[&str] = &[
    "Cargo.toml",
    "lb-common/Cargo.toml",
    "lb-common/src",
    "lb-ebpf/bench",
    "lb-ebpf/Cargo.lock",
    "lb-ebpf/Cargo.toml",
    "lb-ebpf/src",
];

/// v3 has 32-bit arithmetic and jumps; every kernel with BTF (5.4) runs it.
const BPF_CPU: &str = "v3";

/// How to build.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// bpf-linker may be built into the cache.
    pub install: bool,
    /// A warning is an error; the compiler is asked even if nothing changed.
    pub deny_warnings: bool,
    /// The programs of the next layout, without the bench's.
    pub next_layout: bool,
}

/// Builds the object of the tree at `source` into the file `out`, with intermediate files in `work`.
pub fn build(source: &Path, work: &Path, out: &Path, options: Options) -> Result<()> {
    let found = toolchain::probe();
    let Some(toolchain) = toolchain::choose(&found) else {
        bail!("no tool-chain builds the BPF programs: `cargo xtask doctor` says what is missing");
    };
    if !toolchain::has_llvm() {
        bail!(
            "LLVM {} with its headers is not at {}: `cargo xtask doctor` says how to get it",
            toolchain::LLVM,
            toolchain::llvm_prefix().display()
        );
    }
    let linker = toolchain::ensure_bpf_linker(options.install)?;

    let bench = (!options.next_layout).then(|| bench_object(out));
    let stamp_file = work.join(if options.next_layout { "weir-next.stamp" } else { "weir.stamp" });
    let stamp = stamp(source, toolchain, out)?;
    let is_fresh = out.is_file()
        && bench.as_ref().is_none_or(|bench| bench.is_file())
        && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp);
    if is_fresh && !options.deny_warnings {
        return Ok(());
    }
    eprintln!("building the BPF object with {} ({})", toolchain.name, toolchain.version);
    let linked = compile(source, work, toolchain, &linker, options)?;
    install(&linked.join("weir-bpf"), work, out)?;
    if let Some(bench) = bench {
        install(&linked.join("weir-bench"), work, &bench)?;
    }
    fs::write(&stamp_file, stamp).with_context(|| format!("write {}", stamp_file.display()))
}

/// Runs clippy over the BPF programs. False: the tool-chain that builds them has none.
pub fn clippy(source: &Path, work: &Path) -> Result<bool> {
    let found = toolchain::probe();
    let Some(toolchain) = toolchain::choose(&found).filter(|chosen| chosen.has_clippy) else {
        return Ok(false);
    };
    let linker = toolchain::bpf_linker_path()?;
    cargo(source, work, toolchain, &linker, "clippy")?.args(["--", "-Dwarnings"]).run_quietly()?;
    Ok(true)
}

fn compile(
    source: &Path,
    work: &Path,
    toolchain: &Toolchain,
    linker: &Path,
    options: Options,
) -> Result<PathBuf> {
    let mut command = cargo(source, work, toolchain, linker, "build")?;
    if options.next_layout {
        command.args(["--bin=weir-bpf", "--features=next-layout"]);
    }
    if options.deny_warnings {
        // Unlike -Dwarnings in the flags, this does not make cargo build everything anew.
        command.args(["-Zwarnings", "--config=build.warnings='deny'"]);
    }
    command.run_quietly().context("build the BPF programs")?;
    Ok(work.join("bpfel-unknown-none/release"))
}

fn cargo(
    source: &Path,
    work: &Path,
    toolchain: &Toolchain,
    linker: &Path,
    verb: &str,
) -> Result<Command> {
    let mut command = if verb == "clippy" { toolchain.clippy() } else { toolchain.cargo() };
    command
        .arg(verb)
        .args(["--release", "--locked", "-Zbuild-std=core", "--target=bpfel-unknown-none"])
        .current_dir(source.join("lb-ebpf"))
        .env("CARGO_TARGET_DIR", work)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(source, toolchain, linker)?.join("\u{1f}"));
    rustc::stand_in(&mut command)?;
    Ok(command)
}

/// The object must not depend on where things lie: its line numbers name files of the tree, of cargo and of the compiler.
fn flags(source: &Path, toolchain: &Toolchain, linker: &Path) -> Result<Vec<String>> {
    Ok(vec![
        format!("--cfg=bpf_target_arch=\"{ARCH}\""),
        format!("--remap-path-prefix={}=/cargo", cargo_home()?.display()),
        format!("--remap-path-prefix={}=/rustc", toolchain.sources.display()),
        format!("--remap-path-prefix={}=.", source.display()),
        format!("-Clinker={}", linker.display()),
        format!("-Ctarget-cpu={BPF_CPU}"),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        // Headers are not aligned; all machines that weir runs on read words at any address, and
        // the verifier lets them. Without this every word of a header is four byte loads.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".into(),
        // On the stack the verifier does insist on alignment, so stores must not be merged there.
        "-Clink-arg=--llvm-args=-combiner-store-merging=false".into(),
    ])
}

/// Beside the product's object: the programs that only `cargo xtask bench packet` loads.
fn bench_object(out: &Path) -> PathBuf {
    out.with_file_name("weir-bench.o")
}

/// Strips DWARF, which the kernel does not read (.BTF and .BTF.ext stay), and puts the object in place.
/// One that did not change keeps its time, so that nothing which embeds it is built again.
fn install(linked: &Path, work: &Path, out: &Path) -> Result<()> {
    let stripped = work.join(out.file_name().context("the object has no name")?);
    Command::new(toolchain::llvm_prefix().join("bin/llvm-strip"))
        .args(["-g", "-o"])
        .arg(&stripped)
        .arg(linked)
        .run_quietly()?;
    let object = fs::read(&stripped).with_context(|| format!("read {}", stripped.display()))?;
    if fs::read(out).is_ok_and(|old| old == object) {
        return Ok(());
    }
    if let Some(dir) = out.parent() {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    fs::write(out, object).with_context(|| format!("write {}", out.display()))
}

/// One line for each thing that the object depends on; equal stamps mean equal objects.
fn stamp(source: &Path, toolchain: &Toolchain, out: &Path) -> Result<String> {
    Ok(format!(
        "{}\nbpf-linker {} llvm-{}\ncrates named after themselves\n{}\n{}\nsources {:016x}\n",
        toolchain.version,
        toolchain::BPF_LINKER,
        toolchain::LLVM,
        flags(source, toolchain, Path::new("bpf-linker"))?.join(" "),
        out.display(),
        hash_files(source, INPUTS)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["lb-common/src", "lb-ebpf/bench", "lb-ebpf/src/deep"] {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        for file in [
            "Cargo.toml",
            "lb-common/Cargo.toml",
            "lb-common/src/lib.rs",
            "lb-ebpf/Cargo.lock",
            "lb-ebpf/Cargo.toml",
            "lb-ebpf/src/main.rs",
            "lb-ebpf/src/deep/part.rs",
        ] {
            fs::write(dir.path().join(file), file).unwrap();
        }
        dir
    }

    fn hash_inputs(tree: &Path) -> Result<u64> {
        hash_files(tree, INPUTS)
    }

    #[test]
    fn equal_trees_in_different_places_hash_alike() {
        let (a, b) = (tree(), tree());
        assert_eq!(hash_inputs(a.path()).unwrap(), hash_inputs(b.path()).unwrap());
    }

    #[test]
    fn every_change_of_an_input_changes_the_hash() {
        let before = hash_inputs(tree().path()).unwrap();
        for file in
            ["Cargo.toml", "lb-common/src/lib.rs", "lb-ebpf/Cargo.lock", "lb-ebpf/src/deep/part.rs"]
        {
            let changed = tree();
            fs::write(changed.path().join(file), "other").unwrap();
            assert_ne!(hash_inputs(changed.path()).unwrap(), before, "{file} changed");
        }
        let renamed = tree();
        let src = renamed.path().join("lb-ebpf/src");
        fs::rename(src.join("main.rs"), src.join("niam.rs")).unwrap();
        assert_ne!(hash_inputs(renamed.path()).unwrap(), before, "a file was renamed");
    }

    #[test]
    fn files_beside_the_inputs_do_not_count() {
        let dir = tree();
        let before = hash_inputs(dir.path()).unwrap();
        fs::write(dir.path().join("README.md"), "text").unwrap();
        assert_eq!(hash_inputs(dir.path()).unwrap(), before);
    }

    #[test]
    fn missing_input_is_an_error() {
        let dir = tree();
        fs::remove_file(dir.path().join("lb-ebpf/Cargo.lock")).unwrap();
        assert!(hash_inputs(dir.path()).is_err());
    }
}
