//! What status shows of one node.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_common::abi::{LAYOUT_VERSION, TUNNEL_VERSION};
use serde::{Deserialize, Serialize};

use super::{Finding, Node, Rules, Watch, duty::WATCHERS, eye::Heard};
use crate::model::{Life, Problem};

/// One other node. Ages are as of the time of the report.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct NodeStatus {
    pub life: Life,
    /// This node probes it for all others.
    pub watched: bool,
    /// Members that find its data plane silent.
    pub suspected_by: BTreeSet<String>,
    /// Its agent is heard by gossip.
    pub heard: bool,
    /// None: it never answered.
    pub last_answer_ms: Option<u64>,
    /// Of the last answer.
    pub round_trip_us: Option<u64>,
    /// The address that answered last.
    pub address: Option<IpAddr>,
    /// In hexadecimal; changes with every boot of the node.
    pub boot_id: Option<String>,
    /// Age of its agent's heartbeat, the time since its last answer added. None: no agent yet.
    pub heartbeat_age_ms: Option<u64>,
    /// Layout version of its maps.
    pub layout: Option<u32>,
    /// Version of its tunnel header where it is not ours.
    pub other_version: Option<u8>,
    /// It holds another seed: its tables are not ours.
    pub other_seed: bool,
    /// How long its backends are still held back, and the deaths that count for it.
    pub held_for_ms: Option<u64>,
    pub deaths: usize,
}

impl Watch {
    pub(super) fn status_of(&self, name: &str, node: &Node, now: Instant) -> NodeStatus {
        let accusing = self.words_on(name).filter(|(_, word)| word.finding == Finding::Silent);
        let accusing = accusing.map(|(origin, _)| origin.to_string());
        let own = node.finding(&self.rules) == Some(Finding::Silent);
        let mut status = NodeStatus {
            life: node.fate.life,
            watched: node.ahead < WATCHERS,
            suspected_by: accusing.chain(own.then(|| self.own.to_string())).collect(),
            heard: node.heard,
            held_for_ms: node.fate.held_for(now).map(millis),
            deaths: node.fate.deaths(&self.rules.hold_downs, now),
            ..NodeStatus::default()
        };
        if let Some(heard) = &node.eye.last {
            status.fill_in(heard, &self.rules, now);
        }
        status
    }
}

impl NodeStatus {
    fn fill_in(&mut self, heard: &Heard, rules: &Rules, now: Instant) {
        let (answer, age) = (heard.answer, millis(now.saturating_duration_since(heard.at)));
        self.last_answer_ms = Some(age);
        self.round_trip_us = u64::try_from(heard.round_trip.as_micros()).ok();
        self.address = Some(heard.address);
        self.boot_id = Some(format!("{:032x}", u128::from_be_bytes(answer.boot_id)));
        self.heartbeat_age_ms = answer.heartbeat_age.map(|then| u64::from(then) + age);
        self.layout = Some(answer.layout);
        self.other_version = (answer.version != TUNNEL_VERSION).then_some(answer.version);
        self.other_seed = answer.seed_tag != rules.seed_tag;
    }

    /// In what this node's data plane and ours do not fit together. `name` is its own, `own` ours.
    pub fn problems(&self, name: &str, own: &str) -> Vec<Problem> {
        let problem = |message| Problem { object: format!("Node/{name}"), message };
        let version = self.other_version.map(|theirs| {
            format!(
                "its tunnel header is of version {theirs}, that of {own} of {TUNNEL_VERSION}: \
                 run the same weir on both"
            )
        });
        let layout = self.layout.filter(|theirs| *theirs != LAYOUT_VERSION).map(|theirs| {
            format!(
                "its maps are of layout {theirs}, those of {own} of {LAYOUT_VERSION}: \
                 run the same weir on both"
            )
        });
        let seed = self.other_seed.then(|| {
            format!(
                "it holds another seed than {own}, so their tables differ: \
                 set the same Agent.spec.seed on both and restart the agents"
            )
        });
        [version, layout, seed].into_iter().flatten().map(problem).collect()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
