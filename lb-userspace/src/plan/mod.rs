//! All policy: what this node should forward and announce, from all it knows. Pure: no clock, no
//! I/O, no log.

pub mod askers;
pub mod desired;
pub mod edit;
pub mod elect;
pub mod flows;
pub mod gone;
pub mod history;
pub mod owners;

pub use askers::{Askers, askers, targets};
pub use desired::{
    Desired, DesiredBackend, DesiredFrontend, DesiredNode, DesiredVip, FrontendKey, Inputs,
    all_drained, desired, desired_nodes, follow, holders, pooled,
};
pub use edit::{Edited, edit};
pub use history::{Changed, History};
