//! Ranks (slot, backend) pairs: weighted rendezvous in integers.
//!
//! The hash of a pair is SipHash-1-3, keyed by the shared seed, over address (16 bytes), port (2)
//! and slot (4, little-endian): the state after the address is a backend's [`Column`], so a slot
//! costs one compression and three rounds. A pair's cost is −log2(hash / 2^64) / weight, which
//! gives each backend its share of the slots (an exponential race). Of equal costs the greater hash
//! ranks first. With equal weights cost falls as the hash grows, so the hash alone decides and no
//! logarithm is taken. Never uses floats or a width that depends on the machine: all nodes must
//! agree.

use super::{Backend, Seed};
use crate::siphash::{self, Sip13};
use alloc::vec::Vec;
use core::cmp::Reverse;

/// Rank of a (slot, backend) pair; the greater ranks first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Score {
    /// The complement of the cost; 0 where the hash alone decides.
    thrift: u64,
    hash: u64,
}

/// The score by which a pool that is too large for its table picks the backends that own slots.
pub(super) fn admission(seed: &Seed, backend: &Backend) -> Score {
    let column = Column::new(seed, 0, backend);
    column.weighted(column.hash(u32::MAX))
}

/// Score of one pair. The builder's order within a set of equal weights is the same.
pub fn score(seed: &Seed, backend: &Backend, slot: u16) -> Score {
    let column = Column::new(seed, 0, backend);
    column.weighted(column.hash(slot.into()))
}

/// What a backend's scores have in common.
#[derive(Clone, Copy)]
pub(super) struct Column {
    /// After the address.
    state: Sip13,
    port: u64,
    /// 2^32 / weight, rounded: off by less than 2^-16 of itself.
    inverse_weight: u64,
    /// The backend's index in its table.
    pub index: u16,
}

impl Column {
    fn new(seed: &Seed, index: u16, backend: &Backend) -> Self {
        let [k0, k1] = siphash::key(seed);
        let [front, back] = siphash::key(&backend.addr.octets());
        let weight = u64::from(backend.weight.get());
        Self {
            state: Sip13::new(k0, k1).word(front).word(back),
            port: u16::from_le_bytes(backend.port.get().to_be_bytes()).into(),
            inverse_weight: ((1 << 32) + weight / 2) / weight,
            index,
        }
    }

    #[inline(always)]
    fn hash(&self, slot: u32) -> u64 {
        self.state.finish_with(self.port | u64::from(slot) << 16, 6)
    }

    #[inline(always)]
    fn cost(&self, hash: u64) -> u64 {
        minus_log2(hash) * self.inverse_weight
    }

    /// At most `cost`: −log2(u) ≥ 1 − u, and what [`minus_log2`] errs it errs upwards.
    #[inline(always)]
    fn least_cost(&self, hash: u64) -> u64 {
        (!hash >> (64 - LOG_BITS)) * self.inverse_weight
    }

    fn weighted(&self, hash: u64) -> Score {
        Score { thrift: !self.cost(hash), hash }
    }
}

/// All columns of a table.
pub(super) struct Columns {
    columns: Vec<Column>,
    equal_weights: bool,
}

impl Columns {
    pub fn new(seed: &Seed, backends: &[Backend]) -> Self {
        Self {
            columns: (0..).zip(backends).map(|(i, b)| Column::new(seed, i, b)).collect(),
            equal_weights: backends.windows(2).all(|w| w[0].weight == w[1].weight),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter()
    }

    /// These columns only, under the same rule for weights, so that their scores compare with those
    /// of the whole.
    pub fn subset(&self, indices: &[u16]) -> Self {
        Self {
            columns: indices.iter().map(|&i| self.columns[usize::from(i)]).collect(),
            equal_weights: self.equal_weights,
        }
    }

    pub fn score(&self, slot: u16, index: u16) -> Score {
        self.score_in(slot, &self.columns[usize::from(index)])
    }

    #[inline(always)]
    pub fn score_in(&self, slot: u16, column: &Column) -> Score {
        self.rank(column, column.hash(slot.into()))
    }

    #[inline(always)]
    fn rank(&self, column: &Column, hash: u64) -> Score {
        match self.equal_weights {
            true => Score { thrift: 0, hash },
            false => column.weighted(hash),
        }
    }

    /// Calls `found(slot, index, score)` with the best column of each slot; of equal scores the
    /// lower index.
    pub fn best(&self, slots: &[u16], mut found: impl FnMut(u16, u16, Score)) {
        if self.columns.is_empty() {
            return;
        }
        for block in slots.chunks(BLOCK) {
            let mut wide = [0; BLOCK];
            for (wide, &slot) in wide.iter_mut().zip(block) {
                *wide = slot.into();
            }
            let (hashes, places) = match self.equal_weights {
                true => best_hashes::<false>(&self.columns, &wide),
                false => best_hashes::<true>(&self.columns, &wide),
            };
            for ((&slot, hash), place) in block.iter().zip(hashes).zip(places) {
                let column = &self.columns[place as usize];
                found(slot, column.index, self.rank(column, hash));
            }
        }
    }
}

/// Slots that are scored together: a few vectors, small enough to stay in the first cache.
const BLOCK: usize = 128;

/// For each slot of a block the best column's hash and its place in the list of columns.
type Best = ([u64; BLOCK], [u64; BLOCK]);

/// Finds the best columns with the widest vectors that this machine has: with eight lanes it takes
/// 1.7 ns a pair of equal weights, with four 2.6, with the two that every x86_64 has 6.5.
fn best_hashes<const WEIGHTED: bool>(columns: &[Column], slots: &[u32; BLOCK]) -> Best {
    #[cfg(target_arch = "x86_64")]
    {
        extern crate std;
        if std::is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature that the function is compiled for was found just now.
            return unsafe { best_hashes_avx512::<WEIGHTED>(columns, slots) };
        }
        if std::is_x86_feature_detected!("avx2") {
            // SAFETY: the feature that the function is compiled for was found just now.
            return unsafe { best_hashes_avx2::<WEIGHTED>(columns, slots) };
        }
    }
    best_hashes_any::<WEIGHTED>(columns, slots)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn best_hashes_avx512<const WEIGHTED: bool>(columns: &[Column], slots: &[u32; BLOCK]) -> Best {
    best_hashes_any::<WEIGHTED>(columns, slots)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn best_hashes_avx2<const WEIGHTED: bool>(columns: &[Column], slots: &[u32; BLOCK]) -> Best {
    best_hashes_any::<WEIGHTED>(columns, slots)
}

/// Column by column, the hashes as loops without branches: the form that compilers turn into
/// vector code. A strictly better score replaces an earlier one, so ties stay with the lower place.
#[inline(always)]
fn best_hashes_any<const WEIGHTED: bool>(columns: &[Column], slots: &[u32; BLOCK]) -> Best {
    let (mut hashes, mut places, mut costs) = ([0; BLOCK], [0; BLOCK], [u64::MAX; BLOCK]);
    for (place, column) in (0..).zip(columns) {
        if !WEIGHTED {
            for i in 0..BLOCK {
                let hash = column.hash(slots[i]);
                let better = hash > hashes[i];
                hashes[i] = if better { hash } else { hashes[i] };
                places[i] = if better { place } else { places[i] };
            }
            continue;
        }
        let mut fresh = [0; BLOCK];
        for i in 0..BLOCK {
            fresh[i] = column.hash(slots[i]);
        }
        for (i, hash) in fresh.into_iter().enumerate() {
            // Most pairs are far from the best, and that shows without a logarithm.
            if column.least_cost(hash) > costs[i] {
                continue;
            }
            let cost = column.cost(hash);
            if (Reverse(cost), hash) > (Reverse(costs[i]), hashes[i]) {
                (hashes[i], places[i], costs[i]) = (hash, place, cost);
            }
        }
    }
    (hashes, places)
}

/// Fraction bits of [`minus_log2`].
const LOG_BITS: u32 = 25;
/// log2 of the segments in which the logarithm is taken as straight.
const SEGMENT_BITS: u32 = 10;
const SEGMENTS: usize = 1 << SEGMENT_BITS;

/// −log2(hash / 2^64) with [`LOG_BITS`] fraction bits: at most 64, never growing with the hash.
///
/// Never too small. Off by less than 2^-22, and by less than 2^-10 of itself: straight segments cost 2^-22.4 at
/// most, and near 1, where the result is small, they err in proportion to it.
fn minus_log2(hash: u64) -> u64 {
    let hash = hash | 1;
    let zeros = hash.leading_zeros();
    // hash = 2^(63 - zeros) × (1 + mantissa / 2^64)
    let mantissa = hash << zeros << 1;
    let segment = (mantissa >> (64 - SEGMENT_BITS)) as usize;
    let within = mantissa << SEGMENT_BITS >> 32;
    let (low, high) = (u64::from(LOG2[segment]), u64::from(LOG2[segment + 1]));
    (u64::from(zeros + 1) << LOG_BITS) - (low + (((high - low) * within) >> 32))
}

/// log2(1 + i / SEGMENTS), with LOG_BITS fraction bits, rounded down; the last is exactly 1.
static LOG2: [u32; SEGMENTS + 1] = {
    let mut table = [1 << LOG_BITS; SEGMENTS + 1];
    let mut i = 0;
    while i < SEGMENTS {
        table[i] = log2_bits((1 << 62) + ((i as u64) << (62 - SEGMENT_BITS)));
        i += 1;
    }
    table
};

/// log2 of `x` / 2^62, 1 ≤ x / 2^62 < 2, bit by bit: squaring doubles the logarithm, and what
/// passes 2 is its next bit.
const fn log2_bits(mut x: u64) -> u32 {
    let mut bits = 0;
    let mut i = 0;
    while i < LOG_BITS {
        let square = (x as u128 * x as u128) >> 62;
        let carry = (square >> 63) as u32;
        x = (square >> carry) as u64;
        bits = bits << 1 | carry;
        i += 1;
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;

    #[test]
    fn logarithm_keeps_to_its_bounds_and_never_grows() {
        let mut last = u64::MAX;
        // Dense near both ends of every power of two and of some segments, and a coarse walk
        // between.
        let mut hashes: Vec<u64> = (0..64)
            .flat_map(|s| (0..9).map(move |d| (1u64 << s).wrapping_add(d).wrapping_sub(4)))
            .collect();
        hashes.extend((0..200_000u64).map(|i| i * (u64::MAX / 200_000)));
        hashes.extend((0..100_000u64).map(|i| u64::MAX - (i << 36)));
        hashes.sort_unstable();
        for hash in hashes {
            let got = minus_log2(hash);
            assert!(got <= last, "grows at {hash:#x}");
            last = got;
            // Exact near 1, where a hash does not fit a float.
            let below = (!(hash | 1)) as f64 + 1.0;
            let exact = if below < 2f64.powi(62) {
                -(-below / 2f64.powi(64)).ln_1p() / core::f64::consts::LN_2
            } else {
                64.0 - ((hash | 1) as f64).log2()
            };
            let off = got as f64 / 2f64.powi(LOG_BITS as i32) - exact;
            assert!(off > -1e-13, "{hash:#x}: too small by {off:e}");
            assert!(got >= !hash >> (64 - LOG_BITS), "{hash:#x}: below the bound");
            assert!(off < 2f64.powi(-22), "{hash:#x}: off by {off:e}");
            assert!(
                off < exact * 2f64.powi(-10) + 2f64.powi(-(LOG_BITS as i32)),
                "{hash:#x}: off by {off:e} of {exact:e}"
            );
        }
        assert_eq!(minus_log2(0), 64 << LOG_BITS);
        assert_eq!(minus_log2(1 << 63), 1 << LOG_BITS);
    }
}
