//! A small data centre made of network namespaces, for tests and for the demo: real kernels' IP stacks, real frames.
//!
//! ```text
//!   client-1        client-2              clients: 10.2.K.2, fd00:2:K::2, each on a link of its own
//!       │               │
//!       └─── router ────┘                 10.0.0.1, fd00::1 towards the switch; forwards, knows every pod's way
//!              │ eth0
//!   ═══════════╪═══ switch ═══╪══════     a bridge; its ports are named after who is plugged in
//!              │              │           VIPs are taken from here: 10.0.0.100 …, fd00::100 …
//!         eth0 │         eth0 │           node N: 10.0.0.(10+N), fd00::(10+N)
//!           node-1         node-2         forward between switch and pods; run agents
//!            │   │            │
//!   node-1-pod-1 node-1-pod-2 node-2-pod-1      pod J of node N: 10.1.N.J, fd00:1:N::J, all by the node
//! ```
//!
//! (Decimal digits are written alike in both families: 10.0.0.12 goes with fd00::12.) The router resolves a VIP on the
//! switch by ARP and NDP, like any address there, unless it was told to spread a VIP over nodes ([`Lab::spread`]).
//!
//! - Every host is a [`Namespace`]: nothing has a name that another lab could take, and the kernel takes everything back
//!   when the process ends, however it ends. Labs run in parallel.
//! - The uplinks (`eth0` of nodes and router) and the switch's ports finish checksums and segments in software, so that a
//!   frame on the switch is at most 1514 bytes and a real receiver checks every checksum. Pods and clients keep the
//!   kernel's defaults: they send 64 kB segments with partial checksums.
//! - Each node's switch port holds an XDP program that passes everything ([`Gate`]); without one the veth would lose what
//!   the node sends by XDP_TX. As a side effect the kernel coalesces TCP segments there (GRO) and cuts them again when the
//!   frames leave the switch; frames with a wrong checksum are never coalesced, so they arrive as they were sent.
//!
//! To look around in a lab whose test failed: run the one test with `WEIR_LAB_HOLD=1`; the lab prints how to enter each
//! host and waits.

mod capture;
mod cgroup;
mod device;
mod host;
mod namespace;
mod netlink;
mod topology;
mod wait;

pub use capture::{Capture, Frame};
pub use device::{
    GENERIC_SEGMENTATION, Gate, Offload, TCP_SEGMENTATION, TX_CHECKSUM, UNFINISHED_FRAMES, Verdict,
    offload_is_on,
};
pub use host::{Forwarding, Host, Process};
pub use namespace::Namespace;
pub use netlink::{Netlink, Prefix, default_route, host_route, index};
pub use netlink_packet_route::link::XdpAttached;
pub use topology::{Lab, LabBuilder, Node, UPLINK};
pub use wait::eventually;
