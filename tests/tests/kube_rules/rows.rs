//! Rows of Services with slices of our own.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use lb_tests::lab::Lab;
use serde_json::{Value, json};

use crate::rig::{give, labels, merge, pods, service};

/// One rule.
pub struct Row {
    /// Of the Service.
    pub name: &'static str,
    /// Differs from a Service of ours with one port `web`.
    spec: Value,
    /// Further fields of its metadata. With a finalizer it is deleted at once, and stays.
    metadata: Value,
    /// Further or other fields of each of its addresses.
    ingress: Value,
    /// Of each slice its ports (empty: `web`) and its endpoints, see [`endpoint`].
    slices: &'static [(&'static str, &'static str)],
    /// What each node holds: every port with who owns slots, or how many where it is UDP; and its flags.
    pub nodes: [&'static str; 2],
}

const fn row(
    name: &'static str,
    spec: Value,
    endpoints: &'static [(&'static str, &'static str)],
    nodes: [&'static str; 2],
) -> Row {
    let (metadata, ingress) = (Value::Null, Value::Null);
    Row { name, spec, metadata, ingress, slices: endpoints, nodes }
}

pub fn rows() -> Vec<Row> {
    let any = || json!({});
    let local = || json!({"externalTrafficPolicy": "Local"});
    let named = || json!({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81, "targetPort": "x"}]});
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
        row("another-proxy", any(), &[("", "A")], [""; 2])
            .metadata(json!({"labels": {"service.kubernetes.io/service-proxy-name": "x"}})),
        row("being-deleted", any(), &[("", "A")], [""; 2])
            .metadata(json!({"finalizers": ["example.com/hold"]})),
        row("proxied-address", any(), &[("", "A")], [""; 2]).ingress(json!({"ipMode": "Proxy"})),
        row("port-error", named(), &[("a b", "A")], ["a: A"; 2]).ingress(json!({"ports": [
            {"port": 80, "protocol": "TCP"},
            {"port": 81, "protocol": "TCP", "error": "example.com/Taken"},
        ]})),
        row("names-of-hosts", any(), &[("", "A"), ("", "pod.example.com")], ["web: A"; 2]),
        row("port-without-number", any(), &[("web:-", "A")], ["web: A:80"; 2]),
        row(
            "port-without-name",
            json!({"ports": [{"port": 80}]}),
            &[("/TCP", "A"), ("", "C")],
            ["80: A"; 2],
        ),
        row(
            "merged-slices",
            any(),
            &[("", "A B"), ("web:9090", "A C"), ("other", "D")],
            ["web: A A:9090 B C:9090"; 2],
        ),
        row(
            "named-ports",
            named(),
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
        row("ready-while-ending", any(), &[("", "A:ready-ending C")], ["web: A C"; 2]),
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
        row("hints-for-others", any(), &[("", "A@zone-c C@node-3@zone-c")], ["web: A C"; 2]),
        row("hint-is-missing", any(), &[("", "A@zone-a C")], ["web: A C"; 2]),
        row(
            "ending-has-no-say",
            any(),
            &[("", "A@zone-a C@zone-b D:ending")],
            ["web: A", "web: C"],
        ),
        row(
            "affinity",
            json!({
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}},
            }),
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
            "source-ranges-with-blanks",
            json!({"loadBalancerSourceRanges": [" 10.0.0.0/8", "10.9.0.0/16 "]}),
            &[("", "A")],
            ["web: A from:10.0.0.0/8 from:10.9.0.0/16"; 2],
        ),
        row("source-ranges-of-old", any(), &[("", "A")], ["web: A from:10.0.0.0/8"; 2])
            .metadata(json!({"annotations":
                {"service.beta.kubernetes.io/load-balancer-source-ranges": "10.0.0.0/8"}})),
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

    fn metadata(self, metadata: Value) -> Self {
        Self { metadata, ..self }
    }

    fn ingress(self, ingress: Value) -> Self {
        Self { ingress, ..self }
    }

    fn service(&self) -> Value {
        let mut service = service(self.name);
        merge(&mut service["metadata"], &self.metadata);
        merge(&mut service["spec"], &self.spec);
        service
    }

    fn slices(&self, lab: &Lab) -> Vec<Value> {
        let slice = |(number, (ports, endpoints)): (usize, &(&str, &str))| {
            let mut labels = labels();
            labels["kubernetes.io/service-name"] = self.name.into();
            let ports = if ports.is_empty() { "web" } else { ports };
            let kind = match endpoints {
                it if it.contains('.') => "FQDN",
                it if it.starts_with(|first: char| first.is_ascii_lowercase()) => "IPv6",
                _ => "IPv4",
            };
            json!({
                "metadata": {"name": format!("{}-{number}", self.name), "labels": labels},
                "addressType": kind,
                "ports": ports.split(' ').map(slice_port).collect::<Vec<_>>(),
                "endpoints": endpoints.split(' ').map(|it| endpoint(lab, it)).collect::<Vec<_>>(),
            })
        };
        self.slices.iter().enumerate().map(slice).collect()
    }
}

/// `name`, `name/PROTOCOL`, and `:port` where it is not 8080; `:-` where there is none.
fn slice_port(text: &str) -> Value {
    let (name, port) = text.split_once(':').unwrap_or((text, "8080"));
    let (name, protocol) = name.split_once('/').unwrap_or((name, "TCP"));
    let port: Option<u16> = (port != "-").then(|| port.parse().expect("a port"));
    json!({"name": name, "protocol": protocol, "port": port})
}

/// A, B: pods of node-1; C, D: of node-2; small letters are IPv6. Then `:` and its conditions, `@` and its hints. A
/// name of a host stands for itself.
fn endpoint(lab: &Lab, text: &str) -> Value {
    if text.contains('.') {
        return json!({"addresses": [text]});
    }
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

/// Makes everything that the rows say. The n-th has the n-th VIP, also of IPv6 where it is of both families.
pub async fn make(client: Client, lab: &Lab, rows: &[Row]) -> Result<()> {
    let services = Api::<Service>::namespaced(client.clone(), "default");
    let slices = Api::<EndpointSlice>::namespaced(client, "default");
    for (number, row) in (0..).zip(rows) {
        for slice in row.slices(lab) {
            let slice = serde_json::from_value(slice)?;
            slices.create(&PostParams::default(), &slice).await.context(row.name)?;
        }
        let service = row.service();
        let object = serde_json::from_value(service.clone())?;
        services.create(&PostParams::default(), &object).await.context(row.name)?;
        if row.has_address() {
            give(&services, &service, number, &row.ingress).await.context(row.name)?;
        }
        if service["metadata"]["finalizers"].is_array() {
            services.delete(row.name, &DeleteParams::default()).await.context(row.name)?;
        }
    }
    Ok(())
}

pub fn vip(rows: &[Row], name: &str) -> IpAddr {
    let number = rows.iter().position(|row| row.name == name).expect("a row");
    Lab::vips(u8::try_from(number).unwrap())[0]
}
