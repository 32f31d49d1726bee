//! Who is where, and the slot tables of all sets that ever occur: weir's, from the product's own
//! builder, and Maglev's.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use lb_common::{
    backend::BackendId,
    hash::{fingerprint, flow_hash, slot_of},
    net::{Flow, Port},
    siphash,
    table::{RANKS, Seed, Table},
};
use weir::{
    config::{self, Overrides},
    model::{Intent, Protocol, seed::seed_from},
    plan::{
        FrontendKey,
        flows::{Claimed, Owners},
        owners::{Pool, address, fill},
    },
};

use super::scenario::Number;
use crate::maglev;

/// Slots of every table.
pub const SLOTS: u16 = lb_common::table::DEFAULT_SLOTS;
/// Nodes that forward and have no backends; they have the first numbers.
pub const FORWARDERS: u16 = 2;
/// Port of all backends.
const PORT: u16 = 8080;

/// Claims that are kept by slot.
const KNOWN_CLAIMS: usize = 16;

/// Who claims which slot.
pub type Claims = Arc<BTreeMap<u16, Vec<BackendId>>>;

/// A node's number.
pub type NodeNumber = u16;

/// One slot table: the backend's id for each slot, 0 where nobody owns it.
pub type Slots = Arc<[u32]>;

/// Node of a backend. Of four neighbours two share a node, so that receivers have a choice at home.
pub fn node_of(backend: Number) -> NodeNumber {
    FORWARDERS + backend - backend / 4 - u16::from(backend % 4 == 3)
}

/// A node's name.
pub fn name_of(node: NodeNumber) -> String {
    format!("node-{node:03}")
}

pub fn node_address(node: NodeNumber) -> IpAddr {
    let [high, low] = node.to_be_bytes();
    Ipv4Addr::new(10, 0, high, low).into()
}

pub fn backend_address(backend: Number) -> SocketAddr {
    let [high, low] = backend.to_be_bytes();
    SocketAddr::new(Ipv4Addr::new(10, 1, high, low).into(), PORT)
}

/// Number of the backend that listens here.
pub fn backend_number(address: &SocketAddr) -> Number {
    match address.ip() {
        IpAddr::V4(ip) => u16::from_be_bytes([ip.octets()[2], ip.octets()[3]]),
        IpAddr::V6(_) => unreachable!("backends have IPv4 addresses here"),
    }
}

/// Every node gives its own ids; which ones makes no difference, so here they are all the same.
pub fn id_of(backend: Number) -> BackendId {
    BackendId::new(u32::from(backend) + 1, 1)
}

pub fn number_of(id: BackendId) -> Number {
    (id.index() - 1) as Number
}

/// The frontends: TCP first, then UDP, at one address and port.
pub fn frontend(tcp: bool) -> FrontendKey {
    let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
    FrontendKey { address: Ipv4Addr::new(192, 0, 2, 1).into(), port: 443, protocol }
}

/// Tables by the digest of their pool.
pub struct Site {
    name: String,
    pub seed: Seed,
    slots: RefCell<HashMap<u64, Slots>>,
    ranks: RefCell<HashMap<u64, [Slots; RANKS - 1]>>,
    maglev: RefCell<HashMap<Vec<Number>, Arc<[Number]>>>,
    /// The claims that were read last, and what is in them.
    claims: RefCell<VecDeque<(Arc<Claimed>, Claims)>>,
}

impl Site {
    /// The name gives the seed.
    pub fn new(name: String) -> Self {
        Self {
            seed: seed_from(&name),
            name,
            slots: RefCell::default(),
            ranks: RefCell::default(),
            maglev: RefCell::default(),
            claims: RefCell::default(),
        }
    }

    /// Slot of a client's flow, and the key of its hash.
    pub fn slot(&self, client: u32, tcp: bool) -> u16 {
        let frontend = frontend(tcp);
        let flow = Flow {
            client: IpAddr::from(Ipv4Addr::from_bits(0xc612_0000 + (client >> 12))).into(),
            vip: frontend.address.into(),
            client_port: Port::new(20_000 + (client & 0xfff) as u16),
            vip_port: Port::new(frontend.port),
            proto: frontend.protocol.number(),
        };
        slot_of(flow_hash(&siphash::key(&self.seed), &flow), SLOTS.into()) as u16
    }

    /// What the tunnel header calls a backend.
    pub fn fingerprint(&self, backend: Number) -> u16 {
        let address = backend_address(backend);
        fingerprint(&siphash::key(&self.seed), &address.ip().into(), Port::new(address.port()))
    }

    pub fn pool(&self, owners: &Owners) -> Pool {
        Pool::new(owners.iter(), SLOTS, &self.seed)
    }

    /// The table of these owners.
    pub fn table(&self, owners: &Owners) -> Slots {
        let pool = self.pool(owners);
        let mut held = self.slots.borrow_mut();
        let made = || {
            let mut slots = Vec::new();
            fill(&mut slots, &self.build(&pool), &pool, &ids(&pool.backends));
            slots.resize(SLOTS.into(), 0);
            slots.into()
        };
        held.entry(pool.digest).or_insert_with(made).clone()
    }

    /// Tables of the 2nd, 3rd and 4th ranks of these owners.
    pub fn ranks(&self, owners: &Owners) -> [Slots; RANKS - 1] {
        let pool = self.pool(owners);
        let mut held = self.ranks.borrow_mut();
        let made = || {
            let table = self.build(&pool);
            let ids = ids(table.backends());
            let ranks: Vec<_> = table.ranks().collect();
            std::array::from_fn(|rank| {
                let id = |ranks: &[Option<u16>; RANKS]| {
                    ranks[rank + 1].map_or(0, |index| ids[usize::from(index)])
                };
                ranks.iter().map(id).collect()
            })
        };
        held.entry(pool.digest).or_insert_with(made).clone()
    }

    /// The configuration in which `set` owns slots. Of the others below `all` that were there before,
    /// the even ones terminate, the odd ones are in no pool any more; both serve on.
    pub fn intent(&self, set: &[Number], former: &BTreeSet<Number>, all: Number) -> Result<Intent> {
        let mut text = format!(
            "apiVersion: weir.dev/v1alpha1\nkind: Agent\nmetadata: {{name: all}}\nspec:\n  \
             node: {}\n  uplinks: [lo]\n  seed: {:?}\n",
            name_of(0),
            self.name
        );
        for node in 0..=node_of(all - 1) {
            write!(
                text,
                "---\napiVersion: weir.dev/v1alpha1\nkind: Node\nmetadata: {{name: {}}}\nspec:\n  \
                 addresses: [{}]\n",
                name_of(node),
                node_address(node)
            )?;
        }
        let FrontendKey { address, port, .. } = frontend(true);
        write!(
            text,
            "---\napiVersion: weir.dev/v1alpha1\nkind: Frontend\nmetadata: {{name: all}}\nspec:\n  \
             addresses: [{address}]\n  ports:\n  - {{port: {port}, targetPort: {PORT}}}\n  \
             - {{port: {port}, targetPort: {PORT}, protocol: UDP}}\n  pool:\n    members:\n"
        )?;
        for backend in 0..all {
            let terminating = match set.contains(&backend) {
                true => false,
                false if former.contains(&backend) && backend % 2 == 0 => true,
                false => continue,
            };
            let (address, node) = (backend_address(backend).ip(), name_of(node_of(backend)));
            writeln!(
                text,
                "    - {{address: {address}, node: {node}, terminating: {terminating}}}"
            )?;
        }
        Ok(config::parse(Path::new("simulated.yaml"), &text, &Overrides::default())?)
    }

    /// Claims by slot. Nodes mostly know the same.
    pub fn claims(&self, claimed: &Arc<Claimed>) -> Claims {
        let mut held = self.claims.borrow_mut();
        if let Some((_, claims)) = held.iter().find(|(known, _)| Arc::ptr_eq(known, claimed)) {
            return claims.clone();
        }
        let claims = claimed.slots.iter().map(|(slot, backends)| {
            let ids = backends.iter().map(|it| id_of(backend_number(it)));
            (*slot, ids.collect())
        });
        let claims: Claims = Arc::new(claims.collect());
        held.push_front((claimed.clone(), claims.clone()));
        held.truncate(KNOWN_CLAIMS);
        claims
    }

    /// Maglev's table of a set.
    pub fn maglev(&self, set: &[Number]) -> Result<Arc<[Number]>> {
        if let Some(table) = self.maglev.borrow().get(set) {
            return Ok(table.clone());
        }
        let pool = self.pool(&owners(set));
        let owners = maglev::owners(&pool.backends, self.seed).context("build Maglev's table")?;
        let table: Arc<[Number]> =
            owners.iter().map(|backend| backend_number(&address(backend))).collect();
        self.maglev.borrow_mut().insert(set.to_vec(), table.clone());
        Ok(table)
    }

    fn build(&self, pool: &Pool) -> Table {
        Table::build(&pool.backends, pool.slots, &self.seed)
    }
}

fn ids(backends: &[lb_common::table::Backend]) -> Vec<u32> {
    backends.iter().map(|it| id_of(backend_number(&address(it))).0).collect()
}

/// The owners that a set of backends gives.
pub fn owners(set: &[Number]) -> Owners {
    set.iter().map(|number| (backend_address(*number), 1)).collect()
}
