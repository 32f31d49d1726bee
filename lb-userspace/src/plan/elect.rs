//! Which node does what only one should do: the rendezvous choice.
//!
//! Every node that knows the same candidates chooses the same one, without a word between them. A
//! candidate that goes moves only what it had, one that comes takes only what it has from then on.

use std::net::IpAddr;

use crate::model::seed::{absorb, keyed};

/// Sets this use of the seed apart from the tables and the flow hash.
const DOMAIN: u64 = u64::from_le_bytes(*b"announce");

/// How well a node suits a VIP, by keyed hash of VIP and name, ties by name: of several candidates the
/// greatest announces it.
pub fn rank<'a>(seed: &[u8; 16], vip: IpAddr) -> impl Fn(&'a str) -> (u64, &'a str) + use<'a> {
    let octets = lb_common::net::Addr::from(vip).octets();
    let keyed = absorb(keyed(seed, DOMAIN), &octets);
    move |name| (absorb(keyed, name.as_bytes()).finish(), name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::seed::seed_from;

    fn announcer<'a>(
        seed: &[u8; 16],
        vip: IpAddr,
        candidates: impl IntoIterator<Item = &'a str>,
    ) -> Option<&'a str> {
        let rank = rank(seed, vip);
        candidates.into_iter().max_by_key(|name| rank(name))
    }

    fn vips() -> Vec<IpAddr> {
        let v4 = (0..1000u32).map(|i| IpAddr::V4((0x0a00_0000 + i).into()));
        let v6 = (0..1000u128).map(|i| IpAddr::V6(((0x2001_0db8 << 96) + i).into()));
        v4.chain(v6).collect()
    }

    fn choices(names: &[&'static str]) -> BTreeMap<IpAddr, &'static str> {
        let seed = seed_from("rendezvous");
        vips()
            .into_iter()
            .map(|vip| (vip, announcer(&seed, vip, names.iter().copied()).unwrap()))
            .collect()
    }

    /// Nodes of different builds must agree.
    #[test]
    fn choices_are_golden() {
        let seed = seed_from("rendezvous");
        let nodes = ["master-1", "master-2", "master-3", "worker-1", "worker-2", "worker-3"];
        let chosen = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2"]
            .map(|vip| announcer(&seed, vip.parse().unwrap(), nodes).unwrap());
        assert_eq!(chosen, ["worker-1", "worker-1", "worker-3", "master-1", "master-1"]);
    }

    #[test]
    fn order_of_candidates_does_not_matter() {
        assert_eq!(choices(&["a", "b", "c"]), choices(&["c", "a", "b"]));
        assert_eq!(announcer(&[0; 16], vips()[0], []), None);
    }

    #[test]
    fn a_new_node_moves_only_vips_to_itself() {
        let (before, after) = (choices(&["a", "b", "c"]), choices(&["a", "b", "c", "d"]));
        let moved: Vec<_> = after.iter().filter(|(vip, node)| before[vip] != **node).collect();
        assert!(moved.iter().all(|(_, node)| **node == "d"));
        let share = moved.len() as f64 / after.len() as f64;
        assert!((0.2..0.3).contains(&share), "{share}");
    }

    #[test]
    fn vips_spread_over_the_nodes() {
        let chosen = choices(&["a", "b", "c", "d"]);
        for node in ["a", "b", "c", "d"] {
            let share = chosen.values().filter(|name| **name == node).count();
            assert!((400..600).contains(&share), "{node}: {share} of 2000");
        }
    }
}
