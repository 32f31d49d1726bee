//! Kubernetes as a source, and what is written back to it. Nothing here may be needed to keep the front
//! door open.

pub mod controller;
pub mod crd_pool;
pub mod lease;
