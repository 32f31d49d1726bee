use lb_common::wire::geneve::kind;
use tokio::{net::UdpSocket, time::timeout};

use super::*;
use crate::model::{HoldDowns, Life};

const KEY: [u8; 32] = [7; 32];
const ENOUGH: Duration = Duration::from_secs(20);

/// Answers probes as the data plane does.
async fn answer(socket: UdpSocket) {
    let mut buffer = [0; 256];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        assert_eq!(buffer[10], kind::PROBE);
        buffer[10] = kind::PROBE_ANSWER;
        socket.send_to(&buffer[..length], from).await.unwrap();
    }
}

/// Nodes of one letter each; `a` is at 127.0.0.2: every address of 127.0.0.0/8 is this host.
fn address(name: &str) -> IpAddr {
    let at = name.as_bytes()[0] - b'a' + 2;
    [127, 0, 0, at].into()
}

/// One node's membership, as its agent sees it.
struct Running {
    members: watch::Receiver<Arc<Members>>,
    reports: watch::Receiver<Arc<Report>>,
    publish: mpsc::UnboundedSender<Publication>,
    verdicts: mpsc::UnboundedReceiver<Vec<Change>>,
    own: watch::Sender<Arc<Own>>,
    keys: watch::Sender<Vec<[u8; 32]>>,
    _nodes: watch::Sender<Arc<BTreeMap<String, Vec<IpAddr>>>>,
    _gateway: mpsc::Receiver<Question>,
    _drains: mpsc::UnboundedReceiver<Vec<Change>>,
    claims: mpsc::UnboundedReceiver<Vec<Change>>,
}

impl Running {
    fn start(name: &str, tunnel_port: u16, gossip_port: u16, key: [u8; 32]) -> Self {
        let nodes = ["a", "b", "c"].map(|name| (name.to_owned(), vec![address(name)]));
        let (nodes, nodes_in) = watch::channel(Arc::new(nodes.into()));
        let (own, own_in) = watch::channel(Arc::default());
        let (keys, keys_in) = watch::channel(vec![key]);
        let (publish, published) = mpsc::unbounded_channel();
        let (gateway, _gateway) = mpsc::channel(1);
        let (members_out, members) = watch::channel(Arc::default());
        let (report, reports) = watch::channel(Arc::default());
        let (words, verdicts) = mpsc::unbounded_channel();
        let (drains, _drains) = mpsc::unbounded_channel();
        let (claims_out, claims) = mpsc::unbounded_channel();
        let rules = Rules {
            interval: Duration::from_millis(100),
            fall: 3,
            rise: 3,
            vni: 1,
            seed: [1; 16],
            seed_tag: *b"seed-tag",
            hold_downs: HoldDowns::default(),
        };
        let node = name.to_owned();
        let settings = Settings { node, tunnel_port, gossip_port, rules, seeds: Vec::new() };
        let channels = Channels {
            nodes: nodes_in,
            own: own_in,
            keys: keys_in,
            publish: published,
            gateway,
            members: members_out,
            report,
            verdicts: words,
            drains,
            claims: claims_out,
        };
        tokio::spawn(start(settings, 1, channels).unwrap());
        let _nodes = nodes;
        Self { members, reports, publish, verdicts, claims, own, keys, _nodes, _gateway, _drains }
    }

    async fn until(&mut self, holds: impl FnMut(&Arc<Members>) -> bool) -> Arc<Members> {
        timeout(ENOUGH, self.members.wait_for(holds)).await.unwrap().unwrap().clone()
    }

    /// Waits for the first words of others on targets.
    async fn word(&mut self) -> Change {
        timeout(ENOUGH, self.verdicts.recv()).await.unwrap().unwrap().remove(0)
    }
}

fn life(members: &Members, name: &str) -> Life {
    members.nodes.get(name).map(|member| member.life).unwrap_or_default()
}

/// Data planes of `b` and `c` at one port, which is returned.
async fn data_planes() -> (u16, Vec<tokio::task::JoinHandle<()>>) {
    let first = UdpSocket::bind((address("b"), 0)).await.unwrap();
    let port = first.local_addr().unwrap().port();
    let second = UdpSocket::bind((address("c"), port)).await.unwrap();
    (port, vec![tokio::spawn(answer(first)), tokio::spawn(answer(second))])
}

/// A port that is free now.
async fn free_port() -> u16 {
    UdpSocket::bind((address("a"), 0)).await.unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn nodes_that_answer_are_not_dead_and_one_that_stops_is_found_out() {
    let (port, planes) = data_planes().await;
    let mut running = Running::start("a", port, free_port().await, KEY);
    let forwards = |members: &Arc<Members>, name| life(members, name).forwards();
    let ready = running.until(|it| it.ready && forwards(it, "b") && forwards(it, "c")).await;
    assert!(!ready.isolated);
    planes[0].abort();
    let report = timeout(
        ENOUGH,
        running.reports.wait_for(|report| !report.nodes["b"].suspected_by.is_empty()),
    );
    report.await.unwrap().unwrap();
    assert!(forwards(&running.members.borrow().clone(), "c"));
}

#[tokio::test]
async fn agents_of_one_key_hear_each_others_words_also_after_the_key_changed() {
    let (gossip, tunnel) = (free_port().await, free_port().await);
    let [mut a, mut b] = ["a", "b"].map(|name| Running::start(name, tunnel, gossip, KEY));
    let stranger = Running::start("c", tunnel, gossip, [8; 32]);
    let heard = |members: &Members, name| members.nodes.get(name).is_some_and(|it| it.heard);
    a.until(|members| heard(members, "b")).await;
    b.until(|members| heard(members, "a")).await;
    let say = |running: &Running, value: &[u8]| {
        running.publish.send((Key::new(Topic::VERDICT, "target"), Some(value.into()))).unwrap();
    };
    say(&a, b"up");
    let word = b.word().await;
    assert_eq!((&*word.origin, word.value.as_deref()), ("a", Some(&b"up"[..])));

    b.keys.send_replace(vec![KEY, [9; 32]]);
    a.keys.send_replace(vec![[9; 32], KEY]);
    say(&a, b"down");
    assert_eq!(b.word().await.value.as_deref(), Some(&b"down"[..]));
    let facts = Facts { version: "1.2.3".into(), ..Facts::default() };
    a.own.send_replace(Arc::new(Own { facts, applied: true, ..Own::default() }));
    b.until(|members| members.nodes["a"].card.as_ref().is_some_and(|it| it.version == "1.2.3"))
        .await;

    let refused = |report: &Arc<Report>| {
        report.refusals.wrong_key.count > 0
            && report.problems.iter().any(|problem| problem.message.contains("another key"))
    };
    timeout(ENOUGH, a.reports.wait_for(refused)).await.unwrap().unwrap();
    assert!(!heard(&a.members.borrow(), "c") && !heard(&stranger.members.borrow(), "a"));
}

/// After a drain of many: more than datagrams carry.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_claims_travel() {
    const CLAIMS: u32 = 100_000;
    let (gossip, tunnel) = (free_port().await, free_port().await);
    let [mut a, mut b] = ["a", "b"].map(|name| Running::start(name, tunnel, gossip, KEY));
    let heard = |members: &Arc<Members>, name| members.nodes.get(name).is_some_and(|it| it.heard);
    a.until(|members| heard(members, "b")).await;
    b.until(|members| heard(members, "a")).await;
    let start = Instant::now();
    for n in 0..CLAIMS {
        let key = Key::new(Topic::CLAIM, [&[0; 33][..], &n.to_be_bytes()].concat());
        a.publish.send((key, Some(vec![7; 16]))).unwrap();
    }
    let mut claims = BTreeSet::new();
    while claims.len() < CLAIMS as usize {
        let changes = timeout(ENOUGH, b.claims.recv()).await.unwrap().unwrap();
        claims.extend(changes.into_iter().map(|change| change.key.name));
    }
    println!("{CLAIMS} claims travelled in {:?}", start.elapsed());
}
