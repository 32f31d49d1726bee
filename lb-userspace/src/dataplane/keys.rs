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
        Self { flow: [derived(1), derived(2)], tag: derived(3).to_le_bytes() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes of two builds must agree; the values are of another implementation of SipHash-1-3.
    #[test]
    fn keys_of_a_seed_never_change() {
        let seed = core::array::from_fn(|index| index as u8);
        let flow = [0xc2d43934b777cac7, 0xf6c60dfc5a306983];
        assert_eq!(Keys::of(&seed), Keys { flow, tag: 0xacee753267b3688cu64.to_le_bytes() });
    }
}
