//! Claims: which backends still know flows of a slot that another backend owns now.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

use crate::backend::BackendId;

/// Key of `CLAIMS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
pub struct ClaimKey {
    /// Half the index of either of the frontend's services.
    pub frontend: u32,
    pub slot: u32,
}
const _: () = assert!(size_of::<ClaimKey>() == 8);

/// Backends that one slot's claim can name.
pub const CLAIMANTS: usize = 4;

/// Value of `CLAIMS`: who claims the slot. Read only for flows that are not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Claim {
    /// [`BackendId::NONE`] for an empty place.
    pub backends: [BackendId; CLAIMANTS],
    /// Not zero: more claim it than fit; earlier owners are asked as while the service is young.
    pub overflow: u32,
    pub reserved: u32,
}
const _: () = assert!(size_of::<Claim>() == 24);

map_types!(ClaimKey, Claim);
