//! The data plane on a bench: loads the BPF object without attaching it, fills its maps with code of
//! its own, and runs one frame at a time by `BPF_PROG_TEST_RUN`.
//!
//! A run (`run.rs`) reports everything that changed: verdict, bytes, every counter. Nothing is pinned, no
//! interface is touched; frames come in by the loopback device (ifindex 1), which every network
//! namespace has, so rigs run side by side.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues};
use aya::programs::Program;
use aya::{Ebpf, EbpfLoader, Pod};
use bytemuck::NoUninit;
use lb_common::abi::{BLOCK_SLOTS, budget, map};
use lb_common::arrival::{Arrival, ArrivalKey};
use lb_common::backend::{Backend, BackendId};
use lb_common::claim::{Claim, ClaimKey};
use lb_common::frontend::{
    Endpoint, Frontend, SourceRange, Vip, filter_position, frontend_flags, vip_flags,
};
use lb_common::globals::{self, SETTINGS, Settings, mask, state};
use lb_common::hash::fingerprint;
use lb_common::hop::{Hop, Member, Uplink, Uplinks};
use lb_common::net::{Addr, Port};
use lb_common::reason::Counter;
use lb_common::service::{Record, ServiceWord, blocks};
use object::{Object as _, ObjectSymbol as _};

use crate::packet::Mac;

mod raw;
mod run;

pub use raw::Writer;
pub use run::{Action, NO_HEADROOM, Outcome, XdpMd, assert_same, dump};

/// The interface by which test runs come in: loopback.
pub const UPLINK: u32 = 1;
/// Another interface; it need not exist, because a test run does not send.
pub const OTHER_UPLINK: u32 = 7;
pub const NODE_MAC: Mac = [2, 0, 0, 0, 0, 2];
/// Who sends clients' frames to the node.
pub const GATEWAY_MAC: Mac = [2, 0, 0, 0, 0, 1];
/// The other node's.
pub const PEER_MAC: Mac = [2, 0, 0, 0, 0, 3];
pub const SEED_TAG: [u8; 8] = *b"seedtag1";
pub const FLOW_KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfeed_beef_dead_cafe];
pub const TUNNEL_PORT: u16 = globals::DEFAULT_TUNNEL_PORT;
pub const VNI: u32 = globals::DEFAULT_VNI;
pub const BOOT_ID: [u64; 2] = [0x1111_2222_3333_4444, 0x5555_6666_7777_8888];
/// Bits of a source's prefix, IPv4 and IPv6, where new flows are limited.
pub const SOURCE_PREFIX: (u32, u32) = (24, 64);
/// Age of the heartbeat in ms beyond which the node gives way.
pub const YIELD_AFTER: u32 = 5000;
/// Index in `HOPS` of the other node; over IPv6 it is another entry.
pub const PEER: u32 = 1;
pub const PEER_OVER_V6: u32 = 2;
pub const MTU: u32 = 1500;
/// What `egress` lowers the MSS of a SYN-ACK to: 1500 less the tunnel's and the packet's headers.
pub const MSS: [u64; 2] = [1376, 1336];
/// Slots of a service unless a test says otherwise.
pub const SLOTS: u32 = 61;

/// This node and the other one, by family.
pub fn own(v6: bool) -> IpAddr {
    text(if v6 { "fd00::1" } else { "10.0.0.1" })
}

pub fn peer(v6: bool) -> IpAddr {
    text(if v6 { "fd00::2" } else { "10.0.0.2" })
}

/// CLOCK_BOOTTIME in ns, the clock of heartbeats and yields.
pub fn boot_now() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map_or(0, |now| std::time::Duration::from(now).as_nanos() as u64)
}

fn text(addr: &str) -> IpAddr {
    addr.parse().expect("a literal address")
}

/// One pool behind one VIP and port.
#[derive(Clone, Debug)]
pub struct Service {
    pub vip: IpAddr,
    pub port: u16,
    pub proto: u8,
    /// Slots are dealt to them in turn.
    pub backends: Vec<Target>,
    /// Of the record: `lb_common::service::flags`.
    pub flags: u32,
    pub slots: u32,
}

/// A backend and the node it is on: 0 for this one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Target {
    pub addr: IpAddr,
    pub port: u16,
    pub node: u32,
}

/// The maps of arrivals as they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Arrivals {
    pub opening: Vec<(ArrivalKey, Arrival)>,
    pub established: Vec<(ArrivalKey, Arrival)>,
    pub datagrams: Vec<(ArrivalKey, Arrival)>,
}

/// The loaded object and what was put into its maps.
pub struct Rig {
    ebpf: Ebpf,
    next_service: u32,
    next_record: u32,
    next_block: u32,
    next_backend: u32,
    known: BTreeMap<(IpAddr, u16, u32), BackendId>,
    /// Service indices. Not read back: an earlier object's frontends may have another form.
    services: BTreeMap<(IpAddr, u16, u8), u32>,
    /// First blocks of tables by owners and slots: services with equal pools share one.
    tables: BTreeMap<(Vec<u32>, u32), u32>,
    /// As last read, by map.
    counters: BTreeMap<&'static str, Vec<Counter>>,
    /// Interface of the runs to come.
    pub ifindex: u32,
    /// Bytes of metadata that XDP runs to come have in front of the frame; they use up headroom.
    pub metadata: usize,
    /// The object is an earlier revision's.
    is_earlier: bool,
}

/// The object under test: the one in the weir binary, or the file `WEIR_BPF_OBJECT`.
pub fn product() -> Result<Cow<'static, [u8]>> {
    if let Some(path) = std::env::var_os("WEIR_BPF_OBJECT") {
        return Ok(Cow::Owned(
            std::fs::read(&path).with_context(|| format!("read {}", path.display()))?,
        ));
    }
    let object = weir::dataplane::object::OBJECT;
    ensure!(!object.is_empty(), "the BPF object is not there: run `cargo xtask build-bpf` first");
    Ok(Cow::Borrowed(object))
}

/// Sizes that tests use: small, so that a rig loads fast.
const SMALL: [(&str, u32); 15] = [
    (map::FRONTENDS, 256),
    (map::FRONTEND_OF, 256),
    (map::SERVICES, 256),
    (map::RECORDS, 256),
    (map::OWNERS, 512),
    (map::BACKENDS, 128),
    (map::LOCAL_BACKENDS, 128),
    (map::HOPS, 16),
    (map::VIPS, 64),
    (map::YIELDS, 64),
    (map::OPENING, 1024),
    (map::ESTABLISHED, 1024),
    (map::DATAGRAMS, 1024),
    (map::SERVICE_COUNTERS, 256),
    (map::BACKEND_COUNTERS, 128),
];

/// The way to the peer over an interface.
pub fn hop_to_peer(ifindex: u32, v6: bool) -> Hop {
    Hop {
        ifindex,
        mtu: MTU,
        destination_mac: PEER_MAC,
        source_mac: NODE_MAC,
        source: own(v6).into(),
        destination: peer(v6).into(),
        ..Default::default()
    }
}

/// Size of the object's settings.
fn settings_size(object: &[u8]) -> Result<usize> {
    let file = object::File::parse(object).context("read the object file")?;
    let symbol = file.symbol_by_name(SETTINGS).context("the object has no settings")?;
    Ok(symbol.size() as usize)
}

impl Rig {
    /// The data plane with nothing in it but this node, its uplink and one other node.
    pub fn new() -> Result<Self> {
        Self::load(&product()?, &SMALL)
    }

    /// As `new`, with a limit of connections that a source prefix opens a second.
    pub fn limited(new_flows: u32) -> Result<Self> {
        Self::load_any(&product()?, &SMALL, false, new_flows)
    }

    /// Another object of this revision, or other map sizes.
    pub fn load(object: &[u8], sizes: &[(&str, u32)]) -> Result<Self> {
        Self::load_any(object, sizes, false, 0)
    }

    /// The object of an earlier revision: its settings and values may have other sizes ([`raw`]).
    pub fn load_earlier(object: &[u8], sizes: &[(&str, u32)]) -> Result<Self> {
        Self::load_any(object, sizes, true, 0)
    }

    fn load_any(
        object: &[u8],
        sizes: &[(&str, u32)],
        is_earlier: bool,
        new_flows: u32,
    ) -> Result<Self> {
        let settings = Settings {
            flow_key: FLOW_KEY,
            seed_tag: SEED_TAG,
            own_v4: own(false).into(),
            own_v6: own(true).into(),
            tunnel_port: Port::new(TUNNEL_PORT),
            reserved: [0; 2],
            new_flows,
            names_errors: 0,
            source_mask_v4: mask(96 + SOURCE_PREFIX.0),
            source_mask_v6: mask(SOURCE_PREFIX.1),
            vni: VNI,
            yield_after: YIELD_AFTER,
            takes_over: 0,
        };
        let mut settings = bytemuck::bytes_of(&settings).to_vec();
        if is_earlier {
            settings.resize(settings_size(object)?, 0);
        }
        let mut loader = EbpfLoader::new();
        loader.override_global(SETTINGS, settings.as_slice(), true);
        for (name, entries) in sizes {
            loader.map_max_entries(name, *entries);
        }
        let mut ebpf = loader.load(object).context("load the BPF object")?;
        for (_, loaded) in ebpf.programs_mut() {
            match loaded {
                Program::Xdp(xdp) => xdp.load()?,
                Program::SchedClassifier(tc) => tc.load()?,
                _ => {}
            }
        }
        let mut rig = Self {
            ebpf,
            // Index 0 means "none" everywhere.
            // The two services of a frontend share all but the last bit.
            next_service: 2,
            next_record: 1,
            next_block: 1,
            next_backend: 1,
            known: BTreeMap::new(),
            services: BTreeMap::new(),
            tables: BTreeMap::new(),
            counters: BTreeMap::new(),
            ifindex: UPLINK,
            metadata: 0,
            is_earlier,
        };
        rig.fill()?;
        Ok(rig)
    }

    fn fill(&mut self) -> Result<()> {
        let mut uplinks = Uplinks::default();
        uplinks.list[0] = Uplink { ifindex: UPLINK, mac: NODE_MAC, reserved: [0; 6] };
        uplinks.list[1] =
            Uplink { ifindex: OTHER_UPLINK, mac: [2, 0, 0, 0, 0, 9], reserved: [0; 6] };
        self.set(map::UPLINKS, 0, uplinks)?;
        for (index, v6) in [(PEER, false), (PEER_OVER_V6, true)] {
            self.hop(index, hop_to_peer(UPLINK, v6))?;
            self.member(peer(v6), PEER)?;
        }
        self.state(state::BOOT_ID, BOOT_ID[0])?;
        self.state(state::BOOT_ID_2, BOOT_ID[1])?;
        self.state(state::MSS_V4, MSS[0])?;
        self.state(state::MSS_V6, MSS[1])
    }

    /// Adds a frontend with a VIP that this node announces on [`UPLINK`], its table and its
    /// backends; returns the service index.
    pub fn service(&mut self, service: &Service) -> Result<u32> {
        let index = self.next_service;
        self.next_service += 2;
        self.vip(service.vip, Vip { announced_on: UPLINK, flags: vip_flags::ECHO })?;
        let endpoint = Endpoint::new(service.vip.into(), Port::new(service.port), service.proto);
        let frontend = Frontend { outside: index, inside: index, flags: 0 };
        self.insert(map::FRONTENDS, endpoint, frontend)?;
        self.services.insert((service.vip, service.port, service.proto), index);
        self.set(map::FRONTEND_OF, index, endpoint)?;
        let record = self.record(service)?;
        self.set(map::SERVICES, index, ServiceWord(0).next(record).0)?;
        Ok(index)
    }

    fn record(&mut self, service: &Service) -> Result<u32> {
        let index = self.next_record;
        self.next_record += 1;
        let mut owners = Vec::new();
        for target in &service.backends {
            owners.push(self.backend(*target, service.proto)?.0);
        }
        let first = if owners.is_empty() { 0 } else { self.table(owners, service.slots)? };
        let record = Record {
            owners: first,
            slots: service.slots,
            flags: service.flags,
            ..Default::default()
        };
        self.set(map::RECORDS, index, record)?;
        Ok(index)
    }

    /// First block of the table that deals `slots` slots to `owners` in turn.
    pub fn table(&mut self, owners: Vec<u32>, slots: u32) -> Result<u32> {
        if let Some(first) = self.tables.get(&(owners.clone(), slots)) {
            return Ok(*first);
        }
        let first = self.next_block;
        self.next_block += blocks(slots);
        for block in 0..blocks(slots) {
            let owner = |at: usize| owners[((block * BLOCK_SLOTS) as usize + at) % owners.len()];
            self.set(
                map::OWNERS,
                first + block,
                std::array::from_fn::<u32, { BLOCK_SLOTS as usize }, _>(owner),
            )?;
        }
        self.tables.insert((owners, slots), first);
        Ok(first)
    }

    /// The id of a backend, which is made where it is new.
    pub fn backend(&mut self, target: Target, proto: u8) -> Result<BackendId> {
        let key = (target.addr, target.port, target.node);
        let id = match self.known.get(&key) {
            Some(id) => *id,
            None => {
                let id = BackendId::new(self.next_backend, 1);
                self.next_backend += 1;
                self.known.insert(key, id);
                id
            }
        };
        let (addr, port) = (target.addr.into(), Port::new(target.port));
        let fingerprint = fingerprint(&FLOW_KEY, &addr, port);
        self.set(
            map::BACKENDS,
            id.index(),
            Backend { addr, id, node: target.node, port, fingerprint, reserved: 0 },
        )?;
        if target.node == 0 {
            self.insert(map::LOCAL_BACKENDS, Endpoint::new(addr, port, proto), id)?;
        }
        Ok(id)
    }

    /// The service behind an address, port and protocol.
    pub fn service_index(&mut self, vip: IpAddr, port: u16, proto: u8) -> Result<u32> {
        self.services.get(&(vip, port, proto)).copied().context("no such service")
    }

    /// From now on a frontend takes clients of these networks only; a prefix of IPv4 counts 32 bits.
    pub fn ranges(&mut self, service: u32, networks: &[(IpAddr, u32)]) -> Result<()> {
        let list = service >> 1;
        for key in self.networks()?.into_iter().filter(|key| key[1] == list) {
            let [bits, rest @ ..] = key;
            let mut map: LpmTrie<&mut MapData, [u32; 5], u32> = self.map(map::SOURCE_RANGES)?;
            map.remove(&Key::new(bits, rest))?;
        }
        for (address, length) in networks {
            let mapped = if address.is_ipv4() { 96 } else { 0 };
            let network = SourceRange::network(list, (*address).into(), mapped + length);
            self.insert(map::SOURCE_RANGES, network, 1_u32)?;
        }
        let mut frontends = self.list::<Endpoint, Frontend>(map::FRONTENDS)?;
        frontends.retain(|(_, frontend)| frontend.outside == service);
        let (endpoint, frontend) = frontends.first().context("no such service")?;
        let flags = frontend_flags::RANGES;
        self.insert(map::FRONTENDS, *endpoint, Frontend { flags, ..*frontend })
    }

    /// All that frontends take, as words.
    fn networks(&mut self) -> Result<Vec<[u32; 6]>> {
        let map: LpmTrie<&mut MapData, [u32; 5], u32> = self.map(map::SOURCE_RANGES)?;
        let keys = map.keys().map(|key| {
            let key = key?;
            let [a, b, c, d, e] = key.data();
            anyhow::Ok([key.prefix_len(), a, b, c, d, e])
        });
        keys.collect()
    }

    /// Changes a service's record in place, as no agent may.
    pub fn edit(&mut self, service: u32, change: impl FnOnce(&mut Record)) -> Result<()> {
        let services: Array<&mut MapData, u64> = self.map(map::SERVICES)?;
        let index = ServiceWord(services.get(&service, 0)?).record();
        let records: Array<&mut MapData, Record> = self.map(map::RECORDS)?;
        let mut record = records.get(&index, 0)?;
        change(&mut record);
        self.set(map::RECORDS, index, record)
    }

    /// All slots of a service are claimed so.
    pub fn claim(&mut self, service: u32, slots: u32, claim: Claim) -> Result<()> {
        for slot in 0..slots {
            self.insert(map::CLAIMS, ClaimKey { frontend: service >> 1, slot }, claim)?;
        }
        Ok(())
    }

    /// Ends a backend's life, as the agent does, and leaves the slots that name it.
    pub fn forget_backend(&mut self, id: BackendId) -> Result<()> {
        self.set(map::BACKENDS, id.index(), Backend::default())
    }

    /// Adds or changes a VIP.
    pub fn vip(&mut self, addr: IpAddr, vip: Vip) -> Result<()> {
        let addr = Addr::from(addr);
        self.insert(map::VIPS, addr, vip)?;
        self.mark(addr)
    }

    /// Sets the filter's bit of an address, which need not be a VIP.
    pub fn mark(&mut self, addr: Addr) -> Result<()> {
        let (word, bit) = filter_position(&addr);
        let mut filter: Array<_, u64> = self.map(map::VIP_FILTER)?;
        let bits = filter.get(&word, 0)?;
        Ok(filter.set(word, bits | bit, 0)?)
    }

    pub fn hop(&mut self, node: u32, hop: Hop) -> Result<()> {
        self.set(map::HOPS, node, hop)
    }

    pub fn member(&mut self, addr: IpAddr, node: u32) -> Result<()> {
        self.insert(map::MEMBERS, Addr::from(addr), Member { node, ..Member::default() })
    }

    pub fn state(&mut self, index: u32, value: u64) -> Result<()> {
        self.set(map::STATE, index, value)
    }

    /// A map by name and kind.
    pub fn map<'r, M: TryFrom<&'r mut aya::maps::Map, Error = aya::maps::MapError>>(
        &'r mut self,
        name: &str,
    ) -> Result<M> {
        let map =
            self.ebpf.map_mut(name).with_context(|| format!("no map {name} in the object"))?;
        M::try_from(map).with_context(|| format!("map {name}"))
    }

    /// A map by name, to be written.
    pub fn writer(&self, name: &str) -> Result<Writer<'_>> {
        let map = self.ebpf.map(name).with_context(|| format!("no map {name} in the object"))?;
        Writer::new(map, self.is_earlier).with_context(|| format!("map {name}"))
    }

    /// Writes one element of an array.
    pub fn set<V: NoUninit>(&mut self, name: &str, index: u32, value: V) -> Result<()> {
        self.writer(name)?.put(&index, &value).with_context(|| format!("write {name}[{index}]"))
    }

    /// Writes one element of a hash map.
    pub fn insert<K: NoUninit, V: NoUninit>(&mut self, name: &str, key: K, value: V) -> Result<()> {
        self.writer(name)?.put(&key, &value).with_context(|| format!("insert into {name}"))
    }

    fn list<K: Pod, V: Pod>(&mut self, name: &str) -> Result<Vec<(K, V)>> {
        let map: HashMap<&mut MapData, K, V> = self.map(name)?;
        Ok(map.iter().collect::<Result<_, _>>()?)
    }

    pub fn arrivals(&mut self) -> Result<Arrivals> {
        Ok(Arrivals {
            opening: self.list(map::OPENING)?,
            established: self.list(map::ESTABLISHED)?,
            datagrams: self.list(map::DATAGRAMS)?,
        })
    }

    /// Adds an arrival to one of the three maps.
    pub fn arrival(&mut self, name: &str, key: ArrivalKey, arrival: Arrival) -> Result<()> {
        self.insert(name, key, arrival)
    }

    pub fn clear_arrivals(&mut self) -> Result<()> {
        for name in [map::OPENING, map::ESTABLISHED, map::DATAGRAMS] {
            self.clear::<ArrivalKey, Arrival>(name)?;
        }
        Ok(())
    }

    pub fn clear_yields(&mut self) -> Result<()> {
        self.clear::<Addr, u64>(map::YIELDS)
    }

    fn clear<K: Pod, V: Pod>(&mut self, name: &str) -> Result<()> {
        for (key, _) in self.list::<K, V>(name)? {
            let mut map: HashMap<&mut MapData, K, V> = self.map(name)?;
            map.remove(&key)?;
        }
        Ok(())
    }

    /// Sets each CPU's count of refusals in the window that begins now.
    pub fn refusals(&mut self, sent: u64) -> Result<()> {
        self.budget(budget::REFUSALS, sent)
    }

    /// Sets what each CPU has done of one [`budget`] in the window that begins now.
    pub fn budget(&mut self, index: u32, done: u64) -> Result<()> {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)?;
        let start = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error).context("count the CPUs")?;
        let mut map: PerCpuArray<&mut MapData, [u64; 2]> = self.map(map::BUDGETS)?;
        Ok(map.set(index, PerCpuValues::try_from(vec![[start, done]; cpus])?, 0)?)
    }
}
