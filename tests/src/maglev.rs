//! Maglev's slot tables, to hold weir's against (Eisenbud and others, NSDI 2016).
//!
//! They have the same backends, seed (it keys the hash) and number of slots, which is a prime as
//! Maglev needs.

use anyhow::{Context, Result};
use lb_common::table::{Backend, DEFAULT_SLOTS, Seed};
use maglev::{ConsistentHasher, Maglev};
use siphasher::sip::SipHasher13;
use std::hash::{BuildHasher, Hash, Hasher};

/// Keys the crate's hash by the seed for backends; slots that are looked up stand for themselves.
struct ByBackend(Seed);
struct ByBackendHasher(SipHasher13, Option<u64>);

impl BuildHasher for ByBackend {
    type Hasher = ByBackendHasher;

    fn build_hasher(&self) -> Self::Hasher {
        ByBackendHasher(SipHasher13::new_with_key(&self.0), None)
    }
}

impl Hasher for ByBackendHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    fn write_u64(&mut self, slot: u64) {
        self.1 = Some(slot);
    }

    fn finish(&self) -> u64 {
        self.1.unwrap_or_else(|| self.0.finish())
    }
}

#[derive(Eq, PartialEq)]
struct Node(Backend);

impl Hash for Node {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write(&self.0.addr.octets());
        hasher.write(&self.0.port.get().to_be_bytes());
    }
}

/// The owner of each slot.
pub fn owners(pool: &[Backend], seed: Seed) -> Result<Vec<Backend>> {
    let nodes = pool.iter().map(|&b| Node(b));
    let maglev = Maglev::with_capacity_and_hasher(nodes, DEFAULT_SLOTS.into(), ByBackend(seed));
    anyhow::ensure!(
        maglev.capacity() == usize::from(DEFAULT_SLOTS),
        "Maglev took {} slots",
        maglev.capacity()
    );
    (0..u64::from(DEFAULT_SLOTS))
        .map(|slot| Ok(maglev.get(&slot).context("Maglev left a slot free")?.0))
        .collect()
}
