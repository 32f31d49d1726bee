//! The stages of weir's packet path and what they share. The program entries are in `main.rs`.
//!
//! `forward` decides where a client's packet goes, `receive` takes it on the backend's node,
//! `egress` puts the VIP back; `connect` is the way in for processes on this node. Parts return a [`verdict::Verdict`] or a reason; only the entries
//! know XDP and tc. Pointers into packets are dereferenced in `frame`, what a call on
//! a socket says in `socket`, map values in `maps`.
#![no_std]
#![feature(asm_experimental_arch)]

pub mod chain;
pub mod connect;
pub mod echo;
pub mod egress;
pub mod forward;
pub mod frame;
pub mod headers;
pub mod icmp;
pub mod maps;
pub mod neighbour;
pub mod parse;
pub mod probe;
pub mod receive;
pub mod refuse;
pub mod rewrite;
pub mod socket;
pub mod tunnel;
pub mod verdict;
