//! The way to one of several API servers, chosen by our own probes.
//!
//! One small question, answered from the store behind the server, is asked of the server in use again and
//! again: who are you, and how far are you? One that fails, hangs, belongs to another cluster or has gone back
//! in time is left within seconds, and everything that was asked of it is asked anew elsewhere. A client is made
//! anew with every choice, so certificates and tokens that were replaced are read again.
//!
//! Beside the servers that are configured there are those that the cluster itself names, in the EndpointSlices of
//! `default/kubernetes`: tried last, and remembered on disk, as no server tells them when they are needed.
//!
//! Must never decide what an answer means for packets: without any server there is simply nothing new.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use hyper::header::{HeaderValue, USER_AGENT};
use k8s_openapi::api::{core::v1::Namespace, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, Config,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use crate::model::KubernetesSettings;

/// Between two questions to the server in use.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// Longest wait for an answer, and for a connection.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// One lost answer leaves no server.
const PROBE_FALL: u32 = 2;

/// Before a failed question is repeated, and between two that reflectors ask for.
const PROBE_AGAIN: Duration = Duration::from_millis(250);

/// Head start of a server that comes earlier in this node's order.
const STAGGER: Duration = Duration::from_millis(300);

/// Between two looks for a server while there is none.
const SEARCH: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(5);

/// How often it is written how far the cluster is.
const NOTE_INTERVAL: Duration = Duration::from_secs(60);

/// Most servers that are remembered beside the configured ones; the last named first.
const MAX_LEARNT: usize = 16;

/// Name of the file in the state directory that says which cluster this is.
pub const FILE: &str = "kubernetes.json";

/// Where a pod finds its service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Its namespace names the cluster: it is as old as that.
const SYSTEM: &str = "kube-system";

/// Selects the slices in which API servers name themselves.
const SERVERS: &str = "kubernetes.io/service-name=kubernetes";

/// Why a server is not used.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("no API server is named: give spec.kubernetes.servers or spec.kubernetes.kubeconfig")]
    NoServer,
    #[error("{path}: {source}")]
    Kubeconfig { path: PathBuf, source: Box<kube::config::KubeconfigError> },
    #[error("`{0}` is not a URL")]
    Url(String),
    #[error("no answer within {PROBE_TIMEOUT:?}")]
    Silent,
    #[error("{}", chain(.0))]
    Client(Box<kube::Error>),
    #[error(
        "it is of another cluster (kube-system is {found}, not {known}): what is known stays in force. If the \
         cluster was made anew on purpose, remove {file} and restart the agent"
    )]
    Foreign { found: String, known: String, file: PathBuf },
    #[error("it has no namespace kube-system (yet): an empty API server is not believed")]
    Empty,
}

/// An error with its causes, each once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        Self::Client(Box::new(error))
    }
}

/// A server in use.
#[derive(Clone)]
pub struct Connection {
    pub client: Client,
    /// Its URL.
    pub server: String,
    /// Greater with every choice of a server in this life of the agent.
    pub session: u64,
    /// The cluster has gone back in time: what is missing now may have been lost, and not removed.
    pub went_back: bool,
    /// Unix time in ms of the choice.
    pub since_ms: u64,
}

/// What is known of the servers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Servers {
    /// Why those that are not in use are not, by URL; empty while one is in use and no other was tried.
    pub problems: BTreeMap<String, String>,
}

/// What the keeper of the way tells.
pub struct Channels {
    /// `None`: there is no way now.
    pub connection: watch::Sender<Option<Arc<Connection>>>,
    pub servers: watch::Sender<Servers>,
    /// Somebody saw a failure: the server in use is asked at once.
    pub doubts: Arc<Notify>,
}

/// Which cluster this is and how far it was when last seen.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
struct Identity {
    /// UID of the namespace kube-system.
    cluster: Option<String>,
    /// Largest resource version.
    version: u64,
    /// URLs of servers that the cluster named, those that it named last first. One that it names no more may be the
    /// only one to come back.
    #[serde(default)]
    servers: Vec<String>,
}

/// What a server says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Answer {
    cluster: String,
    version: u64,
}

/// Keeps a way to the cluster, for ever. `clock` says the Unix time in ms.
pub async fn run(
    settings: KubernetesSettings,
    node: String,
    state_dir: PathBuf,
    clock: fn() -> u64,
    channels: Channels,
) {
    // Where somebody else has installed one, that serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = state_dir.join(FILE);
    let identity = read_identity(&file);
    let (noted, learnt) = (None, Instant::now());
    let mut keeper = Keeper { settings, node, file, identity, noted, learnt, channels, session: 0 };
    let mut wait = *SEARCH.start();
    loop {
        match keeper.choose().await {
            Some((client, server, answer)) => {
                wait = *SEARCH.start();
                keeper.hold(client, server, answer, clock()).await;
            }
            None => {
                sleep(wait).await;
                wait = (wait * 2).min(*SEARCH.end());
            }
        }
    }
}

struct Keeper {
    settings: KubernetesSettings,
    node: String,
    file: PathBuf,
    identity: Identity,
    /// When the identity was written.
    noted: Option<Instant>,
    /// When the cluster was last asked for its servers.
    learnt: Instant,
    channels: Channels,
    session: u64,
}

impl Keeper {
    /// The first server in this node's order that answers as ours does.
    async fn choose(&self) -> Option<(Client, String, Answer)> {
        let (servers, base) = match servers(&self.settings).await {
            Ok(found) => found,
            Err(error) => {
                self.tell([("Kubernetes".to_owned(), error.to_string())].into());
                return None;
            }
        };
        let mut ordered = order(servers, &self.node);
        let learnt = order(self.identity.servers.clone(), &self.node);
        ordered.extend(
            learnt.into_iter().filter(|url| !same_server(&ordered, url)).collect::<Vec<_>>(),
        );
        let mut asked: FuturesUnordered<_> = ordered
            .into_iter()
            .enumerate()
            .map(|(index, server)| {
                let base = base.clone();
                async move {
                    sleep(STAGGER * index as u32).await;
                    let asked = self.first(&server, base).await;
                    (server, asked)
                }
            })
            .collect();
        let mut problems = BTreeMap::new();
        while let Some((server, asked)) = asked.next().await {
            match asked {
                Ok((client, answer)) => {
                    self.tell(problems);
                    return Some((client, server, answer));
                }
                Err(error) => drop(problems.insert(server, error.to_string())),
            }
        }
        self.tell(problems);
        None
    }

    async fn first(&self, server: &str, mut config: Config) -> Result<(Client, Answer), ApiError> {
        config.cluster_url = server.parse().map_err(|_| ApiError::Url(server.to_owned()))?;
        let agent = concat!("weir/", env!("CARGO_PKG_VERSION"));
        config.headers.push((USER_AGENT, HeaderValue::from_static(agent)));
        config.connect_timeout = Some(PROBE_TIMEOUT);
        // Who answers "later" is asked later by those who ask.
        config.default_retry = false;
        let client = Client::try_from(config)?;
        let answer = ask(&client).await?;
        self.judge(&answer)?;
        Ok((client, answer))
    }

    fn judge(&self, answer: &Answer) -> Result<(), ApiError> {
        match &self.identity.cluster {
            Some(known) if *known != answer.cluster => Err(ApiError::Foreign {
                found: answer.cluster.clone(),
                known: known.clone(),
                file: self.file.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Uses a server until it fails.
    async fn hold(&mut self, client: Client, server: String, answer: Answer, now_ms: u64) {
        let went_back = self.note(answer);
        self.learn(&client, &server).await;
        self.session += 1;
        let session = self.session;
        tracing::info!(%server, session, went_back, "API server in use");
        let (asked, name) = (client.clone(), server.clone());
        let connection = Connection { client, server, session, went_back, since_ms: now_ms };
        self.channels.connection.send_replace(Some(Arc::new(connection)));
        let mut failures = 0;
        let why = loop {
            match failures {
                0 => tokio::select! {
                    () = sleep(PROBE_INTERVAL) => {}
                    () = self.channels.doubts.notified() => sleep(PROBE_AGAIN).await,
                },
                _ => sleep(PROBE_AGAIN).await,
            }
            match ask(&asked).await {
                Ok(answer) => {
                    if let Err(error) = self.judge(&answer) {
                        break error.to_string();
                    }
                    failures = 0;
                    if self.note(answer) {
                        break "the cluster has gone back in time".to_owned();
                    }
                    if self.learnt.elapsed() >= NOTE_INTERVAL {
                        self.learn(&asked, &name).await;
                    }
                }
                Err(error) => {
                    failures += 1;
                    if failures >= PROBE_FALL {
                        break error.to_string();
                    }
                }
            }
        };
        tracing::warn!(server = %name, why, "API server is left");
        self.channels.connection.send_replace(None);
    }

    /// Remembers how far the cluster is. True if it was further already.
    fn note(&mut self, answer: Answer) -> bool {
        let went_back = answer.version < self.identity.version;
        let news = self.identity.cluster.is_none() || went_back;
        (self.identity.cluster, self.identity.version) = (Some(answer.cluster), answer.version);
        if news || self.noted.is_none_or(|at| at.elapsed() >= NOTE_INTERVAL) {
            self.write();
        }
        went_back
    }

    fn write(&mut self) {
        self.noted = Some(Instant::now());
        if let Err(error) = write_identity(&self.file, &self.identity) {
            tracing::warn!(%error, file = %self.file.display(), "the cluster's name cannot be kept");
        }
    }

    /// Asks for the cluster's servers. No answer, or an empty one, changes nothing.
    async fn learn(&mut self, client: &Client, server: &str) {
        self.learnt = Instant::now();
        // What others may read is for the cluster's own servers only.
        if !server.starts_with("https:") {
            return;
        }
        let slices = Api::<EndpointSlice>::namespaced(client.clone(), "default");
        let of_servers = ListParams::default().labels(SERVERS);
        let Ok(Ok(list)) = timeout(PROBE_TIMEOUT, slices.list(&of_servers)).await else { return };
        let named: Vec<String> = list.items.iter().flat_map(urls).collect();
        let servers = remember(named, &self.identity.servers);
        if servers != self.identity.servers {
            self.identity.servers = servers;
            self.write();
        }
    }

    fn tell(&self, problems: BTreeMap<String, String>) {
        self.channels.servers.send_if_modified(|servers| {
            let changed = servers.problems != problems;
            for (server, why) in
                problems.iter().filter(|(it, why)| servers.problems.get(*it) != Some(why))
            {
                tracing::warn!(server, why, "API server cannot be used");
            }
            servers.problems = problems;
            changed
        });
    }
}

/// The same for all questions: small, and answered only by a server whose store works.
async fn ask(client: &Client) -> Result<Answer, ApiError> {
    let namespaces = Api::<Namespace>::all(client.clone());
    let only = ListParams::default().fields(&format!("metadata.name={SYSTEM}"));
    let list =
        timeout(PROBE_TIMEOUT, namespaces.list(&only)).await.map_err(|_| ApiError::Silent)??;
    let version = list.metadata.resource_version.as_deref().unwrap_or_default();
    let version = version.parse().unwrap_or_default();
    let system = list.items.into_iter().find(|it| it.metadata.name.as_deref() == Some(SYSTEM));
    let cluster = system.and_then(|it| it.metadata.uid).ok_or(ApiError::Empty)?;
    Ok(Answer { cluster, version })
}

/// The servers, and how they are talked to. Reads all files anew.
async fn servers(settings: &KubernetesSettings) -> Result<(Vec<String>, Config), ApiError> {
    let base = match (&settings.kubeconfig, settings.servers.first()) {
        (Some(path), _) => kubeconfig(path).await?,
        (None, Some(server)) => {
            let url = server.parse().map_err(|_| ApiError::Url(server.clone()))?;
            with_account(Config::new(url), Path::new(ACCOUNT))
        }
        (None, None) => {
            let config = Config::incluster_env().map_err(|_| ApiError::NoServer)?;
            with_account(config, Path::new(ACCOUNT))
        }
    };
    let servers = match settings.servers.is_empty() {
        true => vec![base.cluster_url.to_string()],
        false => settings.servers.clone(),
    };
    Ok((servers, base))
}

async fn kubeconfig(path: &Path) -> Result<Config, ApiError> {
    let wrong = |source| ApiError::Kubeconfig { path: path.into(), source: Box::new(source) };
    let read = Kubeconfig::read_from(path).map_err(wrong)?;
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(read, &options).await.map_err(wrong)
}

/// The pod's own files, which the client reads again as they are replaced.
fn with_account(mut config: Config, account: &Path) -> Config {
    let (certificate, token) = (account.join("ca.crt"), account.join("token"));
    if certificate.exists() {
        config.root_cert_file = Some(certificate);
        // The file is what counts; but without these the client looks for the system's, and in the image there are none.
        config.root_cert = Some(Vec::new());
    }
    if token.exists() {
        config.auth_info.token_file = Some(token.display().to_string());
    }
    config
}

/// URLs of the API servers in a slice that names them.
fn urls(slice: &EndpointSlice) -> impl Iterator<Item = String> + '_ {
    let ports = slice.ports.iter().flatten();
    let secure = ports.filter(|port| port.name.as_deref() == Some("https"));
    let numbers = secure.filter_map(|port| u16::try_from(port.port?).ok());
    numbers.flat_map(|port| {
        let addresses = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
        let addresses = addresses.filter_map(|address| address.parse::<IpAddr>().ok());
        addresses.map(move |address| format!("https://{}", SocketAddr::new(address, port)))
    })
}

/// Those that are named now, then those that were before.
fn remember(named: Vec<String>, before: &[String]) -> Vec<String> {
    let mut servers: Vec<String> = Vec::new();
    let sorted: BTreeSet<String> = named.into_iter().collect();
    for server in sorted.into_iter().chain(before.iter().cloned()) {
        if servers.len() < MAX_LEARNT && !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

/// Whether a URL is one of these, however it is written.
fn same_server(servers: &[String], url: &str) -> bool {
    servers.iter().any(|server| server.trim_end_matches('/') == url)
}

/// Another order for every node, so that the nodes spread.
fn order(mut servers: Vec<String>, node: &str) -> Vec<String> {
    let rank = |server: &String| {
        let text = format!("{node} {server}");
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        digest.as_ref().to_vec()
    };
    servers.sort_by_cached_key(rank);
    servers
}

/// A file that says nothing sensible counts as none.
fn read_identity(file: &Path) -> Identity {
    let read = fs::read(file).ok();
    read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn write_identity(file: &Path, identity: &Identity) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let mut fresh = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&mut fresh, identity)?;
    fresh.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_spread_over_the_servers_and_each_keeps_its_order() {
        let servers: Vec<String> = (0..3).map(|n| format!("https://10.0.0.{n}:6443")).collect();
        let first = |node: usize| order(servers.clone(), &format!("node-{node}"))[0].clone();
        let firsts: std::collections::BTreeSet<_> = (0..20).map(first).collect();
        assert_eq!(firsts.len(), 3);
        assert_eq!(first(7), first(7));
    }

    #[test]
    fn a_pod_trusts_its_own_certificate_and_asks_for_none_of_the_system() {
        let dir = tempfile::tempdir().unwrap();
        let url = "https://10.0.0.1:6443".parse().unwrap();
        fs::write(dir.path().join("ca.crt"), "").unwrap();
        let config = with_account(Config::new(url), dir.path());
        assert_eq!(config.root_cert_file, Some(dir.path().join("ca.crt")));
        assert!(config.root_cert.is_some(), "none: the system's, which the image does not have");
    }

    #[test]
    fn the_identity_survives_and_a_damaged_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        let servers = vec!["https://10.0.0.1:6443".into()];
        let identity = Identity { cluster: Some("u".into()), version: 7, servers };
        write_identity(&file, &identity).unwrap();
        assert_eq!(read_identity(&file), identity);
        fs::write(&file, "{").unwrap();
        assert_eq!(read_identity(&file), Identity::default());
        fs::write(&file, r#"{"cluster": "u", "version": 7}"#).unwrap();
        assert_eq!(read_identity(&file).cluster, Some("u".into()), "of a version of old");
    }

    #[test]
    fn servers_are_learnt_from_slices_and_kept_when_they_leave() {
        let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "addressType": "IPv4",
            "ports": [{"name": "https", "port": 6443}, {"name": "other", "port": 1}],
            "endpoints": [{"addresses": ["10.0.0.2"]}, {"addresses": ["fd00::1"]}, {"addresses": ["x"]}],
        }))
        .unwrap();
        let named: Vec<String> = urls(&slice).collect();
        assert_eq!(named, ["https://10.0.0.2:6443", "https://[fd00::1]:6443"]);
        let before = ["https://10.0.0.1:6443".to_owned(), named[0].clone()];
        let known = remember(named.clone(), &before);
        assert_eq!(known, [named[0].as_str(), named[1].as_str(), before[0].as_str()]);
        assert_eq!(remember(Vec::new(), &known), known, "silence names nobody");
        let many = (0..2 * MAX_LEARNT).map(|n| format!("https://10.0.1.{n}:6443"));
        assert_eq!(remember(many.collect(), &known).len(), MAX_LEARNT);
    }
}
