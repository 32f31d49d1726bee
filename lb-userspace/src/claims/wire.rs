//! Entries of claims as they travel. Both names and values must be the same in all builds.
//!
//! A value begins with one byte, its version; what has another one is not read. Whatever comes from
//! others is bounded by the length of an entry, and read as nothing if it makes no sense.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::{
    net::{Addr, Port},
    siphash,
};
use serde::{Deserialize, Serialize};

use crate::{
    membership::{Key, Topic, board::VALUE_MOST},
    plan::{
        FrontendKey,
        flows::{Displaced, Lineage, Owners, PAST},
    },
};

/// First byte of every value.
const VERSION: u8 = 1;
/// Of a frontend's name: address, port, protocol.
const FRONTEND: usize = 19;
/// Of a frontend, an epoch and a sum in a list.
const LISTED: usize = FRONTEND + 8 + 4;
/// Frontends that one list holds.
pub const LISTED_MOST: usize = (VALUE_MOST - 1) / LISTED;
/// Bytes of a bit for each slot there can be.
const BITS_MOST: usize = 1 << 13;
/// Sets this use of the hash apart; it needs no secret.
const DIGEST_KEY: [u64; 2] = [u64::from_le_bytes(*b"claims 1"), u64::from_le_bytes(*b"claims 2")];

#[derive(Deserialize, Serialize)]
struct ClaimForm<'a> {
    flows: u64,
    #[serde(borrow)]
    slots: SlotsForm<'a>,
}

/// The shorter of two.
#[derive(Deserialize, Serialize)]
enum SlotsForm<'a> {
    /// The first slot, then how much further each next one is.
    Steps(Vec<u16>),
    /// A bit for each slot, the lowest first.
    Bits(&'a [u8]),
}

/// A claim as it travels.
pub fn encode_claim(Displaced { flows, slots }: &Displaced) -> Vec<u8> {
    let bytes = slots.last().map_or(0, |last| usize::from(*last) / 8 + 1);
    let mut bits = Vec::new();
    let form = if slots.len() < bytes {
        let before = std::iter::once(&0).chain(slots);
        SlotsForm::Steps(slots.iter().zip(before).map(|(slot, before)| slot - before).collect())
    } else {
        bits.resize(bytes, 0);
        slots.iter().for_each(|slot| bits[usize::from(slot / 8)] |= 1 << (slot % 8));
        SlotsForm::Bits(&bits)
    };
    versioned(&ClaimForm { flows: *flows, slots: form })
}

pub fn decode_claim(value: &[u8]) -> Option<Displaced> {
    let form: ClaimForm<'_> = postcard::from_bytes(of_version(value)?).ok()?;
    let slots = match form.slots {
        SlotsForm::Steps(steps) => {
            let mut slot = 0_u16;
            let mut next = |step: &u16| {
                slot = slot.checked_add(*step)?;
                Some(slot)
            };
            steps.iter().map(&mut next).collect::<Option<_>>()?
        }
        SlotsForm::Bits(bits) if bits.len() <= BITS_MOST => {
            let set = |slot: &u16| {
                let byte = bits.get(usize::from(slot / 8));
                byte.is_some_and(|byte| byte & 1 << (slot % 8) != 0)
            };
            (0..=u16::MAX).filter(set).collect()
        }
        SlotsForm::Bits(_) => return None,
    };
    Some(Displaced { flows: form.flows, slots })
}

/// The key of one backend's claim.
pub fn claim_key(frontend: &FrontendKey, backend: SocketAddr) -> Key {
    let mut name = frontend_name(frontend);
    name.extend(Addr::from(backend.ip()).octets());
    name.extend(backend.port().to_be_bytes());
    Key::new(Topic::CLAIM, name)
}

/// Whose claim it is.
pub fn read_claim_name(name: &[u8]) -> Option<(FrontendKey, SocketAddr)> {
    let (frontend, backend) = name.split_at_checked(FRONTEND)?;
    let (address, port) = backend.split_first_chunk::<16>()?;
    let port = u16::from_be_bytes(port.try_into().ok()?);
    Some((read_frontend_name(frontend)?, SocketAddr::new(Addr::from(*address).to_ip(), port)))
}

/// A number for a claim as it travels; the sum of a frontend's tells whether all have arrived.
pub fn digest(name: &[u8], value: &[u8]) -> u32 {
    let [first, second] = DIGEST_KEY;
    siphash::hash([first, siphash::hash([first, second], name)], value) as u32
}

/// The byte by which frontends are listed together.
pub fn bucket(frontend: &FrontendKey) -> u8 {
    siphash::hash(DIGEST_KEY, &frontend_name(frontend)) as u8
}

/// What a member has applied of one frontend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Listing {
    pub epoch: u64,
    /// Of the digests of all its claims there, wrapping.
    pub sum: u32,
}

/// A list of frontends; none beyond [`LISTED_MOST`].
pub fn encode_view(list: &BTreeMap<FrontendKey, Listing>) -> Vec<u8> {
    let mut value = vec![VERSION];
    for (frontend, Listing { epoch, sum }) in list.iter().take(LISTED_MOST) {
        value.extend(frontend_name(frontend));
        value.extend(epoch.to_le_bytes());
        value.extend(sum.to_le_bytes());
    }
    value
}

pub fn decode_view(value: &[u8]) -> Option<BTreeMap<FrontendKey, Listing>> {
    let (items, rest) = of_version(value)?.as_chunks::<LISTED>();
    let read = |item: &[u8; LISTED]| {
        let (frontend, rest) = item.split_at(FRONTEND);
        let (epoch, sum) = rest.split_first_chunk::<8>()?;
        let listing = Listing {
            epoch: u64::from_le_bytes(*epoch),
            sum: u32::from_le_bytes(sum.try_into().ok()?),
        };
        Some((read_frontend_name(frontend)?, listing))
    };
    items.iter().map(read).collect::<Option<_>>().filter(|_| rest.is_empty())
}

/// The sets before the one that `epoch` names, each as what makes it of the one after it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Descent {
    pub epoch: u64,
    past: Vec<Difference>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Difference {
    less: Vec<Peer>,
    more: Vec<(Peer, u16)>,
}

/// Address and port.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Peer([u8; 16], u16);

impl From<&SocketAddr> for Peer {
    fn from(address: &SocketAddr) -> Self {
        Self(Addr::from(address.ip()).octets(), address.port())
    }
}

impl From<Peer> for SocketAddr {
    fn from(Peer(address, port): Peer) -> Self {
        Self::new(Addr::from(address).to_ip(), port)
    }
}

impl Descent {
    pub fn of(lineage: &Lineage) -> Self {
        let after = std::iter::once(&lineage.owners).chain(&lineage.past);
        let past = lineage.past.iter().zip(after).take(PAST);
        let past = past.map(|(before, after)| Difference::between(after, before)).collect();
        Self { epoch: lineage.epoch, past }
    }

    /// How many sets it names.
    pub fn length(&self) -> usize {
        self.past.len()
    }

    /// The sets before `owners`, newest first.
    pub fn past(&self, owners: &Owners) -> Vec<Owners> {
        let mut owners = owners.clone();
        let step = |difference: &Difference| {
            difference.undo(&mut owners);
            owners.clone()
        };
        self.past.iter().map(step).collect()
    }

    /// As many sets as fit; none if there are none.
    pub fn encode(mut self) -> Option<Vec<u8>> {
        while !self.past.is_empty() {
            let value = versioned(&self);
            if value.len() <= VALUE_MOST {
                return Some(value);
            }
            self.past.pop();
        }
        None
    }

    pub fn decode(value: &[u8]) -> Option<Self> {
        let descent: Self = postcard::from_bytes(of_version(value)?).ok()?;
        (descent.past.len() <= PAST).then_some(descent)
    }
}

impl Difference {
    fn between(after: &Owners, before: &Owners) -> Self {
        let less = after.keys().filter(|it| !before.contains_key(it)).map(Peer::from);
        let more = before.iter().filter(|(it, weight)| after.get(it) != Some(weight));
        let more = more.map(|(it, weight)| (Peer::from(it), *weight));
        Self { less: less.collect(), more: more.collect() }
    }

    fn undo(&self, owners: &mut Owners) {
        for peer in &self.less {
            owners.remove(&SocketAddr::from(*peer));
        }
        owners.extend(self.more.iter().map(|(it, weight)| (SocketAddr::from(*it), *weight)));
    }
}

/// The key of a frontend's lineage.
pub fn lineage_key(frontend: &FrontendKey) -> Key {
    Key::new(Topic::LINEAGE, frontend_name(frontend))
}

pub fn frontend_name(frontend: &FrontendKey) -> Vec<u8> {
    let FrontendKey { address, port, protocol } = frontend;
    let mut name = Addr::from(*address).octets().to_vec();
    name.extend(port.to_be_bytes());
    name.push(protocol.number());
    name
}

pub fn read_frontend_name(name: &[u8]) -> Option<FrontendKey> {
    let name: &[u8; FRONTEND] = name.try_into().ok()?;
    let (address, rest) = name.split_first_chunk::<16>()?;
    let endpoint = lb_common::frontend::Endpoint::new(
        Addr::from(*address),
        Port::new(u16::from_be_bytes([rest[0], rest[1]])),
        rest[2],
    );
    FrontendKey::of(&endpoint)
}

fn versioned(form: &impl Serialize) -> Vec<u8> {
    let rest = postcard::to_allocvec(form).expect("numbers and lists of them always have a form");
    [&[VERSION], &rest[..]].concat()
}

fn of_version(value: &[u8]) -> Option<&[u8]> {
    value.split_first().filter(|(version, _)| **version == VERSION).map(|(_, rest)| rest)
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
