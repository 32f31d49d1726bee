//! Tells the network where a VIP lives now.
//!
//! `candidates` says who may, `election` who does, `uplink` on which interface, `schedule` when, `frames`
//! with which bytes; `neighbour` sends and keeps the kernel's proxy entries. `yields` silences the data
//! plane of a former announcer whose agent is silent, `conflict` and `watch` find who else answers,
//! `gateway` asks whether the link works at all. Answers to ARP and NDP are the data plane's business.

pub mod candidates;
pub mod conflict;
pub mod election;
pub mod frames;
pub mod gateway;
pub mod neighbour;
pub mod schedule;
pub mod socket;
pub mod uplink;
pub mod watch;
pub mod yields;

pub use candidates::Inputs;
pub use election::{Election, Why};
pub use neighbour::run;
pub use schedule::Schedule;
pub use uplink::{Uplink, announcing_interfaces, uplink_for};
