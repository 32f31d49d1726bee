//! Tells the network where a VIP lives now.
//!
//! `schedule` says when, `frames` what, `neighbour` sends and keeps the kernel's proxy entries,
//! `uplink` chooses the interface. Answers to ARP and NDP are the data plane's business.

pub mod frames;
pub mod neighbour;
pub mod schedule;
pub mod uplink;

pub use neighbour::run;
pub use schedule::Schedule;
pub use uplink::{Uplink, uplink_for};
