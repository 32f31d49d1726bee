//! Answers ARP (RFC 826) and neighbour solicitations (RFC 4861) for the VIPs that this node
//! announces, on the interface on which it does. Others' are dropped: the kernel knows no VIP, and
//! two answers would be a conflict. While the agent is silent others may take VIPs: these are others'.

use lb_common::{
    checksum,
    net::{Addr, proto},
    reason::Reason,
    wire::{
        arp::{Arp, REPLY, REQUEST},
        eth::{Mac, ethertype},
        icmp::{Icmp, LinkLayer, Neighbour, v6},
        ipv6::Ipv6,
    },
};

use crate::{
    frame::Frame,
    maps,
    parse::{Link, Macs},
    verdict::{Fate, Outcome, Verdict},
};

/// `ff02::1`, and the MAC address it maps to (RFC 2464 7): who asks from `::` is told there.
const ALL_NODES: Addr = Addr::from_halves([
    u64::from_le_bytes([0xff, 0x02, 0, 0, 0, 0, 0, 0]),
    u64::from_le_bytes([0, 0, 0, 0, 0, 0, 0, 1]),
]);
const ALL_NODES_MAC: Mac = Mac::new([0x33, 0x33, 0, 0, 0, 1]);

/// Hop limit that proves a message came from this link (RFC 4861 7.1.1).
const ON_LINK: u8 = 255;

/// An advertisement: header and target link-layer address.
const ADVERTISEMENT: usize = size_of::<Neighbour>() + size_of::<LinkLayer>();

/// This interface's MAC if it is the one to answer for `target`; none where that is no VIP.
#[inline(always)]
fn answering_mac(frame: &mut Frame, target: &Addr) -> Result<Option<Mac>, Reason> {
    if !maps::may_be_vip(target) {
        return Ok(None);
    }
    let (Some(vip), Some(uplink)) = (maps::vip(target), maps::uplink(frame.ifindex())) else {
        return Ok(None);
    };
    let mac = Mac::new(uplink.mac);
    let destination = Macs::read(&frame.view())?.destination;
    if !destination.is_group() && destination != mac {
        return Ok(None);
    }
    if vip.announced_on != uplink.ifindex || maps::is_yielded(target) {
        return Err(Reason::NotAnnounced);
    }
    Ok(Some(mac))
}

/// An ARP packet.
#[inline(never)]
pub fn arp(frame: &mut Frame, link: &Link) -> Fate {
    Fate::of(try_arp(frame, link))
}

#[inline(always)]
fn try_arp(frame: &mut Frame, link: &Link) -> Outcome {
    let Ok(request) = frame.view().at::<Arp>(link.l3).copied() else {
        return Ok(Verdict::NotOurs);
    };
    if request.operation != REQUEST || request.protocol != ethertype::IPV4 {
        return Ok(Verdict::NotOurs);
    }
    let target = Addr::from_v4_word(request.target_ip);
    // Whoever asks for the address that it says it has announces it (RFC 5227 2.3).
    if request.sender_ip == request.target_ip {
        let claimed = maps::may_be_vip(&target) && maps::vip(&target).is_some();
        return Ok(if claimed { Verdict::Pass(Reason::VipClaimed) } else { Verdict::NotOurs });
    }
    let Some(mac) = answering_mac(frame, &target)? else {
        return Ok(Verdict::NotOurs);
    };
    let mut view = frame.view();
    *view.at_mut::<Arp>(link.l3)? = Arp {
        operation: REPLY,
        sender_mac: mac.into(),
        sender_ip: request.target_ip,
        target_mac: request.sender_mac,
        target_ip: request.sender_ip,
        ..request
    };
    let asker = Macs::read(&view)?.source;
    link.write(&mut view, Macs { destination: asker, source: mac })?;
    Ok(Verdict::Transmit(Reason::ArpAnswered))
}

/// ICMPv6 that may be a neighbour solicitation.
#[inline(never)]
pub fn solicitation(frame: &mut Frame, link: &Link) -> Fate {
    Fate::of(try_solicitation(frame, link))
}

#[inline(always)]
fn try_solicitation(frame: &mut Frame, link: &Link) -> Outcome {
    let view = frame.view();
    let (Ok(ip), Ok(request)) =
        (view.at::<Ipv6>(link.l3), view.at::<Neighbour>(link.l3 + size_of::<Ipv6>()))
    else {
        return Ok(Verdict::NotOurs);
    };
    let asks = ip.next_header == proto::ICMPV6
        && ip.hop_limit == ON_LINK
        && request.icmp.kind == v6::SOLICITATION
        && request.icmp.code == 0;
    let (asker, target) = (Addr::from(ip.source), Addr::from(request.target));
    if !asks {
        return Ok(Verdict::NotOurs);
    }
    let Some(mac) = answering_mac(frame, &target)? else {
        return Ok(Verdict::NotOurs);
    };
    advertise(frame, link, &asker, &target, mac)?;
    Ok(Verdict::Transmit(Reason::NdpAnswered))
}

/// Turns the frame into the advertisement of `target` (RFC 4861 7.2.4).
#[inline(always)]
fn advertise(
    frame: &mut Frame,
    link: &Link,
    asker: &Addr,
    target: &Addr,
    mac: Mac,
) -> Result<(), Reason> {
    let wanted = link.l3 + size_of::<Ipv6>() + ADVERTISEMENT;
    let growth = wanted as i32 - frame.total_len() as i32;
    frame.grow_tail(growth)?;

    // Who has no address yet is testing for duplicates: all hear the answer (RFC 4861 7.2.4).
    let (destination, destination_mac, solicited) = if asker.is_unset() {
        (ALL_NODES, ALL_NODES_MAC, 0)
    } else {
        (*asker, Macs::read(&frame.view())?.source, v6::SOLICITED)
    };
    let rest = [solicited | v6::OVERRIDE, 0, 0, 0];
    let sum = checksum::pseudo_header(target, &destination, proto::ICMPV6, ADVERTISEMENT as u16)
        + u16::from_ne_bytes([v6::ADVERTISEMENT, 0]) as u64
        + u32::from_ne_bytes(rest) as u64
        + checksum::addr(target)
        + u16::from_ne_bytes([v6::TARGET_LINK_LAYER, 1]) as u64
        + mac.sum();

    let mut view = frame.view();
    link.write(&mut view, Macs { destination: destination_mac, source: mac })?;
    let header = crate::headers::ipv6(target, &destination, proto::ICMPV6, ADVERTISEMENT as u16, 0);
    *view.at_mut::<Ipv6>(link.l3)? = Ipv6 { hop_limit: ON_LINK, ..header };
    let at = link.l3 + size_of::<Ipv6>();
    *view.at_mut::<Neighbour>(at)? = Neighbour {
        icmp: Icmp { kind: v6::ADVERTISEMENT, code: 0, checksum: !checksum::fold(sum), rest },
        target: (*target).into(),
    };
    *view.at_mut::<LinkLayer>(at + size_of::<Neighbour>())? =
        LinkLayer { kind: v6::TARGET_LINK_LAYER, length: 1, mac: mac.into() };
    Ok(())
}
