//! The way to one of several API servers, chosen by our own probes.
//!
//! One small question, answered from the store behind the server, is asked of the server in use again and
//! again: who are you, and how far are you? One that fails, hangs, belongs to another cluster or has gone back
//! in time is left within seconds, and everything that was asked of it is asked anew elsewhere. A client is made
//! anew with every choice, so certificates and tokens that were replaced are read again.
//!
//! Must never decide what an answer means for packets: without any server there is simply nothing new.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use hyper::header::{HeaderValue, USER_AGENT};
use k8s_openapi::api::core::v1::Namespace;
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

/// Name of the file in the state directory that says which cluster this is.
pub const FILE: &str = "kubernetes.json";

/// Where a pod finds its service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Its namespace names the cluster: it is as old as that.
const SYSTEM: &str = "kube-system";

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
    let mut keeper = Keeper { settings, node, file, identity, noted: None, channels, session: 0 };
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
        let ordered = order(servers, &self.node);
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
        self.identity = Identity { cluster: Some(answer.cluster), version: answer.version };
        if news || self.noted.is_none_or(|at| at.elapsed() >= NOTE_INTERVAL) {
            self.noted = Some(Instant::now());
            if let Err(error) = write_identity(&self.file, &self.identity) {
                tracing::warn!(%error, file = %self.file.display(), "the cluster's name cannot be kept");
            }
        }
        went_back
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
    }
    if token.exists() {
        config.auth_info.token_file = Some(token.display().to_string());
    }
    config
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
    fn the_identity_survives_and_a_damaged_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        let identity = Identity { cluster: Some("u".into()), version: 7 };
        write_identity(&file, &identity).unwrap();
        assert_eq!(read_identity(&file), identity);
        fs::write(&file, "{").unwrap();
        assert_eq!(read_identity(&file), Identity::default());
    }
}
