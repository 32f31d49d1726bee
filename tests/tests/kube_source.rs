//! What an agent makes of what a real API server says, from YAML to the maps and back to empty ones; and that
//! nothing is lost when the server is gone, another one, or comes back.
//! Needs root, the binary that `WEIR_BIN` names, and the one that `WEIR_KUBERNETES_BIN` names.

use std::{collections::BTreeMap, path::Path, time::Duration};

use lb_tests::{
    fleet::Fleet,
    kube::{Cluster, Rights, Server},
    lab::{Host, Lab, eventually},
};
use serde_json::Value;

/// For what a server and an agent do at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(30);

/// Longer than a list must wait for another one that confirms it.
const CONFIRMED: Duration = Duration::from_secs(120);

/// A Service of ours with three endpoints, of which one ends, and one of another class.
const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, annotations: {weir.dev/health-check: none}}
spec:
  type: LoadBalancer
  loadBalancerClass: weir.dev/weir
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: dns, port: 53, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: foreign}
spec: {type: LoadBalancer, loadBalancerClass: example.com/other, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}, {name: dns, port: 5353, protocol: UDP}]
endpoints:
- {addresses: [10.1.1.1], nodeName: node-1, conditions: {ready: true}}
- {addresses: [10.1.1.2], nodeName: node-1, conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.1.1.3], nodeName: node-1, conditions: {ready: false}}
"#;

struct Rig<'lab> {
    fleet: Fleet<'lab>,
    cluster: Cluster<'lab>,
    node: &'lab Host,
}

impl<'lab> Rig<'lab> {
    /// An agent with the rights that users grant, but for the Lease.
    fn new(lab: &'lab Lab) -> Self {
        Self::with_rights(lab, Rights::NoLease)
    }

    fn with_rights(lab: &'lab Lab, rights: Rights) -> Self {
        let cluster = Cluster::on(&[lab.node("node-1")]).start().unwrap();
        let account = cluster.install_account(rights).unwrap();
        Self::with(lab, cluster, &account.join("kubeconfig"))
    }

    fn with(lab: &'lab Lab, cluster: Cluster<'lab>, kubeconfig: &Path) -> Self {
        let (url, kubeconfig) = (cluster.server().url(), kubeconfig.display());
        let settings = format!("kubernetes: {{servers: [\"{url}\"], kubeconfig: {kubeconfig}}}");
        let fleet = Fleet::prepare_with(lab, &settings, "").unwrap();
        Self { fleet, cluster, node: lab.node("node-1") }
    }

    fn server(&self) -> &Server<'lab> {
        self.cluster.server()
    }

    /// Gives the Service `web` an address, as whoever allocates does.
    fn give(&self, address: &str) {
        let status = format!(
            r#"{{"status":{{"loadBalancer":{{"ingress":[{{"ip":"{address}","ipMode":"VIP"}}]}}}}}}"#
        );
        let patch =
            ["patch", "service", "web", "--subresource=status", "--type=merge", "-p", &status];
        self.server().kubectl(&patch).unwrap();
    }

    /// What the maps hold: frontends, each with its backends and how many slots they own.
    fn served(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let Ok(vips) = self.fleet.ask(self.node, &["vips"]) else { return BTreeMap::new() };
        let frontends = vips["vips"].as_array().unwrap().iter().flat_map(|vip| {
            let address = vip["address"].as_str().unwrap().parse().unwrap();
            let ports = vip["frontends"].as_array().unwrap().iter();
            ports.map(move |port| {
                (port["object"].as_str().unwrap_or("?").to_owned(), address, port.clone())
            })
        });
        let owners = |(object, address, port): (String, std::net::IpAddr, Value)| {
            let number = u16::try_from(port["port"].as_u64().unwrap()).unwrap();
            let owners = match port["protocol"].as_str() {
                Some("tcp") => self.fleet.owners(self.node, (address, number).into()),
                _ => BTreeMap::from([("owners".into(), port["owners"].as_u64().unwrap())]),
            };
            (object, owners)
        };
        frontends.map(owners).collect()
    }

    fn names(&self) -> Vec<String> {
        self.served().into_keys().collect()
    }

    fn status(&self) -> Value {
        self.fleet.ask(self.node, &["status"]).unwrap_or_default()
    }

    fn problems(&self) -> String {
        self.status()["problems"].to_string()
    }
}

fn lab() -> Lab {
    Lab::builder().nodes(1, 0).build().expect("a lab (needs root)")
}

#[test]
fn yaml_becomes_maps_and_deletion_empties_them() {
    let lab = lab();
    let rig = Rig::new(&lab);
    let vip = Lab::vips(0)[0].to_string();
    rig.fleet.start_agent(rig.node).unwrap();
    rig.server().apply(SERVICES).unwrap();
    eventually("the agent follows the server", SOON, || {
        rig.status()["kubernetes"]["stale"].is_null()
            && rig.status()["kubernetes"]["objects"]["services"] == 1
    });
    assert_eq!(rig.names(), Vec::<String>::new(), "no agent thinks up an address");

    rig.give(&vip);
    let both = ["service/default/web/dns", "service/default/web/http"];
    eventually("both ports are in the maps", SOON, || rig.names() == both);
    eventually("the ready endpoint alone takes new flows", SOON, || {
        rig.served()["service/default/web/http"].keys().eq(["10.1.1.1:8080"])
    });
    let ready = r#"[{"op":"replace","path":"/endpoints/2/conditions/ready","value":true}]"#;
    rig.server().kubectl(&["patch", "endpointslice", "web-1", "--type=json", "-p", ready]).unwrap();
    eventually("another endpoint turns ready", SOON, || {
        rig.served()["service/default/web/http"].keys().eq(["10.1.1.1:8080", "10.1.1.3:8080"])
    });

    rig.server().install_definitions().unwrap();
    let [_, other] = Lab::vips(1);
    let frontend = format!(
        "apiVersion: weir.dev/v1alpha1\nkind: Frontend\nmetadata: {{name: api}}\nspec: {{addresses: [\"{other}\"], \
         ports: [{{port: 6443}}], pool: {{nodeSelector: {{}}}}}}\n"
    );
    rig.server().apply(&frontend).unwrap();
    eventually("our own kind is found once it exists", SOON, || {
        rig.names().contains(&"frontend/api".into())
    });
    // What only the reader finds: a node that nobody knows.
    let bad = "apiVersion: weir.dev/v1alpha1\nkind: Frontend\nmetadata: {name: bad}\nspec: {addresses: [10.9.9.9], \
               ports: [{port: 1}], pool: {members: [{address: 10.1.1.9, node: nobody}]}}\n";
    rig.server().apply(bad).unwrap();
    eventually("a bad object is told and costs only itself", SOON, || {
        rig.problems().contains("no object `Node/nobody`") && rig.names().len() == 3
    });
    let refused = bad.replace("node: nobody", "port: 70000");
    assert!(
        !rig.server()
            .try_kubectl(&["apply", "--server-side", "-f", "-"], &refused)
            .unwrap()
            .status
            .success()
    );

    rig.server().kubectl(&["delete", "frontends.weir.dev", "--all"]).unwrap();
    rig.server().kubectl(&["delete", "service", "web", "foreign"]).unwrap();
    eventually("the maps are empty", SOON, || rig.names().is_empty());
}

#[test]
fn a_frontend_says_what_became_of_it_and_a_bad_one_costs_only_itself() {
    let lab = lab();
    let rig = Rig::with_rights(&lab, Rights::All);
    let server = rig.server();
    server.install_definitions().unwrap();
    let frontend = |name: &str, address: &str, pool: &str| {
        server
            .apply(&format!(
                "apiVersion: weir.dev/v1alpha1\nkind: Frontend\nmetadata: {{name: {name}}}\nspec: {{addresses: \
                 [\"{address}\"], ports: [{{port: 6443}}], pool: {{{pool}}}}}\n"
            ))
            .unwrap();
    };
    let told = |name: &str| {
        let object = server.get(&["frontend", name]).unwrap();
        let current = object["status"]["observedGeneration"] == object["metadata"]["generation"];
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let of = |it: &Value| {
            format!("{} {}", it["status"].as_str().unwrap(), it["reason"].as_str().unwrap())
        };
        let words: Vec<_> = conditions.iter().map(of).filter(|_| current).collect();
        (
            words.join(", "),
            conditions.first().map(|it| it["message"].to_string()).unwrap_or_default(),
        )
    };
    let event = |name: &str, kind: &str, reason: &str| {
        let events = server.get(&["events", "--namespace", "default"]).unwrap();
        events["items"].as_array().unwrap().iter().any(|it| {
            it["involvedObject"]["name"] == name && it["type"] == kind && it["reason"] == reason
        })
    };
    rig.fleet.start_agent(rig.node).unwrap();
    let [vip, other, third] = [0, 1, 2].map(|it| Lab::vips(it)[0].to_string());
    frontend("api", &vip, "nodeSelector: {}");
    eventually("a good one is accepted and served", SOON, || {
        told("api").0 == "True Accepted, True Served" && event("api", "Normal", "Served")
    });
    let version = |name: &str| {
        server.get(&["frontend", name]).unwrap()["metadata"]["resourceVersion"].to_string()
    };
    let before = version("api");

    frontend("bad", &other, "members: [{address: 10.1.1.9, node: nobody}]");
    frontend("empty", &third, "nodeSelector: {matchLabels: {role: none}}");
    frontend("twin", &vip, "nodeSelector: {}");
    for (name, reason, served, says) in [
        ("bad", "Invalid", "False NotAccepted", "no object `Node/nobody`"),
        ("empty", "Incomplete", "True Served", "has no IPv4 member in its pool"),
        ("twin", "Conflict", "False NotAccepted", "Frontend/api has"),
    ] {
        eventually(&format!("{name} is told {reason}"), SOON, || {
            let (words, message) = told(name);
            words == format!("False {reason}, {served}") && message.contains(says)
        });
        eventually(&format!("an Event says that of {name}"), SOON, || {
            event(name, "Warning", reason)
        });
    }
    frontend("bad", &other, "nodeSelector: {}");
    eventually("the mended one is accepted and served", SOON, || {
        told("bad").0 == "True Accepted, True Served" && event("bad", "Normal", "Accepted")
    });
    assert_eq!(told("api").0, "True Accepted, True Served");
    assert_eq!(version("api"), before, "a bad one costs only itself");
    let columns = server.kubectl(&["get", "frontends", "--output", "wide"]).unwrap();
    assert!(columns.contains("ACCEPTED") && columns.contains("Conflict"), "{columns}");
}

#[test]
fn a_server_that_dies_or_is_another_one_takes_nothing_away() {
    let lab = lab();
    // An administrator's account is known to the empty server too.
    let cluster = Cluster::on(&[lab.node("node-1")]).start().unwrap();
    let kubeconfig = cluster.server().kubeconfig().to_owned();
    let rig = Rig::with(&lab, cluster, &kubeconfig);
    let vip = Lab::vips(0)[0].to_string();
    rig.server().apply(SERVICES).unwrap();
    rig.give(&vip);
    rig.fleet.start_agent(rig.node).unwrap();
    let both = ["service/default/web/dns", "service/default/web/http"];
    let served = || rig.names() == both;
    eventually("both ports are in the maps", SOON, served);

    rig.server().stop().unwrap();
    eventually("a server that hangs is left", SOON, || {
        rig.status()["kubernetes"]["server"].is_null()
    });
    assert!(served());
    rig.server().go_on().unwrap();
    eventually("it is used again", SOON, || rig.status()["kubernetes"]["stale"].is_null());

    // An agent without any server serves from its checkpoint, which an orderly end writes.
    rig.fleet.stop_agent(rig.node).unwrap();
    rig.server().kill().unwrap();
    rig.fleet.start_agent(rig.node).unwrap();
    eventually("the agent says that it knows nothing new", SOON, || {
        rig.status()["kubernetes"]["stale"].as_str().is_some_and(|why| why.contains("nothing yet"))
    });
    assert!(served());

    rig.cluster.replace_by_empty().unwrap();
    eventually("an empty server is not believed", CONFIRMED, || {
        let problems = rig.problems();
        ["of another cluster", "no namespace kube-system"].iter().any(|it| problems.contains(it))
    });
    assert!(served());
}
