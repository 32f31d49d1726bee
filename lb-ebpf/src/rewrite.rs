//! Changes of headers in XDP, checksums kept right incrementally.

use lb_common::{
    checksum::Delta,
    net::{Addr, Flow, Port, proto},
    reason::Reason,
    wire::{
        ipv4::Ipv4,
        ipv6::Ipv6,
        l4::{Tcp, Udp},
    },
};

use crate::{frame::View, parse::Ip};

/// Writes `addr` and `port` in place of the VIP's.
#[inline(always)]
pub fn destination(
    view: &mut View<'_>,
    ip: &Ip,
    flow: &Flow,
    addr: Addr,
    port: Port,
) -> Result<(), Reason> {
    let delta = Delta::new().replace16(flow.vip_port.wire(), port.wire());
    let delta = if ip.v6 {
        view.at_mut::<Ipv6>(ip.l3)?.destination = addr.into();
        delta.replace_addr(&flow.vip, &addr)
    } else {
        let (old, new) = (flow.vip.v4_word(), addr.v4_word());
        let header = view.at_mut::<Ipv4>(ip.l3)?;
        header.destination = new;
        header.checksum = Delta::new().replace32(old, new).apply(header.checksum);
        delta.replace32(old, new)
    };
    if ip.proto == proto::TCP {
        let tcp = view.at_mut::<Tcp>(ip.l4)?;
        tcp.destination = port.wire();
        tcp.checksum = delta.apply(tcp.checksum);
    } else {
        let udp = view.at_mut::<Udp>(ip.l4)?;
        udp.destination = port.wire();
        udp.checksum = delta.apply_udp(udp.checksum);
    }
    Ok(())
}

/// One hop less. The caller has refused a TTL that ends here.
#[inline(always)]
pub fn lower_ttl(view: &mut View<'_>, ip: &Ip) -> Result<(), Reason> {
    if ip.v6 {
        view.at_mut::<Ipv6>(ip.l3)?.hop_limit = ip.ttl - 1;
        return Ok(());
    }
    let header = view.at_mut::<Ipv4>(ip.l3)?;
    let old = u16::from_ne_bytes([ip.ttl, ip.proto]);
    let new = u16::from_ne_bytes([ip.ttl - 1, ip.proto]);
    header.ttl = ip.ttl - 1;
    header.checksum = Delta::new().replace16(old, new).apply(header.checksum);
    Ok(())
}

/// Copies the outer header's congestion mark inwards (RFC 6040 4.2).
#[inline(always)]
pub fn mark_congestion(view: &mut View<'_>, ip: &Ip) -> Result<(), Reason> {
    let tos = ip.tos | 3;
    if ip.v6 {
        view.at_mut::<Ipv6>(ip.l3)?.set_traffic_class(tos);
        return Ok(());
    }
    let header = view.at_mut::<Ipv4>(ip.l3)?;
    let old = u16::from_ne_bytes([header.version_ihl, ip.tos]);
    let new = u16::from_ne_bytes([header.version_ihl, tos]);
    header.tos = tos;
    header.checksum = Delta::new().replace16(old, new).apply(header.checksum);
    Ok(())
}
