//! The weir agent and command line, as a library for its binary and its tests.
//!
//! `sources` and `health`, `membership` feed `plan`, which is pure; `dataplane` alone touches maps;
//! `agent` alone spawns tasks and reads the clock.

#![cfg_attr(
    test,
    expect(
        clippy::disallowed_methods,
        reason = "tests hold a borrow no longer than they compare it"
    )
)]

pub mod addresses;
pub mod agent;
pub mod announce;
pub mod claims;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod health;
pub mod heap;
pub mod membership;
pub mod model;
pub mod netlink;
pub mod plan;
pub mod report;
pub mod sources;
mod threads;
mod watched;
