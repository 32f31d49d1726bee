//! All policy: what this node should forward and announce, from all it knows. Pure: no clock, no
//! I/O, no log.

pub mod desired;
pub mod elect;
pub mod flows;
pub mod gone;
pub mod history;
pub mod owners;

pub use desired::{
    Askers, Desired, DesiredBackend, DesiredFrontend, DesiredNode, DesiredVip, FrontendKey, Inputs,
    all_drained, askers, desired, desired_nodes, follow, holders, pooled, targets,
};
pub use history::{Changed, History};
