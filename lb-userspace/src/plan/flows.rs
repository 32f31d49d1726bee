//! What nodes must know of each other so that no flow breaks when sets of backends change: the sets of
//! before, who holds which set now, and which backends still know flows of slots that others own.
//!
//! `history` turns it into what the data plane holds, `crate::claims` gathers and publishes it. Pure data.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use super::FrontendKey;

/// Sets of backends that a data plane keeps beside the one in force.
pub const PAST: usize = 3;

/// Who may own slots, with weights.
pub type Owners = BTreeMap<SocketAddr, u16>;

/// What one of a service's past places holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Former {
    /// The table of these owners; the number is its digest.
    Owners(u64, Arc<Owners>),
    /// The table that begins at this block of `OWNERS`, as a former agent left it for this frontend.
    Held(u32),
    /// Who comes at this rank, 2 to 4, in the table in force.
    Rank(u8),
}

/// One frontend's sets of owners.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lineage {
    /// Names the set in force: the digest of its table.
    pub epoch: u64,
    pub owners: Arc<Owners>,
    /// Those before it, newest first, up to [`PAST`].
    pub past: Vec<Arc<Owners>>,
}

/// What this node's data plane holds since a turn, for whoever scans its arrivals.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Applied {
    /// Rises with each turn.
    pub turn: u64,
    /// Frontends whose set changed lately: all that are young, and others for a while.
    pub recent: Arc<BTreeMap<FrontendKey, Lineage>>,
}

/// Displaced flows of one frontend that one backend knows.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Displaced {
    pub flows: u64,
    /// In which they lie.
    pub slots: BTreeSet<u16>,
}

/// Displaced flows of one frontend, by the word of the members where they end.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Claimed {
    /// Backends that know flows of a slot which another one owns.
    pub slots: BTreeMap<u16, BTreeSet<SocketAddr>>,
    /// How many displaced flows each backend has, and the node that says so: all that `slots` names.
    pub flows: BTreeMap<SocketAddr, (u64, Arc<str>)>,
}

/// What all members say, this one too.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Consensus {
    pub claims: BTreeMap<FrontendKey, Arc<Claimed>>,
    /// By member: the epochs of frontends that changed there lately, each applied and its claims sent.
    pub views: BTreeMap<Arc<str>, Arc<BTreeMap<FrontendKey, u64>>>,
    /// By the word of others, with the epoch that `Applied::recent` has here and the longest past.
    pub lineages: BTreeMap<FrontendKey, Lineage>,
}
