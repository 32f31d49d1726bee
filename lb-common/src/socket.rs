//! Sockets on this node that were connected, or that send, to a VIP.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

use crate::frontend::Endpoint;

/// Value of `SOCKETS`, which the kernel keeps with the socket: what its owner asked for, and what it
/// got; true of it only while `backend` is its peer. With a socket without a peer it says that the
/// socket did send to a VIP.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Pod, Zeroable)]
pub struct Peer {
    pub vip: Endpoint,
    pub backend: Endpoint,
}
const _: () = assert!(size_of::<Peer>() == 48);

/// Key of `CHOSEN` (with a VIP's endpoint) and of `ANSWERS` (with a backend's): one UDP socket, and one
/// of those that it talks with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Pod, Zeroable)]
pub struct SocketKey {
    /// The kernel's name for the socket, never used twice until the next boot.
    pub cookie: u64,
    pub endpoint: Endpoint,
}
const _: () = assert!(size_of::<SocketKey>() == 32);

map_types!(Peer, SocketKey);
