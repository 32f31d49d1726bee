//! SipHash-1-3 (Aumasson, Bernstein: "SipHash: a fast short-input PRF", 2012): the one keyed hash
//! of the project.
//!
//! Flows, slot tables and digests use it, in the BPF programs as in user space: nothing wider than
//! 64 bits, no allocation, no path that panics. Messages of a fixed shape are fed word by word to
//! [`Sip13`]; [`hash`] takes a slice.

/// The two words of a 16-byte key, as the paper reads it.
#[inline]
pub const fn key(bytes: &[u8; 16]) -> [u64; 2] {
    let (words, _) = bytes.as_chunks::<8>();
    [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])]
}

/// State between words: a value, so that a common beginning is fed once and continued often.
#[derive(Clone, Copy, Debug)]
pub struct Sip13 {
    v: [u64; 4],
    words: u64,
}

impl Sip13 {
    #[inline(always)]
    pub const fn new(k0: u64, k1: u64) -> Self {
        Self {
            v: [
                k0 ^ 0x736f_6d65_7073_6575,
                k1 ^ 0x646f_7261_6e64_6f6d,
                k0 ^ 0x6c79_6765_6e65_7261,
                k1 ^ 0x7465_6462_7974_6573,
            ],
            words: 0,
        }
    }

    #[inline(always)]
    const fn round(mut self) -> Self {
        let [mut a, mut b, mut c, mut d] = self.v;
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        self.v = [a, b, c, d];
        self
    }

    /// Feeds eight bytes, little-endian.
    #[inline(always)]
    pub const fn word(mut self, word: u64) -> Self {
        self.v[3] ^= word;
        self = self.round();
        self.v[0] ^= word;
        self.words = self.words.wrapping_add(1);
        self
    }

    /// The hash of all words fed.
    #[inline(always)]
    pub const fn finish(self) -> u64 {
        self.finish_with(0, 0)
    }

    /// The hash of all words fed and of `len` < 8 bytes more, which `rest` holds little-endian,
    /// zeros above: they share the last compression with the length.
    #[inline(always)]
    pub const fn finish_with(self, rest: u64, len: u64) -> u64 {
        let length = self.words.wrapping_mul(8).wrapping_add(len) << 56;
        let mut state = self.word(length | rest);
        state.v[2] ^= 0xff;
        let [a, b, c, d] = state.round().round().round().v;
        a ^ b ^ c ^ d
    }
}

/// Hash of a whole message.
#[inline]
pub const fn hash(key: [u64; 2], message: &[u8]) -> u64 {
    let (words, rest) = message.as_chunks::<8>();
    let mut state = Sip13::new(key[0], key[1]);
    let mut i = 0;
    while i < words.len() {
        state = state.word(u64::from_le_bytes(words[i]));
        i += 1;
    }
    let mut last = 0;
    i = rest.len();
    while i > 0 {
        i -= 1;
        last = last << 8 | rest[i] as u64;
    }
    state.finish_with(last, rest.len() as u64)
}
