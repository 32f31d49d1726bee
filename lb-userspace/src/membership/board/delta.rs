//! Changes of one log as they travel, in datagrams and streams alike.

use serde::{Deserialize, Serialize};

/// Where the versions of an incarnation begin: those of a later one are all greater, as long as a process
/// makes fewer than 2^20 changes per unit that incarnations grow by (a millisecond).
pub(super) const fn base(incarnation: u64) -> u64 {
    incarnation << 20
}

/// Incarnations from here on have no versions.
pub const INCARNATION_END: u64 = 1 << 43;

/// Names a state of a log. Ordered: the later is the greater.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Mark {
    pub incarnation: u64,
    /// Changes since this incarnation began.
    pub version: u64,
}

impl Mark {
    /// Whether versions can be made of it.
    pub(super) fn is_sound(self) -> bool {
        self.incarnation < INCARNATION_END && self.version <= u64::MAX >> 1
    }
}

/// One entry's value, or its end.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Item<'a> {
    pub version: u64,
    pub topic: u8,
    pub name: &'a [u8],
    pub value: Option<&'a [u8]>,
}

impl Item<'_> {
    /// At most what it takes in a delta.
    pub fn size(&self) -> usize {
        self.name.len() + self.value.map_or(0, <[u8]>::len) + Self::OVERHEAD
    }

    const OVERHEAD: usize = 17;
}

/// All changes of one log above `from` up to `to` that no later one has overtaken; versions count from the
/// beginning of the incarnation. Without items and with `from` = `to` it only tells `latest`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Delta<'a> {
    pub origin: &'a str,
    /// Empty: the log for all members; else an audience's name.
    pub log: &'a str,
    pub incarnation: u64,
    pub from: u64,
    pub to: u64,
    /// The newest version that the sender has heard of.
    pub latest: u64,
    /// The origin has been up for long enough to have said all it has to say: what it said in an earlier
    /// incarnation and not in this one is over.
    pub settled: bool,
    /// To be passed on at once.
    pub urgent: bool,
    /// What the receiver holds with a version in `from..=to` and finds no item for is over or comes with a
    /// later version.
    pub full: bool,
    #[serde(borrow)]
    pub items: Vec<Item<'a>>,
}

/// How far the asker is with one log.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Have {
    pub origin: String,
    pub log: String,
    pub mark: Mark,
}

impl Have {
    /// At most what it takes in a request.
    pub(super) fn size(&self) -> usize {
        self.origin.len() + self.log.len() + 24
    }
}

/// Asks a member for what it knows more.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Request {
    pub asker: String,
    /// Bit i: the origins of bucket i (see [`super::BUCKETS`]).
    pub buckets: u64,
    /// Also what the asked one says to audiences with the asker.
    pub audiences: bool,
    /// Logs of the asked kinds that are not here are wanted from the start.
    pub have: Vec<Have>,
}

/// A log that is being sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wanted {
    pub(super) origin: String,
    pub(super) log: String,
    /// How far the receiver is.
    pub(super) mark: Mark,
    /// The log's floor as this started; when it rises beyond the mark, all starts again.
    pub(super) floor: u64,
}
