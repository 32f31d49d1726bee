//! From the pinned maps to a [`Snapshot`]. Reads only; the agent may live or be dead.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
};

use lb_common::{
    abi::YIELD_LIFE,
    backend::BackendId,
    frontend::{self, Endpoint, frontend_flags, vip_flags},
    globals::state,
    net::proto,
};
use nix::{
    net::if_::if_indextoname,
    time::{ClockId, clock_gettime},
};

use super::{
    arrivals::Filter,
    snapshot::{Backend, Door, Flow, Frontend, Memory, Snapshot, Vip},
};
use crate::{
    dataplane::maps::{ArrivalMap, Maps},
    model::{Cidr, Protocol},
};

/// Everything but the flows and the slot tables themselves.
pub fn snapshot(maps: &Maps) -> anyhow::Result<Snapshot> {
    let boottime = now(ClockId::CLOCK_BOOTTIME)?;
    let mut found = Snapshot {
        heartbeat_ms: heartbeat_ms(maps)?,
        now: now(ClockId::CLOCK_MONOTONIC)?,
        mss: (maps.state(state::MSS_V4), maps.state(state::MSS_V6)),
        reasons: maps.reason_counters()?,
        ..Default::default()
    };
    for entry in maps.vips.iter() {
        let (address, vip) = entry?;
        // As the data plane does it: what another node took is answered there.
        let said = maps.yields.get(&address)?;
        let yielded = said.is_some_and(|at| boottime.saturating_sub(at) < YIELD_LIFE);
        let here = vip.announced_on != 0 && !yielded;
        let announced_on = here.then(|| interface_name(vip.announced_on));
        let vip = Vip { announced_on, echo: vip.flags & vip_flags::ECHO != 0 };
        found.vips.insert(address.to_ip(), vip);
    }
    for backend in maps.living_backends() {
        let address = SocketAddr::new(backend.addr.to_ip(), backend.port.get());
        let counter = maps.backend_counter(backend.id)?;
        let hop = maps.hops.get(backend.node).unwrap_or_default();
        let backend_row = Backend { address, node: backend.node, flags: hop.flags, counter };
        found.backends.insert(backend.id, backend_row);
    }
    for entry in maps.members.iter() {
        let (_, member) = entry?;
        let hop = maps
            .hops
            .get(member.node)
            .filter(|hop| member.node != 0 && !hop.destination.is_unset());
        if let Some(hop) = hop {
            found.nodes.insert(member.node, hop.destination.to_ip());
        }
    }
    let mut ranges = ranges(maps)?;
    for entry in maps.frontends.iter() {
        let (endpoint, frontend) = entry?;
        if let Some(door) = door(&endpoint) {
            let ranges = (frontend.flags & frontend_flags::RANGES != 0)
                .then(|| ranges.remove(&(frontend.outside / 2)).unwrap_or_default());
            let read = read_frontend(maps, frontend.outside)?;
            found.frontends.insert(door, Frontend { ranges, ..read });
        }
    }
    let uplinks = maps.uplinks()?;
    let named = uplinks.list.iter().filter(|uplink| uplink.ifindex != 0);
    found.uplinks = named.map(|uplink| interface_name(uplink.ifindex)).collect();
    Ok(found)
}

/// Age of the agent's last heartbeat in ms; none since the maps were made.
pub fn heartbeat_ms(maps: &Maps) -> nix::Result<Option<u64>> {
    let boottime = now(ClockId::CLOCK_BOOTTIME)?;
    Ok(maps.heartbeat().map(|at| boottime.saturating_sub(at) / 1_000_000))
}

/// Networks of clients by the number of their frontend.
fn ranges(maps: &Maps) -> anyhow::Result<HashMap<u32, BTreeSet<Cidr>>> {
    let mut ranges: HashMap<u32, BTreeSet<Cidr>> = HashMap::new();
    for range in maps.source_ranges.iter() {
        let range = range?;
        ranges.entry(range.frontend).or_default().extend(network(&range));
    }
    Ok(ranges)
}

fn network(range: &frontend::SourceRange) -> Option<Cidr> {
    let mapped = if range.addr.is_v4() { 96 } else { 0 };
    let length = range.length().checked_sub(mapped)?;
    Cidr::new(range.addr.to_ip(), u8::try_from(length).ok()?)
}

fn read_frontend(maps: &Maps, service: u32) -> anyhow::Result<Frontend> {
    let mut frontend =
        Frontend { service, counter: maps.service_counter(service)?, ..Default::default() };
    if let Some(found) = maps.service(service) {
        frontend.slots = found.record.slots;
        frontend.flags = found.record.flags;
        for id in maps.owners_of(&found.record) {
            *frontend.owned.entry(id).or_default() += 1;
        }
    }
    Ok(frontend)
}

/// Owner of each slot of a service; empty without backends.
pub fn owners(maps: &Maps, service: u32) -> Vec<BackendId> {
    maps.service(service).map(|found| maps.owners_of(&found.record)).unwrap_or_default()
}

/// The flows that the filter keeps.
pub fn flows(maps: &Maps, snapshot: &Snapshot, filter: &Filter) -> anyhow::Result<Vec<Flow>> {
    let mut flows = Vec::new();
    for (map, memory) in [
        (ArrivalMap::Opening, Memory::Opening),
        (ArrivalMap::Established, Memory::Established),
        (ArrivalMap::Datagrams, Memory::Datagrams),
    ] {
        for entry in maps.arrivals(map).iter() {
            let (key, value) = entry?;
            let flow = Flow { memory, key, value };
            if filter.keeps(snapshot, &flow) {
                flows.push(flow);
            }
        }
    }
    Ok(flows)
}

fn door(endpoint: &Endpoint) -> Option<Door> {
    let protocol = match endpoint.proto {
        proto::TCP => Protocol::Tcp,
        proto::UDP => Protocol::Udp,
        _ => return None,
    };
    Some(Door { address: SocketAddr::new(endpoint.addr.to_ip(), endpoint.port.get()), protocol })
}

/// Of this network namespace; the number where it is not there.
fn interface_name(index: u32) -> String {
    if_indextoname(index)
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| format!("interface {index}"))
}

/// In ns.
fn now(clock: ClockId) -> nix::Result<u64> {
    let now = clock_gettime(clock)?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}
