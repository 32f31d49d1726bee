//! Servers that say who they are, and clients that say exactly what happened to them.
//!
//! Servers run on a thread of their own inside a lab host and listen on every address of it, both families; dropping one
//! closes its sockets. Clients are plain blocking functions with a deadline of their own, to be called inside a host
//! (`host.run(|| http::get(…))`); an answer that is late is a failure, and nothing is ever retried here.
//!
//! - [`http`]: one request, or many over one connection; answers name the server
//! - [`bulk`]: many bytes by TCP in either direction, every one checked
//! - [`udp`]: datagrams that are echoed with the server's name
//! - [`long`]: conversations that last, and must stay with their server
//! - [`under_load`]: requests that go on while something happens

pub mod bulk;
pub mod http;
pub mod long;
mod server;
pub mod udp;
mod under_load;

use std::{
    error::Error,
    fmt, io,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

pub use server::Server;
pub use under_load::under_load;

/// Why a client got no right answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Nothing, or not all of it, came in time.
    Timeout,
    /// RST to a SYN, or ICMP "port unreachable".
    Refused,
    /// RST to an open connection.
    Reset,
    /// ICMP says that host or network cannot be reached, or there is no route.
    Unreachable,
    /// The peer ended the connection before it had said all.
    Closed,
    /// An answer came, but a wrong one.
    Wrong(String),
    /// Anything else the kernel says.
    Other(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::TimedOut | Kind::WouldBlock => Self::Timeout,
            Kind::ConnectionRefused => Self::Refused,
            Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe => Self::Reset,
            Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown => {
                Self::Unreachable
            }
            Kind::UnexpectedEof => Self::Closed,
            _ => Self::Other(error.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => to.write_str("timeout"),
            Self::Refused => to.write_str("refused"),
            Self::Reset => to.write_str("reset"),
            Self::Unreachable => to.write_str("unreachable"),
            Self::Closed => to.write_str("closed early"),
            Self::Wrong(what) => write!(to, "wrong answer: {what}"),
            Self::Other(what) => to.write_str(what),
        }
    }
}

impl Error for Failure {}

/// A moment by which all must be done, however many steps it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(timeout: Duration) -> Self {
        Self(Instant::now() + timeout)
    }

    /// What is left; never zero.
    pub(crate) fn left(self) -> Result<Duration, Failure> {
        let left = self.0.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(Failure::Timeout) } else { Ok(left) }
    }

    pub(crate) fn connect(self, to: SocketAddr) -> Result<TcpStream, Failure> {
        let stream = TcpStream::connect_timeout(&to, self.left()?)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Gives the next read and write of `stream` what is left.
    pub(crate) fn limit(self, stream: &TcpStream) -> Result<(), Failure> {
        let left = Some(self.left()?);
        stream.set_read_timeout(left)?;
        stream.set_write_timeout(left)?;
        Ok(())
    }
}
