//! Whose clients each frontend takes.

use std::collections::BTreeSet;

use lb_common::frontend::{SourceRange, frontend_flags};

use super::{
    ApplyError, Work,
    held::{Held, HeldFrontend},
};
use crate::{
    dataplane::store::{Step, Store, WriteError},
    model::Cidr,
    plan::{DesiredFrontend, desired::FrontendKey},
};

/// Bits of an IPv4 address's mapped form that all of them share.
const MAPPED: u32 = 96;

impl<S: Store> Work<'_, S> {
    /// Makes a held frontend take the clients that it should; that the map is full, where it is: then it
    /// is closed to some.
    pub(super) fn put_ranges(
        &mut self,
        key: FrontendKey,
    ) -> Result<Option<WriteError>, ApplyError> {
        let wanted = &self.desired.frontends[&key];
        let Some(held) = self.held.frontends.get(&key) else { return Ok(None) };
        let number = held.number;
        let networks = networks(number, wanted);
        let full = self.add_ranges(number, &networks)?;
        if let Some(held) = self.held.frontends.get_mut(&key)
            && held.flags != flags(wanted)
        {
            held.flags = flags(wanted);
            self.store.write(Step::Frontend(key.endpoint(), held.frontend()))?;
        }
        let held = self.held.ranges.get(&number);
        let gone = held.map(|held| held.difference(&networks).copied().collect::<Vec<_>>());
        for network in gone.into_iter().flatten() {
            self.remove_range(network)?;
        }
        match full {
            // What went may be the room that was lacking.
            Some(_) => self.add_ranges(number, &networks),
            None => Ok(None),
        }
    }

    /// Adds the networks that are missing, as far as there is room.
    pub(super) fn add_ranges(
        &mut self,
        number: u32,
        networks: &BTreeSet<SourceRange>,
    ) -> Result<Option<WriteError>, ApplyError> {
        for network in networks {
            if self.held.ranges.get(&number).is_some_and(|held| held.contains(network)) {
                continue;
            }
            match self.store.write(Step::Range(*network)) {
                Ok(()) => drop(self.held.ranges.entry(number).or_default().insert(*network)),
                Err(full @ WriteError::Full { .. }) => return Ok(Some(full)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Removes the networks of a frontend that is gone.
    pub(super) fn remove_ranges(&mut self, number: u32) -> Result<(), ApplyError> {
        for network in self.held.ranges.get(&number).cloned().unwrap_or_default() {
            self.remove_range(network)?;
        }
        Ok(())
    }

    fn remove_range(&mut self, network: SourceRange) -> Result<(), ApplyError> {
        self.store.write(Step::NoRange(network))?;
        if let Some(held) = self.held.ranges.get_mut(&network.frontend) {
            held.remove(&network);
            if held.is_empty() {
                self.held.ranges.remove(&network.frontend);
            }
        }
        Ok(())
    }
}

/// Whether a frontend takes the clients that it should, and no others.
pub fn are_as_wanted(held: &Held, frontend: &HeldFrontend, wanted: &DesiredFrontend) -> bool {
    let networks = networks(frontend.number, wanted);
    let same = match held.ranges.get(&frontend.number) {
        Some(held) => *held == networks,
        None => networks.is_empty(),
    };
    same && frontend.flags == flags(wanted)
}

/// [`frontend_flags`].
pub fn flags(wanted: &DesiredFrontend) -> u32 {
    if wanted.ranges.is_some() { frontend_flags::RANGES } else { 0 }
}

/// The networks of a frontend as the map holds them.
pub fn networks(number: u32, wanted: &DesiredFrontend) -> BTreeSet<SourceRange> {
    let network = |range: &Cidr| {
        let mapped = if range.address().is_ipv4() { MAPPED } else { 0 };
        let length = mapped + u32::from(range.length());
        SourceRange::network(number, range.address().into(), length)
    };
    wanted.ranges.iter().flat_map(|ranges| ranges.iter()).map(network).collect()
}
