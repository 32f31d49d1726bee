//! The agent's own account of itself, `<state_dir>/status.json`: written by the agent after every
//! apply, read by the command line, also long after the agent has died.
//!
//! Holds only what the pinned maps cannot say: names, weights, health, problems, modes. A reader must
//! cope with an absent, old or foreign file, so everything beside `schema` and `node` has a default.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    model::{Life, Problem, Protocol},
    sources::Stale,
};

/// Value of `schema`. Keys are only ever added under one version.
pub const SCHEMA: &str = "weir.agent-status/v1";

/// Name of the file in the state directory.
pub const FILE: &str = "status.json";

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct AgentStatus {
    /// [`SCHEMA`].
    pub schema: String,
    /// Name of this node.
    pub node: String,
    #[serde(default)]
    pub version: String,
    #[serde(default)]
    pub pid: u32,
    /// The file that `--config` named.
    #[serde(default)]
    pub config: PathBuf,
    /// Why the newest version of that file was refused; the one before it is in force.
    #[serde(default)]
    pub config_error: Option<String>,
    /// Set while a checkpoint is in force, and not what the source says.
    #[serde(default)]
    pub stale: Option<Stale>,
    /// Unix time in ms at which the agent started, and at which it wrote this.
    #[serde(default)]
    pub started_ms: u64,
    #[serde(default)]
    pub written_ms: u64,
    #[serde(default)]
    pub attachments: Vec<Attachment>,
    #[serde(default)]
    pub problems: Vec<Problem>,
    #[serde(default)]
    pub targets: Vec<TargetStatus>,
    #[serde(default)]
    pub frontends: Vec<FrontendStatus>,
    /// Most others fell silent at once and the gateway too: the fault is here, and nothing new is announced.
    #[serde(default)]
    pub isolated: bool,
    /// All configured nodes, this one too, by name.
    #[serde(default)]
    pub members: Vec<MemberStatus>,
    /// By address.
    #[serde(default)]
    pub vips: Vec<VipStatus>,
    /// What administrators took out of service.
    #[serde(default)]
    pub drains: Vec<DrainStatus>,
    /// What Kubernetes says; null: it is not asked.
    #[serde(default)]
    pub kubernetes: Option<KubernetesStatus>,
    /// What is not settled yet after changes of backends.
    #[serde(default)]
    pub unsettled: UnsettledStatus,
    /// What came in by gossip since the agent started, by name: datagrams that were taken, and those that
    /// were not, such as `wrong_key` or `replayed`.
    #[serde(default)]
    pub gossip: BTreeMap<String, u64>,
}

/// Kubernetes as a source.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct KubernetesStatus {
    /// URL of the API server in use, and since when, Unix time in ms.
    pub server: Option<String>,
    pub since_ms: Option<u64>,
    /// Unix time in ms at which everything was listed first in the agent's life.
    pub complete_ms: Option<u64>,
    /// Why what is in force may be old.
    pub stale: Option<String>,
    /// How many objects are known, by kind.
    pub objects: BTreeMap<String, usize>,
    /// Endpoints that serve although the API calls them not ready.
    pub held: usize,
    pub problems: Vec<Problem>,
}

/// A program on a device.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Attachment {
    /// Or a cgroup.
    pub interface: String,
    /// `ingress`, `egress` or `connect`.
    pub program: String,
    /// `native` or `generic` for ingress, `tcx` or `clsact` for egress, `cgroup` for connect.
    pub mode: String,
    /// Why it is not the better mode.
    #[serde(default)]
    pub reason: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthWord {
    Unknown,
    Up,
    Down,
}

/// One probed target.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TargetStatus {
    /// Where the probe goes.
    pub address: SocketAddr,
    /// `tcp`, `http` or `https`.
    pub check: String,
    pub health: HealthWord,
    /// Why the last probe failed.
    #[serde(default)]
    pub reason: Option<String>,
    /// Whose word that is; null before there is one.
    #[serde(default)]
    pub cause: Option<TargetCause>,
}

/// Who judged a target.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TargetCause {
    /// The nodes that probe it: its own, or three others.
    pub by: Vec<String>,
    pub votes: Votes,
    /// Unix time in ms at which it went up or down.
    pub since_ms: u64,
}

/// How many of the probers say so; the others said nothing yet.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Votes {
    pub up: usize,
    pub down: usize,
}

/// One frontend as planned: what the maps hold only as numbers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct FrontendStatus {
    /// Name of the object it comes from.
    pub object: String,
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    /// Name of the node that announces its address.
    #[serde(default)]
    pub announcer: String,
    /// Backends that may own slots now, with their weights.
    #[serde(default)]
    pub weights: BTreeMap<SocketAddr, u16>,
}

/// A node, as this one sees it. Ages are as of `written_ms`; what was never heard is null.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct MemberStatus {
    pub node: String,
    /// Of its tunnel, as configured.
    pub addresses: Vec<IpAddr>,
    pub life: Life,
    /// Its agent is heard by gossip, and where from.
    pub heard: bool,
    pub gossip_address: Option<SocketAddr>,
    /// Its backends may own slots.
    pub serves: bool,
    /// How long its backends are still held back, and the deaths that count for it.
    pub held_for_ms: Option<u64>,
    pub deaths: usize,
    /// It wants VIPs.
    pub announcing: bool,
    /// It hands over, to end or because it is drained.
    pub leaving: bool,
    /// An administrator took it out of announcing and forwarding.
    pub drained: bool,
    /// This node probes it for all others.
    pub watched: bool,
    /// Living nodes whose data plane it does not reach, by its own word.
    pub unreachable: Vec<String>,
    /// Nodes that find its data plane silent.
    pub suspected_by: Vec<String>,
    /// Of its agent.
    pub version: Option<String>,
    /// Layout version of its maps.
    pub layout: Option<u32>,
    /// Version of its tunnel header where it is not this node's.
    pub other_tunnel_version: Option<u8>,
    /// It holds another seed than this node: its tables are not the same.
    pub seed_differs: bool,
    /// Age of its agent's heartbeat; null: no agent since its maps were made.
    pub heartbeat_ms: Option<u64>,
    /// Since its data plane answered this node's probe; null for nodes that this one does not probe.
    pub last_answer_ms: Option<u64>,
    pub round_trip_us: Option<u64>,
    /// In hexadecimal; changes with every boot.
    pub boot_id: Option<String>,
}

/// Who announces a VIP and why, as this node sees it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct VipStatus {
    pub address: IpAddr,
    /// Null: no living node may announce it.
    #[serde(default)]
    pub elected: Option<String>,
    /// Nodes that announce it by their own word.
    #[serde(default)]
    pub announced_by: Vec<String>,
    /// The best first.
    #[serde(default)]
    pub candidates: Vec<CandidateStatus>,
    /// Nodes that may not, by why.
    #[serde(default)]
    pub excluded: BTreeMap<String, Vec<String>>,
    /// How long this has been so.
    #[serde(default)]
    pub for_seconds: u64,
}

/// A node that may announce a VIP.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CandidateStatus {
    pub node: String,
    /// Such as `ready` or `held back`.
    pub standing: String,
}

/// What flows still depend on beside the sets of now.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct UnsettledStatus {
    /// How many frontends are young: some member may still forward by a former set of backends.
    pub young: usize,
    /// Since the change of the one that has been so for longest.
    pub young_for_ms: Option<u64>,
    /// How many of them wait for each member.
    pub waiting: BTreeMap<String, usize>,
    /// Backends that left every pool and live on for their flows.
    pub kept: usize,
    /// How many of those ended before their time because there were too many.
    pub cut_short: u64,
}

/// One order to drain that is in force, or a member of a pool that the configuration lets terminate.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct DrainStatus {
    /// Such as `forwarding/worker-1`.
    pub what: String,
    /// The node whose agent took the order, and Unix time in ms by its clock; empty and 0 for what the
    /// configuration lets terminate.
    #[serde(default)]
    pub author: String,
    #[serde(default)]
    pub at_ms: u64,
    /// Unix time in ms from which on backends lose the flows that they still have.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// The backends that are out of service by it, with the flows that they still have.
    #[serde(default)]
    pub remaining: Vec<RemainingStatus>,
}

/// Flows that a drained backend still has.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RemainingStatus {
    pub backend: SocketAddr,
    /// By the last word of the node where they end, a few seconds old.
    pub flows: u64,
    /// That node: `weir arrivals --backend` there lists them.
    pub node: String,
}

impl AgentStatus {
    /// Reads `<state_dir>/status.json`. `None` where there is no such file.
    pub fn read(state_dir: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read_to_string(state_dir.join(FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let status: Self = serde_json::from_str(&text)?;
        if status.schema != SCHEMA {
            let text = format!("schema {:?}, expected {SCHEMA:?}", status.schema);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Some(status))
    }

    /// Replaces the file at once: a reader sees the old or the new one. Not synced to disk, as it
    /// says nothing that outlives a boot.
    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        let mut file = io::BufWriter::new(tempfile::NamedTempFile::new_in(state_dir)?);
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.persist(state_dir.join(FILE))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_an_absent_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(AgentStatus::read(dir.path()).unwrap(), None);
        let status = AgentStatus {
            schema: SCHEMA.into(),
            node: "master-1".into(),
            problems: vec![Problem { object: "Frontend/api".into(), message: "no backend".into() }],
            frontends: vec![FrontendStatus {
                object: "api".into(),
                address: "192.0.2.1".parse().unwrap(),
                port: 443,
                protocol: Protocol::Tcp,
                announcer: "master-2".into(),
                weights: [("10.0.0.1:443".parse().unwrap(), 3)].into(),
            }],
            ..Default::default()
        };
        status.write(dir.path()).unwrap();
        assert_eq!(AgentStatus::read(dir.path()).unwrap(), Some(status));
    }

    #[test]
    fn missing_keys_are_defaults_and_another_schema_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        fs::write(&path, format!(r#"{{"schema":"{SCHEMA}","node":"n","more":1}}"#)).unwrap();
        assert_eq!(AgentStatus::read(dir.path()).unwrap().unwrap().node, "n");
        fs::write(&path, r#"{"schema":"weir.agent-status/v2","node":"n"}"#).unwrap();
        let error = AgentStatus::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("v2"), "{error}");
    }
}
