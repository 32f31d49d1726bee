//! Against a cluster that keeps what is written, as an API server does.

use serde_json::{Value, json};

use super::*;
use crate::sources::kubernetes::{
    outcome::Outcome,
    snapshot::{Frontend, Keep as _},
};

/// Objects as the API server has them.
struct Cluster {
    services: BTreeMap<String, Value>,
    pools: BTreeMap<String, Value>,
    /// With what became of each.
    frontends: BTreeMap<String, (Value, Outcome)>,
    served: BTreeSet<IpAddr>,
    reserved: BTreeMap<IpAddr, String>,
    now: i64,
}

impl Cluster {
    fn new(addresses: &[&str]) -> Self {
        let mut cluster = Self {
            services: BTreeMap::new(),
            pools: BTreeMap::new(),
            frontends: BTreeMap::new(),
            served: BTreeSet::new(),
            reserved: BTreeMap::new(),
            now: 1_000,
        };
        cluster.pool("public", addresses);
        cluster
    }

    fn pool(&mut self, name: &str, addresses: &[&str]) {
        let created = time(self.pools.len() as i64);
        self.pools.insert(
            name.into(),
            json!({
                "apiVersion": "weir.dev/v1alpha1",
                "kind": "AddressPool",
                "metadata": {"name": name, "uid": name, "creationTimestamp": created},
                "spec": {"addresses": addresses},
            }),
        );
    }

    /// A Service of our class with port 80.
    fn service(&mut self, name: &str) {
        let created = time(self.services.len() as i64);
        self.services.insert(
            name.into(),
            json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {
                    "name": name, "namespace": "shop", "uid": name, "resourceVersion": "1",
                    "creationTimestamp": created,
                },
                "spec": {
                    "type": "LoadBalancer",
                    "loadBalancerClass": CLASS,
                    "ipFamilies": ["IPv4"],
                    "ipFamilyPolicy": "SingleStack",
                    "clusterIPs": ["10.96.0.9"],
                    "ports": [{"port": 80, "protocol": "TCP"}],
                },
            }),
        );
    }

    /// A Frontend that has an address, unless something is wrong with it.
    fn frontend(&mut self, name: &str, wrong: &[&str]) {
        let metadata = json!({"name": name, "uid": name, "resourceVersion": "1", "generation": 1});
        let object = json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "Frontend", "metadata": metadata, "spec": {},
        });
        let addresses = wrong.is_empty().then(|| "192.0.2.200".parse().unwrap());
        let wrong = wrong.iter().map(|it| (*it).to_owned()).collect();
        let addresses = addresses.into_iter().collect();
        self.frontends.insert(name.into(), (object, Outcome { addresses, wrong, conflict: false }));
    }

    fn edit(&mut self, name: &str, path: &str, value: Value) {
        let (parent, key) = path.rsplit_once('/').unwrap();
        let service = self.services.get_mut(name).unwrap();
        service.pointer_mut(parent).unwrap()[key] = value;
    }

    /// What is to be written, and does so.
    fn round(&mut self) -> Vec<Write> {
        self.now += 1;
        let read =
            |it: &Value| ServiceObject::read(&serde_json::from_value(it.clone()).unwrap(), false);
        let services: Vec<_> = self.services.values().filter_map(read).collect();
        let pools: Vec<AddressPool> =
            self.pools.values().map(|it| serde_json::from_value(it.clone()).unwrap()).collect();
        let judged = |(name, (object, outcome)): (&String, &(Value, Outcome))| Judged {
            name: name.clone(),
            object: Frontend::keep(serde_json::from_value(object.clone()).unwrap()).unwrap().into(),
            outcome: outcome.clone(),
        };
        let frontends: Vec<_> = self.frontends.iter().map(judged).collect();
        let state = State {
            services: &services,
            pools: &pools,
            frontends: &frontends,
            namespaces: &BTreeMap::new(),
            reserved: &self.reserved,
            served: &self.served,
            now: Timestamp::from_second(self.now).unwrap(),
        };
        let writes = writes(&state);
        for write in &writes {
            self.keep(write);
        }
        writes
    }

    fn keep(&mut self, write: &Write) {
        match write {
            Write::Pool { name, status, .. } => {
                self.pools.get_mut(name).unwrap()["status"] = json!(status);
            }
            Write::Frontend { name, status, .. } => {
                self.frontends.get_mut(name).unwrap().0["status"] = json!(status);
            }
            Write::Service { target, steps, .. } => {
                let name = &target.name.name;
                let service = self.services.get_mut(name).unwrap();
                service["metadata"]["managedFields"] = json!([{"manager": MANAGER}]);
                for step in steps {
                    match step {
                        Step::Hold => service["metadata"]["finalizers"] = json!([FINALIZER]),
                        Step::Release(others) => service["metadata"]["finalizers"] = json!(others),
                        Step::Status { ingress, conditions } => {
                            service["status"] = json!({
                                "loadBalancer": {"ingress": ingress},
                                "conditions": conditions,
                            });
                        }
                    }
                }
            }
        }
    }

    /// Rounds until there is nothing to write; the Events on the way as `reason: text`.
    fn settle(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..5 {
            let writes = self.round();
            if writes.is_empty() {
                return told;
            }
            for write in writes {
                let (Write::Service { notes, .. }
                | Write::Pool { notes, .. }
                | Write::Frontend { notes, .. }) = write;
                told.extend(
                    notes.into_iter().map(|note| format!("{}: {}", note.reason, note.text)),
                );
            }
        }
        panic!("it never settles: {told:?}");
    }

    fn addresses(&self, name: &str) -> Vec<&str> {
        let ingress = self.services[name].pointer("/status/loadBalancer/ingress");
        let ingress = ingress.and_then(Value::as_array).into_iter().flatten();
        ingress.map(|it| it["ip"].as_str().unwrap()).collect()
    }

    /// `status reason` of a Service's condition.
    fn condition(&self, name: &str, type_: &str) -> String {
        Self::condition_of(&self.services[name], type_)
    }

    fn condition_of(object: &Value, type_: &str) -> String {
        let conditions = object.pointer("/status/conditions");
        let conditions = conditions.and_then(Value::as_array).into_iter().flatten();
        let found = conditions.into_iter().find(|it| it["type"] == type_);
        let text = |it: &Value, key: &str| it[key].as_str().unwrap().to_owned();
        found
            .map_or_else(String::new, |it| format!("{} {}", text(it, "status"), text(it, "reason")))
    }

    fn finalizers(&self, name: &str) -> &Value {
        &self.services[name]["metadata"]["finalizers"]
    }
}

fn time(seconds: i64) -> String {
    Timestamp::from_second(seconds).unwrap().to_string()
}

#[test]
fn a_service_is_held_given_an_address_and_told_once_it_is_served() {
    let mut cluster = Cluster::new(&["192.0.2.1-192.0.2.9"]);
    cluster.service("web");
    let first = cluster.round();
    let Some(Write::Service { target, steps, notes }) = first.first() else { panic!("{first:?}") };
    assert_eq!((target.uid.as_str(), target.resource_version.as_str()), ("web", "1"));
    assert_eq!(steps[0], Step::Hold, "before the address");
    let Step::Status { ingress, .. } = &steps[1] else { panic!("{steps:?}") };
    assert_eq!(ingress[0].ip_mode.as_deref(), Some("VIP"));
    assert_eq!(json!(ingress[0].ports), json!([{"port": 80, "protocol": "TCP"}]));
    assert_eq!(notes.len(), 1);
    assert_eq!(notes[0].text, "192.0.2.1 of AddressPool public is the Service's");
    assert_eq!(cluster.addresses("web"), ["192.0.2.1"]);
    assert_eq!(cluster.condition("web", tell::PROVISIONING), "True InProgress");
    assert_eq!(cluster.condition("web", tell::SERVING), "False Provisioning");
    assert!(cluster.round().is_empty(), "what was written is not written again");

    cluster.served.insert("192.0.2.1".parse().unwrap());
    assert!(cluster.settle().is_empty(), "no Event");
    assert_eq!(cluster.condition("web", tell::PROVISIONING), "False Complete");
    assert_eq!(cluster.condition("web", tell::SERVING), "True Serving");
    cluster.served.clear();
    assert!(cluster.round().is_empty(), "a node that has just started takes nothing back");

    let status = &cluster.pools["public"]["status"];
    assert_eq!(status["ipv4"], json!({"total": 9, "used": 1, "available": 8}));
    assert_eq!((&status["services"], &status["ipv6"]), (&json!(1), &Value::Null));
    assert_eq!(status["conditions"][0]["status"], "True");
}

#[test]
fn a_deleted_service_is_emptied_and_let_go() {
    let mut cluster = Cluster::new(&["192.0.2.1"]);
    cluster.service("web");
    cluster.settle();
    cluster.edit("web", "/metadata/deletionTimestamp", json!(time(2_000)));
    cluster.edit("web", "/metadata/finalizers", json!(["other/one", FINALIZER]));
    cluster.service("next");
    let writes = cluster.round();
    let [Write::Service { steps: next, .. }, Write::Service { steps, .. }] = &writes[..2] else {
        panic!("{writes:?}")
    };
    assert!(matches!(&next[0], Step::Status { ingress, .. } if ingress.is_empty()), "not yet free");
    assert_eq!(
        steps[..],
        [
            Step::Status { ingress: vec![], conditions: vec![] },
            Step::Release(vec!["other/one".into()])
        ]
    );
    cluster.settle();
    assert_eq!(cluster.addresses("next"), ["192.0.2.1"], "while the other still waits for its end");
}

#[test]
fn a_changed_type_withdraws_and_only_what_is_ours_is_touched() {
    let mut cluster = Cluster::new(&["192.0.2.1"]);
    cluster.service("web");
    cluster.settle();
    cluster.edit("web", "/spec/type", json!("ClusterIP"));
    assert_eq!(cluster.settle(), ["AddressReleased: 192.0.2.1 is no longer the Service's"]);
    assert_eq!((cluster.addresses("web").len(), cluster.finalizers("web")), (0, &json!([])));
    assert_eq!(cluster.condition("web", tell::SERVING), "");

    // Somebody else's load balancer uses the same finalizer.
    for (type_, class) in [("LoadBalancer", json!("else.org/lb")), ("ClusterIP", Value::Null)] {
        cluster.service("foreign");
        cluster.edit("foreign", "/spec/type", json!(type_));
        cluster.edit("foreign", "/spec/loadBalancerClass", class);
        cluster.edit("foreign", "/metadata/finalizers", json!([FINALIZER]));
        cluster.edit("foreign", "/metadata/managedFields", json!([{"manager": "else"}]));
        assert!(cluster.settle().is_empty());
    }
}

/// Rows: an object that cannot be served as asked; it alone is told, and another one is served.
#[test]
fn invalid_objects_are_told_and_cost_only_themselves() {
    for (name, edits, event, blame) in [
        (
            "in no pool",
            &[("/spec/loadBalancerIP", json!("198.51.100.1"))][..],
            "AddressNotInPool: the requested 198.51.100.1 is in no AddressPool",
            "Unsupported",
        ),
        (
            "not an address",
            &[("/metadata/annotations", json!({"weir.dev/addresses": "nine"}))],
            "InvalidAddressRequest: the requested \"nine\" is no address",
            "Unsupported",
        ),
        (
            "another's address",
            &[("/metadata/annotations", json!({"metallb.io/loadBalancerIPs": "192.0.2.1"}))],
            "AddressTaken: the requested 192.0.2.1 is held by Service shop/good; both need the \
             same weir.dev/sharing-key to share it",
            "Infrastructure",
        ),
        (
            "no such pool",
            &[("/metadata/annotations", json!({"weir.dev/pool": "gold"}))],
            "UnknownAddressPool: there is no AddressPool gold",
            "Unsupported",
        ),
        (
            "IPv6 of an IPv4 pool",
            &[("/spec/ipFamilies", json!(["IPv6"]))],
            "NoAddressPool: no AddressPool has IPv6 addresses",
            "Infrastructure",
        ),
        (
            "pool exhausted",
            &[("/metadata/annotations", json!({"weir.dev/pool": "tiny"}))],
            "AddressPoolExhausted: every IPv4 address of AddressPool tiny is in use",
            "Infrastructure",
        ),
        (
            "SCTP only",
            &[("/spec/ports", json!([{"port": 80, "protocol": "SCTP"}]))],
            "NoServedPort: the Service has no TCP or UDP port",
            "Unsupported",
        ),
    ] {
        let mut cluster = Cluster::new(&["192.0.2.1-192.0.2.9"]);
        cluster.pool("tiny", &["192.0.2.128"]);
        cluster.reserved.insert("192.0.2.128".parse().unwrap(), "Frontend api".into());
        cluster.service("good");
        cluster.settle();
        cluster.service("bad");
        for (path, value) in edits {
            cluster.edit("bad", path, value.clone());
        }
        let told = cluster.settle();
        assert!(told.iter().any(|told| told == event), "{name}: {told:?}");
        assert!(cluster.addresses("bad").is_empty(), "{name}");
        assert_eq!(cluster.condition("bad", tell::SERVING), format!("False {blame}"), "{name}");
        assert_eq!(cluster.finalizers("bad"), &Value::Null, "{name}: nothing to hold");
        cluster.service("later");
        cluster.settle();
        assert_eq!(cluster.addresses("good"), ["192.0.2.1"], "{name}");
        assert_eq!(cluster.addresses("later"), ["192.0.2.2"], "{name}");
    }
}

#[test]
fn what_was_refused_is_given_once_it_can_be() {
    let mut cluster = Cluster::new(&["192.0.2.1"]);
    cluster.service("a");
    cluster.service("b");
    let told = cluster.settle();
    assert!(told.contains(
        &"AddressPoolExhausted: every IPv4 address of AddressPool public is in use".into()
    ));
    assert!(told.contains(&"AddressPoolExhausted: no IPv4 address is left".into()), "{told:?}");
    cluster.pool("more", &["192.0.2.2"]);
    let told = cluster.settle();
    assert!(
        told.contains(&"AddressAssigned: 192.0.2.2 of AddressPool more is the Service's".into())
    );
    assert_eq!(cluster.addresses("b"), ["192.0.2.2"]);
}

#[test]
fn an_address_stays_when_its_pool_goes_and_that_is_told() {
    let mut cluster = Cluster::new(&["192.0.2.1"]);
    cluster.service("web");
    cluster.served.insert("192.0.2.1".parse().unwrap());
    cluster.settle();
    cluster.pools.clear();
    let told = cluster.settle();
    assert_eq!(told, ["AddressKept: 192.0.2.1 is in no AddressPool any more; it is kept"]);
    assert_eq!(cluster.addresses("web"), ["192.0.2.1"]);
    assert_eq!(cluster.condition("web", tell::KEPT), "True AddressKept");
    assert_eq!(cluster.condition("web", tell::SERVING), "True Serving");
    cluster.pool("public", &["192.0.2.0/28"]);
    cluster.settle();
    assert_eq!(cluster.condition("web", tell::KEPT), "");
}

#[test]
fn ports_that_are_not_served_carry_an_error() {
    let mut cluster = Cluster::new(&["192.0.2.1"]);
    let key = json!({"metallb.universe.tf/allow-shared-ip": "k"});
    cluster.service("old");
    cluster.edit("old", "/metadata/annotations", key.clone());
    cluster.settle();
    cluster.service("young");
    cluster.edit("young", "/metadata/annotations", key);
    cluster.edit("young", "/spec/ports", json!([{"port": 443}, {"port": 9, "protocol": "SCTP"}]));
    let told = cluster.settle();
    assert_eq!(cluster.addresses("young"), ["192.0.2.1"]);
    assert!(
        told.contains(&"ProtocolUnsupported: port 9/SCTP: weir carries TCP and UDP only".into())
    );
    // The older one adds a port that the younger serves: it does not get it.
    cluster.edit("old", "/spec/ports", json!([{"port": 80}, {"port": 443}]));
    let told = cluster.settle();
    assert_eq!(
        told,
        ["PortTaken: port 443/TCP of 192.0.2.1 is Service shop/young's; give it another port or \
          address"]
    );
    let ports = |name: &str| {
        cluster.services[name]["status"]["loadBalancer"]["ingress"][0]["ports"].clone()
    };
    assert_eq!(
        ports("old"),
        json!([
            {"port": 80, "protocol": "TCP"},
            {"port": 443, "protocol": "TCP", "error": "weir.dev/PortTaken"},
        ])
    );
    assert_eq!(
        ports("young"),
        json!([
            {"port": 443, "protocol": "TCP"},
            {"port": 9, "protocol": "SCTP", "error": "weir.dev/ProtocolUnsupported"},
        ])
    );
    assert_eq!(cluster.condition("old", tell::PORTS_ERROR), "True PortTaken");
}

#[test]
fn pools_tell_overlaps_and_entries_that_cannot_be_read() {
    let mut cluster = Cluster::new(&["192.0.2.0/30"]);
    cluster.pool("young", &["192.0.2.2-192.0.2.9", "192.0.2.77/24"]);
    let told = cluster.settle();
    assert!(told.iter().any(|it| it
        == "PoolsOverlap: 192.0.2.2-192.0.2.3 is of the older AddressPool public; the rest is given"));
    assert!(told.iter().any(|it| it.starts_with("InvalidAddresses: \"192.0.2.77/24\" has bits")));
    let status = &cluster.pools["young"]["status"];
    assert_eq!(status["ipv4"]["total"], 6);
    assert_eq!(status["conditions"][0]["reason"], "InvalidAddresses");
    cluster.service("web");
    cluster.edit("web", "/metadata/annotations", json!({"weir.dev/pool": "young"}));
    cluster.settle();
    assert_eq!(cluster.addresses("web"), ["192.0.2.4"]);
}

#[test]
fn an_address_given_by_another_controller_of_the_class_is_kept() {
    let mut cluster = Cluster::new(&["192.0.2.1-192.0.2.9"]);
    cluster.service("web");
    cluster.edit("web", "/status", json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}));
    cluster.settle();
    assert_eq!(cluster.addresses("web"), ["192.0.2.7"]);
    assert_eq!(cluster.finalizers("web"), &json!([FINALIZER]));
}

#[test]
fn nothing_is_taken_out_of_what_is_not_ours_although_it_is_looked_at() {
    let mut cluster = Cluster::new(&["192.0.2.1"]);
    cluster.service("web");
    cluster.settle();
    let web = serde_json::from_value(cluster.services["web"].clone()).unwrap();
    let mut web = ServiceObject::read(&web, false).unwrap();
    web.ours = false;
    let (namespaces, reserved, served) = Default::default();
    let state = State {
        services: &[web],
        pools: &[],
        frontends: &[],
        namespaces: &namespaces,
        reserved: &reserved,
        served: &served,
        now: Timestamp::UNIX_EPOCH,
    };
    assert!(writes(&state).is_empty());
}

#[test]
fn frontends_are_told_what_became_of_them_and_a_mended_one_is_accepted() {
    let mut cluster = Cluster::new(&["192.0.2.1"]);
    cluster.settle();
    cluster.frontend("api", &[]);
    cluster.frontend("bad", &["spec.ports: is missing", "spec.colour: unknown field"]);
    let said = |cluster: &Cluster, name: &str| {
        ["Accepted", "Served"].map(|it| Cluster::condition_of(&cluster.frontends[name].0, it))
    };
    let wrong = "spec.ports: is missing; spec.colour: unknown field; nothing of it is in force";
    assert_eq!(
        cluster.settle(),
        ["Accepted: all of it is in force".to_owned(), format!("Invalid: {wrong}")]
    );
    assert_eq!(said(&cluster, "api"), ["True Accepted", "False Pending"]);
    assert_eq!(said(&cluster, "bad"), ["False Invalid", "False NotAccepted"]);
    let status = &cluster.frontends["bad"].0["status"];
    assert_eq!(
        (&status["observedGeneration"], status["conditions"][0]["message"].as_str()),
        (&json!(1), Some(wrong))
    );

    cluster.served.insert("192.0.2.200".parse().unwrap());
    assert_eq!(cluster.settle(), ["Served: clients are served at 192.0.2.200"]);
    let since = cluster.frontends["api"].0["status"]["conditions"].clone();
    assert_ne!(since[0]["lastTransitionTime"], since[1]["lastTransitionTime"]);
    cluster.served.clear();
    assert!(cluster.round().is_empty(), "a node that has just started takes nothing back");

    // Mended, and another one's now: half of what it asks for is somebody else's.
    cluster.frontend("bad", &[]);
    let (api, outcome) = cluster.frontends.get_mut("api").unwrap();
    api["metadata"]["generation"] = json!(2);
    (outcome.conflict, outcome.wrong) = (true, vec!["Frontend/bad has it".into()]);
    assert_eq!(
        cluster.settle(),
        ["Conflict: Frontend/bad has it; the rest is in force", "Accepted: all of it is in force"]
    );
    assert_eq!(said(&cluster, "api"), ["False Conflict", "False Pending"], "of another generation");
    cluster.frontends.get_mut("api").unwrap().1.conflict = false;
    assert!(cluster.settle().is_empty(), "the same words are not told again");
    assert_eq!(said(&cluster, "api")[0], "False Incomplete");
}
