//! Packets of flows that are not known where they came: to whom they go on.

use std::net::IpAddr;

use lb_common::abi::map;
use lb_common::arrival::{Arrival, ArrivalKey, Tick, flags as seen};
use lb_common::backend::BackendId;
use lb_common::claim::Claim;
use lb_common::hash::fingerprint;
use lb_common::hop;
use lb_common::net::Port;
use lb_common::reason::Reason;
use lb_common::service::{PAST, flags};
use lb_tests::model::Candidates;
use lb_tests::packet::{Frame, Outer, Tunnel};
use lb_tests::rig::{
    Action, FLOW_KEY, GATEWAY_MAC, NODE_MAC, PEER, PEER_MAC, Rig, SEED_TAG, SLOTS, Service,
    TUNNEL_PORT, Target, VNI, boot_now, own, peer,
};

use crate::world::*;

/// Ports of pools whose owner is the local backend unless said otherwise.
/// Claimed by one elsewhere.
pub const CLAIMED: u16 = 100;
/// Young, with two owners of before.
pub const YOUNG: u16 = 101;
/// The same two, but settled.
pub const PASSED: u16 = 102;
/// More claims than places, with two owners of before.
const OVERFLOWING: u16 = 103;
/// Two owners of before; the node of the second is mute.
const MUTE: u16 = 104;
/// Claimed by a backend of a dead node.
const DEAD: u16 = 105;
/// As `YOUNG`, for ever.
const ALWAYS: u16 = 106;
/// The owner is elsewhere.
const STATELESS: u16 = 107;
/// Claimed by another local backend.
const NEIGHBOUR: u16 = 108;
/// No owner, but claimed by one elsewhere.
const LEFT: u16 = 109;
/// No owner, young.
const LEFT_YOUNG: u16 = 110;
/// The owner is elsewhere, young.
const REMOTE_YOUNG: u16 = 111;

/// All of them.
pub const PORTS: [u16; 12] = [
    CLAIMED,
    YOUNG,
    PASSED,
    OVERFLOWING,
    MUTE,
    DEAD,
    ALWAYS,
    STATELESS,
    NEIGHBOUR,
    LEFT,
    LEFT_YOUNG,
    REMOTE_YOUNG,
];

const NODE_DEAD: u32 = 7;
const NODE_MUTE: u32 = 8;

/// Nodes with flags of their own, reached as the other node is.
pub const NODES: [(u32, u32); 2] =
    [(NODE_DEAD, hop::flags::DEAD), (NODE_MUTE, hop::flags::CLAIMS_ALL)];

/// Header's flags.
const HEADER_YOUNG: u8 = 1;
const HEADER_LAST: u8 = 2;

fn numbered(v6: bool, number: u32) -> IpAddr {
    addr(v6, &format!("10.1.0.{number}"), &format!("fd01::{number:x}"))
}

fn neighbour(v6: bool) -> IpAddr {
    numbered(v6, 3)
}

fn claimant(v6: bool) -> IpAddr {
    numbered(v6, 11)
}

fn newest(v6: bool) -> IpAddr {
    numbered(v6, 12)
}

fn older(v6: bool) -> IpAddr {
    numbered(v6, 13)
}

fn mute(v6: bool) -> IpAddr {
    numbered(v6, 14)
}

/// The pools above, and who else may know their flows.
pub fn pools(v6: bool, proto: u8) -> Vec<(Service, Candidates)> {
    let at = |addr, node| Target { addr, port: BACKEND_PORT, node };
    let local = || vec![at(local_backend(v6), 0)];
    let remote = || vec![at(remote_backend(v6), PEER)];
    let past = || vec![at(newest(v6), PEER), at(older(v6), PEER)];
    let claims = || vec![at(claimant(v6), PEER)];
    let quiet = Candidates::default;
    let claimed = |claims| Candidates { claims, ..quiet() };
    let passed = || Candidates { past: past(), ..quiet() };
    let always = flags::ALWAYS_YOUNG;
    [
        (CLAIMED, local(), 0, claimed(claims())),
        (YOUNG, local(), flags::YOUNG, passed()),
        (PASSED, local(), 0, passed()),
        (OVERFLOWING, local(), 0, Candidates { claims: claims(), overflow: true, ..passed() }),
        (
            MUTE,
            local(),
            0,
            Candidates { past: vec![past()[0], at(mute(v6), NODE_MUTE)], ..quiet() },
        ),
        (DEAD, local(), 0, claimed(vec![at(numbered(v6, 15), NODE_DEAD)])),
        (ALWAYS, local(), always, passed()),
        (STATELESS, remote(), flags::STATELESS, claimed(claims())),
        (NEIGHBOUR, local(), 0, claimed(vec![at(neighbour(v6), 0)])),
        (LEFT, vec![], 0, claimed(claims())),
        (LEFT_YOUNG, vec![], flags::YOUNG, passed()),
        (REMOTE_YOUNG, remote(), flags::YOUNG, quiet()),
    ]
    .into_iter()
    .map(|(port, backends, flags, candidates)| {
        (Service { vip: vip(v6), port, proto, backends, flags, slots: SLOTS }, candidates)
    })
    .collect()
}

/// Puts the claims and the tables of before into the maps.
pub fn load(rig: &mut Rig, v6: bool, proto: u8) {
    for (service, candidates) in pools(v6, proto) {
        let index = rig.service_index(service.vip, service.port, proto).unwrap();
        let mut id = |target: &Target| rig.backend(*target, proto).unwrap();
        let mut claim = Claim { overflow: candidates.overflow.into(), ..Claim::default() };
        for (place, target) in candidates.claims.iter().enumerate() {
            claim.backends[place] = id(target);
        }
        let past: Vec<_> = candidates.past.iter().map(id).collect();
        if claim != Claim::default() {
            rig.claim(index, SLOTS, claim).unwrap();
        }
        let mut first = [0; PAST];
        for (epoch, owner) in past.into_iter().enumerate() {
            first[epoch] = rig.table(vec![owner.0], SLOTS).unwrap();
        }
        rig.edit(index, |record| record.past = first).unwrap();
    }
}

fn name_of(addr: IpAddr) -> u16 {
    fingerprint(&FLOW_KEY, &addr.into(), Port::new(BACKEND_PORT))
}

/// The list in a header, the newest first.
fn visited(backends: &[IpAddr]) -> [u16; 7] {
    let mut list = [0; 7];
    for (place, backend) in backends.iter().enumerate() {
        list[place] = name_of(*backend);
    }
    list
}

/// One family and protocol, and the rows made for it.
pub struct Rows {
    pub v6: bool,
    pub proto: u8,
    pub rows: Vec<Row>,
}

/// The packet as the other node tunnels it.
pub fn carried(tunnel: &Tunnel, packet: &Frame) -> Frame {
    let outer =
        Outer::new(peer(false), own(false), 0xc123, TUNNEL_PORT).macs(NODE_MAC, GATEWAY_MAC);
    tunnel.carry(&outer, &packet.packet())
}

/// How a packet comes.
#[derive(Clone)]
pub enum By {
    /// From the client.
    Client,
    /// Through the tunnel, for the local backend unless changed.
    Tunnel(Tunnel),
}

impl Rows {
    fn tunnel(&self) -> Tunnel {
        let tunnel = Tunnel::new(VNI, SEED_TAG, local_backend(self.v6), BACKEND_PORT);
        Tunnel { slots: SLOTS as u16, ..tunnel }
    }

    /// Through the tunnel, with these flags and visits.
    fn after(&self, data_flags: u8, asked: &[IpAddr]) -> By {
        By::Tunnel(Tunnel { data_flags, visited: visited(asked), ..self.tunnel() })
    }

    pub fn frame(&self, by: &By, packet: &Frame) -> Frame {
        match by {
            By::Client => packet.clone(),
            By::Tunnel(tunnel) => carried(tunnel, &packet.clone().ttl(63)),
        }
    }

    pub fn name(&self, what: &str) -> String {
        format!("{} chain: {what}", kind(self.v6, self.proto))
    }

    pub fn to(&self, port: u16) -> Frame {
        to_port(self.v6, self.proto, port)
    }

    /// Delivered to a backend of this node.
    pub fn delivered(
        &mut self,
        what: &str,
        by: &By,
        packet: &Frame,
        to: IpAddr,
        beside: &[Reason],
    ) {
        let (ttl, why) = match by {
            By::Client => (64, Reason::DeliveredLocal),
            By::Tunnel(_) => (63, Reason::Received),
        };
        let out =
            packet.clone().ttl(ttl).addresses(client(self.v6), to).ports(CLIENT_PORT, BACKEND_PORT);
        let counts = [&[why], beside].concat();
        let row = Row::passed(self.name(what), &self.frame(by, packet), &counts, &out);
        self.rows.push(row);
    }

    fn dropped(&mut self, what: &str, by: &By, packet: &Frame, why: Reason) {
        let row = Row::dropped(self.name(what), &self.frame(by, packet), why);
        self.rows.push(row);
    }

    /// Sent on with this header; TTL is one less.
    fn sent(&mut self, what: &str, by: &By, packet: &Frame, counts: &[Reason], header: Tunnel) {
        let ttl = if matches!(by, By::Client) { 63 } else { 62 };
        let inner = packet.clone().ttl(ttl).packet();
        let row =
            Row::sent(self.name(what), &self.frame(by, packet), Action::Tx, counts, move |port| {
                let outer =
                    Outer::new(own(false), peer(false), port, TUNNEL_PORT).macs(PEER_MAC, NODE_MAC);
                header.carry(&outer, &inner)
            });
        self.rows.push(row);
    }

    /// Sent to a backend that may know the flow.
    fn sent_on(
        &mut self,
        what: &str,
        by: &By,
        packet: &Frame,
        to: IpAddr,
        asked: &[IpAddr],
        young: bool,
    ) {
        let data_flags = if young { HEADER_YOUNG } else { 0 };
        let header = Tunnel { backend: to, visited: visited(asked), data_flags, ..self.tunnel() };
        self.sent(what, by, packet, &[Reason::SentOn], header);
    }

    /// Sent to the owner, to be taken as it is.
    fn sent_last(&mut self, what: &str, by: &By, packet: &Frame, young: bool, beside: &[Reason]) {
        let data_flags = HEADER_LAST | if young { HEADER_YOUNG } else { 0 };
        let header = Tunnel { backend: remote_backend(self.v6), data_flags, ..self.tunnel() };
        let mut counts = [&[Reason::SentLast], beside].concat();
        counts.sort();
        self.sent(what, by, packet, &counts, header);
    }

    /// The last row runs behind this.
    fn behind(&mut self, before: impl Fn(&mut Rig) + 'static) {
        let row = self.rows.pop().expect("a row was made");
        self.rows.push(row.after(before));
    }

    /// The last row's flow is known to a backend of this node.
    fn known_at(&mut self, to: IpAddr, port: u16, next_life: bool, arrival: Arrival) {
        let (v6, proto) = (self.v6, self.proto);
        let of = if proto == TCP { map::ESTABLISHED } else { map::DATAGRAMS };
        self.behind(move |rig| arrive(rig, (v6, proto), (to, port), next_life, of, arrival));
    }
}

/// Puts an arrival of the client's flow into a map.
fn arrive(
    rig: &mut Rig,
    (v6, proto): (bool, u8),
    (to, port): (IpAddr, u16),
    next_life: bool,
    of: &str,
    arrival: Arrival,
) {
    let id = rig.backend(Target { addr: to, port: BACKEND_PORT, node: 0 }, proto).unwrap();
    let id = if next_life { BackendId::new(id.index(), id.generation() + 1) } else { id };
    let service = rig.service_index(vip(v6), port, proto).unwrap();
    let key = ArrivalKey::new(client(v6).into(), Port::new(CLIENT_PORT), id);
    rig.arrival(of, key, Arrival { service, ..arrival }).unwrap();
}

/// An arrival that was seen just now.
fn recent(set: u32) -> Arrival {
    Arrival { seen: Arrival::pack(set, Tick::from_nanos(boot_now())), ..Default::default() }
}

pub fn rows() -> Vec<Row> {
    let mut all = Vec::new();
    for (v6, proto) in kinds() {
        let mut rows = Rows { v6, proto, rows: Vec::new() };
        known(&mut rows);
        flags_of_the_header(&mut rows);
        candidates(&mut rows);
        places(&mut rows);
        ends(&mut rows);
        foreign(&mut rows);
        without_owner(&mut rows);
        if proto == TCP {
            openings(&mut rows);
            syns(&mut rows);
        }
        all.append(&mut rows.rows);
    }
    all
}

/// What counts as known.
fn known(rows: &mut Rows) {
    let (local, remote) = (local_backend(rows.v6), remote_backend(rows.v6));
    let (plain, packet) = (rows.after(0, &[]), rows.to(REMOTE));
    rows.delivered("known, though another owns the slot", &plain, &packet, local, &[]);
    rows.known_at(local, REMOTE, false, recent(0));
    rows.sent_on("known through another frontend", &plain, &packet, remote, &[local], false);
    rows.known_at(local, CLAIMED, false, recent(0));
    rows.sent_on("known to an earlier life", &plain, &packet, remote, &[local], false);
    rows.known_at(local, REMOTE, true, recent(0));
    let packet = rows.to(CLAIMED);
    rows.delivered("known at the forwarder", &By::Client, &packet, local, &[]);
    rows.known_at(local, CLAIMED, false, recent(0));
}

fn flags_of_the_header(rows: &mut Rows) {
    let (local, remote) = (local_backend(rows.v6), remote_backend(rows.v6));
    let packet = rows.to(REMOTE);
    let (young, last) = (rows.after(HEADER_YOUNG, &[]), rows.after(HEADER_LAST, &[]));
    rows.sent_on("young stays in the header", &young, &packet, remote, &[local], true);
    rows.delivered("last is delivered", &last, &packet, local, &[]);
    let both = rows.after(HEADER_LAST | HEADER_YOUNG, &[remote]);
    rows.delivered("last is delivered while young", &both, &packet, local, &[]);
    let elsewhere = By::Tunnel(Tunnel {
        backend: numbered(rows.v6, 77),
        data_flags: HEADER_LAST,
        ..rows.tunnel()
    });
    rows.dropped("last for one that is not here", &elsewhere, &packet, Reason::UnknownBackend);
    let header = Tunnel { backend: remote, data_flags: HEADER_YOUNG, ..rows.tunnel() };
    let packet = rows.to(REMOTE_YOUNG);
    rows.sent("forwarder says young", &By::Client, &packet, &[Reason::Forwarded], header);
}

/// Who is asked, in which order.
fn candidates(rows: &mut Rows) {
    let v6 = rows.v6;
    let (local, remote) = (local_backend(v6), remote_backend(v6));
    let (claimant, newest, older) = (claimant(v6), newest(v6), older(v6));
    let plain = rows.after(0, &[]);
    let packet = rows.to(REMOTE);
    rows.sent_on("owner first", &plain, &packet, remote, &[local], false);
    let packet = rows.to(CLAIMED);
    for (what, by) in [("claimant, from the tunnel", &plain), ("claimant", &By::Client)] {
        rows.sent_on(what, by, &packet, claimant, &[local], false);
    }
    let asked = rows.after(0, &[claimant]);
    rows.delivered("claimant was asked", &asked, &packet, local, &[]);
    let packet = rows.to(YOUNG);
    for (what, by) in [("young, from the tunnel", &plain), ("young", &By::Client)] {
        rows.sent_on(what, by, &packet, newest, &[local], true);
    }
    let asked = rows.after(0, &[newest]);
    rows.sent_on("the older one next", &asked, &packet, older, &[local, newest], true);
    let packet = rows.to(PASSED);
    rows.delivered("owners of before once settled", &plain, &packet, local, &[]);
    rows.delivered("the same at the forwarder", &By::Client, &packet, local, &[]);
    let young = rows.after(HEADER_YOUNG, &[]);
    rows.sent_on("young elsewhere", &young, &packet, newest, &[local], true);
    let packet = rows.to(OVERFLOWING);
    rows.sent_on("claimant of many", &plain, &packet, claimant, &[local], false);
    let asked = rows.after(0, &[claimant]);
    rows.sent_on("more claims than places", &asked, &packet, newest, &[local, claimant], false);
    let packet = rows.to(MUTE);
    rows.sent_on("owner of before whose node is mute", &plain, &packet, mute(v6), &[local], false);
    let packet = rows.to(DEAD);
    rows.delivered("claimant's node is dead", &plain, &packet, local, &[]);
}

/// Candidates of this node, and backends that are not where they were looked for.
fn places(rows: &mut Rows) {
    let v6 = rows.v6;
    let (local, remote) = (local_backend(v6), remote_backend(v6));
    let packet = rows.to(NEIGHBOUR);
    for (what, by) in [("from the tunnel", rows.after(0, &[])), ("at the forwarder", By::Client)] {
        let name = format!("claimant is here, {what}");
        rows.delivered(&name, &by, &packet, neighbour(v6), &[]);
        rows.known_at(neighbour(v6), NEIGHBOUR, false, recent(0));
        rows.delivered(&format!("{name}, and does not know"), &by, &packet, local, &[]);
    }
    let elsewhere = |to| By::Tunnel(Tunnel { backend: numbered(v6, to), ..rows.tunnel() });
    let (gone, owner) = (elsewhere(77), elsewhere(2));
    let packet = rows.to(REMOTE);
    rows.sent_on("backend is not here", &gone, &packet, remote, &[numbered(v6, 77)], false);
    rows.sent_last("owner is not here", &owner, &packet, false, &[]);
    let packet = rows.to(LOCAL);
    rows.delivered("the owner is here instead", &gone, &packet, local, &[]);
}

/// Nobody is left.
fn ends(rows: &mut Rows) {
    let v6 = rows.v6;
    let tcp = rows.proto == TCP;
    let (local, remote) = (local_backend(v6), remote_backend(v6));
    let both = [newest(v6), older(v6)];
    let packet = rows.to(YOUNG);
    let asked = rows.after(0, &both);
    if tcp {
        rows.dropped("all asked while young", &asked, &packet, Reason::Unsettled);
        let reset = to_vip(v6).tcp(CLIENT_PORT, YOUNG, "R").seq(5);
        rows.delivered("RST, all asked while young", &asked, &reset, local, &[]);
    } else {
        rows.delivered("all asked while young", &asked, &packet, local, &[]);
    }
    let packet = rows.to(ALWAYS);
    rows.sent_on("always young", &rows.after(0, &[]), &packet, both[0], &[local], true);
    rows.delivered("all asked, always young", &asked, &packet, local, &[]);
    let seven: Vec<_> = (100..107).map(|number| numbered(v6, number)).collect();
    let (full, full_young) = (rows.after(0, &seven), rows.after(HEADER_YOUNG, &seven));
    let packet = rows.to(REMOTE);
    rows.sent_last("list is full", &full, &packet, false, &[]);
    if tcp {
        rows.dropped("list is full while young", &full_young, &packet, Reason::Unsettled);
    } else {
        rows.sent_last("list is full while young", &full_young, &packet, true, &[]);
    }
    let asked: Vec<_> = seven[..6].to_vec();
    // Four places are filled already, so the newest stands in front of the three.
    let list = [&asked[..4], &[local], &asked[4..]].concat();
    rows.sent_on("last place of the list", &rows.after(0, &asked), &packet, remote, &list, false);
    let plain = rows.after(0, &[]);
    let packet = rows.to(NOWHERE);
    rows.dropped("no way to the owner", &plain, &packet, Reason::NoHop);
    let packet = rows.to(STALE);
    rows.dropped("owner has just left", &plain, &packet, Reason::StaleOwner);
    let packet = rows.to(STATELESS);
    if tcp {
        rows.sent_on("the flag is one of UDP", &plain, &packet, remote, &[local], false);
    } else {
        rows.delivered("without flows", &plain, &packet, local, &[]);
    }
    let frame = carried(&rows.tunnel(), &rows.to(REMOTE).ttl(1));
    let row = Row::dropped(rows.name("TTL ends"), &frame, Reason::TtlExceeded);
    rows.rows.push(row);
}

/// Other seeds, versions and numbers of slots.
fn foreign(rows: &mut Rows) {
    let local = local_backend(rows.v6);
    let base = rows.tunnel();
    for (what, why, tunnel) in [
        ("seed", Reason::ForeignSeed, Tunnel { seed_tag: *b"another!", ..base.clone() }),
        ("version", Reason::ForeignVersion, Tunnel { version: 9, ..base.clone() }),
        ("number of slots", Reason::ForeignSlots, Tunnel { slots: 7, ..base }),
    ] {
        let by = By::Tunnel(tunnel);
        let packet = rows.to(REMOTE);
        rows.sent_last(&format!("another {what}"), &by, &packet, false, &[why]);
        let packet = rows.to(CLAIMED);
        rows.delivered(&format!("another {what} at the owner"), &by, &packet, local, &[why]);
        // The number of slots is looked at only where the flow is not known.
        let beside: &[Reason] = if what == "number of slots" { &[] } else { &[why] };
        let packet = rows.to(REMOTE);
        rows.delivered(&format!("another {what}, known"), &by, &packet, local, beside);
        rows.known_at(local, REMOTE, false, recent(0));
    }
}

fn without_owner(rows: &mut Rows) {
    let v6 = rows.v6;
    let packet = rows.to(LEFT);
    rows.sent_on("no owner, claimed", &By::Client, &packet, claimant(v6), &[], false);
    let packet = rows.to(LEFT_YOUNG);
    rows.sent_on("no owner, young", &By::Client, &packet, newest(v6), &[], true);
    if rows.proto != TCP {
        return;
    }
    for (what, port) in [("claimed", LEFT), ("young", LEFT_YOUNG)] {
        let syn = to_vip(v6).tcp(CLIENT_PORT, port, "S").seq(u32::MAX);
        let reset = from_vip(v6).tcp(port, CLIENT_PORT, "RA").window(0).seq(0).ack(0);
        let name = rows.name(&format!("SYN without owner, {what}"));
        rows.rows.push(Row::answered(name, &syn, Reason::RefusedNoBackend, &reset));
    }
}

/// What an opening counts for.
fn openings(rows: &mut Rows) {
    let v6 = rows.v6;
    let (local, remote) = (local_backend(v6), remote_backend(v6));
    let plain = rows.after(0, &[]);
    let spoke = Arrival { backend_seq: 70, ..recent(seen::BACKEND_SPOKE) };
    let packet = rows.to(REMOTE);
    let opening = move |arrival| {
        move |rig: &mut Rig| arrive(rig, (v6, TCP), (local, REMOTE), false, map::OPENING, arrival)
    };
    rows.delivered("handshake ends here", &plain, &packet, local, &[]);
    rows.behind(opening(spoke));
    rows.sent_on("opening of a silent backend", &plain, &packet, remote, &[local], false);
    rows.behind(opening(recent(0)));
    rows.sent_on("ACK of what was not sent", &plain, &packet, remote, &[local], false);
    rows.behind(opening(Arrival { backend_seq: 78, ..spoke }));
    let syn = to_vip(v6).tcp(CLIENT_PORT, REMOTE, "S").seq(5);
    rows.delivered("SYN is sent again", &plain, &syn, local, &[]);
    rows.behind(opening(recent(0)));
    rows.delivered("SYN within a connection", &plain, &syn, local, &[]);
    rows.known_at(local, REMOTE, false, recent(0));
    rows.sent_on("SYN after both closed", &plain, &syn, remote, &[local], false);
    rows.known_at(local, REMOTE, false, recent(seen::CLIENT_FIN | seen::BACKEND_FIN));
}

fn syns(rows: &mut Rows) {
    let v6 = rows.v6;
    let (local, remote) = (local_backend(v6), remote_backend(v6));
    let syn = |port| to_vip(v6).tcp(CLIENT_PORT, port, "S").seq(5);
    let plain = rows.after(0, &[]);
    rows.sent_on("SYN goes once to the owner", &plain, &syn(REMOTE), remote, &[local], false);
    let asked = rows.after(0, &[claimant(v6)]);
    rows.delivered("SYN that was sent on", &asked, &syn(REMOTE), local, &[]);
    for port in [LOCAL, CLAIMED, YOUNG] {
        let name = format!("SYN at the owner, port {port}");
        rows.delivered(&name, &plain, &syn(port), local, &[]);
        rows.delivered(&format!("{name}, by the forwarder"), &By::Client, &syn(port), local, &[]);
    }
    rows.delivered("SYN, no way to the owner", &plain, &syn(NOWHERE), local, &[]);
    let gone = By::Tunnel(Tunnel { backend: numbered(v6, 77), ..rows.tunnel() });
    let from = [numbered(v6, 77)];
    rows.sent_on("SYN for one that is not here", &gone, &syn(REMOTE), remote, &from, false);
    rows.delivered("SYN, the owner is here instead", &gone, &syn(LOCAL), local, &[]);
}
