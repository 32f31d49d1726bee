//! What a process uses.

use std::{fmt, fs, time::Duration};

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};
use serde::Serialize;

use crate::lab::Process;

/// Since it started.
pub struct Usage {
    pub cpu: Duration,
    pub memory: Memory,
}

/// Bytes.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    pub resident: u64,
    /// The most that it ever was.
    pub peak: u64,
    /// Its own: without the program, and without the maps of the kernel that it sees as memory.
    pub own: u64,
}

impl Usage {
    pub fn of(process: &Process) -> Result<Self> {
        let file = |name| fs::read_to_string(format!("/proc/{}/{name}", process.id()));
        let (stat, status) = (file("stat")?, file("status")?);
        // What follows the name in brackets begins with the third field (proc_pid_stat(5)).
        let fields = stat.rsplit_once(") ").context("no name")?.1.split(' ');
        let ticks = fields.skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            number.map(|kib| kib << 10).with_context(|| format!("no {name}"))
        };
        Ok(Self {
            cpu: Duration::from_secs_f64(ticks as f64 / per_second as f64),
            memory: Memory {
                resident: bytes("VmRSS")?,
                peak: bytes("VmHWM")?,
                own: bytes("RssAnon")?,
            },
        })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let [resident, own, peak] = [self.resident, self.own, self.peak].map(mb);
        write!(f, "{resident:.0} MB resident ({own:.0} MB its own; {peak:.0} MB at most)")
    }
}
