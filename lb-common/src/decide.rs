//! Decisions about arrivals, pure: what a segment does to what is known of its flow.
//!
//! The BPF programs, the simulation and the tests call these; none of them touches a map or a
//! clock.

use crate::arrival::{Arrival, Tick, flags};

/// TCP flags as in byte 13 of the header (RFC 9293 3.1).
pub mod tcp {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 1 << 1;
    pub const RST: u8 = 1 << 2;
    pub const ACK: u8 = 1 << 4;
}

/// Largest window that TCP can open (RFC 7323 2.3): 65,535 << 14.
const MAX_WINDOW: u32 = 65_535 << 14;

/// An established flow that was silent for this long does not make a SYN through another VIP a
/// clash, in ns.
pub const CLASH_IDLE: u64 = 60_000_000_000;

/// How far behind the end of what the backend sent a client's last segments may be: it had more under way
/// than any common window holds. The wider, the likelier a new connection's are taken for them (0.1 %).
const LAST_BEHIND: u32 = 1 << 22;

/// Most that a segment with FIN ends behind its sequence number: its data, and the FIN.
const LAST_LENGTH: u32 = 1 << 16;

/// What the header of one TCP segment says.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
}

impl Segment {
    #[inline(always)]
    pub const fn is(&self, mask: u8, value: u8) -> bool {
        self.flags & mask == value
    }

    /// A SYN that opens: without ACK and RST.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.is(tcp::SYN | tcp::ACK | tcp::RST, tcp::SYN)
    }

    #[inline(always)]
    pub const fn resets(&self) -> bool {
        self.flags & tcp::RST != 0
    }

    /// A SYN-ACK.
    #[inline(always)]
    pub const fn accepts(&self) -> bool {
        self.is(tcp::SYN | tcp::ACK | tcp::RST, tcp::SYN | tcp::ACK)
    }
}

/// The arrival that a client's segment makes in `OPENING`.
#[inline(always)]
pub const fn opening(service: u32, segment: &Segment, now: Tick) -> Arrival {
    Arrival::from_words([service, segment.seq, 0, Arrival::pack(0, now)])
}

/// Whether this client's segment shows that the client heard the backend: then the opening is
/// promoted to `ESTABLISHED`. One rule for handshakes, syncookies, fast open, retransmits,
/// eviction and lost maps.
#[inline(always)]
pub const fn promotes(arrival: &Arrival, segment: &Segment) -> bool {
    segment.is(tcp::SYN | tcp::ACK | tcp::RST, tcp::ACK)
        && arrival.flags() & flags::BACKEND_SPOKE != 0
        && segment.ack.wrapping_sub(arrival.backend_seq) <= MAX_WINDOW
}

/// Whether an established arrival counts to a client's segment for `service`. Of one that both sides have
/// closed, only what still acknowledges that backend does: the port may be in use again, by another
/// backend, before the arrival has aged.
#[inline(always)]
pub const fn established_counts(arrival: &Arrival, service: u32, segment: &Segment) -> bool {
    arrival.service == service && (!ages_fast(arrival.flags()) || is_last(arrival, segment))
}

/// Whether a segment is one of the last of a closed connection.
#[inline(always)]
const fn is_last(closed: &Arrival, segment: &Segment) -> bool {
    let heard = segment.ack.wrapping_sub(closed.backend_seq).wrapping_add(LAST_BEHIND);
    !segment.opens() && (segment.resets() || heard <= LAST_BEHIND + LAST_LENGTH)
}

/// Whether an opening counts: to a SYN, or to a segment that promotes it. What a stray made is no
/// sign of a connection.
#[inline(always)]
pub const fn opening_counts(arrival: &Arrival, service: u32, segment: &Segment) -> bool {
    arrival.service == service && (segment.opens() || promotes(arrival, segment))
}

/// Whether a SYN for `service` meets an active connection of the same client tuple through
/// another one.
#[inline(always)]
pub const fn clashes(established: &Arrival, service: u32, now: Tick) -> bool {
    established.service != service
        && !ages_fast(established.flags())
        && now.since(established.last_seen()) < CLASH_IDLE
}

/// Both sides have closed, or the backend has reset: the arrival may go soon.
#[inline(always)]
pub const fn ages_fast(arrival_flags: u32) -> bool {
    const FINS: u32 = flags::CLIENT_FIN | flags::BACKEND_FIN;
    arrival_flags & FINS == FINS || arrival_flags & flags::BACKEND_RST != 0
}

/// `Arrival::seen` after a segment from the client.
#[inline(always)]
pub const fn seen_from_client(arrival: &Arrival, segment: &Segment, now: Tick) -> u32 {
    let mut set = arrival.flags();
    if segment.flags & tcp::FIN != 0 {
        set |= flags::CLIENT_FIN;
    }
    Arrival::pack(set, now)
}

/// `Arrival::seen` after a segment from the backend. Its RST ages the arrival; any later segment
/// of it undoes that.
#[inline(always)]
pub const fn seen_from_backend(arrival: &Arrival, segment: &Segment, now: Tick) -> u32 {
    let mut set = arrival.flags() & !flags::BACKEND_RST;
    if segment.flags & tcp::FIN != 0 {
        set |= flags::BACKEND_FIN;
    }
    if segment.resets() {
        set |= flags::BACKEND_RST;
    }
    Arrival::pack(set, now)
}

/// Notes in an established arrival what the backend sends; of its last segment also where that is, by which
/// [`established_counts`] knows the client's last ones.
#[inline(always)]
pub const fn answered(arrival: &Arrival, segment: &Segment, now: Tick) -> Arrival {
    let backend_seq = match segment.flags & (tcp::FIN | tcp::RST) {
        0 => arrival.backend_seq,
        _ => segment.seq,
    };
    Arrival { backend_seq, seen: seen_from_backend(arrival, segment, now), ..*arrival }
}

/// Notes in an opening what the backend sends. An RST is no sign of a connection: it is what a
/// stray gets.
#[inline(always)]
pub const fn noted(arrival: &Arrival, segment: &Segment, now: Tick) -> Arrival {
    if segment.resets() {
        return *arrival;
    }
    let syn = (segment.flags & tcp::SYN != 0) as u32;
    Arrival {
        backend_seq: segment.seq.wrapping_add(syn),
        seen: seen_from_backend(arrival, segment, now) | flags::BACKEND_SPOKE,
        ..*arrival
    }
}

/// Whether a SYN-ACK answers the SYN of this opening.
#[inline(always)]
pub const fn answers(arrival: &Arrival, segment: &Segment) -> bool {
    segment.ack.wrapping_sub(arrival.client_seq) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Tick = Tick(100);

    fn segment(flags: u8, seq: u32, ack: u32) -> Segment {
        Segment { flags, seq, ack }
    }

    fn answered_opening() -> Arrival {
        let syn = segment(tcp::SYN, 1000, 0);
        noted(&opening(7, &syn, NOW), &segment(tcp::SYN | tcp::ACK, u32::MAX, 1001), NOW)
    }

    #[test]
    fn handshake_promotes_across_the_wrap_of_the_sequence() {
        let arrival = answered_opening();
        assert_eq!(arrival.backend_seq, 0);
        assert!(promotes(&arrival, &segment(tcp::ACK, 1001, 0)));
        assert!(promotes(&arrival, &segment(tcp::ACK | tcp::FIN, 1001, 5000)));
    }

    #[test]
    fn what_the_client_cannot_have_heard_promotes_nothing() {
        let arrival = answered_opening();
        assert!(!promotes(&arrival, &segment(tcp::ACK, 1001, u32::MAX)), "before");
        assert!(!promotes(&arrival, &segment(tcp::ACK, 1001, MAX_WINDOW + 1)), "beyond");
        assert!(!promotes(&arrival, &segment(tcp::ACK | tcp::RST, 1001, 0)), "reset");
        assert!(!promotes(&arrival, &segment(tcp::ACK | tcp::SYN, 1001, 0)), "syn-ack");
        let silent = opening(7, &segment(tcp::SYN, 1000, 0), NOW);
        assert!(!promotes(&silent, &segment(tcp::ACK, 1001, 0)), "backend silent");
    }

    #[test]
    fn established_counts_for_its_service_and_not_to_a_syn_once_both_sides_closed() {
        let active = Arrival { service: 7, seen: Arrival::pack(0, NOW), ..Default::default() };
        let closed = Arrival { seen: Arrival::pack(flags::BACKEND_RST, NOW), ..active };
        let (syn, ack) = (segment(tcp::SYN, 1, 0), segment(tcp::ACK, 1, 9));
        assert!(established_counts(&active, 7, &ack) && established_counts(&active, 7, &syn));
        assert!(!established_counts(&active, 8, &ack) && !established_counts(&active, 8, &syn));
        assert!(established_counts(&closed, 7, &ack), "the last segments");
        assert!(!established_counts(&closed, 7, &syn), "a new connection");
    }

    #[test]
    fn closed_arrival_counts_to_the_last_segments_and_not_to_a_later_connection_of_the_port() {
        let seen = Arrival::pack(flags::CLIENT_FIN, NOW);
        let closing = Arrival { service: 7, backend_seq: 1, seen, ..Default::default() };
        let end = u32::MAX - 10;
        for last in [tcp::FIN | tcp::ACK, tcp::RST] {
            let closed = answered(&closing, &segment(last, end, 0), NOW);
            assert!(ages_fast(closed.flags()));
            let counts = |flags, ack| established_counts(&closed, 7, &segment(flags, 1, ack));
            assert!(counts(tcp::ACK, end.wrapping_add(1)), "of the FIN");
            assert!(counts(tcp::ACK, end.wrapping_add(LAST_LENGTH)), "with data");
            assert!(counts(tcp::FIN | tcp::ACK, end - LAST_BEHIND), "sent before it was heard");
            assert!(counts(tcp::RST, 0));
            assert!(!counts(tcp::ACK, end.wrapping_add(LAST_LENGTH + 1)), "of another");
            assert!(!counts(tcp::ACK, end - LAST_BEHIND - 1), "of another");
        }
        let open = answered(&closing, &segment(tcp::ACK, end, 0), NOW);
        assert!(established_counts(&open, 7, &segment(tcp::ACK, 1, 77)), "not closed");
    }

    #[test]
    fn opening_counts_to_a_syn_and_to_who_heard_the_backend() {
        let arrival = answered_opening();
        assert!(opening_counts(&arrival, 7, &segment(tcp::SYN, 1000, 0)), "sent again");
        assert!(opening_counts(&arrival, 7, &segment(tcp::SYN, 5, 0)), "another one");
        assert!(opening_counts(&arrival, 7, &segment(tcp::ACK, 1001, 0)));
        assert!(!opening_counts(&arrival, 8, &segment(tcp::ACK, 1001, 0)), "another service");
        assert!(!opening_counts(&arrival, 7, &segment(tcp::ACK, 1001, u32::MAX)), "a guess");
        let stray = opening(7, &segment(tcp::ACK, 1, 77), NOW);
        assert!(!opening_counts(&stray, 7, &segment(tcp::ACK, 1, 77)), "the backend was silent");
    }

    #[test]
    fn a_backends_reset_is_not_noted_as_an_answer() {
        let stray = opening(7, &segment(tcp::ACK, 1, 77), NOW);
        let noted = noted(&stray, &segment(tcp::RST, 77, 0), NOW);
        assert_eq!(noted, stray);
    }

    #[test]
    fn syn_ack_must_acknowledge_the_syn() {
        let arrival = opening(7, &segment(tcp::SYN, u32::MAX, 0), NOW);
        assert!(answers(&arrival, &segment(tcp::SYN | tcp::ACK, 5, 0)));
        assert!(!answers(&arrival, &segment(tcp::SYN | tcp::ACK, 5, 1)));
    }

    #[test]
    fn clash_needs_another_service_and_an_active_flow() {
        let active = Arrival { service: 7, seen: Arrival::pack(0, NOW), ..Default::default() };
        assert!(clashes(&active, 8, NOW));
        assert!(!clashes(&active, 7, NOW), "same service");
        let later = Tick(NOW.0 + (CLASH_IDLE >> 28) as u32 + 1);
        assert!(!clashes(&active, 8, later), "idle");
        let closed =
            Arrival { seen: Arrival::pack(flags::CLIENT_FIN | flags::BACKEND_FIN, NOW), ..active };
        assert!(!clashes(&closed, 8, NOW), "closed");
    }

    #[test]
    fn a_later_segment_undoes_the_reset() {
        let active = Arrival { service: 7, seen: Arrival::pack(0, NOW), ..Default::default() };
        let reset =
            Arrival { seen: seen_from_backend(&active, &segment(tcp::RST, 0, 0), NOW), ..active };
        assert!(ages_fast(reset.flags()));
        let spoken = seen_from_backend(&reset, &segment(tcp::ACK, 0, 0), NOW);
        assert!(!ages_fast(spoken & 0xff));
    }

    #[test]
    fn fins_of_both_sides_age_the_arrival() {
        let active = Arrival::default();
        let fin = segment(tcp::FIN | tcp::ACK, 0, 0);
        let half = Arrival { seen: seen_from_client(&active, &fin, NOW), ..active };
        assert!(!ages_fast(half.flags()));
        assert!(ages_fast(seen_from_backend(&half, &fin, NOW) & 0xff));
    }
}
