//! What both sides must agree on beside the types: layout version, map names, capacities.
//!
//! Any change to a map's key, value, kind or meaning raises [`LAYOUT_VERSION`]; the test below
//! compares a digest of all sizes and fails when that was forgotten.
//!
//! Agents of any two layouts take over from each other, upwards and downwards, by rules and without
//! knowing each other:
//! - A map's name and form say what it holds. One of the same form in both layouts is one map.
//! - A value grows at its end, and zero there means what its absence meant; entries grow in number.
//!   Then the later agent copies what the earlier left, and an older one leaves the end away.
//! - What cannot be so gets a new name, and is empty after a take-over.
//! - Arrivals keep their key and begin with [`ArrivalWords`](crate::arrival::ArrivalWords): while they
//!   are moved the programs look into both layouts' maps.

/// Version of the pinned layout; part of the pin path, so that two layouts never meet in one map.
pub const LAYOUT_VERSION: u32 = 4 + cfg!(feature = "next-layout") as u32;

/// Version of the tunnel header. A receiver that meets another version delivers what it knows.
pub const TUNNEL_VERSION: u8 = 1;

/// Names of the maps, as in the BPF object and below the pin directory.
pub mod map {
    pub const FRONTENDS: &str = "FRONTENDS";
    pub const FRONTEND_OF: &str = "FRONTEND_OF";
    pub const SERVICES: &str = "SERVICES";
    pub const RECORDS: &str = "RECORDS";
    pub const OWNERS: &str = "OWNERS";
    pub const BACKENDS: &str = "BACKENDS";
    pub const LOCAL_BACKENDS: &str = "LOCAL_BACKENDS";
    pub const HOPS: &str = "HOPS";
    pub const VIPS: &str = "VIPS";
    pub const VIP_FILTER: &str = "VIP_FILTER";
    pub const UPLINKS: &str = "UPLINKS";
    pub const MEMBERS: &str = "MEMBERS";
    pub const OPENING: &str = "OPENING";
    pub const ESTABLISHED: &str = "ESTABLISHED";
    pub const DATAGRAMS: &str = "DATAGRAMS";
    pub const STATE: &str = "STATE";
    pub const SERVICE_COUNTERS: &str = "SERVICE_COUNTERS";
    pub const BACKEND_COUNTERS: &str = "BACKEND_COUNTERS";
    pub const REASON_COUNTERS: &str = "REASON_COUNTERS";
    pub const BUDGETS: &str = "BUDGETS";
    pub const YIELDS: &str = "YIELDS";
    pub const CLAIMS: &str = "CLAIMS";
    pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
    pub const UNDECIDED: &str = "UNDECIDED";
    pub const SOURCES: &str = "SOURCES";
    pub const SOCKETS: &str = "SOCKETS";
    pub const CHOSEN: &str = "CHOSEN";
    pub const ANSWERS: &str = "ANSWERS";

    /// Maps of arrivals of the layout that is taken over from, in programs loaded for that; never pinned
    /// under these names.
    pub const OLD_OPENING: &str = "OLD_OPENING";
    pub const OLD_ESTABLISHED: &str = "OLD_ESTABLISHED";
    pub const OLD_DATAGRAMS: &str = "OLD_DATAGRAMS";

    /// All of them; what the agent pins and checks.
    pub const ALL: [&str; 28] = [
        FRONTENDS,
        FRONTEND_OF,
        SERVICES,
        RECORDS,
        OWNERS,
        BACKENDS,
        LOCAL_BACKENDS,
        HOPS,
        VIPS,
        VIP_FILTER,
        UPLINKS,
        MEMBERS,
        OPENING,
        ESTABLISHED,
        DATAGRAMS,
        STATE,
        SERVICE_COUNTERS,
        BACKEND_COUNTERS,
        REASON_COUNTERS,
        BUDGETS,
        YIELDS,
        CLAIMS,
        SOURCE_RANGES,
        UNDECIDED,
        SOURCES,
        SOCKETS,
        CHOSEN,
        ANSWERS,
    ];
}

/// Indices of `BUDGETS`: what one CPU may do in a window of time. Each entry is the window's start by
/// CLOCK_MONOTONIC in ns, and what was done since.
pub mod budget {
    /// Refusals and errors that are sent.
    pub const REFUSALS: u32 = 0;
    /// Packets that are sent on ([`crate::chain::SENDS`]).
    pub const SENDS: u32 = 1;
    /// Openings that strays make ([`crate::chain::STRAYS`]).
    pub const STRAYS: u32 = 2;
    pub const ENTRIES: u32 = 3;
}

/// Names of the programs in the BPF object.
pub mod program {
    /// XDP, on each uplink.
    pub const INGRESS: &str = "weir_ingress";
    /// tc, on each device by which the host routes to clients.
    pub const EGRESS: &str = "weir_egress";
    /// For sockets of processes in a cgroup. What undoes a choice stands before what makes one: in
    /// this order they are attached.
    pub const CONNECT: [&str; 8] = [
        "weir_getpeername4",
        "weir_getpeername6",
        "weir_recvmsg4",
        "weir_recvmsg6",
        "weir_sendmsg4",
        "weir_sendmsg6",
        "weir_connect4",
        "weir_connect6",
    ];
}

/// Uplinks one node may have.
pub const MAX_UPLINKS: usize = 8;

/// How long a yield holds that nobody repeats, in ns; announcers repeat it every second. It ends so
/// that a VIP has an answer when those who took it are gone while this node's agent still is.
pub const YIELD_LIFE: u64 = 10_000_000_000;

/// Slots in one block of `OWNERS`: one cache line of `u32`.
pub const BLOCK_SLOTS: u32 = 16;

/// Most slots a service may have; a table then fills 4,095 blocks.
pub const MAX_SLOTS: u32 = 65_520;

/// Entries each map has unless the `Agent` object says otherwise.
pub mod capacity {
    /// Frontends; services are twice as many (outside and inside the cluster).
    pub const FRONTENDS: u32 = 1024;
    /// Blocks of the owners arena: 256 tables of the default 4,093 slots.
    pub const OWNER_BLOCKS: u32 = 256 * 256;
    pub const BACKENDS: u32 = 8192;
    pub const NODES: u32 = 1024;
    pub const VIPS: u32 = 1024;
    pub const OPENING: u32 = 65_536;
    pub const ESTABLISHED: u32 = 262_144;
    pub const DATAGRAMS: u32 = 65_536;
    /// Reasons of fates, more than there are: a new one must not change the map's form.
    pub const REASONS: u32 = 128 + cfg!(feature = "next-layout") as u32;
    /// Source prefixes whose new flows are counted.
    pub const SOURCES: u32 = 16_384;
    /// Pairs of a socket without a peer and a VIP that it sends to.
    pub const CHOSEN: u32 = 16_384;
    /// Slots in which backends of other sets still know flows.
    pub const CLAIMS: u32 = 131_072;
    /// Networks of clients, of all frontends that take only some.
    pub const SOURCE_RANGES: u32 = 16_384 + cfg!(feature = "next-layout") as u32;
}

#[cfg(test)]
mod tests {
    use core::mem::size_of;

    use crate::{arrival, backend, claim, frontend, globals, hop, reason, service, socket};

    /// A change here without a new `LAYOUT_VERSION` would let two layouts meet in one pinned map.
    #[test]
    #[cfg(not(feature = "next-layout"))]
    fn sizes_belong_to_the_layout_version() {
        let sizes = [
            size_of::<frontend::Endpoint>(),
            size_of::<frontend::Frontend>(),
            size_of::<frontend::SourceRange>(),
            size_of::<frontend::Vip>(),
            size_of::<service::Record>(),
            size_of::<service::OwnerBlock>(),
            size_of::<backend::Backend>(),
            size_of::<hop::Hop>(),
            size_of::<hop::Member>(),
            size_of::<hop::Uplinks>(),
            size_of::<arrival::ArrivalKey>(),
            size_of::<arrival::Arrival>(),
            size_of::<globals::Settings>(),
            size_of::<reason::Counter>(),
            size_of::<claim::ClaimKey>(),
            size_of::<claim::Claim>(),
            size_of::<socket::Peer>(),
            size_of::<socket::SocketKey>(),
        ];
        assert_eq!(
            (super::LAYOUT_VERSION, sizes),
            (4, [24, 12, 24, 8, 64, 64, 32, 64, 8, 128, 24, 16, 112, 16, 8, 24, 48, 32])
        );
    }
}
