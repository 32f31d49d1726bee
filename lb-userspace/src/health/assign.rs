//! Who probes a target: the agent of its own node; for a node without one, three members.
//!
//! Pure, and the same on all members that see the same agents. An agent that goes moves only the
//! targets that it probed, one that comes takes only what it has from then on.

use std::{cmp::Reverse, sync::Arc};

use super::word::Name;
use crate::model::{
    Life, Members,
    seed::{absorb, keyed},
};

/// Members that probe a target whose node has no agent: the fewest with a majority when one errs.
pub const PROBERS: usize = 3;

/// Sets this use of the seed apart from others.
const DOMAIN: u64 = u64::from_le_bytes(*b"probers\0");

/// The members that probe: those whose agents live.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Agents {
    /// In order.
    names: Vec<Arc<str>>,
}

impl Agents {
    /// As `members` says. Of nodes about which nothing is known yet, agents are taken to live.
    pub fn of(own: &str, members: &Members) -> Self {
        let unheard = |life| !members.ready && life == Life::Unknown;
        let others = members.nodes.iter().filter(|(name, member)| {
            *name != own && (members.has_agent(name) || unheard(member.life))
        });
        let others = others.map(|(name, _)| name.as_str());
        let mut names: Vec<Arc<str>> = others.chain([own]).map(Arc::from).collect();
        names.sort_unstable();
        Self { names }
    }

    /// Who probes a target on a node, best first.
    pub fn probers(&self, seed: &[u8; 16], node: &str, target: &Name) -> Vec<Arc<str>> {
        if let Ok(at) = self.names.binary_search_by(|name| (**name).cmp(node)) {
            return vec![self.names[at].clone()];
        }
        let keyed = absorb(keyed(seed, DOMAIN), target);
        let score = |name: &Arc<str>| absorb(keyed, name.as_bytes()).finish();
        let mut scored: Vec<_> =
            self.names.iter().map(|name| Reverse((score(name), name))).collect();
        if scored.len() > PROBERS {
            scored.select_nth_unstable(PROBERS - 1);
            scored.truncate(PROBERS);
        }
        scored.sort_unstable();
        scored.into_iter().map(|Reverse((_, name))| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{MemberState, seed::seed_from};

    fn members(names: &[&str]) -> Members {
        Members { ready: true, ..Members::assumed("a", names.iter().copied()) }
    }

    fn agents(names: &[&str]) -> Agents {
        Agents::of("a", &members(names))
    }

    /// Who probes each of 1,000 targets on a node without an agent.
    fn all(names: &[&str]) -> Vec<Vec<Arc<str>>> {
        let (seed, agents) = (seed_from("probers"), agents(names));
        let name = |n: u128| n.to_le_bytes();
        (0..1000).map(|n| agents.probers(&seed, "server", &name(n))).collect()
    }

    #[test]
    fn a_node_with_an_agent_probes_its_own() {
        let agents = agents(&["a", "b", "c", "d", "e"]);
        for node in ["a", "e"] {
            assert_eq!(agents.probers(&[0; 16], node, &[0; 16]), [node.into()]);
        }
    }

    #[test]
    fn three_probe_what_has_no_agent_and_fewer_where_there_are_fewer() {
        for (names, count) in
            [(&["a"][..], 1), (&["a", "b"], 2), (&["a", "b", "c"], 3), (&["a", "b", "c", "d"], 3)]
        {
            assert!(all(names).iter().all(|probers| probers.len() == count));
        }
    }

    /// Members of different builds must agree.
    #[test]
    fn choices_are_golden() {
        let all = all(&["a", "b", "c", "d", "e", "f", "g"]);
        let chosen: Vec<String> = all[..6].iter().map(|probers| probers.concat()).collect();
        assert_eq!(chosen, ["gae", "cab", "aed", "abc", "ceb", "dca"]);
    }

    #[test]
    fn an_agent_that_comes_takes_its_share_and_moves_nothing_else() {
        let (before, after) =
            (all(&["a", "b", "c", "d", "e"]), all(&["a", "b", "c", "d", "e", "f"]));
        let mut taken = 0;
        for (before, after) in before.iter().zip(&after) {
            let came = after.iter().any(|name| **name == *"f");
            let mut left = after.clone();
            left.retain(|name| **name != *"f");
            assert!(left.iter().all(|name| before.contains(name)));
            taken += usize::from(came);
        }
        assert!((400..600).contains(&taken), "{taken} of 1000, a half is fair");
    }

    #[test]
    fn work_spreads_over_the_agents() {
        let mut counts = BTreeMap::new();
        for name in all(&["a", "b", "c", "d", "e", "f"]).concat() {
            *counts.entry(name).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|count| (400..600).contains(count)), "{counts:?}");
    }

    #[test]
    fn only_living_agents_count_and_unheard_ones_until_all_are_known() {
        let mut members = members(&["a", "b", "c", "d", "e"]);
        let mut set = |name: &str, life, heard| {
            let state = MemberState { life, heard, ..MemberState::default() };
            members.nodes.insert(name.into(), state);
        };
        set("b", Life::Mute, false);
        set("c", Life::Dead, false);
        set("d", Life::Alive, false);
        set("e", Life::Unknown, false);
        let names = |members: &Members| Agents::of("a", members).names.concat();
        assert_eq!(names(&members), "a");
        members.ready = false;
        assert_eq!(names(&members), "ae");
        assert_eq!(names(&Members::default()), "a", "an agent always counts itself");
    }
}
