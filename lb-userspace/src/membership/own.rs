//! This node's own word: when it wants VIPs and says so.
//!
//! It wants none before its data plane holds everything and others know it as a sender, none while it
//! leaves or is drained, and none for a while after its VIPs were taken from it. But whatever is
//! undecided, at least one side announces: nobody is waited for where nobody else announces.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::watch::{JOIN_MOST, hold_down};
use crate::model::HoldDowns;

/// Then it says what it is even if it wants no VIPs yet: gossip ends the word of the life before a
/// second later. Until then that word stands, so that a quick restart costs no VIP.
const SPEAK_LATEST: Duration = Duration::from_secs(4);

/// What others are like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Others {
    /// Every other node was found alive or dead once.
    pub ready: bool,
    /// A data plane beside this one lives.
    pub any: bool,
    /// One that lives wants VIPs.
    pub announce: bool,
    /// What members said so far has arrived here.
    pub known: bool,
    /// All that gossip hears have answered a probe.
    pub answered: bool,
}

#[derive(Debug)]
pub struct OwnWord {
    hold_downs: HoldDowns,
    started: Instant,
    pub applied: bool,
    pub leaving: bool,
    pub drained: bool,
    joined: bool,
    /// The latest card of this node that others hold for void, as far as was reacted to.
    void: u64,
    deaths: VecDeque<Instant>,
    held_until: Option<Instant>,
    wake: Option<Instant>,
}

impl OwnWord {
    pub fn new(hold_downs: HoldDowns, now: Instant) -> Self {
        Self {
            hold_downs,
            started: now,
            applied: false,
            leaving: false,
            drained: false,
            joined: false,
            void: 0,
            deaths: VecDeque::new(),
            held_until: None,
            wake: None,
        }
    }

    /// Others hold this node's cards up to a version for void: they took its VIPs. True if that is news.
    pub fn learn_void(&mut self, void: u64, now: Instant) -> bool {
        let news = void > self.void;
        if news {
            self.void = void;
            self.hold_back(now);
        }
        news
    }

    /// This process slept for so long that others have taken its VIPs.
    pub fn hold_back(&mut self, now: Instant) {
        let forget = self.hold_downs.forget;
        self.deaths.retain(|at| now.saturating_duration_since(*at) < forget);
        self.deaths.push_back(now);
        let wait = hold_down(self.hold_downs.vips, self.hold_downs.most, self.deaths.len());
        tracing::warn!(
            ?wait,
            "others have taken this node's VIPs: it waits before it wants them back"
        );
        self.held_until = Some(now + wait);
    }

    /// Whether this node wants VIPs.
    pub fn announcing(&mut self, others: Others, now: Instant) -> bool {
        let waited = now >= self.started + JOIN_MOST;
        let confirmed = others.known && (others.answered || !others.announce);
        self.joined |= others.ready && (!others.any || confirmed || waited);
        if !others.announce && self.joined || self.held_until.is_some_and(|until| until <= now) {
            self.held_until = None;
        }
        self.wake = self.next_change(now);
        self.joined && self.applied && !self.leaving && !self.drained && self.held_until.is_none()
    }

    /// Whether there is something to say beside that it wants VIPs.
    pub fn may_speak(&self, now: Instant) -> bool {
        self.leaving
            || self.drained
            || self.held_until.is_some()
            || now >= self.started + SPEAK_LATEST
    }

    /// When the word may change by time alone, as of the last [`OwnWord::announcing`].
    pub fn next_timer(&self) -> Option<Instant> {
        self.wake
    }

    fn next_change(&self, now: Instant) -> Option<Instant> {
        let (join, speak) = (self.started + JOIN_MOST, self.started + SPEAK_LATEST);
        [Some(join), Some(speak), self.held_until]
            .into_iter()
            .flatten()
            .filter(|at| *at > now)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const ALL_WELL: Others =
        Others { ready: true, any: true, announce: true, known: true, answered: true };

    fn word() -> (OwnWord, Instant) {
        let now = Instant::now();
        let mut word = OwnWord::new(HoldDowns::default(), now);
        word.applied = true;
        (word, now)
    }

    #[test]
    fn a_joining_node_waits_for_each_thing_but_never_longer_than_two_seconds() {
        for (others, joins) in [
            (ALL_WELL, true),
            (Others { answered: false, ..ALL_WELL }, false),
            (Others { answered: false, announce: false, ..ALL_WELL }, true),
            (Others { known: false, announce: false, ..ALL_WELL }, false),
            (Others { ready: true, ..Others::default() }, true),
        ] {
            let (mut word, now) = word();
            assert_eq!(word.announcing(others, now), joins, "{others:?}");
            assert!(word.announcing(others, now + SECOND * 2), "{others:?}");
        }
        let (mut word, now) = word();
        assert!(!word.announcing(Others { ready: false, ..ALL_WELL }, now + SECOND * 3));
    }

    #[test]
    fn what_is_not_applied_leaves_or_is_drained_wants_no_vips() {
        let (mut word, now) = word();
        word.applied = false;
        assert!(!word.announcing(ALL_WELL, now) && !word.may_speak(now));
        word.applied = true;
        assert!(word.announcing(ALL_WELL, now));
        word.leaving = true;
        assert!(!word.announcing(ALL_WELL, now) && word.may_speak(now));
        (word.leaving, word.drained) = (false, true);
        assert!(!word.announcing(ALL_WELL, now) && word.may_speak(now));
    }

    #[test]
    fn a_death_learnt_of_holds_the_vips_back_once_and_longer_each_time() {
        let (mut word, now) = word();
        word.announcing(ALL_WELL, now);
        word.learn_void(7, now);
        word.learn_void(7, now + SECOND);
        assert!(!word.announcing(ALL_WELL, now + SECOND * 4) && word.may_speak(now));
        assert_eq!(word.next_timer(), Some(now + SECOND * 5));
        assert!(word.announcing(ALL_WELL, now + SECOND * 5));
        word.learn_void(9, now + SECOND * 10);
        assert!(!word.announcing(ALL_WELL, now + SECOND * 19));
        assert!(word.announcing(ALL_WELL, now + SECOND * 20));
    }

    #[test]
    fn nobody_is_held_back_while_nobody_else_announces() {
        let (mut word, now) = word();
        word.announcing(ALL_WELL, now);
        word.learn_void(7, now);
        assert!(!word.announcing(ALL_WELL, now));
        assert!(word.announcing(Others { announce: false, ..ALL_WELL }, now));
    }

    #[test]
    fn the_word_of_the_life_before_stands_for_four_seconds() {
        let (word, now) = word();
        assert!(!word.may_speak(now + SECOND * 3));
        assert!(word.may_speak(now + SECOND * 4));
    }
}
