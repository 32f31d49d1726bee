//! Puts the BPF object where `dataplane::object` includes it.
//!
//! It takes `WEIR_BPF_OBJECT`, or else what `cargo xtask build-bpf` left in the target directory; where
//! there is none, an empty file, so that this package builds without the BPF tool-chain. With the
//! feature `next-layout` it takes that layout's object, which xtask leaves in a folder of its own.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=WEIR_BPF_OBJECT");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);

    let next = env::var_os("CARGO_FEATURE_NEXT_LAYOUT").is_some();
    let named = env::var_os("WEIR_BPF_OBJECT").filter(|_| !next);
    let object = if let Some(named) = named {
        println!("cargo::rerun-if-changed={}", Path::new(&named).display());
        fs::read(&named)
            .map_err(|e| format!("WEIR_BPF_OBJECT {}: {e}", Path::new(&named).display()))?
    } else {
        let dir = target_dir(&out_dir)?.join(if next { "bpf-next" } else { "bpf" });
        // Watching the directory notices an object that appears; a watched file that is missing would
        // make cargo build this package every time.
        fs::create_dir_all(&dir)?;
        println!("cargo::rerun-if-changed={}", dir.display());
        let file = dir.join("weir.o");
        if file.is_file() { fs::read(file)? } else { Vec::new() }
    };
    Ok(fs::write(out_dir.join("weir.o"), object)?)
}

/// The target directory is the ancestor of `OUT_DIR` that cargo tagged as a cache.
fn target_dir(out_dir: &Path) -> Result<&Path, Box<dyn Error>> {
    out_dir
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file())
        .ok_or_else(|| "no target directory above OUT_DIR: set WEIR_BPF_OBJECT".into())
}
