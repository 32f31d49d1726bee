//! Our SipHash-1-3 against the `siphasher` crate's, for every length up to several words.

use lb_common::siphash::{self, Sip13};
use proptest::prelude::*;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

fn theirs(key: &[u8; 16], message: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_key(key);
    hasher.write(message);
    hasher.finish()
}

#[test]
fn every_short_length_hashes_like_another_implementation() {
    let key = core::array::from_fn(|i| i as u8);
    let message: Vec<u8> = (0..=255).cycle().take(600).collect();
    for len in 0..message.len() {
        assert_eq!(
            siphash::hash(siphash::key(&key), &message[..len]),
            theirs(&key, &message[..len]),
            "{len} bytes"
        );
    }
}

#[test]
fn constant_evaluation_gives_the_fixed_values() {
    const KEY: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    const EMPTY: u64 = siphash::hash(siphash::key(&KEY), &[]);
    const FIFTEEN: u64 =
        siphash::hash(siphash::key(&KEY), &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
    assert_eq!((EMPTY, FIFTEEN), (0xabac_0158_050f_c4dc, 0xd320_d86d_2a51_9956));
}

proptest! {
    #[test]
    fn a_state_continued_by_words_equals_the_whole_message(key: [u8; 16], words: [u64; 3], rest: [u8; 5]) {
        let mut message: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        message.extend(rest);
        let [k0, k1] = siphash::key(&key);
        let prefix = words.iter().fold(Sip13::new(k0, k1), |state, &word| state.word(word));
        prop_assert_eq!(prefix.finish(), theirs(&key, &message[..24]));
        let last = rest.iter().rev().fold(0, |last, &byte| last << 8 | u64::from(byte));
        prop_assert_eq!(prefix.finish_with(last, 5), theirs(&key, &message));
    }
}
