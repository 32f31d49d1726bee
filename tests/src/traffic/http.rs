//! HTTP/1.1 as load tests and health checks need it: a server that names itself, and a client with a deadline.
//!
//! Both speak only what the other sends, plus what a health checker or curl sends; bodies of requests are not read.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Deadline, Failure, Server};
use crate::lab::Host;

/// Longest head of a request or answer.
const MAX_HEAD: usize = 8 * 1024;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// A server whose every answer has its name as the body and in the header `Server`.
pub struct HttpServer {
    server: Server,
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    status: AtomicU16,
    answered: AtomicU64,
}

impl HttpServer {
    /// Listens on `port` (0: any free one) of every address of `host`.
    pub fn start(host: &Host, name: &str, port: u16) -> Result<Self> {
        let shared = Arc::new(Shared { name: name.into(), status: 200.into(), answered: 0.into() });
        let theirs = Arc::clone(&shared);
        let server = Server::tcp(host, port, move |stream| serve(stream, Arc::clone(&theirs)))?;
        Ok(Self { server, shared })
    }

    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Answers with this status from now on: 503 to fail health checks, 401 to look like an API server.
    pub fn set_status(&self, status: u16) {
        self.shared.status.store(status, Ordering::Relaxed);
    }

    /// Requests answered so far, health checks included.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }
}

/// The same server as a process of its own: answers as `name` on `port` of every address, in the network of the calling
/// thread, until the process ends.
pub fn serve_forever(name: &str, port: u16) -> Result<()> {
    let shared = Arc::new(Shared { name: name.into(), status: 200.into(), answered: 0.into() });
    Server::tcp_here(port, move |stream| serve(stream, Arc::clone(&shared)))
}

async fn serve(mut stream: tokio::net::TcpStream, shared: Arc<Shared>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut heard = Vec::new();
    loop {
        while let Some(end) = find(&heard, END_OF_HEAD) {
            let head = String::from_utf8_lossy(&heard[..end]).to_ascii_lowercase();
            heard.drain(..end + END_OF_HEAD.len());
            let close = head.contains("connection: close")
                || head.lines().next().is_some_and(|l| l.ends_with("/1.0"));
            let (name, status) = (&shared.name, shared.status.load(Ordering::Relaxed));
            let connection = if close { "close" } else { "keep-alive" };
            let body = if head.starts_with("head ") { "" } else { name };
            let answer = format!(
                "HTTP/1.1 {status} -\r\nServer: {name}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
                name.len(),
            );
            shared.answered.fetch_add(1, Ordering::Relaxed);
            stream.write_all(answer.as_bytes()).await?;
            if close {
                return Ok(());
            }
        }
        if heard.len() > MAX_HEAD || stream.read_buf(&mut heard).await? == 0 {
            return Ok(());
        }
    }
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Which server it was: the body.
    pub server: String,
    /// The server ends the connection with it.
    pub last: bool,
}

/// One request and how long it took, connecting included.
#[derive(Clone, Debug)]
pub struct Reply {
    pub outcome: Result<Answer, Failure>,
    pub took: Duration,
}

impl Reply {
    /// The server's name, if it answered with 200.
    pub fn server(&self) -> Result<&str, Failure> {
        match &self.outcome {
            Ok(Answer { status: 200, server, .. }) => Ok(server),
            Ok(Answer { status, .. }) => Err(Failure::Wrong(format!("status {status}"))),
            Err(failure) => Err(failure.clone()),
        }
    }
}

/// One request over a connection of its own; done or failed after `timeout`.
pub fn get(to: SocketAddr, timeout: Duration) -> Reply {
    let started = Instant::now();
    let deadline = Deadline::after(timeout);
    let outcome =
        deadline.connect(to).and_then(|stream| Connection { stream }.exchange("close", deadline));
    Reply { outcome, took: started.elapsed() }
}

/// A connection that stays open: later requests find out whether it still leads to the same server.
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    pub fn open(to: SocketAddr, timeout: Duration) -> Result<Self, Failure> {
        Ok(Self { stream: Deadline::after(timeout).connect(to)? })
    }

    /// One more request over this connection. After a failure it is of no more use.
    pub fn get(&mut self, timeout: Duration) -> Result<Answer, Failure> {
        self.exchange("keep-alive", Deadline::after(timeout))
    }

    /// The client's own address and port.
    pub fn local_addr(&self) -> Result<SocketAddr, Failure> {
        Ok(self.stream.local_addr()?)
    }

    pub fn peer_addr(&self) -> Result<SocketAddr, Failure> {
        Ok(self.stream.peer_addr()?)
    }

    fn exchange(&mut self, connection: &str, deadline: Deadline) -> Result<Answer, Failure> {
        let request = format!("GET / HTTP/1.1\r\nHost: lab\r\nConnection: {connection}\r\n\r\n");
        deadline.limit(&self.stream)?;
        self.stream.write_all(request.as_bytes())?;
        let mut heard = Vec::new();
        let mut buffer = [0; 2048];
        loop {
            if let Some(answer) = parse(&heard)? {
                return Ok(answer);
            }
            if heard.len() > MAX_HEAD {
                return Err(Failure::Wrong("the head does not end".into()));
            }
            deadline.limit(&self.stream)?;
            match self.stream.read(&mut buffer)? {
                0 => return Err(Failure::Closed),
                more => heard.extend_from_slice(&buffer[..more]),
            }
        }
    }
}

/// The answer at the start of `heard`; None: not all of it is there.
fn parse(heard: &[u8]) -> Result<Option<Answer>, Failure> {
    let Some(end) = find(heard, END_OF_HEAD) else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&heard[..end]);
    let wrong = || Failure::Wrong(head.chars().take(80).collect());
    let status = head
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok());
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .and_then(|n| n.parse().ok());
    let (status, length): (u16, usize) = status.zip(length).ok_or_else(wrong)?;
    let last = head.lines().any(|line| line == "Connection: close");
    let body = &heard[end + END_OF_HEAD.len()..];
    let server = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
    Ok(body.get(..length).map(|body| Answer { status, server: server(body), last }))
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
