//! Sockets of a network namespace, as the kernel lists them for diagnosis, and their end by its hand.
//!
//! Speaks sock_diag(7) with the namespace of the thread that opened it. Lists connected sockets with
//! what a BPF program keeps with them, and nothing else.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
        setsockopt, socket, sockopt,
    },
    time::TimeVal,
};

/// Message types and flags of linux/netlink.h and linux/sock_diag.h.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;

/// Attributes of linux/inet_diag.h and linux/sock_diag.h.
const REQUEST_STORAGES: u16 = 2;
const REQUEST_MAP: u16 = 1;
const STORAGES: u16 = 20;
const STORAGE: u16 = 1;
const STORAGE_VALUE: u16 = 3;

/// `struct nlmsghdr`, `struct nlattr`, `struct inet_diag_sockid`, `struct inet_diag_msg`.
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
const ID: usize = 48;
const MESSAGE: usize = 72;

/// All states of linux/tcp_states.h in which a socket has a peer and an owner: not TIME_WAIT, CLOSE,
/// LISTEN and NEW_SYN_RECV. A UDP socket with a peer is ESTABLISHED.
const WITH_PEER: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// One datagram of a list is 32 kB at most.
const DATAGRAM: usize = 1 << 16;
/// The kernel answers at once.
const PATIENCE: TimeVal = TimeVal::new(5, 0);

/// A socket with a peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Connected {
    family: u8,
    protocol: u8,
    /// As the kernel names the socket: ports, addresses, interface, cookie.
    id: [u8; ID],
    /// What the map keeps with the socket; empty where none was named.
    pub value: Vec<u8>,
}

impl Connected {
    /// The peer's address, 16 bytes of which an IPv4 one fills four, and port, as on the wire.
    pub fn peer(&self) -> ([u8; 16], [u8; 2]) {
        let mut address = [0; 16];
        address.copy_from_slice(&self.id[20..36]);
        (address, [self.id[2], self.id[3]])
    }

    pub fn is_v4(&self) -> bool {
        i32::from(self.family) == libc::AF_INET
    }

    /// The kernel's name for the socket.
    pub fn cookie(&self) -> u64 {
        let mut cookie = [0; 8];
        cookie.copy_from_slice(&self.id[40..]);
        u64::from_ne_bytes(cookie)
    }

    /// IANA number.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }
}

/// A conversation about the sockets of one network namespace.
pub struct Diag {
    socket: OwnedFd,
    sequence: u32,
}

impl Diag {
    /// With the namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &PATIENCE)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The sockets with a peer; where a map of socket storage is named, those for which it holds a
    /// value. The kernel knows of none for UDP here (`inet_sk_diag_fill` leaves before).
    pub fn connected(
        &mut self,
        protocol: u8,
        family: u8,
        map: Option<BorrowedFd<'_>>,
    ) -> io::Result<Vec<Connected>> {
        let mut request = request(family, protocol, WITH_PEER, &[0; ID]);
        if let Some(map) = map {
            // An attribute in an attribute.
            request.extend(attribute_head(REQUEST_STORAGES, 2 * ATTRIBUTE + 4));
            request.extend(attribute_head(REQUEST_MAP, ATTRIBUTE + 4));
            request.extend(map.as_raw_fd().to_ne_bytes());
        }
        self.send(BY_FAMILY, REQUEST | DUMP, &request)?;
        let mut found = Vec::new();
        loop {
            for (kind, body) in messages(&self.receive()?) {
                match kind {
                    DONE => return code(body).map(|()| found),
                    // No UDP or TCP diagnosis in this kernel.
                    ERROR => return code(body).map(|()| found),
                    _ => found.extend(connected(body, protocol, map.is_some())),
                }
            }
        }
    }

    /// Ends a socket: its owner is told ECONNABORTED, a TCP peer gets an RST. False where it has ended
    /// already.
    pub fn destroy(&mut self, socket: &Connected) -> io::Result<bool> {
        let request = request(socket.family, socket.protocol, 0, &socket.id);
        self.send(DESTROY, REQUEST | ACKNOWLEDGE, &request)?;
        loop {
            for (kind, body) in messages(&self.receive()?) {
                if kind == ERROR {
                    return match code(body) {
                        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
                        result => result.map(|()| true),
                    };
                }
            }
        }
    }

    /// Whether the kernel ends sockets at all (`CONFIG_INET_DIAG_DESTROY`). Ends none.
    pub fn can_destroy(&mut self) -> io::Result<bool> {
        // Port 0 is nobody's.
        let nobody = Connected {
            family: libc::AF_INET as u8,
            protocol: lb_common::net::proto::TCP,
            id: [0; ID],
            value: Vec::new(),
        };
        match self.destroy(&nobody) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            result => result.map(|_| true),
        }
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), &message, &kernel, MsgFlags::empty())?;
        Ok(())
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut datagram = vec![0; DATAGRAM];
        let length = recv(self.socket.as_raw_fd(), &mut datagram, MsgFlags::empty())?;
        datagram.truncate(length);
        Ok(datagram)
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, protocol: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut request = vec![family, protocol, 0, 0];
    request.extend(states.to_ne_bytes());
    request.extend(id);
    request
}

fn attribute_head(kind: u16, length: usize) -> [u8; ATTRIBUTE] {
    let mut head = [0; ATTRIBUTE];
    head[..2].copy_from_slice(&(length as u16).to_ne_bytes());
    head[2..].copy_from_slice(&kind.to_ne_bytes());
    head
}

/// Type and body of each message of a datagram.
fn messages(datagram: &[u8]) -> Vec<(u16, &[u8])> {
    let (mut rest, mut found) = (datagram, Vec::new());
    // A range that ends before it begins is none either, so the walk ends.
    while let Some(length) = word(rest, 0) {
        let Some(body) = rest.get(HEADER..length as usize) else { break };
        found.push((half(rest, 4).unwrap_or_default(), body));
        rest = rest.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// Type and value of each attribute.
fn attributes(bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let (mut rest, mut found) = (bytes, Vec::new());
    while let (Some(length), Some(kind)) = (half(rest, 0), half(rest, 2)) {
        let length = usize::from(length);
        let Some(value) = rest.get(ATTRIBUTE..length) else { break };
        // The two highest bits are flags.
        found.push((kind & 0x3fff, value));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// A socket from the list; none where a value is asked for and there is none.
fn connected(body: &[u8], protocol: u8, with_value: bool) -> Option<Connected> {
    let id = body.get(4..4 + ID)?.try_into().ok()?;
    let value = match with_value {
        true => value(body.get(MESSAGE..)?)?.to_vec(),
        false => Vec::new(),
    };
    Some(Connected { family: *body.first()?, protocol, id, value })
}

/// What the map holds, among the attributes of a socket.
fn value(bytes: &[u8]) -> Option<&[u8]> {
    let within = |bytes, wanted| {
        attributes(bytes).into_iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    };
    // One map was named, so one is there.
    within(within(within(bytes, STORAGES)?, STORAGE)?, STORAGE_VALUE)
}

/// The kernel's word on how it went.
fn code(body: &[u8]) -> io::Result<()> {
    match word(body, 0).map(|code| code as i32) {
        Some(code) if code < 0 => Err(io::Error::from_raw_os_error(-code)),
        _ => Ok(()),
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as Linux 6.18 writes it, with other attributes before.
    fn listed(storages: bool) -> Vec<u8> {
        let mut body = vec![0; MESSAGE];
        body[0] = libc::AF_INET as u8;
        body[6..8].copy_from_slice(&8080_u16.to_be_bytes());
        body[24..28].copy_from_slice(&[127, 0, 0, 2]);
        body[44..52].copy_from_slice(&7_u64.to_ne_bytes());
        let attribute = |kind, value: &[u8]| {
            let mut bytes = attribute_head(kind, ATTRIBUTE + value.len()).to_vec();
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        body.extend(attribute(5, &[0]));
        if storages {
            let storage = [attribute(2, &[9, 0, 0, 0]), attribute(STORAGE_VALUE, b"kept")].concat();
            body.extend(attribute(STORAGES, &attribute(STORAGE | 0x8000, &storage)));
        }
        body
    }

    #[test]
    fn what_the_map_keeps_is_found_among_the_attributes() {
        let socket = connected(&listed(true), 6, true).unwrap();
        let mut address = [0; 16];
        address[..4].copy_from_slice(&[127, 0, 0, 2]);
        assert_eq!(socket.peer(), (address, 8080_u16.to_be_bytes()));
        assert_eq!((socket.value.as_slice(), socket.cookie()), (&b"kept"[..], 7));
        assert!(socket.is_v4());
        assert_eq!(connected(&listed(false), 6, true), None);
        assert_eq!(connected(&listed(false), 17, false).unwrap().value, b"");
    }

    #[test]
    fn what_is_cut_short_is_no_message() {
        let whole = listed(true);
        for length in 0..MESSAGE {
            assert_eq!(connected(&whole[..length], 6, true), None, "{length}");
        }
        assert!(messages(&[9, 0, 0, 0, 1]).is_empty());
        assert!(attributes(&[200, 0, 1, 0, 5]).is_empty());
        assert!(messages(&[0; HEADER]).is_empty());
    }
}
