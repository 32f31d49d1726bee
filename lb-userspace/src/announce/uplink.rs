//! Which interfaces a node may announce on, and which of them a VIP is announced on. Pure.

use std::net::IpAddr;

use crate::{
    model::{AgentSettings, CardInterface},
    netlink::{Interfaces, Subnet},
};

/// An interface that VIPs are announced on.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, serde::Serialize)]
pub struct Uplink {
    pub name: String,
    pub ifindex: u32,
    pub mac: [u8; 6],
}

/// The interfaces on which this node may announce, as it tells the others: uplinks that are up, have a
/// MAC and that the `Agent` object allows.
pub fn announcing_interfaces(agent: &AgentSettings, interfaces: &Interfaces) -> Vec<CardInterface> {
    let allowed = agent.uplinks.iter().filter(|name| allows(&agent.announce_interfaces, name));
    let links = allowed.filter_map(|name| interfaces.by_name(name)).filter(|link| link.up);
    let card = |link: &crate::netlink::Link| {
        let subnets = link.subnets.iter().map(|subnet| (subnet.address, subnet.prefix)).collect();
        Some(CardInterface { name: link.name.clone(), mac: link.mac?, subnets })
    };
    links.filter_map(card).collect()
}

/// Whether an interface is allowed: by no pattern at all, or by one of them.
pub fn allows(patterns: &[String], name: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| matches(pattern, name))
}

/// `*` stands for any text, also none.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            rest.char_indices().map(|(at, _)| &rest[at..]).chain([""]).any(|it| matches(tail, it))
        }),
    }
}

/// Whether a VIP lies in a subnet of an interface.
pub fn on_link(interface: &CardInterface, vip: IpAddr) -> bool {
    let subnets = interface.subnets.iter();
    subnets
        .map(|(address, prefix)| Subnet { address: *address, prefix: *prefix })
        .any(|subnet| subnet.holds(vip))
}

/// The first of `uplinks` (names) with a subnet that holds `vip`, else the first that exists.
///
/// A VIP outside every subnet is reached by routing; which uplink announces it does not matter
/// then, but it must always be the same. Interfaces without a MAC cannot announce.
pub fn uplink_for(vip: IpAddr, uplinks: &[String], interfaces: &Interfaces) -> Option<Uplink> {
    let usable = || {
        uplinks.iter().filter_map(|name| {
            let link = interfaces.by_name(name)?;
            Some((link, Uplink { name: name.clone(), ifindex: link.ifindex, mac: link.mac? }))
        })
    };
    let on_link = usable().find(|(link, _)| link.subnets.iter().any(|subnet| subnet.holds(vip)));
    on_link.or_else(|| usable().next()).map(|(_, uplink)| uplink)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Link, Subnet};

    fn link(ifindex: u32, name: &str, subnets: &[(&str, u8)]) -> Link {
        let subnets = subnets
            .iter()
            .map(|(address, prefix)| Subnet { address: address.parse().unwrap(), prefix: *prefix })
            .collect();
        let mac = (name != "tun0").then_some([2, 0, 0, 0, 0, ifindex as u8]);
        Link { ifindex, name: name.into(), mac, mtu: 1500, up: true, xdp_program: None, subnets }
    }

    fn interfaces() -> Interfaces {
        Interfaces::new([
            link(2, "eth0", &[("192.0.2.7", 24), ("2001:db8:1::7", 64)]),
            link(3, "eth1", &[("198.51.100.7", 25), ("fe80::7", 64)]),
            link(4, "tun0", &[("203.0.113.1", 24)]),
        ])
    }

    fn chosen(vip: &str, uplinks: &[&str]) -> Option<String> {
        let uplinks: Vec<_> = uplinks.iter().map(|name| (*name).to_owned()).collect();
        uplink_for(vip.parse().unwrap(), &uplinks, &interfaces()).map(|uplink| uplink.name)
    }

    #[test]
    fn the_uplink_whose_subnet_holds_the_vip_announces_it() {
        assert_eq!(chosen("198.51.100.100", &["eth0", "eth1"]).as_deref(), Some("eth1"));
        assert_eq!(chosen("2001:db8:1::100", &["eth1", "eth0"]).as_deref(), Some("eth0"));
    }

    #[test]
    fn a_vip_outside_every_subnet_goes_to_the_first_uplink_there_is() {
        assert_eq!(chosen("198.51.100.200", &["eth0", "eth1"]).as_deref(), Some("eth0"));
        assert_eq!(chosen("203.0.113.9", &["missing", "tun0", "eth1"]).as_deref(), Some("eth1"));
    }

    #[test]
    fn patterns_stand_for_any_text() {
        let all = |patterns: &[&str], name| {
            allows(&patterns.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>(), name)
        };
        assert!(all(&[], "eth0") && all(&["*"], "eth0") && all(&["lan", "eth*"], "eth0"));
        assert!(all(&["e*0"], "eth0") && all(&["*th*"], "eth0") && all(&["eth0*"], "eth0"));
        assert!(!all(&["eth"], "eth0") && !all(&["e*1"], "eth0") && !all(&["*eth1*"], "eth0"));
    }

    #[test]
    fn without_a_usable_uplink_there_is_none() {
        assert_eq!(chosen("203.0.113.9", &["missing", "tun0"]), None);
    }
}
