use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::{
    model::{Health, Intent, Life, MemberState, Target},
    sources::kubernetes::snapshot::Keep,
};

/// A cluster of three nodes, `own` being n1 at first, and what changes about it.
struct Cluster {
    own: &'static str,
    snapshot: Snapshot,
    settings: KubernetesSettings,
    nodes: BTreeMap<String, Node>,
    members: Members,
    verdicts: Verdicts,
    memory: Memory,
    half_dead: bool,
    start: Instant,
}

const NODES: [&str; 3] = ["n1", "n2", "n3"];

fn kept<T: Keep>(object: Value) -> Option<T>
where
    T::Object: serde::de::DeserializeOwned,
{
    T::keep(serde_json::from_value(object).unwrap())
}

/// A Service `d/s` of ours with one port, patched.
fn service(patch: Value) -> Value {
    let mut object = json!({
        "metadata": {"namespace": "d", "name": "s"},
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": "weir.dev/weir",
            "ports": [{"name": "web", "port": 80, "targetPort": 8080}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}},
    });
    merge(&mut object, patch);
    object
}

fn merge(object: &mut Value, patch: Value) {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(object.entry(key).or_insert(Value::Null), value);
            }
        }
        (object, patch) => *object = patch,
    }
}

/// A slice of `d/s` with endpoints on node n1, n2, … in turn; conditions by letter:
/// `r`eady, `u`nready, `t`erminating and serving, `p`ublished while it is so, `d`ead while terminating, `-` absent
/// conditions.
fn slice(port: Value, endpoints: &[(&str, &str, char)]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, node, state)| {
            let conditions = match state {
                'r' => json!({"ready": true, "serving": true, "terminating": false}),
                'u' => json!({"ready": false, "serving": false, "terminating": false}),
                't' => json!({"ready": false, "serving": true, "terminating": true}),
                'p' => json!({"ready": true, "serving": true, "terminating": true}),
                'd' => json!({"ready": false, "serving": false, "terminating": true}),
                _ => json!({}),
            };
            json!({"addresses": [address], "nodeName": node, "conditions": conditions})
        })
        .collect();
    let first = endpoints.first().and_then(|it| it["addresses"][0].as_str());
    let family = if first.is_some_and(|it| it.contains(':')) { "IPv6" } else { "IPv4" };
    json!({
        "metadata": {"namespace": "d", "name": "s-1", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": family, "ports": [port], "endpoints": endpoints,
    })
}

fn web() -> Value {
    json!({"name": "web", "port": 8080, "protocol": "TCP"})
}

/// What all Services become.
fn services(inputs: &Inputs<'_>, memory: &mut Memory) -> (Translated, bool) {
    let translation = Translation::new(inputs, memory);
    let mut all = Translated::default();
    for service in inputs.snapshot.services.values() {
        let Translated { frontends, problems, held } = translation.service(service, memory);
        all.frontends.extend(frontends);
        all.problems.extend(problems);
        all.held += held;
    }
    memory.retain(|object| all.frontends.contains_key(object));
    (all, translation.half_dead)
}

impl Cluster {
    fn new() -> Self {
        let node = |index: usize| Node {
            name: NODES[index].into(),
            addresses: vec![format!("10.0.0.{}", index + 1).parse().unwrap()],
            labels: BTreeMap::new(),
        };
        let nodes: BTreeMap<_, _> = (0..3).map(|it| (NODES[it].to_owned(), node(it))).collect();
        let mut cluster = Self {
            own: NODES[0],
            snapshot: Snapshot::default(),
            settings: KubernetesSettings {
                servers: Vec::new(),
                kubeconfig: None,
                default_class: false,
                namespace: "weir-system".into(),
                ignore_exclude_label: false,
            },
            members: Members { ready: true, ..Members::assumed("n1", NODES) },
            nodes,
            verdicts: Verdicts::new(),
            memory: Memory::default(),
            half_dead: false,
            start: Instant::now(),
        };
        cluster.unknown(&[]);
        cluster
    }

    fn with(service: Value, slices: &[Value]) -> Self {
        let mut cluster = Self::new();
        cluster.set(service, slices);
        cluster
    }

    fn set(&mut self, service: Value, slices: &[Value]) {
        let name = Name::new("d", "s");
        let found = kept::<Service>(service).map(|it| (Arc::new(name), Arc::new(it)));
        self.snapshot.services = found.into_iter().collect();
        self.slices(slices);
    }

    fn slices(&mut self, slices: &[Value]) {
        let named = slices.iter().enumerate().filter_map(|(index, slice)| {
            let name = Name::new("d", format!("s-{index}"));
            Some((Arc::new(name), Arc::new(kept::<Slice>(slice.clone())?)))
        });
        self.snapshot.slices = named.collect();
    }

    /// Endpoints of one slice on n1, n2, n3 with these states.
    fn endpoints(&mut self, states: &str) {
        let list: Vec<_> = states.chars().enumerate().collect();
        let addresses: Vec<String> = (1..=list.len()).map(|it| format!("10.1.0.{it}")).collect();
        let endpoints: Vec<_> = list
            .iter()
            .filter(|(_, state)| *state != '.')
            .map(|(index, state)| (addresses[*index].as_str(), NODES[index % 3], *state))
            .collect();
        self.slices(&[slice(web(), &endpoints)]);
    }

    fn unknown(&mut self, unknown: &[&str]) {
        let node = |name: &str| snapshot::Node {
            name: name.into(),
            unknown: unknown.contains(&name),
            ..snapshot::Node::default()
        };
        let nodes = NODES.map(|name| (Arc::new(Name::new("", name)), Arc::new(node(name))));
        self.snapshot.nodes = nodes.into_iter().collect();
    }

    fn probe(&mut self, endpoint: usize, health: Health) {
        let address = format!("10.1.0.{endpoint}:8080").parse().unwrap();
        self.verdicts.insert(Target { address, check: config::default_check() }, health);
    }

    fn translate_at(&mut self, seconds: u64) -> Translated {
        let mut slices = SliceIndex::default();
        for (name, slice) in &self.snapshot.slices {
            slices.follow(name, None, Some(slice));
        }
        let inputs = Inputs {
            slices: &slices,
            snapshot: &self.snapshot,
            settings: &self.settings,
            own: self.own,
            nodes: &self.nodes,
            vips: &vips(&self.snapshot, &self.settings),
            members: &self.members,
            verdicts: &self.verdicts,
            now: self.start + Duration::from_secs(seconds),
        };
        let (translated, half_dead) = services(&inputs, &mut self.memory);
        self.half_dead = half_dead;
        translated
    }

    /// Who takes new flows and who only ends its own, as numbers of endpoints.
    fn served_at(&mut self, seconds: u64) -> String {
        let translated = self.translate_at(seconds);
        members(translated.frontends.values().next().expect("an object"))
    }
}

/// Such as `1 2~ (3)`: 2 is far, 3 is terminating.
fn members(object: &FrontendObject) -> String {
    let Pool::Members(members) = &object.pool else { panic!("no members") };
    let word = |member: &PoolMember| {
        let text = member.address.to_string();
        let last = text.rsplit(['.', ':']).next().unwrap().to_owned();
        match (member.terminating, member.far) {
            (true, _) => format!("({last})"),
            (false, true) => format!("{last}~"),
            (false, false) => last,
        }
    };
    members.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[test]
fn services_that_are_ours() {
    for (name, patch, default_class, served) in [
        ("our class", json!({}), false, true),
        ("a foreign class", json!({"spec": {"loadBalancerClass": "example.com/lb"}}), true, false),
        ("no class, not default", json!({"spec": {"loadBalancerClass": null}}), false, false),
        ("no class, default", json!({"spec": {"loadBalancerClass": null}}), true, true),
        ("another type", json!({"spec": {"type": "ClusterIP"}}), true, false),
        ("no address yet", json!({"status": {"loadBalancer": {"ingress": []}}}), false, false),
        (
            "being deleted",
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            false,
            false,
        ),
        (
            "a proxy's address",
            json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "Proxy"}]}}}),
            false,
            false,
        ),
        (
            "a host name",
            json!({"status": {"loadBalancer": {"ingress": [{"hostname": "lb.example.com"}]}}}),
            false,
            false,
        ),
    ] {
        let mut cluster =
            Cluster::with(service(patch), &[slice(web(), &[("10.1.0.1", "n1", 'r')])]);
        cluster.settings.default_class = default_class;
        assert_eq!(cluster.translate_at(0).frontends.len(), usize::from(served), "{name}");
    }
}

#[test]
fn a_service_becomes_an_object_for_each_port() {
    let mut cluster =
        Cluster::with(service(json!({})), &[slice(web(), &[("10.1.0.1", "n2", 'r')])]);
    let Translated { frontends, problems, held } = cluster.translate_at(0);
    assert_eq!((problems, held, cluster.half_dead), (vec![], 0, false));
    let object = &frontends["service/d/s/web"];
    assert_eq!(object.origin(), "Service/d/s");
    assert_eq!(object.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(
        object.ports,
        [FrontendPort { port: 80, protocol: Protocol::Tcp, target_port: 8080 }]
    );
    let member = PoolMember {
        address: "10.1.0.1".parse().unwrap(),
        port: Some(8080),
        weight: 1,
        node: "n2".into(),
        terminating: false,
        far: false,
    };
    assert_eq!(object.pool, Pool::Members(vec![member]));
    assert_eq!(object.check, Some(config::default_check()));
    assert_eq!((object.local_only, object.client_affinity, object.slots), (false, false, None));
    let excluded: Vec<_> = object.announce.nodes.without.iter().map(String::as_str).collect();
    assert_eq!(excluded, [EXCLUDED, TO_BE_DELETED]);
}

#[test]
fn settings_of_a_service_that_are_honoured() {
    let local = json!({"spec": {"externalTrafficPolicy": "Local"}});
    assert!(only(local).local_only);
    let affinity = json!({"spec": {"sessionAffinity": "ClientIP"}});
    assert!(only(affinity).client_affinity);
    let unprobed = json!({"metadata": {"annotations": {"weir.dev/health-check": "none"}}});
    assert_eq!(only(unprobed).check, None);
    let unnamed = json!({"spec": {"ports": [{"port": 443}]}});
    assert_eq!(only(unnamed).name, "service/d/s/443");

    let mut cluster = Cluster::with(service(json!({})), &[]);
    cluster.settings.ignore_exclude_label = true;
    let object = &cluster.translate_at(0).frontends["service/d/s/web"];
    assert_eq!(object.announce, AnnouncePolicy::default());
}

fn only(patch: Value) -> FrontendObject {
    let translated = Cluster::with(service(patch), &[]).translate_at(0);
    assert_eq!(translated.problems, []);
    translated.frontends.into_values().next().unwrap()
}

#[test]
fn source_ranges_are_taken_over_and_never_dropped() {
    let ranges = |patch| {
        let mut cluster = Cluster::with(service(patch), &[]);
        let Translated { frontends, problems, .. } = cluster.translate_at(0);
        let texts = frontends.values().flat_map(|it| &it.source_ranges).map(Cidr::to_string);
        (texts.collect::<Vec<_>>().join(" "), frontends.len(), problems.len())
    };
    let given = |list: Value| json!({"spec": {"loadBalancerSourceRanges": list}});
    assert_eq!(ranges(given(json!([" 10.0.0.7/8 "]))), ("10.0.0.0/8".into(), 1, 0));
    // An address whose family has none is closed, and that is said.
    assert_eq!(ranges(given(json!(["2001:db8::/32"]))), ("2001:db8::/32".into(), 1, 1));
    assert_eq!(ranges(given(json!(["10.0.0.0"]))), (String::new(), 0, 1));
    let legacy = json!({"metadata": {"annotations": {RANGES: "10.0.0.0/8, 11.0.0.0/8"}}});
    assert_eq!(ranges(legacy), ("10.0.0.0/8 11.0.0.0/8".into(), 1, 0));
}

#[test]
fn what_cannot_be_honoured_is_a_problem_and_the_rest_is_served() {
    for (name, patch, says, objects) in [
        (
            "SCTP beside TCP",
            json!({"spec": {"ports": [
                {"name": "a", "port": 80}, {"name": "b", "port": 81, "protocol": "SCTP"},
            ]}}),
            "SCTP",
            1,
        ),
        (
            "an unknown check",
            json!({"metadata": {"annotations": {"weir.dev/health-check": "icmp"}}}),
            "`icmp` is no check",
            1,
        ),
        (
            "an address that nobody can have",
            json!({"status": {"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}}}),
            "loopback",
            0,
        ),
    ] {
        let Translated { frontends, problems, .. } =
            Cluster::with(service(patch), &[]).translate_at(0);
        assert_eq!(frontends.len(), objects, "{name}");
        let [problem] = &problems[..] else { panic!("{name}: {problems:?}") };
        assert_eq!(problem.object, "Service/d/s", "{name}");
        assert!(problem.message.contains(says), "{name}: {}", problem.message);
    }
}

#[test]
fn ports_are_matched_by_name_and_protocol() {
    let ports = json!({"spec": {"ports": [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        {"name": "other", "port": 54},
    ]}});
    // Pods whose named target ports differ are in slices of their own.
    let slices = [
        slice(json!({"name": "dns", "port": 5353, "protocol": "UDP"}), &[("10.1.0.1", "n1", 'r')]),
        slice(json!({"name": "dns", "port": 5454, "protocol": "UDP"}), &[("10.1.0.2", "n1", 'r')]),
        slice(
            json!({"name": "dns-tcp", "port": null, "protocol": "TCP"}),
            &[("10.1.0.3", "n1", 'r')],
        ),
        slice(json!({"name": "dns", "port": 1, "protocol": "TCP"}), &[("10.1.0.4", "n1", 'r')]),
    ];
    let frontends = Cluster::with(service(ports), &slices).translate_at(0).frontends;
    let endpoints = |name: &str| {
        let object = &frontends[name];
        let Pool::Members(members) = &object.pool else { panic!("no members") };
        let text = |it: &PoolMember| format!("{}:{}", it.address, it.port.unwrap());
        let probed = object.check.is_some();
        (members.iter().map(text).collect::<Vec<_>>().join(" "), probed)
    };
    assert_eq!(endpoints("service/d/s/dns"), ("10.1.0.1:5353 10.1.0.2:5454".into(), false));
    assert_eq!(endpoints("service/d/s/dns-tcp"), ("10.1.0.3:53".into(), true));
    assert_eq!(endpoints("service/d/s/other"), (String::new(), true));
}

#[test]
fn a_port_with_an_error_on_an_address_is_not_served_there() {
    let ports =
        json!([{"name": "web", "port": 80}, {"name": "dns", "port": 80, "protocol": "UDP"}]);
    let told = json!([{"port": 80, "protocol": "TCP", "error": "weir.dev/PortTaken"}]);
    let ingress = json!([{"ip": "192.0.2.1", "ports": told}, {"ip": "192.0.2.2"}]);
    let patch = json!({"spec": {"ports": ports}, "status": {"loadBalancer": {"ingress": ingress}}});
    let translated = Cluster::with(service(patch), &[]).translate_at(0);
    let at = |name: &str| {
        translated.frontends[name].addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>()
    };
    assert_eq!(at("service/d/s/web"), ["192.0.2.2"]);
    assert_eq!(at("service/d/s/dns"), ["192.0.2.1", "192.0.2.2"]);
}

#[test]
fn both_families_are_served_and_names_are_skipped() {
    let dual = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}]}}});
    let mut names = slice(web(), &[("10.1.0.9", "n1", 'r')]);
    names["addressType"] = json!("FQDN");
    let slices =
        [slice(web(), &[("10.1.0.1", "n1", 'r')]), slice(web(), &[("fd00::2", "n2", 'r')]), names];
    let frontends = Cluster::with(service(dual), &slices).translate_at(0).frontends;
    let object = frontends.values().next().unwrap();
    assert_eq!((object.addresses.len(), members(object)), (2, "1 2".into()));
}

#[test]
fn endpoints_that_the_tunnel_cannot_reach_are_left_out_and_told() {
    for (name, endpoint) in [
        ("an unknown node", ("10.1.0.1", "n9", 'r')),
        ("the VIP itself", ("192.0.2.1", "n1", 'r')),
        ("loopback", ("127.0.0.1", "n1", 'r')),
    ] {
        let slices = [slice(web(), &[endpoint, ("10.1.0.2", "n2", 'r')])];
        let Translated { frontends, problems, .. } =
            Cluster::with(service(json!({})), &slices).translate_at(0);
        assert_eq!(members(&frontends["service/d/s/web"]), "2", "{name}");
        assert!(problems[0].message.contains(endpoint.0), "{name}");
    }
    // A node's own address needs no node's name.
    let mut of_node = slice(web(), &[("10.0.0.2", "n1", 'r')]);
    of_node["endpoints"][0]["nodeName"] = Value::Null;
    let frontends = Cluster::with(service(json!({})), &[of_node]).translate_at(0).frontends;
    let Pool::Members(members) = &frontends["service/d/s/web"].pool else { panic!("no members") };
    assert_eq!(members[0].node, "n2");
}

#[test]
fn hints_for_other_zones_make_endpoints_far() {
    let mut hinted =
        slice(web(), &[("10.1.0.1", "n1", 'r'), ("10.1.0.2", "n2", 'r'), ("10.1.0.3", "n3", 't')]);
    for (n, zone) in ["a", "b"].into_iter().enumerate() {
        hinted["endpoints"][n]["hints"] = json!({"forZones": [{"name": zone}]});
    }
    let mut cluster = Cluster::with(service(json!({})), &[hinted]);
    assert_eq!(cluster.served_at(0), "1 2 (3)", "this node is in no zone");
    let labels = &mut cluster.nodes.get_mut("n1").unwrap().labels;
    labels.insert(ZONE.into(), "b".into());
    // Before membership has said anything too.
    for members in [Members::default(), cluster.members.clone()] {
        cluster.members = members;
        assert_eq!(cluster.served_at(0), "1~ 2 (3)");
    }
    assert!(cluster.translate_at(0).frontends["service/d/s/web"].by_place);
}

#[test]
fn an_endpoint_in_two_slices_counts_once_by_its_better_word() {
    for states in [['r', 'u'], ['u', 'r'], ['t', 'r']] {
        let slices = states.map(|state| slice(web(), &[("10.1.0.1", "n1", state)]));
        assert_eq!(Cluster::with(service(json!({})), &slices).served_at(0), "1", "{states:?}");
    }
}

#[test]
fn who_takes_new_flows_by_conditions() {
    for (name, states, cluster_wide, local) in [
        ("ready ones", "rru", "1 2", "1 2"),
        ("absent conditions mean ready", "-uu", "1", "1"),
        ("none ready from the beginning", "uuu", "", ""),
        ("terminating ones end their flows", "rtd", "1 (2) (3)", "1 2~ (3)"),
        ("those that are published while they end take new flows", "rpt", "1 2 (3)", "1 2 3~"),
        ("none ready: those that serve while they end", "utu", "2", "2"),
        ("terminating ones that do not serve are no fallback", "udu", "(2)", "(2)"),
        ("nothing at all", "...", "", ""),
        // Nodes in turn: endpoints 1 and 4 are on n1.
        ("local: each node decides by its own", "rrut", "1 2 (4)", "1 2 (4)"),
        ("local: a node without a ready one falls back", "urut", "2 (4)", "2 4~"),
    ] {
        for (local_only, wanted) in [(false, cluster_wide), (true, local)] {
            let policy = if local_only { "Local" } else { "Cluster" };
            let patch = json!({"spec": {"externalTrafficPolicy": policy}});
            let mut cluster = Cluster::with(service(patch), &[]);
            cluster.endpoints(states);
            assert_eq!(cluster.served_at(0), wanted, "{name}, {policy}");
        }
    }
}

fn started(states: &str) -> Cluster {
    let mut cluster = Cluster::with(service(json!({})), &[]);
    cluster.endpoints(states);
    cluster.translate_at(0);
    cluster
}

#[test]
fn a_silent_kubelet_on_a_node_that_gossip_hears_takes_no_readiness() {
    let mut cluster = started("rru");
    cluster.unknown(&["n1", "n3"]);
    cluster.endpoints("uru");
    let translated = cluster.translate_at(10);
    assert_eq!(
        members(&translated.frontends["service/d/s/web"]),
        "1 2",
        "the third never was ready"
    );
    assert_eq!((translated.held, cluster.half_dead), (1, true));

    let dead = MemberState { life: Life::Dead, ..MemberState::default() };
    let former = cluster.members.nodes.insert("n1".into(), dead);
    assert_eq!(cluster.served_at(20), "1 2", "this node is heard, whatever gossip says of it");
    cluster.own = NODES[1];
    assert_eq!(cluster.served_at(30), "2", "gossip agrees that it is dead");
    cluster.members.nodes.insert("n1".into(), former.unwrap());
    assert_eq!(cluster.served_at(40), "1 2");
    cluster.endpoints(".ru");
    assert_eq!(cluster.served_at(50), "2", "what is absent is absent");
}

#[test]
fn word_of_the_node_may_come_after_word_of_the_endpoint_but_not_long_after() {
    for (seconds, wanted) in [(9, "1 2"), (11, "2")] {
        let mut cluster = started("rr");
        cluster.endpoints("ur");
        assert_eq!(cluster.served_at(100), "2");
        cluster.unknown(&["n1"]);
        assert_eq!(cluster.served_at(100 + seconds), wanted, "after {seconds} s");
    }
}

#[test]
fn an_endpoint_that_terminates_on_a_silent_node_takes_no_new_flows() {
    let mut cluster = started("rr");
    cluster.unknown(&["n1"]);
    cluster.endpoints("dr");
    assert_eq!(cluster.served_at(1), "2 (1)".split(' ').rev().collect::<Vec<_>>().join(" "));
}

#[test]
fn a_pool_that_loses_all_readiness_at_once_keeps_what_probes_find_up() {
    let mut cluster = started("rrr");
    for endpoint in [1, 2, 3] {
        cluster.probe(endpoint, Health::Up);
    }
    cluster.endpoints("uuu");
    let translated = cluster.translate_at(5);
    assert_eq!(members(&translated.frontends["service/d/s/web"]), "1 2 3");
    assert_eq!(translated.held, 3);
    assert!(translated.problems[0].message.contains("3 endpoints serve although"));
    cluster.probe(2, Health::Down("refused".into()));
    assert_eq!(cluster.served_at(6), "1 3");
    cluster.probe(2, Health::Up);
    assert_eq!(
        cluster.served_at(7),
        "1 3",
        "once probe and API agreed, only the API brings it back"
    );
    assert_eq!(cluster.served_at(100_000), "1 3", "for as long as probes say so");
    cluster.endpoints("uru");
    assert_eq!(cluster.served_at(100_001), "2", "the API speaks again");
}

#[test]
fn api_and_probes_that_agree_empty_a_pool() {
    let mut cluster = started("rr");
    cluster.probe(1, Health::Down("refused".into()));
    cluster.probe(2, Health::Down("refused".into()));
    cluster.endpoints("uu");
    assert_eq!(cluster.served_at(1), "");
}

#[test]
fn only_what_was_ready_shortly_before_the_pool_ran_empty_is_kept() {
    let mut cluster = started("rrr");
    cluster.endpoints("urr");
    assert_eq!(cluster.served_at(10), "2 3");
    cluster.endpoints("uur");
    assert_eq!(cluster.served_at(30), "3");
    cluster.endpoints("uuu");
    assert_eq!(cluster.served_at(80), "2 3", "the first was out for 70 s");
}

#[test]
fn a_terminating_endpoint_that_serves_comes_before_what_is_kept() {
    let mut cluster = started("rr");
    cluster.endpoints("tu");
    assert_eq!(cluster.served_at(1), "1");
}

#[test]
fn without_a_probe_the_api_alone_decides() {
    let udp = json!({"spec": {"ports": [{"name": "web", "port": 80, "protocol": "UDP"}]}});
    let port = json!({"name": "web", "port": 8080, "protocol": "UDP"});
    let mut cluster =
        Cluster::with(service(udp), &[slice(port.clone(), &[("10.1.0.1", "n1", 'r')])]);
    assert_eq!(cluster.served_at(0), "1");
    cluster.slices(&[slice(port, &[("10.1.0.1", "n1", 'u')])]);
    assert_eq!(cluster.served_at(1), "");
}

#[test]
fn an_agent_that_starts_against_a_lie_keeps_what_its_checkpoint_served() {
    let before = started("rrr");
    let mut before = before;
    let frontends = before.translate_at(1).frontends;
    let mut after = Cluster::with(service(json!({})), &[]);
    after.endpoints("uuu");
    let agent = crate::sources::kubernetes::tests::agent();
    let frontends =
        frontends.into_iter().map(|(name, it)| (Arc::from(name), Arc::new(it))).collect();
    let intent = Intent { agent, nodes: Arc::default(), frontends };
    after.memory = Memory::of(&intent);
    assert_eq!(after.served_at(0), "1 2 3");
    after.memory = Memory::default();
    assert_eq!(after.served_at(0), "", "without one the API is all there is");
}

#[test]
fn what_is_gone_is_forgotten() {
    let mut cluster = started("rr");
    cluster.set(
        json!({"metadata": {"namespace": "d", "name": "s"}, "spec": {"type": "ClusterIP"}}),
        &[],
    );
    assert_eq!(cluster.translate_at(1), Translated::default());
    assert_eq!(cluster.memory, Memory::default());
}

#[test]
fn fields_of_nodes_are_read() {
    let node = |patch: Value| {
        let mut object = json!({"metadata": {"name": "n1"}, "status": {"addresses": [
            {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "10.0.0.1"},
            {"type": "InternalIP", "address": "10.9.9.9"}, {"type": "InternalIP", "address": "fd00::1"},
            {"type": "ExternalIP", "address": "198.51.100.1"},
        ]}});
        merge(&mut object, patch);
        kept::<snapshot::Node>(object).unwrap()
    };
    let plain = node(json!({}));
    let addresses = ["10.0.0.1", "fd00::1"].map(|it| it.parse::<IpAddr>().unwrap());
    assert_eq!((&plain.addresses[..], plain.unknown), (&addresses[..], false));
    let ready =
        |status: &str| json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
    assert!(node(ready("Unknown")).unknown);
    assert!(!node(ready("False")).unknown);
    let tainted = json!({"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}});
    assert!(node(tainted).labels.contains_key(TO_BE_DELETED));
    // Somebody may cordon everything.
    assert_eq!(node(json!({"spec": {"unschedulable": true}})), plain);
}
