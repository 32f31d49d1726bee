//! This node's interfaces, in plain types.

use std::{collections::BTreeMap, io, net::IpAddr, os::fd::AsRawFd};

use socket2::{Domain, Socket, Type};

/// All interfaces by index.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Interfaces(BTreeMap<u32, Link>);

#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    /// None where the interface has no Ethernet address.
    pub mac: Option<[u8; 6]>,
    pub mtu: u32,
    /// Administratively up, with carrier.
    pub up: bool,
    /// Id of the XDP program that sits there.
    pub xdp_program: Option<u32>,
    pub subnets: Vec<Subnet>,
}

/// An address of this node and the length of its on-link prefix.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, serde::Serialize)]
pub struct Subnet {
    pub address: IpAddr,
    pub prefix: u8,
}

impl Interfaces {
    pub fn new(links: impl IntoIterator<Item = Link>) -> Self {
        Self(links.into_iter().map(|link| (link.ifindex, link)).collect())
    }

    pub fn by_index(&self, ifindex: u32) -> Option<&Link> {
        self.0.get(&ifindex)
    }

    pub fn by_name(&self, name: &str) -> Option<&Link> {
        self.0.values().find(|link| link.name == name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.0.values()
    }
}

impl Subnet {
    /// Whether `address` lies in it.
    pub fn holds(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let shift = 32 - u32::from(self.prefix.min(32));
                u64::from(own.to_bits()) >> shift == u64::from(other.to_bits()) >> shift
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differing = own.to_bits() ^ other.to_bits();
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            _ => false,
        }
    }
}

/// `struct ethtool_drvinfo` of linux/ethtool.h.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rom: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

/// ETHTOOL_GDRVINFO of linux/ethtool.h.
const GET_DRIVER: u32 = 3;

/// Name of the driver of an interface, such as `mlx5_core`.
///
/// # Errors
/// The interface is not there, or has no driver that tells its name (ENOTSUP: loopback).
pub fn driver(interface: &str) -> io::Result<String> {
    let mut info = DriverInfo {
        command: GET_DRIVER,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        rom: [0; 32],
        reserved: [0; 12],
        counts: [0; 5],
    };
    let mut request = libc::ifreq {
        ifr_name: interface_name(interface)?,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut info).cast() },
    };
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // SAFETY: the request names `info`, which is the struct that this command fills; both outlive
    // the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let name = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// A name as the kernel takes it: at most 15 bytes and a zero.
fn interface_name(name: &str) -> io::Result<[libc::c_char; libc::IFNAMSIZ]> {
    if name.len() >= libc::IFNAMSIZ || name.contains('\0') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is no interface name"),
        ));
    }
    let mut bytes = [0; libc::IFNAMSIZ];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(subnet: &str, prefix: u8, address: &str) -> bool {
        Subnet { address: subnet.parse().unwrap(), prefix }.holds(address.parse().unwrap())
    }

    #[test]
    fn subnets_hold_their_addresses_and_no_others() {
        assert!(holds("192.0.2.7", 24, "192.0.2.250") && !holds("192.0.2.7", 24, "192.0.3.7"));
        assert!(holds("192.0.2.7", 32, "192.0.2.7") && !holds("192.0.2.7", 32, "192.0.2.6"));
        assert!(holds("192.0.2.7", 0, "10.0.0.1"));
        assert!(
            holds("2001:db8::1", 64, "2001:db8::ffff")
                && !holds("2001:db8::1", 64, "2001:db8:0:1::1")
        );
        assert!(holds("2001:db8::1", 128, "2001:db8::1") && holds("2001:db8::1", 0, "::1"));
        assert!(!holds("192.0.2.7", 0, "::1"), "families differ");
    }

    #[test]
    fn names_that_the_kernel_cannot_hold_are_refused() {
        assert!(driver("an-interface-name-too-long").is_err());
        assert!(driver("").is_err());
    }
}
