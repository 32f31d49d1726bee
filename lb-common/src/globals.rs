//! Load-time settings: read-only data of the BPF object, constants to the verifier.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

use crate::net::{Addr, Port};

/// The global `SETTINGS`, set before the programs are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Settings {
    /// Key of the flow hash, from the shared seed.
    pub flow_key: [u64; 2],
    /// First bytes of a hash of the shared seed: tells nodes of another seed apart.
    pub seed_tag: [u8; 8],
    /// This node's own tunnel addresses; unset where it has none of the family.
    pub own_v4: Addr,
    pub own_v6: Addr,
    /// UDP port of the tunnel.
    pub tunnel_port: Port,
    pub reserved: [u8; 2],
    /// Geneve virtual network identifier, 24 bits.
    pub vni: u32,
    /// Age of the agent's heartbeat in ms beyond which others may take VIPs from this node.
    pub yield_after: u32,
    /// Not 0: arrivals are looked up in the maps of another layout too, which is being taken over from.
    pub takes_over: u32,
    /// Connections that one source prefix may open a second on this node; 0: no limit.
    pub new_flows: u32,
    /// Not 0: the kernel lets a program choose the error of a call that it refuses.
    pub names_errors: u32,
    /// What of a source's address is its prefix; of an IPv4 address the mapped form's.
    pub source_mask_v4: [u64; 2],
    pub source_mask_v6: [u64; 2],
}
const _: () = assert!(size_of::<Settings>() == 112);

/// The mask that leaves the first `bits` of an address, which are 128 at most.
pub const fn mask(bits: u32) -> [u64; 2] {
    [word_mask(bits), word_mask(bits.saturating_sub(64))]
}

/// Of one word, whose first bit on the wire is the highest of its lowest byte.
const fn word_mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (!(u64::MAX >> bits)).to_be() }
}

/// Name of the global in the BPF object.
pub const SETTINGS: &str = "SETTINGS";

/// Indices of `STATE`, an array of `u64` that changes at run time.
pub mod state {
    /// CLOCK_BOOTTIME in ns of the agent's last heartbeat; 0: no agent yet.
    pub const HEARTBEAT: u32 = 0;
    /// Two words that change with every boot of the node.
    pub const BOOT_ID: u32 = 1;
    pub const BOOT_ID_2: u32 = 2;
    /// Largest MSS that still fits the tunnel; 0: do not clamp.
    pub const MSS_V4: u32 = 3;
    pub const MSS_V6: u32 = 4;
    pub const ENTRIES: u32 = 8;
}

/// Tunnel port unless configured.
pub const DEFAULT_TUNNEL_PORT: u16 = 6084;
/// Geneve VNI unless configured.
pub const DEFAULT_VNI: u32 = 0x77_6569;

map_types!(Settings);

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    fn masked(addr: &str, bits: u32) -> IpAddr {
        let [first, second] = Addr::from(addr.parse::<IpAddr>().unwrap()).halves();
        let [high, low] = mask(bits);
        Addr::from_halves([first & high, second & low]).to_ip()
    }

    #[test]
    fn mask_leaves_the_first_bits() {
        for (addr, bits, prefix) in [
            ("2001:db8:1:2:3:4:5:6", 128, "2001:db8:1:2:3:4:5:6"),
            ("2001:db8:1:2:3:4:5:6", 64, "2001:db8:1:2::"),
            ("2001:db8:1:2fff::", 52, "2001:db8:1:2000::"),
            ("2001:db8:1:2:ffff::", 65, "2001:db8:1:2:8000::"),
            ("2001:db8::1", 0, "::"),
            ("198.51.100.7", 96 + 24, "198.51.100.0"),
            ("198.51.100.7", 96 + 32, "198.51.100.7"),
        ] {
            assert_eq!(masked(addr, bits), prefix.parse::<IpAddr>().unwrap(), "{addr}/{bits}");
        }
    }
}
