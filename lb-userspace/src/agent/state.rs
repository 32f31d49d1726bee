//! What the agent's loop keeps between two turns, and one turn: plan, apply, announce.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use lb_common::hop::{Hop, Uplink};
use tokio::sync::{mpsc, watch};

use super::{
    control::Asked,
    keep::Keep,
    memory::{Difference, Memory, hop_flags},
    orders::obey,
    report::{About, Reports, unix_ms},
    sockets::View,
};
use crate::{
    announce::{self, Election, announcing_interfaces},
    dataplane::{
        apply::{ApplyError, DataPlane, Scope, Surroundings},
        attach::AttachError,
        load::{Loaded, Unsettled},
        maps::Maps,
        scan::Scan,
    },
    membership::{Change, Facts, Key, Own, Publication, Report, drain::Keeper},
    model::{Drained, Intent, Life, MemberState, Members, Problem, Targets, Verdicts},
    netlink::Interfaces,
    plan::{
        self, Askers, Desired, Edited, Inputs,
        flows::{Applied, Consensus},
    },
    report::status::{Attachment, KubernetesStatus},
    sources::file::SourceStatus,
    watched::Watched as _,
};

/// Deadlines by the wall clock are looked at again at least so often.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The programs for sockets, as [`State::attachments`] name them.
const CONNECT: &str = "connect";

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
    /// None: Kubernetes is not asked. For status; wakes nobody.
    pub kubernetes: Option<watch::Receiver<Arc<KubernetesStatus>>>,
    pub hops: watch::Receiver<Arc<BTreeMap<String, Hop>>>,
    pub interfaces: watch::Receiver<Arc<Interfaces>>,
    pub members: watch::Receiver<Arc<Members>>,
    /// For status; wakes nobody.
    pub membership: watch::Receiver<Arc<Report>>,
    /// VIPs for which others answer too; for status.
    pub conflicts: watch::Receiver<Arc<Vec<Problem>>>,
    pub verdicts: watch::Receiver<Arc<Verdicts>>,
    /// Displaced flows, and what is known of others' sets.
    pub consensus: watch::Receiver<Arc<Consensus>>,
    /// What the last look at the arrivals found; for status.
    pub scanned: watch::Receiver<Arc<Scan>>,
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
            result = self.members.changed() => live(result),
            result = self.verdicts.changed() => live(result),
            result = self.consensus.changed() => live(result),
        };
        if !alive {
            std::future::pending::<()>().await;
        }
    }
}

impl Inlets {
    /// Returns once every node has been heard or given up.
    pub async fn all_found(&mut self) {
        // A sender that is gone shows as its task's end.
        let _ = self.members.wait_for(|members| members.ready).await;
    }

    /// Returns once every target has a verdict.
    pub async fn all_judged(&mut self) {
        let targets = plan::targets(&self.intent.copy());
        let known = |verdicts: &Arc<Verdicts>| targets.keys().all(|it| verdicts.contains_key(it));
        let _ = self.verdicts.wait_for(known).await;
    }
}

/// What the loop tells the others.
pub struct Outlets {
    pub nodes: watch::Sender<Addresses>,
    pub targets: watch::Sender<Arc<Targets>>,
    pub keys: watch::Sender<Vec<[u8; 32]>>,
    pub own: watch::Sender<Arc<Own>>,
    pub publish: mpsc::UnboundedSender<Publication>,
    /// What the data plane holds since a turn.
    pub applied: watch::Sender<Arc<Applied>>,
    pub announced: watch::Sender<Arc<BTreeMap<IpAddr, announce::Uplink>>>,
    /// What the data plane goes by since a turn; wakes its readers when somebody died.
    pub view: watch::Sender<View>,
    /// VIPs that the data plane serves since a turn.
    pub served: watch::Sender<Arc<BTreeSet<IpAddr>>>,
}

/// What the last plan was made of.
pub(super) struct Basis {
    intent: Arc<Intent>,
    members: Arc<Members>,
    drained: Arc<Drained>,
    pub(super) askers: Askers,
    /// The last verdict that it knew, and how many targets had been forgotten.
    turn: u64,
    removals: u64,
}

pub struct State {
    data_plane: DataPlane<Maps>,
    loaded: Loaded,
    outlets: Outlets,
    pub(super) about: About,
    /// Sets of before.
    pub(super) memory: Memory,
    /// What a former agent left is known to the memory.
    resumed: bool,
    /// The last plan.
    pub(super) desired: Desired,
    /// What it was made of.
    pub(super) basis: Option<Basis>,
    /// Counts the plans that were made anew: what they hold beside pools changes with no other.
    plans: u64,
    pub(super) election: Election,
    /// What the last election was made of beside time.
    elected: Option<Elected>,
    /// What this node says of itself.
    pub(super) own: Own,
    pub(super) keeper: Keeper,
    pub(super) keep: Keep,
    /// What its orders mean at this time.
    drained: Arc<Drained>,
    /// With what it was applied; none before and after a failure.
    applied: Option<Surroundings>,
    /// What the data plane could not hold, sorted, or why nothing could be applied.
    pub(super) unapplied: Vec<Problem>,
    /// By device and program: where it sits, and the interface's index then.
    pub(super) attachments: BTreeMap<(String, &'static str), (u32, Attachment)>,
    /// Why a program is not on a device.
    pub(super) unattached: BTreeMap<String, String>,
    pub(super) reports: Reports,
}

impl State {
    pub fn new(
        data_plane: DataPlane<Maps>,
        loaded: Loaded,
        outlets: Outlets,
        memory: Memory,
        (keeper, keep): (Keeper, Keep),
        about: About,
    ) -> Self {
        // What the others were told first.
        let own = Own::clone(&outlets.own.copy());
        Self {
            data_plane,
            loaded,
            own,
            outlets,
            about,
            basis: None,
            plans: 0,
            election: Election::default(),
            elected: None,
            drained: Arc::new(keeper.drains().at(unix_ms(SystemTime::now()))),
            keeper,
            keep,
            applied: None,
            memory,
            resumed: false,
            desired: Desired::default(),
            unapplied: Vec::new(),
            attachments: BTreeMap::new(),
            unattached: BTreeMap::new(),
            reports: Reports::default(),
        }
    }

    /// Whether a former agent's maps forward something.
    pub fn serves(&self) -> anyhow::Result<bool> {
        Ok(self.data_plane.serves()?)
    }

    /// What did not fit beside the sets of now since the agent started.
    pub(super) fn forgotten(&self) -> Option<Problem> {
        let dropped = self.data_plane.reserve().dropped;
        let message = format!(
            "{dropped} tables of earlier sets were dropped for want of room: until claims arrive, flows \
             that those placed may wait; more limits.ownerBlocks keep more"
        );
        (dropped > 0).then(|| Problem { object: "Agent".into(), message })
    }

    /// One turn: everything read, planned, applied, then announced. False if it must be tried again.
    pub fn step(&mut self, inlets: &mut Inlets) -> bool {
        let intent = inlets.intent.copy_and_update();
        let verdicts = inlets.verdicts.copy_and_update();
        let members = inlets.members.copy_and_update();
        let hops = inlets.hops.copy_and_update();
        let interfaces = inlets.interfaces.copy_and_update();
        let consensus = inlets.consensus.copy_and_update();
        inlets.source.mark_unchanged();
        self.look_at_drains();
        if !self.resume(&intent) {
            return false;
        }

        let difference = self.plan(&intent, &members, &verdicts);
        let now = Instant::now();
        let touched =
            self.memory.remember(&mut self.desired, &difference, &consensus, &members, now);
        let Ok(announced) = self.elect(&intent, &members, &interfaces, &verdicts) else {
            // The plan went on without the maps: the next turn applies all of it.
            self.applied = None;
            return false;
        };
        let around = Surroundings {
            hops: with_flags(&hops, &members),
            announced: announced.iter().map(|(vip, uplink)| (*vip, uplink.ifindex)).collect(),
            uplinks: uplinks(&intent, &interfaces),
            mtu: smallest_mtu(&intent, &interfaces),
        };
        let scope = match (&self.applied, difference) {
            (Some(same), difference) if self.unapplied.is_empty() => {
                let around = *same != around;
                match difference {
                    Difference::Anew(former) => Scope::between(&former, &self.desired, around),
                    Difference::Owners(mut frontends) => {
                        frontends.extend(touched.frontends);
                        Scope::Part { around, frontends, backends: touched.backends }
                    }
                    Difference::Pools(Edited { mut frontends, mut backends, .. }) => {
                        frontends.extend(touched.frontends);
                        backends.extend(touched.backends);
                        Scope::Part { around, frontends, backends }
                    }
                }
            }
            // What went without may find room now.
            _ => Scope::All,
        };
        let applied = self.apply(around, &scope);
        if applied {
            self.own.applied = true;
            self.keep.applied(&intent);
            self.announce(announced.keys().copied().collect());
            tell(&self.outlets.announced, Arc::new(announced));
            self.memory.tell(self.data_plane.turn(), scope.has_frontends(), now);
            if scope.has_frontends() {
                let vips = self.desired.vips.keys().copied().collect();
                tell(&self.outlets.served, Arc::new(vips));
            }
            let view = View { intent: Some(intent.clone()), members, verdicts };
            self.outlets.view.send_if_modified(|former| former.replace(view));
        }
        self.own.facts = facts(&intent, &interfaces);
        self.speak();
        applied
    }

    /// Before the first plan: goes on where a former agent stopped. False if the maps cannot be read.
    fn resume(&mut self, intent: &Intent) -> bool {
        if self.resumed {
            return true;
        }
        match self.data_plane.left(&plan::desired_nodes(intent)) {
            Ok((frontends, plan)) => {
                self.memory.history.resume(frontends, Instant::now());
                (self.desired, self.resumed) = (plan, true);
            }
            Err(error) => tracing::error!(%error, "maps cannot be read; nothing is changed"),
        }
        self.resumed
    }

    fn announce(&mut self, now: BTreeSet<IpAddr>) {
        for vip in now.difference(&self.own.announced) {
            tracing::info!(%vip, "announced here");
        }
        for vip in self.own.announced.difference(&now) {
            tracing::info!(%vip, by = self.election.elected(*vip), "no longer announced here");
        }
        self.own.announced = now;
    }

    /// Tells the other members what has changed about this one.
    pub fn speak(&self) {
        tell(&self.outlets.own, Arc::new(self.own.clone()));
    }

    /// Makes the plan anew, or lets it follow what changed: that costs what changed, not what there is.
    fn plan(
        &mut self,
        intent: &Arc<Intent>,
        members: &Arc<Members>,
        verdicts: &Verdicts,
    ) -> Difference {
        let members = match members.ready {
            true => members.clone(),
            // An agent that starts knows nobody: it takes nothing from anyone until it does.
            false => {
                let names = intent.nodes.keys().map(String::as_str);
                Arc::new(Members::assumed(&intent.agent.node, names))
            }
        };
        let drained = self.drained.clone();
        let inputs = Inputs { intent, verdicts, members: &members, drained: &drained };
        if let Some(difference) = self.follow(intent, &members, &inputs) {
            return difference;
        }
        let (turn, removals) = (verdicts.turn(), verdicts.removals());
        self.plans += 1;
        let askers = plan::askers(intent);
        tell(&self.outlets.nodes, addresses(intent));
        tell(&self.outlets.targets, askers.targets.clone());
        self.outlets.keys.send_if_modified(|keys| {
            let changed = *keys != intent.agent.gossip.keys;
            keys.clone_from(&intent.agent.gossip.keys);
            changed
        });
        let desired = plan::desired(&inputs);
        let intent = intent.clone();
        self.basis = Some(Basis { intent, members, drained, askers, turn, removals });
        Difference::Anew(std::mem::replace(&mut self.desired, desired))
    }

    /// Lets the plan follow what changed since, where that is verdicts, members and pools alone.
    fn follow(
        &mut self,
        intent: &Arc<Intent>,
        members: &Arc<Members>,
        inputs: &Inputs<'_>,
    ) -> Option<Difference> {
        let mut basis = self.basis.take().filter(|it| *it.drained == *inputs.drained)?;
        let verdicts = inputs.verdicts;
        let forgotten: Vec<_> = verdicts.forgotten_since(basis.removals)?.collect();
        let (plan, askers) = (&mut self.desired, &mut basis.askers);
        let edited = match Arc::ptr_eq(&basis.intent, intent) {
            true => None,
            false => Some(plan::edit(plan, inputs, askers, &basis.intent)?),
        };
        let nodes = basis.members.serving_differs(members);
        let since = verdicts.since(basis.turn).chain(forgotten);
        let owners = plan::follow(plan, inputs, askers, since, nodes);
        tell(&self.outlets.targets, askers.targets.clone());
        self.basis = Some(Basis {
            intent: intent.clone(),
            members: members.clone(),
            turn: verdicts.turn(),
            removals: verdicts.removals(),
            ..basis
        });
        Some(match edited {
            None => Difference::Owners(owners),
            Some(mut edited) => {
                edited.frontends.extend(owners);
                Difference::Pools(edited)
            }
        })
    }

    /// What this node announces, and where.
    fn elect(
        &mut self,
        intent: &Arc<Intent>,
        members: &Arc<Members>,
        interfaces: &Arc<Interfaces>,
        verdicts: &Verdicts,
    ) -> Result<BTreeMap<IpAddr, announce::Uplink>, ApplyError> {
        let now = Instant::now();
        let inputs = Inputs { intent, verdicts, members, drained: &self.drained };
        let holders = self.basis.as_ref().map(|basis| plan::holders(&inputs, &basis.askers));
        let announced = self.data_plane.announced().inspect_err(|error| {
            tracing::error!(%error, "maps cannot be read; nothing is announced or withdrawn");
        })?;
        let basis = (self.plans, members.clone(), interfaces.clone(), holders.unwrap_or_default());
        let due = self.election.next_deadline().is_some_and(|at| at <= now);
        let former = self.elected.as_ref().filter(|it| !due && it.follows(&basis, &announced));
        if let Some(elected) = former {
            return Ok(elected.announced.clone());
        }
        let vips: BTreeSet<IpAddr> = self.desired.vips.keys().copied().collect();
        let inputs = announce::Inputs {
            intent,
            interfaces,
            members,
            vips: &vips,
            holders: &basis.3,
            announced: &announced,
        };
        let announced = self.election.decide(&inputs, now);
        self.elected = Some(Elected { basis, announced: announced.clone() });
        Ok(announced)
    }

    /// When a turn may bring something new although nothing changed.
    pub fn next_deadline(&self) -> Option<Instant> {
        let now_ms = unix_ms(SystemTime::now());
        let wait = |at: u64| Duration::from_millis(at.saturating_sub(now_ms)).min(LONGEST_WAIT);
        let drains = self.drained.until_ms().map(|at| Instant::now() + wait(at));
        let deadlines = [self.election.next_deadline(), self.memory.next_deadline(), drains];
        deadlines.into_iter().flatten().min()
    }

    /// What the orders mean by now: deadlines pass.
    fn look_at_drains(&mut self) {
        let now_ms = unix_ms(SystemTime::now());
        if self.drained.until_ms().is_some_and(|at| at <= now_ms) {
            self.drained = Arc::new(self.keeper.drains().at(now_ms));
        }
    }

    /// What is due now and then: checkpoints, and orders that were undone long ago.
    pub async fn tend(&mut self) {
        self.keep.tend(Instant::now()).await;
        let now_ms = unix_ms(SystemTime::now());
        for key in tokio::task::block_in_place(|| self.keeper.tend(now_ms)) {
            // A receiver that is gone shows as its task's end.
            let _ = self.outlets.publish.send((key, None));
        }
    }

    /// Carries an administrator's order out. Writes to disk, as seldom as people give orders.
    pub fn obey(&mut self, asked: Asked, inlets: &Inlets) {
        let intent = inlets.intent.copy();
        let obey = || obey(&asked.request, &intent, &mut self.keeper, unix_ms(SystemTime::now()));
        let (publication, answer) = tokio::task::block_in_place(obey);
        self.publish(publication);
        // Who asked may have gone.
        let _ = asked.answer.send(answer);
    }

    /// Takes over what other members say of orders.
    pub fn hear_orders(&mut self, changes: &[Change]) {
        let now_ms = unix_ms(SystemTime::now());
        let news = changes.iter();
        let hear = || news.filter_map(|it| self.keeper.on_change(it, now_ms)).collect::<Vec<_>>();
        let publications = tokio::task::block_in_place(hear);
        publications.into_iter().for_each(|publication| self.publish(Some(publication)));
    }

    fn publish(&mut self, publication: Option<(Key, Vec<u8>)>) {
        if let Some((key, value)) = publication {
            // A receiver that is gone shows as its task's end.
            let _ = self.outlets.publish.send((key, Some(value)));
            let drains = self.keeper.drains();
            self.own.drained = drains.forwarding().map(str::to_owned).collect();
            self.drained = Arc::new(drains.at(unix_ms(SystemTime::now())));
            self.speak();
        }
    }

    /// From now on this node hands its VIPs over.
    pub fn leave(&mut self) {
        self.own.leaving = true;
        self.speak();
    }

    /// Whether all VIPs are handed over, or there is nobody to take them.
    pub fn may_go(&self, inlets: &Inlets) -> bool {
        let members = inlets.members.copy();
        let takes = |(name, member): (&String, &MemberState)| {
            let stays = member.card.as_ref().is_some_and(|card| !card.leaving);
            *name != members.own && member.life == Life::Alive && stays
        };
        self.own.announced.is_empty() || !members.ready || !members.nodes.iter().any(takes)
    }

    /// Says farewell to the other agents, and to the next life.
    pub async fn go(&mut self) {
        self.own.gone = true;
        self.speak();
        self.keep.end(Instant::now()).await;
    }

    fn apply(&mut self, around: Surroundings, scope: &Scope) -> bool {
        let start = Instant::now();
        let apply = || self.data_plane.apply(&self.desired, &around, scope);
        match tokio::task::block_in_place(apply) {
            Ok(problems) => {
                tracing::debug!(elapsed = ?start.elapsed(), all = *scope == Scope::All, "applied");
                for problem in
                    problems.iter().filter(|it| self.unapplied.binary_search(it).is_err())
                {
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

    /// What is still to be taken over from another layout.
    pub fn take_former(&mut self) -> Option<Unsettled> {
        self.loaded.take_former()
    }

    /// Puts other programs in the place of those that are attached.
    pub async fn replace(&mut self, loaded: Loaded, inlets: &Inlets) -> Result<(), AttachError> {
        self.loaded = loaded;
        self.attach_egress(inlets).await?;
        self.attach_ingress(inlets).await?;
        self.attach_connect(inlets);
        Ok(())
    }

    /// Puts `egress` on every device that is configured. At the start an error ends the agent.
    pub async fn attach_egress(&mut self, inlets: &Inlets) -> Result<(), AttachError> {
        let agent = inlets.intent.copy().agent.clone();
        for device in agent.uplinks.iter().chain(&agent.egress_devices) {
            let index = index_of(&inlets.interfaces.copy(), device);
            let attachment = self.loaded.attach_egress(device).await?;
            self.note((device.clone(), "egress"), index, attachment);
        }
        Ok(())
    }

    /// The same for `ingress`, on uplinks.
    pub async fn attach_ingress(&mut self, inlets: &Inlets) -> Result<(), AttachError> {
        let agent = inlets.intent.copy().agent.clone();
        for device in &agent.uplinks {
            let index = index_of(&inlets.interfaces.copy(), device);
            let attachment = self.loaded.attach_ingress(device).await?;
            self.note((device.clone(), "ingress"), index, attachment);
        }
        Ok(())
    }

    /// Puts the programs for sockets on their cgroup, or takes them off. An error ends no agent: clients
    /// beyond this node need none of this.
    pub fn attach_connect(&mut self, inlets: &Inlets) {
        let settings = inlets.intent.copy().agent.connect.clone();
        let attached = match settings.enabled {
            true => self.loaded.attach_connect(settings.cgroup.as_deref()).map(Some),
            false => self.loaded.detach_connect().map(|()| None),
        };
        match attached {
            Ok(Some(attachment)) => {
                self.note((attachment.interface.clone(), CONNECT), 0, attachment);
            }
            Ok(None) => {}
            Err(error) => {
                self.unattached.insert(CONNECT.into(), error.to_string());
            }
        }
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
        let interfaces = inlets.interfaces.copy();
        self.unattached.clear();
        for (at, (index, attachment)) in self.attachments.clone() {
            let (device, program) = &at;
            if *program == CONNECT {
                continue;
            }
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
        if !self.attachments.keys().any(|(_, program)| *program == CONNECT) {
            self.attach_connect(inlets);
        }
    }
}

/// What an election was made of beside time, and what came of it.
struct Elected {
    basis: ElectionBasis,
    announced: BTreeMap<IpAddr, announce::Uplink>,
}

/// How many plans had been made anew, and what else counts.
type ElectionBasis = (u64, Arc<Members>, Arc<Interfaces>, Holders);

/// By VIP, the nodes that alone may announce it.
type Holders = BTreeMap<IpAddr, BTreeSet<String>>;

impl Elected {
    /// Whether nothing is new; `announced` is what the data plane does by now.
    fn follows(&self, now: &ElectionBasis, announced: &BTreeMap<IpAddr, u32>) -> bool {
        let done = self.announced.iter().map(|(vip, uplink)| (vip, &uplink.ifindex));
        self.basis.0 == now.0
            && Arc::ptr_eq(&self.basis.1, &now.1)
            && Arc::ptr_eq(&self.basis.2, &now.2)
            && self.basis.3 == now.3
            && done.eq(announced)
    }
}

/// The ways to all nodes, and what receivers must know of those.
fn with_flags(hops: &BTreeMap<String, Hop>, members: &Members) -> BTreeMap<String, Hop> {
    let hop = |(node, hop): (&String, &Hop)| {
        (node.clone(), Hop { flags: hop_flags(node, members), ..*hop })
    };
    hops.iter().map(hop).collect()
}

/// What others should know of this node.
fn facts(intent: &Intent, interfaces: &Interfaces) -> Facts {
    let node = intent.nodes.get(&intent.agent.node);
    Facts {
        version: env!("CARGO_PKG_VERSION").into(),
        labels: node.map(|node| node.labels.clone()).unwrap_or_default(),
        interfaces: announcing_interfaces(&intent.agent, interfaces),
    }
}

fn tell<T: PartialEq>(to: &watch::Sender<Arc<T>>, now: Arc<T>) {
    to.send_if_modified(|former| {
        let changed = !Arc::ptr_eq(former, &now) && **former != *now;
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
