//! From routes and neighbours to hops. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{hop::Hop, net::Addr};

use super::Interfaces;

/// What a look-up in the routing tables said about one destination.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Route {
    pub ifindex: u32,
    /// None: the destination itself is the neighbour.
    pub gateway: Option<IpAddr>,
    /// Of the route, where it says one.
    pub mtu: Option<u32>,
}

impl Route {
    /// Who must be asked for a MAC.
    pub fn neighbour(&self, destination: IpAddr) -> NeighbourKey {
        (self.ifindex, self.gateway.unwrap_or(destination))
    }
}

/// Interface and address.
pub type NeighbourKey = (u32, IpAddr);

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Neighbour {
    /// Only while the kernel itself would send to it: reachable, stale, or being asked again.
    pub mac: Option<[u8; 6]>,
    /// The kernel keeps it fresh by itself.
    pub managed: bool,
    /// Set by an administrator; never asked.
    pub fixed: bool,
}

pub type Neighbours = BTreeMap<NeighbourKey, Neighbour>;

/// The two ends of a tunnel, of one family.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ends {
    pub source: IpAddr,
    pub destination: IpAddr,
}

/// The ends that may be used between two nodes, IPv4 first.
pub fn ends(own: &[IpAddr], other: &[IpAddr]) -> Vec<Ends> {
    let family = |addresses: &[IpAddr], v4| addresses.iter().copied().find(|ip| ip.is_ipv4() == v4);
    [true, false]
        .into_iter()
        .filter_map(|v4| Some(Ends { source: family(own, v4)?, destination: family(other, v4)? }))
        .collect()
}

/// The hop for these ends, or why there is none.
pub fn hop(
    ends: Ends,
    route: Option<&Route>,
    neighbours: &Neighbours,
    interfaces: &Interfaces,
) -> Result<Hop, &'static str> {
    let route = route.ok_or("no route from this node's address")?;
    let link = interfaces.by_index(route.ifindex).ok_or("its interface is gone")?;
    if !link.up {
        return Err("its interface is down");
    }
    let source_mac = link.mac.ok_or("its interface has no Ethernet address")?;
    let destination_mac = neighbours
        .get(&route.neighbour(ends.destination))
        .and_then(|neighbour| neighbour.mac)
        .ok_or("the next hop does not answer to ARP or NDP")?;
    Ok(Hop {
        ifindex: route.ifindex,
        mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
        destination_mac,
        source_mac,
        ..no_way(ends)
    })
}

/// The hop that says: no way known.
pub fn no_way(ends: Ends) -> Hop {
    let (source, destination) = (Addr::from(ends.source), Addr::from(ends.destination));
    Hop { source, destination, ..Hop::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Link;

    const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn pair() -> Ends {
        Ends { source: ip("192.0.2.1"), destination: ip("198.51.100.2") }
    }

    fn interfaces(up: bool) -> Interfaces {
        let mac = Some([2, 0, 0, 0, 0, 1]);
        Interfaces::new([Link {
            ifindex: 2,
            name: "eth0".into(),
            mac,
            mtu: 1500,
            up,
            ..Link::default()
        }])
    }

    fn neighbours(mac: Option<[u8; 6]>) -> Neighbours {
        BTreeMap::from([((2, ip("192.0.2.254")), Neighbour { mac, managed: true, fixed: false })])
    }

    fn route(mtu: Option<u32>) -> Route {
        Route { ifindex: 2, gateway: Some(ip("192.0.2.254")), mtu }
    }

    #[test]
    fn ipv4_comes_first_where_both_nodes_have_it() {
        let (four, six) = ([ip("192.0.2.1")], [ip("2001:db8::1"), ip("192.0.2.2")]);
        let pair = |source, destination| Ends { source: ip(source), destination: ip(destination) };
        assert_eq!(ends(&four, &six), [pair("192.0.2.1", "192.0.2.2")]);
        assert_eq!(
            ends(&six, &six),
            [pair("192.0.2.2", "192.0.2.2"), pair("2001:db8::1", "2001:db8::1")]
        );
        assert_eq!(ends(&four, &six[..1]), []);
    }

    #[test]
    fn a_gateway_that_answers_gives_a_hop_with_the_smaller_mtu() {
        let known = neighbours(Some(GATEWAY_MAC));
        let hop = |mtu| hop(pair(), Some(&route(mtu)), &known, &interfaces(true)).unwrap();
        let plain = hop(None);
        assert_eq!((plain.ifindex, plain.mtu, plain.destination_mac), (2, 1500, GATEWAY_MAC));
        assert_eq!((plain.source_mac, plain.source.to_ip()), ([2, 0, 0, 0, 0, 1], ip("192.0.2.1")));
        assert_eq!(plain.destination.to_ip(), ip("198.51.100.2"));
        assert_eq!((hop(Some(1400)).mtu, hop(Some(9000)).mtu), (1400, 1500));
    }

    #[test]
    fn an_on_link_destination_is_its_own_neighbour() {
        let route = Route { ifindex: 2, gateway: None, mtu: None };
        assert_eq!(route.neighbour(ip("192.0.2.9")), (2, ip("192.0.2.9")));
    }

    #[test]
    fn what_is_missing_is_named() {
        let known = neighbours(Some(GATEWAY_MAC));
        let reason = |route: Option<&Route>, known: &Neighbours, up| {
            hop(pair(), route, known, &interfaces(up)).unwrap_err()
        };
        let route = route(None);
        assert_eq!(reason(None, &known, true), "no route from this node's address");
        assert_eq!(reason(Some(&route), &known, false), "its interface is down");
        let silent = "the next hop does not answer to ARP or NDP";
        assert_eq!(reason(Some(&route), &neighbours(None), true), silent);
        assert_eq!(reason(Some(&route), &Neighbours::new(), true), silent);
        let elsewhere = Route { ifindex: 3, ..route };
        assert_eq!(reason(Some(&elsewhere), &known, true), "its interface is gone");
        assert_eq!(no_way(pair()).ifindex, 0);
    }
}
