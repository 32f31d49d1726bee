//! The table builder against its definition, and increments against rebuilds.

use lb_common::table::{
    self, BOUND, Backend, MIN_SHARE, Seed, TIGHT_BOUND, TIGHT_SHARE, Table, digest, score,
};
use lb_common::{
    abi::MAX_SLOTS,
    net::{Addr, Port},
    siphash,
};
use proptest::{collection::vec, prelude::*, sample::Index};
use std::{
    cmp::Reverse,
    net::{Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
};

const SEED: Seed = *b"a seed for tests";

/// Distinct backends `0..count`, all of one weight.
fn pool(count: u32) -> Vec<Backend> {
    (0..count).map(|n| backend(n, 1)).collect()
}

fn backend(n: u32, weight: u16) -> Backend {
    let addr = Addr::from(Ipv4Addr::from_bits(0x0a00_0001 + n));
    Backend { addr, port: Port::new(8080), weight: NonZeroU16::new(weight).unwrap() }
}

fn owners(table: &Table) -> Vec<Option<Backend>> {
    (0..table.slots() as u16)
        .map(|slot| table.owner(slot).map(|i| table.backends()[usize::from(i)]))
        .collect()
}

/// The definition, word by word: sort all pairs, take each while slot and backend are free.
fn by_sorting(chosen: &[Backend], slots: u16, seed: &Seed) -> Vec<Option<Backend>> {
    let total: u64 = chosen.iter().map(|b| u64::from(b.weight.get())).sum();
    let bound = if u64::from(slots) / chosen.len().max(1) as u64 >= TIGHT_SHARE {
        TIGHT_BOUND
    } else {
        BOUND
    };
    let mut room: Vec<u64> = chosen
        .iter()
        .map(|b| {
            let share = u64::from(slots) * u64::from(b.weight.get());
            let round_up = if share % total == 0 { share / total } else { share / total + 1 };
            round_up.max(share * (100 + bound) / 100 / total)
        })
        .collect();
    let mut pairs: Vec<_> = (0..slots)
        .flat_map(|slot| {
            chosen
                .iter()
                .enumerate()
                .map(move |(i, b)| (Reverse(score(seed, b, slot)), *b, slot, i))
        })
        .collect();
    pairs.sort();
    let mut owners = vec![None; slots.into()];
    for (_, backend, slot, i) in pairs {
        if owners[usize::from(slot)].is_none() && room[i] > 0 {
            room[i] -= 1;
            owners[usize::from(slot)] = Some(backend);
        }
    }
    owners
}

fn a_weight() -> impl Strategy<Value = u16> {
    prop_oneof![3 => Just(1u16), 2 => 1..=10u16, 1 => 1..=u16::MAX]
}

/// Small pools, some with one weight for all, some over the limit of backends.
fn a_pool() -> impl Strategy<Value = Vec<Backend>> {
    let equal = (0..40u32, 1..=u16::MAX)
        .prop_map(|(count, weight)| (0..count).map(|n| backend(n, weight)).collect());
    let mixed = vec(a_weight(), 0..40)
        .prop_map(|w| (0..).zip(w).map(|(n, weight)| backend(n, weight)).collect());
    prop_oneof![equal, mixed]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn owners_are_those_of_the_sorted_pairs(pool in a_pool(), slots in 1..900u16, seed: Seed) {
        let table = Table::build(&pool, slots, &seed);
        prop_assert_eq!(owners(&table), by_sorting(table.backends(), slots, &seed));
    }

    #[test]
    fn order_and_repetition_of_the_pool_do_not_matter((pool, mixed) in a_pool().prop_flat_map(|p| (Just(p.clone()), Just(p).prop_shuffle())), again: Index) {
        let mut mixed = mixed;
        if !mixed.is_empty() {
            mixed.push(mixed[again.index(mixed.len())]);
        }
        prop_assert_eq!(Table::build(&pool, 400, &SEED), Table::build(&mixed, 400, &SEED));
        prop_assert_eq!(digest(&pool, 400, &SEED), digest(&mixed, 400, &SEED));
    }

    #[test]
    fn any_sequence_of_increments_equals_a_rebuild(
        slots in prop_oneof![1..30u16, 30..900u16],
        start in a_pool(),
        steps in vec((0..8u8, any::<Index>(), 0..60u32, a_weight()), 1..25),
    ) {
        let mut pool = start;
        let mut table = Table::build(&pool, slots, &SEED);
        for (kind, which, n, weight) in steps {
            match kind {
                0..3 => pool.push(backend(n, weight)),
                3..6 if !pool.is_empty() => { pool.swap_remove(which.index(pool.len())); }
                6 if !pool.is_empty() => { let at = which.index(pool.len()); pool[at].weight = NonZeroU16::new(weight).unwrap(); }
                // Many changes at once.
                _ => pool = pool.iter().copied().filter(|b| b.addr.octets()[15] % 3 != 0).chain((n..n + 7).map(|n| backend(n, weight))).collect(),
            }
            table = table.updated(&pool);
            prop_assert_eq!(&table, &Table::build(&pool, slots, &SEED));
        }
    }

    #[test]
    fn no_backend_exceeds_its_capacity_and_no_slot_stays_free(pool in a_pool(), slots in 1..3000u16) {
        let table = Table::build(&pool, slots, &SEED);
        let total: u64 = table.backends().iter().map(|b| u64::from(b.weight.get())).sum();
        let mut load = vec![0u64; table.backends().len()];
        for slot in 0..slots {
            match table.owner(slot) {
                Some(owner) => load[usize::from(owner)] += 1,
                None => prop_assert!(pool.is_empty()),
            }
        }
        for (load, backend) in load.iter().zip(table.backends()) {
            let share = u64::from(slots) * u64::from(backend.weight.get());
            prop_assert!(load * total < share + total || load * total * 100 <= share * (100 + BOUND));
        }
    }
}

#[test]
fn default_slots_with_many_backends_equal_the_sorted_pairs() {
    for (count, weight) in [(3, 1), (10, 1), (100, 1), (204, 1), (30, 7)] {
        let pool: Vec<_> =
            (0..count).map(|n| backend(n, 1 + (weight - 1) * (n % 5) as u16)).collect();
        let table = Table::build(&pool, table::DEFAULT_SLOTS, &SEED);
        assert!(
            owners(&table) == by_sorting(&pool, table::DEFAULT_SLOTS, &SEED),
            "{count} backends"
        );
    }
}

#[test]
fn the_largest_table_is_built_and_updated() {
    let mut table = Table::build(&pool(40), MAX_SLOTS as u16, &SEED);
    table = table.updated(&pool(41));
    assert!(table == Table::build(&pool(41), MAX_SLOTS as u16, &SEED));
}

#[test]
fn without_backends_every_slot_is_0_and_with_one_all_are_its() {
    let mut out = [7; 50];
    let mut table = Table::build(&[], 50, &SEED);
    table.owners(&mut out, &[]);
    assert_eq!(out, [0; 50]);
    assert_eq!(table.owner(0), None);
    table = table.updated(&pool(1));
    table.owners(&mut out, &[9]);
    assert_eq!(out, [9; 50]);
    assert_eq!((table.owner(49), table.owner(50)), (Some(0), None));
    table = table.updated(&[]);
    table.owners(&mut out, &[]);
    assert_eq!(out, [0; 50]);
}

#[test]
fn owners_written_are_the_owners_asked_for() {
    let table = Table::build(&pool(30), 1000, &SEED);
    let ids: Vec<u32> = (0..30).map(|i| 1000 + i).collect();
    let mut out = vec![0; 1000];
    table.owners(&mut out, &ids);
    assert!(
        (0..1000)
            .all(|slot| out[usize::from(slot)] == 1000 + u32::from(table.owner(slot).unwrap()))
    );
}

#[test]
fn pools_beyond_the_limit_leave_the_worst_ranked_out_and_moves_stay_few() {
    let slots = 10 * MIN_SHARE;
    let table = Table::build(&pool(25), slots, &SEED);
    assert_eq!((table.backends().len(), table.left_out()), (10, 15));
    // A backend that owned nothing leaves: nothing changes but the count.
    let unused = pool(25).into_iter().find(|b| !table.backends().contains(b)).unwrap();
    let fewer: Vec<_> = pool(25).into_iter().filter(|b| *b != unused).collect();
    let mut less = table.clone();
    less = less.updated(&fewer);
    assert_eq!((less.left_out(), owners(&less)), (14, owners(&table)));
    // An owner leaves: exactly one other takes its place.
    let gone = table.backends()[3];
    less = less.updated(&fewer.iter().copied().filter(|b| *b != gone).collect::<Vec<_>>());
    assert_eq!(less.backends().iter().filter(|b| !table.backends().contains(b)).count(), 1);
}

#[test]
fn heavy_backends_are_preferred_when_the_pool_is_too_large() {
    let pool: Vec<_> = (0..100).map(|n| backend(n, if n % 2 == 0 { 1000 } else { 1 })).collect();
    let table = Table::build(&pool, 20 * MIN_SHARE, &SEED);
    assert_eq!(table.left_out(), 80);
    assert!(table.backends().iter().all(|b| b.weight.get() == 1000));
}

#[test]
fn of_one_address_and_port_the_greatest_weight_counts() {
    let twice = [backend(1, 3), backend(1, 9), backend(2, 9)];
    assert_eq!(Table::build(&twice, 500, &SEED), Table::build(&twice[1..], 500, &SEED));
    assert_eq!(digest(&twice, 500, &SEED), digest(&twice[1..], 500, &SEED));
}

#[test]
fn weights_share_the_slots_in_proportion() {
    let weights = [1, 2, 4, 8, 16, 32, 64];
    let pool: Vec<_> = (0..).zip(weights).map(|(n, weight)| backend(n, weight)).collect();
    // First choices alone, before capacities: the best score of a slot, over many slots.
    let mut wins = [0.0; 7];
    for slot in 0..MAX_SLOTS as u16 {
        let best = (0..7).max_by_key(|&i| score(&SEED, &pool[i], slot)).unwrap();
        wins[best] += 1.0;
    }
    for (wins, weight) in wins.iter().zip(weights) {
        let expected = f64::from(MAX_SLOTS) * f64::from(weight) / 127.0;
        assert!(
            (wins - expected).abs() < 4.0 * expected.sqrt(),
            "weight {weight}: {wins} of {expected}"
        );
    }
}

#[test]
fn ranks_name_the_owner_first_and_the_preferred_after_the_heir() {
    let table = Table::build(&pool(10), 1000, &SEED);
    for (slot, ranks) in (0..).zip(table.ranks()) {
        let ranks: Vec<u16> = ranks.iter().flatten().copied().collect();
        assert_eq!(ranks.len(), 4);
        assert_eq!(Some(ranks[0]), table.owner(slot));
        let mut others: Vec<u16> = (0..10).filter(|i| !ranks[..2].contains(i)).collect();
        others.sort_by_key(|&i| Reverse(score(&SEED, &table.backends()[usize::from(i)], slot)));
        assert_eq!(ranks[2..], others[..2]);
    }
    let two = Table::build(&pool(2), 40, &SEED);
    for ranks in two.ranks() {
        assert!(ranks[0].is_some() && ranks[1].is_some() && ranks[2..] == [None, None]);
    }
    let none = Table::build(&[], 40, &SEED);
    assert!(none.ranks().all(|ranks| ranks == [None; 4]));
}

#[test]
fn ranks_foresee_who_owns_a_slot_when_its_owner_leaves() {
    for (count, second, any) in
        [(3, 0.92, 1.0), (10, 0.97, 0.99), (100, 0.92, 0.97), (200, 0.93, 0.95)]
    {
        let full = Table::build(&pool(count), table::DEFAULT_SLOTS, &SEED);
        let ranks: Vec<_> = full.ranks().collect();
        let (mut total, mut hits, mut found) = (0.0, 0.0, 0.0);
        for gone in 0..full.backends().len().min(10) {
            let fewer = full.updated(
                &pool(count)
                    .into_iter()
                    .filter(|b| *b != full.backends()[gone])
                    .collect::<Vec<_>>(),
            );
            for (ranks, owner) in
                ranks.iter().zip(owners(&fewer)).filter(|(ranks, _)| ranks[0] == Some(gone as u16))
            {
                let ranked = ranks.map(|rank| rank.map(|i| full.backends()[usize::from(i)]));
                total += 1.0;
                hits += f64::from(u8::from(ranked[1] == owner));
                found += f64::from(u8::from(ranked.contains(&owner)));
            }
        }
        assert!(
            hits / total >= second && found / total >= any,
            "{count}: {} {}",
            hits / total,
            found / total
        );
    }
}

#[test]
fn the_digest_tells_pools_slots_and_seeds_apart() {
    let base = digest(&pool(3), 100, &SEED);
    let mut ported = pool(3);
    ported[1].port = Port::new(80);
    let mut weighted = pool(3);
    weighted[1].weight = NonZeroU16::new(2).unwrap();
    for other in [
        digest(&pool(2), 100, &SEED),
        digest(&ported, 100, &SEED),
        digest(&weighted, 100, &SEED),
        digest(&pool(3), 101, &SEED),
        digest(&pool(3), 100, b"another seed ..."),
        digest(&[], 100, &SEED),
    ] {
        assert_ne!(base, other);
    }
}

/// Tables as hashes of their owners, fixed for good: nodes of different machines and versions must
/// agree.
#[test]
fn tables_equal_the_golden_ones() {
    let seeds: [Seed; 2] = [SEED, [0; 16]];
    let v6 = |n: u16, weight| Backend {
        addr: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n).into(),
        ..backend(0, weight)
    };
    let mixed: Vec<_> =
        (0..12).map(|n| if n % 2 == 0 { v6(n, 1 + n) } else { backend(n.into(), 1 + n) }).collect();
    let heavy: Vec<_> = (0..5).map(|n| backend(n, [1, 3, 1000, 65_535, 7][n as usize])).collect();
    let mut got = Vec::new();
    for seed in &seeds {
        for (name, pool, slots) in [
            ("one", pool(1), 4093),
            ("two", pool(2), 4093),
            ("ten", pool(10), 4093),
            ("hundred", pool(100), 4093),
            ("too many", pool(300), 4093),
            ("few slots", pool(3), 61),
            ("mixed weights and families", mixed.clone(), 4093),
            ("extreme weights", heavy.clone(), 4093),
            ("largest", pool(20), MAX_SLOTS as u16),
        ] {
            let table = Table::build(&pool, slots, seed);
            let bytes: Vec<u8> = owners(&table)
                .iter()
                .flatten()
                .flat_map(|b| [&b.addr.octets()[..], &b.port.get().to_be_bytes()].concat())
                .collect();
            let ranks: Vec<u8> = table
                .ranks()
                .flatten()
                .flat_map(|rank| rank.unwrap_or(u16::MAX).to_be_bytes())
                .collect();
            got.push(format!(
                "{:02x} {name}: owners {:016x} ranks {:016x} digest {:016x}",
                seed[0],
                siphash::hash([0; 2], &bytes),
                siphash::hash([0; 2], &ranks),
                digest(&pool, slots, seed)
            ));
        }
    }
    // A few slots in full, so that a difference can be looked at.
    let table = Table::build(&pool(10), 200, &SEED);
    got.push(format!(
        "first of 200 slots: {:?}",
        (0..40).map(|slot| table.owner(slot).unwrap()).collect::<Vec<_>>()
    ));
    assert_eq!(got.join("\n"), include_str!("table_golden.txt").trim_end());
}
