//! The objects of a large cluster, made and changed as its controllers would.

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    sync::mpsc::Sender,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use hyper::Request;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, Resource as _,
    api::{Patch, PatchParams, PostParams},
};
use lb_common::{frontend::Endpoint, net::Port, net::proto, service::blocks, table::DEFAULT_SLOTS};
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::kube::{Cluster, Server};

const NAMESPACE: &str = "default";
/// Requests under way while objects are made.
const AT_ONCE: usize = 64;
/// Of every endpoint.
const TARGET_PORT: u16 = 8080;
/// A Service is changed again only after all others.
const STRIDE: usize = 7919;
/// Room beside what is there: for tables of before, and for lives that go on.
const SPARE: usize = 8;

const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: weir}
rules:
- {apiGroups: ["", discovery.k8s.io, weir.dev], resources: ["*"], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: weir}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: weir}
subjects: [{kind: ServiceAccount, name: weir, namespace: weir-system}]
"#;

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub services: usize,
    pub endpoints: usize,
    pub vips: usize,
}

/// One endpoint that was replaced.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub sent: Instant,
    pub answered: Instant,
}

impl Size {
    pub fn vip(self, number: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(0x0a40_0000 + number as u32)
    }

    /// In the order of VIPs, then ports, as the maps are filled.
    fn address(self, service: usize) -> (Ipv4Addr, u16) {
        let each = self.services.div_ceil(self.vips);
        (self.vip(service / each), 1000 + (service % each) as u16)
    }

    /// The key of a Service's port in the maps.
    pub fn frontend(self, service: usize) -> Endpoint {
        let (address, port) = self.address(service);
        Endpoint::new(address.into(), Port::new(port), proto::TCP)
    }

    /// Lines of the `Agent`'s spec.
    pub fn limits(self) -> String {
        let with_spare = |count: usize| count + count.div_ceil(SPARE);
        let backends = with_spare(self.services * self.endpoints) + 1;
        let tables = with_spare(self.services) as u32;
        let owner_blocks = tables * blocks(DEFAULT_SLOTS.into()) + 1;
        let (frontends, vips) = (self.services + 1, self.vips + 1);
        format!(
            "limits: {{frontends: {frontends}, ownerBlocks: {owner_blocks}, backends: {backends}, vips: {vips}}}"
        )
    }

    fn service(self, number: usize) -> Result<Service> {
        Ok(serde_json::from_value(json!({
            "metadata": {"name": name(number), "annotations": {"weir.dev/health-check": "none"}},
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": "weir.dev/weir",
                "allocateLoadBalancerNodePorts": false,
                "ports": [{"name": "http", "port": self.address(number).1, "targetPort": TARGET_PORT}],
            },
        }))?)
    }

    fn slice(self, number: usize, node: &str) -> Result<EndpointSlice> {
        let endpoints: Vec<_> = (0..self.endpoints)
            .map(|at| {
                let address =
                    Ipv4Addr::from_bits(0x6440_0000 + (number * self.endpoints + at) as u32);
                json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}})
            })
            .collect();
        Ok(serde_json::from_value(json!({
            "metadata": {"name": name(number), "labels": {"kubernetes.io/service-name": name(number)}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": TARGET_PORT, "protocol": "TCP"}],
            "endpoints": endpoints,
        }))?)
    }
}

fn name(service: usize) -> String {
    format!("service-{service}")
}

/// Makes an account that may only look: another agent gives addresses.
pub fn account(cluster: &Cluster<'_>) -> Result<PathBuf> {
    cluster.server().kubectl(&["create", "namespace", "weir-system"])?;
    let account = cluster.service_account("weir-system", "weir")?;
    cluster.server().apply(RIGHTS)?;
    Ok(account)
}

/// Makes all Services, gives them their addresses, and makes their slices.
pub fn fill(server: &Server<'_>, size: Size, node: &str) -> Result<()> {
    server.with_client(async |client| {
        let services = Api::<Service>::namespaced(client.clone(), NAMESPACE);
        let slices = Api::<EndpointSlice>::namespaced(client, NAMESPACE);
        let (services, slices, post) = (&services, &slices, &PostParams::default());
        stream::iter(0..size.services)
            .map(async |number| {
                services.create(post, &size.service(number)?).await?;
                let ingress = json!([{"ip": size.address(number).0, "ipMode": "VIP"}]);
                let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
                let (name, params) = (name(number), PatchParams::default());
                services.patch_status(&name, &params, &Patch::Merge(status)).await?;
                slices.create(post, &size.slice(number, node)?).await?;
                anyhow::Ok(())
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await
    })
}

/// Replaces so many endpoints a second for so many seconds; says the number of each Service right before it is
/// changed. Returns when all are answered, in that order.
pub fn change(
    server: &Server<'_>,
    size: Size,
    (rate, seconds): (usize, usize),
    begun: Sender<usize>,
) -> Result<Vec<Change>> {
    server.with_client(async |client| {
        let mut changes = JoinSet::new();
        let mut turns = interval(Duration::from_secs(1) / rate as u32);
        turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for turn in 0..rate * seconds {
            turns.tick().await;
            let service = turn * STRIDE % size.services;
            begun.send(service).context("nobody looks at the maps")?;
            changes.spawn(replace(client.clone(), turn, service, turn % size.endpoints));
        }
        let mut changes = changes.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
        changes.sort_by_key(|(turn, _)| *turn);
        Ok(changes.into_iter().map(|(_, change)| change).collect())
    })
}

/// Puts an endpoint that never was in the place of another one.
async fn replace(
    client: Client,
    turn: usize,
    service: usize,
    at: usize,
) -> Result<(usize, Change)> {
    let slices = EndpointSlice::url_path(&(), Some(NAMESPACE));
    let address = Ipv4Addr::from_bits(0x6460_0000 + turn as u32);
    let path = format!("/endpoints/{at}/addresses/0");
    let patch = json!([{"op": "replace", "path": path, "value": address}]);
    let request = Request::patch(format!("{slices}/{}", name(service)))
        .header("content-type", "application/json-patch+json")
        .body(patch.to_string().into_bytes())?;
    let sent = Instant::now();
    client.request_text(request).await?;
    Ok((turn, Change { sent, answered: Instant::now() }))
}
