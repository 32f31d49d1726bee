//! A plan follows an intent whose pools were edited: for what changed, not for what there is.
//!
//! An edited object's part of a plan is its own but for the backends that it shares with others. So it is
//! taken out together with those others' parts, made anew, and put back. Anything else that may change in an
//! intent moves more than pools, and wants a new plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    ops::Bound,
    sync::Arc,
};

use imbl::ordmap::DiffItem;
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
        names.iter().map(|name| intent.frontends.get(&**name).cloned()).collect()
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
fn edited(former: &Intent, intent: &Intent) -> Option<BTreeSet<Arc<str>>> {
    if former.agent != intent.agent || former.nodes != intent.nodes {
        return None;
    }
    let name = |item: DiffItem<'_, '_, Arc<str>, Arc<FrontendObject>>| {
        let DiffItem::Update { old: (name, before), new: (_, now) } = item else { return None };
        let same = FrontendObject { pool: before.pool.clone(), ..FrontendObject::clone(now) };
        let listed = |pool: &Pool| matches!(pool, Pool::Members(_));
        let by_pool = same == **before && listed(&before.pool) && listed(&now.pool);
        by_pool.then(|| name.clone())
    };
    former.frontends.diff(&intent.frontends).map(name).collect()
}

/// Adds those that share backends with these or are told of under one name, before or now, and with those.
/// `None`: they are too many.
fn close(names: &mut BTreeSet<Arc<str>>, intents: [&Intent; 2], askers: &Askers) -> Option<()> {
    let mut open: Vec<Arc<str>> = names.iter().cloned().collect();
    while let Some(name) = open.pop() {
        if names.len() > FEW.max(intents[1].frontends.len() / WORTH_IT) {
            return None;
        }
        let mut others = siblings(intents[1], &name);
        for intent in intents {
            let object = intent.frontends.get(&*name).cloned();
            let shared = endpoints(intent, object.as_slice());
            let shared = shared.iter().flat_map(|endpoint| askers.of_endpoint(*endpoint));
            others.extend(shared.cloned());
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
fn siblings(intent: &Intent, name: &str) -> Vec<Arc<str>> {
    if let Some((service, _)) = name.rsplit_once('/').filter(|_| name.starts_with(OF_SERVICE)) {
        let first = format!("{service}/");
        let after = intent.frontends.range::<_, str>((Bound::Included(&*first), Bound::Unbounded));
        let names = after.map(|(name, _)| name.clone());
        return names.take_while(|it| it.starts_with(&first)).collect();
    }
    let name = name.strip_prefix(OF_FRONTEND).unwrap_or(name);
    let both = [name.to_owned(), format!("{OF_FRONTEND}{name}")];
    let known = both.iter().filter_map(|it| intent.frontends.get_key_value(it.as_str()));
    known.map(|(name, _)| name.clone()).collect()
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
