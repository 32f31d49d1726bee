//! What members tell each other of targets: how a target is named and what a word on it looks like.
//!
//! Both must be the same in all builds: a name that differs is a word that nobody understands.

use serde::{Deserialize, Serialize};

use crate::model::{
    Check, CheckKind, Health, HttpCheck, Target,
    seed::{absorb, keyed},
};

/// Names a target among all members: a keyed hash of its address and check.
pub type Name = [u8; 16];

/// Sets this use of the seed apart from others; one for each half of a name.
const DOMAINS: [u64; 2] = [u64::from_le_bytes(*b"verdict1"), u64::from_le_bytes(*b"verdict2")];

/// Longest reason that travels, in bytes.
const MAX_REASON: usize = 96;

/// What one member's probes say of a target.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Word {
    /// The life of the agent that says so; a later one is greater, and voids what the former said.
    pub run: u64,
    pub up: bool,
    /// Why it is down.
    pub reason: String,
}

impl Word {
    /// `None` for what was never decided.
    pub fn new(run: u64, health: &Health) -> Option<Self> {
        match health {
            Health::Unknown => None,
            Health::Up => Some(Self { run, up: true, reason: String::new() }),
            Health::Down(reason) => {
                let reason = reason[..reason.floor_char_boundary(MAX_REASON)].to_owned();
                Some(Self { run, up: false, reason })
            }
        }
    }

    pub fn health(&self) -> Health {
        match self.up {
            true => Health::Up,
            false => Health::Down(self.reason.clone()),
        }
    }

    /// As it travels: `run`, `up`, `reason` in postcard's form.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("numbers and short text always have a form")
    }

    /// What follows the known fields is of a later version, and not read.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let word: Self = postcard::from_bytes(bytes).ok()?;
        (word.reason.len() <= MAX_REASON).then_some(word)
    }
}

/// The name of a target under a seed.
pub fn name(seed: &[u8; 16], target: &Target) -> Name {
    let message = message(target);
    let [low, high] =
        DOMAINS.map(|domain| absorb(keyed(seed, domain), &message).finish().to_le_bytes());
    let mut name = Name::default();
    name[..8].copy_from_slice(&low);
    name[8..].copy_from_slice(&high);
    name
}

/// Address and check as bytes: no two targets have the same.
fn message(target: &Target) -> Vec<u8> {
    let Target { address, check } = target;
    let Check { kind, port, interval, timeout, rise, fall, jitter_percent } = check;
    let mut bytes = lb_common::net::Addr::from(address.ip()).octets().to_vec();
    bytes.extend(address.port().to_le_bytes());
    // No check is aimed at port 0.
    bytes.extend(port.unwrap_or(0).to_le_bytes());
    for time in [interval, timeout] {
        bytes.extend(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).to_le_bytes());
    }
    for number in [rise, fall] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.push(*jitter_percent);
    match kind {
        CheckKind::Tcp => bytes.push(0),
        CheckKind::Http(http) => {
            bytes.push(1);
            add_http(&mut bytes, http);
        }
        CheckKind::Https { http, verify } => {
            bytes.push(if *verify { 3 } else { 2 });
            add_http(&mut bytes, http);
        }
    }
    bytes
}

fn add_http(bytes: &mut Vec<u8>, http: &HttpCheck) {
    let HttpCheck { path, host, accept } = http;
    let mut add = |text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    add(path);
    // No host is an empty text.
    add(host.as_deref().unwrap_or_default());
    for (low, high) in accept {
        bytes.extend(low.to_le_bytes());
        bytes.extend(high.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use super::*;
    use crate::model::seed::seed_from;

    fn tcp(address: &str) -> Target {
        let check = Check {
            kind: CheckKind::Tcp,
            port: None,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            jitter_percent: 10,
        };
        Target { address: address.parse().unwrap(), check }
    }

    fn http(path: &str, host: Option<&str>) -> HttpCheck {
        let host = host.map(str::to_owned);
        HttpCheck { path: path.into(), host, accept: vec![(200, 299), (401, 401)] }
    }

    fn with(kind: CheckKind) -> Target {
        let mut target = tcp("[2001:db8::1]:443");
        target.check.kind = kind;
        target
    }

    /// Agents of different builds must understand each other.
    #[test]
    fn names_are_golden() {
        let seed = seed_from("correct horse");
        let hex = |target: &Target| format!("{:032x}", u128::from_le_bytes(name(&seed, target)));
        let https = with(CheckKind::Https { http: http("/healthz", Some("a")), verify: false });
        assert_eq!(hex(&tcp("192.0.2.1:80")), "ddaa0266c4048bf04ebfe7cdbb962fc4");
        assert_eq!(hex(&https), "0c88c6d57085c54bde2910178d517659");
    }

    #[test]
    fn every_part_of_a_target_is_in_its_name() {
        let changed = |change: fn(&mut Target)| {
            let mut target = tcp("192.0.2.1:80");
            change(&mut target);
            target
        };
        let targets = [
            tcp("192.0.2.1:80"),
            tcp("192.0.2.2:80"),
            tcp("192.0.2.1:81"),
            changed(|it| it.check.port = Some(80)),
            changed(|it| it.check.interval *= 2),
            changed(|it| it.check.timeout *= 2),
            changed(|it| it.check.rise += 1),
            changed(|it| it.check.fall += 1),
            changed(|it| it.check.jitter_percent += 1),
            with(CheckKind::Tcp),
            with(CheckKind::Http(http("/", None))),
            with(CheckKind::Http(http("/a", None))),
            with(CheckKind::Http(http("/", Some("a")))),
            with(CheckKind::Http(HttpCheck { accept: vec![(200, 200)], ..http("/", None) })),
            with(CheckKind::Https { http: http("/", None), verify: false }),
            with(CheckKind::Https { http: http("/", None), verify: true }),
        ];
        let names: BTreeSet<Name> = targets.iter().map(|target| name(&[1; 16], target)).collect();
        assert_eq!(names.len(), targets.len());
        assert_ne!(name(&[1; 16], &targets[0]), name(&[2; 16], &targets[0]));
    }

    #[test]
    fn a_word_comes_back_and_a_long_reason_is_cut() {
        let down = Word::new(7, &Health::Down("ä".repeat(MAX_REASON))).unwrap();
        assert_eq!(down.reason.len(), MAX_REASON);
        for word in [down, Word::new(u64::MAX, &Health::Up).unwrap()] {
            assert_eq!(Word::decode(&word.encode()), Some(word.clone()));
            let later = [word.encode(), vec![1, 2, 3]].concat();
            assert_eq!(Word::decode(&later), Some(word));
        }
        assert_eq!(Word::new(7, &Health::Unknown), None);
    }

    /// As an agent of any build writes it.
    #[test]
    fn the_form_of_a_word_is_golden() {
        let word = Word { run: 300, up: false, reason: "refused".into() };
        assert_eq!(word.encode(), b"\xac\x02\x00\x07refused");
    }

    #[test]
    fn what_is_no_word_is_not_read() {
        let long = Word { run: 1, up: false, reason: "x".repeat(MAX_REASON + 1) };
        for bytes in [&b""[..], &[1], &[1, 2, 0], &[1, 0, 5, b'a'], &long.encode()] {
            assert_eq!(Word::decode(bytes), None, "{bytes:?}");
        }
    }
}
