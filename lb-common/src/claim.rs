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

impl Claim {
    /// What one node holds of a slot's claimants. Where they are more than the places, `turn` says
    /// which: nodes of different turns hold different ones, so a packet that goes from one claimant's
    /// node to the next finds them all.
    pub fn of(claimants: &[BackendId], turn: u64) -> Self {
        let overflow = claimants.len() > CLAIMANTS;
        let first = if overflow { (turn % claimants.len() as u64) as usize } else { 0 };
        let mut claim = Self { overflow: overflow as u32, ..Self::default() };
        let held = claimants.iter().cycle().skip(first).take(claimants.len());
        for (place, id) in claim.backends.iter_mut().zip(held) {
            *place = *id;
        }
        claim
    }
}

map_types!(ClaimKey, Claim);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_hold_different_ones_of_too_many_claimants() {
        let ids: std::vec::Vec<_> = (1..=5).map(|index| BackendId::new(index, 1)).collect();
        let few = Claim::of(&ids[..3], 7);
        assert_eq!(few.backends, [ids[0], ids[1], ids[2], BackendId::NONE]);
        assert_eq!(few.overflow, 0);
        let held = |turn| Claim::of(&ids, turn);
        assert_eq!(held(0).backends, ids[..4]);
        assert_eq!(held(4).backends, [ids[4], ids[0], ids[1], ids[2]]);
        assert_eq!(held(9), held(4));
        assert!(held(0).overflow != 0);
    }
}
