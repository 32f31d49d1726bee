//! Addresses of Services, given by controllers that share a Lease, against a real API server.
//! Needs root, and the binary that `WEIR_KUBERNETES_BIN` names.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, future::BoxFuture, stream};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Namespace, Service},
        events::v1::Event,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, CustomResourceExt as _, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, reflector, watcher},
};
use lb_tests::{
    kube::{Cluster, Server},
    lab::Lab,
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use weir::sources::kubernetes::{
    controller::{self, CLASS, Desk, FINALIZER, ServiceObject, World},
    crd_pool::AddressPool,
    lease,
};

/// For what a controller does at once, or when a Lease has run out, on a machine that is busy.
const SOON: Duration = Duration::from_secs(60);

/// Where the Lease lies.
const NAMESPACE: &str = "default";

/// Does `work`, then looks with `last`.
fn with_server(
    work: impl AsyncFnOnce(Client) -> Result<()> + Send,
    last: impl FnOnce(&Server<'_>),
) {
    let lab = Lab::builder().node("master-1", 0).build().expect("a lab (needs root)");
    let cluster = Cluster::on(&[lab.node("master-1")]).start().unwrap();
    let server = cluster.server();
    let run = async |client: Client| {
        define(&client).await?;
        work(client).await
    };
    server.with_client(run).unwrap();
    last(server);
}

/// Makes `AddressPool` known, and waits until it is served.
async fn define(client: &Client) -> Result<()> {
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    definitions.create(&PostParams::default(), &AddressPool::crd()).await?;
    let pools = Api::<AddressPool>::all(client.clone());
    until("AddressPool is served", async || {
        Ok(pools.list(&ListParams::default()).await.ok().map(drop))
    })
    .await
}

/// Asks until there is an answer.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        ensure!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// What the reflectors know.
#[derive(Clone)]
struct Known {
    services: Vec<Arc<Service>>,
    pools: Vec<Arc<AddressPool>>,
    namespaces: Vec<Arc<Namespace>>,
}

fn world(known: &Known) -> World {
    let labels = |it: &Arc<Namespace>| (it.name_any(), it.labels().clone());
    World {
        services: known.services.iter().filter_map(|it| ServiceObject::read(it, false)).collect(),
        pools: known.pools.iter().map(|it| (**it).clone()).collect(),
        namespaces: known.namespaces.iter().map(labels).collect(),
        ..World::default()
    }
}

/// A controller and its reflectors; ends when its stop is told.
struct Controller {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
    _ways: (watch::Sender<Option<Client>>, watch::Sender<Arc<BTreeSet<std::net::IpAddr>>>),
}

fn start(client: &Client, me: &str) -> Controller {
    let (tell, snapshot) = watch::channel(None);
    let (stop, stopped) = watch::channel(false);
    let (way, client_in) = watch::channel(Some(client.clone()));
    let (served, served_in) = watch::channel(Arc::new(BTreeSet::new()));
    let desk = Desk {
        client: client_in,
        snapshot,
        world: Box::new(world),
        served: served_in,
        stop: stopped,
        namespace: NAMESPACE.into(),
        me: me.into(),
        default_class: false,
        turn: Box::new(|| 0),
        seed: me.len() as u64,
        clock: || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            since.map_or(0, |since| since.as_millis() as u64)
        },
    };
    let follow = follow(client.clone(), tell);
    let task = tokio::spawn(async move {
        tokio::select! {
            () = controller::run(desk) => {}
            () = follow => {}
        }
    });
    Controller { stop, task, _ways: (way, served) }
}

/// Lists and watches, and tells all of it after every change once every first list is complete.
fn follow(client: Client, tell: watch::Sender<Option<Known>>) -> BoxFuture<'static, ()> {
    let (services, services_in) = reflector::store();
    let (pools, pools_in) = reflector::store();
    let (namespaces, namespaces_in) = reflector::store();
    let config = watcher::Config::default;
    let of_services = watcher(Api::<Service>::all(client.clone()), config());
    let of_pools = watcher(Api::<AddressPool>::all(client.clone()), config());
    let of_namespaces = watcher(Api::<Namespace>::all(client), config());
    let mut changes = stream::select_all([
        of_services.reflect(services_in).default_backoff().map(drop).boxed(),
        of_pools.reflect(pools_in).default_backoff().map(drop).boxed(),
        of_namespaces.reflect(namespaces_in).default_backoff().map(drop).boxed(),
    ]);
    Box::pin(async move {
        let ready = async {
            let _ = services.wait_until_ready().await;
            let _ = pools.wait_until_ready().await;
            let _ = namespaces.wait_until_ready().await;
        };
        let mut ready = std::pin::pin!(ready);
        let mut complete = false;
        while changes.next().await.is_some() {
            complete = complete || futures::poll!(&mut ready).is_ready();
            if complete {
                tell.send_replace(Some(Known {
                    services: services.state(),
                    pools: pools.state(),
                    namespaces: namespaces.state(),
                }));
            }
        }
    })
}

fn services(client: &Client) -> Api<Service> {
    Api::namespaced(client.clone(), "default")
}

async fn create_pool(client: &Client, name: &str, addresses: &[&str]) -> Result<(), kube::Error> {
    let pool = serde_json::from_value(json!({
        "apiVersion": "weir.dev/v1alpha1",
        "kind": "AddressPool",
        "metadata": {"name": name},
        "spec": {"addresses": addresses},
    }));
    let pool: AddressPool = pool.expect("a pool");
    Api::all(client.clone()).create(&PostParams::default(), &pool).await.map(drop)
}

async fn create_service(client: &Client, name: &str) -> Result<()> {
    create_with(client, name, json!({}), json!({})).await
}

/// The same with annotations, and with further or other fields of the spec.
async fn create_with(client: &Client, name: &str, annotations: Value, spec: Value) -> Result<()> {
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": CLASS, "ports": [{"port": 80}]},
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        service["spec"][field] = value.clone();
    }
    services(client).create(&PostParams::default(), &serde_json::from_value(service)?).await?;
    Ok(())
}

fn addresses(service: &Service) -> Vec<String> {
    let status = service.status.as_ref().and_then(|it| it.load_balancer.as_ref());
    let ingress = status.and_then(|it| it.ingress.as_ref());
    ingress.into_iter().flatten().filter_map(|it| it.ip.clone()).collect()
}

fn address(service: &Service) -> Option<String> {
    addresses(service).into_iter().next()
}

async fn addressed(client: &Client, name: &str) -> Result<Service> {
    let services = services(client);
    until(&format!("{name} has an address"), async || {
        Ok(services.get_opt(name).await?.filter(|it| address(it).is_some()))
    })
    .await
}

/// Waits for an Event of a Service; its note.
async fn event(client: &Client, name: &str, reason: &str) -> Result<String> {
    let events = Api::<Event>::namespaced(client.clone(), "default");
    until(&format!("{name} is told {reason}"), async || {
        let list = events.list(&ListParams::default()).await?;
        let about = |it: &Event| it.regarding.as_ref().and_then(|it| it.name.clone());
        let mut found = list.items.into_iter().filter(|it| about(it).as_deref() == Some(name));
        let found = found.find(|it| it.reason.as_deref() == Some(reason));
        Ok(found.map(|it| it.note.unwrap_or_default()))
    })
    .await
}

#[test]
fn a_service_gets_an_address_conditions_and_an_event_and_is_let_go_when_deleted() {
    let work = async |client| {
        create_pool(&client, "public", &["192.0.2.1", "2001:db8::/64"]).await?;
        let controller = start(&client, "one");
        create_service(&client, "web").await?;
        let web = addressed(&client, "web").await?;
        assert_eq!(address(&web).as_deref(), Some("192.0.2.1"));
        assert_eq!(web.finalizers(), [FINALIZER]);
        let status = serde_json::to_value(web.status.context("a status")?)?;
        assert_eq!(
            status["loadBalancer"]["ingress"],
            json!([{
                "ip": "192.0.2.1", "ipMode": "VIP", "ports": [{"port": 80, "protocol": "TCP"}],
            }])
        );
        let types: Vec<_> = status["conditions"].as_array().into_iter().flatten().collect();
        let types: Vec<_> =
            types.iter().map(|it| it["type"].as_str().unwrap_or_default()).collect();
        assert_eq!(types, ["LoadBalancerProvisioning", "LoadBalancerServing"]);
        let told = event(&client, "web", "AddressAssigned").await?;
        assert_eq!(told, "192.0.2.1 of AddressPool public is the Service's");

        // The next one finds the pool exhausted, and has the address as soon as it is free.
        create_service(&client, "next").await?;
        let told = event(&client, "next", "AddressPoolExhausted").await?;
        assert_eq!(told, "every IPv4 address of AddressPool public is in use");
        services(&client).delete("web", &DeleteParams::default()).await?;
        let next = addressed(&client, "next").await?;
        assert_eq!(address(&next).as_deref(), Some("192.0.2.1"));
        assert_eq!(
            services(&client).get_opt("web").await?.map(drop),
            None,
            "no finalizer holds it"
        );

        // Nothing of ours is left when the type changes.
        let plain = json!({"spec": {"type": "ClusterIP", "loadBalancerClass": Value::Null}});
        services(&client).patch("next", &PatchParams::default(), &Patch::Merge(&plain)).await?;
        until("the type's change is complete", async || {
            let next = services(&client).get("next").await?;
            Ok((next.finalizers().is_empty() && address(&next).is_none()).then_some(()))
        })
        .await?;
        finish(controller).await
    };
    with_server(work, |server| {
        let columns = server.kubectl(&["get", "addresspools"]).unwrap();
        assert!(columns.contains("IPV4-LEFT") && columns.contains("public"), "{columns}");
    });
}

#[test]
fn what_cannot_be_given_is_told_and_costs_only_itself() {
    let work = async |client| {
        create_pool(&client, "main", &["192.0.2.10-192.0.2.19"]).await?;
        let controller = start(&client, "one");
        let asks = |what: &str| json!({"weir.dev/addresses": what});
        create_with(&client, "first", asks("192.0.2.10"), json!({})).await?;
        addressed(&client, "first").await?;
        let other = json!({"loadBalancerClass": "example.com/other"});
        create_with(&client, "foreign", json!({}), other).await?;
        for (name, annotations, spec, reason, blame, says) in [
            (
                "second",
                asks("192.0.2.10"),
                json!({}),
                "AddressTaken",
                "Infrastructure",
                "default/first",
            ),
            (
                "six",
                json!({}),
                json!({"ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"}),
                "NoAddressPool",
                "Infrastructure",
                "IPv6",
            ),
            (
                "both",
                json!({}),
                json!({"ipFamilyPolicy": "RequireDualStack"}),
                "DualStackUnsatisfied",
                "Infrastructure",
                "both families are required",
            ),
            (
                "nowhere",
                json!({"weir.dev/pool": "absent"}),
                json!({}),
                "UnknownAddressPool",
                "Unsupported",
                "absent",
            ),
            (
                "no-address",
                asks("300.1.2.3"),
                json!({}),
                "InvalidAddressRequest",
                "Unsupported",
                "300.1.2.3",
            ),
            (
                "outside",
                asks("198.51.100.1"),
                json!({}),
                "AddressNotInPool",
                "Unsupported",
                "198.51.100.1",
            ),
        ] {
            create_with(&client, name, annotations, spec).await?;
            let told = event(&client, name, reason).await?;
            assert!(told.contains(says), "{name}: {told}");
            let service = services(&client).get(name).await?;
            assert_eq!(address(&service), None, "{name}");
            let conditions = service.status.and_then(|it| it.conditions).unwrap_or_default();
            let serving = conditions.iter().find(|it| it.type_ == "LoadBalancerServing");
            let serving = serving.with_context(|| format!("{name} has no condition"))?;
            assert_eq!(serving.status, "False", "{name}");
            assert_eq!(serving.reason, blame, "{name}");
            assert!(serving.message.contains(says), "{name}: {}", serving.message);
        }
        create_pool(&client, "younger", &["192.0.2.15-192.0.2.30"]).await?;
        let pools = Api::<AddressPool>::all(client.clone());
        until("the overlap is told", async || {
            let younger = serde_json::to_value(pools.get("younger").await?.status)?;
            let conditions = younger["conditions"].as_array().cloned().unwrap_or_default();
            let overlaps = |it: &Value| it["type"] == "Overlapping" && it["status"] == "True";
            Ok(conditions.iter().any(overlaps).then_some(()))
        })
        .await?;

        create_service(&client, "good").await?;
        assert_eq!(address(&addressed(&client, "good").await?).as_deref(), Some("192.0.2.11"));
        let prefers = json!({"ipFamilyPolicy": "PreferDualStack"});
        create_with(&client, "prefers", json!({}), prefers).await?;
        assert_eq!(addresses(&addressed(&client, "prefers").await?), ["192.0.2.12"]);
        let foreign = services(&client).get("foreign").await?;
        assert_eq!(foreign.finalizers(), [] as [String; 0]);
        assert_eq!(foreign.status.and_then(|it| it.conditions), None, "another's");
        finish(controller).await
    };
    with_server(work, |_| {});
}

#[test]
fn a_second_family_comes_and_goes_and_the_first_address_stays() {
    let work = async |client| {
        create_pool(&client, "public", &["192.0.2.1-192.0.2.9", "2001:db8::1-2001:db8::9"]).await?;
        let controller = start(&client, "one");
        create_service(&client, "web").await?;
        for (policy, wanted) in [
            ("SingleStack", &["192.0.2.1"][..]),
            ("PreferDualStack", &["192.0.2.1", "2001:db8::1"]),
            ("RequireDualStack", &["192.0.2.1", "2001:db8::1"]),
            ("SingleStack", &["192.0.2.1"]),
        ] {
            let patch = Patch::Merge(json!({"spec": {"ipFamilyPolicy": policy}}));
            services(&client).patch("web", &PatchParams::default(), &patch).await?;
            until(&format!("{policy} has {wanted:?}"), async || {
                Ok((addresses(&services(&client).get("web").await?) == wanted).then_some(()))
            })
            .await?;
        }
        finish(controller).await
    };
    with_server(work, |_| {});
}

async fn finish(controller: Controller) -> Result<()> {
    controller.stop.send_replace(true);
    Ok(controller.task.await?)
}

#[test]
fn the_api_server_refuses_what_is_no_range() {
    let work = async |client| {
        for bad in [
            &["192.0.2.0/33"][..],
            &["192.0.2.7/24"],
            &["192.0.2.1-2001:db8::1"],
            &["192.0.2.1-192.0.2.2-192.0.2.3"],
            &["::ffff:192.0.2.1"],
            &["public"],
            &["192.0.2.0/24", ""],
            &[],
        ] {
            let refused = create_pool(&client, "bad", bad).await;
            let Err(kube::Error::Api(status)) = &refused else { panic!("{bad:?}: {refused:?}") };
            assert_eq!(status.code, 422, "{bad:?}: {status:?}");
        }
        let good = ["192.0.2.0/24", "192.0.3.1-192.0.3.9", "192.0.4.1", "2001:db8::/32"];
        create_pool(&client, "good", &good).await?;
        Ok(())
    };
    with_server(work, |_| {});
}

#[test]
fn the_lease_moves_and_no_address_does() {
    let work = async |client| {
        create_pool(&client, "public", &["192.0.2.0/24"]).await?;
        let first = start(&client, "first");
        create_service(&client, "a").await?;
        let a = address(&addressed(&client, "a").await?);
        let second = start(&client, "second");
        let leases = Api::<Lease>::namespaced(client.clone(), NAMESPACE);
        let holder = async || {
            let spec = leases.get(lease::NAME).await?.spec.context("a spec")?;
            anyhow::Ok(spec.holder_identity.unwrap_or_default())
        };
        assert_eq!(holder().await?, "first");

        // Given back, it is taken at the next look.
        finish(first).await?;
        until("the second holds the Lease", async || {
            Ok((holder().await? == "second").then_some(()))
        })
        .await?;
        create_service(&client, "b").await?;
        let b = address(&addressed(&client, "b").await?);
        assert_ne!(a, b);

        // Not given back, it runs out.
        second.task.abort();
        let third = start(&client, "third");
        create_service(&client, "c").await?;
        let c = address(&addressed(&client, "c").await?);
        assert!(![&a, &b].contains(&&c));
        assert_eq!(holder().await?, "third");
        assert_eq!(address(&services(&client).get("a").await?), a);
        assert_eq!(address(&services(&client).get("b").await?), b);
        finish(third).await
    };
    with_server(work, |_| {});
}
