//! What was measured so far, one JSON object a line in a file of the user's cache, so that a run can be stopped and
//! continued.
//!
//! Every line says of which code and of which settings it is. A run continues only what is of its own code and settings;
//! others' lines stay in the file.

use std::{
    env,
    fs::{self, File},
    hash::Hasher,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use super::site::Outcome;

/// Below the user's cache folder.
const FILE: &str = "weir/bench/failover.jsonl";
/// What the measured behaviour is made of.
const MEASURED: [&str; 4] = ["lb-common", "lb-ebpf", "lb-userspace", "Cargo.lock"];
const DIRTY: &str = "-changed";

/// One event.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Of the code measured: its last commit, and whether it was changed since.
    pub revision: String,
    /// Given by whoever ran it, to put rows of several revisions together.
    pub label: Option<String>,
    /// Hash of all settings.
    pub settings: String,
    pub system: String,
    pub nodes: usize,
    pub kind: String,
    /// Seconds since 1970.
    pub at: u64,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The file, and which of its lines count.
pub struct Results {
    path: PathBuf,
    revision: String,
    label: Option<String>,
    /// Lines that count, oldest first.
    pub records: Vec<Record>,
}

impl Results {
    /// Reads what is there; `fresh` forgets what would count. `path` None: the file in the user's cache.
    pub fn open(path: Option<&Path>, label: Option<&str>, fresh: bool) -> Result<Self> {
        let path = path.map_or_else(default_path, |path| Ok(path.to_owned()))?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let text = if path.exists() { fs::read_to_string(&path)? } else { String::new() };
        let read = |(at, line): (usize, &str)| {
            serde_json::from_str::<Record>(line)
                .with_context(|| format!("{} line {}", path.display(), at + 1))
        };
        let records = text.lines().enumerate().map(read).collect::<Result<Vec<_>>>()?;
        let (revision, label) = (revision()?, label.map(str::to_owned));
        let counts = |record: &Record| match &label {
            Some(_) => record.label == label,
            None => record.revision == revision,
        };
        let (mut mine, others): (Vec<_>, Vec<_>) = records.into_iter().partition(counts);
        if fresh {
            mine.clear();
            let lines = others.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
            let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(Self { path, revision, label, records: mine })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Events of one row of the table.
    pub fn of(&self, system: &str, nodes: usize, kind: &str, settings: &str) -> Vec<&Record> {
        let is = |record: &&Record| {
            record.system == system
                && record.nodes == nodes
                && record.kind == kind
                && record.settings == settings
        };
        self.records.iter().filter(is).collect()
    }

    /// Adds an event; it is in the file when this returns. Fills in whose it is.
    pub fn add(&mut self, record: Record) -> Result<()> {
        let at = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let (revision, label) = (self.revision.clone(), self.label.clone());
        let record = Record { revision, label, at, ..record };
        let line = serde_json::to_string(&record)? + "\n";
        let mut file = File::options().create(true).append(true).open(&self.path)?;
        file.write_all(line.as_bytes())
            .with_context(|| format!("write {}", self.path.display()))?;
        self.records.push(record);
        Ok(())
    }
}

/// Short name of settings.
pub fn hash(settings: &str) -> String {
    let mut hasher = SipHasher13::new();
    hasher.write(settings.as_bytes());
    format!("{:016x}", hasher.finish())
}

fn default_path() -> Result<PathBuf> {
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(folder) if !folder.is_empty() => folder.into(),
        _ => env::home_dir().context("neither XDG_CACHE_HOME nor HOME is set")?.join(".cache"),
    };
    Ok(cache.join(FILE))
}

/// The last commit of what is measured.
fn revision() -> Result<String> {
    let commit = git(&["log", "-1", "--format=%h", "--"])?;
    let changed = !git(&["status", "--porcelain", "--"])?.is_empty();
    Ok(commit + if changed { DIRTY } else { "" })
}

/// What git says of [`MEASURED`].
fn git(arguments: &[&str]) -> Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the tests' parent")?;
    let mut command = Command::new("git");
    // The tree may be another user's when this runs as root.
    command.args(["-c", "safe.directory=*", "-C"]).arg(root).args(arguments).args(MEASURED);
    let output = command.output().context("run git")?;
    ensure!(output.status.success(), "git: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::failover::felt::Felt;

    fn record(system: &str) -> Record {
        Record {
            revision: String::new(),
            label: None,
            settings: "s".into(),
            system: system.into(),
            nodes: 3,
            kind: "power-off".into(),
            at: 0,
            outcome: Outcome {
                vip: "10.0.0.100".parse().unwrap(),
                node: "node-1".into(),
                astray: false,
                felt: Felt::default(),
                over: true,
                moved_ms: None,
                failed_on_return: 0,
            },
        }
    }

    #[test]
    fn a_run_continues_what_has_its_label_and_leaves_others_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper/results.jsonl");
        let open = |label, fresh| Results::open(Some(&path), Some(label), fresh).unwrap();
        open("mine", false).add(record("weir")).unwrap();
        open("theirs", false).add(record("haproxy")).unwrap();
        let mine = open("mine", false);
        assert_eq!(mine.of("weir", 3, "power-off", "s").len(), 1);
        assert!(mine.of("weir", 10, "power-off", "s").is_empty());
        assert!(mine.of("weir", 3, "power-off", "other").is_empty());
        assert!(mine.of("haproxy", 3, "power-off", "s").is_empty());
        assert!(open("mine", true).records.is_empty());
        assert_eq!(open("theirs", false).records.len(), 1);
    }
}
