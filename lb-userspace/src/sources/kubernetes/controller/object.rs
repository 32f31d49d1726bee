//! A Service as the controller sees it, and what is to be written of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::{
    api::core::v1::{LoadBalancerIngress, PortStatus, Service, ServicePort},
    apimachinery::pkg::apis::meta::v1::{Condition, ManagedFieldsEntry, Time},
    jiff::Timestamp,
};
use kube::ResourceExt;

use super::{CLASS, FINALIZER, MANAGER, State, Step, Target, Write, tell};
use crate::{
    addresses::{self, Assignment, Family, FamilyPolicy, Given, Port, ServiceName, Wishes},
    model::Protocol,
};

/// The port is another Service's on a shared address.
const PORT_TAKEN: &str = "weir.dev/PortTaken";

/// weir carries TCP and UDP.
const PROTOCOL_UNSUPPORTED: &str = "weir.dev/ProtocolUnsupported";

/// A Service of ours, or one that was.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceObject {
    pub uid: String,
    pub resource_version: String,
    /// Of type LoadBalancer and of our class.
    pub ours: bool,
    /// It was ours and has changed its type: what we wrote is to be taken out.
    pub leaving: bool,
    pub finalizers: Vec<String>,
    /// What it asks for and holds.
    pub asks: addresses::Service,
    /// Ports of protocols that weir does not carry: number and protocol.
    pub unsupported: Vec<(i32, String)>,
    pub ingress: Vec<LoadBalancerIngress>,
    pub conditions: Vec<Condition>,
}

impl ServiceObject {
    /// None: it does not concern us: of another class, or of another type and without anything of ours.
    pub fn read(service: &Service, default_class: bool) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
        let class = spec.load_balancer_class.as_deref();
        let ours = load_balancer && class.map_or(default_class, |class| class == CLASS);
        let manager = |it: &ManagedFieldsEntry| it.manager.as_deref() == Some(MANAGER);
        let leaving = !load_balancer && service.managed_fields().iter().any(manager);
        if !ours && !leaving {
            return None;
        }
        let status = service.status.clone().unwrap_or_default();
        let ingress = status.load_balancer.and_then(|it| it.ingress).unwrap_or_default();
        let all_ports = spec.ports.as_deref().unwrap_or_default();
        let ports: BTreeSet<Port> = all_ports.iter().filter_map(port).collect();
        let unsupported = all_ports
            .iter()
            .filter(|it| port(it).is_none())
            .map(|it| (it.port, it.protocol.clone().unwrap_or_default()))
            .collect();
        let asks = addresses::Service {
            name: ServiceName {
                namespace: service.namespace().unwrap_or_default(),
                name: service.name_any(),
            },
            created: service.creation_timestamp().map_or(i64::MAX, |at| at.0.as_second()),
            labels: service.labels().clone(),
            held: ingress.iter().filter_map(|it| held(it, &ports)).collect(),
            wishes: Wishes::read(service.annotations(), spec.load_balancer_ip.as_deref()),
            policy: match spec.ip_family_policy.as_deref() {
                Some("RequireDualStack") => FamilyPolicy::RequireDualStack,
                Some("PreferDualStack") => FamilyPolicy::PreferDualStack,
                _ => FamilyPolicy::SingleStack,
            },
            families: families(spec.ip_families.as_deref(), spec.cluster_ips.as_deref()),
            ports,
            ending: service.metadata.deletion_timestamp.is_some(),
        };
        Some(Self {
            uid: service.uid().unwrap_or_default(),
            resource_version: service.resource_version().unwrap_or_default(),
            ours,
            leaving,
            finalizers: service.finalizers().to_vec(),
            asks,
            unsupported,
            ingress,
            conditions: status.conditions.unwrap_or_default(),
        })
    }

    /// What makes it say what it was given.
    pub(super) fn assigned(&self, assignment: &Assignment, state: &State<'_>) -> Option<Write> {
        let ingress: Vec<_> = assignment.addresses.iter().map(|it| self.ingress_of(it)).collect();
        let told = tell::conditions(self, assignment, state.served);
        let conditions = dated(told, &self.conditions, state.now);
        let mut steps = Vec::new();
        if !ingress.is_empty() && !self.is_held() {
            steps.push(Step::Hold);
        }
        let notes = tell::notes(self, assignment, &conditions);
        if self.ingress != ingress || self.own_conditions().ne(&conditions) {
            steps.push(Step::Status { ingress, conditions });
        }
        self.write(steps, notes)
    }

    /// What takes all of ours out of it, its end included. Of Services that lose their address because
    /// our class is no longer the default one there is none: that would be an outage by configuration.
    pub(super) fn withdrawn(&self) -> Option<Write> {
        let mut steps = Vec::new();
        if !self.ingress.is_empty() || self.own_conditions().next().is_some() {
            steps.push(Step::Status { ingress: Vec::new(), conditions: Vec::new() });
        }
        if self.is_held() {
            let others = self.finalizers.iter().filter(|it| *it != FINALIZER);
            steps.push(Step::Release(others.cloned().collect()));
        }
        let notes = match self.asks.ending {
            true => Vec::new(),
            false => tell::withdrawn(self),
        };
        self.write(steps, notes)
    }

    fn write(&self, steps: Vec<Step>, notes: Vec<super::Note>) -> Option<Write> {
        let target = Target {
            name: self.asks.name.clone(),
            uid: self.uid.clone(),
            resource_version: self.resource_version.clone(),
        };
        (!steps.is_empty()).then_some(Write::Service { target, steps, notes })
    }

    fn is_held(&self) -> bool {
        self.finalizers.iter().any(|it| it == FINALIZER)
    }

    fn own_conditions(&self) -> impl Iterator<Item = &Condition> {
        let own = tell::TYPES.into_iter();
        own.filter_map(|own| self.conditions.iter().find(|it| it.type_ == own))
    }

    pub(super) fn condition(&self, type_: &str) -> Option<&Condition> {
        self.conditions.iter().find(|it| it.type_ == type_)
    }

    /// All ports, since a list of them must be whole; errors where one is not served.
    fn ingress_of(&self, given: &Given) -> LoadBalancerIngress {
        let served = self.asks.ports.iter().map(|port| PortStatus {
            port: port.number.into(),
            protocol: port.protocol.to_string(),
            error: given.taken.contains_key(port).then(|| PORT_TAKEN.to_owned()),
        });
        let unsupported = self.unsupported.iter().map(|(port, protocol)| PortStatus {
            port: *port,
            protocol: protocol.clone(),
            error: Some(PROTOCOL_UNSUPPORTED.to_owned()),
        });
        LoadBalancerIngress {
            ip: Some(given.address.to_string()),
            ip_mode: Some("VIP".into()),
            ports: Some(served.chain(unsupported).collect()),
            ..LoadBalancerIngress::default()
        }
    }
}

/// None: of a protocol that weir does not carry.
fn port(port: &ServicePort) -> Option<Port> {
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some(_) => return None,
    };
    Some(Port { number: u16::try_from(port.port).ok()?, protocol })
}

/// The address of an entry and the ports that are served there; without a list all are.
fn held(ingress: &LoadBalancerIngress, all: &BTreeSet<Port>) -> Option<(IpAddr, BTreeSet<Port>)> {
    let address = ingress.ip.as_ref()?.parse().ok()?;
    let ports = match &ingress.ports {
        None => all.clone(),
        Some(told) => {
            let told = |port: &&Port| {
                told.iter().any(|it| {
                    it.error.is_none()
                        && it.port == i32::from(port.number)
                        && it.protocol == port.protocol.to_string()
                })
            };
            all.iter().filter(told).copied().collect()
        }
    };
    Some((address, ports))
}

/// Of the cluster addresses, the primary one first.
fn families(told: Option<&[String]>, cluster: Option<&[String]>) -> Vec<Family> {
    let told = told.unwrap_or_default().iter().filter_map(|family| match family.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    });
    let cluster = cluster.unwrap_or_default().iter().filter_map(|it| it.parse().ok());
    let families: Vec<_> = told.collect();
    match families.is_empty() {
        true => cluster.map(Family::of).collect(),
        false => families,
    }
}

/// With the time since which each has its status.
fn dated(mut told: Vec<Condition>, former: &[Condition], now: Timestamp) -> Vec<Condition> {
    let former: BTreeMap<_, _> = former.iter().map(|it| (it.type_.as_str(), it)).collect();
    for condition in &mut told {
        let same = former.get(condition.type_.as_str()).filter(|it| it.status == condition.status);
        condition.last_transition_time =
            same.map_or(Time(now), |it| it.last_transition_time.clone());
        condition.observed_generation = same.and_then(|it| it.observed_generation);
    }
    told
}
