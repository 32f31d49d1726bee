//! What probes say.

use std::{collections::BTreeMap, net::SocketAddr};

use super::Check;

/// One thing to probe. Equal targets of several frontends are probed once.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Target {
    /// Where the probe goes (the check's own port applied).
    pub address: SocketAddr,
    pub check: Check,
}

/// The state of one target. One that was never decided is `Unknown` and counts as up: an agent that
/// starts must not take away what serves.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Health {
    #[default]
    Unknown,
    Up,
    /// Why the last probe failed.
    Down(String),
}

impl Health {
    pub fn serves(&self) -> bool {
        !matches!(self, Self::Down(_))
    }
}

/// The latest word on every target; one that is absent is `Unknown`. Remembers which came last, so that
/// who follows it need not look at all.
#[derive(Clone, Debug, Default)]
pub struct Verdicts {
    by_target: BTreeMap<Target, (u64, Health)>,
    by_turn: BTreeMap<u64, Target>,
    turn: u64,
    removals: u64,
}

impl Verdicts {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn get(&self, target: &Target) -> Option<&Health> {
        self.by_target.get(target).map(|(_, health)| health)
    }

    pub fn contains_key(&self, target: &Target) -> bool {
        self.by_target.contains_key(target)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Target, &Health)> {
        self.by_target.iter().map(|(target, (_, health))| (target, health))
    }

    pub fn keys(&self) -> impl Iterator<Item = &Target> {
        self.by_target.keys()
    }

    pub fn len(&self) -> usize {
        self.by_target.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_target.is_empty()
    }

    /// Takes the next turn.
    pub fn insert(&mut self, target: Target, health: Health) {
        self.turn += 1;
        self.by_turn.insert(self.turn, target.clone());
        if let Some((former, _)) = self.by_target.insert(target, (self.turn, health)) {
            self.by_turn.remove(&former);
        }
    }

    /// Forgets a target that nobody asks any more.
    pub fn remove(&mut self, target: &Target) {
        if let Some((turn, _)) = self.by_target.remove(target) {
            self.by_turn.remove(&turn);
            self.removals += 1;
        }
    }

    /// How many targets were forgotten so far: [`Verdicts::since`] does not name them.
    pub fn removals(&self) -> u64 {
        self.removals
    }

    /// The last turn taken.
    pub fn turn(&self) -> u64 {
        self.turn
    }

    /// The targets whose latest verdict came after a turn.
    pub fn since(&self, turn: u64) -> impl Iterator<Item = &Target> {
        self.by_turn.range(turn + 1..).map(|(_, target)| target)
    }
}

impl<const N: usize> From<[(Target, Health); N]> for Verdicts {
    fn from(list: [(Target, Health); N]) -> Self {
        list.into_iter().collect()
    }
}

impl FromIterator<(Target, Health)> for Verdicts {
    fn from_iter<I: IntoIterator<Item = (Target, Health)>>(list: I) -> Self {
        let mut verdicts = Self::new();
        list.into_iter().for_each(|(target, health)| verdicts.insert(target, health));
        verdicts
    }
}
