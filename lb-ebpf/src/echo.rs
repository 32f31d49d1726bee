//! Answers ICMP and ICMPv6 echo to a VIP, in place.

use lb_common::{
    checksum::Delta,
    frontend::{Vip, vip_flags},
    reason::Reason,
    wire::{
        icmp::{Icmp, v4, v6},
        ipv4::Ipv4,
        ipv6::Ipv6,
    },
};

use crate::{
    frame::Frame,
    headers::TTL,
    parse::{Ip, Link, Macs},
    verdict::{Outcome, Verdict},
};

/// Answers the request whose header `ip` is.
#[inline(always)]
pub fn answer(frame: &mut Frame, link: &Link, ip: &Ip, vip: &Vip) -> Outcome {
    if vip.flags & vip_flags::ECHO == 0 {
        return Err(Reason::IcmpIgnored);
    }
    let mut view = frame.view();
    let reply = if ip.v6 { v6::ECHO_REPLY } else { v4::ECHO_REPLY };
    let message = view.at_mut::<Icmp>(ip.l4)?;
    let old = u16::from_ne_bytes([message.kind, message.code]);
    let new = u16::from_ne_bytes([reply, message.code]);
    message.kind = reply;
    message.checksum = Delta::new().replace16(old, new).apply(message.checksum);
    // Swapped addresses leave every sum as it is.
    if ip.v6 {
        let header = view.at_mut::<Ipv6>(ip.l3)?;
        (header.source, header.destination) = (ip.destination.into(), ip.source.into());
        header.hop_limit = TTL;
    } else {
        let header = view.at_mut::<Ipv4>(ip.l3)?;
        (header.source, header.destination) = (ip.destination.v4_word(), ip.source.v4_word());
        let old = u16::from_ne_bytes([ip.ttl, ip.proto]);
        let new = u16::from_ne_bytes([TTL, ip.proto]);
        header.ttl = TTL;
        header.checksum = Delta::new().replace16(old, new).apply(header.checksum);
    }
    let macs = Macs::read(&view)?.swapped();
    link.write(&mut view, macs)?;
    Ok(Verdict::Transmit(Reason::EchoAnswered))
}
