use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::sources::kubernetes::snapshot::{self, Frontend, Name, Service, ServicePort, Transport};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node(name: &str, own: &str) -> Node {
    Node { name: name.into(), addresses: vec![address(own)], labels: BTreeMap::new() }
}

/// A file with node n1 and nothing else.
fn file() -> Intent {
    let nodes = [("n1".to_owned(), node("n1", "10.0.0.1"))].into();
    Intent { agent: super::super::tests::agent(), nodes, frontends: BTreeMap::new() }
}

/// A file's own Frontend on an address.
fn of_file(vip: &str) -> FrontendObject {
    let spec = json!({"addresses": [vip], "ports": [{"port": 80}], "pool": {"nodeSelector": {}}});
    let name = "zz-of-file".to_owned();
    let (mut good, _) =
        config::frontends([(&name, &spec)].into_iter(), &file().agent, &file().nodes);
    good.remove(&name).unwrap()
}

fn kubernetes(nodes: &[(&str, &[&str])]) -> Snapshot {
    let nodes = nodes.iter().map(|(name, addresses)| {
        let addresses = addresses.iter().map(|it| address(it)).collect();
        let node = snapshot::Node { name: (*name).into(), addresses, ..Default::default() };
        (Arc::new(Name::new("", *name)), Arc::new(node))
    });
    Snapshot { nodes: Arc::new(nodes.collect()), ..Snapshot::default() }
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
    snapshot.services = Arc::new([(Arc::new(name), Arc::new(service))].into());
    snapshot
}

fn with_frontend(mut snapshot: Snapshot, name: &str, spec: serde_json::Value) -> Snapshot {
    let frontend = Frontend { spec, ..Frontend::default() };
    Arc::make_mut(&mut snapshot.frontends)
        .insert(Arc::new(Name::new("", name)), Arc::new(frontend));
    snapshot
}

fn merged(file: &Intent, former: &Intent, snapshot: &Snapshot, stale: bool) -> Merged {
    let settings = file.agent.kubernetes.clone().unwrap();
    let inputs = Inputs {
        file,
        stale,
        former,
        settings: &settings,
        snapshot,
        members: &Members::assumed("n1", ["n1"]),
        verdicts: &Verdicts::new(),
        now: Instant::now(),
    };
    merge(&inputs, &mut Memory::default())
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
    without.nodes.clear();
    let mut former = without.clone();
    former.nodes.insert("n1".into(), node("n1", "10.0.0.1"));
    former.nodes.insert("n2".into(), node("n2", "10.0.0.2"));
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
    file.frontends.insert(object.name.clone(), object);
    let snapshot = with_service(kubernetes(&[]), "192.0.2.1");
    let taken = merged(&file, &file, &snapshot, false);
    assert_eq!(taken.intent.frontends.keys().collect::<Vec<_>>(), ["zz-of-file"]);
    let told = messages(&taken);
    assert!(
        told.iter()
            .any(|it| it
                .starts_with("Service/d/s 192.0.2.1 port 80/TCP is a Frontend's of the file"))
    );

    let free = merged(&file, &file, &with_service(kubernetes(&[]), "192.0.2.2"), false);
    assert_eq!(free.intent.frontends.keys().collect::<Vec<_>>(), ["service/d/s/80", "zz-of-file"]);
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
    before.frontends.insert("gone".into(), of_file("192.0.2.7"));
    let checkpoint = Intent {
        frontends: merged(&before, &before, &snapshot, false).intent.frontends,
        ..merged(&before, &before, &snapshot, false).intent
    };
    let resumed = resume(&file(), &checkpoint);
    assert_eq!(resumed.nodes.keys().collect::<Vec<_>>(), ["n1", "n2"]);
    assert_eq!(
        resumed.frontends.keys().collect::<Vec<_>>(),
        ["service/d/s/80"],
        "the file speaks for itself"
    );
    let emptied = merged(&file(), &resumed, &kubernetes(&[]), false).intent;
    assert_eq!((emptied.nodes.len(), emptied.frontends.len()), (1, 0), "now it has spoken");
}
