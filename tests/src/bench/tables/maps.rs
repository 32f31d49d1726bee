//! From a plan to the kernel's maps, by the product's own way: `plan`, then `dataplane` on maps that
//! are pinned where nobody else sees them. No program is attached. Needs root.
//!
//! Timed is what an agent does from the moment it knows more: plan, compare, build, write, switch.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_common::{
    abi::{capacity, map},
    backend::BackendId,
    frontend::Endpoint,
    hop::Hop,
    service::blocks,
    table::{DEFAULT_SLOTS, Table},
};
use serde::Serialize;
use weir::{
    dataplane::{
        apply::{DataPlane, Scope, Surroundings},
        grace::Barrier,
        load::{self, Loaded},
        maps,
        spec::maps_dir,
    },
    model::{
        AgentSettings, AnnouncePolicy, ArrivalTimes, Check, CheckKind, ConnectSettings, Delivery,
        FrontendObject, FrontendPort, GossipSettings, Health, HoldDowns, Intent, Limits, Members,
        NewFlows, Node, Pool, PoolMember, Protocol, Target, Verdicts, drains::NONE_DRAINED,
    },
    plan::{self, Askers, Changed, Desired, History, Inputs, flows::Consensus, history, owners},
};

use super::speed::{Times, percentile};
use crate::pins::{Pins, map_bytes};

/// Services of a large site, and of a small one.
const SITES: [usize; 2] = [10_000, 100];
/// Backends of each of them.
const BACKENDS: usize = 10;
/// Further services with wide pools, which are changed only.
const WIDE: usize = 10;
const WIDE_BACKENDS: usize = 100;
/// Each has a backend of every service.
const NODES: usize = 10;
/// Room for new tables beside those in force, as a share of them: one in so many.
const SPARE: usize = 8;
/// Changes of each kind that a percentile is taken from.
const SAMPLES: usize = 200;

/// What is measured on real maps.
#[derive(Debug, Serialize)]
pub struct Filled {
    /// On a site of 10,000 services, in turn.
    pub steps: Vec<Step>,
    pub changes: Vec<Change>,
    pub memory: Memory,
}

/// One great step.
#[derive(Debug, Serialize)]
pub struct Step {
    pub what: &'static str,
    pub services: usize,
    pub backends: usize,
    pub seconds: f64,
    /// Of that: until it was known what the maps should hold.
    pub plan_seconds: f64,
    /// Processor time of all threads together.
    pub cpu_seconds: f64,
}

/// One backend of one service goes down or comes up.
#[derive(Debug, Serialize)]
pub struct Change {
    /// Services that the maps hold.
    pub services: usize,
    /// Backends of the service.
    pub backends: usize,
    pub samples: usize,
    pub min_us: f64,
    pub median_us: f64,
    pub p99_us: f64,
    /// In processor time: what is left of `p99_us` when nothing else wants the processor.
    pub p99_cpu_us: f64,
    /// Of the median: until it was known what the maps should hold.
    pub plan_median_us: f64,
    /// The rest alone: from the plan and what of it changed to all maps written.
    pub maps_p99_us: f64,
}

/// Bytes that the kernel accounts for the maps of the large site.
#[derive(Debug, Serialize)]
pub struct Memory {
    pub maps: BTreeMap<&'static str, u64>,
    pub total: u64,
    /// Of the total: what the tables in force fill.
    pub current_tables: u64,
    /// Of the total: memories of flows, whose sizes have nothing to do with the number of services.
    pub flows: u64,
    /// Of the total: what tables of earlier sets may fill.
    pub history_reserve: u64,
}

/// All of it, in a mount namespace of the thread.
pub fn measure() -> Result<Filled> {
    // As an agent has it.
    weir::heap::keep_small();
    let pins = Pins::private()?;
    let [mut large, mut small] = [Site::new(&pins, SITES[0])?, Site::new(&pins, SITES[1])?];
    let mut steps = Vec::new();
    for (what, alive) in [
        ("from plan to maps", NODES),
        ("a node dies that has a backend of each service", NODES - 1),
        ("the node comes back", NODES),
    ] {
        let members = members(alive);
        steps.push(large.great_step(what, members)?);
        large.data_plane.settle();
        large.verify()?;
    }
    let memory = large.memory()?;

    small.step(&mut Split::default())?;
    let mut splits: [[Split; 2]; 2] = Default::default();
    for n in 0..SAMPLES {
        for (site, splits) in [&mut large, &mut small].into_iter().zip(&mut splits) {
            for (wide, split) in [false, true].into_iter().zip(splits) {
                site.flip(n, wide)?;
                site.follow(split, None)?;
            }
        }
    }
    let mut changes = Vec::new();
    for (site, splits) in [large, small].into_iter().zip(splits) {
        site.verify()?;
        for (backends, split) in [BACKENDS, WIDE_BACKENDS].into_iter().zip(splits) {
            changes.push(split.change(site.services, backends));
        }
    }
    Ok(Filled { steps, changes, memory })
}

/// Times of whole steps, and of their first part.
#[derive(Default)]
struct Split {
    whole: Times,
    plan: Vec<Duration>,
}

impl Split {
    fn change(mut self, services: usize, backends: usize) -> Change {
        let samples = self.plan.len();
        let rest = self.whole.wall.iter().zip(&self.plan);
        let mut rest: Vec<_> = rest.map(|(whole, plan)| whole.saturating_sub(*plan)).collect();
        let maps_p99_us = percentile(&mut rest, 99);
        let [min_us, median_us, p99_us] = [0, 50, 99].map(|p| percentile(&mut self.whole.wall, p));
        let p99_cpu_us = percentile(&mut self.whole.cpu, 99);
        let plan_median_us = percentile(&mut self.plan, 50);
        Change {
            services,
            backends,
            samples,
            min_us,
            median_us,
            p99_us,
            p99_cpu_us,
            plan_median_us,
            maps_p99_us,
        }
    }
}

/// A node with its maps, and what its agent knows.
struct Site {
    services: usize,
    intent: Intent,
    members: Arc<Members>,
    verdicts: Verdicts,
    askers: Askers,
    history: History,
    /// Nobody else lives here who could say anything.
    consensus: Arc<Consensus>,
    /// The last verdict that the plan knows.
    known: u64,
    around: Surroundings,
    applied: Desired,
    data_plane: DataPlane<maps::Maps>,
    /// Holds the programs, without which a kernel may free what only they use.
    _loaded: Loaded,
}

impl Site {
    fn new(pins: &Pins, services: usize) -> Result<Self> {
        let intent = intent(services, pins.dir(&services.to_string()));
        let agent = &intent.agent;
        let settings = load::settings(agent, &intent.nodes[&agent.node]);
        let (loaded, maps) = load::load(&agent.pin_dir, &agent.limits, &settings)?;
        let barrier = Barrier::new().context("make the map that waits for grace periods")?;
        let wait = Box::new(move || barrier.wait());
        let data_plane = DataPlane::new(maps, &agent.node, &agent.seed, wait)?;
        let hops = intent
            .nodes
            .keys()
            .map(|name| (name.clone(), Hop { ifindex: 1, mtu: 1500, ..Hop::default() }));
        Ok(Self {
            services,
            members: Arc::new(members(NODES)),
            history: History::new(agent.seed, history::Rules::default()),
            consensus: Arc::default(),
            verdicts: intent
                .frontends
                .values()
                .flat_map(|object| targets(object))
                .map(|target| (target, Health::Up))
                .collect(),
            around: Surroundings { hops: hops.collect(), mtu: 1500, ..Surroundings::default() },
            askers: plan::askers(&intent),
            known: 0,
            applied: Desired::default(),
            data_plane,
            _loaded: loaded,
            intent,
        })
    }

    /// One turn of the agent after anything may have changed: from what it knows to all maps written.
    fn step(&mut self, split: &mut Split) -> Result<()> {
        self.turn(split, |site| {
            let mut desired = plan::desired(&site.inputs());
            let (consensus, members) = (&site.consensus, &site.members);
            let former = Changed::Anew(&site.applied);
            site.history.remember(&mut desired, former, consensus, members, Instant::now());
            let scope = Scope::between(&site.applied, &desired, false);
            site.applied = desired;
            scope
        })
    }

    /// One turn of the agent after verdicts changed, or which nodes serve, and nothing else.
    fn follow(&mut self, split: &mut Split, members: Option<Members>) -> Result<()> {
        self.turn(split, |site| {
            let mut plan = std::mem::take(&mut site.applied);
            let members = members.map(Arc::new);
            let former = members.map(|members| std::mem::replace(&mut site.members, members));
            let nodes = former.iter().flat_map(|former| former.serving_differs(&site.members));
            let changed = site.verdicts.since(site.known);
            let mut frontends =
                plan::follow(&mut plan, &site.inputs(), &site.askers, changed, nodes);
            let touched = site.history.remember(
                &mut plan,
                Changed::Owners(&frontends),
                &site.consensus,
                &site.members,
                Instant::now(),
            );
            frontends.extend(touched.frontends);
            site.applied = plan;
            Scope::Part { around: false, frontends, backends: touched.backends }
        })
    }

    fn turn(&mut self, split: &mut Split, plan: impl FnOnce(&mut Self) -> Scope) -> Result<()> {
        let mut planned = Duration::ZERO;
        let problems = split.whole.add(|| {
            let start = Instant::now();
            let scope = plan(self);
            planned = start.elapsed();
            self.data_plane.apply(&self.applied, &self.around, &scope)
        })??;
        self.known = self.verdicts.turn();
        split.plan.push(planned);
        let planned = &self.applied.problems;
        ensure!(problems.is_empty() && planned.is_empty(), "not all is served: {problems:?}");
        Ok(())
    }

    fn inputs(&self) -> Inputs<'_> {
        let (verdicts, drained) = (&self.verdicts, &NONE_DRAINED);
        Inputs { intent: &self.intent, verdicts, members: &self.members, drained }
    }

    /// The first step, or one that a node's life makes.
    fn great_step(&mut self, what: &'static str, members: Members) -> Result<Step> {
        let mut split = Split::default();
        match self.applied.frontends.is_empty() {
            true => self.step(&mut split)?,
            false => self.follow(&mut split, Some(members))?,
        }
        Ok(Step {
            what,
            services: self.services,
            backends: BACKENDS,
            seconds: split.whole.wall[0].as_secs_f64(),
            plan_seconds: split.plan[0].as_secs_f64(),
            cpu_seconds: split.whole.cpu[0].as_secs_f64(),
        })
    }

    /// Takes a backend of a service down, with even numbers, and up again with the next.
    fn flip(&mut self, n: usize, wide: bool) -> Result<()> {
        let name =
            if wide { wide_name(n / 2 % WIDE) } else { narrow_name(n / 2 * 7 % self.services) };
        let object = self.intent.frontends.get(name.as_str()).context("no such service")?;
        let count = targets(object).count();
        let target = targets(object).nth(n / 2 % count).context("a service without backends")?;
        let health = if n.is_multiple_of(2) { Health::Down("bench".into()) } else { Health::Up };
        self.verdicts.insert(target, health);
        Ok(())
    }

    /// Every service's slots, as read back from the maps, are those of the table that the plan asks for.
    fn verify(&self) -> Result<()> {
        let maps = self.data_plane.store();
        let found: BTreeMap<Vec<u8>, _> = maps
            .frontends
            .iter()
            .map(|entry| entry.map(|(endpoint, frontend)| (key(&endpoint), frontend)))
            .collect::<Result<_, _>>()?;
        ensure!(
            found.len() == self.applied.frontends.len(),
            "{} frontends in the maps",
            found.len()
        );
        for (wanted, frontend) in &self.applied.frontends {
            let held = found.get(&key(&wanted.endpoint())).context("a frontend is missing")?;
            let service = maps.service(held.outside).context("a frontend without a service")?;
            let pool =
                owners::Pool::new(frontend.owners.iter(), DEFAULT_SLOTS, &self.intent.agent.seed);
            let table = Table::build(&pool.backends, DEFAULT_SLOTS, &self.intent.agent.seed);
            let ids = maps.owners_of(&service.record);
            ensure!(ids.len() == table.slots(), "{wanted:?} has {} slots", ids.len());
            for (slot, id) in (0..).zip(ids) {
                let owner = table
                    .owner(slot)
                    .map(|index| owners::address(&table.backends()[usize::from(index)]));
                ensure!(
                    owner == living(maps, id),
                    "{wanted:?}, slot {slot}: not the table's owner"
                );
            }
        }
        Ok(())
    }

    fn memory(&self) -> Result<Memory> {
        let dir = maps_dir(&self.intent.agent.pin_dir);
        let maps: BTreeMap<_, _> = map::ALL
            .into_iter()
            .map(|name| Ok((name, map_bytes(&dir.join(name))?)))
            .collect::<Result<_>>()?;
        let tables = self.data_plane.tables_held() as u64;
        Ok(Memory {
            total: maps.values().sum(),
            current_tables: tables * 64 * u64::from(blocks(DEFAULT_SLOTS.into())),
            flows: [map::OPENING, map::ESTABLISHED, map::DATAGRAMS]
                .iter()
                .map(|name| maps[name])
                .sum(),
            history_reserve: 64 * u64::from(self.data_plane.reserve().room),
            maps,
        })
    }
}

fn key(endpoint: &Endpoint) -> Vec<u8> {
    bytemuck::bytes_of(endpoint).to_vec()
}

fn living(maps: &maps::Maps, id: BackendId) -> Option<SocketAddr> {
    let backend = maps.backend(id)?;
    Some(SocketAddr::new(backend.addr.to_ip(), backend.port.get()))
}

fn node_name(n: usize) -> String {
    format!("node-{n}")
}

/// So many nodes live.
fn members(alive: usize) -> Members {
    let names: Vec<_> = (0..alive).map(node_name).collect();
    Members::assumed(&node_name(0), names.iter().map(String::as_str))
}

fn narrow_name(n: usize) -> String {
    format!("service-{n}")
}

fn wide_name(n: usize) -> String {
    format!("wide-{n}")
}

fn targets(object: &FrontendObject) -> impl Iterator<Item = Target> {
    let check = object.check.iter();
    let members = match &object.pool {
        Pool::Members(members) => members.as_slice(),
        Pool::Nodes { .. } => &[],
    };
    check.flat_map(move |check| {
        members.iter().map(|member| Target {
            address: SocketAddr::new(member.address, member.port.unwrap_or(BACKEND_PORT)),
            check: check.clone(),
        })
    })
}

const BACKEND_PORT: u16 = 8080;

/// What the sources of a site say: its services, each with a VIP and backends of its own. Limits are
/// the product's own, but where the site needs more.
fn intent(services: usize, pin_dir: PathBuf) -> Intent {
    let nodes = (0..NODES).map(|n| {
        let addresses = vec![Ipv4Addr::from_bits(0xc0a8_0001 + n as u32).into()];
        (node_name(n), Node { name: node_name(n), addresses, labels: BTreeMap::new() })
    });
    let narrow = (0..services).map(|n| (narrow_name(n), BACKENDS));
    let wide = (0..WIDE).map(|n| (wide_name(n), WIDE_BACKENDS));
    let frontends = (0..)
        .zip(narrow.chain(wide))
        .map(|(n, (name, backends))| (name.clone(), Arc::new(frontend(name, n, backends))));
    let all = services + WIDE;
    let tables = all + all.div_ceil(SPARE);
    let backends = services * BACKENDS + WIDE * WIDE_BACKENDS + 1;
    let owner_blocks = tables as u32 * blocks(DEFAULT_SLOTS.into()) + 1;
    let limits = Limits {
        frontends: capacity::FRONTENDS.max(all as u32),
        owner_blocks: capacity::OWNER_BLOCKS.max(owner_blocks),
        backends: capacity::BACKENDS.max(backends as u32),
        vips: capacity::VIPS.max(all as u32),
        ..Limits::default()
    };
    Intent {
        agent: agent(pin_dir, limits),
        nodes: Arc::new(nodes.collect()),
        frontends: frontends.collect(),
    }
}

fn agent(pin_dir: PathBuf, limits: Limits) -> AgentSettings {
    AgentSettings {
        node: node_name(0),
        uplinks: vec!["lo".into()],
        egress_devices: Vec::new(),
        tunnel_port: 6084,
        vni: 1,
        seed: super::seed("maps"),
        default_slots: DEFAULT_SLOTS.into(),
        state_dir: pin_dir.clone(),
        pin_dir,
        limits,
        peer_interval: Duration::from_millis(100),
        peer_fall: 3,
        peer_rise: 3,
        gossip: GossipSettings { port: 6085, keys: vec![[0; 32]], seeds: Vec::new() },
        hold_downs: HoldDowns::default(),
        arrivals: ArrivalTimes::default(),
        new_flows: NewFlows::default(),
        connect: ConnectSettings::default(),
        announce_interfaces: Vec::new(),
        gateways: Vec::new(),
        kubernetes: None,
    }
}

/// The `n`th service: a VIP of 10.0.0.0/8, and backends of 100.64.0.0/10 with an address a service
/// and node.
fn frontend(name: String, n: u32, backends: usize) -> FrontendObject {
    let member = |at: usize| PoolMember {
        address: IpAddr::from(Ipv4Addr::from_bits(0x6440_0000 | ((at % NODES) as u32) << 18 | n)),
        port: Some(BACKEND_PORT + (at / NODES) as u16),
        weight: 1,
        node: node_name(at % NODES),
        terminating: false,
        far: false,
    };
    FrontendObject {
        name,
        addresses: vec![Ipv4Addr::from_bits(0x0a00_0000 + n).into()],
        ports: vec![FrontendPort { port: 80, protocol: Protocol::Tcp, target_port: BACKEND_PORT }],
        pool: Pool::Members((0..backends).map(member).collect()),
        delivery: Delivery::Tunnel,
        check: Some(Check {
            kind: CheckKind::Tcp,
            port: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 2,
            jitter_percent: 10,
        }),
        slots: None,
        client_affinity: false,
        echo: true,
        local_only: false,
        by_place: false,
        announce: AnnouncePolicy::default(),
        source_ranges: Vec::new(),
    }
}
