//! What others build of Debian's packages: keepalived moves the VIPs, HAProxy or nftables on their holder spread requests.
//!
//! Every node runs keepalived as a backup, priorities falling from node-1 on, so node-1 holds all VIPs whenever it can. As
//! agent counts keepalived, with its child; HAProxy runs on. Each pair comes with two settings: the packages' defaults, and
//! the fast ones that their documentation names.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::IpAddr,
    path::PathBuf,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    kind::{HEALTH_FALL, HEALTH_INTERVAL},
    site::{PORT, Site, VIPS, pod},
    system::System,
};
use crate::lab::{Host, Lab, Node, Process, UPLINK};

/// Said under the table.
pub const REMARK: &str = "At keepalived+…, agent-sigkill and agent-sigstop hit keepalived and its child; HAProxy runs on.";
/// The first node takes the VIPs within this when all is well.
const READY: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);
/// Of VRRP: an instance for each family.
const ROUTER_IDS: [u8; 2] = [51, 52];
const HIGHEST_PRIORITY: usize = 200;
/// Where a host's files are, as seen from inside.
const INSIDE: &str = "/sys/fs/disk";

/// Who spreads the requests that reach the VIPs' holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spreader {
    HaProxy,
    /// A static map; nobody looks whether a backend lives.
    Nftables,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// What the packages do unless told otherwise.
    Default,
    /// Adverts in centiseconds (VRRPv3), checks as often as weir's, requests tried again elsewhere.
    Fast,
}

/// keepalived and a spreader on every node of a site.
pub struct Peer<'site> {
    site: &'site Site,
    spreader: Spreader,
    pace: Pace,
    keepaliveds: Mutex<BTreeMap<String, Process>>,
}

/// What of their configuration the figures depend on.
pub fn settings(spreader: Spreader, pace: Pace) -> String {
    let vrrp = match pace {
        Pace::Default => "keepalived: advert_int 1",
        Pace::Fast => "keepalived: version 3, advert_int 0.1",
    };
    match spreader {
        Spreader::HaProxy => format!("{vrrp}\nHAProxy: {}", haproxy_settings(pace).join("\n  ")),
        Spreader::Nftables => format!("{vrrp}\nnftables: dnat to numgen inc mod NODES, masquerade"),
    }
}

/// Lines of the section `defaults`. The first three are those of the package's own file.
fn haproxy_settings(pace: Pace) -> Vec<String> {
    let ms = HEALTH_INTERVAL.as_millis();
    let own = ["timeout connect 5000", "timeout client 50000", "timeout server 50000"];
    let mut lines: Vec<_> = own.map(String::from).into();
    if pace == Pace::Fast {
        lines = vec![
            format!("timeout connect {ms}ms"),
            "timeout client 50000".into(),
            "timeout server 50000".into(),
            format!("timeout check {ms}ms"),
            "option redispatch 1".into(),
            format!(
                "default-server inter {ms}ms fall {HEALTH_FALL} rise 2 observe layer4 error-limit {HEALTH_FALL} on-error \
                 mark-down"
            ),
        ];
    }
    lines
}

impl<'site> Peer<'site> {
    pub fn start(site: &'site Site, spreader: Spreader, pace: Pace) -> Result<Self> {
        check_packages()?;
        let peer = Self { site, spreader, pace, keepaliveds: Mutex::default() };
        for node in site.lab.nodes() {
            peer.boot(node)?;
        }
        Ok(peer)
    }

    fn start_haproxy(&self, node: &Node) -> Result<()> {
        let servers = self.site.lab.nodes().iter().map(|node| {
            let (name, address) = (node.name(), pod(node).v4());
            format!("  server {name} {address}:{PORT} check\n")
        });
        let config = format!(
            "global\n  maxconn 4096\ndefaults\n  mode http\n  {}\nlisten web\n  bind :::{PORT} v4v6\n  balance roundrobin\n  \
             option httpchk\n{}",
            haproxy_settings(self.pace).join("\n  "),
            servers.collect::<String>()
        );
        fs::write(node.dir().join("haproxy.cfg"), config)?;
        let mut command = node.command("haproxy");
        command.args(["-db", "-q", "-f", &format!("{INSIDE}/haproxy.cfg")]);
        start_logged(node, command, "haproxy.log").map(drop)
    }

    /// The rules, as a boot script loads them.
    fn load_rules(&self, node: &Node) -> Result<()> {
        let rule = |vip: IpAddr| {
            let (ip, family) = if vip.is_ipv4() { ("ip", 0) } else { ("ip6", 1) };
            let servers = self.site.lab.nodes().iter().enumerate();
            let server =
                |(at, node): (usize, &Node)| format!("{at} : {}", pod(node).addresses()[family]);
            let servers: Vec<_> = servers.map(server).collect();
            format!(
                "    {ip} daddr {vip} tcp dport {PORT} dnat {ip} to numgen inc mod {} map {{ {} }}\n",
                servers.len(),
                servers.join(", ")
            )
        };
        let rules = format!(
            "table inet web\nflush table inet web\ntable inet web {{\n  chain arriving {{\n    type nat hook prerouting \
             priority dstnat;\n{}  }}\n  chain leaving {{\n    type nat hook postrouting priority srcnat;\n    ct status dnat \
             masquerade;\n  }}\n}}\n",
            vips().into_iter().map(rule).collect::<String>()
        );
        let path = node.dir().join("web.nft");
        fs::write(&path, rules)?;
        let mut command = node.command("nft");
        succeed(command.arg("-f").arg(path)).map(drop)
    }

    fn keepalived_config(&self, node: &Node) -> Result<String> {
        let nodes = self.site.lab.nodes();
        let at = nodes.iter().position(|other| other.name() == node.name()).context("a node")?;
        let (version, advert) = match self.pace {
            Pace::Default => ("", "1"),
            Pace::Fast => ("  version 3\n", "0.1"),
        };
        let instance = |(family, id): (usize, u8)| {
            let of_family = vips().into_iter().filter(|vip| vip.is_ipv6() == (family == 1));
            let length = if family == 0 { 24 } else { 64 };
            let addresses =
                of_family.map(|vip| format!("    {vip}/{length}\n")).collect::<String>();
            format!(
                "vrrp_instance web-{family} {{\n  state BACKUP\n  interface {UPLINK}\n  virtual_router_id {id}\n{version}  \
                 priority {}\n  advert_int {advert}\n  virtual_ipaddress {{\n{addresses}  }}\n}}\n",
                HIGHEST_PRIORITY - 10 * at
            )
        };
        let instances = ROUTER_IDS.into_iter().enumerate().map(instance).collect::<String>();
        Ok(format!("global_defs {{\n  router_id {}\n}}\n{instances}", node.name()))
    }

    fn keepaliveds(&self) -> MutexGuard<'_, BTreeMap<String, Process>> {
        self.keepaliveds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keepalived(&self, node: &Node) -> Result<Process> {
        self.keepaliveds().get(node.name()).cloned().context("keepalived was started")
    }

    /// VIPs that a node's uplink has.
    fn held(&self, node: &Node) -> Result<Vec<IpAddr>> {
        let mut command = node.command("ip");
        let text = succeed(command.args(["-o", "addr", "show", "dev", UPLINK]))?;
        let has = |vip: &IpAddr| text.contains(&format!(" {vip}/"));
        Ok(vips().into_iter().filter(has).collect())
    }
}

impl System for Peer<'_> {
    fn boot(&self, node: &Node) -> Result<()> {
        match self.spreader {
            Spreader::HaProxy => self.start_haproxy(node)?,
            Spreader::Nftables => self.load_rules(node)?,
        }
        self.start_agent(node)
    }

    fn start_agent(&self, node: &Node) -> Result<()> {
        fs::write(node.dir().join("keepalived.conf"), self.keepalived_config(node)?)?;
        let mut command = node.command("keepalived");
        command.args(["--dont-fork", "--log-console", "--no-syslog", "--vrrp"]);
        command.arg(format!("--use-file={INSIDE}/keepalived.conf"));
        for (option, file) in [("--pid", "keepalived.pid"), ("--vrrp_pid", "vrrp.pid")] {
            command.arg(format!("{option}={INSIDE}/{file}"));
            // What was killed a moment ago may still be in the list of processes, and would count as running.
            let left = node.dir().join(file);
            if left.exists() {
                fs::remove_file(left)?;
            }
        }
        let process = start_logged(node, command, "keepalived.log")?;
        self.keepaliveds().insert(node.name().to_owned(), process);
        Ok(())
    }

    /// The parent is stopped first: it would start its child again; and the child would hand over in good order, if it saw
    /// its parent die.
    fn kill_agent(&self, node: &Node) -> Result<()> {
        let parent = self.keepalived(node)?;
        parent.signal(Signal::SIGSTOP)?;
        for child in children(&parent)? {
            kill(child, Signal::SIGKILL).context("kill keepalived's child")?;
        }
        parent.kill()
    }

    fn signal_agent(&self, node: &Node, signal: Signal) -> Result<()> {
        let parent = self.keepalived(node)?;
        for child in children(&parent)? {
            kill(child, signal).context("signal keepalived's child")?;
        }
        parent.signal(signal)
    }

    /// keepalived gave the uplink its addresses; they would still be there.
    fn forget(&self, node: &Node) -> Result<()> {
        for vip in self.held(node)? {
            // Unlike `del` no error where keepalived, as it ended, was quicker.
            let mut command = node.command("ip");
            succeed(command.args(["addr", "flush", "dev", UPLINK, "to", &vip.to_string()]))?;
        }
        Ok(())
    }

    /// Node 1 alone holds all VIPs.
    fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY;
        let wanted = |at| if at == 0 { vips() } else { Vec::new() };
        loop {
            let held = self.site.lab.nodes().iter().map(|node| self.held(node));
            let held = held.collect::<Result<Vec<_>>>()?;
            if held.iter().enumerate().all(|(at, held)| *held == wanted(at)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let first = &self.site.lab.nodes()[0];
                let log = fs::read_to_string(first.dir().join("keepalived.log"))?;
                bail!("the first node does not hold all VIPs alone: {held:?}\n{log}");
            }
            thread::sleep(LOOK);
        }
    }
}

/// All VIPs, sorted by family.
fn vips() -> Vec<IpAddr> {
    let mut vips: Vec<_> = (0..VIPS).flat_map(Lab::vips).collect();
    vips.sort();
    vips
}

/// Processes that a process has started itself.
fn children(parent: &Process) -> Result<Vec<Pid>> {
    let id = parent.id();
    let text = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
    text.split_whitespace().map(|id| Ok(Pid::from_raw(id.parse()?))).collect()
}

fn start_logged(node: &Host, mut command: Command, log: &str) -> Result<Process> {
    let log = File::options().create(true).append(true).open(node.dir().join(log))?;
    command.stdout(log.try_clone()?).stderr(log);
    node.start(command)
}

/// What a command says that must succeed.
fn succeed(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {:?}", command.get_program()))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {error}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn check_packages() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let has = |program: &str| folders.iter().any(|folder| folder.join(program).is_file());
    let missing: Vec<_> =
        [("keepalived", "keepalived"), ("haproxy", "haproxy"), ("nft", "nftables")]
            .into_iter()
            .filter(|(program, _)| !has(program))
            .map(|(_, package)| package)
            .collect();
    ensure!(
        missing.is_empty(),
        "the peers are not installed: apt-get install {0}; or measure --systems weir alone",
        missing.join(" ")
    );
    Ok(())
}
