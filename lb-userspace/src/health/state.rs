//! Rise and fall: turns single probe results into a verdict on one target.
//!
//! Pure: it is told each result and when the next probe may come. It never probes, sleeps or reads a
//! clock.

use std::time::{Duration, Instant};

use crate::model::{Check, Health};

/// The history of one target that matters: its verdict, the results in a row that speak against it,
/// and when it is asked next.
#[derive(Clone, Debug)]
pub struct Streak {
    health: Health,
    against: u32,
    due: Instant,
}

impl Streak {
    /// A target of which nothing is known, to be asked first at `due`.
    pub fn new(due: Instant) -> Self {
        Self { health: Health::Unknown, against: 0, due }
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    /// When to ask next.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Feeds one result, `Err` with the reason of a failure; returns the verdict if it changed.
    ///
    /// The first success of an unknown target makes it up at once; failures always need `fall` in a
    /// row, successes of a target that is down `rise`. A new reason for being down is a change.
    pub fn on_probe(&mut self, result: Result<(), String>, check: &Check) -> Option<Health> {
        let next = match (&self.health, result) {
            (Health::Unknown, Ok(())) => Health::Up,
            (Health::Up, Ok(())) => {
                self.against = 0;
                return None;
            }
            (Health::Down(_), Ok(())) => {
                self.against += 1;
                if self.against < check.rise {
                    return None;
                }
                Health::Up
            }
            (Health::Unknown | Health::Up, Err(reason)) => {
                self.against += 1;
                if self.against < check.fall {
                    return None;
                }
                Health::Down(reason)
            }
            (Health::Down(former), Err(reason)) => {
                self.against = 0;
                if *former == reason {
                    return None;
                }
                Health::Down(reason)
            }
        };
        self.against = 0;
        self.health = next.clone();
        Some(next)
    }

    /// Sets the next probe one interval after the last one was due, moved by the check's jitter.
    ///
    /// `random` is any number, all bits used. An interval that has already passed, because the
    /// answer took longer or this process stood still, is not made up for.
    pub fn schedule(&mut self, check: &Check, random: u64, now: Instant) {
        self.due = (self.due + jittered(check, random)).max(now);
    }
}

/// The interval, made longer or shorter by at most the jitter's share.
fn jittered(check: &Check, random: u64) -> Duration {
    let reach = check.interval * u32::from(check.jitter_percent) / 100;
    // A share of twice the reach, in 2^-32, by multiply-shift.
    let nanos = (reach.as_nanos() * 2 * u128::from(random >> 32)) >> 32;
    check.interval - reach + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CheckKind;

    fn check() -> Check {
        Check {
            kind: CheckKind::Tcp,
            port: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(500),
            rise: 2,
            fall: 3,
            jitter_percent: 10,
        }
    }

    fn refused() -> Result<(), String> {
        Err("connection refused".into())
    }

    fn feed(results: &[Result<(), String>]) -> Vec<Option<Health>> {
        let mut streak = Streak::new(Instant::now());
        results.iter().map(|result| streak.on_probe(result.clone(), &check())).collect()
    }

    #[test]
    fn first_success_makes_an_unknown_target_up_at_once() {
        assert_eq!(feed(&[Ok(()), Ok(())]), [Some(Health::Up), None]);
    }

    #[test]
    fn an_unknown_target_goes_down_only_after_fall_failures() {
        let down = Some(Health::Down("connection refused".into()));
        assert_eq!(feed(&[refused(), refused(), refused(), refused()]), [None, None, down, None]);
    }

    #[test]
    fn a_success_between_failures_starts_the_count_again() {
        let changes = feed(&[Ok(()), refused(), refused(), Ok(()), refused(), refused()]);
        assert_eq!(changes[1..], [None, None, None, None, None]);
    }

    #[test]
    fn a_target_that_is_down_needs_rise_successes_in_a_row() {
        let changes =
            feed(&[refused(), refused(), refused(), Ok(()), refused(), Ok(()), Ok(()), Ok(())]);
        assert_eq!(changes[3..], [None, None, None, Some(Health::Up), None]);
    }

    #[test]
    fn a_new_reason_of_a_target_that_is_down_is_told() {
        let timeout = Err("timeout after 500ms".to_owned());
        let changes = feed(&[refused(), refused(), refused(), timeout]);
        assert_eq!(changes[3], Some(Health::Down("timeout after 500ms".into())));
    }

    #[test]
    fn jitter_stays_within_its_share_of_the_interval() {
        assert_eq!(jittered(&check(), 0), Duration::from_millis(900));
        assert!(jittered(&check(), u64::MAX) <= Duration::from_millis(1100));
        assert!(jittered(&check(), u64::MAX) > Duration::from_millis(1099));
        let steady = Check { jitter_percent: 0, ..check() };
        assert_eq!(jittered(&steady, u64::MAX), Duration::from_secs(1));
    }

    #[test]
    fn missed_intervals_are_not_made_up_for() {
        let start = Instant::now();
        let mut streak = Streak::new(start);
        let late = start + Duration::from_secs(10);
        streak.schedule(&check(), 0, late);
        assert_eq!(streak.due(), late);
        streak.schedule(&check(), 0, late);
        assert_eq!(streak.due(), late + Duration::from_millis(900));
    }
}
