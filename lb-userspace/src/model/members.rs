//! What this node knows of all nodes: who lives, who serves, who may announce.
//!
//! Plain values without a clock, so that two views compare equal while nothing changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

/// Nodes and agents die separately.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// Never heard, and not yet given up.
    #[default]
    Unknown,
    /// Data plane and agent are there.
    Alive,
    /// The data plane answers, its agent is silent: forwards and serves, takes nothing new.
    Mute,
    /// The data plane is silent, and not only to one observer.
    Dead,
}

impl Life {
    /// Its data plane works.
    pub fn forwards(self) -> bool {
        matches!(self, Self::Alive | Self::Mute)
    }
}

/// An interface on which a node may announce VIPs.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct CardInterface {
    pub name: String,
    pub mac: [u8; 6],
    /// Its addresses with the length of their prefix.
    pub subnets: Vec<(IpAddr, u8)>,
}

/// What an agent says of itself to all others.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Card {
    /// Of the program.
    pub version: String,
    /// First bytes of a hash of the shared seed: another one means other tables.
    pub seed_tag: [u8; 8],
    /// Layout version of its maps.
    pub layout: u32,
    pub labels: BTreeMap<String, String>,
    pub interfaces: Vec<CardInterface>,
    /// It wants VIPs: it has joined, is not held down, not leaving and not drained.
    pub announcing: bool,
    /// It hands over and goes, or is drained from forwarding.
    pub leaving: bool,
}

/// One node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MemberState {
    pub life: Life,
    /// Mute for so long that its VIPs move.
    pub mute_long: bool,
    /// Its backends may own slots: it lives, or is mute, and no hold-down keeps it out.
    pub serves: bool,
    /// It wants VIPs, by its own word, and that word is younger than its last death.
    pub announcing: bool,
    /// Its agent is heard by gossip.
    pub heard: bool,
    /// What its agent said last; None: it was never heard.
    pub card: Option<Arc<Card>>,
    /// Living nodes whose data plane it does not reach, by its own word (this node's: by its probes).
    pub unreachable: BTreeSet<String>,
    /// VIPs that it says it announces, as its data plane holds them.
    pub announces: BTreeSet<IpAddr>,
}

/// All configured nodes, this one too.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Members {
    /// This node's name.
    pub own: String,
    /// Every other node has been found alive or dead once. Until then nothing is taken from anybody.
    pub ready: bool,
    /// Most others fell silent at once and the gateway too: the fault is here. Nothing new is announced.
    pub isolated: bool,
    pub nodes: BTreeMap<String, MemberState>,
}

impl Members {
    /// Whether backends on a node may own slots. This node's always may.
    pub fn serves(&self, node: &str) -> bool {
        node == self.own || self.nodes.get(node).is_some_and(|member| member.serves)
    }

    /// The nodes whose backends may own slots in only one of two views.
    pub fn serving_differs<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        let mine = self.nodes.keys();
        let theirs = other.nodes.keys().filter(|name| !self.nodes.contains_key(*name));
        let names = mine.chain(theirs).map(String::as_str);
        names.filter(|name| self.serves(name) != other.serves(name))
    }

    /// Whether a node's agent lives: it probes its own backends and takes part in votes.
    pub fn has_agent(&self, node: &str) -> bool {
        node == self.own
            || self.nodes.get(node).is_some_and(|it| it.life == Life::Alive && it.heard)
    }

    /// A view in which all named nodes live and serve, as before anything is known.
    pub fn assumed<'a>(own: &str, names: impl IntoIterator<Item = &'a str>) -> Self {
        let alive = MemberState {
            life: Life::Alive,
            serves: true,
            announcing: true,
            heard: true,
            ..MemberState::default()
        };
        let nodes = names.into_iter().map(|name| (name.to_owned(), alive.clone())).collect();
        Self { own: own.to_owned(), ready: false, isolated: false, nodes }
    }
}
