//! SipHash-1-3 (Aumasson, Bernstein: "SipHash: a fast short-input PRF", 2012) over whole words.
//! The table's scores and the flow hash share it; it compiles for BPF.

/// State between words. The length byte of the paper's last block counts the bytes fed.
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
        self.words += 1;
        self
    }

    #[inline(always)]
    pub const fn finish(self) -> u64 {
        let length = (self.words * 8 & 0xff) << 56;
        let mut state = self.word(length);
        state.v[2] ^= 0xff;
        let [a, b, c, d] = state.round().round().round().v;
        a ^ b ^ c ^ d
    }
}
