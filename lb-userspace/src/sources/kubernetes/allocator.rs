//! The [`controller`] in this agent: what it looks at, made of what the agent knows anyway.
//!
//! Every agent may hold the Lease. Nothing of this is needed for traffic: without it no Service gets a new
//! address, and that is all.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    net::IpAddr,
    sync::Arc,
};

use kube::Client;
use tokio::sync::watch;

use super::{
    api::Connection,
    controller::{self, Desk, Judged, ServiceObject, World},
    outcome::OwnFrontends,
    snapshot::Snapshot,
};
use crate::model::{
    Intent, KubernetesSettings, Members, intent,
    seed::{absorb, keyed},
};
use crate::watched::Watched as _;

/// Sets this use of the seed apart from all others.
const DOMAIN: u64 = u64::from_le_bytes(*b"allocate");

/// What it is told.
pub struct Inlets {
    pub connection: watch::Receiver<Option<Arc<Connection>>>,
    pub snapshot: watch::Receiver<Option<Snapshot>>,
    /// What is wanted, by all sources together.
    pub intent: watch::Receiver<Arc<Intent>>,
    /// Our Frontends, and what became of them.
    pub own: watch::Receiver<OwnFrontends>,
    pub members: watch::Receiver<Arc<Members>>,
    /// VIPs that this node's data plane serves.
    pub served: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    /// True: give the Lease back and end.
    pub stop: watch::Receiver<bool>,
}

/// Runs until told to stop, tells `ended`, and never returns.
///
/// `me`: name of this process in this life, no other's.
pub async fn run(
    settings: KubernetesSettings,
    me: String,
    clock: fn() -> u64,
    inlets: Inlets,
    ended: watch::Sender<bool>,
) {
    let Inlets { connection, snapshot, intent, own, members, served, stop } = inlets;
    let (ways, client) = watch::channel(None);
    let (seen, matter) = watch::channel(None);
    let default_class = settings.default_class;
    let seed = intent.copy().agent.seed;
    let desk = Desk {
        client,
        snapshot: matter,
        world: Box::new(move |it: &Matter| world(it, default_class, &intent.copy())),
        served,
        stop,
        namespace: settings.namespace,
        seed: keyed(&seed, DOMAIN).finish() ^ clock(),
        me,
        default_class,
        turn: Box::new(move || turn(&seed, &members.copy())),
        clock,
    };
    tokio::select! {
        () = controller::run(desk) => {}
        () = forward(connection, snapshot, own, ways, seen) => {}
    }
    ended.send_replace(true);
    pending().await
}

/// What the controller looks at.
#[derive(Clone)]
struct Matter {
    snapshot: Snapshot,
    own: OwnFrontends,
}

/// Passes on what the controller needs, and only when that has changed: endpoints change all the time.
async fn forward(
    mut connection: watch::Receiver<Option<Arc<Connection>>>,
    mut snapshot: watch::Receiver<Option<Snapshot>>,
    mut own: watch::Receiver<OwnFrontends>,
    ways: watch::Sender<Option<Client>>,
    seen: watch::Sender<Option<Matter>>,
) {
    loop {
        ways.send_replace(connection.copy_and_update().as_ref().map(|it| it.client.clone()));
        let own_now = own.copy_and_update();
        let now = snapshot.copy_and_update();
        let now = now.map(|snapshot| Matter { snapshot, own: own_now });
        seen.send_if_modified(|former| {
            let changed = match (&former, &now) {
                (Some(former), Some(now)) => !same_matter(former, now),
                (None, None) => false,
                _ => true,
            };
            if changed {
                *former = now;
            }
            changed
        });
        let alive = tokio::select! {
            result = connection.changed() => result.is_ok(),
            result = snapshot.changed() => result.is_ok(),
            result = own.changed() => result.is_ok(),
        };
        if !alive {
            // A sender that is gone shows as its task's end.
            pending::<()>().await;
        }
    }
}

/// Whether nothing that what is written depends on was touched.
fn same_matter(former: &Matter, now: &Matter) -> bool {
    let (before, after) = (&former.snapshot, &now.snapshot);
    before.services.ptr_eq(&after.services)
        && before.pools.ptr_eq(&after.pools)
        && before.namespaces.ptr_eq(&after.namespaces)
        && former.own.is(&now.own)
}

/// How many of those that live stand before this node, in an order that all know.
fn turn(seed: &[u8; 16], members: &Members) -> usize {
    let key = keyed(seed, DOMAIN);
    let rank = |name: &str| absorb(key, name.as_bytes()).finish();
    let mine = rank(&members.own);
    let alive = members.nodes.iter().filter(|(_, member)| member.life.forwards());
    alive.filter(|(name, _)| **name != members.own && rank(name) > mine).count()
}

fn world(matter: &Matter, default_class: bool, intent: &Intent) -> World {
    let Matter { snapshot, own } = matter;
    let services = snapshot.services.values().filter_map(|service| {
        let object = service.object.as_ref()?;
        // It was read as if Services without a class were ours.
        let ours = object.ours && service.is_ours(default_class);
        Some(ServiceObject { ours, ..object.clone() })
    });
    let namespaces = snapshot.namespaces.iter();
    let frontends = own.objects.iter().filter_map(|(name, object)| {
        let (name, object) = (name.name.clone(), object.clone());
        let outcome = own.outcomes.get(&name)?.clone();
        Some(Judged { name, object, outcome })
    });
    World {
        services: services.collect(),
        pools: snapshot.pools.values().map(|pool| (**pool).clone()).collect(),
        frontends: frontends.collect(),
        namespaces: namespaces.map(|(name, it)| (name.name.clone(), it.labels.clone())).collect(),
        reserved: reserved(intent),
    }
}

/// Addresses that no Service may have, and whose they are.
fn reserved(intent: &Intent) -> BTreeMap<IpAddr, String> {
    let of_nodes = intent.nodes.values().flat_map(|node| {
        node.addresses.iter().map(|address| (*address, format!("Node/{}", node.name)))
    });
    let own = intent.frontends.values().filter(|it| !it.name.starts_with(intent::OF_SERVICE));
    let of_frontends =
        own.flat_map(|it| it.addresses.iter().map(|address| (*address, it.origin())));
    of_nodes.chain(of_frontends).collect()
}

#[cfg(test)]
#[path = "allocator_tests.rs"]
mod tests;
