//! The last good [`Intent`] on disk, for an agent that starts where its source cannot be read.
//!
//! Two files in the state directory, the newest and the one before it. A file is replaced as a whole and
//! is on the disk before it counts; one that is damaged, of another build's shape or of another node is
//! set aside with a message, never read in part. They hold the cluster's keys: only their owner may read
//! them. What is good enough to be kept, and which one a start uses, is the agent's business.
//!
//! A file is one line with [`SCHEMA`] and the SHA-256 of all that follows, then JSON.

use std::{
    fmt, fs,
    fs::{File, OpenOptions},
    io::{self, BufWriter, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::model::Intent;

/// Version of the files, at their very beginning.
const SCHEMA: &str = "weir.checkpoint/v1";

/// Every version begins so.
const ANY_SCHEMA: &str = "weir.checkpoint/v";

/// Names in the state directory: the newest, and the one before it.
pub const FILES: [&str; 2] = ["checkpoint", "checkpoint.previous"];

/// All names that a state directory may hold: what there is to remove where weir goes.
pub const EVERY_FILE: [&str; 6] = [
    FILES[0],
    FILES[1],
    FRESH,
    "checkpoint.new.previous",
    "checkpoint.set-aside",
    "checkpoint.previous.set-aside",
];

/// While they are written.
const FRESH: &str = "checkpoint.new";

/// What is appended to the name of a file that is not used.
const SET_ASIDE: &str = "set-aside";

/// Larger files are not read: a cluster of 100,000 backends needs a fifth.
const MAX_BYTES: u64 = 128 << 20;

/// Names an intent: equal ones have equal digests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// # Errors
    /// The intent cannot be written as JSON: a path in it is no text.
    pub fn of(intent: &Intent) -> io::Result<Self> {
        Ok(Self::of_bytes(&serde_json::to_vec(intent)?))
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        Self::new(&digest(&SHA256, bytes))
    }

    fn new(digest: &ring::digest::Digest) -> Self {
        let mut value = [0; 32];
        value.copy_from_slice(digest.as_ref());
        Self(value)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let byte = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
        let mut value = [0; 32];
        for (at, to) in value.iter_mut().enumerate() {
            *to = byte(at).ok_or_else(|| serde::de::Error::custom("no digest"))?;
        }
        Ok(Self(value))
    }
}

/// What stands behind the first line.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Body<I> {
    node: String,
    /// Unix time in ms.
    written_ms: u64,
    asked: Digest,
    intent: I,
}

/// One that was read as a whole.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Checkpoint {
    pub file: PathBuf,
    pub intent: Intent,
    /// Of what the source asked for: a running agent may keep some of what was there before, so this is
    /// not always the digest of `intent`.
    pub asked: Digest,
    /// Unix time in ms.
    pub written_ms: u64,
}

/// Why a file is not used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
enum Flaw {
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error("damaged: {0}")]
    Damaged(&'static str),
    #[error("written by another build: {0}")]
    OtherBuild(String),
    #[error("of node {0:?}, not this one")]
    OtherNode(String),
}

impl Flaw {
    fn fix(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "mend its access rights, or remove it",
            Self::Damaged(_) => {
                "remove it, and look after the disk if this comes again; a new one is written once \
                 a configuration is in force"
            }
            Self::OtherBuild(_) => {
                "start that build to use it, or remove it; a new one is written once a \
                 configuration is in force"
            }
            Self::OtherNode(_) => "name this node's own directory with --state-dir, or remove it",
        }
    }
}

/// What a state directory holds.
#[derive(Debug, Default)]
pub struct Found {
    /// The newest first.
    pub checkpoints: Vec<Checkpoint>,
    /// What was not usable, a sentence for people each.
    pub problems: Vec<String>,
}

/// Reads what there is for `node`; `None`: for whichever node it is. Files that are of no use get other
/// names, so that nothing replaces them by the way.
pub fn read(state_dir: &Path, node: Option<&str>) -> Found {
    let mut found = Found::default();
    for file in FILES.map(|name| state_dir.join(name)) {
        let read = match read_bytes(&file) {
            Ok(bytes) => parse(&file, &bytes, node),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => Err(Flaw::Unreadable(error.to_string())),
        };
        match read {
            Ok(checkpoint) => found.checkpoints.push(checkpoint),
            Err(flaw) => found.problems.push(set_aside(&file, &flaw)),
        }
    }
    found
}

/// Makes an intent the newest checkpoint; the one before it becomes the previous one. Returns when the
/// disk holds it.
///
/// # Errors
/// The state directory cannot be written; what was there still is.
pub fn write(state_dir: &Path, intent: &Intent, asked: Digest, now_ms: u64) -> io::Result<()> {
    let [newest, previous] = FILES.map(|name| state_dir.join(name));
    let fresh = state_dir.join(FRESH);
    // Left by a life that was cut off; a file that is opened keeps its rights.
    remove(&fresh)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    write_to(&mut file, intent, asked, now_ms)?;
    file.sync_all()?;
    // At any moment at least one of the two names is a whole file.
    let link = state_dir.join(EVERY_FILE[3]);
    remove(&link)?;
    match fs::hard_link(&newest, &link) {
        Ok(()) => fs::rename(&link, &previous)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::rename(&fresh, &newest)?;
    File::open(state_dir)?.sync_all()
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Piece by piece: a large intent would fill much memory at once.
fn write_to(
    file: &mut (impl Write + Seek),
    intent: &Intent,
    asked: Digest,
    written_ms: u64,
) -> io::Result<()> {
    let head = |digest: Digest| format!("{SCHEMA} {digest}\n");
    file.write_all(head(Digest([0; 32])).as_bytes())?;
    let body = Body { node: intent.agent.node.clone(), written_ms, asked, intent };
    let mut summed = Summed { to: &mut *file, sum: Context::new(&SHA256) };
    let mut buffered = BufWriter::new(&mut summed);
    serde_json::to_writer(&mut buffered, &body)?;
    buffered.flush()?;
    drop(buffered);
    let digest = Digest::new(&summed.sum.finish());
    file.rewind()?;
    file.write_all(head(digest).as_bytes())
}

/// Sums up what is written.
struct Summed<W> {
    to: W,
    sum: Context,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn read_bytes(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_BYTES {
        true => Err(io::Error::other(format!("more than the {MAX_BYTES} bytes allowed"))),
        false => Ok(bytes),
    }
}

fn parse(file: &Path, bytes: &[u8], node: Option<&str>) -> Result<Checkpoint, Flaw> {
    let no_checkpoint = Flaw::Damaged("it does not begin as a checkpoint does");
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(no_checkpoint.clone())?;
    let (head, body) = (&bytes[..end], &bytes[end + 1..]);
    let head = std::str::from_utf8(head).map_err(|_| no_checkpoint.clone())?;
    let (schema, sum) = head.split_once(' ').ok_or(no_checkpoint.clone())?;
    if schema != SCHEMA {
        return Err(match schema.starts_with(ANY_SCHEMA) {
            true => Flaw::OtherBuild(format!("schema {schema:?}, this one reads {SCHEMA:?}")),
            false => no_checkpoint,
        });
    }
    if sum != Digest::of_bytes(body).to_string() {
        return Err(Flaw::Damaged("its checksum does not fit"));
    }
    // What passed the checksum was written so: by a build whose objects have another shape.
    let body: Body<Intent> =
        serde_json::from_slice(body).map_err(|error| Flaw::OtherBuild(error.to_string()))?;
    if node.is_some_and(|node| node != body.node) || body.node != body.intent.agent.node {
        return Err(Flaw::OtherNode(body.node));
    }
    let Body { written_ms, asked, intent, .. } = body;
    Ok(Checkpoint { file: file.into(), intent, asked, written_ms })
}

/// Gives the file another name and says so.
fn set_aside(file: &Path, flaw: &Flaw) -> String {
    let mut aside = file.as_os_str().to_owned();
    aside.push(".");
    aside.push(SET_ASIDE);
    let aside = PathBuf::from(aside);
    let done = match fs::rename(file, &aside) {
        Ok(()) => format!("it is not used, and is now {}", aside.display()),
        Err(error) => format!("it is not used, and cannot be renamed ({error})"),
    };
    let message = format!("{}: {flaw}; {done}: {}", file.display(), flaw.fix());
    tracing::error!("{message}");
    message
}

#[cfg(test)]
mod tests;
