//! What a Service asks for and what it holds, and what annotations say of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use super::{pool::Labels, range::Family};
use crate::model::Protocol;

/// Namespace and name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A port as clients see it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Port {
    pub number: u16,
    pub protocol: Protocol,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

/// `spec.ipFamilyPolicy`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FamilyPolicy {
    SingleStack,
    PreferDualStack,
    RequireDualStack,
}

/// A Service of ours, of type LoadBalancer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Service {
    pub name: ServiceName,
    /// Unix time in s; the older has the right of way, ties by name.
    pub created: i64,
    pub labels: Labels,
    /// What its status says, with the ports that are served there.
    pub held: BTreeMap<IpAddr, BTreeSet<Port>>,
    pub wishes: Wishes,
    pub policy: FamilyPolicy,
    /// Those of its cluster addresses, the primary one first.
    pub families: Vec<Family>,
    /// Those of TCP and UDP.
    pub ports: BTreeSet<Port>,
    /// It is being deleted: it keeps what it holds until it is gone and gets nothing new.
    pub ending: bool,
}

impl Service {
    /// The families in which it is to have an address, the primary one first.
    pub fn wanted(&self) -> &[Family] {
        match self.policy {
            FamilyPolicy::SingleStack => &self.families[..self.families.len().min(1)],
            FamilyPolicy::PreferDualStack | FamilyPolicy::RequireDualStack => &self.families,
        }
    }
}

/// What a Service asks for by annotations and by `spec.loadBalancerIP`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Wishes {
    pub addresses: Vec<IpAddr>,
    pub pool: Option<String>,
    /// Services of one key share addresses where their ports differ.
    pub sharing_key: Option<String>,
    /// Texts that were to be addresses; with any of them nothing new is given.
    pub unreadable: Vec<String>,
}

/// Annotations in the order in which they count; MetalLB's newer and older names are read so that its
/// users need not edit their Services.
const ADDRESSES: [&str; 3] =
    ["weir.dev/addresses", "metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"];
const POOL: [&str; 3] =
    ["weir.dev/pool", "metallb.io/address-pool", "metallb.universe.tf/address-pool"];
const SHARING_KEY: [&str; 3] =
    ["weir.dev/sharing-key", "metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"];

impl Wishes {
    /// Annotations win over `spec.loadBalancerIP`; of annotations the first that is not blank counts.
    pub fn read(annotations: &BTreeMap<String, String>, load_balancer_ip: Option<&str>) -> Self {
        let first = |names: [&str; 3]| {
            names
                .into_iter()
                .filter_map(|name| annotations.get(name))
                .map(|text| text.trim())
                .find(|text| !text.is_empty())
        };
        let mut wishes = Self {
            pool: first(POOL).map(str::to_owned),
            sharing_key: first(SHARING_KEY).map(str::to_owned),
            ..Self::default()
        };
        let addresses = first(ADDRESSES).or(load_balancer_ip).unwrap_or_default();
        for text in addresses.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            match text.parse() {
                Ok(address) if wishes.addresses.contains(&address) => {}
                Ok(address) => wishes.addresses.push(address),
                Err(_) => wishes.unreadable.push(text.to_owned()),
            }
        }
        wishes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_read_in_their_order() {
        for (annotations, ip, addresses, pool, key) in [
            (&[][..], None, &[][..], None, None),
            (&[], Some("192.0.2.1"), &["192.0.2.1"], None, None),
            (
                &[("metallb.io/loadBalancerIPs", "192.0.2.2, 2001:db8::2")],
                Some("192.0.2.1"),
                &["192.0.2.2", "2001:db8::2"],
                None,
                None,
            ),
            (
                &[
                    ("metallb.universe.tf/address-pool", "old"),
                    ("metallb.io/address-pool", "new"),
                    ("metallb.universe.tf/allow-shared-ip", "a"),
                ],
                None,
                &[],
                Some("new"),
                Some("a"),
            ),
            (
                &[
                    ("weir.dev/addresses", "192.0.2.3"),
                    ("metallb.io/loadBalancerIPs", "192.0.2.4"),
                    ("weir.dev/pool", " "),
                    ("metallb.io/address-pool", "p"),
                    ("weir.dev/sharing-key", "k"),
                    ("metallb.io/allow-shared-ip", "l"),
                ],
                None,
                &["192.0.2.3"],
                Some("p"),
                Some("k"),
            ),
        ] {
            let annotations =
                annotations.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            let wishes = Wishes::read(&annotations, ip);
            let read: Vec<_> = wishes.addresses.iter().map(IpAddr::to_string).collect();
            assert_eq!(read, addresses);
            assert_eq!((wishes.pool.as_deref(), wishes.sharing_key.as_deref()), (pool, key));
            assert!(wishes.unreadable.is_empty());
        }
    }

    #[test]
    fn what_is_no_address_is_told() {
        let annotations = [("weir.dev/addresses".into(), "192.0.2.1,192.0.2".into())].into();
        assert_eq!(Wishes::read(&annotations, None).unreadable, ["192.0.2"]);
    }
}
