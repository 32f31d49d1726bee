//! One choice a slot, in a byte each where all indices fit: a node holds a table for every pool.

use super::NONE;
use alloc::{boxed::Box, vec, vec::Vec};

/// The best ranked backend of each slot, by index; [`NONE`] where there is none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Choices {
    /// The greatest byte is none.
    Bytes(Box<[u8]>),
    Words(Box<[u16]>),
}

const NO_BYTE: u8 = u8::MAX;

impl Choices {
    pub fn none(slots: u16) -> Self {
        Self::Bytes(vec![NO_BYTE; slots.into()].into())
    }

    /// Choices among so many backends.
    pub fn pack(choices: &[u16], backends: usize) -> Self {
        match backends <= NO_BYTE.into() {
            // All indices fit, and of what stands for none the lower half stands for none.
            true => Self::Bytes(choices.iter().map(|&choice| choice as u8).collect()),
            false => Self::Words(choices.into()),
        }
    }

    pub fn unpack(&self) -> Vec<u16> {
        match self {
            Self::Bytes(bytes) => bytes.iter().copied().map(word).collect(),
            Self::Words(words) => words.to_vec(),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Words(words) => words.len(),
        }
    }

    /// The choice of a slot; nothing beyond the last one.
    pub fn get(&self, slot: u16) -> Option<u16> {
        match self {
            Self::Bytes(bytes) => bytes.get(usize::from(slot)).copied().map(word),
            Self::Words(words) => words.get(usize::from(slot)).copied(),
        }
    }

    /// Writes each slot's choice to `out`, as `ids[choice]`; 0 where there is none.
    pub fn name(&self, out: &mut [u32], ids: &[u32]) {
        let id = |choice: usize| ids.get(choice).copied().unwrap_or(0);
        match self {
            // There are no more ids than backends: none has the index that stands for none.
            Self::Bytes(bytes) => {
                out.iter_mut().zip(bytes).for_each(|(out, &byte)| *out = id(byte.into()));
            }
            Self::Words(words) => {
                out.iter_mut().zip(words).for_each(|(out, &word)| *out = id(word.into()));
            }
        }
    }
}

fn word(byte: u8) -> u16 {
    if byte == NO_BYTE { NONE } else { byte.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_come_back_whatever_their_width() {
        for backends in [0_u16, 1, 254, 255, 256, 3000] {
            let last = backends.checked_sub(1).unwrap_or(NONE);
            let all = vec![last, NONE, 0];
            let packed = Choices::pack(&all, backends.into());
            assert_eq!(matches!(packed, Choices::Bytes(_)), backends <= 255);
            assert_eq!((packed.unpack(), packed.len()), (all.clone(), 3));
            assert_eq!([0, 1, 2].map(|slot| packed.get(slot).unwrap()), all[..]);
            assert_eq!(packed.get(3), None);
            let (mut out, ids) = ([7; 3], (1..=u32::from(backends)).collect::<Vec<_>>());
            packed.name(&mut out, &ids);
            let id = |choice: u16| if choice == NONE { 0 } else { u32::from(choice) + 1 };
            assert_eq!(out[..2], [id(last), 0]);
        }
    }
}
