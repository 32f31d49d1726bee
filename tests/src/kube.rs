//! A real Kubernetes control plane on hosts of a lab: etcd, API servers, the controller manager and kubectl, as processes.
//!
//! ```text
//!  master-1: kube-apiserver ─┐
//!  master-2: kube-apiserver ─┼─► etcd (on the first master, or where the test puts it)
//!  master-3: kube-apiserver ─┘        ▲ data on the host's own disk, which is memory
//!       ▲  https://10.0.0.11:6443 …, [fd00::11]:6443 …
//!       └── kubectl, typed clients, agents, kube-controller-manager (where a test starts it)
//! ```
//!
//! - Nothing is simulated: admission, validation, watches, RBAC and the controllers are those of Kubernetes. What tests do
//!   without are nodes: they make `Node` and `Pod` objects and write their status themselves. A [`KubeNode`], for what is
//!   not a test, is a real one, with a kubelet, containerd and pods.
//! - All parts are one binary, which `WEIR_KUBERNETES_BIN` names and `cargo xtask build-kubernetes` builds, once.
//! - Every process is a child inside a [`Host`](crate::lab::Host) and every file lies on a host's disk, so nothing is left
//!   behind, however the test ends. When a test fails, the end of every log is printed.
//! - What it costs: 3 s until the first API server is ready and 1 s for each further one, on two idle cores; 420 MB for
//!   etcd and one API server, 300 MB for each further one, 150 MB for the controller manager.

mod certificates;
mod cluster;
mod control_groups;
mod image;
mod manifests;
mod node;
mod server;

pub use cluster::{BINARY, Cluster, ClusterBuilder};
pub use image::{Image, POD, WEIR};
pub use manifests::{MANIFESTS, NAMESPACE, Rights};
pub use node::{CGROUP, Files, KubeNode, PACKAGES};
pub use server::{READY, Server};
