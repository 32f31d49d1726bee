//! The control: Maglev tables and a table of flows in each forwarder, the classic design, in weir's place.
//!
//! Forwarders are the edges alone. On each runs the program `control` of the bench's BPF object with maps of its own, which
//! this fills: it looks a flow up in its table, takes a new one's backend from the Maglev table, and sends packets in
//! weir's tunnel. Weir's agents on the nodes with servers take them out of it and deliver them: to them every pod is a
//! backend for ever, so that all that is lost is the forwarders' doing. Maglev places come from the crate `maglev`.

use std::{cell::RefCell, collections::BTreeMap, hash::BuildHasherDefault, net::IpAddr};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, MapData},
    programs::{Xdp, XdpMode},
};
use lb_common::{
    abi::{BLOCK_SLOTS, map},
    backend::{Backend, BackendId},
    frontend::{Endpoint, FILTER_WORDS, Frontend, Vip, filter_position},
    globals::{DEFAULT_TUNNEL_PORT, DEFAULT_VNI, SETTINGS, Settings},
    hop::{Hop, Uplink, Uplinks},
    net::{Addr, Port, proto},
    service::{Record, ServiceWord, blocks},
};
use maglev::{ConsistentHasher, Maglev};
use siphasher::sip::SipHasher13;

use super::{
    site::{PORT, Site, mac, vips},
    system::{System, Weir},
};
use crate::lab::{Lab, Node, UPLINK};

const PROGRAM: &str = "control";
/// As many as weir's tables have.
const SLOTS: u32 = 4093;
/// Places of a Maglev table, a prime that gives each backend some thousands.
const PLACES: usize = 65_537;
const MTU: u32 = 1500;
/// Flows that a forwarder can remember: far more than there are.
const SIZES: [(&str, u32); 4] =
    [("FLOWS", 65_536), (map::ESTABLISHED, 1), (map::OPENING, 1), (map::DATAGRAMS, 1)];

/// The control on all edges that are on.
pub struct Control<'lab> {
    /// Receives on the nodes with servers.
    _receivers: Weir<'lab>,
    edges: RefCell<BTreeMap<String, Edge>>,
}

impl<'lab> Control<'lab> {
    pub fn start(site: &Site, lab: &'lab Lab) -> Result<Self> {
        let nodes: Vec<_> = lab.nodes().iter().filter(|node| !node.pods().is_empty()).collect();
        let all = site.pool.iter().chain(&site.spare);
        let receivers = Weir::start(site, lab, &nodes, all)?;
        let control = Self { _receivers: receivers, edges: RefCell::default() };
        for edge in &site.forwarders {
            control.boot(site, edge)?;
        }
        Ok(control)
    }
}

impl System for Control<'_> {
    fn use_pool(&self, site: &Site) -> Result<()> {
        self.edges.borrow_mut().values_mut().try_for_each(|edge| edge.use_pool(site))
    }

    fn boot(&self, site: &Site, name: &str) -> Result<()> {
        let node = site.lab.node(name);
        node.power_on()?;
        let mut edge = Edge::start(site, node).with_context(|| format!("the control on {name}"))?;
        edge.use_pool(site)?;
        self.edges.borrow_mut().insert(name.to_owned(), edge);
        Ok(())
    }

    fn lost(&self, name: &str) {
        self.edges.borrow_mut().remove(name);
    }

    fn drain(&self, site: &Site, _: &str, _: bool) -> Result<()> {
        self.use_pool(site)
    }
}

/// The program on one edge. Dropping it takes it off.
struct Edge {
    ebpf: Ebpf,
    /// How often the pool was set: tables are written in turn to two halves of the arena.
    turns: u64,
}

impl Edge {
    fn start(site: &Site, node: &Node) -> Result<Self> {
        let IpAddr::V4(_) = node.v4() else { unreachable!("a node's IPv4 address is one") };
        let settings = Settings {
            flow_key: [1, 2],
            own_v4: node.v4().into(),
            own_v6: node.v6().into(),
            tunnel_port: Port::new(DEFAULT_TUNNEL_PORT),
            vni: DEFAULT_VNI,
            ..Default::default()
        };
        let mut loader = EbpfLoader::new();
        loader.override_global(SETTINGS, &settings, true);
        for (name, entries) in SIZES {
            loader.map_max_entries(name, entries);
        }
        let ebpf = loader.load(&crate::bench::packet::bench_object()?)?;
        let mut edge = Self { ebpf, turns: 0 };
        edge.fill(site, node)?;
        let uplink = node.index(UPLINK)?;
        let program: &mut Xdp =
            edge.ebpf.program_mut(PROGRAM).context("no control program")?.try_into()?;
        node.run(|| {
            program.load()?;
            program.attach_to_if_index(uplink, XdpMode::Driver)
        })?;
        Ok(edge)
    }

    /// All that stays: this node's uplink, the way to the others, all pods, the VIPs.
    fn fill(&mut self, site: &Site, node: &Node) -> Result<()> {
        let ifindex = node.index(UPLINK)?;
        let mut uplinks = Uplinks::default();
        uplinks.list[0] = Uplink { ifindex, mac: mac(node)?, reserved: [0; 6] };
        self.set(map::UPLINKS, 0, uplinks)?;
        for (number, other) in (1..).zip(site.lab.nodes()) {
            let hop = Hop {
                ifindex,
                mtu: MTU,
                destination_mac: mac(other)?,
                source_mac: mac(node)?,
                source: node.v4().into(),
                destination: other.v4().into(),
                ..Default::default()
            };
            self.set(map::HOPS, number, hop)?;
        }
        for (name, address, id) in backends(site) {
            let (_, node) = site.pod(name)?;
            let number = site.lab.nodes().iter().position(|other| other.name() == node.name());
            let backend = Backend {
                addr: address.into(),
                id,
                node: number.context("a node of the lab")? as u32 + 1,
                port: Port::new(PORT),
                ..Default::default()
            };
            self.set(map::BACKENDS, id.index(), backend)?;
        }
        let mut filter = vec![0_u64; FILTER_WORDS as usize];
        for (vip, proto, service) in services() {
            let addr = Addr::from(vip);
            let (word, bit) = filter_position(&addr);
            filter[word as usize] |= bit;
            self.insert(map::VIPS, addr, Vip::default())?;
            let frontend = Frontend { outside: service, inside: service, flags: 0 };
            self.insert(map::FRONTENDS, Endpoint::new(addr, Port::new(PORT), proto), frontend)?;
        }
        (0..).zip(filter).try_for_each(|(word, bits)| self.set(map::VIP_FILTER, word, bits))
    }

    /// New tables over the site's pool. Flows that this forwarder knows stay where they are.
    fn use_pool(&mut self, site: &Site) -> Result<()> {
        self.turns += 1;
        let half = (self.turns % 2) as u32;
        let serves = |name: &str| site.owners().any(|pod| pod == name);
        for (family, v6) in [(0, false), (1, true)] {
            let first = 1 + (half * 2 + family) * blocks(SLOTS);
            let pool =
                backends(site).filter(|(name, address, _)| serves(name) && address.is_ipv6() == v6);
            self.table(first, pool.map(|(_, _, id)| id.0).collect())?;
            for (vip, _, service) in services().into_iter().filter(|(vip, ..)| vip.is_ipv6() == v6)
            {
                let record = service * 2 + half;
                ensure!(record > 0, "{vip}: record 0 means none");
                let owners = Record { owners: first, slots: SLOTS, ..Default::default() };
                self.set(map::RECORDS, record, owners)?;
                self.set(map::SERVICES, service, ServiceWord(self.turns << 32).next(record).0)?;
            }
        }
        Ok(())
    }

    /// A table, where slot N has the owner of key N.
    fn table(&mut self, first: u32, pool: Vec<u32>) -> Result<()> {
        let hasher = BuildHasherDefault::<SipHasher13>::default();
        let maglev = Maglev::with_capacity_and_hasher(pool, PLACES, hasher);
        for block in 0..blocks(SLOTS) {
            let mut owners = [0; BLOCK_SLOTS as usize];
            for (slot, owner) in (block * BLOCK_SLOTS..SLOTS).zip(&mut owners) {
                *owner = *maglev.get(&slot).context("the pool is empty")?;
            }
            self.set(map::OWNERS, first + block, owners)?;
        }
        Ok(())
    }

    fn set<V: Pod>(&mut self, name: &str, index: u32, value: V) -> Result<()> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        let mut map: Array<&mut MapData, V> = map.try_into()?;
        map.set(index, value, 0).with_context(|| format!("write {name}[{index}]"))
    }

    fn insert<K: Pod, V: Pod>(&mut self, name: &str, key: K, value: V) -> Result<()> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        let mut map: HashMap<&mut MapData, K, V> = map.try_into()?;
        map.insert(key, value, 0).with_context(|| format!("insert into {name}"))
    }
}

/// Address, protocol and index of each service.
fn services() -> [(IpAddr, u8, u32); 4] {
    let [v4, v6] = vips();
    [(v4, proto::TCP, 1), (v4, proto::UDP, 2), (v6, proto::TCP, 3), (v6, proto::UDP, 4)]
}

/// All pods' addresses, with the ids that they have on every edge.
fn backends(site: &Site) -> impl Iterator<Item = (&str, IpAddr, BackendId)> {
    let pods = site.lab.nodes().iter().flat_map(Node::pods);
    let addresses = pods.flat_map(|pod| pod.addresses().map(|address| (pod.name(), address)));
    (1..).zip(addresses).map(|(index, (name, address))| (name, address, BackendId::new(index, 1)))
}
