//! weir as users install it, by docs/install.md, and as they look at it: by kubectl.
//!
//! The master has it as a static pod, the other node by the DaemonSet.

use std::{
    fs::{self, Permissions},
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    fleet,
    kube::{CGROUP, Cluster, Files, KubeNode, MANIFESTS, NAMESPACE, Server},
    lab::{Node, UPLINK},
};

const DAEMON_SET: &str = "daemonset/weir";
/// The static pod's.
const MANIFEST: &str = "weir.yaml";
/// Where a master has the files of weir.
const CONFIG: &str = "/run/weir";
/// What pods of either kind have.
const LABEL: &str = "--selector=app.kubernetes.io/name=weir";
/// What keeps the DaemonSet off a node.
const MASTER: &str = "node-role.kubernetes.io/control-plane";
/// As whom the static pod asks the API server.
const USER: &str = "weir-master";
const SEED: &str = "5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed";

/// Puts the files on a node from which its kubelet runs weir, whether there is a cluster or not.
pub fn prepare_master(cluster: &Cluster, node: &Node, files: &Files) -> Result<()> {
    let folder = files.outside.join("weir");
    fs::create_dir(&folder)?;
    cluster.write_client(&folder, USER, "weir:masters")?;
    fs::write(folder.join("seed"), SEED)?;
    for secret in ["seed", "client.key"] {
        fs::set_permissions(folder.join(secret), Permissions::from_mode(0o600))?;
    }
    let configuration = include_str!("master.yaml")
        .replace("{uplink}", UPLINK)
        .replace("{server}", &cluster.server().url())
        .replace("{kubeconfig}", &format!("{CONFIG}/kubeconfig"))
        .replace("{node}", node.name())
        .replace("{v4}", &node.v4().to_string())
        .replace("{v6}", &node.v6().to_string());
    fs::write(folder.join("weir.yaml"), configuration)?;
    files.write_static_pod(MANIFEST, &static_pod(node)?)
}

/// What `weir manifest` writes on the node, whose files are in place only once it boots.
fn static_pod(node: &Node) -> Result<String> {
    let mut weir = node.command(fleet::named(fleet::BINARY)?);
    let output = weir.args(["manifest", "static-pod", "--config-dir", CONFIG]).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "weir manifest static-pod: {error}");
    edited(&String::from_utf8(output.stdout)?, &pod_edits())
}

/// A text that a user replaces, how often it is there, and what by.
type Edit = (&'static str, usize, String);

/// In pods of either kind: where the image comes from, and whose sockets weir serves.
fn pod_edits() -> [Edit; 2] {
    [
        ("image: \"weir:", 1, "image: \"weir.test/weir:".into()),
        ("hostPath: {path: /sys/fs/cgroup,", 1, format!("hostPath: {{path: {CGROUP},")),
    ]
}

fn edited(text: &str, edits: &[Edit]) -> Result<String> {
    edits.iter().try_fold(text.to_owned(), |text, (from, times, to)| {
        let found = text.matches(from).count();
        ensure!(found == *times, "{from:?} is there {found} times, not {times} times");
        Ok(text.replace(from, to))
    })
}

/// weir as a cluster has it.
pub struct Weir<'a, 'lab>(pub &'a Server<'lab>);

impl Weir<'_, '_> {
    /// Applies `deploy/weir.yaml`, for all nodes but this one.
    pub fn install(&self, master: &str) -> Result<()> {
        self.0.kubectl(&["label", "node", master, &format!("{MASTER}=")])?;
        self.0.kubectl(&["create", "namespace", NAMESPACE])?;
        let seed = format!("--from-literal=seed={SEED}");
        self.in_namespace(&["create", "secret", "generic", "weir", &seed])?;
        self.0.apply(&self.manifests()?)
    }

    /// With the API server's address, as there is no kube-proxy by which pods would reach it, and with what the chart's
    /// `staticPodMasters` and `rbac.users` would write.
    fn manifests(&self) -> Result<String> {
        let system = "      nodeSelector:\n        kubernetes.io/os: linux\n";
        let selector = format!("matchExpressions: [{{key: {MASTER}, operator: DoesNotExist}}]");
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        let off_masters = format!(
            "{system}      affinity: {{nodeAffinity: {{{required}: {{nodeSelectorTerms: [{{{selector}}}]}}}}}}\n"
        );
        let user = format!("{{kind: User, name: {USER}, apiGroup: rbac.authorization.k8s.io}}");
        let settings = "      kubernetes:\n";
        let edits = [
            (settings, 1, format!("{settings}        servers: [\"{}\"]\n", self.0.url())),
            ("\nsubjects:\n", 2, format!("\nsubjects:\n- {user}\n")),
            (system, 1, off_masters),
        ];
        edited(&edited(MANIFESTS, &pod_edits())?, &edits)
    }

    /// Waits until a pod of the newest kind has been ready for a while on every node that the DaemonSet has one on.
    pub fn rolled_out(&self, timeout: &str) -> Result<()> {
        self.in_namespace(&["rollout", "status", DAEMON_SET, timeout]).map(drop)
    }

    /// Replaces all pods of the DaemonSet, one node at a time.
    pub fn restart(&self) -> Result<()> {
        self.in_namespace(&["rollout", "restart", DAEMON_SET]).map(drop)
    }

    /// Replaces the static pod, as an upgrade does.
    pub fn restart_master(&self, master: &KubeNode) -> Result<()> {
        let before = static_pod(master.node())?;
        let environment = "    env:\n";
        let more = format!("{environment}    - {{name: WEIR_LOG, value: info}}\n");
        let after = edited(&before, &[(environment, 1, more)])?;
        master.files().write_static_pod(MANIFEST, &after)
    }

    /// The container of a node's pod, if it is ready.
    pub fn ready(&self, node: &str) -> Result<Option<String>> {
        let pods = self.pods()?;
        let pod = pods.iter().find(|pod| pod["spec"]["nodeName"] == *node);
        let container = pod.map(|pod| &pod["status"]["containerStatuses"][0]);
        let ready = container.filter(|container| container["ready"] == true);
        Ok(ready.and_then(|container| container["containerID"].as_str()).map(str::to_owned))
    }

    /// How many backends have slots of a frontend, as a node sees it.
    pub fn owners(&self, node: &str, frontend: SocketAddr) -> Result<usize> {
        let answer = self.ask(node, &["owners", &frontend.to_string()])?;
        let owners = answer["owners"].as_array().context("no list of owners")?;
        Ok(owners.iter().filter(|owner| owner["slots"].as_u64() > Some(0)).count())
    }

    /// Whether a node answers ARP or NDP for a VIP.
    pub fn announces(&self, node: &str, vip: IpAddr) -> Result<bool> {
        let answer = self.ask(node, &["vips"])?;
        let vips = answer["vips"].as_array().context("no list of VIPs")?;
        let vip = vip.to_string();
        Ok(vips.iter().any(|here| here["address"] == *vip && !here["announced_on"].is_null()))
    }

    /// How often containers of weir ended without being asked to, or had to be ended.
    pub fn restarts(&self) -> Result<u64> {
        let statuses = |pod: &Value| pod["status"]["containerStatuses"].as_array().cloned();
        let pods = self.pods()?;
        let statuses = pods.iter().filter_map(statuses).flatten();
        Ok(statuses.filter_map(|status| status["restartCount"].as_u64()).sum())
    }

    /// What all pods said of late, for people.
    pub fn logs(&self) -> String {
        let log = |pod: &Value| {
            let (pod, namespace) = name(pod)?;
            self.0.kubectl(&["logs", pod, "--namespace", namespace, "--prefix", "--tail=60"])
        };
        let logs = self.pods().and_then(|pods| pods.iter().map(log).collect::<Result<String>>());
        logs.unwrap_or_else(|error| format!("{error:#}"))
    }

    /// The answer of `weir ARGUMENTS -o json` in a node's pod.
    fn ask(&self, node: &str, arguments: &[&str]) -> Result<Value> {
        let pods = self.pods()?;
        let pod = pods.iter().find(|pod| pod["spec"]["nodeName"] == *node);
        let (pod, namespace) = name(pod.with_context(|| format!("no pod of weir on {node}"))?)?;
        let weir =
            [&["exec", pod, "--namespace", namespace, "--", "weir"], arguments, &["-o", "json"]]
                .concat();
        serde_json::from_str(&self.0.kubectl(&weir)?).context("read weir's answer")
    }

    fn pods(&self) -> Result<Vec<Value>> {
        let mut list = self.0.get(&["pods", "--all-namespaces", LABEL])?;
        let Value::Array(pods) = list["items"].take() else { return Ok(Vec::new()) };
        Ok(pods)
    }

    fn in_namespace(&self, arguments: &[&str]) -> Result<String> {
        self.0.kubectl(&[&["--namespace", NAMESPACE], arguments].concat())
    }
}

/// A pod's name and its namespace.
fn name(pod: &Value) -> Result<(&str, &str)> {
    let text = |field: &str| pod["metadata"][field].as_str().with_context(|| format!("no {field}"));
    Ok((text("name")?, text("namespace")?))
}
