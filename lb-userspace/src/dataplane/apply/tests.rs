use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_common::{
    backend::BackendId, frontend::filter_position, hop::Hop, net::Addr, service::Record,
};

use super::*;
use crate::{
    dataplane::{
        fake::Fake,
        store::{Step, Store},
    },
    model::{Limits, Protocol},
    plan::{DesiredBackend, DesiredFrontend, DesiredNode, DesiredVip, flows::Owners},
};

const LIMITS: Limits = Limits {
    frontends: 16,
    owner_blocks: 16 * 16,
    backends: 256,
    nodes: 8,
    vips: 16,
    opening: 1,
    established: 1,
    datagrams: 1,
    claims: 256,
    source_ranges: 64,
};
const SLOTS: u32 = 251;

fn key(text: &str) -> FrontendKey {
    let at: SocketAddr = text.parse().unwrap();
    FrontendKey { address: at.ip(), port: at.port(), protocol: Protocol::Tcp }
}

fn backend(n: u32) -> SocketAddr {
    SocketAddr::new(IpAddr::from([10, 0, (n >> 8) as u8, n as u8]), 8080)
}

fn owners_of(backends: &[u32]) -> Arc<Owners> {
    Arc::new(backends.iter().map(|n| (backend(*n), 1)).collect())
}

/// Frontends over backends by number; those with an even number live on this node, `here`.
fn plan(frontends: &[(&str, &[u32])]) -> Desired {
    let mut plan = Desired::default();
    for (name, address) in [("here", "10.9.0.1"), ("there", "10.9.0.2")] {
        let addresses = vec![address.parse().unwrap()];
        plan.nodes.insert(name.into(), DesiredNode { addresses });
    }
    for (at, backends) in frontends {
        let key = key(at);
        let frontend = DesiredFrontend {
            object: format!("object-{at}"),
            slots: SLOTS,
            owners: owners_of(backends),
            inside: None,
            flags: 0,
            ranges: None,
            past: Vec::new(),
            claims: None,
        };
        plan.frontends.insert(key, frontend);
        plan.vips.insert(key.address, DesiredVip { echo: true });
        for n in *backends {
            let node = if n % 2 == 0 { "here" } else { "there" }.to_owned();
            let protocols = BTreeSet::from([Protocol::Tcp]);
            plan.backends.insert(backend(*n), DesiredBackend { node, protocols });
        }
    }
    plan
}

fn around() -> Surroundings {
    let hop = Hop {
        ifindex: 3,
        mtu: 1500,
        source: Addr::from("10.9.0.1".parse::<IpAddr>().unwrap()),
        ..Hop::default()
    };
    Surroundings {
        hops: BTreeMap::from([("there".to_owned(), hop)]),
        mtu: 1500,
        ..Default::default()
    }
}

fn data_plane(store: Fake) -> DataPlane<Fake> {
    DataPlane::new(store, "here", &[7; 16], Box::new(|| Ok(()))).unwrap()
}

/// Applies in full and expects no problem.
fn apply(data_plane: &mut DataPlane<Fake>, plan: &Desired) {
    assert_eq!(data_plane.apply(plan, &around(), &Scope::All).unwrap(), []);
    data_plane.settle();
}

/// Where a client of each VIP ends, as the programs would find it: frontend, its service's slots,
/// and the living backend of each slot.
fn forwarding(store: &Fake) -> BTreeMap<(IpAddr, u16), Result<BTreeSet<SocketAddr>, String>> {
    let mut found = BTreeMap::new();
    for (endpoint, frontend) in store.frontends.iter() {
        let at = (endpoint.addr.to_ip(), endpoint.port.get());
        assert_eq!(store.frontend_of[frontend.outside as usize], endpoint);
        assert_eq!(frontend.inside, frontend.outside + 1);
        let owners = match store.record(frontend.outside) {
            None => Err("no record".into()),
            Some(record) => store
                .slots(record.owners, record.slots)
                .into_iter()
                .map(|id| living(store, BackendId(id)))
                .collect(),
        };
        found.insert(at, owners);
    }
    found
}

fn living(store: &Fake, id: BackendId) -> Result<SocketAddr, String> {
    let backend = &store.backends[id.index() as usize];
    if backend.id != id || id == BackendId::NONE {
        return Err(format!("slot names {id:?}, which does not live"));
    }
    Ok(SocketAddr::new(backend.addr.to_ip(), backend.port.get()))
}

fn owners(plan: &Desired) -> BTreeMap<(IpAddr, u16), Result<BTreeSet<SocketAddr>, String>> {
    let owners = |frontend: &DesiredFrontend| Ok(frontend.owners.keys().copied().collect());
    let frontends = plan.frontends.iter();
    frontends.map(|(key, frontend)| ((key.address, key.port), owners(frontend))).collect()
}

/// Free places of every kind.
fn room(data_plane: &DataPlane<Fake>) -> [usize; 5] {
    let held = data_plane.held.as_ref().unwrap();
    [
        held.arena.free() as usize,
        held.records.free(),
        held.backend_indices.free(),
        held.frontend_numbers.free(),
        held.node_indices.free(),
    ]
}

#[test]
fn what_others_took_is_announced_no_more_until_it_is_again() {
    let [kept, taken] = ["192.0.2.1", "2001:db8::1"].map(|vip| vip.parse::<IpAddr>().unwrap());
    let plan = plan(&[("192.0.2.1:80", &[1]), ("[2001:db8::1]:80", &[1])]);
    let mut around = around();
    around.announced = BTreeMap::from([(kept, 5), (taken, 5)]);
    let mut first = data_plane(Fake::new(&LIMITS));
    first.apply(&plan, &around, &Scope::All).unwrap();
    let mut store = first.store().clone();
    store.yields.put(taken.into(), 1).unwrap();

    let mut second = data_plane(store);
    around.announced = second.announced().unwrap();
    assert_eq!(around.announced, [(kept, 5)].into());
    second.apply(&plan, &around, &Scope::All).unwrap();
    assert_eq!(second.store().yields.iter().count(), 0);
    assert_eq!(second.announced().unwrap(), around.announced, "also after the word is cleared");

    around.announced.insert(taken, 5);
    let scope = Scope::between(&plan, &plan, true);
    second.apply(&plan, &around, &scope).unwrap();
    assert_eq!(second.announced().unwrap(), around.announced);

    // Taken while this agent slept: its own plan shows no difference.
    let mut third = data_plane(second.store().clone());
    third.apply(&plan, &around, &Scope::All).unwrap();
    third.store.yields.put(taken.into(), 2).unwrap();
    third.apply(&plan, &around, &Scope::between(&plan, &plan, false)).unwrap();
    assert_eq!(third.store().yields.iter().count(), 0);
}

#[test]
fn a_plan_is_forwarded_as_it_says() {
    let plan = plan(&[
        ("192.0.2.1:80", &[1, 2, 3]),
        ("[2001:db8::1]:80", &[1, 2, 3]),
        ("192.0.2.1:443", &[4]),
        ("192.0.2.2:80", &[]),
    ]);
    let mut data_plane = data_plane(Fake::new(&LIMITS));
    let mut around = around();
    around.announced = BTreeMap::from([("192.0.2.1".parse().unwrap(), 5)]);
    assert_eq!(data_plane.apply(&plan, &around, &Scope::All).unwrap(), []);

    let store = data_plane.store();
    assert_eq!(forwarding(store), owners(&plan));
    let local: BTreeSet<_> =
        store.locals.iter().map(|(at, id)| (at.addr.to_ip(), living(store, id))).collect();
    let expected = [2, 4].map(|n| (backend(n).ip(), Ok(backend(n))));
    assert_eq!(local, BTreeSet::from(expected));
    let announced: BTreeMap<_, _> =
        store.vips.iter().map(|(vip, value)| (vip.to_ip(), value.announced_on)).collect();
    assert_eq!(announced.len(), 3);
    assert_eq!(announced[&"192.0.2.1".parse::<IpAddr>().unwrap()], 5);
    for (vip, _) in store.vips.iter() {
        let (word, bit) = filter_position(&vip);
        assert_ne!(store.filter[word as usize] & bit, 0);
    }
    let nodes: BTreeSet<_> =
        store.members.iter().map(|(addr, member)| (addr.to_ip(), member.node)).collect();
    assert_eq!(
        nodes,
        BTreeSet::from([("10.9.0.1".parse().unwrap(), 0), ("10.9.0.2".parse().unwrap(), 1)])
    );
    assert_eq!(store.hops[1], around.hops["there"]);
    let record =
        |at: &str| *store.record(store.frontends.get(&key(at).endpoint()).unwrap().inside).unwrap();
    assert_eq!(
        record("192.0.2.1:80").owners,
        record("[2001:db8::1]:80").owners,
        "equal pools share"
    );
    assert_eq!(record("192.0.2.2:80"), Record { owners: 0, ..record("192.0.2.2:80") });
    assert!(store.state[3] > 1300 && store.state[3] == store.state[4] + 20);
}

#[test]
fn sockets_have_a_table_of_their_own_where_packets_stay_local() {
    let mut local = plan(&[("192.0.2.1:80", &[2, 4]), ("192.0.2.2:80", &[1, 2, 3, 4])]);
    let all = local.frontends[&key("192.0.2.2:80")].owners.clone();
    local.frontends.get_mut(&key("192.0.2.1:80")).unwrap().inside = Some(all);
    let mut data_plane = data_plane(Fake::new(&LIMITS));
    apply(&mut data_plane, &local);
    let record = |store: &Fake, at: &str| {
        *store.record(store.frontends.get(&key(at).endpoint()).unwrap().inside).unwrap()
    };
    let one = record(data_plane.store(), "192.0.2.1:80");
    let other = record(data_plane.store(), "192.0.2.2:80");
    assert_eq!((one.inside, other.inside), (other.owners, 0), "equal pools share");
    assert_eq!((one.for_sockets(), other.for_sockets()), (other.owners, other.owners));
    assert_eq!(data_plane.tables_held(), 2);

    // A successor goes on with it, and what nobody wants any more is free again.
    let mut next = self::data_plane(data_plane.store().clone());
    apply(&mut next, &local);
    assert_eq!(record(next.store(), "192.0.2.1:80"), one);
    local.frontends.get_mut(&key("192.0.2.1:80")).unwrap().inside = None;
    local.frontends.remove(&key("192.0.2.2:80"));
    apply(&mut next, &local);
    assert_eq!(record(next.store(), "192.0.2.1:80").inside, 0);
    assert_eq!(next.tables_held(), 1);
}

#[test]
fn a_stop_after_any_step_leaves_a_forwarding_state_that_the_next_agent_completes() {
    let before =
        plan(&[("192.0.2.1:80", &[1, 2, 3]), ("192.0.2.2:80", &[1, 2, 3]), ("192.0.2.3:80", &[7])]);
    let after =
        plan(&[("192.0.2.1:80", &[2, 3, 4]), ("192.0.2.2:80", &[5]), ("192.0.2.4:80", &[2, 8])]);
    let mut start = data_plane(Fake::new(&LIMITS));
    apply(&mut start, &before);
    let start = start.store().clone();

    let mut straight = data_plane(start.clone());
    apply(&mut straight, &after);
    let steps = straight.store().steps - start.steps;
    assert!(steps > 20, "{steps}");
    let (old, new) = (owners(&before), owners(&after));
    for stop in 0..steps {
        let mut store = Fake { stop_after: Some(start.steps + stop), ..start.clone() };
        let mut stopped = data_plane(store);
        stopped.apply(&after, &around(), &Scope::All).unwrap_err();
        store = Fake { stop_after: None, ..stopped.store().clone() };
        for (at, found) in forwarding(&store) {
            let expected = [old.get(&at), new.get(&at)];
            assert!(expected.contains(&Some(&found)), "step {stop}: {at:?} goes to {found:?}");
        }
        for (vip, _) in store.vips.iter() {
            assert!(
                forwarding(&store).keys().any(|(at, _)| *at == vip.to_ip()),
                "step {stop}: {vip:?}"
            );
        }
        let mut next = data_plane(store);
        apply(&mut next, &after);
        assert_eq!(forwarding(next.store()), new, "step {stop}");
        assert_eq!(room(&next), room(&straight), "step {stop}");
    }
}

#[test]
fn a_restart_keeps_every_id_and_writes_nothing_anew() {
    let plan =
        plan(&[("192.0.2.1:80", &[1, 2, 3]), ("192.0.2.2:80", &[1, 2, 3]), ("192.0.2.3:80", &[])]);
    let mut first = data_plane(Fake::new(&LIMITS));
    apply(&mut first, &plan);
    let store = first.store().clone();
    let mut second = data_plane(store.clone());
    apply(&mut second, &plan);
    // The uplinks are not read back but written again.
    assert_eq!(*second.store(), Fake { steps: store.steps + 1, ..store });
    assert_eq!(room(&second), room(&first));
}

#[test]
fn increments_and_a_full_resync_forward_alike() {
    let pools: [&[u32]; 6] = [&[1, 2, 3], &[1, 3], &[1, 3, 4, 5], &[], &[2], &[2, 9]];
    let mut stepwise = data_plane(Fake::new(&LIMITS));
    let mut former = Desired::default();
    for pool in pools {
        let next = plan(&[("192.0.2.1:80", pool), ("192.0.2.2:80", &[1, 2])]);
        let scope = match former == Desired::default() {
            true => Scope::All,
            false => Scope::between(&former, &next, false),
        };
        assert_eq!(stepwise.apply(&next, &around(), &scope).unwrap(), []);
        assert_eq!(forwarding(stepwise.store()), owners(&next));
        former = next;
    }
    stepwise.settle();
    let mut at_once = data_plane(Fake::new(&LIMITS));
    apply(&mut at_once, &former);
    assert_eq!(forwarding(stepwise.store()), forwarding(at_once.store()));
    assert_eq!(room(&stepwise), room(&at_once));
    let tables = |store: &Fake| {
        let owners = |record: &Record| store.slots(record.owners, record.slots);
        let tables = store.frontends.iter().map(|(at, frontend)| {
            let ids = owners(store.record(frontend.outside).unwrap());
            (
                at.addr,
                ids.into_iter().map(|id| living(store, BackendId(id)).unwrap()).collect::<Vec<_>>(),
            )
        });
        tables.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(tables(stepwise.store()), tables(at_once.store()));
}

#[test]
fn what_differs_between_two_plans_is_found_on_both_sides() {
    let old = plan(&[("192.0.2.1:80", &[1]), ("192.0.2.2:80", &[2]), ("192.0.2.4:80", &[4])]);
    let new = plan(&[("192.0.2.2:80", &[2]), ("192.0.2.3:80", &[3]), ("192.0.2.4:80", &[5])]);
    let keys = ["192.0.2.1:80", "192.0.2.3:80", "192.0.2.4:80"].map(key);
    let part = Scope::Part {
        around: true,
        frontends: BTreeSet::from(keys),
        backends: BTreeSet::from([1, 3, 4, 5].map(backend)),
    };
    assert_eq!(Scope::between(&old, &new, false), part);
    let none = Scope::Part { around: false, frontends: BTreeSet::new(), backends: BTreeSet::new() };
    assert_eq!(Scope::between(&old, &old, false), none);
}

#[test]
fn nothing_leaks_when_pools_and_frontends_come_and_go() {
    let all: Vec<u32> = (1..=100).collect();
    let ports: Vec<String> = (0..10).map(|n| format!("192.0.2.{n}:80")).collect();
    let wide: Vec<(&str, &[u32])> = ports.iter().map(|at| (at.as_str(), &all[..10])).collect();
    let mut data_plane = data_plane(Fake::new(&LIMITS));
    let base = plan(&[("192.0.2.1:80", &all[..1])]);
    apply(&mut data_plane, &base);
    let start = room(&data_plane);
    for round in 0..40 {
        for plan in [
            plan(&[("192.0.2.1:80", &[])]),
            plan(&[("192.0.2.1:80", &all[..10])]),
            plan(&[("192.0.2.1:80", &all)]),
            plan(&[("192.0.2.1:80", &all[..10])]),
            plan(&wide),
            Desired::default(),
            base.clone(),
        ] {
            assert_eq!(
                data_plane.apply(&plan, &around(), &Scope::All).unwrap(),
                [],
                "round {round}"
            );
        }
    }
    data_plane.settle();
    assert_eq!(room(&data_plane), start);
    assert_eq!(data_plane.tables_held(), 1);
}

#[test]
fn a_backend_that_returns_gets_a_new_id_also_from_a_new_agent() {
    let with = plan(&[("192.0.2.1:80", &[1, 2])]);
    let without = plan(&[("192.0.2.1:80", &[1])]);
    let mut seen = BTreeSet::new();
    let mut store = Fake::new(&Limits { backends: 3, ..LIMITS });
    for _ in 0..5 {
        let mut agent = data_plane(store);
        apply(&mut agent, &with);
        let held = &agent.held.as_ref().unwrap().backends;
        assert!(seen.insert(held[&backend(2)].id));
        apply(&mut agent, &without);
        store = agent.store().clone();
    }
}

#[test]
fn a_full_map_costs_only_the_object_that_does_not_fit() {
    for (limits, map) in [
        (Limits { backends: 3, ..LIMITS }, "BACKENDS"),
        (Limits { frontends: 2, ..LIMITS }, "SERVICES"),
        (Limits { vips: 2, ..LIMITS }, "VIPS"),
        (Limits { owner_blocks: 2 * 16 + 1, ..LIMITS }, "OWNERS"),
    ] {
        let wanted =
            plan(&[("192.0.2.1:80", &[1]), ("192.0.2.2:80", &[2]), ("192.0.2.3:80", &[3])]);
        let mut data_plane = data_plane(Fake::new(&limits));
        let problems = data_plane.apply(&wanted, &around(), &Scope::All).unwrap();
        assert_eq!(problems.len(), 1, "{map}: {problems:?}");
        let message = &problems[0].message;
        assert!(message.contains(&format!("map {map} is full at")), "{message}");
        let served = forwarding(data_plane.store());
        for at in ["192.0.2.1:80", "192.0.2.2:80"] {
            let key = key(at);
            let at = (key.address, key.port);
            assert_eq!(served.get(&at), owners(&wanted).get(&at), "{map}");
        }
        // Once there is room the third is served too, and the problem is gone.
        let fewer = plan(&[("192.0.2.1:80", &[1]), ("192.0.2.3:80", &[3])]);
        apply(&mut data_plane, &fewer);
        assert_eq!(forwarding(data_plane.store()), owners(&fewer), "{map}");
    }
}

#[test]
fn a_pool_changes_even_when_all_other_blocks_are_used() {
    let limits = Limits { owner_blocks: 3 * 16 + 1, ..LIMITS };
    let mut data_plane = data_plane(Fake::new(&limits));
    let pools: [[u32; 2]; 3] = [[1, 2], [3, 4], [5, 6]];
    for round in 0..20 {
        let pool = |n: usize| &pools[(n + round) % 3][..1 + round % 2];
        let plan = plan(&[("192.0.2.1:80", pool(0)), ("192.0.2.2:80", pool(1))]);
        assert_eq!(data_plane.apply(&plan, &around(), &Scope::All).unwrap(), [], "round {round}");
        assert_eq!(forwarding(data_plane.store()), owners(&plan));
    }
}

/// So many tables that several threads make them, with room for few more than are in force.
#[test]
fn all_tables_change_at_once_with_little_room_to_spare() {
    let limits =
        Limits { frontends: 401, owner_blocks: 16 * 480, backends: 2048, vips: 401, ..LIMITS };
    let mut data_plane = data_plane(Fake::new(&limits));
    let names: Vec<_> = (0..400).map(|n| format!("192.0.{}.{}:80", n / 250, n % 250)).collect();
    let pools: Vec<_> = (0..400).map(|n| [4 * n, 4 * n + 1, 4 * n + 2]).collect();
    let site = |backends: usize| {
        let pools = names.iter().zip(&pools);
        plan(&pools.map(|(name, pool)| (name.as_str(), &pool[..backends])).collect::<Vec<_>>())
    };
    let full = site(3);
    apply(&mut data_plane, &full);
    let room = room(&data_plane);
    let frontends: BTreeSet<_> = full.frontends.keys().copied().collect();
    for backends in [2, 3, 1, 0, 3] {
        let mut plan = site(backends);
        plan.backends = full.backends.clone();
        let scope =
            Scope::Part { around: false, frontends: frontends.clone(), backends: BTreeSet::new() };
        assert_eq!(data_plane.apply(&plan, &around(), &scope).unwrap(), []);
        assert_eq!(forwarding(data_plane.store()), owners(&plan));
        data_plane.settle();
    }
    assert_eq!(self::room(&data_plane), room, "nothing leaks");
}

#[test]
fn slots_are_fixed_for_a_frontends_life() {
    let mut data_plane = data_plane(Fake::new(&LIMITS));
    let mut plan = plan(&[("192.0.2.1:80", &[1, 2])]);
    apply(&mut data_plane, &plan);
    let frontend = plan.frontends.values_mut().next().unwrap();
    frontend.slots = 509;
    Arc::make_mut(&mut frontend.owners).remove(&backend(2));
    let problems = data_plane.apply(&plan, &around(), &Scope::All).unwrap();
    assert!(problems[0].message.contains("keeps its 251"), "{problems:?}");
    assert_eq!(forwarding(data_plane.store()), owners(&plan));
    assert_eq!(data_plane.store().record(2).unwrap().slots, SLOTS);
}

#[test]
fn a_backend_that_moves_keeps_its_id_and_a_way_that_is_lost_is_withdrawn() {
    let mut data_plane = data_plane(Fake::new(&LIMITS));
    let mut plan = plan(&[("192.0.2.1:80", &[1])]);
    apply(&mut data_plane, &plan);
    let before = data_plane.store().backends[1];
    plan.backends.get_mut(&backend(1)).unwrap().node = "here".into();
    apply(&mut data_plane, &plan);
    let after = data_plane.store().backends[1];
    assert_eq!((before.node, after.node, before.id), (1, 0, after.id));
    assert_eq!(data_plane.store().locals.iter().count(), 1);

    let lost = Surroundings { hops: BTreeMap::new(), ..around() };
    data_plane.apply(&plan, &lost, &Scope::All).unwrap();
    assert_eq!(data_plane.store().hops[1].ifindex, 0);
    plan.nodes.remove("there");
    data_plane.apply(&plan, &lost, &Scope::All).unwrap();
    assert_eq!(data_plane.store().members.iter().count(), 1);
    data_plane.store.write(Step::State(0, 1)).unwrap();
    assert_eq!(data_plane.store().state[3], 0, "no other node: no tunnel, no clamp");
}

mod past;
mod ranges;
