//! Floods of random SYNs, ACKs and datagrams beside established connections: none may break or be forgotten, handshakes must
//! go on, and strays must not be handed from node to node.
//!
//! The flood is made by the program `flood` of the bench's BPF object, run by `BPF_PROG_TEST_RUN` with live frames in the
//! lab's switch: each frame leaves by the port of a forwarder with another client's address, port and sequence numbers and
//! right checksums. It never leaves the lab: answers to the clients, which do not exist, end in a black hole of the router.

mod sender;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    Goal,
    churn::{
        crowd::Crowd,
        site::{Forwarders, Site, targets},
        system::{System, Weir},
    },
};
use crate::traffic::long::By;
use sender::{Segment, Sender, Strays};

/// A flood that meets young frontends must end before they have grown up.
const WHILE_YOUNG: Duration = Duration::from_secs(4);
/// New connections a second, beside the flood.
const BIRTHS: u64 = 50;
/// Tunnelled packets for each stray ACK when nothing is young or claimed.
const SENDS: f64 = 1.05;
/// Where new flows are limited: so many a second and source prefix on each node.
const NEW_FLOWS: u64 = 500;
/// What may pass, as a part of the limit: CPUs of a node count without locks.
const PASSED: f64 = 1.1;

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Frames a second that are tried
    #[arg(long, default_value_t = 250_000)]
    pub rate: u64,
    /// How long each flood lasts
    #[arg(long, default_value_t = 20)]
    pub seconds: u64,
    /// Established connections beside it
    #[arg(long, default_value_t = 1000)]
    pub connections: usize,
    /// Kinds of floods; all, if none is given
    #[arg(long, value_enum, value_delimiter = ',')]
    pub kinds: Vec<Kind>,
    /// Of IPv6 alone, or of IPv4 alone; both one after the other, if it is not given
    #[arg(long)]
    pub ipv6: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Random SYNs
    Syn,
    /// Random ACKs, while nothing is young or claimed
    Ack,
    /// Random datagrams
    Datagram,
    /// Random ACKs, while the frontends are young
    AckYoung,
    /// Random ACKs, while a backend that left claims the slots of its connections
    AckClaimed,
    /// SYNs of one source prefix, while the new flows of each are limited
    SynLimited,
}

/// `weir.bench-flood/v1`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub schema: &'static str,
    pub connections: usize,
    pub rows: Vec<Row>,
    pub goals: Vec<Goal>,
}

/// One flood.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub kind: String,
    pub ipv6: bool,
    pub seconds: f64,
    /// Frames a second that the switch sent, and that forwarders took for a backend.
    pub sent_a_second: u64,
    pub taken_a_second: u64,
    /// Of the established connections.
    pub broken: usize,
    /// Entries of the established map that were there before and are not after.
    pub forgotten: usize,
    /// Entries of other clients than the bench's own that came to it: random segments that passed as acknowledgements.
    pub promoted: usize,
    pub opened: usize,
    pub not_opened: usize,
    /// Why connections broke or were not opened, and how many.
    pub failures: BTreeMap<String, usize>,
    pub slowest_opening_ms: u64,
    /// The longest answer to an established connection.
    pub longest_ms: u64,
    /// Tunnelled packets for each that forwarders took.
    pub sends_each: f64,
    /// SYNs a second that were dropped as beyond the limit of their source prefix.
    pub limited_a_second: u64,
    /// What became of all packets, those of the conversations and checks too.
    pub fates: BTreeMap<String, u64>,
}

impl Row {
    fn name(&self) -> String {
        format!("{}, IPv{}", self.kind, if self.ipv6 { 6 } else { 4 })
    }
}

/// Runs the floods and prints what became of the connections.
pub fn run(options: &Options, json: bool) -> Result<Report> {
    let mut site = Site::build(Forwarders::Mixed)?;
    let lab = Arc::clone(&site.lab);
    let mut hole = lab.router().command("ip");
    hole.args(["route", "add", "blackhole", "198.18.0.0/15"]);
    ensure!(hole.status().context("run ip")?.success(), "the router has no black hole");
    let mut weir = Weir::start(&site, &lab, &site.powered(), &site.pool)?;
    let files = 4 * options.connections as u64 + 8 * BIRTHS * options.seconds + 1024;
    let crowd = Crowd::new(&lab.clients()[0], files)?;
    crowd.open(
        By::Tcp,
        &targets(),
        options.connections,
        Duration::from_millis(options.connections as u64),
    );
    crowd.wait_open(options.connections)?;
    ensure!(crowd.living().0 == options.connections, "not all connections were opened");

    let mut rows = Vec::new();
    for kind in options.kinds() {
        if kind == Kind::SynLimited {
            limit(&site, &mut weir)?;
        }
        for ipv6 in options.ipv6.map_or(vec![false, true], |ipv6| vec![ipv6]) {
            let row = flood(&mut site, &weir, &crowd, (kind, ipv6), options)?;
            eprintln!("{}", line(&row));
            rows.push(row);
        }
    }
    let goals = goals(&rows, site.forwarders.len());
    let report =
        Report { schema: "weir.bench-flood/v1", connections: options.connections, rows, goals };
    super::show(&report, json, print)?;
    Ok(report)
}

impl Options {
    fn kinds(&self) -> Vec<Kind> {
        if self.kinds.is_empty() { Kind::value_variants().to_vec() } else { self.kinds.clone() }
    }
}

impl Kind {
    fn segment(self) -> Segment {
        match self {
            Self::Syn | Self::SynLimited => Segment::Syn,
            Self::Ack | Self::AckYoung | Self::AckClaimed => Segment::Ack,
            Self::Datagram => Segment::Datagram,
        }
    }
}

/// Agents start again, one after the other, with a limit of new flows.
fn limit(site: &Site, weir: &mut Weir<'_>) -> Result<()> {
    weir.fleet.add_to_agent(&format!("newFlows: {{perSecond: {NEW_FLOWS}}}"));
    weir.use_pool(site)?;
    site.powered().into_iter().try_for_each(|node| weir.kill(node))
}

/// One flood, from calm to calm.
fn flood(
    site: &mut Site,
    weir: &Weir<'_>,
    crowd: &Crowd,
    (kind, ipv6): (Kind, bool),
    options: &Options,
) -> Result<Row> {
    let mut time = Duration::from_secs(options.seconds);
    match kind {
        Kind::AckYoung => {
            let pod = site.spare.pop_front().context("a spare pod")?;
            site.pool.insert(pod);
            weir.use_pool(site)?;
            time = time.min(WHILE_YOUNG);
        }
        Kind::AckClaimed => {
            let pod = site.pool.pop_first().context("a pool")?;
            site.spare.push_back(pod);
            weir.use_pool(site)?;
            weir.wait_grown(site)?;
        }
        _ => weir.wait_grown(site)?,
    }
    crowd.round()?;
    crowd.take();
    let visitors = Crowd::new(&site.lab.clients()[1], 0)?;
    let (known, before) = (established(site, weir)?, Fates::read(site, weir)?);
    let from = Instant::now();
    let strays = Strays { kind: kind.segment(), ipv6, one_prefix: kind == Kind::SynLimited };
    let sender = Sender::start(site, strays, options.rate)?;
    visitors.open(By::Tcp, &targets(), (BIRTHS * time.as_secs()) as usize, time);
    thread::sleep(time);
    let sent = sender.stop()?;
    let seconds = from.elapsed().as_secs_f64();
    let fates = Fates::read(site, weir)?.since(&before);
    visitors.wait_open((BIRTHS * time.as_secs()) as usize)?;
    crowd.round()?;
    let (losses, births) = (crowd.take(), visitors.take());
    let now = established(site, weir)?;
    let taken = fates.of(&TAKEN);
    let mut failures = BTreeMap::new();
    for failure in losses.broken.iter().map(|it| &it.failure).chain(&births.unborn) {
        *failures.entry(format!("{failure:?}")).or_default() += 1;
    }
    let is_own = |client: &SocketAddr| clients(site).contains(&client.ip());
    let a_second = |count: u64| (count as f64 / seconds) as u64;
    Ok(Row {
        kind: kind
            .to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned()),
        ipv6,
        seconds,
        sent_a_second: a_second(sent),
        taken_a_second: a_second(taken),
        broken: losses.broken.len(),
        forgotten: known.difference(&now).filter(|(client, _)| is_own(client)).count(),
        promoted: now.difference(&known).filter(|(client, _)| !is_own(client)).count(),
        opened: births.born,
        not_opened: births.unborn.len(),
        failures,
        slowest_opening_ms: births.opening.as_millis() as u64,
        longest_ms: losses.longest.as_millis() as u64,
        sends_each: fates.of(&TUNNELLED) as f64 / taken.max(1) as f64,
        limited_a_second: a_second(fates.of(&LIMITED)),
        fates: fates.0,
    })
}

fn clients(site: &Site) -> Vec<IpAddr> {
    site.lab.clients().iter().flat_map(|client| client.addresses()).collect()
}

/// Client and backend of all entries of the established maps but those of visitors of earlier floods.
fn established(site: &Site, weir: &Weir<'_>) -> Result<BTreeSet<(SocketAddr, String)>> {
    let mut known = BTreeSet::new();
    let visitors = site.lab.clients()[1].addresses();
    for node in site.powered() {
        let answer = weir.fleet.ask(node, &["arrivals", "--limit", "0"])?;
        for arrival in answer["arrivals"].as_array().context("a list of arrivals")? {
            let text = |name: &str| arrival[name].as_str().unwrap_or_default();
            let client: SocketAddr = text("client").parse().context("a client's address")?;
            if text("map") == "established" && !visitors.contains(&client.ip()) {
                known.insert((client, text("backend").to_owned()));
            }
        }
    }
    Ok(known)
}

/// What became of packets, by the counters of all nodes together.
struct Fates(BTreeMap<String, u64>);

/// Of clients, given to a backend by who got them first.
const TAKEN: [&str; 2] = ["forwarded", "delivered_local"];
/// Sent through the tunnel, for the first time or on.
const TUNNELLED: [&str; 3] = ["forwarded", "sent_on", "sent_last"];
const LIMITED: [&str; 1] = ["new_flow_limited"];

impl Fates {
    fn read(site: &Site, weir: &Weir<'_>) -> Result<Self> {
        let mut fates = BTreeMap::new();
        for node in site.powered() {
            let answer = weir.fleet.ask(node, &["counters"])?;
            for counter in answer["counters"].as_array().context("a list of counters")? {
                let name = counter["name"].as_str().unwrap_or_default().to_owned();
                *fates.entry(name).or_default() += counter["packets"].as_u64().unwrap_or_default();
            }
        }
        Ok(Self(fates))
    }

    /// What there is more than before.
    fn since(mut self, before: &Self) -> Self {
        for (name, packets) in &mut self.0 {
            *packets = packets.saturating_sub(before.0.get(name).copied().unwrap_or_default());
        }
        self.0.retain(|_, packets| *packets > 0);
        self
    }

    fn of(&self, names: &[&str]) -> u64 {
        names.iter().filter_map(|name| self.0.get(*name)).sum()
    }
}

fn goals(rows: &[Row], forwarders: usize) -> Vec<Goal> {
    let mut goals = Vec::new();
    for row in rows {
        let name = |what: &str| format!("{}: {what}", row.name());
        goals.push(Goal::at_most(name("broken connections"), 0.0, row.broken as f64));
        goals.push(Goal::at_most(name("established entries forgotten"), 0.0, row.forgotten as f64));
        goals.push(Goal::at_most(name("handshakes that failed"), 0.0, row.not_opened as f64));
        if row.kind == "ack" {
            goals.push(Goal::at_most(name("sends for each stray"), SENDS, row.sends_each));
        }
        if row.kind == "syn-limited" {
            // Frames that the machine lost are among those that were not dropped by the limit, and conversations among
            // those that were taken.
            let passed =
                row.taken_a_second.min(row.sent_a_second.saturating_sub(row.limited_a_second));
            let limit = PASSED * (NEW_FLOWS * forwarders as u64) as f64;
            goals.push(Goal::at_most(name("SYNs a second within the limit"), limit, passed as f64));
        }
    }
    goals
}

fn line(row: &Row) -> String {
    format!(
        "{}: {} frames a second sent, {} taken, {:.0} s; {} broken, {} forgotten, {} promoted; {} opened, {} not, slowest {} ms; \
         longest answer {} ms; {:.3} sends each; {} a second beyond a limit; {:?}",
        row.name(),
        row.sent_a_second,
        row.taken_a_second,
        row.seconds,
        row.broken,
        row.forgotten,
        row.promoted,
        row.opened,
        row.not_opened,
        row.slowest_opening_ms,
        row.longest_ms,
        row.sends_each,
        row.limited_a_second,
        row.failures
    )
}

fn print(report: &Report) {
    println!("Floods beside {} established connections:\n", report.connections);
    report.rows.iter().for_each(|row| println!("{}", line(row)));
    println!();
    for goal in &report.goals {
        let word = if goal.met { "met" } else { "MISSED" };
        println!("{word:<7} {}: {:.3} (at most {})", goal.name, goal.measured, goal.at_most);
    }
}
