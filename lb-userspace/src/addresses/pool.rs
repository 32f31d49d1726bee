//! Pools of addresses, whom they are for, and what is left of pools that overlap.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    range::{Family, Range, merged},
    service::Service,
};

/// Addresses that may be given out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pool {
    pub name: String,
    /// Unix time in s; of pools that overlap the older has the addresses, ties by name.
    pub created: i64,
    pub ranges: Vec<Range>,
    /// False: only to Services that ask for the pool or for one of its addresses.
    pub auto: bool,
    /// The greatest is tried first.
    pub priority: i32,
    /// Gives `.0` and `.255` of IPv4 only to who asks for them.
    pub avoid_buggy: bool,
    pub audience: Audience,
}

/// Which Services may have a pool's addresses; empty: all. A Service must suit both kinds of
/// conditions, and one of each kind is enough.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Audience {
    /// By name, beside the selected ones.
    pub namespaces: BTreeSet<String>,
    pub namespace_selectors: Vec<Selector>,
    pub service_selectors: Vec<Selector>,
}

/// A label selector of Kubernetes; all of it must hold.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Selector {
    pub labels: BTreeMap<String, String>,
    pub expressions: Vec<Expression>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Expression {
    pub key: String,
    pub operator: Operator,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Operator {
    In(BTreeSet<String>),
    /// A missing label is not in either.
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
}

pub type Labels = BTreeMap<String, String>;

impl Selector {
    pub fn matches(&self, labels: &Labels) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|Expression { key, operator }| {
                let value = labels.get(key);
                match operator {
                    Operator::In(set) => value.is_some_and(|value| set.contains(value)),
                    Operator::NotIn(set) => !value.is_some_and(|value| set.contains(value)),
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }
}

/// Why a pool is not for a Service.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum NotFor {
    Namespace,
    Labels,
}

impl Audience {
    pub fn admits(&self, service: &Service, namespace: &Labels) -> Result<(), NotFor> {
        let open = self.namespaces.is_empty() && self.namespace_selectors.is_empty();
        if !open
            && !self.namespaces.contains(&service.name.namespace)
            && !any(&self.namespace_selectors, namespace)
        {
            return Err(NotFor::Namespace);
        }
        if !self.service_selectors.is_empty() && !any(&self.service_selectors, &service.labels) {
            return Err(NotFor::Labels);
        }
        Ok(())
    }

    fn is_everybody(&self) -> bool {
        *self == Self::default()
    }
}

fn any(selectors: &[Selector], labels: &Labels) -> bool {
    selectors.iter().any(|selector| selector.matches(labels))
}

/// Addresses of a pool that an older pool has too, and which are the older one's.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Overlap {
    pub range: Range,
    /// Name of the older pool.
    pub with: String,
}

/// A pool whose addresses are its alone.
#[derive(Debug)]
pub struct Cut<'a> {
    pub pool: &'a Pool,
    /// In ascending order, disjoint from each other and from every other pool's.
    pub ranges: Vec<Range>,
    pub overlaps: Vec<Overlap>,
}

impl Cut<'_> {
    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }

    pub fn has(&self, family: Family) -> bool {
        self.ranges.iter().any(|range| range.family() == family)
    }

    pub fn count(&self, family: Family) -> u128 {
        let counts = self.ranges.iter().filter(|range| range.family() == family).map(Range::count);
        counts.fold(0, u128::saturating_add)
    }
}

/// Cuts pools that overlap: the older keeps the common addresses, the younger keeps the rest. In the
/// order in which pools are tried: by priority, those for somebody before those for everybody, by name.
pub fn cut(pools: &[Pool]) -> Vec<Cut<'_>> {
    let mut by_age: Vec<&Pool> = pools.iter().collect();
    by_age.sort_by_key(|pool| (pool.created, &pool.name));
    let mut cuts: Vec<Cut<'_>> = Vec::with_capacity(pools.len());
    for pool in by_age {
        let mut ranges = merged(pool.ranges.clone());
        let mut overlaps = Vec::new();
        for older in &cuts {
            for theirs in &older.ranges {
                let with = || older.pool.name.clone();
                overlaps.extend(
                    ranges
                        .iter()
                        .filter_map(|range| range.overlap(theirs))
                        .map(|range| Overlap { range, with: with() }),
                );
                ranges = ranges.iter().flat_map(|range| range.without(theirs)).collect();
            }
        }
        overlaps.sort();
        cuts.push(Cut { pool, ranges, overlaps });
    }
    cuts.sort_by_key(|Cut { pool, .. }| {
        (std::cmp::Reverse(pool.priority), pool.audience.is_everybody(), &pool.name)
    });
    cuts
}
