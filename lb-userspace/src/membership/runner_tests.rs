use lb_common::wire::geneve::kind;
use tokio::time::timeout;

use super::*;

/// Answers probes as the data plane does.
async fn answer(socket: UdpSocket) {
    let mut buffer = [0; BUFFER];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        assert_eq!(buffer[10], kind::PROBE);
        buffer[10] = kind::PROBE_ANSWER;
        socket.send_to(&buffer[..length], from).await.unwrap();
    }
}

/// The prober of node `a`.
struct Running {
    alive: watch::Receiver<Arc<Alive>>,
    reports: watch::Receiver<Arc<BTreeMap<String, PeerStatus>>>,
    _nodes: watch::Sender<Arc<BTreeMap<String, Vec<IpAddr>>>>,
}

impl Running {
    fn start(tunnel_port: u16, nodes: BTreeMap<String, Vec<IpAddr>>) -> Self {
        let (nodes, wanted) = watch::channel(Arc::new(nodes));
        let (sender, alive) = watch::channel(Arc::default());
        let (report, reports) = watch::channel(Arc::default());
        let interval = Duration::from_millis(100);
        let rules = Rules { interval, fall: 3, rise: 3, vni: 1, seed_tag: *b"seed-tag" };
        let settings = Settings { node: "a".into(), tunnel_port, rules };
        tokio::spawn(run(settings, wanted, sender, report));
        Self { alive, reports, _nodes: nodes }
    }

    /// Waits until just these nodes, of one letter each, are alive.
    async fn until(&mut self, names: &str) -> Arc<Alive> {
        let these = |alive: &Arc<Alive>| alive.names.iter().cloned().collect::<String>() == names;
        timeout(Duration::from_secs(20), self.alive.wait_for(these)).await.unwrap().unwrap().clone()
    }
}

#[tokio::test]
async fn nodes_that_answer_are_alive_and_one_that_stops_dies() {
    // Every address of 127.0.0.0/8 is this host, so each node has its own.
    let socket = UdpSocket::bind("127.0.0.3:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let peer = tokio::spawn(answer(socket));
    tokio::spawn(answer(UdpSocket::bind(("127.0.0.4", port)).await.unwrap()));
    let node = |name: &str, address: &str| (name.to_owned(), vec![address.parse().unwrap()]);
    let nodes = [node("a", "127.0.0.2"), node("b", "127.0.0.3"), node("c", "127.0.0.4")];
    let mut running = Running::start(port, nodes.into());
    assert!(running.until("abc").await.ready);
    peer.abort();
    running.until("ac").await;
    assert!(running.reports.borrow().contains_key("b"));
}

#[tokio::test]
async fn answers_over_ipv6_without_checksum_are_heard() {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM.nonblocking(), None).unwrap();
    set_udp_option(&socket, libc::UDP_NO_CHECK6_RX).unwrap();
    set_udp_option(&socket, libc::UDP_NO_CHECK6_TX).unwrap();
    socket.bind(&"[::1]:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let socket = UdpSocket::from_std(socket.into()).unwrap();
    let port = socket.local_addr().unwrap().port();
    tokio::spawn(answer(socket));
    let loopback: IpAddr = "::1".parse().unwrap();
    let nodes =
        BTreeMap::from([("a".to_owned(), vec![loopback]), ("b".to_owned(), vec![loopback])]);
    let mut running = Running::start(port, nodes);
    running.until("ab").await;
}
