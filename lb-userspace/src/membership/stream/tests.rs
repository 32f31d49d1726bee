use std::collections::BTreeMap;

use super::*;
use crate::membership::topic::{Key, Topic};

const SECRET: [u8; 32] = [7; 32];
const ENTRIES: usize = 100_000;

fn keys(secret: [u8; 32]) -> Arc<Keys> {
    Arc::new(Keys::new(&[secret]).unwrap())
}

fn gossip(own: &str) -> Gossip {
    let now = Instant::now();
    let mut gossip = Gossip::new(own, 1, 1, now);
    let nodes: BTreeMap<_, _> = ["a", "b"].map(|name| (name.to_owned(), Vec::new())).into();
    gossip.set_nodes(&nodes, &[], now);
    gossip
}

/// What `b` would ask `a` as a joiner.
fn everything(address: SocketAddr) -> Pull {
    let request =
        Request { asker: "b".into(), buckets: u64::MAX, audiences: true, have: Vec::new() };
    Pull { node: "a".into(), address, request }
}

/// Serves `a` and returns its address, with the events that its owner gets.
async fn serving(mut gossip: Gossip) -> (SocketAddr, mpsc::Receiver<(SocketAddr, Why)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (events, mut owner) = mpsc::channel(16);
    let (refused, refusals) = mpsc::channel(16);
    let (_, keys) = watch::channel(keys(SECRET));
    tokio::spawn(serve(listener, keys, events));
    tokio::spawn(async move {
        while let Some(event) = owner.recv().await {
            if let Some(it) = event.handle(&mut gossip, Instant::now()) {
                refused.send(it).await.unwrap();
            }
        }
    });
    (address, refusals)
}

/// Pulls into `gossip`; returns how it ended.
async fn pulled(gossip: &mut Gossip, address: SocketAddr) -> Result<(), StreamError> {
    let (events, mut heard) = mpsc::channel(16);
    let task = tokio::spawn(pull(everything(address), keys(SECRET), events));
    while let Some(event) = heard.recv().await {
        if let Event::End { result, .. } = event {
            task.await.unwrap();
            return result;
        }
        event.handle(gossip, Instant::now());
    }
    panic!("no end");
}

#[tokio::test(flavor = "multi_thread")]
async fn hundred_thousand_entries_arrive_and_silent_peers_hinder_nobody() {
    let (mut a, mut b) = (gossip("a"), gossip("b"));
    let now = Instant::now();
    for entry in 0..ENTRIES {
        let name = entry.to_be_bytes();
        a.publish(Key::new(Topic::CLAIM, name), Some(vec![1; 32]), false, now);
    }
    println!("{ENTRIES} entries published after {:?}", now.elapsed());
    let (address, _refusals) = serving(a).await;
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS_MOST - 1 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let start = Instant::now();
    pulled(&mut b, address).await.unwrap();
    println!("{ENTRIES} entries of 40 bytes pulled over loopback after {:?}", start.elapsed());
    assert_eq!(b.take_changes().len(), ENTRIES);
    // What is there is not sent again.
    let (bytes, _) = b.size();
    assert_eq!(bytes, ENTRIES);
}

#[tokio::test]
async fn client_with_another_key_gets_nothing_and_is_counted() {
    let (address, mut refusals) = serving(gossip("a")).await;
    let (events, mut heard) = mpsc::channel(16);
    pull(everything(address), keys([8; 32]), events).await;
    assert!(matches!(heard.recv().await, Some(Event::End { result: Err(_), .. })));
    assert_eq!(refusals.recv().await.unwrap().1, Why::WrongKey);
}

#[tokio::test]
async fn recorded_stream_does_not_fit_another_one() {
    let (address, mut refusals) = serving(gossip("a")).await;
    let keys = keys(SECRET);
    let mut recording = greeting(keys.first(), &[1; 16]).to_vec();
    let ends = Ends::new(keys.first(), &[1; 16], &[2; 16]);
    recording.extend(Writer::new(ends.asking).frame(&write_request(&everything(address).request)));
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(&recording).await.unwrap();
    assert_eq!(refusals.recv().await.unwrap().1, Why::Forged);
}

#[tokio::test]
async fn answer_that_is_cut_ends_with_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let keys = keys(SECRET);
        let (_, mut writer) = listen(&mut socket, &keys).await.unwrap();
        let chunk = writer.frame(b"\x01\x00");
        socket.write_all(&chunk).await.unwrap();
    });
    assert!(matches!(pulled(&mut gossip("b"), address).await, Err(StreamError::Io(_))));
}

#[test]
fn frames_come_in_any_pieces_and_only_in_order() {
    let keys = keys(SECRET);
    let make = || Ends::new(keys.first(), &[1; 16], &[2; 16]).asking;
    let mut writer = Writer::new(make());
    let (first, second) = (writer.frame(b"first"), writer.frame(b""));
    let mut reader = Reader::new(make());
    for byte in &first {
        assert_eq!(reader.frame(), Ok(None));
        reader.push(&[*byte]);
    }
    assert_eq!(reader.frame(), Ok(Some(b"first".to_vec())));
    reader.push(&second);
    assert_eq!(reader.frame(), Ok(Some(Vec::new())));
    let mut reader = Reader::new(make());
    reader.push(&second);
    assert_eq!(reader.frame(), Err(BadFrame), "left one out");
    let mut reader = Reader::new(make());
    reader.push(&u32::MAX.to_be_bytes());
    assert_eq!(reader.frame(), Err(BadFrame), "too long");
}

#[test]
fn bucket_holds_the_rate() {
    let start = Instant::now();
    let mut bucket = Bucket { level: BURST, at: start };
    assert_eq!(bucket.take(BURST, start), Duration::ZERO);
    assert_eq!(bucket.take(RATE, start), Duration::from_secs(1));
    assert_eq!(bucket.take(RATE, start), Duration::from_secs(2));
    assert_eq!(bucket.take(RATE / 2, start + Duration::from_secs(2)), Duration::from_millis(500));
}
