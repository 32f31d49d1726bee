//! What a frontend's services should hold, beside what they do.

use lb_common::{siphash::Sip13, table::Seed};

use super::held::{Held, Holding};
use crate::plan::{
    DesiredFrontend,
    desired::FrontendKey,
    owners::{Pool, address},
};

/// A frontend whose services have to change.
pub struct Want {
    pub key: FrontendKey,
    pub pool: Pool,
    /// Of the pool's backends, in their order.
    pub ids: Vec<u32>,
    pub holding: Holding,
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
        let known = wanted.owners.iter().filter(|(owner, _)| held.backends.contains_key(owner));
        let pool = Pool::new(known, slots, seed);
        let id = |backend| held.backends.get(&address(backend)).map_or(0, |held| held.id.0);
        let ids: Vec<u32> = pool.backends.iter().map(id).collect();
        let hash = ids.iter().fold(Sip13::new(0, 0), |hash, id| hash.word(u64::from(*id)));
        let holding = (pool.digest, hash.finish());
        let same = held
            .frontends
            .get(&key)
            .is_some_and(|held| held.holding == Some(holding) && held.record.flags == wanted.flags);
        (!same).then_some(Self { key, pool, ids, holding })
    }
}
