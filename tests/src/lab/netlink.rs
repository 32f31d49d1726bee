//! Links, addresses and routes of one namespace, by rtnetlink.
//!
//! Every request is made inside the namespace by a thread of its own, so callers may sit anywhere.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::RawFd,
};

use anyhow::{Context, Result};
use futures::TryStreamExt;
use netlink_packet_route::{
    link::{InfoData, InfoVeth, LinkAttribute, LinkMessage, LinkXdp, XdpAttached},
    route::{RouteNextHop, RouteScope},
};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    RouteNextHopBuilder,
};

use super::Namespace;

/// A network: address and prefix length.
pub type Prefix = (IpAddr, u8);

/// Everything, of the family of `like`.
pub fn default_route(like: IpAddr) -> Prefix {
    match like {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), 0),
    }
}

/// One address alone.
pub fn host_route(address: IpAddr) -> Prefix {
    (address, if address.is_ipv4() { 32 } else { 128 })
}

/// A netlink connection inside a namespace.
pub struct Netlink(Handle);

impl Netlink {
    /// Opens a connection inside `namespace` for as long as `work` runs.
    pub fn with<T: Send>(
        namespace: &Namespace,
        work: impl AsyncFnOnce(&Netlink) -> Result<T> + Send,
    ) -> Result<T> {
        namespace.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                tokio::spawn(connection);
                work(&Netlink(handle)).await
            })
        })
    }

    /// Makes a bridge that floods multicast (no snooping) and brings it up.
    pub async fn bridge(&self, name: &str) -> Result<()> {
        let bridge = LinkBridge::new(name).mcast_snooping(false).up().build();
        self.0.link().add(bridge).execute().await.with_context(|| format!("make bridge {name}"))
    }

    /// Makes a veth pair: `name` here, `peer` in the namespace that `peer_net` holds.
    pub async fn veth(&self, name: &str, peer: &str, peer_net: RawFd) -> Result<()> {
        let far_end =
            LinkMessageBuilder::<LinkUnspec>::new().name(peer).setns_by_fd(peer_net).build();
        let pair = LinkVeth::new(name, peer).set_info_data(InfoData::Veth(InfoVeth::Peer(far_end)));
        self.0
            .link()
            .add(pair.build())
            .execute()
            .await
            .with_context(|| format!("make veth {name} – {peer}"))
    }

    pub async fn up(&self, name: &str) -> Result<()> {
        self.change(name, LinkUnspec::new_with_name(name).up().build()).await
    }

    pub async fn down(&self, name: &str) -> Result<()> {
        self.change(name, LinkUnspec::new_with_name(name).down().build()).await
    }

    /// Makes `name` a port of `bridge`.
    pub async fn join(&self, name: &str, bridge: &str) -> Result<()> {
        let bridge = index(bridge)?;
        self.change(name, LinkUnspec::new_with_name(name).controller(bridge).build()).await
    }

    async fn change(&self, name: &str, link: LinkMessage) -> Result<()> {
        self.0.link().set(link).execute().await.with_context(|| format!("change link {name}"))
    }

    pub async fn address(&self, name: &str, (address, length): Prefix) -> Result<()> {
        let request = self.0.address().add(index(name)?, address, length);
        request.execute().await.with_context(|| format!("add {address}/{length} to {name}"))
    }

    /// Sends `to` out of `name` without a gateway.
    pub async fn route_on_link(&self, (to, length): Prefix, name: &str) -> Result<()> {
        // Only a route of scope "link" may lead to the gateway of another.
        let route = RouteMessageBuilder::<IpAddr>::new()
            .scope(RouteScope::Link)
            .output_interface(index(name)?);
        let route = route.destination_prefix(to, length)?;
        self.0
            .route()
            .add(route.build())
            .execute()
            .await
            .with_context(|| format!("route {to}/{length} to {name}"))
    }

    /// Sends `to` by `gateways`, spread over them by flow when they are several. Replaces the route that was there.
    pub async fn route(&self, (to, length): Prefix, gateways: &[IpAddr]) -> Result<()> {
        let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(to, length)?;
        let route = match gateways {
            [one] => route.gateway(*one)?,
            many => route
                .multipath(many.iter().map(|gateway| next_hop(*gateway)).collect::<Result<_>>()?),
        };
        let request = self.0.route().add(route.build()).replace();
        request.execute().await.with_context(|| format!("route {to}/{length} by {gateways:?}"))
    }

    /// Takes the route for `to` away.
    pub async fn unroute(&self, (to, length): Prefix) -> Result<()> {
        let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(to, length)?.build();
        self.0
            .route()
            .del(route)
            .execute()
            .await
            .with_context(|| format!("remove the route to {to}/{length}"))
    }

    /// How an XDP program is attached to `name`.
    pub async fn xdp(&self, name: &str) -> Result<XdpAttached> {
        let mut links = self.0.link().get().match_name(name.to_owned()).execute();
        let link = links.try_next().await?.with_context(|| format!("no link {name}"))?;
        let mode = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Xdp(parts) => parts.iter().find_map(|part| match part {
                LinkXdp::Attached(mode) => Some(*mode),
                _ => None,
            }),
            _ => None,
        });
        Ok(mode.unwrap_or(XdpAttached::None))
    }
}

fn next_hop(gateway: IpAddr) -> Result<RouteNextHop> {
    let hop = match gateway {
        IpAddr::V4(_) => RouteNextHopBuilder::new_ipv4(),
        IpAddr::V6(_) => RouteNextHopBuilder::new_ipv6(),
    };
    Ok(hop.via(gateway)?.build())
}

/// The index of an interface in the namespace of the calling thread.
pub fn index(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).with_context(|| format!("no interface {name}"))
}
