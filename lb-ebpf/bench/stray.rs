//! In what the frames of a flood differ: the client. The bench's user side includes this file, so that both sides have one
//! definition.

use lb_common::bytemuck;

/// Words of 64 bits in a template: the longest, a SYN of IPv6.
pub const WORDS: usize = 10;

/// A frame of Ethernet and IP without options or extensions, with the fields that differ zero, and where these stand.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[bytemuck(crate = "lb_common::bytemuck")]
pub struct Flood {
    /// Frames are used again after others have changed them, so all of it is written each time.
    pub words: [u64; WORDS],
    /// 32 bits of the source address, at an even offset: these, and any in the mask.
    pub source: u32,
    pub mask: u32,
    pub source_at: u32,
    /// Of the IPv4 header's checksum; 0: IPv6, which has none.
    pub ip_check_at: u32,
    /// Where TCP or UDP begins, with the source port.
    pub l4_at: u32,
    pub l4_check_at: u32,
    /// Sums of what the IP header's and the other checksum are of.
    pub ip_sum: u32,
    pub l4_sum: u32,
    /// 1: TCP, else UDP.
    pub tcp: u32,
    /// 1: segments acknowledge something.
    pub acks: u32,
}

/// From the begin of TCP.
pub const SEQ: u32 = 4;
pub const ACK: u32 = 8;

/// Fields of one frame, in host order.
pub struct Stray {
    pub source: u32,
    pub port: u16,
    pub seq: u32,
    pub ack: u32,
    pub ip_check: u16,
    pub l4_check: u16,
}

impl Flood {
    /// A client that nobody has heard of.
    #[inline(always)]
    pub fn stray(&self, random: [u32; 3]) -> Stray {
        let source = self.source | random[0] & self.mask;
        // Independent of the bits of short masks.
        let port = (random[1] >> 16 ^ random[0] >> 16) as u16 | 1024;
        let (seq, ack) = match (self.tcp, self.acks) {
            (1, 1) => (random[1], random[2]),
            (1, _) => (random[1], 0),
            _ => (0, 0),
        };
        let address = halves(source);
        let l4 = self.l4_sum + address + port as u32 + halves(seq) + halves(ack);
        let l4_check = match (self.tcp, folded(l4)) {
            // 0 would say that there is no checksum (RFC 768).
            (0, 0) => 0xffff,
            (_, check) => check,
        };
        Stray { source, port, seq, ack, ip_check: folded(self.ip_sum + address), l4_check }
    }
}

#[inline(always)]
const fn halves(word: u32) -> u32 {
    (word >> 16) + (word & 0xffff)
}

/// The checksum of a sum of at most 2^16 words (RFC 1071).
#[inline(always)]
const fn folded(sum: u32) -> u16 {
    !(halves(halves(sum)) as u16)
}
