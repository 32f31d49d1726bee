//! What a wrapper makes of the packet before each run. The bench's user side includes this file, so
//! that both sides have one definition.

use lb_common::bytemuck;

/// Bytes that a wrapper can restore; frames are at least as long.
pub const TEMPLATE: usize = 192;

/// Ports that the flows of one address use.
pub const PORT_BITS: u32 = 15;
pub const FIRST_PORT: u32 = 1024;
/// The last four bytes of the first client's address.
pub const FIRST_ADDRESS: u32 = 0xc633_6401;

/// The only value of `TEMPLATES`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[bytemuck(crate = "lb_common::bytemuck")]
pub struct Template {
    pub words: [u64; TEMPLATE / 8],
    /// Words to restore.
    pub restored: u32,
    /// Length of the frame.
    pub length: u32,
    /// Where the last four bytes of the client's address and the client's port stand.
    pub address_at: u32,
    pub port_at: u32,
    /// Flows to choose from, at random.
    pub flows: u32,
    pub pad: u32,
    /// State of the generator, never 0.
    pub random: u64,
}

/// The client of a flow: the last four bytes of its address, and its port.
#[inline(always)]
pub const fn client(flow: u32) -> (u32, u16) {
    (FIRST_ADDRESS + (flow >> PORT_BITS), (FIRST_PORT + (flow & ((1 << PORT_BITS) - 1))) as u16)
}
