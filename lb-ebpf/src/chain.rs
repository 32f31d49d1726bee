//! What becomes of a packet whose flow is not known where it came: [`lb_common::chain`] decides with
//! what the maps say.
//!
//! A stage that meets such a packet puts it aside ([`Case`]) and returns [`Fate::UNDECIDED`]; the
//! entry then calls [`settle`]. So the stages' stack is free again for what the chain needs, and a
//! packet of a known flow pays for none of it. Packets that are refused, and those without ports,
//! are put aside in the same way.

use lb_common::{
    backend::BackendId,
    chain::{self, Candidate, FIRST_PAST, PLACES, Packet, Step, Visited},
    decide::Segment,
    hash::{client_hash, fingerprint, flow_hash, slot_of},
    hop,
    net::{Addr, Flow, Port, proto},
    reason::Reason,
    service::{PAST, flags},
    wire::geneve::data_flags,
};

use crate::{
    frame::Frame,
    maps::{self, setting},
    parse::{Ip, Link},
    receive::{self, Meant, Place},
    refuse,
    tunnel::{self, Note},
    verdict::Fate,
};

/// A packet that was put aside, and what was decided. One a CPU: between a stage and [`settle`]
/// nothing else runs there.
#[repr(C)]
pub struct Case {
    pub link: Link,
    pub ip: Ip,
    flow: Flow,
    service: u32,
    meant: Meant,
    // From here on what `prepare` found.
    segment: Segment,
    packet: Packet,
    hash: u64,
    slots: u32,
    places: [BackendId; PLACES],
    overflows: bool,
    // From here on what `step` found.
    /// The backend to deliver to, or to send to.
    to: BackendId,
    /// Delivered: it knows the flow.
    known: bool,
    note: Note,
}

/// What [`step`] returns; all else is the number of the reason to drop for.
mod next {
    pub const DELIVER: u64 = 1 << 32;
    pub const SEND: u64 = 1 << 33;
    pub const REFUSE: u64 = 1 << 34;
}

/// Puts the packet aside.
#[inline(always)]
pub fn put_aside(link: &Link, ip: &Ip, flow: &Flow, service: u32, meant: &Meant) -> Fate {
    let Some(case) = open(link, ip) else {
        return Fate::NOT_OURS;
    };
    case.flow = *flow;
    case.service = service;
    case.meant = *meant;
    case.known = false;
    Fate::UNDECIDED
}

/// Puts a packet aside of which no more is needed than its headers; `fate` says what is left to do.
#[inline(always)]
pub fn set_aside(link: &Link, ip: &Ip, fate: Fate) -> Fate {
    open(link, ip).map_or(Fate::NOT_OURS, |_| fate)
}

/// The case, of which the headers are written.
#[inline(always)]
fn open(link: &Link, ip: &Ip) -> Option<&'static mut Case> {
    let case = maps::case()?;
    case.link = *link;
    case.ip = *ip;
    Some(case)
}

/// Decides on the packet that was put aside, and does it.
#[inline(always)]
pub fn settle(frame: &mut Frame) -> Fate {
    let fate = prepare(frame);
    if fate != Fate::UNDECIDED {
        return fate;
    }
    match step() {
        next::DELIVER => deliver(frame),
        next::SEND => send(frame),
        next::REFUSE => refuse(frame, Reason::RefusedNoBackend),
        reason => Fate::drop(reason as u32),
    }
}

/// Looks up what the decision needs. It is noted in the case because the verifier knows nothing of
/// what it reads from there, so that [`step`] is verified once, and not for every way to it.
#[inline(never)]
fn prepare(frame: &mut Frame) -> Fate {
    let Some(case) = maps::case() else {
        return Fate::NOT_OURS;
    };
    let tcp = case.ip.proto == proto::TCP;
    case.segment = Segment { flags: 0, seq: 0, ack: 0 };
    if tcp {
        match case.ip.segment(&frame.view()) {
            Ok(segment) => case.segment = segment,
            Err(reason) => return Fate::of(Err(reason)),
        }
    }
    let record_flags = look_up(case);
    let (meant, slots) = (&case.meant, case.slots);
    let other_slots = meant.slots != 0 && slots != 0 && meant.slots as u32 != slots;
    if other_slots {
        maps::count(Reason::ForeignSlots as u32, case.ip.length);
    }
    let nobody = meant.addr.is_unset();
    case.packet = Packet {
        tcp,
        opens: case.segment.opens(),
        resets: case.segment.resets(),
        meant: meant.id,
        fingerprint: if nobody { 0 } else { named(&meant.addr, meant.port) },
        visited: meant.visited,
        young: meant.flags & data_flags::YOUNG != 0,
        last: meant.flags & data_flags::LAST != 0,
        flags: record_flags,
        foreign: meant.foreign || other_slots,
    };
    Fate::UNDECIDED
}

#[inline(always)]
fn named(addr: &Addr, port: Port) -> u16 {
    fingerprint(&setting::flow_key(), addr, port)
}

/// Reads the service's record and who is a candidate for the slot; returns the record's flags.
#[inline(always)]
fn look_up(case: &mut Case) -> u32 {
    case.places = [BackendId::NONE; PLACES];
    (case.slots, case.overflows) = (0, false);
    let Some(record) = maps::record(case.service) else {
        case.hash = hash(&case.flow, 0);
        return 0;
    };
    case.hash = hash(&case.flow, record.flags);
    case.slots = record.slots;
    let slot = slot_of(case.hash, record.slots);
    if record.owners != 0 {
        case.places[0] = maps::owner(record.owners, slot);
    }
    if let Some(claim) = maps::claim(case.service, slot) {
        let [first, second, third, fourth] = claim.backends;
        case.places[1] = first;
        case.places[2] = second;
        case.places[3] = third;
        case.places[4] = fourth;
        case.overflows = claim.overflow != 0;
    }
    for epoch in 0..PAST {
        if record.past[epoch] != 0 {
            case.places[FIRST_PAST + epoch] = maps::owner(record.past[epoch], slot);
        }
    }
    record.flags
}

#[inline(never)]
fn step() -> u64 {
    let Some(case) = maps::case() else {
        return Reason::UnknownBackend as u64;
    };
    let packet = case.packet;
    match chain::undecided(&mut View(case), &packet) {
        Step::Deliver(to) => {
            case.to = to;
            next::DELIVER
        }
        Step::Send { to, visited, last } => {
            case.to = to;
            let young = if packet.is_young() { data_flags::YOUNG } else { 0 };
            case.note = Note {
                visited,
                slots: case.slots as u16,
                flags: young | if last { data_flags::LAST } else { 0 },
                reason: if last { Reason::SentLast } else { Reason::SentOn },
            };
            next::SEND
        }
        Step::Drop(reason) => reason as u64,
        Step::Refuse => next::REFUSE,
    }
}

/// The flow's hash, as forwarders of this service have it.
#[inline(always)]
pub fn hash(flow: &Flow, record_flags: u32) -> u64 {
    let key = setting::flow_key();
    if record_flags & flags::CLIENT_AFFINITY != 0 {
        client_hash(&key, &flow.client)
    } else {
        flow_hash(&key, flow)
    }
}

/// What the maps say of the case's slot.
struct View<'c>(&'c mut Case);

impl chain::View for View<'_> {
    #[inline(always)]
    fn candidate(&mut self, place: usize) -> BackendId {
        self.0.places[place]
    }

    #[inline(always)]
    fn overflows(&mut self) -> bool {
        self.0.overflows
    }

    #[inline(always)]
    fn backend(&mut self, id: BackendId) -> Option<Candidate> {
        if id == BackendId::NONE {
            return None;
        }
        let backend = maps::backend(id)?;
        let fingerprint = backend.fingerprint;
        if backend.node == 0 {
            return Some(Candidate { fingerprint, local: true, usable: true, claims_all: false });
        }
        let hop_flags = maps::hop(backend.node).map_or(hop::flags::DEAD, |hop| hop.flags);
        Some(Candidate {
            fingerprint,
            local: false,
            usable: hop_flags & hop::flags::DEAD == 0,
            claims_all: hop_flags & hop::flags::CLAIMS_ALL != 0,
        })
    }

    #[inline(always)]
    fn knows(&mut self, id: BackendId) -> bool {
        self.0.known = knows(self.0, id.0) != 0;
        self.0.known
    }

    #[inline(always)]
    fn may_send(&mut self) -> bool {
        let may = maps::sends_allowed();
        if !may {
            maps::count(Reason::SendsLimited as u32, self.0.ip.length);
        }
        may
    }
}

/// Whether the backend of that id, which is here, knows the case's flow: 1 or 0.
#[inline(never)]
fn knows(case: &Case, id: u32) -> u64 {
    let key = maps::arrival_key(&case.flow.client, case.flow.client_port, BackendId(id));
    let known = if case.ip.proto == proto::TCP {
        receive::knows_tcp(&key, case.service, &case.segment)
    } else {
        receive::knows_udp(&key, case.service)
    };
    known as u64
}

/// To the backend that was decided on, which is here.
#[inline(never)]
fn deliver(frame: &mut Frame) -> Fate {
    let Some(case) = maps::case() else {
        return Fate::of(Err(Reason::UnknownBackend));
    };
    let Some(backend) = maps::backend(case.to) else {
        return Fate::of(Err(Reason::StaleOwner));
    };
    let place =
        Place { service: case.service, id: case.to, addr: backend.addr, port: backend.port };
    Fate::of(receive::hand_over(frame, &case.ip, &case.flow, &place, case.known, case.meant.reason))
}

/// On to the backend that was decided on.
#[inline(never)]
fn send(frame: &mut Frame) -> Fate {
    let Some(case) = maps::case() else {
        return Fate::of(Err(Reason::UnknownBackend));
    };
    match maps::backend(case.to) {
        Some(backend) => tunnel::send(frame, &case.link, &case.ip, backend, case.hash, case.note),
        None => Fate::of(Err(Reason::StaleOwner)),
    }
}

/// Refuses the packet that was put aside.
#[inline(never)]
pub fn refuse(frame: &mut Frame, why: Reason) -> Fate {
    match maps::case() {
        Some(case) => refuse::refuse(frame, &case.link, &case.ip, why),
        None => Fate::of(Err(Reason::UnknownBackend)),
    }
}

impl Meant {
    /// The slot has no owner.
    pub const NOBODY: Self = Self {
        id: BackendId::NONE,
        addr: Addr::UNSET,
        port: Port::new(0),
        visited: Visited::NONE,
        slots: 0,
        flags: 0,
        foreign: false,
        reason: Reason::DeliveredLocal,
    };
}
