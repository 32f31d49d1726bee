//! What balances on a site: weir, or one of its [peers](super::peers), as a fleet of agents that can be killed, stopped and
//! started.

use anyhow::Result;
use nix::sys::signal::Signal;

use super::{
    kind::{HEALTH_FALL, HEALTH_INTERVAL},
    site::{PORT, Site, VIPS},
};
use crate::{
    fleet::{self, Fleet},
    lab::{Lab, Node},
};

/// An agent on every node. Dropping it ends them.
pub trait System {
    /// All that a node starts when it is switched on.
    fn boot(&self, node: &Node) -> Result<()> {
        self.start_agent(node)
    }
    /// As a supervisor does after the agent's death.
    fn start_agent(&self, node: &Node) -> Result<()>;
    /// SIGKILL, waited for.
    fn kill_agent(&self, node: &Node) -> Result<()>;
    fn signal_agent(&self, node: &Node, signal: Signal) -> Result<()>;
    /// Undoes what a kernel forgets that loses power, beside processes and pins.
    fn forget(&self, node: &Node) -> Result<()> {
        let _ = node;
        Ok(())
    }
    /// Waits until every agent runs and knows of every other, as far as it can say.
    fn wait_ready(&self) -> Result<()>;
}

/// weir on every node, as the fleet runs it.
pub struct Weir<'site>(Fleet<'site>);

impl<'site> Weir<'site> {
    pub fn start(site: &'site Site) -> Result<Self> {
        let vips: Vec<_> = (0..VIPS).flat_map(Lab::vips).collect();
        let frontend = fleet::frontend("web", &vips, &[&PORT.to_string()], &site.pool(), &health());
        let fleet = Fleet::prepare_with(&site.lab, AGENT, &frontend)?;
        site.lab.nodes().iter().try_for_each(|node| fleet.start_agent(node).map(drop))?;
        fleet.wait_ready();
        Ok(Self(fleet))
    }

    /// What of its configuration the figures depend on.
    pub fn settings() -> String {
        format!("{}\n{AGENT}", health())
    }
}

/// Many agents share one machine: small maps are enough.
const AGENT: &str = "\
peers: {interval: 100ms, fall: 3, rise: 3}
limits: {frontends: 64, ownerBlocks: 4096, backends: 64, nodes: 16, vips: 16, opening: 4096, datagrams: 4096, established: 4096}";

fn health() -> String {
    let ms = HEALTH_INTERVAL.as_millis();
    format!(
        "healthCheck: {{type: HTTP, path: /, interval: {ms}ms, timeout: {ms}ms, rise: 2, fall: {HEALTH_FALL}}}"
    )
}

impl System for Weir<'_> {
    fn start_agent(&self, node: &Node) -> Result<()> {
        self.0.start_agent(node).map(drop)
    }

    fn kill_agent(&self, node: &Node) -> Result<()> {
        self.0.kill_agent(node)
    }

    fn signal_agent(&self, node: &Node, signal: Signal) -> Result<()> {
        self.0.agent(node).signal(signal)
    }

    fn wait_ready(&self) -> Result<()> {
        self.0.wait_ready();
        Ok(())
    }
}
