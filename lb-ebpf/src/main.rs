//! Program entries: run the stage, count, translate to an action. Nothing else.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use lb_ebpf::{
    connect, egress, forward,
    frame::{self, Frame, Skb},
    maps,
    socket::Call,
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

/// For sockets of processes in a cgroup: one program for each call and family.
macro_rules! on_sockets {
    ($($hook:ident $name:ident: $stage:ident($family:ident);)+) => {$(
        #[cgroup_sock_addr($hook)]
        pub fn $name(ctx: SockAddrContext) -> i32 {
            connect::$stage(&Call::$family(ctx))
        }
    )+};
}

on_sockets! {
    connect4 weir_connect4: connect(v4);
    connect6 weir_connect6: connect(v6);
    sendmsg4 weir_sendmsg4: send(v4);
    sendmsg6 weir_sendmsg6: send(v6);
    recvmsg4 weir_recvmsg4: receive(v4);
    recvmsg6 weir_recvmsg6: receive(v6);
    getpeername4 weir_getpeername4: name(v4);
    getpeername6 weir_getpeername6: name(v6);
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers called are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
