//! Conversations that last: one by TCP or by UDP whose every message carries a number and whose every answer names the
//! server.
//!
//! By TCP the number must be the next one on both sides, so that bytes of another connection show as well as another
//! server. By UDP a datagram is sent again until its answer comes: a lost one is no break.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::{Failure, Server, udp};
use crate::lab::Host;

/// Bytes of a number, and of a name behind it in an answer by TCP.
const NUMBER: usize = 8;
const NAME: usize = 24;
/// A datagram without an answer is sent again after this.
const RESEND: Duration = Duration::from_millis(500);

/// A server's two halves.
pub struct Servers {
    _tcp: Server,
    _udp: Server,
}

/// Serves both protocols on `port` of every address of `host` as `name`, of which [`NAME`] bytes count.
pub fn serve(host: &Host, name: &str, port: u16) -> Result<Servers> {
    let mut bytes = [0; NAME];
    bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    let tcp = Server::tcp(host, port, move |stream| answer(stream, bytes))?;
    Ok(Servers { _tcp: tcp, _udp: udp::serve(host, name, port)? })
}

async fn answer(mut stream: TcpStream, name: [u8; NAME]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut next = 0;
    loop {
        let number = stream.read_u64().await?;
        if number != next {
            // The end of the connection tells the client.
            return Err(io::ErrorKind::InvalidData.into());
        }
        next += 1;
        let mut answer = [0; NUMBER + NAME];
        answer[..NUMBER].copy_from_slice(&number.to_be_bytes());
        answer[NUMBER..].copy_from_slice(&name);
        stream.write_all(&answer).await?;
    }
}

/// What carries a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Tcp,
    Udp,
}

/// The client's side of a conversation.
pub struct Conversation {
    socket: Socket,
    next: u64,
    server: String,
    /// Datagrams that had to be sent again.
    pub resent: u64,
}

enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Conversation {
    /// Opens it in the network of the calling thread, exchanges the first message and so learns who serves it. Takes as
    /// long as it takes.
    pub async fn open(by: By, to: SocketAddr) -> Result<Self, Failure> {
        let socket = match by {
            By::Tcp => {
                let stream = TcpStream::connect(to).await?;
                stream.set_nodelay(true)?;
                Socket::Tcp(stream)
            }
            By::Udp => {
                let any: SocketAddr = match to {
                    SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                    SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
                };
                let socket = UdpSocket::bind(any).await?;
                socket.connect(to).await?;
                Socket::Udp(socket)
            }
        };
        let mut conversation = Self { socket, next: 0, server: String::new(), resent: 0 };
        conversation.server = conversation.ask().await?;
        Ok(conversation)
    }

    /// Who serves it.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The client's own address and port.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(stream) => stream.local_addr().ok(),
            Socket::Udp(socket) => socket.local_addr().ok(),
        }
    }

    /// One more message and its answer, which must be the same server's.
    pub async fn exchange(&mut self) -> Result<(), Failure> {
        let server = self.ask().await?;
        if server == self.server {
            return Ok(());
        }
        Err(Failure::Wrong("of another server".into()))
    }

    async fn ask(&mut self) -> Result<String, Failure> {
        let number = self.next.to_be_bytes();
        self.next += 1;
        match &mut self.socket {
            Socket::Tcp(stream) => ask_by_tcp(stream, number).await,
            Socket::Udp(socket) => ask_by_udp(socket, number, &mut self.resent).await,
        }
    }
}

async fn ask_by_tcp(stream: &mut TcpStream, number: [u8; NUMBER]) -> Result<String, Failure> {
    stream.write_all(&number).await?;
    let mut answer = [0; NUMBER + NAME];
    stream.read_exact(&mut answer).await?;
    let (echoed, name) = answer.split_at(NUMBER);
    if echoed != number {
        return Err(Failure::Wrong("another number came back".into()));
    }
    Ok(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
}

async fn ask_by_udp(
    socket: &mut UdpSocket,
    number: [u8; NUMBER],
    resent: &mut u64,
) -> Result<String, Failure> {
    let mut answer = [0; NUMBER + NAME];
    socket.send(&number).await?;
    loop {
        let Ok(received) = timeout(RESEND, socket.recv(&mut answer)).await else {
            *resent += 1;
            socket.send(&number).await?;
            continue;
        };
        // Answers to what was sent twice come twice.
        if let Some(name) = answer[..received?].strip_prefix(&number) {
            return Ok(String::from_utf8_lossy(name).into_owned());
        }
    }
}
