//! Who asks for what: where a plan must be looked at again when something changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use super::desired::{frontends_of, target};
use crate::model::{FrontendObject, Intent, Target, Targets};

/// Of one intent.
#[derive(Clone, Debug, Default)]
pub struct Askers {
    /// Everything that health must probe, each target once; on several nodes, by a mistake: on the
    /// first object's by name.
    pub targets: Arc<Targets>,
    /// Names of the objects that ask.
    pub(super) by_target: BTreeMap<Arc<Target>, Vec<Arc<str>>>,
    /// Names of the objects with a backend on a node; once there, they stay.
    pub(super) by_node: BTreeMap<String, BTreeSet<Arc<str>>>,
    /// Names of the objects that each node serves with its own backends only.
    pub(super) local: BTreeSet<Arc<str>>,
    /// Backends with the names of the objects in whose pools they are.
    by_endpoint: BTreeSet<(SocketAddr, Arc<str>)>,
}

pub fn askers(intent: &Intent) -> Askers {
    let mut askers = Askers::default();
    askers.add(intent, intent.frontends.values().map(|object| &**object));
    askers
}

/// Everything that health must probe, each target once, with its node.
pub fn targets(intent: &Intent) -> Arc<Targets> {
    askers(intent).targets
}

impl Askers {
    /// Adds what objects ask for, in the order of their names.
    pub(super) fn add<'a>(
        &mut self,
        intent: &Intent,
        objects: impl Iterator<Item = &'a FrontendObject>,
    ) {
        let mut names: BTreeMap<&str, Arc<str>> = BTreeMap::new();
        for object in objects {
            let name: Arc<str> = object.name.as_str().into();
            if object.local_only {
                self.local.insert(name.clone());
            }
            for (address, port) in frontends_of(object) {
                for member in intent.members(object, address, port) {
                    self.by_endpoint.insert((member.endpoint, name.clone()));
                    let Some((node, _)) = intent.nodes.get_key_value(member.node) else { continue };
                    let node = names.entry(node).or_insert_with(|| node.as_str().into());
                    match self.by_node.get_mut(member.node) {
                        Some(objects) => drop(objects.insert(name.clone())),
                        None => {
                            self.by_node.insert(member.node.to_owned(), [name.clone()].into());
                        }
                    }
                    let Some(target) = target(object, port, member.endpoint) else { continue };
                    let target = Arc::new(target);
                    note(self.by_target.entry(target.clone()).or_default(), &name);
                    if !self.targets.contains_key(&target) {
                        Arc::make_mut(&mut self.targets).insert(target, node.clone());
                    }
                }
            }
        }
    }

    /// Takes back what an object asked for by this intent.
    pub(super) fn remove(&mut self, intent: &Intent, object: &FrontendObject) {
        let name: Arc<str> = object.name.as_str().into();
        for (address, port) in frontends_of(object) {
            for member in intent.members(object, address, port) {
                self.by_endpoint.remove(&(member.endpoint, name.clone()));
                let Some(target) = target(object, port, member.endpoint) else { continue };
                let Some(names) = self.by_target.get_mut(&target) else { continue };
                names.retain(|it| *it != name);
                if names.is_empty() {
                    self.by_target.remove(&target);
                    Arc::make_mut(&mut self.targets).remove(&target);
                }
            }
        }
    }

    /// Names of the objects in whose pools a backend is.
    pub(super) fn of_endpoint(&self, endpoint: SocketAddr) -> impl Iterator<Item = &Arc<str>> {
        let after = self.by_endpoint.range((endpoint, Arc::from(""))..);
        after.take_while(move |(it, _)| *it == endpoint).map(|(_, name)| name)
    }
}

/// One name for all members of an object, which come one after the other.
fn note(names: &mut Vec<Arc<str>>, name: &Arc<str>) {
    if names.last() != Some(name) {
        names.push(name.clone());
    }
}
