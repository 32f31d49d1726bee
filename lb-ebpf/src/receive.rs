//! Takes a client's packet on its backend's node and hands it to the backend: notes the arrival,
//! writes the backend's address and port in place of the VIP's, and lets the kernel route it.
//!
//! A packet of a known flow needs neither the service's record nor its slot. All others are put
//! aside for [`chain`]; what it gives back to be delivered makes an arrival in `OPENING`.

use lb_common::{
    abi::TUNNEL_VERSION,
    arrival::{Arrival, ArrivalKey},
    backend::BackendId,
    chain::Visited,
    decide::{self, Segment},
    frontend::Endpoint,
    net::{Addr, Flow, Port, proto},
    reason::Reason,
    wire::{
        eth::ethertype,
        geneve::{
            CLASS, Data, DataHeader, OPTION_LENGTH, OVERHEAD_V4, OVERHEAD_V6, VERSION_LENGTH, kind,
            vni_word,
        },
        ipv4::Ipv4,
        ipv6::Ipv6,
        l4::Udp,
    },
};

use crate::{
    chain,
    frame::{Frame, View},
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

/// The backend that a packet came for, and what its tunnel header said beside.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Meant {
    /// [`BackendId::NONE`] where it is not here.
    pub id: BackendId,
    /// Unset: nobody.
    pub addr: Addr,
    pub port: Port,
    pub visited: Visited,
    /// Of the sender's table; 0: not told.
    pub slots: u16,
    /// [`data_flags`](lb_common::wire::geneve::data_flags).
    pub flags: u8,
    /// The sender has another seed or version.
    pub foreign: bool,
    /// What it counts as once it is delivered.
    pub reason: Reason,
}

/// What of the tunnel's header is needed once it is off.
struct Header {
    data: Data,
    /// EtherType of the packet inside.
    inner: u16,
}

/// A packet for this node's tunnel port.
#[inline(never)]
pub fn tunnelled(frame: &mut Frame, link: &Link) -> Fate {
    match try_tunnelled(frame, link) {
        Ok(fate) => fate,
        Err(reason) => Fate::of(Err(reason)),
    }
}

#[inline(always)]
fn try_tunnelled(frame: &mut Frame, link: &Link) -> Result<Fate, Reason> {
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
    // Of another version too: an upgrade must not make nodes look dead, nor break connections.
    match header.option.kind {
        kind::DATA => {
            let header = Header { data: header.data, inner: header.base.protocol };
            unpack(frame, link, &header, tos)
        }
        kind::PROBE => Ok(Fate::of(probe::answer(frame, link, headers))),
        kind::YIELD => Ok(Fate::of(probe::give_way(&header.data.backend_addr()))),
        kind::PROBE_ANSWER => Ok(Fate::of(Ok(Verdict::Pass(Reason::ProbeAnswerPassed)))),
        _ => Err(Reason::BadTunnel),
    }
}

/// Takes the packet out of the tunnel, and delivers it where its flow is known.
#[inline(always)]
fn unpack(frame: &mut Frame, outer: &Link, header: &Header, outer_tos: u8) -> Result<Fate, Reason> {
    let inner = header.inner;
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
    // Also where the forwarder did: its list may be older.
    if !maps::takes(&frontend, &flow.client) {
        return Err(Reason::SourceDenied);
    }
    let service = frontend.outside;
    let data = &header.data;
    let (addr, port) = (data.backend_addr(), data.backend_port());
    if addr.is_v4() == ip.v6 || addr.is_unset() {
        return Err(Reason::UnknownBackend);
    }
    let (seed, version) = (data.seed_tag, data.version);
    if seed != setting::seed_tag() {
        maps::count(Reason::ForeignSeed as u32, ip.length);
    }
    if version != TUNNEL_VERSION {
        maps::count(Reason::ForeignVersion as u32, ip.length);
    }
    let id = maps::local_backend(&Endpoint::new(addr, port, flow.proto));
    if let Some(id) = id {
        let key = maps::arrival_key(&flow.client, flow.client_port, id);
        if is_known(&view, &ip, &key, service)? {
            rewrite::destination(&mut view, &ip, &flow, addr, port)?;
            return Ok(Fate::of(Ok(Verdict::Pass(Reason::Received))));
        }
    }
    let meant = Meant {
        id: id.unwrap_or(BackendId::NONE),
        addr,
        port,
        visited: Visited::from_header(data.visited),
        slots: u16::from_be(data.slots),
        flags: data.flags,
        foreign: seed != setting::seed_tag() || version != TUNNEL_VERSION,
        reason: Reason::Received,
    };
    Ok(chain::put_aside(&link, &ip, &flow, service, &meant))
}

/// A packet that came in on this node itself, whose slot's owner is here: hands it over where its
/// flow is known, or opens.
#[inline(never)]
pub fn deliver(frame: &mut Frame, link: &Link, ip: &Ip, flow: &Flow, place: &Place) -> Fate {
    match try_deliver(frame, link, ip, flow, place) {
        Ok(fate) => fate,
        Err(reason) => Fate::of(Err(reason)),
    }
}

#[inline(always)]
fn try_deliver(
    frame: &mut Frame,
    link: &Link,
    ip: &Ip,
    flow: &Flow,
    place: &Place,
) -> Result<Fate, Reason> {
    let key = maps::arrival_key(&flow.client, flow.client_port, place.id);
    let opens = ip.proto == proto::TCP && ip.segment(&frame.view())?.opens();
    if !opens && !is_known(&frame.view(), ip, &key, place.service)? {
        let meant = Meant { id: place.id, addr: place.addr, port: place.port, ..Meant::NOBODY };
        return Ok(chain::put_aside(link, ip, flow, place.service, &meant));
    }
    Ok(Fate::of(hand_over(frame, ip, flow, place, true, Reason::DeliveredLocal)))
}

/// Whether the backend knows the packet's flow. A SYN's is not looked up: where the own table names
/// this backend, it is new here in any case.
#[inline(always)]
fn is_known(view: &View<'_>, ip: &Ip, key: &ArrivalKey, service: u32) -> Result<bool, Reason> {
    if ip.proto != proto::TCP {
        return Ok(knows_udp(key, service));
    }
    let segment = ip.segment(view)?;
    Ok(!segment.opens() && knows_tcp(key, service, &segment))
}

/// Whether a client's segment is of a flow that is known; notes that it was seen, and promotes.
#[inline(always)]
pub fn knows_tcp(key: &ArrivalKey, service: u32, segment: &Segment) -> bool {
    let now = maps::now();
    let mut counts = false;
    maps::established().update(key, |arrival| {
        counts = decide::established_counts(arrival, service, segment);
        let seen = match counts {
            true => decide::seen_from_client(arrival, segment, now),
            false => arrival.seen,
        };
        Arrival { seen, ..*arrival }
    });
    if counts {
        return true;
    }
    let Some(opening) = maps::opening().get(key) else {
        return false;
    };
    if !decide::opening_counts(&opening, service, segment) {
        return false;
    }
    if !segment.opens() {
        let seen = decide::seen_from_client(&opening, segment, now);
        maps::established().insert(key, &Arrival { seen, ..opening });
        maps::opening().remove(key);
    }
    true
}

/// Whether a datagram is of a flow that is known; notes that it was seen.
#[inline(always)]
pub fn knows_udp(key: &ArrivalKey, service: u32) -> bool {
    let now = maps::now();
    let known = maps::datagrams()
        .update(key, |arrival| Arrival { seen: Arrival::pack(arrival.flags(), now), ..*arrival });
    // Service 0 is none.
    known.map_or(0, |arrival| arrival.service) == service
}

/// Hands the packet to the backend. Unless its flow is known, that makes an arrival.
#[inline(always)]
pub fn hand_over(
    frame: &mut Frame,
    ip: &Ip,
    flow: &Flow,
    place: &Place,
    known: bool,
    reason: Reason,
) -> Outcome {
    // Before the packet is touched: what is of another family can only be a mistake of the maps.
    if place.addr.is_v4() == ip.v6 {
        return Err(Reason::UnknownBackend);
    }
    let key = maps::arrival_key(&flow.client, flow.client_port, place.id);
    if ip.proto == proto::TCP {
        let segment = ip.segment(&frame.view())?;
        if segment.opens() {
            open(&key, place.service, &segment)?;
        } else if !known {
            stray(&key, place.service, &segment)?;
        }
    } else if !known {
        let seen = Arrival::pack(0, maps::now());
        let arrival = Arrival { service: place.service, seen, ..Default::default() };
        maps::datagrams().insert(&key, &arrival);
    }
    rewrite::destination(&mut frame.view(), ip, flow, place.addr, place.port)?;
    Ok(Verdict::Pass(reason))
}

/// A segment of a flow that nobody knows. The arrival may be needed, for the maps may have lost it;
/// but strays must not crowd out handshakes.
#[inline(always)]
fn stray(key: &ArrivalKey, service: u32, segment: &Segment) -> Result<(), Reason> {
    // No answer follows an RST.
    if segment.resets() || maps::opening().get(key).is_some_and(|it| it.service == service) {
        return Ok(());
    }
    if !maps::stray_allowed() {
        return Err(Reason::StrayLimited);
    }
    maps::opening().insert(key, &decide::opening(service, segment, maps::now()));
    Ok(())
}

/// A SYN. One that is sent again keeps its opening, and with it what the backend has answered.
#[inline(always)]
fn open(key: &ArrivalKey, service: u32, segment: &Segment) -> Result<(), Reason> {
    let now = maps::now();
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
