//! Typed handles on the pinned maps. Whoever reads them needs no agent: they are in the kernel.
//!
//! Reading never writes; writing is `write.rs`'s business, over the same handles.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::maps::{
    HashMap, Map, MapData, MapError, PerCpuArray,
    lpm_trie::{Key, LpmTrie},
};
use lb_common::{
    abi::{LAYOUT_VERSION, map},
    arrival::{Arrival, ArrivalKey},
    backend::{Backend, BackendId},
    claim::{Claim, ClaimKey},
    frontend::{Endpoint, Frontend, SourceRange, Vip},
    globals::state,
    hop::{Hop, Member, Uplinks},
    net::Addr,
    reason::{Counter, Reason},
    service::{OwnerBlock, Record, ServiceWord, blocks},
    socket::SocketKey,
};

use super::{
    mmap::{Access, Mapped},
    spec::{Mismatch, Spec, maps_dir},
};

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Attempts to read a service that is being switched, before the last one counts.
const SWITCH_RETRIES: usize = 8;

/// Why the pinned maps cannot be read. Each says what mends it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("reading the BPF maps needs root or CAP_BPF: run it as root")]
    NotRoot(#[source] io::Error),
    #[error(
        "{0} is not on a BPF file system: mount -t bpf bpf /sys/fs/bpf, or pass the agent's --pin-dir"
    )]
    NoBpffs(PathBuf),
    #[error("no agent ever ran with pin directory {0}: start `weir agent`, or pass its --pin-dir")]
    NeverRan(PathBuf),
    #[error(
        "{dir} holds maps of layout {found}, this weir reads layout {LAYOUT_VERSION}: use the weir that the agent runs"
    )]
    OtherLayout { dir: PathBuf, found: String },
    #[error("map {0} is missing below the pin directory: start `weir agent`, which makes it anew")]
    Missing(&'static str),
    #[error(
        "the pinned maps are another weir's: use the one that the agent runs, or stop the agent and run `weir agent --cleanup`: {0}"
    )]
    Mismatch(#[from] Mismatch),
    #[error("map {map}: {source}")]
    Map {
        map: &'static str,
        #[source]
        source: Box<MapError>,
    },
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A map could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {source}")]
pub struct ReadError {
    pub map: &'static str,
    #[source]
    pub source: MapError,
}

/// The three memories of flows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ArrivalMap {
    Opening,
    Established,
    Datagrams,
}

impl ArrivalMap {
    pub const ALL: [Self; 3] = [Self::Opening, Self::Established, Self::Datagrams];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => map::OPENING,
            Self::Established => map::ESTABLISHED,
            Self::Datagrams => map::DATAGRAMS,
        }
    }
}

/// A service as it is now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Service {
    pub word: ServiceWord,
    pub record: Record,
}

/// A hash map and the name by which errors call it.
pub struct Table<K: aya::Pod, V: aya::Pod> {
    pub(super) name: &'static str,
    pub(super) capacity: u32,
    pub(super) map: HashMap<MapData, K, V>,
}

impl<K: aya::Pod, V: aya::Pod> Table<K, V> {
    /// All entries. While others write, some may be missing or come twice.
    pub fn iter(&self) -> impl Iterator<Item = Result<(K, V), ReadError>> {
        self.map.iter().map(|entry| entry.map_err(|source| ReadError { map: self.name, source }))
    }

    /// Makes no element of an LRU map look used.
    pub fn get(&self, key: &K) -> Result<Option<V>, ReadError> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(ReadError { map: self.name, source }),
        }
    }
}

/// The networks of clients that frontends take.
pub struct Ranges {
    pub(super) capacity: u32,
    pub(super) map: LpmTrie<MapData, RangeBits, u32>,
}

/// What follows the first word of a [`SourceRange`].
type RangeBits = [u32; 5];

impl Ranges {
    /// All networks, as [`Table::iter`] lists entries.
    pub fn iter(&self) -> impl Iterator<Item = Result<SourceRange, ReadError>> {
        let range = |key: Key<RangeBits>| {
            let [frontend, addr @ ..] = key.data();
            SourceRange { bits: key.prefix_len(), frontend, addr: bytemuck::cast(addr) }
        };
        let failed = |source| ReadError { map: map::SOURCE_RANGES, source };
        self.map.keys().map(move |key| key.map(range).map_err(failed))
    }

    pub(super) fn key(range: SourceRange) -> Key<RangeBits> {
        let [bits, rest @ ..]: [u32; 6] = bytemuck::cast(range);
        Key::new(bits, rest)
    }
}

/// Every map that the agent or a reader uses.
pub struct Maps {
    pub frontends: Table<Endpoint, Frontend>,
    pub local_backends: Table<Endpoint, BackendId>,
    pub vips: Table<Addr, Vip>,
    /// When each was last said, by CLOCK_BOOTTIME in ns.
    pub yields: Table<Addr, u64>,
    pub members: Table<Addr, Member>,
    pub claims: Table<ClaimKey, Claim>,
    pub source_ranges: Ranges,
    pub opening: Table<ArrivalKey, Arrival>,
    pub established: Table<ArrivalKey, Arrival>,
    pub datagrams: Table<ArrivalKey, Arrival>,
    pub services: Mapped<u64>,
    pub records: Mapped<Record>,
    pub owners: Mapped<OwnerBlock>,
    pub backends: Mapped<Backend>,
    pub hops: Mapped<Hop>,
    pub vip_filter: Mapped<u64>,
    pub state: Mapped<u64>,
    pub(super) frontend_of: aya::maps::Array<MapData, Endpoint>,
    pub(super) uplinks: aya::maps::Array<MapData, Uplinks>,
    service_counters: PerCpuArray<MapData, Counter>,
    backend_counters: PerCpuArray<MapData, Counter>,
    reason_counters: PerCpuArray<MapData, Counter>,
}

/// What the data plane keeps of sockets.
pub(super) struct SocketMaps {
    pub peers: MapData,
    pub chosen: HashMap<MapData, SocketKey, BackendId>,
    pub answers: HashMap<MapData, SocketKey, Endpoint>,
}

impl Maps {
    /// Opens the maps that an agent has pinned, for reading. The agent may be dead.
    pub fn open(pin_dir: &Path) -> Result<Self, OpenError> {
        let dir = find_maps(pin_dir)?;
        Self::open_with(&dir, Access::Read)
    }

    /// Opens what is pinned in the folder of maps.
    pub(super) fn open_with(dir: &Path, access: Access) -> Result<Self, OpenError> {
        let opener = Opener { dir, access };
        Ok(Self {
            frontends: opener.table(map::FRONTENDS)?,
            local_backends: opener.table(map::LOCAL_BACKENDS)?,
            vips: opener.table(map::VIPS)?,
            yields: opener.table(map::YIELDS)?,
            members: opener.table(map::MEMBERS)?,
            claims: opener.table(map::CLAIMS)?,
            source_ranges: opener.ranges()?,
            opening: opener.table(map::OPENING)?,
            established: opener.table(map::ESTABLISHED)?,
            datagrams: opener.table(map::DATAGRAMS)?,
            services: opener.mapped(map::SERVICES)?,
            records: opener.mapped(map::RECORDS)?,
            owners: opener.mapped(map::OWNERS)?,
            backends: opener.mapped(map::BACKENDS)?,
            hops: opener.mapped(map::HOPS)?,
            vip_filter: opener.mapped(map::VIP_FILTER)?,
            state: opener.mapped(map::STATE)?,
            frontend_of: opener.typed(map::FRONTEND_OF)?,
            uplinks: opener.typed(map::UPLINKS)?,
            service_counters: opener.typed(map::SERVICE_COUNTERS)?,
            backend_counters: opener.typed(map::BACKEND_COUNTERS)?,
            reason_counters: opener.typed(map::REASON_COUNTERS)?,
        })
    }

    /// `STATE` alone, to be written.
    pub(super) fn open_state(dir: &Path) -> Result<Mapped<u64>, OpenError> {
        Opener { dir, access: Access::ReadWrite }.mapped(map::STATE)
    }

    /// Those of sockets.
    pub(super) fn open_sockets(dir: &Path) -> Result<SocketMaps, OpenError> {
        let opener = Opener { dir, access: Access::ReadWrite };
        Ok(SocketMaps {
            peers: opener.data(map::SOCKETS)?,
            chosen: opener.typed(map::CHOSEN)?,
            answers: opener.typed(map::ANSWERS)?,
        })
    }

    /// The service of an index; none where there is none.
    pub fn service(&self, index: u32) -> Option<Service> {
        for _ in 0..SWITCH_RETRIES {
            let word = ServiceWord(self.services.get(index)?);
            let record = self.records.get(word.record()).filter(|_| word.record() != 0)?;
            if self.services.get(index) == Some(word.0) {
                return Some(Service { word, record });
            }
        }
        None
    }

    /// A record's slot table, an id per slot ([`BackendId::NONE`]: no owner); empty without backends.
    pub fn owners_of(&self, record: &Record) -> Vec<BackendId> {
        self.slots_at(record.owners, record.slots).into_iter().map(BackendId).collect()
    }

    /// `slots` slots from a block on; empty for block 0.
    pub(super) fn slots_at(&self, first: u32, slots: u32) -> Vec<u32> {
        if first == 0 {
            return Vec::new();
        }
        let blocks =
            (first..first.saturating_add(blocks(slots))).map_while(|at| self.owners.get(at));
        let mut ids: Vec<u32> = blocks.flatten().collect();
        ids.truncate(slots as usize);
        ids
    }

    /// The backend with this id; none when that life is over.
    pub fn backend(&self, id: BackendId) -> Option<Backend> {
        self.backends.get(id.index()).filter(|backend| backend.id == id && id != BackendId::NONE)
    }

    /// All living backends.
    pub fn living_backends(&self) -> impl Iterator<Item = Backend> {
        self.backends
            .iter()
            .map(|(_, backend)| backend)
            .filter(|backend| backend.id != BackendId::NONE)
    }

    /// What `egress` puts back for a service.
    pub fn frontend_of(&self, service: u32) -> Result<Endpoint, ReadError> {
        let endpoint = self.frontend_of.get(&service, 0);
        endpoint.map_err(|source| ReadError { map: map::FRONTEND_OF, source })
    }

    pub fn uplinks(&self) -> Result<Uplinks, ReadError> {
        self.uplinks.get(&0, 0).map_err(|source| ReadError { map: map::UPLINKS, source })
    }

    pub fn arrivals(&self, which: ArrivalMap) -> &Table<ArrivalKey, Arrival> {
        match which {
            ArrivalMap::Opening => &self.opening,
            ArrivalMap::Established => &self.established,
            ArrivalMap::Datagrams => &self.datagrams,
        }
    }

    pub(super) fn arrivals_mut(&mut self, which: ArrivalMap) -> &mut Table<ArrivalKey, Arrival> {
        match which {
            ArrivalMap::Opening => &mut self.opening,
            ArrivalMap::Established => &mut self.established,
            ArrivalMap::Datagrams => &mut self.datagrams,
        }
    }

    /// What was counted for a service, summed over the CPUs.
    pub fn service_counter(&self, index: u32) -> Result<Counter, ReadError> {
        sum(map::SERVICE_COUNTERS, &self.service_counters, index)
    }

    /// What was counted for a backend's index, over all its lives, summed over the CPUs.
    pub fn backend_counter(&self, id: BackendId) -> Result<Counter, ReadError> {
        sum(map::BACKEND_COUNTERS, &self.backend_counters, id.index())
    }

    /// All reasons with what was counted for them, summed over the CPUs.
    pub fn reason_counters(&self) -> Result<Vec<(Reason, Counter)>, ReadError> {
        let count = |reason: &Reason| {
            Ok((*reason, sum(map::REASON_COUNTERS, &self.reason_counters, *reason as u32)?))
        };
        Reason::ALL.iter().map(count).collect()
    }

    /// A word of [`state`].
    pub fn state(&self, index: u32) -> u64 {
        self.state.get(index).unwrap_or_default()
    }

    /// CLOCK_BOOTTIME in ns of the agent's last heartbeat; none if there never was one.
    pub fn heartbeat(&self) -> Option<u64> {
        Some(self.state(state::HEARTBEAT)).filter(|nanos| *nanos != 0)
    }
}

fn sum(
    map: &'static str,
    counters: &PerCpuArray<MapData, Counter>,
    index: u32,
) -> Result<Counter, ReadError> {
    let per_cpu = counters.get(&index, 0).map_err(|source| ReadError { map, source })?;
    Ok(per_cpu.iter().fold(Counter::default(), |sum, one| Counter {
        packets: sum.packets.wrapping_add(one.packets),
        bytes: sum.bytes.wrapping_add(one.bytes),
    }))
}

/// The folder of this layout's maps, or why there is none.
fn find_maps(pin_dir: &Path) -> Result<PathBuf, OpenError> {
    require_bpffs(pin_dir)?;
    let dir = maps_dir(pin_dir);
    match dir.read_dir() {
        Ok(_) => return Ok(dir),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(OpenError::NotRoot(error));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(OpenError::Io { path: dir, source }),
    }
    let layouts = pin_dir.read_dir().into_iter().flatten().flatten();
    let layout = |name: String| {
        name.strip_prefix('v').filter(|v| v.parse::<u32>().is_ok()).map(str::to_owned)
    };
    let found = layouts.filter_map(|entry| layout(entry.file_name().into_string().ok()?)).max();
    Err(match found {
        Some(found) => OpenError::OtherLayout { dir: pin_dir.to_owned(), found },
        None => OpenError::NeverRan(pin_dir.to_owned()),
    })
}

/// Whether a folder, or what exists of its path, is on a BPF file system.
pub(super) fn require_bpffs(pin_dir: &Path) -> Result<(), OpenError> {
    for path in pin_dir.ancestors() {
        match nix::sys::statfs::statfs(path) {
            Ok(found) if found.filesystem_type().0 == BPF_FS_MAGIC => return Ok(()),
            Ok(_) => break,
            Err(nix::Error::ENOENT) => {}
            Err(nix::Error::EACCES) => return Err(OpenError::NotRoot(nix::Error::EACCES.into())),
            Err(error) => {
                return Err(OpenError::Io { path: path.to_owned(), source: error.into() });
            }
        }
    }
    Err(OpenError::NoBpffs(pin_dir.to_owned()))
}

/// Opens and checks pinned maps.
struct Opener<'a> {
    dir: &'a Path,
    access: Access,
}

impl Opener<'_> {
    fn data(&self, name: &'static str) -> Result<MapData, OpenError> {
        let data =
            MapData::from_pin(self.dir.join(name)).map_err(|error| open_error(name, error))?;
        let info = data.info().map_err(|error| open_error(name, error))?;
        if let Some(spec) = Spec::of(name) {
            spec.check(&info, None)?;
        }
        Ok(data)
    }

    fn typed<M>(&self, name: &'static str) -> Result<M, OpenError>
    where
        M: TryFrom<Map, Error = MapError>,
    {
        Ok(self.sized(name)?.1)
    }

    /// With the number of entries for which there is room.
    fn sized<M>(&self, name: &'static str) -> Result<(u32, M), OpenError>
    where
        M: TryFrom<Map, Error = MapError>,
    {
        let data = self.data(name)?;
        let capacity = data.info().map_err(|error| open_error(name, error))?.max_entries();
        let map = Map::from_map_data(data).and_then(M::try_from);
        Ok((capacity, map.map_err(|error| open_error(name, error))?))
    }

    fn table<K: aya::Pod, V: aya::Pod>(
        &self,
        name: &'static str,
    ) -> Result<Table<K, V>, OpenError> {
        let (capacity, map) = self.sized(name)?;
        Ok(Table { name, capacity, map })
    }

    fn ranges(&self) -> Result<Ranges, OpenError> {
        let (capacity, map) = self.sized(map::SOURCE_RANGES)?;
        Ok(Ranges { capacity, map })
    }

    fn mapped<T: bytemuck::Pod>(&self, name: &'static str) -> Result<Mapped<T>, OpenError> {
        let data = self.data(name)?;
        let entries = data.info().map_err(|error| open_error(name, error))?.max_entries();
        Mapped::open(data.fd().as_fd(), entries, self.access)
            .map_err(|source| OpenError::Io { path: self.dir.join(name), source })
    }
}

fn open_error(map: &'static str, error: MapError) -> OpenError {
    if let MapError::SyscallError(error) = &error {
        let kind = io::Error::from_raw_os_error(error.io_error.raw_os_error().unwrap_or_default());
        match kind.kind() {
            io::ErrorKind::PermissionDenied => return OpenError::NotRoot(kind),
            io::ErrorKind::NotFound => return OpenError::Missing(map),
            _ => {}
        }
    }
    OpenError::Map { map, source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_off_bpffs_is_named_with_its_fix() {
        let dir = tempfile::tempdir().unwrap();
        let error = Maps::open(&dir.path().join("weir")).err().unwrap();
        assert!(matches!(&error, OpenError::NoBpffs(path) if path.ends_with("weir")), "{error}");
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
    }
}
