//! What probes say.

use std::{collections::BTreeMap, net::SocketAddr};

use super::Check;

/// One thing to probe. Equal targets of several frontends are probed once.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Target {
    /// Where the probe goes (the check's own port applied).
    pub address: SocketAddr,
    pub check: Check,
}

/// The state of one target. One that was never decided is `Unknown` and counts as up: an agent that
/// starts must not take away what serves.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Health {
    #[default]
    Unknown,
    Up,
    /// Why the last probe failed.
    Down(String),
}

impl Health {
    pub fn serves(&self) -> bool {
        !matches!(self, Self::Down(_))
    }
}

/// The latest word on every target; one that is absent is `Unknown`.
pub type Verdicts = BTreeMap<Target, Health>;
