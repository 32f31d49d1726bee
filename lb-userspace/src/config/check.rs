//! All objects of a file together: one of each name, nothing claimed twice, nothing beyond the
//! limits.
//!
//! Conflicts are looked for among whatever could be read; that something is *missing* is said only
//! where everything could be read, so that one mistake yields one message.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use lb_common::service::blocks;
use saphyr::MarkedYamlOwned;

use super::{
    API_VERSION, Overrides,
    agent::{self, AgentDraft},
    frontend::{self, FrontendDraft},
    node::{self, NodeDraft},
    read::{Place, Report, Value},
};
use crate::model::{Frontends, Intent, Node, Pool, Protocol};

#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Agent,
    Node,
    Frontend,
}

/// Everything that could be read.
#[derive(Default)]
struct Drafts {
    agents: Vec<AgentDraft>,
    /// By name.
    nodes: BTreeMap<String, NodeDraft>,
    /// By name.
    frontends: BTreeMap<String, FrontendDraft>,
    /// Kind and name of every object, and the line of its name.
    names: BTreeMap<String, usize>,
}

/// Reads the documents and checks them together. `None` only if something was reported.
pub fn intent(
    documents: &[MarkedYamlOwned],
    path: &Path,
    overrides: &Overrides,
    report: &Report,
) -> Option<Intent> {
    let mut drafts = Drafts::default();
    for document in documents {
        read_object(document, path, overrides, report, &mut drafts);
    }
    let agent = single_agent(&drafts, documents, report)?;
    let owners = address_owners(&drafts, report);
    let whole = report.count() == 0;
    // Kubernetes may yet say what is missing here.
    let closed = whole && agent.settings.kubernetes.is_none();
    let own = &agent.settings.node;
    if closed && !drafts.nodes.contains_key(own) {
        report.error(&agent.node, format!("no object `Node/{own}` describes this node"));
    }
    let mut frontends = Frontends::new();
    let nodes = drafts.nodes.iter().map(|(name, draft)| (name.clone(), draft.node.clone()));
    let nodes = nodes.collect();
    for (name, draft) in &drafts.frontends {
        let mut object = draft.object.clone();
        place_members(&mut object.pool, draft, &owners, report);
        if closed {
            check_homes(&object.pool, draft, &nodes, report);
        }
        frontends.insert(name.as_str().into(), Arc::new(object));
    }
    let intent = Intent { agent: agent.settings.clone(), nodes: Arc::new(nodes), frontends };

    check_addresses(&intent, &drafts, &owners, report);
    check_ports(&drafts, report);
    check_backends(&intent, &drafts, report);
    if closed {
        check_families(&intent, &drafts, report);
        check_announcers(&intent, &drafts, report);
    }
    if whole {
        check_limits(&intent, agent, report);
    }
    Some(intent)
}

/// Reads one more object of kind Frontend into a list without any, and checks it beside the nodes as those of
/// a file are checked. That no node matches is told, and stops nothing: nodes come and go.
///
/// `document` holds `spec` alone. False if it cannot be in force.
pub fn frontend(
    name: &str,
    document: &MarkedYamlOwned,
    intent: &mut Intent,
    owners: &BTreeMap<IpAddr, &str>,
    report: &Report,
) -> bool {
    let value = Value::new(document, format!("Frontend/{name}"), report);
    let spec = value.fields(&["spec"]).and_then(|fields| fields.required("spec"));
    let Some(draft) = spec.and_then(|spec| frontend::read(name.to_owned(), &spec)) else {
        return false;
    };
    let mut object = draft.object.clone();
    place_members(&mut object.pool, &draft, owners, report);
    check_homes(&object.pool, &draft, &intent.nodes, report);
    intent.frontends.insert(name.into(), Arc::new(object));
    let drafts = Drafts { frontends: [(name.to_owned(), draft)].into(), ..Drafts::default() };
    check_addresses(intent, &drafts, owners, report);
    check_ports(&drafts, report);
    check_backends(intent, &drafts, report);
    let good = report.count() == 0;
    if good {
        check_families(intent, &drafts, report);
        check_announcers(intent, &drafts, report);
    }
    good
}

fn read_object(
    document: &MarkedYamlOwned,
    path: &Path,
    overrides: &Overrides,
    report: &Report,
    drafts: &mut Drafts,
) {
    let value = Value::new(document, String::new(), report);
    let label = match (value.peek(&["kind"]), value.peek(&["metadata", "name"])) {
        (Some(kind), Some(name)) => format!("{kind}/{name}"),
        (Some(kind), None) => kind.to_owned(),
        (None, _) => "object".to_owned(),
    };
    let value = Value::new(document, label.clone(), report);
    let Some(fields) = value.fields(&["apiVersion", "kind", "metadata", "spec"]) else { return };
    if let Some(version) = fields.required("apiVersion") {
        version.word(&[(API_VERSION, Some(()))]);
    }
    let kinds = [
        ("Agent", Some(Kind::Agent)),
        ("Node", Some(Kind::Node)),
        ("Frontend", Some(Kind::Frontend)),
        ("AddressPool", None),
        ("BgpPeer", None),
    ];
    let kind = fields.required("kind").and_then(|value| value.word(&kinds));
    let metadata = fields.required("metadata");
    let metadata = metadata.and_then(|value| value.fields(&["name", "labels", "annotations"]));
    let name = metadata.as_ref().and_then(|metadata| metadata.required("name"));
    let labels = metadata.as_ref().and_then(|metadata| metadata.get("labels"));
    let labels = labels.and_then(|value| value.string_map()).unwrap_or_default();
    let spec = fields.required("spec");
    let (Some(kind), Some(name_value), Some(spec)) = (kind, name, spec) else { return };
    let Some(name) = name_value.name() else { return };
    match drafts.names.entry(label) {
        Entry::Vacant(entry) => {
            entry.insert(name_value.place.at.line);
        }
        Entry::Occupied(entry) => {
            let line = entry.get();
            return name_value.error(format!("`{}` exists already, on line {line}", entry.key()));
        }
    }
    match kind {
        Kind::Agent => drafts.agents.extend(agent::read(&spec, path, overrides)),
        Kind::Node => {
            drafts.nodes.insert(name.clone(), node::read(name, labels, &spec));
        }
        Kind::Frontend => {
            if let Some(draft) = frontend::read(name.clone(), &spec) {
                drafts.frontends.insert(name, draft);
            }
        }
    }
}

/// The one agent. Says that there is none only where no object could have been it.
fn single_agent<'d>(
    drafts: &'d Drafts,
    documents: &[MarkedYamlOwned],
    report: &Report,
) -> Option<&'d AgentDraft> {
    let (first, others) = match drafts.agents.split_first() {
        Some(split) => split,
        None => {
            let may_be_agent = |node: &MarkedYamlOwned| {
                let kind = Value::new(node, String::new(), report).peek(&["kind"]);
                !matches!(kind, Some("Node" | "Frontend"))
            };
            if !documents.iter().any(may_be_agent) {
                report.error(&Place::default(), "no object of kind Agent; allowed: exactly one");
            }
            return None;
        }
    };
    for other in others {
        let line = first.place.at.line;
        report.error(
            &other.place,
            format!("a second Agent beside that of line {line}; allowed: one"),
        );
    }
    Some(first)
}

/// Which node has an address; reports those that two have.
fn address_owners<'d>(drafts: &'d Drafts, report: &Report) -> BTreeMap<IpAddr, &'d str> {
    let mut owners = BTreeMap::new();
    for (name, draft) in &drafts.nodes {
        for (address, place) in draft.node.addresses.iter().zip(&draft.addresses) {
            match owners.entry(*address) {
                Entry::Vacant(entry) => {
                    entry.insert(name.as_str());
                }
                Entry::Occupied(entry) => {
                    report.error(place, format!("{address} is Node/{}'s already", entry.get()));
                }
            }
        }
    }
    owners
}

/// Gives members with a node's own address that node.
fn place_members(
    pool: &mut Pool,
    draft: &FrontendDraft,
    owners: &BTreeMap<IpAddr, &str>,
    report: &Report,
) {
    let Pool::Members(members) = pool else { return };
    for (member, place) in members.iter_mut().zip(&draft.members) {
        match owners.get(&member.address) {
            Some(owner) if member.node.is_empty() => member.node = (*owner).to_owned(),
            Some(owner) if member.node != *owner => report.error(
                place,
                format!(
                    "{} is Node/{owner}'s own address, not `{}`'s",
                    member.address, member.node
                ),
            ),
            _ => {}
        }
    }
}

/// Every member lives on a node that is described.
fn check_homes(
    pool: &Pool,
    draft: &FrontendDraft,
    nodes: &BTreeMap<String, Node>,
    report: &Report,
) {
    let Pool::Members(members) = pool else { return };
    for (member, place) in members.iter().zip(&draft.members) {
        let (node, address) = (&member.node, member.address);
        if node.is_empty() {
            let message = format!("`node` is missing: no node has {address} as its own address");
            report.error(place, message);
        } else if !nodes.contains_key(node) {
            let known = list(nodes.keys());
            report.error(place, format!("no object `Node/{node}`; allowed: {known}"));
        }
    }
}

/// At most ten names.
fn list<'s>(names: impl ExactSizeIterator<Item = &'s String>) -> String {
    let more = if names.len() > 10 { ", …" } else { "" };
    names.take(10).cloned().collect::<Vec<_>>().join(", ") + more
}

/// An address that is a VIP must be nothing else: packets to it would loop or never arrive.
fn check_addresses(
    intent: &Intent,
    drafts: &Drafts,
    owners: &BTreeMap<IpAddr, &str>,
    report: &Report,
) {
    let mut vips: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for (name, draft) in &drafts.frontends {
        for (address, place) in draft.object.addresses.iter().zip(&draft.addresses) {
            vips.entry(*address).or_insert(name);
            if let Some(owner) = owners.get(address) {
                report.error(
                    place,
                    format!("{address} is Node/{owner}'s own address; allowed: one no host owns"),
                );
            }
        }
    }
    for (name, draft) in &drafts.frontends {
        let Pool::Members(members) = &intent.frontends[name.as_str()].pool else { continue };
        for (member, place) in members.iter().zip(&draft.members) {
            if let Some(vip) = vips.get(&member.address) {
                report.error(
                    place,
                    format!(
                        "{} is an address of Frontend/{vip}; allowed: a server's own address",
                        member.address
                    ),
                );
            }
        }
    }
}

/// Address, port and protocol lead to one object.
fn check_ports(drafts: &Drafts, report: &Report) {
    let mut seen: BTreeMap<(IpAddr, u16, Protocol), (&str, usize)> = BTreeMap::new();
    // As they stand in the file: the later one is the one to mend.
    let mut in_order: Vec<_> = drafts.frontends.iter().collect();
    in_order.sort_by_key(|(_, draft)| draft.ports.first().map(|place| place.at));
    for (name, draft) in in_order {
        for (port, place) in draft.object.ports.iter().zip(&draft.ports) {
            for address in &draft.object.addresses {
                let key = (*address, port.port, port.protocol);
                if let Some((other, line)) = seen.insert(key, (name, place.at.line)) {
                    let (port, protocol) = (port.port, port.protocol);
                    report.error(
                        place,
                        format!(
                            "Frontend/{name} and Frontend/{other} (line {line}) both have \
                             {address} port {port}/{protocol}; allowed: one of them"
                        ),
                    );
                }
            }
        }
        check_probe(draft, report);
    }
}

/// A check without a port asks the backend's own port by TCP, which a UDP server does not answer.
fn check_probe(draft: &FrontendDraft, report: &Report) {
    let Some(check) = &draft.object.check else { return };
    let ports = &draft.object.ports;
    let unanswered = ports
        .iter()
        .find(|udp| udp.protocol == Protocol::Udp && !ports.iter().any(|tcp| tcp.same_server(udp)));
    if let (None, Some(udp)) = (check.port, unanswered) {
        report.error(
            &draft.check,
            format!(
                "`port` is missing: nothing answers TCP on the target of port {}/UDP",
                udp.port
            ),
        );
    }
}

/// Within one port a backend is listed once, and everywhere it lives on the same node.
fn check_backends(intent: &Intent, drafts: &Drafts, report: &Report) {
    let mut homes: BTreeMap<SocketAddr, (&str, &str)> = BTreeMap::new();
    for (name, draft) in &drafts.frontends {
        let Pool::Members(members) = &intent.frontends[name.as_str()].pool else { continue };
        let mut twice = BTreeSet::new();
        for port in &draft.object.ports {
            let mut seen = BTreeSet::new();
            for (index, (member, place)) in members.iter().zip(&draft.members).enumerate() {
                let target = member.port.unwrap_or(port.target_port);
                let backend = SocketAddr::new(member.address, target);
                if !seen.insert(backend) && twice.insert(index) {
                    report.error(place, format!("{backend} is a member twice; allowed: once"));
                }
                let (home, other) = *homes.entry(backend).or_insert((&member.node, name));
                if home != member.node && !member.node.is_empty() && !home.is_empty() {
                    report.error(
                        place,
                        format!(
                            "{backend} is on node `{}` here and on `{home}` in Frontend/{other}",
                            member.node
                        ),
                    );
                }
            }
        }
    }
}

/// Every address has a member of its family, every member an address of its.
fn check_families(intent: &Intent, drafts: &Drafts, report: &Report) {
    let family = |address: &IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
    for (name, draft) in &drafts.frontends {
        let object = &intent.frontends[name.as_str()];
        let Some(port) = object.ports.first() else { continue };
        for (address, place) in object.addresses.iter().zip(&draft.addresses) {
            if intent.members(object, *address, port).is_empty() {
                let family = family(address);
                report.error(place, format!("{address} has no {family} member in its pool"));
            }
        }
        let Pool::Members(members) = &object.pool else { continue };
        for (member, place) in members.iter().zip(&draft.members) {
            let same = |address: &IpAddr| address.is_ipv4() == member.address.is_ipv4();
            if !object.addresses.iter().any(same) {
                let family = family(&member.address);
                report.error(
                    place,
                    format!("{} serves no address: none is {family}", member.address),
                );
            }
        }
    }
}

/// Somebody may announce it.
fn check_announcers(intent: &Intent, drafts: &Drafts, report: &Report) {
    for (name, draft) in &drafts.frontends {
        let selector = &intent.frontends[name.as_str()].announce.nodes;
        if !intent.nodes.values().any(|node| selector.matches(&node.labels)) {
            let message = "no node has the labels of `nodeSelector`: nobody would announce it";
            report.error(&draft.announce, message);
        }
    }
}

/// What the maps can hold.
fn check_limits(intent: &Intent, agent: &AgentDraft, report: &Report) {
    let limits = &intent.agent.limits;
    let (mut frontends, mut ranges) = (0, 0);
    let (mut vips, mut backends) = (BTreeSet::<&IpAddr>::new(), BTreeSet::<SocketAddr>::new());
    // Equal pools with equal slots share a table.
    let mut tables = BTreeSet::new();
    for object in intent.frontends.values() {
        frontends += object.addresses.len() * object.ports.len();
        vips.extend(&object.addresses);
        for address in &object.addresses {
            let of_port = object.ranges_of(*address).map_or(0, |ranges| ranges.len());
            ranges += of_port * object.ports.len();
            for port in &object.ports {
                let mut members = intent.members(object, *address, port);
                members.sort_unstable();
                backends.extend(members.iter().map(|member| member.endpoint));
                tables.insert((intent.slots(object), members));
            }
        }
    }
    let filled = |slots: u32| blocks(slots) as usize;
    // One more of the largest: a new table is written before the old one is free.
    let spare = tables.iter().map(|(slots, _)| filled(*slots)).max().unwrap_or(0);
    let table_blocks = spare + tables.iter().map(|(slots, _)| filled(*slots)).sum::<usize>();
    let tables = tables.len();
    for (what, needed, name, limit) in [
        ("frontends (addresses × ports)".to_owned(), frontends, "frontends", limits.frontends),
        ("different addresses of frontends".to_owned(), vips.len(), "vips", limits.vips),
        ("nodes".to_owned(), intent.nodes.len(), "nodes", limits.nodes),
        (
            "source ranges (for each address of their family and each port)".to_owned(),
            ranges,
            "sourceRanges",
            limits.source_ranges,
        ),
        // Index 0 of both means "none".
        ("different backends".to_owned(), backends.len(), "backends", limits.backends - 1),
        (
            format!("blocks of 16 slots for {tables} slot tables and one to switch"),
            table_blocks,
            "ownerBlocks",
            limits.owner_blocks - 1,
        ),
    ] {
        if needed > limit as usize {
            report.error(
                &agent.limits,
                format!("{needed} {what}, but `limits.{name}` leaves room for {limit}; raise it"),
            );
        }
    }
}
