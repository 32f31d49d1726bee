//! Tells a client that nothing serves what it asked for: RST for TCP, unreachable for the rest.
//! Passing such a packet to the kernel would loop: the kernel routes the VIP back to the network.

use lb_common::{
    checksum,
    decide::{Segment, tcp},
    net::proto,
    reason::Reason,
    wire::{
        icmp::{v4, v6},
        ipv4::Ipv4,
        ipv6::Ipv6,
        l4::Tcp,
    },
};

use crate::{
    frame::Frame,
    headers,
    icmp::{self, Message},
    maps,
    parse::{Ip, Link, Macs},
    verdict::{Fate, Outcome, Verdict},
};

/// Refusals and errors that one CPU sends per [`WINDOW`]: 10,000 a second.
const LIMIT: u64 = 1000;
/// In ns.
const WINDOW: u64 = 100_000_000;

/// The next-header field's offset, at which a receiver that cannot go on points.
const NEXT_HEADER_OFFSET: u8 = 6;

/// Counts against the limit of answers.
#[inline(always)]
pub fn within_limit() -> Result<(), Reason> {
    if maps::refusal_allowed(WINDOW, LIMIT) { Ok(()) } else { Err(Reason::RefusalLimited) }
}

/// Answers with a refusal; `why` is the reason that is counted.
#[inline(never)]
pub fn refuse(frame: &mut Frame, link: &Link, ip: &Ip, why: Reason) -> Fate {
    Fate::of(try_refuse(frame, link, ip, why))
}

#[inline(always)]
fn try_refuse(frame: &mut Frame, link: &Link, ip: &Ip, why: Reason) -> Outcome {
    if ip.proto == proto::TCP {
        let segment = ip.segment(&frame.view())?;
        if segment.flags & tcp::RST != 0 {
            return Err(Reason::StrayReset);
        }
        within_limit()?;
        reset(frame, link, ip, &segment)?;
        return Ok(Verdict::Transmit(why));
    }
    within_limit()?;
    icmp::error(frame, link, ip, unreachable(ip))?;
    Ok(Verdict::Transmit(why))
}

/// Port unreachable for UDP; for what is not balanced at all, that the protocol is unknown.
#[inline(always)]
fn unreachable(ip: &Ip) -> Message {
    let udp = ip.proto == proto::UDP;
    match (ip.v6, udp) {
        (false, true) => message(v4::UNREACHABLE, v4::PORT_UNREACHABLE, 0),
        (false, false) => message(v4::UNREACHABLE, v4::PROTOCOL_UNREACHABLE, 0),
        (true, true) => message(v6::UNREACHABLE, v6::PORT_UNREACHABLE, 0),
        (true, false) => {
            message(v6::PARAMETER_PROBLEM, v6::UNKNOWN_NEXT_HEADER, NEXT_HEADER_OFFSET)
        }
    }
}

#[inline(always)]
fn message(kind: u8, code: u8, pointer: u8) -> Message {
    Message { kind, code, rest: [0, 0, 0, pointer] }
}

/// Turns the segment into the RST that a closed port sends (RFC 9293 3.10.7.1).
#[inline(always)]
fn reset(frame: &mut Frame, link: &Link, ip: &Ip, segment: &Segment) -> Result<(), Reason> {
    let tcp = *frame.view().at::<Tcp>(ip.l4)?;
    let header_length = (tcp.offset >> 4) as usize * 4;
    let sequence_length = (ip.length + ip.l3).saturating_sub(ip.l4 + header_length) as u32
        + (segment.flags & tcp::SYN != 0) as u32
        + (segment.flags & tcp::FIN != 0) as u32;
    let (seq, ack, flags) = if segment.flags & tcp::ACK != 0 {
        (segment.ack, 0, tcp::RST)
    } else {
        (0, segment.seq.wrapping_add(sequence_length), tcp::RST | tcp::ACK)
    };
    let ip_length = if ip.v6 { size_of::<Ipv6>() } else { size_of::<Ipv4>() };
    let wanted = link.l3 + ip_length + size_of::<Tcp>();
    let surplus = frame.total_len() as i32 - wanted as i32;
    frame.grow_tail(-surplus)?;

    let mut view = frame.view();
    let macs = Macs::read(&view)?.swapped();
    link.write(&mut view, macs)?;
    let tcp_length = size_of::<Tcp>() as u16;
    if ip.v6 {
        *view.at_mut::<Ipv6>(link.l3)? =
            headers::ipv6(&ip.destination, &ip.source, proto::TCP, tcp_length, 0);
    } else {
        let length = tcp_length + size_of::<Ipv4>() as u16;
        *view.at_mut::<Ipv4>(link.l3)? =
            headers::ipv4(&ip.destination, &ip.source, proto::TCP, length, 0);
    }
    let (seq, ack) = (seq.to_be(), ack.to_be());
    let offset_flags = u16::from_ne_bytes([5 << 4, flags]);
    let sum = checksum::pseudo_header(&ip.destination, &ip.source, proto::TCP, tcp_length)
        + tcp.source as u64
        + tcp.destination as u64
        + seq as u64
        + ack as u64
        + offset_flags as u64;
    *view.at_mut::<Tcp>(link.l3 + ip_length)? = Tcp {
        source: tcp.destination,
        destination: tcp.source,
        seq,
        ack,
        offset: 5 << 4,
        flags,
        window: 0,
        checksum: !checksum::fold(sum),
        urgent: 0,
    };
    Ok(())
}
