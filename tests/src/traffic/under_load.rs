//! Requests that go on while something happens.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use super::Failure;
use crate::lab::eventually;

/// Requests that are sent after the work was done.
const AFTER: usize = 60;
/// For them, on a machine that is busy.
const ENOUGH: Duration = Duration::from_secs(20);

/// Runs `work` while `ask` is called for all addresses, one after the other, and returns how that failed. [`AFTER`] more
/// requests are sent after it.
///
/// # Panics
/// If they take too long, or `work` panics.
pub fn under_load(
    vips: &[IpAddr],
    ask: impl Fn(IpAddr) -> Option<Failure> + Sync,
    work: impl FnOnce(),
) -> Vec<Failure> {
    let (done, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut failures = Vec::new();
            for vip in vips.iter().cycle() {
                failures.extend(ask(*vip));
                sent.fetch_add(1, Ordering::Relaxed);
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
            failures
        });
        // Ends the load also when `work` panics, or the scope would wait for ever.
        let end = End(&done);
        work();
        let so_far = sent.load(Ordering::Relaxed);
        eventually("requests go on", ENOUGH, || sent.load(Ordering::Relaxed) >= so_far + AFTER);
        drop(end);
        load.join().expect("asking does not panic")
    })
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
