//! What may be asked of a running agent: one line of JSON each way over a Unix socket in the state
//! directory. Reading needs no agent; this is for orders only.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::model::Drainable;

/// Name of the socket in the state directory.
pub const SOCKET: &str = "agent.sock";

/// Longest line either way.
pub const MAX_LINE_BYTES: u64 = 64 << 10;

/// How long the agent may take to answer. It writes to disk.
pub const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Takes something out of service. Backends lose what flows they still have after `within_ms`; without
    /// it they keep them until they end.
    Drain {
        what: Drainable,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        within_ms: Option<u64>,
    },
    /// Puts it back.
    Undrain { what: Drainable },
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "result", rename_all = "lowercase")]
pub enum Answer {
    /// `changed`: false where it was so already. `warning`: what comes of it that one may not want.
    Done {
        changed: bool,
        #[serde(default)]
        warning: Option<String>,
    },
    /// Nothing was done. `fix`: what the reader should do about it.
    Refused { error: String, fix: String },
}

impl Answer {
    pub fn done(changed: bool) -> Self {
        Self::Done { changed, warning: None }
    }

    pub fn refused(error: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Refused { error: error.into(), fix: fix.into() }
    }
}

/// The name by which a socket in a folder is bound and found. Socket names are at most 107 bytes, those of
/// folders may be longer, so the folder goes by the number of its open file, which must be kept until then.
pub fn socket_name(folder: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

/// Asks the agent of a state directory, and waits up to [`PATIENCE`].
///
/// # Errors
/// No agent listens (`NotFound`, `ConnectionRefused`), it does not answer in time, or not sensibly.
pub fn ask(state_dir: &Path, request: &Request) -> io::Result<Answer> {
    let folder = File::open(state_dir)?;
    let mut stream = UnixStream::connect(socket_name(&folder, SOCKET))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_LINE_BYTES)).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}
