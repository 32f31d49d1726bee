//! Images as archives: the pods', with one file in it and made without any builder of images, and weir's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

/// Names the program that runs in pods, statically linked: `tests/src/bin/pod.rs`.
pub const POD: &str = "WEIR_POD_BIN";

/// Names the archive that `cargo xtask image` writes.
pub const WEIR: &str = "WEIR_IMAGE";

/// An image as an archive on the machine's disk.
pub struct Image {
    /// What containers call it, but for the tag.
    pub name: &'static str,
    pub path: PathBuf,
    /// Where the archive is, if it was made here. Dropping it removes it.
    _folder: Option<tempfile::TempDir>,
}

impl Image {
    /// What containers call [`Image::pods`].
    pub const PODS: &'static str = "weir.test/pod:1";

    /// weir's own, which [`WEIR`] names: `weir.test/weir` with the version that it says itself.
    pub fn weir() -> Result<Self> {
        let path = std::env::var_os(WEIR)
            .with_context(|| format!("{WEIR} does not name an archive of weir's image"))?;
        Ok(Self { name: "weir.test/weir", path: path.into(), _folder: None })
    }

    /// Packs the program that [`POD`] names as `/pod`, which every container of the image runs.
    pub fn pods() -> Result<Self> {
        let program = std::env::var_os(POD)
            .with_context(|| format!("{POD} does not name the pods' program"))?;
        let own = tempfile::tempdir()?;
        let folder = own.path();
        fs::create_dir(folder.join("root"))?;
        fs::copy(&program, folder.join("root/pod"))
            .with_context(|| format!("{POD}={program:?}"))?;
        let owner = ["--owner=0", "--group=0"];
        run(folder, "tar", &[&owner[..], &["-C", "root", "-cf", "layer.tar", "pod"]].concat())?;
        let sum = run(folder, "sha256sum", &["layer.tar"])?;
        let sum = sum.split(' ').next().context("sha256sum says nothing")?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Entrypoint": ["/pod"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
        });
        let manifest =
            json!([{"Config": "config.json", "RepoTags": [Self::PODS], "Layers": ["layer.tar"]}]);
        fs::write(folder.join("config.json"), config.to_string())?;
        fs::write(folder.join("manifest.json"), manifest.to_string())?;
        run(folder, "tar", &["-cf", "image.tar", "manifest.json", "config.json", "layer.tar"])?;
        Ok(Self { name: "weir.test/pod", path: folder.join("image.tar"), _folder: Some(own) })
    }
}

fn run(folder: &Path, program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).current_dir(folder).args(arguments).output();
    let output = output.with_context(|| format!("run {program}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {error}");
    Ok(String::from_utf8(output.stdout)?)
}
