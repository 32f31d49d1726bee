//! Arrivals: the receiver's memory of one flow. Three LRU maps share these types: `OPENING` and
//! `ESTABLISHED` (TCP), `DATAGRAMS` (UDP); the protocol is therefore not in the key.
//!
//! Key and value are 40 bytes, so that a flow costs 104 bytes of kernel memory with the map's own 64.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

use crate::{
    backend::BackendId,
    net::{Addr, Port},
};

/// One flow's client and the backend, generation included: an arrival of an earlier life of the
/// id cannot match.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Pod, Zeroable)]
pub struct ArrivalKey {
    pub client: Addr,
    pub backend: BackendId,
    pub client_port: Port,
    /// Always zero.
    pub pad: u16,
}
const _: () = assert!(size_of::<ArrivalKey>() == 24);

impl ArrivalKey {
    #[inline(always)]
    pub const fn new(client: Addr, client_port: Port, backend: BackendId) -> Self {
        Self { client, backend, client_port, pad: 0 }
    }
}

/// What is known of the flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Arrival {
    /// Service index of the frontend the client speaks to.
    pub service: u32,
    /// Sequence number of the client's SYN; kept while opening.
    pub client_seq: u32,
    /// First sequence number that shows the client has heard what the backend sent last; valid
    /// with [`flags::BACKEND_SPOKE`].
    pub backend_seq: u32,
    /// Flags in the low eight bits, time last seen in the upper 24 ([`Tick`]).
    pub seen: u32,
    #[cfg(feature = "next-layout")]
    pub next: u64,
}
#[cfg(not(feature = "next-layout"))]
const _: () = assert!(size_of::<Arrival>() == 16);

/// What the arrivals of every layout begin with: all fields up to and with `seen`.
pub type ArrivalWords = [u32; 4];

/// Time in units of 2^28 ns (0.27 s) modulo 2^24 (52 days), from CLOCK_BOOTTIME or CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tick(pub u32);

impl Tick {
    const MASK: u32 = (1 << 24) - 1;

    /// A power of two: a shift instead of a division.
    #[inline(always)]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self((nanos >> 28) as u32 & Self::MASK)
    }

    /// Nanoseconds since `earlier`, at most one wrap apart.
    #[inline(always)]
    pub const fn since(self, earlier: Self) -> u64 {
        ((self.0.wrapping_sub(earlier.0) & Self::MASK) as u64) << 28
    }
}

pub mod flags {
    pub const CLIENT_FIN: u32 = 1;
    pub const BACKEND_FIN: u32 = 1 << 1;
    pub const BACKEND_RST: u32 = 1 << 2;
    /// `backend_seq` is valid.
    pub const BACKEND_SPOKE: u32 = 1 << 3;
}

impl Arrival {
    /// With these first words; what a layout has beyond them begins as zero.
    #[inline(always)]
    pub const fn from_words([service, client_seq, backend_seq, seen]: ArrivalWords) -> Self {
        Self {
            service,
            client_seq,
            backend_seq,
            seen,
            #[cfg(feature = "next-layout")]
            next: 0,
        }
    }

    #[inline(always)]
    pub const fn flags(&self) -> u32 {
        self.seen & 0xff
    }

    #[inline(always)]
    pub const fn last_seen(&self) -> Tick {
        Tick(self.seen >> 8)
    }

    /// The value of `seen` for these flags at this time.
    #[inline(always)]
    pub const fn pack(flags: u32, now: Tick) -> u32 {
        now.0 << 8 | flags & 0xff
    }
}

map_types!(ArrivalKey, Arrival);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_wraps_without_going_backwards() {
        let before = Tick::from_nanos((1 << 52) - 1);
        let after = Tick::from_nanos(1 << 52);
        assert_eq!(after, Tick(0));
        assert_eq!(after.since(before), 1 << 28);
        let arrival =
            Arrival { seen: Arrival::pack(flags::CLIENT_FIN, before), ..Default::default() };
        assert_eq!((arrival.flags(), arrival.last_seen()), (flags::CLIENT_FIN, before));
    }
}
