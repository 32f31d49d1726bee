use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const SEEDS: std::ops::Range<u64> = 0..5;

fn all_hold(
    sim: &Sim,
    observers: impl IntoIterator<Item = usize>,
    subject: usize,
    life: Life,
) -> bool {
    observers.into_iter().all(|observer| sim.life(observer, subject) == life)
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
        println!("{count} members: ready after {took:?}");
        assert!(took.is_some_and(|took| took <= SECOND * 5), "{count}: {took:?}");
    }
}

#[test]
fn a_node_that_loses_power_is_dead_for_all_within_450_ms() {
    for count in [3, 10, 50] {
        let mut all = Vec::new();
        for seed in SEEDS {
            let mut sim = Sim::settled(count, seed);
            let phase = sim.up_to(SECOND);
            sim.run(phase);
            let (begin, victim) = (sim.now, seed as usize % count);
            sim.power_off(victim);
            let others = (0..count).filter(|it| *it != victim);
            let took =
                sim.until(SECOND * 3, |sim| all_hold(sim, others.clone(), victim, Life::Dead));
            assert!(took.is_some(), "{count}");
            all.extend(sim.turns.iter().map(|turn| turn.at - begin));
            assert!(sim.turns.iter().all(|turn| turn.subject == victim), "{:?}", sim.turns);
        }
        all.sort_unstable();
        let (half, most) = (quantile(&all, 0.5), quantile(&all, 1.0));
        println!("{count} members: dead for all, p50 {half:?}, max {most:?} of {}", all.len());
        assert!(most <= MS * 450, "{count}: {most:?}");
    }
}
