//! weir as users install it, by docs/install.md, and as they look at it: by kubectl.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::kube::{CGROUP, MANIFESTS, NAMESPACE, Server};

const DAEMON_SET: &str = "daemonset/weir";
const PODS: &str = "--selector=app.kubernetes.io/name=weir";
const SEED: &str =
    "--from-literal=seed=5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed";

/// The DaemonSet of `deploy/weir.yaml`.
pub struct Weir<'a, 'lab>(pub &'a Server<'lab>);

impl Weir<'_, '_> {
    /// Applies the manifests.
    pub fn install(&self) -> Result<()> {
        self.0.kubectl(&["create", "namespace", NAMESPACE])?;
        self.kubectl(&["create", "secret", "generic", "weir", SEED])?;
        self.0.apply(&self.manifests()?)
    }

    /// With what a user writes into them here: the image, the API server, as there is no kube-proxy by which pods would reach
    /// it, and whose sockets weir serves.
    fn manifests(&self) -> Result<String> {
        let servers = format!("        servers: [\"{}\"]", self.0.url());
        let edits = [
            ("image: \"weir:", "image: \"weir.test/weir:"),
            ("      kubernetes:\n", &format!("      kubernetes:\n{servers}\n")),
            ("hostPath: {path: /sys/fs/cgroup,", &format!("hostPath: {{path: {CGROUP},")),
        ];
        edits.iter().try_fold(MANIFESTS.to_owned(), |text, (from, to)| {
            ensure!(text.matches(from).count() == 1, "deploy/weir.yaml has not one {from:?}");
            Ok(text.replace(from, to))
        })
    }

    /// Waits until a pod of the newest kind has been ready on every node for a while.
    pub fn rolled_out(&self, timeout: &str) -> Result<()> {
        self.kubectl(&["rollout", "status", DAEMON_SET, timeout]).map(drop)
    }

    /// Replaces all pods, one node at a time.
    pub fn restart(&self) -> Result<()> {
        self.kubectl(&["rollout", "restart", DAEMON_SET]).map(drop)
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
        let logs = self.kubectl(&["logs", PODS, "--prefix", "--tail=100"]);
        logs.unwrap_or_else(|error| format!("{error:#}"))
    }

    /// The answer of `weir ARGUMENTS -o json` in a node's pod.
    fn ask(&self, node: &str, arguments: &[&str]) -> Result<Value> {
        let pods = self.pods()?;
        let pod = pods.iter().find(|pod| pod["spec"]["nodeName"] == *node);
        let pod = pod.and_then(|pod| pod["metadata"]["name"].as_str());
        let pod = pod.with_context(|| format!("no pod of weir on {node}"))?;
        let answer =
            self.kubectl(&[&["exec", pod, "--", "weir"], arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&answer).context("read weir's answer")
    }

    fn pods(&self) -> Result<Vec<Value>> {
        let mut list = self.0.get(&["pods", "--namespace", NAMESPACE, PODS])?;
        let Value::Array(pods) = list["items"].take() else { return Ok(Vec::new()) };
        Ok(pods)
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.0.kubectl(&[&["--namespace", NAMESPACE], arguments].concat())
    }
}
