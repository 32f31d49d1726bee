use super::*;
use crate::membership::topic::Topic;

fn key(name: u16) -> Key {
    Key::new(Topic::CARD, name.to_be_bytes())
}

/// A board of `own` that listens to a and b.
fn board(own: &str, incarnation: u64) -> Board {
    let mut board = Board::new(own.into(), incarnation);
    board.set_origins(["a", "b"].map(Arc::from).iter());
    board
}

/// Gives `to` what it lacks of `from`, in pieces; returns whether any was a full one.
fn pull(from: &Board, to: &mut Board, budget: usize) -> bool {
    let mut full = false;
    let (wanted, _) = from.wanted(&to.request("a", u64::MAX, true));
    for mut wanted in wanted {
        while let Some(delta) = from.piece(&mut wanted, budget) {
            full |= delta.full;
            to.apply(&delta);
        }
    }
    full
}

fn names(changes: &[Change]) -> Vec<(u16, bool)> {
    let name = |it: &Change| u16::from_be_bytes(it.key.name[..].try_into().unwrap());
    changes.iter().map(|it| (name(it), it.value.is_some())).collect()
}

#[test]
fn delta_beyond_a_gap_counts_but_the_log_stays_behind_until_it_is_closed() {
    let (mut a, mut b) = (board("a", 1), board("b", 1));
    for name in 1..=3 {
        a.publish("", key(name), Some(b"x"));
    }
    let part = |from, to| {
        let delta = a.own_after("", from, 1000).unwrap();
        let items = delta.items.iter().filter(|it| it.version <= to).cloned().collect();
        Delta { to, items, ..delta }
    };
    let (first, second, third) = (part(0, 1), part(1, 2), part(2, 3));
    let outcome = b.apply(&third);
    assert!(outcome.news && outcome.behind);
    assert_eq!(b.behind(), (1 << bucket("a"), None));
    assert!(b.apply(&first).behind);
    assert!(!b.apply(&second).behind, "the range beyond the gap was remembered");
    assert!(!b.apply(&second).news);
    assert_eq!(names(&b.take_changes()), [(3, true), (1, true), (2, true)]);
}

#[test]
fn who_misses_forgotten_ends_gets_everything_once() {
    let (mut a, mut b) = (board("a", 1), board("b", 1));
    let most = TOMBSTONES_MOST as u16;
    for name in 0..most + 10 {
        a.publish("", key(name), Some(b"x"));
    }
    a.settle();
    assert!(!pull(&a, &mut b, 1000));
    assert_eq!(b.take_changes().len(), TOMBSTONES_MOST + 10);
    for name in 0..most + 5 {
        a.publish("", key(name), None);
    }
    assert_eq!(a.size().0, TOMBSTONES_MOST + 5, "older ends are forgotten");
    assert!(pull(&a, &mut b, 1000));
    let gone = names(&b.take_changes());
    assert_eq!(gone.len(), TOMBSTONES_MOST + 5);
    assert!(gone.iter().all(|(_, there)| !there));
    assert!(!pull(&a, &mut b, 1000), "complete");
    assert!(b.get("a", &key(most + 5)).is_some());
    // Whoever passes it on has forgotten them as well.
    let mut late = board("c", 1);
    assert!(pull(&b, &mut late, 1000));
    assert_eq!(late.take_changes().len(), 5);
}

#[test]
fn relayed_log_is_never_told_further_than_it_is_complete() {
    let (mut a, mut b) = (board("a", 1), board("b", 1));
    for name in 1..=3 {
        a.publish("", key(name), Some(b"x"));
    }
    let last = a.own_after("", 2, 1000).unwrap();
    b.apply(&last);
    let mut c = board("c", 1);
    pull(&b, &mut c, 1000);
    assert!(c.take_changes().is_empty());
    pull(&a, &mut b, 1000);
    pull(&b, &mut c, 1000);
    assert_eq!(c.take_changes().len(), 3);
}

#[test]
fn old_incarnation_is_not_heard_any_more() {
    let (mut old, mut new, mut b) = (board("a", 1), board("a", 2), board("b", 1));
    old.publish("", key(1), Some(b"old"));
    new.publish("", key(1), Some(b"new"));
    b.apply(&new.own_after("", 0, 1000).unwrap());
    assert_eq!(b.apply(&old.own_after("", 0, 1000).unwrap()), Outcome::default());
    assert_eq!(b.get("a", &key(1)).unwrap()[..], *b"new");
    let outcome = old.apply(&new.own_after("", 0, 1000).unwrap());
    assert_eq!(outcome.outlived, Some(2));
    old.rebase(3);
    assert!(b.apply(&old.own_after("", 0, 1000).unwrap()).news);
    assert_eq!(b.get("a", &key(1)).unwrap()[..], *b"old");
}

#[test]
fn nonsense_of_members_changes_nothing() {
    let (mut a, mut b) = (board("a", 1), board("b", 1));
    a.publish("", key(1), Some(b"x"));
    let good = a.own_after("", 0, 1000).unwrap();
    for bad in [
        Delta { from: 2, to: 1, ..good.clone() },
        Delta { latest: 0, ..good.clone() },
        Delta { latest: u64::MAX, ..good.clone() },
        Delta { incarnation: INCARNATION_END, ..good.clone() },
        Delta { origin: "stranger", ..good.clone() },
    ] {
        assert!(!b.apply(&bad).news, "{bad:?}");
    }
    let beyond = Item { version: 9, ..good.items[0].clone() };
    b.apply(&Delta { items: vec![beyond], ..good });
    assert!(b.take_changes().is_empty());
    for mark in
        [Mark { incarnation: u64::MAX, version: 1 }, Mark { incarnation: 1, version: u64::MAX }]
    {
        assert!(!b.tell(&Have { origin: "a".into(), log: String::new(), mark }).news);
        assert_eq!(a.tell(&Have { origin: "a".into(), log: String::new(), mark }).outlived, None);
    }
}

#[test]
fn origin_beyond_its_limits_is_cut_there() {
    let mut a = board("a", 1);
    let value = vec![0; VALUE_MOST];
    let fits = BYTES_MOST / (VALUE_MOST + ENTRY_COST + 2);
    for name in 0..fits as u16 {
        assert!(a.publish("", key(name), Some(&value)));
    }
    assert!(!a.publish("", key(u16::MAX), Some(&value)));
    assert!(!a.publish("pool", key(u16::MAX), Some(&value)), "all logs count together");
    assert!(a.publish("", key(0), None));
    assert!(a.publish("", key(u16::MAX), Some(&value)));
    assert_eq!(a.refused(), 2);
}

/// Hashes and what is behind, counted anew.
fn counted(board: &Board) -> ([u64; BUCKETS], (u64, Option<&Arc<str>>)) {
    let (mut hashes, mut buckets, mut source) = ([0u64; BUCKETS], 0, None);
    for (name, origin) in &board.origins {
        for (audience, log) in &origin.logs {
            if !audience.is_empty() {
                source = if log.is_behind() { Some(name) } else { source };
                continue;
            }
            let sum = &mut hashes[bucket(name)];
            *sum = sum.wrapping_add(hash(name, "", log.mark()));
            buckets |= u64::from(log.is_behind()) << bucket(name);
        }
    }
    (hashes, (buckets, source))
}

#[test]
fn sums_are_what_counting_all_logs_gives_whatever_happens() {
    let (mut a, mut b) = (board("a", 1), board("b", 1));
    let audience = ["", "pool", "other"];
    let mut random = 7u64;
    let mut below = move |most: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % most
    };
    let mut was_behind = [false; 2];
    for step in 2..5000 {
        let log = audience[below(3) as usize];
        match below(40) {
            0 => a.rebase(step),
            1 => a.settle(),
            2 => {
                a.end_audience(log);
            }
            3 => b.keep_audiences("a", &["pool"]),
            4 => b.set_origins([Arc::from("c")].iter()),
            5..8 => b.set_origins(["a", "c"].map(Arc::from).iter()),
            8..10 => {
                pull(&a, &mut b, 200);
            }
            10..13 => {
                let mark = a.own_mark(log).unwrap_or_default();
                b.tell(&Have { origin: "a".into(), log: log.into(), mark });
            }
            13..22 => {
                // Some are lost, so gaps come and go.
                let version = a.own_mark(log).map_or(0, |mark| mark.version);
                if let Some(delta) = a.own_after(log, version.saturating_sub(below(3)), 1000) {
                    b.apply(&delta);
                }
            }
            _ => {
                let value = (below(3) > 0).then_some(b"x".as_slice());
                a.publish(log, key(below(9) as u16), value);
            }
        }
        for board in [&a, &b] {
            assert_eq!((board.hashes(), board.behind()), counted(board), "step {step}");
        }
        let (buckets, source) = b.behind();
        was_behind = [was_behind[0] || buckets != 0, was_behind[1] || source.is_some()];
    }
    assert_eq!(was_behind, [true, true], "the steps reach what they should");
}
