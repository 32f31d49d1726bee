//! Changes that are being spread: each is told a few times to random members and then forgotten.

use std::sync::Arc;

use super::super::board::Delta;

/// Changes in the making; beyond, the most often told one is dropped and members find out by comparing.
pub const RUMOURS_MOST: usize = 256;

/// One encoded delta of a shared log.
#[derive(Debug)]
pub struct Rumour {
    pub origin: Arc<str>,
    pub incarnation: u64,
    pub from: u64,
    pub to: u64,
    pub bytes: Vec<u8>,
    /// How often it has been told.
    pub told: u32,
}

impl Rumour {
    /// `bytes` are the delta's.
    pub fn new(delta: &Delta<'_>, origin: Arc<str>, bytes: Vec<u8>, told: u32) -> Self {
        Self { origin, incarnation: delta.incarnation, from: delta.from, to: delta.to, bytes, told }
    }
}

#[derive(Debug, Default)]
pub struct Rumours {
    queue: Vec<Rumour>,
    dropped: u64,
}

impl Rumours {
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Adds a rumour in place of those that it makes needless.
    pub fn add(&mut self, new: Rumour) {
        self.queue.retain(|old| {
            let covered = new.from <= old.from && old.to <= new.to;
            let only_tells = old.from == old.to && old.to <= new.to;
            let needless = old.incarnation < new.incarnation
                || (old.incarnation == new.incarnation && (covered || only_tells));
            old.origin != new.origin || !needless
        });
        if self.queue.len() >= RUMOURS_MOST {
            let most =
                self.queue.iter().enumerate().max_by_key(|(_, it)| it.told).map(|(at, _)| at);
            self.queue.swap_remove(most.unwrap_or(0));
            self.dropped += 1;
        }
        self.queue.push(new);
    }

    /// Rumours for one datagram with room for `budget` bytes, the least told first. Forgets what has now
    /// been told `often` enough.
    pub fn take(&mut self, budget: usize, often: u32) -> Vec<Vec<u8>> {
        self.queue.sort_by_key(|it| it.told);
        let (mut left, mut taken) = (budget, Vec::new());
        for rumour in &mut self.queue {
            if let Some(rest) = left.checked_sub(rumour.bytes.len() + LENGTH_OF_LENGTH) {
                left = rest;
                rumour.told += 1;
                taken.push(rumour.bytes.clone());
            }
        }
        self.queue.retain(|it| it.told < often);
        taken
    }
}

/// Of an encoded delta within a datagram.
pub const LENGTH_OF_LENGTH: usize = 2;
