//! A cgroup of its own for each host, which the host sees as the root of cgroup v2.
//!
//! So what an agent puts on "the root" meets this host's clients only. Nobody is in it who did not join; a cgroup that a
//! killed process left is removed by the next one.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    mount::{MsFlags, mount},
    unistd::{UnlinkatFlags, gettid, unlinkat},
};

/// Before the names of all cgroups of labs.
const PREFIX: &str = "weir-lab-";
/// A thread that has ended leaves its cgroup a moment later.
const LEAVE_WAIT: Duration = Duration::from_millis(500);
const LEAVE_STEP: Duration = Duration::from_millis(5);

/// A cgroup. Dropping it removes it.
pub struct Cgroup {
    /// Where it is made.
    parent: OwnedFd,
    name: String,
}

impl Cgroup {
    /// Makes a cgroup below this process's own, and mounts it at `place` as the whole of cgroup v2. `place` is where the
    /// real one is mounted for the calling thread alone.
    pub fn mount(place: &Path) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        static CLEAN: Once = Once::new();
        let parent = place.join(own()?.trim_start_matches('/'));
        CLEAN.call_once(|| forget_the_dead(&parent));
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let path = parent.join(&name);
        fs::create_dir(&path).with_context(|| format!("make cgroup {}", path.display()))?;
        let made = Self { parent: File::open(&parent)?.into(), name };
        mount(Some(&path), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .context("show the host its own cgroup")?;
        Ok(made)
    }

    /// Moves the calling thread into the cgroup, with what it opens from now on: a socket belongs to the cgroup of the
    /// thread that made it.
    ///
    /// From then on only threads of this process can be in it, no process of its own.
    pub fn join(&self) -> Result<()> {
        let here = PathBuf::from(format!("/proc/self/fd/{}", raw(&self.parent))).join(&self.name);
        let kind = here.join("cgroup.type");
        if fs::read_to_string(&kind)?.trim() != "threaded" {
            fs::write(&kind, "threaded").context("have the cgroup hold threads")?;
        }
        fs::write(here.join("cgroup.threads"), gettid().to_string()).context("join the cgroup")
    }

    fn remove(&self) -> io::Result<()> {
        Ok(unlinkat(&self.parent, self.name.as_str(), UnlinkatFlags::RemoveDir)?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let steps = LEAVE_WAIT.as_millis() / LEAVE_STEP.as_millis();
        // What stays in spite of this the next process removes.
        for _ in 0..steps {
            match self.remove() {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                _ => return,
            }
            std::thread::sleep(LEAVE_STEP);
        }
    }
}

fn raw(fd: &OwnedFd) -> i32 {
    use std::os::fd::AsRawFd;
    fd.as_raw_fd()
}

/// This process's cgroup of v2.
fn own() -> Result<String> {
    let all = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let own = all.lines().find_map(|line| line.strip_prefix("0::"));
    own.map(str::to_owned).context("this kernel has no cgroup v2")
}

/// Removes the cgroups of processes that are gone.
fn forget_the_dead(parent: &Path) {
    let entries = parent.read_dir().into_iter().flatten().flatten();
    for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
        let gone = process.is_some_and(|(id, _)| !Path::new("/proc").join(id).exists());
        if gone {
            // Another process may do the same.
            let _ = fs::remove_dir(parent.join(name));
        }
    }
}
