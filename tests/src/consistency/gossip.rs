//! What agents tell each other, and when it is heard: each word some tenths of a second later, words
//! about one thing in the order in which they were said. What comes of it is the product's own
//! [`Fold`].

use std::{collections::BTreeMap, sync::Arc};

use weir::{
    claims::{fold::Fold, publish::heard},
    membership::{Change, Key, Publication, Topic},
    plan::flows::Consensus,
};

use super::{
    crowd::SECOND,
    dice::Dice,
    site::{NodeNumber, name_of},
};

/// Longest time until all have heard, in ticks.
const DELAY: usize = SECOND;
/// Agents coalesce what they hear for so long.
const BEAT: usize = 2;

/// Words on their way, and what all know.
pub struct Gossip {
    /// By when they are heard.
    under_way: BTreeMap<usize, Vec<(NodeNumber, Publication)>>,
    /// When the last word about something is heard.
    last: BTreeMap<(NodeNumber, Key), usize>,
    fold: Fold,
    pub consensus: Arc<Consensus>,
}

impl Gossip {
    pub fn new() -> Self {
        Self {
            under_way: BTreeMap::new(),
            last: BTreeMap::new(),
            // All hear the same, so nobody is the one that hears itself.
            fold: Fold::new("nobody".into()),
            consensus: Arc::default(),
        }
    }

    pub fn say(&mut self, node: NodeNumber, words: Vec<Publication>, now: usize, dice: &mut Dice) {
        for word in words {
            let last = self.last.entry((node, word.0.clone())).or_default();
            *last = (*last).max((now + 1 + dice.below(DELAY)).next_multiple_of(BEAT));
            self.under_way.entry(*last).or_default().push((node, word));
        }
    }

    /// Takes note of what is heard now. Returns what is said of sets of before, which means something
    /// else at each node.
    pub fn hear(&mut self, now: usize) -> Vec<Change> {
        let mut lineages = Vec::new();
        for (node, word) in self.under_way.remove(&now).into_iter().flatten() {
            let change = heard(&name_of(node).into(), &word);
            match change.key.topic {
                Topic::LINEAGE => lineages.push(change),
                _ => self.fold.on_change(&change),
            }
        }
        if let Some(consensus) = self.fold.take() {
            self.consensus = consensus;
        }
        lineages
    }
}
