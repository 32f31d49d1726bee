//! What a frontend's services should hold, beside what they do.

use lb_common::{siphash::Sip13, table::Seed};

use super::held::{Held, Holding};
use crate::plan::{DesiredFrontend, desired::FrontendKey, owners::Pool};

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
        let known = |(owner, weight)| Some((owner, weight, held.backends.get(owner)?.id.0));
        let known: Vec<_> = wanted.owners.iter().filter_map(known).collect();
        let pool = Pool::new(known.iter().map(|(owner, weight, _)| (*owner, *weight)), slots, seed);
        let ids: Vec<u32> = known.iter().filter(|it| *it.1 > 0).map(|it| it.2).collect();
        let hash = ids.iter().fold(Sip13::new(0, 0), |hash, id| hash.word(u64::from(*id)));
        let holding = (pool.digest, hash.finish());
        let same = held
            .frontends
            .get(&key)
            .is_some_and(|held| held.holding == Some(holding) && held.record.flags == wanted.flags);
        (!same).then_some(Self { key, pool, ids, holding })
    }
}
