//! What forwards on a [`Site`]: weir on every node, or the [control](super::control).

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::site::{PORT, Site, targets, vips};
use crate::{
    fleet::{self, BINARY, Fleet, NEXT_BINARY},
    lab::Node,
};

/// Whatever agents do must be done by then. A frontend whose backends changed for one node alone stays young there for a
/// minute.
const DONE: Duration = Duration::from_secs(80);
const LOOK: Duration = Duration::from_millis(100);
/// What `weir vips` calls a frontend whose backends have just changed.
const YOUNG: &str = "young";

/// Who forwards, as far as events concern it.
pub trait System {
    /// Makes the site's pool the pool, and waits until all who forward use it.
    fn use_pool(&self, site: &Site) -> Result<()>;
    /// Starts a node that was switched off, with nothing left of its earlier life, and waits until it can forward.
    fn boot(&self, site: &Site, edge: &str) -> Result<()>;
    /// The node's power is gone.
    fn lost(&self, edge: &str);
    /// Takes new flows away from a pod, or gives them back.
    fn drain(&self, site: &Site, pod: &str, drained: bool) -> Result<()>;
}

/// weir on every node.
pub struct Weir<'lab> {
    pub fleet: Fleet<'lab>,
}

/// Many agents share one machine: small maps are enough.
const AGENT: &str = "\
holdDowns: {forget: 5s}
limits: {frontends: 64, ownerBlocks: 8192, backends: 256, nodes: 16, vips: 16, opening: 16384, datagrams: 16384, established: 65536}";

impl<'lab> Weir<'lab> {
    /// Starts agents on `nodes`; the pool is `pods`.
    pub fn start<'a>(
        site: &Site,
        lab: &'lab crate::lab::Lab,
        nodes: &[&Node],
        pods: impl IntoIterator<Item = &'a String>,
    ) -> Result<Self> {
        let fleet = Fleet::prepare_with(lab, AGENT, &frontend(site, pods)?)?;
        for node in nodes {
            fleet.start_agent(node)?;
        }
        let weir = Self { fleet };
        nodes.iter().try_for_each(|node| weir.wait_agent(node))?;
        Ok(weir)
    }

    /// Waits until a node's agent of now serves.
    pub fn wait_agent(&self, node: &Node) -> Result<()> {
        until(&format!("the agent of {} serves", node.name()), || {
            let agent = self.fleet.agent(node);
            ensure!(
                agent.is_running()?,
                "the agent of {} ended: {}",
                node.name(),
                self.fleet.log(node)
            );
            let Ok(status) = self.fleet.ask(node, &["status"]) else { return Ok(false) };
            let attached = status["attachments"].as_array().is_some_and(|list| list.len() == 3);
            Ok(attached
                && status["agent"]["pid"] == agent.id()
                && targets().iter().all(|to| !self.fleet.owners(node, *to).is_empty()))
        })
    }

    /// Waits until no frontend is young any more on any node that is on.
    pub fn wait_grown(&self, site: &Site) -> Result<()> {
        for node in site.powered() {
            until(&format!("no frontend is young on {}", node.name()), || {
                let Ok(answer) = self.fleet.ask(node, &["vips"]) else { return Ok(false) };
                let list = |value: &Value, name: &str| value[name].as_array().cloned();
                let vips = list(&answer, "vips").context("a list of VIPs")?;
                let mut frontends = vips.iter().flat_map(|vip| list(vip, "frontends")).flatten();
                Ok(!frontends.any(|frontend| {
                    list(&frontend, "flags").is_some_and(|flags| flags.contains(&YOUNG.into()))
                }))
            })?;
        }
        Ok(())
    }

    /// An agent dies and its supervisor starts it again.
    pub fn kill(&self, node: &Node) -> Result<()> {
        self.fleet.kill_agent(node)?;
        self.fleet.start_agent(node)?;
        self.wait_agent(node)
    }

    /// An agent is stopped in order, and its successor is of the other build, or again of this one.
    pub fn replace(&self, node: &Node, next: bool) -> Result<()> {
        self.fleet.stop_agent(node)?;
        self.fleet.install(node, if next { NEXT_BINARY } else { BINARY })?;
        self.fleet.start_agent(node)?;
        self.wait_agent(node)
    }

    /// Waits until the agents of all nodes that are on share slots among just the pods that are to get new flows.
    fn wait_owners(&self, site: &Site) -> Result<()> {
        let members = site.members(site.owners())?;
        let name = |(address, _): &fleet::Member| SocketAddr::new(*address, PORT).to_string();
        let mut wanted: Vec<_> = members.iter().map(name).collect();
        wanted.sort();
        for node in site.powered() {
            until(&format!("{} uses the new pool", node.name()), || {
                let owners = targets().map(|to| self.fleet.owners(node, to));
                let mut owners: Vec<_> =
                    owners.into_iter().flat_map(|map| map.into_keys()).collect();
                owners.sort();
                Ok(owners == wanted)
            })?;
        }
        Ok(())
    }
}

impl System for Weir<'_> {
    fn use_pool(&self, site: &Site) -> Result<()> {
        self.fleet.configure(&frontend(site, &site.pool)?)?;
        self.wait_owners(site)
    }

    fn boot(&self, site: &Site, edge: &str) -> Result<()> {
        let node = site.lab.node(edge);
        self.fleet.forget(node)?;
        node.power_on()?;
        self.fleet.start_agent(node)?;
        self.wait_agent(node)
    }

    fn lost(&self, _: &str) {}

    fn drain(&self, site: &Site, pod: &str, drained: bool) -> Result<()> {
        let command = if drained { "drain" } else { "undrain" };
        let node = site.powered()[0];
        for address in site.pod(pod)?.0.addresses() {
            let backend = SocketAddr::new(address, PORT).to_string();
            let output = self.fleet.weir(node, &[command, "backend", &backend])?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "weir {command} backend {backend}: {said}");
        }
        self.wait_owners(site)
    }
}

/// The one frontend, over these pods.
pub fn frontend<'a>(site: &Site, pods: impl IntoIterator<Item = &'a String>) -> Result<String> {
    let (tcp, udp) = (PORT.to_string(), format!("{PORT}/UDP"));
    Ok(fleet::frontend("echo", &vips(), &[&tcp, &udp], &site.members(pods)?, ""))
}

fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + DONE;
    while !done()? {
        if Instant::now() > deadline {
            bail!("not within {} s: {what}", DONE.as_secs());
        }
        thread::sleep(LOOK);
    }
    Ok(())
}
