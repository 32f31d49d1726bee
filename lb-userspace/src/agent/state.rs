//! What the agent's loop keeps between two turns, and one turn: plan, apply, announce.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::hop::{Hop, Uplink};
use tokio::sync::watch;

use super::report::About;
use crate::{
    announce::{self, uplink_for},
    dataplane::{
        apply::{DataPlane, Scope, Surroundings},
        attach::AttachError,
        load::Loaded,
        maps::Maps,
    },
    membership::{Alive, PeerStatus},
    model::{Intent, Members, Problem, Targets, Verdicts},
    netlink::Interfaces,
    plan::{self, Askers, Desired, Inputs},
    report::status::Attachment,
    sources::file::SourceStatus,
};

/// Shortest time between two reports.
const REPORT_REST: Duration = Duration::from_millis(200);

/// Addresses of all nodes by name, as netlink and membership follow them.
pub type Addresses = Arc<BTreeMap<String, Vec<IpAddr>>>;

pub fn addresses(intent: &Intent) -> Addresses {
    let addresses = |node: &crate::model::Node| (node.name.clone(), node.addresses.clone());
    Arc::new(intent.nodes.values().map(addresses).collect())
}

/// What wakes the loop.
pub struct Inlets {
    pub intent: watch::Receiver<Arc<Intent>>,
    pub source: watch::Receiver<SourceStatus>,
    pub hops: watch::Receiver<Arc<BTreeMap<String, Hop>>>,
    pub interfaces: watch::Receiver<Arc<Interfaces>>,
    pub alive: watch::Receiver<Arc<Alive>>,
    pub peers: watch::Receiver<Arc<BTreeMap<String, PeerStatus>>>,
    pub verdicts: watch::Receiver<Arc<Verdicts>>,
}

impl Inlets {
    /// Returns when something may have changed. A sender that is gone shows as its task's end.
    pub async fn changed(&mut self) {
        let live = |result: Result<(), watch::error::RecvError>| result.is_ok();
        let alive = tokio::select! {
            result = self.intent.changed() => live(result),
            result = self.source.changed() => live(result),
            result = self.hops.changed() => live(result),
            result = self.interfaces.changed() => live(result),
            result = self.alive.changed() => live(result),
            result = self.verdicts.changed() => live(result),
        };
        if !alive {
            std::future::pending::<()>().await;
        }
    }
}

impl Inlets {
    /// Returns once every node has been heard or given up, and every target has a verdict.
    pub async fn all_known(&mut self) {
        // Senders that are gone show as their tasks' end.
        let _ = self.alive.wait_for(|alive| alive.ready).await;
        let targets = plan::targets(&self.intent.borrow());
        let known = |verdicts: &Arc<Verdicts>| targets.keys().all(|it| verdicts.contains_key(it));
        let _ = self.verdicts.wait_for(known).await;
    }
}

/// What the loop tells the others.
pub struct Outlets {
    pub nodes: watch::Sender<Addresses>,
    pub targets: watch::Sender<Arc<Targets>>,
    pub members: watch::Sender<Arc<Members>>,
    pub announced: watch::Sender<Arc<BTreeMap<IpAddr, announce::Uplink>>>,
}

/// What a plan is made of beside verdicts.
type Parts = (Arc<Intent>, Arc<Alive>, Arc<BTreeMap<String, Hop>>, Arc<Interfaces>);

/// What the last plan was made of.
struct Basis {
    parts: Parts,
    members: Arc<Members>,
    askers: Askers,
    /// The last verdict that it knew, and how many targets had been forgotten.
    turn: u64,
    removals: u64,
}

impl Basis {
    /// Whether the verdicts since then are all that is new.
    fn follows(&self, now: &Parts, verdicts: &Verdicts) -> bool {
        let same = Arc::ptr_eq(&self.parts.0, &now.0)
            && Arc::ptr_eq(&self.parts.1, &now.1)
            && Arc::ptr_eq(&self.parts.2, &now.2)
            && Arc::ptr_eq(&self.parts.3, &now.3);
        same && self.removals == verdicts.removals()
    }
}

pub struct State {
    data_plane: DataPlane<Maps>,
    loaded: Loaded,
    outlets: Outlets,
    pub(super) about: About,
    /// The last plan.
    pub(super) desired: Desired,
    /// What it was made of.
    basis: Option<Basis>,
    /// With what it was applied; none before and after a failure.
    applied: Option<Surroundings>,
    /// What the data plane could not hold, or why nothing could be applied.
    pub(super) unapplied: Vec<Problem>,
    /// By device and program: where it sits, and the interface's index then.
    pub(super) attachments: BTreeMap<(String, &'static str), (u32, Attachment)>,
    /// Why a program is not on a device.
    pub(super) unattached: BTreeMap<String, String>,
    pub(super) reported: Option<Instant>,
}

impl State {
    pub fn new(
        data_plane: DataPlane<Maps>,
        loaded: Loaded,
        outlets: Outlets,
        about: About,
    ) -> Self {
        Self {
            data_plane,
            loaded,
            outlets,
            about,
            basis: None,
            applied: None,
            desired: Desired::default(),
            unapplied: Vec::new(),
            attachments: BTreeMap::new(),
            unattached: BTreeMap::new(),
            reported: None,
        }
    }

    /// Whether a former agent's maps forward something.
    pub fn serves(&self) -> anyhow::Result<bool> {
        Ok(self.data_plane.serves()?)
    }

    /// One turn: everything read, planned, applied, then announced. False if it must be tried again.
    pub fn step(&mut self, inlets: &mut Inlets) -> bool {
        let intent = inlets.intent.borrow_and_update().clone();
        let verdicts = inlets.verdicts.borrow_and_update().clone();
        let alive = inlets.alive.borrow_and_update().clone();
        let hops = inlets.hops.borrow_and_update().clone();
        let interfaces = inlets.interfaces.borrow_and_update().clone();
        inlets.source.mark_unchanged();
        let parts = (intent.clone(), alive.clone(), hops.clone(), interfaces.clone());
        if let Some(basis) = self.basis.take().filter(|it| it.follows(&parts, &verdicts))
            && let Some(around) = self.applied.take_if(|_| self.unapplied.is_empty())
        {
            return self.follow(basis, &verdicts, around);
        }
        let askers = plan::askers(&intent);
        tell(&self.outlets.nodes, addresses(&intent));
        tell(&self.outlets.targets, askers.targets.clone());

        let members = Arc::new(members(&intent, &alive));
        tell(&self.outlets.members, members.clone());
        let inputs = Inputs { intent: &intent, verdicts: &verdicts, members: &members };
        let desired = plan::desired(&inputs);
        let announced = self.announced(&intent, &interfaces, &desired, alive.ready);
        let around = Surroundings {
            hops: (*hops).clone(),
            announced: announced.iter().map(|(vip, uplink)| (*vip, uplink.ifindex)).collect(),
            uplinks: uplinks(&intent, &interfaces),
            mtu: smallest_mtu(&intent, &interfaces),
        };
        let scope = match &self.applied {
            Some(same) if self.unapplied.is_empty() => {
                Scope::between(&self.desired, &desired, *same != around)
            }
            // What went without may find room now.
            _ => Scope::All,
        };
        self.desired = desired;
        let (turn, removals) = (verdicts.turn(), verdicts.removals());
        self.basis = Some(Basis { parts, members, askers, turn, removals });
        let applied = self.apply(around, &scope);
        if applied {
            tell(&self.outlets.announced, Arc::new(announced));
        }
        applied
    }

    /// A turn for which nothing changed but verdicts: costs what changed, not what there is.
    fn follow(&mut self, mut basis: Basis, verdicts: &Verdicts, around: Surroundings) -> bool {
        let inputs = Inputs { intent: &basis.parts.0, verdicts, members: &basis.members };
        let changed = verdicts.since(basis.turn);
        let frontends =
            plan::follow(&mut self.desired, &inputs, &basis.askers, changed, iter::empty());
        basis.turn = verdicts.turn();
        self.basis = Some(basis);
        self.apply(around, &Scope::Part { around: false, frontends, backends: BTreeSet::new() })
    }

    fn apply(&mut self, around: Surroundings, scope: &Scope) -> bool {
        let start = Instant::now();
        let apply = || self.data_plane.apply(&self.desired, &around, scope);
        match tokio::task::block_in_place(apply) {
            Ok(problems) => {
                tracing::debug!(elapsed = ?start.elapsed(), all = *scope == Scope::All, "applied");
                for problem in problems.iter().filter(|problem| !self.unapplied.contains(problem)) {
                    tracing::error!(object = problem.object, "{}", problem.message);
                }
                self.unapplied = problems;
                self.applied = Some(around);
                true
            }
            Err(error) => {
                let problem = Problem { object: "Agent".into(), message: error.to_string() };
                if self.unapplied.last() != Some(&problem) {
                    tracing::error!(%error, "maps cannot be written; the former state stays in force");
                    self.unapplied = vec![problem];
                }
                self.applied = None;
                false
            }
        }
    }

    /// What this node announces, and where. Before all nodes have been heard: what it announced
    /// already, by the maps.
    fn announced(
        &self,
        intent: &Intent,
        interfaces: &Interfaces,
        desired: &Desired,
        ready: bool,
    ) -> BTreeMap<IpAddr, announce::Uplink> {
        let former = self.data_plane.announced().unwrap_or_default();
        let mine = desired.vips.iter().filter(|(vip, wanted)| match ready {
            true => wanted.announcer == intent.agent.node,
            false => former.contains_key(vip),
        });
        let uplink = |vip: &IpAddr| uplink_for(*vip, &intent.agent.uplinks, interfaces);
        mine.filter_map(|(vip, _)| Some((*vip, uplink(vip)?))).collect()
    }

    /// Puts `egress` on every device that is configured. At the start an error ends the agent.
    pub async fn attach_egress(&mut self, inlets: &Inlets) -> Result<(), AttachError> {
        let agent = inlets.intent.borrow().agent.clone();
        for device in agent.uplinks.iter().chain(&agent.egress_devices) {
            let index = index_of(&inlets.interfaces.borrow(), device);
            let attachment = self.loaded.attach_egress(device).await?;
            self.note((device.clone(), "egress"), index, attachment);
        }
        Ok(())
    }

    /// The same for `ingress`, on uplinks.
    pub async fn attach_ingress(&mut self, inlets: &Inlets) -> Result<(), AttachError> {
        let agent = inlets.intent.borrow().agent.clone();
        for device in &agent.uplinks {
            let index = index_of(&inlets.interfaces.borrow(), device);
            let attachment = self.loaded.attach_ingress(device).await?;
            self.note((device.clone(), "ingress"), index, attachment);
        }
        Ok(())
    }

    fn note(&mut self, at: (String, &'static str), index: u32, attachment: Attachment) {
        let Attachment { interface, program, mode, reason } = &attachment;
        let former = self.attachments.get(&at).map(|(_, former)| former);
        if former != Some(&attachment) {
            match reason {
                None => tracing::info!(interface, program, mode, "attached"),
                Some(reason) => tracing::warn!(interface, program, mode, reason, "attached"),
            }
        }
        self.attachments.insert(at, (index, attachment));
    }

    /// Devices that were made anew get their programs again; whoever came behind `egress` is told of.
    pub async fn look_at_attachments(&mut self, inlets: &Inlets) {
        let interfaces = inlets.interfaces.borrow().clone();
        self.unattached.clear();
        for (at, (index, attachment)) in self.attachments.clone() {
            let (device, program) = &at;
            let now = index_of(&interfaces, device);
            let result = match (*program, now == index) {
                (_, _) if now == 0 => Err(AttachError::NoInterface(device.clone())),
                ("ingress", true) => continue,
                (_, true) => self.loaded.look_at_egress(&attachment).await,
                ("ingress", false) => self.loaded.attach_ingress(device).await,
                (_, false) => self.loaded.attach_egress(device).await,
            };
            match result {
                Ok(attachment) => self.note(at, now, attachment),
                Err(error) => {
                    self.unattached.insert(format!("{program} on {device}"), error.to_string());
                }
            }
        }
    }

    /// Reports unless it was done just now; the next tick then does.
    pub fn report_soon(&mut self, inlets: &Inlets) {
        if self.reported.is_none_or(|at| at.elapsed() >= REPORT_REST) {
            self.report(inlets);
        }
    }
}

/// An agent that starts knows nobody: it takes nothing from anyone until it does.
fn members(intent: &Intent, alive: &Alive) -> Members {
    let names = intent.nodes.keys().filter(|name| !alive.ready || alive.names.contains(*name));
    let mut members = Members::assumed(&intent.agent.node, names.map(String::as_str));
    members.ready = alive.ready;
    // Agents do not hear each other yet: each probes all that it needs.
    members.nodes.values_mut().for_each(|member| member.heard = false);
    members
}

fn tell<T: PartialEq>(to: &watch::Sender<Arc<T>>, now: Arc<T>) {
    to.send_if_modified(|former| {
        let changed = **former != *now;
        if changed {
            *former = now;
        }
        changed
    });
}

fn index_of(interfaces: &Interfaces, device: &str) -> u32 {
    interfaces.by_name(device).map_or(0, |link| link.ifindex)
}

fn uplinks(intent: &Intent, interfaces: &Interfaces) -> Vec<Uplink> {
    let links = intent.agent.uplinks.iter().filter_map(|name| interfaces.by_name(name));
    let uplink = |link: &crate::netlink::Link| Uplink {
        ifindex: link.ifindex,
        mac: link.mac.unwrap_or_default(),
        reserved: [0; 6],
    };
    links.map(uplink).collect()
}

fn smallest_mtu(intent: &Intent, interfaces: &Interfaces) -> u32 {
    let links = intent.agent.uplinks.iter().filter_map(|name| interfaces.by_name(name));
    links.map(|link| link.mtu).min().unwrap_or_default()
}
