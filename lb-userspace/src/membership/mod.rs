//! Nodes that notice each other, without anything else's help.
//!
//! `watch` judges data planes by probes that XDP answers, so an agent that is gone makes no node dead.
//! `gossip` lets agents talk: `swim` says who can be talked to, `board` holds what each says. `machine` is
//! both and yields [`crate::model::Members`]; all of that is pure. `runner` gives it sockets and time,
//! `seal` keeps strangers out, `stream` carries what is too much for datagrams, `drain` keeps orders.
//! `sim` runs many machines in virtual time.

pub mod board;
pub mod drain;
pub mod gossip;
pub mod machine;
mod own;
pub mod packet;
pub mod runner;
pub mod seal;
pub mod sim;
mod sockets;
pub mod stream;
pub mod topic;
pub mod watch;

pub use machine::Facts;
pub use runner::{Channels, Own, Publication, Report, Settings, start};
pub use topic::{Change, Key, Topic};
pub use watch::{NodeStatus, Rules};
