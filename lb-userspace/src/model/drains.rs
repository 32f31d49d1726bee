//! What administrators took out of service, and put back: one order for each thing, the latest counts.
//!
//! Pure: clock, file and network are elsewhere. Every member holds all orders and repeats them, so an order
//! outlives the member that took it. The order that is later by (stamp, author) wins at every member, in
//! whatever sequence they hear of both; putting back is an order too, so that an older one cannot return.

use std::{cmp::Ordering, collections::BTreeMap, fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Member;

/// Orders that are kept. Those that put back count: they must outlive what they undo.
pub const MAX_ORDERS: usize = 4096;

/// Longest name of a thing: a kind, and a name as Kubernetes allows it.
const MAX_NAME_BYTES: usize = 300;

/// No administrator gives so many orders; a larger stamp would leave no room for later ones.
const MAX_STAMP: u64 = 1 << 48;

/// What this build can take out of service. Names of other kinds are kept and repeated all the same.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(into = "String", try_from = "String")]
pub enum Drainable {
    /// A node from announcing and forwarding. It goes on receiving, and its backends stay.
    Forwarding(String),
    /// All backends of a node from new flows. It goes on announcing and forwarding.
    Node(String),
    /// One backend from new flows.
    Backend(SocketAddr),
}

impl fmt::Display for Drainable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forwarding(node) => write!(f, "forwarding/{node}"),
            Self::Node(node) => write!(f, "node/{node}"),
            Self::Backend(address) => write!(f, "backend/{address}"),
        }
    }
}

impl FromStr for Drainable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = match text.split_once('/') {
            Some(("forwarding", node)) if !node.is_empty() => Some(Self::Forwarding(node.into())),
            Some(("node", node)) if !node.is_empty() => Some(Self::Node(node.into())),
            Some(("backend", address)) => address.parse().ok().map(Self::Backend),
            _ => None,
        };
        known.ok_or_else(|| {
            format!(
                "`{text}` is nothing that can be drained; allowed: forwarding/NODE, node/NODE, \
                 backend/ADDRESS:PORT"
            )
        })
    }
}

impl From<Drainable> for String {
    fn from(what: Drainable) -> Self {
        what.to_string()
    }
}

impl TryFrom<String> for Drainable {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The word of an administrator on one thing. Later ones are greater.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Order {
    /// One more than the largest that its author knew.
    pub stamp: u64,
    /// Name of the node whose agent took the order.
    pub author: String,
    /// Out of service, or back in it.
    pub drained: bool,
    /// Unix time in ms by the author's clock; for people only.
    pub at_ms: u64,
    /// Unix time in ms from which on a drained backend loses the flows that it still has; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// What an administrator wants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wish {
    pub what: Drainable,
    pub drained: bool,
    /// As in [`Order`]; nothing where something is put back.
    pub deadline_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DrainError {
    #[error("{MAX_ORDERS} orders to drain or undrain are kept, and no more")]
    Full,
    #[error("the name or stamp of an order is beyond what is allowed")]
    Malformed,
}

/// All orders, by the name of what they are about.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Drains(BTreeMap<String, Order>);

impl Drains {
    /// Names of the nodes that neither announce nor forward.
    pub fn forwarding(&self) -> impl Iterator<Item = &str> {
        let drained = self.0.iter().filter(|(_, order)| order.drained);
        drained.filter_map(|(name, _)| name.strip_prefix("forwarding/"))
    }

    pub fn is_drained(&self, what: &Drainable) -> bool {
        self.get(what).is_some_and(|order| order.drained)
    }

    pub fn get(&self, what: &Drainable) -> Option<&Order> {
        self.0.get(&what.to_string())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Order)> {
        self.0.iter().map(|(name, order)| (name.as_str(), order))
    }

    /// What takes no new flows at a moment, Unix time in ms.
    pub fn at(&self, now_ms: u64) -> Drained {
        let mut drained = Drained::default();
        for (name, order) in self.0.iter().filter(|(_, order)| order.drained) {
            let over = order.deadline_ms.is_some_and(|deadline| deadline <= now_ms);
            let stage = if over { Stage::Over } else { Stage::Ending };
            match name.parse() {
                Ok(Drainable::Backend(address)) => drop(drained.backends.insert(address, stage)),
                Ok(Drainable::Node(node)) => drop(drained.nodes.insert(node, stage)),
                // Of later builds too.
                Ok(Drainable::Forwarding(_)) | Err(_) => continue,
            }
            let next = order.deadline_ms.filter(|_| !over);
            drained.until_ms = [drained.until_ms, next].into_iter().flatten().min();
        }
        drained
    }

    /// The order that an administrator gives `author` now. `None`: it is so already. Counts once it is
    /// [heard](Self::hear).
    pub fn order(&self, wish: &Wish, author: &str, at_ms: u64) -> Option<Order> {
        let deadline_ms = wish.deadline_ms.filter(|_| wish.drained);
        let known = self.get(&wish.what).filter(|order| order.drained);
        if known.map(|order| order.deadline_ms) == wish.drained.then_some(deadline_ms) {
            return None;
        }
        let known = self.0.values().map(|order| order.stamp).max().unwrap_or(0);
        let drained = wish.drained;
        Some(Order { stamp: known + 1, author: author.into(), drained, at_ms, deadline_ms })
    }

    /// Names of what was put back.
    pub fn put_back(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, order)| !order.drained).map(|(name, _)| name.as_str())
    }

    /// Forgets what was put back, so that there is no order about it any more. An older order to drain it
    /// counts again if anybody still has it.
    pub fn forget(&mut self, name: &str) {
        if self.0.get(name).is_some_and(|order| !order.drained) {
            self.0.remove(name);
        }
    }

    /// Takes an order, whoever repeats it. Returns whether it is news.
    ///
    /// # Errors
    /// It cannot be kept.
    pub fn hear(&mut self, name: &str, order: Order) -> Result<bool, DrainError> {
        if name.len() > MAX_NAME_BYTES || order.stamp > MAX_STAMP {
            return Err(DrainError::Malformed);
        }
        match self.0.get(name).map(|known| known.cmp(&order)) {
            Some(Ordering::Equal | Ordering::Greater) => return Ok(false),
            None if self.0.len() >= MAX_ORDERS => return Err(DrainError::Full),
            _ => {}
        }
        self.0.insert(name.to_owned(), order);
        Ok(true)
    }
}

/// How far a backend is out of service.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Stage {
    /// It takes no new flows, and keeps those that it has.
    Ending,
    /// The deadline has passed: it serves nobody.
    Over,
}

/// What takes no new flows, as of one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Drained {
    backends: BTreeMap<SocketAddr, Stage>,
    /// By name: all their backends.
    nodes: BTreeMap<String, Stage>,
    /// Unix time in ms at which it is another; none: it stays.
    until_ms: Option<u64>,
}

/// Nothing.
pub static NONE_DRAINED: Drained =
    Drained { backends: BTreeMap::new(), nodes: BTreeMap::new(), until_ms: None };

impl Drained {
    /// Whether, and how far, a member of a pool is out of service. Whoever terminates never comes back.
    pub fn stage(&self, member: &Member<'_>) -> Option<Stage> {
        let ordered = [self.backends.get(&member.endpoint), self.nodes.get(member.node)];
        let terminating = member.terminating.then_some(Stage::Ending);
        ordered.into_iter().flatten().copied().max().max(terminating)
    }

    /// Unix time in ms at which it must be asked for anew.
    pub fn until_ms(&self) -> Option<u64> {
        self.until_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Drainable {
        Drainable::Forwarding(name.into())
    }

    fn wish(what: &Drainable, drained: bool) -> Wish {
        Wish { what: what.clone(), drained, deadline_ms: None }
    }

    fn order(stamp: u64) -> Order {
        Order { stamp, author: "a".into(), drained: true, at_ms: 0, deadline_ms: None }
    }

    /// An administrator's order to a member with these orders.
    fn give(drains: &mut Drains, name: &str, drained: bool, author: &str) -> Order {
        let order = drains.order(&wish(&node(name), drained), author, 7).unwrap();
        assert_eq!(drains.hear(&node(name).to_string(), order.clone()), Ok(true));
        order
    }

    #[test]
    fn a_drained_node_is_named_until_it_is_put_back() {
        let mut drains = Drains::default();
        give(&mut drains, "b", true, "a");
        give(&mut drains, "c", true, "a");
        assert_eq!(drains.forwarding().collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(drains.order(&wish(&node("b"), true), "a", 7), None);
        let back = give(&mut drains, "b", false, "a");
        assert_eq!((back.stamp, drains.is_drained(&node("b"))), (3, false));
        assert_eq!(drains.forwarding().collect::<Vec<_>>(), ["c"]);
        assert_eq!(drains.order(&wish(&node("d"), false), "a", 7), None, "nothing to undo");
    }

    #[test]
    fn members_agree_whatever_they_hear_first() {
        let name = node("x").to_string();
        let (mut left, mut right) = (Drains::default(), Drains::default());
        // Two administrators at once, on both sides of a cut.
        let first = give(&mut left, "x", true, "a");
        give(&mut right, "x", true, "b");
        let second = give(&mut right, "x", false, "b");
        assert_eq!(left.hear(&name, second.clone()), Ok(true));
        assert_eq!(right.hear(&name, first), Ok(false));
        assert_eq!((left.get(&node("x")), &left), (Some(&second), &right));
        // Equal stamps: the author decides, and with one author (who lost its file) the rest does.
        let tie = |author: &str, drained| Order { author: author.into(), drained, ..order(9) };
        for (one, two) in [(tie("a", true), tie("b", false)), (tie("a", false), tie("a", true))] {
            let (mut left, mut right) = (Drains::default(), Drains::default());
            for (drains, orders) in [(&mut left, [&one, &two]), (&mut right, [&two, &one])] {
                for order in orders {
                    drains.hear(&name, order.clone()).unwrap();
                }
            }
            assert_eq!((left.get(&node("x")), &left), (Some(&two), &right));
        }
    }

    #[test]
    fn an_older_order_that_is_repeated_changes_nothing() {
        let mut drains = Drains::default();
        let old = give(&mut drains, "x", true, "z");
        give(&mut drains, "x", false, "a");
        assert_eq!(drains.hear(&node("x").to_string(), old), Ok(false));
        assert!(!drains.is_drained(&node("x")));
    }

    #[test]
    fn kinds_of_later_builds_are_kept_and_mean_nothing_here() {
        let mut drains = Drains::default();
        assert_eq!(drains.hear("zone/east", order(5)), Ok(true));
        assert_eq!((drains.forwarding().count(), drains.iter().count()), (0, 1));
        assert_eq!(drains.at(0), NONE_DRAINED);
        assert_eq!(drains.order(&wish(&node("b"), true), "a", 0).unwrap().stamp, 6);
        for name in ["zone/east", "backend/10.0.0.1", "node/", "forwarding/", "b"] {
            assert!(name.parse::<Drainable>().is_err(), "{name}");
        }
        for name in ["forwarding/b", "node/b", "backend/10.0.0.1:80", "backend/[2001:db8::1]:80"] {
            assert_eq!(name.parse::<Drainable>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn what_would_leave_no_room_is_refused() {
        let mut drains = Drains::default();
        assert_eq!(drains.hear("x", order(u64::MAX)), Err(DrainError::Malformed));
        assert_eq!(drains.hear(&"x".repeat(301), order(1)), Err(DrainError::Malformed));
        for index in 0..MAX_ORDERS {
            assert_eq!(drains.hear(&format!("node/{index}"), order(1)), Ok(true));
        }
        assert_eq!(drains.hear("node/one-more", order(1)), Err(DrainError::Full));
        assert_eq!(drains.hear("node/0", order(2)), Ok(true), "what is known may change");
    }

    #[test]
    fn a_backend_ends_its_flows_until_the_deadline_and_is_over_then() {
        let mut drains = Drains::default();
        let backend = Drainable::Backend("10.0.0.1:80".parse().unwrap());
        let mut give = |what: &Drainable, deadline_ms| {
            let order = drains.order(&Wish { deadline_ms, ..wish(what, true) }, "a", 1)?;
            drains.hear(&what.to_string(), order).unwrap();
            Some(drains.clone())
        };
        let soon = give(&backend, Some(100)).unwrap();
        let never = give(&Drainable::Node("n".into()), None).unwrap();
        assert_eq!(give(&backend, Some(100)), None, "it is so already");
        let later = give(&backend, Some(200)).unwrap();

        let member = |endpoint: &str, node, terminating| {
            (endpoint.parse::<SocketAddr>().unwrap(), node, terminating)
        };
        let stage = |drains: &Drains, now, (endpoint, node, terminating): (_, _, bool)| {
            drains.at(now).stage(&Member { endpoint, weight: 1, node, terminating, far: false })
        };
        let (it, other) = (member("10.0.0.1:80", "m", false), member("10.0.0.2:80", "m", false));
        let stages = |drains: &Drains| [99, 100, 199, 200].map(|now| stage(drains, now, it));
        let (ending, over) = (Some(Stage::Ending), Some(Stage::Over));
        assert_eq!(stages(&soon), [ending, over, over, over]);
        assert_eq!(stages(&later), [ending, ending, ending, over]);
        assert_eq!([99, 100].map(|now| soon.at(now).until_ms()), [Some(100), None]);
        assert_eq!(stage(&never, 100, other), None);
        assert_eq!(stage(&never, 100, member("10.0.0.2:80", "n", false)), ending);
        assert_eq!(stage(&never, 100, member("10.0.0.1:80", "n", true)), over, "the later stage");
        assert_eq!(stage(&soon, 99, member("10.0.0.2:80", "m", true)), ending);
    }

    #[test]
    fn only_what_was_put_back_is_forgotten() {
        let mut drains = Drains::default();
        give(&mut drains, "x", true, "a");
        give(&mut drains, "y", true, "a");
        give(&mut drains, "y", false, "a");
        assert_eq!(drains.put_back().collect::<Vec<_>>(), ["forwarding/y"]);
        drains.forget("forwarding/x");
        drains.forget("forwarding/y");
        assert_eq!(drains.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["forwarding/x"]);
    }
}
