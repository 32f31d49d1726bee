//! Program entries: run the stage, count, translate to an action. Nothing else.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_ebpf::{
    egress, forward,
    frame::{self, Frame, Skb},
    maps,
};

/// On each uplink.
#[xdp(frags)]
pub fn weir_ingress(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let bytes = frame.view().len();
    let fate = forward::ingress(&mut frame);
    if let Some(reason) = fate.reason() {
        maps::count(reason, bytes);
    }
    fate.act(frame::redirect)
}

/// On each device by which the host routes to clients. Always "next": whoever else sits there
/// must see the packet (tcx calls it NEXT, clsact goes on to the next filter).
#[classifier]
pub fn weir_egress(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    let bytes = skb.len();
    if let Some(reason) = egress::egress(&mut skb) {
        maps::count(reason as u32, bytes);
    }
    TC_ACT_UNSPEC
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers called are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
