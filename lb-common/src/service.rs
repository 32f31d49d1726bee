//! Services: one word that says which record is current, records that never change, and the arena
//! of slot tables.

use bytemuck::{Pod, Zeroable};

use crate::abi::BLOCK_SLOTS;

/// Value of `SERVICES`: which record is current. Switched by one aligned 64-bit release store.
///
/// Low half: record index, 0 for "no such service". High half: count of switches, so that a reader
/// can tell two lives of a record apart.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ServiceWord(pub u64);

impl ServiceWord {
    #[inline(always)]
    pub const fn record(self) -> u32 {
        self.0 as u32
    }

    pub const fn switches(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The word that makes `record` current after `self`.
    pub const fn next(self, record: u32) -> Self {
        Self((self.switches().wrapping_add(1) as u64) << 32 | record as u64)
    }
}

/// Earlier tables that a record can keep.
pub const PAST: usize = 3;

/// Value of `RECORDS`: what a service is while its word points here. Written before the switch,
/// never while current; reused only after an RCU grace period.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Record {
    /// First block of the slot table in `OWNERS`; 0: no backends.
    pub owners: u32,
    /// Slots in the table, fixed for the frontend's life.
    pub slots: u32,
    /// First blocks of the tables of the last three epochs, newest first; 0: none kept.
    pub past: [u32; PAST],
    /// [`flags`].
    pub flags: u32,
    /// Digest of (sorted backends, slots, seed tag): names the epoch.
    pub epoch: u64,
    /// First block of the table for sockets on this node, where it is not `owners`; 0: it is.
    pub inside: u32,
    pub reserved: [u32; 7],
    #[cfg(feature = "next-layout")]
    pub next: u64,
}
#[cfg(not(feature = "next-layout"))]
const _: () = assert!(size_of::<Record>() == 64);

impl Record {
    /// First block of the table for sockets on this node; 0: no backends.
    #[inline(always)]
    pub const fn for_sockets(&self) -> u32 {
        if self.inside == 0 { self.owners } else { self.inside }
    }
}

pub mod flags {
    /// From a change until all members agree on it.
    pub const YOUNG: u32 = 1;
    /// The table depends on the node: young for ever, never drops.
    pub const ALWAYS_YOUNG: u32 = 1 << 1;
    /// Only backends of this node: without one, drop and do not refuse.
    pub const LOCAL_ONLY: u32 = 1 << 2;
    /// Slot by the client's address alone.
    pub const CLIENT_AFFINITY: u32 = 1 << 3;
    /// UDP without flows: deliver, no chain.
    pub const STATELESS: u32 = 1 << 4;
}

/// Value of `OWNERS`: sixteen slots, one cache line; each a [`crate::backend::BackendId`] or 0.
pub type OwnerBlock = [u32; BLOCK_SLOTS as usize];

/// Blocks that a table of `slots` slots fills.
#[inline(always)]
pub const fn blocks(slots: u32) -> u32 {
    slots.div_ceil(BLOCK_SLOTS)
}

map_types!(Record);
