//! What members tell each other: small versioned entries, each of one origin.
//!
//! Every member publishes entries of its own and nobody else's. Whoever receives keeps the latest value
//! of each, also while the origin is dead, until the node leaves the configuration.

use std::sync::Arc;

/// What an entry is about. The number travels; a topic that a member does not know is kept and passed on.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Topic(pub u8);

impl Topic {
    /// [`crate::model::Card`] as JSON; one entry without a name.
    pub const CARD: Self = Self(1);
    /// Named by a node: this member's probes find its data plane silent, or hold its word for void.
    pub const REPORT: Self = Self(2);
    /// Named by a VIP's 16 bytes: this member's data plane answers for it.
    pub const ANNOUNCES: Self = Self(3);
    /// Named by a target's digest: what this member's probes say of it.
    pub const VERDICT: Self = Self(4);
    /// Named by what is drained: the word of an administrator.
    pub const DRAIN: Self = Self(5);
    /// Named by frontend and backend: slots in which that backend of this member knows displaced flows.
    pub const CLAIM: Self = Self(6);
    /// Named by one byte: epochs that this member has applied lately, its claims sent.
    pub const VIEW: Self = Self(7);
    /// Named by frontend: sets of owners before the one in force.
    pub const LINEAGE: Self = Self(8);

    /// What `crate::claims` says and hears.
    pub fn is_of_claims(self) -> bool {
        matches!(self, Self::CLAIM | Self::VIEW | Self::LINEAGE)
    }
}

/// Names an entry among those of its origin.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    pub topic: Topic,
    pub name: Vec<u8>,
}

impl Key {
    pub fn new(topic: Topic, name: impl Into<Vec<u8>>) -> Self {
        Self { topic, name: name.into() }
    }
}

/// A new value of an entry, or its end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// Name of the node that says so.
    pub origin: Arc<str>,
    pub key: Key,
    /// None: the entry is gone.
    pub value: Option<Arc<[u8]>>,
}
