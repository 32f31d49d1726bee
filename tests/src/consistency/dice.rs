//! Chance that can be repeated: SplitMix64 (Steele, Lea and Flood 2014).

pub struct Dice(u64);

impl Dice {
    /// Two streams of one seed have nothing in common.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut dice = Self(seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        dice.0 = dice.next();
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// At least 0, below `n`; 0 where `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// Each place of `of` chosen or not; exactly `percent` of them are, rounded to the nearest.
    pub fn choose(&mut self, of: usize, percent: usize) -> Vec<bool> {
        let mut chosen = vec![false; of];
        let mut left = (of * percent + 50) / 100;
        for (place, it) in chosen.iter_mut().enumerate() {
            if self.below(of - place) < left {
                *it = true;
                left -= 1;
            }
        }
        chosen
    }
}
