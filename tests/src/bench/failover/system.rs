//! What balances on a site: weir, or one of its [peers](super::peers), as a fleet of agents that can be killed, stopped and
//! started.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

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
    /// Which node is to announce a VIP when all is well, where the system can tell.
    fn home(&self, vip: IpAddr) -> Option<&str> {
        let _ = vip;
        None
    }
    /// Undoes what a kernel forgets that loses power, beside processes and pins.
    fn forget(&self, node: &Node) -> Result<()> {
        let _ = node;
        Ok(())
    }
    /// Waits until every agent runs and knows of every other, as far as it can say.
    fn wait_ready(&self) -> Result<()>;
}

/// weir on every node, as the fleet runs it.
pub struct Weir<'site> {
    fleet: Fleet<'site>,
    site: &'site Site,
    /// Who announced which VIP at first: so it must be again before the next event.
    home: BTreeMap<String, String>,
}

impl<'site> Weir<'site> {
    pub fn start(site: &'site Site) -> Result<Self> {
        let vips: Vec<_> = (0..VIPS).flat_map(Lab::vips).collect();
        let frontend = fleet::frontend("web", &vips, &[&PORT.to_string()], &site.pool(), &health());
        let fleet = Fleet::prepare_with(&site.lab, AGENT, &frontend)?;
        site.lab.nodes().iter().try_for_each(|node| fleet.start_agent(node).map(drop))?;
        fleet.wait_ready();
        let mut weir = Self { fleet, site, home: BTreeMap::new() };
        weir.home = weir.announcers()?;
        Ok(weir)
    }

    /// Who is to announce which VIP, as the first node sees it.
    fn announcers(&self) -> Result<BTreeMap<String, String>> {
        let answer = self.fleet.ask(&self.site.lab.nodes()[0], &["vips"])?;
        let vips = answer["vips"].as_array().context("a list of VIPs")?;
        let text = |vip: &Value, name: &str| vip[name].as_str().unwrap_or_default().to_owned();
        Ok(vips.iter().map(|vip| (text(vip, "address"), text(vip, "announcer"))).collect())
    }

    /// How often the agent of each node has said that another node is dead.
    pub fn deaths(&self) -> BTreeMap<String, usize> {
        let count = |node: &Node| {
            let log = self.fleet.log(node);
            let deaths = log.lines().filter(|line| DEATHS.iter().any(|death| line.contains(death)));
            (node.name().to_owned(), deaths.count())
        };
        self.site.lab.nodes().iter().map(count).collect()
    }

    /// What of its configuration the figures depend on.
    pub fn settings() -> String {
        format!("{}\n{AGENT}", health())
    }
}

/// What agents log when they take a node for dead.
const DEATHS: [&str; 2] = ["node is dead", "to=Dead"];
/// All must announce again what they did at first, hold-downs and what is remembered of conflicts included.
const HOME: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(200);

/// Many agents share one machine: small maps are enough. Events come every few seconds, and none is to feel the ones before:
/// deaths are forgotten soon.
const AGENT: &str = "\
holdDowns: {forget: 5s}
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
        self.fleet.start_agent(node).map(drop)
    }

    fn kill_agent(&self, node: &Node) -> Result<()> {
        self.fleet.kill_agent(node)
    }

    fn signal_agent(&self, node: &Node, signal: Signal) -> Result<()> {
        self.fleet.agent(node).signal(signal)
    }

    fn home(&self, vip: IpAddr) -> Option<&str> {
        self.home.get(&vip.to_string()).map(String::as_str)
    }

    fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + HOME;
        while self.announcers().ok().as_ref() != Some(&self.home) || !self.fleet.is_ready() {
            if Instant::now() > deadline {
                let ask =
                    |node| self.fleet.ask(node, &["status"]).unwrap_or_default()["problems"].take();
                let problems: Vec<_> = self.site.lab.nodes().iter().map(|node| ask(node)).collect();
                bail!("not as before within {} s; problems: {problems:?}", HOME.as_secs());
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }
}
