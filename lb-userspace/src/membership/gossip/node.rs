//! Where a configured node is reached.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// A node that was silent for longer is tried at its other addresses in turn.
const FRESH: Duration = Duration::from_secs(2);
/// Configured addresses of a node that are tried.
const ADDRESSES_MOST: usize = 16;

#[derive(Debug, Default)]
pub struct Node {
    /// The one heard last comes first.
    addresses: Vec<SocketAddr>,
    /// Sent to since it was heard.
    turn: usize,
    heard: Option<Instant>,
    /// The latest that was heard.
    pub incarnation: u64,
}

impl Node {
    pub fn set_addresses(&mut self, addresses: &[SocketAddr]) {
        let first = self.addresses.first().filter(|it| addresses.contains(it)).copied();
        self.addresses = addresses.iter().take(ADDRESSES_MOST).copied().collect();
        if let Some(first) = first {
            self.put_first(first);
        }
    }

    pub fn hear(&mut self, from: SocketAddr, now: Instant) {
        (self.turn, self.heard) = (0, Some(now));
        self.put_first(from);
    }

    /// Where to send next. None: nobody knows.
    pub fn address(&mut self, now: Instant) -> Option<SocketAddr> {
        let at = self.turn % self.addresses.len().max(1);
        if self.heard.is_none_or(|heard| now >= heard + FRESH) {
            self.turn = self.turn.wrapping_add(1);
        }
        self.addresses.get(at).copied()
    }

    fn put_first(&mut self, address: SocketAddr) {
        self.addresses.retain(|it| *it != address);
        self.addresses.insert(0, address);
        self.addresses.truncate(ADDRESSES_MOST);
    }
}
