//! The agent's account of itself.

use std::{
    path::PathBuf,
    process,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use super::state::{Inlets, State};
use crate::{
    membership::PeerState,
    model::{CheckKind, Health, Problem, Target},
    report::status::{
        self, AgentStatus, FrontendStatus, HealthWord, Peer, TargetCause, TargetStatus, Votes,
    },
};

/// What does not change.
pub struct About {
    pub config: PathBuf,
    pub started: SystemTime,
    pub state_dir: PathBuf,
}

impl State {
    /// Writes the status file. That it cannot be written stops nothing.
    pub fn report(&mut self, inlets: &Inlets) {
        self.reported = Some(Instant::now());
        let status = self.status(inlets);
        if let Err(error) = status.write(&self.about.state_dir) {
            tracing::warn!(%error, dir = %self.about.state_dir.display(), "status cannot be written");
        }
    }

    fn status(&self, inlets: &Inlets) -> AgentStatus {
        let source = inlets.source.borrow();
        let intent = inlets.intent.borrow();
        AgentStatus {
            schema: status::SCHEMA.into(),
            node: intent.agent.node.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: process::id(),
            config: self.about.config.clone(),
            config_error: (!source.ok).then(|| source.problems.join("\n")),
            started_ms: millis(self.about.started),
            written_ms: millis(SystemTime::now()),
            attachments: self.attachments.values().map(|(_, found)| found.clone()).collect(),
            problems: self.problems(),
            peers: peers(inlets),
            targets: targets(inlets),
            frontends: self.frontends(),
            ..AgentStatus::default()
        }
    }

    fn problems(&self) -> Vec<Problem> {
        let of_agent = |message| Problem { object: "Agent".into(), message };
        let unattached =
            self.unattached.iter().map(|(what, why)| of_agent(format!("{what}: {why}")));
        let mut problems: Vec<_> =
            self.desired.problems.iter().cloned().chain(unattached).collect();
        problems.extend(self.unapplied.iter().cloned());
        problems.sort();
        problems.dedup();
        problems
    }

    fn frontends(&self) -> Vec<FrontendStatus> {
        let vips = &self.desired.vips;
        let frontends = self.desired.frontends.iter();
        frontends
            .map(|(key, frontend)| FrontendStatus {
                object: frontend.object.clone(),
                address: key.address,
                port: key.port,
                protocol: key.protocol,
                announcer: vips
                    .get(&key.address)
                    .map(|vip| vip.announcer.clone())
                    .unwrap_or_default(),
                weights: frontend.owners.clone(),
            })
            .collect()
    }
}

fn peers(inlets: &Inlets) -> Vec<Peer> {
    let (intent, peers) = (inlets.intent.borrow(), inlets.peers.borrow());
    let addresses = |node: &String| intent.nodes.get(node).map(|node| node.addresses.clone());
    let peer = |(node, status): (&String, &crate::membership::PeerStatus)| Peer {
        node: node.clone(),
        addresses: addresses(node).unwrap_or_default(),
        alive: status.state == PeerState::Alive,
        heartbeat_ms: status.heartbeat_age_ms,
    };
    peers.iter().map(peer).collect()
}

fn targets(inlets: &Inlets) -> Vec<TargetStatus> {
    let verdicts = inlets.verdicts.borrow();
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
            since_ms: millis(cause.since),
        });
        TargetStatus { address: target.address, check: check.into(), health, reason, cause }
    };
    let targets = crate::plan::targets(&inlets.intent.borrow());
    targets.keys().map(|target| status(target)).collect()
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
