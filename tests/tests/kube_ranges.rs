//! Who may connect to a Service is whom its `loadBalancerSourceRanges` name, also after kubectl changed them.
//! Needs root, the binary that `WEIR_BIN` names, and the one that `WEIR_KUBERNETES_BIN` names.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_tests::{
    fleet::Fleet,
    kube::{Cluster, Rights, Server},
    lab::{Host, Lab, eventually},
    traffic::{
        Failure,
        http::{self, HttpServer},
    },
};
use serde_json::{Value, json};

/// For what servers and agents do at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(60);
/// For an answer, and none where nobody may ask.
const ANSWER: Duration = Duration::from_millis(500);
const WEB: u16 = 80;

struct Site<'lab> {
    lab: &'lab Lab,
    cluster: Cluster<'lab>,
    fleet: Fleet<'lab>,
}

impl<'lab> Site<'lab> {
    /// Agents that are installed as users do it, with a pool of addresses.
    fn new(lab: &'lab Lab) -> Self {
        let cluster = Cluster::on(&[lab.node("node-1")]).start().unwrap();
        let server = cluster.server();
        let account = cluster.install_account(Rights::All).unwrap();
        server.install_definitions().unwrap();
        let [v4, v6] = Lab::vips(0);
        let pool = json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "AddressPool",
            "metadata": {"name": "lab"}, "spec": {"addresses": [v4, v6]},
        });
        eventually("the pool is taken", SOON, || server.apply(&pool.to_string()).is_ok());
        let settings = format!(
            "kubernetes: {{servers: [\"{}\"], kubeconfig: {}}}\nholdDowns: {{vips: 1s}}",
            server.url(),
            account.join("kubeconfig").display()
        );
        let fleet = Fleet::prepare_with(lab, &settings, "").unwrap();
        lab.nodes().iter().for_each(|node| drop(fleet.start_agent(node).unwrap()));
        Self { lab, cluster, fleet }
    }

    fn server(&self) -> &Server<'lab> {
        self.cluster.server()
    }

    /// Makes the Service, with a pod as its endpoint by both families, open to these.
    fn serve(&self, pod: &Host, node: &str, ranges: &Value) {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": "weir.dev/weir",
                "ipFamilyPolicy": "RequireDualStack", "loadBalancerSourceRanges": ranges,
                "ports": [{"name": "web", "port": WEB}],
            },
        });
        let slice = |address: IpAddr| {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("web-{}", family.to_lowercase()),
                    "labels": {"kubernetes.io/service-name": "web"},
                },
                "addressType": family,
                "ports": [{"name": "web", "port": WEB, "protocol": "TCP"}],
                "endpoints": [
                    {"addresses": [address], "nodeName": node, "conditions": {"ready": true}},
                ],
            })
        };
        let [v4, v6] = pod.addresses().map(slice);
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [service, v4, v6]});
        self.server().apply(&objects.to_string()).unwrap();
    }

    /// Packets of clients that no range names, at all nodes.
    fn denied(&self) -> u64 {
        self.lab.nodes().iter().map(|node| self.fleet.count(node, "source_denied")).sum()
    }

    /// Waits until each of these clients is served at the addresses, or is not, and counted.
    fn wait_open(&self, vips: &[IpAddr], clients: [(&Host, bool); 2]) {
        for (vip, (client, open)) in vips.iter().flat_map(|vip| clients.map(|it| (*vip, it))) {
            let what = if open { "open" } else { "closed" };
            eventually(&format!("{vip} is {what} to {}", client.name()), SOON, || {
                let before = self.denied();
                let reply = client.run(|| http::get(SocketAddr::new(vip, WEB), ANSWER));
                match open {
                    true => reply.server() == Ok("pod"),
                    false => reply.server() == Err(Failure::Timeout) && self.denied() > before,
                }
            });
        }
    }
}

/// A client alone, by both families.
fn alone(client: &Host) -> Value {
    let [v4, v6] = client.addresses();
    json!([format!("{v4}/32"), format!("{v6}/128")])
}

#[test]
fn clients_outside_of_the_ranges_get_nothing_and_kubectl_changes_who_is_inside() {
    let lab = Lab::builder().nodes(2, 1).client("in").client("out").build().unwrap();
    let (home, [inside, outside]) = (lab.node("node-2"), ["in", "out"].map(|it| lab.client(it)));
    let site = Site::new(&lab);
    let _web = HttpServer::start(&home.pods()[0], "pod", WEB).unwrap();
    let vips = Lab::vips(0);

    site.serve(&home.pods()[0], home.name(), &alone(inside));
    site.wait_open(&vips, [(inside, true), (outside, false)]);

    let patch = |ranges: Value| {
        let patch = json!({"spec": {"loadBalancerSourceRanges": ranges}}).to_string();
        site.server().kubectl(&["patch", "service", "web", "--type=merge", "-p", &patch]).unwrap();
    };
    patch(alone(outside));
    site.wait_open(&vips, [(inside, false), (outside, true)]);

    // Of one family: the other is closed to all.
    patch(json!([format!("{}/32", inside.v4())]));
    site.wait_open(&vips[..1], [(inside, true), (outside, false)]);
    site.wait_open(&vips[1..], [(inside, false), (outside, false)]);

    patch(Value::Null);
    site.wait_open(&vips, [(inside, true), (outside, true)]);
}
