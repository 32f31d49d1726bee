use std::net::SocketAddr;

use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    health::word::{Word, name},
    membership::topic::{Key, Topic},
    model::{Check, CheckKind},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn target(address: SocketAddr) -> Target {
    let check = Check {
        kind: CheckKind::Tcp,
        port: None,
        interval: Duration::from_millis(50),
        timeout: Duration::from_millis(500),
        rise: 1,
        fall: 2,
        jitter_percent: 10,
    };
    Target { address, check }
}

/// A listener whose connections are taken and dropped.
async fn server() -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        loop {
            let _ = listener.accept().await;
        }
    });
    (address, task)
}

struct Running {
    targets: watch::Sender<Arc<Targets>>,
    members: watch::Sender<Arc<Members>>,
    words: mpsc::UnboundedSender<Vec<Change>>,
    published: mpsc::UnboundedReceiver<Publication>,
    verdicts: watch::Receiver<Arc<Verdicts>>,
}

/// All on this node, whose agent is the only one.
fn here(targets: impl IntoIterator<Item = Target>) -> Arc<Targets> {
    Arc::new(targets.into_iter().map(|target| (Arc::new(target), "here".into())).collect())
}

impl Running {
    fn start(targets: impl IntoIterator<Item = Target>) -> Self {
        let (targets, wanted) = watch::channel(here(targets));
        let (members, known) = watch::channel(Arc::default());
        let (words, heard) = mpsc::unbounded_channel();
        let (publish, published) = mpsc::unbounded_channel();
        let (sender, verdicts) = watch::channel(Arc::default());
        let settings = Settings { node: "here".into(), seed: [1; 16], run: 1 };
        let channels =
            Channels { targets: wanted, members: known, words: heard, publish, verdicts: sender };
        tokio::spawn(run(settings, channels));
        Self { targets, members, words, published, verdicts }
    }

    async fn until(&mut self, condition: impl FnMut(&Arc<Verdicts>) -> bool) -> Arc<Verdicts> {
        timeout(PATIENCE, self.verdicts.wait_for(condition)).await.unwrap().unwrap().clone()
    }
}

#[tokio::test]
async fn a_server_that_dies_goes_down_and_comes_back_up() {
    let (address, task) = server().await;
    let watched = target(address);
    let mut running = Running::start([watched.clone()]);
    running.until(|all| all.get(&watched) == Some(&Health::Up)).await;
    task.abort();
    running
        .until(|all| all.get(&watched) == Some(&Health::Down("connection refused".into())))
        .await;
    let _listener = TcpListener::bind(address).await.unwrap();
    running.until(|all| all.get(&watched) == Some(&Health::Up)).await;
}

#[tokio::test]
async fn a_target_is_probed_here_only_while_its_node_has_no_agent_and_words_go_both_ways() {
    let (address, _task) = server().await;
    let watched = target(address);
    let mut running = Running::start([]);
    let there = |target: &Target| Arc::new([(Arc::new(target.clone()), "there".into())].into());
    let members = |names: &[&str]| {
        let assumed = Members::assumed("here", names.iter().copied());
        Arc::new(Members { ready: true, ..assumed })
    };
    running.members.send_replace(members(&["here", "there"]));
    running.targets.send_replace(there(&watched));
    let key = Key::new(Topic::VERDICT, name(&[1; 16], &watched));
    let health = Health::Down("there says so".into());
    let value = Word::new(1, &health).map(|word| word.encode().into());
    let change = Change { origin: "there".into(), key: key.clone(), value };
    running.words.send(vec![change]).unwrap();
    running.until(|all| all.get(&watched) == Some(&health)).await;
    assert!(running.published.is_empty(), "it is not this node's to probe");

    running.members.send_replace(members(&["here"]));
    let all = running.until(|all| all.get(&watched) == Some(&Health::Up)).await;
    assert_eq!(all.cause(&watched).unwrap().by, ["here".into()]);
    let (published, value) = running.published.recv().await.unwrap();
    assert_eq!((published, Word::decode(&value.unwrap()).unwrap().up), (key.clone(), true));

    running.members.send_replace(members(&["here", "there"]));
    assert_eq!(running.published.recv().await, Some((key, None)));
    running.until(|all| all.get(&watched) == Some(&health)).await;
}

#[tokio::test]
async fn removed_targets_vanish_from_the_verdicts() {
    let ((one, _one), (two, _two)) = (server().await, server().await);
    let mut running = Running::start([target(one), target(two)]);
    running.until(|all| all.len() == 2).await;
    running.targets.send_replace(here([target(two)]));
    let left = running.until(|all| all.len() == 1).await;
    assert_eq!(left.keys().collect::<Vec<_>>(), [&target(two)]);
    running.targets.send_replace(Arc::default());
    running.until(|all| all.is_empty()).await;
}

#[tokio::test]
async fn a_single_change_is_published_within_five_milliseconds_of_the_probe() {
    let (address, _task) = server().await;
    let mut running = Running::start([]);
    sleep(COALESCE * 2).await;
    let start = Instant::now();
    running.targets.send_replace(here([target(address)]));
    running.until(|all| all.len() == 1).await;
    // A loopback connect takes microseconds; the rest is room for a busy machine.
    assert!(start.elapsed() < COALESCE * 10, "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_targets_are_all_judged_and_none_wrongly() {
    const UP: u16 = 5_000;
    const BACKLOG: u32 = 4096;
    // Every address of 127.0.0.0/8 is this host: one listener is as many targets as needed.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([0, 0, 0, 0], 0).into()).unwrap();
    let listener = socket.listen(BACKLOG).unwrap().into_std().unwrap();
    listener.set_nonblocking(false).unwrap();
    let open = listener.local_addr().unwrap().port();
    std::thread::spawn(move || while listener.accept().is_ok() {});
    // Nobody listens there but at one other address.
    let (elsewhere, _task) = server().await;
    let slow_target = |index: u16| {
        let port = if index < UP { open } else { elsewhere.port() };
        let mut target = target(([127, 1, (index >> 8) as u8, index as u8], port).into());
        target.check.interval = Duration::from_secs(10);
        target.check.timeout = Duration::from_secs(10);
        target.check.fall = 1;
        target
    };
    let start = Instant::now();
    let mut running = Running::start((0..2 * UP).map(slow_target));
    let all = running.until(|all| all.len() == usize::from(2 * UP)).await;
    println!("{} targets judged in {:?}", all.len(), start.elapsed());
    for (target, health) in all.iter() {
        assert_eq!(health.serves(), target.address.port() == open, "{target:?} {health:?}");
    }
}
