//! Kubernetes as a source of the Intent: Services, EndpointSlices, Nodes and our own objects, beside those of
//! the file.
//!
//! `api` keeps a way to one of several API servers, `watch` lists and follows, [`snapshot`] is what came of
//! that in plain types, [`translate`] says purely what it means, [`merge`] puts it beside the file. One agent's
//! [`controller`] gives Services their addresses. Nothing here may be needed to keep the front door open: silence, a hang or a lie of the API changes no packet.

pub mod allocator;
pub mod api;
pub mod controller;
pub mod crd;
pub mod crd_pool;
pub mod health_ports;
pub mod lease;
pub mod members;
pub mod merge;
pub mod near;
pub mod outcome;
pub mod snapshot;
pub mod source;
pub mod translate;
pub mod watch;

#[cfg(test)]
mod live_tests;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::{config, model::AgentSettings};

    /// Settings of node n1.
    pub fn agent() -> AgentSettings {
        let text = "apiVersion: weir.dev/v1alpha1\nkind: Agent\nmetadata: {name: a}\nspec:\n  node: n1\n  \
                    uplinks: [eth0]\n  seed: not a secret\n  kubernetes: {}\n";
        config::parse(Path::new("weir.yaml"), text, &config::Overrides::default()).unwrap().agent
    }
}
