//! The machines of this bench, what is done to them, and one event from calm to calm.
//!
//! n nodes and a router on one switch, a pod with a server behind each node, a client beyond the router. The router
//! resolves VIPs on the switch by ARP and NDP. Servers are processes of their own, so that they can be killed and stopped.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::{
    felt::{Felt, felt, is_calm, last_failure, millis},
    kind::Kind,
    load::Load,
    system::System,
};
use crate::lab::{Host, Lab, Node, Process, UPLINK, Verdict};

/// What clients ask for, and where the servers listen.
pub const PORT: u16 = 80;
/// VIPs, each in both families; events take turns among them.
pub const VIPS: u8 = 4;
/// Between two requests; shorter where only one of more than three backends is hit.
pub const BEAT: Duration = Duration::from_millis(10);
/// An event is over, and a site is as before, when nothing has failed for so long.
pub const CALM: Duration = Duration::from_millis(1500);
/// An event that is still felt after this has no end.
pub const LONGEST: Duration = Duration::from_secs(20);
/// After an event all must be as before within this.
const RESTORED: Duration = Duration::from_secs(90);
/// Between two looks at what the client felt, and at where the router sends packets.
const LOOK: Duration = Duration::from_millis(100);
/// The uplink that flaps: so often down and up, and for how long.
const FLAPS: u32 = 5;
const FLAP_DOWN: Duration = Duration::from_millis(200);
const FLAP_UP: Duration = Duration::from_millis(400);

/// Nodes, servers, router and client.
pub struct Site {
    pub lab: Lab,
    servers: RefCell<BTreeMap<String, Process>>,
    /// Who has which MAC address, as `ip neigh` writes it.
    macs: BTreeMap<String, String>,
}

/// What of this bench itself the figures depend on.
pub fn settings() -> String {
    format!(
        "a new connection and one request every {} ms ({} ms / nodes where one backend is hit), failed after {} ms; {VIPS} VIPs \
         in both families in turn; over after {} ms without a failure; given up after {} s; flap: {FLAPS} times {} ms down, \
         {} ms up",
        BEAT.as_millis(),
        (BEAT * 3).as_millis(),
        super::load::DEADLINE.as_millis(),
        CALM.as_millis(),
        LONGEST.as_secs(),
        FLAP_DOWN.as_millis(),
        FLAP_UP.as_millis()
    )
}

/// What one event came to.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    pub vip: IpAddr,
    pub node: String,
    /// The router sent the VIP's packets to that node though another one was to announce it.
    pub astray: bool,
    pub felt: Felt,
    /// Nothing failed any more, within [`LONGEST`].
    pub over: bool,
    /// When the router was first seen to send the VIP's packets to another node.
    pub moved_ms: Option<f64>,
    /// Requests that failed while all was put back.
    pub failed_on_return: u64,
}

impl Site {
    /// Builds it with a server in every pod, and nothing yet that balances.
    pub fn build(nodes: usize) -> Result<Self> {
        let lab = Lab::builder().nodes(nodes, 1).client("client").build()?;
        let mac = |node: &Node| {
            let path = format!("/sys/class/net/{UPLINK}/address");
            let mac = node.run(|| fs::read_to_string(path))?;
            Ok((mac.trim().to_owned(), node.name().to_owned()))
        };
        let macs = lab.nodes().iter().map(mac).collect::<Result<_>>()?;
        let site = Self { lab, servers: RefCell::default(), macs };
        site.lab.nodes().iter().try_for_each(|node| site.start_server(node))?;
        Ok(site)
    }

    /// All servers, as pool members.
    pub fn pool(&self) -> Vec<crate::fleet::Member> {
        crate::fleet::members(self.lab.nodes().iter().map(|node| (pod(node), &**node)))
    }

    fn start_server(&self, node: &Node) -> Result<()> {
        let pod = pod(node);
        let mut command = pod.command(std::env::current_exe()?);
        command.args(["serve", node.name(), &PORT.to_string()]);
        self.servers.borrow_mut().insert(node.name().to_owned(), pod.start(command)?);
        Ok(())
    }

    fn server(&self, node: &Node) -> Result<Process> {
        self.servers.borrow().get(node.name()).cloned().context("every node has a server")
    }

    /// One event: a running client, calm, the deed, calm again, everything put back. `number` chooses the VIP.
    pub fn event(&self, system: &dyn System, kind: Kind, number: usize) -> Result<Outcome> {
        let families = Lab::vips((number / 2) as u8 % VIPS);
        let vip = families[number % families.len()];
        let beat = self.beat(kind);
        let load = Load::start(&self.lab.clients()[0], SocketAddr::new(vip, PORT), beat)?;
        let mut samples = Vec::new();
        self.until_calm(&load, &mut samples).with_context(|| format!("before {}", kind.name()))?;
        let name = self.announcer(vip)?.with_context(|| format!("nobody announces {vip}"))?;
        let node = self.lab.node(&name);
        let astray = system.home(vip).is_some_and(|home| home != name);

        let from = Instant::now();
        self.strike(system, kind, node)?;
        let (mut moved_ms, mut over, mut waits) = (None, false, false);
        while (waits || !over) && from.elapsed() < LONGEST {
            thread::sleep(LOOK);
            samples.extend(load.take());
            if moved_ms.is_none() && self.announcer(vip)?.is_some_and(|now| now != name) {
                moved_ms = Some(millis(from.elapsed()));
            }
            let last = last_failure(&samples).unwrap_or(from).max(from + kind.lasts());
            over = last.elapsed() >= CALM;
            waits = kind == Kind::AgentSigstop && moved_ms.is_none();
        }
        let restored = Instant::now();
        self.restore(system, kind, node)?;
        system.wait_ready()?;
        self.until_calm(&load, &mut samples).with_context(|| format!("after {}", kind.name()))?;

        // What was under way when the restoring began ended by itself a deadline later; nothing of it failed, if it is over.
        let felt = felt(&samples, from, restored);
        let failed_on_return = self::felt(&samples, restored, Instant::now()).failed;
        Ok(Outcome { vip, node: name, astray, felt, over, moved_ms, failed_on_return })
    }

    /// One backend of many is met as often as one of three.
    pub fn beat(&self, kind: Kind) -> Duration {
        let nodes = self.lab.nodes().len() as u32;
        if kind.hits_one_backend() { BEAT * 3 / nodes.max(3) } else { BEAT }
    }

    fn strike(&self, system: &dyn System, kind: Kind, node: &Node) -> Result<()> {
        match kind {
            Kind::PowerOff => {
                node.power_off()?;
                system.forget(node)
            }
            Kind::AgentSigkill => {
                system.kill_agent(node)?;
                system.start_agent(node)
            }
            Kind::AgentSigstop => system.signal_agent(node, Signal::SIGSTOP),
            Kind::CutTwoWay => self.port(node, PortState::Disabled),
            Kind::CutOneWay => node.sending(Verdict::Drop),
            Kind::UplinkFlap => (0..FLAPS).try_for_each(|_| {
                node.unplug()?;
                thread::sleep(FLAP_DOWN);
                node.plug()?;
                thread::sleep(FLAP_UP);
                Ok(())
            }),
            Kind::BackendKilled => self.server(node)?.kill(),
            Kind::BackendHung => self.server(node)?.signal(Signal::SIGSTOP),
        }
    }

    fn restore(&self, system: &dyn System, kind: Kind, node: &Node) -> Result<()> {
        match kind {
            Kind::PowerOff => {
                node.power_on()?;
                self.start_server(node)?;
                system.boot(node)
            }
            Kind::AgentSigkill | Kind::UplinkFlap => Ok(()),
            Kind::AgentSigstop => system.signal_agent(node, Signal::SIGCONT),
            Kind::CutTwoWay => self.port(node, PortState::Forwarding),
            Kind::CutOneWay => node.sending(Verdict::Pass),
            Kind::BackendKilled => self.start_server(node),
            Kind::BackendHung => self.server(node)?.signal(Signal::SIGCONT),
        }
    }

    /// What a node's port of the switch does with frames of both directions.
    fn port(&self, node: &Node, state: PortState) -> Result<()> {
        let mut command = std::process::Command::new("bridge");
        let state = (state as u8).to_string();
        command.args(["link", "set", "dev", node.name(), "state", &state]);
        self.lab.switch().put_inside(&mut command);
        let output = command.output().context("run bridge")?;
        ensure!(output.status.success(), "bridge: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Waits until for [`CALM`] nothing failed and all servers answered.
    fn until_calm(&self, load: &Load, samples: &mut Vec<super::load::Sample>) -> Result<()> {
        let from = Instant::now();
        loop {
            thread::sleep(LOOK);
            samples.extend(load.take());
            let now = Instant::now();
            let servers = self.lab.nodes().len();
            let long = now.duration_since(from) >= CALM;
            if long && is_calm(samples, now - CALM, servers) {
                return Ok(());
            }
            if now.duration_since(from) > RESTORED {
                let last = felt(samples, now - CALM, now);
                bail!("not all as before within {} s: {last:?}", RESTORED.as_secs());
            }
        }
    }

    /// The node to which the router sends what is for `vip`, as its neighbour table says.
    fn announcer(&self, vip: IpAddr) -> Result<Option<String>> {
        let mut command = self.lab.router().command("ip");
        command.args(["neigh", "show", "to", &vip.to_string(), "dev", UPLINK]);
        let output = command.output().context("run ip neigh")?;
        let output = String::from_utf8_lossy(&output.stdout);
        let mac = output.split_whitespace().skip_while(|word| *word != "lladdr").nth(1);
        Ok(mac.and_then(|mac| self.macs.get(mac)).cloned())
    }
}

/// `BR_STATE_…` of linux/if_bridge.h.
#[derive(Clone, Copy, Debug)]
enum PortState {
    Disabled = 0,
    Forwarding = 3,
}

/// Where a node's server runs.
pub fn pod(node: &Node) -> &Host {
    &node.pods()[0]
}
