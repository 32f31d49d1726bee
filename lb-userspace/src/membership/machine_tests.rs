use super::*;
use crate::{
    membership::sim::{Sim, name, rules},
    model::HoldDowns,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn member(sim: &Sim, observer: usize, subject: usize) -> &crate::model::MemberState {
    &sim.members(observer).unwrap().nodes[&name(subject)]
}

/// Whether all others and the node itself hold that it wants VIPs.
fn wants(sim: &Sim, subject: usize, count: usize) -> Vec<bool> {
    (0..count)
        .filter(|observer| sim.machine(*observer).is_some())
        .map(|observer| member(sim, observer, subject).announcing)
        .collect()
}

#[test]
fn facts_and_vips_of_a_member_reach_all_others() {
    let mut sim = Sim::settled(3, 1);
    let vip: IpAddr = "192.0.2.80".parse().unwrap();
    sim.tell(0, |machine, now| {
        machine.set_announced(&[vip].into(), now);
        let labels = [("rack".to_owned(), "a".to_owned())].into();
        machine.set_facts(Facts { version: "2".into(), labels, interfaces: Vec::new() });
    });
    sim.run(SECOND);
    for observer in 0..3 {
        let member = member(&sim, observer, 0);
        assert_eq!(member.announces, [vip].into());
        assert_eq!(member.card.as_ref().unwrap().labels["rack"], "a");
    }
    let problems = sim.machine(1).unwrap().problems(sim.now);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].message.contains("runs weir 2, node-0001 runs 1"), "{problems:?}");
    sim.tell(0, |machine, now| machine.set_announced(&BTreeSet::new(), now));
    sim.run(SECOND);
    assert!(member(&sim, 2, 0).announces.is_empty());
}

#[test]
fn entries_of_other_tasks_pass_through() {
    let mut sim = Sim::settled(2, 1);
    let key = Key::new(Topic::VERDICT, "target");
    sim.tell(0, |machine, now| machine.publish(key.clone(), Some(vec![1]), true, now));
    let mut seen = Vec::new();
    sim.run(SECOND);
    for change in sim.take_changes(1) {
        seen.push((change.origin.to_string(), change.key, change.value.map(|it| it.to_vec())));
    }
    assert_eq!(seen, [(name(0), key, Some(vec![1]))]);
}

#[test]
fn an_agent_that_restarts_at_once_keeps_its_vips_throughout() {
    for seed in 0..5 {
        let mut sim = Sim::settled(3, seed);
        sim.kill_agent(0);
        sim.run(MS * 300);
        sim.start_agent(0);
        for _ in 0..10_000 {
            sim.run(MS);
            for observer in [1, 2] {
                let member = member(&sim, observer, 0);
                assert!(member.announcing && member.serves && member.life.forwards());
            }
        }
    }
}

#[test]
fn a_node_that_returns_from_death_waits_before_it_wants_vips() {
    let mut sim = Sim::settled(3, 1);
    sim.power_off(0);
    sim.run(SECOND * 2);
    assert_eq!(wants(&sim, 0, 3), [false, false]);
    sim.power_on(0);
    sim.run(SECOND * 4);
    assert_eq!((sim.life(1, 0), wants(&sim, 0, 3)), (Life::Alive, vec![false; 3]));
    sim.run(SECOND * 4);
    assert_eq!(wants(&sim, 0, 3), [true; 3]);
}

#[test]
fn a_node_cut_off_and_back_learns_that_its_vips_were_taken() {
    let mut sim = Sim::settled(3, 1);
    sim.set_gateway(0, false);
    sim.part(&[0], &[1, 2]);
    sim.run(SECOND * 3);
    assert!(sim.members(0).unwrap().isolated);
    assert_eq!(wants(&sim, 0, 3), [true, false, false], "it keeps its word while cut off");
    sim.heal();
    sim.run(SECOND * 3);
    assert_eq!(wants(&sim, 0, 3), [false; 3]);
    sim.run(SECOND * 5);
    assert_eq!(wants(&sim, 0, 3), [true; 3]);
}

#[test]
fn an_agent_that_hangs_is_mute_loses_its_vips_after_five_seconds_and_waits_when_it_wakes() {
    let mut sim = Sim::settled(3, 1);
    sim.stop_agent(0);
    sim.run(SECOND * 2);
    let it = member(&sim, 1, 0);
    assert_eq!((it.life, it.mute_long, it.announcing, it.serves), (Life::Mute, false, true, true));
    let long = sim.until(SECOND * 5, |sim| [1, 2].iter().all(|at| member(sim, *at, 0).mute_long));
    assert!(long.is_some_and(|it| it > MS * 2800 && it < MS * 3400), "{long:?}");
    sim.run(SECOND * 5);
    sim.resume_agent(0);
    sim.run(MS * 500);
    assert_eq!((sim.life(1, 0), wants(&sim, 0, 3)), (Life::Alive, vec![false; 3]));
    sim.run(SECOND * 6);
    assert_eq!(wants(&sim, 0, 3), [true; 3]);
}

#[test]
fn an_agent_that_hangs_for_two_seconds_keeps_its_vips() {
    let mut sim = Sim::settled(3, 1);
    sim.stop_agent(0);
    sim.run(SECOND * 2);
    sim.resume_agent(0);
    for _ in 0..3000 {
        sim.run(MS);
        assert_eq!(wants(&sim, 0, 3), [true; 3]);
    }
    assert_eq!(sim.life(1, 0), Life::Alive);
}

#[test]
fn who_leaves_or_is_drained_wants_no_vips_for_anybody() {
    let mut sim = Sim::settled(3, 1);
    sim.tell(0, |machine, _| machine.set_leaving(true));
    sim.run(MS * 50);
    assert_eq!(wants(&sim, 0, 3), [false; 3]);
    sim.tell(0, |machine, _| machine.set_leaving(false));
    (0..3).for_each(|site| sim.tell(site, |machine, _| machine.set_drained([name(1)].into())));
    sim.run(SECOND);
    assert_eq!((wants(&sim, 0, 3), wants(&sim, 1, 3)), (vec![true; 3], vec![false; 3]));
    (0..3).for_each(|site| sim.tell(site, |machine, _| machine.set_drained(BTreeSet::new())));
    sim.run(SECOND);
    assert_eq!(wants(&sim, 1, 3), [true; 3]);
}

#[test]
fn views_are_given_only_when_they_changed() {
    let mut sim = Sim::settled(3, 1);
    let before = Arc::clone(sim.members(0).unwrap());
    sim.run(SECOND * 30);
    assert!(Arc::ptr_eq(&before, sim.members(0).unwrap()));
}

#[test]
fn a_card_that_cannot_be_read_is_none() {
    let settings =
        Settings { node: name(0), rules: rules(), gossip_port: 1, incarnation: 1, random: [1; 32] };
    let mut machine = Machine::new(&settings, Instant::now());
    let key = Key::new(Topic::CARD, "");
    let rubbish = Change { origin: "b".into(), key, value: Some((*b"{").into()) };
    machine.hear_card(&rubbish);
    assert!(machine.said["b"].card.is_none());
    let key = Key::new(Topic::ANNOUNCES, "short");
    machine.hear_announces(&Change { origin: "b".into(), key, value: Some([].into()) });
    assert!(machine.said["b"].announces.is_empty());
    assert_eq!(HoldDowns::default().mute, machine.mute);
}
