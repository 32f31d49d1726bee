//! What administrators took out of service, and put back: one order for each thing, the latest counts.
//!
//! Pure: clock, file and network are elsewhere. Every member holds all orders and repeats them, so an order
//! outlives the member that took it. The order that is later by (stamp, author) wins at every member, in
//! whatever sequence they hear of both; putting back is an order too, so that an older one cannot return.

use std::{cmp::Ordering, collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

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
}

impl fmt::Display for Drainable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forwarding(node) => write!(f, "forwarding/{node}"),
        }
    }
}

impl FromStr for Drainable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some(("forwarding", node)) if !node.is_empty() => Ok(Self::Forwarding(node.into())),
            _ => Err(format!("`{text}` is nothing that can be drained; allowed: forwarding/NODE")),
        }
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

    /// The order that an administrator gives `author` now. `None`: it is so already. Counts once it is
    /// [heard](Self::hear).
    pub fn order(
        &self,
        what: &Drainable,
        drained: bool,
        author: &str,
        at_ms: u64,
    ) -> Option<Order> {
        if self.is_drained(what) == drained {
            return None;
        }
        let known = self.0.values().map(|order| order.stamp).max().unwrap_or(0);
        Some(Order { stamp: known + 1, author: author.into(), drained, at_ms })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Drainable {
        Drainable::Forwarding(name.into())
    }

    /// An administrator's order to a member with these orders.
    fn give(drains: &mut Drains, name: &str, drained: bool, author: &str) -> Order {
        let order = drains.order(&node(name), drained, author, 7).unwrap();
        assert_eq!(drains.hear(&node(name).to_string(), order.clone()), Ok(true));
        order
    }

    #[test]
    fn a_drained_node_is_named_until_it_is_put_back() {
        let mut drains = Drains::default();
        give(&mut drains, "b", true, "a");
        give(&mut drains, "c", true, "a");
        assert_eq!(drains.forwarding().collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(drains.order(&node("b"), true, "a", 7), None);
        let back = give(&mut drains, "b", false, "a");
        assert_eq!((back.stamp, drains.is_drained(&node("b"))), (3, false));
        assert_eq!(drains.forwarding().collect::<Vec<_>>(), ["c"]);
        assert_eq!(drains.order(&node("d"), false, "a", 7), None, "nothing to undo");
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
        let tie =
            |author: &str, drained| Order { stamp: 9, author: author.into(), drained, at_ms: 1 };
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
        let order = Order { stamp: 5, author: "a".into(), drained: true, at_ms: 0 };
        assert_eq!(drains.hear("backend/10.0.0.1:80", order), Ok(true));
        assert_eq!((drains.forwarding().count(), drains.iter().count()), (0, 1));
        assert_eq!(drains.order(&node("b"), true, "a", 0).unwrap().stamp, 6);
        assert!("backend/10.0.0.1:80".parse::<Drainable>().is_err());
        assert_eq!("forwarding/b".parse(), Ok(node("b")));
    }

    #[test]
    fn what_would_leave_no_room_is_refused() {
        let mut drains = Drains::default();
        let order = |stamp| Order { stamp, author: "a".into(), drained: true, at_ms: 0 };
        assert_eq!(drains.hear("x", order(u64::MAX)), Err(DrainError::Malformed));
        assert_eq!(drains.hear(&"x".repeat(301), order(1)), Err(DrainError::Malformed));
        for index in 0..MAX_ORDERS {
            assert_eq!(drains.hear(&format!("node/{index}"), order(1)), Ok(true));
        }
        assert_eq!(drains.hear("node/one-more", order(1)), Err(DrainError::Full));
        assert_eq!(drains.hear("node/0", order(2)), Ok(true), "what is known may change");
    }
}
