//! The object of kind `Agent`.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::Path,
    time::Duration,
};

use lb_common::{
    abi::{MAX_SLOTS, MAX_UPLINKS},
    backend::MAX_BACKENDS,
    globals::{DEFAULT_TUNNEL_PORT, DEFAULT_VNI},
};

use super::{
    Overrides,
    read::{Fields, Place, Value},
    unicast,
};
use crate::model::{
    AgentSettings, ArrivalTimes, ConnectSettings, GossipSettings, HoldDowns, KubernetesSettings,
    Limits, NewFlows,
    seed::{gossip_key_from, seed_from},
};

/// Slots of a frontend when nobody says: prime, and enough for 204 backends.
const DEFAULT_SLOTS: u32 = 4093;
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/weir";
pub const DEFAULT_STATE_DIR: &str = "/var/lib/weir";

/// Three lost probes of 100 ms make a node dead: a takeover starts within half a second, and one
/// lost packet starts none.
const DEFAULT_PEER_INTERVAL: Duration = Duration::from_millis(100);
const DEFAULT_PEER_COUNT: u32 = 3;
const PEER_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
const PEER_COUNT: RangeInclusive<i64> = 1..=100;

/// Beside the tunnel's.
const DEFAULT_GOSSIP_PORT: u16 = 6085;
/// What is sealed by a guessed key is open to whoever records one datagram.
const MIN_KEY_BYTES: usize = 16;
const MAX_GOSSIP_SEEDS: usize = 64;

const HOLD_DOWN: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
/// No shorter than what makes an agent mute at all.
const MUTE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// Handshakes and answers take seconds where networks are bad. The clock of arrivals wraps after weeks.
const ARRIVALS: RangeInclusive<Duration> =
    Duration::from_secs(10)..=Duration::from_secs(7 * 24 * 3600);

const MAX_PATTERNS: usize = 32;
const MAX_GATEWAYS: usize = 8;

const MAX_SERVERS: usize = 32;
const DEFAULT_NAMESPACE: &str = "weir-system";

/// More than a node sees.
const MAX_NEW_FLOWS: i64 = 1_000_000_000;

const MAX_VNI: i64 = 0xff_ffff;
/// Shorter texts are guessed from one tunnel header.
const MIN_SEED_BYTES: usize = 8;
const MAX_EGRESS_DEVICES: usize = 32;

/// The settings and where they stand.
#[derive(Debug)]
pub struct AgentDraft {
    pub settings: AgentSettings,
    pub place: Place,
    /// Of `spec.node`, or of `spec` where an override names the node.
    pub node: Place,
    /// Of `spec.limits`, or of `spec`.
    pub limits: Place,
}

/// Reads `spec`. `path` is the file's: a relative `seedFile` is looked for beside it.
pub fn read(spec: &Value<'_>, path: &Path, overrides: &Overrides) -> Option<AgentDraft> {
    let fields = spec.fields(&[
        "node",
        "uplinks",
        "egressDevices",
        "tunnelPort",
        "vni",
        "seed",
        "seedFile",
        "defaultSlots",
        "pinDir",
        "stateDir",
        "limits",
        "peers",
        "gossip",
        "holdDowns",
        "arrivals",
        "newFlows",
        "connect",
        "announce",
        "kubernetes",
    ])?;
    let place_of = |name: &str| fields.get(name).map_or(spec.place.clone(), |value| value.place);
    let (peer_interval, peer_fall, peer_rise) = read_peers(&fields);
    let directory = |name, given: &Option<_>, default: &str| {
        let read = fields.get(name).and_then(|value| value.absolute_path());
        given.clone().or(read).unwrap_or_else(|| default.into())
    };
    let uplinks = match fields.required("uplinks") {
        Some(value) => {
            let _ = value.filled_list();
            read_set(&value, MAX_UPLINKS, "interfaces", Value::interface)
        }
        None => Vec::new(),
    };
    let egress_devices = match fields.get("egressDevices") {
        Some(value) => read_set(&value, MAX_EGRESS_DEVICES, "interfaces", Value::interface),
        None => Vec::new(),
    };
    let (seed, seed_key) = read_seed(&fields, path);
    let tunnel_port = fields.read_or("tunnelPort", DEFAULT_TUNNEL_PORT, Value::port);
    let gossip = read_gossip(&fields, path, tunnel_port, seed_key);
    let (announce_interfaces, gateways) = read_announce(&fields);
    let settings = AgentSettings {
        node: read_node(&fields, overrides),
        uplinks,
        egress_devices,
        tunnel_port,
        vni: fields.read_or("vni", DEFAULT_VNI, |value| value.integer(0..=MAX_VNI)),
        seed,
        default_slots: fields.read_or("defaultSlots", DEFAULT_SLOTS, read_slots),
        pin_dir: directory("pinDir", &overrides.pin_dir, DEFAULT_PIN_DIR),
        state_dir: directory("stateDir", &overrides.state_dir, DEFAULT_STATE_DIR),
        limits: read_limits(&fields),
        peer_interval,
        peer_fall,
        peer_rise,
        gossip,
        hold_downs: read_hold_downs(&fields),
        arrivals: read_arrivals(&fields),
        new_flows: read_new_flows(&fields),
        connect: read_connect(&fields),
        announce_interfaces,
        gateways,
        kubernetes: fields.get("kubernetes").and_then(|value| read_kubernetes(&value)),
    };
    Some(AgentDraft {
        settings,
        place: spec.place.clone(),
        node: place_of("node"),
        limits: place_of("limits"),
    })
}

/// A number of slots, here or of a frontend.
pub fn read_slots(value: &Value<'_>) -> Option<u32> {
    value.integer(1..=i64::from(MAX_SLOTS))
}

fn read_node(fields: &Fields<'_>, overrides: &Overrides) -> String {
    let read = fields.get("node").and_then(|value| value.name());
    if read.is_none() && overrides.node.is_none() && fields.get("node").is_none() {
        fields.error("`node` is missing: name this node here or with --node");
    }
    overrides.node.clone().or(read).unwrap_or_default()
}

/// The seed, and the key of gossip that follows from it.
fn read_seed(fields: &Fields<'_>, path: &Path) -> ([u8; 16], [u8; 32]) {
    if fields.get("seed").is_none() && fields.get("seedFile").is_none() {
        fields.error("`seed` is missing: give `seed` or `seedFile`, the same on all nodes");
    }
    let text = read_secret(fields, path, "seed", "seedFile", MIN_SEED_BYTES).unwrap_or_default();
    (seed_from(&text), gossip_key_from(&text))
}

/// A text that is hard to guess, from the field itself or from the file that another field names,
/// where blanks around it do not count. `None` where neither is given or something is wrong.
fn read_secret(
    fields: &Fields<'_>,
    path: &Path,
    name: &str,
    file_name: &str,
    least: usize,
) -> Option<String> {
    let (text, value) = match (fields.get(name), fields.get(file_name)) {
        (Some(_), Some(file)) => {
            file.error(format!("both `{name}` and `{file_name}` are given; allowed: one of them"));
            return None;
        }
        (None, None) => return None,
        (Some(value), None) => (value.string()?.to_owned(), value),
        (None, Some(file)) => (file.text_beside(path)?.trim().to_owned(), file),
    };
    if text.len() < least {
        let length = text.len();
        value.error(format!(
            "the {} has {length} bytes; allowed: {least} or more, hard to guess",
            if name == "seed" { name } else { "key" }
        ));
    }
    Some(text)
}

fn read_gossip(
    spec: &Fields<'_>,
    path: &Path,
    tunnel_port: u16,
    seed_key: [u8; 32],
) -> GossipSettings {
    let mut gossip =
        GossipSettings { port: DEFAULT_GOSSIP_PORT, keys: vec![seed_key], seeds: Vec::new() };
    let allowed = ["port", "key", "keyFile", "previousKey", "previousKeyFile", "seeds"];
    let fields = spec.get("gossip").and_then(|value| value.fields(&allowed));
    if let Some(fields) = &fields {
        gossip.port = fields.read_or("port", DEFAULT_GOSSIP_PORT, Value::port);
        let key = |name: &str| {
            read_secret(fields, path, name, &format!("{name}File"), MIN_KEY_BYTES)
                .map(|text| gossip_key_from(&text))
        };
        gossip.keys = vec![key("key").unwrap_or(seed_key)];
        gossip.keys.extend(key("previousKey"));
        gossip.keys.dedup();
        if let Some(value) = fields.get("seeds") {
            gossip.seeds = read_seeds(&value);
        }
    }
    if gossip.port == tunnel_port {
        let message = format!("{tunnel_port} is the tunnel's port too; allowed: another one");
        match fields.and_then(|fields| fields.get("port")) {
            Some(value) => value.error(message),
            None => spec.error(format!("`gossip.port`: {message}")),
        }
    }
    gossip
}

fn read_seeds(value: &Value<'_>) -> Vec<SocketAddr> {
    read_set(value, MAX_GOSSIP_SEEDS, "seeds", |value| {
        let text = value.string()?;
        let seed = text.parse().ok();
        let Some(seed) = seed.filter(|seed: &SocketAddr| unicast(seed.ip()).is_ok()) else {
            value.error(format!(
                "`{text}` is not a member's address; allowed: a unicast ADDRESS:PORT, such as \
                 192.0.2.1:6085 or \"[2001:db8::1]:6085\""
            ));
            return None;
        };
        Some(seed)
    })
}

fn read_hold_downs(spec: &Fields<'_>) -> HoldDowns {
    let mut times = HoldDowns::default();
    let Some(value) = spec.get("holdDowns") else { return times };
    let allowed = ["backends", "vips", "most", "forget", "mute"];
    let Some(fields) = value.fields(&allowed) else { return times };
    for (name, time, range) in [
        ("backends", &mut times.backends, HOLD_DOWN),
        ("vips", &mut times.vips, HOLD_DOWN),
        ("most", &mut times.most, HOLD_DOWN),
        ("forget", &mut times.forget, HOLD_DOWN),
        ("mute", &mut times.mute, MUTE),
    ] {
        *time = fields.read_or(name, *time, |value| value.duration(range));
    }
    let longest = times.backends.max(times.vips);
    if times.most < longest {
        fields.error(format!(
            "`most` is {:?}, shorter than the first hold-down; allowed: {longest:?} or more",
            times.most
        ));
    }
    times
}

fn read_arrivals(spec: &Fields<'_>) -> ArrivalTimes {
    let mut times = ArrivalTimes::default();
    let allowed = ["established", "closed", "opening", "datagrams"];
    let fields = spec.get("arrivals").and_then(|value| value.fields(&allowed));
    let Some(fields) = fields else { return times };
    for (name, time) in [
        ("established", &mut times.established),
        ("closed", &mut times.closed),
        ("opening", &mut times.opening),
        ("datagrams", &mut times.datagrams),
    ] {
        *time = fields.read_or(name, *time, |value| value.duration(ARRIVALS));
    }
    times
}

fn read_new_flows(spec: &Fields<'_>) -> NewFlows {
    let none = NewFlows::default();
    let allowed = ["perSecond", "prefixV4", "prefixV6"];
    let fields = spec.get("newFlows").and_then(|value| value.fields(&allowed));
    let Some(fields) = fields else { return none };
    let bits = |name, default, most| fields.read_or(name, default, |value| value.integer(1..=most));
    NewFlows {
        per_second: fields
            .read_or("perSecond", none.per_second, |value| value.integer(0..=MAX_NEW_FLOWS)),
        prefix_v4: bits("prefixV4", none.prefix_v4, 32),
        prefix_v6: bits("prefixV6", none.prefix_v6, 128),
    }
}

fn read_connect(spec: &Fields<'_>) -> ConnectSettings {
    let mut settings = ConnectSettings::default();
    let fields = spec.get("connect").and_then(|value| value.fields(&["enabled", "cgroup"]));
    let Some(fields) = fields else { return settings };
    settings.enabled = fields.read_or("enabled", settings.enabled, Value::boolean);
    settings.cgroup = fields.get("cgroup").and_then(|value| value.absolute_path());
    settings
}

/// Patterns of interfaces, and gateways.
fn read_announce(spec: &Fields<'_>) -> (Vec<String>, Vec<IpAddr>) {
    let fields = spec.get("announce");
    let fields = fields.and_then(|value| value.fields(&["interfaces", "gateways"]));
    let Some(fields) = fields else { return Default::default() };
    let patterns = fields.get("interfaces").map(|value| read_patterns(&value));
    let gateways = fields.get("gateways").map(|value| {
        read_set(&value, MAX_GATEWAYS, "gateways", |value| {
            let address = value.address()?;
            // Routers go by their link-local addresses.
            match unicast(address) {
                Err(what) if what != super::LINK_LOCAL => {
                    value.error(format!("{address} is {what}; allowed: a router's own address"));
                    None
                }
                _ => Some(address),
            }
        })
    });
    (patterns.unwrap_or_default(), gateways.unwrap_or_default())
}

/// Patterns of interfaces' names, here or of a frontend.
pub fn read_patterns(value: &Value<'_>) -> Vec<String> {
    read_set(value, MAX_PATTERNS, "patterns", Value::interface)
}

/// A list of up to `most` different elements; empty is allowed.
fn read_set<'n, T: Clone + Ord + std::fmt::Display>(
    value: &Value<'n>,
    most: usize,
    what: &str,
    read: impl Fn(&Value<'n>) -> Option<T>,
) -> Vec<T> {
    let list = value.list().unwrap_or_default();
    if list.len() > most {
        value.error(format!("{} {what}; allowed: up to {most}", list.len()));
    }
    let mut seen = BTreeSet::new();
    let mut elements = Vec::new();
    for value in list {
        let Some(element) = read(&value) else { continue };
        if !seen.insert(element.clone()) {
            value.error(format!("`{element}` appears twice"));
            continue;
        }
        elements.push(element);
    }
    elements
}

fn read_kubernetes(value: &Value<'_>) -> Option<KubernetesSettings> {
    let allowed = ["servers", "kubeconfig", "defaultClass", "namespace", "ignoreExcludeLabel"];
    let fields = value.fields(&allowed)?;
    let servers =
        fields.get("servers").map(|value| read_set(&value, MAX_SERVERS, "URLs", read_url));
    Some(KubernetesSettings {
        servers: servers.unwrap_or_default(),
        kubeconfig: fields.get("kubeconfig").and_then(|value| value.absolute_path()),
        default_class: fields.read_or("defaultClass", false, Value::boolean),
        namespace: fields.read_or("namespace", DEFAULT_NAMESPACE.into(), Value::name),
        ignore_exclude_label: fields.read_or("ignoreExcludeLabel", false, Value::boolean),
    })
}

/// An API server's.
fn read_url(value: &Value<'_>) -> Option<String> {
    let text = value.string()?;
    let url = text.parse::<hyper::Uri>().ok();
    let plain = |url: &hyper::Uri| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.host().is_some_and(|host| !host.is_empty())
            && url.query().is_none()
    };
    if !url.is_some_and(|url| plain(&url)) {
        value.error(format!(
            "`{text}` is not an API server's URL; allowed: such as https://192.0.2.1:6443 or \
             \"https://[2001:db8::1]:6443\""
        ));
        return None;
    }
    Some(text.trim_end_matches('/').to_owned())
}

fn read_limits(spec: &Fields<'_>) -> Limits {
    let mut limits = Limits::default();
    let Some(value) = spec.get("limits") else { return limits };
    // Index 0 of backends and blocks means "none", so one entry alone holds nothing.
    let entries = [
        ("frontends", &mut limits.frontends, 1..=1 << 20),
        ("ownerBlocks", &mut limits.owner_blocks, 2..=1 << 24),
        ("backends", &mut limits.backends, 2..=i64::from(MAX_BACKENDS)),
        ("nodes", &mut limits.nodes, 1..=1 << 16),
        ("vips", &mut limits.vips, 1..=1 << 20),
        ("opening", &mut limits.opening, 1..=1 << 26),
        ("established", &mut limits.established, 1..=1 << 26),
        ("datagrams", &mut limits.datagrams, 1..=1 << 26),
        ("claims", &mut limits.claims, 1..=1 << 26),
        ("sourceRanges", &mut limits.source_ranges, 1..=1 << 20),
    ];
    let Some(fields) = value.fields(&entries.each_ref().map(|(name, ..)| *name)) else {
        return limits;
    };
    for (name, limit, range) in entries {
        *limit = fields.read_or(name, *limit, |value| value.integer(range));
    }
    limits
}

fn read_peers(spec: &Fields<'_>) -> (Duration, u32, u32) {
    let default = (DEFAULT_PEER_INTERVAL, DEFAULT_PEER_COUNT, DEFAULT_PEER_COUNT);
    let peers = spec.get("peers").and_then(|value| value.fields(&["interval", "fall", "rise"]));
    let Some(peers) = peers else { return default };
    let count = |name| peers.read_or(name, DEFAULT_PEER_COUNT, |value| value.integer(PEER_COUNT));
    let interval =
        peers.read_or("interval", DEFAULT_PEER_INTERVAL, |value| value.duration(PEER_INTERVAL));
    (interval, count("fall"), count("rise"))
}
