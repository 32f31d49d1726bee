use serde_json::json;

use super::*;
use crate::{
    model::{FrontendObject, Frontends, Life, MemberState, Node},
    sources::kubernetes::snapshot::{Keep as _, Name, Namespace, Service},
};

fn service(name: &str, class: Option<&str>) -> Service {
    let object = json!({
        "metadata": {"name": name, "namespace": "d", "uid": name},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": class, "ports": [{"port": 80}]},
    });
    Service::keep(serde_json::from_value(object).unwrap()).unwrap()
}

fn matter() -> Matter {
    let services = [service("ours", Some(controller::CLASS)), service("classless", None)];
    let by_name = services.map(|it| (Arc::new(it.name.clone()), Arc::new(it)));
    let labels = BTreeMap::from([("tier".to_owned(), "web".to_owned())]);
    let namespace = Arc::new(Namespace { uid: "1".into(), labels });
    let snapshot = Snapshot {
        services: by_name.into_iter().collect(),
        namespaces: [(Arc::new(Name::new("", "d")), namespace)].into_iter().collect(),
        ..Snapshot::default()
    };
    let objects = ["judged", "ending"].map(|it| (Arc::new(Name::new("", it)), Arc::default()));
    let outcomes = Arc::new([("judged".to_owned(), Default::default())].into());
    let own = OwnFrontends { objects: objects.into_iter().collect(), outcomes };
    Matter { snapshot, own }
}

fn intent() -> Intent {
    let node = Node {
        name: "n1".into(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
        labels: BTreeMap::new(),
    };
    let agent = super::super::tests::agent();
    Intent { agent, nodes: Arc::new([("n1".to_owned(), node)].into()), frontends: Frontends::new() }
}

#[test]
fn services_without_a_class_are_ours_only_by_default_class() {
    let ours = |default_class| {
        let world = world(&matter(), default_class, &intent());
        world.services.into_iter().map(|it| (it.uid, it.ours)).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(ours(false), BTreeMap::from([("classless".into(), false), ("ours".into(), true)]));
    assert_eq!(ours(true), BTreeMap::from([("classless".into(), true), ("ours".into(), true)]));
    let world = world(&matter(), false, &intent());
    assert_eq!(world.namespaces["d"]["tier"], "web");
    let frontends: Vec<_> = world.frontends.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(frontends, ["judged"]);
}

#[test]
fn addresses_of_nodes_and_frontends_are_reserved_and_those_of_services_are_not() {
    let mut intent = intent();
    let spec =
        json!({"addresses": ["10.9.9.9"], "ports": [{"port": 1}], "pool": {"nodeSelector": {}}});
    let name = "api".to_owned();
    let (good, problems) =
        crate::config::frontends([(&name, &spec)].into_iter(), &intent.agent, &intent.nodes);
    assert_eq!(problems, []);
    let api = good["api"].clone();
    let of_service = crate::model::FrontendObject {
        name: format!("{}d/s/80", intent::OF_SERVICE),
        addresses: vec!["10.8.8.8".parse().unwrap()],
        ..api.clone()
    };
    let named = |it: FrontendObject| (Arc::from(it.name.as_str()), Arc::new(it));
    intent.frontends = [api, of_service].into_iter().map(named).collect();
    let reserved = reserved(&intent);
    let told: Vec<_> = reserved.iter().map(|(at, by)| format!("{at} {by}")).collect();
    assert_eq!(told, ["10.0.0.1 Node/n1", "10.9.9.9 Frontend/api"]);
}

#[test]
fn every_candidate_has_a_turn_of_its_own_and_the_dead_have_none() {
    let names = ["a", "b", "c", "d", "e"];
    let turns = |dead: &[&str]| -> BTreeMap<&str, usize> {
        let of = |own: &&'static str| {
            let mut members = Members::assumed(own, names);
            let dead = |(name, _): &(&String, &mut MemberState)| dead.contains(&name.as_str());
            members.nodes.iter_mut().filter(dead).for_each(|(_, it)| it.life = Life::Dead);
            (*own, turn(&[7; 16], &members))
        };
        names.iter().map(of).collect()
    };
    let all = turns(&[]);
    assert_eq!(all.values().copied().collect::<BTreeSet<_>>(), (0..5).collect());
    let first = *all.iter().find(|(_, turn)| **turn == 0).unwrap().0;
    for (name, turn) in turns(&[first]) {
        assert_eq!(turn, all[name].saturating_sub(1), "{name}");
    }
}
