//! The whole control plane: who runs where, with which files, and how it starts, fails and ends.

use std::{
    fs::{self, OpenOptions},
    net::IpAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use serde_json::json;

use super::{
    READY,
    certificates::{Authority, Identity, token_signer},
    server::{self, Server, write_kubeconfig},
};
use crate::lab::{Host, Process, eventually};

/// Names the binary with all parts of Kubernetes.
pub const BINARY: &str = "WEIR_KUBERNETES_BIN";
/// The folder on the hosts' disks.
const FOLDER: &str = "kubernetes";
/// What Services get their own addresses from.
const SERVICE_NETWORKS: &str = "10.96.0.0/16,fd00:96::/112";
/// The first address of them is the API's own.
const API_SERVICE: &str = "10.96.0.1";
const ISSUER: &str = "https://kubernetes.default.svc";
/// Bytes printed of each log when a test fails.
const LOG_TAIL: usize = 3_000;

/// Describes a control plane before it is started.
pub struct ClusterBuilder<'lab> {
    masters: Vec<&'lab Host>,
    etcd: Option<&'lab Host>,
    vips: Vec<IpAddr>,
    flags: Vec<String>,
}

/// A running control plane. Dropping it ends it; in a test that fails, it ends with the lab.
pub struct Cluster<'lab> {
    servers: Vec<Server<'lab>>,
    etcd_host: &'lab Host,
    etcd: Mutex<Process>,
    /// What works on objects: controller manager, scheduler.
    workers: Mutex<Vec<(&'lab Host, &'static str, Process)>>,
    authority: Authority,
    program: Program,
    files: Files,
}

/// The binary, which is what it is called.
#[derive(Clone)]
pub(super) struct Program(PathBuf);

/// What the processes of a cluster read: on the disk of the host that etcd is on, by paths that are valid everywhere.
struct Files(PathBuf);

impl<'lab> ClusterBuilder<'lab> {
    /// Puts etcd on another host than the first master, say where no failure will reach it.
    pub fn etcd(mut self, host: &'lab Host) -> Self {
        self.etcd = Some(host);
        self
    }

    /// The servers' certificate is good at these addresses too.
    pub fn vips(mut self, vips: &[IpAddr]) -> Self {
        self.vips.extend(vips);
        self
    }

    /// Gives every API server another flag; the last of the same name counts.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Starts everything and waits until all servers are ready.
    pub fn start(self) -> Result<Cluster<'lab>> {
        let first = *self.masters.first().context("a control plane needs a master")?;
        let etcd_host = self.etcd.unwrap_or(first);
        let program = Program::find()?;
        let files = Files::new(etcd_host)?;
        let authority = Authority::new()?;
        files.write_certificates(&self, &authority)?;
        let etcd = Mutex::new(start_etcd(etcd_host, &program, &files)?);
        let servers = self.masters.iter().map(|host| {
            let kubeconfig = files.admin(host)?;
            let flags = [server_flags(host, etcd_host, &files), self.flags.clone()].concat();
            Server::start_new(host, program.clone(), flags, kubeconfig)
        });
        let servers = servers.collect::<Result<Vec<_>>>()?;
        let workers = Mutex::default();
        let cluster = Cluster { servers, etcd_host, etcd, workers, authority, program, files };
        cluster.wait_all_ready();
        Ok(cluster)
    }
}

impl<'lab> Cluster<'lab> {
    /// An API server on each of these hosts, and etcd on the first.
    pub fn on(masters: &[&'lab Host]) -> ClusterBuilder<'lab> {
        let masters = masters.to_vec();
        ClusterBuilder { masters, etcd: None, vips: Vec::new(), flags: Vec::new() }
    }

    /// The first server, which is the only one of most tests.
    pub fn server(&self) -> &Server<'lab> {
        &self.servers[0]
    }

    /// In the order of the masters.
    pub fn servers(&self) -> &[Server<'lab>] {
        &self.servers
    }

    /// The authority that signed the servers' certificate: a PEM file, valid from every process.
    pub fn authority(&self) -> PathBuf {
        self.files.path("ca.crt")
    }

    /// The etcd that runs now, or ran last.
    pub fn etcd(&self) -> Process {
        lock(&self.etcd).clone()
    }

    /// Kills every server and etcd, and starts them again at the same addresses with the same certificates and nothing in
    /// them: what a cluster is that was restored from the wrong disk. Waits until all are ready.
    ///
    /// # Panics
    /// If they do not become ready.
    pub fn replace_by_empty(&self) -> Result<()> {
        self.servers.iter().try_for_each(Server::kill)?;
        self.etcd().kill()?;
        fs::remove_dir_all(self.files.path("etcd")).context("forget what etcd knew")?;
        *lock(&self.etcd) = start_etcd(self.etcd_host, &self.program, &self.files)?;
        self.servers.iter().try_for_each(Server::start)?;
        self.wait_all_ready();
        Ok(())
    }

    /// Waits until all servers are ready.
    ///
    /// # Panics
    /// If one ends, or it takes too long.
    pub fn wait_all_ready(&self) {
        self.servers.iter().for_each(Server::wait_ready);
    }

    /// Starts a kube-controller-manager beside a server, as its client, with further flags such as
    /// `--node-monitor-grace-period=5s`; the last of the same name counts. Waits until it has done its first work. It does
    /// not elect a leader: a second one needs `--leader-elect=true` on both.
    ///
    /// # Panics
    /// If it ends, or takes too long.
    pub fn start_controllers(&self, server: &Server<'lab>, flags: &[&str]) -> Result<Process> {
        let own = [
            format!("--root-ca-file={}", self.authority().display()),
            format!("--service-account-private-key-file={}", self.files.path("sa.key").display()),
        ];
        let flags = own.into_iter().chain(flags.iter().map(|&flag| flag.to_owned()));
        let process = self.start_worker(server, CONTROLLERS, flags)?;
        eventually("the controllers make what every namespace has", READY, || {
            assert!(process.is_running().expect("a child process"), "the controllers ended");
            let ask = async |client| {
                let accounts = Api::<ServiceAccount>::namespaced(client, "default");
                Ok(accounts.get_opt("default").await?)
            };
            matches!(server.with_client(ask), Ok(Some(_)))
        });
        Ok(process)
    }

    /// Starts a kube-scheduler beside a server, as its client. The binary must be one of a full build.
    pub fn start_scheduler(&self, server: &Server<'lab>) -> Result<Process> {
        self.start_worker(server, SCHEDULER, [])
    }

    fn start_worker(
        &self,
        server: &Server<'lab>,
        part: &'static str,
        flags: impl IntoIterator<Item = String>,
    ) -> Result<Process> {
        let own = [
            format!("--kubeconfig={}", server.kubeconfig().display()),
            "--secure-port=0".into(),
            "--leader-elect=false".into(),
        ];
        let flags: Vec<_> = own.into_iter().chain(flags).collect();
        let process = self.program.start(server.host(), part, &flags)?;
        lock(&self.workers).push((server.host(), part, process.clone()));
        Ok(process)
    }

    /// Writes into a folder what a client of the first server needs that proves with a certificate who it is and which group
    /// it is in: `kubeconfig`, and beside it the files that it names, wherever the folder is seen.
    pub fn write_client(&self, folder: &Path, user: &str, group: &str) -> Result<()> {
        let identity = self.authority.client(user, group)?;
        fs::write(folder.join("client.crt"), identity.certificate)?;
        fs::write(folder.join("client.key"), identity.key)?;
        fs::write(folder.join("ca.crt"), self.authority.certificate())?;
        let user = json!({"client-certificate": "client.crt", "client-key": "client.key"});
        let (to, authority) = (folder.join("kubeconfig"), Path::new("ca.crt"));
        write_kubeconfig(&to, &self.server().url(), authority, user)
    }

    /// The binary, which is the part that it is called as.
    pub(super) fn binary(&self) -> &Path {
        &self.program.0
    }

    /// Makes a service account in a namespace that is there, and the files that a pod of it would find: `token` (valid for
    /// a day), `ca.crt`, `namespace`; beside them `kubeconfig`, for the first server. What it may do is for the test to
    /// grant. Returns their folder, valid from every process.
    pub fn service_account(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        self.server().apply(&format!(
            "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {name}, namespace: {namespace}}}}}"
        ))?;
        self.credentials(namespace, name)
    }

    /// The files of an account that is there.
    pub(super) fn credentials(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.server().kubectl(&[
            "create",
            "token",
            name,
            "--namespace",
            namespace,
            "--duration=24h",
        ])?;
        let folder = self.files.path(&format!("{namespace}-{name}"));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("token"), token.trim())?;
        fs::write(folder.join("namespace"), namespace)?;
        fs::copy(self.authority(), folder.join("ca.crt"))?;
        let user = json!({"tokenFile": folder.join("token")});
        write_kubeconfig(
            &folder.join("kubeconfig"),
            &self.server().url(),
            &self.authority(),
            user,
        )?;
        Ok(folder)
    }

    fn logs(&self) -> Vec<(&Host, &str)> {
        let servers = self.servers.iter().map(|server| (server.host(), server::NAME));
        let workers = lock(&self.workers);
        let workers = workers.iter().map(|(host, part, _)| (*host, *part));
        std::iter::once((self.etcd_host, ETCD)).chain(servers).chain(workers).collect()
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            for (host, name) in self.logs() {
                let log = fs::read_to_string(log_file(host, name)).unwrap_or_default();
                let tail = log.ceil_char_boundary(log.len().saturating_sub(LOG_TAIL));
                eprintln!("== {name} on {}\n{}", host.name(), &log[tail..]);
            }
            // Who holds the lab to look around finds all of it; else the hosts end it in a moment.
            return;
        }
        // Nobody is left to tell; the hosts' ends kill what this could not.
        for (.., worker) in lock(&self.workers).iter() {
            drop(worker.kill());
        }
        for server in &self.servers {
            drop(server.kill());
        }
        drop(self.etcd().kill());
        drop(fs::remove_dir_all(&self.files.0));
    }
}

const ETCD: &str = "etcd";
const CONTROLLERS: &str = "kube-controller-manager";
const SCHEDULER: &str = "kube-scheduler";

impl Program {
    fn find() -> Result<Self> {
        let binary = std::env::var_os(BINARY)
            .with_context(|| format!("set {BINARY} to what cargo xtask build-kubernetes prints"))?;
        fs::canonicalize(&binary).map(Self).with_context(|| format!("{BINARY}={binary:?}"))
    }

    /// A part as a command that runs inside a host and sees nothing of this process's environment.
    pub(super) fn command(&self, host: &Host, part: &str) -> Command {
        let mut command = host.command(&self.0);
        command.arg0(part).env_clear().env("HOME", host.dir()).stdin(Stdio::null());
        command
    }

    /// Starts a part that runs on; what it says is added to its log.
    pub(super) fn start(&self, host: &Host, part: &str, flags: &[String]) -> Result<Process> {
        let log = OpenOptions::new().create(true).append(true).open(log_file(host, part))?;
        let mut command = self.command(host, part);
        command.args(flags).stdout(log.try_clone()?).stderr(log);
        host.start(command)
    }
}

impl Files {
    fn new(host: &Host) -> Result<Self> {
        let folder = host.dir().join(FOLDER);
        fs::create_dir(&folder)
            .with_context(|| format!("{} has a control plane already", host.name()))?;
        Ok(Self(folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write_certificates(&self, cluster: &ClusterBuilder, authority: &Authority) -> Result<()> {
        let mut addresses = vec![API_SERVICE.parse()?];
        addresses.extend(cluster.masters.iter().flat_map(|host| host.addresses()));
        addresses.extend(&cluster.vips);
        fs::write(self.path("ca.crt"), authority.certificate())?;
        self.write("server", authority.server(&addresses)?)?;
        self.write("admin", authority.client("admin", "system:masters")?)?;
        self.write("sa", token_signer()?)
    }

    fn write(&self, name: &str, identity: Identity) -> Result<()> {
        fs::write(self.path(&format!("{name}.crt")), identity.certificate)?;
        fs::write(self.path(&format!("{name}.key")), identity.key)?;
        Ok(())
    }

    /// An administrator's kubeconfig for the server on a host.
    fn admin(&self, host: &Host) -> Result<PathBuf> {
        let to = self.path(&format!("{}.kubeconfig", host.name()));
        let user = json!({
            "client-certificate": self.path("admin.crt"), "client-key": self.path("admin.key"),
        });
        write_kubeconfig(&to, &server::url(host), &self.path("ca.crt"), user)?;
        Ok(to)
    }
}

fn start_etcd(host: &Host, program: &Program, files: &Files) -> Result<Process> {
    let (clients, peers) = (etcd_url(host), format!("http://{}:2380", host.v4()));
    let flags = [
        "--name=lab".into(),
        format!("--data-dir={}", files.path("etcd").display()),
        "--unsafe-no-fsync".into(),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=lab={peers}"),
    ];
    program.start(host, ETCD, &flags)
}

fn etcd_url(host: &Host) -> String {
    format!("http://{}:2379", host.v4())
}

fn server_flags(host: &Host, etcd: &Host, files: &Files) -> Vec<String> {
    let file = |flag: &str, name: &str| format!("--{flag}={}", files.path(name).display());
    vec![
        format!("--etcd-servers={}", etcd_url(etcd)),
        // All addresses, of both families.
        "--bind-address=::".into(),
        format!("--advertise-address={}", host.v4()),
        format!("--secure-port={}", server::PORT),
        file("tls-cert-file", "server.crt"),
        file("tls-private-key-file", "server.key"),
        file("client-ca-file", "ca.crt"),
        // To kubelets, for logs of pods and commands in them.
        file("kubelet-client-certificate", "admin.crt"),
        file("kubelet-client-key", "admin.key"),
        "--kubelet-preferred-address-types=InternalIP".into(),
        file("service-account-key-file", "sa.crt"),
        file("service-account-signing-key-file", "sa.key"),
        format!("--service-account-issuer={ISSUER}"),
        format!("--service-cluster-ip-range={SERVICE_NETWORKS}"),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        "--shutdown-delay-duration=0s".into(),
    ]
}

fn log_file(host: &Host, part: &str) -> PathBuf {
    host.dir().join(format!("{part}.log"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
