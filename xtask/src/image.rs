//! `image`: the container image, by no container engine: a static binary, one layer, an OCI archive.
//!
//! The same sources, compilers and `SOURCE_DATE_EPOCH` (0 unless set) make the same bytes, wherever the tree lies. So nothing
//! of the machine gets in: no path, no time, no owner, no order of a folder.

use std::env::{self, consts::ARCH};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::process::CommandExt as _;
use crate::workspace::{Workspace, cargo_home};

/// Where the binary is in the image.
const BINARY: &str = "usr/bin/weir";

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Builds the binary of an image; the BPF object must be there. Returns the image's root folder.
pub fn build_root(workspace: &Workspace) -> Result<PathBuf> {
    let target = format!("{ARCH}-unknown-linux-gnu");
    workspace
        .cargo()
        .args(["build", "--locked", "--release", "--package=weir", "--bin=weir"])
        .arg(format!("--target={target}"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags(workspace)?.join("\u{1f}"))
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("WEIR_BPF_OBJECT", workspace.bpf_object())
        .run_quietly()?;
    let built = workspace.target.join(target).join("release/weir");
    let root = work(workspace).join("root");
    let binary = root.join(BINARY);
    let folder = binary.parent().context("the binary is in no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    fs::copy(&built, &binary).with_context(|| format!("copy {}", built.display()))?;
    Ok(root)
}

/// An archive of the image.
pub struct Archive {
    pub path: PathBuf,
    /// The binary in it.
    pub binary: PathBuf,
    /// Of the image: by which registries know it.
    digest: String,
}

/// Builds the image; the BPF object must be there.
pub fn build(workspace: &Workspace) -> Result<Archive> {
    let root = build_root(workspace)?;
    let epoch = env::var("SOURCE_DATE_EPOCH").unwrap_or_else(|_| "0".into());
    let folder = work(workspace).join("oci");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    let version = env!("CARGO_PKG_VERSION");
    let manifest = lay_out(&folder, &root, &epoch, version)?;
    let path = work(workspace).join(format!("weir-{version}-{}.tar", architecture()?));
    tar(&folder, &epoch, &path)?;
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    Ok(Archive { path, binary: root.join(BINARY), digest })
}

impl Archive {
    /// Says what it is.
    pub fn print(&self) -> Result<()> {
        println!("{}", self.path.display());
        println!("binary   {:>9} bytes", size(&self.binary)?);
        println!("archive  {:>9} bytes, sha256:{}", size(&self.path)?, sha256(&self.path)?);
        println!("image    {}", self.digest);
        Ok(())
    }
}

fn work(workspace: &Workspace) -> PathBuf {
    workspace.target.join("image")
}

/// A binary that needs no file beside it, and does not say where it was built.
fn flags(workspace: &Workspace) -> Result<Vec<String>> {
    let rustc = || Command::new("rustc");
    let version = rustc().current_dir(&workspace.root).arg("-vV").stdout_of()?;
    let commit = version.lines().find_map(|line| line.strip_prefix("commit-hash: "));
    let commit = commit.context("rustc does not say which commit it is of")?;
    let sysroot = rustc().current_dir(&workspace.root).arg("--print=sysroot").stdout_of()?;
    // Where its sources are installed the compiler names them, else where they were when it was built.
    let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    Ok(vec![
        "-Ctarget-feature=+crt-static".into(),
        // It would tell of the debug information that is stripped later.
        "-Clink-arg=-Wl,--build-id=none".into(),
        // Of several that match the last counts.
        remap(&cargo_home()?, "/cargo"),
        remap(&library, &format!("/rustc/{commit}")),
        remap(&workspace.root, "/weir"),
        remap(&workspace.target, "/target"),
    ])
}

/// Makes the folder of an image (the image layout of the OCI's specification, 1.0). Returns the manifest's descriptor.
fn lay_out(folder: &Path, root: &Path, epoch: &str, version: &str) -> Result<Value> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("make {}", blobs.display()))?;
    let layer = folder.with_extension("layer");
    tar(root, epoch, &layer)?;
    let layer = put(&blobs, &layer, LAYER)?;
    let created = Command::new("date")
        .args(["--utc", &format!("--date=@{epoch}"), "+%Y-%m-%dT%H:%M:%SZ"])
        .stdout_of()?;
    let config = json!({
        "architecture": architecture()?,
        "os": "linux",
        "created": created.trim(),
        "config": {"Entrypoint": [format!("/{BINARY}")], "Env": ["PATH=/usr/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = put_json(&blobs, &config, CONFIG)?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
        "annotations": {"org.opencontainers.image.title": "weir", "org.opencontainers.image.version": version},
    });
    let mut manifest = put_json(&blobs, &manifest, MANIFEST)?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": version});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]});
    for (name, value) in
        [("index.json", &index), ("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))]
    {
        let path = folder.join(name);
        fs::write(&path, value.to_string()).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(manifest)
}

fn put_json(blobs: &Path, value: &Value, kind: &str) -> Result<Value> {
    let path = blobs.join("new");
    fs::write(&path, value.to_string()).with_context(|| format!("write {}", path.display()))?;
    put(blobs, &path, kind)
}

/// Moves a file to where its digest is its name. Returns its descriptor.
fn put(blobs: &Path, file: &Path, kind: &str) -> Result<Value> {
    let (digest, size) = (sha256(file)?, size(file)?);
    fs::rename(file, blobs.join(&digest)).with_context(|| format!("move {}", file.display()))?;
    Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": size}))
}

/// What a folder holds, without a word of where, when and by whom it was made.
fn tar(folder: &Path, epoch: &str, to: &Path) -> Result<()> {
    let names = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut names: Vec<_> = names.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    names.sort();
    Command::new("tar")
        .args(["--create", "--format=ustar", "--sort=name", "--mode=u=rwX,go=rX"])
        .args(["--owner=0", "--group=0", "--numeric-owner"])
        .arg(format!("--mtime=@{epoch}"))
        .arg("--file")
        .arg(to)
        .arg("--directory")
        .arg(folder)
        .args(names)
        .run_quietly()
}

fn sha256(file: &Path) -> Result<String> {
    let said = Command::new("sha256sum").arg("--").arg(file).stdout_of()?;
    let digest = said.split_whitespace().next().filter(|digest| digest.len() == 64);
    Ok(digest.with_context(|| format!("sha256sum says {said:?}"))?.into())
}

fn size(file: &Path) -> Result<u64> {
    Ok(fs::metadata(file).with_context(|| format!("look at {}", file.display()))?.len())
}

/// As images name it.
fn architecture() -> Result<&'static str> {
    match ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image is made for {other}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn root(dir: &Path, mode: u32) -> PathBuf {
        let root = dir.join("root");
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join(BINARY), "binary").unwrap();
        fs::set_permissions(root.join(BINARY), fs::Permissions::from_mode(mode)).unwrap();
        root
    }

    #[test]
    fn place_and_time_and_umask_leave_no_trace() {
        let image = |mode| {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("oci");
            lay_out(&folder, &root(dir.path(), mode), "0", "1.2.3").unwrap();
            tar(&folder, "0", &dir.path().join("image.tar")).unwrap();
            fs::read(dir.path().join("image.tar")).unwrap()
        };
        assert_eq!(image(0o755), image(0o700));
    }

    #[test]
    fn every_blob_is_named_and_described_by_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("oci");
        let manifest = lay_out(&folder, &root(dir.path(), 0o755), "86400", "1.2.3").unwrap();
        let read = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let path = folder.join("blobs/sha256").join(digest);
            assert_eq!(sha256(&path).unwrap(), digest);
            assert_eq!(size(&path).unwrap(), descriptor["size"].as_u64().unwrap());
            fs::read(path).unwrap()
        };
        let manifest: Value = serde_json::from_slice(&read(&manifest)).unwrap();
        let config: Value = serde_json::from_slice(&read(&manifest["config"])).unwrap();
        read(&manifest["layers"][0]);
        assert_eq!(config["created"], "1970-01-02T00:00:00Z");
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        assert_eq!(fs::read_dir(folder.join("blobs/sha256")).unwrap().count(), 3);
    }
}
