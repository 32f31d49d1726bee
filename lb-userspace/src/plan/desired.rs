//! The wanted state of the data plane.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::{abi::MAX_SLOTS, frontend::Endpoint, service::flags};

use super::{
    askers::Askers,
    flows::{Claimed, Former, Owners},
};
use crate::model::{
    Cidr, Drained, FrontendObject, FrontendPort, Intent, Member, Members, Node, Problem, Protocol,
    Stage, Target, Verdicts, intent::probe_address,
};
use crate::threads;

/// Fewer objects than this to look at: not worth a thread.
const WORTH_A_THREAD: usize = 256;

/// What a plan is made of.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub intent: &'a Intent,
    pub verdicts: &'a Verdicts,
    pub members: &'a Members,
    /// A plan made with another one is not followed but made anew.
    pub drained: &'a Drained,
}

/// What the data plane should hold. Keys are sorted, so equal plans compare equal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// By [`endpoint_key`] order: address, port, protocol.
    pub frontends: BTreeMap<FrontendKey, DesiredFrontend>,
    /// Every backend of every pool, also those that own nothing now: they keep their id and their
    /// arrivals. [`super::History`] adds those that left all pools while somebody may know their flows.
    pub backends: BTreeMap<SocketAddr, DesiredBackend>,
    /// Those of them that take no new flows because they are drained or terminate.
    pub ending: BTreeSet<SocketAddr>,
    /// Members of pools whose deadline has passed: none of the backends, and their flows end at once.
    pub over: BTreeSet<SocketAddr>,
    pub vips: BTreeMap<IpAddr, DesiredVip>,
    /// All configured nodes by name: hops and members. Death removes none.
    pub nodes: BTreeMap<String, DesiredNode>,
    pub problems: Vec<Problem>,
}

/// A frontend's identity.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct FrontendKey {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
}

impl FrontendKey {
    /// As the maps hold it.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::new(
            self.address.into(),
            lb_common::net::Port::new(self.port),
            self.protocol.number(),
        )
    }

    /// From the maps; none where it is no frontend's.
    pub fn of(endpoint: &Endpoint) -> Option<Self> {
        let protocol = Protocol::of(endpoint.proto)?;
        Some(Self { address: endpoint.addr.to_ip(), port: endpoint.port.get(), protocol })
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DesiredFrontend {
    /// Name of the object it comes from.
    pub object: String,
    pub slots: u32,
    /// Who may own slots now, with weights ≥ 1; sorted by address. Healthy and on nodes that serve.
    pub owners: Arc<Owners>,
    /// The same for sockets on this node where these are led by other rules than packets: where only local
    /// backends may own slots, to all.
    pub inside: Option<Arc<Owners>>,
    /// `lb_common::service::flags`; `YOUNG` is [`super::History`]'s to set.
    pub flags: u32,
    /// Networks whose clients it takes, all of its address's family; none: everybody's.
    pub ranges: Option<Arc<BTreeSet<Cidr>>>,
    /// What stands in the past places, newest first, at most [`super::flows::PAST`]. Written by
    /// [`super::History`], like `claims`.
    pub past: Vec<Former>,
    /// Who still knows flows of slots that others own now.
    pub claims: Option<Arc<Claimed>>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DesiredBackend {
    /// Name of its node.
    pub node: String,
    /// Protocols it is reached by: entries of `LOCAL_BACKENDS` where it is local.
    pub protocols: BTreeSet<Protocol>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DesiredVip {
    /// ICMP echo is answered.
    pub echo: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DesiredNode {
    pub addresses: Vec<IpAddr>,
}

/// What this node should forward and announce. Same inputs, same output, same order; the order in
/// which objects came does not matter.
///
/// An object that cannot be served as asked becomes a [`Problem`] and costs only itself: of two that
/// claim the same frontend the first by name has it.
pub fn desired(inputs: &Inputs<'_>) -> Desired {
    let mut plan = Desired { nodes: desired_nodes(inputs.intent), ..Desired::default() };
    for object in inputs.intent.frontends.values() {
        add_object(&mut plan, inputs, object);
    }
    plan.problems.sort();
    plan.problems.dedup();
    plan
}

/// All configured nodes, as a plan holds them.
pub fn desired_nodes(intent: &Intent) -> BTreeMap<String, DesiredNode> {
    let node = |node: &Node| DesiredNode { addresses: node.addresses.clone() };
    intent.nodes.values().map(|it| (it.name.clone(), node(it))).collect()
}

/// Follows what came since a plan was made of the same intent: equal to a new plan. Returns the frontends whose owners changed.
///
/// `targets` have a new verdict; `nodes` began to serve, or ceased to. `askers` are those of the intent.
pub fn follow<'a>(
    plan: &mut Desired,
    inputs: &Inputs<'_>,
    askers: &Askers,
    targets: impl Iterator<Item = &'a Target>,
    nodes: impl Iterator<Item = &'a str>,
) -> BTreeSet<FrontendKey> {
    let (targets, nodes): (BTreeSet<_>, BTreeSet<_>) = (targets.collect(), nodes.collect());
    let of_targets = targets.iter().filter_map(|target| askers.by_target.get(*target)).flatten();
    let of_nodes = nodes.iter().filter_map(|node| askers.by_node.get(*node)).flatten();
    let objects: BTreeSet<&Arc<str>> = of_targets.chain(of_nodes).collect();
    let objects = objects.into_iter().filter_map(|name| inputs.intent.frontends.get(&**name));
    let objects: Vec<&FrontendObject> = objects.map(|object| &**object).collect();
    let concerned = |object: &FrontendObject, port: &FrontendPort, member: &Member<'_>| {
        let asked = || target(object, port, member.endpoint);
        nodes.contains(member.node)
            || !targets.is_empty() && asked().is_some_and(|asked| targets.contains(&asked))
    };
    let backends = &plan.backends;
    let found = threads::map(&objects, WORTH_A_THREAD, |object| {
        let changes = frontends_of(object).map(|(address, port)| {
            let key = FrontendKey { address, port: port.port, protocol: port.protocol };
            let mut members = inputs.intent.members(object, address, port);
            // Where every node has a table of its own one member may stand in for another.
            let of_these = members.iter();
            let of_these = of_these.filter(|it| object.by_node() || concerned(object, port, it));
            let endpoints: Vec<_> = of_these.map(|member| member.endpoint).collect();
            members.retain(|member| endpoints.contains(&member.endpoint));
            (key, endpoints, owners(backends, inputs, object, port, &members))
        });
        changes.collect::<Vec<_>>()
    });
    let mut moved = BTreeSet::new();
    for (object, changes) in objects.iter().zip(found) {
        for (key, endpoints, (now, now_inside)) in changes {
            let frontend = plan.frontends.get_mut(&key).filter(|it| it.object == object.name);
            let Some(DesiredFrontend { owners, inside, .. }) = frontend else { continue };
            let now_inside = now_inside.map(Arc::new);
            if *inside != now_inside {
                *inside = now_inside;
                moved.insert(key);
            }
            if endpoints.iter().any(|endpoint| owners.get(endpoint) != now.get(endpoint)) {
                let owners = Arc::make_mut(owners);
                owners.retain(|endpoint, _| !endpoints.contains(endpoint));
                owners.extend(now);
                moved.insert(key);
            }
        }
    }
    moved
}

/// For each VIP of local-only frontends the nodes with a backend of theirs that may own slots: only they
/// may announce it.
///
/// `askers` are those of the intent.
pub fn holders(inputs: &Inputs<'_>, askers: &Askers) -> BTreeMap<IpAddr, BTreeSet<String>> {
    let mut holders: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
    for object in askers.local.iter().filter_map(|name| inputs.intent.frontends.get(&**name)) {
        for (address, port) in frontends_of(object) {
            let members = inputs.intent.members(object, address, port).into_iter();
            let serving = members.filter(|member| serves(inputs, object, port, member));
            let nodes = serving.map(|member| member.node.to_owned());
            holders.entry(address).or_default().extend(nodes);
        }
    }
    holders
}

/// Names of the objects with a frontend whose pool takes no new flows because all of it is out of service.
pub fn all_drained<'a>(intent: &'a Intent, drained: &Drained) -> BTreeSet<&'a str> {
    let empty = |object: &&Arc<FrontendObject>| {
        frontends_of(object)
            .any(|(address, port)| takes_nobody(drained, &intent.members(object, address, port)))
    };
    intent.frontends.values().filter(empty).map(|object| object.name.as_str()).collect()
}

/// The members of all pools, with the names of their nodes; where pools disagree, the first object's.
pub fn pooled(intent: &Intent) -> BTreeMap<SocketAddr, &str> {
    let mut pooled = BTreeMap::new();
    for object in intent.frontends.values() {
        for (address, port) in frontends_of(object) {
            for member in intent.members(object, address, port) {
                pooled.entry(member.endpoint).or_insert(member.node);
            }
        }
    }
    pooled
}

/// Addresses and ports of an object.
pub(super) fn frontends_of(
    object: &FrontendObject,
) -> impl Iterator<Item = (IpAddr, &FrontendPort)> {
    let of_address = |address: &IpAddr| {
        let address = *address;
        object.ports.iter().map(move |port| (address, port))
    };
    object.addresses.iter().flat_map(of_address)
}

/// How a backend is probed for a port. Nothing tells whether a UDP server serves, unless the check
/// has a port of its own or the same server is reached by TCP too.
pub(super) fn target(
    object: &FrontendObject,
    port: &FrontendPort,
    backend: SocketAddr,
) -> Option<Target> {
    let check = object.check.as_ref()?;
    let asked = port.protocol == Protocol::Tcp
        || check.port.is_some()
        || object.ports.iter().any(|tcp| tcp.same_server(port));
    asked.then(|| Target { address: probe_address(backend, check), check: check.clone() })
}

pub(super) fn add_object(plan: &mut Desired, inputs: &Inputs<'_>, object: &FrontendObject) {
    let slots = inputs.intent.slots(object);
    let mut problem = |message: String| {
        plan.problems.push(Problem { object: object.origin(), message });
    };
    if !(1..=MAX_SLOTS).contains(&slots) {
        return problem(format!("{slots} slots; allowed: 1 to {MAX_SLOTS} (spec.slots)"));
    }
    let flags = flags_of(object);
    for (address, port) in frontends_of(object) {
        let key = FrontendKey { address, port: port.port, protocol: port.protocol };
        let shown = format!("{address} port {}/{}", port.port, port.protocol);
        if let Some(other) = plan.frontends.get(&key) {
            let other = inputs.intent.frontends.get(other.object.as_str()).map(|it| it.origin());
            problem(format!("{} has {shown} already", other.unwrap_or_default()));
            continue;
        }
        if let Some(owner) = host_of(inputs.intent, address) {
            problem(format!(
                "{address} is Node/{}'s own address; choose one no host owns",
                owner.name
            ));
            continue;
        }
        let mut weighted = 0;
        let mut members = inputs.intent.members(object, address, port);
        if takes_nobody(inputs.drained, &members) {
            problem(format!(
                "all backends of {shown} are drained or terminating: new flows are refused; \
                 `weir status` shows who ordered it, `weir undrain` puts one back"
            ));
        }
        let over = |it: &Member<'_>| inputs.drained.stage(it) == Some(Stage::Over);
        plan.over.extend(members.extract_if(.., |it| over(it)).map(|it| it.endpoint));
        let ending = members.iter().filter(|it| inputs.drained.stage(it).is_some());
        plan.ending.extend(ending.map(|it| it.endpoint));
        for member in &members {
            match add_backend(&mut plan.backends, inputs, member, port.protocol) {
                Ok(()) => weighted += usize::from(member.weight > 0),
                Err(message) => problem(message),
            }
        }
        // Of all, served or not: problems must not come and go with health.
        let most = max_owners(slots);
        if weighted > most {
            problem(format!(
                "{weighted} backends serve {shown}, but of {slots} slots at most {most} of them get \
                 any: raise spec.slots of a new frontend, or defaultSlots before it is made"
            ));
        }
        let (owners, inside) = owners(&plan.backends, inputs, object, port, &members);
        let frontend = DesiredFrontend {
            object: object.name.clone(),
            slots,
            owners: Arc::new(owners),
            inside: inside.map(Arc::new),
            flags,
            ranges: object.ranges_of(address).map(Arc::new),
            past: Vec::new(),
            claims: None,
        };
        plan.frontends.insert(key, frontend);
        plan.vips.entry(address).or_insert(DesiredVip { echo: false }).echo |= object.echo;
    }
}

/// Whether a pool has members with weight, and every one of them is out of service.
fn takes_nobody(drained: &Drained, members: &[Member<'_>]) -> bool {
    let mut weighted = members.iter().filter(|member| member.weight > 0).peekable();
    weighted.peek().is_some() && weighted.all(|member| drained.stage(member).is_some())
}

fn flags_of(object: &FrontendObject) -> u32 {
    let affinity = if object.client_affinity { flags::CLIENT_AFFINITY } else { 0 };
    let local = if object.local_only { flags::LOCAL_ONLY } else { 0 };
    // Views never meet.
    let alone = if object.by_node() { flags::ALWAYS_YOUNG } else { 0 };
    affinity | local | alone
}

/// Backends that own slots in a table: the best ranked of more.
pub fn max_owners(slots: u32) -> usize {
    (slots / 20).max(1) as usize
}

fn host_of(intent: &Intent, address: IpAddr) -> Option<&Node> {
    intent.nodes.values().find(|node| node.addresses.contains(&address))
}

/// Those of these members of a frontend's pool that may own slots and are backends of the plan: for packets,
/// and for sockets on this node where that differs.
fn owners(
    backends: &BTreeMap<SocketAddr, DesiredBackend>,
    inputs: &Inputs<'_>,
    object: &FrontendObject,
    port: &FrontendPort,
    members: &[Member<'_>],
) -> (Owners, Option<Owners>) {
    let planned =
        |it: &Member<'_>| backends.get(&it.endpoint).is_some_and(|found| found.node == it.node);
    let serving = members.iter().filter(|it| planned(it) && serves(inputs, object, port, it));
    let serving: Vec<&Member<'_>> = serving.collect();
    let those = |wanted: &dyn Fn(&Member<'_>) -> bool| {
        let those = serving.iter().filter(|it| wanted(it));
        those.map(|it| (it.endpoint, it.weight)).collect::<Owners>()
    };
    let any_near = serving.iter().any(|it| !it.far);
    let near = those(&|it| !it.far || !any_near);
    match object.local_only {
        false => (near, None),
        true => (those(&|it| it.node == inputs.members.own), Some(near)),
    }
}

/// Whether a member takes new flows: nobody took it out of service, its node serves, and no probe says
/// that it is down.
fn serves(
    inputs: &Inputs<'_>,
    object: &FrontendObject,
    port: &FrontendPort,
    member: &Member<'_>,
) -> bool {
    let down = || {
        let verdict =
            target(object, port, member.endpoint).and_then(|target| inputs.verdicts.get(&target));
        verdict.is_some_and(|health| !health.serves())
    };
    let stays = member.weight > 0 && inputs.drained.stage(member).is_none();
    stays && inputs.members.serves(member.node) && !down()
}

fn add_backend(
    backends: &mut BTreeMap<SocketAddr, DesiredBackend>,
    inputs: &Inputs<'_>,
    member: &Member<'_>,
    protocol: Protocol,
) -> Result<(), String> {
    if !inputs.intent.nodes.contains_key(member.node) {
        return Err(format!(
            "member {} is on node `{}`, which no Node object describes",
            member.endpoint, member.node
        ));
    }
    let backend = backends.entry(member.endpoint).or_insert_with(|| DesiredBackend {
        node: member.node.to_owned(),
        protocols: BTreeSet::new(),
    });
    if backend.node != member.node {
        return Err(format!(
            "member {} is on node `{}` here, but on `{}` elsewhere",
            member.endpoint, member.node, backend.node
        ));
    }
    backend.protocols.insert(protocol);
    Ok(())
}

#[cfg(test)]
mod tests;
