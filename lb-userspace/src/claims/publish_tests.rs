use super::*;
use crate::{model::Protocol, plan::flows::Owners};

fn frontend(n: u16) -> FrontendKey {
    FrontendKey { address: [192, 0, 2, 1].into(), port: n, protocol: Protocol::Tcp }
}

fn backend(n: u8) -> SocketAddr {
    ([10, 0, 0, n], 80).into()
}

fn displaced(flows: u64, slots: &[u16]) -> Displaced {
    Displaced { flows, slots: slots.iter().copied().collect() }
}

fn claims(list: &[(u16, u8, u64, &[u16])]) -> Claims {
    let mut claims = Claims::new();
    for (f, b, flows, slots) in list {
        claims.entry(frontend(*f)).or_default().insert(backend(*b), displaced(*flows, slots));
    }
    claims
}

fn lineage(epoch: u64, past: usize) -> Lineage {
    let set = |n| Arc::new(Owners::from([(backend(n), 1)]));
    Lineage { epoch, owners: set(1), past: (0..past).map(|n| set(n as u8 + 2)).collect() }
}

fn members(names: &[&str]) -> Members {
    Members { ready: true, ..Members::assumed(names[0], names.iter().copied()) }
}

#[test]
fn only_what_changed_is_published_and_what_is_untrue_ends() {
    let mut publisher = Publisher::default();
    let first = publisher.claims(&claims(&[(1, 1, 100, &[3]), (2, 1, 1, &[4])]));
    assert_eq!(first.len(), 2);
    assert!(publisher.claims(&claims(&[(1, 1, 95, &[3]), (2, 1, 1, &[4])])).is_empty());
    let key = wire::claim_key(&frontend(1), backend(1));
    // Far fewer flows, another slot, none at all.
    for (now, value) in [
        (displaced(80, &[3]), Some(displaced(80, &[3]))),
        (displaced(80, &[3, 4]), Some(displaced(80, &[3, 4]))),
    ] {
        let now = Claims::from([(frontend(1), [(backend(1), now)].into())]);
        let published = publisher.claims(&now);
        let of_key = published.iter().find(|it| it.0 == key).unwrap();
        assert_eq!(of_key.1.as_deref().and_then(wire::decode_claim), value);
    }
    assert!(publisher.claims_any());
    assert_eq!(publisher.claims(&Claims::new()), [(key, None)]);
    assert!(!publisher.claims_any());
}

#[test]
fn a_view_lists_what_is_recent_and_sums_its_claims() {
    let mut publisher = Publisher::default();
    let said = publisher.claims(&claims(&[(1, 1, 1, &[3]), (1, 2, 1, &[4])]));
    let recent = Recent::from([(frontend(1), lineage(5, 0)), (frontend(2), lineage(6, 1))]);
    let views = publisher.views(&recent);
    let listed: BTreeMap<_, _> =
        views.iter().flat_map(|it| wire::decode_view(it.1.as_ref().unwrap()).unwrap()).collect();
    let digests = said.iter().map(|it| wire::digest(&it.0.name, it.1.as_ref().unwrap()));
    let sum = digests.fold(0, u32::wrapping_add);
    assert_eq!(listed[&frontend(1)], Listing { epoch: 5, sum });
    assert_eq!(listed[&frontend(2)], Listing { epoch: 6, sum: 0 });
    assert!(publisher.views(&recent).is_empty());
    assert!(publisher.views(&Recent::new()).iter().all(|it| it.1.is_none()));
}

#[test]
fn two_members_that_live_tell_each_lineage() {
    let names = ["a", "b", "c", "d", "e"];
    let recent: Recent = (1..100).map(|n| (frontend(n), lineage(5, 1))).collect();
    let tell = |alive: &[&str]| {
        let mut told = BTreeMap::<Key, usize>::new();
        for own in alive {
            let mut members = members(&names);
            members.own = (*own).to_owned();
            for (name, member) in &mut members.nodes {
                member.heard = alive.contains(&name.as_str());
            }
            for (key, value) in Publisher::default().lineages(&recent, &members) {
                assert!(value.is_some());
                *told.entry(key).or_default() += 1;
            }
        }
        told
    };
    for alive in [&names[..], &names[1..], &names[..2]] {
        let told = tell(alive);
        assert_eq!(told.len(), recent.len());
        assert!(told.values().all(|count| *count == TELLERS), "{alive:?}");
    }
    assert!(tell(&["a"]).values().all(|count| *count == 1));
}

#[test]
fn a_lineage_without_past_is_none_and_one_that_is_over_ends() {
    let (mut publisher, members) = (Publisher::default(), members(&["a"]));
    let without = Recent::from([(frontend(1), lineage(5, 0))]);
    assert!(publisher.lineages(&without, &members).is_empty());
    let with = Recent::from([(frontend(1), lineage(5, 2))]);
    assert_eq!(publisher.lineages(&with, &members).len(), 1);
    let over = publisher.lineages(&Recent::new(), &members);
    assert_eq!(over, [(wire::lineage_key(&frontend(1)), None)]);
}

#[test]
fn beyond_the_limit_those_with_the_fewest_flows_are_untold() {
    let mut publisher = Publisher::default();
    let all: Claims = (0..3)
        .map(|port| {
            let of = |n: u32| {
                let address = SocketAddr::new(n.to_be_bytes().into(), 80);
                (address, displaced(1 + u64::from(n % 2 + u32::from(port == 2)), &[1]))
            };
            (frontend(port), (0..CLAIMS_MOST as u32 / 2).map(of).collect())
        })
        .collect();
    assert_eq!(publisher.claims(&all).len(), CLAIMS_MOST);
    assert_eq!(publisher.left_out(), CLAIMS_MOST / 2);
    assert!(
        publisher.claims.values().filter(|said| said.claim.flows == 1).count() < CLAIMS_MOST / 2
    );
}
