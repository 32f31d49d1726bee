//! Who is in the lab and how they are wired. The picture is in the parent module.

use std::{
    fmt::Write as _,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Deref,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, ensure};

use super::{
    Forwarding, Gate, Host, Namespace, Netlink, Prefix, Verdict, default_route,
    device::finish_frames, host_route,
};

/// The one device of every host but the router, and the router's towards the switch.
pub const UPLINK: &str = "eth0";
const BRIDGE: &str = "switch";
/// Longest name of a network device (IFNAMSIZ less the final zero).
const MAX_NAME: usize = 15;
/// Nodes 10.0.0.11 to 10.0.0.99; VIPs begin at .100.
const MAX_NODES: usize = 89;
/// Pods of one node: 10.1.N.1 to 10.1.N.99.
const MAX_PODS: usize = 99;
/// Clients: 10.2.1.2 to 10.2.99.2.
const MAX_CLIENTS: usize = 99;
/// Set to keep the lab of a failed test until Ctrl-C.
const HOLD: &str = "WEIR_LAB_HOLD";

/// Describes a lab before it is built.
#[derive(Clone, Debug, Default)]
pub struct LabBuilder {
    nodes: Vec<(String, usize)>,
    clients: Vec<String>,
}

/// A switch shows no frame to netfilter, as the kernel's does where the module br_netfilter is loaded (Docker, Kubernetes).
fn no_firewall() -> io::Result<()> {
    for table in ["iptables", "ip6tables", "arptables"] {
        match fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{table}"), "0") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
    }
    Ok(())
}

/// A running lab. Dropping it ends every host, process and link in it.
pub struct Lab {
    // Hosts end before the switch, so that no port vanishes under a living process.
    clients: Vec<Host>,
    nodes: Vec<Node>,
    router: Host,
    switch: Arc<Namespace>,
}

/// A node: a host on the switch, with pods behind it. See [`Host`] for what every host can do.
pub struct Node {
    host: Host,
    number: usize,
    pods: Vec<Host>,
    gate: Gate,
    switch: Arc<Namespace>,
}

impl LabBuilder {
    /// Adds a node with so many pods. The first node is number 1.
    pub fn node(mut self, name: &str, pods: usize) -> Self {
        self.nodes.push((name.to_owned(), pods));
        self
    }

    /// Adds `count` nodes named node-1, node-2, … with `pods` pods each.
    pub fn nodes(self, count: usize, pods: usize) -> Self {
        let first = self.nodes.len() + 1;
        (first..first + count).fold(self, |lab, number| lab.node(&format!("node-{number}"), pods))
    }

    /// Adds a client beyond the router. The first client is number 1.
    pub fn client(mut self, name: &str) -> Self {
        self.clients.push(name.to_owned());
        self
    }

    /// Makes all hosts and links. Fails without root.
    pub fn build(self) -> Result<Lab> {
        self.check()?;
        let switch = Arc::new(Namespace::new(BRIDGE)?);
        Netlink::with(&switch, async |net| net.bridge(BRIDGE).await)?;
        switch.run(no_firewall).context("take the switch's frames away from netfilter")?;
        let router = Host::new("router", v4(0, 0, 1), v6(0, 0, 1), Forwarding::On)?;
        plug_in(&router, &switch)?;
        let nodes = self
            .nodes
            .iter()
            .enumerate()
            .map(|(at, (name, pods))| Node::new(name, at + 1, *pods, &switch));
        let nodes = nodes.collect::<Result<Vec<_>>>()?;
        let clients =
            self.clients.iter().enumerate().map(|(at, name)| client(name, at + 1, &router));
        let clients = clients.collect::<Result<Vec<_>>>()?;
        let lab = Lab { clients, nodes, router, switch };
        lab.route_pods()?;
        Ok(lab)
    }

    fn check(&self) -> Result<()> {
        let names = || self.nodes.iter().map(|(name, _)| name).chain(&self.clients);
        for (at, name) in names().enumerate() {
            let fits = (1..=MAX_NAME).contains(&name.len());
            ensure!(
                fits && name != "router",
                "{name:?}: names of hosts have 1 to {MAX_NAME} bytes, \"router\" is taken"
            );
            ensure!(names().take(at).all(|earlier| earlier != name), "two hosts are named {name}");
        }
        ensure!(self.nodes.len() <= MAX_NODES, "a lab has at most {MAX_NODES} nodes");
        ensure!(
            self.nodes.iter().all(|(_, pods)| *pods <= MAX_PODS),
            "a node has at most {MAX_PODS} pods"
        );
        ensure!(self.clients.len() <= MAX_CLIENTS, "a lab has at most {MAX_CLIENTS} clients");
        Ok(())
    }
}

impl Lab {
    pub fn builder() -> LabBuilder {
        LabBuilder::default()
    }

    /// The router, which every client's packets pass.
    pub fn router(&self) -> &Host {
        &self.router
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of that name.
    ///
    /// # Panics
    /// If there is none.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes
            .iter()
            .find(|node| node.name() == name)
            .unwrap_or_else(|| panic!("no node {name}"))
    }

    pub fn clients(&self) -> &[Host] {
        &self.clients
    }

    /// The client of that name.
    ///
    /// # Panics
    /// If there is none.
    pub fn client(&self, name: &str) -> &Host {
        self.clients
            .iter()
            .find(|client| client.name() == name)
            .unwrap_or_else(|| panic!("no client {name}"))
    }

    /// The switch's own namespace: its ports are named after the hosts plugged in.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// The `number`-th VIP of each family, IPv4 first, from 0 on: 10.0.0.100 and fd00::100, ….
    pub fn vips(number: u8) -> [IpAddr; 2] {
        let digits = 100 + u16::from(number);
        [v4(0, 0, digits).into(), v6(0, 0, digits).into()]
    }

    /// Has the router spread what is for `vips` over `nodes`, by addresses and ports of each flow; nobody needs to announce
    /// them. Replaces the nodes that were there; the router keeps no flow, so many flows then change their node.
    pub fn spread(&self, vips: &[IpAddr], nodes: &[&Node]) -> Result<()> {
        let families = [("ipv4", false), ("ipv6", true)];
        for (name, v6) in families {
            self.router.sysctl(&format!("net/{name}/fib_multipath_hash_policy"), "1")?;
            let gateways: Vec<_> =
                nodes.iter().map(|node| if v6 { node.v6() } else { node.v4() }).collect();
            for vip in vips.iter().filter(|vip| vip.is_ipv6() == v6) {
                self.router.route(host_route(*vip), &gateways)?;
            }
        }
        Ok(())
    }

    /// All hosts with their addresses, and how to get a shell on each.
    pub fn map(&self) -> String {
        let hosts =
            self.nodes.iter().flat_map(|node| std::iter::once(&node.host).chain(&node.pods));
        let mut text = String::new();
        for host in self.clients.iter().chain([&self.router]).chain(hosts) {
            let thread = host.namespace().thread_id();
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{:22} {:15} {:18} nsenter -t {thread} -n -m",
                host.name(),
                host.v4(),
                host.v6()
            );
        }
        let _ = writeln!(text, "{:56} nsenter -t {} -n -m", "switch", self.switch.thread_id());
        text
    }

    /// The pods' networks are reached by their nodes, from everywhere.
    fn route_pods(&self) -> Result<()> {
        for node in &self.nodes {
            let others = self
                .nodes
                .iter()
                .filter(|other| other.name() != node.name())
                .map(|other| &other.host);
            for host in others.chain([&self.router]) {
                host.netlink(async |net| {
                    let [v4, v6] = node.pod_networks();
                    net.route(v4, &[node.v4()]).await?;
                    net.route(v6, &[node.v6()]).await
                })?;
            }
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() && std::env::var_os(HOLD).is_some() {
            eprintln!("{HOLD} is set: the lab stays until Ctrl-C\n{}", self.map());
            loop {
                thread::park();
            }
        }
    }
}

impl Node {
    fn new(name: &str, number: usize, pods: usize, switch: &Arc<Namespace>) -> Result<Self> {
        let digits = 10 + number as u16;
        let host = Host::new(name, v4(0, 0, digits), v6(0, 0, digits), Forwarding::On)?;
        plug_in(&host, switch)?;
        for gateway in [IpAddr::from(v4(0, 0, 1)), v6(0, 0, 1).into()] {
            host.route(default_route(gateway), &[gateway])?;
        }
        let gate = switch.run(|| Gate::attach(name))?;
        let pods = (1..=pods).map(|pod| behind(&host, number, pod)).collect::<Result<_>>()?;
        Ok(Self { host, number, pods, gate, switch: Arc::clone(switch) })
    }

    /// The hosts behind this node.
    pub fn pods(&self) -> &[Host] {
        &self.pods
    }

    /// The networks of its pods, IPv4 first, which everybody reaches by the node: those of the lab, and any that something
    /// else on the node makes.
    pub fn pod_networks(&self) -> [Prefix; 2] {
        [(v4(1, self.number, 0).into(), 24), (v6(1, self.number, 0).into(), 64)]
    }

    /// Takes the node's power away: first its link, so that nobody hears it die, then its processes and its pods', then
    /// what the kernel kept for them: pins in its bpf file system. Files in [`Host::dir`] stay. Threads inside the host
    /// (servers of `traffic`) run on, heard by nobody.
    pub fn power_off(&self) -> Result<()> {
        self.unplug()?;
        self.pods.iter().try_for_each(Host::kill_processes)?;
        self.kill_processes()?;
        self.namespace().forget_pins()
    }

    /// Gives the power back. Starts no process.
    pub fn power_on(&self) -> Result<()> {
        self.plug()
    }

    /// Pulls the cable between node and switch: the node sees its carrier go, but keeps its addresses and routes.
    pub fn unplug(&self) -> Result<()> {
        Netlink::with(&self.switch, async |net| net.down(self.name()).await)
    }

    /// Puts the cable back.
    pub fn plug(&self) -> Result<()> {
        Netlink::with(&self.switch, async |net| net.up(self.name()).await)
    }

    /// Loses what the node sends (`Drop`), or lets it through again (`Pass`). What is sent to it arrives all the while.
    pub fn sending(&self, verdict: Verdict) -> Result<()> {
        self.gate.set(verdict)
    }
}

impl Deref for Node {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// Connects a host's uplink to the switch: its addresses, and no unfinished frames on either side.
fn plug_in(host: &Host, switch: &Namespace) -> Result<()> {
    let port = host.name();
    host.netlink(async |net| {
        net.veth(UPLINK, port, switch.net_fd()).await?;
        net.address(UPLINK, (host.v4(), 24)).await?;
        net.address(UPLINK, (host.v6(), 64)).await?;
        net.up(UPLINK).await
    })?;
    host.run(|| finish_frames(UPLINK))?;
    switch.run(|| finish_frames(port))?;
    Netlink::with(switch, async |net| {
        net.join(port, BRIDGE).await?;
        net.up(port).await
    })
    .with_context(|| format!("plug {port} into the switch"))
}

/// Makes pod `pod` behind node number `node`: addresses of its own, everything else by the node.
fn behind(node: &Host, number: usize, pod: usize) -> Result<Host> {
    let name = format!("{}-pod-{pod}", node.name());
    let host =
        Host::new(&name, v4(1, number, pod as u16), v6(1, number, pod as u16), Forwarding::Off)?;
    let device = format!("pod-{pod}");
    node.netlink(async |net| net.veth(&device, UPLINK, host.namespace().net_fd()).await)?;
    let gateways = [IpAddr::from(v4(1, number, 254)), v6(1, number, 254).into()];
    node.netlink(async |net| {
        net.up(&device).await?;
        for (pod, gateway) in host.addresses().into_iter().zip(gateways) {
            net.address(&device, host_route(gateway)).await?;
            net.route_on_link(host_route(pod), &device).await?;
        }
        Ok(())
    })?;
    host.netlink(async |net| {
        net.up(UPLINK).await?;
        for (pod, gateway) in host.addresses().into_iter().zip(gateways) {
            net.address(UPLINK, host_route(pod)).await?;
            net.route_on_link(host_route(gateway), UPLINK).await?;
            net.route(default_route(gateway), &[gateway]).await?;
        }
        Ok(())
    })?;
    Ok(host)
}

/// Makes a client on a link of its own behind the router.
fn client(name: &str, number: usize, router: &Host) -> Result<Host> {
    let host = Host::new(name, v4(2, number, 2), v6(2, number, 2), Forwarding::Off)?;
    router.netlink(async |net| {
        net.veth(name, UPLINK, host.namespace().net_fd()).await?;
        net.address(name, (v4(2, number, 1).into(), 24)).await?;
        net.address(name, (v6(2, number, 1).into(), 64)).await?;
        net.up(name).await
    })?;
    host.netlink(async |net| {
        net.address(UPLINK, (host.v4(), 24)).await?;
        net.address(UPLINK, (host.v6(), 64)).await?;
        net.up(UPLINK).await?;
        for gateway in [IpAddr::from(v4(2, number, 1)), v6(2, number, 1).into()] {
            net.route(default_route(gateway), &[gateway]).await?;
        }
        Ok(())
    })?;
    Ok(host)
}

/// 10.KIND.NUMBER.HOST; kinds are 0 for the switch, 1 for pods, 2 for clients.
fn v4(kind: u8, number: usize, host: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, kind, number as u8, host as u8)
}

/// fd00:KIND:NUMBER::HOST with the digits of [`v4`].
fn v6(kind: u16, number: usize, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, kind, digits_as_hex(number as u16), 0, 0, 0, 0, digits_as_hex(host))
}

/// The number whose hexadecimal digits look like the decimal ones of `number`: 12 gives 0x12.
fn digits_as_hex(number: u16) -> u16 {
    if number < 10 { number } else { (digits_as_hex(number / 10) << 4) | (number % 10) }
}
