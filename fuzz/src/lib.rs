//! What the targets do with their input. Nothing may panic, and nothing may grow beyond its limits.

pub mod seeds;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use weir::membership::{
    board::ENTRIES_MOST,
    gossip::{Gossip, PLAIN_MOST},
    packet,
    seal::{Keys, Opened, Seal},
    stream::{Ends, Reader},
    topic::{Key, Topic},
};

/// All who are configured; the first receives.
pub const NAMES: [&str; 3] = ["a", "b", "c"];
const SECRET: [u8; 32] = [7; 32];

pub fn address(index: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, index as u8], 6085))
}

pub fn gossip(index: usize, now: Instant) -> Gossip {
    let mut gossip = Gossip::new(NAMES[index], 1, index as u64, now);
    let nodes: BTreeMap<_, _> = NAMES
        .iter()
        .enumerate()
        .map(|(at, name)| ((*name).to_owned(), vec![address(at)]))
        .collect();
    gossip.set_nodes(&nodes, &[], now);
    gossip.publish(Key::new(Topic::CARD, ""), Some(b"card".to_vec()), true, now);
    gossip
}

/// Datagrams of members who went mad: opened with the right key, then nonsense. Each has two bytes of length, one
/// for the time before it in 16 ms, and its content.
pub fn datagrams(mut input: &[u8]) {
    let mut now = Instant::now();
    let (mut receiver, mut sender) = (seal(1, now), seal(2, now));
    let mut gossip = gossip(0, now);
    while let Some(([low, high, time], rest)) = input.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len()).min(PLAIN_MOST);
        let (plain, rest) = rest.split_at(length);
        input = rest;
        now += Duration::from_millis(16 * u64::from(*time));
        let sealed = sender.seal(plain, now);
        match receiver.open(address(1), &sealed, now) {
            Opened::Plain(list) => take(&mut gossip, &list, now),
            Opened::Reply(challenge) => {
                let Opened::Reply(echo) = sender.open(address(0), &challenge, now) else {
                    panic!("a challenge is answered")
                };
                let Opened::Plain(list) = receiver.open(address(1), &echo, now) else {
                    panic!("an answer proves")
                };
                take(&mut gossip, &list, now);
            }
            other => panic!("a sealed datagram is opened: {other:?}"),
        }
    }
    finish(&mut gossip, now);
}

fn take(gossip: &mut Gossip, list: &[Vec<u8>], now: Instant) {
    for plain in list {
        let _malformed = gossip.on_datagram(address(1), plain, now);
    }
    if gossip.next_timer().is_some_and(|at| at <= now) {
        gossip.on_timer(now);
    }
    drain(gossip, now);
}

fn drain(gossip: &mut Gossip, now: Instant) {
    for (_, datagram) in gossip.take_datagrams() {
        assert!(datagram.len() <= PLAIN_MOST);
    }
    for pull in gossip.take_pulls() {
        gossip.on_pulled(&pull.node, now);
    }
    gossip.take_changes();
}

/// It goes on after what it took.
fn finish(gossip: &mut Gossip, mut now: Instant) {
    for _ in 0..20 {
        now += Duration::from_millis(500);
        gossip.on_timer(now);
        drain(gossip, now);
    }
    gossip.publish(Key::new(Topic::CARD, ""), Some(b"later".to_vec()), true, now);
    drain(gossip, now);
    assert!(gossip.size().0 <= NAMES.len() * ENTRIES_MOST);
}

/// Bytes of strangers: sealed datagrams, the first byte says where it is changed; answers to probes.
pub fn raw(input: &[u8]) {
    let now = Instant::now();
    let (mut receiver, mut sender) = (seal(1, now), seal(2, now));
    assert!(matches!(receiver.open(address(1), input, now), Opened::Ignored(_)));
    let mut changed = sender.seal(b"content", now);
    for (byte, change) in changed.iter_mut().zip(input) {
        *byte ^= change;
    }
    let opened = receiver.open(address(1), &changed, now);
    let same = input.iter().take(changed.len()).all(|byte| *byte == 0);
    assert_eq!(matches!(opened, Opened::Reply(_)), same);
    let _answer = packet::answer(7, input);
}

/// What an authentic peer sends on a stream, by the first byte: a request, a chunk, or the bytes of frames.
pub fn streams(input: &[u8]) {
    let now = Instant::now();
    let Some((which, input)) = input.split_first() else { return };
    let mut gossip = gossip(0, now);
    match which % 3 {
        0 => {
            let Ok(request) = weir::membership::stream::read_request(input) else { return };
            let Some(mut serving) = gossip.serve(&request, now) else { return };
            for _ in 0..100 {
                if gossip.next_chunk(&mut serving).is_none() {
                    break;
                }
            }
        }
        1 => {
            let _malformed = gossip.on_chunk("b", input, now);
        }
        _ => {
            let keys = keys();
            let mut reader = Reader::new(Ends::new(keys.first(), &[1; 16], &[2; 16]).asking);
            for piece in input.chunks(97) {
                reader.push(piece);
                if reader.frame().is_err() {
                    break;
                }
            }
        }
    }
    drain(&mut gossip, now);
    finish(&mut gossip, now);
}

pub fn seal(random: u8, now: Instant) -> Seal {
    let keys = Keys::new(&[SECRET]);
    Seal::new(keys.unwrap_or_else(|| unreachable!("one key is given")), &[random; 32], now)
}

fn keys() -> Arc<Keys> {
    Arc::new(Keys::new(&[SECRET]).unwrap_or_else(|| unreachable!("one key is given")))
}
