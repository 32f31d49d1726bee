//! Backends that left every pool: their lives go on while somebody may know their flows. Those that were
//! drained end at their deadline, whoever knows what.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Instant,
};

use super::Rules;
use crate::{
    model::Protocol,
    plan::{Desired, DesiredBackend, flows::Claimed},
};

/// So much beyond the limit, as a part of it, there may be between two looks.
const CROWD: usize = 8;

#[derive(Debug, Default)]
pub struct Kept {
    backends: BTreeMap<SocketAddr, Former>,
    cut_short: u64,
    /// Those that the plan does not hold as they are.
    unwritten: BTreeSet<SocketAddr>,
    /// Something happened after which some may end.
    look: bool,
    looked: Option<Instant>,
}

#[derive(Debug)]
struct Former {
    backend: DesiredBackend,
    /// None: never seen here in a pool, but claimed.
    left: Option<Instant>,
}

impl Kept {
    pub fn len(&self) -> usize {
        self.backends.len()
    }

    pub fn cut_short(&self) -> u64 {
        self.cut_short
    }

    /// Some may be needed no more.
    pub fn look(&mut self) {
        self.look = true;
    }

    /// Whether [`Kept::end`] may bring something new.
    pub fn is_due(&self, rules: &Rules, now: Instant) -> bool {
        let first = self.looked.is_none() && !self.backends.is_empty();
        let crowded = self.len() > rules.kept + rules.kept / CROWD;
        first || crowded || self.next_look(rules).is_some_and(|at| now >= at)
    }

    /// The plan is a new one, which holds none of them.
    pub fn unwrite(&mut self) {
        self.unwritten = self.backends.keys().copied().collect();
    }

    /// Those of before that are not in pools have left now, unless they had before.
    pub fn leave(
        &mut self,
        before: &BTreeMap<SocketAddr, DesiredBackend>,
        is_pooled: impl Fn(&SocketAddr) -> bool,
        plan: &Desired,
        now: Instant,
    ) {
        self.look = true;
        self.backends.retain(|address, former| {
            !is_pooled(address) && may_live(plan, *address, &former.backend.node)
        });
        for (address, backend) in before {
            if !is_pooled(address) && may_live(plan, *address, &backend.node) {
                let former = || Former { backend: backend.clone(), left: Some(now) };
                self.backends.entry(*address).or_insert_with(former);
                self.unwritten.insert(*address);
            }
        }
    }

    /// Those of a frontend's claimants that are in no pool here live too, on the nodes that claim for them.
    pub fn claimed(&mut self, protocol: Protocol, claimed: &Claimed, plan: &Desired) {
        for (address, (_, node)) in &claimed.flows {
            if let Some(former) = self.backends.get_mut(address) {
                if former.backend.protocols.insert(protocol) {
                    self.unwritten.insert(*address);
                }
            } else if !plan.backends.contains_key(address) && may_live(plan, *address, node) {
                let protocols = BTreeSet::from([protocol]);
                let backend = DesiredBackend { node: node.to_string(), protocols };
                self.backends.insert(*address, Former { backend, left: None });
                self.unwritten.insert(*address);
                self.look = true;
            }
        }
    }

    /// Writes into the plan those that it does not hold yet.
    pub fn write(&mut self, plan: &mut Desired, touched: &mut BTreeSet<SocketAddr>) {
        for address in std::mem::take(&mut self.unwritten) {
            let Some(former) = self.backends.get(&address) else { continue };
            if plan.backends.get(&address) != Some(&former.backend) {
                plan.backends.insert(address, former.backend.clone());
                touched.insert(address);
            }
        }
    }

    /// Ends those that are not `needed` and have lingered, and the first that left where there are too
    /// many.
    pub fn end<'a>(
        &mut self,
        plan: &mut Desired,
        needed: impl Iterator<Item = &'a SocketAddr>,
        rules: &Rules,
        now: Instant,
        touched: &mut BTreeSet<SocketAddr>,
    ) {
        (self.look, self.looked) = (false, Some(now));
        let needed: BTreeSet<_> =
            needed.filter(|address| self.backends.contains_key(address)).copied().collect();
        let lingers = |former: &Former| former.left.is_some_and(|at| now < at + rules.linger);
        let is_over = |(address, former): &(&SocketAddr, &Former)| {
            !needed.contains(address) && !lingers(former)
        };
        let mut over: Vec<_> = self.backends.iter().filter(is_over).map(|(it, _)| *it).collect();
        let too_many = (self.len() - over.len()).saturating_sub(rules.kept);
        if too_many > 0 {
            let mut left: Vec<_> =
                self.backends.iter().map(|(address, former)| (former.left, *address)).collect();
            left.retain(|(_, address)| !over.contains(address));
            left.sort_unstable();
            over.extend(left.into_iter().take(too_many).map(|(_, address)| address));
            self.cut_short += too_many as u64;
        }
        for address in over {
            self.backends.remove(&address);
            if plan.backends.remove(&address).is_some() {
                touched.insert(address);
            }
        }
    }

    /// When some may end: that costs as much as there are young frontends, so not with every change.
    pub fn next_look(&self, rules: &Rules) -> Option<Instant> {
        let looked = self.looked.filter(|_| !self.backends.is_empty())?;
        let left = self.backends.values().filter_map(|former| former.left);
        let lingered = left.map(|at| at + rules.linger).filter(|at| *at > looked);
        let rested = self.look.then(|| looked + rules.rest);
        lingered.chain(rested).min().map(|at| at.max(looked + rules.rest))
    }
}

/// Not where the node is unknown, nor beyond the deadline of an order to drain.
fn may_live(plan: &Desired, address: SocketAddr, node: &str) -> bool {
    plan.nodes.contains_key(node) && !plan.over.contains(&address)
}
