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
    /// What one node holds of a slot's claimants, which are in the same order on all nodes. Where they
    /// are more than the places, a node holds those that follow its own, the last one's successor being
    /// the first: so a packet that goes from one claimant's node to the next meets all of them.
    pub fn of(claimants: &[BackendId], is_local: impl Fn(&BackendId) -> bool) -> Self {
        let overflow = claimants.len() > CLAIMANTS;
        let own = if overflow { claimants.iter().rposition(is_local) } else { None };
        let first = own.map_or(0, |own| own + 1);
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
    fn a_node_holds_those_of_too_many_claimants_that_follow_its_own() {
        let ids: std::vec::Vec<_> = (1..=6).map(|index| BackendId::new(index, 1)).collect();
        let on = |local: usize| move |id: &BackendId| id.index() as usize == local + 1;
        let few = Claim::of(&ids[..3], on(1));
        assert_eq!(few.backends, [ids[0], ids[1], ids[2], BackendId::NONE]);
        assert_eq!(few.overflow, 0);
        let nobody = Claim::of(&ids, |_| false);
        assert_eq!(nobody.backends, ids[..4]);
        assert_ne!(nobody.overflow, 0);
        assert_eq!(Claim::of(&ids, on(3)).backends, [ids[4], ids[5], ids[0], ids[1]]);
        assert_eq!(Claim::of(&ids, on(5)).backends, ids[..4]);
    }
}
