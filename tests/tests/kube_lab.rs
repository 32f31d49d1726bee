//! A whole lab fed by a real API server: a Service gets its address and serves, rolls its endpoints over, and loses no
//! request while the API server is dead, hangs, is another one or lies.
//! Needs root, the binary that `WEIR_BIN` names, and the one that `WEIR_KUBERNETES_BIN` names.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use lb_tests::{
    bench::churn::Crowd,
    fleet::Fleet,
    kube::{Cluster, NAMESPACE, Rights, Server},
    lab::{Host, Lab, eventually},
    traffic::{
        Failure,
        http::{self, HttpServer},
        long::{self, By},
        under_load,
    },
};
use serde_json::{Value, json};

/// For what servers and agents do at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(5);
const WEB: u16 = 80;
const TALK: u16 = 7;
/// Endpoints of the Service.
const ENDPOINTS: usize = 12;
/// So many are replaced at once.
const SURGE: usize = 3;
/// Servers go on for so long after they are called terminating.
const GRACE: Duration = Duration::from_secs(2);
const CONVERSATIONS: usize = 500;
/// How long the API server hangs, unless `WEIR_KUBE_HANGS` says another number of seconds: longer than agents wait for
/// it and than a Lease lasts.
const HANGS: Duration = Duration::from_secs(20);

/// A master, three workers with pods, a client.
fn lab(pods: usize) -> Lab {
    let lab = Lab::builder().node("master-1", 0).client("client");
    (1..=3)
        .fold(lab, |lab, number| lab.node(&format!("worker-{number}"), pods))
        .build()
        .expect("a lab (needs root)")
}

/// What the API says of an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Said {
    Nothing,
    Ready,
    NotReady,
    Terminating,
}

/// A pod, and what it serves while it runs.
struct Pod<'lab> {
    host: &'lab Host,
    node: &'lab str,
    name: String,
    runs: Mutex<Option<(HttpServer, long::Servers)>>,
}

impl Pod<'_> {
    fn start(&self) {
        let servers = (
            HttpServer::start(self.host, &self.name, WEB).unwrap(),
            long::serve(self.host, &self.name, TALK).unwrap(),
        );
        *self.runs.lock().unwrap() = Some(servers);
    }

    fn stop(&self) {
        *self.runs.lock().unwrap() = None;
    }
}

/// The lab with a control plane on its master, agents on all nodes, and a pool of addresses.
struct Site<'lab> {
    cluster: Cluster<'lab>,
    fleet: Fleet<'lab>,
    client: &'lab Host,
    pods: Vec<Pod<'lab>>,
}

impl<'lab> Site<'lab> {
    fn new(lab: &'lab Lab) -> Self {
        let cluster = Cluster::on(&[lab.node("master-1")]).start().unwrap();
        let server = cluster.server();
        let account = cluster.install_account(Rights::All).unwrap();
        let kubeconfig = account.join("kubeconfig");
        let settings = format!(
            "kubernetes: {{servers: [\"{}\"], kubeconfig: {}}}\nholdDowns: {{backends: 500ms, vips: 1s}}",
            server.url(),
            kubeconfig.display()
        );
        let fleet = Fleet::prepare_with(lab, &settings, "").unwrap();
        define(server);
        lab.nodes().iter().for_each(|node| drop(fleet.start_agent(node).unwrap()));
        let workers = lab.nodes().iter().filter(|node| !node.pods().is_empty());
        // One of each node in turn.
        let mut pods: Vec<_> = workers
            .flat_map(|node| node.pods().iter().enumerate().map(move |pod| (node, pod)))
            .map(|(node, (index, host))| {
                let name = format!("{}-{index}", node.name());
                (index, Pod { host, node: node.name(), name, runs: Mutex::default() })
            })
            .collect();
        pods.sort_by_key(|(index, _)| *index);
        let pods = pods.into_iter().map(|(_, pod)| pod).collect();
        Self { cluster, fleet, client: lab.client("client"), pods }
    }

    fn server(&self) -> &Server<'lab> {
        self.cluster.server()
    }

    /// A Service of ours with these endpoints, whose pods run, answered from everywhere. Returns its addresses.
    fn serve(&self, pods: std::ops::Range<usize>) -> Vec<IpAddr> {
        self.pods[pods.clone()].iter().for_each(Pod::start);
        self.say(&|index| if pods.contains(&index) { Said::Ready } else { Said::Nothing });
        let vips = self.server().with_client(create_and_await_address).unwrap();
        eventually("all agents serve it", SOON, || {
            vips.iter().all(|vip| self.get(*vip).is_ok()) && self.fleet.is_ready()
        });
        vips
    }

    /// Writes the slices of both families.
    fn say(&self, said: &(dyn Fn(usize) -> Said + Sync)) {
        self.server()
            .with_client(async |client| {
                let slices = Api::<EndpointSlice>::namespaced(client, "default");
                for (family, name) in [(true, "web-4"), (false, "web-6")] {
                    let slice = self.slice(family, name, said);
                    let parameters = PatchParams::apply("test").force();
                    slices.patch(name, &parameters, &Patch::Apply(&slice)).await?;
                }
                Ok(())
            })
            .unwrap();
    }

    fn slice(&self, v4: bool, name: &str, said: &dyn Fn(usize) -> Said) -> Value {
        let endpoint = |(index, pod): (usize, &Pod<'_>)| {
            let conditions = match said(index) {
                Said::Nothing => return None,
                Said::Ready => json!({"ready": true, "serving": true, "terminating": false}),
                Said::NotReady => json!({"ready": false, "serving": false, "terminating": false}),
                Said::Terminating => json!({"ready": false, "serving": true, "terminating": true}),
            };
            let address = if v4 { pod.host.v4() } else { pod.host.v6() };
            let node = pod.node;
            Some(json!({"addresses": [address], "nodeName": node, "conditions": conditions}))
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": if v4 { "IPv4" } else { "IPv6" },
            "ports": [
                {"name": "http", "port": WEB, "protocol": "TCP"},
                {"name": "talk", "port": TALK, "protocol": "TCP"},
            ],
            "endpoints": self.pods.iter().enumerate().filter_map(endpoint).collect::<Vec<_>>(),
        })
    }

    fn get(&self, vip: IpAddr) -> Result<String, Failure> {
        let to = SocketAddr::new(vip, WEB);
        self.client.run(|| http::get(to, ANSWER)).server().map(str::to_owned)
    }

    /// Runs `work` while requests go to all addresses, and returns how those failed.
    fn under_load(&self, vips: &[IpAddr], work: impl FnOnce()) -> Vec<Failure> {
        under_load(vips, |vip| self.get(vip).err(), work)
    }

    fn kubernetes(&self, node: &Host) -> Value {
        self.fleet.ask(node, &["status"]).unwrap_or_default()["kubernetes"].clone()
    }
}

/// Our kinds, and a pool of addresses.
fn define(server: &Server<'_>) {
    server.install_definitions().unwrap();
    let ([v4, v6], [last_v4, last_v6]) = (Lab::vips(0), Lab::vips(5));
    let pool = format!(
        "apiVersion: weir.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: lab}}\nspec:\n  addresses:\n  - \
         {v4}-{last_v4}\n  - \"{v6}-{last_v6}\"\n"
    );
    eventually("the pool is taken", SOON, || server.apply(&pool).is_ok());
}

fn service() -> Service {
    let service = json!({
        "metadata": {"name": "web"},
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": "weir.dev/weir",
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"name": "http", "port": WEB}, {"name": "talk", "port": TALK}],
        },
    });
    serde_json::from_value(service).expect("a Service")
}

fn addresses(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|it| it.load_balancer.as_ref());
    let ingress = status.and_then(|it| it.ingress.as_deref()).unwrap_or_default();
    ingress.iter().filter_map(|it| it.ip.as_ref()?.parse().ok()).collect()
}

/// Creates the Service and returns the addresses that weir gives it.
async fn create_and_await_address(client: Client) -> Result<Vec<IpAddr>> {
    let services = Api::<Service>::namespaced(client, "default");
    let created = services.create(&PostParams::default(), &service()).await?;
    let version = created.resource_version().context("a version")?;
    let events = services.watch(&WatchParams::default(), &version).await?;
    futures::pin_mut!(events);
    loop {
        let event = events.try_next().await?.context("the watch ended")?;
        if let WatchEvent::Modified(service) = event
            && let found @ [_, _, ..] = &addresses(&service)[..]
        {
            return Ok(found.to_vec());
        }
    }
}

#[test]
fn a_service_is_given_addresses_and_serves_at_once() {
    let lab = lab(1);
    let site = Site::new(&lab);
    site.pods.iter().for_each(Pod::start);
    site.say(&|_| Said::Ready);
    eventually("an agent holds the Lease", SOON, || {
        let lease = ["lease", "weir-addresses", "-n", NAMESPACE];
        site.server().get(&lease).is_ok_and(|it| it["spec"]["holderIdentity"].is_string())
    });
    for node in lab.nodes() {
        eventually("all agents know everything", SOON, || {
            let kubernetes = site.kubernetes(node);
            kubernetes["stale"].is_null() && kubernetes["objects"]["pools"] == 1
        });
    }
    let created = Instant::now();
    let vips = site.server().with_client(create_and_await_address).unwrap();
    let addressed = created.elapsed();
    for vip in &vips {
        eventually("it serves", SOON, || site.get(*vip).is_ok());
    }
    eprintln!(
        "addresses after {addressed:?}, served in both families after {:?}",
        created.elapsed()
    );
    eventually("its conditions say so", SOON, || {
        let service = site.server().get(&["service", "web"]).unwrap();
        let conditions = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|it| it["type"] == "LoadBalancerServing" && it["status"] == "True")
    });

    site.server().kubectl(&["delete", "service", "web"]).unwrap();
    eventually("no agent serves it any more", SOON, || {
        let none = |node| site.fleet.ask(node, &["vips"]).is_ok_and(|it| it["vips"] == json!([]));
        lab.nodes().iter().all(|node| none(node))
    });
}

/// Replaces the first endpoints by the others, some at once; their servers end `grace` after they are called
/// terminating. Calls `ended` with each just before it ends.
fn roll(site: &Site<'_>, grace: Duration, ended: &dyn Fn(&Pod<'_>)) {
    for done in (0..ENDPOINTS).step_by(SURGE) {
        let leaving = done..done + SURGE;
        let joined = ENDPOINTS + leaving.end;
        let said = |leaving_are: Said| {
            let leaving = leaving.clone();
            move |index: usize| match index {
                _ if leaving.contains(&index) => leaving_are,
                _ if (leaving.end..joined).contains(&index) => Said::Ready,
                _ => Said::Nothing,
            }
        };
        site.pods[ENDPOINTS + leaving.start..joined].iter().for_each(Pod::start);
        site.say(&said(Said::Ready));
        site.say(&said(Said::Terminating));
        thread::sleep(grace);
        for pod in &site.pods[leaving.clone()] {
            ended(pod);
            pod.stop();
        }
        site.say(&said(Said::Nothing));
    }
}

#[test]
fn a_rolling_update_breaks_nothing_that_has_time_to_end() {
    let lab = lab(2 * ENDPOINTS / 3);
    let site = Site::new(&lab);
    let vips = site.serve(0..ENDPOINTS);
    let talk: Vec<_> = vips.iter().map(|vip| SocketAddr::new(*vip, TALK)).collect();
    let crowd = Crowd::new(site.client, 4 * CONVERSATIONS as u64).unwrap();
    crowd.open(By::Tcp, &talk, CONVERSATIONS, Duration::from_secs(3));
    crowd.wait_open(CONVERSATIONS).unwrap();
    let opened = crowd.take();
    assert!(opened.is_empty(), "{opened:?}");

    let failures = site.under_load(&vips, || {
        crowd.open(By::Tcp, &talk, CONVERSATIONS, Duration::from_secs(8));
        roll(&site, GRACE, &|pod| crowd.end_with(&pod.name));
    });
    crowd.wait_open(CONVERSATIONS).unwrap();
    crowd.round().unwrap();
    let losses = crowd.take();
    assert!(losses.is_empty(), "{losses:?}");
    assert_eq!(failures, []);
    let served = crowd.servers();
    assert!(served.keys().all(|it| site.pods[ENDPOINTS..].iter().any(|pod| pod.name == *it)));
}

#[test]
fn requests_of_a_rolling_update_without_grace_are_told() {
    let lab = lab(2 * ENDPOINTS / 3);
    let site = Site::new(&lab);
    let vips = site.serve(0..ENDPOINTS);
    let failures = site.under_load(&vips, || roll(&site, Duration::ZERO, &|_| {}));
    // No goal: who ends at once loses what is on the way to it.
    eprintln!("without grace {} requests failed: {failures:?}", failures.len());
    eventually("the new endpoints serve alone", SOON, || {
        vips.iter().all(|vip| site.get(*vip).is_ok())
    });
}

fn hangs() -> Duration {
    let seconds = std::env::var("WEIR_KUBE_HANGS").ok();
    seconds.map_or(HANGS, |text| Duration::from_secs(text.parse().expect("whole seconds")))
}

#[test]
fn no_request_is_lost_while_the_api_server_dies_hangs_lies_or_is_another_one() {
    let lab = lab(2);
    let site = Site::new(&lab);
    let vips = site.serve(0..site.pods.len());
    let (server, master) = (site.server(), lab.node("master-1"));
    let talk: Vec<_> = vips.iter().map(|vip| SocketAddr::new(*vip, TALK)).collect();
    let crowd = Crowd::new(site.client, 1000).unwrap();
    crowd.open(By::Tcp, &talk, 60, Duration::from_secs(1));
    crowd.wait_open(60).unwrap();
    let none_lost = |what: &str, failures: Vec<Failure>| {
        crowd.round().unwrap();
        let losses = crowd.take();
        assert!(losses.is_empty(), "{what}: {losses:?}");
        assert_eq!(failures, [], "{what}");
    };
    let known = || site.kubernetes(master)["stale"].is_null();

    let failures = site.under_load(&vips, || {
        site.say(&|_| Said::NotReady);
        eventually("the agents find the lie out", SOON, || {
            site.kubernetes(master)["held"].as_u64().is_some_and(|held| held > 0)
        });
        thread::sleep(GRACE);
        site.say(&|_| Said::Ready);
        eventually("the lie is over", SOON, || site.kubernetes(master)["held"] == 0);
    });
    none_lost("all endpoints are called not ready", failures);

    let failures = site.under_load(&vips, || {
        server.stop().unwrap();
        thread::sleep(hangs());
        assert!(!known());
        server.go_on().unwrap();
        eventually("it is used again", SOON, known);
    });
    none_lost("it hangs", failures);

    let failures = site.under_load(&vips, || {
        server.kill().unwrap();
        eventually("the agents notice", SOON, || !known());
        server.start().unwrap();
        server.wait_ready();
        eventually("it is used again", SOON, known);
    });
    none_lost("it is killed", failures);

    let failures = site.under_load(&vips, || {
        site.cluster.replace_by_empty().unwrap();
        eventually("the agents find it out", SOON, || !known());
        thread::sleep(GRACE);
    });
    none_lost("it is replaced by an empty one", failures);
}
