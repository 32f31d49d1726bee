//! The control groups below which one node's pods have theirs: one in every hierarchy of the machine.
//!
//! They are all that the kernel does not take back when processes end. So their name says whose they are, and whoever makes
//! the next ones removes those of processes that are gone.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// Before the names of all of them; the id of the process follows.
const PREFIX: &str = "weir-node-";
/// The last process in them may take so long to end.
const LEAVE_WAIT: Duration = Duration::from_secs(10);
const LEAVE_STEP: Duration = Duration::from_millis(20);

/// Dropping it removes them and all below, when nobody is in them any more.
pub struct ControlGroups {
    name: String,
    hierarchies: Vec<PathBuf>,
}

impl ControlGroups {
    /// For the node of that name.
    pub fn make(node: &str) -> Result<Self> {
        let hierarchies = mounted(&fs::read_to_string("/proc/self/mountinfo")?);
        hierarchies.iter().for_each(|hierarchy| forget_the_dead(hierarchy));
        let made = Self { name: format!("{PREFIX}{}-{node}", std::process::id()), hierarchies };
        for path in made.paths() {
            fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        }
        Ok(made)
    }

    /// Where they are in each hierarchy.
    pub fn path(&self) -> String {
        format!("/{}", self.name)
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.hierarchies.iter().map(|hierarchy| hierarchy.join(&self.name))
    }
}

impl Drop for ControlGroups {
    fn drop(&mut self) {
        let deadline = Instant::now() + LEAVE_WAIT;
        for path in self.paths() {
            // What stays in spite of this the next process removes.
            while path.exists() && remove(&path).is_err() && Instant::now() < deadline {
                thread::sleep(LEAVE_STEP);
            }
        }
    }
}

/// The controllers of each hierarchy of the first version as `mount` wants them, such as `cpu,cpuacct` and `name=systemd`.
/// None: the machine has the second version only.
pub fn first_version() -> Result<Vec<String>> {
    Ok(controllers(&fs::read_to_string("/proc/self/cgroup")?))
}

/// From the lines `NUMBER:CONTROLLERS:PATH`; the second version has no controllers there.
fn controllers(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.split(':').nth(1));
    names.filter(|names| !names.is_empty()).map(str::to_owned).collect()
}

/// Where hierarchies of either version are mounted.
fn mounted(mountinfo: &str) -> Vec<PathBuf> {
    let place = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let kind = after.split(' ').next()?;
        matches!(kind, "cgroup" | "cgroup2").then(|| before.split(' ').nth(4))?.map(PathBuf::from)
    };
    mountinfo.lines().filter_map(place).collect()
}

fn remove(group: &Path) -> io::Result<()> {
    for entry in group.read_dir()? {
        let entry = entry?;
        // The files in it are the kernel's and go with it.
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// Removes those of processes that are gone.
fn forget_the_dead(hierarchy: &Path) {
    let entries = hierarchy.read_dir().into_iter().flatten().flatten();
    for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
        if process.is_some_and(|(id, _)| !Path::new("/proc").join(id).exists()) {
            // Another process may do the same.
            let _ = remove(&hierarchy.join(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_those_of_the_first_version() {
        let text = "9:name=systemd:/\n2:cpu,cpuacct:/a:b\n0::/user.slice\n";
        assert_eq!(controllers(text), ["name=systemd", "cpu,cpuacct"]);
        assert_eq!(controllers("0::/\n"), Vec::<String>::new());
    }

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let text = "31 22 0:27 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw\n\
                    32 31 0:28 / /sys/fs/cgroup/cpu rw shared:10 - cgroup cgroup rw,cpu\n\
                    33 31 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let places = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"];
        assert_eq!(mounted(text), places.map(PathBuf::from));
    }
}
