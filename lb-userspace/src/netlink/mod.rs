//! What the kernel knows of links, addresses, routes and neighbours.
//!
//! `socket` is the one file that speaks rtnetlink, whose types change with every minor version;
//! `interfaces` holds what it reads in our own types; `ways` decides, purely, the next hop to a
//! node; `runner` keeps the hops to all nodes true. `diag` lists sockets and ends them.
//! Nothing here sets a MAC by hand.

pub mod diag;
pub mod interfaces;
pub mod runner;
mod socket;
pub mod ways;

pub use interfaces::{Interfaces, Link, Subnet, driver};
pub use runner::run;
pub use socket::{Netlink, NetlinkError};
