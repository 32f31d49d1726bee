//! Puts what Kubernetes asks for beside what the file asks for. Pure.
//!
//! The file wins, whole object by whole object: a node that both describe is the file's, and an address and port
//! that a Frontend of the file has is no other's. This node stays known whatever Kubernetes says of it.
//!
//! What did not change is not looked at again: a change of one Service costs that Service, and a walk over
//! what is shared. The outcome is the same as if everything were looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use super::{
    members::Memory,
    snapshot::{self, Name, Objects, Snapshot},
    translate::{self, Translated, Translation},
};
use crate::{
    config,
    model::{
        FrontendObject, Intent, KubernetesSettings, Members, Node, Pool, Problem, Protocol,
        Verdicts, intent,
    },
};

/// What a merged intent is made of.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub file: &'a Arc<Intent>,
    /// `file` is a checkpoint of everything, and not what the file says now.
    pub stale: bool,
    /// The same every time.
    pub settings: &'a KubernetesSettings,
    pub snapshot: &'a Snapshot,
    pub members: &'a Members,
    pub verdicts: &'a Verdicts,
    pub now: Instant,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// The very one of before where nothing changed.
    pub intent: Arc<Intent>,
    pub problems: Vec<Problem>,
    /// How many endpoints serve although the API calls them not ready: while there are any, a new verdict may
    /// change the outcome.
    pub held: usize,
    /// Some node's kubelet is silent: what gossip says of nodes may change the outcome.
    pub half_dead: bool,
}

/// Merges again and again.
#[derive(Debug)]
pub struct Merger {
    /// In force.
    intent: Arc<Intent>,
    memory: Memory,
    /// None: nothing was merged yet.
    base: Option<Base>,
    /// Of the last merge.
    snapshot: Snapshot,
    vips: BTreeSet<IpAddr>,
    half_dead: bool,
    /// Those that became something.
    services: BTreeMap<Arc<Name>, Became>,
}

/// All but the Services, and what it was made of.
#[derive(Debug)]
struct Base {
    file: Arc<Intent>,
    stale: bool,
    nodes_of_kubernetes: Objects<snapshot::Node>,
    frontends_of_kubernetes: Objects<snapshot::Frontend>,
    nodes: Arc<BTreeMap<String, Node>>,
    frontends: BTreeMap<String, Arc<FrontendObject>>,
    /// What the file's Frontends have.
    taken: BTreeSet<Key>,
    problems: Vec<Problem>,
}

/// What a Service became.
#[derive(Debug, Default)]
struct Became {
    /// Names of its objects, also of those that yielded to the file.
    objects: Vec<String>,
    problems: Vec<Problem>,
    held: usize,
}

impl Merger {
    /// `first` is in force: what a checkpoint holds, or the file alone.
    pub fn new(first: Arc<Intent>) -> Self {
        Self {
            memory: Memory::of(&first),
            intent: first,
            base: None,
            snapshot: Snapshot::default(),
            vips: BTreeSet::new(),
            half_dead: false,
            services: BTreeMap::new(),
        }
    }

    /// Before Kubernetes has said anything: the file's objects, and of those in force what Kubernetes said.
    pub fn resume(&mut self, file: &Intent) -> Merged {
        let resumed = resume(file, &self.intent);
        self.enforce(resumed);
        let intent = self.intent.clone();
        Merged { intent, problems: Vec::new(), held: 0, half_dead: false }
    }

    /// Everything together.
    pub fn merge(&mut self, inputs: &Inputs<'_>) -> Merged {
        let known = self.base.take().filter(|base| base.is_of(inputs));
        let anew = known.is_none();
        let base = known.unwrap_or_else(|| Base::new(inputs, &self.intent));
        let services = match anew || self.half_dead {
            true => {
                self.vips = translate::vips(inputs.snapshot, inputs.settings);
                let names = inputs.snapshot.services.keys();
                names.chain(self.services.keys()).cloned().collect()
            }
            false => self.concerned(inputs),
        };
        let mut frontends = match anew {
            true => base.frontends.clone(),
            false => self.intent.frontends.clone(),
        };
        self.translate(inputs, &base, &services, &mut frontends);
        if anew {
            // Also what a checkpoint knew and nobody names.
            let known: BTreeSet<&str> =
                self.services.values().flat_map(|it| &it.objects).map(String::as_str).collect();
            self.memory.retain(|object| known.contains(object));
        }
        self.snapshot = inputs.snapshot.clone();
        let (agent, nodes) = (base.file.agent.clone(), base.nodes.clone());
        self.enforce(Intent { agent, nodes, frontends });
        let of_services = self.services.values().flat_map(|it| &it.problems);
        let mut problems: Vec<_> = base.problems.iter().chain(of_services).cloned().collect();
        problems.sort();
        problems.dedup();
        self.base = Some(base);
        Merged {
            intent: self.intent.clone(),
            problems,
            held: self.services.values().map(|it| it.held).sum(),
            half_dead: self.half_dead,
        }
    }

    /// The Services that may become something else, where only Services and their slices changed.
    fn concerned(&mut self, inputs: &Inputs<'_>) -> BTreeSet<Arc<Name>> {
        let (before, now) = (&self.snapshot, inputs.snapshot);
        let mut concerned: BTreeSet<Arc<Name>> = BTreeSet::new();
        let mut addresses = false;
        for (name, services) in differing(&before.services, &now.services) {
            let [before, now] = services.map(|service| {
                let ours = service.filter(|it| it.is_ours(inputs.settings.default_class));
                ours.into_iter().flat_map(|it| it.addresses()).collect::<Vec<_>>()
            });
            addresses |= before != now;
            concerned.insert(name.clone());
        }
        let name = |slice: &Arc<snapshot::Slice>| Arc::new(slice.service.clone());
        for (_, slices) in differing(&before.slices, &now.slices) {
            concerned.extend(slices.into_iter().flatten().map(name));
        }
        if addresses {
            let vips = translate::vips(now, inputs.settings);
            // An endpoint on a load balancer's address counts no more, or again.
            let moved: BTreeSet<_> = vips.symmetric_difference(&self.vips).collect();
            let on_moved = |slice: &&Arc<snapshot::Slice>| {
                slice.endpoints.iter().any(|endpoint| moved.contains(&endpoint.address))
            };
            concerned.extend(now.slices.values().filter(on_moved).map(name));
            self.vips = vips;
        }
        let held = self.services.iter().filter(|(_, it)| it.held > 0);
        concerned.extend(held.map(|(name, _)| name.clone()));
        concerned
    }

    /// Puts what these Services become now in the place of what they became before.
    fn translate(
        &mut self,
        inputs: &Inputs<'_>,
        base: &Base,
        services: &BTreeSet<Arc<Name>>,
        frontends: &mut BTreeMap<String, Arc<FrontendObject>>,
    ) {
        let of_services = translate::Inputs {
            snapshot: inputs.snapshot,
            settings: inputs.settings,
            own: &inputs.file.agent.node,
            nodes: &base.nodes,
            vips: &self.vips,
            members: inputs.members,
            verdicts: inputs.verdicts,
            now: inputs.now,
        };
        let translation = Translation::new(&of_services, services, &mut self.memory);
        self.half_dead = translation.half_dead;
        for name in services {
            let before = self.services.remove(name).unwrap_or_default();
            before.objects.iter().for_each(|object| drop(frontends.remove(object)));
            let service = inputs.snapshot.services.get(name);
            let translated = service.map(|it| translation.service(it, &mut self.memory));
            let Translated { frontends: objects, mut problems, held } =
                translated.unwrap_or_default();
            let gone = before.objects.iter().filter(|it| !objects.contains_key(*it));
            gone.for_each(|object| self.memory.forget(object));
            let names: Vec<String> = objects.keys().cloned().collect();
            for object in objects.into_values() {
                frontends.extend(base.admit(object, &self.intent, &mut problems));
            }
            if !names.is_empty() || !problems.is_empty() {
                self.services.insert(name.clone(), Became { objects: names, problems, held });
            }
        }
    }

    /// From now on this is in force; what is equal stays what it was.
    fn enforce(&mut self, mut wanted: Intent) {
        if wanted.nodes == self.intent.nodes {
            wanted.nodes = self.intent.nodes.clone();
        }
        for (name, object) in &mut wanted.frontends {
            if let Some(former) = self.intent.frontends.get(name).filter(|it| *it == object) {
                *object = former.clone();
            }
        }
        if wanted != *self.intent {
            self.intent = Arc::new(wanted);
        }
    }
}

impl Base {
    fn new(inputs: &Inputs<'_>, former: &Intent) -> Self {
        let mut problems = Vec::new();
        let nodes = Arc::new(nodes(inputs, former, &mut problems));
        let (own, found) = own_frontends(inputs, &nodes);
        problems.extend(found);
        let of_file = inputs.file.frontends.iter().filter(|(_, object)| !object.of_kubernetes());
        let of_file = of_file.map(|(name, object)| (name.clone(), object.clone()));
        let mut frontends: BTreeMap<_, _> = of_file.collect();
        let taken = frontends.values().flat_map(|object| keys(object)).collect();
        place(&mut frontends, &nodes);
        let mut base = Self {
            file: inputs.file.clone(),
            stale: inputs.stale,
            nodes_of_kubernetes: inputs.snapshot.nodes.clone(),
            frontends_of_kubernetes: inputs.snapshot.frontends.clone(),
            nodes,
            frontends,
            taken,
            problems: Vec::new(),
        };
        for object in own {
            let admitted = base.admit(object, former, &mut problems);
            base.frontends.extend(admitted);
        }
        base.problems = problems;
        base
    }

    /// Whether it would be the same if it were made anew.
    fn is_of(&self, inputs: &Inputs<'_>) -> bool {
        Arc::ptr_eq(&self.file, inputs.file)
            && self.stale == inputs.stale
            && Arc::ptr_eq(&self.nodes_of_kubernetes, &inputs.snapshot.nodes)
            && Arc::ptr_eq(&self.frontends_of_kubernetes, &inputs.snapshot.frontends)
    }

    /// What of an object of Kubernetes can be in force beside the file, under its name.
    fn admit(
        &self,
        mut object: FrontendObject,
        former: &Intent,
        problems: &mut Vec<Problem>,
    ) -> Option<(String, Arc<FrontendObject>)> {
        yield_to_file(&mut object, &self.taken, problems);
        if object.addresses.is_empty() || object.ports.is_empty() {
            return None;
        }
        keep_slots(former, self.file.agent.default_slots, &mut object, problems);
        Some((object.name.clone(), Arc::new(object)))
    }
}

/// Of two states of all objects of a kind those that are not shared, each before and now.
fn differing<'a, T>(
    before: &'a Objects<T>,
    now: &'a Objects<T>,
) -> impl Iterator<Item = (&'a Arc<Name>, [Option<&'a Arc<T>>; 2])> {
    let (left, right) = match Arc::ptr_eq(before, now) {
        true => (None, None),
        false => (Some(before.iter().peekable()), Some(now.iter().peekable())),
    };
    let mut walks = left.zip(right);
    std::iter::from_fn(move || {
        let (before, now) = walks.as_mut()?;
        loop {
            let pair = match (before.peek(), now.peek()) {
                (None, None) => return None,
                (Some((left, _)), Some((right, _))) => left.cmp(right),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
            };
            let left = before.next_if(|_| pair.is_le());
            let right = now.next_if(|_| pair.is_ge());
            match (left, right) {
                (Some((_, left)), Some((_, right))) if Arc::ptr_eq(left, right) => {}
                (left, right) => {
                    let name = left.or(right)?.0;
                    return Some((name, [left.map(|it| it.1), right.map(|it| it.1)]));
                }
            }
        }
    })
}

/// The file's objects, and of those in a checkpoint what Kubernetes said.
fn resume(file: &Intent, checkpoint: &Intent) -> Intent {
    let mut merged = file.clone();
    let nodes = Arc::make_mut(&mut merged.nodes);
    for (name, node) in checkpoint.nodes.iter() {
        nodes.entry(name.clone()).or_insert_with(|| node.clone());
    }
    let of_kubernetes = checkpoint.frontends.iter().filter(|(_, object)| object.of_kubernetes());
    for (name, object) in of_kubernetes {
        merged.frontends.entry(name.clone()).or_insert_with(|| object.clone());
    }
    merged
}

fn nodes(
    inputs: &Inputs<'_>,
    former: &Intent,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, Node> {
    let own = &inputs.file.agent.node;
    let mut nodes = match inputs.stale {
        false => BTreeMap::clone(&inputs.file.nodes),
        // It cannot be told which of them the file described.
        true => BTreeMap::new(),
    };
    let of =
        |node: &Node| node.addresses.iter().map(|it| (*it, node.name.clone())).collect::<Vec<_>>();
    let mut owners: BTreeMap<IpAddr, String> = nodes.values().flat_map(of).collect();
    for node in inputs.snapshot.nodes.values() {
        if nodes.contains_key(&node.name) {
            continue;
        }
        let mut problem =
            |message| problems.push(Problem { object: format!("Node/{}", node.name), message });
        let usable = node.addresses.iter().copied().filter(|it| config::unicast(*it).is_ok());
        let addresses: Vec<IpAddr> = usable.collect();
        if addresses.is_empty() {
            problem("it has no InternalIP yet: the tunnel does not know the way to it".to_owned());
            continue;
        }
        if let Some((address, other)) =
            addresses.iter().find_map(|address| Some((address, owners.get(address)?)))
        {
            problem(format!(
                "{address} is Node/{other}'s already: name it the same in the file and in Kubernetes"
            ));
            continue;
        }
        owners.extend(addresses.iter().map(|address| (*address, node.name.clone())));
        let labels = node.labels.clone();
        nodes.insert(node.name.clone(), Node { name: node.name.clone(), addresses, labels });
    }
    if !nodes.contains_key(own)
        && let Some(former) = former.nodes.get(own).or(inputs.file.nodes.get(own))
    {
        let message = "Kubernetes does not know this node; what was known of it before stays";
        problems.push(Problem { object: format!("Node/{own}"), message: message.into() });
        nodes.insert(own.clone(), former.clone());
    }
    nodes
}

/// Our objects in Kubernetes, under the names that they have in an intent.
fn own_frontends(
    inputs: &Inputs<'_>,
    nodes: &Arc<BTreeMap<String, Node>>,
) -> (Vec<FrontendObject>, Vec<Problem>) {
    let objects = inputs.snapshot.frontends.iter().filter(|(_, object)| !object.ending);
    let objects = objects.map(|(name, object)| (&name.name, &object.spec));
    let (good, problems) = config::frontends(objects, &inputs.file.agent, nodes);
    let renamed = |(name, object): (String, FrontendObject)| FrontendObject {
        name: format!("{}{name}", intent::OF_FRONTEND),
        ..object
    };
    (good.into_iter().map(renamed).collect(), problems)
}

type Key = (IpAddr, u16, Protocol);

fn keys(object: &FrontendObject) -> impl Iterator<Item = Key> + '_ {
    let ports = |address: &IpAddr| {
        let address = *address;
        object.ports.iter().map(move |port| (address, port.port, port.protocol))
    };
    object.addresses.iter().flat_map(ports)
}

/// Drops addresses on which the file has one of the object's ports.
fn yield_to_file(object: &mut FrontendObject, taken: &BTreeSet<Key>, problems: &mut Vec<Problem>) {
    let lost: BTreeSet<Key> = keys(object).filter(|key| taken.contains(key)).collect();
    for (address, port, protocol) in &lost {
        let message =
            format!("{address} port {port}/{protocol} is a Frontend's of the file, which has it");
        problems.push(Problem { object: object.origin(), message });
    }
    object.addresses.retain(|address| !lost.iter().any(|(it, ..)| it == address));
}

/// Members of the file with a node's own address are on that node.
fn place(frontends: &mut BTreeMap<String, Arc<FrontendObject>>, nodes: &BTreeMap<String, Node>) {
    let owner = |(name, node): (&String, &Node)| {
        node.addresses.iter().map(|address| (*address, name.clone())).collect::<Vec<_>>()
    };
    let owners: BTreeMap<IpAddr, String> = nodes.iter().flat_map(owner).collect();
    for object in frontends.values_mut() {
        let Pool::Members(members) = &mut Arc::make_mut(object).pool else { continue };
        for member in members.iter_mut().filter(|member| member.node.is_empty()) {
            member.node = owners.get(&member.address).cloned().unwrap_or_default();
        }
    }
}

/// A frontend's slots are fixed for its life, whatever is asked for later.
fn keep_slots(
    former: &Intent,
    default: u32,
    object: &mut FrontendObject,
    problems: &mut Vec<Problem>,
) {
    let Some(before) = former.frontends.get(&object.name) else { return };
    let had = former.slots(before);
    match object.slots {
        Some(slots) if slots != had => {
            let message = format!(
                "spec.slots: {slots} slots instead of {had}; the number is fixed for a frontend's life: put it \
                 back, or remove the object and make it anew"
            );
            problems.push(Problem { object: object.origin(), message });
            object.slots = Some(had);
        }
        Some(_) => {}
        None if had != default || before.slots.is_some() => object.slots = Some(had),
        None => {}
    }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
