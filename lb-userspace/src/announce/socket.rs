//! Packet sockets: whole frames in and out, past the kernel's neighbour tables. Never promiscuous, and
//! never for all protocols: such a socket would cost every packet that leaves the host a copy.

use std::{io, os::fd::AsRawFd};

use nix::sys::socket::{LinkAddr, SockaddrLike, recvfrom};
use socket2::{Domain, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;

use super::frames::Claim;

/// Longer than any ARP packet or advertisement that is read.
const BUFFER: usize = 256;

/// Frames read before anything else gets its turn.
const BATCH: usize = 256;

/// Sends frames; hears nothing.
pub struct Sender(Socket);

impl Sender {
    /// # Errors
    /// The process lacks CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        Ok(Self(Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None)?))
    }

    /// Sends a whole frame on an interface.
    ///
    /// # Errors
    /// The interface is down or gone, or its queue is full.
    pub fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let address = address(0, ifindex)?;
        // SAFETY: frame and address outlive the call, and both lengths are theirs.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Hears ARP and neighbour advertisements on all interfaces.
pub struct Listener {
    arp: AsyncFd<Socket>,
    discovery: AsyncFd<Socket>,
}

impl Listener {
    /// # Errors
    /// The process lacks CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        let advertisements = [
            load_byte(14 + 6),
            unless_equal(u32::from(lb_common::net::proto::ICMPV6), 3),
            load_byte(14 + 40),
            unless_equal(u32::from(lb_common::wire::icmp::v6::ADVERTISEMENT), 1),
            give(BUFFER as u32),
            give(0),
        ];
        Ok(Self {
            arp: listen(libc::ETH_P_ARP, &[give(BUFFER as u32)])?,
            discovery: listen(libc::ETH_P_IPV6, &advertisements)?,
        })
    }

    /// Waits for frames and returns what they claim, with the interface that they came by.
    ///
    /// # Errors
    /// A socket cannot be read.
    pub async fn hear(&self) -> io::Result<Vec<(u32, Claim)>> {
        let (mut ready, socket) = tokio::select! {
            ready = self.arp.readable() => (ready?, &self.arp),
            ready = self.discovery.readable() => (ready?, &self.discovery),
        };
        let (mut heard, mut buffer) = (Vec::new(), [0; BUFFER]);
        for _ in 0..BATCH {
            match recvfrom::<LinkAddr>(socket.get_ref().as_raw_fd(), &mut buffer) {
                Ok((length, from)) => {
                    let ifindex = from.filter(|it| it.family().is_some()).map(|it| it.ifindex());
                    let claim = buffer.get(..length).and_then(Claim::read);
                    heard.extend(ifindex.and_then(|at| u32::try_from(at).ok()).zip(claim));
                }
                Err(nix::Error::EAGAIN) => {
                    ready.clear_ready();
                    break;
                }
                // The interface went down: told once, and the socket hears on when it is back.
                Err(nix::Error::ENETDOWN | nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(heard)
    }
}

/// The filter is there before the first frame is.
fn listen(protocol: libc::c_int, filter: &[SockFilter]) -> io::Result<AsyncFd<Socket>> {
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None)?;
    socket.attach_filter(filter)?;
    let address = address(protocol as u16, 0)?;
    // SAFETY: the address outlives the call, and its length is given.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the socket owns its descriptor and always gives the same one.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// Protocol 0: none; interface 0: all.
fn address(protocol: u16, ifindex: u32) -> io::Result<libc::sockaddr_ll> {
    Ok(libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: i32::try_from(ifindex).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    })
}

/// Instructions of the classic filter language (linux/filter.h).
fn load_byte(at: u32) -> SockFilter {
    SockFilter::new((libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16, 0, 0, at)
}

/// Skips `over` instructions unless the byte is that one.
fn unless_equal(byte: u32, over: u8) -> SockFilter {
    SockFilter::new((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, over, byte)
}

/// Ends: so many bytes of the frame are given; 0: the frame is not.
fn give(bytes: u32) -> SockFilter {
    SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, bytes)
}
