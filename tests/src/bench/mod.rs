//! What `cargo xtask bench` runs. Each bench returns a report with a `schema` field, prints it for
//! people or as JSON, and says of each goal whether it was met.

pub mod churn;
pub mod claims;
pub mod consistency;
pub mod failover;
pub mod flood;
pub mod gossip;
pub mod health;
pub mod kubernetes;
pub mod membership;
pub mod packet;
pub mod tables;

use anyhow::Result;
use serde::Serialize;

/// Prints a report as one JSON document, or for people by `print`.
fn show<R: Serialize>(report: &R, json: bool, print: impl FnOnce(&R)) -> Result<()> {
    match json {
        true => println!("{}", serde_json::to_string_pretty(report)?),
        false => print(report),
    }
    Ok(())
}

/// A figure that a bench must keep.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    pub name: String,
    /// The greatest value that meets the goal.
    pub at_most: f64,
    pub measured: f64,
    pub met: bool,
}

impl Goal {
    pub fn at_most(name: impl Into<String>, at_most: f64, measured: f64) -> Self {
        Self { name: name.into(), at_most, measured, met: measured <= at_most }
    }
}
