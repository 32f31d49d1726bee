//! In what the frames of a flood differ: the client. The bench's user side includes this file, so that both sides have one
//! definition.

use lb_common::bytemuck;

/// Where fields stand in a frame of Ethernet and IPv4 without options.
pub const IP_CHECK_AT: u32 = 24;
pub const SOURCE_AT: u32 = 26;
pub const PORT_AT: u32 = 34;
pub const SEQ_AT: u32 = 38;
pub const ACK_AT: u32 = 42;
pub const UDP_CHECK_AT: u32 = 40;
pub const TCP_CHECK_AT: u32 = 50;

/// Clients are of 198.18.0.0/15, which is for benchmarks (RFC 2544 C.2.2).
pub const SOURCES: u32 = 0xc612_0000;
const SOURCE_BITS: u32 = 17;

/// Words of 64 bits in a frame: the shortest that Ethernet has.
pub const WORDS: usize = 8;

/// What the flood's frames have in common, with source address, source port, sequence and acknowledgement number zero.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[bytemuck(crate = "lb_common::bytemuck")]
pub struct Flood {
    /// Frames are used again after others have changed them, so all of it is written each time.
    pub words: [u64; WORDS],
    /// Sums of what the IP header's and the other checksum are of.
    pub ip_sum: u32,
    pub l4_sum: u32,
    /// 1: TCP, else UDP.
    pub tcp: u32,
    /// 1: segments acknowledge something.
    pub acks: u32,
}

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
        let source = SOURCES | random[0] & ((1 << SOURCE_BITS) - 1);
        let port = (random[0] >> 16) as u16 | 1024;
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
