//! Who watches whom: rendezvous over names, the same on every node of one seed.
//!
//! Every node is watched by the [`WATCHERS`] best ranked of those that can watch. So what one node pays
//! doesn't grow with their number, and up to six nodes everybody watches everybody.

use lb_common::siphash::Sip13;

use crate::model::seed::{absorb, keyed};

/// Nodes that watch one node. Five: two may be dead or cut off and the rest is still a majority.
pub const WATCHERS: usize = 5;
/// Nodes that a node watches at least, so that it notices when it is cut off.
pub const WATCHED_LEAST: usize = 3;

/// Keeps this use of the seed apart from others.
const DOMAIN: u64 = 0x7761_7463_6865_7273;

/// What stands for a node's name in rankings.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ticket(u64);

impl Ticket {
    pub fn new(seed: &[u8; 16], name: &str) -> Self {
        Self(absorb(keyed(seed, DOMAIN), name.as_bytes()).finish())
    }

    /// Place of `watcher` among those who could watch this node: the highest do.
    pub fn rank(self, watcher: Self) -> (u64, Self) {
        (Sip13::new(self.0, watcher.0).finish(), watcher)
    }
}

/// The best ranked of those that can watch a node.
pub fn watchers<T>(watched: Ticket, able: impl Iterator<Item = (Ticket, T)>) -> Vec<T> {
    let mut best: Vec<_> = able.map(|(ticket, name)| (watched.rank(ticket), name)).collect();
    if best.len() > WATCHERS {
        best.select_nth_unstable_by_key(WATCHERS, |(rank, _)| std::cmp::Reverse(*rank));
        best.truncate(WATCHERS);
    }
    best.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets(count: usize) -> Vec<Ticket> {
        (0..count).map(|index| Ticket::new(b"sixteen bytes ok", &format!("node-{index}"))).collect()
    }

    fn watchers_of(watched: usize, all: &[Ticket], able: impl Fn(usize) -> bool) -> Vec<usize> {
        let able = |&(index, _): &(usize, &Ticket)| index != watched && able(index);
        let able = all.iter().enumerate().filter(able).map(|(index, ticket)| (*ticket, index));
        let mut names = watchers(all[watched], able);
        names.sort_unstable();
        names
    }

    #[test]
    fn up_to_six_nodes_watch_each_other_fully() {
        let all = tickets(6);
        for index in 0..6 {
            assert_eq!(watchers_of(index, &all, |_| true).len(), 5);
        }
    }

    #[test]
    fn the_load_of_watching_is_spread_and_every_node_has_five_watchers() {
        let all = tickets(200);
        let mut load = vec![0; 200];
        for watched in 0..200 {
            let watchers = watchers_of(watched, &all, |_| true);
            assert_eq!(watchers.len(), WATCHERS);
            watchers.into_iter().for_each(|watcher| load[watcher] += 1);
        }
        let (least, most) = (load.iter().min().unwrap(), load.iter().max().unwrap());
        assert!(*most <= 15, "between {least} and {most}");
    }

    #[test]
    fn a_watcher_that_drops_out_is_replaced_and_the_others_stay() {
        let all = tickets(50);
        let before = watchers_of(7, &all, |_| true);
        let after = watchers_of(7, &all, |index| index != before[2]);
        assert_eq!(after.len(), WATCHERS);
        assert_eq!(before.iter().filter(|name| after.contains(name)).count(), WATCHERS - 1);
    }
}
