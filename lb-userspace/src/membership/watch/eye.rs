//! What this node's own probes say of one other node.
//!
//! A round is a probe and the verdict on it, half an interval later where answers are quick. One answer
//! of any address within a round is enough, whichever probe it belongs to. A silent round is asked
//! again at once: one lost packet costs nothing but a second one. A verdict that this process made too
//! late is none.

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{Finding, Rules};
use crate::membership::packet::{self, Answer};

/// Probes to each address whose answers still count when they come late.
const PROBES_KEPT: usize = 8;
/// Heartbeats of an agent that lives are younger.
const MUTE_AFTER: Duration = Duration::from_secs(1);

/// A probe to send: where to and its payload.
pub type Probe = (IpAddr, [u8; packet::LENGTH]);

/// The last answer.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    pub answer: Answer,
    pub address: IpAddr,
    pub at: Instant,
    pub round_trip: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    nonce: u64,
    address: IpAddr,
    at: Instant,
}

/// What comes next for a node that is probed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Probe,
    Judge,
}

#[derive(Debug, Default)]
pub struct Eye {
    pub addresses: Vec<IpAddr>,
    /// Probes that may still be answered, oldest first.
    asked: VecDeque<Asked>,
    pub last: Option<Heard>,
    /// A valid answer came since the last verdict, and since probing began.
    heard: bool,
    answered_once: bool,
    /// Silent rounds in a row, answered rounds in a row.
    missed: u32,
    answered: u32,
    /// None: not probed.
    next: Option<(Instant, Step)>,
    /// When the round began.
    began: Option<Instant>,
}

/// What matters of an eye to those who judge; verdicts are made anew when it changes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Gist {
    /// None: nobody looks here, or not for long enough.
    pub finding: Option<Finding>,
    /// It misses answers and may be silent soon.
    pub failing: bool,
    /// It has answered for `rise` rounds.
    pub risen: bool,
    /// It has begun to answer.
    pub rising: bool,
}

impl Eye {
    /// Starts probing, or sees to it that the next probe isn't later than `at`.
    pub fn open(&mut self, at: Instant) {
        match self.next {
            None => self.next = Some((at, Step::Probe)),
            Some((due, Step::Probe)) => self.next = Some((due.min(at), Step::Probe)),
            Some((_, Step::Judge)) => {}
        }
    }

    /// Stops probing. What was seen is no finding any more.
    pub fn close(&mut self) {
        let (addresses, last) = (std::mem::take(&mut self.addresses), self.last);
        *self = Self { addresses, last, ..Self::default() };
    }

    pub fn is_open(&self) -> bool {
        self.next.is_some()
    }

    /// When [`Eye::step`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.next.map(|(at, _)| at)
    }

    /// Probes or judges, whichever is due. `pace`: between two rounds.
    pub fn step(
        &mut self,
        now: Instant,
        pace: Duration,
        rules: &Rules,
        nonce: &mut dyn FnMut() -> u64,
        out: &mut Vec<Probe>,
    ) {
        match self.next {
            Some((_, Step::Probe)) => {
                self.ask(now, rules, nonce, out);
                self.began = Some(now);
                self.next = Some((now + self.patience(rules), Step::Judge));
            }
            Some((due, Step::Judge)) => {
                self.judge(now.saturating_duration_since(due) <= rules.interval);
                if self.missed > 0 && self.missed < rules.fall {
                    self.ask(now, rules, nonce, out);
                }
                let next = self.began.map_or(now, |began| (began + pace).max(now));
                self.next = Some((next, Step::Probe));
            }
            None => {}
        }
    }

    /// How long an answer may take: what it took last with room to spare.
    fn patience(&self, rules: &Rules) -> Duration {
        let usual = self.last.map_or(rules.interval, |heard| heard.round_trip * 4);
        usual.clamp(rules.interval / 2, rules.interval)
    }

    fn ask(
        &mut self,
        now: Instant,
        rules: &Rules,
        nonce: &mut dyn FnMut() -> u64,
        out: &mut Vec<Probe>,
    ) {
        for &address in &self.addresses {
            if self.asked.len() >= PROBES_KEPT * self.addresses.len() {
                self.asked.pop_front();
            }
            let nonce = nonce();
            self.asked.push_back(Asked { nonce, address, at: now });
            out.push((address, packet::probe(rules.vni, rules.seed_tag, nonce)));
        }
    }

    fn judge(&mut self, on_time: bool) {
        if std::mem::take(&mut self.heard) {
            (self.answered, self.missed) = (self.answered + 1, 0);
        } else if on_time {
            (self.answered, self.missed) = (0, self.missed + 1);
        }
    }

    /// Takes an answer; false if nobody asked for it.
    pub fn on_answer(&mut self, address: IpAddr, answer: Answer, now: Instant) -> bool {
        // Taken out, so that no answer counts twice.
        let matches = |asked: &Asked| asked.nonce == answer.nonce && asked.address == address;
        let Some(asked) =
            self.asked.iter().position(matches).and_then(|index| self.asked.remove(index))
        else {
            return false;
        };
        (self.heard, self.answered_once, self.missed) = (true, true, 0);
        let round_trip = now.saturating_duration_since(asked.at);
        self.last = Some(Heard { answer, address, at: now, round_trip });
        true
    }

    pub fn gist(&self, rules: &Rules) -> Gist {
        Gist {
            finding: self.finding(rules),
            failing: self.missed > 0 && self.missed + 1 >= rules.fall,
            risen: self.answered >= rules.rise,
            rising: self.heard || self.answered > 0,
        }
    }

    fn finding(&self, rules: &Rules) -> Option<Finding> {
        if !self.is_open() {
            return None;
        }
        if self.missed >= rules.fall {
            return Some(if self.last.is_some() { Finding::Silent } else { Finding::Unheard });
        }
        let heard = self.last.filter(|_| self.answered_once)?;
        let age = heard.answer.heartbeat_age.map(|age| Duration::from_millis(age.into()));
        Some(match age {
            Some(age) if age <= MUTE_AFTER => Finding::Answers,
            Some(age) if age < rules.hold_downs.mute => Finding::Mute,
            _ => Finding::MuteLong,
        })
    }
}
