//! The receiver's decision, pure: what becomes of a client's packet on the node of the backend that
//! it was sent to, and of a packet whose slot has no owner.
//!
//! Forwarders know owners only, so a packet of a flow that began under another set of backends
//! comes to one that does not know it. It then goes on, from one backend that may know it to the
//! next: the owner by the receiver's own table, those who claim the slot, and owners of before.
//! Who was asked stands in the tunnel's header, so that nobody is asked twice.
//!
//! The BPF program, the simulation and the tests call this; it touches no map and no clock. The
//! [`View`] is what the node knows.

use crate::{
    backend::BackendId,
    claim::CLAIMANTS,
    reason::Reason,
    service::{PAST, flags},
    wire::geneve,
};

/// Places from which candidates come, in the order in which they are asked: the slot's owner by the
/// own table, those who claim it, its owners of before from the newest.
pub const PLACES: usize = FIRST_PAST + PAST;

/// The first place of an owner of before.
pub const FIRST_PAST: usize = 1 + CLAIMANTS;

/// Window of time for the two budgets below, in ns.
pub const WINDOW: u64 = 100_000_000;

/// Packets that one CPU sends on to candidates per [`WINDOW`]: a million a second, a quarter of what
/// a core carries. Displaced flows need it for every packet, so it is no smaller; strays that are
/// asked about by all candidates leave three quarters to others.
pub const SENDS: u64 = 100_000;

/// Openings that strays make on one CPU per [`WINDOW`]: 1,000 a second. A handshake needs its opening
/// for a round trip, a second at most: a SYN that is sent again makes it anew. Strays on 32 CPUs take
/// half of the default 65,536 in a second, so the least recently used is never younger than that.
pub const STRAYS: u64 = 100;

/// What a node knows, as the decision asks for it.
pub trait View {
    /// The backend at one of the [`PLACES`] for the packet's slot; [`BackendId::NONE`] where there
    /// is none.
    fn candidate(&mut self, place: usize) -> BackendId;

    /// More backends claim the slot than places could hold.
    fn overflows(&mut self) -> bool;

    /// None where the id's life has ended.
    fn backend(&mut self, id: BackendId) -> Option<Candidate>;

    /// Whether a backend of this node knows the packet's flow: see [`crate::decide`]. May note that
    /// the flow was seen.
    fn knows(&mut self, id: BackendId) -> bool;

    /// Whether the budget of packets sent on still has room; counts one against it.
    fn may_send(&mut self) -> bool;
}

/// A backend as a candidate.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Candidate {
    /// Never 0.
    pub fingerprint: u16,
    /// On this node.
    pub local: bool,
    /// On this node, or on one that is not dead and to which there is a way.
    pub usable: bool,
    /// Its node cannot say what it claims.
    pub claims_all: bool,
}

/// Fingerprints of the backends that were asked, as the tunnel's header lists them: four in the one
/// word, three in the other, 0 for an empty place. The newest stands in
/// front of its word.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Visited {
    low: u64,
    high: u64,
}

/// One in each of a word's four places.
const EACH: u64 = 0x0001_0001_0001_0001;
/// The highest bit of each place.
const TOPS: u64 = 0x8000_8000_8000_8000;
/// The place of the second word that the list does not have.
const NO_PLACE: u64 = 0xffff << 48;

impl Visited {
    pub const NONE: Self = Self { low: 0, high: 0 };

    #[inline(always)]
    pub const fn from_header(header: geneve::Visited) -> Self {
        Self { low: header.first, high: header.second as u64 | (header.third as u64) << 32 }
    }

    #[inline(always)]
    pub const fn to_header(self) -> geneve::Visited {
        geneve::Visited {
            first: self.low,
            second: self.high as u32,
            third: (self.high >> 32) as u16,
        }
    }

    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.low | self.high == 0
    }

    /// `fingerprint` is not 0.
    #[inline(always)]
    pub const fn contains(self, fingerprint: u16) -> bool {
        let wanted = EACH.wrapping_mul(fingerprint as u64);
        has_zero(self.low ^ wanted) | has_zero(self.high ^ wanted | NO_PLACE)
    }

    /// The list with one more; none where it is full.
    #[inline(always)]
    pub const fn with(self, fingerprint: u16) -> Option<Self> {
        if self.low >> 48 == 0 {
            return Some(Self { low: self.low << 16 | fingerprint as u64, ..self });
        }
        if self.high >> 32 == 0 {
            return Some(Self { high: self.high << 16 | fingerprint as u64, ..self });
        }
        None
    }
}

/// Whether one of the four places is 0.
#[inline(always)]
const fn has_zero(word: u64) -> bool {
    word.wrapping_sub(EACH) & !word & TOPS != 0
}

/// A client's packet, and what its tunnel header said where it had one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Packet {
    pub tcp: bool,
    /// A SYN that opens ([`crate::decide::Segment::opens`]).
    pub opens: bool,
    /// An RST ([`crate::decide::Segment::resets`]).
    pub resets: bool,
    /// The backend of this node that the packet was sent to. [`BackendId::NONE`]: one that is not
    /// here, or nobody, where the slot has no owner.
    pub meant: BackendId,
    /// Of the backend that it was sent to, here or not; 0: nobody.
    pub fingerprint: u16,
    /// Who was asked before that one.
    pub visited: Visited,
    /// The header's flags.
    pub young: bool,
    pub last: bool,
    /// Of this node's own record of the service ([`flags`]); 0 where it has none.
    pub flags: u32,
    /// The sender has another seed, number of slots or version, so its table is another.
    pub foreign: bool,
}

impl Packet {
    /// Whether the client sends it again where it is lost. Nobody does that with an RST, and at a
    /// backend that does not know its connection it harms nothing.
    #[inline(always)]
    const fn is_sent_again(&self) -> bool {
        self.tcp && !self.resets
    }

    /// The header's *young* as the next hop must get it.
    #[inline(always)]
    pub const fn is_young(&self) -> bool {
        self.young || is_young(self.flags)
    }
}

/// Whether a record is young, so that what is sent by it says so.
#[inline(always)]
pub const fn is_young(record_flags: u32) -> bool {
    record_flags & (flags::YOUNG | flags::ALWAYS_YOUNG) != 0
}

/// What becomes of the packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// To this backend, which is on this node.
    Deliver(BackendId),
    /// To this backend's node, with *young* as [`Packet::is_young`] says.
    Send {
        to: BackendId,
        visited: Visited,
        last: bool,
    },
    Drop(Reason),
    /// The client is told that nobody serves it.
    Refuse,
}

/// The whole decision.
#[inline(always)]
pub fn decide(view: &mut impl View, packet: &Packet) -> Step {
    if !packet.opens && packet.meant != BackendId::NONE && view.knows(packet.meant) {
        return Step::Deliver(packet.meant);
    }
    undecided(view, packet)
}

/// The decision for a SYN, and for a packet that the backend meant is known not to know.
#[inline(always)]
pub fn undecided(view: &mut impl View, packet: &Packet) -> Step {
    let here = packet.meant != BackendId::NONE;
    let stateless = !packet.tcp && packet.flags & flags::STATELESS != 0;
    if here && (packet.last || stateless) {
        return Step::Deliver(packet.meant);
    }
    if packet.last {
        return Step::Drop(Reason::UnknownBackend);
    }
    let owner = view.candidate(0);
    if packet.opens {
        return opening(view, packet, owner);
    }
    if packet.foreign || stateless {
        return to_owner(view, packet, owner);
    }
    ask(view, packet, owner)
}

/// A SYN is new wherever it is, but goes once to the owner by the own table, which others will hold
/// for its owner too.
#[inline(always)]
fn opening(view: &mut impl View, packet: &Packet, owner: BackendId) -> Step {
    let here = packet.meant != BackendId::NONE;
    let settled = owner == packet.meant || !packet.visited.is_empty() && !packet.foreign;
    if here && (settled || view.knows(packet.meant)) {
        return Step::Deliver(packet.meant);
    }
    if packet.foreign {
        return to_owner(view, packet, owner);
    }
    let unvisited = view.backend(owner).filter(|candidate| {
        candidate.usable
            && candidate.fingerprint != packet.fingerprint
            && !packet.visited.contains(candidate.fingerprint)
    });
    match (unvisited, packet.visited.with(packet.fingerprint)) {
        (Some(candidate), _) if candidate.local => Step::Deliver(owner),
        (Some(_), Some(visited)) => Step::Send { to: owner, visited, last: false },
        _ if here => Step::Deliver(packet.meant),
        _ => unanswered(view, packet, owner),
    }
}

/// Asks the candidates for a flow that the backend meant does not know.
#[inline(always)]
fn ask(view: &mut impl View, packet: &Packet, owner: BackendId) -> Step {
    let mut visited = packet.visited;
    if packet.fingerprint != 0 {
        match visited.with(packet.fingerprint) {
            Some(more) => visited = more,
            None => return unanswered(view, packet, owner),
        }
    }
    let all_past = packet.is_young() || view.overflows();
    for place in 0..PLACES {
        let id = view.candidate(place);
        let Some(candidate) = view.backend(id) else {
            continue;
        };
        let asked = place < FIRST_PAST || all_past || candidate.claims_all;
        if !asked || !candidate.usable || visited.contains(candidate.fingerprint) {
            continue;
        }
        if !candidate.local {
            if view.may_send() {
                return Step::Send { to: id, visited, last: false };
            }
            // The connection may well live: what the client sends again finds room.
            if packet.is_sent_again() {
                return Step::Drop(Reason::Unsettled);
            }
            break;
        }
        if view.knows(id) {
            return Step::Deliver(id);
        }
        match visited.with(candidate.fingerprint) {
            Some(more) => visited = more,
            None => break,
        }
    }
    unanswered(view, packet, owner)
}

/// Nobody who may know the flow is left.
#[inline(always)]
fn unanswered(view: &mut impl View, packet: &Packet, owner: BackendId) -> Step {
    let nobody = packet.fingerprint == 0;
    let settles = packet.is_young() && packet.flags & flags::ALWAYS_YOUNG == 0;
    if packet.is_sent_again() && settles && !(nobody && packet.opens) {
        return Step::Drop(Reason::Unsettled);
    }
    to_owner(view, packet, owner)
}

/// To the owner, who takes it as it is.
#[inline(always)]
fn to_owner(view: &mut impl View, packet: &Packet, owner: BackendId) -> Step {
    if owner == BackendId::NONE {
        return match packet.flags & flags::LOCAL_ONLY {
            0 => Step::Refuse,
            _ => Step::Drop(Reason::LocalOnly),
        };
    }
    match view.backend(owner) {
        Some(candidate) if candidate.local => Step::Deliver(owner),
        Some(_) => Step::Send { to: owner, visited: Visited::NONE, last: true },
        None => Step::Drop(Reason::StaleOwner),
    }
}

#[cfg(test)]
mod tests;
