//! Who may announce a VIP, and in which order. Pure, and without memory: the same view gives the same
//! order on every node.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::Serialize;

use super::uplink::{allows, announcing_interfaces, on_link};
use crate::{
    model::{AnnouncePolicy, CardInterface, Intent, Life, MemberState, Members, Node},
    netlink::Interfaces,
    plan::elect,
};

/// How a candidate stands; the best come first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Standing {
    /// Lives, wants VIPs and reaches everybody.
    #[serde(rename = "ready")]
    Ready,
    /// Says that it does not reach every living node.
    #[serde(rename = "cannot reach all")]
    Partial,
    /// Does not want VIPs yet: joining, or held down after it died.
    #[serde(rename = "held back")]
    HeldBack,
    /// Its agent is silent, and it takes nothing new.
    #[serde(rename = "mute")]
    Mute,
    /// Shuts down, or is drained: takes over only where nobody else can.
    #[serde(rename = "leaving")]
    Leaving,
}

/// Why a node is no candidate.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Exclusion {
    #[serde(rename = "dead")]
    Dead,
    #[serde(rename = "not heard yet")]
    Unknown,
    #[serde(rename = "labels do not match")]
    Labels,
    #[serde(rename = "no interface that may announce it")]
    Interfaces,
    #[serde(rename = "no backend of its own for a local-only frontend")]
    NoBackend,
    #[serde(rename = "not in its subnet, as others are")]
    Subnet,
    #[serde(rename = "no address of its family, as others have")]
    Family,
}

/// What an election is made of.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub intent: &'a Intent,
    /// This node's.
    pub interfaces: &'a Interfaces,
    pub members: &'a Members,
    /// The VIPs that the plan holds.
    pub vips: &'a BTreeSet<IpAddr>,
    /// For VIPs of local-only frontends: the nodes with a backend that may own slots.
    pub holders: &'a BTreeMap<IpAddr, BTreeSet<String>>,
    /// What this node announces by its maps, without what others took from it, with the interface.
    pub announced: &'a BTreeMap<IpAddr, u32>,
}

/// One node that may announce a VIP.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Candidate<'a> {
    pub name: &'a str,
    pub standing: Standing,
}

/// All nodes as candidates of one VIP.
#[derive(Debug, Default)]
pub struct Field<'a> {
    /// The best first: by standing, then by rendezvous.
    pub order: Vec<Candidate<'a>>,
    pub excluded: BTreeMap<Exclusion, Vec<&'a str>>,
}

/// What is the same for all VIPs of one turn.
pub struct Fields<'a> {
    inputs: Inputs<'a>,
    policies: BTreeMap<IpAddr, &'a AnnouncePolicy>,
    /// On which this node may announce.
    pub own_interfaces: Vec<CardInterface>,
    /// For nodes that nobody described: as if they had just been seen.
    nobody: MemberState,
}

impl<'a> Fields<'a> {
    pub fn new(inputs: Inputs<'a>) -> Self {
        let mut policies = BTreeMap::new();
        for object in inputs.intent.frontends.values() {
            for address in &object.addresses {
                policies.entry(*address).or_insert(&object.announce);
            }
        }
        let own_interfaces = announcing_interfaces(&inputs.intent.agent, inputs.interfaces);
        Self { inputs, policies, own_interfaces, nobody: MemberState::default() }
    }

    pub fn policy(&self, vip: IpAddr) -> Option<&'a AnnouncePolicy> {
        self.policies.get(&vip).copied()
    }

    /// The candidates of a VIP.
    pub fn of(&self, vip: IpAddr) -> Field<'_> {
        let mut field = Field::default();
        let mut living = Vec::new();
        for node in self.inputs.intent.nodes.values() {
            match self.exclusion(vip, node) {
                Some(reason) => field.excluded.entry(reason).or_default().push(&node.name),
                None => living.push(node),
            }
        }
        let mut prefer = |reason, wanted: &dyn Fn(&Node) -> bool| {
            if living.iter().any(|node| wanted(node)) {
                let left = living.extract_if(.., |node| !wanted(node));
                field.excluded.entry(reason).or_default().extend(left.map(|it| it.name.as_str()));
            }
        };
        prefer(Exclusion::Subnet, &|node| {
            self.interfaces(vip, &node.name).is_some_and(|mut it| it.any(|one| on_link(one, vip)))
        });
        prefer(Exclusion::Family, &|node| node.address_like(vip).is_some());
        field.excluded.retain(|_, nodes| !nodes.is_empty());

        let rank = elect::rank(&self.inputs.intent.agent.seed, vip);
        let candidate = |node: &'a Node| Candidate {
            name: &node.name,
            standing: self.standing(vip, &node.name),
        };
        field.order = living.into_iter().map(candidate).collect();
        field.order.sort_by_cached_key(|it| (it.standing, Reverse(rank(it.name))));
        field
    }

    fn member(&self, name: &str) -> &MemberState {
        self.inputs.members.nodes.get(name).unwrap_or(&self.nobody)
    }

    fn is_own(&self, name: &str) -> bool {
        *name == self.inputs.members.own
    }

    /// The interfaces on which a node may announce a VIP; None: it never said which it has.
    fn interfaces(
        &self,
        vip: IpAddr,
        name: &str,
    ) -> Option<impl Iterator<Item = &CardInterface> + use<'_, 'a>> {
        let all = match self.is_own(name) {
            true => &self.own_interfaces,
            false => &self.member(name).card.as_ref()?.interfaces,
        };
        let patterns = self.policy(vip).map_or(&[][..], |policy| &policy.interfaces);
        Some(all.iter().filter(move |interface| allows(patterns, &interface.name)))
    }

    /// Why a node may not announce a VIP whoever else may.
    fn exclusion(&self, vip: IpAddr, node: &Node) -> Option<Exclusion> {
        let life = if self.is_own(&node.name) { Life::Alive } else { self.member(&node.name).life };
        let holders = self.inputs.holders.get(&vip);
        if self.policy(vip).is_some_and(|policy| !policy.nodes.matches(&node.labels)) {
            Some(Exclusion::Labels)
        } else if life == Life::Dead {
            Some(Exclusion::Dead)
        } else if life == Life::Unknown {
            Some(Exclusion::Unknown)
        } else if self.interfaces(vip, &node.name).is_some_and(|mut it| it.next().is_none()) {
            Some(Exclusion::Interfaces)
        } else if holders.is_some_and(|holders| !holders.contains(&node.name)) {
            Some(Exclusion::NoBackend)
        } else {
            None
        }
    }

    /// A node that has been mute for a moment only keeps what it announces, but takes nothing.
    fn standing(&self, vip: IpAddr, name: &str) -> Standing {
        let member = self.member(name);
        let mute = !self.is_own(name)
            && member.life == Life::Mute
            && (member.mute_long || !member.announces.contains(&vip));
        if member.card.as_ref().is_some_and(|card| card.leaving) {
            Standing::Leaving
        } else if mute {
            Standing::Mute
        } else if !member.announcing {
            Standing::HeldBack
        } else if !member.unreachable.is_empty() {
            Standing::Partial
        } else {
            Standing::Ready
        }
    }
}
