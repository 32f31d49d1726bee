//! Tells the network where a VIP lives now.
//!
//! `candidates` says who may, `election` who does, `uplink` on which interface, `schedule` when, `frames`
//! with which bytes; `neighbour` sends and keeps the kernel's proxy entries. Answers to ARP and NDP are
//! the data plane's business.

pub mod candidates;
pub mod election;
pub mod frames;
pub mod neighbour;
pub mod schedule;
pub mod uplink;

pub use candidates::Inputs;
pub use election::{Election, Why};
pub use neighbour::run;
pub use schedule::Schedule;
pub use uplink::{Uplink, announcing_interfaces, uplink_for};
