//! Waiting for a condition, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How often the condition is looked at.
const STEP: Duration = Duration::from_millis(10);

/// Looks at `done` again and again until it holds.
///
/// # Panics
/// If it does not within `timeout`; the message is `what`.
pub fn eventually(what: &str, timeout: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !done() {
        assert!(Instant::now() < deadline, "not within {timeout:?}: {what}");
        thread::sleep(STEP);
    }
}
