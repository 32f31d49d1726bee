use lb_common::wire::geneve::kind;
use tokio::time::timeout;

use super::*;

/// Answers probes as the data plane does, as long as it lives.
async fn responder(address: &str, port: u16) -> tokio::task::JoinHandle<()> {
    let socket = UdpSocket::bind((address.parse::<IpAddr>().unwrap(), port)).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; BUFFER];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[10], kind::PROBE);
            buffer[10] = kind::PROBE_ANSWER;
            socket.send_to(&buffer[..length], from).await.unwrap();
        }
    })
}

#[tokio::test]
async fn nodes_that_answer_are_alive_and_one_that_stops_dies() {
    // Every address of 127.0.0.0/8 is this host, so each node has its own.
    let free = UdpSocket::bind("127.0.0.3:0").await.unwrap().local_addr().unwrap().port();
    let peer = responder("127.0.0.3", free).await;
    let _other = responder("127.0.0.4", free).await;
    let node = |name: &str, address: &str| (name.to_owned(), vec![address.parse().unwrap()]);
    let nodes =
        BTreeMap::from([node("a", "127.0.0.2"), node("b", "127.0.0.3"), node("c", "127.0.0.4")]);
    let (_nodes, wanted) = watch::channel(Arc::new(nodes));
    let (sender, mut alive) = watch::channel(Arc::default());
    let (report, reports) = watch::channel(Arc::default());
    let rules = Rules {
        interval: Duration::from_millis(100),
        fall: 3,
        rise: 3,
        vni: 1,
        seed_tag: *b"seed-tag",
    };
    let settings = Settings { node: "a".into(), tunnel_port: free, rules };
    let running = tokio::spawn(run(settings, wanted, sender, report));
    let names = |alive: &Arc<Alive>| alive.names.iter().cloned().collect::<String>();
    let patience = Duration::from_secs(20);
    let all = timeout(patience, alive.wait_for(|alive| names(alive) == "abc"))
        .await
        .unwrap()
        .unwrap()
        .clone();
    assert!(all.ready);
    peer.abort();
    timeout(patience, alive.wait_for(|alive| names(alive) == "ac")).await.unwrap().unwrap();
    assert!(reports.borrow().contains_key("b"));
    running.abort();
}
