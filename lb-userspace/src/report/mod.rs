//! What the agent tells the outside, and what the outside may ask of it. Never read by the data plane or
//! the plan.

pub mod control;
pub mod health_port;
pub mod status;
