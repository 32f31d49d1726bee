//! What weir is installed with: the chart, the manifests made of it and the static pod, taken by a real API server and by a
//! real agent that has their configuration, their capabilities and their rights.
//! Needs root, and the binaries that `WEIR_BIN`, `WEIR_KUBERNETES_BIN` and `WEIR_HELM_BIN` name.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::{Api, api::PostParams};
use lb_tests::{
    fleet::{self, Fleet},
    kube::{Cluster, Server},
    lab::{Host, Lab, Process, UPLINK, eventually},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// For what a server and an agent do at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(60);

const NAMESPACE: &str = "weir-system";
const CHART: &str = "deploy/chart/weir";
const MANIFESTS: &str = "deploy/weir.yaml";
const PLAIN_VALUES: &str = "deploy/plain-values.yaml";

/// Where the command line of a lab's host looks for the agent's files.
const STATE_DIR: &str = "/sys/fs/disk/weir";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().into()
}

fn lab() -> Lab {
    Lab::builder().nodes(1, 0).build().expect("a lab (needs root)")
}

/// Helm, with files of its own nowhere but here.
struct Helm {
    binary: PathBuf,
    home: tempfile::TempDir,
}

impl Helm {
    fn new() -> Self {
        let binary = fleet::named("WEIR_HELM_BIN").expect("cargo xtask build-helm");
        Self { binary, home: tempfile::tempdir().unwrap() }
    }

    fn run(&self, mut command: Command, arguments: &[&str]) -> Result<Output> {
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "KUBECACHEDIR"] {
            command.env(name, self.home.path());
        }
        Ok(command.current_dir(root()).args(arguments).output()?)
    }

    /// What the chart is with these values; an error where its schema does not take them.
    fn render(&self, values: &Value) -> Result<String> {
        let file = self.home.path().join("values.yaml");
        fs::write(&file, values.to_string())?;
        let values = format!("--values={}", file.display());
        self.template(&values)
    }

    fn template(&self, values: &str) -> Result<String> {
        let namespace = format!("--namespace={NAMESPACE}");
        let arguments = ["template", "weir", CHART, &namespace, values];
        text(self.run(Command::new(&self.binary), &arguments)?)
    }

    fn on(&self, server: &Server<'_>, arguments: &[&str]) -> Result<String> {
        let mut command = server.host().command(&self.binary);
        command.arg("--kubeconfig").arg(server.kubeconfig()).arg("--namespace").arg(NAMESPACE);
        text(self.run(command, arguments)?)
    }
}

fn text(output: Output) -> Result<String> {
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", error.trim());
    Ok(String::from_utf8(output.stdout)?)
}

fn weir(arguments: &[&str]) -> String {
    let binary = fleet::named(fleet::BINARY).unwrap();
    text(Command::new(binary).args(arguments).output().unwrap()).unwrap()
}

/// Has a server judge objects by all that it knows, warnings included, and as JSON what they become.
fn judge(server: &Server<'_>, objects: &str) -> Result<Value> {
    let arguments = [
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "--output=json",
        "-f",
        "-",
    ];
    let output = server.try_kubectl(&arguments, objects)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.trim().is_empty(), "{}", said.trim());
    let stream = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    let documents = stream.collect::<Result<Vec<_>, _>>()?;
    // One object stands alone, several are a list each for itself.
    Ok(Value::Array(documents))
}

fn of_kind<'a>(objects: &'a Value, kind: &str) -> &'a Value {
    let all = objects.as_array().into_iter().flatten();
    let all = all.flat_map(|it| match it["items"].as_array() {
        Some(items) => items.iter().collect(),
        None => vec![it],
    });
    all.into_iter().find(|it| it["kind"] == kind).unwrap_or(&Value::Null)
}

#[test]
fn manifests_are_as_the_chart_and_the_version_say() {
    let helm = Helm::new();
    let rendered = helm.template(&format!("--values={PLAIN_VALUES}")).unwrap();
    let written = fs::read_to_string(root().join(MANIFESTS)).unwrap();
    assert!(written.ends_with(&rendered), "{MANIFESTS} is not: run `cargo xtask manifests`");
    let image = concat!("image: \"weir:", env!("CARGO_PKG_VERSION"), "\"");
    assert!(rendered.contains(image), "the chart is of another version than {image}");
    assert!(!rendered.contains("kind: Secret"), "a secret that all the world knows is none");
}

#[test]
fn values_that_cannot_be_meant_are_refused() {
    let helm = Helm::new();
    for (values, said) in [
        (json!({"agent": {"uplinks": []}}), "uplinks"),
        (json!({"agent": {"kubernetes": {"server": "https://10.0.0.1:6443"}}}), "server"),
        (json!({"image": {"digest": "sha256:12"}}), "digest"),
        (json!({"imagee": {}}), "imagee"),
        (
            json!({"objects": [{"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {}}]}),
            "objects",
        ),
        (json!({"staticPodMasters": true, "affinity": {"nodeAffinity": {}}}), "exclude each other"),
    ] {
        let error = helm.render(&values).expect_err(&values.to_string()).to_string();
        assert!(error.contains(said), "{values}: {error}");
    }
}

#[test]
fn server_takes_manifests_chart_and_static_pod() {
    let lab = lab();
    let cluster = Cluster::on(&[lab.node("node-1")]).start().unwrap();
    let (server, helm) = (cluster.server(), Helm::new());
    server.kubectl(&["create", "namespace", NAMESPACE]).unwrap();

    for values in [
        json!({}),
        json!({
            "image": {"repository": "registry.example/weir", "digest": format!("sha256:{:064}", 1),
                      "pullPolicy": "Always", "pullSecrets": [{"name": "pull"}]},
            "agent": {"uplinks": ["eth0", "bond1"], "kubernetes": {"defaultClass": true}, "seed": "long enough a seed"},
            "objects": [{"apiVersion": "weir.dev/v1alpha1", "kind": "Node", "metadata": {"name": "a"},
                         "spec": {"addresses": ["10.0.0.1"]}}],
            "staticPodMasters": true, "rbac": {"users": ["weir-master"]}, "podSockets": false,
            "hostPaths": {"certificates": "/etc/ssl/certs"},
            "nodeSelector": {"weir": "yes"}, "podAnnotations": {"a": "b"}, "podLabels": {"c": "d"}, "log": "debug",
        }),
        json!({"cleanup": true, "crds": {"enabled": false}, "secret": {"create": false}, "affinity": {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "weir", "operator": "Exists"}]}]}}}}),
    ] {
        let rendered = helm.render(&values).unwrap();
        judge(server, &rendered).with_context(|| values.to_string()).unwrap();
    }

    let manifests = fs::read_to_string(root().join(MANIFESTS)).unwrap();
    let pods =
        &of_kind(&judge(server, &manifests).unwrap(), "DaemonSet")["spec"]["template"].clone();
    server.apply(&manifests).unwrap();
    server.apply(&manifests).expect("a second time");
    // What a controller would make of it, past admission: the namespace's labels and the priority.
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": NAMESPACE}});
    pod["spec"] = pods["spec"].clone();
    let made = judge(server, &pod.to_string()).unwrap();
    assert_eq!(of_kind(&made, "Pod")["spec"]["priority"], 2_000_001_000);

    // Of controllers that do not run here.
    server.kubectl(&["create", "serviceaccount", "default", "--namespace=kube-system"]).unwrap();
    let own = weir(&["manifest", "static-pod", "--config-dir", "/nowhere/weir"]);
    let own = judge(server, &own).unwrap();
    let own = of_kind(&own, "Pod");
    for field in [
        "securityContext",
        "hostNetwork",
        "dnsPolicy",
        "priorityClassName",
        "terminationGracePeriodSeconds",
    ] {
        assert_eq!(own["spec"][field], pods["spec"][field], "{field} of the static pod");
    }
    for field in ["securityContext", "resources", "image"] {
        let [own, other] = [own, pods].map(|it| &it["spec"]["containers"][0][field]);
        assert_eq!(own, other, "{field} of the static pod's container");
    }
}

#[test]
fn seed_and_definitions_outlive_upgrade_and_removal() {
    let lab = lab();
    let cluster = Cluster::on(&[lab.node("node-1")]).start().unwrap();
    let (server, helm) = (cluster.server(), Helm::new());
    server.kubectl(&["create", "namespace", NAMESPACE]).unwrap();
    let seed =
        || server.get(&["secret", "weir", "--namespace", NAMESPACE]).unwrap()["data"].clone();

    helm.on(server, &["install", "weir", CHART]).unwrap();
    let first = seed();
    assert!(first["seed"].as_str().is_some_and(|it| it.len() == 64), "{first}");
    helm.on(server, &["upgrade", "weir", CHART, "--set", "log=debug"]).unwrap();
    assert_eq!(seed(), first, "an upgrade");
    let log = server.get(&["daemonset", "weir", "--namespace", NAMESPACE]).unwrap();
    assert!(log.to_string().contains(r#""value":"debug""#), "{log}");
    helm.on(server, &["uninstall", "weir"]).unwrap();
    assert_eq!(seed(), first, "a removal");
    server.get(&["crd", "frontends.weir.dev", "addresspools.weir.dev"]).unwrap();
    let left = server.get(&["daemonset,configmap,role", "--namespace", NAMESPACE]).unwrap();
    assert!(!left.to_string().contains(r#""name":"weir""#), "{left}");
    helm.on(server, &["install", "weir", CHART]).unwrap();
    assert_eq!(seed(), first, "another installation");

    helm.on(server, &["uninstall", "weir"]).unwrap();
    server.kubectl(&["delete", "secret", "weir", "--namespace", NAMESPACE]).unwrap();
    let own = [
        "create",
        "secret",
        "generic",
        "weir",
        "--from-literal=seed=one of ours",
        "--namespace",
        NAMESPACE,
    ];
    server.kubectl(&own).unwrap();
    let own = seed();
    helm.on(server, &["install", "weir", CHART]).unwrap();
    assert_eq!(seed(), own, "one made by hand");
}

/// An agent as its pod would be: what the chart says, on a host.
struct Installed<'lab> {
    cluster: Cluster<'lab>,
    fleet: Fleet<'lab>,
    node: &'lab Host,
    files: tempfile::TempDir,
    /// As the DaemonSet lists them.
    capabilities: Vec<String>,
}

impl<'lab> Installed<'lab> {
    fn new(lab: &'lab Lab) -> Self {
        let node = lab.node("node-1");
        let cluster = Cluster::on(&[node]).start().unwrap();
        let (server, files) = (cluster.server(), tempfile::tempdir().unwrap());
        server.kubectl(&["create", "namespace", NAMESPACE]).unwrap();
        let account = cluster.service_account(NAMESPACE, "weir").unwrap().join("kubeconfig");
        // By the paths of the host itself: those of a process in it take a capability.
        let account = fs::read_to_string(account).unwrap();
        let account = account.replace(node.dir().to_str().unwrap(), "/sys/fs/disk");
        fs::write(files.path().join("kubeconfig"), account).unwrap();
        fs::write(files.path().join("seed"), "one seed for the whole cluster\n").unwrap();
        let values = json!({
            "agent": {
                "uplinks": [UPLINK], "stateDir": STATE_DIR, "seedFile": files.path().join("seed"),
                "kubernetes": {"servers": [server.url()], "kubeconfig": files.path().join("kubeconfig")},
            },
            "objects": [{"apiVersion": "weir.dev/v1alpha1", "kind": "Node", "metadata": {"name": node.name()},
                         "spec": {"addresses": [node.v4(), node.v6()]}}],
        });
        let rendered = Helm::new().render(&values).unwrap();
        let judged = judge(server, &rendered).unwrap();
        let config = of_kind(&judged, "ConfigMap")["data"]["weir.yaml"].as_str().unwrap();
        fs::write(files.path().join("weir.yaml"), config).unwrap();
        let added = &of_kind(&judged, "DaemonSet")["spec"]["template"]["spec"]["containers"][0];
        let added = added["securityContext"]["capabilities"]["add"].as_array().unwrap();
        let capabilities = added.iter().map(|it| it.as_str().unwrap().to_lowercase()).collect();
        server.apply(&rendered).unwrap();
        let fleet = Fleet::prepare(lab, "").unwrap();
        Self { cluster, fleet, node, files, capabilities }
    }

    /// A command of weir with the pod's capabilities and no more.
    fn command(&self, arguments: &[&str]) -> Command {
        let added: String = self.capabilities.iter().map(|it| format!(",+{it}")).collect();
        let mut command = self.node.command("setpriv");
        command.arg(format!("--bounding-set=-all{added}")).arg("--inh-caps=-all");
        command.arg(fleet::named(fleet::BINARY).unwrap()).args(arguments);
        command
    }

    fn probe(&self, question: &str) -> bool {
        self.command(&["probe", question]).output().unwrap().status.success()
    }

    fn run_agent(&self, further: &[&str]) -> Process {
        let config = self.files.path().join("weir.yaml");
        let mut command =
            self.command(&["agent", "--config", config.to_str().unwrap(), "--node", "node-1"]);
        command.args(further).stdout(Stdio::null());
        command.stderr(fs::File::create(self.node.dir().join("agent.log")).unwrap());
        self.node.start(command).unwrap()
    }

    /// Starts the agent, and waits until it does all that it is for.
    fn start(&self) -> Process {
        let agent = self.run_agent(&[]);
        eventually(
            "the agent has listed all that it follows, and attached all programs",
            SOON,
            || {
                assert!(agent.is_running().unwrap(), "{}", self.said());
                let status = self.fleet.ask(self.node, &["status"]).unwrap_or_default();
                status["agent"]["pid"] == agent.id()
                    && status["problems"] == json!([])
                    && status["kubernetes"]["stale"].is_null()
                    && status["kubernetes"]["complete_ms"].is_u64()
                    && status["attachments"].as_array().is_some_and(|it| it.len() == 3)
            },
        );
        assert!(
            !self.said().contains("denied") && !self.said().contains("ERROR"),
            "{}",
            self.said()
        );
        agent
    }

    fn said(&self) -> String {
        self.fleet.log(self.node)
    }
}

/// What takes every right that there is: the Lease, the finalizer, the status, the pool's status and Events.
const SERVICE: &str = r#"
apiVersion: weir.dev/v1alpha1
kind: AddressPool
metadata: {name: public}
spec: {addresses: [192.0.2.0/28]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, loadBalancerClass: weir.dev/weir, ports: [{port: 80}]}
"#;

#[test]
fn agent_works_with_the_rights_and_capabilities_of_its_pod_and_is_probed() {
    let lab = lab();
    let mut installed = Installed::new(&lab);
    assert!(installed.probe("live") && !installed.probe("ready"), "nothing runs, nothing hangs");
    let agent = installed.start();
    assert!(installed.probe("live") && installed.probe("ready"));

    let server = installed.cluster.server();
    server.apply(SERVICE).unwrap();
    eventually("the Service has an address, and the pool says so", SOON, || {
        let (web, pool) = (server.get(&["service", "web"]), server.get(&["addresspool", "public"]));
        web.is_ok_and(|it| it["status"]["loadBalancer"]["ingress"][0]["ip"].is_string())
            && pool.is_ok_and(|it| it["status"]["ipv4"]["used"] == 1)
    });
    eventually("an Event tells of it", SOON, || {
        server.get(&["events"]).is_ok_and(|it| it.to_string().contains("AddressAssigned"))
    });
    server.kubectl(&["delete", "service", "web"]).unwrap();
    assert!(!installed.said().contains("forbidden"), "{}", installed.said());

    server.kill().unwrap();
    agent.signal(Signal::SIGSTOP).unwrap();
    eventually("an agent that hangs is neither alive nor ready", SOON, || {
        !installed.probe("live") && !installed.probe("ready")
    });
    agent.signal(Signal::SIGCONT).unwrap();
    eventually("it recovers, and a server that is gone is nothing to it", SOON, || {
        installed.probe("live") && installed.probe("ready")
    });

    agent.kill().unwrap();
    server.start().unwrap();
    server.wait_ready();
    installed.capabilities.retain(|it| it != "sys_admin");
    let agent = installed.start();

    agent.signal(Signal::SIGTERM).unwrap();
    eventually("the agent ends", SOON, || !agent.is_running().unwrap());
    let cleanup = installed.run_agent(&["--cleanup", "--stay"]);
    eventually("nothing is left on the node", SOON, || !fleet::pin_dir(installed.node).exists());
    assert!(installed.probe("live") && cleanup.is_running().unwrap(), "it stays until it is told");
    cleanup.signal(Signal::SIGTERM).unwrap();
    eventually("and ends then", SOON, || !cleanup.is_running().unwrap());
}

#[test]
fn service_account_may_what_agents_do_and_nothing_else() {
    let lab = lab();
    let installed = Installed::new(&lab);
    let leases = "coordination.k8s.io";
    let (look, change) = (&["get", "list", "watch"], &["create", "patch", "update", "delete"]);
    // Group, resource, namespace, name.
    let rows: &[(bool, &[&str], [&str; 4])] = &[
        (true, look, ["", "services", "default", ""]),
        (true, look, ["", "nodes", "", ""]),
        (true, look, ["", "namespaces", "", ""]),
        (true, look, ["discovery.k8s.io", "endpointslices", "default", ""]),
        (true, look, ["weir.dev", "frontends", "", ""]),
        (true, look, ["weir.dev", "addresspools", "", ""]),
        (true, &["patch"], ["", "services", "default", "web"]),
        (true, &["patch"], ["", "services/status", "default", "web"]),
        (true, &["patch"], ["weir.dev", "addresspools/status", "", "public"]),
        (true, &["patch"], ["weir.dev", "frontends/status", "", "api"]),
        (true, &["create"], ["events.k8s.io", "events", "default", ""]),
        (true, &["create"], [leases, "leases", NAMESPACE, ""]),
        (true, &["get", "update"], [leases, "leases", NAMESPACE, "weir-addresses"]),
        (false, &["create", "update", "delete"], ["", "services", "default", "web"]),
        (false, &["update"], ["", "services/status", "default", "web"]),
        (false, look, ["", "secrets", NAMESPACE, "weir"]),
        (false, look, ["", "configmaps", NAMESPACE, "weir"]),
        (false, look, ["", "pods", NAMESPACE, ""]),
        (false, change, ["", "pods", NAMESPACE, ""]),
        (false, change, ["", "nodes", "", "node-1"]),
        (false, change, ["", "namespaces", "", "default"]),
        (false, change, ["discovery.k8s.io", "endpointslices", "default", "web-1"]),
        (false, change, ["weir.dev", "addresspools", "", "public"]),
        (false, change, ["weir.dev", "frontends", "", "api"]),
        (false, &["list", "patch", "delete"], ["events.k8s.io", "events", "default", ""]),
        (false, &["get", "update", "delete"], [leases, "leases", NAMESPACE, "other"]),
        (false, &["create", "get", "update"], [leases, "leases", "kube-system", "weir-addresses"]),
        (false, change, ["apiextensions.k8s.io", "customresourcedefinitions", "", ""]),
        (false, &["bind", "escalate"], ["rbac.authorization.k8s.io", "clusterroles", "", "weir"]),
    ];
    let server = installed.cluster.server();
    // A grant is in force a moment later.
    eventually("the account may list Services", SOON, || {
        allowed(server, "list", ["", "services", "default", ""]).unwrap()
    });
    for &(may, verbs, of) in rows {
        for verb in verbs {
            assert_eq!(allowed(server, verb, of).unwrap(), may, "{verb} {of:?}");
        }
    }
}

/// Whether the service account may. Of: group, resource with its subresource, namespace, name.
fn allowed(server: &Server<'_>, verb: &str, of: [&str; 4]) -> Result<bool> {
    let [group, resource, namespace, name] = of;
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let attributes = ResourceAttributes {
        verb: some(verb),
        group: some(group),
        resource: some(resource),
        subresource: some(subresource),
        namespace: some(namespace),
        name: some(name),
        ..ResourceAttributes::default()
    };
    let user = format!("system:serviceaccount:{NAMESPACE}:weir");
    let spec = SubjectAccessReviewSpec {
        user: Some(user),
        resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    };
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    server.with_client(async |client| {
        let reviews = Api::<SubjectAccessReview>::all(client);
        let answer = reviews.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    })
}
