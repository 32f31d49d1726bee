//! One probe of one target: connect, and for HTTP one request whose status counts.
//!
//! Says why a target failed in words for people. A probe that this node could not even begin (no
//! descriptors, no ports, no memory) is told apart: it says nothing about the target and must never
//! take one down.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, body::Bytes, body::Incoming, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::tls;
use crate::model::{Check, CheckKind, HttpCheck};

/// How long an answer's body may go on after its status, and how much of it is read: enough for a
/// server to end its side in peace.
const BODY_GRACE: Duration = Duration::from_millis(50);
const BODY_LIMIT: usize = 64 * 1024;

/// Why a probe brought no success.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The target failed; counts against it.
    #[error("{0}")]
    Target(String),
    /// This node could not ask; counts for nothing.
    #[error("probe not possible from this node: {0}")]
    Local(String),
}

/// Asks targets. Holds what all probes share: TLS settings with and without verification.
#[derive(Clone)]
pub struct Prober {
    any_certificate: TlsConnector,
    verified: Result<TlsConnector, Arc<str>>,
}

impl Prober {
    /// Loads the system's roots. Without them only checks that ask for verification fail.
    pub fn new() -> Self {
        Self {
            any_certificate: tls::any_certificate(),
            verified: tls::verified().map_err(|error| error.to_string().into()),
        }
    }

    /// One probe, ended by the check's timeout at the latest.
    pub async fn probe(&self, address: SocketAddr, check: &Check) -> Result<(), Failure> {
        match timeout(check.timeout, self.ask(address, &check.kind)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Target(format!("timeout after {:?}", check.timeout))),
        }
    }

    async fn ask(&self, address: SocketAddr, kind: &CheckKind) -> Result<(), Failure> {
        let stream = connect(address).await.map_err(|error| io_failure(&error))?;
        match kind {
            CheckKind::Tcp => Ok(()),
            CheckKind::Http(http) => request(stream, address, http, 80).await,
            CheckKind::Https { http, verify } => {
                let connector = if *verify {
                    self.verified.as_ref().map_err(|reason| Failure::Local(reason.to_string()))?
                } else {
                    &self.any_certificate
                };
                let stream = connector
                    .connect(server_name(address.ip(), http), stream)
                    .await
                    .map_err(|error| Failure::Target(format!("TLS: {error}")))?;
                request(stream, address, http, 443).await
            }
        }
    }
}

impl Default for Prober {
    fn default() -> Self {
        Self::new()
    }
}

/// A connection that is reset when dropped: thousands of probes a second must not leave sockets in
/// TIME_WAIT behind.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_zero_linger()?;
    socket.set_nodelay(true)?;
    socket.connect(address).await
}

/// The name that the certificate must carry and that SNI asks for: the check's host, else the
/// address.
fn server_name(address: IpAddr, http: &HttpCheck) -> ServerName<'static> {
    let host = http.host.as_deref().unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
    ServerName::try_from(name.to_owned()).unwrap_or_else(|_| ServerName::from(address))
}

/// The Host header: the check's host, else the address with the port where it isn't the usual one.
fn host_header(address: SocketAddr, http: &HttpCheck, usual_port: u16) -> String {
    match (&http.host, address) {
        (Some(host), _) => host.clone(),
        (None, address) if address.port() != usual_port => address.to_string(),
        (None, SocketAddr::V4(address)) => address.ip().to_string(),
        (None, SocketAddr::V6(address)) => format!("[{}]", address.ip()),
    }
}

/// Sends one GET over `stream` and judges its status.
async fn request<S>(
    stream: S,
    address: SocketAddr,
    http: &HttpCheck,
    usual_port: u16,
) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = Request::get(http.path.as_str())
        .header(header::HOST, host_header(address, http, usual_port))
        .header(header::USER_AGENT, "weir")
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| Failure::Target(format!("request cannot be made: {error}")))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| http_failure(&error))?;
    let mut connection = pin!(connection);
    let mut answer = pin!(sender.send_request(request));
    // The connection may end in the same step that brings the answer.
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    };
    let answer = answer.map_err(|error| http_failure(&error))?;
    let status = answer.status().as_u16();
    if !http.accept.iter().any(|(low, high)| (*low..=*high).contains(&status)) {
        return Err(Failure::Target(format!("HTTP {status}")));
    }
    // The verdict stands, so neither a slow body nor a broken one matters.
    let _ = timeout(BODY_GRACE, async {
        tokio::select! {
            () = read_body(answer) => {}
            _ = &mut connection => {}
        }
    })
    .await;
    Ok(())
}

async fn read_body(answer: Response<Incoming>) {
    let mut body = answer.into_body();
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > BODY_LIMIT {
            return;
        }
    }
}

/// What went wrong in HTTP: the socket's error where there is one.
fn http_failure(error: &hyper::Error) -> Failure {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return io_failure(error);
        }
        source = cause.source();
    }
    Failure::Target(if error.is_parse() {
        "answer is not HTTP".into()
    } else if error.is_incomplete_message() {
        "connection closed before an answer".into()
    } else {
        format!("HTTP: {error}")
    })
}

/// A socket's error in words, blamed on this node where it is this node's.
fn io_failure(error: &io::Error) -> Failure {
    match error.raw_os_error() {
        Some(
            libc::EMFILE
            | libc::ENFILE
            | libc::ENOMEM
            | libc::ENOBUFS
            | libc::EADDRNOTAVAIL
            | libc::EPERM
            | libc::EACCES
            | libc::EAFNOSUPPORT,
        ) => Failure::Local(error.to_string()),
        Some(libc::ECONNREFUSED) => Failure::Target("connection refused".into()),
        Some(libc::ECONNRESET | libc::EPIPE) => Failure::Target("connection reset".into()),
        Some(libc::EHOSTUNREACH) => Failure::Target("host unreachable".into()),
        Some(libc::ENETUNREACH) => Failure::Target("network unreachable".into()),
        Some(libc::ETIMEDOUT) => Failure::Target("connection timed out".into()),
        _ => Failure::Target(error.to_string()),
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
