//! Looks through the arrivals: which flows are displaced, how many each backend has, which are over.
//!
//! `OPENING` is read first: what is promoted meanwhile is found in `ESTABLISHED`. Forgets what was silent
//! for too long, and changes nothing else. Whatever the number of arrivals, a scan costs processor time only
//! in proportion, and says how much.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    os::fd::AsFd,
    path::Path,
    time::Duration,
};

use aya::maps::{IterableMap, MapError};
use lb_common::{
    abi::BLOCK_SLOTS,
    arrival::{Arrival, ArrivalKey, Tick},
    backend::BackendId,
    decide::ages_fast,
    hash::{client_hash, flow_hash, slot_of},
    net::{Flow, proto},
    service::{Record, flags},
};
use nix::time::{ClockId, clock_gettime};

use super::{
    batch,
    keys::Keys,
    maps::{ArrivalMap, Maps, OpenError, ReadError},
    store::WriteError,
};
use crate::{
    model::ArrivalTimes,
    plan::{FrontendKey, flows::Displaced},
};

/// Flows that one scan forgets: each is two system calls. What is left goes with the next, or gives way to
/// new ones.
pub const FORGET_MOST: usize = 16_384;

/// Ages beyond this are of arrivals noted after the clock was read: ticks wrap after 52 days.
const OLDEST: u64 = 1 << 51;

/// Why arrivals cannot be read, or those that are over not forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What a scan found.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// Flows whose slot now has another owner than the backend that knows them, by frontend and local
    /// backend. Of a frontend without any owner that is all; also where every node has a table of its
    /// own, as any of them may forward the flow. None of stateless services, for which nobody asks.
    pub displaced: BTreeMap<FrontendKey, BTreeMap<SocketAddr, Displaced>>,
    /// All flows of each local backend that neither side has closed; displaced or not.
    pub flows: BTreeMap<SocketAddr, u64>,
    /// Arrivals looked at.
    pub arrivals: u64,
    /// Of them: forgotten, as they were silent for too long.
    pub forgotten: u64,
    /// Processor time.
    pub cost: Duration,
}

/// Has the maps open.
pub struct Scanner {
    maps: Maps,
    flow_key: [u64; 2],
    times: ArrivalTimes,
}

impl Scanner {
    /// Opens the maps that an agent has pinned.
    ///
    /// # Errors
    /// They are not there, or not what this weir makes.
    pub fn open(pin_dir: &Path, seed: &[u8; 16], times: ArrivalTimes) -> Result<Self, OpenError> {
        Ok(Self { maps: Maps::open(pin_dir)?, flow_key: Keys::of(seed).flow, times })
    }

    /// Reads all arrivals.
    ///
    /// # Errors
    /// What was found until then is lost, and no flow forgotten by mistake.
    pub fn scan(&mut self) -> Result<Scan, ScanError> {
        let start = cpu_time();
        let mut tally = Tally::new(&self.maps, self.flow_key);
        let mut over = Vec::new();
        for which in ArrivalMap::ALL {
            let now = Tick::from_nanos(monotonic());
            let fd = self.maps.arrivals(which).map.map().fd().as_fd();
            let visit = |key: &ArrivalKey, arrival: &Arrival| {
                tally.scan.arrivals += 1;
                if is_over(which, arrival, now, &self.times) {
                    over.push((which, *key, arrival.seen));
                } else {
                    tally.add(which, key, arrival);
                }
            };
            batch::for_each(fd, visit).map_err(|source| ReadError {
                map: which.name(),
                source: MapError::IoError(source),
            })?;
        }
        let (mut scan, failed) = tally.finish();
        self.maps.owners.release(0);
        if let Some(error) = failed {
            return Err(error.into());
        }
        for (which, key, seen) in over.into_iter().take(FORGET_MOST) {
            scan.forgotten += u64::from(self.forget(which, &key, seen)?);
        }
        scan.cost = cpu_time().saturating_sub(start);
        Ok(scan)
    }

    /// Forgets a flow unless it spoke up since.
    fn forget(
        &mut self,
        which: ArrivalMap,
        key: &ArrivalKey,
        seen: u32,
    ) -> Result<bool, ScanError> {
        let table = self.maps.arrivals_mut(which);
        let still = table.get(key)?.is_some_and(|arrival| arrival.seen == seen);
        if still {
            table.remove(key)?;
        }
        Ok(still)
    }
}

/// A service as scans need it.
#[derive(Clone, Copy, Debug)]
struct Looked {
    frontend: FrontendKey,
    record: Record,
}

/// Counts arrivals against the tables.
struct Tally<'m> {
    maps: &'m Maps,
    flow_key: [u64; 2],
    /// By index; none where there is no service.
    services: HashMap<u32, Option<Looked>>,
    /// By service and backend.
    displaced: HashMap<(u32, BackendId), Displaced>,
    flows: HashMap<BackendId, u64>,
    scan: Scan,
    failed: Option<ReadError>,
}

impl<'m> Tally<'m> {
    fn new(maps: &'m Maps, flow_key: [u64; 2]) -> Self {
        Self {
            maps,
            flow_key,
            services: HashMap::new(),
            displaced: HashMap::new(),
            flows: HashMap::new(),
            scan: Scan::default(),
            failed: None,
        }
    }

    fn add(&mut self, which: ArrivalMap, key: &ArrivalKey, arrival: &Arrival) {
        // Of a life that is over nobody is known.
        let lives = self.maps.backend(key.backend).is_some_and(|backend| backend.node == 0);
        let Some(Looked { frontend, record }) = self.look(arrival.service).filter(|_| lives) else {
            return;
        };
        if !ages_fast(arrival.flags()) {
            *self.flows.entry(key.backend).or_default() += 1;
        }
        if record.flags & flags::STATELESS != 0 && which == ArrivalMap::Datagrams {
            return;
        }
        let slot = slot(&self.flow_key, &frontend, &record, which, key);
        if self.is_displaced(&record, slot, key.backend) {
            let displaced = self.displaced.entry((arrival.service, key.backend)).or_default();
            displaced.flows += 1;
            // A record has no more slots than 16 bits count.
            displaced.slots.insert(slot as u16);
        }
    }

    fn is_displaced(&self, record: &Record, slot: u32, backend: BackendId) -> bool {
        if record.owners == 0 || record.flags & flags::ALWAYS_YOUNG != 0 {
            return true;
        }
        let (block, at) = (record.owners + slot / BLOCK_SLOTS, slot % BLOCK_SLOTS);
        let pair = self.maps.owners.word(block, at as usize / 2).unwrap_or_default();
        let owner = if at % 2 == 0 { pair as u32 } else { (pair >> 32) as u32 };
        BackendId(owner) != backend
    }

    fn look(&mut self, service: u32) -> Option<Looked> {
        if let Some(looked) = self.services.get(&service) {
            return *looked;
        }
        let looked = self.maps.service(service).and_then(|found| {
            let endpoint = self.maps.frontend_of(service);
            let endpoint = endpoint.map_err(|error| self.failed = Some(error)).ok()?;
            Some(Looked { frontend: FrontendKey::of(&endpoint)?, record: found.record })
        });
        self.services.insert(service, looked);
        looked
    }

    /// Ids become addresses.
    fn finish(mut self) -> (Scan, Option<ReadError>) {
        let address = |id: BackendId| {
            let backend = self.maps.backend(id)?;
            Some(SocketAddr::new(backend.addr.to_ip(), backend.port.get()))
        };
        for ((service, id), displaced) in self.displaced {
            let looked = self.services.get(&service).copied().flatten();
            let (Some(Looked { frontend, .. }), Some(backend)) = (looked, address(id)) else {
                continue;
            };
            let backends = self.scan.displaced.entry(frontend).or_default();
            let sum = backends.entry(backend).or_default();
            sum.flows += displaced.flows;
            sum.slots.extend(displaced.slots);
        }
        let flows = self.flows.iter().filter_map(|(id, flows)| Some((address(*id)?, *flows)));
        self.scan.flows = flows.collect();
        (self.scan, self.failed)
    }
}

/// The slot that a flow falls into, as the forwarders find it.
fn slot(
    flow_key: &[u64; 2],
    frontend: &FrontendKey,
    record: &Record,
    which: ArrivalMap,
    key: &ArrivalKey,
) -> u32 {
    let endpoint = frontend.endpoint();
    let hash = match record.flags & flags::CLIENT_AFFINITY {
        0 => flow_hash(
            flow_key,
            &Flow {
                client: key.client,
                vip: endpoint.addr,
                client_port: key.client_port,
                vip_port: endpoint.port,
                proto: if which == ArrivalMap::Datagrams { proto::UDP } else { proto::TCP },
            },
        ),
        _ => client_hash(flow_key, &key.client),
    };
    slot_of(hash, record.slots)
}

/// Whether a flow was silent for so long that it need not be remembered.
fn is_over(which: ArrivalMap, arrival: &Arrival, now: Tick, times: &ArrivalTimes) -> bool {
    let most = match which {
        ArrivalMap::Opening => times.opening,
        ArrivalMap::Established if ages_fast(arrival.flags()) => times.closed,
        ArrivalMap::Established => times.established,
        ArrivalMap::Datagrams => times.datagrams,
    };
    let age = now.since(arrival.last_seen());
    age < OLDEST && Duration::from_nanos(age) > most
}

/// CLOCK_MONOTONIC in ns, by which arrivals are told.
fn monotonic() -> u64 {
    clock(ClockId::CLOCK_MONOTONIC).as_nanos() as u64
}

/// Of this thread.
fn cpu_time() -> Duration {
    clock(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

fn clock(id: ClockId) -> Duration {
    // Both clocks exist on all kernels that run this.
    clock_gettime(id).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use lb_common::{arrival::flags as seen, net::Port};

    use super::*;

    const DAY: u64 = 86_400_000_000_000;

    fn arrival(flags: u32, nanos: u64) -> Arrival {
        Arrival { seen: Arrival::pack(flags, Tick::from_nanos(nanos)), ..Arrival::default() }
    }

    #[test]
    fn flows_are_over_by_the_time_of_their_map_and_state() {
        let times = ArrivalTimes::default();
        let fins = seen::CLIENT_FIN | seen::BACKEND_FIN;
        for (which, flags, most) in [
            (ArrivalMap::Opening, 0, times.opening),
            (ArrivalMap::Opening, fins, times.opening),
            (ArrivalMap::Established, 0, times.established),
            (ArrivalMap::Established, seen::CLIENT_FIN, times.established),
            (ArrivalMap::Established, fins, times.closed),
            (ArrivalMap::Established, seen::BACKEND_RST, times.closed),
            (ArrivalMap::Datagrams, 0, times.datagrams),
        ] {
            let most = most.as_nanos() as u64;
            let last = 40 * DAY;
            let is_over = |after: u64| {
                let now = Tick::from_nanos(last + after);
                super::is_over(which, &arrival(flags, last), now, &times)
            };
            assert!(!is_over(most - (1 << 28)), "{which:?} {flags}");
            assert!(is_over(most + (2 << 28)), "{which:?} {flags}");
        }
    }

    #[test]
    fn an_arrival_noted_after_the_clock_was_read_is_new_also_where_time_wraps() {
        let times = ArrivalTimes::default();
        for nanos in [60 * DAY, 1 << 52, 104 * DAY] {
            let ahead = arrival(0, nanos + (1 << 28));
            assert!(!is_over(ArrivalMap::Opening, &ahead, Tick::from_nanos(nanos), &times));
            let old = arrival(0, nanos - times.opening.as_nanos() as u64 - (2 << 28));
            assert!(is_over(ArrivalMap::Opening, &old, Tick::from_nanos(nanos), &times));
        }
    }

    #[test]
    fn slots_are_those_of_the_forwarders() {
        let frontend = FrontendKey {
            address: "192.0.2.1".parse().unwrap(),
            port: 443,
            protocol: crate::model::Protocol::Tcp,
        };
        let client = std::net::IpAddr::from([198, 51, 100, 7]).into();
        let key = ArrivalKey::new(client, Port::new(40000), BackendId(5));
        let record = Record { slots: 4093, ..Record::default() };
        let endpoint = frontend.endpoint();
        let flow = |proto| Flow {
            client,
            vip: endpoint.addr,
            client_port: Port::new(40000),
            vip_port: Port::new(443),
            proto,
        };
        let flow_key = [3, 4];
        for (which, proto) in [
            (ArrivalMap::Opening, proto::TCP),
            (ArrivalMap::Established, proto::TCP),
            (ArrivalMap::Datagrams, proto::UDP),
        ] {
            let hash = flow_hash(&flow_key, &flow(proto));
            assert_eq!(slot(&flow_key, &frontend, &record, which, &key), slot_of(hash, 4093));
        }
        let record = Record { flags: flags::CLIENT_AFFINITY, ..record };
        let hash = client_hash(&flow_key, &client);
        let found = slot(&flow_key, &frontend, &record, ArrivalMap::Established, &key);
        assert_eq!(found, slot_of(hash, 4093));
    }
}
