//! The sockets of membership: one a family and purpose, bound to the node's own addresses.
//!
//! Other nodes' data planes answer only to members, and agents speak from where they are configured. An
//! address that isn't there (yet) is tried again; meanwhile nobody hears us over it.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, TcpListener as StdListener},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

/// Receive buffer that holds a round of answers from as many nodes as there can be.
const RECEIVE_BUFFER: usize = 2 << 20;
/// Packets read before anything else gets its turn, so that a flood does not stop the rounds.
const RECEIVE_BATCH: usize = 1024;
/// Longer packets are none of ours: they are cut, and then refused.
const BUFFER: usize = 2048;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// IPv4, then IPv6.
const FAMILIES: [bool; 2] = [true, false];

/// What a socket is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// Probes of data planes, from any port; answers may come without UDP checksum.
    Probes,
    /// Agents' datagrams, at the port where agents listen.
    Gossip(u16),
}

/// A UDP socket for each family of the node's addresses.
pub struct Sockets {
    purpose: Purpose,
    families: [Family<UdpSocket>; 2],
}

/// A socket once its address can be bound.
struct Family<S> {
    address: Option<IpAddr>,
    socket: Option<S>,
    /// The failure to bind has been told.
    complained: bool,
}

impl<S> Default for Family<S> {
    fn default() -> Self {
        Self { address: None, socket: None, complained: false }
    }
}

impl<S> Family<S> {
    fn follow(&mut self, address: Option<IpAddr>) {
        if self.address != address {
            *self = Self { address, ..Self::default() };
        }
    }

    /// Binds if that is still to be done; true if it was done now.
    fn open(&mut self, what: &str, bind: impl FnOnce(IpAddr) -> io::Result<S>) -> bool {
        let (Some(address), None) = (self.address, &self.socket) else { return false };
        match bind(address) {
            Ok(socket) => {
                self.socket = Some(socket);
                self.complained = false;
                true
            }
            Err(error) => {
                if !self.complained {
                    tracing::error!(%address, %error, "no socket for {what} at this node's address");
                }
                self.complained = true;
                false
            }
        }
    }
}

/// The first address of each family.
fn by_family(addresses: &[IpAddr]) -> [Option<IpAddr>; 2] {
    FAMILIES.map(|v4| addresses.iter().copied().find(|address| address.is_ipv4() == v4))
}

impl Sockets {
    pub fn new(purpose: Purpose) -> Self {
        Self { purpose, families: [Family::default(), Family::default()] }
    }

    /// Speaks from these addresses from now on.
    pub fn follow(&mut self, own: &[IpAddr]) {
        let families = self.families.iter_mut().zip(by_family(own));
        families.for_each(|(family, address)| family.follow(address));
    }

    /// Binds what could not be bound yet.
    pub fn open(&mut self) {
        let (purpose, what) = (self.purpose, self.purpose.name());
        for family in &mut self.families {
            family.open(what, |address| bind(purpose, address));
        }
    }

    /// Returns when something may have arrived. An error shows again, and is handled, when reading.
    pub async fn readable(&self) {
        let [v4, v6] = &self.families;
        tokio::select! {
            () = readable(v4) => {}
            () = readable(v6) => {}
        }
    }

    /// What cannot be sent is lost, and whoever waits for it tries again.
    pub fn send(&self, to: SocketAddr, bytes: &[u8]) {
        if let Some(socket) = &self.families[usize::from(to.is_ipv6())].socket {
            let _ = socket.try_send_to(bytes, to);
        }
    }

    /// Reads what has arrived.
    pub fn receive(&self, mut take: impl FnMut(SocketAddr, &[u8])) {
        let mut buffer = [0; BUFFER];
        for socket in self.families.iter().filter_map(|family| family.socket.as_ref()) {
            for _ in 0..RECEIVE_BATCH {
                // Nothing left, or an error that is told once: either way the socket tells when
                // there is more.
                let Ok((length, from)) = socket.try_recv_from(&mut buffer) else { break };
                take(from, &buffer[..length]);
            }
        }
    }
}

async fn readable(family: &Family<UdpSocket>) {
    match &family.socket {
        Some(socket) => drop(socket.readable().await),
        None => std::future::pending().await,
    }
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Probes => "probes of other nodes",
            Self::Gossip(_) => "gossip",
        }
    }
}

fn bind(purpose: Purpose, address: IpAddr) -> io::Result<UdpSocket> {
    let socket = socket(address, Type::DGRAM, Protocol::UDP)?;
    let port = match purpose {
        Purpose::Gossip(port) => port,
        Purpose::Probes => {
            if address.is_ipv6() {
                set_udp_option(&socket, libc::UDP_NO_CHECK6_RX)?;
                set_udp_option(&socket, libc::UDP_NO_CHECK6_TX)?;
            }
            0
        }
    };
    SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&SocketAddr::new(address, port).into())?;
    UdpSocket::from_std(socket.into())
}

fn socket(address: IpAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, kind.nonblocking(), Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// Where streams are accepted, for each family of the node's addresses.
#[derive(Default)]
pub struct Listeners([Family<()>; 2]);

impl Listeners {
    pub fn follow(&mut self, own: &[IpAddr]) {
        let families = self.0.iter_mut().zip(by_family(own));
        families.for_each(|(family, address)| family.follow(address));
    }

    /// Listeners that could be bound now, by address: who serves them ends when the address goes.
    pub fn open(&mut self, port: u16) -> BTreeMap<IpAddr, TcpListener> {
        let mut opened = BTreeMap::new();
        for family in &mut self.0 {
            family.open("streams between agents", |address| {
                opened.insert(address, listen(address, port)?);
                Ok(())
            });
        }
        opened
    }
}

fn listen(address: IpAddr, port: u16) -> io::Result<TcpListener> {
    let socket = socket(address, Type::STREAM, Protocol::TCP)?;
    // An agent that starts again must not wait for the connections of its former life.
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(address, port).into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(StdListener::from(socket))
}

/// Switches a UDP option on (RFC 6935: zero checksums for tunnels over IPv6).
fn set_udp_option(socket: &Socket, option: libc::c_int) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: `on` outlives the call, and `length` is its size.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, option, (&raw const on).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn packets_over_ipv6_without_checksum_are_heard() {
        let sender = bind(Purpose::Probes, "::1".parse().unwrap()).unwrap();
        let mut sockets = Sockets::new(Purpose::Probes);
        sockets.follow(&["::1".parse().unwrap()]);
        sockets.open();
        let to = sockets.families[1].socket.as_ref().unwrap().local_addr().unwrap();
        sender.send_to(b"answer", to).await.unwrap();
        timeout(Duration::from_secs(5), sockets.readable()).await.unwrap();
        let mut heard = Vec::new();
        sockets.receive(|from, bytes| heard.push((from, bytes.to_vec())));
        assert_eq!(heard, [(sender.local_addr().unwrap(), b"answer".to_vec())]);
    }

    #[tokio::test]
    async fn an_address_that_is_not_there_is_tried_again_and_a_changed_one_bound_anew() {
        let mut sockets = Sockets::new(Purpose::Probes);
        sockets.follow(&["192.0.2.99".parse().unwrap()]);
        sockets.open();
        assert!(sockets.families[0].socket.is_none() && sockets.families[0].complained);
        sockets.follow(&["127.0.0.9".parse().unwrap()]);
        sockets.open();
        let bound = sockets.families[0].socket.as_ref().unwrap().local_addr().unwrap();
        assert_eq!(bound.ip(), "127.0.0.9".parse::<IpAddr>().unwrap());
    }
}
