use super::*;
use crate::{
    claims::publish::{Claims, Publisher, Recent, heard},
    model::Protocol,
    plan::flows::Owners,
};

fn frontend(n: u16) -> FrontendKey {
    FrontendKey { address: [192, 0, 2, 1].into(), port: n, protocol: Protocol::Tcp }
}

fn backend(n: u8) -> SocketAddr {
    ([10, 0, 0, n], 80).into()
}

fn claims(list: &[(u16, u8, &[u16])]) -> Claims {
    let mut claims = Claims::new();
    for (f, b, slots) in list {
        let displaced =
            Displaced { flows: slots.len() as u64, slots: slots.iter().copied().collect() };
        claims.entry(frontend(*f)).or_default().insert(backend(*b), displaced);
    }
    claims
}

fn set(list: &[u8]) -> Arc<Owners> {
    Arc::new(list.iter().map(|n| (backend(*n), 1)).collect())
}

fn lineage(epoch: u64, owners: &[u8], past: &[&[u8]]) -> Lineage {
    Lineage { epoch, owners: set(owners), past: past.iter().map(|it| set(it)).collect() }
}

fn members(dead: &[&str]) -> Members {
    let mut members = Members::assumed("a", ["a", "b", "c"]);
    for name in dead {
        members.nodes.get_mut(*name).unwrap().life = Life::Dead;
    }
    members
}

/// What members publish, and what node `a` makes of it.
struct Bench {
    fold: Fold,
    consensus: Arc<Consensus>,
}

impl Bench {
    fn new() -> Self {
        Self { fold: Fold::new("a".into()), consensus: Arc::default() }
    }

    fn hear(&mut self, origin: &str, publications: &[crate::membership::Publication]) {
        let origin: Arc<str> = origin.into();
        publications.iter().for_each(|it| self.fold.on_change(&heard(&origin, it)));
        self.consensus = self.fold.take().unwrap_or(self.consensus.clone());
    }

    fn slot(&self, f: u16, slot: u16) -> Vec<SocketAddr> {
        let claimed = self.consensus.claims.get(&frontend(f));
        let backends = claimed.and_then(|it| it.slots.get(&slot));
        backends.into_iter().flatten().copied().collect()
    }

    fn view(&self, member: &str, f: u16) -> Option<u64> {
        self.consensus.views.get(member)?.get(&frontend(f)).copied()
    }
}

#[test]
fn claims_of_all_members_add_up_and_end_one_by_one() {
    let (mut bench, mut a, mut b) = (Bench::new(), Publisher::default(), Publisher::default());
    bench.hear("a", &a.claims(&claims(&[(1, 1, &[3, 4])])));
    bench.hear("b", &b.claims(&claims(&[(1, 2, &[4]), (2, 2, &[9])])));
    assert_eq!(bench.slot(1, 3), [backend(1)]);
    assert_eq!(bench.slot(1, 4), [backend(1), backend(2)]);
    assert_eq!(bench.slot(2, 9), [backend(2)]);
    let flows = &bench.consensus.claims[&frontend(1)].flows;
    assert_eq!(flows[&backend(1)], (2, "a".into()));

    let untouched = bench.consensus.claims[&frontend(2)].clone();
    bench.hear("a", &a.claims(&Claims::new()));
    assert_eq!(bench.slot(1, 4), [backend(2)]);
    assert!(Arc::ptr_eq(&untouched, &bench.consensus.claims[&frontend(2)]));
    bench.hear("b", &b.claims(&Claims::new()));
    assert!(bench.consensus.claims.is_empty());
    assert!(bench.fold.claims.is_empty() && bench.fold.views["b"].sums.is_empty());
}

#[test]
fn claims_of_the_dead_do_not_count_until_they_are_back() {
    let (mut bench, mut b) = (Bench::new(), Publisher::default());
    bench.hear("b", &b.claims(&claims(&[(1, 2, &[4])])));
    let mut mute = members(&[]);
    mute.nodes.get_mut("b").unwrap().life = Life::Mute;
    for (members, counts) in [
        (mute, true),
        (members(&["b"]), false),
        (members(&["b", "c"]), false),
        (members(&[]), true),
    ] {
        bench.fold.set_members(&members);
        bench.hear("c", &[]);
        assert_eq!(!bench.slot(1, 4).is_empty(), counts);
    }
}

#[test]
fn a_view_counts_once_the_claims_that_belong_to_it_have_arrived() {
    let (mut bench, mut b) = (Bench::new(), Publisher::default());
    let claims_of_b = b.claims(&claims(&[(1, 2, &[4]), (1, 3, &[5])]));
    let recent =
        Recent::from([(frontend(1), lineage(7, &[1], &[])), (frontend(2), lineage(8, &[1], &[]))]);
    bench.hear("b", &b.views(&recent));
    assert_eq!((bench.view("b", 1), bench.view("b", 2)), (None, Some(8)));
    bench.hear("b", &claims_of_b[..1]);
    assert_eq!(bench.view("b", 1), None);
    bench.hear("b", &claims_of_b[1..]);
    assert_eq!(bench.view("b", 1), Some(7));

    // What the claims become later does not matter to this epoch, but to the next.
    let later = b.claims(&claims(&[(1, 3, &[6])]));
    bench.hear("b", &later[..1]);
    assert_eq!(bench.view("b", 1), Some(7));
    let recent = Recent::from([(frontend(1), lineage(9, &[1], &[]))]);
    bench.hear("b", &b.views(&recent));
    assert_eq!((bench.view("b", 1), bench.view("b", 2)), (None, None));
    bench.hear("b", &later[1..]);
    assert_eq!(bench.view("b", 1), Some(9));
    bench.hear("b", &b.views(&Recent::new()));
    assert_eq!(bench.view("b", 1), None);
}

#[test]
fn the_longest_lineage_of_the_epoch_in_force_here_counts() {
    let mut bench = Bench::new();
    let all = members(&[]);
    let told = |lineage: Lineage| {
        let recent = Recent::from([(frontend(1), lineage)]);
        Publisher::default().lineages(&recent, &Members { own: "a".into(), ..Members::default() })
    };
    bench.fold.set_members(&all);
    bench.hear("b", &told(lineage(7, &[1, 2], &[&[1]])));
    bench.hear("c", &told(lineage(7, &[1, 2], &[&[1], &[1, 3]])));
    assert!(bench.consensus.lineages.is_empty());
    let recent = Recent::from([(frontend(1), lineage(7, &[1, 2], &[]))]);
    bench.fold.set_recent(&Arc::new(recent));
    bench.hear("a", &told(lineage(7, &[1, 2], &[&[1], &[2], &[3]])));
    assert_eq!(bench.consensus.lineages[&frontend(1)], lineage(7, &[1, 2], &[&[1], &[1, 3]]));
    bench.hear("c", &[(wire::lineage_key(&frontend(1)), None)]);
    assert_eq!(bench.consensus.lineages[&frontend(1)], lineage(7, &[1, 2], &[&[1]]));
    bench.fold.set_recent(&Arc::new([(frontend(1), lineage(8, &[1], &[]))].into()));
    bench.hear("b", &[]);
    assert!(bench.consensus.lineages.is_empty());
}

#[test]
fn what_makes_no_sense_is_counted_and_ends_what_it_replaces() {
    let (mut bench, mut b) = (Bench::new(), Publisher::default());
    bench.hear("b", &b.claims(&claims(&[(1, 2, &[4])])));
    let key = wire::claim_key(&frontend(1), backend(2));
    bench.hear("b", &[(key, Some(b"\x07nonsense".to_vec()))]);
    assert!(bench.slot(1, 4).is_empty());
    for topic in [Topic::CLAIM, Topic::VIEW, Topic::LINEAGE] {
        bench.hear("b", &[(crate::membership::Key::new(topic, "?!"), Some(b"x".to_vec()))]);
    }
    assert_eq!((bench.fold.take_malformed(), bench.fold.take_malformed()), (4, 0));
}

/// After a drain of many.
#[test]
fn a_hundred_thousand_slots_fold_fast() {
    let (mut bench, mut b) = (Bench::new(), Publisher::default());
    let slots: Vec<u16> = (0..4000).collect();
    let list: Vec<_> = (0..25).map(|n| (1, n, &slots[..])).collect();
    let published = b.claims(&claims(&list));
    let start = std::time::Instant::now();
    bench.hear("b", &published);
    println!("100,000 claimed slots folded in {:?}", start.elapsed());
    assert_eq!(bench.slot(1, 7).len(), 25);
}
