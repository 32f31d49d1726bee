//! `weir status`: is the agent alive, and what did it say last. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    members::life_word,
    output::{View, or_dash, section, span, table},
    snapshot::Sight,
};
use crate::{
    model::{Life, Problem},
    report::status::{
        Attachment, DrainStatus, HealthWord, KubernetesStatus, MemberStatus, RemainingStatus,
        TargetStatus, UnsettledStatus,
    },
    sources::Stale,
};

#[derive(Debug, Serialize)]
pub struct Status {
    agent: Agent,
    dataplane: Dataplane,
    /// What follows is as old as `agent.written_ms`; empty without a status file.
    attachments: Vec<Attachment>,
    problems: Vec<Problem>,
    targets: Vec<TargetStatus>,
    /// This node hears no other, nor does its gateway answer.
    isolated: bool,
    members: Vec<MemberStatus>,
    drains: Vec<DrainStatus>,
    /// What Kubernetes says; null: it is not asked.
    kubernetes: Option<KubernetesStatus>,
    /// What is not settled yet after changes of backends.
    unsettled: UnsettledStatus,
    /// What came in by gossip, by name of the counter.
    gossip: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
struct Agent {
    alive: bool,
    /// Age of the last heartbeat; null: none since the maps were made.
    heartbeat_ms: Option<u64>,
    node: Option<String>,
    version: Option<String>,
    pid: Option<u32>,
    config: Option<String>,
    /// Why the newest configuration is not in force.
    config_error: Option<String>,
    /// Set while a checkpoint is in force, and not what the source says.
    stale: Option<Stale>,
    /// Unix time in ms.
    started_ms: Option<u64>,
    written_ms: Option<u64>,
    /// Why the status file cannot be read.
    status_error: Option<String>,
}

/// What the maps themselves say.
#[derive(Debug, Serialize)]
struct Dataplane {
    uplinks: Vec<String>,
    vips: usize,
    announced: usize,
    frontends: usize,
    backends: usize,
    nodes: usize,
    /// Largest MSS that fits the tunnel; null: not clamped.
    mss_v4: Option<u64>,
    mss_v6: Option<u64>,
    /// Frontends without any owner: their clients are refused.
    without_owner: Vec<String>,
}

impl Status {
    /// `status_error` says why `sight.agent` is absent although a file is there.
    pub fn new(sight: Sight<'_>, status_error: Option<String>) -> Self {
        let (maps, file) = (sight.maps, sight.agent);
        let heartbeat_ms = maps.heartbeat_ms;
        let clamp = |mss: u64| (mss != 0).then_some(mss);
        let without_owner =
            maps.frontends.iter().filter(|(_, frontend)| frontend.owners().next().is_none());
        Self {
            agent: Agent {
                alive: maps.agent_alive(),
                heartbeat_ms,
                node: file.map(|file| file.node.clone()),
                version: file.map(|file| file.version.clone()),
                pid: file.map(|file| file.pid),
                config: file.map(|file| file.config.display().to_string()),
                config_error: file.and_then(|file| file.config_error.clone()),
                stale: file.and_then(|file| file.stale.clone()),
                started_ms: file.map(|file| file.started_ms),
                written_ms: file.map(|file| file.written_ms),
                status_error,
            },
            dataplane: Dataplane {
                uplinks: maps.uplinks.clone(),
                vips: maps.vips.len(),
                announced: maps.vips.values().filter(|vip| vip.announced_on.is_some()).count(),
                frontends: maps.frontends.len(),
                backends: maps.backends.len(),
                nodes: maps.nodes.len() + 1,
                mss_v4: clamp(maps.mss.0),
                mss_v6: clamp(maps.mss.1),
                without_owner: without_owner.map(|(door, _)| door.to_string()).collect(),
            },
            attachments: file.map(|file| file.attachments.clone()).unwrap_or_default(),
            problems: file.map(|file| file.problems.clone()).unwrap_or_default(),
            targets: file.map(|file| file.targets.clone()).unwrap_or_default(),
            isolated: file.is_some_and(|file| file.isolated),
            members: file.map(|file| file.members.clone()).unwrap_or_default(),
            drains: file.map(|file| file.drains.clone()).unwrap_or_default(),
            kubernetes: file.and_then(|file| file.kubernetes.clone()),
            unsettled: file.map(|file| file.unsettled.clone()).unwrap_or_default(),
            gossip: file.map(|file| file.gossip.clone()).unwrap_or_default(),
        }
    }

    fn agent_text(&self) -> String {
        let Agent {
            alive,
            heartbeat_ms,
            node,
            version,
            pid,
            config,
            config_error,
            stale,
            written_ms,
            status_error,
            ..
        } = &self.agent;
        let node = node.as_deref().unwrap_or("unknown node");
        let mut text = match (alive, heartbeat_ms) {
            (true, Some(age)) => format!("agent      alive, heartbeat {} ago", span(*age)),
            (_, Some(age)) => format!(
                "agent      DEAD, last heartbeat {} ago; the data plane goes on with what it has",
                span(*age)
            ),
            (_, None) => "agent      DEAD, no heartbeat since the maps were made".into(),
        };
        text += &format!("\nnode       {node}\n");
        if let (Some(version), Some(pid), Some(config)) = (version, pid, config) {
            text += &format!("version    {version}, pid {pid}\nconfig     {config}\n");
        }
        if let Some(Stale { why, checkpoint, written_ms: of_ms }) = stale {
            let age = span(written_ms.unwrap_or_default().saturating_sub(*of_ms));
            let file = checkpoint.display();
            text += &format!(
                "STALE      in force is a checkpoint, {age} old: {file}\n           {why}\n"
            );
        }
        let told = |error: &&String| stale.as_ref().is_some_and(|stale| stale.why == **error);
        if let Some(error) = config_error.as_ref().filter(|error| !told(error)) {
            let error = error.replace('\n', "\n           ");
            text += &format!("           REFUSED, the one before stays in force: {error}\n");
        }
        text += &self.kubernetes_text();
        match status_error {
            Some(error) => text += &format!("status     unreadable: {error}\n"),
            None if self.agent.node.is_none() => {
                text += "status     no status file: names, health and problems are not known\n";
            }
            None => {}
        }
        text
    }

    fn kubernetes_text(&self) -> String {
        let Some(kubernetes) = &self.kubernetes else { return String::new() };
        let KubernetesStatus { server, since_ms, stale, objects, held, .. } = kubernetes;
        let now = self.agent.written_ms.unwrap_or_default();
        let mut text = match (server, since_ms) {
            (Some(server), Some(since)) => {
                let objects = objects.iter().map(|(kind, count)| format!("{count} {kind}"));
                let objects = or_dash(&objects.collect::<Vec<_>>().join(", "));
                format!("kubernetes {server} for {}; {objects}\n", span(now.saturating_sub(*since)))
            }
            _ => "kubernetes no API server in use\n".into(),
        };
        if let Some(why) = stale {
            text += &format!("           STALE: {why}\n");
        }
        if *held > 0 {
            text += &format!(
                "           {held} endpoints serve although Kubernetes calls them not ready\n"
            );
        }
        text
    }

    fn dataplane_text(&self) -> String {
        let Dataplane { uplinks, vips, announced, frontends, backends, nodes, .. } =
            &self.dataplane;
        let mss = |mss: Option<u64>| mss.map_or_else(|| "as it is".into(), |mss| mss.to_string());
        let mut text = format!(
            "dataplane  {vips} VIPs, {announced} announced here; {frontends} frontends, {backends} \
             backends, {nodes} nodes\nuplinks    {}; MSS {} (IPv4), {} (IPv6)\n",
            or_dash(&uplinks.join(", ")),
            mss(self.dataplane.mss_v4),
            mss(self.dataplane.mss_v6),
        );
        for door in &self.dataplane.without_owner {
            text += &format!("           {door} has no backend: clients are refused\n");
        }
        text
    }

    /// What flows still depend on beside the sets of now.
    fn unsettled_text(&self) -> String {
        let UnsettledStatus { young, young_for_ms, waiting, kept, cut_short } = &self.unsettled;
        let mut text = String::new();
        if *young > 0 {
            let longest = young_for_ms.map(|ms| format!(" for up to {}", span(ms)));
            let waits = waiting.iter().map(|(node, count)| format!("{node} ({count})"));
            let waits = waits.collect::<Vec<_>>().join(", ");
            let waits = if waits.is_empty() { waits } else { format!("; they wait for {waits}") };
            text +=
                &format!("young      {young} frontends{}{waits}\n", longest.unwrap_or_default());
        }
        if *kept > 0 || *cut_short > 0 {
            text += &format!(
                "kept       {kept} backends that left every pool, for their flows; {cut_short} ended \
                 early: too many\n"
            );
        }
        text
    }

    /// How all nodes are; those with whom something is the matter are `weir members`' business.
    fn members_text(&self) -> String {
        let mut text = String::new();
        if self.isolated {
            text += "ISOLATED   the other nodes and the gateway are silent: what this node had stays, \
                     nothing new is announced\n";
        }
        let count = |life| self.members.iter().filter(|member| member.life == life).count();
        let counts = [Life::Alive, Life::Mute, Life::Dead, Life::Unknown]
            .map(|life| (count(life), life_word(life)))
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| format!("{count} {word}"))
            .collect::<Vec<_>>();
        if !counts.is_empty() {
            text += &format!("members    {}\n", counts.join(", "));
        }
        let now = self.agent.written_ms.unwrap_or_default();
        self.drains.iter().for_each(|drain| text += &drain_text(drain, now));
        text += &self.unsettled_text();
        let counted = self.gossip.iter().filter(|(_, count)| **count > 0);
        let counted: Vec<_> = counted.map(|(name, count)| format!("{name} {count}")).collect();
        if !counted.is_empty() {
            text += &format!("gossip     {}\n", counted.join(", "));
        }
        text
    }

    fn targets_text(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for target in &self.targets {
            *counts.entry(health_word(target.health)).or_default() += 1;
        }
        let counts: Vec<_> = counts.iter().map(|(word, count)| format!("{count} {word}")).collect();
        // What is up needs no line of its own: there may be thousands.
        let ill =
            self.targets.iter().filter(|target| target.health != HealthWord::Up).map(|target| {
                [
                    target.address.to_string(),
                    target.check.clone(),
                    health_word(target.health).into(),
                    or_dash(target.reason.as_deref().unwrap_or_default()),
                ]
            });
        let title = format!("targets: {}", or_dash(&counts.join(", ")));
        if self.targets.iter().all(|target| target.health == HealthWord::Up) {
            return section(&title, "");
        }
        section(&title, &table(["TARGET", "CHECK", "HEALTH", "WHY"], ill))
    }
}

/// What is drained, by whom, and what remains. `now`: Unix time in ms.
fn drain_text(drain: &DrainStatus, now: u64) -> String {
    let DrainStatus { what, author, at_ms, deadline_ms, remaining } = drain;
    let mut text = format!("drained    {what}");
    text += &match author.as_str() {
        "" => ", terminating by the configuration".into(),
        author => format!(" for {}, ordered at {author}", span(now.saturating_sub(*at_ms))),
    };
    match deadline_ms {
        Some(deadline) if *deadline <= now => text += "; the deadline has passed",
        Some(deadline) => text += &format!("; flows end in {}", span(deadline - now)),
        None => {}
    }
    text += "\n";
    for RemainingStatus { backend, flows, node } in remaining {
        let ask = match flows {
            0 => String::new(),
            _ => format!("; `weir arrivals --backend {backend}` at {node} lists them"),
        };
        text += &format!("           {backend} at {node} has {flows} flows left{ask}\n");
    }
    text
}

fn health_word(health: HealthWord) -> &'static str {
    match health {
        HealthWord::Unknown => "unknown",
        HealthWord::Up => "up",
        HealthWord::Down => "down",
    }
}

impl View for Status {
    const SCHEMA: &'static str = "weir.status/v1";

    fn text(&self) -> String {
        let mut text = self.agent_text() + &self.dataplane_text() + &self.members_text();
        if !self.attachments.is_empty() {
            let rows = self.attachments.iter().map(|found| {
                [
                    found.interface.clone(),
                    found.program.clone(),
                    found.mode.clone(),
                    or_dash(found.reason.as_deref().unwrap_or_default()),
                ]
            });
            text += &section("programs", &table(["INTERFACE", "PROGRAM", "MODE", "WHY"], rows));
        }
        if !self.targets.is_empty() {
            text += &self.targets_text();
        }
        if !self.problems.is_empty() {
            let rows = self
                .problems
                .iter()
                .map(|Problem { object, message }| [object.clone(), message.clone()]);
            text += &section("problems", &table(["OBJECT", "PROBLEM"], rows));
        }
        text
    }
}
