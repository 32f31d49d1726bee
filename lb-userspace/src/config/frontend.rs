//! Objects of kind `Frontend`.

use std::{collections::BTreeSet, ops::RangeInclusive, time::Duration};

use super::{
    agent::{read_patterns, read_slots},
    read::{Fields, Place, Value},
    read_unicast,
};
use crate::model::{
    AnnouncePolicy, Check, CheckKind, Cidr, Delivery, FrontendObject, FrontendPort, HttpCheck,
    Pool, PoolMember, Protocol, Selector,
};

const DEFAULT_WEIGHT: u16 = 1;

/// A dead server is found in three to four seconds, one slow answer takes nothing away.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(500);
const DEFAULT_RISE: u32 = 2;
const DEFAULT_FALL: u32 = 3;
const DEFAULT_JITTER_PERCENT: u8 = 10;
const DEFAULT_ACCEPT: (u16, u16) = (200, 399);

const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(3600);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
const COUNT: RangeInclusive<i64> = 1..=100;
const STATUS: RangeInclusive<u16> = 100..=599;

/// An object and where its parts stand.
#[derive(Debug)]
pub struct FrontendDraft {
    /// `node` of members that name none is empty still.
    pub object: FrontendObject,
    /// As `object.addresses`.
    pub addresses: Vec<Place>,
    /// As `object.ports`.
    pub ports: Vec<Place>,
    /// As the pool's members.
    pub members: Vec<Place>,
    pub check: Place,
    pub announce: Place,
}

/// A check that says no more than that it is to be one.
pub fn default_check() -> Check {
    Check {
        kind: CheckKind::Tcp,
        port: None,
        interval: DEFAULT_INTERVAL,
        timeout: DEFAULT_TIMEOUT,
        rise: DEFAULT_RISE,
        fall: DEFAULT_FALL,
        jitter_percent: DEFAULT_JITTER_PERCENT,
    }
}

/// Reads `spec`.
pub fn read(name: String, spec: &Value<'_>) -> Option<FrontendDraft> {
    let fields = spec.fields(&[
        "addresses",
        "ports",
        "pool",
        "delivery",
        "healthCheck",
        "slots",
        "sessionAffinity",
        "echo",
        "externalTrafficPolicy",
        "announce",
        "sourceRanges",
    ])?;
    let (addresses, address_places) = read_addresses(&fields).into_iter().unzip();
    let (ports, port_places) = read_ports(&fields).into_iter().unzip();
    let (pool, members) = read_pool(&fields);
    let deliveries =
        [("tunnel", Some(Delivery::Tunnel)), ("ipip", None), ("l2", None), ("nat", None)];
    let policies = [("Cluster", Some(false)), ("Local", Some(true))];
    let affinities = [("None", Some(false)), ("ClientIP", Some(true))];
    let object = FrontendObject {
        name,
        addresses,
        ports,
        pool,
        delivery: fields.read_or("delivery", Delivery::Tunnel, |value| value.word(&deliveries)),
        check: fields.get("healthCheck").and_then(|value| read_check(&value)),
        slots: fields.get("slots").and_then(|value| read_slots(&value)),
        client_affinity: fields.read_or("sessionAffinity", false, |value| value.word(&affinities)),
        echo: fields.read_or("echo", true, Value::boolean),
        local_only: fields.read_or("externalTrafficPolicy", false, |value| value.word(&policies)),
        by_place: false,
        announce: fields.read_or("announce", AnnouncePolicy::default(), read_announce),
        source_ranges: fields.read_or("sourceRanges", Vec::new(), read_ranges),
    };
    let place_of = |name: &str| fields.get(name).map_or(spec.place.clone(), |value| value.place);
    Some(FrontendDraft {
        object,
        addresses: address_places,
        ports: port_places,
        members,
        check: place_of("healthCheck"),
        announce: place_of("announce"),
    })
}

fn read_addresses(spec: &Fields<'_>) -> Vec<(std::net::IpAddr, Place)> {
    let list = spec.required("addresses").and_then(|value| value.filled_list());
    let mut seen = BTreeSet::new();
    let mut addresses = Vec::new();
    for value in list.unwrap_or_default() {
        let Some(address) = read_unicast(&value) else { continue };
        if !seen.insert(address) {
            value.error(format!("{address} appears twice"));
            continue;
        }
        addresses.push((address, value.place));
    }
    addresses
}

fn read_ports(spec: &Fields<'_>) -> Vec<(FrontendPort, Place)> {
    let list = spec.required("ports").and_then(|value| value.filled_list());
    let (mut seen, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut ports = Vec::new();
    for value in list.unwrap_or_default() {
        let Some(fields) = value.fields(&["name", "port", "protocol", "targetPort"]) else {
            continue;
        };
        if let Some(name) = fields.get("name")
            && let Some(text) = name.name()
            && !names.insert(text.clone())
        {
            name.error(format!("`{text}` appears twice"));
        }
        let protocols =
            [("TCP", Some(Protocol::Tcp)), ("UDP", Some(Protocol::Udp)), ("SCTP", None)];
        let protocol = fields.read_or("protocol", Protocol::Tcp, |value| value.word(&protocols));
        let port = fields.required("port").and_then(|value| value.port());
        let target = fields.get("targetPort").map(|value| value.port());
        let Some(port) = port else { continue };
        if !seen.insert((port, protocol)) {
            value.error(format!("{port}/{protocol} appears twice"));
            continue;
        }
        let target_port = target.flatten().unwrap_or(port);
        ports.push((FrontendPort { port, protocol, target_port }, value.place));
    }
    ports
}

fn read_pool(spec: &Fields<'_>) -> (Pool, Vec<Place>) {
    let nothing = (Pool::Members(Vec::new()), Vec::new());
    let Some(value) = spec.required("pool") else { return nothing };
    let Some(fields) = value.fields(&["members", "nodeSelector"]) else { return nothing };
    match (fields.get("members"), fields.get("nodeSelector")) {
        (Some(members), None) => {
            let list = members.filled_list().unwrap_or_default();
            let (members, places) = list.iter().filter_map(read_member).unzip();
            (Pool::Members(members), places)
        }
        (None, Some(selector)) => {
            let selector = read_selector(&selector);
            (Pool::Nodes { selector, weight: DEFAULT_WEIGHT }, Vec::new())
        }
        (members, _) => {
            let found = if members.is_some() { "both" } else { "neither" };
            value.error(format!("{found} given; allowed: either `members` or `nodeSelector`"));
            nothing
        }
    }
}

fn read_selector(value: &Value<'_>) -> Selector {
    let match_labels = value
        .fields(&["matchLabels"])
        .and_then(|selector| selector.get("matchLabels"))
        .and_then(|labels| labels.string_map());
    Selector { match_labels: match_labels.unwrap_or_default(), ..Selector::default() }
}

fn read_announce(value: &Value<'_>) -> Option<AnnouncePolicy> {
    let fields = value.fields(&["nodeSelector", "interfaces"])?;
    let nodes = fields.get("nodeSelector").map(|value| read_selector(&value));
    let interfaces = fields.get("interfaces").map(|value| read_patterns(&value));
    Some(AnnouncePolicy {
        nodes: nodes.unwrap_or_default(),
        interfaces: interfaces.unwrap_or_default(),
    })
}

fn read_ranges(value: &Value<'_>) -> Option<Vec<Cidr>> {
    let mut ranges = BTreeSet::new();
    for value in value.filled_list()? {
        let Some(text) = value.string() else { continue };
        match text.parse::<Cidr>() {
            Ok(range) if !ranges.insert(range) => value.error(format!("`{range}` appears twice")),
            Ok(_) => {}
            Err(message) => value.error(message),
        }
    }
    Some(ranges.into_iter().collect())
}

fn read_member(value: &Value<'_>) -> Option<(PoolMember, Place)> {
    let fields = value.fields(&["address", "port", "weight", "node", "terminating"])?;
    let address = fields.required("address").and_then(|value| read_unicast(&value));
    let port = fields.get("port").map(|value| value.port());
    let weight =
        fields.read_or("weight", DEFAULT_WEIGHT, |value| value.integer(1..=i64::from(u16::MAX)));
    let node = fields.get("node").map(|value| value.name());
    let node = node.flatten().unwrap_or_default();
    let terminating = fields.read_or("terminating", false, Value::boolean);
    let (address, port) = (address?, port.flatten());
    let member = PoolMember { address, port, weight, node, terminating, far: false };
    Some((member, value.place.clone()))
}

fn read_check(value: &Value<'_>) -> Option<Check> {
    const HTTP: [&str; 4] = ["path", "host", "acceptStatus", "insecureSkipVerify"];
    let fields = value.fields(&[
        "type",
        "port",
        "path",
        "host",
        "interval",
        "timeout",
        "rise",
        "fall",
        "jitter",
        "acceptStatus",
        "insecureSkipVerify",
    ])?;
    let kinds = [("TCP", Some(0)), ("HTTP", Some(1)), ("HTTPS", Some(2)), ("GRPC", None)];
    let kind = fields.required("type").and_then(|value| value.word(&kinds));
    let unused = match kind {
        Some(0) => &HTTP[..],
        Some(1) => &HTTP[3..],
        _ => &[],
    };
    for field in unused.iter().filter_map(|name| fields.get(name)) {
        field.error("this type of check does not use it; remove the field or change `type`");
    }
    let skip_verify = fields.read_or("insecureSkipVerify", false, Value::boolean);
    let http = read_http(&fields);
    let kind = match kind {
        Some(0) => CheckKind::Tcp,
        Some(1) => CheckKind::Http(http),
        _ => CheckKind::Https { http, verify: !skip_verify },
    };
    let interval = fields.read_or("interval", DEFAULT_INTERVAL, |value| value.duration(INTERVAL));
    // A short interval alone must not make the default timeout an error.
    let timeout = fields.read_or("timeout", DEFAULT_TIMEOUT.min(interval), |value| {
        let timeout = value.duration(TIMEOUT)?;
        if timeout > interval {
            value.error(format!(
                "{timeout:?} is longer than the interval; allowed: up to {interval:?}"
            ));
        }
        Some(timeout)
    });
    let count = |name, default| fields.read_or(name, default, |value| value.integer(COUNT));
    Some(Check {
        kind,
        port: fields.get("port").and_then(|value| value.port()),
        interval,
        timeout,
        rise: count("rise", DEFAULT_RISE),
        fall: count("fall", DEFAULT_FALL),
        jitter_percent: fields.read_or("jitter", DEFAULT_JITTER_PERCENT, read_percent),
    })
}

fn read_http(check: &Fields<'_>) -> HttpCheck {
    let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
    let path = check.read_or("path", "/", |value| {
        let path = value.string()?;
        if !path.starts_with('/') || !plain(path) {
            value.error(format!("`{path}` is not a path; allowed: `/` and printable ASCII"));
        }
        Some(path)
    });
    let host = check.get("host").and_then(|value| {
        let host = value.string()?;
        if !plain(host) || host.contains('/') {
            value.error(format!("`{host}` is not a host; allowed: a name or address, with a port"));
        }
        Some(host.to_owned())
    });
    let accept = check
        .get("acceptStatus")
        .and_then(|value| value.filled_list())
        .map(|list| list.iter().filter_map(read_status).collect());
    HttpCheck { path: path.to_owned(), host, accept: accept.unwrap_or(vec![DEFAULT_ACCEPT]) }
}

/// `204`, `"204"` or `"200-399"`.
fn read_status(value: &Value<'_>) -> Option<(u16, u16)> {
    if value.is_integer() {
        let status = value.integer(i64::from(*STATUS.start())..=i64::from(*STATUS.end()))?;
        return Some((status, status));
    }
    let text = value.string()?;
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    match (low.parse(), high.parse()) {
        (Ok(low), Ok(high)) if low <= high && STATUS.contains(&low) && STATUS.contains(&high) => {
            Some((low, high))
        }
        _ => {
            value.error(format!(
                "`{text}` is not a status or range of them; allowed: {} to {}, such as 401 or \
                 \"200-399\"",
                STATUS.start(),
                STATUS.end()
            ));
            None
        }
    }
}

/// `10` or `"10%"`.
fn read_percent(value: &Value<'_>) -> Option<u8> {
    if value.is_integer() {
        return value.integer(0..=100);
    }
    let text = value.string()?;
    let percent = text.strip_suffix('%').and_then(|number| number.parse().ok());
    if percent.is_none_or(|percent: u8| percent > 100) {
        value.error(format!("`{text}` is not a share; allowed: \"0%\" to \"100%\""));
        return None;
    }
    percent
}
