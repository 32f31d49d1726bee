//! Puts what Kubernetes asks for beside what the file asks for. Pure.
//!
//! The file wins, whole object by whole object: a node that both describe is the file's, and an address and port
//! that a Frontend of the file has is no other's. This node stays known whatever Kubernetes says of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use super::{
    members::Memory,
    snapshot::Snapshot,
    translate::{self, Translated},
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
    pub file: &'a Intent,
    /// `file` is a checkpoint of everything, and not what the file says now.
    pub stale: bool,
    /// The intent that is in force.
    pub former: &'a Intent,
    pub settings: &'a KubernetesSettings,
    pub snapshot: &'a Snapshot,
    pub members: &'a Members,
    pub verdicts: &'a Verdicts,
    pub now: Instant,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    pub intent: Intent,
    pub problems: Vec<Problem>,
    pub held: usize,
    pub half_dead: bool,
}

/// Before Kubernetes has said anything: the file's objects, and of those in a checkpoint what Kubernetes said.
pub fn resume(file: &Intent, checkpoint: &Intent) -> Intent {
    let mut merged = file.clone();
    for (name, node) in &checkpoint.nodes {
        merged.nodes.entry(name.clone()).or_insert_with(|| node.clone());
    }
    let of_kubernetes = checkpoint.frontends.iter().filter(|(_, object)| object.of_kubernetes());
    for (name, object) in of_kubernetes {
        merged.frontends.entry(name.clone()).or_insert_with(|| object.clone());
    }
    merged
}

/// Everything together.
pub fn merge(inputs: &Inputs<'_>, memory: &mut Memory) -> Merged {
    let mut problems = Vec::new();
    let agent = inputs.file.agent.clone();
    let nodes = nodes(inputs, &mut problems);
    let (own, found) = own_frontends(inputs, &nodes);
    problems.extend(found);
    let Translated { frontends: of_services, problems: found, held, half_dead } =
        translate::services(
            &translate::Inputs {
                snapshot: inputs.snapshot,
                settings: inputs.settings,
                nodes: &nodes,
                members: inputs.members,
                verdicts: inputs.verdicts,
                now: inputs.now,
            },
            memory,
        );
    problems.extend(found);

    let of_file = inputs.file.frontends.iter().filter(|(_, object)| !object.of_kubernetes());
    let mut frontends: BTreeMap<_, _> =
        of_file.map(|(name, object)| (name.clone(), object.clone())).collect();
    let taken: BTreeSet<_> = frontends.values().flat_map(keys).collect();
    for (name, mut object) in own.into_iter().chain(of_services) {
        yield_to_file(&mut object, &taken, &mut problems);
        if !object.addresses.is_empty() && !object.ports.is_empty() {
            frontends.insert(name, object);
        }
    }
    let mut intent = Intent { agent, nodes, frontends };
    place(&mut intent);
    keep_slots(inputs.former, &mut intent, &mut problems);
    problems.sort();
    problems.dedup();
    Merged { intent, problems, held, half_dead }
}

fn nodes(inputs: &Inputs<'_>, problems: &mut Vec<Problem>) -> BTreeMap<String, Node> {
    let own = &inputs.file.agent.node;
    let mut nodes = match inputs.stale {
        false => inputs.file.nodes.clone(),
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
        && let Some(former) = inputs.former.nodes.get(own).or(inputs.file.nodes.get(own))
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
    nodes: &BTreeMap<String, Node>,
) -> (Vec<(String, FrontendObject)>, Vec<Problem>) {
    let objects = inputs.snapshot.frontends.iter().filter(|(_, object)| !object.ending);
    let objects = objects.map(|(name, object)| (&name.name, &object.spec));
    let (good, problems) = config::frontends(objects, &inputs.file.agent, nodes);
    let renamed = |(name, object): (String, FrontendObject)| {
        let name = format!("{}{name}", intent::OF_FRONTEND);
        (name.clone(), FrontendObject { name, ..object })
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
fn place(intent: &mut Intent) {
    let owner = |(name, node): (&String, &Node)| {
        node.addresses.iter().map(|address| (*address, name.clone())).collect::<Vec<_>>()
    };
    let owners: BTreeMap<IpAddr, String> = intent.nodes.iter().flat_map(owner).collect();
    let of_file = intent.frontends.values_mut().filter(|object| !object.of_kubernetes());
    for object in of_file {
        let Pool::Members(members) = &mut object.pool else { continue };
        for member in members.iter_mut().filter(|member| member.node.is_empty()) {
            member.node = owners.get(&member.address).cloned().unwrap_or_default();
        }
    }
}

/// A frontend's slots are fixed for its life, whatever is asked for later.
fn keep_slots(former: &Intent, intent: &mut Intent, problems: &mut Vec<Problem>) {
    let default = intent.agent.default_slots;
    for object in intent.frontends.values_mut().filter(|object| object.of_kubernetes()) {
        let Some(before) = former.frontends.get(&object.name) else { continue };
        let had = former.slots(before);
        match object.slots {
            Some(slots) if slots != had => {
                let message = format!(
                    "spec.slots: {slots} slots instead of {had}; the number is fixed for a frontend's life: put \
                     it back, or remove the object and make it anew"
                );
                problems.push(Problem { object: object.origin(), message });
                object.slots = Some(had);
            }
            Some(_) => {}
            None if had != default || before.slots.is_some() => object.slots = Some(had),
            None => {}
        }
    }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
