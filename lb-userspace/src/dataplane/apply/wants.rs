//! What a frontend's services should hold, beside what they do.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use lb_common::{
    backend::BackendId, claim::Claim, service::flags::ALWAYS_YOUNG, siphash::Sip13, table::Seed,
};

use super::{
    held::{Held, HeldFrontend, Holding, Place},
    ranges,
};
use crate::plan::{
    DesiredFrontend,
    desired::FrontendKey,
    flows::{Claimed, Former, Owners},
    owners::Pool,
};

/// A frontend whose services have to change.
pub struct Want {
    pub key: FrontendKey,
    pub pool: Pool,
    /// Of the pool's backends, in their order.
    pub ids: Vec<u32>,
    pub holding: Holding,
    /// Digest of the whole set, also of those that have no id.
    pub set: u64,
    /// The table for sockets, where it has one of its own.
    pub inside: Option<Box<Want>>,
    pub claims: BTreeMap<u16, Claim>,
}

impl Want {
    /// None where the services hold what they should.
    pub fn new(
        held: &Held,
        seed: &Seed,
        key: FrontendKey,
        wanted: &DesiredFrontend,
        slots: u16,
    ) -> Option<Self> {
        let table = |owners| Self::table(held, seed, key, owners, slots);
        let mut want = table(&wanted.owners);
        want.inside = wanted.inside.as_deref().map(table).map(Box::new);
        want.claims = claims(held, wanted.claims.as_deref(), slots);
        let Self { holding, claims, .. } = &want;
        let same = |held_one: &HeldFrontend| {
            let past = held_one.past.iter().map(|(place, _)| *place);
            held_one.holding == Some(*holding)
                && held_one.inside == want.inside.as_deref().map(|it| it.holding)
                && held_one.record.flags == flags(wanted.flags, held_one.crowded)
                && ranges::are_as_wanted(held, held_one, wanted)
                && past.eq(wanted.past.iter().map(|former| place(former, *holding)))
                && match held.claims.get(&held_one.number) {
                    Some(held) => held == claims,
                    None => claims.is_empty(),
                }
        };
        let same = held.frontends.get(&key).is_some_and(same);
        (!same).then_some(want)
    }

    /// Of one table.
    fn table(held: &Held, seed: &Seed, key: FrontendKey, owners: &Owners, slots: u16) -> Self {
        let known = |(owner, weight)| Some((owner, weight, held.backends.get(owner)?.id.0));
        let known: Vec<_> = owners.iter().filter_map(known).collect();
        let pool = Pool::new(known.iter().map(|(owner, weight, _)| (*owner, *weight)), slots, seed);
        let ids: Vec<u32> = known.iter().filter(|it| *it.1 > 0).map(|it| it.2).collect();
        let set = match known.len() == owners.len() {
            true => pool.digest,
            false => Pool::new(owners.iter(), slots, seed).digest,
        };
        let holding = holding(pool.digest, &ids);
        Self { key, pool, ids, holding, set, inside: None, claims: BTreeMap::new() }
    }
}

/// What a record says of a service. Where claims do not fit, earlier owners are asked as long.
pub fn flags(wanted: u32, crowded: bool) -> u32 {
    wanted | if crowded { ALWAYS_YOUNG } else { 0 }
}

/// What a table of this pool holds where its backends have these ids.
pub fn holding(digest: u64, ids: &[u32]) -> Holding {
    let hash = ids.iter().fold(Sip13::new(0, 0), |hash, id| hash.word(u64::from(*id)));
    (digest, hash.finish())
}

/// How a past place is told from others, beside this table in force.
pub fn place(former: &Former, in_force: Holding) -> Place {
    match former {
        Former::Owners(digest, _) => Place::Set(*digest),
        Former::Held(first) => Place::Block(*first),
        Former::Rank(rank) => Place::Rank(*rank, in_force),
    }
}

/// The entries of a frontend's slots.
fn claims(held: &Held, claimed: Option<&Claimed>, slots: u16) -> BTreeMap<u16, Claim> {
    let claimed = claimed.into_iter().flat_map(|claimed| &claimed.slots);
    let claim = |(slot, claimants): (&u16, &BTreeSet<SocketAddr>)| {
        let known = || claimants.iter().filter_map(|address| held.backends.get(address));
        let ids: Vec<BackendId> = known().map(|it| it.id).collect();
        let claim = Claim::of(&ids, |id| known().any(|it| it.id == *id && it.node == 0));
        (!ids.is_empty()).then_some((*slot, claim))
    };
    claimed.filter(|(slot, _)| **slot < slots).filter_map(claim).collect()
}
