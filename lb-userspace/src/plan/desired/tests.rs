use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::{
    config::{Overrides, parse},
    model::{
        Drainable, Drains, Health, Life, MemberState, Pool, PoolMember, Wish, drains::NONE_DRAINED,
    },
    plan::{askers, targets},
};

const EXAMPLE: &str = include_str!("../../../../docs/examples/weir.yaml");

fn intent() -> Intent {
    let overrides = Overrides { node: Some("worker-1".into()), ..Overrides::default() };
    parse(Path::new("weir.yaml"), EXAMPLE, &overrides).unwrap()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn all() -> BTreeSet<String> {
    names(&["master-1", "worker-1", "worker-2"])
}

fn plan(intent: &Intent, verdicts: &Verdicts, alive: &BTreeSet<String>) -> Desired {
    desired(&Inputs { intent, verdicts, members: &members(alive), drained: &NONE_DRAINED })
}

fn members(alive: &BTreeSet<String>) -> Members {
    Members::assumed("worker-1", alive.iter().map(String::as_str))
}

fn target_at(intent: &Intent, address: &str) -> Option<Target> {
    let address = address.parse().unwrap();
    targets(intent).keys().find(|target| target.address == address).map(|found| (**found).clone())
}

fn key(address: &str, port: u16, protocol: Protocol) -> FrontendKey {
    FrontendKey { address: address.parse().unwrap(), port, protocol }
}

fn owners(plan: &Desired, key: FrontendKey) -> Vec<String> {
    plan.frontends[&key].owners.iter().map(|(at, weight)| format!("{at}*{weight}")).collect()
}

const HTTP: (&str, u16, Protocol) = ("198.51.100.2", 80, Protocol::Tcp);

fn http() -> FrontendKey {
    key(HTTP.0, HTTP.1, HTTP.2)
}

#[test]
fn every_address_and_port_is_a_frontend_over_its_family() {
    let plan = plan(&intent(), &Verdicts::new(), &all());
    assert_eq!(plan.problems, []);
    assert_eq!(plan.frontends.len(), 6);
    assert_eq!(owners(&plan, http()), ["10.1.0.10:8080*1", "10.1.1.10:8080*2"]);
    assert_eq!(owners(&plan, key("198.51.100.1", 6443, Protocol::Tcp)), ["192.0.2.11:6443*1"]);
    let v6 = key("2001:db8:1::1", 6443, Protocol::Tcp);
    assert_eq!(owners(&plan, v6), ["[2001:db8::11]:6443*1"]);
    let dns = key("198.51.100.3", 53, Protocol::Udp);
    assert_eq!(plan.frontends[&dns].flags, flags::CLIENT_AFFINITY);
    assert_eq!((plan.frontends[&dns].slots, plan.frontends[&http()].slots), (251, 4093));
    let both = &plan.backends[&"192.0.2.21:53".parse().unwrap()];
    assert_eq!(both.node, "worker-1");
    assert_eq!(both.protocols, BTreeSet::from([Protocol::Tcp, Protocol::Udp]));
}

#[test]
fn source_ranges_are_those_of_the_addresss_family_and_a_family_without_any_is_closed() {
    let mut intent = intent();
    for (list, v4, v6) in [
        (
            &["10.0.0.0/8", "2001:db8::/32", "192.0.2.0/24"][..],
            &["10.0.0.0/8", "192.0.2.0/24"][..],
            &["2001:db8::/32"][..],
        ),
        (&["0.0.0.0/0"], &["0.0.0.0/0"], &[]),
        (&["::/0"], &[], &["::/0"]),
    ] {
        let object = intent.frontends.values().find(|it| it.addresses.len() == 2).unwrap();
        let mut object = FrontendObject::clone(object);
        object.source_ranges = list.iter().map(|text| text.parse().unwrap()).collect();
        let addresses = object.addresses.clone();
        intent.frontends.insert(object.name.as_str().into(), Arc::new(object));
        let plan = plan(&intent, &Verdicts::new(), &all());
        assert_eq!(plan.problems, []);
        for (key, frontend) in &plan.frontends {
            let texts = frontend.ranges.as_ref().map(|ranges| ranges.iter().map(Cidr::to_string));
            let want = if key.address.is_ipv4() { v4 } else { v6 };
            let want = addresses.contains(&key.address).then(|| want.to_vec());
            assert_eq!(
                texts.map(Iterator::collect::<Vec<_>>),
                want.map(|want| want.iter().map(|it| it.to_string()).collect()),
                "{key:?}"
            );
        }
    }
}

#[test]
fn a_target_that_is_down_owns_nothing_and_stays_a_backend() {
    let intent = intent();
    let target = target_at(&intent, "10.1.0.10:8080").unwrap();
    for (health, count) in [(Health::Unknown, 2), (Health::Up, 2), (Health::Down("x".into()), 1)] {
        let plan = plan(&intent, &Verdicts::from([(target.clone(), health)]), &all());
        assert_eq!(plan.frontends[&http()].owners.len(), count);
        assert!(plan.backends.contains_key(&target.address));
    }
}

#[test]
fn a_drained_backend_owns_nothing_and_stays_until_its_deadline() {
    let intent = intent();
    let address: SocketAddr = "10.1.0.10:8080".parse().unwrap();
    let mut drains = Drains::default();
    let mut drain = |what: Drainable, deadline_ms| {
        let wish = Wish { what: what.clone(), drained: true, deadline_ms };
        let order = drains.order(&wish, "a", 0).unwrap();
        drains.hear(&what.to_string(), order).unwrap();
        drains.clone()
    };
    let planned = |intent: &Intent, drains: &Drains, now| {
        let (verdicts, members) = (Verdicts::new(), members(&all()));
        let drained = &drains.at(now);
        desired(&Inputs { intent, verdicts: &verdicts, members: &members, drained })
    };
    let one = drain(Drainable::Backend(address), Some(100));
    let (before, after) = (planned(&intent, &one, 99), planned(&intent, &one, 100));
    for plan in [&before, &after] {
        assert_eq!(
            (owners(plan, http()), plan.problems.len()),
            (vec!["10.1.1.10:8080*2".into()], 0)
        );
    }
    assert!(before.backends.contains_key(&address) && before.over.is_empty());
    assert_eq!((before.ending, after.ending.len()), ([address].into(), 0));
    assert!(!after.backends.contains_key(&address));
    assert_eq!(after.over, BTreeSet::from([address]));

    let both = drain(Drainable::Node("worker-2".into()), None);
    let plan = planned(&intent, &both, 0);
    assert_eq!(owners(&plan, http()), [""; 0]);
    let problem = &plan.problems[0];
    assert!(
        problem.object == "Frontend/apps" && problem.message.contains("drained"),
        "{problem:?}"
    );
    assert_eq!(owners(&plan, key("198.51.100.3", 53, Protocol::Udp)), ["192.0.2.21:53*1"]);
}

#[test]
fn a_member_that_terminates_owns_nothing_and_stays() {
    let mut intent = intent();
    let Pool::Members(pool) = &mut Arc::make_mut(intent.frontends.get_mut("apps").unwrap()).pool
    else {
        panic!()
    };
    pool[0].terminating = true;
    let plan = plan(&intent, &Verdicts::new(), &all());
    assert_eq!(owners(&plan, http()), ["10.1.1.10:8080*2"]);
    assert!(plan.backends.contains_key(&"10.1.0.10:8080".parse().unwrap()));
}

#[test]
fn both_protocols_of_one_server_share_its_target() {
    let intent = intent();
    let found = targets(&intent);
    assert_eq!(found.len(), 8, "{found:#?}");
    let dns = target_at(&intent, "192.0.2.22:53").unwrap();
    assert_eq!(&*found[&dns], "worker-2");
    let down = Verdicts::from([(dns.clone(), Health::Down("refused".into()))]);
    let plan = plan(&intent, &down, &all());
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        assert_eq!(owners(&plan, key("198.51.100.3", 53, protocol)), ["192.0.2.21:53*1"]);
    }
}

#[test]
fn udp_that_nothing_can_probe_is_not_probed() {
    let mut intent = intent();
    let dns = Arc::make_mut(intent.frontends.get_mut("dns").unwrap());
    dns.ports.retain(|port| port.protocol == Protocol::Udp);
    assert_eq!(targets(&intent).len(), 6);
    let dns = Arc::make_mut(intent.frontends.get_mut("dns").unwrap());
    dns.check.as_mut().unwrap().port = Some(8053);
    assert!(target_at(&intent, "192.0.2.22:8053").is_some());
}

#[test]
fn backends_of_dead_nodes_leave_the_owners_and_this_node_never_does() {
    let intent = intent();
    let plan = plan(&intent, &Verdicts::new(), &names(&[]));
    assert_eq!(owners(&plan, http()), ["10.1.0.10:8080*1"], "worker-1 is this node");
    assert_eq!(owners(&plan, key("198.51.100.1", 6443, Protocol::Tcp)), [""; 0]);
    assert_eq!((plan.backends.len(), plan.nodes.len()), (8, 3));
}

#[test]
fn backends_of_a_mute_node_stay_and_those_held_back_own_nothing() {
    let intent = intent();
    let with = |life, serves| {
        let mut members = members(&all());
        let state = MemberState { life, serves, ..MemberState::default() };
        members.nodes.insert("worker-2".into(), state);
        let verdicts = Verdicts::new();
        let plan = desired(&Inputs {
            intent: &intent,
            verdicts: &verdicts,
            members: &members,
            drained: &NONE_DRAINED,
        });
        owners(&plan, http()).len()
    };
    assert_eq!(with(Life::Mute, true), 2);
    assert_eq!(with(Life::Alive, false), 1);
    assert_eq!(with(Life::Dead, false), 1);
}

#[test]
fn a_local_only_pool_has_this_nodes_backends_only_and_says_so() {
    let mut intent = intent();
    Arc::make_mut(intent.frontends.get_mut("apps").unwrap()).local_only = true;
    let plan = plan(&intent, &Verdicts::new(), &all());
    assert_eq!(owners(&plan, http()), ["10.1.0.10:8080*1"], "worker-1 is this node");
    assert_eq!(plan.frontends[&http()].flags, flags::LOCAL_ONLY | flags::ALWAYS_YOUNG);
    assert_eq!(plan.backends.len(), 8, "the others keep their arrivals");
    let inside = plan.frontends[&http()].inside.as_ref().unwrap();
    assert_eq!(inside.len(), 2, "sockets on this node are led to all");
    let members = members(&names(&["worker-1", "worker-2"]));
    let inputs = Inputs {
        intent: &intent,
        verdicts: &Verdicts::new(),
        members: &members,
        drained: &NONE_DRAINED,
    };
    let both = names(&["worker-1", "worker-2"]);
    assert_eq!(holders(&inputs, &askers(&intent)), [(http().address, both)].into());
}

#[test]
fn far_members_own_slots_only_where_no_other_serves() {
    let mut intent = intent();
    let apps = Arc::make_mut(intent.frontends.get_mut("apps").unwrap());
    apps.by_place = true;
    let Pool::Members(pool) = &mut apps.pool else { panic!() };
    pool[0].far = true;
    let near = target_at(&intent, "10.1.1.10:8080").unwrap();
    let down = Verdicts::from([(near, Health::Down("x".into()))]);
    let planned = plan(&intent, &Verdicts::new(), &all());
    assert_eq!(owners(&planned, http()), ["10.1.1.10:8080*2"]);
    assert_eq!(planned.frontends[&http()].flags, flags::ALWAYS_YOUNG);
    assert_eq!(planned.backends.len(), 8, "the others keep their arrivals");
    assert_eq!(owners(&plan(&intent, &down, &all()), http()), ["10.1.0.10:8080*1"]);
}

#[test]
fn more_backends_than_get_slots_are_a_problem_that_names_the_setting() {
    let mut intent = intent();
    let apps = Arc::make_mut(intent.frontends.get_mut("apps").unwrap());
    apps.slots = Some(20);
    let plan = plan(&intent, &Verdicts::new(), &all());
    assert_eq!(plan.problems.len(), 2, "{:?}", plan.problems);
    assert_eq!(plan.problems[0].object, "Frontend/apps");
    assert!(plan.problems[0].message.contains("of 20 slots at most 1"), "{:?}", plan.problems);
    assert!(plan.problems[0].message.contains("spec.slots"));
    assert_eq!(plan.frontends[&http()].owners.len(), 2, "the table builder chooses");
}

#[test]
fn an_address_of_two_objects_echoes_if_one_does() {
    let mut intent = intent();
    let mut other = FrontendObject::clone(&intent.frontends["dns"]);
    other.name = "more".into();
    other.addresses = intent.frontends["apps"].addresses.clone();
    other.echo = false;
    intent.frontends.insert("a".into(), Arc::new(other));
    let plan = plan(&intent, &Verdicts::new(), &all());
    assert_eq!(plan.problems, []);
    assert!(plan.vips[&HTTP.0.parse::<IpAddr>().unwrap()].echo);
}

/// What can be wrong with an object that no file validation saw.
fn spoil(object: &mut FrontendObject, how: usize, taken: IpAddr) {
    match how {
        0 => object.slots = Some(0),
        1 => object.slots = Some(MAX_SLOTS + 1),
        2 => object.addresses = vec!["192.0.2.11".parse().unwrap()],
        3 => object.addresses = vec![taken],
        _ => {
            let member = |port, node: &str| PoolMember {
                address: "10.1.0.10".parse().unwrap(),
                port: Some(port),
                weight: 1,
                node: node.into(),
                terminating: false,
                far: false,
            };
            // A node that is not known, and a backend that lives elsewhere.
            object.pool = Pool::Members(vec![member(1, "nowhere"), member(8080, "master-1")]);
        }
    }
}

proptest! {
    #[test]
    fn a_bad_object_costs_only_itself(how in 0usize..5) {
        let good = intent();
        let mut bad = good.clone();
        let mut object = FrontendObject::clone(&good.frontends["apps"]);
        object.name = "zz".into();
        object.addresses = vec!["198.51.100.77".parse().unwrap()];
        spoil(&mut object, how, HTTP.0.parse().unwrap());
        bad.frontends.insert("zz".into(), Arc::new(object));
        let (good, bad) =
            (plan(&good, &Verdicts::new(), &all()), plan(&bad, &Verdicts::new(), &all()));
        prop_assert!(!bad.problems.is_empty());
        prop_assert!(bad.problems.iter().all(|problem| problem.object == "Frontend/zz"));
        for (key, frontend) in &good.frontends {
            prop_assert_eq!(bad.frontends.get(key), Some(frontend));
        }
        prop_assert_eq!(&good.backends, &bad.backends);
    }

    #[test]
    fn following_verdicts_and_nodes_equals_a_new_plan(
        turns in prop::collection::vec((0usize..64, 0usize..4, any::<bool>()), 1..20),
    ) {
        let (mut intent, mut members) = (intent(), members(&all()));
        Arc::make_mut(intent.frontends.get_mut("dns").unwrap()).local_only = true;
        // Named twice, once by mistake as on another node.
        if let Pool::Members(members) = &mut Arc::make_mut(intent.frontends.get_mut("apps").unwrap()).pool {
            let again = |weight, node: &str| PoolMember { weight, node: node.into(), ..members[0].clone() };
            members.extend([again(0, "worker-1"), again(7, "worker-1"), again(3, "worker-2")]);
            members[0].far = true;
        }
        Arc::make_mut(intent.frontends.get_mut("apps").unwrap()).by_place = true;
        let (askers, mut verdicts) = (askers(&intent), Verdicts::new());
        let mut followed = desired(&Inputs { intent: &intent, verdicts: &verdicts, members: &members, drained: &NONE_DRAINED });
        for (n, health, serves) in turns {
            let turn = verdicts.turn();
            let target = askers.targets.keys().nth(n % askers.targets.len()).unwrap();
            if health < 3 {
                let health = [Health::Unknown, Health::Up, Health::Down("x".into())][health].clone();
                verdicts.insert(target.clone(), health);
            }
            let (name, node) = members.nodes.iter_mut().nth(n % 3).unwrap();
            let (name, was) = (name.clone(), node.serves);
            node.serves = serves;
            let inputs = Inputs { intent: &intent, verdicts: &verdicts, members: &members, drained: &NONE_DRAINED };
            let before = followed.frontends.clone();
            let nodes = (was != serves).then_some(name.as_str()).into_iter();
            let moved = follow(&mut followed, &inputs, &askers, verdicts.since(turn), nodes);
            prop_assert_eq!(&followed, &desired(&inputs));
            let differ = before.iter().filter(|(key, former)| followed.frontends[key] != **former);
            prop_assert_eq!(moved, differ.map(|(key, _)| *key).collect());
        }
    }

    #[test]
    fn order_of_addresses_ports_and_members_does_not_matter(turns in 0usize..4) {
        let good = intent();
        let mut turned = good.clone();
        for (name, object) in &good.frontends {
            let mut object = FrontendObject::clone(object);
            let (addresses, ports) = (object.addresses.len(), object.ports.len());
            object.addresses.rotate_left(turns % addresses);
            object.ports.rotate_left(turns % ports);
            if let Pool::Members(members) = &mut object.pool {
                members.reverse();
            }
            turned.frontends.insert(name.clone(), Arc::new(object));
        }
        prop_assert_eq!(
            plan(&good, &Verdicts::new(), &all()), plan(&turned, &Verdicts::new(), &all())
        );
        prop_assert_eq!(targets(&good), targets(&turned));
    }
}
