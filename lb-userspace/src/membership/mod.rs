//! Which nodes' data planes answer.
//!
//! `peers` decides, `packet` writes and reads probes, `runner` sends them. An agent that is gone
//! makes no node dead: the XDP program itself answers.

pub mod board;
pub mod drain;
pub mod gossip;
pub mod machine;
mod own;
pub mod packet;
pub mod peers;
pub mod runner;
pub mod seal;
pub mod sim;
pub mod stream;
pub mod topic;
pub mod watch;

use std::collections::BTreeSet;

pub use peers::{PeerState, PeerStatus, Peers, Rules};
pub use runner::{Settings, run};

/// Who answers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Alive {
    /// Every other node has been found alive or dead once. Until then nothing new is announced: an
    /// agent that starts would take over everything.
    pub ready: bool,
    /// Names of the nodes whose data plane answers, this one always among them.
    pub names: BTreeSet<String>,
}
