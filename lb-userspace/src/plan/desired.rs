//! The wanted state of the data plane.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::frontend::Endpoint;

use crate::model::{Intent, Problem, Verdicts};

/// What a plan is made of.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub intent: &'a Intent,
    pub verdicts: &'a Verdicts,
    /// Names of the nodes whose data plane answers; this node always counts.
    pub alive: &'a BTreeSet<String>,
}

/// What the data plane should hold. Keys are sorted, so equal plans compare equal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// By [`endpoint_key`] order: address, port, protocol.
    pub frontends: BTreeMap<FrontendKey, DesiredFrontend>,
    /// Every backend of every pool, also those that own nothing now: they keep their id and their
    /// arrivals.
    pub backends: BTreeMap<SocketAddr, DesiredBackend>,
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
    pub protocol: crate::model::Protocol,
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
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DesiredFrontend {
    /// Name of the object it comes from.
    pub object: String,
    pub slots: u32,
    /// Who may own slots now, with weights ≥ 1; sorted by address. Healthy and on living nodes.
    pub owners: BTreeMap<SocketAddr, u16>,
    /// `lb_common::service::flags`.
    pub flags: u32,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DesiredBackend {
    /// Name of its node.
    pub node: String,
    /// Protocols it is reached by: entries of `LOCAL_BACKENDS` where it is local.
    pub protocols: BTreeSet<crate::model::Protocol>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DesiredVip {
    /// Name of the node that announces it.
    pub announcer: String,
    pub echo: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DesiredNode {
    pub addresses: Vec<IpAddr>,
}
