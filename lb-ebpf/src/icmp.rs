//! ICMP and ICMPv6 errors, made of the packet that caused them.

use lb_common::{
    checksum,
    net::proto,
    reason::Reason,
    wire::{
        icmp::{Icmp, v4, v6},
        ipv4::Ipv4,
        ipv6::Ipv6,
    },
};

use crate::{
    frame::{Frame, View},
    headers,
    parse::{Ip, Link, Macs},
    refuse,
    verdict::{Fate, Outcome, Verdict},
};

/// Bytes quoted behind the IPv4 header (RFC 792); they hold the ports.
const QUOTED_PAYLOAD: usize = 8;

/// Most that is quoted: an IPv4 header with all options and 8 bytes, in words.
const MAX_QUOTED_WORDS: usize = 17;

/// Bytes put in front: the new IP header and the ICMP header.
const GROWTH_V4: usize = size_of::<Ipv4>() + size_of::<Icmp>();
const GROWTH_V6: usize = size_of::<Ipv6>() + size_of::<Icmp>();

/// Type, code and the four bytes behind the checksum.
#[derive(Clone, Copy)]
pub struct Message {
    pub kind: u8,
    pub code: u8,
    pub rest: [u8; 4],
}

/// The packet does not fit: says the MTU that does (RFC 1191 4, RFC 4443 3.2).
#[inline(never)]
pub fn too_big(frame: &mut Frame, link: &Link, ip: &Ip, mtu: u32) -> Fate {
    Fate::of(try_too_big(frame, link, ip, mtu))
}

#[inline(always)]
fn try_too_big(frame: &mut Frame, link: &Link, ip: &Ip, mtu: u32) -> Outcome {
    let [_, _, high, low] = mtu.to_be_bytes();
    let message = if ip.v6 {
        Message { kind: v6::PACKET_TOO_BIG, code: 0, rest: [0, 0, high, low] }
    } else {
        Message { kind: v4::UNREACHABLE, code: v4::FRAGMENTATION_NEEDED, rest: [0, 0, high, low] }
    };
    refuse::within_limit()?;
    error(frame, link, ip, message)?;
    Ok(Verdict::Transmit(Reason::TooBig))
}

/// Turns the frame into an ICMP error to its sender, from the VIP.
#[inline(always)]
pub fn error(frame: &mut Frame, link: &Link, ip: &Ip, message: Message) -> Result<(), Reason> {
    let headers = if ip.v6 { size_of::<Ipv6>() } else { ip.l4 - ip.l3 };
    let quoted = headers + QUOTED_PAYLOAD;
    if ip.length < quoted {
        return Err(Reason::Truncated);
    }
    let surplus = frame.total_len() as i32 - (link.l3 + quoted) as i32;
    let macs = Macs::read(&frame.view())?.swapped();
    frame.grow_tail(-surplus)?;
    frame.grow_head(if ip.v6 { GROWTH_V6 } else { GROWTH_V4 } as i32)?;
    let mut view = frame.view();
    link.write(&mut view, macs)?;
    if ip.v6 {
        write_v6(&mut view, link.l3, ip, quoted, message)
    } else {
        write_v4(&mut view, link.l3, ip, quoted, message)
    }
}

#[inline(always)]
fn write_v4(
    view: &mut View<'_>,
    l3: usize,
    ip: &Ip,
    quoted: usize,
    message: Message,
) -> Result<(), Reason> {
    *view.at_mut::<Ipv4>(l3)? =
        headers::ipv4(&ip.destination, &ip.source, proto::ICMP, (GROWTH_V4 + quoted) as u16, 0);
    let sum = sum(view, l3 + GROWTH_V4, quoted)?;
    write_icmp(view, l3 + size_of::<Ipv4>(), message, sum)
}

#[inline(always)]
fn write_v6(
    view: &mut View<'_>,
    l3: usize,
    ip: &Ip,
    quoted: usize,
    message: Message,
) -> Result<(), Reason> {
    let length = (size_of::<Icmp>() + quoted) as u16;
    *view.at_mut::<Ipv6>(l3)? =
        headers::ipv6(&ip.destination, &ip.source, proto::ICMPV6, length, 0);
    let pseudo = checksum::pseudo_header(&ip.destination, &ip.source, proto::ICMPV6, length);
    let sum = pseudo + sum(view, l3 + GROWTH_V6, quoted)?;
    write_icmp(view, l3 + size_of::<Ipv6>(), message, sum)
}

#[inline(always)]
fn write_icmp(view: &mut View<'_>, at: usize, message: Message, sum: u64) -> Result<(), Reason> {
    let sum = sum
        + u16::from_ne_bytes([message.kind, message.code]) as u64
        + u32::from_ne_bytes(message.rest) as u64;
    *view.at_mut::<Icmp>(at)? = Icmp {
        kind: message.kind,
        code: message.code,
        checksum: !checksum::fold(sum),
        rest: message.rest,
    };
    Ok(())
}

/// Sum of `bytes` from `offset`, a multiple of four and at most [`MAX_QUOTED_WORDS`] words.
#[inline(always)]
fn sum(view: &View<'_>, offset: usize, bytes: usize) -> Result<u64, Reason> {
    let mut sum = 0;
    for word in 0..MAX_QUOTED_WORDS {
        if word * 4 >= bytes {
            break;
        }
        sum += *view.at::<u32>(offset + word * 4)? as u64;
    }
    Ok(sum)
}
