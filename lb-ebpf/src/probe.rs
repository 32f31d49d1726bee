//! Answers a member's probe: whether this node's data plane lives, and how old its agent's last
//! sign of life is. In place, and without the agent: a dead agent must not look like a dead node.
//! Takes yields, by which members take over the VIPs of a node whose agent is silent.

use lb_common::{
    abi::{LAYOUT_VERSION, TUNNEL_VERSION},
    globals::state,
    net::{Addr, proto},
    reason::Reason,
    wire::{
        eth::ethertype,
        geneve::{ProbeHeader, kind},
        ipv4::Ipv4,
        ipv6::Ipv6,
        l4::Udp,
    },
};

use crate::{
    frame::Frame,
    headers,
    maps::{self, setting},
    parse::{Link, Macs},
    verdict::{Outcome, Verdict},
};

/// `headers` is the size of the outer IP and UDP headers.
#[inline(always)]
pub fn answer(frame: &mut Frame, link: &Link, headers: usize) -> Outcome {
    let mut view = frame.view();
    let udp_length = (size_of::<Udp>() + size_of::<ProbeHeader>()) as u16;
    if link.ethertype == ethertype::IPV6 {
        let ip = view.at_mut::<Ipv6>(link.l3)?;
        let (us, them) = (Addr::from(ip.destination), Addr::from(ip.source));
        *ip = headers::ipv6(&us, &them, proto::UDP, udp_length, 0);
    } else {
        let ip = view.at_mut::<Ipv4>(link.l3)?;
        let (us, them) = (Addr::from_v4_word(ip.destination), Addr::from_v4_word(ip.source));
        let length = udp_length + size_of::<Ipv4>() as u16;
        *ip = headers::ipv4(&us, &them, proto::UDP, length, 0);
    }
    let udp = view.at_mut::<Udp>(link.l3 + headers - size_of::<Udp>())?;
    *udp = Udp {
        source: udp.destination,
        destination: udp.source,
        length: udp_length.to_be(),
        checksum: 0,
    };
    let message = view.at_mut::<ProbeHeader>(link.l3 + headers)?;
    message.option.kind = kind::PROBE_ANSWER;
    let probe = &mut message.probe;
    probe.version = TUNNEL_VERSION;
    probe.seed_tag = setting::seed_tag().to_le_bytes();
    let (first, second) = (maps::state(state::BOOT_ID), maps::state(state::BOOT_ID_2));
    probe.boot_id = [first as u32, (first >> 32) as u32, second as u32, (second >> 32) as u32];
    probe.heartbeat_age = heartbeat_age().to_be();
    probe.layout = LAYOUT_VERSION.to_be();
    let macs = Macs::read(&view)?.swapped();
    link.write(&mut view, macs)?;
    Ok(Verdict::Transmit(Reason::ProbeAnswered))
}

/// A member says that it has `vip` from now on. Believed only while nobody here can decide.
#[inline(always)]
pub fn give_way(vip: &Addr) -> Outcome {
    let silent = heartbeat_age() > setting::yield_after();
    let announced = maps::vip(vip).is_some_and(|vip| vip.announced_on != 0);
    if !silent || !announced {
        return Err(Reason::YieldRefused);
    }
    maps::put_yield(vip);
    Err(Reason::YieldTaken)
}

/// Milliseconds since the agent's last heartbeat.
#[inline(always)]
fn heartbeat_age() -> u32 {
    match maps::state(state::HEARTBEAT) {
        0 => u32::MAX,
        last => {
            let age = maps::boot_now().saturating_sub(last) / 1_000_000;
            age.min(u32::MAX as u64 - 1) as u32
        }
    }
}
