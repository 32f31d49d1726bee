//! What each map is: kind, sizes, entries. One table, by which the loader sizes new maps and checks
//! pinned ones, and by which readers know that they read what they think.
//!
//! aya takes a pinned map without looking at it, and the kernel then writes values of the map's size
//! into buffers of ours; so nothing here may use a map that [`Spec::check`] has not passed.

use std::{
    fmt,
    mem::size_of,
    path::{Path, PathBuf},
};

use aya::maps::{MapInfo, MapType};
use lb_common::{
    abi::{LAYOUT_VERSION, capacity, map},
    arrival::{Arrival, ArrivalKey},
    backend::{Backend, BackendId},
    claim::{Claim, ClaimKey},
    frontend::{Endpoint, FILTER_WORDS, Frontend, SourceRange, Vip},
    globals::state,
    hop::{Hop, Member, Uplinks},
    net::Addr,
    reason::Counter,
    service::{OwnerBlock, Record},
    socket::{Peer, SocketKey},
};

use crate::model::Limits;

/// `BPF_F_NO_PREALLOC` and `BPF_F_MMAPABLE` of linux/bpf.h.
const NO_PREALLOC: u32 = 1;
const MMAPABLE: u32 = 1 << 10;

/// Where the maps of this layout are pinned.
pub fn maps_dir(pin_dir: &Path) -> PathBuf {
    layout_dir(pin_dir, LAYOUT_VERSION).join("maps")
}

/// The folder of a layout that is in force.
pub fn layout_dir(pin_dir: &Path, layout: u32) -> PathBuf {
    pin_dir.join(format!("v{layout}"))
}

/// Where links are pinned: outside the layout's folder, so that an agent of another layout finds
/// and takes over what is attached.
pub fn links_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join("links")
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Not preallocated: an element that is replaced must not be reused under a reader.
    Hash,
    LruHash,
    /// Finds the longest prefix.
    Trie,
    Array,
    /// An array that user space maps into its memory.
    Mapped,
    PerCpuArray,
    /// Values that the kernel keeps with sockets: there is nothing to list or to copy.
    SocketStorage,
}

impl Kind {
    fn map_type(self) -> MapType {
        match self {
            Self::Hash => MapType::Hash,
            Self::LruHash => MapType::LruHash,
            Self::Trie => MapType::LpmTrie,
            Self::Array | Self::Mapped => MapType::Array,
            Self::PerCpuArray => MapType::PerCpuArray,
            Self::SocketStorage => MapType::SkStorage,
        }
    }

    fn flags(self) -> u32 {
        match self {
            Self::Hash | Self::Trie | Self::SocketStorage => NO_PREALLOC,
            Self::Mapped => MMAPABLE,
            Self::LruHash | Self::Array | Self::PerCpuArray => 0,
        }
    }
}

/// One map's form.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub name: &'static str,
    pub kind: Kind,
    pub key_size: u32,
    pub value_size: u32,
    pub entries: Entries,
}

/// How a map's number of entries is found.
#[derive(Clone, Copy, Debug)]
pub enum Entries {
    Fixed(u32),
    /// From the limits.
    Of(fn(&Limits) -> u32),
    /// As the BPF object says: private to it.
    Object,
}

/// Why a pinned map cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("map {map}: {property} is {found}, expected {expected}")]
pub struct Mismatch {
    pub map: &'static str,
    pub property: &'static str,
    pub found: String,
    pub expected: String,
}

const fn hash<K, V>(name: &'static str, entries: fn(&Limits) -> u32) -> Spec {
    spec::<K, V>(name, Kind::Hash, Entries::Of(entries))
}

const fn lru(name: &'static str, entries: fn(&Limits) -> u32) -> Spec {
    spec::<ArrivalKey, Arrival>(name, Kind::LruHash, Entries::Of(entries))
}

const fn mapped<V>(name: &'static str, entries: Entries) -> Spec {
    spec::<u32, V>(name, Kind::Mapped, entries)
}

const fn spec<K, V>(name: &'static str, kind: Kind, entries: Entries) -> Spec {
    let (key_size, value_size) = (size_of::<K>() as u32, size_of::<V>() as u32);
    Spec { name, kind, key_size, value_size, entries }
}

/// What only the BPF object knows the form of.
const fn scratch(name: &'static str) -> Spec {
    Spec { name, kind: Kind::PerCpuArray, key_size: 4, value_size: 0, entries: Entries::Object }
}

/// Services: two a frontend, and the pair of index 0 that is not used.
fn services(limits: &Limits) -> u32 {
    2 * (limits.frontends + 1)
}

/// All maps, in the order of [`map::ALL`].
pub const SPECS: [Spec; map::ALL.len()] = [
    hash::<Endpoint, Frontend>(map::FRONTENDS, |limits| limits.frontends),
    spec::<u32, Endpoint>(map::FRONTEND_OF, Kind::Array, Entries::Of(services)),
    mapped::<u64>(map::SERVICES, Entries::Of(services)),
    mapped::<Record>(map::RECORDS, Entries::Of(|limits| 2 * services(limits))),
    mapped::<OwnerBlock>(map::OWNERS, Entries::Of(|limits| limits.owner_blocks)),
    mapped::<Backend>(map::BACKENDS, Entries::Of(|limits| limits.backends)),
    hash::<Endpoint, BackendId>(map::LOCAL_BACKENDS, |limits| 2 * limits.backends),
    mapped::<Hop>(map::HOPS, Entries::Of(|limits| limits.nodes)),
    hash::<Addr, Vip>(map::VIPS, |limits| limits.vips),
    mapped::<u64>(map::VIP_FILTER, Entries::Fixed(FILTER_WORDS)),
    spec::<u32, Uplinks>(map::UPLINKS, Kind::Array, Entries::Fixed(1)),
    hash::<Addr, Member>(map::MEMBERS, |limits| 2 * limits.nodes),
    lru(map::OPENING, |limits| limits.opening),
    lru(map::ESTABLISHED, |limits| limits.established),
    lru(map::DATAGRAMS, |limits| limits.datagrams),
    mapped::<u64>(map::STATE, Entries::Fixed(state::ENTRIES)),
    spec::<u32, Counter>(map::SERVICE_COUNTERS, Kind::PerCpuArray, Entries::Of(services)),
    spec::<u32, Counter>(
        map::BACKEND_COUNTERS,
        Kind::PerCpuArray,
        Entries::Of(|limits| limits.backends),
    ),
    spec::<u32, Counter>(
        map::REASON_COUNTERS,
        Kind::PerCpuArray,
        Entries::Fixed(capacity::REASONS),
    ),
    scratch(map::BUDGETS),
    hash::<Addr, u64>(map::YIELDS, |limits| limits.vips),
    hash::<ClaimKey, Claim>(map::CLAIMS, |limits| limits.claims),
    spec::<SourceRange, u32>(
        map::SOURCE_RANGES,
        Kind::Trie,
        Entries::Of(|limits| limits.source_ranges),
    ),
    scratch(map::UNDECIDED),
    spec::<Addr, [u64; 2]>(map::SOURCES, Kind::LruHash, Entries::Fixed(capacity::SOURCES)),
    spec::<i32, Peer>(map::SOCKETS, Kind::SocketStorage, Entries::Fixed(0)),
    spec::<SocketKey, BackendId>(map::CHOSEN, Kind::LruHash, Entries::Fixed(capacity::CHOSEN)),
    spec::<SocketKey, Endpoint>(map::ANSWERS, Kind::LruHash, Entries::Fixed(capacity::CHOSEN)),
];

impl Spec {
    /// The form of a map.
    pub fn of(name: &str) -> Option<&'static Self> {
        SPECS.iter().find(|spec| spec.name == name)
    }

    /// Entries under these limits; none where the object decides.
    pub fn entries(&self, limits: &Limits) -> Option<u32> {
        match self.entries {
            Entries::Fixed(entries) => Some(entries),
            Entries::Of(entries) => Some(entries(limits)),
            Entries::Object => None,
        }
    }

    /// Whether a map has this form; with limits, also this size.
    pub fn check(&self, info: &MapInfo, limits: Option<&Limits>) -> Result<(), Mismatch> {
        let found =
            info.map_type().map_or_else(|_| "unknown".to_owned(), |kind| format!("{kind:?}"));
        self.same("type", &found, &format!("{:?}", self.kind.map_type()))?;
        self.same("key size", &info.key_size(), &self.key_size)?;
        if !matches!(self.entries, Entries::Object) {
            self.same("value size", &info.value_size(), &self.value_size)?;
        }
        self.same("flags", &info.map_flags(), &self.kind.flags())?;
        match limits.and_then(|limits| self.entries(limits)) {
            Some(entries) => self.same("number of entries", &info.max_entries(), &entries),
            None => Ok(()),
        }
    }

    /// Whether the contents of another layout's map can be carried into one of this form.
    pub fn check_carried(&self, info: &MapInfo) -> Result<(), Mismatch> {
        let kind = |found: MapType| format!("{found:?}");
        let found = info.map_type().map_or_else(|_| "unknown".to_owned(), kind);
        self.same("type", &found, &kind(self.kind.map_type()))?;
        self.same("key size", &info.key_size(), &self.key_size)
    }

    fn same<T>(&self, property: &'static str, found: &T, expected: &T) -> Result<(), Mismatch>
    where
        T: PartialEq + fmt::Display,
    {
        if found == expected {
            return Ok(());
        }
        let (found, expected) = (found.to_string(), expected.to_string());
        Err(Mismatch { map: self.name, property, found, expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_has_its_form() {
        assert_eq!(SPECS.map(|spec| spec.name), map::ALL);
    }
}
