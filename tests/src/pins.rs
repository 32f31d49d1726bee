//! A BPF file system that nobody else sees, for maps that must not stay.

use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::maps::MapData;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use tempfile::TempDir;

/// Mounted for the thread that made it. Its maps go with the last of thread, value and handles,
/// also when the process is killed.
pub struct Pins {
    dir: TempDir,
}

impl Pins {
    /// Moves the calling thread into a mount namespace of its own. Needs root.
    pub fn private() -> Result<Self> {
        let dir = tempfile::tempdir().context("make a folder for pins")?;
        unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace; run it as root")?;
        let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        mount(none, "/", none, private, none).context("keep mounts private")?;
        mount(Some("bpf"), dir.path(), Some("bpf"), MsFlags::empty(), none)
            .context("mount a BPF file system")?;
        Ok(Self { dir })
    }

    /// A pin folder as an agent is given one.
    pub fn dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // The folder below is removed next. What fails here ends with the thread's namespace.
        let _ = nix::mount::umount2(self.dir.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Bytes that the kernel accounts for a pinned map.
pub fn map_bytes(pin: &Path) -> Result<u64> {
    let map = MapData::from_pin(pin).with_context(|| format!("open {}", pin.display()))?;
    accounted(&map).with_context(|| format!("size of {}", pin.display()))
}

/// Bytes that the kernel accounts for a map.
pub fn accounted(map: &MapData) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let memlock = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    let bytes = memlock.and_then(|bytes| bytes.trim().parse().ok());
    bytes.with_context(|| format!("{path} has no line memlock"))
}
