//! What Kubernetes says at one moment, in plain types: as much of its objects as weir looks at.
//!
//! No judgement here: absent fields get the meaning that the API gives them, and nothing more. Objects
//! that cannot concern weir are not kept (`None` of [`Keep::keep`]).

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use imbl::OrdMap;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use kube::ResourceExt;

pub use super::controller::{CLASS, FINALIZER};
use super::{controller::ServiceObject, crd::FrontendStatus, crd_pool::AddressPool};

/// By its presence, whatever its value: the node stands behind no external load balancer.
pub const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Ours, on nodes with the taint of the cluster's autoscaler: they will go.
pub const TO_BE_DELETED: &str = "weir.dev/to-be-deleted";

const TAINT_OF_DELETION: &str = "ToBeDeletedByClusterAutoscaler";

/// Namespace and name; the namespace is empty where there is none.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name {
    pub namespace: String,
    pub name: String,
}

impl Name {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub fn of(object: &impl ResourceExt) -> Self {
        Self::new(object.namespace().unwrap_or_default(), object.name_any())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// All objects of one kind. Two states of them share what did not change.
pub type Objects<T> = OrdMap<Arc<Name>, Arc<T>>;

/// Everything, after every first list was complete. A copy costs nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub services: Objects<Service>,
    pub slices: Objects<Slice>,
    pub nodes: Objects<Node>,
    pub namespaces: Objects<Namespace>,
    pub frontends: Objects<Frontend>,
    pub pools: Objects<AddressPool>,
}

/// How a kind of objects is kept. Two that are kept equal are one to all who read.
pub trait Keep: PartialEq + Sized {
    type Object;

    /// What of it is kept; `None`: it cannot concern weir.
    fn keep(object: Self::Object) -> Option<Self>;
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
}

impl Transport {
    /// `None`: one that this build does not know. Absent means TCP.
    fn read(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

/// A Service of type LoadBalancer, or one that was of it and still holds something.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Service {
    pub name: Name,
    pub annotations: BTreeMap<String, String>,
    /// It is being deleted.
    pub ending: bool,
    pub load_balancer: bool,
    pub class: Option<String>,
    pub ports: Vec<ServicePort>,
    /// externalTrafficPolicy is Local.
    pub local_only: bool,
    /// sessionAffinity is ClientIP.
    pub client_affinity: bool,
    /// As they stand in the object.
    pub source_ranges: Vec<String>,
    /// healthCheckNodePort.
    pub health_port: Option<u16>,
    /// Addresses in its status.
    pub ingress: Vec<core::LoadBalancerIngress>,
    /// What gives addresses sees of it, as if Services without a class were ours.
    pub object: Option<ServiceObject>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServicePort {
    /// Empty: the only port.
    pub name: String,
    pub port: u16,
    pub transport: Transport,
    /// The target where it is a number.
    pub target: Option<u16>,
}

impl Service {
    /// Whether weir is to serve it, by class.
    pub fn is_ours(&self, default_class: bool) -> bool {
        let ours = self.class.as_deref().map_or(default_class, |class| class == CLASS);
        self.load_balancer && ours
    }

    /// The addresses that clients use.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.ingress.iter().filter_map(vip)
    }

    /// Those of them where a port has an error, such as being another Service's.
    pub fn addresses_without(&self, port: &ServicePort) -> impl Iterator<Item = IpAddr> + '_ {
        let (number, transport) = (i32::from(port.port), port.transport);
        let bad = move |it: &core::PortStatus| {
            let same = it.port == number && Transport::read(Some(&it.protocol)) == Some(transport);
            same && it.error.is_some()
        };
        let without = move |it: &&core::LoadBalancerIngress| it.ports.iter().flatten().any(&bad);
        self.ingress.iter().filter(without).filter_map(vip)
    }
}

impl Keep for Service {
    type Object = core::Service;

    fn keep(object: core::Service) -> Option<Self> {
        let seen = ServiceObject::read(&object, true);
        let name = Name::of(&object);
        let (metadata, status) = (object.metadata, object.status.unwrap_or_default());
        let spec = object.spec.unwrap_or_default();
        let class = spec.load_balancer_class;
        if class.as_deref().is_some_and(|class| class != CLASS) && seen.is_none() {
            return None;
        }
        let load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
        if !load_balancer && seen.is_none() {
            return None;
        }
        let annotations = metadata.annotations.unwrap_or_default();
        Some(Self {
            name,
            annotations: annotations.into_iter().filter(matters).collect(),
            ending: metadata.deletion_timestamp.is_some(),
            load_balancer,
            class,
            ports: spec.ports.unwrap_or_default().into_iter().filter_map(service_port).collect(),
            local_only: spec.external_traffic_policy.as_deref() == Some("Local"),
            client_affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
            source_ranges: spec.load_balancer_source_ranges.unwrap_or_default(),
            health_port: port(spec.health_check_node_port),
            ingress: status.load_balancer.and_then(|it| it.ingress).unwrap_or_default(),
            object: seen,
        })
    }
}

fn vip(ingress: &core::LoadBalancerIngress) -> Option<IpAddr> {
    let vip = ingress.ip_mode.as_deref().unwrap_or("VIP") == "VIP";
    ingress.ip.as_ref().filter(|_| vip)?.parse().ok()
}

/// Annotations that nobody here reads may be large, and change often.
fn matters((key, _): &(String, String)) -> bool {
    let prefix = key.split('/').next().unwrap_or_default();
    ["weir.dev", "metallb.io", "metallb.universe.tf", "service.beta.kubernetes.io"]
        .contains(&prefix)
}

fn service_port(port_: core::ServicePort) -> Option<ServicePort> {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    let target = match port_.target_port {
        Some(IntOrString::Int(number)) => port(Some(number)),
        Some(IntOrString::String(_)) | None => None,
    };
    let transport = Transport::read(port_.protocol.as_deref())?;
    let name = port_.name.unwrap_or_default();
    Some(ServicePort { name, port: port(Some(port_.port))?, transport, target })
}

/// 0 is none.
fn port(number: Option<i32>) -> Option<u16> {
    number.and_then(|number| u16::try_from(number).ok()).filter(|port| *port != 0)
}

/// An EndpointSlice of a Service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Slice {
    pub service: Name,
    pub ports: Vec<SlicePort>,
    pub endpoints: Box<[Endpoint]>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SlicePort {
    pub name: String,
    /// None: every port.
    pub port: Option<u16>,
    pub transport: Transport,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    pub address: IpAddr,
    /// Name of the node that it is on.
    pub node: Option<String>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// Whose clients it is meant for; none: everybody's.
    pub hints: Option<Box<Hints>>,
}

/// What the EndpointSlice controller makes of `trafficDistribution`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hints {
    /// Names.
    pub nodes: Vec<String>,
    pub zones: Vec<String>,
}

impl Hints {
    fn read(object: discovery::EndpointHints) -> Option<Box<Self>> {
        let nodes = object.for_nodes.unwrap_or_default().into_iter().map(|it| it.name).collect();
        let zones = object.for_zones.unwrap_or_default().into_iter().map(|it| it.name).collect();
        let hints = Self { nodes, zones };
        (hints != Self::default()).then(|| Box::new(hints))
    }
}

impl Keep for Slice {
    type Object = discovery::EndpointSlice;

    fn keep(object: discovery::EndpointSlice) -> Option<Self> {
        if !["IPv4", "IPv6"].contains(&object.address_type.as_str()) {
            return None;
        }
        let service = object.labels().get("kubernetes.io/service-name")?.clone();
        let service = Name::new(object.namespace().unwrap_or_default(), service);
        let slice_port = |it: discovery::EndpointPort| {
            let transport = Transport::read(it.protocol.as_deref())?;
            Some(SlicePort { name: it.name.unwrap_or_default(), port: port(it.port), transport })
        };
        let ports = object.ports.unwrap_or_default().into_iter().filter_map(slice_port).collect();
        // Not where the objects lay, which are many times as large.
        let endpoints: Vec<_> = object.endpoints.into_iter().filter_map(endpoint).collect();
        Some(Self { service, ports, endpoints: endpoints.into() })
    }
}

/// Several addresses are one endpoint: the first counts.
fn endpoint(object: discovery::Endpoint) -> Option<Endpoint> {
    let conditions = object.conditions.unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    Some(Endpoint {
        address: object.addresses.first()?.parse().ok()?,
        node: object.node_name,
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        hints: object.hints.and_then(Hints::read),
    })
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Node {
    pub name: String,
    /// At most one of each family, the cluster's own.
    pub addresses: Vec<IpAddr>,
    /// With [`TO_BE_DELETED`].
    pub labels: BTreeMap<String, String>,
    /// Nobody knows whether it is ready: its kubelet is silent.
    pub unknown: bool,
}

impl Keep for Node {
    type Object = core::Node;

    fn keep(object: core::Node) -> Option<Self> {
        let name = object.name_any();
        let mut labels = object.metadata.labels.unwrap_or_default();
        let taints = object.spec.and_then(|spec| spec.taints).unwrap_or_default();
        if taints.iter().any(|taint| taint.key == TAINT_OF_DELETION) {
            labels.insert(TO_BE_DELETED.into(), "true".into());
        }
        let status = object.status.unwrap_or_default();
        let mut found: Vec<IpAddr> = Vec::new();
        let given = status.addresses.unwrap_or_default();
        let internal = given.iter().filter(|it| it.type_ == "InternalIP");
        for address in internal.filter_map(|it| it.address.parse::<IpAddr>().ok()) {
            if !found.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
                found.push(address);
            }
        }
        let conditions = status.conditions.unwrap_or_default();
        let unknown = conditions.iter().any(|it| it.type_ == "Ready" && it.status == "Unknown");
        Some(Self { name, addresses: found, labels, unknown })
    }
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Namespace {
    pub uid: String,
    pub labels: BTreeMap<String, String>,
}

impl Keep for Namespace {
    type Object = core::Namespace;

    fn keep(object: core::Namespace) -> Option<Self> {
        let metadata = object.metadata;
        let uid = metadata.uid.unwrap_or_default();
        Some(Self { uid, labels: metadata.labels.unwrap_or_default() })
    }
}

/// Our own Frontend, as it stands in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frontend {
    pub spec: serde_json::Value,
    pub uid: String,
    pub resource_version: String,
    pub generation: i64,
    pub ending: bool,
    pub status: FrontendStatus,
}

impl Keep for AddressPool {
    type Object = Self;

    fn keep(mut object: Self) -> Option<Self> {
        object.metadata.managed_fields = None;
        Some(object)
    }
}

impl Keep for Frontend {
    type Object = kube::core::DynamicObject;

    fn keep(mut object: kube::core::DynamicObject) -> Option<Self> {
        let mut field = |name| object.data.get_mut(name).map(serde_json::Value::take);
        // One that cannot be read is written anew.
        let status = field("status").and_then(|it| serde_json::from_value(it).ok());
        Some(Self {
            spec: field("spec").unwrap_or_default(),
            status: status.unwrap_or_default(),
            uid: object.metadata.uid.unwrap_or_default(),
            resource_version: object.metadata.resource_version.unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            ending: object.metadata.deletion_timestamp.is_some(),
        })
    }
}
