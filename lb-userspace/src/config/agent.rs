//! The object of kind `Agent`.

use std::{collections::BTreeSet, fs, ops::RangeInclusive, path::Path, time::Duration};

use lb_common::{
    abi::{MAX_SLOTS, MAX_UPLINKS, capacity},
    backend::MAX_BACKENDS,
    globals::{DEFAULT_TUNNEL_PORT, DEFAULT_VNI},
};

use super::{
    Overrides,
    read::{Fields, Place, Value},
};
use crate::model::{
    AgentSettings, GossipSettings, HoldDowns, Limits,
    seed::{gossip_key_from, seed_from},
};

/// Slots of a frontend when nobody says: prime, and enough for 204 backends.
const DEFAULT_SLOTS: u32 = 4093;
const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/weir";
const DEFAULT_STATE_DIR: &str = "/var/lib/weir";

/// Three lost probes of 100 ms make a node dead: a takeover starts within half a second, and one
/// lost packet starts none.
const DEFAULT_PEER_INTERVAL: Duration = Duration::from_millis(100);
const DEFAULT_PEER_COUNT: u32 = 3;
const PEER_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
const PEER_COUNT: RangeInclusive<i64> = 1..=100;

/// Beside the tunnel's.
const DEFAULT_GOSSIP_PORT: u16 = 6085;

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
    ])?;
    let place_of = |name: &str| fields.get(name).map_or(spec.place.clone(), |value| value.place);
    let (peer_interval, peer_fall, peer_rise) = read_peers(&fields);
    let directory = |name, given: &Option<_>, default: &str| {
        let read = fields.get(name).and_then(|value| value.absolute_path());
        given.clone().or(read).unwrap_or_else(|| default.into())
    };
    let uplinks = match fields.required("uplinks") {
        Some(value) => read_interfaces(&value, MAX_UPLINKS, true),
        None => Vec::new(),
    };
    let egress_devices = match fields.get("egressDevices") {
        Some(value) => read_interfaces(&value, MAX_EGRESS_DEVICES, false),
        None => Vec::new(),
    };
    let (seed, gossip_key) = read_seed(&fields, path);
    let gossip =
        GossipSettings { port: DEFAULT_GOSSIP_PORT, keys: vec![gossip_key], seeds: Vec::new() };
    let settings = AgentSettings {
        node: read_node(&fields, overrides),
        uplinks,
        egress_devices,
        tunnel_port: fields.read_or("tunnelPort", DEFAULT_TUNNEL_PORT, Value::port),
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
        hold_downs: HoldDowns::default(),
        announce_interfaces: Vec::new(),
        gateways: Vec::new(),
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

fn read_interfaces(value: &Value<'_>, most: usize, filled: bool) -> Vec<String> {
    let list = if filled { value.filled_list() } else { value.list() }.unwrap_or_default();
    if list.len() > most {
        value.error(format!("{} interfaces; allowed: up to {most}", list.len()));
    }
    let mut seen = BTreeSet::new();
    let mut names = Vec::new();
    for value in list {
        let Some(name) = value.interface() else { continue };
        if !seen.insert(name.clone()) {
            value.error(format!("`{name}` appears twice"));
            continue;
        }
        names.push(name);
    }
    names
}

/// The seed, and the key of gossip that follows from it.
fn read_seed(fields: &Fields<'_>, path: &Path) -> ([u8; 16], [u8; 32]) {
    let text = match (fields.get("seed"), fields.get("seedFile")) {
        (Some(_), Some(file)) => {
            file.error("both `seed` and `seedFile` are given; allowed: one of them");
            None
        }
        (None, None) => {
            fields.error("`seed` is missing: give `seed` or `seedFile`, the same on all nodes");
            None
        }
        (Some(seed), None) => seed.string().map(|text| (text.to_owned(), seed)),
        (None, Some(file)) => read_seed_file(&file, path).map(|text| (text, file)),
    };
    let Some((text, value)) = text else { return ([0; 16], [0; 32]) };
    if text.len() < MIN_SEED_BYTES {
        value.error(format!(
            "the seed has {} bytes; allowed: {MIN_SEED_BYTES} or more, hard to guess",
            text.len()
        ));
    }
    (seed_from(&text), gossip_key_from(&text))
}

/// The file's text without the blanks around it.
fn read_seed_file(value: &Value<'_>, path: &Path) -> Option<String> {
    let name = value.string()?;
    let file = path.parent().unwrap_or(Path::new("")).join(name);
    match fs::read_to_string(&file) {
        Ok(text) => Some(text.trim().to_owned()),
        Err(error) => {
            value.error(format!("{} cannot be read: {error}", file.display()));
            None
        }
    }
}

fn read_limits(spec: &Fields<'_>) -> Limits {
    let mut limits = Limits {
        frontends: capacity::FRONTENDS,
        owner_blocks: capacity::OWNER_BLOCKS,
        backends: capacity::BACKENDS,
        nodes: capacity::NODES,
        vips: capacity::VIPS,
        opening: capacity::OPENING,
        established: capacity::ESTABLISHED,
        datagrams: capacity::DATAGRAMS,
    };
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
