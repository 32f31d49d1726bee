//! Chance that is the same on every machine and in every run.

/// xorshift64* (Vigna 2016).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// `seed` is not 0: that would give nothing but zeros.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// All 64 bits; the upper ones are the better.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 up to, and without, `bound`.
    pub const fn below(&mut self, bound: usize) -> usize {
        ((self.next() >> 32) as usize * bound) >> 32
    }
}
