//! Puts the VIP back as the source of a backend's answer, on its way to the client.
//!
//! Sees GSO packets with CHECKSUM_PARTIAL, so it changes packets by the checksum helpers only.
//! Whatever is no answer to an arrival stays untouched; all that is not a local backend's leaves
//! after one look-up.

use lb_common::{
    arrival::{Arrival, ArrivalKey, Tick},
    decide::{self, Segment, tcp},
    frontend::Endpoint,
    globals::state,
    net::{Port, proto},
    reason::Reason,
    wire::{
        eth::ethertype,
        l4::{Mss, Tcp, Udp, option},
    },
};

use crate::{
    frame::{Skb, View},
    maps,
    parse::{Ip, Link},
};

/// Offsets of fields that change.
const IPV4_CHECKSUM: usize = 10;
const IPV4_SOURCE: usize = 12;
const IPV6_SOURCE: usize = 8;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// Options that are looked at for the MSS; hosts send it first. Each costs the verifier all paths
/// again.
const OPTIONS_WALKED: usize = 5;

/// Decides on one packet. None: not ours.
#[inline(always)]
pub fn egress(skb: &mut Skb) -> Option<Reason> {
    skb.pull_headers();
    let length = skb.len();
    let view = skb.view();
    let link = Link::read(&view).ok()?;
    if link.ethertype != ethertype::IPV4 && link.ethertype != ethertype::IPV6 {
        return None;
    }
    let ip = Ip::read(&view, link.l3, link.ethertype, || length).ok()?;
    if ip.fragment || (ip.proto != proto::TCP && ip.proto != proto::UDP) {
        return None;
    }
    let ports = ports(&view, &ip)?;
    let source = Endpoint::new(ip.source, ports.0, ip.proto);
    let backend = maps::local_backend(&source)?;
    let key = maps::arrival_key(&ip.destination, ports.1, backend);
    let known = if ip.proto == proto::TCP {
        let segment = ip.segment(&view).ok()?;
        answer_tcp(&key, &segment)
    } else {
        let seen = Arrival::pack(0, maps::now());
        maps::datagrams()
            .update(&key, |arrival| Arrival { seen, ..*arrival })
            .ok_or(Reason::ReturnUnknown)
    };
    let arrival = match known {
        Ok(arrival) => arrival,
        Err(reason) => return Some(reason),
    };
    let Some(frontend) = maps::frontend_of(arrival.service) else {
        return Some(Reason::ReturnUnknown);
    };
    Some(match put_back(skb, &ip, &source, &frontend) {
        Ok(()) => Reason::Returned,
        Err(reason) => reason,
    })
}

/// Both ports; a UDP header without a checksum is fine here, unlike on the way in.
#[inline(always)]
fn ports(view: &View<'_>, ip: &Ip) -> Option<(Port, Port)> {
    let udp = view.at::<Udp>(ip.l4).ok()?;
    Some((Port::from_wire(udp.source), Port::from_wire(udp.destination)))
}

/// The arrival that a backend's segment belongs to, brought up to date.
#[inline(always)]
fn answer_tcp(key: &ArrivalKey, segment: &Segment) -> Result<Arrival, Reason> {
    let now = maps::now();
    if segment.accepts() {
        return accept(key, segment, now);
    }
    let established =
        || maps::established().update(key, |arrival| decide::answered(arrival, segment, now));
    established()
        .or_else(|| maps::opening().update(key, |arrival| decide::noted(arrival, segment, now)))
        // The client's segment may have promoted it between the two looks.
        .or_else(established)
        .ok_or(Reason::ReturnUnknown)
}

/// A SYN-ACK is ours only if it answers a SYN that came through a VIP. Otherwise the client talks
/// to the backend directly, and what was known of that tuple is over.
#[inline(always)]
fn accept(key: &ArrivalKey, segment: &Segment, now: Tick) -> Result<Arrival, Reason> {
    let opening = maps::opening().get(key).filter(|it| decide::answers(it, segment));
    if let Some(opening) = opening {
        maps::opening().update(key, |arrival| decide::noted(arrival, segment, now));
        return Ok(opening);
    }
    // Sent again while the client's answer was on its way to the backend.
    let established = maps::established().get(key).filter(|it| decide::answers(it, segment));
    if established.is_none() {
        maps::established().remove(key);
    }
    established.ok_or(Reason::ReturnNotOpening)
}

/// Writes the frontend's address and port as the source.
#[inline(always)]
fn put_back(skb: &mut Skb, ip: &Ip, source: &Endpoint, frontend: &Endpoint) -> Result<(), Reason> {
    let udp = ip.proto == proto::UDP;
    let checksum = ip.l4 + if udp { UDP_CHECKSUM } else { TCP_CHECKSUM };
    if !udp {
        clamp_mss(skb, ip)?;
    }
    skb.address_checksum(checksum, udp, &source.addr, &frontend.addr)?;
    if source.port != frontend.port {
        skb.field_checksum(checksum, udp, source.port.wire(), frontend.port.wire())?;
        skb.store(ip.l4, &frontend.port)?;
    }
    if ip.v6 {
        return skb.store(ip.l3 + IPV6_SOURCE, &frontend.addr);
    }
    let (old, new) = (source.addr.v4_word(), frontend.addr.v4_word());
    skb.ip_checksum(ip.l3 + IPV4_CHECKSUM, old, new)?;
    skb.store(ip.l3 + IPV4_SOURCE, &new)
}

/// Lowers the MSS of a SYN-ACK to what the tunnel leaves, so that the client's segments fit it.
#[inline(always)]
fn clamp_mss(skb: &mut Skb, ip: &Ip) -> Result<(), Reason> {
    let tcp = *skb.view().at::<Tcp>(ip.l4)?;
    if tcp.flags & tcp::SYN == 0 {
        return Ok(());
    }
    let limit = maps::state(if ip.v6 { state::MSS_V6 } else { state::MSS_V4 }) as u16;
    let options = ((tcp.offset >> 4) as usize * 4).saturating_sub(size_of::<Tcp>());
    if limit == 0 {
        return Ok(());
    }
    let Some((place, mss)) = mss_option(&skb.view(), ip.l4 + size_of::<Tcp>(), options) else {
        return Ok(());
    };
    if mss <= limit {
        return Ok(());
    }
    // At an odd place the two bytes belong to two words of the sum, so they swap (RFC 1071 2 (B)).
    let (old, new) = match place % 2 {
        0 => (mss.to_be(), limit.to_be()),
        _ => (mss.to_be().swap_bytes(), limit.to_be().swap_bytes()),
    };
    skb.field_checksum(ip.l4 + TCP_CHECKSUM, false, old, new)?;
    skb.store(ip.l4 + size_of::<Tcp>() + place, &limit.to_be())
}

/// Place of the MSS option's value, counted from the options' `start`, and the value.
#[inline(always)]
fn mss_option(view: &View<'_>, start: usize, options: usize) -> Option<(usize, u16)> {
    let mut place = 0;
    for _ in 0..OPTIONS_WALKED {
        if place + size_of::<Mss>() > options {
            return None;
        }
        let mss = view.at::<Mss>(start + place).ok()?;
        match mss.kind {
            option::END => return None,
            option::NOP => place += 1,
            option::MSS => return Some((place + 2, u16::from_be(mss.value))),
            _ => place += mss.length.max(2) as usize,
        }
    }
    None
}
