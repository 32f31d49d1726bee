//! What all servers share: a thread inside a host that runs one future until the handle is dropped.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::oneshot,
};

use crate::lab::Host;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// A running server. Dropping it closes its sockets, with connections in progress.
pub struct Server {
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Accepts connections on `port` (0: any free one) of every address of `host` and gives each a task that runs `serve`.
    pub(super) fn tcp<F>(
        host: &Host,
        port: u16,
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Result<Self>
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let socket = host.run(|| listen(port, Type::STREAM, Protocol::TCP));
        Self::start(
            host,
            socket.with_context(|| format!("TCP port {port} of {}", host.name()))?,
            async move |socket| accept(socket, serve).await,
        )
    }

    /// Like [`Server::tcp`] on the calling thread, in its network; returns only if that fails.
    pub(super) fn tcp_here<F>(port: u16, serve: impl Fn(TcpStream) -> F) -> Result<()>
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let socket = listen(port, Type::STREAM, Protocol::TCP)
            .with_context(|| format!("listen on TCP port {port}"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(accept(socket, serve))?)
    }

    /// Binds a UDP socket like [`Server::tcp`] and hands it to `serve`.
    pub(super) fn udp(
        host: &Host,
        port: u16,
        serve: impl AsyncFnOnce(UdpSocket) -> io::Result<()> + Send + 'static,
    ) -> Result<Self> {
        let socket = host.run(|| listen(port, Type::DGRAM, Protocol::UDP));
        Self::start(
            host,
            socket.with_context(|| format!("UDP port {port} of {}", host.name()))?,
            async move |socket| serve(UdpSocket::from_std(socket.into())?).await,
        )
    }

    fn start(
        host: &Host,
        socket: Socket,
        serve: impl AsyncFnOnce(Socket) -> io::Result<()> + Send + 'static,
    ) -> Result<Self> {
        let address = socket.local_addr()?.as_socket().context("a socket with a port")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let name = format!("server-{}", address.port());
        let thread = host.spawn_thread(&name.clone(), move || {
            runtime.block_on(async {
                tokio::select! {
                    Err(error) = serve(socket) => eprintln!("{name} ends: {error}"),
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { port: address.port(), stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed by it.
            drop(thread.join());
        }
    }
}

async fn accept<F>(socket: Socket, serve: impl Fn(TcpStream) -> F) -> io::Result<()>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::from_std(socket.into())?;
    loop {
        let (stream, _) = listener.accept().await?;
        let connection = serve(stream);
        // How a connection ended is what the client reports; a server has nobody to tell.
        tokio::spawn(async move { drop(connection.await) });
    }
}

/// A socket on `port` of every address, IPv6 and IPv4, in the network of the calling thread.
fn listen(port: u16, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol))?;
    socket.set_only_v6(false)?;
    socket.set_nonblocking(true)?;
    if kind == Type::STREAM {
        // A server that is started again finds connections of its earlier life in TIME_WAIT.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    if kind == Type::STREAM {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}
