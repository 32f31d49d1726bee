use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::{Check, CheckKind, Life, MemberState};

const SEED: [u8; 16] = [7; 16];
/// With agents; `server` is a node without.
const AGENTS: [&str; 5] = ["a", "b", "c", "d", "e"];

fn target(n: u8) -> Arc<Target> {
    let check = Check {
        kind: CheckKind::Tcp,
        port: None,
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 2,
        jitter_percent: 10,
    };
    Arc::new(Target { address: ([192, 0, 2, n], 80).into(), check })
}

fn at(seconds: u64) -> UnixTime {
    Duration::from_secs(seconds)
}

fn members(agents: &[&str]) -> Members {
    Members { ready: true, ..Members::assumed("a", agents.iter().copied()) }
}

fn down(reason: &str) -> Health {
    Health::Down(reason.into())
}

/// Node `a`, with one target on `node`.
struct Bench {
    combine: Combine,
    target: Arc<Target>,
}

impl Bench {
    fn new(agents: &[&str], node: &str) -> Self {
        let mut combine = Combine::new("a", SEED, 1);
        combine.set_members(&members(agents), at(0));
        combine.set_targets(&[(target(1), node.into())].into(), at(0));
        Self { combine, target: target(1) }
    }

    fn name(&self) -> Name {
        name(&SEED, &self.target)
    }

    fn hear(&mut self, origin: &str, run: u64, health: Option<Health>) {
        let value = health.map(|health| Word::new(run, &health).unwrap().encode().into());
        let change = Change { origin: origin.into(), key: key(&self.name()), value };
        self.combine.on_change(&change, at(1)).unwrap();
    }

    fn probe(&mut self, health: Health) {
        self.combine.on_probe(&self.target.clone(), &health, at(1));
    }

    fn live(&mut self, agents: &[&str]) {
        self.combine.set_members(&members(agents), at(2));
    }

    fn health(&self) -> Option<&Health> {
        self.combine.verdicts().get(&self.target)
    }

    fn probers(&self) -> Vec<Arc<str>> {
        self.combine.asked[&self.name()].probers.clone()
    }

    fn published(&mut self) -> Vec<Option<bool>> {
        let published = self.combine.take_publications();
        assert!(published.iter().all(|(key, _)| *key == super::key(&self.name())));
        let words =
            published.into_iter().map(|(_, value)| value.map(|it| Word::decode(&it).unwrap()));
        words.map(|word| word.map(|word| word.up)).collect()
    }
}

#[test]
fn the_agent_of_a_targets_node_alone_decides() {
    let mut bench = Bench::new(&AGENTS, "b");
    assert_eq!(bench.health(), None, "nobody judged");
    bench.hear("c", 1, Some(down("c cannot reach it")));
    bench.probe(down("nor can a"));
    assert_eq!(bench.health(), None);
    bench.hear("b", 1, Some(down("refused")));
    assert_eq!(bench.health(), Some(&down("refused")));
    bench.hear("b", 1, Some(Health::Up));
    assert_eq!(bench.health(), Some(&Health::Up));
    assert_eq!(bench.published(), [], "what was probed outside the assignment is no word");
}

#[test]
fn two_of_three_decide_for_a_node_without_an_agent() {
    let mut bench = Bench::new(&AGENTS, "server");
    let probers = bench.probers();
    assert_eq!(probers.len(), 3);
    bench.hear(&probers[0], 1, Some(Health::Up));
    assert_eq!(bench.health(), None, "one is no majority");
    bench.hear(&probers[1], 1, Some(down("refused")));
    assert_eq!(bench.health(), None, "nor is a tie");
    bench.hear(&probers[2], 1, Some(down("timeout")));
    assert!(!bench.health().unwrap().serves());
    bench.hear(&probers[1], 1, Some(Health::Up));
    assert_eq!(bench.health(), Some(&Health::Up));
    let cause = bench.combine.verdicts().cause(&bench.target).unwrap();
    assert_eq!((&cause.by, cause.up, cause.down), (&probers, 2, 1));
}

#[test]
fn with_fewer_agents_the_majority_of_those_decides() {
    let mut bench = Bench::new(&["a", "b"], "server");
    bench.probe(down("refused"));
    assert_eq!(bench.health(), None, "a tie");
    bench.hear("b", 1, Some(down("timeout")));
    assert!(!bench.health().unwrap().serves());
    bench.probe(Health::Up);
    assert!(!bench.health().unwrap().serves(), "a tie keeps the last state");
    bench.live(&["a"]);
    assert_eq!(bench.health(), Some(&Health::Up), "alone");
}

#[test]
fn vanished_entries_and_new_lives_change_nothing_until_something_new_is_said() {
    let mut bench = Bench::new(&AGENTS, "b");
    bench.hear("b", 1, Some(down("refused")));
    bench.hear("b", 1, None);
    assert_eq!(bench.health(), Some(&down("refused")));
    // An entry of the former life arrives after one of the new.
    bench.hear("b", 2, Some(Health::Up));
    bench.hear("b", 1, Some(down("late")));
    assert_eq!(bench.health(), Some(&Health::Up));
}

#[test]
fn a_new_life_voids_all_that_the_former_said_of_other_targets_too() {
    let mut bench = Bench::new(&AGENTS, "server");
    let probers = bench.probers();
    for prober in &probers[..2] {
        bench.hear(prober, 1, Some(Health::Up));
    }
    let other = key(&name(&SEED, &target(2)));
    let value = Some(Word::new(2, &Health::Up).unwrap().encode().into());
    let change = Change { origin: probers[0].clone(), key: other, value };
    bench.combine.on_change(&change, at(1)).unwrap();
    assert_eq!(bench.health(), Some(&Health::Up), "sticky");
    assert_eq!(bench.combine.verdicts().cause(&bench.target).unwrap().up, 1);
}

#[test]
fn when_an_agent_dies_three_take_over_and_its_return_gives_it_the_word_again() {
    let mut bench = Bench::new(&AGENTS, "b");
    bench.hear("b", 1, Some(Health::Up));
    bench.live(&["a", "c", "d", "e"]);
    assert_eq!(bench.health(), Some(&Health::Up));
    let probers = bench.probers();
    assert_eq!(probers.len(), 3);
    for prober in &probers {
        match &**prober {
            "a" => bench.probe(down("timeout")),
            other => bench.hear(other, 1, Some(down("timeout"))),
        }
    }
    assert_eq!(bench.health(), Some(&down("timeout")));
    bench.live(&AGENTS);
    assert_eq!(bench.health(), Some(&Health::Up), "it was never silent to itself");
}

#[test]
fn who_is_cut_off_keeps_what_it_knew() {
    let mut bench = Bench::new(&AGENTS, "b");
    bench.hear("b", 1, Some(Health::Up));
    bench.combine.set_members(&Members { isolated: true, ..members(&["a"]) }, at(2));
    bench.probe(down("timeout"));
    assert_eq!(bench.health(), Some(&Health::Up));
    assert_eq!(bench.probers(), ["b".into()]);
}

#[test]
fn words_heard_before_a_target_is_wanted_count_then() {
    let mut bench = Bench::new(&AGENTS, "b");
    bench.combine.set_targets(&Targets::new(), at(0));
    bench.hear("b", 1, Some(down("refused")));
    bench.combine.set_targets(&[(target(1), "b".into())].into(), at(3));
    assert_eq!(bench.health(), Some(&down("refused")));
    assert_eq!(bench.combine.verdicts().cause(&target(1)).unwrap().since, at(3));
}

#[test]
fn what_is_wanted_no_more_is_forgotten_and_withdrawn() {
    let mut bench = Bench::new(&AGENTS, "a");
    assert!(bench.combine.take_reassigned());
    assert_eq!(bench.combine.mine(), [target(1)].into());
    bench.probe(Health::Up);
    assert_eq!((bench.published(), bench.combine.take_touched()), (vec![Some(true)], true));
    bench.combine.set_targets(&Targets::new(), at(2));
    assert_eq!((bench.published(), bench.health()), (vec![None], None));
    assert!(bench.combine.take_reassigned() && bench.combine.take_touched());
    assert!(bench.combine.mine().is_empty() && bench.combine.words.is_empty());
}

#[test]
fn own_words_are_published_when_they_change_and_withdrawn_when_another_takes_over() {
    let mut bench = Bench::new(&["a"], "b");
    for health in [down("refused"), down("timeout"), Health::Up, Health::Up] {
        bench.probe(health);
    }
    assert_eq!(bench.published(), [Some(false), Some(true)], "a new reason is not worth a word");
    bench.combine.take_reassigned();
    bench.live(&["a", "b"]);
    assert_eq!(bench.published(), [None]);
    assert!(bench.combine.take_reassigned() && bench.combine.mine().is_empty());
    assert_eq!(bench.health(), Some(&Health::Up), "until b says something");
}

#[test]
fn a_target_that_moves_to_another_node_is_probed_there() {
    let mut bench = Bench::new(&AGENTS, "a");
    bench.probe(Health::Up);
    bench.combine.set_targets(&[(target(1), "b".into())].into(), at(2));
    assert_eq!(bench.published(), [Some(true), None]);
    assert_eq!((bench.probers(), bench.health()), (vec!["b".into()], Some(&Health::Up)));
}

#[test]
fn foreign_entries_are_refused_or_nothing_to_this() {
    let mut combine = Combine::new("a", SEED, 1);
    let mut hear = |origin: &str, key, value: &[u8]| {
        let change = Change { origin: origin.into(), key, value: Some(value.into()) };
        combine.on_change(&change, at(1))
    };
    assert_eq!(hear("b", Key::new(Topic::CARD, []), b"{}"), Ok(()));
    assert_eq!(hear("a", Key::new(Topic::VERDICT, []), b""), Ok(()), "its own");
    assert_eq!(hear("b", Key::new(Topic::VERDICT, *b"short"), b""), Err(Malformed));
    assert_eq!(hear("b", Key::new(Topic::VERDICT, [0; 16]), b""), Err(Malformed));
}

#[test]
fn the_age_of_a_verdict_is_that_of_up_or_down_and_not_of_its_reason() {
    let mut bench = Bench::new(&["a"], "a");
    let mut probe = |health, seconds| {
        bench.combine.on_probe(&target(1), &health, at(seconds));
        bench.combine.verdicts().cause(&target(1)).unwrap().since
    };
    assert_eq!(probe(down("refused"), 5), at(5));
    assert_eq!(probe(down("timeout"), 6), at(5));
    assert_eq!(probe(Health::Up, 7), at(7));
}

#[derive(Clone, Debug)]
enum Event {
    Probe(u8, bool),
    Hear(u8, usize, u64, Option<bool>),
    Agents(u8),
}

fn event() -> impl Strategy<Value = Event> {
    let hear = (0u8..4, 1usize..5, 1u64..4, proptest::option::of(any::<bool>()));
    prop_oneof![
        (0u8..4, any::<bool>()).prop_map(|(target, up)| Event::Probe(target, up)),
        hear.prop_map(|(target, from, run, up)| Event::Hear(target, from, run, up)),
        any::<u8>().prop_map(Event::Agents),
    ]
}

/// The rules again, from all words that count at the time.
#[derive(Default)]
struct Model {
    words: BTreeMap<(u8, String), (u64, bool)>,
    runs: BTreeMap<String, u64>,
    serving: BTreeMap<u8, bool>,
}

impl Model {
    fn decide(&mut self, target: u8, probers: &[Arc<str>]) {
        let said = probers.iter().filter_map(|it| self.words.get(&(target, it.to_string())));
        let votes: Vec<bool> = said.map(|(_, up)| *up).collect();
        for up in [true, false] {
            if votes.iter().filter(|vote| **vote == up).count() * 2 > probers.len() {
                self.serving.insert(target, up);
            }
        }
    }
}

fn health_of(up: bool) -> Health {
    if up { Health::Up } else { down("x") }
}

proptest! {
    #[test]
    fn verdicts_are_what_the_majority_of_the_probers_said_last(events in prop::collection::vec(event(), 1..60)) {
        // Two targets on nodes with agents, two on a server.
        let nodes = ["a", "b", "server", "server"];
        let mut combine = Combine::new("a", SEED, 1);
        let targets: Targets = (0..).zip(nodes).map(|(n, node)| (target(n), node.into())).collect();
        combine.set_members(&members(&AGENTS), at(0));
        combine.set_targets(&targets, at(0));
        let mut model = Model::default();
        for event in events {
            let probers = |combine: &Combine, n| combine.asked[&name(&SEED, &target(n))].probers.clone();
            match event {
                Event::Probe(n, up) => {
                    if probers(&combine, n).contains(&"a".into()) {
                        model.words.insert((n, "a".into()), (1, up));
                    }
                    combine.on_probe(&target(n), &health_of(up), at(1));
                }
                Event::Hear(n, from, run, up) => {
                    let value = up.map(|up| Word::new(run, &health_of(up)).unwrap().encode().into());
                    let (from, key) = (AGENTS[from], key(&name(&SEED, &target(n))));
                    let entry = (n, from.to_owned());
                    let before = combine.verdicts().turn();
                    combine.on_change(&Change { origin: from.into(), key, value }, at(1)).unwrap();
                    let latest = model.runs.get(from).copied().unwrap_or(run);
                    match up {
                        None => {
                            model.words.remove(&entry);
                            prop_assert_eq!(combine.verdicts().turn(), before, "an end decides nothing");
                        }
                        Some(up) if run >= latest => {
                            model.runs.insert(from.into(), run);
                            model.words.retain(|(_, of), (life, _)| of != from || *life == run);
                            model.words.insert(entry, (run, up));
                        }
                        Some(_) => {}
                    }
                }
                Event::Agents(set) => {
                    let alive: Vec<_> =
                        (0..).zip(AGENTS).filter(|(at, _)| set >> at & 1 == 1).map(|(_, it)| it).collect();
                    combine.set_members(&members(&alive), at(1));
                    for n in 0..4 {
                        if !probers(&combine, n).contains(&"a".into()) {
                            model.words.remove(&(n, "a".into()));
                        }
                    }
                }
            }
            for n in 0..4 {
                model.decide(n, &probers(&combine, n));
                let found = combine.verdicts().get(&target(n)).map(Health::serves);
                prop_assert_eq!(found, model.serving.get(&n).copied());
                let mine = probers(&combine, n).contains(&"a".into());
                prop_assert_eq!(combine.mine().contains(&target(n)), mine);
            }
        }
    }
}

#[test]
fn a_mute_nodes_targets_are_probed_by_others() {
    let mut bench = Bench::new(&AGENTS, "b");
    let mut muted = members(&AGENTS);
    muted.nodes.insert("b".into(), MemberState { life: Life::Mute, ..MemberState::default() });
    bench.combine.set_members(&muted, at(1));
    assert_eq!(bench.probers().len(), 3);
    assert!(!bench.probers().contains(&"b".into()));
}
