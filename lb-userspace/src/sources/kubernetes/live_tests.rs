//! Servers, lists and watches, against servers of the tests' own that speak as much of the API as is asked.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::{Notify, broadcast, watch},
    task::JoinSet,
    time::timeout,
};

use super::{
    api::{self, Connection, Servers},
    snapshot::{Name, Snapshot},
    watch::{self as follow, Expected, Troubles},
};
use crate::model::KubernetesSettings;

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(60);

/// An API server: objects by resource, such as `services`.
struct Fake {
    address: SocketAddr,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

struct State {
    lists: Mutex<BTreeMap<String, Vec<Value>>>,
    version: Mutex<u64>,
    /// Accepts connections, and answers nothing.
    hangs: watch::Sender<bool>,
    /// Resource and event.
    events: broadcast::Sender<(String, Value)>,
    /// Watches that are open end.
    cut: broadcast::Sender<()>,
}

impl Fake {
    async fn start(cluster: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let system =
            json!({"metadata": {"name": "kube-system", "uid": cluster, "resourceVersion": "1"}});
        let state = Arc::new(State {
            lists: Mutex::new([("namespaces".to_owned(), vec![system])].into()),
            version: Mutex::new(10),
            hangs: watch::Sender::new(false),
            events: broadcast::Sender::new(16),
            cut: broadcast::Sender::new(16),
        });
        let (shared, mut tasks) = (state.clone(), JoinSet::new());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                connections.spawn(async move { drop(state.serve(stream).await) });
            }
        });
        Self { address, state, _tasks: tasks }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn set(&self, resource: &str, objects: Vec<Value>) {
        self.state.lists.lock().unwrap().insert(resource.into(), objects);
    }

    fn tell(&self, resource: &str, kind: &str, object: Value) {
        let event = json!({"type": kind, "object": object});
        self.state.events.send((resource.into(), event)).expect("somebody watches");
    }
}

impl State {
    async fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let mut first = String::new();
            if stream.read_line(&mut first).await? == 0 {
                return Ok(());
            }
            let mut line = String::from("-");
            while !line.trim().is_empty() {
                line.clear();
                stream.read_line(&mut line).await?;
            }
            self.hangs.subscribe().wait_for(|hangs| !hangs).await.expect("the sender is here");
            let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
            let (path, query) = path.split_once('?').unwrap_or((&path, ""));
            let resource = path.rsplit('/').next().unwrap_or_default().to_owned();
            if query.contains("watch=true") {
                return self.watch(&mut stream, &resource).await;
            }
            let items = self.lists.lock().unwrap().get(&resource).cloned();
            let version = self.version.lock().unwrap().to_string();
            let (status, body) = match items {
                Some(items) => (
                    "200 OK",
                    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": version}, "items": items}),
                ),
                None => (
                    "404 Not Found",
                    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
                        "message": "not found", "reason": "NotFound", "code": 404}),
                ),
            };
            let body = body.to_string();
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all((head + &body).as_bytes()).await?;
        }
    }

    async fn watch(
        &self,
        stream: &mut BufReader<TcpStream>,
        resource: &str,
    ) -> std::io::Result<()> {
        let (mut events, mut cut) = (self.events.subscribe(), self.cut.subscribe());
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).await?;
        loop {
            tokio::select! {
                Ok((of, event)) = events.recv() => if of == resource {
                    stream.write_all(format!("{event}\n").as_bytes()).await?;
                },
                _ = cut.recv() => return Ok(()),
            }
        }
    }
}

/// What the product runs against such servers.
struct Client {
    connection: watch::Receiver<Option<Arc<Connection>>>,
    servers: watch::Receiver<Servers>,
    snapshot: watch::Receiver<Option<Snapshot>>,
    troubles: watch::Receiver<Troubles>,
    state: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl Client {
    fn start(servers: &[&Fake], expected: Expected, confirm_after: Duration) -> Self {
        let state = tempfile::tempdir().unwrap();
        let settings = KubernetesSettings {
            servers: servers.iter().map(|it| it.url()).collect(),
            kubeconfig: None,
            default_class: false,
            namespace: "weir-system".into(),
            ignore_exclude_label: false,
        };
        let (connection, connection_in) = watch::channel(None);
        let (servers, servers_in) = watch::channel(Servers::default());
        let (snapshot, snapshot_in) = watch::channel(None);
        let (troubles, troubles_in) = watch::channel(Troubles::default());
        let doubts = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        let channels = api::Channels { connection, servers, doubts: doubts.clone() };
        tasks.spawn(api::run(settings, "n1".into(), state.path().into(), || 7, channels));
        let channels =
            follow::Channels { connection: connection_in.clone(), doubts, snapshot, troubles };
        tasks.spawn(follow::run(expected, confirm_after, channels));
        Self {
            connection: connection_in,
            servers: servers_in,
            snapshot: snapshot_in,
            troubles: troubles_in,
            state,
            _tasks: tasks,
        }
    }

    async fn uses(&mut self, server: &Fake) -> u64 {
        let (url, mut session) = (server.url(), 0);
        let wanted = self.connection.wait_for(|it| {
            let found = it.as_ref().filter(|it| it.server == url);
            session = found.map_or(0, |it| it.session);
            found.is_some()
        });
        timeout(LONG, wanted).await.expect("in time").expect("it runs");
        session
    }

    async fn knows(&mut self, what: impl Fn(&Snapshot) -> bool) {
        let known = self.snapshot.wait_for(|it| it.as_ref().is_some_and(&what));
        timeout(LONG, known).await.expect("in time").expect("it runs");
    }
}

fn service(name: &str, version: u64) -> Value {
    json!({
        "metadata": {"namespace": "d", "name": name, "resourceVersion": version.to_string()},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": "weir.dev/weir", "ports": [{"port": 80}]},
    })
}

fn fill(server: &Fake) {
    server.set("services", vec![service("a", 2), service("b", 3)]);
    server.set("endpointslices", Vec::new());
    server.set("nodes", Vec::new());
}

fn names(snapshot: &Snapshot) -> String {
    snapshot.services.keys().map(|it| it.name.as_str()).collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_before_every_first_list_and_every_change_after() {
    let server = Fake::start("u").await;
    fill(&server);
    server.state.lists.lock().unwrap().remove("nodes");
    let mut client = Client::start(&[&server], Expected::default(), LONG);
    let told = client.troubles.wait_for(|it| it.contains_key("Nodes"));
    timeout(LONG, told).await.expect("in time").expect("it runs");
    assert!(client.snapshot.borrow().is_none(), "the nodes are not known");
    server.set("nodes", Vec::new());
    // Our own kind does not exist: that is an empty list.
    client.knows(|it| names(it) == "a b" && it.frontends.is_empty()).await;
    server.tell("services", "ADDED", service("c", 11));
    client.knows(|it| names(it) == "a b c").await;
    server.tell("services", "DELETED", service("a", 12));
    client.knows(|it| names(it) == "b c").await;
    // The lost watch is resumed; 410 lists anew.
    server.set("services", vec![service("b", 3), service("d", 13)]);
    server.tell(
        "services",
        "ERROR",
        json!({"metadata": {}, "status": "Failure", "message": "too old",
        "reason": "Expired", "code": 410}),
    );
    client.knows(|it| names(it) == "b d").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_fails_and_then_has_nothing_to_tell_is_no_trouble() {
    let server = Fake::start("u").await;
    fill(&server);
    let mut client = Client::start(&[&server], Expected::default(), LONG);
    client.knows(|it| names(it) == "a b").await;
    let busy = json!({"metadata": {}, "status": "Failure", "message": "storage is (re)initializing",
        "reason": "TooManyRequests", "code": 429});
    server.tell("services", "ERROR", busy);
    for troubled in [true, false] {
        let told = client.troubles.wait_for(|it| it.contains_key("Services") == troubled);
        timeout(LONG, told).await.expect("in time").expect("it runs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_or_dies_is_left_for_another_and_the_state_stays() {
    let (one, two) = (Fake::start("u").await, Fake::start("u").await);
    for server in [&one, &two] {
        fill(server);
    }
    one.state.hangs.send_replace(true);
    let mut client = Client::start(&[&one, &two], Expected::default(), LONG);
    let first = client.uses(&two).await;
    client.knows(|it| names(it) == "a b").await;

    one.state.hangs.send_replace(false);
    two.state.hangs.send_replace(true);
    one.set("services", vec![service("a", 2), service("b", 3), service("e", 4)]);
    let began = std::time::Instant::now();
    assert!(client.uses(&one).await > first);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    client.knows(|it| names(it) == "a b e").await;

    drop(one);
    let gone = client.connection.wait_for(Option::is_none);
    timeout(LONG, gone).await.expect("in time").expect("it runs");
    let told = client.servers.wait_for(|it| it.problems.len() == 2);
    timeout(LONG, told).await.expect("in time").expect("it runs");
    assert_eq!(names(client.snapshot.borrow().as_ref().unwrap()), "a b e");
    two.state.hangs.send_replace(false);
    client.uses(&two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_cluster_is_never_used() {
    let (ours, other) = (Fake::start("u").await, Fake::start("v").await);
    fill(&ours);
    let mut client = Client::start(&[&ours], Expected::default(), LONG);
    client.knows(|it| names(it) == "a b").await;
    let identity = std::fs::read(client.state.path().join(api::FILE)).unwrap();

    // The next life knows the cluster, and its server was replaced.
    let mut client = Client::start(&[&other], Expected::default(), LONG);
    let connected = client.connection.wait_for(Option::is_some);
    timeout(LONG, connected).await.expect("in time").expect("it runs");
    std::fs::write(client.state.path().join(api::FILE), identity).unwrap();
    let (file, settings) = (client.state.path().to_owned(), vec![other.url()]);
    let kubernetes = KubernetesSettings {
        servers: settings,
        kubeconfig: None,
        default_class: false,
        namespace: "weir-system".into(),
        ignore_exclude_label: false,
    };
    let (connection, connection_in) = watch::channel(None);
    let (servers, mut servers_in) = watch::channel(Servers::default());
    let channels = api::Channels { connection, servers, doubts: Arc::default() };
    let mut tasks = JoinSet::new();
    tasks.spawn(api::run(kubernetes, "n1".into(), file, || 7, channels));
    let refused = servers_in
        .wait_for(|it| it.problems.values().any(|why| why.contains("of another cluster")));
    timeout(LONG, refused).await.expect("in time").expect("it runs");
    assert!(connection_in.borrow().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_list_counts_once_a_second_one_confirms_it() {
    let server = Fake::start("u").await;
    fill(&server);
    let mut client = Client::start(&[&server], Expected::default(), Duration::from_secs(1));
    client.knows(|it| names(it) == "a b").await;
    server.set("services", Vec::new());
    server.tell(
        "services",
        "ERROR",
        json!({"metadata": {}, "status": "Failure", "message": "too old",
        "reason": "Expired", "code": 410}),
    );
    let doubted = client
        .troubles
        .wait_for(|it| it.get("Services").is_some_and(|it| it.contains("where 2 were known")));
    timeout(LONG, doubted).await.expect("in time").expect("it runs");
    assert_eq!(names(client.snapshot.borrow().as_ref().unwrap()), "a b");
    client.knows(|it| it.services.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_list_that_lacks_what_the_checkpoint_knew_is_no_first_list() {
    let server = Fake::start("u").await;
    fill(&server);
    server.set("services", Vec::new());
    let expected = Expected { services: 2, ..Expected::default() };
    let mut client = Client::start(&[&server], expected, Duration::from_secs(2));
    let doubted = client.troubles.wait_for(|it| it.contains_key("Services"));
    timeout(LONG, doubted).await.expect("in time").expect("it runs");
    assert!(client.snapshot.borrow().is_none());
    server.set("services", vec![service("a", 2)]);
    client.knows(|it| it.services.contains_key(&Name::new("d", "a"))).await;
}
