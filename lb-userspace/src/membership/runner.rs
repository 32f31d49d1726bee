//! Sends the probes of [`Peers`] and feeds it the answers.
//!
//! One socket a family, bound to the node's own address: other nodes answer only to members. An
//! address that isn't there (yet) is tried again every round; meanwhile nobody hears us.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::UdpSocket,
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::{Alive, PeerStatus, Peers, Rules, packet};

/// Between two reports for status.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Receive buffer that holds a round of answers from as many nodes as there can be.
const RECEIVE_BUFFER: usize = 2 << 20;
/// Probes sent before answers are read again.
const SEND_BATCH: usize = 64;
/// Packets read before anything else gets its turn, so that a flood does not stop the rounds.
const RECEIVE_BATCH: usize = 4096;
/// More than any answer: a longer packet is none.
const BUFFER: usize = 256;

/// What the prober must know beside the nodes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    pub tunnel_port: u16,
    pub rules: Rules,
}

/// Probes all `nodes` but this one until their sender is gone; `nodes` holds this node too, whose
/// addresses the probes come from. `alive` changes only when someone's state does.
pub async fn run(
    settings: Settings,
    mut nodes: watch::Receiver<Arc<BTreeMap<String, Vec<IpAddr>>>>,
    alive: watch::Sender<Arc<Alive>>,
    report: watch::Sender<Arc<BTreeMap<String, PeerStatus>>>,
) {
    let mut prober = Prober {
        peers: Peers::new(settings.rules, settings.node.clone()),
        sockets: [Family::default(), Family::default()],
        tunnel_port: settings.tunnel_port,
        secret: RandomState::new(),
        sent: 0,
    };
    prober.follow(&settings.node, &nodes.borrow_and_update().clone());
    let mut rounds = interval(settings.rules.interval);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reported: Option<Instant> = None;
    loop {
        let changed = publish(&alive, prober.peers.alive());
        if changed || reported.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
            reported = Some(Instant::now());
            report.send_replace(Arc::new(prober.peers.report(Instant::now())));
        }
        let [v4, v6] = &prober.sockets;
        tokio::select! {
            _ = rounds.tick() => prober.round(),
            () = readable(v4) => prober.receive(),
            () = readable(v6) => prober.receive(),
            changed = nodes.changed() => {
                if changed.is_err() {
                    return;
                }
                prober.follow(&settings.node, &nodes.borrow_and_update().clone());
            }
        }
    }
}

fn publish(alive: &watch::Sender<Arc<Alive>>, now: Alive) -> bool {
    alive.send_if_modified(|former| {
        let changed = **former != now;
        if changed {
            *former = Arc::new(now);
        }
        changed
    })
}

/// One family's socket, once its address can be bound.
#[derive(Default)]
struct Family {
    address: Option<IpAddr>,
    socket: Option<UdpSocket>,
    /// The failure to bind has been told.
    complained: bool,
}

async fn readable(family: &Family) {
    match &family.socket {
        // An error shows again, and is handled, when reading.
        Some(socket) => {
            let _ = socket.readable().await;
        }
        None => std::future::pending().await,
    }
}

struct Prober {
    peers: Peers,
    /// IPv4, IPv6.
    sockets: [Family; 2],
    tunnel_port: u16,
    /// Keys the nonces: nobody who does not see our probes can answer them.
    secret: RandomState,
    sent: u64,
}

impl Prober {
    fn follow(&mut self, own_name: &str, nodes: &BTreeMap<String, Vec<IpAddr>>) {
        let own = nodes.get(own_name).map_or(&[][..], Vec::as_slice);
        for (family, is_v4) in self.sockets.iter_mut().zip([true, false]) {
            let address = own.iter().copied().find(|address| address.is_ipv4() == is_v4);
            if family.address != address {
                *family = Family { address, ..Family::default() };
            }
        }
        self.peers.set_nodes(nodes);
    }

    /// Ends a round and sends the next one's probes.
    fn round(&mut self) {
        for family in &mut self.sockets {
            family.open();
        }
        // What arrived while this process did not run must be heard before the round is judged.
        self.receive();
        let (secret, sent) = (&self.secret, &mut self.sent);
        let probes = self.peers.round(Instant::now(), || {
            *sent += 1;
            secret.hash_one(*sent)
        });
        for batch in probes.chunks(SEND_BATCH) {
            for (address, probe) in batch {
                if let Some(socket) = &self.sockets[usize::from(address.is_ipv6())].socket {
                    // What cannot be sent isn't answered, and that is what counts.
                    let _ = socket.try_send_to(probe, SocketAddr::new(*address, self.tunnel_port));
                }
            }
            self.receive();
        }
    }

    /// Reads all that has arrived.
    fn receive(&mut self) {
        let mut buffer = [0; BUFFER];
        for family in &self.sockets {
            let Some(socket) = &family.socket else { continue };
            for _ in 0..RECEIVE_BATCH {
                // Nothing left, or an error that is told once: either way the socket tells when
                // there is more.
                let Ok((length, from)) = socket.try_recv_from(&mut buffer) else { break };
                if from.port() == self.tunnel_port {
                    self.peers.on_packet(from.ip(), &buffer[..length], Instant::now());
                }
            }
        }
    }
}

impl Family {
    fn open(&mut self) {
        let (Some(address), None) = (self.address, &self.socket) else { return };
        match bind(address) {
            Ok(socket) => {
                self.socket = Some(socket);
                self.complained = false;
            }
            Err(error) if !self.complained => {
                tracing::error!(%address, %error, "cannot probe other nodes from this node's address");
                self.complained = true;
            }
            Err(_) => {}
        }
    }
}

/// A socket whose packets come from `address`, and that takes answers without UDP checksum.
fn bind(address: IpAddr) -> io::Result<UdpSocket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        set_udp_option(&socket, libc::UDP_NO_CHECK6_RX)?;
        set_udp_option(&socket, libc::UDP_NO_CHECK6_TX)?;
    }
    SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&SocketAddr::new(address, 0).into())?;
    UdpSocket::from_std(socket.into())
}

/// Switches a UDP option on (RFC 6935: zero checksums for tunnels over IPv6).
fn set_udp_option(socket: &Socket, option: libc::c_int) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: `on` outlives the call, and `length` is its size.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, option, (&raw const on).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const _: () = assert!(BUFFER > packet::LENGTH);

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
