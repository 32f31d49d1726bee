//! What weir is held against: Maglev alone, and Maglev with a flow table in every forwarder.
//!
//! Both see the same packets as weir, at the same forwarders with the same sets of backends. The
//! flow tables are perfect: no entry is ever evicted.

use std::{collections::HashMap, sync::Arc};

use super::scenario::Number;

/// What a baseline has done to one flow.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Fate {
    #[default]
    Unborn,
    At(Number),
    Broken,
}

impl Fate {
    /// A packet came to this backend: it must be the one that the first came to.
    fn meet(&mut self, backend: Number) {
        *self = match *self {
            Self::Unborn => Self::At(backend),
            Self::At(first) if first == backend => *self,
            _ => Self::Broken,
        };
    }
}

/// Both baselines, for all flows.
pub struct Baselines {
    pub maglev: Vec<Fate>,
    pub tracked: Vec<Fate>,
    /// What each forwarder remembers: flow to backend.
    remembered: HashMap<(u16, u32), Number>,
}

impl Baselines {
    pub fn new(flows: usize) -> Self {
        let unborn = vec![Fate::Unborn; flows];
        Self { maglev: unborn.clone(), tracked: unborn, remembered: HashMap::new() }
    }

    /// One packet of a flow at a forwarder, whose table this is.
    pub fn packet(&mut self, flow: u32, slot: u16, forwarder: u16, table: &Arc<[Number]>) {
        let owner = table[usize::from(slot)];
        self.maglev[flow as usize].meet(owner);
        let to = self.remembered.entry((forwarder, flow)).or_insert(owner);
        self.tracked[flow as usize].meet(*to);
    }
}
