//! A row for every rule of the decision.

use std::collections::BTreeMap;
use std::vec::Vec;

use super::*;

/// A node: what it knows, and what it was asked.
#[derive(Default)]
struct Node {
    places: [u32; PLACES],
    overflows: bool,
    backends: BTreeMap<u32, Candidate>,
    /// Local backends that know the flow.
    knowing: Vec<u32>,
    /// Packets that may still be sent on.
    budget: u32,
    asked: Vec<u32>,
}

impl View for Node {
    fn candidate(&mut self, place: usize) -> BackendId {
        BackendId(self.places[place])
    }

    fn overflows(&mut self) -> bool {
        self.overflows
    }

    fn backend(&mut self, id: BackendId) -> Option<Candidate> {
        self.backends.get(&id.0).copied()
    }

    fn knows(&mut self, id: BackendId) -> bool {
        assert!(self.backends[&id.0].local, "asked {id:?}, which is elsewhere");
        self.asked.push(id.0);
        self.knowing.contains(&id.0)
    }

    fn may_send(&mut self) -> bool {
        let room = self.budget > 0;
        self.budget = self.budget.saturating_sub(1);
        room
    }
}

/// Backends 1 to 9 are here, all others elsewhere; a fingerprint is the id plus 1000.
fn node(owner: u32, claimants: &[u32], past: &[u32]) -> Node {
    let mut node = Node { budget: 1, ..Node::default() };
    node.places[0] = owner;
    node.places[1..][..claimants.len()].copy_from_slice(claimants);
    node.places[FIRST_PAST..][..past.len()].copy_from_slice(past);
    for id in 1..30 {
        let candidate = Candidate {
            fingerprint: fingerprint(id),
            local: id < 10,
            usable: true,
            claims_all: false,
        };
        node.backends.insert(id, candidate);
    }
    node
}

impl Node {
    fn knowing(mut self, id: u32) -> Self {
        self.knowing.push(id);
        self
    }

    fn with(mut self, id: u32, change: impl FnOnce(&mut Candidate)) -> Self {
        change(self.backends.get_mut(&id).unwrap());
        self
    }

    fn without_budget(self) -> Self {
        Self { budget: 0, ..self }
    }

    #[track_caller]
    fn decides(mut self, packet: &Packet, step: Step) -> Self {
        assert_eq!(decide(&mut self, packet), step, "{packet:?}");
        self
    }
}

fn fingerprint(id: u32) -> u16 {
    1000 + id as u16
}

/// A list, the newest last.
fn visited(ids: &[u32]) -> Visited {
    ids.iter().fold(Visited::NONE, |list, id| list.with(fingerprint(*id)).unwrap())
}

/// A segment that was sent to backend 1, which is here.
fn segment() -> Packet {
    Packet { tcp: true, meant: BackendId(1), fingerprint: fingerprint(1), ..Packet::default() }
}

fn syn() -> Packet {
    Packet { opens: true, ..segment() }
}

fn reset() -> Packet {
    Packet { resets: true, ..segment() }
}

fn datagram() -> Packet {
    Packet { tcp: false, ..segment() }
}

/// The same, sent to a backend that is not here.
fn elsewhere(packet: Packet) -> Packet {
    Packet { meant: BackendId::NONE, fingerprint: fingerprint(29), ..packet }
}

/// The same at a forwarder whose slot has no owner.
fn ownerless(packet: Packet) -> Packet {
    Packet { meant: BackendId::NONE, fingerprint: 0, ..packet }
}

fn young(packet: Packet) -> Packet {
    Packet { young: true, ..packet }
}

fn last(packet: Packet) -> Packet {
    Packet { last: true, ..packet }
}

fn flagged(packet: Packet, flags: u32) -> Packet {
    Packet { flags, ..packet }
}

fn foreign(packet: Packet) -> Packet {
    Packet { foreign: true, ..packet }
}

fn after(packet: Packet, ids: &[u32]) -> Packet {
    Packet { visited: visited(ids), ..packet }
}

fn deliver(id: u32) -> Step {
    Step::Deliver(BackendId(id))
}

fn send(to: u32, asked: &[u32]) -> Step {
    Step::Send { to: BackendId(to), visited: visited(asked), last: false }
}

fn send_last(to: u32) -> Step {
    Step::Send { to: BackendId(to), visited: Visited::NONE, last: true }
}

const UNSETTLED: Step = Step::Drop(Reason::Unsettled);

#[test]
fn what_is_known_is_delivered_whatever_else_holds() {
    for packet in [segment(), datagram(), syn()] {
        for packet in [packet, young(packet), last(packet), foreign(packet)] {
            node(20, &[21], &[22]).knowing(1).decides(&packet, deliver(1));
        }
    }
}

#[test]
fn last_is_delivered_where_its_backend_is_and_dropped_elsewhere() {
    for packet in [segment(), datagram(), syn()] {
        for packet in [packet, young(packet), foreign(packet), after(packet, &[20, 21])] {
            node(20, &[21], &[22]).decides(&last(packet), deliver(1));
            let gone = Step::Drop(Reason::UnknownBackend);
            node(20, &[21], &[22]).decides(&last(elsewhere(packet)), gone);
        }
    }
}

#[test]
fn datagrams_without_flows_start_no_chain() {
    let packet = flagged(datagram(), flags::STATELESS);
    node(20, &[21], &[22]).decides(&young(packet), deliver(1));
    node(20, &[21], &[22]).decides(&elsewhere(packet), send_last(20));
    // The flag is one of datagrams.
    node(20, &[], &[]).decides(&flagged(segment(), flags::STATELESS), send(20, &[1]));
}

#[test]
fn syn_is_new_where_the_own_table_agrees_and_goes_once_to_the_owner_where_not() {
    node(1, &[21], &[22]).decides(&young(syn()), deliver(1));
    node(20, &[21], &[22]).decides(&syn(), send(20, &[1]));
    node(20, &[21], &[22]).decides(&after(syn(), &[21]), deliver(1));
    node(20, &[], &[]).with(20, |owner| owner.usable = false).decides(&syn(), deliver(1));
    node(0, &[21], &[22]).decides(&young(syn()), deliver(1));
    // The owner is here too.
    node(2, &[], &[]).decides(&syn(), deliver(2));
    // Known: a retransmit after a change.
    node(20, &[], &[]).knowing(1).decides(&syn(), deliver(1));
    // Strays alone count against the budget.
    node(20, &[], &[]).without_budget().decides(&syn(), send(20, &[1]));
}

#[test]
fn settled_syn_looks_nothing_up() {
    assert!(node(1, &[], &[]).decides(&syn(), deliver(1)).asked.is_empty());
    assert!(node(20, &[], &[]).decides(&after(syn(), &[20]), deliver(1)).asked.is_empty());
}

#[test]
fn syn_for_a_backend_that_is_not_here_goes_to_the_owner() {
    node(20, &[21], &[22]).decides(&elsewhere(syn()), send(20, &[29]));
    node(20, &[21], &[22]).decides(&after(elsewhere(syn()), &[21]), send(20, &[21, 29]));
    node(2, &[], &[]).decides(&elsewhere(syn()), deliver(2));
    node(20, &[], &[]).decides(&after(elsewhere(syn()), &[20]), send_last(20));
    node(20, &[], &[]).decides(&young(after(elsewhere(syn()), &[20])), UNSETTLED);
    node(0, &[21], &[22]).decides(&elsewhere(syn()), Step::Refuse);
    node(0, &[21], &[22]).decides(&young(elsewhere(syn())), UNSETTLED);
}

#[test]
fn foreign_packets_go_to_the_owner_at_once() {
    for packet in [segment(), datagram(), syn()] {
        let packet = foreign(young(packet));
        node(20, &[21], &[22]).decides(&packet, send_last(20));
        node(1, &[21], &[22]).decides(&packet, deliver(1));
        node(2, &[21], &[22]).decides(&elsewhere(packet), deliver(2));
        node(20, &[21], &[22]).decides(&after(packet, &[20]), send_last(20));
    }
}

#[test]
fn owner_then_claimants_then_owners_of_before_are_asked() {
    for packet in [segment(), datagram()] {
        let packet = young(packet);
        let view = || node(20, &[21, 22], &[23, 24, 25]);
        view().decides(&packet, send(20, &[1]));
        view().decides(&after(packet, &[20]), send(21, &[20, 1]));
        view().decides(&after(packet, &[20, 21]), send(22, &[20, 21, 1]));
        view().decides(&after(packet, &[20, 21, 22]), send(23, &[20, 21, 22, 1]));
        view().decides(&after(packet, &[22, 23, 21, 20]), send(24, &[22, 23, 21, 20, 1]));
        let most = after(packet, &[20, 21, 22, 23, 24]);
        view().decides(&most, send(25, &[20, 21, 22, 23, 24, 1]));
    }
}

#[test]
fn owners_of_before_are_asked_while_young_or_where_claims_say_too_little() {
    let view = || node(1, &[21], &[22, 23]);
    for packet in [segment(), datagram()] {
        let claimed = after(packet, &[21]);
        view().decides(&packet, send(21, &[1]));
        view().decides(&claimed, deliver(1));
        view().decides(&young(claimed), send(22, &[21, 1]));
        view().decides(&flagged(claimed, flags::YOUNG), send(22, &[21, 1]));
        view().decides(&flagged(claimed, flags::ALWAYS_YOUNG), send(22, &[21, 1]));
        let overflowing = Node { overflows: true, ..view() };
        overflowing.decides(&claimed, send(22, &[21, 1]));
        // Only those whose node is mute.
        view().with(23, |past| past.claims_all = true).decides(&claimed, send(23, &[21, 1]));
    }
}

#[test]
fn ended_and_unusable_backends_are_skipped() {
    let mut view = node(20, &[21], &[22, 23]).with(21, |claimant| claimant.usable = false);
    view.backends.remove(&20);
    view.backends.remove(&22);
    view.decides(&young(segment()), send(23, &[1]));
}

#[test]
fn local_candidates_are_asked_in_place() {
    for packet in [segment(), datagram()] {
        let view = node(2, &[3, 20], &[]).decides(&packet, send(20, &[1, 2, 3]));
        assert_eq!(view.asked, [1, 2, 3]);
        node(2, &[3, 20], &[]).knowing(3).decides(&packet, deliver(3));
        // One that was visited is not asked again.
        let view = node(2, &[3], &[]).decides(&after(packet, &[3]), deliver(2));
        assert_eq!(view.asked, [1, 2]);
        // Only the owner takes what nobody knows.
        node(2, &[3], &[]).decides(&packet, deliver(2));
    }
}

#[test]
fn backend_that_is_not_here_counts_as_visited() {
    node(20, &[29, 21], &[]).decides(&elsewhere(segment()), send(20, &[29]));
    node(20, &[29, 21], &[]).decides(&after(elsewhere(segment()), &[20]), send(21, &[20, 29]));
    node(20, &[29], &[]).decides(&after(elsewhere(segment()), &[20]), send_last(20));
}

#[test]
fn end_of_the_chain_is_the_owner_but_a_drop_for_tcp_while_young() {
    let view = || node(20, &[], &[]);
    for (packet, step) in [
        (segment(), send_last(20)),
        (datagram(), send_last(20)),
        (young(segment()), UNSETTLED),
        (flagged(segment(), flags::YOUNG), UNSETTLED),
        (young(datagram()), send_last(20)),
        (young(reset()), send_last(20)),
        (flagged(young(segment()), flags::ALWAYS_YOUNG), send_last(20)),
    ] {
        view().decides(&after(packet, &[20]), step);
    }
    node(1, &[], &[]).decides(&segment(), deliver(1));
    node(1, &[], &[]).decides(&young(segment()), UNSETTLED);
    node(1, &[], &[]).decides(&flagged(segment(), flags::ALWAYS_YOUNG), deliver(1));
    let mut ended = node(20, &[], &[]);
    ended.backends.remove(&20);
    ended.decides(&segment(), Step::Drop(Reason::StaleOwner));
}

#[test]
fn slot_without_owner_asks_those_who_may_know_and_refuses() {
    let view = || node(0, &[21], &[22]);
    view().decides(&ownerless(syn()), Step::Refuse);
    view().decides(&ownerless(young(syn())), Step::Refuse);
    view().decides(&ownerless(flagged(syn(), flags::YOUNG)), Step::Refuse);
    view().decides(&ownerless(segment()), send(21, &[]));
    view().decides(&ownerless(datagram()), send(21, &[]));
    node(0, &[], &[22]).decides(&ownerless(segment()), Step::Refuse);
    node(0, &[], &[22]).decides(&ownerless(flagged(segment(), flags::YOUNG)), send(22, &[]));
    node(0, &[], &[]).decides(&ownerless(flagged(segment(), flags::YOUNG)), UNSETTLED);
    node(0, &[2], &[]).knowing(2).decides(&ownerless(segment()), deliver(2));
    node(0, &[2], &[]).decides(&ownerless(segment()), Step::Refuse);
    let local = flags::LOCAL_ONLY | flags::ALWAYS_YOUNG;
    let dropped = Step::Drop(Reason::LocalOnly);
    node(0, &[], &[22]).decides(&ownerless(flagged(segment(), local)), send(22, &[]));
    for packet in [syn(), segment(), datagram()] {
        node(0, &[], &[]).decides(&ownerless(flagged(packet, local)), dropped);
    }
    let stateless = flagged(datagram(), flags::STATELESS);
    node(0, &[21], &[]).decides(&ownerless(stateless), Step::Refuse);
}

#[test]
fn full_list_ends_the_chain() {
    let seven = [10, 11, 12, 13, 14, 15, 16];
    node(20, &[21], &[22]).decides(&after(segment(), &seven), send_last(20));
    node(20, &[21], &[22]).decides(&after(young(segment()), &seven), UNSETTLED);
    node(20, &[21], &[22]).decides(&after(young(datagram()), &seven), send_last(20));
    node(20, &[], &[]).decides(&after(elsewhere(syn()), &seven), send_last(20));
    // The last place is the meant backend's; a local candidate that does not know has none.
    let six = &seven[..6];
    let all = [10, 11, 12, 13, 14, 15, 1];
    node(20, &[21], &[]).decides(&after(segment(), six), send(20, &all));
    node(2, &[21], &[]).decides(&after(segment(), six), deliver(2));
}

#[test]
fn used_up_budget_sends_nothing_on_and_breaks_no_connection() {
    let view = || node(20, &[21], &[]).without_budget();
    view().decides(&segment(), UNSETTLED);
    view().decides(&flagged(segment(), flags::ALWAYS_YOUNG), UNSETTLED);
    view().decides(&datagram(), send_last(20));
    view().decides(&reset(), send_last(20));
    view().knowing(1).decides(&segment(), deliver(1));
    node(2, &[], &[]).without_budget().knowing(2).decides(&segment(), deliver(2));
    node(1, &[], &[]).without_budget().decides(&segment(), deliver(1));
}

/// Sends until the packet rests, each node with the same view of the others.
fn sends(owner: u32, claimants: &[u32], past: &[u32], first: Packet) -> u32 {
    let mut packet = first;
    for sent in 0..20 {
        let mut view = node(owner, claimants, past);
        view.backends.values_mut().for_each(|candidate| candidate.local = false);
        if let Some(here) = view.backends.get_mut(&packet.meant.0) {
            here.local = true;
        }
        match decide(&mut view, &packet) {
            Step::Send { to, visited, last } => {
                packet =
                    Packet { meant: to, fingerprint: fingerprint(to.0), visited, last, ..packet };
            }
            _ => return sent,
        }
    }
    panic!("{first:?} never rests");
}

#[test]
fn stray_costs_no_send_in_quiet_and_a_bounded_number_otherwise() {
    let stray = Packet { meant: BackendId(20), fingerprint: fingerprint(20), ..segment() };
    let most = [21, 22, 23, 24];
    // At the owner; and at another backend, by a forwarder of another view.
    assert_eq!(sends(20, &[], &[25, 26, 27], stray), 0);
    assert_eq!(sends(28, &[], &[25, 26, 27], stray), 1);
    assert_eq!(sends(20, &[21], &[25], stray), 1 + 1, "one claimant, and back to the owner");
    assert_eq!(sends(20, &most, &[25, 26, 27], stray), 4 + 1);
    assert_eq!(sends(20, &[], &[25, 26, 27], young(stray)), 3, "and a drop");
    assert_eq!(sends(20, &most, &[25, 26, 27], young(stray)), 7, "and a drop");
    assert_eq!(sends(28, &most, &[25, 26, 27], young(stray)), 7, "the list is full");
}

#[test]
fn list_holds_seven_and_finds_each() {
    let mut list = Visited::NONE;
    assert!(list.is_empty());
    for (count, fingerprint) in
        [1, 0xffff, 0x8000, 0x7fff, 2, 0x100, 0xfffe].into_iter().enumerate()
    {
        assert!(!list.contains(fingerprint), "{fingerprint:x} after {count}");
        list = list.with(fingerprint).unwrap();
        assert!(list.contains(fingerprint) && list.contains(1), "{fingerprint:x}");
        assert_eq!(Visited::from_header(list.to_header()), list);
    }
    assert!(!list.contains(3) && !list.contains(0x8001));
    assert_eq!(list.with(9), None);
}
