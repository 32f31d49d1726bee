//! What the agent tells the outside: the status file. Never read by the data plane or the plan.

pub mod status;
