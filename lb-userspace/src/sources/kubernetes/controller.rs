//! What the holder of the Lease writes: addresses of Services, what is to be said of them, how full the pools
//! are, and what became of Frontends.
//!
//! [`writes`] is pure and answers with differences only: run against what it wrote it is silent. `run`
//! does the I/O. A Service whose status says an address keeps it, so a controller that starts knows all
//! that its predecessors gave.

mod commit;
mod frontends;
mod object;
mod pools;
mod run;
mod tell;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::{
    api::core::v1::LoadBalancerIngress, apimachinery::pkg::apis::meta::v1::Condition,
    jiff::Timestamp,
};

use super::{
    crd::FrontendStatus,
    crd_pool::{AddressPool, AddressPoolStatus},
};
use crate::addresses::{Inputs, Labels, ServiceName, allocate};

pub use frontends::Judged;
pub use object::ServiceObject;
pub use run::{Desk, World, run};

/// Field manager of all that is written here.
pub const MANAGER: &str = "weir-controller";

/// Class of our Services.
pub const CLASS: &str = "weir.dev/weir";

/// The standard finalizer of whoever gives addresses: a Service is gone only after they are withdrawn.
pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// All that decides what is to be written.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    pub services: &'a [ServiceObject],
    pub pools: &'a [AddressPool],
    pub frontends: &'a [Judged],
    /// Labels by name.
    pub namespaces: &'a BTreeMap<String, Labels>,
    /// Addresses that are something else's, and whose.
    pub reserved: &'a BTreeMap<IpAddr, String>,
    /// Addresses that this node serves.
    pub served: &'a BTreeSet<IpAddr>,
    pub now: Timestamp,
}

/// What is to be written about one object, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Service { target: Target, steps: Vec<Step>, notes: Vec<Note> },
    Pool { name: String, uid: String, status: Box<AddressPoolStatus>, notes: Vec<Note> },
    Frontend { name: String, uid: String, status: FrontendStatus, notes: Vec<Note> },
}

/// A Service as it was looked at: of another version or life nothing is written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    pub name: ServiceName,
    pub uid: String,
    pub resource_version: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Adds the finalizer.
    Hold,
    /// The whole of what is ours in the status; both empty: nothing is.
    Status { ingress: Vec<LoadBalancerIngress>, conditions: Vec<Condition> },
    /// Leaves these finalizers.
    Release(Vec<String>),
}

/// An Event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Note {
    pub warning: bool,
    pub reason: &'static str,
    pub text: String,
}

/// What differs from what should be. Same state in any order, same writes.
pub fn writes(state: &State<'_>) -> Vec<Write> {
    let read: Vec<_> = state.pools.iter().map(AddressPool::read).collect();
    let pools: Vec<_> = read.iter().map(|(pool, _)| pool.clone()).collect();
    let services: Vec<_> =
        state.services.iter().filter(|it| it.ours).map(|it| it.asks.clone()).collect();
    let allocation = allocate(&Inputs {
        pools: &pools,
        services: &services,
        namespaces: state.namespaces,
        reserved: state.reserved,
    });
    let mut writes = Vec::new();
    for service in state.services {
        let write = match allocation.services.get(&service.asks.name) {
            Some(assignment) if service.ours && !service.asks.ending => {
                service.assigned(assignment, state)
            }
            // Whatever else it is, it may be another's.
            _ if service.ours || service.leaving => service.withdrawn(),
            _ => None,
        };
        writes.extend(write);
    }
    for (object, (pool, bad)) in state.pools.iter().zip(&read) {
        if let Some(usage) = allocation.pools.get(&pool.name) {
            writes.extend(pools::pool(object, usage, bad, state.now));
        }
    }
    let frontends = state.frontends.iter();
    writes.extend(frontends.filter_map(|it| it.told(state.served, state.now)));
    writes
}
