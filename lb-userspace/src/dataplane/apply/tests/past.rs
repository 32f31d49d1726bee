//! Sets of before and claims.

use std::time::{Duration, Instant};

use lb_common::{
    claim::{Claim, ClaimKey},
    service::flags::{ALWAYS_YOUNG, YOUNG},
    table::Table,
};
use proptest::prelude::*;

use super::*;
use crate::{
    model::Members,
    plan::{
        Changed, History,
        flows::{Claimed, Consensus, Former},
        history::{Rules, epoch},
        owners::{Pool, address},
    },
};

const SEED: [u8; 16] = [7; 16];
const WEB: &str = "192.0.2.1:80";

/// The plan of one frontend, with what stands in its past places.
fn with_past(backends: &[u32], past: &[&[u32]]) -> Desired {
    let all: Vec<u32> = past.iter().copied().flatten().chain(backends).copied().collect();
    let mut plan = plan(&[(WEB, &all)]);
    let web = plan.frontends.get_mut(&key(WEB)).unwrap();
    web.owners = owners_of(backends);
    web.past = past.iter().map(|it| former(it)).collect();
    plan
}

fn former(backends: &[u32]) -> Former {
    let owners = owners_of(backends);
    Former::Owners(epoch(&owners, SLOTS, &SEED), owners)
}

fn record(store: &Fake, at: &str) -> Record {
    *store.record(store.frontends.get(&key(at).endpoint()).unwrap().outside).unwrap()
}

/// Owners of each slot of a table, those that live.
fn slots(store: &Fake, first: u32) -> Vec<Option<SocketAddr>> {
    let slots = store.slots(first, SLOTS).into_iter();
    slots.map(|id| living(store, BackendId(id)).ok()).collect()
}

fn table(backends: &[u32]) -> Vec<Option<SocketAddr>> {
    let pool = Pool::new(owners_of(backends).iter(), SLOTS as u16, &SEED);
    let table = Table::build(&pool.backends, SLOTS as u16, &SEED);
    let owner = |slot| table.owner(slot).map(|at| address(&table.backends()[usize::from(at)]));
    (0..SLOTS as u16).map(owner).collect()
}

/// All that receivers read of a frontend, without the places where it stands.
#[derive(Debug, PartialEq)]
struct Seen {
    owners: Vec<Option<SocketAddr>>,
    past: Vec<Vec<Option<SocketAddr>>>,
    flags: u32,
    epoch: u64,
    claims: BTreeMap<u32, (BTreeSet<SocketAddr>, u32)>,
}

fn seen(store: &Fake) -> BTreeMap<IpAddr, Seen> {
    let seen =
        |(endpoint, frontend): (lb_common::frontend::Endpoint, lb_common::frontend::Frontend)| {
            let record = store.record(frontend.outside).unwrap();
            let claims =
                store.claims.iter().filter(|(key, _)| key.frontend == frontend.outside / 2);
            let claim = |(key, claim): (ClaimKey, Claim)| {
                let ids = claim.backends.into_iter();
                let claimants = ids.filter_map(|id| living(store, id).ok()).collect();
                (key.slot, (claimants, claim.overflow))
            };
            let past = record.past.iter().filter(|first| **first != 0);
            let mut past: Vec<_> = past.map(|first| slots(store, *first)).collect();
            // Whether a table in which nobody lives stands or not makes no difference.
            past.retain(|slots| slots.iter().any(Option::is_some));
            let seen = Seen {
                owners: slots(store, record.owners),
                past,
                flags: record.flags,
                epoch: record.epoch,
                claims: claims.map(claim).collect(),
            };
            (endpoint.addr.to_ip(), seen)
        };
    store.frontends.iter().map(seen).collect()
}

fn claimed(claims: &[(u16, &[u32])]) -> Option<Arc<Claimed>> {
    let mut claimed = Claimed::default();
    for (slot, backends) in claims {
        claimed.slots.insert(*slot, backends.iter().map(|n| backend(*n)).collect());
        for n in *backends {
            let node = if n % 2 == 0 { "here" } else { "there" };
            claimed.flows.insert(backend(*n), (1, node.into()));
        }
    }
    Some(Arc::new(claimed))
}

#[test]
fn a_set_that_was_in_force_stays_where_it_stood() {
    let mut data_plane = data_plane(Fake::new(&LIMITS));
    apply(&mut data_plane, &with_past(&[1, 2, 3], &[]));
    let first = record(data_plane.store(), WEB).owners;
    apply(&mut data_plane, &with_past(&[1, 2], &[&[1, 2, 3]]));
    let second = record(data_plane.store(), WEB);
    assert_eq!(second.past, [first, 0, 0]);
    assert_eq!(slots(data_plane.store(), first), table(&[1, 2, 3]));
    apply(&mut data_plane, &with_past(&[1, 2, 3], &[&[1, 2]]));
    let third = record(data_plane.store(), WEB);
    assert_eq!(
        (third.owners, third.past),
        (first, [second.owners, 0, 0]),
        "and comes back from there"
    );
    // One that others told of is made, with nobody in the slots of those that are unknown here.
    let mut told = with_past(&[1, 2, 3], &[&[1, 2], &[3, 9]]);
    told.backends.remove(&backend(9));
    apply(&mut data_plane, &told);
    let past = slots(data_plane.store(), record(data_plane.store(), WEB).past[1]);
    let known = |owner: Option<SocketAddr>| owner.filter(|it| *it != backend(9));
    assert_eq!(past, table(&[3, 9]).into_iter().map(known).collect::<Vec<_>>());
    apply(&mut data_plane, &Desired::default());
    assert_eq!(data_plane.reserve().filled, 0);
    assert_eq!(data_plane.held.as_ref().unwrap().segments.len(), 0);
}

#[test]
fn ranks_stand_where_nobody_knows_the_sets_of_before() {
    let mut data_plane = data_plane(Fake::new(&LIMITS));
    let mut plan = with_past(&[1, 2, 3, 4, 5], &[]);
    plan.frontends.get_mut(&key(WEB)).unwrap().past = (2..=4).map(Former::Rank).collect();
    apply(&mut data_plane, &plan);
    let pool = Pool::new(owners_of(&[1, 2, 3, 4, 5]).iter(), SLOTS as u16, &SEED);
    let table = Table::build(&pool.backends, SLOTS as u16, &SEED);
    let store = data_plane.store();
    let record = record(store, WEB);
    for (first, rank) in record.past.into_iter().zip(1..) {
        let ranks = table.ranks().map(|ranks| ranks[rank]);
        let owner = ranks.map(|at| at.map(|at| address(&table.backends()[usize::from(at)])));
        assert_eq!(slots(store, first), owner.collect::<Vec<_>>());
    }
}

#[test]
fn tables_of_before_give_way_oldest_first_and_never_cost_one_in_force() {
    let limits = Limits { owner_blocks: 8 * 16 + 1, ..LIMITS };
    let mut data_plane = data_plane(Fake::new(&limits));
    let names = ["192.0.2.1:80", "192.0.2.2:80", "192.0.2.3:80", "192.0.2.4:80"];
    /// A frontend, who owns its slots, and who did before.
    type Sets<'a> = (&'a str, &'a [u32], &'a [&'a [u32]]);
    let site = |sets: &[Sets<'_>]| {
        let mut plan = Desired::default();
        for (name, now, past) in sets {
            let mut one = with_past(now, past);
            let frontend = one.frontends.remove(&key(WEB)).unwrap();
            plan.frontends.insert(key(name), frontend);
            plan.backends.append(&mut one.backends);
            plan.nodes = one.nodes;
        }
        plan
    };
    apply(&mut data_plane, &site(&[(names[0], &[1, 2], &[]), (names[1], &[3, 4], &[])]));
    // Six tables' room is left; half of it is for those of before, with two in force.
    apply(&mut data_plane, &site(&[(names[0], &[1], &[&[1, 2]]), (names[1], &[3, 4], &[])]));
    apply(&mut data_plane, &site(&[(names[0], &[1], &[&[1, 2]]), (names[1], &[3], &[&[3, 4]])]));
    let full = site(&[(names[0], &[1], &[&[1, 2]]), (names[1], &[4], &[&[3], &[3, 4]])]);
    apply(&mut data_plane, &full);
    assert_eq!(data_plane.reserve(), Reserve { room: 48, filled: 48, dropped: 0 });
    // One more in force leaves room for two and a half.
    let mut more = full.clone();
    let third = site(&[(names[2], &[5], &[])]);
    more.frontends.extend(third.frontends);
    more.backends.extend(third.backends);
    apply(&mut data_plane, &more);
    let next = with_past(&[5, 6], &[&[5]]);
    more.frontends.insert(key(names[2]), next.frontends[&key(WEB)].clone());
    more.backends.extend(next.backends);
    apply(&mut data_plane, &more);
    assert_eq!(data_plane.reserve(), Reserve { room: 40, filled: 32, dropped: 2 });
    let past = |at: &str| record(data_plane.store(), at).past.map(|first| first != 0);
    assert_eq!(past(names[0]), [false; 3], "the oldest");
    assert_eq!(past(names[1]), [true, false, false]);
    assert_eq!(past(names[2]), [true, false, false]);
    // Many in force: no room is left for others, and all are served.
    let many: Vec<_> = (0..8).map(|n| format!("192.0.2.{}:80", n + 1)).collect();
    let pools: Vec<_> = (0..8).map(|n| [10 + n, 20 + n]).collect();
    let wide: Vec<_> = many.iter().zip(&pools).map(|(at, pool)| (at.as_str(), &pool[..])).collect();
    let mut wide = plan(&wide);
    for (key, frontend) in &mut wide.frontends {
        frontend.past = more.frontends.get(key).map(|it| it.past.clone()).unwrap_or_default();
    }
    apply(&mut data_plane, &wide);
    assert_eq!(forwarding(data_plane.store()), owners(&wide));
    assert_eq!(data_plane.reserve().filled, 0);
}

#[test]
fn claims_follow_the_plan_and_end_with_their_frontend() {
    let mut data_plane = data_plane(Fake::new(&LIMITS));
    let mut plan = plan(&[(WEB, &[1, 2, 3, 4, 5, 6])]);
    let claims = [(3, &[1][..]), (7, &[1, 2, 3, 4, 5]), (999, &[1]), (9, &[77])];
    plan.frontends.get_mut(&key(WEB)).unwrap().claims = claimed(&claims);
    apply(&mut data_plane, &plan);
    let found = &seen(data_plane.store())[&key(WEB).address].claims;
    // Of five those that follow the last one here, which is the fourth.
    let expected = [(3, ([backend(1)].into(), 0)), (7, ([5, 1, 2, 3].map(backend).into(), 1))];
    assert_eq!(*found, BTreeMap::from(expected), "none of slots or backends that are not here");
    let steps = data_plane.store().steps;
    plan.frontends.get_mut(&key(WEB)).unwrap().claims = claimed(&[(3, &[1, 2])]);
    let frontends = BTreeSet::from([key(WEB)]);
    let scope = Scope::Part { around: false, frontends, backends: BTreeSet::new() };
    assert_eq!(data_plane.apply(&plan, &around(), &scope).unwrap(), []);
    assert_eq!(data_plane.store().steps, steps + 2, "one changed, one gone, no switch");
    apply(&mut data_plane, &Desired::default());
    assert_eq!(data_plane.store().claims.iter().count(), 0);
}

#[test]
fn claims_that_do_not_fit_make_earlier_owners_asked_until_they_do() {
    let mut data_plane = data_plane(Fake::new(&Limits { claims: 2, ..LIMITS }));
    let mut plan = plan(&[(WEB, &[1, 2])]);
    plan.frontends.get_mut(&key(WEB)).unwrap().claims = claimed(&[(1, &[1]), (2, &[1]), (3, &[1])]);
    let problems = data_plane.apply(&plan, &around(), &Scope::All).unwrap();
    assert!(problems[0].message.contains("map CLAIMS is full at 2"), "{problems:?}");
    assert_eq!(record(data_plane.store(), WEB).flags, ALWAYS_YOUNG);
    data_plane.apply(&plan, &around(), &Scope::All).unwrap();
    assert_eq!(record(data_plane.store(), WEB).flags, ALWAYS_YOUNG);
    plan.frontends.get_mut(&key(WEB)).unwrap().claims = claimed(&[(1, &[1]), (3, &[1])]);
    apply(&mut data_plane, &plan);
    assert_eq!(record(data_plane.store(), WEB).flags, 0);
    assert_eq!(data_plane.store().claims.iter().count(), 2);
}

/// An agent's memory over a data plane.
struct Agent {
    history: History,
    plan: Desired,
    data_plane: DataPlane<Fake>,
    now: Instant,
}

impl Agent {
    fn new(store: Fake, now: Instant) -> Self {
        let mut history = History::new(SEED, Rules::default());
        let data_plane = data_plane(store);
        let (left, plan) = data_plane.left(&with_past(&[], &[]).nodes).unwrap();
        history.resume(left, now);
        Self { history, plan, data_plane, now }
    }

    /// A new plan of two frontends, what is claimed, and all maps written; by increments or in full.
    fn turn(&mut self, pools: [&[u32]; 2], consensus: &Arc<Consensus>, full: bool) {
        let mut members = Members::assumed("here", ["here", "there"]);
        members.ready = true;
        let mut next = plan(&[(WEB, pools[0]), ("[2001:db8::1]:80", pools[1])]);
        let before = &self.plan;
        let changed = Changed::Anew(before);
        self.history.remember(&mut next, changed, consensus, &Arc::new(members), self.now);
        let scope = match full || before.nodes.is_empty() {
            true => Scope::All,
            false => Scope::between(before, &next, false),
        };
        self.plan = next;
        assert_eq!(self.data_plane.apply(&self.plan, &around(), &scope).unwrap(), []);
    }
}

fn pool(set: u8) -> Vec<u32> {
    (1..=6).filter(|n| set >> n & 1 == 1).collect()
}

fn consensus(claims: &[(u16, u32)]) -> Arc<Consensus> {
    let claims: Vec<_> = claims.iter().map(|(slot, n)| (*slot, [*n])).collect();
    let claims: Vec<_> = claims.iter().map(|(slot, n)| (*slot, &n[..])).collect();
    let claims = claimed(&claims).map(|claimed| (key(WEB), claimed)).into_iter().collect();
    Arc::new(Consensus { claims, ..Consensus::default() })
}

type Turn = (u8, u8, u64, Vec<(u16, u32)>);

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let claims = prop::collection::vec((0..SLOTS as u16, 1..7u32), 0..4);
    prop::collection::vec((any::<u8>(), any::<u8>(), 0..20_000u64, claims), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn increments_a_resync_and_empty_maps_hold_the_same(turns in turns()) {
        let start = Instant::now();
        // Room for all that is remembered.
        let limits = Limits { owner_blocks: 32 * 16, ..LIMITS };
        let mut stepwise = Agent::new(Fake::new(&limits), start);
        for (a, b, wait, claims) in turns {
            stepwise.now += Duration::from_millis(wait);
            stepwise.turn([&pool(a), &pool(b)], &consensus(&claims), false);
            for store in [stepwise.data_plane.store().clone(), Fake::new(&limits)] {
                let mut other = data_plane(store);
                apply(&mut other, &stepwise.plan);
                prop_assert_eq!(seen(stepwise.data_plane.store()), seen(other.store()));
            }
        }
        stepwise.data_plane.apply(&Desired::default(), &around(), &Scope::All).unwrap();
        stepwise.data_plane.settle();
        let empty = data_plane(Fake::new(&limits));
        let held = Held::read(empty.store()).unwrap();
        let now = stepwise.data_plane.held.as_ref().unwrap();
        prop_assert_eq!(&now.arena, &held.arena, "nothing leaks");
        prop_assert_eq!((now.blocks, now.records.free()), ([0; 2], held.records.free()));
    }

    #[test]
    fn a_new_agent_goes_on_with_what_the_maps_hold(turns in turns()) {
        let mut agent = Agent::new(Fake::new(&LIMITS), Instant::now());
        let mut last = ([Vec::new(), Vec::new()], consensus(&[]));
        for (a, b, wait, claims) in turns {
            agent.now += Duration::from_millis(wait);
            last = ([pool(a), pool(b)], consensus(&claims));
            agent.turn([&last.0[0], &last.0[1]], &last.1, false);
        }
        agent.data_plane.settle();
        let before = seen(agent.data_plane.store());
        let steps = agent.data_plane.store().steps;
        let mut next = Agent::new(agent.data_plane.store().clone(), agent.now);
        next.turn([&last.0[0], &last.0[1]], &last.1, true);
        prop_assert_eq!(&before, &seen(next.data_plane.store()));
        prop_assert!(next.data_plane.store().steps <= steps + 1, "only the uplinks again");
    }

    #[test]
    fn a_stop_after_any_step_is_mended_by_the_next_agent(
        from in (any::<u8>(), any::<u8>()), to in (any::<u8>(), any::<u8>()), stop in 0usize..60,
    ) {
        let now = Instant::now();
        let mut agent = Agent::new(Fake::new(&LIMITS), now);
        agent.turn([&pool(from.0), &pool(from.1)], &consensus(&[(3, 1)]), false);
        let (old, before) = (owners(&agent.plan), agent.plan.clone());
        let steps = agent.data_plane.store().steps;
        let mut straight = Agent { data_plane: data_plane(agent.data_plane.store().clone()), ..agent };
        straight.turn([&pool(to.0), &pool(to.1)], &consensus(&[(5, 2)]), false);
        straight.data_plane.settle();
        let wanted = straight.plan.clone();

        let mut first = data_plane(Fake::new(&LIMITS));
        apply(&mut first, &before);
        let store = Fake { stop_after: Some(steps + stop), steps, ..first.store().clone() };
        let mut stopped = data_plane(store);
        let _ = stopped.apply(&wanted, &around(), &Scope::All);
        let store = Fake { stop_after: None, ..stopped.store().clone() };
        for (at, found) in forwarding(&store) {
            prop_assert!(old.get(&at) == Some(&found) || owners(&wanted).get(&at) == Some(&found));
            let record = store.frontends.iter().find(|(it, _)| it.addr.to_ip() == at.0).unwrap().1;
            let record = store.record(record.outside).unwrap();
            let changed = old.get(&at) != Some(&found);
            prop_assert!(!changed || record.flags & YOUNG != 0, "young from the same switch on");
        }
        let mut next = data_plane(store);
        apply(&mut next, &wanted);
        prop_assert_eq!(seen(next.store()), seen(straight.data_plane.store()));
    }
}
