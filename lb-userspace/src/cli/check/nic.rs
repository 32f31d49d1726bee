//! What a network device says of itself, by ethtool's ioctl. Reads only.

use std::{io, os::fd::AsRawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// linux/sockios.h.
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// linux/ethtool.h: the command.
const ETHTOOL_GFLAGS: u32 = 0x25;
/// linux/ethtool.h: flag of ETHTOOL_GFLAGS, tags are taken off on reception.
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// `struct ethtool_value`.
#[repr(C)]
struct Flags {
    command: u32,
    data: u32,
}

/// Whether the device takes VLAN tags off before XDP sees them.
pub fn strips_vlan(interface: &str) -> io::Result<bool> {
    let mut flags = Flags { command: ETHTOOL_GFLAGS, data: 0 };
    ethtool(interface, &mut flags)?;
    Ok(flags.data & ETH_FLAG_RXVLAN != 0)
}

/// `T` is the struct that the command in its first word asks for.
fn ethtool<T>(interface: &str, request: &mut T) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    if interface.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    let data = std::ptr::from_mut(request).cast();
    let mut ifreq =
        libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: data } };
    // SAFETY: ifreq names the interface, and its data is the struct of the command, which outlives
    // the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &mut ifreq) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        assert!(strips_vlan("weir-absent").is_err());
        assert_eq!(
            strips_vlan("a-name-that-is-too-long").unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
