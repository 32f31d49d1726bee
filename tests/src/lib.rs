//! What weir's tests share. Nothing here is used by the product.
//!
//! - [`lab`]: hosts, switch and router as network namespaces
//! - [`traffic`]: servers and clients that run inside them
//! - [`fleet`]: weir on the nodes of a lab
//! - [`kube`]: a Kubernetes control plane of real processes on hosts of a lab, and real nodes
//! - [`packet`]: frames, built and checked without the product's code
//! - [`model`]: the fate of every packet, written from the design
//! - [`pins`]: a BPF file system of a thread's own
//! - [`plane`]: the product's maps as the product fills them
//! - [`rig`]: the loaded BPF object, run on one frame at a time
//! - [`bench`]: what is measured and the goals it must meet
//! - [`maglev`]: the tables that weir's are held against
//! - [`consistency`]: a pool that changes under many flows, in virtual time
//! - [`cluster`]: weir in a real cluster, with pods
//! - [`demo`]: the outage, replayed with and without weir

pub mod bench;
pub mod cluster;
pub mod consistency;
pub mod demo;
pub mod fleet;
pub mod kube;
pub mod lab;
pub mod maglev;
pub mod model;
pub mod packet;
pub mod pins;
pub mod plane;
pub mod random;
pub mod rig;
pub mod traffic;
