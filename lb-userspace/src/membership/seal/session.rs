//! Which datagrams of a sender were there already.

use std::{net::SocketAddr, time::Instant};

use ring::aead::LessSafeKey;

use super::keys::{Hint, KEYS_MOST};

/// Datagrams may overtake each other by this many.
pub const WINDOW: usize = 1024;
/// Addresses that a sender is known to speak from.
pub const ADDRESSES_MOST: usize = 8;

/// Counters that were seen: all below the window, and those marked in it.
#[derive(Debug)]
pub struct Window {
    top: u64,
    seen: [u64; WINDOW / 64],
}

impl Window {
    /// Everything below `floor` counts as seen.
    pub fn above(floor: u64) -> Self {
        Self { top: floor.saturating_sub(1), seen: [u64::MAX; WINDOW / 64] }
    }

    /// True the first time, as long as the counter is in the window or above.
    pub fn accept(&mut self, counter: u64) -> bool {
        let fresh = self.is_fresh(counter);
        if counter > self.top {
            let new = counter - self.top;
            if new >= WINDOW as u64 {
                self.seen.fill(0);
            } else {
                (self.top + 1..=counter).for_each(|it| self.mark(it, false));
            }
            self.top = counter;
        }
        if fresh {
            self.mark(counter, true);
        }
        fresh
    }

    pub fn is_fresh(&self, counter: u64) -> bool {
        let (word, bit) = place(counter);
        counter > self.top || (self.top - counter < WINDOW as u64 && self.seen[word] & bit == 0)
    }

    fn mark(&mut self, counter: u64, seen: bool) {
        let (word, bit) = place(counter);
        if seen {
            self.seen[word] |= bit;
        } else {
            self.seen[word] &= !bit;
        }
    }
}

fn place(counter: u64) -> (usize, u64) {
    let at = (counter % WINDOW as u64) as usize;
    (at / 64, 1 << (at % 64))
}

/// One process that has proven to be alive.
#[derive(Debug)]
pub struct Session {
    pub window: Window,
    /// Where it has answered a challenge from.
    pub addresses: Vec<SocketAddr>,
    /// Derived of the shared keys it has used.
    pub keys: Vec<(Hint, LessSafeKey)>,
    pub used: Instant,
}

impl Session {
    pub fn new(floor: u64, now: Instant) -> Self {
        Self { window: Window::above(floor), addresses: Vec::new(), keys: Vec::new(), used: now }
    }

    pub fn prove(&mut self, address: SocketAddr) {
        if self.addresses.len() >= ADDRESSES_MOST {
            self.addresses.remove(0);
        }
        self.addresses.push(address);
    }

    /// The cipher of a shared key, made by `make` where it is not there yet.
    pub fn key(&mut self, hint: Hint, make: impl FnOnce() -> LessSafeKey) -> &LessSafeKey {
        let at = self.keys.iter().position(|it| it.0 == hint).unwrap_or_else(|| {
            self.keys.truncate(KEYS_MOST - 1);
            self.keys.insert(0, (hint, make()));
            0
        });
        &self.keys[at].1
    }
}
