//! What `cargo xtask cluster` shows: a Service of type LoadBalancer in a real cluster, as its users and operators meet it.
//!
//! ```text
//!  client ─┐                      ┌─ node-1, a master: kubelet, containerd, pods, one of them weir
//!          router ──── switch ────┤
//!  control ┘                      └─ node-2: kubelet, containerd, pods, one of them weir
//!   etcd, API server, controllers, scheduler
//! ```
//!
//! Everything between kubectl and the pods is what a cluster has, but for kube-proxy: weir needs none. A client outside asks
//! through the Service's address all the while; pods are replaced, a node is drained, the API server is killed, weir itself is
//! replaced. No request may fail, and each pod must see the client's own address. Pods serve for 2.5 s after SIGTERM, as any pod behind any load
//! balancer must that learns of its end by the API.

mod load;
mod report;
mod weir;

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::{
    kube::{self, Image, KubeNode, Server},
    lab::Lab,
};
use load::{Load, Sample};
use report::{Report, Step};
use weir::Weir;

/// Of the Service: one request a connection, and many.
const FRESH: u16 = 80;
const KEPT: u16 = 81;
/// Which node is a master, with a static pod.
const MASTER: usize = 0;
/// For anything to come about on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The result as one JSON document on stdout; what happens goes to stderr.
    pub json: bool,
    /// How long the clients are watched after each event is over.
    pub calm: Duration,
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Builds the cluster, shows it and takes it down. False: a request failed.
pub fn run(options: Options) -> Result<bool> {
    // So that Ctrl-C takes everything down too.
    let note = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler does nothing but store to an atomic.
        unsafe { sigaction(signal, &note) }?;
    }
    let lab = Lab::builder().nodes(2, 0).client("client").client("control").build()?;
    let stage = Stage::build(&lab, options)?;
    let report = stage.show().inspect_err(|_| stage.print_logs())?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("\n{report}");
    }
    if !report.ok {
        stage.print_logs();
    }
    Ok(report.ok)
}

extern "C" fn note(_: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// The cluster.
struct Stage<'lab> {
    // Nodes end before the API.
    nodes: Vec<KubeNode<'lab>>,
    cluster: kube::Cluster<'lab>,
    lab: &'lab Lab,
    options: Options,
    nodes_ready: Duration,
}

impl<'lab> Stage<'lab> {
    /// Two nodes that are ready, with weir, which has nothing to serve yet.
    fn build(lab: &'lab Lab, options: Options) -> Result<Self> {
        let start = Instant::now();
        let out = |text: &str| line(options, text);
        out("etcd, API server, controller manager, scheduler");
        let cluster = kube::Cluster::on(&[lab.client("control")]).start()?;
        let server = cluster.server();
        cluster.start_controllers(server, &[])?;
        cluster.start_scheduler(server)?;
        out("two nodes: kubelet, containerd, a bridge for pods");
        let images = [Image::pods()?, Image::weir()?];
        let boot = |(number, node)| {
            KubeNode::start(&cluster, node, &images, |files| match number {
                MASTER => weir::prepare_master(&cluster, node, files),
                _ => Ok(()),
            })
        };
        let nodes = lab.nodes().iter().enumerate().map(boot).collect::<Result<Vec<_>>>()?;
        let mut stage = Self { nodes, cluster, lab, options, nodes_ready: Duration::ZERO };
        stage.wait_ready().inspect_err(|_| stage.print_logs())?;
        stage.nodes_ready = start.elapsed();
        stage.install().inspect_err(|_| stage.print_logs())?;
        Ok(stage)
    }

    fn wait_ready(&self) -> Result<()> {
        for node in &self.nodes {
            let name = node.node().name();
            let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
            wait(&format!("{name} is ready"), || {
                ensure!(node.is_running()?, "the kubelet of {name} ended");
                let ask = ["get", "node", name, "--ignore-not-found", "--output", ready];
                Ok(self.server().kubectl(&ask)? == "True")
            })?;
        }
        Ok(())
    }

    fn install(&self) -> Result<()> {
        self.out("kubectl apply: weir, and the addresses that it may give");
        let master = self.nodes[MASTER].node().name();
        self.weir().install(master)?;
        self.weir().rolled_out(&timeout())?;
        wait("the static pod is ready", || Ok(self.weir().ready(master)?.is_some()))?;
        self.server().apply(include_str!("pool.yaml"))
    }

    /// Replaces weir, node after node.
    fn replace_weir(&self) -> Result<()> {
        self.weir().restart()?;
        self.weir().rolled_out(&timeout())?;
        let master = &self.nodes[MASTER];
        let ready = || self.weir().ready(master.node().name());
        let before = ready()?;
        self.weir().restart_master(master)?;
        wait("another static pod is ready", || {
            let now = ready()?;
            Ok(now.is_some() && now != before)
        })
    }

    /// All that is shown.
    fn show(&self) -> Result<Report> {
        self.out("kubectl apply: a Deployment and a Service of type LoadBalancer");
        self.server().apply(include_str!("web.yaml"))?;
        let (vips, addressed) = self.addresses()?;
        self.out(&format!("the Service has the addresses {} and {}", vips[0], vips[1]));
        self.rolled_out()?;
        vips.iter().try_for_each(|vip| self.served_everywhere(*vip))?;

        let load = Load::start(self.lab.client("client"), vips, [FRESH, KEPT])?;
        let restart = |stage: &Self| {
            stage.server().kubectl(&["rollout", "restart", "deployment/web"])?;
            stage.rolled_out()
        };
        let steps = [
            self.step(&load, "calm", |_| Ok(()))?,
            self.step(&load, "kubectl rollout restart", restart)?,
            self.step(&load, "kubectl drain node-1", |stage| {
                let drain = ["drain", "node-1", "--ignore-daemonsets", &timeout()];
                stage.server().kubectl(&drain)?;
                stage.rolled_out()
            })?,
            self.step(&load, "uncordon, rollout restart", |stage| {
                stage.server().kubectl(&["uncordon", "node-1"])?;
                restart(stage)
            })?,
            self.step(&load, "API server killed, back", |stage| {
                stage.server().kill()?;
                pause(stage.options.calm)?;
                stage.server().start()?;
                wait("the API server is ready again", || Ok(stage.server().is_ready()))
            })?,
            self.step(&load, "weir replaced", Self::replace_weir)?,
        ];
        Ok(Report::new(self.nodes_ready, addressed, steps.into()))
    }

    /// The Service's addresses, one of each family, and how long it took to have them.
    fn addresses(&self) -> Result<([IpAddr; 2], Duration)> {
        let start = Instant::now();
        let mut addresses = Vec::new();
        wait("the Service has an address of each family", || {
            let service = self.server().get(&["service", "web"])?;
            let given = service["status"]["loadBalancer"]["ingress"].as_array().cloned();
            let given = given.unwrap_or_default();
            let given = given.iter().filter_map(|ingress| ingress["ip"].as_str()?.parse().ok());
            addresses = given.collect();
            Ok(addresses.len() == 2)
        })?;
        let both = <[IpAddr; 2]>::try_from(addresses).ok().context("two addresses")?;
        Ok((both, start.elapsed()))
    }

    /// Waits until all pods are of the newest kind and ready, and no other is left.
    fn rolled_out(&self) -> Result<()> {
        self.server().kubectl(&["rollout", "status", "deployment/web", &timeout()])?;
        wait("the pods before are gone", || {
            let pods = self.server().get(&["pods", "--selector=app=web"])?;
            let pods = pods["items"].as_array().context("no list of pods")?;
            Ok(pods.iter().all(|pod| pod["metadata"]["deletionTimestamp"].is_null()))
        })
    }

    /// Waits until both nodes would hand the Service's clients to all pods.
    fn served_everywhere(&self, vip: IpAddr) -> Result<()> {
        let pods = self.server().get(&["deployment", "web"])?["spec"]["replicas"].as_u64();
        for node in self.lab.nodes() {
            for port in [FRESH, KEPT] {
                wait(&format!("{} serves {vip}:{port}", node.name()), || {
                    let owners = self.weir().owners(node.name(), SocketAddr::new(vip, port))?;
                    Ok(pods == Some(owners as u64))
                })?;
            }
        }
        wait(&format!("one of the nodes announces {vip}"), || {
            let mut nodes = self.lab.nodes().iter();
            nodes.try_fold(false, |any, node| Ok(any || self.weir().announces(node.name(), vip)?))
        })
    }

    /// Something happens under load.
    fn step(
        &self,
        load: &Load,
        name: &str,
        event: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Step> {
        self.out(&format!("--- {name} ---"));
        let (from, mut samples) = (Instant::now(), Vec::<Sample>::new());
        event(self)?;
        pause(self.options.calm)?;
        samples.extend(load.take());
        ensure!(self.weir().restarts()? == 0, "weir ended without being asked to");
        let step = Step::new(name, from, &samples);
        self.out(&format!(
            "  {} + {} requests, {} + {} failed",
            step.fresh.requests, step.kept.requests, step.fresh.failures, step.kept.failures
        ));
        Ok(step)
    }

    fn server(&self) -> &Server<'lab> {
        self.cluster.server()
    }

    fn weir(&self) -> Weir<'_, 'lab> {
        Weir(self.server())
    }

    fn out(&self, text: &str) {
        line(self.options, text);
    }

    /// For who must find out what went wrong; nothing did where somebody wanted it to end.
    fn print_logs(&self) {
        if INTERRUPTED.load(Ordering::Relaxed) {
            return;
        }
        let what = "nodes,pods,services,endpointslices,events";
        let show = ["get", what, "--all-namespaces", "--output=wide", "--request-timeout=5s"];
        eprintln!("{}", self.server().kubectl(&show).unwrap_or_else(|error| error.to_string()));
        for node in &self.nodes {
            eprintln!("{}", node.logs());
        }
        eprintln!("== weir\n{}", self.weir().logs());
    }
}

/// Where people look: stdout, or stderr if stdout is for a program.
fn line(options: Options, text: &str) {
    if options.json {
        eprintln!("{text}");
    } else {
        println!("{text}");
    }
}

/// As kubectl wants [`PATIENCE`].
fn timeout() -> String {
    format!("--timeout={}s", PATIENCE.as_secs())
}

/// Looks at `done` until it holds; an error where it does not within [`PATIENCE`].
fn wait(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done().with_context(|| format!("wait until {what}"))? {
        ensure!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        pause(LOOK)?;
    }
    Ok(())
}

/// Lets time pass; an error where somebody wants this to end.
fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        if INTERRUPTED.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        thread::sleep(left.min(LOOK));
    }
    Ok(())
}
