//! Nodes with servers, nodes that only forward, a router that spreads one VIP of each family over some of them, and two clients.
//!
//! ```text
//!   client ── router ══╦══ node-1   4 pods, forwards      (at weir)
//!                      ╠══ node-2   4 pods, forwards      (at weir)
//!                      ╠── node-3   4 pods
//!                      ╠── node-4   4 pods
//!                      ╠══ edge-1   forwards
//!                      ╠══ edge-2   forwards
//!                      ╚── edge-3   switched off: joins later, and others leave
//! ```
//!
//! At the control all forwarders are edges, five in all, so that as many forward.

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context, Result};

use crate::{
    fleet::{self, Member},
    lab::{Host, Lab, Node, UPLINK},
    traffic::long::{self, Servers},
};

pub const PORT: u16 = 7000;
const NODES: usize = 4;
const PODS: usize = 4;
/// Pods that serve at first, of each node.
const SERVING: usize = 2;
/// Nodes that the router uses.
const FORWARDERS: usize = 4;

/// Who forwards beside the edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarders {
    /// Edges, and nodes with servers too.
    Mixed,
    /// Edges alone.
    Edges,
}

/// The lab, and what of it is in use.
pub struct Site {
    pub lab: Arc<Lab>,
    _servers: Vec<Servers>,
    /// Names of the pods that serve.
    pub pool: BTreeSet<String>,
    /// Those of them that get no new flows.
    pub drained: Vec<String>,
    /// Those that do not serve; the next to serve is the first.
    pub spare: VecDeque<String>,
    /// Names of the nodes that the router uses, the next edge to leave first.
    pub forwarders: Vec<String>,
    /// Edges that are switched off; the next to join is the first.
    pub off: VecDeque<String>,
}

impl Site {
    /// Builds it: servers run in all pods, the router has its routes, one edge is off.
    pub fn build(forwarders: Forwarders) -> Result<Self> {
        let edges = match forwarders {
            Forwarders::Mixed => FORWARDERS / 2 + 1,
            Forwarders::Edges => FORWARDERS + 1,
        };
        let builder = Lab::builder().nodes(NODES, PODS).client("client").client("visitor");
        let edge = |number: usize| format!("edge-{number}");
        let lab = (1..=edges).fold(builder, |lab, number| lab.node(&edge(number), 0)).build()?;
        let pods = || lab.nodes().iter().flat_map(Node::pods);
        let servers =
            pods().map(|pod| long::serve(pod, pod.name(), PORT)).collect::<Result<_>>()?;
        // One pod of each node after the other, so that what joins or leaves is spread over the nodes.
        let order =
            (0..PODS).flat_map(|pod| lab.nodes()[..NODES].iter().map(move |n| &n.pods()[pod]));
        let mut spare: VecDeque<_> = order.map(|pod| pod.name().to_owned()).collect();
        let pool = spare.drain(..NODES * SERVING).collect();
        let nodes = lab.nodes()[..NODES].iter().map(|node| node.name().to_owned());
        let forwarders = (1..edges).map(edge).chain(nodes).take(FORWARDERS).collect();
        let off = VecDeque::from([edge(edges)]);
        let site = Self {
            lab: Arc::new(lab),
            _servers: servers,
            pool,
            drained: Vec::new(),
            spare,
            forwarders,
            off,
        };
        site.lab.node(&site.off[0]).power_off()?;
        site.spread()?;
        Ok(site)
    }

    /// Pods that are to get new flows.
    pub fn owners(&self) -> impl Iterator<Item = &String> {
        self.pool.iter().filter(|pod| !self.drained.contains(pod))
    }

    /// Tells the router who forwards.
    pub fn spread(&self) -> Result<()> {
        let nodes: Vec<_> = self.forwarders.iter().map(|name| self.lab.node(name)).collect();
        self.lab.spread(&vips(), &nodes)
    }

    /// Nodes that are switched on.
    pub fn powered(&self) -> Vec<&Node> {
        self.lab.nodes().iter().filter(|node| !self.off.contains(&node.name().to_owned())).collect()
    }

    /// The pod of that name and its node.
    pub fn pod(&self, name: &str) -> Result<(&Host, &Node)> {
        let of = |node: &'_ Node| node.pods().iter().position(|pod| pod.name() == name);
        let found = self.lab.nodes().iter().find_map(|node| of(node).map(|at| (node, at)));
        found.map(|(node, at)| (&node.pods()[at], node)).with_context(|| format!("no pod {name}"))
    }

    /// Pods as pool members, both families.
    pub fn members<'a>(&self, pods: impl IntoIterator<Item = &'a String>) -> Result<Vec<Member>> {
        let pods = pods.into_iter().map(|name| self.pod(name)).collect::<Result<Vec<_>>>()?;
        Ok(fleet::members(pods.into_iter().map(|(pod, node)| (pod, &**node))))
    }
}

/// The VIP of each family.
pub fn vips() -> [IpAddr; 2] {
    Lab::vips(0)
}

/// Where clients connect to.
pub fn targets() -> [SocketAddr; 2] {
    vips().map(|vip| SocketAddr::new(vip, PORT))
}

/// The MAC address of a node's uplink.
pub fn mac(node: &Node) -> Result<[u8; 6]> {
    let path = format!("/sys/class/net/{UPLINK}/address");
    let text = node.run(|| fs::read_to_string(&path))?;
    let mut mac = [0; 6];
    for (byte, part) in mac.iter_mut().zip(text.trim().split(':')) {
        *byte = u8::from_str_radix(part, 16).with_context(|| format!("{path}: {text}"))?;
    }
    Ok(mac)
}
