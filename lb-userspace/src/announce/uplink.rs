//! Which interface a VIP is announced on. Pure.

use std::net::IpAddr;

use crate::netlink::Interfaces;

/// An interface that VIPs are announced on.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, serde::Serialize)]
pub struct Uplink {
    pub name: String,
    pub ifindex: u32,
    pub mac: [u8; 6],
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
    fn without_a_usable_uplink_there_is_none() {
        assert_eq!(chosen("203.0.113.9", &["missing", "tun0"]), None);
    }
}
