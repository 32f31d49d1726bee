//! The one list of what can happen to a packet that weir touches: number, name, kind, help text.
//! Counters, `weir counters`, metrics and the documentation are made from it.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

/// What a reason says of the packet's fate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Did what it should.
    Handled,
    /// Answered by weir itself.
    Answered,
    /// Let through to the kernel although it looked like ours.
    Passed,
    Dropped,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Handled => "handled",
            Self::Answered => "answered",
            Self::Passed => "passed",
            Self::Dropped => "dropped",
        }
    }
}

macro_rules! reasons {
    ($($variant:ident = $number:literal, $kind:ident, $name:literal, $help:literal;)+) => {
        /// Why a packet met its fate. The number is the index into `REASON_COUNTERS`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum Reason {
            $(#[doc = $help] $variant = $number,)+
        }

        impl Reason {
            /// All reasons, by number.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)+];

            /// Name in counters, metrics and JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)+ }
            }

            pub const fn help(self) -> &'static str {
                match self { $(Reason::$variant => $help,)+ }
            }

            pub const fn kind(self) -> Kind {
                match self { $(Reason::$variant => Kind::$kind,)+ }
            }
        }
    };
}

reasons! {
    Forwarded = 0, Handled, "forwarded", "A client's packet, sent through the tunnel to its backend's node.";
    DeliveredLocal = 1, Handled, "delivered_local", "A client's packet, handed to a backend on this node.";
    Received = 2, Handled, "received", "A tunnelled packet, handed to a backend on this node.";
    Returned = 3, Handled, "returned", "A backend's answer, with the VIP put back as its source.";
    ArpAnswered = 4, Answered, "arp_answered", "An ARP request for a VIP that this node announces.";
    NdpAnswered = 5, Answered, "ndp_answered", "A neighbour solicitation for a VIP that this node announces.";
    EchoAnswered = 6, Answered, "echo_answered", "An ICMP or ICMPv6 echo request to a VIP.";
    ProbeAnswered = 7, Answered, "probe_answered", "A member's probe of this node's data plane.";
    RefusedNoFrontend = 8, Answered, "refused_no_frontend", "The VIP has no frontend on this port and protocol; the client was told (RST, unreachable).";
    RefusedNoBackend = 9, Answered, "refused_no_backend", "The frontend has no backend; the client was told (RST, unreachable).";
    TooBig = 10, Answered, "too_big", "Too big for the tunnel; the client was told the MTU that fits.";
    ProbeAnswerPassed = 11, Passed, "probe_answer_passed", "A member's answer to a probe of ours, on its way to the agent's socket.";
    ReturnUnknown = 12, Passed, "return_unknown", "A backend's packet of no flow that came through a VIP; left as it is.";
    ReturnNotOpening = 13, Passed, "return_not_opening", "A SYN-ACK that answers no SYN that came through a VIP; left as it is.";
    Truncated = 14, Dropped, "truncated", "A header is cut short, or a length field is wrong.";
    NotAnnounced = 15, Dropped, "not_announced", "ARP or neighbour solicitation for a VIP that another node announces.";
    Fragment = 16, Dropped, "fragment", "A fragment for a VIP.";
    ExtensionHeaders = 17, Dropped, "extension_headers", "An IPv6 packet for a VIP with more extension headers than are walked, or an unknown one.";
    TtlExceeded = 18, Dropped, "ttl_exceeded", "TTL or hop limit ends here.";
    NoHop = 19, Dropped, "no_hop", "No way to the backend's node is known: no route, or its neighbour does not answer.";
    StaleOwner = 20, Dropped, "stale_owner", "The slot names a backend that has just left.";
    LocalOnly = 21, Dropped, "local_only", "A pool for local backends only, with none on this node.";
    NotMember = 22, Dropped, "not_member", "A tunnel packet or probe from an address that is no member.";
    BadTunnel = 23, Dropped, "bad_tunnel", "A tunnel packet that is not of our form: version, option or network identifier.";
    UnknownFrontend = 24, Dropped, "unknown_frontend", "A tunnelled packet for a frontend that this node does not hold.";
    UnknownBackend = 25, Dropped, "unknown_backend", "A tunnelled packet for a backend that this node does not hold.";
    LocalSource = 26, Dropped, "local_source", "A tunnelled packet whose source is this node: the kernel would drop it as martian.";
    Clash = 27, Dropped, "clash", "A SYN with the client address, port and backend of an active connection through another VIP.";
    EcnInconsistent = 28, Dropped, "ecn_inconsistent", "Congestion was marked on the way for a packet that cannot carry the mark (RFC 6040).";
    RefusalLimited = 29, Dropped, "refusal_limited", "A refusal that was not sent because of the rate limit.";
    NoRoom = 30, Dropped, "no_room", "The driver leaves no room to grow or shrink the frame.";
    IcmpIgnored = 31, Dropped, "icmp_ignored", "An ICMP message to a VIP that asks for no answer.";
    NoChecksum = 32, Dropped, "no_checksum", "An IPv6 UDP packet for a VIP without a checksum (RFC 8200 8.1).";
    ForeignSeed = 33, Handled, "foreign_seed", "A tunnel packet from a member with another seed; delivered, counted beside its fate.";
    StrayReset = 34, Dropped, "stray_reset", "An RST for a VIP that leads nowhere; an RST is never answered.";
    VipClaimed = 35, Passed, "vip_claimed", "An ARP announcement in which another host says that it has a VIP; on its way to the agent.";
    YieldTaken = 36, Handled, "yield_taken", "A member took over a VIP while this node's agent is silent; ARP and neighbour solicitations for it are no longer answered here.";
    YieldRefused = 37, Dropped, "yield_refused", "A yield that is not followed: this node's agent lives, or it does not announce the VIP.";
    SentOn = 38, Handled, "sent_on", "A packet of a flow that its backend here does not know, sent on to a backend that may know it.";
    SentLast = 39, Handled, "sent_last", "A packet of a flow that nobody knows, sent to the slot's owner to be taken as it is.";
    Unsettled = 40, Dropped, "unsettled", "A TCP segment of a flow that nobody knows yet, while the frontend's backends change or too many packets are sent on; the client sends it again.";
    SendsLimited = 41, Handled, "sends_limited", "A packet that was not sent on to a backend that may know its flow, because too many were; counted beside its fate.";
    StrayLimited = 42, Dropped, "stray_limited", "A TCP segment of no known flow, of which too many came: each would take the place of a handshake.";
    ForeignVersion = 43, Handled, "foreign_version", "A tunnel packet from a member with another version of the tunnel's header; counted beside its fate.";
    ForeignSlots = 44, Handled, "foreign_slots", "A tunnel packet of an unknown flow from a member that has another number of slots for the frontend; counted beside its fate.";
    NewFlowLimited = 45, Dropped, "new_flow_limited", "A SYN of a source prefix that opened more connections in this second than the agent's settings allow.";
    SourceDenied = 46, Dropped, "source_denied", "A packet of a client that is in none of the frontend's source ranges.";
}

const _: () = assert!(Reason::ALL.len() <= crate::abi::capacity::REASONS as usize);

/// Value of the per-CPU counter arrays.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}
const _: () = assert!(size_of::<Counter>() == 16);

map_types!(Counter);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_are_dense_and_names_unique() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{reason:?}");
            assert!(reason.help().ends_with('.'), "{reason:?}");
        }
        let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
