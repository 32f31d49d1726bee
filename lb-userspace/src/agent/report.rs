//! The agent's account of itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::FutureExt;
use tokio::task::JoinHandle;

use super::state::{Inlets, State};
use crate::{
    announce::Why,
    membership::{NodeStatus, Report},
    model::{
        CheckKind, Drainable, Health, MemberState, Problem, Target, Targets, Verdicts,
        drains::Order,
    },
    plan::{DesiredFrontend, FrontendKey, history::Unsettled},
    report::status::{
        self, AgentStatus, CandidateStatus, DrainStatus, FrontendStatus, HealthWord,
        KubernetesStatus, MemberStatus, RemainingStatus, TargetCause, TargetStatus,
        UnsettledStatus, VipStatus, Votes,
    },
    watched::Watched as _,
};

/// What does not change.
pub struct About {
    pub config: PathBuf,
    pub started: SystemTime,
    pub state_dir: PathBuf,
}

/// Shortest time between two reports.
const REST: Duration = Duration::from_millis(200);

/// Of large sites: at least so many times as long as the last report took.
const REST_SHARE: u32 = 10;

/// The writing of reports, beside the loop.
#[derive(Default)]
pub(super) struct Reports {
    /// Says how long it took.
    writing: Option<JoinHandle<Duration>>,
    /// Not before this.
    next: Option<Instant>,
}

impl Reports {
    /// Whether the next one may be written.
    fn is_due(&mut self) -> bool {
        if let Some(took) = self.writing.take_if(|writing| writing.is_finished()) {
            let took = took.now_or_never().and_then(Result::ok).unwrap_or_default();
            self.next = Some(Instant::now() + REST.max(took * REST_SHARE));
        }
        self.writing.is_none() && self.next.is_none_or(|at| Instant::now() >= at)
    }
}

/// What costs as much as there is, and is spelt out beside the loop.
struct Lists {
    targets: Arc<Targets>,
    verdicts: Arc<Verdicts>,
    /// With who announces its address.
    frontends: Vec<(FrontendKey, DesiredFrontend, String)>,
}

impl State {
    /// Has the status file written, unless that was done just now: the next tick then does.
    pub fn report(&mut self, inlets: &Inlets) {
        if self.reports.is_due() {
            self.reports.writing = Some(self.write_report(inlets));
        }
    }

    /// Has it written whatever was before, and waits for that.
    pub async fn report_now(&mut self, inlets: &Inlets) {
        if let Some(writing) = self.reports.writing.take() {
            // A writer that panicked has said so.
            let _ = writing.await;
        }
        let _ = self.write_report(inlets).await;
    }

    /// That it cannot be written stops nothing.
    fn write_report(&self, inlets: &Inlets) -> JoinHandle<Duration> {
        let (status, lists) = (self.status(inlets), self.lists(inlets));
        let state_dir = self.about.state_dir.clone();
        tokio::task::spawn_blocking(move || {
            let start = Instant::now();
            let status =
                AgentStatus { targets: lists.targets(), frontends: lists.frontends(), ..status };
            if let Err(error) = status.write(&state_dir) {
                tracing::warn!(%error, dir = %state_dir.display(), "status cannot be written");
            }
            start.elapsed()
        })
    }

    fn lists(&self, inlets: &Inlets) -> Lists {
        let announcer = |vip| self.election.elected(vip).unwrap_or_default().to_owned();
        let frontends = self.desired.frontends.iter();
        let frontends = frontends.map(|(key, it)| (*key, it.clone(), announcer(key.address)));
        Lists {
            targets: self.basis.as_ref().map(|it| it.askers.targets.clone()).unwrap_or_default(),
            verdicts: inlets.verdicts.copy(),
            frontends: frontends.collect(),
        }
    }

    fn status(&self, inlets: &Inlets) -> AgentStatus {
        let source = inlets.source.copy();
        let intent = inlets.intent.copy();
        AgentStatus {
            schema: status::SCHEMA.into(),
            node: intent.agent.node.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: process::id(),
            config: self.about.config.clone(),
            stale: source.stale.clone(),
            config_error: (!source.ok).then(|| source.problems.join("\n")),
            started_ms: unix_ms(self.about.started),
            written_ms: unix_ms(SystemTime::now()),
            attachments: self.attachments.values().map(|(_, found)| found.clone()).collect(),
            problems: self.problems(inlets),
            isolated: inlets.members.copy().isolated,
            members: self.members(inlets),
            vips: self.vips(),
            drains: self.drains(inlets),
            kubernetes: inlets.kubernetes.as_ref().map(|it| KubernetesStatus::clone(&it.copy())),
            unsettled: self.unsettled(),
            gossip: counted(&inlets.membership.copy()),
            ..AgentStatus::default()
        }
    }

    fn problems(&self, inlets: &Inlets) -> Vec<Problem> {
        let of_agent = |message| Problem { object: "Agent".into(), message };
        let unattached =
            self.unattached.iter().map(|(what, why)| of_agent(format!("{what}: {why}")));
        let mut problems: Vec<_> =
            self.desired.problems.iter().cloned().chain(unattached).collect();
        problems.extend(self.unapplied.iter().cloned());
        problems.extend(self.forgotten());
        problems.extend(self.election.problems());
        problems.extend(self.keeper.problems());
        problems.extend(self.keep.problems());
        if let Some(kubernetes) = &inlets.kubernetes {
            problems.extend(kubernetes.copy().problems.iter().cloned());
        }
        problems.extend(inlets.conflicts.copy().iter().cloned());
        problems.extend(inlets.membership.copy().problems.iter().cloned());
        problems.sort();
        problems.dedup();
        problems
    }

    fn members(&self, inlets: &Inlets) -> Vec<MemberStatus> {
        let (intent, report) = (inlets.intent.copy(), inlets.membership.copy());
        let members = inlets.members.copy();
        let status = |(name, state): (&String, &MemberState)| {
            let seen = report.nodes.get(name).cloned().unwrap_or_default();
            let node = intent.nodes.get(name);
            MemberStatus {
                addresses: node.map(|node| node.addresses.clone()).unwrap_or_default(),
                drained: self.own.drained.contains(name),
                ..member(name, state, seen)
            }
        };
        members.nodes.iter().map(status).collect()
    }

    fn unsettled(&self) -> UnsettledStatus {
        let Unsettled { young, since, waiting, kept, cut_short } = self.memory.history.unsettled();
        let waiting = waiting.into_iter().map(|(member, count)| (member.to_string(), count));
        UnsettledStatus {
            young,
            young_for_ms: since.map(|at| at.elapsed().as_millis() as u64),
            waiting: waiting.collect(),
            kept,
            cut_short,
        }
    }

    fn vips(&self) -> Vec<VipStatus> {
        let whys = self.election.whys(Instant::now()).into_iter();
        let status = |(address, why): (IpAddr, Why)| VipStatus {
            address,
            elected: why.elected,
            announced_by: why.announced_by,
            candidates: why
                .candidates
                .into_iter()
                .map(|(node, standing)| CandidateStatus {
                    node,
                    standing: standing.word().to_owned(),
                })
                .collect(),
            excluded: why
                .excluded
                .iter()
                .map(|(why, nodes)| (why.word().to_owned(), nodes.clone()))
                .collect(),
            for_seconds: why.for_seconds,
        };
        whys.map(status).collect()
    }

    /// What is out of service, and what flows that leaves.
    fn drains(&self, inlets: &Inlets) -> Vec<DrainStatus> {
        let remaining = self.remaining(inlets);
        let mut ordered = BTreeSet::new();
        let orders = self.keeper.drains().iter().filter(|(_, order)| order.drained);
        let status = |(what, order): (&str, &Order)| {
            let covered = |it: &&RemainingStatus| match what.parse() {
                Ok(Drainable::Backend(address)) => it.backend == address,
                Ok(Drainable::Node(node)) => it.node == node,
                Ok(Drainable::Forwarding(_)) | Err(_) => false,
            };
            let remaining: Vec<_> = remaining.iter().filter(covered).cloned().collect();
            ordered.extend(remaining.iter().map(|it| it.backend));
            DrainStatus {
                what: what.to_owned(),
                author: order.author.clone(),
                at_ms: order.at_ms,
                deadline_ms: order.deadline_ms,
                remaining,
            }
        };
        let mut drains: Vec<_> = orders.map(status).collect();
        let by_configuration = remaining.into_iter().filter(|it| !ordered.contains(&it.backend));
        drains.extend(by_configuration.map(|it| DrainStatus {
            what: Drainable::Backend(it.backend).to_string(),
            remaining: vec![it],
            ..DrainStatus::default()
        }));
        drains
    }

    /// The flows of backends that get no new ones: as none of their slots are theirs, all are displaced.
    fn remaining(&self, inlets: &Inlets) -> Vec<RemainingStatus> {
        let (consensus, scanned) = (inlets.consensus.copy(), inlets.scanned.copy());
        let mut claimed: BTreeMap<SocketAddr, u64> = BTreeMap::new();
        for (address, (flows, _)) in consensus.claims.values().flat_map(|it| &it.flows) {
            if self.desired.ending.contains(address) {
                *claimed.entry(*address).or_default() += flows;
            }
        }
        let remaining = |address: &SocketAddr| {
            let node = self.desired.backends.get(address)?.node.clone();
            // What is here needs nobody's word.
            let here = scanned.flows.get(address);
            let flows = here.or(claimed.get(address)).copied().unwrap_or_default();
            Some(RemainingStatus { backend: *address, flows, node })
        };
        self.desired.ending.iter().filter_map(remaining).collect()
    }
}

/// A node as membership sees it.
fn member(name: &str, member: &MemberState, seen: NodeStatus) -> MemberStatus {
    let card = member.card.as_deref();
    MemberStatus {
        node: name.to_owned(),
        life: member.life,
        heard: member.heard,
        serves: member.serves,
        announcing: member.announcing,
        unreachable: member.unreachable.iter().cloned().collect(),
        leaving: card.is_some_and(|card| card.leaving),
        version: card.map(|card| card.version.clone()),
        layout: seen.layout.or(card.map(|card| card.layout)),
        held_for_ms: seen.held_for_ms,
        deaths: seen.deaths,
        watched: seen.watched,
        suspected_by: seen.suspected_by.into_iter().collect(),
        other_tunnel_version: seen.other_version,
        seed_differs: seen.other_seed,
        heartbeat_ms: seen.heartbeat_age_ms,
        last_answer_ms: seen.last_answer_ms,
        round_trip_us: seen.round_trip_us,
        boot_id: seen.boot_id,
        ..MemberStatus::default()
    }
}

/// What gossip took and refused, by name.
fn counted(report: &Report) -> BTreeMap<String, u64> {
    let refusals = report.refusals.by_name().map(|(name, refusal)| (name, refusal.count));
    let counts = report.counts.by_name().into_iter().chain(refusals);
    let mut sums = BTreeMap::new();
    counts.for_each(|(name, count)| *sums.entry(name.to_owned()).or_default() += count);
    sums
}

impl Lists {
    fn targets(&self) -> Vec<TargetStatus> {
        let verdicts = &self.verdicts;
        let status = |target: &Target| {
            let (health, reason) = match verdicts.get(target) {
                None | Some(Health::Unknown) => (HealthWord::Unknown, None),
                Some(Health::Up) => (HealthWord::Up, None),
                Some(Health::Down(reason)) => (HealthWord::Down, Some(reason.clone())),
            };
            let check = match target.check.kind {
                CheckKind::Tcp => "tcp",
                CheckKind::Http(_) => "http",
                CheckKind::Https { .. } => "https",
            };
            let cause = verdicts.cause(target).map(|cause| TargetCause {
                by: cause.by.iter().map(|node| node.to_string()).collect(),
                votes: Votes { up: cause.up, down: cause.down },
                since_ms: cause.since.as_millis() as u64,
            });
            TargetStatus { address: target.address, check: check.into(), health, reason, cause }
        };
        self.targets.keys().map(|target| status(target)).collect()
    }

    fn frontends(&self) -> Vec<FrontendStatus> {
        let status =
            |(key, frontend, announcer): &(FrontendKey, DesiredFrontend, String)| FrontendStatus {
                object: frontend.object.clone(),
                address: key.address,
                port: key.port,
                protocol: key.protocol,
                announcer: announcer.clone(),
                weights: BTreeMap::clone(&frontend.owners),
            };
        self.frontends.iter().map(status).collect()
    }
}

/// Milliseconds since 1970.
pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
