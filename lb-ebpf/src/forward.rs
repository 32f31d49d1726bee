//! Chooses the node that a client's packet goes to.
//!
//! Reads the frontend's slot and returns its owner. Never writes a map of flows: whether a flow is
//! known is `receive`'s business. Runs on every packet of every uplink, so traffic that is not ours
//! leaves after one look at a bitmap.
//!
//! Invariant: a slot's owner is a living backend id or 0; 0 means "none" and is refused.

use lb_common::{
    backend::BackendId,
    frontend::Endpoint,
    hash::slot_of,
    net::{Addr, Flow, proto},
    reason::Reason,
    wire::{
        eth::{Mac, ethertype},
        icmp,
        ipv4::{FRAGMENT_MASK, Ipv4},
        ipv6::Ipv6,
        l4::Udp,
    },
};

use crate::{
    chain::{self, Case},
    echo,
    frame::{Frame, View},
    maps::{self, setting},
    neighbour,
    parse::{Ip, Link, Macs},
    receive, refuse,
    tunnel::{self, Note},
    verdict::{Fate, Verdict},
};

/// First half of `ff02::/64`, under which neighbour solicitations are sent.
const LINK_LOCAL_MULTICAST: u64 = u64::from_le_bytes([0xff, 0x02, 0, 0, 0, 0, 0, 0]);

/// Plain IPv4 header without options.
const PLAIN_V4: u8 = 0x45;

/// What a frame is, at first sight.
enum Sight {
    NotOurs,
    Arp,
    Solicitation,
    Tunnel,
    /// The destination may be a VIP.
    Vip,
}

/// Decides on one frame.
#[inline(always)]
pub fn ingress(frame: &mut Frame) -> Fate {
    let fate = first(frame);
    if fate.is_final() { fate } else { later(frame, fate) }
}

/// What a stage put aside.
#[inline(always)]
fn later(frame: &mut Frame, fate: Fate) -> Fate {
    match fate {
        Fate::UNDECIDED => chain::settle(frame),
        Fate::PORTLESS => without_ports(frame),
        Fate::NO_FRONTEND => chain::refuse(frame, Reason::RefusedNoFrontend),
        _ => chain::refuse(frame, Reason::RefusedNoBackend),
    }
}

#[inline(always)]
fn first(frame: &mut Frame) -> Fate {
    let view = frame.view();
    let Ok(link) = Link::read(&view) else {
        return Fate::NOT_OURS;
    };
    match sight(&view, &link) {
        Sight::NotOurs => Fate::NOT_OURS,
        Sight::Vip => to_vip(frame, &link),
        Sight::Tunnel => receive::tunnelled(frame, &link),
        Sight::Arp => neighbour::arp(frame, &link),
        Sight::Solicitation => neighbour::solicitation(frame, &link),
    }
}

#[inline(always)]
fn sight(view: &View<'_>, link: &Link) -> Sight {
    match link.ethertype {
        ethertype::IPV4 => sight_v4(view, link.l3),
        ethertype::IPV6 => sight_v6(view, link.l3),
        ethertype::ARP => Sight::Arp,
        _ => Sight::NotOurs,
    }
}

#[inline(always)]
fn sight_v4(view: &View<'_>, l3: usize) -> Sight {
    let Ok(ip) = view.at::<Ipv4>(l3) else {
        return Sight::NotOurs;
    };
    let destination = Addr::from_v4_word(ip.destination);
    // Before the filter, in which the own address may share its bit with a VIP.
    if ip.destination == setting::own_v4().v4_word() {
        let plain_udp = ip.proto == proto::UDP
            && ip.version_ihl == PLAIN_V4
            && ip.fragment & FRAGMENT_MASK == 0;
        if plain_udp && is_tunnel_port(view, l3 + size_of::<Ipv4>()) {
            return Sight::Tunnel;
        }
        return Sight::NotOurs;
    }
    if maps::may_be_vip(&destination) {
        return Sight::Vip;
    }
    Sight::NotOurs
}

#[inline(always)]
fn sight_v6(view: &View<'_>, l3: usize) -> Sight {
    let Ok(ip) = view.at::<Ipv6>(l3) else {
        return Sight::NotOurs;
    };
    let destination = Addr::from(ip.destination);
    // Before the filter, as in `sight_v4`.
    if destination == setting::own_v6() {
        if ip.next_header == proto::UDP && is_tunnel_port(view, l3 + size_of::<Ipv6>()) {
            return Sight::Tunnel;
        }
        return Sight::NotOurs;
    }
    if ip.next_header == proto::ICMPV6 && destination.halves()[0] == LINK_LOCAL_MULTICAST {
        return Sight::Solicitation;
    }
    // An IPv4 VIP's mapped form is no address on the wire (RFC 4291 2.5.5.2).
    if maps::may_be_vip(&destination) && !destination.is_v4() {
        return Sight::Vip;
    }
    Sight::NotOurs
}

#[inline(always)]
fn is_tunnel_port(view: &View<'_>, l4: usize) -> bool {
    view.at::<Udp>(l4).is_ok_and(|udp| udp.destination == setting::tunnel_port().wire())
}

/// A packet whose destination may be a VIP. A function of its own, so that its stack is free again
/// for what becomes of packets that are put aside.
#[inline(never)]
fn to_vip(frame: &mut Frame, link: &Link) -> Fate {
    // The switch may flood frames for other hosts, which forward them themselves.
    let ifindex = frame.ifindex();
    let whole = frame.whole();
    let view = frame.view();
    let is_ours = maps::uplink(ifindex).is_some_and(|uplink| {
        Macs::read(&view).is_ok_and(|macs| macs.destination == Mac::new(uplink.mac))
    });
    if !is_ours {
        return Fate::NOT_OURS;
    }
    match Ip::read(&view, link.l3, link.ethertype, || whole.len()) {
        Ok(ip) if ip.fragment => drop_if_vip(&ip.destination, Reason::Fragment),
        Ok(ip) if ip.proto == proto::TCP || ip.proto == proto::UDP => match ip.flow(&view) {
            Ok(flow) => to_frontend(frame, link, &ip, &flow),
            Err(reason) => drop_if_vip(&ip.destination, reason),
        },
        Ok(ip) => chain::set_aside(link, &ip, Fate::PORTLESS),
        Err(reason) => match destination(&view, link) {
            Some(destination) => drop_if_vip(&destination, reason),
            None => Fate::NOT_OURS,
        },
    }
}

#[inline(always)]
fn destination(view: &View<'_>, link: &Link) -> Option<Addr> {
    if link.ethertype == ethertype::IPV6 {
        return Some(view.at::<Ipv6>(link.l3).ok()?.destination.into());
    }
    Some(Addr::from_v4_word(view.at::<Ipv4>(link.l3).ok()?.destination))
}

/// What cannot be carried is dropped for a VIP and none of our business otherwise.
#[inline(never)]
fn drop_if_vip(destination: &Addr, reason: Reason) -> Fate {
    Fate::of(match maps::vip(destination) {
        Some(_) => Err(reason),
        None => Ok(Verdict::NotOurs),
    })
}

/// TCP or UDP for what may be a VIP.
#[inline(always)]
fn to_frontend(frame: &mut Frame, link: &Link, ip: &Ip, flow: &Flow) -> Fate {
    let key = Endpoint::new(flow.vip, flow.vip_port, flow.proto);
    let Some(frontend) = maps::frontend(&key) else {
        return match maps::vip(&flow.vip) {
            Some(_) => chain::set_aside(link, ip, Fate::NO_FRONTEND),
            None => Fate::NOT_OURS,
        };
    };
    // Before all else that a client could ask for, also a refusal.
    if !maps::takes(&frontend, &flow.client) {
        return Fate::of(Err(Reason::SourceDenied));
    }
    let service = frontend.outside;
    let bytes = ip.length;
    maps::count_service(service, bytes);
    // A constant to the verifier: without a limit the rest is no part of the program.
    if setting::new_flows() != 0
        && ip.proto == proto::TCP
        && let Err(reason) = within_limit(frame, ip)
    {
        return Fate::of(Err(reason));
    }
    let Some(record) = maps::record(service) else {
        return chain::set_aside(link, ip, Fate::NO_BACKEND);
    };
    let hash = chain::hash(flow, record.flags);
    let owner = match record.owners {
        0 => BackendId::NONE,
        first => maps::owner(first, slot_of(hash, record.slots)),
    };
    if owner == BackendId::NONE {
        return chain::put_aside(link, ip, flow, service, &receive::Meant::NOBODY);
    }
    let Some(backend) = maps::backend(owner) else {
        return Fate::of(Err(Reason::StaleOwner));
    };
    maps::count_backend(owner, bytes);
    if backend.node != 0 {
        let note = Note::forwarded(record.slots, record.flags);
        return tunnel::send(frame, link, ip, backend, hash, note);
    }
    let place = receive::Place { service, id: owner, addr: backend.addr, port: backend.port };
    // Copies: what has its address taken is kept in memory, and forwarding would pay for it.
    receive::deliver(frame, &{ *link }, &{ *ip }, &{ *flow }, &place)
}

/// Counts a SYN against the limit of its source's prefix.
#[inline(always)]
fn within_limit(frame: &mut Frame, ip: &Ip) -> Result<(), Reason> {
    if ip.segment(&frame.view())?.opens() && may_open(&ip.source) == 0 {
        return Err(Reason::NewFlowLimited);
    }
    Ok(())
}

/// 1 or 0.
#[inline(never)]
fn may_open(source: &Addr) -> u64 {
    let v4 = source.is_v4();
    let [high, low] = if v4 { setting::source_mask_v4() } else { setting::source_mask_v6() };
    let [first, second] = source.halves();
    let prefix = Addr::from_halves([first & high, second & low]);
    maps::source_allowed(&prefix, setting::new_flows().into()) as u64
}

/// ICMP, ICMPv6 and protocols that are not balanced.
#[inline(never)]
fn without_ports(frame: &mut Frame) -> Fate {
    let Some(Case { link, ip, .. }) = maps::case() else {
        return Fate::NOT_OURS;
    };
    let Some(vip) = maps::vip(&ip.destination) else {
        return Fate::NOT_OURS;
    };
    let is_icmp = ip.proto == if ip.v6 { proto::ICMPV6 } else { proto::ICMP };
    if !is_icmp {
        return refuse::refuse(frame, link, ip, Reason::RefusedNoFrontend);
    }
    let kind = match frame.view().at::<icmp::Icmp>(ip.l4) {
        Ok(message) => message.kind,
        Err(reason) => return Fate::of(Err(reason)),
    };
    match (ip.v6, kind) {
        // Unicast: a neighbour confirms what it knows (RFC 4861 7.3.3).
        (true, icmp::v6::SOLICITATION) => {
            neighbour::solicitation(frame, link).or_dropped(Reason::IcmpIgnored)
        }
        (true, icmp::v6::ECHO) | (false, icmp::v4::ECHO) => {
            Fate::of(echo::answer(frame, link, ip, &vip))
        }
        _ => Fate::of(Err(Reason::IcmpIgnored)),
    }
}
