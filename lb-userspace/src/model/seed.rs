//! The shared seed, and SipHash over byte strings for what the agents must agree on.

use lb_common::siphash::Sip13;
use ring::hkdf::{HKDF_SHA256, Salt};

/// The sixteen bytes that all nodes of one seed text share. Not a secret's store: whoever reads a
/// tunnel header may test guesses, so the text must be hard to guess.
pub fn seed_from(text: &str) -> [u8; 16] {
    // Two fixed keys: the seed is what makes everything else keyed.
    let half = |tag| absorb(Sip13::new(0x7765_6972_2073_6565, tag), text.as_bytes()).finish();
    let mut seed = [0; 16];
    seed[..8].copy_from_slice(&half(1).to_le_bytes());
    seed[8..].copy_from_slice(&half(2).to_le_bytes());
    seed
}

/// The key of gossip where none is configured: from the seed's text, by HKDF (RFC 5869) with SHA-256.
pub fn gossip_key_from(text: &str) -> [u8; 32] {
    let salt = Salt::new(HKDF_SHA256, b"weir gossip");
    let mut key = [0; 32];
    let derived = salt.extract(text.as_bytes());
    let filled = derived.expand(&[b"key"], HKDF_SHA256).and_then(|okm| okm.fill(&mut key));
    filled.expect("one block of SHA-256 is a length that HKDF gives");
    key
}

/// A state keyed with the seed; `domain` keeps uses of the same seed apart.
pub fn keyed(seed: &[u8; 16], domain: u64) -> Sip13 {
    let seed = u128::from_le_bytes(*seed);
    Sip13::new(seed as u64, (seed >> 64) as u64).word(domain)
}

/// Feeds bytes of any length: the length, then words padded with zeros.
pub fn absorb(state: Sip13, bytes: &[u8]) -> Sip13 {
    bytes.chunks(8).fold(state.word(bytes.len() as u64), |state, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state.word(u64::from_le_bytes(word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes of different builds must agree; changing this displaces every flow.
    #[test]
    fn seed_of_a_text_is_golden() {
        assert_eq!(
            u128::from_le_bytes(seed_from("correct horse")),
            0xca06966a432bf4010e55876c131a5e09
        );
    }

    /// Agents of different builds must understand each other.
    #[test]
    fn gossip_key_of_a_text_is_golden() {
        let key = gossip_key_from("correct horse");
        assert_eq!(key[..8], [0, 234, 194, 223, 75, 55, 204, 196]);
    }

    #[test]
    fn padding_and_domain_are_told_apart() {
        assert_ne!(seed_from("a"), seed_from("a\0"));
        assert_ne!(seed_from(""), seed_from("\0"));
        let seed = seed_from("x");
        assert_ne!(keyed(&seed, 1).finish(), keyed(&seed, 2).finish());
    }
}
