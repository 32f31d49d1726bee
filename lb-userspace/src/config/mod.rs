//! The configuration file: YAML documents in, one validated [`Intent`] out.
//!
//! The only place where configuration enters. It reports every problem of a file at once, each with
//! line, column, field, what is wrong and what is allowed, and never returns half of a file. It
//! keeps nothing: `sources::file` watches the file and compares with what was there before.
//!
//! `read` walks marked YAML nodes, `agent`, `node` and `frontend` read one kind each, `check` looks
//! at all objects together.

mod agent;
mod check;
mod frontend;
mod node;
mod read;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use saphyr::{LoadableYamlNode, MarkedYamlOwned, ScanError};

use crate::model::{AgentSettings, FrontendObject, Frontends, Intent, Node, Problem, intent};
use read::{Place, Report, Value};

pub use frontend::default_check;
pub use read::parse_duration;

/// The only version of the objects.
pub const API_VERSION: &str = "weir.dev/v1alpha1";

/// Largest file that is read.
pub const MAX_FILE_BYTES: u64 = 16 << 20;

/// Most columns by which a line may be indented. Bounds how deep blocks nest, and so the parser's
/// stack; flow collections are bounded by the parser itself.
const MAX_INDENT: usize = 128;

/// Most errors that are kept; one more says how many there were.
const MAX_ERRORS: usize = 100;

/// What the command line or the environment says instead of the `Agent` object, so that one file
/// can serve all nodes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Overrides {
    /// `spec.node`
    pub node: Option<String>,
    /// `spec.pinDir`
    pub pin_dir: Option<PathBuf>,
    /// `spec.stateDir`
    pub state_dir: Option<PathBuf>,
}

/// A place in the file; lines and columns count from 1. Line 0: the file as a whole.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd, serde::Serialize)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

/// One problem of a file.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, serde::Serialize)]
pub struct ConfigError {
    pub at: Position,
    /// Object and field, such as `Frontend/api spec.ports[1].port`; empty: the file as a whole.
    pub field: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// Every problem of one file, by line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigErrors {
    pub file: PathBuf,
    pub errors: Vec<ConfigError>,
}

impl ConfigErrors {
    fn whole_file(file: &Path, message: String) -> Self {
        let error = ConfigError { at: Position::default(), field: String::new(), message };
        Self { file: file.into(), errors: vec![error] }
    }

    /// One line per problem: `file:line:column: field: message`.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.errors.iter().map(|error| {
            let ConfigError { at, field, message } = error;
            let file = self.file.display();
            let place = match at.line {
                0 => format!("{file}"),
                line => format!("{file}:{line}:{}", at.column),
            };
            match field.as_str() {
                "" => format!("{place}: {message}"),
                field => format!("{place}: {field}: {message}"),
            }
        })
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, line) in self.lines().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&line)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Reads and validates a file.
///
/// # Errors
/// Every problem of the file, sorted by line; also that it cannot be read.
pub fn load(path: &Path, overrides: &Overrides) -> Result<Intent, ConfigErrors> {
    parse(path, &read_text(path)?, overrides)
}

/// The file's text.
///
/// # Errors
/// It cannot be opened, is too big or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, ConfigErrors> {
    let read = || -> io::Result<String> {
        let length = fs::metadata(path)?.len();
        if length > MAX_FILE_BYTES {
            let message = format!("{length} bytes, more than the {MAX_FILE_BYTES} allowed");
            return Err(io::Error::other(message));
        }
        fs::read_to_string(path)
    };
    read().map_err(|error| ConfigErrors::whole_file(path, format!("cannot be read: {error}")))
}

/// The state directory that a text seems to name, valid or not, or the default.
pub fn likely_state_dir(text: &str) -> PathBuf {
    likely_dir(text, "stateDir:", agent::DEFAULT_STATE_DIR)
}

/// Likewise the folder of pins.
pub fn likely_pin_dir(text: &str) -> PathBuf {
    likely_dir(text, "pinDir:", agent::DEFAULT_PIN_DIR)
}

fn likely_dir(text: &str, field: &str, default: &str) -> PathBuf {
    let named = text.split_once(field).map(|(_, rest)| rest);
    let value = named.and_then(|rest| rest.split([',', '}', '#', '\n']).next()).unwrap_or_default();
    let value = PathBuf::from(value.trim().trim_matches(['"', '\'']));
    if value.is_absolute() { value } else { default.into() }
}

/// Files of secrets that a configuration names, by path, with their text; `None`: it cannot be read.
pub type Beside = BTreeMap<PathBuf, Option<String>>;

/// Validates a file's text. `path` names it in errors, and relative files of secrets are looked for
/// beside it.
///
/// # Errors
/// Every problem of the text, sorted by line.
pub fn parse(path: &Path, text: &str, overrides: &Overrides) -> Result<Intent, ConfigErrors> {
    parse_with(path, text, overrides).0
}

/// As [`parse`], with the files that the text names as they were read: the answer holds for these.
pub fn parse_with(
    path: &Path,
    text: &str,
    overrides: &Overrides,
) -> (Result<Intent, ConfigErrors>, Beside) {
    let report = Report::default();
    let intent = read_documents(text, &report)
        .map(|documents| check::intent(&documents, path, overrides, &report));
    let (errors, beside) = report.into_parts();
    (conclude(path, errors, intent.flatten()), beside)
}

/// Objects of kind Frontend that came from elsewhere than a file, by name, with their `spec`: read and checked
/// by what reads and checks a file. A bad one costs only itself.
///
/// Returns those that can be in force, and what is wrong with any of them.
pub fn frontends<'a>(
    objects: impl Iterator<Item = (&'a String, &'a serde_json::Value)>,
    agent: &AgentSettings,
    nodes: &Arc<BTreeMap<String, Node>>,
) -> (BTreeMap<String, FrontendObject>, Vec<Problem>) {
    let mut intent =
        Intent { agent: agent.clone(), nodes: nodes.clone(), frontends: Frontends::new() };
    let owners = intent::owners_of_addresses(nodes);
    let (mut good, mut problems) = (BTreeMap::new(), Vec::new());
    for (name, spec) in objects {
        let report = Report::default();
        // JSON is YAML, too.
        let text = serde_json::json!({ "spec": spec }).to_string();
        let document = read_documents(&text, &report).and_then(|it| it.into_iter().next());
        let is_good =
            document.is_some_and(|it| check::frontend(name, &it, &mut intent, &owners, &report));
        if let Some(object) = intent.frontends.remove(name.as_str()).filter(|_| is_good) {
            good.insert(name.clone(), Arc::unwrap_or_clone(object));
        }
        let object = format!("Frontend/{name}");
        problems.extend(report.into_parts().0.into_iter().map(|error| {
            let field = error.field.strip_prefix(&object).unwrap_or(&error.field).trim_start();
            let message = match field {
                "" => error.message,
                field => format!("{field}: {}", error.message),
            };
            Problem { object: object.clone(), message }
        }));
    }
    (good, problems)
}

fn conclude(
    path: &Path,
    errors: Vec<ConfigError>,
    intent: Option<Intent>,
) -> Result<Intent, ConfigErrors> {
    match (errors, intent) {
        (errors, Some(intent)) if errors.is_empty() => Ok(intent),
        (mut errors, _) => {
            errors.sort();
            errors.dedup();
            if errors.len() > MAX_ERRORS {
                let message = format!("{} more problems are not shown", errors.len() - MAX_ERRORS);
                errors.truncate(MAX_ERRORS);
                errors.push(ConfigError { at: Position::default(), field: String::new(), message });
            }
            Err(ConfigErrors { file: path.into(), errors })
        }
    }
}

/// The documents that hold something. `None`: the text is not YAML, which is reported.
fn read_documents(text: &str, report: &Report) -> Option<Vec<MarkedYamlOwned>> {
    let indent = |line: &str| line.chars().take_while(|c| " \t-?:".contains(*c)).count();
    if let Some(line) = text.lines().position(|line| indent(line) > MAX_INDENT) {
        let at = Position { line: line + 1, column: MAX_INDENT + 1 };
        let message = format!("nested too deep: more than {MAX_INDENT} columns");
        report.error(&Place { at, ..Place::default() }, message);
        return None;
    }
    match MarkedYamlOwned::load_from_str(text) {
        Ok(documents) => Some(documents.into_iter().filter(|node| !read::is_empty(node)).collect()),
        Err(error) => {
            let at = read::position(error.marker());
            let message = describe_scan_error(text, &error, at);
            report.error(&Place { at, ..Place::default() }, message);
            None
        }
    }
}

fn describe_scan_error(text: &str, error: &ScanError, at: Position) -> String {
    if !error.info().contains("duplicated key") {
        return format!("not valid YAML: {}", error.info());
    }
    let line = text.lines().nth(at.line.saturating_sub(1)).unwrap_or_default();
    let rest: String = line.chars().skip(at.column.saturating_sub(1)).collect();
    let key = rest.split(':').next().unwrap_or_default().trim();
    format!("`{key}` appears twice in one mapping; allowed: once")
}

/// What [`unicast`] says of an address that is bound to one link.
const LINK_LOCAL: &str = "a link-local address";

/// Whether an address can be a server's, a node's or a client-facing one at all: unicast, not this
/// host's own, and not bound to one link. The error says what it is.
pub fn unicast(address: IpAddr) -> Result<(), &'static str> {
    let (loopback, link_local) = match address {
        IpAddr::V4(v4) if v4.is_broadcast() => return Err("the broadcast address"),
        IpAddr::V4(v4) => (v4.is_loopback(), v4.is_link_local()),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            return Err("an IPv4 address in IPv6 form (write it as IPv4)");
        }
        IpAddr::V6(v6) => (v6.is_loopback(), v6.is_unicast_link_local()),
    };
    match () {
        () if address.is_unspecified() => Err("the unspecified address"),
        () if loopback => Err("a loopback address"),
        () if address.is_multicast() => Err("a multicast address"),
        () if link_local => Err(LINK_LOCAL),
        () => Ok(()),
    }
}

/// Reads a unicast address; reports why it is none.
fn read_unicast(value: &Value<'_>) -> Option<IpAddr> {
    let address = value.address()?;
    match unicast(address) {
        Ok(()) => Some(address),
        Err(what) => {
            value.error(format!("{address} is {what}; allowed: a unicast address"));
            None
        }
    }
}

#[cfg(test)]
mod tests;
