//! Puts what Kubernetes asks for beside what the file asks for. Pure.
//!
//! The file wins, whole object by whole object: a node that both describe is the file's, and an address and port
//! that a Frontend of the file has is no other's. This node stays known whatever Kubernetes says of it.
//!
//! What did not change is not looked at again: a change of one Service costs that Service, however many there
//! are. The outcome is the same as if everything were looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use imbl::ordmap::DiffItem;

use super::{
    members::Memory,
    outcome::{self, Outcomes},
    snapshot::{self, Name, Objects, Snapshot},
    translate::{self, SliceIndex, Translated, Translation},
};
use crate::{
    config,
    model::{
        FrontendObject, Frontends, Intent, KubernetesSettings, Members, Node, Pool, PoolMember,
        Problem, Protocol, Verdicts, intent,
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
    /// Of the snapshot's Frontends.
    pub outcomes: Outcomes,
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
    slices: SliceIndex,
    half_dead: bool,
    /// Names of the objects that Services became, also of those that yielded to the file.
    services: BTreeMap<Arc<Name>, Vec<String>>,
    /// What is wrong with Services.
    problems: BTreeMap<Arc<Name>, Vec<Problem>>,
    /// How many endpoints of Services serve although the API calls them not ready, where some do.
    held: BTreeMap<Arc<Name>, usize>,
}

/// All but the Services, and what it was made of.
#[derive(Debug)]
struct Base {
    file: Arc<Intent>,
    stale: bool,
    nodes_of_kubernetes: Objects<snapshot::Node>,
    frontends_of_kubernetes: Objects<snapshot::Frontend>,
    nodes: Arc<BTreeMap<String, Node>>,
    frontends: Frontends,
    /// What the file's Frontends have.
    taken: BTreeSet<Key>,
    problems: Vec<Problem>,
    outcomes: Outcomes,
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
            slices: SliceIndex::default(),
            half_dead: false,
            services: BTreeMap::new(),
            problems: BTreeMap::new(),
            held: BTreeMap::new(),
        }
    }

    /// Before Kubernetes has said anything: the file's objects, and of those in force what Kubernetes said.
    pub fn resume(&mut self, file: &Intent) -> Merged {
        let resumed = resume(file, &self.intent);
        self.enforce(resumed);
        let intent = self.intent.clone();
        let outcomes = Outcomes::default();
        Merged { intent, problems: Vec::new(), held: 0, half_dead: false, outcomes }
    }

    /// Everything together.
    pub fn merge(&mut self, inputs: &Inputs<'_>) -> Merged {
        let known = self.base.take().filter(|base| base.is_of(inputs));
        let anew = known.is_none();
        let mut base = known.unwrap_or_else(|| Base::new(inputs, &self.intent));
        base.frontends_of_kubernetes = inputs.snapshot.frontends.clone();
        for (name, [before, now]) in differing(&self.snapshot.slices, &inputs.snapshot.slices) {
            self.slices.follow(name, before.map(|it| &**it), now.map(|it| &**it));
        }
        let services = match anew || self.half_dead {
            true => {
                self.vips = translate::vips(inputs.snapshot, inputs.settings);
                let names = inputs.snapshot.services.keys();
                let known = self.services.keys().chain(self.problems.keys());
                names.chain(known).cloned().collect()
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
                self.services.values().flatten().map(String::as_str).collect();
            self.memory.retain(|object| known.contains(object));
        }
        self.snapshot = inputs.snapshot.clone();
        let (agent, nodes) = (base.file.agent.clone(), base.nodes.clone());
        self.enforce(Intent { agent, nodes, frontends });
        let of_services = self.problems.values().flatten();
        let mut problems: Vec<_> = base.problems.iter().chain(of_services).cloned().collect();
        problems.sort();
        problems.dedup();
        let outcomes = base.outcomes.clone();
        self.base = Some(base);
        Merged {
            intent: self.intent.clone(),
            problems,
            held: self.held.values().sum(),
            half_dead: self.half_dead,
            outcomes,
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
        concerned.extend(self.held.keys().cloned());
        concerned
    }

    /// Puts what these Services become now in the place of what they became before.
    fn translate(
        &mut self,
        inputs: &Inputs<'_>,
        base: &Base,
        services: &BTreeSet<Arc<Name>>,
        frontends: &mut Frontends,
    ) {
        let of_services = translate::Inputs {
            snapshot: inputs.snapshot,
            settings: inputs.settings,
            own: &inputs.file.agent.node,
            nodes: &base.nodes,
            vips: &self.vips,
            slices: &self.slices,
            members: inputs.members,
            verdicts: inputs.verdicts,
            now: inputs.now,
        };
        let translation = Translation::new(&of_services, &mut self.memory);
        self.half_dead = translation.half_dead;
        for name in services {
            let before = self.services.remove(name).unwrap_or_default();
            before.iter().for_each(|object| drop(frontends.remove(object.as_str())));
            let service = inputs.snapshot.services.get(name);
            let translated = service.map(|it| translation.service(it, &mut self.memory));
            let Translated { frontends: objects, mut problems, held } =
                translated.unwrap_or_default();
            let gone = before.iter().filter(|it| !objects.contains_key(*it));
            gone.for_each(|object| self.memory.forget(object));
            let names: Vec<String> = objects.keys().cloned().collect();
            for object in objects.into_values() {
                frontends.extend(base.admit(object, &self.intent, &mut problems));
            }
            keep(&mut self.services, name, names, Vec::is_empty);
            keep(&mut self.problems, name, problems, Vec::is_empty);
            keep(&mut self.held, name, held, |held| *held == 0);
        }
    }

    /// From now on this is in force; what is equal stays what it was.
    fn enforce(&mut self, mut wanted: Intent) {
        if wanted.nodes == self.intent.nodes {
            wanted.nodes = self.intent.nodes.clone();
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
        let taken = of_file.clone().flat_map(|(_, object)| object.keys()).collect();
        let owners = intent::owners_of_addresses(&nodes);
        let placed = |object: &Arc<FrontendObject>| {
            let mut object = object.clone();
            place(&mut object, &owners);
            as_before(former, object)
        };
        let frontends = of_file.map(|(name, object)| (name.clone(), placed(object))).collect();
        let mut base = Self {
            file: inputs.file.clone(),
            stale: inputs.stale,
            nodes_of_kubernetes: inputs.snapshot.nodes.clone(),
            frontends_of_kubernetes: inputs.snapshot.frontends.clone(),
            nodes,
            frontends,
            taken,
            problems: Vec::new(),
            outcomes: Outcomes::default(),
        };
        let yields = |object: &&FrontendObject| object.keys().any(|key| base.taken.contains(&key));
        let yielded = own.iter().filter(yields).map(FrontendObject::origin).collect();
        for object in own {
            let admitted = base.admit(object, former, &mut problems);
            base.frontends.extend(admitted);
        }
        let asked = asked(inputs).map(|(name, _)| name.as_str());
        base.outcomes = outcome::outcomes(asked, base.frontends.values(), &problems, &yielded);
        base.problems = problems;
        base
    }

    /// Whether it would be the same if it were made anew.
    fn is_of(&self, inputs: &Inputs<'_>) -> bool {
        Arc::ptr_eq(&self.file, inputs.file)
            && self.stale == inputs.stale
            && self.nodes_of_kubernetes.ptr_eq(&inputs.snapshot.nodes)
            && differing(&self.frontends_of_kubernetes, &inputs.snapshot.frontends)
                .all(|(_, states)| asks_the_same(states))
    }

    /// What of an object of Kubernetes can be in force beside the file, under its name.
    fn admit(
        &self,
        mut object: FrontendObject,
        former: &Intent,
        problems: &mut Vec<Problem>,
    ) -> Option<(Arc<str>, Arc<FrontendObject>)> {
        yield_to_file(&mut object, &self.taken, problems);
        if object.addresses.is_empty() || object.ports.is_empty() {
            return None;
        }
        keep_slots(former, self.file.agent.default_slots, &mut object, problems);
        Some((object.name.as_str().into(), as_before(former, Arc::new(object))))
    }
}

/// The very one that is in force, if that is equal.
fn as_before(former: &Intent, object: Arc<FrontendObject>) -> Arc<FrontendObject> {
    let known = former.frontends.get(object.name.as_str()).filter(|known| **known == object);
    known.cloned().unwrap_or(object)
}

/// Notes something of a Service, unless there is nothing to note.
fn keep<T>(
    of: &mut BTreeMap<Arc<Name>, T>,
    service: &Arc<Name>,
    it: T,
    nothing: impl Fn(&T) -> bool,
) {
    match nothing(&it) {
        true => drop(of.remove(service)),
        false => drop(of.insert(service.clone(), it)),
    }
}

/// Of two states of all objects of a kind those that differ, each before and now.
fn differing<'a, T: PartialEq>(
    before: &'a Objects<T>,
    now: &'a Objects<T>,
) -> impl Iterator<Item = (&'a Arc<Name>, [Option<&'a Arc<T>>; 2])> {
    before.diff(now).map(|item| match item {
        DiffItem::Add(name, now) => (name, [None, Some(now)]),
        DiffItem::Update { old: (_, before), new: (name, now) } => {
            (name, [Some(before), Some(now)])
        }
        DiffItem::Remove(name, before) => (name, [Some(before), None]),
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

/// Our objects in Kubernetes, by name.
fn asked<'a>(
    inputs: &Inputs<'a>,
) -> impl Iterator<Item = (&'a String, &'a serde_json::Value)> + use<'a> {
    let objects = inputs.snapshot.frontends.iter().filter(|(_, object)| !object.ending);
    objects.map(|(name, object)| (&name.name, &object.spec))
}

/// Whether an object that differs does so in its status alone, or the like.
fn asks_the_same(states: [Option<&Arc<snapshot::Frontend>>; 2]) -> bool {
    let [before, now] = states.map(|it| it.map(|it| (&it.spec, it.ending)));
    before == now
}

/// They, under the names that they have in an intent.
fn own_frontends(
    inputs: &Inputs<'_>,
    nodes: &Arc<BTreeMap<String, Node>>,
) -> (Vec<FrontendObject>, Vec<Problem>) {
    let (good, problems) = config::frontends(asked(inputs), &inputs.file.agent, nodes);
    let renamed = |(name, object): (String, FrontendObject)| FrontendObject {
        name: format!("{}{name}", intent::OF_FRONTEND),
        ..object
    };
    (good.into_iter().map(renamed).collect(), problems)
}

type Key = (IpAddr, u16, Protocol);

/// Drops addresses on which the file has one of the object's ports.
fn yield_to_file(object: &mut FrontendObject, taken: &BTreeSet<Key>, problems: &mut Vec<Problem>) {
    let lost: BTreeSet<Key> = object.keys().filter(|key| taken.contains(key)).collect();
    for (address, port, protocol) in &lost {
        let message =
            format!("{address} port {port}/{protocol} is a Frontend's of the file, which has it");
        problems.push(Problem { object: object.origin(), message });
    }
    object.addresses.retain(|address| !lost.iter().any(|(it, ..)| it == address));
}

/// Members of the file with a node's own address are on that node.
fn place(object: &mut Arc<FrontendObject>, owners: &BTreeMap<IpAddr, &str>) {
    let homeless = |member: &PoolMember| member.node.is_empty();
    if !matches!(&object.pool, Pool::Members(members) if members.iter().any(homeless)) {
        return;
    }
    let Pool::Members(members) = &mut Arc::make_mut(object).pool else { return };
    for member in members.iter_mut().filter(|member| homeless(member)) {
        member.node = owners.get(&member.address).copied().unwrap_or_default().to_owned();
    }
}

/// A frontend's slots are fixed for its life, whatever is asked for later.
fn keep_slots(
    former: &Intent,
    default: u32,
    object: &mut FrontendObject,
    problems: &mut Vec<Problem>,
) {
    let Some(before) = former.frontends.get(object.name.as_str()) else { return };
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
