//! A discrete simulation: a pool changes under many flows, and which of them break is counted.
//!
//! What decides is the product's own code: slot tables (`lb_common::table`), the receivers' decision
//! (`lb_common::chain`), the plan and its history of sets (`weir::plan`), what agents say and make of
//! what they hear (`weir::claims`), from configurations as a file would hold them. Made up are time,
//! the network, maps and sockets: `agent` holds what a data plane would, `gossip` delays words, `walk`
//! carries a packet from node to node, `crowd` is the clients, `world` the time.
//!
//! Broken is a flow whose packet came to a backend that does not know it, was refused, or was dropped
//! as often as a client sends again. No backend ever dies here.
//!
//! The same packets go through [Maglev](crate::maglev) alone and Maglev with a perfect flow table in
//! each forwarder. Equal settings give equal figures.

mod agent;
mod baseline;
mod crowd;
mod dice;
mod gossip;
mod scenario;
mod site;
mod walk;
mod world;

use anyhow::Result;
use serde::Serialize;

pub use scenario::Scenario;
pub use walk::Without;
pub use world::Tally;

/// How nodes see what changes. In both, three quarters of the flows come to another forwarder at each
/// step.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// All at once, and all remember the sets of before.
    Equal,
    /// At each step one node in five stays one step behind, one in five loses its history and gets
    /// none from others, the others follow within half a second. New backends are on nodes that join
    /// in that moment, knowing nothing.
    Hard,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Hard => "hard",
        }
    }
}

/// How a story is told.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub mode: Mode,
    pub without: Without,
    pub flows: usize,
    /// Seconds from one step to the next, at least 1.
    pub interval_s: u64,
    pub seed: u64,
}

/// Tells one story.
///
/// # Errors
/// The product refuses the scenario's configuration, or Maglev its sets.
pub fn run(scenario: &Scenario, settings: &Settings) -> Result<Tally> {
    let site = site::Site::new(format!("consistency {}", settings.seed));
    world::World::new(&site, scenario, settings)?.run()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(mode: Mode) -> Settings {
        Settings { mode, without: Without::default(), flows: 2000, interval_s: 10, seed: 1 }
    }

    fn named(name: &str) -> Scenario {
        Scenario::all().into_iter().find(|scenario| scenario.name == name).unwrap()
    }

    /// The same flows with all rules and with these switched off.
    fn rolling_with_and_without(without: Without) -> [Tally; 2] {
        [Without::default(), without].map(|without| {
            let settings = Settings { without, ..settings(Mode::Hard) };
            run(&named("rolling 10"), &settings).unwrap()
        })
    }

    /// A pool of at most twelve whose backends come and go.
    fn sets() -> impl Strategy<Value = Vec<Vec<u16>>> {
        let set = prop::collection::btree_set(0u16..12, 1..=12);
        prop::collection::vec(set.prop_map(|set| set.into_iter().collect()), 2..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

        #[test]
        fn nothing_breaks_where_views_are_equal(
            sets in sets(),
            seed in 0u64..1000,
            interval_s in 5u64..20,
        ) {
            let scenario = Scenario { name: "at random".into(), sets, hard_goal: 0.0 };
            let settings = Settings { seed, interval_s, ..settings(Mode::Equal) };
            let tally = run(&scenario, &settings).unwrap();
            prop_assert_eq!(tally.broken(), 0, "{:?}", tally);
        }
    }

    #[test]
    fn nothing_breaks_where_one_backend_comes_goes_or_flaps() {
        for name in ["add 1", "drain 1", "flap x4"] {
            for mode in [Mode::Equal, Mode::Hard] {
                let tally = run(&named(name), &settings(mode)).unwrap();
                assert_eq!(tally.broken(), 0, "{name}, {mode:?}: {tally:?}");
                assert!(tally.maglev > tally.tracked && tally.tracked > 20, "{name}: {tally:?}");
            }
        }
    }

    #[test]
    fn flows_break_without_visited_fingerprints_or_claims() {
        let fingerprints = Without { fingerprints: true, ..Without::default() };
        let claims = Without { claims: true, ..Without::default() };
        for without in [fingerprints, claims] {
            let [with, without] = rolling_with_and_without(without);
            assert!(with.broken() == 0 && without.broken() > 0, "{with:?}, {without:?}");
        }
    }

    #[test]
    fn segments_are_lost_where_nobody_asks_the_owner_by_the_own_table() {
        let own_table = Without { own_table: true, ..Without::default() };
        let [with, without] = rolling_with_and_without(own_table);
        assert!(with.again < without.again, "{with:?}, {without:?}");
    }

    #[test]
    fn equal_settings_tell_the_same_story() {
        let [first, second] = rolling_with_and_without(Without::default());
        assert_eq!(first, second);
    }
}
