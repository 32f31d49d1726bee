//! The keys that all nodes derive from the shared seed, one for each use.

use lb_common::siphash::{Sip13, key};

/// What is made of the shared seed. The slot tables take the seed itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Keys {
    /// Of the flow hash and of fingerprints.
    pub flow: [u64; 2],
    /// Tells nodes of another seed apart; in every tunnel packet and probe.
    pub tag: [u8; 8],
}

impl Keys {
    pub fn of(seed: &[u8; 16]) -> Self {
        let [k0, k1] = key(seed);
        let derived =
            |n: u64| Sip13::new(k0, k1).word(u64::from_le_bytes(*b"weir key")).word(n).finish();
        Self { flow: [derived(1), derived(2)], tag: derived(3).to_ne_bytes() }
    }
}
