//! The way in for clients on this node, processes of the host and of pods alike: the call that names a
//! VIP gets a backend's address instead, so that packets go straight there, without forwarder and
//! tunnel; and whoever asks for the peer is shown the VIP.
//!
//! Runs for every such call of every process below the cgroup, so what is for no VIP leaves after one
//! look at a bitmap. Never asks who the client may be: source ranges are for clients outside.
//!
//! Invariant: a backend that a socket got is noted before the call goes on, or the call is refused;
//! else the socket would show a stranger, and be forgotten when the backend dies.

use lb_common::{
    backend::{Backend, BackendId},
    frontend::Endpoint,
    hash::{client_hash, slot_of},
    hop,
    net::{Addr, proto},
    service::{Record, flags},
    socket::{Peer, SocketKey},
};

use crate::{
    maps::{self, setting},
    socket::{ALLOW, Call, random},
};

/// Slots that are looked at for one whose owner's node is not dead. Owners on dead nodes are replaced
/// within moments of a death, so what a table holds of them then is seldom more than a third.
const TRIES: u32 = 16;

/// Odd, so that slots follow each other all over the table: 2^32 by the golden ratio.
const STRIDE: u64 = 0x9e37_79b1;

/// A socket connects: TCP, or UDP that is given a peer.
#[inline(always)]
pub fn connect<const V6: bool>(call: &Call<V6>) -> i32 {
    let vip = call.endpoint();
    let Some(service) = service(&vip) else {
        return without_service(call, &vip);
    };
    let Some((_, backend)) = choose(call, service) else {
        return call.refuse();
    };
    // The kernel does not list what it keeps with UDP sockets.
    let noted = maps::put_peer(&call.ctx, &Peer { vip, backend })
        && (vip.proto == proto::TCP || maps::put_answer(call.cookie(), &vip, &backend));
    if !noted {
        return call.refuse();
    }
    call.set(&backend);
    ALLOW
}

/// A socket sends a datagram to an address that the call names.
#[inline(always)]
pub fn send<const V6: bool>(call: &Call<V6>) -> i32 {
    let vip = call.endpoint();
    let Some(service) = service(&vip) else {
        return ALLOW;
    };
    let cookie = call.cookie();
    let kept = maps::chosen(&SocketKey { cookie, endpoint: vip }).and_then(living);
    if let Some(backend) = kept.filter(|backend| call.takes(&backend.addr)) {
        let backend = Endpoint::new(backend.addr, backend.port, vip.proto);
        // Where several VIPs lead to one backend its answers are for the one that was asked last.
        let answers = maps::answers_for(&SocketKey { cookie, endpoint: backend });
        if answers != Some(vip) && !maps::put_answer(cookie, &vip, &backend) {
            return call.refuse();
        }
        call.set(&backend);
        return ALLOW;
    }
    let Some((id, backend)) = choose(call, service) else {
        return call.refuse();
    };
    let marked =
        maps::peer(&call.ctx).is_some() || maps::put_peer(&call.ctx, &Peer { vip, backend });
    if !marked || !maps::put_choice(cookie, &vip, id, &backend) {
        return call.refuse();
    }
    call.set(&backend);
    ALLOW
}

/// A datagram was received, and the call asks from where.
#[inline(always)]
pub fn receive<const V6: bool>(call: &Call<V6>) -> i32 {
    // Most sockets never sent to a VIP, which is told without a look at the map.
    if maps::peer(&call.ctx).is_some()
        && let Some(vip) =
            maps::answers_for(&SocketKey { cookie: call.cookie(), endpoint: call.endpoint() })
    {
        call.set(&vip);
    }
    ALLOW
}

/// The call asks for the socket's peer.
#[inline(always)]
pub fn name<const V6: bool>(call: &Call<V6>) -> i32 {
    match maps::peer(&call.ctx) {
        Some(peer) if peer.backend == call.endpoint() => call.set(&peer.vip),
        _ => {}
    }
    ALLOW
}

/// The service for clients inside the cluster; none where the address is no frontend's.
#[inline(always)]
fn service(vip: &Endpoint) -> Option<u32> {
    if !maps::may_be_vip(&vip.addr) {
        return None;
    }
    maps::frontend(vip).map(|frontend| frontend.inside)
}

/// What does not lead to a frontend goes on as it is. Only a TCP connection to a VIP is refused here
/// as the network would: on the node that announces the VIP nobody would hear it. UDP sockets are also
/// connected to learn their own address, whatever the port.
#[inline(always)]
fn without_service<const V6: bool>(call: &Call<V6>, asked: &Endpoint) -> i32 {
    if maps::may_be_vip(&asked.addr)
        && asked.proto == proto::TCP
        && maps::vip(&asked.addr).is_some()
    {
        return call.refuse();
    }
    // It may have been connected to a VIP before.
    if maps::peer(&call.ctx).is_some() {
        maps::put_peer(&call.ctx, &Peer::default());
    }
    ALLOW
}

/// A backend for a new flow: a random slot's owner, or that of the client's slot where clients are to
/// stay with their backends.
#[inline(always)]
fn choose<const V6: bool>(call: &Call<V6>, service: u32) -> Option<(BackendId, Endpoint)> {
    let record = maps::record(service)?;
    let owners = record.for_sockets();
    if owners == 0 {
        return None;
    }
    let proto = call.endpoint().proto;
    let mut hash = hash(call, record);
    for _ in 0..TRIES {
        let id = maps::owner(owners, slot_of(hash, record.slots));
        if let Some(backend) = living(id)
            && call.takes(&backend.addr)
        {
            return Some((id, Endpoint::new(backend.addr, backend.port, proto)));
        }
        hash = hash.wrapping_add(STRIDE);
    }
    None
}

/// The client is a network namespace of this node: the address that it will have is not known yet.
#[inline(always)]
fn hash<const V6: bool>(call: &Call<V6>, record: &Record) -> u64 {
    if record.flags & flags::CLIENT_AFFINITY == 0 {
        return random().into();
    }
    let [first, second] = if setting::own_v4().is_unset() {
        setting::own_v6().halves()
    } else {
        setting::own_v4().halves()
    };
    let client = Addr::from_halves([first ^ call.namespace(), second]);
    client_hash(&setting::flow_key(), &client)
}

/// The backend in that life, unless its node is dead.
#[inline(always)]
fn living(id: BackendId) -> Option<&'static Backend> {
    let backend = maps::backend(id)?;
    let dead = backend.node != 0
        && maps::hop(backend.node).is_some_and(|hop| hop.flags & hop::flags::DEAD != 0);
    (!dead).then_some(backend)
}
