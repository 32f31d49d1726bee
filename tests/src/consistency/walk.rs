//! One packet's way: a forwarder's table, then receivers that decide by the product's own
//! [`chain::decide`] until one delivers.

use std::collections::BTreeSet;

use lb_common::{
    backend::BackendId,
    chain::{self, Candidate, FIRST_PAST, Packet, Step, View, Visited},
    claim::Claim,
    reason::Reason,
    service::PAST,
};

use super::{
    crowd::{Flow, State},
    scenario::Number,
    site::{Claims, NodeNumber, SLOTS, Site, Slots, node_of, number_of},
};

/// Nobody can be asked more often than there is room for names, and then once more.
const MOST_HOPS: usize = 10;

/// Rules that can be switched off, to see what they are for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Without {
    /// Receivers forget who was asked.
    pub fingerprints: bool,
    /// Receivers ask nobody because their own table says so.
    pub own_table: bool,
    /// Receivers ask no claimants.
    pub claims: bool,
}

/// What a node's data plane holds of one frontend.
#[derive(Clone)]
pub struct Held {
    pub table: Slots,
    pub past: [Option<Slots>; PAST],
    /// `lb_common::service::flags`.
    pub flags: u32,
    pub claims: Claims,
    /// Backends that have an id here.
    pub backends: BTreeSet<Number>,
}

impl Held {
    fn owner(&self, slot: u16) -> BackendId {
        BackendId(self.table[usize::from(slot)])
    }
}

/// How a packet ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    Delivered(Number),
    Dropped(Reason),
    Refused,
}

/// A node as one packet meets it.
struct Receiver<'a> {
    site: &'a Site,
    node: NodeNumber,
    held: &'a Held,
    flow: &'a Flow,
    without: Without,
    /// The own table is not to be asked any more.
    looked: bool,
}

impl Receiver<'_> {
    fn claim(&self) -> Claim {
        let claimants = self.held.claims.get(&self.flow.slot);
        let is_local = |id: &BackendId| node_of(number_of(*id)) == self.node;
        claimants.map_or(Claim::default(), |ids| Claim::of(ids, is_local))
    }
}

impl View for Receiver<'_> {
    fn candidate(&mut self, place: usize) -> BackendId {
        let slot = self.flow.slot;
        match place {
            // First it is asked who takes what nobody knows, then who may know.
            0 if std::mem::replace(&mut self.looked, self.without.own_table) => BackendId::NONE,
            0 => self.held.owner(slot),
            1..FIRST_PAST if self.without.claims => BackendId::NONE,
            1..FIRST_PAST => self.claim().backends[place - 1],
            _ => match &self.held.past[place - FIRST_PAST] {
                Some(table) => BackendId(table[usize::from(slot)]),
                None => BackendId::NONE,
            },
        }
    }

    fn overflows(&mut self) -> bool {
        self.claim().overflow != 0
    }

    fn backend(&mut self, id: BackendId) -> Option<Candidate> {
        if id == BackendId::NONE || !self.held.backends.contains(&number_of(id)) {
            return None;
        }
        let number = number_of(id);
        Some(Candidate {
            fingerprint: self.site.fingerprint(number),
            local: node_of(number) == self.node,
            usable: true,
            claims_all: false,
        })
    }

    fn knows(&mut self, id: BackendId) -> bool {
        self.flow.state == State::At(number_of(id)) && node_of(number_of(id)) == self.node
    }

    fn may_send(&mut self) -> bool {
        true
    }
}

/// What the tunnel header says.
struct Header {
    meant: BackendId,
    visited: Visited,
    young: bool,
    last: bool,
}

/// Takes one packet through the site; `held` is what a node holds of the packet's frontend. Says too
/// how often a receiver sent it on.
pub fn walk<'a>(
    site: &Site,
    held: impl Fn(NodeNumber) -> &'a Held,
    flow: &Flow,
    without: Without,
) -> (End, usize) {
    let first = held(flow.forwarder);
    let owner = first.owner(flow.slot);
    if owner != BackendId::NONE && !first.backends.contains(&number_of(owner)) {
        return (End::Dropped(Reason::StaleOwner), 0);
    }
    let mut header = Header {
        meant: owner,
        visited: Visited::NONE,
        young: chain::is_young(first.flags),
        last: false,
    };
    let mut node = match owner {
        BackendId::NONE => flow.forwarder,
        owner => node_of(number_of(owner)),
    };
    for sent in 0..MOST_HOPS {
        let held = held(node);
        let named = (header.meant != BackendId::NONE).then(|| number_of(header.meant));
        let here = named.is_some_and(|it| node_of(it) == node && held.backends.contains(&it));
        let packet = Packet {
            tcp: flow.tcp,
            opens: flow.tcp && flow.state == State::Unborn,
            resets: false,
            meant: if here { header.meant } else { BackendId::NONE },
            fingerprint: named.map_or(0, |it| site.fingerprint(it)),
            visited: if without.fingerprints { Visited::NONE } else { header.visited },
            young: header.young,
            last: header.last,
            flags: held.flags,
            foreign: false,
        };
        let mut receiver = Receiver { site, node, held, flow, without, looked: false };
        match chain::decide(&mut receiver, &packet) {
            Step::Deliver(id) => return (End::Delivered(number_of(id)), sent),
            Step::Drop(reason) => return (End::Dropped(reason), sent),
            Step::Refuse => return (End::Refused, sent),
            Step::Send { to, visited, last } => {
                header = Header { meant: to, visited, young: packet.is_young(), last };
                node = node_of(number_of(to));
            }
        }
    }
    // Only packets that nobody remembers asking for go round for ever.
    (End::Dropped(Reason::TtlExceeded), MOST_HOPS)
}

/// A slot table in which every slot has the owner `id`, or none: before anything is known.
pub fn nobody() -> Held {
    Held {
        table: vec![0; usize::from(SLOTS)].into(),
        past: Default::default(),
        flags: 0,
        claims: Claims::default(),
        backends: BTreeSet::new(),
    }
}
