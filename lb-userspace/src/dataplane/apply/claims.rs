//! What the map of claims holds of each frontend.

use lb_common::claim::ClaimKey;

use super::{ApplyError, Work, wants::Want};
use crate::dataplane::store::{Step, Store, WriteError};

impl<S: Store> Work<'_, S> {
    /// Makes a frontend's entries what they should be; that the map is full, where it is.
    pub(super) fn put_claims(
        &mut self,
        number: u32,
        want: &Want,
    ) -> Result<Option<WriteError>, ApplyError> {
        let held = self.held.claims.entry(number).or_default();
        let gone = held.keys().filter(|slot| !want.claims.contains_key(slot));
        for slot in gone.copied().collect::<Vec<_>>() {
            self.store.write(Step::NoClaim(key(number, slot)))?;
            held.remove(&slot);
        }
        let mut full = None;
        for (slot, claim) in &want.claims {
            if held.get(slot) == Some(claim) {
                continue;
            }
            match self.store.write(Step::Claim(key(number, *slot), *claim)) {
                Ok(()) => drop(held.insert(*slot, *claim)),
                Err(error @ WriteError::Full { .. }) => {
                    full = Some(error);
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if held.is_empty() {
            self.held.claims.remove(&number);
        }
        Ok(full)
    }

    /// Removes the entries of a frontend that is gone.
    pub(super) fn remove_claims(&mut self, number: u32) -> Result<(), ApplyError> {
        for slot in self.held.claims.remove(&number).unwrap_or_default().into_keys() {
            self.store.write(Step::NoClaim(key(number, slot)))?;
        }
        Ok(())
    }
}

fn key(number: u32, slot: u16) -> ClaimKey {
    ClaimKey { frontend: number, slot: slot.into() }
}
