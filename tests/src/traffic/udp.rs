//! UDP datagrams that come back with the name of who echoed them.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::Result;

use super::{Deadline, Failure, Server, bulk};
use crate::lab::Host;

/// Largest payload of a UDP datagram.
const MAX_DATAGRAM: usize = 65_507;
/// Number of the datagram, before the pattern.
const NUMBER: usize = 8;

/// Starts a server on `port` (0: any free one) of every address of `host`. It answers each datagram with the same bytes
/// and its name behind them.
pub fn serve(host: &Host, name: &str, port: u16) -> Result<Server> {
    let name = name.to_owned();
    Server::udp(host, port, async move |socket| {
        let mut datagram = vec![0; MAX_DATAGRAM];
        loop {
            let (length, from) = match socket.recv_from(&mut datagram).await {
                Ok(received) => received,
                // ICMP errors about earlier answers; the next datagram is none the worse.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error),
            };
            let answer = [&datagram[..length], name.as_bytes()].concat();
            // A client that cannot be reached notices by itself.
            drop(socket.send_to(&answer, from).await);
        }
    })
}

/// One flow: a socket with one remote address.
pub struct Flow {
    socket: UdpSocket,
    sent: u64,
}

impl Flow {
    pub fn open(to: SocketAddr) -> Result<Self, Failure> {
        let any: SocketAddr =
            if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        Ok(Self { socket, sent: 0 })
    }

    /// Sends one datagram of `size` bytes (at least 8, for its number) and returns the name of the server that sent the
    /// same bytes back. Late answers to earlier datagrams are skipped.
    pub fn echo(&mut self, size: usize, timeout: Duration) -> Result<String, Failure> {
        let deadline = Deadline::after(timeout);
        let mut datagram = vec![0; size.max(NUMBER)];
        self.sent += 1;
        let (number, pattern) = datagram.split_at_mut(NUMBER);
        number.copy_from_slice(&self.sent.to_be_bytes());
        bulk::fill(self.sent << 20, pattern);
        self.socket.send(&datagram)?;
        let mut answer = vec![0; MAX_DATAGRAM];
        loop {
            self.socket.set_read_timeout(Some(deadline.left()?))?;
            let length = self.socket.recv(&mut answer)?;
            let (number, rest) = answer[..length].split_at_checked(NUMBER).unwrap_or_default();
            if number != &datagram[..NUMBER] {
                continue;
            }
            let name = rest.strip_prefix(&datagram[NUMBER..]);
            let name = name.ok_or_else(|| Failure::Wrong("other bytes came back".into()))?;
            return Ok(String::from_utf8_lossy(name).into_owned());
        }
    }
}

/// Who answered how many datagrams of a series, and what happened to the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Series {
    pub answered: BTreeMap<String, usize>,
    pub failed: BTreeMap<Failure, usize>,
}

/// Sends `count` datagrams one after the other over one flow, each with its own `timeout`.
pub fn series(
    to: SocketAddr,
    count: usize,
    size: usize,
    timeout: Duration,
) -> Result<Series, Failure> {
    let mut flow = Flow::open(to)?;
    let mut series = Series::default();
    for _ in 0..count {
        match flow.echo(size, timeout) {
            Ok(server) => *series.answered.entry(server).or_default() += 1,
            Err(failure) => *series.failed.entry(failure).or_default() += 1,
        }
    }
    Ok(series)
}
