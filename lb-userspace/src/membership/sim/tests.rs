use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A settled cluster at a random moment of its probing.
fn cluster(count: usize, seed: u64) -> Sim {
    let mut sim = Sim::settled(count, seed);
    let phase = sim.up_to(SECOND);
    sim.run(phase);
    sim
}

fn group(range: std::ops::Range<usize>) -> Vec<usize> {
    range.collect()
}

/// Whether all observers hold all subjects for this, themselves left out.
fn all_hold(sim: &Sim, observers: &[usize], subjects: &[usize], life: Life) -> bool {
    observers.iter().all(|observer| {
        subjects.iter().all(|it| it == observer || sim.life(*observer, *it) == life)
    })
}

fn isolated(sim: &Sim, sites: &[usize]) -> Vec<usize> {
    sites.iter().copied().filter(|site| sim.members(*site).unwrap().isolated).collect()
}

/// Switches `victims` off and checks that the others agree within `most`; when each came to do so.
fn die(sim: &mut Sim, victims: &[usize], most: Duration) -> Vec<Duration> {
    let begin = sim.now;
    let others: Vec<_> = (0..sim.sites.len()).filter(|it| !victims.contains(it)).collect();
    victims.iter().for_each(|victim| sim.power_off(*victim));
    let agreed = sim.until(SECOND * 10, |sim| all_hold(sim, &others, victims, Life::Dead));
    assert!(agreed.is_some_and(|it| it <= most), "agreed after {agreed:?}");
    sim.run(SECOND * 2);
    let wrong: Vec<_> = sim.turns.iter().filter(|turn| !victims.contains(&turn.subject)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(all_hold(sim, &others, victims, Life::Dead), "for good");
    sim.turns.iter().map(|turn| turn.at - begin).collect()
}

fn print(what: &str, count: usize, mut times: Vec<Duration>) {
    times.sort_unstable();
    let (half, most) = (quantile(&times, 0.5), quantile(&times, 1.0));
    println!("{count} members, {what}: p50 {half:.0?}, max {most:.0?} of {}", times.len());
}

#[test]
fn a_cluster_that_boots_is_ready_and_wants_vips_within_five_seconds() {
    for count in [1, 2, 3, 10, 50] {
        let mut sim = Sim::new(count, 1);
        (0..count).for_each(|site| sim.power_on(site));
        let all_want = |sim: &Sim| {
            (0..count).all(|site| {
                let members = sim.members(site).unwrap();
                members.ready && members.nodes.values().all(|it| it.announcing && it.serves)
            })
        };
        let took = sim.until(SECOND * 5, all_want);
        println!("{count} members: all ready and wanting VIPs after {took:?}");
        assert!(took.is_some(), "{count}");
    }
}

#[test]
fn a_node_that_loses_power_is_dead_for_all_within_400_ms() {
    for (count, seeds) in [(3, 20), (10, 5), (50, 1), (100, 1)] {
        let mut all = Vec::new();
        for seed in 0..seeds {
            let mut sim = cluster(count, seed);
            all.extend(die(&mut sim, &[seed as usize % count], MS * 400));
        }
        print("one loses power", count, all);
    }
}

#[test]
fn two_that_lose_power_at_once_are_dead_for_all() {
    // Of three only one is left, and the gateway has its say.
    for (count, seeds, most) in
        [(3, 5, MS * 550), (4, 5, MS * 550), (10, 3, MS * 500), (50, 1, MS * 500)]
    {
        let mut all = Vec::new();
        for seed in 0..seeds {
            let mut sim = cluster(count, seed);
            all.extend(die(&mut sim, &[0, count / 2], most));
        }
        print("two lose power", count, all);
    }
}

#[test]
fn a_quarter_that_loses_power_at_once_is_dead_for_all() {
    for (count, seeds) in [(12, 5), (100, 1)] {
        let mut all = Vec::new();
        for seed in 0..seeds {
            let mut sim = cluster(count, seed);
            all.extend(die(&mut sim, &group(0..count / 4), SECOND));
        }
        print("a quarter loses power", count, all);
    }
}

#[test]
fn the_last_of_all_takes_everything_over() {
    for count in [2, 3, 10, 30] {
        let mut sim = cluster(count, 1);
        let times = die(&mut sim, &group(1..count), SECOND * 2);
        print("all but one lose power", count, times);
    }
}

#[test]
fn of_two_sides_the_one_without_gateway_keeps_everything_and_the_other_takes_over() {
    for (one, other) in [(1, 1), (1, 2), (2, 3), (5, 5)] {
        for seed in 0..3 {
            let mut sim = cluster(one + other, seed);
            let (cut_off, rest) = (group(0..one), group(one..one + other));
            cut_off.iter().for_each(|site| sim.set_gateway(*site, false));
            sim.part(&cut_off, &rest);
            sim.run(SECOND * 3);
            assert!(all_hold(&sim, &rest, &cut_off, Life::Dead), "{one}|{other}");
            assert!(all_hold(&sim, &cut_off, &rest, Life::Alive), "{one}|{other}");
            assert!(all_hold(&sim, &rest, &rest, Life::Alive), "{one}|{other}");
            assert_eq!(
                (isolated(&sim, &cut_off), isolated(&sim, &rest)),
                (cut_off.clone(), vec![])
            );
            sim.heal();
            sim.run(SECOND * 10);
            let all = group(0..one + other);
            assert!(all_hold(&sim, &all, &all, Life::Alive), "{one}|{other} healed");
            assert!(isolated(&sim, &all).is_empty());
            let wants = |it: &crate::model::MemberState| it.announcing && it.serves;
            let all_well = |site: &usize| sim.members(*site).unwrap().nodes.values().all(wants);
            assert!(all.iter().all(all_well), "{one}|{other} healed");
        }
    }
}

#[test]
fn of_two_sides_that_both_reach_a_gateway_each_takes_over_and_they_find_together_again() {
    for (one, other) in [(1, 1), (1, 2), (2, 3), (5, 5)] {
        let mut sim = cluster(one + other, 3);
        let (left, right) = (group(0..one), group(one..one + other));
        sim.part(&left, &right);
        sim.run(SECOND * 3);
        assert!(all_hold(&sim, &left, &right, Life::Dead), "{one}|{other}");
        assert!(all_hold(&sim, &right, &left, Life::Dead), "{one}|{other}");
        sim.heal();
        let all = group(0..one + other);
        // At every moment some living node is held for one that wants VIPs, but for a blink.
        let mut nobody = 0;
        for _ in 0..10_000 {
            sim.run(MS);
            let somebody =
                |site: &usize| sim.members(*site).unwrap().nodes.values().any(|it| it.announcing);
            nobody += usize::from(!all.iter().all(somebody));
        }
        assert!(nobody < 300, "{one}|{other}: {nobody} ms without anybody");
        assert!(all_hold(&sim, &all, &all, Life::Alive), "{one}|{other} healed");
    }
}

#[test]
fn a_cut_between_two_nodes_kills_neither_and_both_say_whom_they_miss() {
    for (count, both_ways) in [(3, false), (3, true), (4, true), (10, true), (50, false)] {
        let mut sim = cluster(count, 1);
        // Two that watch each other, so that both notice.
        let pairs = || (0..count).flat_map(|a| (0..a).map(move |b| (a, b)));
        let watch = |a: usize, b: usize| sim.machine(a).unwrap().status(sim.now)[&name(b)].watched;
        let (a, b) = pairs().find(|(a, b)| watch(*a, *b) && watch(*b, *a)).unwrap();
        sim.cut(&[a], &[b]);
        if both_ways {
            sim.cut(&[b], &[a]);
        }
        sim.run(SECOND * 20);
        assert!(sim.turns.is_empty(), "{count}: {:?}", sim.turns);
        for observer in 0..count {
            let nodes = &sim.members(observer).unwrap().nodes;
            assert!(nodes[&name(a)].unreachable.contains(&name(b)), "{count}: seen by {observer}");
            assert!(nodes[&name(b)].unreachable.contains(&name(a)), "{count}: seen by {observer}");
        }
        sim.heal();
        sim.run(SECOND * 2);
        let unreached =
            |site| sim.members(site).unwrap().nodes.values().any(|it| !it.unreachable.is_empty());
        assert!(!(0..count).any(unreached), "{count}: healed");
    }
}

#[test]
fn who_can_send_but_not_hear_accuses_in_vain() {
    for count in [3, 5, 10, 50] {
        let mut sim = cluster(count, 1);
        sim.set_gateway(0, false);
        let rest = group(1..count);
        sim.cut(&rest, &[0]);
        sim.run(SECOND * 5);
        assert!(all_hold(&sim, &rest, &rest, Life::Alive), "{count}: {:?}", sim.turns);
        assert!(all_hold(&sim, &rest, &[0], Life::Dead), "{count}: its data plane answers nobody");
        assert!(all_hold(&sim, &[0], &rest, Life::Alive), "{count}: it keeps everything");
    }
}

#[test]
fn an_uplink_that_flaps_costs_the_others_nothing() {
    for (count, down) in [(3, 200), (3, 400), (3, 1000), (3, 3000), (10, 400), (10, 1000)] {
        for seed in 0..2 {
            let mut sim = cluster(count, seed);
            let rest = group(1..count);
            sim.set_gateway(0, false);
            sim.part(&[0], &rest);
            sim.run(MS * down);
            sim.heal();
            sim.set_gateway(0, true);
            sim.run(SECOND * 5);
            let all = group(0..count);
            assert!(all_hold(&sim, &all, &all, Life::Alive), "{count}, {down} ms");
            let wrong: Vec<_> = sim.turns.iter().filter(|turn| turn.subject != 0).collect();
            assert!(wrong.is_empty(), "{count}, {down} ms: {wrong:?}");
            assert!(down > 200 || sim.turns.is_empty(), "{count}, {down} ms");
        }
    }
}

#[test]
fn a_node_that_flaps_is_held_back_longer_each_time() {
    let mut sim = cluster(3, 1);
    let mut held = Vec::new();
    for _ in 0..4 {
        sim.power_off(0);
        sim.run(SECOND * 2);
        sim.power_on(0);
        sim.until(SECOND * 3, |sim| all_hold(sim, &[1, 2], &[0], Life::Alive)).unwrap();
        let serves = |sim: &Sim| sim.members(1).unwrap().nodes[&name(0)].serves;
        assert!(!serves(&sim));
        held.push(sim.until(SECOND * 100, serves).unwrap().as_secs_f64().round());
    }
    assert_eq!(held, [1.0, 2.0, 4.0, 8.0]);
}

#[test]
fn loss_and_late_timers_kill_nobody() {
    for (count, seconds) in [(2, 600), (3, 600), (10, 120), (50, 10)] {
        let mut sim = cluster(count, 1);
        sim.weather = Weather { loss: 0.02, stalls: MS * 300, ..Weather::default() };
        (0..count).for_each(|site| sim.schedule_stall(site));
        sim.run(SECOND * seconds);
        assert!(sim.turns.is_empty(), "{count}: {:?}", sim.turns);
        let times = die(&mut sim, &[count - 1], SECOND * 2);
        print("one loses power in bad weather", count, times);
    }
}

#[test]
fn agents_that_all_restart_at_once_kill_nobody_and_move_no_vip() {
    for count in [3, 10, 50] {
        let mut sim = cluster(count, 1);
        (0..count).for_each(|site| sim.kill_agent(site));
        sim.run(MS * 700);
        (0..count).for_each(|site| sim.start_agent(site));
        sim.run(SECOND * 5);
        let all = group(0..count);
        assert!(all_hold(&sim, &all, &all, Life::Alive), "{count}");
        assert!(sim.turns.iter().all(|turn| turn.life != Life::Dead), "{count}");
        let wants =
            |site: &usize| sim.members(*site).unwrap().nodes.values().all(|it| it.announcing);
        assert!(all.iter().all(wants), "{count}");
    }
}

#[test]
fn nodes_that_all_lose_power_come_back_as_one_cluster() {
    for count in [3, 10, 50] {
        let mut sim = cluster(count, 1);
        (0..count).for_each(|site| sim.power_off(site));
        sim.run(SECOND * 5);
        (0..count).for_each(|site| sim.power_on(site));
        sim.run(SECOND * 5);
        let all = group(0..count);
        assert!(all_hold(&sim, &all, &all, Life::Alive), "{count}");
    }
}

#[test]
fn new_nodes_that_old_ones_do_not_know_yet_accuse_nobody() {
    // What the new ones send is dropped by the old ones, as by data planes without them.
    let mut sim = Sim::new(4, 1);
    sim.part(&[0, 1], &[2, 3]);
    sim.set_gateway(2, false);
    sim.set_gateway(3, false);
    (0..4).for_each(|site| sim.power_on(site));
    sim.run(SECOND * 5);
    sim.heal();
    sim.run(SECOND * 5);
    let all = group(0..4);
    assert!(all_hold(&sim, &all, &all, Life::Alive));
    assert!(
        all_hold(&sim, &[0], &[1], Life::Alive)
            && sim
                .turns
                .iter()
                .all(|it| it.observer > 1 || it.subject > 1 || it.life != Life::Dead)
    );
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut sim = cluster(10, 7);
        let begin = sim.now;
        sim.weather.loss = 0.02;
        sim.power_off(3);
        sim.run(SECOND * 2);
        let turns = sim.turns.iter().map(|turn| (turn.at - begin, turn.observer, turn.subject));
        (turns.collect::<Vec<_>>(), sim.traffic(0).bytes)
    };
    assert_eq!(run(), run());
}

#[test]
fn cost_of_a_node_is_counted() {
    let cost = measure(3, Load::Idle, SECOND * 3, SECOND * 10);
    assert!((15.0..=25.0).contains(&cost.probes), "{cost:?}");
    assert!((cost.probes - cost.answers).abs() < 1.0, "{cost:?}");
    assert!(cost.bytes > 0.0 && cost.most_bytes >= cost.bytes && cost.datagrams > 0.0);
    let with_death = measure(3, Load::DeathEachMinute, SECOND * 3, SECOND * 10);
    assert!(with_death.probes > 10.0, "{with_death:?}");
}
