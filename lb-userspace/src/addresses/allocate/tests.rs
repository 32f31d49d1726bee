use super::*;
use crate::{
    addresses::{Audience, NotFor, Selector, Wishes},
    model::Protocol,
};

pub(super) fn pool(name: &str, ranges: &[&str]) -> Pool {
    Pool {
        name: name.into(),
        created: 0,
        ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
        auto: true,
        priority: 0,
        avoid_buggy: false,
        audience: Audience::default(),
    }
}

pub(super) fn port(number: u16) -> Port {
    Port { number, protocol: Protocol::Tcp }
}

/// A Service of IPv4 with port 80; `created` is its age.
pub(super) fn service(name: &str, created: i64) -> Service {
    Service {
        name: ServiceName { namespace: "shop".into(), name: name.into() },
        created,
        labels: Labels::new(),
        held: BTreeMap::new(),
        wishes: Wishes::default(),
        policy: FamilyPolicy::SingleStack,
        families: vec![Family::V4],
        ports: [port(80)].into(),
        ending: false,
    }
}

trait With: Sized {
    fn holds(self, addresses: &[&str]) -> Self;
    fn asks(self, addresses: &[&str]) -> Self;
    fn of_pool(self, pool: &str) -> Self;
    fn key(self, key: &str) -> Self;
    fn ports(self, ports: &[u16]) -> Self;
    fn dual(self, policy: FamilyPolicy) -> Self;
}

impl With for Service {
    fn holds(mut self, addresses: &[&str]) -> Self {
        let ports = self.ports.clone();
        self.held = addresses.iter().map(|held| (held.parse().unwrap(), ports.clone())).collect();
        self
    }
    fn asks(mut self, addresses: &[&str]) -> Self {
        self.wishes.addresses = addresses.iter().map(|asked| asked.parse().unwrap()).collect();
        self
    }
    fn of_pool(mut self, pool: &str) -> Self {
        self.wishes.pool = Some(pool.into());
        self
    }
    fn key(mut self, key: &str) -> Self {
        self.wishes.sharing_key = Some(key.into());
        self
    }
    fn ports(mut self, ports: &[u16]) -> Self {
        self.ports = ports.iter().map(|number| port(*number)).collect();
        self
    }
    fn dual(mut self, policy: FamilyPolicy) -> Self {
        (self.policy, self.families) = (policy, Family::BOTH.to_vec());
        self
    }
}

fn run(pools: &[Pool], services: &[Service]) -> Allocation {
    run_with(pools, services, &[])
}

fn run_with(pools: &[Pool], services: &[Service], reserved: &[(&str, &str)]) -> Allocation {
    let reserved = reserved.iter().map(|(at, by)| (at.parse().unwrap(), by.to_string())).collect();
    let namespaces = [("shop".into(), [("team".into(), "a".into())].into())].into();
    allocate(&Inputs { pools, services, namespaces: &namespaces, reserved: &reserved })
}

impl Allocation {
    fn of(&self, name: &str) -> &Assignment {
        &self.services[&ServiceName { namespace: "shop".into(), name: name.into() }]
    }
    fn addresses(&self, name: &str) -> Vec<String> {
        self.of(name).addresses.iter().map(|given| given.address.to_string()).collect()
    }
    fn refused(&self, name: &str) -> String {
        let refused: Vec<_> = self.of(name).refused.iter().map(Refusal::to_string).collect();
        refused.join("; ")
    }
    fn kept(&self, name: &str) -> String {
        let kept: Vec<_> = self.of(name).kept.iter().map(Kept::to_string).collect();
        kept.join("; ")
    }
}

#[test]
fn the_older_service_gets_the_lower_address() {
    let pools = [pool("public", &["192.0.2.8/30"])];
    let out = run(&pools, &[service("b", 2), service("a", 3), service("c", 1)]);
    let got = ["c", "b", "a"].map(|name| out.addresses(name));
    assert_eq!(got, [["192.0.2.8"], ["192.0.2.9"], ["192.0.2.10"]]);
    assert_eq!(out.of("c").addresses[0].pool.as_deref(), Some("public"));
    let used = &out.pools["public"];
    assert_eq!((used.v4, used.services), (Usage { total: 4, used: 3 }, 3));
}

#[test]
fn pools_are_tried_by_priority_then_selectivity_then_name() {
    let for_shop = Audience { namespaces: ["shop".into()].into(), ..Audience::default() };
    let mut pools = [
        pool("a", &["192.0.2.1"]),
        Pool { audience: for_shop, ..pool("z", &["192.0.2.2"]) },
        Pool { priority: 1, ..pool("first", &["192.0.2.3"]) },
        Pool { auto: false, priority: 9, ..pool("asked", &["192.0.2.4"]) },
        pool("b", &["192.0.2.5"]),
    ];
    let services: Vec<_> = (1..6).map(|age| service(&format!("s{age}"), age)).collect();
    for _ in 0..2 {
        let out = run(&pools, &services);
        let got: Vec<_> = services.iter().map(|s| out.addresses(&s.name.name)).collect();
        assert_eq!(got, [&["192.0.2.3"][..], &["192.0.2.2"], &["192.0.2.1"], &["192.0.2.5"], &[]]);
        assert_eq!(
            out.refused("s5"),
            "every IPv4 address of AddressPools first, z, a, b is in use"
        );
        pools.reverse();
    }
}

/// Rows: what a Service asks for in vain, and what it is told.
#[test]
fn what_cannot_be_given_says_precisely_why() {
    let labelled = Selector { labels: [("tier".into(), "web".into())].into(), expressions: vec![] };
    let ops = Audience { namespaces: ["ops".into()].into(), ..Audience::default() };
    let web = Audience { service_selectors: vec![labelled], ..Audience::default() };
    let pools = [
        Pool { audience: ops, ..pool("ops", &["192.0.2.0/28", "2001:db8::/126"]) },
        Pool { audience: web, ..pool("web", &["192.0.2.16/28"]) },
        Pool { auto: false, ..pool("asked", &["192.0.2.32/28"]) },
        pool("tiny", &["192.0.2.48"]),
    ];
    let holder = service("holder", 9).holds(&["192.0.2.48"]).key("k");
    let s = || service("s", 1);
    for (asks, says, word) in [
        (
            s(),
            "no AddressPool gives this Service an IPv4 address: ops is not for this namespace; web is not for Services with these labels; asked is given by request only",
            "",
        ),
        (
            s().of_pool("tiny"),
            "every IPv4 address of AddressPool tiny is in use",
            "AddressPoolExhausted",
        ),
        (s().of_pool("gone"), "there is no AddressPool gone", "UnknownAddressPool"),
        (
            s().of_pool("ops"),
            "no AddressPool gives this Service an IPv4 address: ops is not for this namespace",
            "AddressPoolNotPermitted",
        ),
        (
            s().asks(&["192.0.2.48"]),
            "the requested 192.0.2.48 is held by Service shop/holder; both need the same weir.dev/sharing-key to share it",
            "AddressTaken",
        ),
        (s().asks(&["192.0.2.48"]).key("other"), "held by Service shop/holder", "AddressTaken"),
        (
            s().asks(&["192.0.2.48"]).key("k"),
            "port 80/TCP of the shared 192.0.2.48 is Service shop/holder's",
            "PortTaken",
        ),
        (
            s().asks(&["192.0.2.49"]),
            "the requested 192.0.2.49 is in no AddressPool",
            "AddressNotInPool",
        ),
        (
            s().asks(&["192.0.2.33"]).of_pool("tiny"),
            "192.0.2.33 is not in the requested AddressPool tiny",
            "AddressNotInPool",
        ),
        (
            s().asks(&["192.0.2.1"]),
            "the requested 192.0.2.1 is of AddressPool ops, which is not for this namespace",
            "AddressPoolNotPermitted",
        ),
        (
            s().asks(&["192.0.2.17"]),
            "192.0.2.17 is of AddressPool web, which is not for Services with these labels",
            "AddressPoolNotPermitted",
        ),
        (
            s().asks(&["192.0.2.34"]),
            "the requested 192.0.2.34 is an address of Frontend api",
            "AddressTaken",
        ),
        (
            s().asks(&["192.0.2.35", "192.0.2.36"]),
            "several IPv4 addresses are requested",
            "InvalidAddressRequest",
        ),
        (
            s().asks(&["2001:db8::1"]),
            "2001:db8::1 is requested, but the Service has no IPv6 cluster address",
            "InvalidAddressRequest",
        ),
        (s().ports(&[]), "no TCP or UDP port", "NoServedPort"),
        (
            Service { families: vec![Family::V6], ..s().of_pool("web") },
            "no AddressPool has IPv6 addresses",
            "NoAddressPool",
        ),
    ] {
        let out = match says.contains("tiny is in use") || !word.is_empty() {
            true => run_with(&pools, &[asks, holder.clone()], &[("192.0.2.34", "Frontend api")]),
            false => run(&pools[..3], &[asks]),
        };
        assert!(out.refused("s").contains(says), "{says}: {}", out.refused("s"));
        assert!(out.addresses("s").is_empty(), "{says}");
        assert!(word.is_empty() || out.of("s").refused[0].reason() == word, "{says}: {word}");
    }
    assert_eq!(run(&[], &[s()]).refused("s"), "there is no AddressPool: create one");
}

#[test]
fn an_unreadable_request_gives_nothing() {
    let mut asks = service("s", 1);
    asks.wishes.unreadable = vec!["192.0.2".into()];
    let out = run(&[pool("public", &["192.0.2.0/24"])], &[asks]);
    assert_eq!(out.refused("s"), "the requested \"192.0.2\" is no address");
}

#[test]
fn a_request_is_met_from_any_permitted_pool_and_wins_over_older_services_without_one() {
    let pools = [pool("a", &["192.0.2.0/30"]), Pool { auto: false, ..pool("b", &["192.0.2.4"]) }];
    let out = run(
        &pools,
        &[
            service("old", 1),
            service("asks", 2).asks(&["192.0.2.0"]),
            service("asks-b", 3).asks(&["192.0.2.4"]),
            service("of-b", 4).of_pool("b"),
        ],
    );
    assert_eq!(out.addresses("asks"), ["192.0.2.0"]);
    assert_eq!(out.addresses("old"), ["192.0.2.1"]);
    assert_eq!(out.addresses("asks-b"), ["192.0.2.4"]);
    assert_eq!(out.refused("of-b"), "every IPv4 address of AddressPool b is in use");
}

#[test]
fn of_two_that_ask_for_one_address_the_older_has_it_unless_the_younger_holds_it() {
    let pools = [pool("a", &["192.0.2.0/30"])];
    let (old, young) = (service("old", 1), service("young", 2));
    let asks = |service: Service| service.asks(&["192.0.2.1"]);
    let out = run(&pools, &[asks(young.clone()), asks(old.clone())]);
    assert_eq!(out.addresses("old"), ["192.0.2.1"]);
    assert!(out.refused("young").contains("held by Service shop/old"));
    let out = run(&pools, &[asks(young).holds(&["192.0.2.1"]), asks(old)]);
    assert_eq!(out.addresses("young"), ["192.0.2.1"]);
    assert!(out.refused("old").contains("held by Service shop/young"));
}

#[test]
fn held_addresses_stay_whatever_becomes_of_pools_and_it_is_told() {
    let held = service("s", 1).holds(&["192.0.2.9"]);
    let nobody = Audience { namespaces: ["ops".into()].into(), ..Audience::default() };
    for (pools, service, says) in [
        (vec![], held.clone(), "192.0.2.9 is in no AddressPool any more; it is kept"),
        (vec![pool("a", &["192.0.2.0/29"])], held.clone(), "in no AddressPool any more"),
        (
            vec![Pool { audience: nobody, ..pool("a", &["192.0.2.0/28"]) }],
            held.clone(),
            "is kept, although AddressPool a is not for this namespace",
        ),
        (
            vec![pool("a", &["192.0.2.0/28"]), pool("b", &["198.51.100.0/28"])],
            held.clone().of_pool("b"),
            "192.0.2.9 of AddressPool a is kept, although b is requested",
        ),
        (vec![Pool { auto: false, ..pool("a", &["192.0.2.0/28"]) }], held.clone(), ""),
        (vec![Pool { avoid_buggy: true, ..pool("a", &["192.0.2.0/28"]) }], held.clone(), ""),
    ] {
        let out = run(&pools, &[service]);
        assert_eq!(out.addresses("s"), ["192.0.2.9"], "{says}");
        assert!(out.kept("s").contains(says) && out.kept("s").is_empty() == says.is_empty());
        assert!(out.of("s").refused.is_empty(), "{says}");
    }
    let pools = [pool("a", &["192.0.2.0/28"])];
    let out = run_with(&pools, &[held], &[("192.0.2.9", "Node m1")]);
    assert_eq!(out.kept("s"), "192.0.2.9 is an address of Node m1 too; it is kept");
}

#[test]
fn a_request_for_another_address_moves_once_that_can_be_had() {
    let pools = [pool("a", &["192.0.2.0/28"])];
    let moving = service("s", 1).holds(&["192.0.2.1"]).asks(&["192.0.2.2"]);
    let blocker = service("blocker", 2).holds(&["192.0.2.2"]);
    let out = run(&pools, &[moving.clone(), blocker]);
    assert_eq!(out.addresses("s"), ["192.0.2.1"]);
    assert_eq!(out.kept("s"), "192.0.2.1 is kept until the requested address can be had");
    assert!(out.refused("s").contains("held by Service shop/blocker"));
    let newcomer = service("new", 3).asks(&["192.0.2.1"]);
    let out = run(&pools, &[moving, newcomer]);
    assert_eq!(out.addresses("s"), ["192.0.2.2"]);
    assert!(
        out.refused("new").contains("192.0.2.1 is held by Service shop/s"),
        "what is being left is nobody's before that is written"
    );
}

#[test]
fn services_of_one_key_share_where_ports_differ() {
    let pools = [pool("a", &["192.0.2.0/28"])];
    let out = run(
        &pools,
        &[
            service("http", 1).key("k"),
            service("https", 2).key("k").ports(&[443]),
            service("http-too", 3).key("k"),
            service("no-key", 4).ports(&[53]),
            service("other-key", 5).key("l").ports(&[53]),
            service("http-dns", 6).key("k").ports(&[53, 443]),
        ],
    );
    let got = ["http", "https", "http-too", "no-key", "other-key", "http-dns"]
        .map(|name| out.addresses(name).concat());
    assert_eq!(got, ["192.0.2.0", "192.0.2.0", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.1"]);
    assert_eq!(out.pools["a"].v4.used, 4);
    assert_eq!(out.pools["a"].services, 6);
}

#[test]
fn a_port_added_to_a_shared_address_is_not_taken_from_who_serves_it() {
    let pools = [pool("a", &["192.0.2.0/28"])];
    let mut old = service("old", 1).key("k").holds(&["192.0.2.0"]);
    old.ports.insert(port(443));
    let young = service("young", 2).key("k").ports(&[443]).holds(&["192.0.2.0"]);
    let out = run(&pools, &[old, young]);
    assert_eq!(
        (out.addresses("old"), out.addresses("young")),
        (vec!["192.0.2.0".into()], vec!["192.0.2.0".into()])
    );
    let taken = &out.of("old").addresses[0].taken;
    assert_eq!(taken.keys().copied().collect::<Vec<_>>(), [port(443)]);
    assert!(out.of("young").addresses[0].taken.is_empty());
}

#[test]
fn a_lost_key_moves_nobody_but_who_serves_nothing_there_moves() {
    let pools = [pool("a", &["192.0.2.0/28"])];
    let old = service("old", 1).holds(&["192.0.2.0"]);
    let young = service("young", 2).ports(&[443]).holds(&["192.0.2.0"]);
    let out = run(&pools, &[old.clone(), young]);
    assert_eq!(out.addresses("young"), ["192.0.2.0"]);
    assert!(out.kept("young").contains("shared with Service shop/old without a common"));
    let same_port = service("young", 2).holds(&["192.0.2.0"]);
    let out = run(&pools, &[old, same_port]);
    assert_eq!(out.addresses("old"), ["192.0.2.0"]);
    assert_eq!(out.addresses("young"), ["192.0.2.1"]);
}

#[test]
fn families_follow_the_policy_and_the_cluster_addresses() {
    use FamilyPolicy::*;
    let (v4, v6) = (pool("four", &["192.0.2.0/28"]), pool("six", &["2001:db8::/32"]));
    let both = [v4.clone(), v6.clone()];
    let v4_only = [v4];
    let s = || service("s", 1);
    let dual = |policy| s().dual(policy);
    let v6_first = Service { families: vec![Family::V6, Family::V4], ..dual(PreferDualStack) };
    let prefer_single = Service { policy: PreferDualStack, ..s() };
    let none = "no AddressPool has IPv6 addresses";
    let neither = "no AddressPool has IPv6 addresses; both families are required, so no IPv4 \
                   address is given either";
    for (pools, service, got, says) in [
        (&both[..], dual(SingleStack), &["192.0.2.0"][..], ""),
        (&both, dual(PreferDualStack), &["192.0.2.0", "2001:db8::"], ""),
        (&both, dual(RequireDualStack), &["192.0.2.0", "2001:db8::"], ""),
        (&both, v6_first, &["2001:db8::", "192.0.2.0"], ""),
        (&both, prefer_single, &["192.0.2.0"], ""),
        (&v4_only, dual(PreferDualStack), &["192.0.2.0"], none),
        (&v4_only, dual(RequireDualStack), &[], neither),
        (&v4_only, Service { families: vec![Family::V6], ..s() }, &[], none),
        (&both, dual(RequireDualStack).asks(&["192.0.2.7"]), &["192.0.2.7", "2001:db8::"], ""),
        (&v4_only, dual(RequireDualStack).holds(&["192.0.2.5"]), &["192.0.2.5"], none),
        (&both, dual(RequireDualStack).holds(&["192.0.2.5"]), &["192.0.2.5", "2001:db8::"], ""),
        (&both, s().holds(&["192.0.2.5", "2001:db8::5"]), &["192.0.2.5"], ""),
    ] {
        let out = run(pools, &[service]);
        assert_eq!(
            (out.addresses("s"), out.refused("s")),
            (got.iter().map(|a| a.to_string()).collect(), says.into())
        );
    }
}

#[test]
fn what_a_refused_dual_stack_service_could_have_had_is_left_to_others() {
    let pools = [pool("four", &["192.0.2.1"])];
    let out =
        run(&pools, &[service("old", 1).dual(FamilyPolicy::RequireDualStack), service("young", 2)]);
    assert_eq!((out.addresses("old").len(), out.addresses("young")), (0, vec!["192.0.2.1".into()]));
}

#[test]
fn confusing_addresses_are_avoided_on_wish_but_not_refused() {
    let wish = Pool { avoid_buggy: true, ..pool("a", &["192.0.2.255-192.0.3.1", "2001:db8::"]) };
    let services = [service("s", 1), service("asks", 2).asks(&["192.0.3.0"])];
    let out = run(&[wish], &services);
    assert_eq!(out.addresses("s"), ["192.0.3.1"]);
    assert_eq!(out.addresses("asks"), ["192.0.3.0"]);
}

#[test]
fn of_overlapping_pools_the_older_has_the_common_addresses() {
    let older = Pool { created: 1, ..pool("z", &["192.0.2.0/30"]) };
    let younger = Pool { created: 2, priority: 5, ..pool("a", &["192.0.2.2-192.0.2.9"]) };
    let out = run(&[younger, older], &[service("s", 1), service("asks", 2).asks(&["192.0.2.3"])]);
    assert_eq!(out.addresses("s"), ["192.0.2.4"]);
    assert_eq!(out.of("asks").addresses[0].pool.as_deref(), Some("z"));
    let overlap = Overlap { range: "192.0.2.2-192.0.2.3".parse().unwrap(), with: "z".into() };
    assert_eq!((&out.pools["a"].overlaps, &out.pools["z"].overlaps), (&vec![overlap], &vec![]));
    assert_eq!((out.pools["a"].v4.total, out.pools["z"].v4.total), (6, 4));
}

#[test]
fn reserved_addresses_are_passed_over_and_counted() {
    let pools = [pool("a", &["192.0.2.0/31"])];
    let out = run_with(&pools, &[service("s", 1)], &[("192.0.2.0", "Frontend api")]);
    assert_eq!(out.addresses("s"), ["192.0.2.1"]);
    assert_eq!(out.pools["a"].v4, Usage { total: 2, used: 2 });
}

#[test]
fn one_that_is_being_deleted_keeps_and_gets_nothing() {
    let pools = [pool("a", &["192.0.2.0/31"])];
    let ending = |service| Service { ending: true, ..service };
    let out = run(
        &pools,
        &[
            ending(service("old", 1).holds(&["192.0.2.0"])),
            ending(service("none", 2)),
            service("s", 3),
        ],
    );
    assert_eq!(out.addresses("old"), ["192.0.2.0"]);
    assert!(out.addresses("none").is_empty() && out.refused("none").is_empty());
    assert_eq!(out.addresses("s"), ["192.0.2.1"]);
}

#[test]
fn selectors_of_kubernetes_choose_namespaces() {
    use crate::addresses::{Expression, Operator};
    let set = |values: &[&str]| values.iter().map(|value| value.to_string()).collect();
    for (key, operator, matches) in [
        ("team", Operator::In(set(&["a", "b"])), true),
        ("team", Operator::In(set(&["b"])), false),
        ("team", Operator::NotIn(set(&["a"])), false),
        ("none", Operator::NotIn(set(&["a"])), true),
        ("none", Operator::In(set(&["a"])), false),
        ("team", Operator::Exists, true),
        ("none", Operator::Exists, false),
        ("team", Operator::DoesNotExist, false),
        ("none", Operator::DoesNotExist, true),
    ] {
        let expressions = vec![Expression { key: key.into(), operator }];
        let namespace_selectors = vec![Selector { labels: Labels::new(), expressions }];
        let audience = Audience { namespace_selectors, ..Audience::default() };
        let out = run(&[Pool { audience, ..pool("a", &["192.0.2.0/31"]) }], &[service("s", 1)]);
        assert_eq!(out.of("s").refused.is_empty(), matches, "{key}");
        let not = Refusal::NonePermits {
            family: Family::V4,
            pools: vec![("a".into(), Unfit::NotFor(NotFor::Namespace))],
        };
        assert!(matches || out.of("s").refused == [not]);
    }
}

/// All of it lies in the work per Service, none in the size of the pool.
#[test]
fn a_pool_of_a_network_of_ipv6_and_ten_thousand_services_take_no_time() {
    let pools = [pool("six", &["2001:db8::/32"])];
    let services: Vec<_> = (0..10_000)
        .map(|n| Service { families: vec![Family::V6], ..service(&format!("s{n:05}"), n) })
        .collect();
    let started = std::time::Instant::now();
    let out = run(&pools, &services);
    assert_eq!(out.addresses("s09999"), ["2001:db8::270f"]);
    assert_eq!(out.pools["six"].v6, Usage { total: 1 << 96, used: 10_000 });
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
}
