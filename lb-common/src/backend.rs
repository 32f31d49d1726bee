//! Backends and their ids.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

use crate::net::{Addr, Port};

/// A backend's id on this node: index into `BACKENDS` and the generation that counts its lives, so
/// that an arrival of an earlier life never matches a later one. 0 is "none"; index 0 is not used.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
pub struct BackendId(pub u32);

/// Bits of a [`BackendId`] that are the index.
const INDEX_BITS: u32 = 20;

/// Most backends a node can hold ids for.
pub const MAX_BACKENDS: u32 = 1 << INDEX_BITS;

impl BackendId {
    pub const NONE: Self = Self(0);

    #[inline(always)]
    pub const fn new(index: u32, generation: u32) -> Self {
        Self(generation << INDEX_BITS | index)
    }

    #[inline(always)]
    pub const fn index(self) -> u32 {
        self.0 & (MAX_BACKENDS - 1)
    }

    #[inline(always)]
    pub const fn generation(self) -> u32 {
        self.0 >> INDEX_BITS
    }

    /// The id of this index's next life.
    pub const fn next_life(self) -> Self {
        Self::new(self.index(), self.generation().wrapping_add(1))
    }
}

/// Value of `BACKENDS`. Address and port never change during a life; `id` is written last when a
/// life begins and zeroed first when it ends; `node` may change, by one store.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Backend {
    pub addr: Addr,
    /// The life that this entry holds; 0: free. An owner slot with another id is stale.
    pub id: BackendId,
    /// Index into `HOPS`; 0: this node.
    pub node: u32,
    pub port: Port,
    /// Of address and port under the shared seed: how the tunnel header lists those visited.
    pub fingerprint: u16,
    pub reserved: u32,
}
const _: () = assert!(size_of::<Backend>() == 32);

map_types!(Backend, BackendId);
