//! The control plane of the lab is a real one, and can fail in the ways that weir must survive.
//! Needs root, and the binary that `WEIR_KUBERNETES_BIN` names.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt as _;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams, WatchEvent, WatchParams},
};
use lb_tests::{
    kube::{Cluster, READY, Server},
    lab::{Lab, eventually},
};
use serde_json::json;

/// For what a server does at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(20);

/// A Service of our class with one endpoint.
const WEB: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  loadBalancerClass: weir.dev/weir
  ipFamilyPolicy: PreferDualStack
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.1.1.1], nodeName: node-1, conditions: {ready: true}}]
"#;

fn lab(masters: usize) -> Lab {
    (1..=masters)
        .fold(Lab::builder(), |lab, number| lab.node(&format!("master-{number}"), 0))
        .build()
        .expect("a lab (needs root)")
}

fn services(client: Client) -> Api<Service> {
    Api::namespaced(client, "default")
}

/// Waits until the Service `web` is watched, writes its status as weir's allocator does, and waits until the watch has told.
async fn write_status_under_watch(client: Client) -> Result<()> {
    let services = services(client);
    let now = services.get("web").await?.resource_version().context("a version")?;
    let watch = services.watch(&WatchParams::default().fields("metadata.name=web"), &now).await?;
    let status = json!({
        "apiVersion": "v1", "kind": "Service",
        "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.100", "ipMode": "VIP"}]}},
    });
    let written =
        services.patch_status("web", &PatchParams::apply("weir"), &Patch::Apply(status)).await?;
    let mut watch = std::pin::pin!(watch);
    let event = tokio::time::timeout(SOON, watch.try_next()).await??;
    let Some(WatchEvent::Modified(told)) = event else { anyhow::bail!("told {event:?}") };
    ensure!(told.resource_version() == written.resource_version(), "told {told:?}");
    Ok(())
}

/// The address that the Service `web` has, as `server` tells.
fn address(server: &Server) -> Option<String> {
    let get = async |client| Ok(services(client).get_opt("web").await?);
    let service = server.with_client(get).ok()??;
    service.status?.load_balancer?.ingress?.first()?.ip.clone()
}

#[test]
fn service_gets_its_status_and_the_servers_failures_lose_nothing() {
    let lab = lab(2);
    let [first, second] = lab.nodes() else { unreachable!() };
    let cluster = Cluster::on(&[first, second]).start().unwrap();
    let [server, other] = cluster.servers() else { unreachable!() };

    server.apply(WEB).unwrap();
    server.with_client(write_status_under_watch).unwrap();
    let web = other.get(&["service", "web"]).unwrap();
    assert_eq!(web["status"]["loadBalancer"]["ingress"][0]["ipMode"], "VIP");
    assert_eq!(web["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]), "both families are served");

    server.kill().unwrap();
    assert_eq!(address(server), None);
    assert_eq!(address(other).as_deref(), Some("10.0.0.100"), "the other server goes on");
    server.start().unwrap();
    server.wait_ready();
    assert_eq!(address(server).as_deref(), Some("10.0.0.100"), "etcd has kept it");

    server.stop().unwrap();
    assert!(!server.is_ready(), "a stopped server answers nobody");
    server.go_on().unwrap();
    eventually("the server goes on", SOON, || server.is_ready());
}

#[test]
fn replacement_knows_nothing_and_takes_the_old_certificates() {
    let lab = lab(1);
    let cluster = Cluster::on(&[lab.node("master-1")]).start().unwrap();
    let server = cluster.server();
    server.apply(WEB).unwrap();
    let old = server.get(&["namespace", "kube-system"]).unwrap();

    cluster.replace_by_empty().unwrap();

    let left = server.get(&["services,endpointslices"]).unwrap();
    let names: Vec<_> = left["items"].as_array().unwrap().iter().map(name).collect();
    assert!(names.iter().all(|name| *name == "kubernetes"), "left: {names:?}");
    let new = server.get(&["namespace", "kube-system"]).unwrap();
    assert_ne!(new["metadata"]["uid"], old["metadata"]["uid"]);
}

fn name(object: &serde_json::Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

#[test]
fn controllers_follow_pods_and_service_accounts_may_what_was_granted() {
    let lab = lab(1);
    let cluster = Cluster::on(&[lab.node("master-1")]).start().unwrap();
    let server = cluster.server();
    cluster.start_controllers(server, &[]).unwrap();
    server.apply(POD).unwrap();
    let status = r#"{"status": {"phase": "Running", "podIP": "10.1.1.1", "podIPs": [{"ip": "10.1.1.1"}],
        "conditions": [{"type": "Ready", "status": "True"}]}}"#;
    server.kubectl(&["patch", "pod", "app", "--subresource=status", "--patch", status]).unwrap();
    eventually("the controllers list the pod's address", READY, || {
        ready_endpoints(server) == ["10.1.1.1"]
    });

    let account = cluster.service_account("kube-system", "weir").unwrap();
    let kubeconfig = account.join("kubeconfig");
    assert!(!may_list_services(server, &kubeconfig), "nothing was granted yet");
    server
        .kubectl(&[
            "create",
            "clusterrolebinding",
            "weir",
            "--clusterrole=view",
            "--serviceaccount=kube-system:weir",
        ])
        .unwrap();
    eventually("the grant is in force", SOON, || may_list_services(server, &kubeconfig));
}

/// A pod on a node: those whose node is not known, the controllers pass over, and delete in the end.
const POD: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: node-1}
---
apiVersion: v1
kind: Pod
metadata: {name: app, labels: {app: app}}
spec: {nodeName: node-1, containers: [{name: app, image: none}]}
---
apiVersion: v1
kind: Service
metadata: {name: app}
spec: {selector: {app: app}, ports: [{port: 80}]}
"#;

fn ready_endpoints(server: &Server) -> Vec<String> {
    let list = async |client| {
        let slices: Api<EndpointSlice> = Api::namespaced(client, "default");
        Ok(slices
            .list(&kube::api::ListParams::default().labels("kubernetes.io/service-name=app"))
            .await?)
    };
    let slices = server.with_client(list).unwrap();
    let endpoints = slices.items.into_iter().flat_map(|slice| slice.endpoints);
    let ready = endpoints.filter(|endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
    });
    ready.flat_map(|endpoint| endpoint.addresses).collect()
}

fn may_list_services(server: &Server, kubeconfig: &Path) -> bool {
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    server.kubectl(&[&kubeconfig, "get", "services", "--all-namespaces"]).is_ok()
}
