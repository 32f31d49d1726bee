#![no_std]
#![no_main]

use aya_ebpf::bindings::{TC_ACT_PIPE, xdp_action};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

#[xdp]
pub fn ingress(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[classifier]
pub fn egress(_ctx: TcContext) -> i32 {
    TC_ACT_PIPE
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
