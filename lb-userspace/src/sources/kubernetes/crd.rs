//! Definitions of our own kinds of objects: `Frontend` here, the others beside.
//!
//! The types are there for their schema: the API server refuses at once what cannot be right. What is let
//! pass is read and judged by what reads the file (`config::frontends`), so both mean the same. A test holds
//! the two together, and `cargo xtask check` the files in `deploy/crds`.

use std::collections::BTreeMap;

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    jiff::Timestamp,
};
use kube::{CustomResource, CustomResourceExt, KubeSchema};
use saphyr::{LoadableYamlNode, Yaml, YamlEmitter};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::crd_pool::AddressPool;

/// All of them.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![Frontend::crd(), AddressPool::crd()]
}

/// Why a definition cannot be written down.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("as YAML: {0}")]
    Yaml(String),
}

/// All of them as YAML, one document each.
///
/// # Errors
/// One cannot be written.
pub fn manifests() -> Result<String, ManifestError> {
    let mut text = String::new();
    for definition in definitions() {
        // JSON is YAML, too.
        let json = serde_json::to_string(&definition)?;
        let wrong = |error: &dyn std::fmt::Display| ManifestError::Yaml(error.to_string());
        let documents = Yaml::load_from_str(&json).map_err(|error| wrong(&error))?;
        for document in &documents {
            let mut part = String::new();
            YamlEmitter::new(&mut part).dump(document).map_err(|error| wrong(&error))?;
            text.push_str(&part);
            text.push('\n');
        }
    }
    Ok(text)
}

/// Addresses × ports over one pool: of nodes by label, or of members.
#[derive(Clone, CustomResource, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "weir.dev",
    version = "v1alpha1",
    kind = "Frontend",
    status = "FrontendStatus",
    shortname = "fe",
    category = "weir",
    derive = "PartialEq",
    doc = "Addresses and ports that lead to a pool of nodes or of other servers.",
    printcolumn = r#"{"name":"Addresses","type":"string","jsonPath":".spec.addresses"}"#,
    printcolumn = r#"{"name":"Ports","type":"string","jsonPath":".spec.ports[*].port"}"#,
    printcolumn = r#"{"name":"Policy","type":"string","jsonPath":".spec.externalTrafficPolicy","priority":1}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Served","type":"string","jsonPath":".status.conditions[?(@.type==\"Served\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].reason","priority":1}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].message","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[x_kube(validation = Rule::new(
    "has(self.slots) == has(oldSelf.slots) && (!has(self.slots) || self.slots == oldSelf.slots)"
).message("slots are fixed for a frontend's life: remove the object and make it anew"))]
#[serde(rename_all = "camelCase")]
pub struct FrontendSpec {
    /// IPv4 and IPv6, none a host's own.
    #[schemars(length(min = 1, max = 64), inner(length(min = 2, max = 45)))]
    #[x_kube(validation = Rule::new("self.all(a, isIP(a))").message("each is an IPv4 or IPv6 address"))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, b == a))").message("each stands there once"))]
    pub addresses: Vec<String>,
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new(
        "self.all(a, self.exists_one(b, b.port == a.port && b.protocol == a.protocol))"
    ).message("port and protocol stand there once"))]
    pub ports: Vec<Port>,
    pub pool: Pool,
    /// How packets reach a member.
    #[serde(default)]
    pub delivery: Delivery,
    /// None: members count as up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// None: the agents' default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65520))]
    pub slots: Option<i32>,
    #[serde(default)]
    pub session_affinity: SessionAffinity,
    /// Answer ICMP echo.
    #[serde(default = "yes")]
    pub echo: bool,
    /// Local: each node serves with the members on it alone.
    #[serde(default)]
    pub external_traffic_policy: TrafficPolicy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announce: Option<Announce>,
    /// Networks of clients that may connect; none: all. A family without any is closed where there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 3, max = 49)))]
    #[x_kube(validation = Rule::new("self.all(r, isCIDR(r))").message("each is a network such as 192.0.2.0/24"))]
    pub source_ranges: Option<Vec<String>>,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// For the reader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    #[serde(default)]
    pub protocol: Protocol,
    /// None: `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub target_port: Option<i32>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub enum Protocol {
    #[default]
    TCP,
    UDP,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Delivery {
    #[default]
    Tunnel,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub enum SessionAffinity {
    #[default]
    None,
    ClientIP,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

/// Who serves.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.members) != has(self.nodeSelector)").message(
    "either members or nodeSelector"
))]
pub struct Pool {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub members: Option<Vec<Member>>,
    /// Every node that has the labels, by its own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<NodeSelector>,
}

#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    #[schemars(length(min = 2, max = 45))]
    #[x_kube(validation = Rule::new("isIP(self)").message("an IPv4 or IPv6 address"))]
    pub address: String,
    /// None: the port's `targetPort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub weight: Option<i32>,
    /// None: the node whose own address it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub node: Option<String>,
    /// It will end: no new flows, but it keeps those that it has.
    #[serde(default)]
    pub terminating: bool,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSelector {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

/// Who may announce the addresses, and where.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Announce {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<NodeSelector>,
    /// Patterns of uplinks; `*` stands for any text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 15)))]
    pub interfaces: Vec<String>,
}

/// How members are probed.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "self.type != 'TCP' || !has(self.path) && !has(self.host) && !has(self.acceptStatus)"
).message("path, host and acceptStatus are for HTTP and HTTPS"))]
#[x_kube(validation = Rule::new("self.type == 'HTTPS' || !has(self.insecureSkipVerify)").message(
    "insecureSkipVerify is for HTTPS"
))]
pub struct HealthCheck {
    #[serde(rename = "type")]
    pub kind: CheckType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = "^/"))]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub host: Option<String>,
    /// Such as 500ms or 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9]+(ms|s|m|h)$"))]
    pub interval: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9]+(ms|s|m|h)$"))]
    pub timeout: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub rise: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub fall: Option<i32>,
    /// 10 or "10%".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<NumberOrText>,
    /// 204 or "200-399".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub accept_status: Option<Vec<NumberOrText>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure_skip_verify: Option<bool>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub enum CheckType {
    TCP,
    HTTP,
    HTTPS,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(untagged)]
pub enum NumberOrText {
    Number(i32),
    Text(String),
}

impl JsonSchema for NumberOrText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NumberOrText".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true })
    }
}

/// What became of it, by the agent that holds the Lease.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendStatus {
    /// Of the object that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// As `metav1.Condition`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    pub type_: String,
    /// `True` or `False`.
    pub status: String,
    pub reason: String,
    pub message: String,
    /// RFC 3339.
    pub last_transition_time: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

impl Condition {
    /// Of an object's generation; [`Self::dated`] says since when.
    pub fn new(
        type_: &str,
        holds: bool,
        reason: &str,
        message: String,
        generation: Option<i64>,
    ) -> Self {
        Self {
            type_: type_.into(),
            status: if holds { "True" } else { "False" }.into(),
            reason: reason.into(),
            message,
            observed_generation: generation,
            ..Self::default()
        }
    }

    /// With the time since which it has its status.
    pub fn dated(self, former: &[Self], now: Timestamp) -> Self {
        let same = |it: &&Self| it.type_ == self.type_ && it.status == self.status;
        let since = former.iter().find(same).map(|it| it.last_transition_time.clone());
        Self { last_transition_time: since.unwrap_or_else(|| now.to_string()), ..self }
    }
}

#[cfg(test)]
#[path = "crd_tests.rs"]
mod tests;
