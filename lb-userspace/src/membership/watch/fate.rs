//! One node's life, death and return as this node holds it, and what a return must wait for.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::Finding;
use crate::model::{HoldDowns, Life};

/// Deaths remembered of one node; with more a hold-down has long reached its most.
const DEATHS_KEPT: usize = 16;

#[derive(Clone, Debug, Default)]
pub struct Fate {
    pub life: Life,
    /// Mute for so long that its VIPs move.
    pub mute_long: bool,
    /// Cards of this version and older are void: its VIPs were taken from it. 0: none are.
    pub void: u64,
    /// Since when it is back.
    pub back: Option<Instant>,
    deaths: VecDeque<Instant>,
    held_until: Option<Instant>,
    /// When it died last, and what it was before.
    died: Option<(Instant, Box<Fate>)>,
}

impl Fate {
    /// Its data plane answers: takes over what is known of its agent. `card`: version of its card.
    pub fn observe(&mut self, finding: Finding, card: u64) {
        let long = finding == Finding::MuteLong;
        if long && !self.mute_long && self.life.forwards() {
            self.void = card;
        }
        self.mute_long = long;
        self.life = if finding.is_mute() { Life::Mute } else { Life::Alive };
    }

    /// Never heard, nor anything taken from it.
    pub fn give_up(&mut self) {
        self.life = Life::Dead;
    }

    pub fn die(&mut self, card: u64, now: Instant) {
        let mut before = self.clone();
        before.died = None;
        if self.deaths.len() == DEATHS_KEPT {
            self.deaths.pop_front();
        }
        self.deaths.push_back(now);
        (self.life, self.mute_long, self.void) = (Life::Dead, false, card);
        (self.back, self.held_until) = (None, None);
        self.died = Some((now, Box::new(before)));
    }

    /// Whether it died at `since` or later, by a verdict that may yet be taken back.
    pub fn died_since(&self, since: Option<Instant>) -> bool {
        self.life == Life::Dead && self.died.as_ref().is_some_and(|(at, _)| Some(*at) >= since)
    }

    /// Takes the last death back: the fault was here.
    pub fn revoke(&mut self) {
        if let Some((_, before)) = self.died.take() {
            *self = *before;
        }
    }

    /// It answers again, or others vouch for it.
    pub fn return_alive(&mut self, finding: Finding, hold_downs: &HoldDowns, now: Instant) {
        // Nothing is left to take from it: the void stays as it is.
        self.observe(finding, 0);
        self.back = Some(now);
        let wait = hold_down(hold_downs.backends, hold_downs.most, self.deaths(hold_downs, now));
        self.held_until = Some(now + wait).filter(|until| *until > now);
    }

    /// A newer card ends the void.
    pub fn on_card(&mut self, version: u64) {
        if version > self.void {
            self.void = 0;
        }
    }

    /// Deaths that count.
    pub fn deaths(&self, hold_downs: &HoldDowns, now: Instant) -> usize {
        let counts = |at: &&Instant| now.saturating_duration_since(**at) < hold_downs.forget;
        self.deaths.iter().filter(counts).count()
    }

    /// Its backends may own slots.
    pub fn serves(&self, now: Instant) -> bool {
        self.life.forwards() && self.held_for(now).is_none()
    }

    /// How long its backends are still held back.
    pub fn held_for(&self, now: Instant) -> Option<Duration> {
        let left = self.held_until?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// When the hold-down ends, if it hasn't.
    pub fn held_until(&self, now: Instant) -> Option<Instant> {
        self.held_until.filter(|until| *until > now)
    }
}

/// How long what came back waits: doubles with each death that counts. Without one it doesn't.
pub fn hold_down(base: Duration, most: Duration, deaths: usize) -> Duration {
    let doublings = u32::try_from(deaths.saturating_sub(1)).unwrap_or(u32::MAX);
    match 1u32.checked_shl(doublings) {
        _ if deaths == 0 => Duration::ZERO,
        Some(factor) => base.saturating_mul(factor).min(most),
        None => most,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn hold_downs_double_up_to_the_most() {
        let waits = |deaths| hold_down(SECOND, SECOND * 60, deaths).as_secs();
        assert_eq!([0, 1, 2, 3, 6, 7, 40, 1000].map(waits), [0, 1, 2, 4, 32, 60, 60, 60]);
    }

    #[test]
    fn a_node_that_flaps_is_held_back_longer_each_time_until_its_deaths_are_forgotten() {
        let (hold_downs, start) = (HoldDowns::default(), Instant::now());
        let mut fate = Fate::default();
        fate.observe(Finding::Answers, 1);
        assert!(fate.serves(start), "nothing was taken from it");
        let mut now = start;
        for expected in [1, 2, 4] {
            fate.die(1, now);
            assert_eq!((fate.serves(now), fate.held_for(now)), (false, None));
            now += SECOND * 10;
            fate.return_alive(Finding::Answers, &hold_downs, now);
            assert_eq!(fate.held_for(now), Some(SECOND * expected));
            assert!(!fate.serves(now) && fate.serves(now + SECOND * expected));
        }
        fate.die(1, start + SECOND * 700);
        fate.return_alive(Finding::Answers, &hold_downs, start + SECOND * 701);
        assert_eq!(fate.held_for(start + SECOND * 701), Some(SECOND));
    }

    #[test]
    fn a_death_taken_back_leaves_no_trace() {
        let now = Instant::now();
        let mut fate = Fate::default();
        fate.observe(Finding::Mute, 3);
        fate.die(3, now);
        assert!(fate.died_since(Some(now)) && !fate.died_since(Some(now + SECOND)));
        fate.revoke();
        assert_eq!((fate.life, fate.void), (Life::Mute, 0));
        assert_eq!(fate.deaths(&HoldDowns::default(), now), 0);
    }

    #[test]
    fn vips_are_void_from_a_death_or_long_muteness_until_a_newer_card() {
        let mut fate = Fate::default();
        fate.observe(Finding::MuteLong, 5);
        assert_eq!(fate.void, 0, "found mute at the start: nothing was taken from it");
        fate.observe(Finding::Answers, 5);
        fate.observe(Finding::MuteLong, 5);
        assert_eq!(fate.void, 5);
        fate.on_card(5);
        assert_eq!(fate.void, 5);
        fate.on_card(6);
        assert_eq!(fate.void, 0);
        fate.die(7, Instant::now());
        assert_eq!(fate.void, 7);
    }
}
