//! Takes a client's packet on its backend's node and hands it to the backend: notes the arrival,
//! writes the backend's address and port in place of the VIP's, and lets the kernel route it.
//!
//! What is not known is delivered; an arrival is then made anew in `OPENING`.

use lb_common::{
    abi::TUNNEL_VERSION,
    arrival::{Arrival, ArrivalKey, Tick},
    backend::BackendId,
    decide,
    frontend::Endpoint,
    net::{Addr, Flow, Port, proto},
    reason::Reason,
    wire::{
        eth::ethertype,
        geneve::{
            CLASS, DataHeader, OPTION_LENGTH, OVERHEAD_V4, OVERHEAD_V6, VERSION_LENGTH, kind,
            vni_word,
        },
        ipv4::Ipv4,
        ipv6::Ipv6,
        l4::Udp,
    },
};

use crate::{
    frame::Frame,
    maps::{self, setting},
    parse::{Ip, Link, Macs},
    probe, rewrite,
    verdict::{Fate, Outcome, Verdict},
};

/// Congestion experienced (RFC 3168).
const CE: u8 = 3;

/// Where a packet is delivered.
pub struct Place {
    pub service: u32,
    pub id: BackendId,
    pub addr: Addr,
    pub port: Port,
}

/// What of the tunnel's header is needed once it is off.
struct Meant {
    addr: Addr,
    port: Port,
    seed_tag: u64,
    /// EtherType of the packet inside.
    inner: u16,
}

/// A packet for this node's tunnel port.
#[inline(never)]
pub fn tunnelled(frame: &mut Frame, link: &Link) -> Fate {
    Fate::of(try_tunnelled(frame, link))
}

#[inline(always)]
fn try_tunnelled(frame: &mut Frame, link: &Link) -> Outcome {
    let view = frame.view();
    let (sender, tos, headers) = if link.ethertype == ethertype::IPV6 {
        let ip = view.at::<Ipv6>(link.l3)?;
        (Addr::from(ip.source), ip.traffic_class(), size_of::<Ipv6>() + size_of::<Udp>())
    } else {
        let ip = view.at::<Ipv4>(link.l3)?;
        (Addr::from_v4_word(ip.source), ip.tos, size_of::<Ipv4>() + size_of::<Udp>())
    };
    let header = view.at::<DataHeader>(link.l3 + headers).map_err(|_| Reason::BadTunnel)?;
    let ours = header.base.version_length == VERSION_LENGTH
        && header.base.vni == vni_word(setting::vni())
        && header.option.class == CLASS
        && header.option.length == OPTION_LENGTH;
    if !ours {
        return Err(Reason::BadTunnel);
    }
    if !maps::is_member(&sender) {
        return Err(Reason::NotMember);
    }
    let meant = Meant {
        addr: header.data.backend_addr(),
        port: header.data.backend_port(),
        seed_tag: header.data.seed_tag,
        inner: header.base.protocol,
    };
    let same_version = header.data.version == TUNNEL_VERSION;
    match header.option.kind {
        // Probes are answered across versions: an upgrade must not make nodes look dead.
        kind::DATA if !same_version => Err(Reason::BadTunnel),
        kind::DATA => unpack(frame, link, &meant, tos),
        kind::PROBE => probe::answer(frame, link, headers),
        kind::YIELD => probe::give_way(&meant.addr),
        kind::PROBE_ANSWER => Ok(Verdict::Pass(Reason::ProbeAnswerPassed)),
        _ => Err(Reason::BadTunnel),
    }
}

/// Takes the packet out of the tunnel and delivers it.
#[inline(always)]
fn unpack(frame: &mut Frame, outer: &Link, meant: &Meant, outer_tos: u8) -> Outcome {
    let inner = meant.inner;
    if inner != ethertype::IPV4 && inner != ethertype::IPV6 {
        return Err(Reason::BadTunnel);
    }
    let overhead = if outer.ethertype == ethertype::IPV6 { OVERHEAD_V6 } else { OVERHEAD_V4 };
    let macs = Macs::read(&frame.view())?;
    frame.grow_head(-(overhead as i32))?;
    let link = Link { ethertype: inner, ..*outer };
    let whole = frame.whole();
    let mut view = frame.view();
    link.write(&mut view, macs)?;
    let ip = Ip::read(&view, link.l3, inner, || whole.len())?;
    if ip.fragment {
        return Err(Reason::Fragment);
    }
    if ip.proto != proto::TCP && ip.proto != proto::UDP {
        return Err(Reason::UnknownFrontend);
    }
    if ip.source == setting::own_v4() || ip.source == setting::own_v6() {
        return Err(Reason::LocalSource);
    }
    if outer_tos & 3 == CE && ip.tos & 3 != CE {
        if ip.tos & 3 == 0 {
            return Err(Reason::EcnInconsistent);
        }
        rewrite::mark_congestion(&mut view, &ip)?;
    }
    let flow = ip.flow(&view)?;
    let frontend = maps::frontend(&Endpoint::new(flow.vip, flow.vip_port, flow.proto))
        .ok_or(Reason::UnknownFrontend)?;
    let Meant { addr, port, .. } = *meant;
    let id = maps::local_backend(&Endpoint::new(addr, port, flow.proto))
        .ok_or(Reason::UnknownBackend)?;
    if meant.seed_tag != setting::seed_tag() {
        maps::count(Reason::ForeignSeed as u32, ip.length);
    }
    let place = Place { service: frontend.outside, id, addr, port };
    try_deliver(frame, &ip, &flow, &place, Reason::Received)
}

/// Hands a packet that came in on this node itself to the backend.
#[inline(never)]
pub fn deliver(frame: &mut Frame, ip: &Ip, flow: &Flow, place: &Place) -> Fate {
    Fate::of(try_deliver(frame, ip, flow, place, Reason::DeliveredLocal))
}

/// Notes the arrival and hands the packet to the backend.
#[inline(always)]
fn try_deliver(frame: &mut Frame, ip: &Ip, flow: &Flow, place: &Place, reason: Reason) -> Outcome {
    // Before the packet is touched: what is of another family can only be a mistake of the maps.
    if place.addr.is_v4() == ip.v6 {
        return Err(Reason::UnknownBackend);
    }
    let key = maps::arrival_key(&flow.client, flow.client_port, place.id);
    if ip.proto == proto::TCP {
        let segment = ip.segment(&frame.view())?;
        arrive_tcp(&key, place.service, &segment)?;
    } else {
        arrive_udp(&key, place.service);
    }
    rewrite::destination(&mut frame.view(), ip, flow, place.addr, place.port)?;
    Ok(Verdict::Pass(reason))
}

/// A client's segment meets what is known of its flow.
#[inline(always)]
fn arrive_tcp(key: &ArrivalKey, service: u32, segment: &decide::Segment) -> Result<(), Reason> {
    let now = maps::now();
    if segment.opens() {
        return open(key, service, segment, now);
    }
    let known = maps::established().update(key, |arrival| Arrival {
        seen: decide::seen_from_client(arrival, segment, now),
        ..*arrival
    });
    if known.is_some_and(|arrival| arrival.service == service) {
        return Ok(());
    }
    match maps::opening().get(key) {
        Some(opening) if opening.service == service => {
            if decide::promotes(&opening, segment) {
                let seen = decide::seen_from_client(&opening, segment, now);
                maps::established().insert(key, &Arrival { seen, ..opening });
                maps::opening().remove(key);
            }
        }
        _ => maps::opening().insert(key, &decide::opening(service, segment, now)),
    }
    Ok(())
}

/// A SYN. One that is sent again keeps its opening, and with it what the backend has answered.
#[inline(always)]
fn open(
    key: &ArrivalKey,
    service: u32,
    segment: &decide::Segment,
    now: Tick,
) -> Result<(), Reason> {
    if let Some(known) = maps::established().get(key) {
        if decide::clashes(&known, service, now) {
            return Err(Reason::Clash);
        }
        if known.service != service || decide::ages_fast(known.flags()) {
            maps::established().remove(key);
        }
    }
    let again = maps::opening()
        .get(key)
        .is_some_and(|opening| opening.service == service && opening.client_seq == segment.seq);
    if !again {
        maps::opening().insert(key, &decide::opening(service, segment, now));
    }
    Ok(())
}

#[inline(always)]
fn arrive_udp(key: &ArrivalKey, service: u32) {
    let seen = Arrival::pack(0, maps::now());
    let known = maps::datagrams().update(key, |arrival| Arrival { seen, ..*arrival });
    if known.is_none_or(|arrival| arrival.service != service) {
        maps::datagrams().insert(key, &Arrival { service, seen, ..Default::default() });
    }
}
