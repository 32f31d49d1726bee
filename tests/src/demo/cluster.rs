//! The machines of the demo, their servers, and the two ways to balance: nftables on one master, or weir everywhere.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    lab::{Host, Lab, Node, Process, UPLINK},
    traffic::http::HttpServer,
};

pub const MASTERS: [&str; 3] = ["master-1", "master-2", "master-3"];
pub const WORKERS: [&str; 3] = ["worker-1", "worker-2", "worker-3"];
const CLIENT: &str = "client";
/// Where a machine keeps its agent's words.
const LOG: &str = "agent.log";
/// Lines of it that are shown when the agent has ended by itself.
const LAST_LINES: usize = 15;

/// What clients ask for: an address and port, and the servers behind it.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    pub name: &'static str,
    pub port: u16,
    /// Label of the nodes that serve it.
    role: &'static str,
    pub servers: [&'static str; 3],
}

/// In the order of their VIPs.
pub const SERVICES: [Service; 2] = [
    Service { name: "api", port: 6443, role: "master", servers: MASTERS },
    Service { name: "apps", port: 80, role: "worker", servers: WORKERS },
];

/// One service in one family.
#[derive(Clone, Debug)]
pub struct Target {
    pub service: Service,
    pub address: SocketAddr,
}

/// Every service in both families.
pub fn targets() -> Vec<Target> {
    let of = |(number, service): (usize, &Service)| {
        let service = *service;
        Lab::vips(number as u8)
            .map(|vip| Target { service, address: SocketAddr::new(vip, service.port) })
    };
    SERVICES.iter().enumerate().flat_map(of).collect()
}

impl Target {
    /// Such as "api v4".
    pub fn name(&self) -> String {
        let family = if self.address.is_ipv4() { "v4" } else { "v6" };
        format!("{} {family}", self.service.name)
    }
}

/// The binary, as `cargo xtask demo` names it.
pub fn weir() -> Result<OsString> {
    std::env::var_os("WEIR_BIN")
        .context("WEIR_BIN does not name the weir binary: start the demo by cargo xtask demo")
}

/// Three masters, three workers, a router and a client beyond it.
pub struct Cluster {
    agents: BTreeMap<String, Process>,
    // Servers hold their machine's network; they end first.
    _servers: Vec<HttpServer>,
    lab: Lab,
}

impl Cluster {
    /// Builds it, with a server on every node, and nothing yet that balances.
    pub fn build() -> Result<Self> {
        let lab = MASTERS.iter().chain(&WORKERS);
        let lab = lab.fold(Lab::builder(), |lab, name| lab.node(name, 0));
        let lab = lab.client(CLIENT).build()?;
        let mut servers = Vec::new();
        for service in SERVICES {
            for name in service.servers {
                servers.push(HttpServer::start(lab.node(name), name, service.port)?);
            }
        }
        Ok(Self { agents: BTreeMap::new(), _servers: servers, lab })
    }

    pub fn node(&self, name: &str) -> &Node {
        self.lab.node(name)
    }

    pub fn client(&self) -> &Host {
        self.lab.client(CLIENT)
    }

    /// The one balanced entry, as it was: `entry` owns the VIPs' addresses and its nftables spread what comes in.
    pub fn balance_by_nftables(&self, entry: &str) -> Result<()> {
        let node = self.node(entry);
        for number in 0..SERVICES.len() {
            for vip in Lab::vips(number as u8) {
                let length = if vip.is_ipv4() { 32 } else { 128 };
                node.add_address(UPLINK, (vip, length))?;
            }
        }
        let rules = node.dir().join("entry.nft");
        fs::write(&rules, self.nftables()).context("write the rules")?;
        let output = node.command("nft").arg("-f").arg(&rules).output();
        let output = output.context("run nft")?;
        ensure!(
            output.status.success(),
            "nft refuses the rules: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn nftables(&self) -> String {
        let rule = |target: &Target| {
            let vip = target.address.ip();
            let ip = if vip.is_ipv4() { "ip" } else { "ip6" };
            let servers = target.service.servers.iter().enumerate();
            let server = |(at, name): (usize, &&str)| {
                let [v4, v6] = self.node(name).addresses();
                format!("{at} : {}", if vip.is_ipv4() { v4 } else { v6 })
            };
            format!(
                "    {ip} daddr {vip} tcp dport {} dnat {ip} to numgen inc mod {} map {{ {} }}\n",
                target.service.port,
                target.service.servers.len(),
                servers.map(server).collect::<Vec<_>>().join(", ")
            )
        };
        format!(
            "table inet entry {{\n  chain arriving {{\n    type nat hook prerouting priority dstnat;\n{}  }}\n  \
             chain leaving {{\n    type nat hook postrouting priority srcnat;\n    ct status dnat masquerade;\n  }}\n}}\n",
            targets().iter().map(rule).collect::<String>()
        )
    }

    /// Writes the one configuration of all nodes and starts an agent on each.
    pub fn balance_by_weir(&mut self) -> Result<()> {
        fs::write(self.config_file(), self.config()).context("write the configuration")?;
        for name in MASTERS.iter().chain(&WORKERS) {
            self.start_agent(name)?;
        }
        Ok(())
    }

    /// On the router's disk, which outlives every node's power; all read it from there.
    fn config_file(&self) -> PathBuf {
        self.lab.router().dir().join("weir.yaml")
    }

    fn config(&self) -> String {
        let mut objects = vec![include_str!("agent.yaml").to_owned()];
        for service in SERVICES {
            for name in service.servers {
                let [v4, v6] = self.node(name).addresses();
                objects.push(format!(
                    include_str!("node.yaml"),
                    name = name,
                    role = service.role,
                    v4 = v4,
                    v6 = v6
                ));
            }
        }
        for (number, service) in SERVICES.iter().enumerate() {
            let [v4, v6] = Lab::vips(number as u8);
            objects.push(format!(
                include_str!("frontend.yaml"),
                name = service.name,
                port = service.port,
                role = service.role,
                v4 = v4,
                v6 = v6
            ));
        }
        objects.join("---\n")
    }

    /// What a supervisor does at boot and after the agent's death.
    pub fn start_agent(&mut self, name: &str) -> Result<()> {
        let node = self.node(name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(node.dir().join(LOG))
            .context("open the agent's log")?;
        let mut command = node.command(weir()?);
        command
            .arg("agent")
            .arg("--config")
            .arg(self.config_file())
            .args(["--node", name])
            .arg("--pin-dir")
            .arg(node.bpf_fs().join("weir"))
            .arg("--state-dir")
            .arg(node.dir().join("weir"))
            .stdout(log.try_clone()?)
            .stderr(log);
        let agent = node.start(command)?;
        self.agents.insert(name.into(), agent);
        Ok(())
    }

    /// SIGKILL: the agent has no say in it.
    pub fn kill_agent(&mut self, name: &str) -> Result<()> {
        let agent = self.agents.remove(name);
        agent.with_context(|| format!("no agent runs on {name}"))?.kill()
    }

    pub fn power_off(&mut self, name: &str) -> Result<()> {
        self.agents.remove(name);
        self.node(name).power_off()
    }

    /// Fails with the last words of an agent that has ended by itself.
    pub fn check_agents(&self) -> Result<()> {
        for (name, agent) in &self.agents {
            if !agent.is_running()? {
                bail!("the agent on {name} ended; its last words:\n{}", self.log(name));
            }
        }
        Ok(())
    }

    /// The end of what a node's agent said.
    fn log(&self, name: &str) -> String {
        let text = fs::read(self.node(name).dir().join(LOG)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    /// The ends of all agents' logs, for a demo that went wrong.
    pub fn logs(&self) -> String {
        let names = MASTERS.iter().chain(&WORKERS);
        names.map(|name| format!("-- {name}\n{}\n", self.log(name))).collect()
    }

    /// The node to which the router sends what is for `vip`, as its neighbour table says.
    pub fn announcer(&self, vip: IpAddr) -> Result<Option<&'static str>> {
        let router = self.lab.router();
        let mut command = router.command("ip");
        command.args(["neigh", "show", "to", &vip.to_string(), "dev", UPLINK]);
        let output = command.output().context("run ip neigh")?;
        let output = String::from_utf8_lossy(&output.stdout);
        let mut words = output.split_whitespace();
        let Some(mac) = words.find(|w| *w == "lladdr").and_then(|_| words.next()) else {
            return Ok(None);
        };
        for name in MASTERS.iter().chain(&WORKERS) {
            let path = format!("/sys/class/net/{UPLINK}/address");
            let own = self.node(name).run(|| fs::read_to_string(path))?;
            if own.trim() == mac {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}
