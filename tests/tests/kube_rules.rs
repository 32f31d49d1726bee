//! The rules of Services, one a row: what stands in a real API server, and what the maps of two nodes then hold. In the
//! end everything is deleted, and the maps are empty.
//! Needs root, the binary that `WEIR_BIN` names, and the one that `WEIR_KUBERNETES_BIN` names.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use lb_tests::{
    fleet::Fleet,
    kube::{Cluster, Server},
    lab::{Host, Lab, eventually},
    traffic::http::{self, HttpServer},
};
use serde_json::{Value, json};

/// For what a server and agents do at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(5);
const NAMESPACE: &str = "weir-system";
const PORT: u16 = 8080;
const NODES: [&str; 2] = ["node-1", "node-2"];
/// Marks what the rows made.
const ROW: &str = "row=yes";

const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: weir}
rules:
- {apiGroups: [""], resources: [services, nodes, namespaces], verbs: [get, list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [get, list, watch]}
- {apiGroups: [weir.dev], resources: [frontends, addresspools], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: weir}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: weir}
subjects: [{kind: ServiceAccount, name: weir, namespace: weir-system}]
"#;

/// One rule.
struct Row {
    /// Of the Service.
    name: &'static str,
    /// Differs from a Service of ours with one port `web`.
    spec: Value,
    /// Of each slice its ports (empty: `web`) and its endpoints, see [`endpoint`].
    slices: &'static [(&'static str, &'static str)],
    /// What each node holds: every port with who owns slots, or how many where it is UDP; and its flags.
    nodes: [&'static str; 2],
}

const fn row(
    name: &'static str,
    spec: Value,
    endpoints: &'static [(&'static str, &'static str)],
    nodes: [&'static str; 2],
) -> Row {
    Row { name, spec, slices: endpoints, nodes }
}

fn rows() -> Vec<Row> {
    let any = || json!({});
    let local = || json!({"externalTrafficPolicy": "Local"});
    let named =
        json!({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81, "targetPort": "x"}]});
    let mixed = json!({"ports": [
        {"name": "web", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "sig", "port": 54, "protocol": "SCTP"},
    ]});
    vec![
        row("ours", any(), &[("", "A C")], ["web: A C"; 2]),
        row("foreign-class", json!({"loadBalancerClass": "example.com/x"}), &[("", "A")], [""; 2]),
        row("no-class", json!({"loadBalancerClass": null}), &[("", "A")], [""; 2]),
        row(
            "another-type",
            json!({"type": "ClusterIP", "loadBalancerClass": null}),
            &[("", "A")],
            [""; 2],
        ),
        row(
            "headless",
            json!({"type": "ClusterIP", "clusterIP": "None", "loadBalancerClass": null}),
            &[("", "A")],
            [""; 2],
        ),
        row(
            "external-name",
            json!({"type": "ExternalName", "externalName": "example.com", "loadBalancerClass": null}),
            &[("", "A")],
            [""; 2],
        ),
        row(
            "merged-slices",
            any(),
            &[("", "A B"), ("web:9090", "A C"), ("other", "D")],
            ["web: A A:9090 B C:9090"; 2],
        ),
        row(
            "named-ports",
            named,
            &[("a b:9090", "A"), ("b:9191", "C")],
            ["a: A; b: A:9090 C:9191"; 2],
        ),
        row(
            "both-families",
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            &[("", "A"), ("", "c")],
            ["web: A c"; 2],
        ),
        row("nil-conditions", any(), &[("", "A:nil C:unready")], ["web: A"; 2]),
        row("ending-is-not-ready", any(), &[("", "A:ready-ending C")], ["web: C"; 2]),
        row("ending-as-fallback", any(), &[("", "A:ending B:dead C:unready")], ["web: A"; 2]),
        row("ending-dead", any(), &[("", "A:dead")], ["web:"; 2]),
        row("nobody", any(), &[], ["web:"; 2]),
        row(
            "local",
            local(),
            &[("", "A B:unready C D")],
            ["web: A local_only", "web: C D local_only"],
        ),
        row(
            "local-fallback",
            local(),
            &[("", "A:ending B:unready C D:ending")],
            ["web: A local_only", "web: C local_only"],
        ),
        row("local-elsewhere", local(), &[("", "C")], ["web: local_only", "web: C local_only"]),
        row("zones", any(), &[("", "A@zone-a B@zone-b C@zone-b")], ["web: A", "web: B C"]),
        row(
            "nodes-before-zones",
            any(),
            &[("", "A@node-1@zone-b B@node-2@zone-a C@node-2@zone-b")],
            ["web: A", "web: B C"],
        ),
        row("hint-is-missing", any(), &[("", "A@zone-a C")], ["web: A C"; 2]),
        row(
            "ending-has-no-say",
            any(),
            &[("", "A@zone-a C@zone-b D:ending")],
            ["web: A", "web: C"],
        ),
        row(
            "affinity",
            json!({"sessionAffinity": "ClientIP"}),
            &[("", "A")],
            ["web: A client_affinity"; 2],
        ),
        row(
            "no-node-ports",
            json!({"allocateLoadBalancerNodePorts": false}),
            &[("", "A")],
            ["web: A"; 2],
        ),
        row(
            "source-ranges",
            json!({"loadBalancerSourceRanges": ["10.0.0.0/8"], "ipFamilyPolicy": "RequireDualStack"}),
            &[("", "A"), ("", "c")],
            ["web: A c closed from:10.0.0.0/8"; 2],
        ),
        row(
            "mixed-protocols",
            mixed,
            &[("web dns/UDP:5353 sig/SCTP", "A C")],
            ["dns: 2; web: A C"; 2],
        ),
    ]
}

impl Row {
    fn has_address(&self) -> bool {
        !matches!(self.name, "another-type" | "headless" | "external-name")
    }

    fn service(&self) -> Value {
        let mut spec = json!({
            "type": "LoadBalancer", "loadBalancerClass": "weir.dev/weir",
            "ports": [{"name": "web", "port": 80, "targetPort": PORT}],
        });
        for (key, value) in self.spec.as_object().expect("fields") {
            spec[key] = value.clone();
        }
        let metadata = json!({
            "name": self.name, "labels": labels(),
            "annotations": {"weir.dev/health-check": "none"},
        });
        json!({"metadata": metadata, "spec": spec})
    }

    fn slices(&self, lab: &Lab) -> Vec<Value> {
        let slice = |(number, (ports, endpoints)): (usize, &(&str, &str))| {
            let mut labels = labels();
            labels["kubernetes.io/service-name"] = self.name.into();
            let ports = if ports.is_empty() { "web" } else { ports };
            let v6 = endpoints.starts_with(|first: char| first.is_ascii_lowercase());
            json!({
                "metadata": {"name": format!("{}-{number}", self.name), "labels": labels},
                "addressType": if v6 { "IPv6" } else { "IPv4" },
                "ports": ports.split(' ').map(slice_port).collect::<Vec<_>>(),
                "endpoints": endpoints.split(' ').map(|it| endpoint(lab, it)).collect::<Vec<_>>(),
            })
        };
        self.slices.iter().enumerate().map(slice).collect()
    }
}

fn labels() -> Value {
    let (key, value) = ROW.split_once('=').expect("a label");
    json!({key: value})
}

/// `name`, `name/PROTOCOL`, and `:port` where it is not [`PORT`].
fn slice_port(text: &str) -> Value {
    let (name, port) = text.split_once(':').unwrap_or((text, "8080"));
    let (name, protocol) = name.split_once('/').unwrap_or((name, "TCP"));
    let port: u16 = port.parse().expect("a port");
    json!({"name": name, "protocol": protocol, "port": port})
}

/// A, B: pods of node-1; C, D: of node-2; small letters are IPv6. Then `:` and its conditions, `@` and its hints.
fn endpoint(lab: &Lab, text: &str) -> Value {
    let mut words = text.split('@');
    let (pod, state) =
        words.next().map(|it| it.split_once(':').unwrap_or((it, "ready"))).expect("a pod");
    let conditions = match state {
        "nil" => json!({}),
        "ready" => json!({"ready": true, "serving": true, "terminating": false}),
        "unready" => json!({"ready": false, "serving": false, "terminating": false}),
        "ending" => json!({"ready": false, "serving": true, "terminating": true}),
        "ready-ending" => json!({"ready": true, "serving": true, "terminating": true}),
        "dead" => json!({"ready": false, "serving": false, "terminating": true}),
        other => panic!("{other}"),
    };
    let (node, addresses) = pods(lab).remove(&pod.to_ascii_uppercase()).expect("a pod");
    let address = addresses[usize::from(pod != pod.to_ascii_uppercase())];
    let (nodes, zones): (Vec<&str>, Vec<&str>) = words.partition(|hint| hint.starts_with("node"));
    let named =
        |names: Vec<&str>| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
    let mut endpoint = json!({"addresses": [address], "nodeName": node, "conditions": conditions});
    if !nodes.is_empty() {
        endpoint["hints"]["forNodes"] = named(nodes).into();
    }
    if !zones.is_empty() {
        endpoint["hints"]["forZones"] = named(zones).into();
    }
    endpoint
}

/// Pods by letter, each with its node and its addresses.
fn pods(lab: &Lab) -> BTreeMap<String, (&str, [IpAddr; 2])> {
    let of_node =
        |node: &'static str| lab.node(node).pods().iter().map(move |pod| (node, pod.addresses()));
    let letters = ["A", "B", "C", "D"].map(str::to_owned);
    letters.into_iter().zip(NODES.into_iter().flat_map(of_node)).collect()
}

struct Rig<'lab> {
    lab: &'lab Lab,
    cluster: Cluster<'lab>,
    fleet: Fleet<'lab>,
}

impl<'lab> Rig<'lab> {
    /// Agents that may only read, and know of nodes by Kubernetes alone.
    fn new(lab: &'lab Lab) -> Self {
        let cluster = Cluster::on(&NODES.map(|node| &**lab.node(node))).start().unwrap();
        cluster.wait_all_ready();
        let server = cluster.server();
        server.kubectl(&["create", "namespace", NAMESPACE]).unwrap();
        let account = cluster.service_account(NAMESPACE, "weir").unwrap();
        server.apply(RIGHTS).unwrap();
        server.with_client(async |client| make_nodes(client, lab).await).unwrap();
        let kubeconfig = account.join("kubeconfig");
        let settings = format!(
            "holdDowns: {{vips: 1s}}\nkubernetes:\n  servers: [\"{}\"]\n  kubeconfig: {}\n",
            server.url(),
            kubeconfig.display()
        );
        let mut fleet = Fleet::prepare_with(lab, &settings, "").unwrap();
        fleet.leave_nodes_out();
        fleet.configure("").unwrap();
        lab.nodes().iter().for_each(|node| drop(fleet.start_agent(node).unwrap()));
        Self { lab, cluster, fleet }
    }

    fn server(&self) -> &Server<'lab> {
        self.cluster.server()
    }

    /// What a node holds of each Service, as the rows say it.
    fn held(&self, node: &Host) -> BTreeMap<String, String> {
        let vips = self.vips(node);
        let frontends = vips.iter().flat_map(|vip| {
            let address: IpAddr = vip["address"].as_str().unwrap().parse().unwrap();
            vip["frontends"].as_array().unwrap().iter().map(move |it| (address, it.clone()))
        });
        let mut services: BTreeMap<String, BTreeMap<String, [BTreeSet<String>; 2]>> =
            BTreeMap::new();
        for (address, frontend) in frontends {
            let object = frontend["object"].as_str().unwrap_or("?/?/?/?").to_owned();
            let [_, _, service, port] = object.splitn(4, '/').collect::<Vec<_>>()[..] else {
                panic!("{object}")
            };
            let number = u16::try_from(frontend["port"].as_u64().unwrap()).unwrap();
            let owners: Vec<String> = match frontend["protocol"].as_str() {
                Some("tcp") => self
                    .fleet
                    .owners(node, (address, number).into())
                    .keys()
                    .map(|it| self.letter(it))
                    .collect(),
                _ => vec![frontend["owners"].to_string()],
            };
            let flags = frontend["flags"].as_array().unwrap().iter().filter_map(Value::as_str);
            let flags = flags.filter(|flag| !flag.contains("young")).map(str::to_owned);
            let from = frontend["source_ranges"].as_array().map(|ranges| match &ranges[..] {
                [] => vec!["closed".to_owned()],
                ranges => {
                    ranges.iter().filter_map(Value::as_str).map(|it| format!("from:{it}")).collect()
                }
            });
            let entry =
                services.entry(service.to_owned()).or_default().entry(port.to_owned()).or_default();
            entry[0].extend(owners);
            entry[1].extend(flags.chain(from.into_iter().flatten()));
        }
        let words = |(port, [owners, flags]): (String, [BTreeSet<String>; 2])| {
            let words: Vec<String> =
                [format!("{port}:")].into_iter().chain(owners).chain(flags).collect();
            words.join(" ")
        };
        let ports = |ports: BTreeMap<String, _>| {
            ports.into_iter().map(words).collect::<Vec<_>>().join("; ")
        };
        services.into_iter().map(|(service, it)| (service, ports(it))).collect()
    }

    fn vips(&self, node: &Host) -> Vec<Value> {
        let answer = self.fleet.ask(node, &["vips"]).unwrap_or_default();
        answer["vips"].as_array().cloned().unwrap_or_default()
    }

    fn letter(&self, backend: &str) -> String {
        let backend: SocketAddr = backend.parse().unwrap();
        let pods = pods(self.lab);
        let (letter, _) =
            pods.iter().find(|(_, (_, both))| both.contains(&backend.ip())).expect("a pod");
        let letter = if backend.is_ipv4() { letter.clone() } else { letter.to_lowercase() };
        match backend.port() {
            PORT => letter,
            port => format!("{letter}:{port}"),
        }
    }

    fn problems(&self) -> String {
        let status = self.fleet.ask(self.lab.node(NODES[0]), &["status"]).unwrap_or_default();
        status["problems"].to_string()
    }

    /// Who announces addresses, as both nodes see it; empty while they disagree.
    fn announcers(&self) -> BTreeSet<String> {
        let seen = NODES.map(|node| {
            let vips = self.vips(self.lab.node(node));
            let announcer = |vip: &Value| {
                (
                    vip["address"].to_string(),
                    vip["announcer"].as_str().unwrap_or("nobody").to_owned(),
                )
            };
            vips.iter().map(announcer).collect::<BTreeMap<_, _>>()
        });
        match seen[0] == seen[1] {
            true => seen[0].values().cloned().collect(),
            false => BTreeSet::new(),
        }
    }
}

async fn make_nodes(client: Client, lab: &Lab) -> Result<()> {
    let nodes = Api::<Node>::all(client);
    for (name, zone) in NODES.into_iter().zip(["zone-a", "zone-b"]) {
        let node =
            json!({"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}}});
        nodes.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
        let addresses =
            lab.node(name).addresses().map(|it| json!({"type": "InternalIP", "address": it}));
        let status = json!({"status": {"addresses": addresses}});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    }
    Ok(())
}

/// Makes everything that the rows say. The n-th has the n-th VIP, also of IPv6 where it is of both families.
async fn make(client: Client, lab: &Lab, rows: &[Row]) -> Result<()> {
    let services = Api::<Service>::namespaced(client.clone(), "default");
    let slices = Api::<EndpointSlice>::namespaced(client, "default");
    for (number, row) in (0..).zip(rows) {
        for slice in row.slices(lab) {
            let slice = serde_json::from_value(slice)?;
            slices.create(&PostParams::default(), &slice).await.context(row.name)?;
        }
        let service = serde_json::from_value(row.service())?;
        services.create(&PostParams::default(), &service).await.context(row.name)?;
        if row.has_address() {
            let families = 1 + usize::from(row.spec["ipFamilyPolicy"] == "RequireDualStack");
            let ingress = Lab::vips(number)
                .into_iter()
                .take(families)
                .map(|vip| json!({"ip": vip, "ipMode": "VIP"}));
            let status =
                json!({"status": {"loadBalancer": {"ingress": ingress.collect::<Vec<_>>()}}});
            let (parameters, status) = (PatchParams::default(), Patch::Merge(&status));
            services.patch_status(row.name, &parameters, &status).await.context(row.name)?;
        }
    }
    Ok(())
}

async fn delete_all(client: Client) -> Result<()> {
    let services = Api::<Service>::namespaced(client.clone(), "default");
    for service in services.list(&ListParams::default().labels(ROW)).await? {
        services.delete(&service.name_any(), &DeleteParams::default()).await?;
    }
    let slices = Api::<EndpointSlice>::namespaced(client, "default");
    slices.delete_collection(&DeleteParams::default(), &ListParams::default().labels(ROW)).await?;
    Ok(())
}

/// What the health check port of a Service says at a node: status and weight.
fn health(rig: &Rig<'_>, service: &str, node: &str) -> Option<(u16, String)> {
    let port = rig.server().with_client(async |client| {
        let service = Api::<Service>::namespaced(client, "default").get(service).await?;
        service.spec.and_then(|it| it.health_check_node_port).context("no port")
    });
    let to = SocketAddr::new(rig.lab.node(node).v4(), u16::try_from(port.unwrap()).unwrap());
    let asked = rig.lab.client("client").run(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    let answer = asked.ok()?;
    let weight =
        answer.lines().find_map(|line| line.strip_prefix("X-Load-Balancing-Endpoint-Weight: "))?;
    Some((answer.split(' ').nth(1)?.parse().ok()?, weight.to_owned()))
}

fn vip(rows: &[Row], name: &str) -> IpAddr {
    let number = rows.iter().position(|row| row.name == name).expect("a row");
    Lab::vips(u8::try_from(number).unwrap())[0]
}

#[test]
fn every_rule_of_services_is_in_the_maps_and_deletion_empties_them() {
    let lab = Lab::builder().nodes(2, 2).client("client").build().expect("a lab (needs root)");
    let mut rig = Rig::new(&lab);
    let rows = rows();
    rig.server().with_client(async |client| make(client, &lab, &rows).await).unwrap();
    for (index, node) in NODES.into_iter().enumerate() {
        let served = rows.iter().filter(|row| !row.nodes[index].is_empty());
        let wanted: BTreeMap<String, String> =
            served.map(|row| (row.name.to_owned(), row.nodes[index].to_owned())).collect();
        let mut held = BTreeMap::new();
        let mut tries = 0;
        eventually(&format!("{node} holds what the rows say"), SOON, || {
            held = rig.held(lab.node(node));
            tries += 1;
            if held != wanted && tries % 20 == 0 {
                eprintln!("{node}: {held:#?}");
            }
            held == wanted
        });
    }
    let problems = rig.problems();
    assert!(problems.contains("port 54/SCTP is not served"), "{problems}");
    assert!(problems.contains("has no IPv6 network"), "{problems}");

    health_ports_follow_the_endpoints(&rig);
    sockets_on_nodes_reach_endpoints_elsewhere(&rig, vip(&rows, "local-elsewhere"));
    nodes_that_are_excluded_announce_nothing(&mut rig);

    rig.server().with_client(delete_all).unwrap();
    for node in lab.nodes() {
        eventually("the maps are empty", SOON, || rig.vips(node).is_empty());
    }
    a_server_that_only_the_cluster_names_is_used(&rig);
}

fn health_ports_follow_the_endpoints(rig: &Rig<'_>) {
    for (service, node, status, weight) in [
        ("local", NODES[0], 200, "1"),
        ("local", NODES[1], 200, "2"),
        ("local-fallback", NODES[0], 503, "0"),
        ("local-elsewhere", NODES[0], 503, "0"),
        ("local-elsewhere", NODES[1], 200, "1"),
    ] {
        eventually(&format!("{node} tells {status} of {service}"), SOON, || {
            health(rig, service, node) == Some((status, weight.to_owned()))
        });
    }
}

fn sockets_on_nodes_reach_endpoints_elsewhere(rig: &Rig<'_>, vip: IpAddr) {
    let (node, pod) = (rig.lab.node(NODES[0]), &rig.lab.node(NODES[1]).pods()[0]);
    let _server = HttpServer::start(pod, "elsewhere", PORT).unwrap();
    for client in [&**node, &node.pods()[0]] {
        let reply = client.run_below(node, || http::get(SocketAddr::new(vip, 80), ANSWER));
        assert_eq!(reply.server().unwrap(), "elsewhere", "{}", client.name());
    }
}

/// By the label's presence or the autoscaler's taint, until a setting lifts the label.
fn nodes_that_are_excluded_announce_nothing(rig: &mut Rig<'_>) {
    let only = |name: &str| BTreeSet::from([name.to_owned()]);
    let label = |value: Value| json!({"metadata": {"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": value}}});
    let taint = |taints: Value| json!({"spec": {"taints": taints}});
    let patch = |rig: &Rig<'_>, node: &str, patch: Value| {
        let patched = rig.server().with_client(async |client| {
            let nodes = Api::<Node>::all(client);
            Ok(nodes.patch(node, &PatchParams::default(), &Patch::Merge(&patch)).await?)
        });
        patched.unwrap();
    };
    let both: BTreeSet<String> = NODES.map(str::to_owned).into();
    let announced = |rig: &Rig<'_>, by: &BTreeSet<String>| {
        rig.announcers().iter().filter(|it| *it != "nobody").eq(by)
    };
    eventually("both nodes announce", SOON, || announced(rig, &both));
    patch(rig, NODES[0], label("".into()));
    eventually("the labelled node announces nothing", SOON, || announced(rig, &only(NODES[1])));
    let going =
        json!([{"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}]);
    patch(rig, NODES[1], taint(going));
    eventually("nobody announces", SOON, || rig.announcers() == only("nobody"));
    patch(rig, NODES[1], taint(Value::Null));
    eventually("the other node does again", SOON, || announced(rig, &only(NODES[1])));

    rig.fleet.add_to_agent("  ignoreExcludeLabel: true\n");
    rig.fleet.configure("").unwrap();
    for node in rig.lab.nodes() {
        rig.fleet.stop_agent(node).unwrap();
        rig.fleet.start_agent(node).unwrap();
    }
    eventually("the label is ignored", SOON, || announced(rig, &both));
}

fn a_server_that_only_the_cluster_names_is_used(rig: &Rig<'_>) {
    let [first, second] = rig.cluster.servers() else { panic!("two servers") };
    first.kill().unwrap();
    for node in rig.lab.nodes() {
        eventually("the other server is in use", SOON, || {
            let status = rig.fleet.ask(node, &["status"]).unwrap_or_default();
            status["kubernetes"]["server"] == second.url()
        });
    }
}
