//! Internet checksums (RFC 1071) and their incremental update (RFC 1624).
//!
//! All words are taken as they stand in memory: the one's complement sum does not depend on byte
//! order (RFC 1071 2 (B)), so nothing is swapped.

use crate::net::Addr;

/// Folds a sum of 16-bit words to 16 bits, carries included.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// A change to be applied to a checksum field: the sum of new words minus that of old ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delta(u64);

impl Delta {
    #[inline(always)]
    pub const fn new() -> Self {
        Self(0)
    }

    #[inline(always)]
    pub const fn replace16(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// A pair of words as one 32-bit load.
    #[inline(always)]
    pub const fn replace32(self, old: u32, new: u32) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    #[inline(always)]
    pub fn replace_addr(self, old: &Addr, new: &Addr) -> Self {
        let (old, new) = (old.halves(), new.halves());
        self.replace64(old[0], new[0]).replace64(old[1], new[1])
    }

    #[inline(always)]
    const fn replace64(self, old: u64, new: u64) -> Self {
        self.replace32(old as u32, new as u32).replace32((old >> 32) as u32, (new >> 32) as u32)
    }

    /// The new value of a checksum field (RFC 1624 eqn. 3).
    #[inline(always)]
    pub const fn apply(self, field: u16) -> u16 {
        !fold(self.0 + (!field) as u64)
    }

    /// As [`Self::apply`] for UDP, where 0 says "no checksum": stays 0, and a computed 0 is sent
    /// as all ones (RFC 768).
    #[inline(always)]
    pub const fn apply_udp(self, field: u16) -> u16 {
        if field == 0 {
            return 0;
        }
        match self.apply(field) {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// Sum of the pseudo header (RFC 9293 3.1, RFC 8200 8.1). A mapped address sums like the IPv4
/// address plus a constant, so the families are told apart.
#[inline(always)]
pub fn pseudo_header(source: &Addr, destination: &Addr, proto: u8, length: u16) -> u64 {
    let sum = (proto as u16).to_be() as u64 + length.to_be() as u64;
    if source.is_v4() {
        return sum + source.v4_word() as u64 + destination.v4_word() as u64;
    }
    sum + addr(source) + addr(destination)
}

/// Sum of an address's words.
#[inline(always)]
pub fn addr(addr: &Addr) -> u64 {
    let [first, second] = addr.halves();
    (first & 0xffff_ffff) + (first >> 32) + (second & 0xffff_ffff) + (second >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 as it is written there: 16 bits at a time.
    fn reference(words: &[u16]) -> u16 {
        let mut sum = 0u32;
        for word in words {
            sum += *word as u32;
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn incremental_update_equals_recomputation(
            words in prop::array::uniform8(any::<u16>()),
            new in any::<[u16; 3]>(),
        ) {
            let before = reference(&words);
            let mut after_words = words;
            after_words[..3].copy_from_slice(&new);
            let pair = |w: &[u16]| w[0] as u32 | (w[1] as u32) << 16;
            let delta = Delta::new()
                .replace32(pair(&words), pair(&new))
                .replace16(words[2], new[2]);
            let (got, want) = (delta.apply(before), reference(&after_words));
            // One's complement has two zeros; a sum of nothing but zeros is the only way to tell.
            prop_assert!(got == want || (got ^ want == 0xffff && (got == 0 || want == 0)));
        }

        #[test]
        fn fold_keeps_the_sum_modulo_ffff(sum in 0u64..u64::MAX / 2) {
            prop_assert_eq!(fold(sum) as u64 % 0xffff, sum % 0xffff);
        }
    }

    #[test]
    fn udp_without_checksum_stays_without() {
        let delta = Delta::new().replace16(1, 2);
        assert_eq!(delta.apply_udp(0), 0);
        assert_eq!(Delta::new().replace16(0, 0xfffe).apply_udp(0xfffe), 0xffff);
    }
}
