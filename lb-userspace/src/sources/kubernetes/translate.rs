//! What Services mean: one object of the Intent for each port of a Service that has addresses.
//!
//! Pure: equal inputs and memory give equal outputs, Service by Service. What cannot be served as asked becomes a [`Problem`] of
//! that Service and costs only it. Nothing here thinks up an address: they stand in the Service's status.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use super::{
    members::{Chosen, Endpoints, Found, Memory, NodeView},
    near::{Hinted, Near},
    snapshot::{
        self, EXCLUDED, Name, Objects, Service, ServicePort, Slice, Snapshot, TO_BE_DELETED,
        Transport,
    },
};
use crate::{
    config,
    model::{
        AnnouncePolicy, Check, Cidr, Delivery, FrontendObject, FrontendPort, KubernetesSettings,
        Members, Node, Pool, PoolMember, Problem, Protocol, Selector, Verdicts, intent,
    },
};

/// How a Service's endpoints are probed: `tcp`, as where it is absent, or `none`.
const CHECK: &str = "weir.dev/health-check";

/// Of before `spec.loadBalancerSourceRanges`; it counts where that is empty.
const RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Label of a node: where it stands.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Most endpoints that one problem names.
const MAX_NAMED: usize = 3;

/// What a translation is made of.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub snapshot: &'a Snapshot,
    pub settings: &'a KubernetesSettings,
    /// Name of this node, which `members` do not tell at the start.
    pub own: &'a str,
    /// All nodes, the file's too.
    pub nodes: &'a BTreeMap<String, Node>,
    /// [`vips`] of the snapshot.
    pub vips: &'a BTreeSet<IpAddr>,
    /// Of the snapshot.
    pub slices: &'a SliceIndex,
    pub members: &'a Members,
    pub verdicts: &'a Verdicts,
    pub now: Instant,
}

/// What one Service became.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Translated {
    /// By name.
    pub frontends: BTreeMap<String, FrontendObject>,
    pub problems: Vec<Problem>,
    /// How many endpoints serve although the API calls them not ready. Where there are any, a new verdict may
    /// change the outcome.
    pub held: usize,
}

/// The addresses of all Services of ours.
pub fn vips(snapshot: &Snapshot, settings: &KubernetesSettings) -> BTreeSet<IpAddr> {
    let services = snapshot.services.values();
    let ours = services.filter(|service| service.is_ours(settings.default_class));
    ours.flat_map(|service| service.addresses()).collect()
}

/// Which slices each Service has, by names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SliceIndex(BTreeMap<Name, BTreeSet<Arc<Name>>>);

impl SliceIndex {
    /// Follows a slice that came, changed or went.
    pub fn follow(&mut self, name: &Arc<Name>, before: Option<&Slice>, now: Option<&Slice>) {
        if let Some(slice) = before
            && let Some(names) = self.0.get_mut(&slice.service)
        {
            names.remove(name);
            if names.is_empty() {
                self.0.remove(&slice.service);
            }
        }
        if let Some(slice) = now {
            self.0.entry(slice.service.clone()).or_default().insert(name.clone());
        }
    }

    /// A Service's, in the order of their names.
    fn slices<'a>(
        &self,
        service: &Name,
        all: &'a Objects<Slice>,
    ) -> impl Iterator<Item = &'a Slice> {
        let names = self.0.get(service).into_iter().flatten();
        names.filter_map(|name| all.get(name)).map(|slice| &**slice)
    }
}

/// Which nodes only the API does not hear; and whether any kubelet is silent.
fn look_at_nodes<'a>(inputs: &Inputs<'a>, memory: &mut Memory) -> (NodeView<'a>, bool) {
    let nodes = inputs.snapshot.nodes.values();
    let unknown: BTreeSet<&str> =
        nodes.filter(|it| it.unknown).map(|it| it.name.as_str()).collect();
    memory.unknown.retain(|name, _| unknown.contains(name.as_str()));
    let mut view = NodeView::default();
    for name in &unknown {
        let since = *memory.unknown.entry((*name).to_owned()).or_insert(inputs.now);
        let members = inputs.members;
        // An agent that starts takes nobody for dead.
        let heard = *name == inputs.own
            || !members.ready
            || members.nodes.get(*name).is_some_and(|it| it.life.forwards());
        if heard {
            view.half_dead.insert(name, since);
        }
    }
    (view, !unknown.is_empty())
}

/// Says of Services, one by one, what they become.
pub struct Translation<'a> {
    inputs: &'a Inputs<'a>,
    view: NodeView<'a>,
    /// Some node's kubelet is silent: what gossip says of nodes may change the outcome of any Service.
    pub half_dead: bool,
    owners: BTreeMap<IpAddr, &'a str>,
    /// This node's.
    zone: Option<&'a str>,
}

impl<'a> Translation<'a> {
    pub fn new(inputs: &'a Inputs<'a>, memory: &mut Memory) -> Self {
        let (view, half_dead) = look_at_nodes(inputs, memory);
        let owners = intent::owners_of_addresses(inputs.nodes);
        let own = inputs.nodes.get(inputs.own);
        let zone = own.and_then(|node| node.labels.get(ZONE)).map(String::as_str);
        Self { inputs, view, half_dead, owners, zone }
    }

    /// What one of them becomes: nothing, if it is not ours, ends, or has no address.
    pub fn service(&self, service: &Service, memory: &mut Memory) -> Translated {
        let mut translated = Translated::default();
        let ours = service.is_ours(self.inputs.settings.default_class) && !service.ending;
        if ours && service.addresses().next().is_some() {
            self.add(&mut translated, memory, service);
        }
        translated
    }

    fn add(&self, translated: &mut Translated, memory: &mut Memory, service: &Service) {
        let mut problems = Problems { service: &service.name, list: &mut translated.problems };
        let addresses = addresses(service, &mut problems);
        let Ok(source_ranges) = source_ranges(service, &addresses, &mut problems) else { return };
        let check = check(service, &mut problems);
        for port in &service.ports {
            let protocol = match port.transport {
                Transport::Tcp => Protocol::Tcp,
                Transport::Udp => Protocol::Udp,
                Transport::Sctp => {
                    problems.add(format!(
                        "port {}/SCTP is not served: weir knows TCP and UDP",
                        port.port
                    ));
                    continue;
                }
            };
            let mut addresses = addresses.clone();
            for address in service.addresses_without(port) {
                addresses.retain(|it| *it != address);
            }
            if addresses.is_empty() {
                continue;
            }
            let endpoints = self.endpoints(service, port, &mut problems);
            let name = object_name(&service.name, port);
            // Nothing tells whether a server of UDP serves.
            let check = check.as_ref().filter(|_| protocol == Protocol::Tcp);
            let asked = (check, self.inputs.verdicts);
            let (local_only, now) = (service.local_only, self.inputs.now);
            let chosen = memory.choose(&name, &endpoints, &self.view, asked, local_only, now);
            if chosen.held > 0 {
                problems.add(format!(
                    "port {}: {} endpoints serve although Kubernetes calls them not ready: it calls all of them \
                     so, or does not hear their nodes, while probes or gossip do",
                    port.port, chosen.held
                ));
            }
            translated.held += chosen.held;
            let target_port = port.target.unwrap_or(port.port);
            let near = Near::among(usable(&endpoints, &chosen));
            let object = FrontendObject {
                name: name.clone(),
                addresses,
                ports: vec![FrontendPort { port: port.port, protocol, target_port }],
                pool: Pool::Members(pool(&endpoints, &chosen, near)),
                delivery: Delivery::Tunnel,
                check: check.cloned(),
                slots: None,
                client_affinity: service.client_affinity,
                echo: true,
                local_only,
                by_place: near.by_place(),
                announce: self.announcers(),
                source_ranges: source_ranges.clone(),
            };
            translated.frontends.insert(name, object);
        }
    }

    /// All nodes but those that are to stand behind no load balancer.
    fn announcers(&self) -> AnnouncePolicy {
        let labels = [EXCLUDED, TO_BE_DELETED].into_iter().map(str::to_owned);
        let without = match self.inputs.settings.ignore_exclude_label {
            true => BTreeSet::new(),
            false => labels.collect(),
        };
        let nodes = Selector { without, ..Selector::default() };
        AnnouncePolicy { nodes, ..AnnouncePolicy::default() }
    }

    /// Endpoints of a port, of all slices; the same one twice counts once.
    fn endpoints(
        &self,
        service: &Service,
        port: &ServicePort,
        problems: &mut Problems<'_>,
    ) -> Endpoints {
        let mut endpoints = Endpoints::new();
        let mut homeless = BTreeSet::new();
        let own = self.inputs.own;
        for slice in self.inputs.slices.slices(&service.name, &self.inputs.snapshot.slices) {
            let of_port =
                |it: &&snapshot::SlicePort| it.name == port.name && it.transport == port.transport;
            let Some(slice_port) = slice.ports.iter().find(of_port) else { continue };
            // A port without a number is every port.
            let target = slice_port.port.unwrap_or(port.port);
            for endpoint in &slice.endpoints {
                let address = SocketAddr::new(endpoint.address, target);
                let owner = self.owners.get(&endpoint.address).copied();
                let node = endpoint.node.as_deref().or(owner);
                let node = node.filter(|node| self.inputs.nodes.contains_key(*node));
                let usable = config::unicast(endpoint.address).is_ok()
                    && !self.inputs.vips.contains(&endpoint.address);
                let Some(node) = node.filter(|_| usable) else {
                    homeless.insert(address);
                    continue;
                };
                let found = Found {
                    node: node.to_owned(),
                    ready: endpoint.ready,
                    serving: endpoint.serving,
                    terminating: endpoint.terminating,
                    hinted: Hinted::of(endpoint.hints.as_deref(), own, self.zone),
                };
                let known = endpoints.entry(address).or_insert_with(|| found.clone());
                if better(&found) > better(known) {
                    *known = found;
                }
            }
        }
        if !homeless.is_empty() {
            let named = homeless.iter().take(MAX_NAMED).map(SocketAddr::to_string);
            problems.add(format!(
                "{} endpoints cannot be reached by the tunnel, such as {}: an endpoint must be a unicast address \
                 on a node that is known, and no load balancer's own",
                homeless.len(),
                named.collect::<Vec<_>>().join(", ")
            ));
        }
        endpoints
    }
}

/// Slices may overlap for a moment: the better word counts.
fn better(found: &Found) -> (bool, bool, bool) {
    (found.ready, found.serving, !found.terminating)
}

/// The endpoints that take new flows.
fn usable<'a>(endpoints: &'a Endpoints, chosen: &Chosen) -> impl Iterator<Item = &'a Found> {
    endpoints.iter().filter(|(address, _)| chosen.usable.contains(address)).map(|(_, found)| found)
}

fn pool(endpoints: &Endpoints, chosen: &Chosen, near: Near) -> Vec<PoolMember> {
    let members = endpoints.iter().filter_map(|(address, found)| {
        let terminating = chosen.ending.contains(address);
        (terminating || chosen.usable.contains(address)).then(|| PoolMember {
            address: address.ip(),
            port: Some(address.port()),
            weight: 1,
            node: found.node.clone(),
            terminating,
            far: near.is_far(found),
        })
    });
    let mut members: Vec<_> = members.collect();
    members.shrink_to_fit();
    members
}

fn object_name(service: &Name, port: &ServicePort) -> String {
    let prefix = intent::OF_SERVICE;
    match port.name.as_str() {
        "" => format!("{prefix}{service}/{}", port.port),
        name => format!("{prefix}{service}/{name}"),
    }
}

struct Problems<'a> {
    service: &'a Name,
    list: &'a mut Vec<Problem>,
}

impl Problems<'_> {
    fn add(&mut self, message: String) {
        self.list.push(Problem { object: format!("Service/{}", self.service), message });
    }
}

fn addresses(service: &Service, problems: &mut Problems<'_>) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in service.addresses() {
        match config::unicast(address) {
            Ok(()) if !addresses.contains(&address) => addresses.push(address),
            Ok(()) => {}
            Err(what) => {
                problems.add(format!("{address} in its status is {what}: it is not served"))
            }
        }
    }
    addresses
}

/// Who may connect. `Err`: nobody can tell, so it must not be served.
fn source_ranges(
    service: &Service,
    addresses: &[IpAddr],
    problems: &mut Problems<'_>,
) -> Result<Vec<Cidr>, ()> {
    let legacy = service.annotations.get(RANGES).map(String::as_str).unwrap_or_default();
    let legacy = legacy.split(',').map(str::trim).filter(|text| !text.is_empty());
    let texts: Vec<&str> = match service.source_ranges.is_empty() {
        true => legacy.collect(),
        false => service.source_ranges.iter().map(String::as_str).collect(),
    };
    let mut ranges = BTreeSet::new();
    for text in texts {
        match text.parse::<Cidr>() {
            Ok(range) => {
                ranges.insert(range);
            }
            Err(message) => {
                problems.add(format!(
                    "loadBalancerSourceRanges: {message}; it is not served until then"
                ));
                return Err(());
            }
        }
    }
    for (v4, family) in [(true, "IPv4"), (false, "IPv6")] {
        let given = ranges.iter().any(|range| range.address().is_ipv4() == v4);
        if !ranges.is_empty() && !given && addresses.iter().any(|it| it.is_ipv4() == v4) {
            problems.add(format!(
                "loadBalancerSourceRanges has no {family} network, so its {family} address is closed to all: add \
                 one to open it"
            ));
        }
    }
    Ok(ranges.into_iter().collect())
}

fn check(service: &Service, problems: &mut Problems<'_>) -> Option<Check> {
    match service.annotations.get(CHECK).map(|text| text.trim()) {
        Some("none") => return None,
        None | Some("tcp") => {}
        Some(other) => {
            problems
                .add(format!("{CHECK}: `{other}` is no check; allowed: tcp, none; tcp is used"));
        }
    }
    Some(config::default_check())
}

#[cfg(test)]
#[path = "translate_tests.rs"]
mod tests;
