//! Writes what real agents send as a first corpus: without it a fuzzer guesses names for hours.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::{NAMES, address, gossip};
use weir::membership::{
    board::Request,
    topic::{Key, Topic},
};

pub fn write_all() -> std::io::Result<()> {
    let start = Instant::now();
    let mut now = start;
    let mut agents: Vec<_> = (0..NAMES.len()).map(|index| gossip(index, now)).collect();
    let (mut session, mut last, mut files) = (Vec::new(), start, 0);
    for round in 0..400u16 {
        now += Duration::from_millis(25);
        if round % 40 == 7 {
            let key = Key::new(Topic::VERDICT, round.to_be_bytes());
            agents[1].publish(key.clone(), Some(vec![1; 20]), round % 80 == 7, now);
            agents[2].publish(key, None, false, now);
        }
        for from in 0..agents.len() {
            agents[from].on_timer(now);
            for (to, bytes) in agents[from].take_datagrams() {
                let Some(to) = (0..agents.len()).find(|it| address(*it) == to) else { continue };
                if to == 0 {
                    let time = ((now - last).as_millis() / 16) as u8;
                    last = now;
                    session.extend((bytes.len() as u16).to_le_bytes());
                    session.push(time);
                    session.extend(&bytes);
                    files += 1;
                    let one = [&(bytes.len() as u16).to_le_bytes()[..], &[0], &bytes].concat();
                    write("datagrams", files, &one)?;
                }
                let _malformed = agents[to].on_datagram(address(from), &bytes, now);
            }
        }
    }
    write("datagrams", 0, &session[..session.len().min(8192)])?;
    let request =
        Request { asker: "b".into(), buckets: u64::MAX, audiences: true, have: Vec::new() };
    write("streams", 0, &[&[0], &weir::membership::stream::write_request(&request)[..]].concat())?;
    if let Some(mut serving) = agents[0].serve(&request, now) {
        let mut at = 1;
        while let Some(chunk) = agents[0].next_chunk(&mut serving) {
            write("streams", at, &[&[1], &chunk[..]].concat())?;
            at += 1;
        }
    }
    write("raw", 0, &[0; 64])
}

fn write(target: &str, number: usize, bytes: &[u8]) -> std::io::Result<()> {
    let folder = Path::new("corpus").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(format!("seed-{number}")), bytes)
}
