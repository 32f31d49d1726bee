//! Tells load balancers in front of the nodes whether this node serves a Service with its own endpoints: one
//! port of HTTP for each Service that asks for it (`healthCheckNodePort`), as kube-proxy does.
//!
//! Never fails the agent. A port that somebody else has, mostly kube-proxy, is tried again now and then.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use crate::watched::Watched as _;

/// Between two tries to open a port that somebody else has.
const RETRY: Duration = Duration::from_secs(10);

/// Askers of one port that are heard at once; more wait.
const MAX_ASKERS: usize = 32;

/// From a connection to its end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest head of a request.
const MAX_HEAD: usize = 8 << 10;

const BACKLOG: i32 = 128;

/// What is said of one Service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Health {
    pub namespace: String,
    pub name: String,
    /// Ready endpoints on this node, by address.
    pub local: usize,
}

/// By port.
pub type Healths = BTreeMap<u16, Health>;

impl Health {
    /// The whole answer of HTTP.
    fn answer(&self) -> String {
        let Self { namespace, name, local } = self;
        let status = if *local > 0 { "200 OK" } else { "503 Service Unavailable" };
        let body = serde_json::json!({
            "service": {"namespace": namespace, "name": name},
            "localEndpoints": local,
            "serviceProxyHealthy": true,
        });
        let body = body.to_string();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             X-Content-Type-Options: nosniff\r\nX-Load-Balancing-Endpoint-Weight: {local}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        )
    }
}

/// Serves what `healths` holds, port by port, until its sender is gone.
pub async fn run(mut healths: watch::Receiver<Healths>) {
    let mut doors: BTreeMap<u16, Door> = BTreeMap::new();
    loop {
        let wanted: Vec<u16> = healths.copy_and_update().keys().copied().collect();
        doors.retain(|port, _| wanted.contains(port));
        for port in wanted {
            let healths = healths.clone();
            doors.entry(port).or_insert_with(|| Door(tokio::spawn(serve(port, healths))));
        }
        if healths.changed().await.is_err() {
            return;
        }
    }
}

/// An open port; dropping it closes it and ends who asks there.
struct Door(JoinHandle<()>);

impl Drop for Door {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn serve(port: u16, healths: watch::Receiver<Healths>) {
    let mut told = None;
    let listener = loop {
        match listen(port) {
            Ok(listener) => break listener,
            Err(error) => {
                if told.replace(error.kind()) != Some(error.kind()) {
                    match error.kind() {
                        io::ErrorKind::AddrInUse => {
                            tracing::info!(
                                port,
                                "health check port is another's, who answers there"
                            );
                        }
                        _ => tracing::warn!(port, %error, "health check port cannot be opened"),
                    }
                }
                sleep(RETRY).await;
            }
        }
    };
    let places = Arc::new(Semaphore::new(MAX_ASKERS));
    let mut askers = JoinSet::new();
    loop {
        while askers.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = healths.copy().get(&port).map(Health::answer);
                askers.spawn(async move {
                    let _place = place;
                    // Who goes away or says nothing gets nothing.
                    let _ = timeout(PATIENCE, answer_one(stream, answer.unwrap_or_default())).await;
                });
            }
            // Too many open files, or the asker is gone already.
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// On every address of both families, or of IPv4 where there is no IPv6.
fn listen(port: u16) -> io::Result<TcpListener> {
    let open = |domain, address: SocketAddr| {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        // What has just closed does not count, who listens does.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    match open(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            open(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into())
        }
        opened => opened,
    }
}

/// Whatever is asked, the answer is the same.
async fn answer_one(mut stream: TcpStream, answer: String) -> io::Result<()> {
    let mut head = Vec::with_capacity(512);
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        if head.len() >= MAX_HEAD || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn health(local: usize) -> Health {
        Health { namespace: "d".into(), name: "s".into(), local }
    }

    /// A port of this machine that is free now.
    fn free_port() -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    }

    /// Asks until `wanted` holds for the answer; "" where nobody listens.
    async fn ask(port: u16, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let asked = tokio::task::spawn_blocking(move || -> io::Result<String> {
                let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
                stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                Ok(answer)
            });
            let answer = asked.await.unwrap().unwrap_or_default();
            if wanted(&answer) {
                return answer;
            }
            assert!(std::time::Instant::now() < deadline, "{answer}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_port_opens_follows_its_service_and_closes() {
        let port = free_port();
        let (sender, healths) = watch::channel(Healths::from([(port, health(2))]));
        let server = tokio::spawn(run(healths));
        let answer = ask(port, |answer| !answer.is_empty()).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\r\nX-Load-Balancing-Endpoint-Weight: 2\r\n"), "{answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let service = serde_json::json!({"namespace": "d", "name": "s"});
        let wanted = serde_json::json!({"service": service, "localEndpoints": 2, "serviceProxyHealthy": true});
        assert_eq!(body, wanted);
        sender.send_replace([(port, health(0))].into());
        ask(port, |answer| answer.starts_with("HTTP/1.1 503 ")).await;
        sender.send_replace(Healths::new());
        ask(port, str::is_empty).await;
        server.abort();
    }

    #[tokio::test]
    async fn a_port_of_another_stays_with_it() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = other.local_addr().unwrap().port();
        let error = listen(port).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(other);
        listen(port).unwrap();
    }
}
