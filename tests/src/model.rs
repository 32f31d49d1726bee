//! An executable model of every packet's fate on the way in: verdict and reason.
//!
//! Written from the design and docs/packets.md, not from the BPF programs, and as plainly as
//! possible: it reads bytes by number and knows no map. It remembers nothing, so no flow is known to
//! it, and two things are outside of it: the clash of two frontends, which needs an established flow,
//! and the limits. Of the product it uses the hashes alone, because hash, slot and fingerprint are the
//! contract.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::hash::{client_hash, fingerprint, flow_hash, slot_of};
use lb_common::hop;
use lb_common::net::{Flow, Port};
use lb_common::reason::Reason;
use lb_common::service::flags;

use crate::packet::Mac;
use crate::rig::{Action, Service, Target};

/// What the model says of a frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fate {
    pub action: Action,
    /// By number.
    pub reasons: Vec<Reason>,
}

/// The way to a node: bytes of IP packet that it carries, whether it leads out by the interface that
/// the packet came by, and whether it is over IPv6.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub mtu: usize,
    pub same_interface: bool,
    pub over_v6: bool,
}

/// A VIP as this node sees it.
#[derive(Clone, Copy, Debug)]
pub struct VipState {
    pub announced: bool,
    pub echo: bool,
}

/// What this node knows.
#[derive(Clone, Debug)]
pub struct World {
    pub mac: Mac,
    pub own: Vec<IpAddr>,
    pub tunnel_port: u16,
    pub vni: u32,
    pub seed_tag: [u8; 8],
    pub flow_key: [u64; 2],
    pub members: Vec<IpAddr>,
    pub vips: BTreeMap<IpAddr, VipState>,
    pub services: Vec<Service>,
    /// Networks, by first address and length, whose clients alone a service takes, by VIP, port and
    /// protocol.
    pub ranges: BTreeMap<(IpAddr, u16, u8), Vec<(IpAddr, u32)>>,
    /// Backends that have left although slots name them.
    pub gone: Vec<IpAddr>,
    pub ways: BTreeMap<u32, Way>,
    /// Flags of nodes, where they have any: `lb_common::hop::flags`.
    pub nodes: BTreeMap<u32, u32>,
    /// Who else may know flows of a service, by VIP, port and protocol.
    pub candidates: BTreeMap<(IpAddr, u16, u8), Candidates>,
}

/// Who may know flows of a service beside its slots' owners; the same for every slot.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    pub claims: Vec<Target>,
    /// More claim its slots than there is room for.
    pub overflow: bool,
    /// Owners of before, newest first.
    pub past: Vec<Target>,
}

/// For whom a packet came, and what was said on the way.
#[derive(Default)]
struct Arrived {
    /// None: for nobody, since its slot has no owner.
    meant: Option<(IpAddr, u16)>,
    /// Fingerprints of those who were asked.
    asked: Vec<u16>,
    /// Places left in the list: it is filled from the front of its four and of its three places.
    room: usize,
    young: bool,
    last: bool,
    foreign: bool,
    tunnelled: bool,
}

pub struct Model {
    world: World,
    pools: BTreeMap<(IpAddr, u16, u8), Service>,
    local: BTreeSet<(IpAddr, u16, u8)>,
}

/// An IP packet as far as the model reads it.
struct Packet<'p> {
    v6: bool,
    source: IpAddr,
    destination: IpAddr,
    proto: u8,
    ttl: u8,
    ecn: u8,
    fragment: bool,
    /// Length that the header gives.
    length: usize,
    header: usize,
    /// From the IP header to the end of the frame.
    bytes: &'p [u8],
}

/// `Err`: the frame is dropped.
type Result<T> = std::result::Result<T, Reason>;

/// Extension headers that are walked.
const EXTENSIONS: usize = 4;

const TCP: u8 = 6;
const UDP: u8 = 17;

impl Fate {
    fn new(action: Action, reasons: &[Reason]) -> Self {
        Self { action, reasons: reasons.to_vec() }
    }

    fn untouched() -> Self {
        Self::new(Action::Pass, &[])
    }

    fn answer(reason: Reason) -> Self {
        Self::new(Action::Tx, &[reason])
    }
}

impl Model {
    pub fn new(world: World) -> Self {
        let pools = world
            .services
            .iter()
            .map(|pool| ((pool.vip, pool.port, pool.proto), pool.clone()))
            .collect();
        let owners = world.services.iter().map(|pool| (pool.proto, &pool.backends));
        let others = world.candidates.iter().flat_map(|((_, _, proto), candidates)| {
            [(*proto, &candidates.claims), (*proto, &candidates.past)]
        });
        let local = owners
            .chain(others)
            .flat_map(|(proto, backends)| backends.iter().map(move |backend| (proto, backend)))
            .filter(|(_, backend)| backend.node == 0)
            .map(|(proto, backend)| (backend.addr, backend.port, proto))
            .collect();
        Self { world, pools, local }
    }

    /// What becomes of a frame that comes by the uplink.
    pub fn fate(&self, frame: &[u8]) -> Fate {
        let mut at = 12;
        for _ in 0..2 {
            if matches!(be16(frame, at), Some(0x8100 | 0x88a8)) {
                at += 4;
            }
        }
        let (Some(ethertype), destination) = (be16(frame, at), &frame[..6]) else {
            return Fate::untouched();
        };
        let body = &frame[at + 2..];
        let fate = match ethertype {
            0x0806 => self.arp(body, destination),
            0x0800 | 0x86dd => self.ip(body, ethertype == 0x86dd, destination),
            _ => Ok(Fate::untouched()),
        };
        fate.unwrap_or_else(|reason| Fate::new(Action::Drop, &[reason]))
    }

    /// ARP and solicitations of VIPs, to all or to us: answered by the announcer, dropped by others.
    fn neighbour(&self, target: IpAddr, destination: &[u8], answered: Reason) -> Result<Fate> {
        match self.world.vips.get(&target) {
            Some(_) if destination[0] & 1 == 0 && destination != self.world.mac => {
                Ok(Fate::untouched())
            }
            Some(vip) if vip.announced => Ok(Fate::answer(answered)),
            Some(_) => Err(Reason::NotAnnounced),
            None => Ok(Fate::untouched()),
        }
    }

    fn arp(&self, body: &[u8], destination: &[u8]) -> Result<Fate> {
        if body.len() < 28 || body[2..4] != [8, 0] || body[6..8] != [0, 1] {
            return Ok(Fate::untouched());
        }
        let target = v4(&body[24..28]);
        if body[14..18] == body[24..28] {
            let known = self.world.vips.contains_key(&target);
            let claimed = Fate::new(Action::Pass, &[Reason::VipClaimed]);
            return Ok(if known { claimed } else { Fate::untouched() });
        }
        self.neighbour(target, destination, Reason::ArpAnswered)
    }

    /// A solicitation is valid only from this link (RFC 4861 7.1.1).
    fn solicitation(&self, body: &[u8], destination: &[u8]) -> Result<Fate> {
        let valid = body.len() >= 64 && body[6] == 58 && body[7] == 255 && body[40..42] == [135, 0];
        if !valid {
            return Ok(Fate::untouched());
        }
        self.neighbour(v6(&body[48..64]), destination, Reason::NdpAnswered)
    }

    fn ip(&self, body: &[u8], is_v6: bool, destination: &[u8]) -> Result<Fate> {
        if body.len() < if is_v6 { 40 } else { 20 } {
            return Ok(Fate::untouched());
        }
        let to = if is_v6 { v6(&body[24..40]) } else { v4(&body[16..20]) };
        let udp_at = if is_v6 { 40 } else { 20 };
        let is_udp = if is_v6 {
            body[6] == UDP
        } else {
            // Tunnel packets have no options and are never fragments.
            body[9] == UDP && body[0] == 0x45 && body[6] & 0x3f == 0 && body[7] == 0
        };
        if is_udp
            && body.len() >= udp_at + 8
            && be16(body, udp_at + 2) == Some(self.world.tunnel_port)
            && self.world.own.contains(&to)
        {
            return self.tunnelled(body, is_v6);
        }
        if is_v6 && body[6] == 58 && body[24..32] == [0xff, 2, 0, 0, 0, 0, 0, 0] {
            return self.solicitation(body, destination);
        }
        if let Some(vip) = self.world.vips.get(&to) {
            if destination != self.world.mac {
                return Ok(Fate::untouched());
            }
            return self.to_vip(body, is_v6, destination, *vip);
        }
        Ok(Fate::untouched())
    }

    /// Never to the kernel unless a backend is here: the kernel would route the VIP out again.
    fn to_vip(&self, body: &[u8], is_v6: bool, destination: &[u8], vip: VipState) -> Result<Fate> {
        let packet = read(body, is_v6)?;
        if packet.fragment {
            return Err(Reason::Fragment);
        }
        if packet.proto == TCP || packet.proto == UDP {
            let (from, to) = packet.ports()?;
            return self.to_frontend(&packet, from, to);
        }
        if packet.proto != if is_v6 { 58 } else { 1 } {
            return packet.refused(Reason::RefusedNoFrontend);
        }
        let message =
            packet.bytes.get(packet.header..packet.header + 8).ok_or(Reason::Truncated)?;
        match (is_v6, message[0]) {
            (false, 8) | (true, 128) if vip.echo => Ok(Fate::answer(Reason::EchoAnswered)),
            (true, 135) => match self.solicitation(body, destination)? {
                fate if fate.reasons.is_empty() => Err(Reason::IcmpIgnored),
                fate => Ok(fate),
            },
            _ => Err(Reason::IcmpIgnored),
        }
    }

    fn to_frontend(&self, packet: &Packet<'_>, from: u16, to: u16) -> Result<Fate> {
        let Some(pool) = self.pools.get(&(packet.destination, to, packet.proto)) else {
            return packet.refused(Reason::RefusedNoFrontend);
        };
        self.takes(packet, to)?;
        let nobody = Arrived::default();
        let Some(owner) = self.owner(pool, packet, from, to) else {
            return self.undecided(packet, pool, (from, to), &Arrived { room: 7, ..nobody });
        };
        if self.world.gone.contains(&owner.addr) {
            return Err(Reason::StaleOwner);
        }
        if owner.node == 0 {
            let meant = Some((owner.addr, owner.port));
            return self.undecided(packet, pool, (from, to), &Arrived { meant, room: 7, ..nobody });
        }
        self.send(packet, &owner, Reason::Forwarded)
    }

    /// Whether the frontend takes clients of the packet's source.
    fn takes(&self, packet: &Packet<'_>, port: u16) -> Result<()> {
        let Some(ranges) = self.world.ranges.get(&(packet.destination, port, packet.proto)) else {
            return Ok(());
        };
        let bits = |address: &IpAddr| match address {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
            IpAddr::V6(v6) => (v6.to_bits(), 128),
        };
        let (source, family) = bits(&packet.source);
        let holds = |(network, length): &(IpAddr, u32)| {
            let (network, of) = bits(network);
            of == family && (*length == 0 || (source ^ network) >> (128 - length) == 0)
        };
        if ranges.iter().any(holds) { Ok(()) } else { Err(Reason::SourceDenied) }
    }

    /// The backend that the packet's slot names.
    fn owner(&self, pool: &Service, packet: &Packet<'_>, from: u16, to: u16) -> Option<Target> {
        if pool.backends.is_empty() {
            return None;
        }
        let hash = if pool.flags & flags::CLIENT_AFFINITY != 0 {
            client_hash(&self.world.flow_key, &packet.source.into())
        } else {
            flow_hash(
                &self.world.flow_key,
                &Flow {
                    client: packet.source.into(),
                    vip: packet.destination.into(),
                    client_port: Port::new(from),
                    vip_port: Port::new(to),
                    proto: packet.proto,
                },
            )
        };
        Some(pool.backends[slot_of(hash, pool.slots) as usize % pool.backends.len()])
    }

    /// To a backend's node.
    fn send(&self, packet: &Packet<'_>, backend: &Target, reason: Reason) -> Result<Fate> {
        let way = self.world.ways.get(&backend.node).ok_or(Reason::NoHop)?;
        if packet.ttl <= 1 {
            return Err(Reason::TtlExceeded);
        }
        if packet.length + if way.over_v6 { 104 } else { 84 } > way.mtu {
            return packet.answered_by_icmp(Reason::TooBig);
        }
        let action = if way.same_interface { Action::Tx } else { Action::Redirect };
        Ok(Fate::new(action, &[reason]))
    }

    fn name(&self, addr: IpAddr, port: u16) -> u16 {
        fingerprint(&self.world.flow_key, &addr.into(), Port::new(port))
    }

    /// May be asked: it lives, and so does its node, to which there is a way.
    fn is_usable(&self, backend: &Target) -> bool {
        let has = |flag| self.world.nodes.get(&backend.node).is_some_and(|set| set & flag != 0);
        let reached = self.world.ways.contains_key(&backend.node) && !has(hop::flags::DEAD);
        !self.world.gone.contains(&backend.addr) && (backend.node == 0 || reached)
    }

    /// A packet of a flow that nobody here knows.
    fn undecided(
        &self,
        packet: &Packet<'_>,
        pool: &Service,
        (from, to): (u16, u16),
        arrived: &Arrived,
    ) -> Result<Fate> {
        let key = (pool.vip, pool.port, pool.proto);
        let none = Candidates::default();
        let candidates = self.world.candidates.get(&key).unwrap_or(&none);
        let owner = self.owner(pool, packet, from, to);
        let tcp = packet.proto == TCP;
        let tcp_flags = if tcp { packet.bytes[packet.header + 13] } else { 0 };
        let (opens, resets) = (tcp_flags & 0b10110 == 0b10, tcp_flags & 0b100 != 0);
        let delivered = if arrived.tunnelled { Reason::Received } else { Reason::DeliveredLocal };
        let delivered = Fate::new(Action::Pass, &[delivered]);
        let here = arrived
            .meant
            .is_some_and(|(addr, port)| self.local.contains(&(addr, port, packet.proto)));
        let stateless = !tcp && pool.flags & flags::STATELESS != 0;
        if here && (arrived.last || stateless) {
            return Ok(delivered);
        }
        if arrived.last {
            return Err(Reason::UnknownBackend);
        }
        let young = arrived.young || pool.flags & (flags::YOUNG | flags::ALWAYS_YOUNG) != 0;
        let never_drops = pool.flags & flags::ALWAYS_YOUNG != 0;
        let to_owner = || match owner {
            None if pool.flags & flags::LOCAL_ONLY != 0 => Err(Reason::LocalOnly),
            None => packet.refused(Reason::RefusedNoBackend),
            Some(owner) if self.world.gone.contains(&owner.addr) => Err(Reason::StaleOwner),
            Some(owner) if owner.node == 0 => Ok(delivered.clone()),
            Some(owner) => self.send(packet, &owner, Reason::SentLast),
        };
        if arrived.foreign || stateless {
            return to_owner();
        }
        let mut asked = arrived.asked.clone();
        asked.extend(arrived.meant.map(|(addr, port)| self.name(addr, port)));
        let open = |backend: &Target| {
            self.is_usable(backend) && !asked.contains(&self.name(backend.addr, backend.port))
        };
        if opens && here {
            // New wherever it is, but once to the owner.
            return match owner.filter(|owner| arrived.asked.is_empty() && open(owner)) {
                Some(owner) if owner.node != 0 => self.send(packet, &owner, Reason::SentOn),
                _ => Ok(delivered),
            };
        }
        let all_past = young || candidates.overflow;
        let mute = |backend: &Target| {
            let flags = self.world.nodes.get(&backend.node).copied().unwrap_or_default();
            flags & hop::flags::CLAIMS_ALL != 0
        };
        let past = candidates.past.iter().filter(|backend| all_past || mute(backend));
        let others = candidates.claims.iter().chain(past).filter(|_| !opens);
        // Nobody of this node knows the flow, but each takes a place in the list.
        let mut room = arrived.room.checked_sub(usize::from(arrived.meant.is_some()));
        for backend in owner.iter().chain(others).filter(|backend| open(backend)) {
            let Some(left) = room else {
                break;
            };
            if backend.node != 0 {
                return self.send(packet, backend, Reason::SentOn);
            }
            if opens {
                break;
            }
            room = left.checked_sub(1);
        }
        let nobody = arrived.meant.is_none();
        let taken = opens && owner.is_some_and(|owner| owner.node == 0 && open(&owner));
        let sent_again = tcp && !resets;
        if sent_again && young && !never_drops && !(nobody && opens) && !taken {
            return Err(Reason::Unsettled);
        }
        to_owner()
    }

    fn tunnelled(&self, outer: &[u8], over_v6: bool) -> Result<Fate> {
        let (from, tos, at) = if over_v6 {
            (v6(&outer[8..24]), outer[0] << 4 | outer[1] >> 4, 48)
        } else {
            (v4(&outer[12..16]), outer[1], 28)
        };
        let header = outer.get(at..at + 56).ok_or(Reason::BadTunnel)?;
        let vni = self.world.vni.to_be_bytes();
        // Version 0 and twelve words of options; our option of eleven words. The last byte of the word
        // that holds the network identifier is reserved, and sent as 0.
        let ours = header[0] == 12
            && header[4..8] == [vni[1], vni[2], vni[3], 0]
            && header[8..10] == [0xff, 1]
            && header[11] == 11;
        if !ours {
            return Err(Reason::BadTunnel);
        }
        if !self.world.members.contains(&from) {
            return Err(Reason::NotMember);
        }
        match header[10] {
            // Of every version.
            0x81 => self.received(&outer[at + 56..], header, tos & 3),
            0x82 => Ok(Fate::answer(Reason::ProbeAnswered)),
            // No agent ever ran here.
            0x84 => {
                let known = self.world.vips.get(&canonical(&header[24..40]));
                let announced = known.is_some_and(|vip| vip.announced);
                Err(if announced { Reason::YieldTaken } else { Reason::YieldRefused })
            }
            0x83 => Ok(Fate::new(Action::Pass, &[Reason::ProbeAnswerPassed])),
            _ => Err(Reason::BadTunnel),
        }
    }

    fn received(&self, inner: &[u8], header: &[u8], outer_ecn: u8) -> Result<Fate> {
        let is_v6 = match header[2..4] {
            [8, 0] => false,
            [0x86, 0xdd] => true,
            _ => return Err(Reason::BadTunnel),
        };
        let packet = read(inner, is_v6)?;
        if packet.fragment {
            return Err(Reason::Fragment);
        }
        if packet.proto != TCP && packet.proto != UDP {
            return Err(Reason::UnknownFrontend);
        }
        if self.world.own.contains(&packet.source) {
            return Err(Reason::LocalSource);
        }
        if outer_ecn == 3 && packet.ecn == 0 {
            return Err(Reason::EcnInconsistent);
        }
        let (from, to) = packet.ports()?;
        let pool = self
            .pools
            .get(&(packet.destination, to, packet.proto))
            .ok_or(Reason::UnknownFrontend)?;
        self.takes(&packet, to)?;
        let backend = canonical(&header[24..40]);
        if backend.is_ipv6() != is_v6 || backend.is_unspecified() && is_v6 {
            return Err(Reason::UnknownBackend);
        }
        let mut beside = Vec::new();
        if header[16..24] != self.world.seed_tag {
            beside.push(Reason::ForeignSeed);
        }
        if header[12] != 1 {
            beside.push(Reason::ForeignVersion);
        }
        let slots = u32::from(u16::from_be_bytes([header[14], header[15]]));
        if slots != 0 && slots != pool.slots {
            beside.push(Reason::ForeignSlots);
        }
        let asked: Vec<_> =
            header[42..56].chunks(2).map(|two| u16::from_ne_bytes([two[0], two[1]])).collect();
        let free = |list: &[u16]| list.iter().rev().take_while(|name| **name == 0).count();
        let arrived = Arrived {
            meant: Some((backend, u16::from_be_bytes([header[40], header[41]]))),
            room: free(&asked[..4]) + free(&asked[4..]),
            asked: asked.into_iter().filter(|name| *name != 0).collect(),
            young: header[13] & 1 != 0,
            last: header[13] & 2 != 0,
            foreign: !beside.is_empty(),
            tunnelled: true,
        };
        let fate = self
            .undecided(&packet, pool, (from, to), &arrived)
            .unwrap_or_else(|reason| Fate::new(Action::Drop, &[reason]));
        let mut reasons = [fate.reasons, beside].concat();
        reasons.sort();
        Ok(Fate { reasons, ..fate })
    }
}

impl Packet<'_> {
    /// Ports of a transport header that lies whole in the frame and in the packet.
    fn ports(&self) -> Result<(u16, u16)> {
        let size = if self.proto == TCP { 20 } else { 8 };
        let header = self.bytes.get(self.header..self.header + size).ok_or(Reason::Truncated)?;
        if self.v6 && self.proto == UDP && header[6..8] == [0, 0] {
            return Err(Reason::NoChecksum);
        }
        if self.header + size > self.length {
            return Err(Reason::Truncated);
        }
        Ok((u16::from_be_bytes([header[0], header[1]]), u16::from_be_bytes([header[2], header[3]])))
    }

    /// The sender is told; an RST is never answered.
    fn refused(&self, reason: Reason) -> Result<Fate> {
        if self.proto != TCP {
            return self.answered_by_icmp(reason);
        }
        if self.bytes[self.header + 13] & 4 != 0 {
            return Err(Reason::StrayReset);
        }
        Ok(Fate::answer(reason))
    }

    /// An error quotes the IP header and eight bytes (RFC 792), so these must be there.
    fn answered_by_icmp(&self, reason: Reason) -> Result<Fate> {
        if self.length < if self.v6 { 40 } else { self.header } + 8 {
            return Err(Reason::Truncated);
        }
        Ok(Fate::answer(reason))
    }
}

/// Reads an IP packet that starts at `bytes`.
fn read(bytes: &[u8], is_v6: bool) -> Result<Packet<'_>> {
    let packet = if is_v6 { read_v6(bytes)? } else { read_v4(bytes)? };
    if packet.length > bytes.len() || packet.header > packet.length {
        return Err(Reason::Truncated);
    }
    Ok(packet)
}

fn read_v4(bytes: &[u8]) -> Result<Packet<'_>> {
    let first = bytes.get(..20).ok_or(Reason::Truncated)?;
    if first[0] >> 4 != 4 || first[0] & 15 < 5 {
        return Err(Reason::Truncated);
    }
    Ok(Packet {
        v6: false,
        source: v4(&first[12..16]),
        destination: v4(&first[16..20]),
        proto: first[9],
        ttl: first[8],
        ecn: first[1] & 3,
        fragment: first[6] & 0x3f != 0 || first[7] != 0,
        length: usize::from(u16::from_be_bytes([first[2], first[3]])),
        header: usize::from(first[0] & 15) * 4,
        bytes,
    })
}

fn read_v6(bytes: &[u8]) -> Result<Packet<'_>> {
    let first = bytes.get(..40).ok_or(Reason::Truncated)?;
    if first[0] >> 4 != 6 {
        return Err(Reason::Truncated);
    }
    let mut packet = Packet {
        v6: true,
        source: v6(&first[8..24]),
        destination: v6(&first[24..40]),
        proto: first[6],
        ttl: first[7],
        ecn: first[1] >> 4 & 3,
        fragment: false,
        length: 40 + usize::from(u16::from_be_bytes([first[4], first[5]])),
        header: 40,
        bytes,
    };
    let mut walked = 0;
    loop {
        match packet.proto {
            51 => return Err(Reason::ExtensionHeaders),
            0 | 43 | 44 | 60 if walked == EXTENSIONS => return Err(Reason::ExtensionHeaders),
            44 => {
                packet.fragment = true;
                return Ok(packet);
            }
            0 | 43 | 60 => {
                let head = bytes.get(packet.header..packet.header + 2).ok_or(Reason::Truncated)?;
                packet.proto = head[0];
                packet.header += 8 + usize::from(head[1]) * 8;
                walked += 1;
            }
            _ => return Ok(packet),
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn v4(bytes: &[u8]) -> IpAddr {
    Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
}

/// Sixteen bytes that hold an address of either family.
fn canonical(bytes: &[u8]) -> IpAddr {
    match v6(bytes) {
        IpAddr::V6(addr) => addr.to_canonical(),
        addr => addr,
    }
}

fn v6(bytes: &[u8]) -> IpAddr {
    let octets: [u8; 16] = bytes.try_into().expect("sixteen bytes");
    Ipv6Addr::from(octets).into()
}
