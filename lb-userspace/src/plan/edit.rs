//! A plan follows an intent whose pools were edited: for what changed, not for what there is.
//!
//! An edited object's part of a plan is its own but for the backends that it shares with others. So it is
//! taken out together with those others' parts, made anew, and put back. Anything else that may change in an
//! intent moves more than pools, and wants a new plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::service::flags::YOUNG;

use super::{
    askers::Askers,
    desired::{Desired, DesiredBackend, FrontendKey, Inputs, add_object, frontends_of},
};
use crate::model::{FrontendObject, Intent, Pool, intent::OF_FRONTEND, intent::OF_SERVICE};

/// Of more objects than this share of all a new plan is as cheap: one in so many.
const WORTH_IT: usize = 4;
/// Fewer are always worth it.
const FEW: usize = 64;

/// What an edit changed in a plan.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Edited {
    /// Frontends that differ.
    pub frontends: BTreeSet<FrontendKey>,
    /// Backends that differ.
    pub backends: BTreeSet<SocketAddr>,
    /// Of those, the ones that left all pools, as they were.
    pub left: BTreeMap<SocketAddr, DesiredBackend>,
    /// All backends of the pools that were looked at.
    pub pooled: BTreeSet<SocketAddr>,
}

/// Follows from the intent `former` to the one of `inputs`, whose other parts are the same: equal to a new
/// plan, as far as pools tell. `None`: the plan is untouched and must be made anew.
pub fn edit(
    plan: &mut Desired,
    inputs: &Inputs<'_>,
    askers: &mut Askers,
    former: &Intent,
) -> Option<Edited> {
    let mut names = edited(former, inputs.intent)?;
    close(&mut names, [former, inputs.intent], askers)?;
    let objects = |intent: &'_ Intent| -> Option<Vec<Arc<FrontendObject>>> {
        names.iter().map(|name| intent.frontends.get(name).cloned()).collect()
    };
    let (before, now) = (objects(former)?, objects(inputs.intent)?);
    // One that was refused may be so for what others have.
    let has = |object: &Arc<FrontendObject>| {
        keys(object).all(|key| plan.frontends.get(&key).is_some_and(|it| it.object == object.name))
    };
    if !before.iter().all(has) {
        return None;
    }
    let mut part = Desired::default();
    now.iter().for_each(|object| add_object(&mut part, inputs, object));
    let mut edited = Edited::default();
    put_backends(plan, &mut part, endpoints(former, &before), &mut edited);
    for (key, mut frontend) in part.frontends {
        let Some(held) = plan.frontends.get_mut(&key) else { continue };
        // What history says is not the pools'.
        frontend.flags |= held.flags & YOUNG;
        frontend.past.clone_from(&held.past);
        frontend.claims.clone_from(&held.claims);
        if frontend != *held {
            *held = frontend;
            edited.frontends.insert(key);
        }
    }
    let origins: BTreeSet<String> = now.iter().map(|object| object.origin()).collect();
    plan.problems.retain(|problem| !origins.contains(&problem.object));
    plan.problems.append(&mut part.problems);
    plan.problems.sort();
    plan.problems.dedup();
    before.iter().for_each(|object| askers.remove(former, object));
    askers.add(inputs.intent, now.iter().map(|object| &**object));
    Some(edited)
}

/// Names of the objects whose pools differ; `None`: more than pools differs.
fn edited(former: &Intent, intent: &Intent) -> Option<BTreeSet<String>> {
    let same = former.agent == intent.agent
        && former.nodes == intent.nodes
        && former.frontends.len() == intent.frontends.len();
    let mut names = BTreeSet::new();
    for ((name, before), (other, now)) in former.frontends.iter().zip(&intent.frontends) {
        if !same || name != other {
            return None;
        }
        if !Arc::ptr_eq(before, now) {
            let same = FrontendObject { pool: before.pool.clone(), ..FrontendObject::clone(now) };
            let listed = |pool: &Pool| matches!(pool, Pool::Members(_));
            if same != **before || !listed(&before.pool) || !listed(&now.pool) {
                return None;
            }
            names.insert(name.clone());
        }
    }
    same.then_some(names)
}

/// Adds those that share backends with these or are told of under one name, before or now, and with those.
/// `None`: they are too many.
fn close(names: &mut BTreeSet<String>, intents: [&Intent; 2], askers: &Askers) -> Option<()> {
    let mut open: Vec<String> = names.iter().cloned().collect();
    while let Some(name) = open.pop() {
        if names.len() > FEW.max(intents[1].frontends.len() / WORTH_IT) {
            return None;
        }
        let mut others: Vec<String> = siblings(intents[1], &name);
        for intent in intents {
            let object = intent.frontends.get(&name).cloned();
            let shared = endpoints(intent, object.as_slice());
            let shared = shared.iter().filter_map(|endpoint| askers.by_endpoint.get(endpoint));
            others.extend(shared.flatten().map(|name| name.to_string()));
        }
        for other in others {
            if names.insert(other.clone()) {
                open.push(other);
            }
        }
    }
    Some(())
}

/// Objects of the same origin.
fn siblings(intent: &Intent, name: &str) -> Vec<String> {
    if let Some((service, _)) = name.rsplit_once('/').filter(|_| name.starts_with(OF_SERVICE)) {
        let first = format!("{service}/");
        let after = intent.frontends.range(first.clone()..);
        return after
            .map(|(name, _)| name.clone())
            .take_while(|it| it.starts_with(&first))
            .collect();
    }
    let name = name.strip_prefix(OF_FRONTEND).unwrap_or(name);
    let both = [name.to_owned(), format!("{OF_FRONTEND}{name}")];
    both.into_iter().filter(|name| intent.frontends.contains_key(name)).collect()
}

fn keys(object: &FrontendObject) -> impl Iterator<Item = FrontendKey> {
    frontends_of(object).map(|(address, port)| FrontendKey {
        address,
        port: port.port,
        protocol: port.protocol,
    })
}

fn endpoints(intent: &Intent, objects: &[Arc<FrontendObject>]) -> BTreeSet<SocketAddr> {
    let of = |object: &Arc<FrontendObject>| {
        let members = frontends_of(object).flat_map(|(address, port)| {
            intent.members(object, address, port).into_iter().map(|member| member.endpoint)
        });
        members.collect::<Vec<_>>()
    };
    objects.iter().flat_map(of).collect()
}

/// Puts a part's backends in the place of `before`.
fn put_backends(
    plan: &mut Desired,
    part: &mut Desired,
    before: BTreeSet<SocketAddr>,
    edited: &mut Edited,
) {
    edited.pooled = part.backends.keys().chain(&part.over).copied().collect();
    for address in before.union(&edited.pooled) {
        plan.ending.remove(address);
        plan.over.remove(address);
        let was = plan.backends.remove(address);
        let is = part.backends.remove(address);
        if was != is {
            edited.backends.insert(*address);
        }
        match (was, is) {
            (_, Some(is)) => drop(plan.backends.insert(*address, is)),
            (Some(was), None) => drop(edited.left.insert(*address, was)),
            (None, None) => {}
        }
    }
    plan.ending.append(&mut part.ending);
    plan.over.append(&mut part.over);
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
