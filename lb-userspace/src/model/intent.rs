//! The wanted state: what the sources (a file, later Kubernetes, the checkpoint) say.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use imbl::OrdMap;
use lb_common::abi::capacity;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// All that the sources say, validated.
///
/// Checkpoints hold it in this very shape: a field that is added, or another meaning of one, is a new
/// version of `sources::checkpoint`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    pub agent: AgentSettings,
    /// By name. Holds this node too.
    #[serde(with = "shared")]
    pub nodes: Arc<BTreeMap<String, Node>>,
    /// By name.
    #[serde(with = "shared_each")]
    pub frontends: Frontends,
}

/// Objects by name. Two states of them share what did not change, so that a copy costs nothing and what
/// differs is found without looking at all.
pub type Frontends = OrdMap<Arc<str>, Arc<FrontendObject>>;

/// Written as if nobody shared it.
mod shared {
    use super::*;

    pub fn serialize<T: Serialize, S: Serializer>(it: &Arc<T>, to: S) -> Result<S::Ok, S::Error> {
        it.as_ref().serialize(to)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(from).map(Arc::new)
    }
}

/// The same for each value of a map.
mod shared_each {
    use super::*;

    pub fn serialize<S: Serializer>(map: &Frontends, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(map.iter().map(|(name, it)| (&**name, &**it)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Frontends, D::Error> {
        let map = BTreeMap::<String, FrontendObject>::deserialize(from)?;
        Ok(map.into_iter().map(|(name, it)| (Arc::from(name), Arc::new(it))).collect())
    }
}

/// A member of a pool as one of the frontend's ports sees it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Member<'a> {
    pub endpoint: SocketAddr,
    pub weight: u16,
    /// Name of its node.
    pub node: &'a str,
    /// It will end: no new flows, but it keeps those that it has.
    pub terminating: bool,
    /// As in [`PoolMember`].
    pub far: bool,
}

impl Intent {
    /// The pool of an object's address and port: its members of the address's family.
    pub fn members<'a>(
        &'a self,
        object: &'a FrontendObject,
        address: IpAddr,
        port: &FrontendPort,
    ) -> Vec<Member<'a>> {
        match &object.pool {
            Pool::Members(members) => members
                .iter()
                .filter(|member| member.address.is_ipv4() == address.is_ipv4())
                .map(|member| Member {
                    endpoint: SocketAddr::new(
                        member.address,
                        member.port.unwrap_or(port.target_port),
                    ),
                    weight: member.weight,
                    node: &member.node,
                    terminating: member.terminating,
                    far: member.far,
                })
                .collect(),
            Pool::Nodes { selector, weight } => self
                .nodes
                .values()
                .filter(|node| selector.matches(&node.labels))
                .filter_map(|node| {
                    let endpoint = SocketAddr::new(node.address_like(address)?, port.target_port);
                    let (weight, node) = (*weight, node.name.as_str());
                    Some(Member { endpoint, weight, node, terminating: false, far: false })
                })
                .collect(),
        }
    }

    /// Slots of an object's frontends.
    pub fn slots(&self, object: &FrontendObject) -> u32 {
        object.slots.unwrap_or(self.agent.default_slots)
    }
}

/// Object of kind `Agent`: settings of this node's agent. A change of any of them needs a restart,
/// except `default_slots`, which touches only frontends that are new, `announce_interfaces` and the
/// keys of gossip.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSettings {
    /// Name of this node; a `Node` of that name exists.
    pub node: String,
    /// Interfaces that carry clients' traffic: `ingress` and `egress` sit there. 1 to 8.
    pub uplinks: Vec<String>,
    /// Further devices by which the host routes to clients: `egress` only.
    pub egress_devices: Vec<String>,
    pub tunnel_port: u16,
    pub vni: u32,
    /// Shared by all nodes; key of tables and flow hash.
    pub seed: [u8; 16],
    /// Slots of a frontend that does not say.
    pub default_slots: u32,
    /// Below a bpffs mount; the layout version is added below it.
    pub pin_dir: PathBuf,
    pub state_dir: PathBuf,
    pub limits: Limits,
    /// Between two probes of another node's data plane, and how many lost ones make it dead.
    pub peer_interval: Duration,
    pub peer_fall: u32,
    /// Answers in a row that bring a dead node back.
    pub peer_rise: u32,
    pub gossip: GossipSettings,
    pub hold_downs: HoldDowns,
    pub arrivals: ArrivalTimes,
    #[serde(default)]
    pub new_flows: NewFlows,
    #[serde(default)]
    pub connect: ConnectSettings,
    /// Patterns (`*` stands for any text) of uplinks on which VIPs are announced; empty: all uplinks.
    pub announce_interfaces: Vec<String>,
    /// Whom a node asks that hears nobody any more; empty: the default gateways of its routes.
    pub gateways: Vec<IpAddr>,
    /// None: nothing is asked of Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesSettings>,
}

/// Where Kubernetes is asked, and what of it is ours.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesSettings {
    /// URLs of API servers; empty: the one of `kubeconfig`, or of the pod's environment.
    pub servers: Vec<String>,
    /// None: the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Services without a class are ours too.
    pub default_class: bool,
    /// The one that weir runs in.
    pub namespace: String,
    /// Nodes that are excluded from external load balancers announce Services all the same.
    pub ignore_exclude_label: bool,
}

/// How many connections one source prefix may open.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NewFlows {
    /// On this node; 0: no limit.
    pub per_second: u32,
    /// Bits of an address that are its prefix.
    pub prefix_v4: u32,
    pub prefix_v6: u32,
}

impl Default for NewFlows {
    /// No limit; otherwise a client by its IPv4 address, or by the network that a host has in IPv6.
    fn default() -> Self {
        Self { per_second: 0, prefix_v4: 32, prefix_v6: 64 }
    }
}

/// The way in for processes on this node.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectSettings {
    pub enabled: bool,
    /// The cgroup below which processes reach VIPs; none: the root of cgroup v2.
    pub cgroup: Option<PathBuf>,
}

impl Default for ConnectSettings {
    fn default() -> Self {
        Self { enabled: true, cgroup: None }
    }
}

/// How agents talk to each other.
#[derive(Clone, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GossipSettings {
    /// UDP and TCP port, the same on all nodes.
    pub port: u16,
    /// The key that seals what is sent, then those that are accepted too: one or two. May change while
    /// the agent runs.
    pub keys: Vec<[u8; 32]>,
    /// Members to ask beside the configured nodes.
    pub seeds: Vec<SocketAddr>,
}

/// Keys are not for logs.
impl fmt::Debug for GossipSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, keys, seeds } = self;
        let keys = keys.len();
        write!(f, "GossipSettings {{ port: {port}, keys: {keys} not shown, seeds: {seeds:?} }}")
    }
}

/// How long what came back must wait, and when a silent agent loses its VIPs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HoldDowns {
    /// A returned node's backends; doubles with each death within `forget`, up to `most`.
    pub backends: Duration,
    /// A returned node's VIPs, likewise.
    pub vips: Duration,
    pub most: Duration,
    /// Deaths older than this are forgotten.
    pub forget: Duration,
    /// A mute node's VIPs move after this.
    pub mute: Duration,
}

impl Default for HoldDowns {
    fn default() -> Self {
        Self {
            backends: Duration::from_secs(1),
            vips: Duration::from_secs(5),
            most: Duration::from_secs(60),
            forget: Duration::from_secs(600),
            mute: Duration::from_secs(5),
        }
    }
}

/// How long a silent flow is remembered where it ends; then it is as if it had never been.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ArrivalTimes {
    /// A TCP connection. Longer than the two hours after which kernels ask whether the other side is
    /// still there.
    pub established: Duration,
    /// One that both sides have closed, or that the backend has reset.
    pub closed: Duration,
    /// One whose client has not yet answered its backend.
    pub opening: Duration,
    /// UDP.
    pub datagrams: Duration,
}

impl Default for ArrivalTimes {
    fn default() -> Self {
        Self {
            established: Duration::from_secs(3 * 3600),
            closed: Duration::from_secs(60),
            opening: Duration::from_secs(60),
            datagrams: Duration::from_secs(300),
        }
    }
}

/// Entries of the maps, fixed when they are created.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub frontends: u32,
    /// Blocks of 16 slots in the owners arena.
    pub owner_blocks: u32,
    pub backends: u32,
    pub nodes: u32,
    pub vips: u32,
    pub opening: u32,
    pub established: u32,
    pub datagrams: u32,
    /// Slots in which backends of other sets still know flows.
    pub claims: u32,
    /// Networks of clients, of all frontends that take only some.
    #[serde(default = "default_source_ranges")]
    pub source_ranges: u32,
}

/// For intents that were kept before there was such a limit.
fn default_source_ranges() -> u32 {
    capacity::SOURCE_RANGES
}

impl Default for Limits {
    /// What the maps of the BPF object are declared with.
    fn default() -> Self {
        Self {
            frontends: capacity::FRONTENDS,
            owner_blocks: capacity::OWNER_BLOCKS,
            backends: capacity::BACKENDS,
            nodes: capacity::NODES,
            vips: capacity::VIPS,
            opening: capacity::OPENING,
            established: capacity::ESTABLISHED,
            datagrams: capacity::DATAGRAMS,
            claims: capacity::CLAIMS,
            source_ranges: default_source_ranges(),
        }
    }
}

/// Object of kind `Node`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub name: String,
    /// One or two, of different families; the tunnel's outer addresses.
    pub addresses: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
}

impl Node {
    /// Its address of the same family as `like`.
    pub fn address_like(&self, like: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == like.is_ipv4())
    }
}

/// Whose each node's address is, by name.
pub fn owners_of_addresses(nodes: &BTreeMap<String, Node>) -> BTreeMap<IpAddr, &str> {
    let owned = nodes.values().flat_map(|node| node.addresses.iter().map(move |it| (*it, node)));
    owned.map(|(address, node)| (address, node.name.as_str())).collect()
}

/// Object of kind `Frontend`: addresses × ports over one pool.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FrontendObject {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<FrontendPort>,
    pub pool: Pool,
    pub delivery: Delivery,
    /// None: nobody probes, members count as up.
    pub check: Option<Check>,
    /// None: `AgentSettings::default_slots`. Fixed for the frontend's life.
    pub slots: Option<u32>,
    /// Slot by the client's address alone.
    pub client_affinity: bool,
    /// Answer ICMP echo to its addresses.
    pub echo: bool,
    /// Every node serves with its own backends only, and announces only while it has one.
    pub local_only: bool,
    /// Members are chosen by where they are, so that every node has a table of its own.
    #[serde(default, skip_serializing_if = "is_false")]
    pub by_place: bool,
    pub announce: AnnouncePolicy,
    /// Clients that may connect; empty: all. As soon as there is one, a family without any is closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_ranges: Vec<Cidr>,
}

/// Begins the name of what a Service's port became: `service/NAMESPACE/NAME/PORT`.
pub const OF_SERVICE: &str = "service/";

/// Begins the name of what an object in Kubernetes became: `frontend/NAME`. Names of the file have no `/`.
pub const OF_FRONTEND: &str = "frontend/";

impl FrontendObject {
    /// Networks whose clients one of its addresses takes, all of its family; none: everybody's.
    pub fn ranges_of(&self, address: IpAddr) -> Option<BTreeSet<Cidr>> {
        let alike = |range: &&Cidr| range.address().is_ipv4() == address.is_ipv4();
        let alike = || self.source_ranges.iter().filter(alike).copied().collect();
        (!self.source_ranges.is_empty()).then(alike)
    }

    /// What no other object may have: each of its addresses with each of its ports.
    pub fn keys(&self) -> impl Iterator<Item = (IpAddr, u16, Protocol)> + '_ {
        let ports = |address: &IpAddr| {
            let address = *address;
            self.ports.iter().map(move |port| (address, port.port, port.protocol))
        };
        self.addresses.iter().flat_map(ports)
    }

    /// Whether every node has a table of its own for it.
    pub fn by_node(&self) -> bool {
        self.local_only || self.by_place
    }

    /// Whether Kubernetes asked for it, and not the file.
    pub fn of_kubernetes(&self) -> bool {
        self.name.contains('/')
    }

    /// Kind and name of the object that asked for it, as people know it.
    pub fn origin(&self) -> String {
        match (self.name.strip_prefix(OF_SERVICE), self.name.strip_prefix(OF_FRONTEND)) {
            (Some(rest), _) => {
                let service = rest.rsplit_once('/').map_or(rest, |(service, _)| service);
                format!("Service/{service}")
            }
            (_, Some(name)) => format!("Frontend/{name}"),
            (None, None) => format!("Frontend/{}", self.name),
        }
    }
}

/// A network: an address whose bits behind the prefix are zero, and the prefix's length.
#[derive(
    Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Deserialize, serde::Serialize,
)]
#[serde(into = "String", try_from = "String")]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

impl Cidr {
    /// `None`: the prefix is longer than the address. Bits behind it are dropped.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) => {
                let rest = u32::from(length).le(&32).then(|| 32 - u32::from(length))?;
                let mask = u32::MAX.checked_shl(rest).unwrap_or(0);
                IpAddr::V4((u32::from(v4) & mask).into())
            }
            IpAddr::V6(v6) => {
                let rest = u32::from(length).le(&128).then(|| 128 - u32::from(length))?;
                let mask = u128::MAX.checked_shl(rest).unwrap_or(0);
                IpAddr::V6((u128::from(v6) & mask).into())
            }
        };
        Some(Self { address, length })
    }

    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// In bits.
    pub fn length(&self) -> u8 {
        self.length
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Cidr {
    type Err = String;

    /// `ADDRESS/LENGTH`; blanks around it do not count, as Kubernetes lets them through.
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (address, length) = text.trim().split_once('/')?;
            Self::new(address.parse().ok()?, length.parse().ok()?)
        };
        parse().ok_or_else(|| {
            format!("`{text}` is not a network; allowed: such as 192.0.2.0/24 or 2001:db8::/32")
        })
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Who may announce a frontend's addresses. Of several objects with one address the first by name says.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AnnouncePolicy {
    pub nodes: Selector,
    /// Patterns of interfaces; empty: what the `Agent` object allows.
    pub interfaces: Vec<String>,
}

#[derive(
    Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Deserialize, serde::Serialize,
)]
pub enum Protocol {
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "UDP")]
    Udp,
}

impl Protocol {
    /// IANA number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => lb_common::net::proto::TCP,
            Self::Udp => lb_common::net::proto::UDP,
        }
    }

    /// The one of an IANA number.
    pub fn of(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp].into_iter().find(|it| it.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FrontendPort {
    pub port: u16,
    pub protocol: Protocol,
    /// Port of members that name none.
    pub target_port: u16,
}

impl FrontendPort {
    /// Whether `self` is the TCP side of the server that `udp` leads to.
    pub fn same_server(&self, udp: &Self) -> bool {
        self.protocol == Protocol::Tcp && self.target_port == udp.target_port
    }
}

/// The backends behind a frontend, whatever their source.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub enum Pool {
    Members(Vec<PoolMember>),
    /// Every node that matches, by its own address and the target port.
    Nodes {
        selector: Selector,
        weight: u16,
    },
}

#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PoolMember {
    pub address: IpAddr,
    /// None: the frontend port's `target_port`.
    pub port: Option<u16>,
    pub weight: u16,
    /// The node it lives on; validated to exist. Filled in for addresses that are a node's own.
    pub node: String,
    /// As in [`Member`].
    pub terminating: bool,
    /// This node gives it new flows only while no other member serves. Where only a node's own backends
    /// may serve, that is so for clients on the node alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub far: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Which nodes, by their labels.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// All must be present with these values.
    pub match_labels: BTreeMap<String, String>,
    /// None may be present, whatever its value.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub without: BTreeSet<String>,
}

impl Selector {
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && !self.without.iter().any(|key| labels.contains_key(key))
    }
}

/// How packets reach the backend's server.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub enum Delivery {
    Tunnel,
}

/// An active health check.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    pub kind: CheckKind,
    /// None: the backend's own port.
    pub port: Option<u16>,
    pub interval: Duration,
    pub timeout: Duration,
    /// Successes in a row that bring a target up.
    pub rise: u32,
    /// Failures in a row that take it down.
    pub fall: u32,
    /// Share of the interval by which each probe is moved at random, in percent.
    pub jitter_percent: u8,
}

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub enum CheckKind {
    Tcp,
    Http(HttpCheck),
    Https {
        http: HttpCheck,
        /// Verify the certificate against the system's roots.
        verify: bool,
    },
}

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HttpCheck {
    pub path: String,
    /// None: the target's address.
    pub host: Option<String>,
    /// Inclusive ranges of status codes that mean success.
    pub accept: Vec<(u16, u16)>,
}

/// Where a check is aimed.
pub fn probe_address(backend: SocketAddr, check: &Check) -> SocketAddr {
    SocketAddr::new(backend.ip(), check.port.unwrap_or(backend.port()))
}
