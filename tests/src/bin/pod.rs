//! What runs in the pods of `cargo xtask cluster`: says who it is and whom it sees, and ends as a server should.
//!
//! The image holds this one file, so it is linked statically, and built by rustc alone: nothing but the standard library.
//! Without an argument it is what holds a pod's namespaces: it waits. With `serve` it answers every HTTP request with
//! `POD CLIENT` (its own name, the client's address as this side of the connection sees it): on port 8080 at once, on
//! port 8081 after a second. On SIGTERM it serves on for [`GRACE`] at least, asks clients to close their connections, and
//! ends when they have, or after [`PATIENCE`].

use std::{
    env,
    io::{self, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Ports, and how long an answer takes there.
const PORTS: [(u16, Duration); 2] = [(8080, Duration::ZERO), (8081, Duration::from_secs(1))];
const GRACE: Duration = Duration::from_millis(2_500);
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two looks at whether it is time to end.
const STEP: Duration = Duration::from_millis(20);
const SIGTERM: i32 = 15;

static ENDING: AtomicBool = AtomicBool::new(false);
static OPEN: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
}

extern "C" fn on_sigterm(_: i32) {
    ENDING.store(true, Ordering::Relaxed);
}

fn main() -> io::Result<()> {
    // SAFETY: the handler does nothing but store to an atomic.
    unsafe { signal(SIGTERM, on_sigterm) };
    let serves = env::args().nth(1).is_some_and(|argument| argument == "serve");
    if serves {
        let name = env::var("HOSTNAME").unwrap_or_default();
        for (port, delay) in PORTS {
            let (listener, name) =
                (TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?, name.clone());
            thread::spawn(move || accept(&listener, &name, delay));
        }
    }
    while !ENDING.load(Ordering::Relaxed) {
        thread::sleep(STEP);
    }
    let since = Instant::now();
    while serves
        && (since.elapsed() < GRACE
            || (OPEN.load(Ordering::Relaxed) > 0 && since.elapsed() < PATIENCE))
    {
        thread::sleep(STEP);
    }
    Ok(())
}

fn accept(listener: &TcpListener, name: &str, delay: Duration) {
    for stream in listener.incoming().flatten() {
        let name = name.to_owned();
        OPEN.fetch_add(1, Ordering::Relaxed);
        thread::spawn(move || {
            // A client that has gone is the client's business.
            let _ = serve(stream, &name, delay);
            OPEN.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn serve(mut stream: TcpStream, name: &str, delay: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let peer = stream.peer_addr()?;
    // One listener for both families: IPv4 looks like a kind of IPv6.
    let body = format!("{name} {}", SocketAddr::new(peer.ip().to_canonical(), peer.port()));
    let mut heard = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        while !heard.ends_with(b"\r\n\r\n") {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                more => heard.extend_from_slice(&buffer[..more]),
            }
        }
        heard.clear();
        thread::sleep(delay);
        let ending = ENDING.load(Ordering::Relaxed);
        let connection = if ending { "close" } else { "keep-alive" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes())?;
        if ending {
            return Ok(());
        }
    }
}
