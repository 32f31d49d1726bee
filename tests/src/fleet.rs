//! weir itself on the nodes of a lab: one configuration, one agent per node, and the command line inside any of them.
//!
//! The binary is the one that `WEIR_BIN` names, as a child process on its node, with its pins on the node's own bpf file
//! system and its state on the node's own disk. Never reaches into the agent: what a fleet knows it asks `weir … -o json`.
//! When a test fails, the end of every agent's log is printed.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, OpenOptions},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::{Host, Lab, Node, Process, UPLINK, eventually};

/// Names the binary under test.
pub const BINARY: &str = "WEIR_BIN";
/// Names the same with another layout of its maps, for upgrades and downgrades.
pub const NEXT_BINARY: &str = "WEIR_NEXT_BIN";
/// The agents' state folder, as seen from inside a node.
const STATE_DIR: &str = "/sys/fs/disk/weir";
/// The agents' pin folder, as seen from inside a node: the product's default.
pub const PIN_DIR: &str = "/sys/fs/bpf/weir";
const LOG: &str = "agent.log";
/// Bytes printed of each log when a test fails.
const LOG_TAIL: usize = 4_000;
/// For what an agent does at once, on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(15);

/// Agents on all nodes of a lab. Dropping it ends them; what they pinned stays until the lab ends.
pub struct Fleet<'lab> {
    lab: &'lab Lab,
    binary: PathBuf,
    /// Nodes with another binary.
    binaries: Mutex<BTreeMap<String, PathBuf>>,
    files: tempfile::TempDir,
    /// Further lines of the `Agent`'s spec.
    agent: String,
    /// The configuration describes the nodes.
    nodes: bool,
    agents: Mutex<BTreeMap<String, Process>>,
}

impl<'lab> Fleet<'lab> {
    /// Writes `frontends` (YAML objects, see [`frontend`]) beside one `Agent` and a `Node` for each node, starts an agent
    /// on every node and waits until the fleet is [ready](Fleet::wait_ready).
    pub fn start(lab: &'lab Lab, frontends: &str) -> Result<Self> {
        let fleet = Self::prepare(lab, frontends)?;
        for node in lab.nodes() {
            fleet.start_agent(node)?;
        }
        fleet.wait_ready();
        Ok(fleet)
    }

    /// Everything but the agents.
    pub fn prepare(lab: &'lab Lab, frontends: &str) -> Result<Self> {
        Self::prepare_with(lab, "", frontends)
    }

    /// The same with further lines of the `Agent`'s spec.
    pub fn prepare_with(lab: &'lab Lab, agent: &str, frontends: &str) -> Result<Self> {
        let binary = named(BINARY)?;
        let agent = indented(agent);
        let files = tempfile::tempdir()?;
        let fleet = Self {
            lab,
            binary,
            binaries: Mutex::default(),
            files,
            agent,
            nodes: true,
            agents: Mutex::default(),
        };
        fleet.configure(frontends)?;
        Ok(fleet)
    }

    /// Adds lines to the `Agent`'s spec; [`configure`](Fleet::configure) writes them.
    pub fn add_to_agent(&mut self, lines: &str) {
        self.agent.push_str(&indented(lines));
    }

    /// Leaves the `Node` objects to another source; [`configure`](Fleet::configure) writes what stays.
    pub fn leave_nodes_out(&mut self) {
        self.nodes = false;
    }

    /// The configuration that all agents read.
    pub fn config(&self) -> PathBuf {
        self.files.path().join("weir.yaml")
    }

    /// Replaces the configuration. Agents see it by themselves.
    pub fn configure(&self, frontends: &str) -> Result<()> {
        let (to, new) = (self.config(), self.files.path().join("new.yaml"));
        fs::write(&new, self.objects(frontends))?;
        fs::rename(new, to)?;
        Ok(())
    }

    fn objects(&self, frontends: &str) -> String {
        let mut text = format!(
            "apiVersion: weir.dev/v1alpha1\nkind: Agent\nmetadata: {{name: fleet}}\nspec:\n  uplinks: [{UPLINK}]\n  \
             seed: one seed for the whole fleet\n{}",
            self.agent
        );
        for node in self.lab.nodes().iter().filter(|_| self.nodes) {
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "---\napiVersion: weir.dev/v1alpha1\nkind: Node\nmetadata: {{name: {}}}\nspec: {{addresses: [\"{}\", \
                 \"{}\"]}}\n",
                node.name(),
                node.v4(),
                node.v6()
            );
        }
        text + frontends
    }

    /// From now on agent and command line of a node are the binary that this variable names:
    /// [`BINARY`] or [`NEXT_BINARY`]. An agent that runs there stays what it is.
    pub fn install(&self, node: &Host, variable: &str) -> Result<()> {
        let binary = named(variable)?;
        let mut binaries = self.binaries.lock().unwrap_or_else(PoisonError::into_inner);
        binaries.insert(node.name().to_owned(), binary);
        Ok(())
    }

    /// Starts the agent of one node. What it says is added to the node's log.
    pub fn start_agent(&self, node: &Host) -> Result<Process> {
        let log = OpenOptions::new().create(true).append(true).open(node.dir().join(LOG))?;
        let mut command = self.agent_command(node);
        command.stdout(log.try_clone()?).stderr(log);
        let process = node.start(command)?;
        self.agents().insert(node.name().to_owned(), process.clone());
        Ok(process)
    }

    /// `weir agent` as this fleet runs it.
    pub fn agent_command(&self, node: &Host) -> Command {
        let mut command = self.command(node, &["agent", "--node", node.name(), "--config"]);
        command.arg(self.config()).env("RUST_BACKTRACE", "1");
        command
    }

    /// A node's agent, dead or alive.
    ///
    /// # Panics
    /// If none was started.
    pub fn agent(&self, node: &Host) -> Process {
        self.agents()[node.name()].clone()
    }

    /// What the agents of a node have logged.
    pub fn log(&self, node: &Host) -> String {
        fs::read_to_string(node.dir().join(LOG)).unwrap_or_default()
    }

    fn agents(&self) -> MutexGuard<'_, BTreeMap<String, Process>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `weir ARGUMENTS` on a node.
    pub fn weir(&self, node: &Host, arguments: &[&str]) -> Result<Output> {
        Ok(self.command(node, arguments).output()?)
    }

    /// The answer of `weir ARGUMENTS -o json` on a node.
    pub fn ask(&self, node: &Host, arguments: &[&str]) -> Result<Value> {
        let output = self.weir(node, &[arguments, &["-o", "json"]].concat())?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "weir {arguments:?} on {}: {error}", node.name());
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Removes a node's files: its next agent knows nothing of what was, but for what is pinned.
    pub fn forget(&self, node: &Host) -> Result<()> {
        let files = node.dir().join(Path::new(STATE_DIR).file_name().context("a name")?);
        match fs::remove_dir_all(&files) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", files.display()))
            }
            _ => Ok(()),
        }
    }

    fn command(&self, node: &Host, arguments: &[&str]) -> Command {
        let binaries = self.binaries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut command = node.command(binaries.get(node.name()).unwrap_or(&self.binary));
        command.args(["--state-dir", STATE_DIR]).args(arguments);
        command
    }

    /// Waits until every agent is alive, has heard every other, sees no problem and has probed every target; and until all
    /// of them agree on who announces each VIP, and that node does.
    ///
    /// # Panics
    /// If that takes too long, or an agent ends.
    pub fn wait_ready(&self) {
        let nodes = self.lab.nodes();
        for node in nodes {
            eventually(&format!("agent of {} is ready", node.name()), SOON, || {
                let runs = self.agent(node).is_running().expect("a child process");
                assert!(runs, "the agent of {} ended:\n{}", node.name(), self.log(node));
                self.is_node_ready(node)
            });
        }
        eventually("all agree on who announces each VIP", SOON, || self.agree());
    }

    /// Waits until the agent that runs on a node now has its programs on all devices, whatever it thinks of other nodes.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn wait_attached(&self, node: &Host) {
        eventually(&format!("agent of {} is attached", node.name()), SOON, || {
            self.ask(node, &["status"]).is_ok_and(|status| {
                status["agent"]["pid"] == self.agent(node).id()
                    && status["attachments"].as_array().is_some_and(|list| list.len() == 3)
            })
        });
    }

    /// What [`Fleet::wait_ready`] waits for, now.
    pub fn is_ready(&self) -> bool {
        self.lab.nodes().iter().all(|node| self.is_node_ready(node)) && self.agree()
    }

    /// By the account of the agent that runs now: after a kill there is still that of the one before.
    fn is_node_ready(&self, node: &Host) -> bool {
        let (agent, nodes) = (self.agent(node).id(), self.lab.nodes().len());
        self.ask(node, &["status"])
            .is_ok_and(|status| status["agent"]["pid"] == agent && is_ready(&status, nodes))
    }

    /// Whether all see the same announcer for each VIP, it does announce it, and no node waits for its turn to take VIPs.
    fn agree(&self) -> bool {
        let nodes = self.lab.nodes();
        let views: Vec<_> = nodes.iter().map(|node| self.vips(node)).collect();
        let planned =
            |view: &[VipHere]| view.iter().map(|vip| vip.announcer.clone()).collect::<Vec<_>>();
        let agreed =
            views.iter().all(|view| !view.is_empty() && planned(view) == planned(&views[0]));
        let does = |(node, view): (&Node, &Vec<VipHere>)| {
            view.iter().all(|vip| vip.announced == (vip.announcer.as_deref() == Some(node.name())))
        };
        let settled = |node: &Node| {
            let answer = self.ask(node, &["vips", "--why"]).unwrap_or_default();
            !answer.is_null() && !standings(&answer).any(|standing| standing == "held back")
        };
        agreed && nodes.iter().zip(&views).all(does) && nodes.iter().all(settled)
    }

    fn vips(&self, node: &Host) -> Vec<VipHere> {
        let answer = self.ask(node, &["vips"]).unwrap_or_default();
        let vips = answer["vips"].as_array().cloned().unwrap_or_default();
        let here = |vip: Value| VipHere {
            address: vip["address"].as_str().unwrap_or_default().to_owned(),
            announced: !vip["announced_on"].is_null(),
            announcer: vip["announcer"].as_str().map(str::to_owned),
        };
        vips.into_iter().map(here).collect()
    }

    /// Whether a node answers ARP or NDP for a VIP.
    pub fn announces(&self, node: &Host, vip: IpAddr) -> bool {
        self.vips(node).iter().any(|here| here.announced && here.address == vip.to_string())
    }

    /// The number of a VIP ([`Lab::vips`]), among the first `count`, that `node` announces in the family of `like`.
    ///
    /// # Panics
    /// If there is none: the fleet needs more VIPs.
    pub fn vip_of(&self, node: &Host, like: IpAddr, count: u8) -> IpAddr {
        let here = self.vips(node);
        (0..count)
            .map(|number| family(Lab::vips(number), like))
            .find(|vip| here.iter().any(|h| h.announced && h.address == vip.to_string()))
            .unwrap_or_else(|| panic!("{} announces none of {count} VIPs", node.name()))
    }

    /// How many packets met a fate on a node, by the name of the reason.
    ///
    /// # Panics
    /// If there is no such reason.
    pub fn count(&self, node: &Host, reason: &str) -> u64 {
        let answer = self.ask(node, &["counters"]).expect("counters");
        let counters = answer["counters"].as_array().expect("a list");
        let counter = counters.iter().find(|counter| counter["name"] == reason);
        counter.unwrap_or_else(|| panic!("no reason {reason}"))["packets"]
            .as_u64()
            .expect("a number")
    }

    /// How many slots of `frontend` (`192.0.2.1:80`) each backend owns, as a node sees it.
    pub fn owners(&self, node: &Host, frontend: SocketAddr) -> BTreeMap<String, u64> {
        let answer = self.ask(node, &["owners", &frontend.to_string()]).unwrap_or_default();
        let owners = answer["owners"].as_array().cloned().unwrap_or_default();
        let slots =
            |owner: Value| Some((owner["backend"].as_str()?.to_owned(), owner["slots"].as_u64()?));
        owners.into_iter().filter_map(slots).filter(|(_, slots)| *slots > 0).collect()
    }

    /// Kills an agent as the kernel would when memory is short.
    pub fn kill_agent(&self, node: &Host) -> Result<()> {
        self.agent(node).kill()
    }

    /// Asks an agent to end, and waits until it has.
    pub fn stop_agent(&self, node: &Host) -> Result<()> {
        let agent = self.agent(node);
        agent.signal(Signal::SIGTERM)?;
        let ended = agent.wait(SOON)?.context("the agent does not end")?;
        ensure!(ended.success(), "the agent ended with {ended}");
        Ok(())
    }
}

impl Drop for Fleet<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            for node in self.lab.nodes() {
                let log = self.log(node);
                let tail = log.ceil_char_boundary(log.len().saturating_sub(LOG_TAIL));
                let status = self.ask(node, &["status"]).unwrap_or_default();
                let fates = self.ask(node, &["counters"]).unwrap_or_default();
                let fates = fates["counters"].as_array().cloned().unwrap_or_default();
                let counted = fates.iter().filter(|it| it["packets"] != 0);
                let fates: Vec<_> =
                    counted.map(|it| format!("{} {}", it["name"], it["packets"])).collect();
                eprintln!("== packets at {}: {}", node.name(), fates.join(", "));
                eprintln!(
                    "== agent of {}: problems {}\n{}",
                    node.name(),
                    status["problems"],
                    &log[tail..]
                );
            }
        }
    }
}

/// The binary that a variable names.
pub fn named(variable: &str) -> Result<PathBuf> {
    let binary = std::env::var_os(variable).with_context(|| {
        format!("set {variable} to a weir binary: cargo xtask build --debug --next")
    })?;
    fs::canonicalize(&binary).with_context(|| format!("{variable}={binary:?}"))
}

/// A VIP as one node sees it.
struct VipHere {
    address: String,
    announced: bool,
    announcer: Option<String>,
}

/// How the candidates of all VIPs stand, in an answer of `weir vips --why`.
fn standings(answer: &Value) -> impl Iterator<Item = &str> {
    let vips = answer["vips"].as_array().into_iter().flatten();
    vips.flat_map(|vip| vip["candidates"].as_array().into_iter().flatten())
        .filter_map(|candidate| candidate["standing"].as_str())
}

/// Whether the agent of one of so many nodes has all programs attached and knows the state of all others and all targets.
fn is_ready(status: &Value, nodes: usize) -> bool {
    let list = |name: &str| status[name].as_array().map(Vec::as_slice).unwrap_or_default();
    status["agent"]["alive"] == true
        && list("attachments").len() == 3
        && list("members").len() == nodes
        && list("members").iter().all(|member| {
            member["life"] == "alive" && member["heard"] == true && member["serves"] == true
        })
        && list("targets").iter().all(|target| target["health"] != "unknown")
        && list("problems").is_empty()
}

/// The address of the family of `like`.
pub fn family(pair: [IpAddr; 2], like: IpAddr) -> IpAddr {
    pair[usize::from(like.is_ipv6())]
}

/// A pool member: an address and the node behind which it is.
pub type Member = (IpAddr, String);

/// All addresses of hosts behind (or of) their nodes, as pool members.
pub fn members<'a>(hosts: impl IntoIterator<Item = (&'a Host, &'a Host)>) -> Vec<Member> {
    let both = |(host, node): (&Host, &Host)| {
        host.addresses().map(|address| (address, node.name().to_owned()))
    };
    hosts.into_iter().flat_map(both).collect()
}

/// A `Frontend` object: `ports` such as `80` or `53/UDP`, `members`, and further lines of its `spec`, if any.
pub fn frontend(
    name: &str,
    vips: &[IpAddr],
    ports: &[&str],
    members: &[Member],
    more: &str,
) -> String {
    let vips: Vec<_> = vips.iter().map(|vip| format!("\"{vip}\"")).collect();
    let ports = ports.iter().map(|port| {
        let (port, protocol) = port.split_once('/').unwrap_or((port, "TCP"));
        format!("{{port: {port}, protocol: {protocol}}}")
    });
    let members =
        members.iter().map(|(address, node)| format!("{{address: \"{address}\", node: {node}}}"));
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Frontend\nmetadata: {{name: {name}}}\nspec:\n  addresses: [{}]\n  \
         ports: [{}]\n  pool: {{members: [{}]}}\n{}",
        vips.join(", "),
        ports.collect::<Vec<_>>().join(", "),
        members.collect::<Vec<_>>().join(", "),
        indented(more)
    )
}

/// Lines as part of a `spec`.
fn indented(lines: &str) -> String {
    lines.lines().map(|line| format!("  {line}\n")).collect()
}

/// A health check by TCP that takes at most `interval × fall` plus one interval to notice.
pub fn tcp_check(port: u16, interval_ms: u32) -> String {
    format!(
        "healthCheck: {{type: TCP, port: {port}, interval: {interval_ms}ms, timeout: {interval_ms}ms, rise: 2, fall: 3}}"
    )
}

/// The path of a file inside a node's pin folder, valid from everywhere.
pub fn pin_dir(node: &Host) -> PathBuf {
    node.bpf_fs().join(Path::new(PIN_DIR).file_name().expect("a name"))
}
