//! A call on a socket that names an address: what it asks for, and how it is changed. The only file
//! that touches the context of such a call.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{
        bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval,
    },
    programs::SockAddrContext,
};
use lb_common::{
    frontend::Endpoint,
    net::{Addr, Port},
};

use crate::maps::setting;

/// The kernel goes on with the call. Programs that only show an address may say nothing else.
pub const ALLOW: i32 = 1;
const DENY: i32 = 0;

/// Of linux errno.h.
const CONNECTION_REFUSED: i32 = 111;

/// A call of one family: that of the address, not of the socket.
pub struct Call<const V6: bool> {
    pub ctx: SockAddrContext,
}

impl Call<false> {
    #[inline(always)]
    pub fn v4(ctx: SockAddrContext) -> Self {
        Self { ctx }
    }
}

impl Call<true> {
    #[inline(always)]
    pub fn v6(ctx: SockAddrContext) -> Self {
        Self { ctx }
    }
}

/// Where a field of the context is. Fields are read and written each by its own width and offset, as
/// the verifier wants it.
macro_rules! place {
    ($call:ident, $field:ident $([$index:literal])?) => {
        // SAFETY: the context is the one that the kernel passed.
        unsafe { &raw mut (*$call.ctx.sock_addr).$field $([$index])? }
    };
}

/// A field of the context.
#[inline(always)]
fn load(place: *mut u32) -> u32 {
    // SAFETY: a field of the context.
    unsafe { place.read_volatile() }
}

#[inline(always)]
fn store(place: *mut u32, value: u32) {
    // SAFETY: a field of the context.
    unsafe { place.write_volatile(value) };
}

impl<const V6: bool> Call<V6> {
    /// The address and port that the call names, and the socket's protocol.
    #[inline(always)]
    pub fn endpoint(&self) -> Endpoint {
        let port = Port::from_wire(load(place!(self, user_port)) as u16);
        Endpoint::new(self.addr(), port, load(place!(self, protocol)) as u8)
    }

    #[inline(always)]
    fn addr(&self) -> Addr {
        if !V6 {
            return Addr::from_v4_word(load(place!(self, user_ip4)));
        }
        let half = |low: u32, high: u32| (high as u64) << 32 | low as u64;
        let words = [
            load(place!(self, user_ip6[0])),
            load(place!(self, user_ip6[1])),
            load(place!(self, user_ip6[2])),
            load(place!(self, user_ip6[3])),
        ];
        Addr::from_halves([half(words[0], words[1]), half(words[2], words[3])])
    }

    /// Whether the address can stand in this call.
    #[inline(always)]
    pub fn takes(&self, addr: &Addr) -> bool {
        V6 || addr.is_v4()
    }

    /// Puts another address and port into the call, one that it [takes](Self::takes).
    #[inline(always)]
    pub fn set(&self, to: &Endpoint) {
        store(place!(self, user_port), to.port.wire().into());
        if !V6 {
            store(place!(self, user_ip4), to.addr.v4_word());
            return;
        }
        let [first, second] = to.addr.halves();
        store(place!(self, user_ip6[0]), first as u32);
        store(place!(self, user_ip6[1]), (first >> 32) as u32);
        store(place!(self, user_ip6[2]), second as u32);
        store(place!(self, user_ip6[3]), (second >> 32) as u32);
    }

    /// The socket's name.
    #[inline(always)]
    pub fn cookie(&self) -> u64 {
        // SAFETY: the context is the one that the kernel passed.
        unsafe { bpf_get_socket_cookie(self.ctx.sock_addr.cast()) }
    }

    /// The name of the socket's network namespace: a pod's own, or the node's.
    #[inline(always)]
    pub fn namespace(&self) -> u64 {
        // SAFETY: the context is the one that the kernel passed.
        unsafe { bpf_get_netns_cookie(self.ctx.sock_addr.cast()) }
    }

    /// What the program returns so that the call fails at once: ECONNREFUSED, or EPERM where the kernel
    /// lets no program choose (before Linux 6.1).
    #[inline(always)]
    pub fn refuse(&self) -> i32 {
        // A constant to the verifier, which does not look at what follows where it is 0.
        if setting::names_errors() != 0 {
            // SAFETY: no pointers.
            unsafe { bpf_set_retval(-CONNECTION_REFUSED) };
        }
        DENY
    }
}

#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: no arguments.
    unsafe { bpf_get_prandom_u32() }
}

const _: () = assert!(size_of::<bpf_sock_addr>() == 72);
