//! One API server: its life, and clients of it.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hyper::Request;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::cluster::Program;
use crate::lab::{Host, Process, eventually};

/// For a server to become ready, which takes it 5 s of a core, on a machine that is busy.
pub const READY: Duration = Duration::from_secs(300);
/// For an answer to the question whether it is.
const ANSWER: Duration = Duration::from_secs(5);
/// What kubectl gives a request; a server that hangs must not hang the test. An argument of the same name overrides it.
const REQUEST_TIMEOUT: &str = "--request-timeout=60s";
/// Where every server listens, on all addresses of its host.
pub const PORT: u16 = 6443;

/// A kube-apiserver on a host. The cluster owns its life.
pub struct Server<'lab> {
    host: &'lab Host,
    program: Program,
    flags: Vec<String>,
    kubeconfig: PathBuf,
    process: Mutex<Process>,
}

impl<'lab> Server<'lab> {
    /// Starts a server with these flags; `kubeconfig` is an administrator's, for this server.
    pub(super) fn start_new(
        host: &'lab Host,
        program: Program,
        flags: Vec<String>,
        kubeconfig: PathBuf,
    ) -> Result<Self> {
        let process = Mutex::new(program.start(host, NAME, &flags)?);
        Ok(Self { host, program, flags, kubeconfig, process })
    }

    pub fn host(&self) -> &'lab Host {
        self.host
    }

    /// By its IPv4 address; it listens on the other one too.
    pub fn url(&self) -> String {
        url(self.host)
    }

    /// A kubeconfig of an administrator that names this server alone. Valid from every process.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The process that runs now, or ran last.
    pub fn process(&self) -> Process {
        self.current().clone()
    }

    /// SIGKILL. Its clients' connections are reset, new ones refused.
    pub fn kill(&self) -> Result<()> {
        self.process().kill()
    }

    /// SIGSTOP: the kernel goes on taking connections and data, nobody answers.
    pub fn stop(&self) -> Result<()> {
        self.process().signal(Signal::SIGSTOP)
    }

    /// SIGCONT.
    pub fn go_on(&self) -> Result<()> {
        self.process().signal(Signal::SIGCONT)
    }

    /// Starts it again after [`Server::kill`], at the same address and as the same. Does not wait until it is ready.
    pub fn start(&self) -> Result<()> {
        let mut current = self.current();
        ensure!(!current.is_running()?, "the API server on {} runs", self.host.name());
        *current = self.program.start(self.host, NAME, &self.flags)?;
        Ok(())
    }

    /// Waits until it is ready and its own first objects are there.
    ///
    /// # Panics
    /// If it ends, or that takes longer than [`READY`].
    pub fn wait_ready(&self) {
        eventually(&format!("API server on {} is ready", self.host.name()), READY, || {
            let runs = self.process().is_running().expect("a child process");
            assert!(runs, "the API server on {} ended", self.host.name());
            self.is_ready()
        });
    }

    pub fn is_ready(&self) -> bool {
        let ask = self.with_client(async |client| {
            for path in ["/readyz", "/api/v1/namespaces/default"] {
                let ask = client.request_text(Request::get(path).body(Vec::new())?);
                tokio::time::timeout(ANSWER, ask).await??;
            }
            Ok(())
        });
        ask.is_ok()
    }

    /// Runs `work` on this server's host with an administrator's client of it. The client ends with `work`.
    pub fn with_client<T: Send>(
        &self,
        work: impl AsyncFnOnce(Client) -> Result<T> + Send,
    ) -> Result<T> {
        self.host.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let client = Client::try_from(self.config().await?)?;
                work(client).await
            })
        })
    }

    /// What an administrator's client of this server needs.
    pub async fn config(&self) -> Result<Config> {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig)?;
        Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
    }

    /// Runs `kubectl ARGUMENTS` with `input` on this server's host, whatever its success.
    pub fn try_kubectl(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut command = self.program.command(self.host, "kubectl");
        command.arg(REQUEST_TIMEOUT).arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start kubectl")?;
        // A kubectl that refuses its arguments reads nothing.
        let given = child.stdin.take().context("kubectl has no input")?.write_all(input.as_bytes());
        let output = child.wait_with_output()?;
        ensure!(given.is_ok() || !output.status.success(), "kubectl did not read its input");
        Ok(output)
    }

    /// What `kubectl ARGUMENTS` prints; an error, with what it says, if it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with(arguments, "")
    }

    /// Creates or changes objects (YAML, several with `---` between them), as an administrator does by hand.
    pub fn apply(&self, objects: &str) -> Result<()> {
        self.kubectl_with(&["apply", "--server-side", "--filename=-"], objects).map(drop)
    }

    /// The answer of `kubectl get ARGUMENTS -o json`.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "--output=json"], arguments].concat())?;
        serde_json::from_str(&text).context("read kubectl's answer")
    }

    fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.try_kubectl(arguments, input)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), error.trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    fn current(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) const NAME: &str = "kube-apiserver";

/// Where the server on a host is reached.
pub(super) fn url(host: &Host) -> String {
    format!("https://{}:{PORT}", host.v4())
}

/// Writes a kubeconfig with one server and one user, given as the fields of a kubeconfig's `user`.
pub(super) fn write_kubeconfig(to: &Path, server: &str, ca: &Path, user: Value) -> Result<()> {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority": ca}}],
        "users": [{"name": "lab", "user": user}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
    });
    // JSON is YAML.
    fs::write(to, config.to_string()).with_context(|| format!("write {}", to.display()))
}
