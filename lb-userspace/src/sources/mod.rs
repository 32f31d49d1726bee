//! Where the [`Intent`](crate::model::Intent) comes from. Sources report what is asked for and
//! decide nothing about it.
//!
//! Every source keeps the same order: first the [`checkpoint`], at once, where it cannot say anything
//! itself yet; then, in one step, what it says when it can say *all* of it: a file that is whole, a first
//! list that is complete. Until then the checkpoint is in force as a whole and [`Stale`] says so; nothing
//! is ever removed because a source has not spoken yet.

pub mod checkpoint;
pub mod file;
pub mod kubernetes;
pub mod trust;

/// What is in force is a checkpoint, and not what the source says.
#[derive(Clone, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct Stale {
    /// One sentence, with what mends it.
    pub why: String,
    pub checkpoint: std::path::PathBuf,
    /// When that was written, Unix time in ms.
    pub written_ms: u64,
}
