use std::{sync::Arc, time::Duration};

use proptest::{collection::vec, prelude::*};
use serde_json::json;

use super::*;
use crate::{
    model::{Health, Target},
    sources::kubernetes::snapshot::{self, Frontend, Name, Service, ServicePort, Transport},
};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node(name: &str, own: &str) -> Node {
    Node { name: name.into(), addresses: vec![address(own)], labels: BTreeMap::new() }
}

/// A file with node n1 and nothing else.
fn file() -> Intent {
    let nodes = Arc::new([("n1".to_owned(), node("n1", "10.0.0.1"))].into());
    Intent { agent: super::super::tests::agent(), nodes, frontends: Frontends::new() }
}

/// A file's own Frontend on an address.
fn of_file(vip: &str) -> FrontendObject {
    let spec = json!({"addresses": [vip], "ports": [{"port": 80}], "pool": {"nodeSelector": {}}});
    let name = "zz-of-file".to_owned();
    let (mut good, _) =
        config::frontends([(&name, &spec)].into_iter(), &file().agent, &file().nodes);
    good.remove(&name).unwrap()
}

fn names(intent: &Intent) -> Vec<&str> {
    intent.frontends.keys().map(|name| &**name).collect()
}

fn kubernetes(nodes: &[(&str, &[&str])]) -> Snapshot {
    let nodes = nodes.iter().map(|(name, addresses)| {
        let addresses = addresses.iter().map(|it| address(it)).collect();
        let node = snapshot::Node { name: (*name).into(), addresses, ..Default::default() };
        (Arc::new(Name::new("", *name)), Arc::new(node))
    });
    Snapshot { nodes: nodes.collect(), ..Snapshot::default() }
}

fn with_service(mut snapshot: Snapshot, vip: &str) -> Snapshot {
    let name = Name::new("d", "s");
    let ingress = serde_json::from_value(json!([{"ip": vip}])).unwrap();
    let port =
        ServicePort { name: String::new(), port: 80, transport: Transport::Tcp, target: None };
    let service = Service {
        name: name.clone(),
        load_balancer: true,
        class: Some(snapshot::CLASS.into()),
        ports: vec![port],
        ingress,
        ..Service::default()
    };
    snapshot.services = [(Arc::new(name), Arc::new(service))].into_iter().collect();
    snapshot
}

fn with_frontend(mut snapshot: Snapshot, name: &str, spec: serde_json::Value) -> Snapshot {
    let frontend = Frontend { spec, ..Frontend::default() };
    snapshot.frontends.insert(Arc::new(Name::new("", name)), Arc::new(frontend));
    snapshot
}

fn merged(file: &Intent, former: &Intent, snapshot: &Snapshot, stale: bool) -> Merged {
    let settings = file.agent.kubernetes.clone().unwrap();
    let inputs = Inputs {
        file: &Arc::new(file.clone()),
        stale,
        settings: &settings,
        snapshot,
        members: &Members::assumed("n1", ["n1"]),
        verdicts: &Verdicts::new(),
        now: Instant::now(),
    };
    let mut merger = Merger::new(Arc::new(former.clone()));
    merger.memory = Memory::default();
    merger.merge(&inputs)
}

fn messages(merged: &Merged) -> Vec<String> {
    merged.problems.iter().map(|it| format!("{} {}", it.object, it.message)).collect()
}

#[test]
fn nodes_of_both_are_known_and_the_files_win() {
    let snapshot = kubernetes(&[
        ("n1", &["10.9.9.9"]),
        ("n2", &["10.0.0.2", "fd00::2"]),
        ("n3", &[]),
        ("n4", &["10.0.0.1"]),
    ]);
    let merged = merged(&file(), &file(), &snapshot, false);
    let known: Vec<_> =
        merged.intent.nodes.values().map(|it| (it.name.as_str(), it.addresses.len())).collect();
    assert_eq!(known, [("n1", 1), ("n2", 2)]);
    assert_eq!(merged.intent.nodes["n1"].addresses, [address("10.0.0.1")]);
    let told = messages(&merged);
    assert_eq!(told.len(), 2);
    assert!(told[0].starts_with("Node/n3 it has no InternalIP"), "{told:?}");
    assert!(told[1].starts_with("Node/n4 10.0.0.1 is Node/n1's already"), "{told:?}");
}

#[test]
fn this_node_stays_known_and_others_that_are_gone_are_gone() {
    let mut without = file();
    without.nodes = Arc::default();
    let mut former = without.clone();
    Arc::make_mut(&mut former.nodes).insert("n1".into(), node("n1", "10.0.0.1"));
    Arc::make_mut(&mut former.nodes).insert("n2".into(), node("n2", "10.0.0.2"));
    let merged = merged(&without, &former, &kubernetes(&[]), false);
    assert_eq!(merged.intent.nodes.keys().collect::<Vec<_>>(), ["n1"]);
    assert!(messages(&merged)[0].contains("does not know this node"));
}

#[test]
fn a_stale_files_nodes_give_way_to_what_kubernetes_says_now() {
    let merged = merged(&file(), &file(), &kubernetes(&[("n1", &["10.9.9.9"])]), true);
    assert_eq!(merged.intent.nodes["n1"].addresses, [address("10.9.9.9")]);
}

#[test]
fn an_address_and_port_of_the_file_is_no_others() {
    let mut file = file();
    let object = of_file("192.0.2.1");
    file.frontends.insert(object.name.as_str().into(), Arc::new(object));
    let snapshot = with_service(kubernetes(&[]), "192.0.2.1");
    let taken = merged(&file, &file, &snapshot, false);
    assert_eq!(names(&taken.intent), ["zz-of-file"]);
    let told = messages(&taken);
    assert!(
        told.iter()
            .any(|it| it
                .starts_with("Service/d/s 192.0.2.1 port 80/TCP is a Frontend's of the file"))
    );

    let free = merged(&file, &file, &with_service(kubernetes(&[]), "192.0.2.2"), false);
    assert_eq!(names(&free.intent), ["service/d/s/80", "zz-of-file"]);
}

#[test]
fn a_frontend_in_kubernetes_has_a_name_of_its_own_and_a_bad_one_is_told() {
    let spec = |port: i32| json!({"addresses": ["192.0.2.9"], "ports": [{"port": port}], "pool": {"nodeSelector": {}}});
    let snapshot = with_frontend(kubernetes(&[]), "api", spec(6443));
    let snapshot = with_frontend(snapshot, "bad", spec(0));
    let merged = merged(&file(), &file(), &snapshot, false);
    let object = &merged.intent.frontends["frontend/api"];
    assert_eq!((object.name.as_str(), object.origin()), ("frontend/api", "Frontend/api".into()));
    assert_eq!(merged.intent.frontends.len(), 1);
    // Nodes that are excluded from load balancers stay in pools of nodes, and announce them.
    assert_eq!(object.announce, crate::model::AnnouncePolicy::default());
    assert!(messages(&merged)[0].starts_with("Frontend/bad spec.ports[0].port: 0 is out of range"));
}

#[test]
fn what_became_of_each_frontend_is_known_and_its_status_changes_nothing() {
    let spec = |addresses: &[&str], port: i32, label: &str| {
        let pool = json!({"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": label}}});
        json!({"addresses": addresses, "ports": [{"port": port}], "pool": pool})
    };
    let mut file = file();
    let labels = [("kubernetes.io/hostname".to_owned(), "n1".to_owned())];
    Arc::make_mut(&mut file.nodes).get_mut("n1").unwrap().labels = labels.into();
    file.frontends.insert("zz-of-file".into(), Arc::new(of_file("192.0.2.80")));
    let mut snapshot = kubernetes(&[]);
    for (name, spec) in [
        ("bad", spec(&["192.0.2.9"], 0, "n1")),
        ("empty", spec(&["192.0.2.8"], 80, "n9")),
        ("first", spec(&["192.0.2.1"], 80, "n1")),
        ("of-file", spec(&["192.0.2.80"], 80, "n1")),
        ("second", spec(&["192.0.2.1", "192.0.2.2"], 80, "n1")),
        ("third", spec(&["192.0.2.1"], 81, "n1")),
    ] {
        snapshot = with_frontend(snapshot, name, spec);
    }
    let (file, settings) = (Arc::new(file), self::file().agent.kubernetes.unwrap());
    let mut merger = Merger::new(file.clone());
    let mut merge = |snapshot: &Snapshot| {
        merger.merge(&Inputs {
            file: &file,
            stale: false,
            settings: &settings,
            snapshot,
            members: &Members::assumed("n1", ["n1"]),
            verdicts: &Verdicts::new(),
            now: Instant::now(),
        })
    };
    let before = merge(&snapshot);
    let told = before.outcomes.iter().map(|(name, it)| {
        let addresses: Vec<_> = it.addresses.iter().map(IpAddr::to_string).collect();
        format!("{name} {} {} {}", addresses.join(","), it.conflict, it.wrong.join("; "))
    });
    for (told, wanted) in told.zip([
        "bad  false spec.ports[0].port: 0 is out of range",
        "empty 192.0.2.8 false spec.addresses[0]: 192.0.2.8 has no IPv4 member in its pool",
        "first 192.0.2.1 false ",
        "of-file  true 192.0.2.80 port 80/TCP is a Frontend's of the file, which has it",
        "second 192.0.2.2 true Frontend/first has 192.0.2.1 port 80/TCP already",
        "third 192.0.2.1 false ",
    ]) {
        assert!(told.starts_with(wanted), "{told}");
    }
    assert_eq!(before.outcomes.len(), 6);

    let first = snapshot.frontends.get_mut(&Name::new("", "first")).unwrap();
    Arc::make_mut(first).resource_version = "2".into();
    let after = merge(&snapshot);
    assert!(Arc::ptr_eq(&before.outcomes, &after.outcomes), "nothing is read anew");
    assert!(Arc::ptr_eq(&before.intent, &after.intent));
    let first = snapshot.frontends.get_mut(&Name::new("", "first")).unwrap();
    Arc::make_mut(first).ending = true;
    let after = merge(&snapshot);
    assert_eq!((after.outcomes.get("first"), after.outcomes["second"].conflict), (None, false));
}

#[test]
fn slots_stay_for_a_frontends_life() {
    let snapshot = with_service(kubernetes(&[]), "192.0.2.1");
    let first = merged(&file(), &file(), &snapshot, false).intent;
    let mut other = file();
    other.agent.default_slots = 101;
    let second = merged(&other, &first, &snapshot, false).intent;
    assert_eq!(second.slots(&second.frontends["service/d/s/80"]), 4093);
    let third = merged(&other, &second, &snapshot, false).intent;
    assert_eq!(third.slots(&third.frontends["service/d/s/80"]), 4093);
    let new = merged(&other, &file(), &snapshot, false).intent;
    assert_eq!(new.slots(&new.frontends["service/d/s/80"]), 101);
}

#[test]
fn before_kubernetes_has_spoken_the_checkpoint_does_for_it() {
    let snapshot = with_service(kubernetes(&[("n2", &["10.0.0.2"])]), "192.0.2.1");
    let mut before = file();
    before.frontends.insert("gone".into(), Arc::new(of_file("192.0.2.7")));
    let checkpoint = merged(&before, &before, &snapshot, false).intent;
    let resumed = resume(&file(), &checkpoint);
    assert_eq!(resumed.nodes.keys().collect::<Vec<_>>(), ["n1", "n2"]);
    assert_eq!(names(&resumed), ["service/d/s/80"], "the file speaks for itself");
    let emptied = merged(&file(), &resumed, &kubernetes(&[]), false).intent;
    assert_eq!((emptied.nodes.len(), emptied.frontends.len()), (1, 0), "now it has spoken");
}

/// Some way to change what is known.
#[derive(Clone, Debug)]
enum Turn {
    /// Service, addresses, ports, whether it is local.
    Service(usize, Option<(Vec<u8>, Vec<u16>, bool)>),
    /// Slice, its Service, and endpoints with their states.
    Slice(usize, Option<(usize, Vec<(u8, char)>)>),
    Unknown(usize, bool),
    Probe(u8, bool),
    /// What a Frontend of the file has.
    File(Option<u8>),
}

/// Endpoints may have addresses of Services.
fn turns() -> impl Strategy<Value = Turn> {
    let address = 0..6u8;
    let service = (vec(address.clone(), 0..3), vec(80..83u16, 1..3), any::<bool>()).prop_map(Some);
    let slice = (0..4usize, vec((0..8u8, prop::sample::select(&['r', 'u', 't', 'd'])), 0..5));
    prop_oneof![
        2 => (0..4usize, prop_oneof![4 => service, 1 => Just(None)])
            .prop_map(|(at, it)| Turn::Service(at, it)),
        6 => (0..5usize, prop_oneof![6 => slice.prop_map(Some), 1 => Just(None)])
            .prop_map(|(at, it)| Turn::Slice(at, it)),
        1 => (0..3usize, any::<bool>()).prop_map(|(at, it)| Turn::Unknown(at, it)),
        2 => (0..8u8, any::<bool>()).prop_map(|(at, up)| Turn::Probe(at, up)),
        1 => prop::option::of(address).prop_map(Turn::File),
    ]
}

struct World {
    file: Arc<Intent>,
    snapshot: Snapshot,
    verdicts: Verdicts,
}

impl World {
    fn turn(&mut self, turn: Turn) {
        match turn {
            Turn::Service(at, wanted) => {
                let name = Name::new("d", format!("s{at}"));
                let services = &mut self.snapshot.services;
                let Some((addresses, ports, local_only)) = wanted else {
                    services.remove(&name);
                    return;
                };
                let ingress: Vec<_> =
                    addresses.iter().map(|it| json!({"ip": format!("10.1.0.{it}")})).collect();
                let ports: BTreeSet<u16> = ports.into_iter().collect();
                let port = |port: &u16| ServicePort {
                    name: format!("p{port}"),
                    port: *port,
                    transport: if *port == 82 { Transport::Udp } else { Transport::Tcp },
                    target: None,
                };
                let service = Service {
                    name: name.clone(),
                    load_balancer: true,
                    class: Some(snapshot::CLASS.into()),
                    ports: ports.iter().map(port).collect(),
                    local_only,
                    ingress: serde_json::from_value(json!(ingress)).unwrap(),
                    ..Service::default()
                };
                services.insert(Arc::new(name), Arc::new(service));
            }
            Turn::Slice(at, wanted) => {
                let name = Name::new("d", format!("slice{at}"));
                let slices = &mut self.snapshot.slices;
                let Some((service, endpoints)) = wanted else {
                    slices.remove(&name);
                    return;
                };
                let endpoints = endpoints.iter().map(|(at, state)| {
                    let (ready, ends) = (*state == 'r', ['t', 'd'].contains(state));
                    let conditions = json!(
                        {"ready": ready, "serving": ready || *state == 't', "terminating": ends}
                    );
                    let (address, node) = (format!("10.1.0.{at}"), format!("n{}", at % 4));
                    json!({"addresses": [address], "nodeName": node, "conditions": conditions})
                });
                let ports = [("p80", "TCP"), ("p81", "TCP"), ("p82", "UDP")].map(
                    |(name, protocol)| json!({"name": name, "port": 8080, "protocol": protocol}),
                );
                let labels = json!({"kubernetes.io/service-name": format!("s{service}")});
                let object = serde_json::from_value(json!({
                    "metadata": {"namespace": "d", "name": "slice", "labels": labels},
                    "addressType": "IPv4", "ports": ports,
                    "endpoints": endpoints.collect::<Vec<_>>(),
                }));
                let slice = <snapshot::Slice as snapshot::Keep>::keep(object.unwrap()).unwrap();
                slices.insert(Arc::new(name), Arc::new(slice));
            }
            Turn::Unknown(at, unknown) => {
                let nodes = &mut self.snapshot.nodes;
                if let Some(node) = nodes.get_mut(&Name::new("", format!("n{at}"))) {
                    Arc::make_mut(node).unknown = unknown;
                }
            }
            Turn::Probe(at, up) => {
                let address = format!("10.1.0.{at}:8080").parse().unwrap();
                let health = if up { Health::Up } else { Health::Down("refused".into()) };
                self.verdicts.insert(Target { address, check: config::default_check() }, health);
            }
            Turn::File(vip) => {
                let mut file = Intent::clone(&self.file);
                file.frontends.clear();
                if let Some(vip) = vip {
                    let object = of_file(&format!("10.1.0.{vip}"));
                    file.frontends.insert(object.name.as_str().into(), Arc::new(object));
                }
                self.file = Arc::new(file);
            }
        }
    }

    fn merge(&self, merger: &mut Merger, now: Instant) -> Merged {
        merger.merge(&Inputs {
            file: &self.file,
            stale: false,
            settings: &self.file.agent.kubernetes.clone().unwrap(),
            snapshot: &self.snapshot,
            members: &Members::assumed("n1", ["n0", "n1", "n2"]),
            verdicts: &self.verdicts,
            now,
        })
    }
}

proptest! {
    #[test]
    fn what_is_not_looked_at_again_is_as_if_it_were(turns in vec(turns(), 1..40)) {
        let nodes: &[(&str, &[&str])] =
            &[("n0", &["10.0.0.10"]), ("n1", &["10.0.0.11"]), ("n2", &["10.0.0.12"])];
        let (file, snapshot) = (Arc::new(file()), kubernetes(nodes));
        let mut world = World { file: file.clone(), snapshot, verdicts: Verdicts::new() };
        let (mut merger, mut anew) = (Merger::new(file.clone()), Merger::new(file));
        let mut now = Instant::now();
        for turn in turns {
            world.turn(turn);
            now += Duration::from_secs(10);
            let before = merger.intent.clone();
            let merged = world.merge(&mut merger, now);
            anew.base = None;
            let wanted = world.merge(&mut anew, now);
            prop_assert_eq!(&merged, &wanted);
            let kept = Arc::ptr_eq(&merged.intent, &before);
            prop_assert!(kept || merged.intent != before, "an equal intent is the same");
        }
    }
}
