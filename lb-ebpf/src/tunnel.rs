//! Puts a packet into the tunnel to its backend's node.

use lb_common::{
    abi::TUNNEL_VERSION,
    backend::Backend,
    chain::{Visited, is_young},
    hop::Hop,
    net::proto,
    reason::Reason,
    wire::{
        eth::{Mac, ethertype},
        geneve::{self, DataHeader, OVERHEAD_V4, OVERHEAD_V6},
        ipv4::Ipv4,
        ipv6::Ipv6,
        l4::Udp,
    },
};

use crate::{
    frame::Frame,
    headers, icmp,
    maps::{self, setting},
    parse::{Ip, Link, Macs},
    rewrite,
    verdict::{Fate, Outcome, Verdict},
};

/// Outer headers over IPv4. One structure, so that one bounds check covers them.
#[repr(C, packed)]
#[derive(Clone, Copy, lb_common::bytemuck::Pod, lb_common::bytemuck::Zeroable)]
#[bytemuck(crate = "lb_common::bytemuck")]
struct OuterV4 {
    ip: Ipv4,
    udp: Udp,
    tunnel: DataHeader,
}
const _: () = assert!(size_of::<OuterV4>() == OVERHEAD_V4 as usize);

/// Outer headers over IPv6.
#[repr(C, packed)]
#[derive(Clone, Copy, lb_common::bytemuck::Pod, lb_common::bytemuck::Zeroable)]
#[bytemuck(crate = "lb_common::bytemuck")]
struct OuterV6 {
    ip: Ipv6,
    udp: Udp,
    tunnel: DataHeader,
}
const _: () = assert!(size_of::<OuterV6>() == OVERHEAD_V6 as usize);

/// What the tunnel's header says beside the backend, and what the packet counts as.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Note {
    pub visited: Visited,
    /// Of the sender's table.
    pub slots: u16,
    /// [`geneve::data_flags`].
    pub flags: u8,
    pub reason: Reason,
}

impl Note {
    /// Of a forwarder whose record has these.
    #[inline(always)]
    pub const fn forwarded(slots: u32, record_flags: u32) -> Self {
        Self {
            visited: Visited::NONE,
            slots: slots as u16,
            flags: if is_young(record_flags) { geneve::data_flags::YOUNG } else { 0 },
            reason: Reason::Forwarded,
        }
    }
}

/// Sends the packet to `backend`'s node. `hash` gives the source port, so that fabrics spread flows.
#[inline(always)]
pub fn send(
    frame: &mut Frame,
    link: &Link,
    ip: &Ip,
    backend: &Backend,
    hash: u64,
    note: Note,
) -> Fate {
    let Some(hop) = maps::hop(backend.node) else {
        return Fate::of(Err(Reason::NoHop));
    };
    if ip.ttl <= 1 {
        return Fate::of(Err(Reason::TtlExceeded));
    }
    let overhead = if hop.destination.is_v4() { OVERHEAD_V4 } else { OVERHEAD_V6 };
    if ip.length + overhead as usize > hop.mtu as usize {
        // Copies: see `forward`.
        return icmp::too_big(frame, &{ *link }, &{ *ip }, hop.mtu.saturating_sub(overhead));
    }
    encapsulate(frame, link, ip, &Way { backend, hop, hash, note })
}

/// Where a packet goes on to.
struct Way<'w> {
    backend: &'w Backend,
    hop: &'w Hop,
    hash: u64,
    note: Note,
}

#[inline(always)]
fn encapsulate(frame: &mut Frame, link: &Link, ip: &Ip, way: &Way<'_>) -> Fate {
    Fate::of(try_encapsulate(frame, link, ip, way))
}

#[inline(always)]
fn try_encapsulate(frame: &mut Frame, link: &Link, ip: &Ip, way: &Way<'_>) -> Outcome {
    let Way { backend, hop, hash, note } = *way;
    let over_v4 = hop.destination.is_v4();
    let overhead = if over_v4 { OVERHEAD_V4 } else { OVERHEAD_V6 };
    rewrite::lower_ttl(&mut frame.view(), ip)?;
    frame.grow_head(overhead as i32)?;
    let mut view = frame.view();
    let macs =
        Macs { destination: Mac::new(hop.destination_mac), source: Mac::new(hop.source_mac) };
    let ethertype = if over_v4 { ethertype::IPV4 } else { ethertype::IPV6 };
    Link { ethertype, ..*link }.write(&mut view, macs)?;
    let length = ip.length as u16;
    if over_v4 {
        let udp_length = length + (OVERHEAD_V4 - 20) as u16;
        *view.at_mut::<OuterV4>(link.l3)? = OuterV4 {
            ip: headers::ipv4(&hop.source, &hop.destination, proto::UDP, udp_length + 20, ip.tos),
            udp: udp(hash, udp_length),
            tunnel: header(backend, link.ethertype, &note),
        };
    } else {
        let udp_length = length + (OVERHEAD_V6 - 40) as u16;
        *view.at_mut::<OuterV6>(link.l3)? = OuterV6 {
            ip: headers::ipv6(&hop.source, &hop.destination, proto::UDP, udp_length, ip.tos),
            udp: udp(hash, udp_length),
            tunnel: header(backend, link.ethertype, &note),
        };
    }
    if hop.ifindex == frame.ifindex() {
        return Ok(Verdict::Transmit(note.reason));
    }
    Ok(Verdict::Redirect(note.reason, hop.ifindex))
}

/// Checksum 0 over both families: see `wire::geneve`. Source ports are dynamic ones (RFC 6335 6).
#[inline(always)]
fn udp(hash: u64, length: u16) -> Udp {
    Udp {
        source: (0xc000 | (hash >> 32) as u16).to_be(),
        destination: setting::tunnel_port().wire(),
        length: length.to_be(),
        checksum: 0,
    }
}

#[inline(always)]
fn header(backend: &Backend, inner: u16, note: &Note) -> DataHeader {
    DataHeader {
        base: geneve::Geneve {
            version_length: geneve::VERSION_LENGTH,
            flags: geneve::CRITICAL,
            protocol: inner,
            vni: geneve::vni_word(setting::vni()),
        },
        option: geneve::OptionHead {
            class: geneve::CLASS,
            kind: geneve::kind::DATA,
            length: geneve::OPTION_LENGTH,
        },
        data: geneve::Data {
            version: TUNNEL_VERSION,
            flags: note.flags,
            slots: note.slots.to_be(),
            seed_tag: setting::seed_tag(),
            backend: backend.addr.into(),
            backend_port: backend.port.wire(),
            visited: note.visited.to_header(),
        },
    }
}
