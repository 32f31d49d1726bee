//! Two nodes with agents that follow a real API server, and what their maps hold, as the rows say it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
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
    kube::{Cluster, Rights, Server},
    lab::{Host, Lab, eventually},
};
use serde_json::{Value, json};

use crate::{NODES, PORT, SOON};

/// Marks what the rows made.
const ROW: &str = "row=yes";

pub struct Rig<'lab> {
    pub lab: &'lab Lab,
    pub cluster: Cluster<'lab>,
    pub fleet: Fleet<'lab>,
}

impl<'lab> Rig<'lab> {
    /// Agents that give no addresses, and know of nodes by Kubernetes alone.
    pub fn new(lab: &'lab Lab) -> Self {
        let cluster = Cluster::on(&NODES.map(|node| &**lab.node(node))).start().unwrap();
        cluster.wait_all_ready();
        let server = cluster.server();
        let account = cluster.install_account(Rights::NoLease).unwrap();
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

    pub fn server(&self) -> &Server<'lab> {
        self.cluster.server()
    }

    /// What a node holds of each Service, as the rows say it.
    pub fn held(&self, node: &Host) -> BTreeMap<String, String> {
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

    pub fn vips(&self, node: &Host) -> Vec<Value> {
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

    /// Waits until the nodes hold this of each Service, and of no other; empty: nothing.
    pub fn wait_held(&self, wanted: &[(&str, [&str; 2])]) {
        for (index, node) in NODES.into_iter().enumerate() {
            let served = wanted.iter().filter(|(_, nodes)| !nodes[index].is_empty());
            let wanted: BTreeMap<String, String> =
                served.map(|(name, nodes)| (name.to_string(), nodes[index].to_owned())).collect();
            let mut tries = 0;
            eventually(&format!("{node} holds what the rows say"), SOON, || {
                let held = self.held(self.lab.node(node));
                tries += 1;
                if held != wanted && tries % 20 == 0 {
                    let differs = held.iter().filter(|(name, it)| wanted.get(*name) != Some(it));
                    let lacks = wanted.iter().filter(|(name, _)| !held.contains_key(*name));
                    let (differs, lacks): (Vec<_>, Vec<_>) = (differs.collect(), lacks.collect());
                    eprintln!("{node} holds {differs:?}, lacks {lacks:?}");
                }
                held == wanted
            });
        }
    }

    pub fn problems(&self) -> String {
        let status = self.fleet.ask(self.lab.node(NODES[0]), &["status"]).unwrap_or_default();
        status["problems"].to_string()
    }

    /// Who announces addresses, as both nodes see it; empty while they disagree.
    pub fn announcers(&self) -> BTreeSet<String> {
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

/// Pods by letter, each with its node and its addresses.
pub fn pods(lab: &Lab) -> BTreeMap<String, (&str, [IpAddr; 2])> {
    let of_node =
        |node: &'static str| lab.node(node).pods().iter().map(move |pod| (node, pod.addresses()));
    let letters = ["A", "B", "C", "D"].map(str::to_owned);
    letters.into_iter().zip(NODES.into_iter().flat_map(of_node)).collect()
}

/// Of everything that rows make.
pub fn labels() -> Value {
    let (key, value) = ROW.split_once('=').expect("a label");
    json!({key: value})
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

/// A Service of ours with one port `web`, whose endpoints nobody probes.
pub fn service(name: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "labels": labels(), "annotations": {"weir.dev/health-check": "none"},
        },
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": "weir.dev/weir",
            "ports": [{"name": "web", "port": 80, "targetPort": PORT}],
        },
    })
}

/// Gives a Service the n-th VIP, as whoever allocates does; that of IPv6 too where it is of both families. Further fields
/// are those of each address.
pub async fn give(
    services: &Api<Service>,
    service: &Value,
    number: u8,
    more: &Value,
) -> Result<()> {
    let families = 1 + usize::from(service["spec"]["ipFamilyPolicy"] == "RequireDualStack");
    let ingress = Lab::vips(number).into_iter().take(families).map(|vip| {
        let mut ingress = json!({"ip": vip, "ipMode": "VIP"});
        merge(&mut ingress, more);
        ingress
    });
    let status = json!({"status": {"loadBalancer": {"ingress": ingress.collect::<Vec<_>>()}}});
    let name = service["metadata"]["name"].as_str().expect("a name");
    services.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

/// Adds or replaces fields, but those of labels and annotations one by one.
pub fn merge(into: &mut Value, fields: &Value) {
    for (key, value) in fields.as_object().into_iter().flatten() {
        match key.as_str() {
            "labels" | "annotations" => merge(&mut into[key], value),
            _ => into[key] = value.clone(),
        }
    }
}

/// All that has these labels.
pub async fn delete_all(client: Client) -> Result<()> {
    let services = Api::<Service>::namespaced(client.clone(), "default");
    for service in services.list(&ListParams::default().labels(ROW)).await? {
        services.delete(&service.name_any(), &DeleteParams::default()).await?;
    }
    let slices = Api::<EndpointSlice>::namespaced(client, "default");
    slices.delete_collection(&DeleteParams::default(), &ListParams::default().labels(ROW)).await?;
    Ok(())
}
