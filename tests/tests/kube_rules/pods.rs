//! Rows of Services that select pods: the real EndpointSlice controller decides which of them are ready, near or ending.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use lb_tests::lab::{Lab, eventually};
use serde_json::{Value, json};

use crate::{
    NODES, PORT, SOON,
    rig::{Rig, delete_all, give, labels, merge, pods, service},
};

/// Of the one pod that serves on another port, by the port's name.
const OTHER_PORT: u16 = 9090;
/// Longer than the test.
const GRACE: u32 = 3600;
const CONTROLLERS: &str = "--controllers=serviceaccount-controller,endpointslice-controller";

/// A Service, by what it differs from one of ours with one port `web`; the pods that it selects; what each node holds.
type Row = (&'static str, Value, &'static str, [&'static str; 2]);

/// A and B are pods of node-1, C and D of node-2. B is not ready, D is being deleted, C's port `http` is another one.
fn rows() -> [Row; 12] {
    let any = || json!({});
    let published = || json!({"publishNotReadyAddresses": true});
    let by_name = json!({"ports": [{"name": "web", "port": 80, "targetPort": "http"}]});
    let near = |how: &str| json!({"trafficDistribution": how});
    [
        ("ready", any(), "A B", ["web: A"; 2]),
        ("not-ready-published", published(), "A B", ["web: A B"; 2]),
        ("none-ready", any(), "B", ["web:"; 2]),
        ("none-ready-published", published(), "B", ["web: B"; 2]),
        (
            "none-ready-local-published",
            json!({"publishNotReadyAddresses": true, "externalTrafficPolicy": "Local"}),
            "B",
            ["web: B local_only", "web: local_only"],
        ),
        ("ports-by-name", by_name, "A C", ["web: A C:9090"; 2]),
        ("ending", any(), "A D", ["web: A"; 2]),
        ("all-ending", any(), "D", ["web: D"; 2]),
        ("ending-published", published(), "A D", ["web: A D"; 2]),
        ("near-zone", near("PreferSameZone"), "A C", ["web: A", "web: C"]),
        ("near-node", near("PreferSameNode"), "A C", ["web: A", "web: C"]),
        ("both-families", json!({"ipFamilyPolicy": "RequireDualStack"}), "A", ["web: A a"; 2]),
    ]
}

/// The label by which a Service selects pods.
fn selector(service: &str) -> Value {
    json!({format!("of-{service}"): "yes"})
}

/// Pods as a kubelet would tell of them, then the Services.
async fn make(client: Client, lab: &Lab, rows: &[Row]) -> Result<()> {
    let api = Api::<Pod>::namespaced(client.clone(), "default");
    for (letter, (node, addresses)) in pods(lab) {
        let name = letter.to_lowercase();
        let mut labels = labels();
        for (service, ..) in rows.iter().filter(|(.., pods, _)| pods.contains(&letter)) {
            merge(&mut labels, &selector(service));
        }
        let port = if letter == "C" { OTHER_PORT } else { PORT };
        let container = json!({"name": "app", "image": "none", "ports": [{"name": "http", "containerPort": port}]});
        let pod = json!({
            "metadata": {"name": name, "labels": labels},
            "spec": {"nodeName": node, "containers": [container]},
        });
        api.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        let ready = if letter == "B" { "False" } else { "True" };
        let status = json!({"status": {
            "phase": "Running", "podIP": addresses[0],
            "podIPs": addresses.map(|it| json!({"ip": it})),
            "conditions": [{"type": "Ready", "status": ready}],
        }});
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    }
    api.delete("d", &DeleteParams::default().grace_period(GRACE)).await?;

    let api = Api::<Service>::namespaced(client, "default");
    for (number, (name, spec, ..)) in (0..).zip(rows) {
        let mut service = service(name);
        merge(&mut service["spec"], &json!({"selector": selector(name)}));
        merge(&mut service["spec"], spec);
        let object = serde_json::from_value(service.clone())?;
        api.create(&PostParams::default(), &object).await.context(*name)?;
        give(&api, &service, number, &Value::Null).await.context(*name)?;
    }
    Ok(())
}

#[test]
fn what_the_controller_says_of_pods_is_in_the_maps() {
    let lab = Lab::builder().nodes(2, 2).build().expect("a lab (needs root)");
    let rig = Rig::new(&lab);
    // No other one: nothing here reports for nodes.
    rig.cluster.start_controllers(rig.server(), &[CONTROLLERS]).unwrap();
    let rows = rows();
    rig.server().with_client(async |client| make(client, &lab, &rows).await).unwrap();
    let wanted: Vec<_> = rows.iter().map(|(name, .., nodes)| (*name, *nodes)).collect();
    rig.wait_held(&wanted);

    rig.server().with_client(delete_all).unwrap();
    for node in NODES {
        eventually("the maps are empty", SOON, || rig.vips(lab.node(node)).is_empty());
    }
}
