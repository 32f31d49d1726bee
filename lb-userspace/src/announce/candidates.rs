//! Who may announce a VIP, and in which order. Pure, and without memory: the same view gives the same
//! order on every node.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::LazyLock,
};

use serde::{Serialize, Serializer};

use super::uplink::{allows, on_link};
use crate::{
    model::{AnnouncePolicy, CardInterface, Intent, Life, MemberState, Members, Node},
    netlink::Interfaces,
    plan::elect,
};

/// How a candidate stands; the best come first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Standing {
    /// Lives, wants VIPs and reaches everybody.
    Ready,
    /// Says that it does not reach every living node.
    Partial,
    /// Does not want VIPs yet: joining, or held down after it died.
    HeldBack,
    /// Its agent is silent, and it takes nothing new.
    Mute,
    /// Shuts down, or is drained: takes over only where nobody else can.
    Leaving,
}

impl Standing {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Partial => "cannot reach all",
            Self::HeldBack => "held back",
            Self::Mute => "mute",
            Self::Leaving => "leaving",
        }
    }
}

/// Why a node is no candidate.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Exclusion {
    Dead,
    Unknown,
    Labels,
    Interfaces,
    NoBackend,
    Subnet,
    Family,
}

impl Exclusion {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Unknown => "not heard yet",
            Self::Labels => "labels do not match",
            Self::Interfaces => "no interface that may announce it",
            Self::NoBackend => "no backend of its own for a local-only frontend",
            Self::Subnet => "not in its subnet, as others are",
            Self::Family => "no address of its family, as others have",
        }
    }
}

impl Serialize for Standing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl Serialize for Exclusion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
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
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub name: &'a str,
    pub standing: Standing,
    pub member: &'a MemberState,
}

/// All nodes as candidates of one VIP.
#[derive(Debug, Default)]
pub struct Field<'a> {
    /// The best first: by standing, then by rendezvous.
    pub order: Vec<Candidate<'a>>,
    pub excluded: BTreeMap<Exclusion, Vec<Facts<'a>>>,
}

/// What counts of one node, whatever the VIP.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    node: &'a Node,
    own: bool,
    pub member: &'a MemberState,
    /// On which it may announce; None: it never said which it has.
    interfaces: Option<&'a [CardInterface]>,
}

/// What is the same for all VIPs of one turn.
pub struct Fields<'a> {
    inputs: Inputs<'a>,
    policies: BTreeMap<IpAddr, &'a AnnouncePolicy>,
    nodes: Vec<Facts<'a>>,
}

/// For nodes that nobody described.
static NOBODY: LazyLock<MemberState> = LazyLock::new(MemberState::default);

impl<'a> Fields<'a> {
    /// `own` are the interfaces on which this node may announce.
    pub fn new(inputs: Inputs<'a>, own: &'a [CardInterface]) -> Self {
        let mut policies = BTreeMap::new();
        for object in inputs.intent.frontends.values() {
            for address in &object.addresses {
                policies.entry(*address).or_insert(&object.announce);
            }
        }
        let facts = |node: &'a Node| {
            let member = inputs.members.nodes.get(&node.name).unwrap_or(&NOBODY);
            let is_own = node.name == inputs.members.own;
            let card = member.card.as_ref().map(|card| &card.interfaces[..]);
            Facts { node, own: is_own, member, interfaces: if is_own { Some(own) } else { card } }
        };
        Self { inputs, policies, nodes: inputs.intent.nodes.values().map(facts).collect() }
    }

    /// Patterns of the interfaces on which a VIP may be announced; none: all.
    pub fn patterns(&self, vip: IpAddr) -> &'a [String] {
        self.policies.get(&vip).map_or(&[][..], |policy| &policy.interfaces)
    }

    /// The candidates of a VIP.
    pub fn of(&self, vip: IpAddr) -> Field<'a> {
        let mut field = Field::default();
        let mut living = Vec::with_capacity(self.nodes.len());
        for facts in &self.nodes {
            match self.exclusion(vip, facts) {
                Some(reason) => field.excluded.entry(reason).or_default().push(*facts),
                None => living.push(*facts),
            }
        }
        let patterns = self.patterns(vip);
        // Of whom it is not known stays: it may be as good, and is waited for.
        let mut prefer = |reason, wanted: &dyn Fn(&Facts<'_>) -> Option<bool>| {
            if living.iter().any(|facts| wanted(facts) == Some(true)) {
                let left: Vec<_> =
                    living.extract_if(.., |facts| wanted(facts) == Some(false)).collect();
                if !left.is_empty() {
                    field.excluded.entry(reason).or_default().extend(left);
                }
            }
        };
        prefer(Exclusion::Subnet, &|facts| {
            facts.allowed(patterns).map(|mut it| it.any(|one| on_link(one, vip)))
        });
        prefer(Exclusion::Family, &|facts| Some(facts.node.address_like(vip).is_some()));

        let rank = elect::rank(&self.inputs.intent.agent.seed, vip);
        field.order = living.iter().map(|facts| facts.candidate(vip)).collect();
        field.order.sort_by_cached_key(|it| (it.standing, Reverse(rank(it.name))));
        field
    }

    /// Why a node may not announce a VIP whoever else may.
    fn exclusion(&self, vip: IpAddr, facts: &Facts<'_>) -> Option<Exclusion> {
        let life = if facts.own { Life::Alive } else { facts.member.life };
        let labels = &facts.node.labels;
        let policy = self.policies.get(&vip);
        let holders = self.inputs.holders.get(&vip);
        if policy.is_some_and(|policy| !policy.nodes.matches(labels)) {
            Some(Exclusion::Labels)
        } else if life == Life::Dead {
            Some(Exclusion::Dead)
        } else if life == Life::Unknown {
            Some(Exclusion::Unknown)
        } else if facts.allowed(self.patterns(vip)).is_some_and(|mut it| it.next().is_none()) {
            Some(Exclusion::Interfaces)
        } else if holders.is_some_and(|holders| !holders.contains(&facts.node.name)) {
            Some(Exclusion::NoBackend)
        } else {
            None
        }
    }
}

impl<'a> Facts<'a> {
    pub fn name(&self) -> &'a str {
        &self.node.name
    }

    /// The interfaces that the patterns allow.
    fn allowed(
        &self,
        patterns: &'a [String],
    ) -> Option<impl Iterator<Item = &'a CardInterface> + use<'a>> {
        Some(self.interfaces?.iter().filter(move |it| allows(patterns, &it.name)))
    }

    /// A node that has been mute for a moment only keeps what it announces, but takes nothing.
    fn candidate(&self, vip: IpAddr) -> Candidate<'a> {
        let member = self.member;
        let mute = !self.own
            && member.life == Life::Mute
            && (member.mute_long || !member.announces.contains(&vip));
        let standing = if member.card.as_ref().is_some_and(|card| card.leaving) {
            Standing::Leaving
        } else if mute {
            Standing::Mute
        } else if !member.announcing {
            Standing::HeldBack
        } else if !member.unreachable.is_empty() {
            Standing::Partial
        } else {
            Standing::Ready
        };
        Candidate { name: self.name(), standing, member }
    }
}
