use std::{io::Cursor, time::Instant};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::oneshot,
};
use tokio_rustls::TlsAcceptor;

use super::*;

fn check(kind: CheckKind) -> Check {
    Check {
        kind,
        port: None,
        interval: Duration::from_secs(1),
        timeout: Duration::from_millis(300),
        rise: 1,
        fall: 1,
        jitter_percent: 0,
    }
}

fn http() -> HttpCheck {
    HttpCheck {
        path: "/healthz?full=1".into(),
        host: None,
        accept: vec![(200, 299), (401, 401), (403, 403)],
    }
}

/// Answers one connection with `answer` after it read a request head; returns what it read.
async fn respond<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, answer: &[u8]) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    let _ = stream.write_all(answer).await;
    let _ = stream.shutdown().await;
    String::from_utf8(head).unwrap()
}

async fn http_server(answer: &'static [u8]) -> (SocketAddr, oneshot::Receiver<String>) {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, head) = oneshot::channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let _ = sender.send(respond(stream, answer).await);
    });
    (address, head)
}

async fn http_probe(answer: &'static [u8]) -> Result<(), Failure> {
    let (address, _head) = http_server(answer).await;
    Prober::new().probe(address, &check(CheckKind::Http(http()))).await
}

fn target_failure(reason: &str) -> Result<(), Failure> {
    Err(Failure::Target(reason.into()))
}

/// An address that nothing listens on.
async fn closed() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn tcp_succeeds_where_someone_listens_and_is_refused_elsewhere() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let prober = Prober::new();
    assert_eq!(prober.probe(listener.local_addr().unwrap(), &check(CheckKind::Tcp)).await, Ok(()));
    let refused = prober.probe(closed().await, &check(CheckKind::Tcp)).await;
    assert_eq!(refused, target_failure("connection refused"));
}

#[tokio::test]
async fn status_codes_in_the_accepted_ranges_are_success() {
    assert_eq!(http_probe(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await, Ok(()));
    assert_eq!(http_probe(b"HTTP/1.0 204 No Content\r\n\r\n").await, Ok(()));
    assert_eq!(http_probe(b"HTTP/1.1 401 Unauthorized\r\n\r\n").await, Ok(()));
    assert_eq!(http_probe(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await, Ok(()));
}

#[tokio::test]
async fn other_status_codes_fail_by_their_number() {
    let unavailable =
        http_probe(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(unavailable, target_failure("HTTP 503"));
    // A redirect isn't followed.
    let moved = http_probe(b"HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n").await;
    assert_eq!(moved, target_failure("HTTP 302"));
}

#[tokio::test]
async fn answers_that_are_not_http_fail_in_words() {
    assert_eq!(http_probe(b"SSH-2.0-server\r\n").await, target_failure("answer is not HTTP"));
    assert_eq!(http_probe(b"").await, target_failure("connection closed before an answer"));
}

#[tokio::test]
async fn a_body_that_never_ends_does_not_delay_the_verdict() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n").await;
        std::future::pending::<()>().await;
    });
    let start = Instant::now();
    let slow = Check { timeout: Duration::from_secs(10), ..check(CheckKind::Http(http())) };
    assert_eq!(Prober::new().probe(address, &slow).await, Ok(()));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn silence_ends_with_the_timeout_in_words() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let result = Prober::new().probe(address, &check(CheckKind::Http(http()))).await;
    assert_eq!(result, target_failure("timeout after 300ms"));
}

#[tokio::test]
async fn request_carries_path_and_host() {
    let (address, head) = http_server(b"HTTP/1.1 200 OK\r\n\r\n").await;
    Prober::new().probe(address, &check(CheckKind::Http(http()))).await.unwrap();
    let head = head.await.unwrap().to_ascii_lowercase();
    assert!(head.starts_with("get /healthz?full=1 http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nhost: [::1]:{}\r\n", address.port())), "{head}");

    let (address, head) = http_server(b"HTTP/1.1 200 OK\r\n\r\n").await;
    let named = HttpCheck { host: Some("shop.example".into()), ..http() };
    Prober::new().probe(address, &check(CheckKind::Http(named))).await.unwrap();
    assert!(head.await.unwrap().to_ascii_lowercase().contains("\r\nhost: shop.example\r\n"));
}

#[test]
fn host_header_leaves_the_usual_port_out() {
    let header = |address: &str| host_header(address.parse().unwrap(), &http(), 80);
    assert_eq!(header("192.0.2.1:80"), "192.0.2.1");
    assert_eq!(header("[2001:db8::1]:80"), "[2001:db8::1]");
    assert_eq!(header("192.0.2.1:8080"), "192.0.2.1:8080");
}

#[test]
fn shortages_of_this_node_are_not_the_targets_fault() {
    for code in [libc::EMFILE, libc::ENOBUFS, libc::EADDRNOTAVAIL] {
        assert!(matches!(io_failure(&io::Error::from_raw_os_error(code)), Failure::Local(_)));
    }
    let unreachable = io_failure(&io::Error::from_raw_os_error(libc::EHOSTUNREACH));
    assert_eq!(unreachable, Failure::Target("host unreachable".into()));
}

async fn https_probe(verify: bool) -> Result<(), Failure> {
    // Signed by itself, for `weir.test`; nothing but this test trusts it.
    let pem = include_bytes!("testdata/self-signed.pem");
    let certificate = CertificateDer::from_pem_reader(Cursor::new(pem)).unwrap();
    let key = PrivateKeyDer::from_pem_reader(Cursor::new(pem)).unwrap();
    let config =
        ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        if let Ok(stream) = acceptor.accept(stream).await {
            respond(stream, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    let https =
        CheckKind::Https { http: HttpCheck { host: Some("weir.test".into()), ..http() }, verify };
    Prober::new().probe(address, &Check { timeout: Duration::from_secs(5), ..check(https) }).await
}

#[tokio::test]
async fn https_takes_a_self_signed_certificate_unless_asked_to_verify() {
    assert_eq!(https_probe(false).await, Ok(()));
}

#[tokio::test]
async fn https_refuses_a_self_signed_certificate_where_asked_to_verify() {
    match https_probe(true).await {
        Err(Failure::Target(reason)) => assert!(reason.starts_with("TLS: "), "{reason}"),
        // A machine without roots cannot verify, and must not blame the target.
        Err(Failure::Local(reason)) => assert!(reason.contains("root"), "{reason}"),
        Ok(()) => panic!("verified"),
    }
}
