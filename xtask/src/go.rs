//! What Go modules of this tree build, each binary once, into the user's cache.
//!
//! A module's go.mod names the version of Go. Any Go on the path will do: another version is fetched by it, as the module
//! that Go publishes its releases as. Never changes the machine's Go, its settings or its caches; what a build leaves, up to
//! 5 GB, is removed when it succeeds, and a build that was broken off goes on where it was.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::CommandExt as _;
use crate::workspace::tool_cache;

/// Has `build` make `binary`, of the tool cache, unless it is there. It gets a folder to work in and returns what it made.
pub fn build_once(
    binary: &Path,
    what: &str,
    cost: &str,
    build: impl FnOnce(&Path) -> Result<PathBuf>,
) -> Result<()> {
    let cache = tool_cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let name = binary.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = name.split('-').next().unwrap_or_default();
    // Another build would take the same cores and the same folder; it may even be of the same binary.
    let lock =
        File::create(cache.join(format!("{name}.lock"))).context("create the build's lock")?;
    lock.lock().with_context(|| format!("wait for another build of {name}"))?;
    if binary.is_file() {
        return Ok(());
    }
    eprintln!("building {what} into {} (once, {cost})", binary.display());
    let work = cache.join(format!("{name}.build"));
    fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let built = build(&work).with_context(|| format!("build {what}"))?;
    fs::rename(&built, binary).with_context(|| format!("put {what} in place"))?;
    fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))
}

/// The `go` of a version, such as `go1.26.8`.
pub fn toolchain(wanted: &str, work: &Path) -> Result<PathBuf> {
    let on_path = Path::new("go");
    let ask = command(on_path, work).args(["env", "GOVERSION", "GOOS", "GOARCH"]).stdout_of()?;
    let mut answer = ask.lines();
    let (Some(version), Some(os), Some(arch)) = (answer.next(), answer.next(), answer.next())
    else {
        bail!("go does not say what it is: {ask:?}");
    };
    if version == wanted {
        return Ok(on_path.into());
    }
    eprintln!("fetching {wanted} by {version}");
    let release = format!("golang.org/toolchain@v0.0.1-{wanted}.{os}-{arch}");
    let ask = command(on_path, work).args(["mod", "download", "-json", &release]).stdout_of()?;
    let answer: serde_json::Value = serde_json::from_str(&ask).context("read go's answer")?;
    let root = Path::new(answer["Dir"].as_str().context("go does not say where it put Go")?);
    unpack_go(root).with_context(|| format!("make {} usable", root.display()))?;
    Ok(root.join("bin/go"))
}

/// A module holds no executables and no go.mod below its root; Go's releases have both.
fn unpack_go(root: &Path) -> Result<()> {
    for pattern in ["bin", "pkg/tool"] {
        for file in files_below(&root.join(pattern))? {
            fs::set_permissions(&file, Permissions::from_mode(0o755))?;
        }
    }
    let (packed, unpacked) = (root.join("src/_go.mod"), root.join("src/go.mod"));
    if packed.is_file() {
        fs::copy(packed, unpacked)?;
    }
    ensure!(root.join("bin/go").is_file(), "there is no go in it");
    Ok(())
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// A go command that keeps all it fetches and makes below `work`, and is the one that it was called as.
pub fn command(go: &Path, work: &Path) -> Command {
    let mut command = Command::new(go);
    command
        .current_dir(work)
        .env("GOTOOLCHAIN", "local")
        .env("GOMODCACHE", work.join("modules"))
        .env("GOCACHE", work.join("cache"))
        // Else nobody could remove the modules again.
        .env("GOFLAGS", "-modcacherw")
        .env("CGO_ENABLED", "0")
        .env_remove("GOROOT");
    command
}

/// The first word behind `prefix` on the one line of a go.mod that starts with it.
pub fn word_after<'a>(text: &'a str, prefix: &str) -> Result<&'a str> {
    let rest = text.lines().find_map(|line| line.trim_start().strip_prefix(prefix));
    let word = rest.and_then(|rest| rest.split_whitespace().next());
    word.with_context(|| format!("go.mod has no line {prefix:?}"))
}
