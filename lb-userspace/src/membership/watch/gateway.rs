//! Whether a node that hears hardly anybody is cut off itself: it asks its gateway.

use std::time::{Duration, Instant};

/// An answer is worth this long, and an unanswered question is asked again after it.
const EVERY: Duration = Duration::from_secs(1);

/// What may be done with deaths that need the gateway's word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Word {
    /// The gateway is reached: the others are gone.
    Stands,
    Wait,
    /// Nobody is reached: the fault is here.
    Isolated,
}

/// The question and its last answer.
#[derive(Debug, Default)]
pub struct Gateway {
    /// What an answer must wait for: others may answer again just as the gateway does.
    grace: Duration,
    to_ask: bool,
    asked: Option<Instant>,
    /// When the first question of this row was asked.
    first: Option<Instant>,
    answered: Option<Instant>,
    silent: bool,
}

impl Gateway {
    /// `grace`: within this time after the gateway's answer others are asked once more.
    pub fn new(grace: Duration) -> Self {
        Self { grace, ..Self::default() }
    }

    /// The gateway's word, asked for where it isn't known.
    pub fn word(&mut self, now: Instant) -> Word {
        let age = |at| now.saturating_duration_since(at);
        match self.answered.map(age) {
            Some(age) if age < self.grace => return Word::Wait,
            Some(age) if age < EVERY + self.grace => return Word::Stands,
            _ => {}
        }
        let overdue = self.asked.is_some_and(|at| age(at) >= EVERY);
        if overdue || self.asked.is_none() {
            self.silent |= overdue;
            (self.to_ask, self.asked) = (true, Some(now));
            self.first.get_or_insert(now);
        }
        if self.silent { Word::Isolated } else { Word::Wait }
    }

    /// Nobody needs the word any more.
    pub fn rest(&mut self) {
        *self = Self { answered: self.answered, ..Self::new(self.grace) };
    }

    pub fn on_answer(&mut self, answered: bool, now: Instant) {
        if self.asked.is_none() {
            return;
        }
        self.silent = !answered;
        if answered {
            (self.answered, self.asked, self.first) = (Some(now), None, None);
        }
    }

    pub fn take_question(&mut self) -> bool {
        std::mem::take(&mut self.to_ask)
    }

    /// Since when it is asked in vain.
    pub fn asked_since(&self) -> Option<Instant> {
        self.first
    }

    /// When the word changes by time alone.
    pub fn next_timer(&self) -> Option<Instant> {
        let answered = self.answered.map(|at| at + self.grace);
        self.asked.map(|at| at + EVERY).into_iter().chain(answered).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_millis(100);

    #[test]
    fn an_answer_lets_deaths_stand_for_a_second() {
        let (mut gateway, now) = (Gateway::new(GRACE), Instant::now());
        assert_eq!(gateway.word(now), Word::Wait);
        assert!(gateway.take_question() && !gateway.take_question());
        gateway.on_answer(true, now);
        gateway.rest();
        assert_eq!(gateway.next_timer(), Some(now + GRACE));
        assert_eq!(gateway.word(now + GRACE / 2), Word::Wait);
        assert_eq!(gateway.word(now + GRACE), Word::Stands);
        assert!(!gateway.take_question());
        assert_eq!(gateway.word(now + GRACE + EVERY), Word::Wait);
        assert!(gateway.take_question());
    }

    #[test]
    fn silence_isolates_and_is_asked_again_each_second_until_answered() {
        let (mut gateway, now) = (Gateway::new(GRACE), Instant::now());
        gateway.word(now);
        gateway.on_answer(false, now);
        assert_eq!(gateway.word(now), Word::Isolated);
        assert!(gateway.take_question());
        assert_eq!(gateway.word(now + EVERY / 2), Word::Isolated);
        assert!(!gateway.take_question());
        assert_eq!(gateway.word(now + EVERY), Word::Isolated);
        assert!(gateway.take_question());
        gateway.on_answer(true, now + EVERY);
        assert_eq!(gateway.word(now + EVERY + GRACE), Word::Stands);
    }

    #[test]
    fn a_question_that_nobody_reports_back_counts_as_unanswered() {
        let (mut gateway, now) = (Gateway::new(GRACE), Instant::now());
        gateway.word(now);
        assert_eq!(gateway.next_timer(), Some(now + EVERY));
        assert_eq!(gateway.word(now + EVERY), Word::Isolated);
    }

    #[test]
    fn answers_to_no_question_say_nothing() {
        let (mut gateway, now) = (Gateway::new(GRACE), Instant::now());
        gateway.on_answer(true, now);
        assert_eq!(gateway.word(now), Word::Wait);
        gateway.rest();
        gateway.on_answer(true, now);
        assert_eq!(gateway.word(now), Word::Wait);
    }
}
