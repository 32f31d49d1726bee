//! The one file that speaks rtnetlink.
//!
//! A socket belongs to the network namespace of the thread that opened it. Requests and events have
//! sockets of their own: an overrun of events loses no answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::AsRawFd,
};

use futures::TryStreamExt;
use netlink_packet_route::{
    AddressFamily,
    address::AddressAttribute,
    link::{LinkAttribute, LinkFlags, LinkLayerType, LinkXdp},
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
        NeighbourState,
    },
    route::{
        RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteType, RouteVia,
    },
};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use tokio::{io::unix::AsyncFd, task::JoinHandle};

use super::{
    Interfaces, Link, Subnet,
    ways::{Ends, Neighbour, Neighbours, Route},
};

/// Marks our proxy entries (NDA_PROTOCOL), among the numbers that the kernel leaves to routing
/// daemons: `w`.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(0x77);

/// Interfaces and neighbours of a large node, twice over; an overrun is no harm but costs a dump.
const EVENT_BUFFER: usize = 1 << 20;

/// Why the kernel did not answer.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("netlink: {what}: {source}")]
    Request { what: &'static str, source: rtnetlink::Error },
}

fn failed(what: &'static str) -> impl Fn(rtnetlink::Error) -> NetlinkError {
    move |source| NetlinkError::Request { what, source }
}

/// A connection for requests. Its task ends with it.
pub struct Netlink {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread. Must be called inside a runtime.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _events) = rtnetlink::new_connection()?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// All interfaces with their addresses.
    pub async fn interfaces(&self) -> Result<Interfaces, NetlinkError> {
        let mut subnets: BTreeMap<u32, Vec<Subnet>> = BTreeMap::new();
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.map_err(failed("list addresses"))? {
            // Of a point-to-point link `Address` is the other end's.
            let (mut address, mut local) = (None, None);
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Address(ip) => address = Some(*ip),
                    AddressAttribute::Local(ip) => local = Some(*ip),
                    _ => {}
                }
            }
            if let Some(address) = local.or(address) {
                let subnet = Subnet { address, prefix: message.header.prefix_len };
                subnets.entry(message.header.index).or_default().push(subnet);
            }
        }
        let mut links = Vec::new();
        let mut messages = self.handle.link().get().execute();
        while let Some(message) = messages.try_next().await.map_err(failed("list links"))? {
            let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
            let running = LinkFlags::Up | LinkFlags::LowerUp;
            let mut link = Link {
                ifindex: message.header.index,
                up: message.header.flags.contains(running),
                subnets: subnets.remove(&message.header.index).unwrap_or_default(),
                ..Link::default()
            };
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => link.name = name,
                    LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                    LinkAttribute::Address(mac) if ethernet => link.mac = mac.try_into().ok(),
                    LinkAttribute::Xdp(list) => link.xdp_program = xdp_program(&list),
                    _ => {}
                }
            }
            links.push(link);
        }
        Ok(Interfaces::new(links))
    }

    /// The way that the kernel would take from one end to the other; None: it has none.
    pub async fn route(&self, ends: Ends) -> Result<Option<Route>, NetlinkError> {
        let request = route_request(ends);
        let answer = self.handle.route().get(request).execute().try_next().await;
        match answer {
            Ok(message) => Ok(message.and_then(|message| read_route(&message))),
            // No route, or the source is not an address of this node.
            Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
            Err(error) => Err(failed("look up a route")(error)),
        }
    }

    /// The gateways of all default routes of both families, with the interface that leads to each.
    pub async fn default_gateways(&self) -> Result<BTreeSet<(u32, IpAddr)>, NetlinkError> {
        let mut gateways = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let mut routes = self.handle.route().get(request).execute();
            while let Some(route) = routes.try_next().await.map_err(failed("list routes"))? {
                gateways.extend(read_gateways(&route));
            }
        }
        Ok(gateways)
    }

    /// All neighbours of both families.
    pub async fn neighbours(&self) -> Result<Neighbours, NetlinkError> {
        let mut all = Neighbours::new();
        let mut messages = self.handle.neighbours().get().execute();
        while let Some(message) = messages.try_next().await.map_err(failed("list neighbours"))? {
            if let Some(address) = neighbour_address(&message) {
                all.insert((message.header.ifindex, address), read_neighbour(&message));
            }
        }
        Ok(all)
    }

    /// Asks the kernel to resolve a neighbour now, and if `managed` to keep it fresh for ever (Linux
    /// 5.16). An older kernel ignores the latter; then this must be called again and again.
    pub async fn resolve(
        &self,
        ifindex: u32,
        address: IpAddr,
        managed: bool,
    ) -> Result<(), NetlinkError> {
        let mut request = self
            .handle
            .neighbours()
            .add(ifindex, address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        if managed {
            let managed = NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed);
            request.message_mut().attributes.push(managed);
        }
        request.execute().await.map_err(failed("resolve a neighbour"))
    }

    /// The proxy entries that an agent of this node made, this one or one before it.
    pub async fn own_proxies(&self) -> Result<BTreeSet<(u32, Ipv6Addr)>, NetlinkError> {
        let request = self.handle.neighbours().get().proxies();
        let request = request.set_address_family(AddressFamily::Inet6);
        let messages: Vec<_> =
            request.execute().try_collect().await.map_err(failed("list proxy entries"))?;
        let ours = messages
            .iter()
            .filter(|message| message.attributes.contains(&NeighbourAttribute::Protocol(PROTOCOL)));
        Ok(ours
            .filter_map(|message| match neighbour_address(message)? {
                IpAddr::V6(address) => Some((message.header.ifindex, address)),
                IpAddr::V4(_) => None,
            })
            .collect())
    }

    /// Makes the kernel join the address's solicited-node group on an interface. Not an error if it
    /// is there.
    pub async fn add_proxy(&self, ifindex: u32, address: Ipv6Addr) -> Result<(), NetlinkError> {
        let mut request = self
            .handle
            .neighbours()
            .add(ifindex, address.into())
            .flags(NeighbourFlags::Proxy)
            .replace();
        request.message_mut().attributes.push(NeighbourAttribute::Protocol(PROTOCOL));
        request.execute().await.map_err(failed("add a proxy entry"))
    }

    pub async fn delete_proxy(&self, ifindex: u32, address: Ipv6Addr) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.ifindex = ifindex;
        message.header.flags = NeighbourFlags::Proxy;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)));
        let request = self.handle.neighbours().del(message);
        request.execute().await.map_err(failed("delete a proxy entry"))
    }
}

fn xdp_program(list: &[LinkXdp]) -> Option<u32> {
    list.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id)
        | LinkXdp::DrvProgId(id)
        | LinkXdp::SkbProgId(id)
        | LinkXdp::HwProgId(id)
            if *id != 0 =>
        {
            Some(*id)
        }
        _ => None,
    })
}

fn route_request(ends: Ends) -> RouteMessage {
    let address = |ip| match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    };
    let mut message = RouteMessageBuilder::<IpAddr>::new().build();
    let (family, length) = match ends.destination {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header = Default::default();
    message.header.address_family = family;
    message.header.destination_prefix_length = length;
    message.header.source_prefix_length = length;
    message.attributes = vec![
        RouteAttribute::Destination(address(ends.destination)),
        RouteAttribute::Source(address(ends.source)),
    ];
    message
}

/// None where the route leads to nobody: local, unreachable, blackhole.
fn read_route(message: &RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut route = Route { ifindex: 0, gateway: None, mtu: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => route.ifindex = *ifindex,
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu != 0 => Some(*mtu),
                    _ => None,
                });
            }
            other => route.gateway = gateway(other).or(route.gateway),
        }
    }
    (route.ifindex != 0).then_some(route)
}

/// The gateways of a route, if it is a default route: one, or several that share the traffic.
fn read_gateways(message: &RouteMessage) -> Vec<(u32, IpAddr)> {
    if message.header.destination_prefix_length != 0 {
        return Vec::new();
    }
    let hops = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    let single = read_route(message).and_then(|route| Some((route.ifindex, route.gateway?)));
    let several = hops.into_iter().flatten().filter_map(|hop| {
        let gateway = hop.attributes.iter().find_map(gateway)?;
        Some((hop.interface_index, gateway))
    });
    single.into_iter().chain(several).collect()
}

fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(ip))
        | RouteAttribute::Via(RouteVia::Inet(ip)) => Some((*ip).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(ip))
        | RouteAttribute::Via(RouteVia::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    }
}

fn neighbour_address(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some((*ip).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    })
}

fn read_neighbour(message: &NeighbourMessage) -> Neighbour {
    use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
    let state = message.header.state;
    let valid = matches!(state, Reachable | Stale | Delay | Probe | Permanent | Noarp);
    let mut neighbour =
        Neighbour { mac: None, managed: false, fixed: matches!(state, Permanent | Noarp) };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(mac) if valid => {
                neighbour.mac = mac.as_slice().try_into().ok();
            }
            NeighbourAttribute::ExtFlags(flags) => {
                neighbour.managed = flags.contains(NeighbourExtFlags::Managed);
            }
            _ => {}
        }
    }
    neighbour
}

/// Tells that something changed, not what: who hears it reads everything.
pub struct Events(AsyncFd<Socket>);

impl Events {
    /// Changes of neighbours.
    pub fn neighbours() -> io::Result<Self> {
        Self::of(&[MulticastGroup::Neigh])
    }

    /// Changes of links, addresses and routes.
    pub fn topology() -> io::Result<Self> {
        Self::of(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ])
    }

    fn of(groups: &[MulticastGroup]) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        let mask = groups.iter().fold(0, |mask, group| mask | 1 << (*group as u32 - 1));
        socket.set_rx_buf_sz(EVENT_BUFFER as libc::c_int)?;
        socket.bind(&SocketAddr::new(0, mask))?;
        socket.set_non_blocking(true)?;
        // SAFETY: the socket owns its descriptor and always gives the same one.
        Ok(Self(unsafe { AsyncFd::register(socket) }?))
    }

    /// Waits for a change, and forgets all that have been told by then. An overrun (ENOBUFS) is a
    /// change like any other.
    pub async fn changed(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut scrap = [0; 8192];
        while read(ready.get_inner().as_raw_fd(), &mut scrap) {}
        ready.clear_ready();
        Ok(())
    }
}

/// Takes one message; false when there is none. An overrun counts as one.
fn read(socket: libc::c_int, scrap: &mut [u8]) -> bool {
    // SAFETY: the buffer outlives the call, and its length is given.
    let read =
        unsafe { libc::recv(socket, scrap.as_mut_ptr().cast(), scrap.len(), libc::MSG_DONTWAIT) };
    read >= 0 || io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use netlink_packet_route::route::RouteNextHop;

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn neighbour(state: NeighbourState) -> Neighbour {
        let mut message = NeighbourMessage::default();
        message.header.state = state;
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(MAC.to_vec()),
            NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed),
        ];
        read_neighbour(&message)
    }

    #[test]
    fn a_neighbour_keeps_its_mac_while_the_kernel_would_send_to_it() {
        use NeighbourState::{Delay, Failed, Incomplete, None, Permanent, Probe, Reachable, Stale};
        for state in [Reachable, Stale, Delay, Probe, Permanent] {
            assert_eq!(neighbour(state).mac, Some(MAC), "{state}");
        }
        for state in [None, Incomplete, Failed] {
            assert_eq!(neighbour(state).mac, Option::None, "{state}");
        }
        assert!(neighbour(Permanent).fixed && !neighbour(Stale).fixed && neighbour(Stale).managed);
    }

    fn route(kind: RouteType, attributes: Vec<RouteAttribute>) -> Option<Route> {
        let mut message = RouteMessage::default();
        message.header.kind = kind;
        message.attributes = attributes;
        read_route(&message)
    }

    #[test]
    fn routes_name_interface_gateway_of_either_family_and_mtu() {
        let metrics = RouteAttribute::Metrics(vec![RouteMetric::Advmss(1), RouteMetric::Mtu(1400)]);
        let gateway: Ipv6Addr = "fe80::1".parse().unwrap();
        let via = RouteAttribute::Via(RouteVia::Inet6(gateway));
        let read = route(RouteType::Unicast, vec![RouteAttribute::Oif(4), via, metrics]);
        assert_eq!(
            read,
            Some(Route { ifindex: 4, gateway: Some(gateway.into()), mtu: Some(1400) })
        );
        let on_link = route(RouteType::Unicast, vec![RouteAttribute::Oif(4)]);
        assert_eq!(on_link, Some(Route { ifindex: 4, gateway: None, mtu: None }));
    }

    #[test]
    fn default_routes_name_all_their_gateways_and_others_none() {
        let (one, two): (Ipv4Addr, Ipv6Addr) =
            ("192.0.2.1".parse().unwrap(), "fe80::1".parse().unwrap());
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        let via = |interface_index, gateway| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = interface_index;
            hop.attributes = vec![gateway];
            hop
        };
        message.attributes = vec![RouteAttribute::MultiPath(vec![
            via(4, RouteAttribute::Gateway(RouteAddress::Inet(one))),
            via(5, RouteAttribute::Via(RouteVia::Inet6(two))),
        ])];
        assert_eq!(read_gateways(&message), [(4, one.into()), (5, two.into())]);
        message.attributes =
            vec![RouteAttribute::Oif(4), RouteAttribute::Gateway(RouteAddress::Inet(one))];
        assert_eq!(read_gateways(&message), [(4, one.into())]);
        message.header.destination_prefix_length = 8;
        assert_eq!(read_gateways(&message), []);
    }

    #[test]
    fn routes_that_lead_to_nobody_are_none() {
        for kind in [RouteType::Local, RouteType::BlackHole, RouteType::Unreachable] {
            assert_eq!(route(kind, vec![RouteAttribute::Oif(1)]), None, "{kind:?}");
        }
        assert_eq!(route(RouteType::Unicast, vec![]), None);
    }
}
