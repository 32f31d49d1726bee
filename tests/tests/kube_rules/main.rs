//! The rules of Services, one a row: what stands in a real API server, and what the maps of two nodes then hold. In the
//! end everything is deleted, and the maps are empty.
//! Needs root, the binary that `WEIR_BIN` names, and the one that `WEIR_KUBERNETES_BIN` names.

mod pods;
mod rig;
mod rows;

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use lb_tests::{
    lab::{Lab, eventually},
    traffic::{
        Failure,
        http::{self, HttpServer},
    },
};
use serde_json::{Value, json};

use rig::{Rig, delete_all};
use rows::{make, rows, vip};

/// For what a server and agents do at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(5);
const PORT: u16 = 8080;
const NODES: [&str; 2] = ["node-1", "node-2"];

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

#[test]
fn every_rule_of_services_is_in_the_maps_and_deletion_empties_them() {
    let lab = Lab::builder().nodes(2, 2).client("client").build().expect("a lab (needs root)");
    let mut rig = Rig::new(&lab);
    let rows = rows();
    rig.server().with_client(async |client| make(client, &lab, &rows).await).unwrap();
    let wanted: Vec<_> = rows.iter().map(|row| (row.name, row.nodes)).collect();
    rig.wait_held(&wanted);
    let problems = rig.problems();
    assert!(problems.contains("port 54/SCTP is not served"), "{problems}");
    assert!(problems.contains("has no IPv6 network"), "{problems}");

    health_ports_follow_the_endpoints(&rig);
    endpoints_of_local_are_reached_from_everywhere(&rig, vip(&rows, "local-elsewhere"));
    a_node_without_an_endpoint_of_local_drops(&rig, vip(&rows, "local-elsewhere"));
    clients_are_refused_where_nobody_serves(&rig, vip(&rows, "nobody"));
    a_service_that_turns_into_another_type_is_withdrawn(&rig);
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

/// By sockets on a node without any, and by a client outside: the node with the endpoint announces.
fn endpoints_of_local_are_reached_from_everywhere(rig: &Rig<'_>, vip: IpAddr) {
    let (node, pod) = (rig.lab.node(NODES[0]), &rig.lab.node(NODES[1]).pods()[0]);
    let _server = HttpServer::start(pod, "elsewhere", PORT).unwrap();
    let get = || http::get(SocketAddr::new(vip, 80), ANSWER);
    for client in [&**node, &node.pods()[0]] {
        let reply = client.run_below(node, get);
        assert_eq!(reply.server().unwrap(), "elsewhere", "{}", client.name());
    }
    eventually("a client outside is served", SOON, || {
        rig.lab.client("client").run(get).server() == Ok("elsewhere")
    });
}

/// Where the router leads packets to it in spite of who announces.
fn a_node_without_an_endpoint_of_local_drops(rig: &Rig<'_>, vip: IpAddr) {
    let (client, to) = (rig.lab.client("client"), format!("{vip}/32"));
    let get = || client.run(|| http::get(SocketAddr::new(vip, 80), ANSWER));
    let by_node = rig.lab.node(NODES[0]).v4().to_string();
    let route = |what: &str| {
        let mut ip = rig.lab.router().command("ip");
        assert!(ip.args(["route", what, &to, "via", &by_node]).status().unwrap().success());
    };
    route("add");
    assert_eq!(get().server(), Err(Failure::Timeout), "neither served nor refused");
    route("del");
}

fn clients_are_refused_where_nobody_serves(rig: &Rig<'_>, vip: IpAddr) {
    eventually("a client is refused", SOON, || {
        let get = || http::get(SocketAddr::new(vip, 80), ANSWER);
        rig.lab.client("client").run(get).server() == Err(Failure::Refused)
    });
}

fn a_service_that_turns_into_another_type_is_withdrawn(rig: &Rig<'_>) {
    let plain = json!({"spec": {"type": "ClusterIP", "loadBalancerClass": Value::Null}});
    let patched = rig.server().with_client(async |client| {
        let services = Api::<Service>::namespaced(client, "default");
        Ok(services.patch("ours", &PatchParams::default(), &Patch::Merge(&plain)).await?)
    });
    patched.unwrap();
    for node in rig.lab.nodes() {
        eventually("it is withdrawn", SOON, || {
            let held = rig.held(node);
            held.contains_key("nobody") && !held.contains_key("ours")
        });
    }
}

/// By the label's presence or the autoscaler's taint, until a setting lifts the label; one that is cordoned, or that its
/// kubelet calls not ready, goes on.
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
    patch(rig, NODES[1], json!({"spec": {"unschedulable": true}}));
    let conditions = json!([
        {"type": "Ready", "status": "False"}, {"type": "NetworkUnavailable", "status": "True"},
    ]);
    let flipped = rig.server().with_client(async |client| {
        let (nodes, status) =
            (Api::<Node>::all(client), json!({"status": {"conditions": conditions}}));
        Ok(nodes.patch_status(NODES[1], &PatchParams::default(), &Patch::Merge(&status)).await?)
    });
    flipped.unwrap();
    patch(rig, NODES[0], label("".into()));
    eventually("the labelled node announces nothing", SOON, || announced(rig, &only(NODES[1])));
    let going =
        json!([{"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}]);
    patch(rig, NODES[1], taint(going));
    eventually("nobody announces", SOON, || rig.announcers() == only("nobody"));
    patch(rig, NODES[1], taint(Value::Null));
    eventually("the other node does again", SOON, || announced(rig, &only(NODES[1])));

    rig.fleet.add_to_agent("  ignoreExcludeLabel: true\n  defaultClass: true\n");
    rig.fleet.configure("").unwrap();
    for node in rig.lab.nodes() {
        rig.fleet.stop_agent(node).unwrap();
        rig.fleet.start_agent(node).unwrap();
    }
    eventually("the label is ignored", SOON, || announced(rig, &both));
    eventually("Services without a class are ours now", SOON, || {
        rig.held(rig.lab.node(NODES[0])).get("no-class").is_some_and(|it| it == "web: A")
    });
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
