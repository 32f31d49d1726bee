//! Ends the sockets on this node that were connected through a VIP to a backend that is gone, so that
//! their owners do not wait for it but connect anew.
//!
//! Never ends any other socket: the kernel keeps with each what `connect` noted, and lists it together
//! with its peer; of UDP sockets a map keeps it, from which the oldest may be evicted. Looks into every network namespace that it finds, its own first; those of pods need
//! CAP_SYS_ADMIN and sight of their processes (hostPID) or of the names that a container runtime gives
//! namespaces (/run/netns).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    net::SocketAddr,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
};

use lb_common::{
    frontend::Endpoint,
    net::{Addr, Port, proto},
    socket::{Peer, SocketKey},
};
use nix::sched::{CloneFlags, setns};

use super::{
    maps::{Maps, OpenError, SocketMaps},
    spec::maps_dir,
};
use crate::{
    netlink::diag::{Connected, Diag},
    plan::FrontendKey,
};

/// Where container runtimes name network namespaces.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/docker/netns"];

/// Families and protocols whose sockets are looked at.
const KINDS: [(i32, u8); 4] = [
    (libc::AF_INET, proto::TCP),
    (libc::AF_INET6, proto::TCP),
    (libc::AF_INET, proto::UDP),
    (libc::AF_INET6, proto::UDP),
];

/// What one look did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Ended {
    /// Sockets that were ended.
    pub sockets: usize,
    /// Choices of sockets without a peer that were forgotten.
    pub choices: usize,
    /// Network namespaces that were looked into.
    pub namespaces: usize,
    /// Those that could not be.
    pub closed: usize,
}

/// The maps of what sockets got.
pub struct Sockets {
    maps: SocketMaps,
}

impl Sockets {
    /// Of the maps that are in force.
    pub fn open(pin_dir: &Path) -> Result<Self, OpenError> {
        Ok(Self { maps: Maps::open_sockets(&maps_dir(pin_dir))? })
    }

    /// Ends what leads to a backend that `gone` says is gone for a frontend. Blocks; works on a thread
    /// of its own, which visits the namespaces.
    ///
    /// # Errors
    /// The own namespace cannot be looked into, or a map cannot be read.
    pub fn end(&mut self, gone: &Gone<'_>) -> io::Result<Ended> {
        let choices = self.forget(gone)?;
        let maps = &self.maps;
        let look = || Look { maps, gone, known: BTreeMap::new() }.visit_all();
        let ended = thread::scope(|scope| scope.spawn(look).join());
        let ended = ended.map_err(|_| io::Error::other("the thread panicked"))??;
        Ok(Ended { choices, ..ended })
    }

    /// Has sockets without a peer choose anew.
    fn forget(&mut self, gone: &Gone<'_>) -> io::Result<usize> {
        let mut look = Look { maps: &self.maps, gone, known: BTreeMap::new() };
        let mut doomed = Vec::new();
        for entry in self.maps.answers.iter() {
            let (key, vip) = entry.map_err(io::Error::other)?;
            if look.is_gone(&vip, &key.endpoint) {
                doomed.push(SocketKey { cookie: key.cookie, endpoint: vip });
            }
        }
        let forgotten = doomed.iter().filter(|key| self.maps.chosen.remove(key).is_ok());
        Ok(forgotten.count())
    }
}

/// Whether a frontend's backend is gone.
pub type Gone<'a> = dyn Fn(&FrontendKey, SocketAddr) -> bool + Sync + 'a;

/// One look at all sockets.
struct Look<'a> {
    maps: &'a SocketMaps,
    gone: &'a Gone<'a>,
    /// What was asked already.
    known: BTreeMap<(FrontendKey, SocketAddr), bool>,
}

impl Look<'_> {
    /// On a thread that nobody needs afterwards.
    fn visit_all(&mut self) -> io::Result<Ended> {
        let mut ended = Ended { sockets: self.visit()?, namespaces: 1, ..Ended::default() };
        for namespace in others()? {
            let entered = File::open(&namespace)
                .and_then(|file| Ok(setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?));
            match entered.and_then(|()| self.visit()) {
                Ok(sockets) => {
                    ended.sockets += sockets;
                    ended.namespaces += 1;
                }
                // Its processes have ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let namespace = namespace.display();
                    tracing::debug!(%namespace, %error, "cannot be looked into");
                    ended.closed += 1;
                }
            }
        }
        Ok(ended)
    }

    /// The calling thread's namespace.
    fn visit(&mut self) -> io::Result<usize> {
        let mut diag = Diag::open()?;
        let mut ended = 0;
        for (family, protocol) in KINDS {
            let peers = (protocol == proto::TCP).then(|| self.maps.peers.fd().as_fd());
            for socket in diag.connected(protocol, family as u8, peers)? {
                let peer = self.peer(&socket);
                if peer.is_some_and(|peer| self.is_gone(&peer.vip, &peer.backend)) {
                    ended += usize::from(diag.destroy(&socket)?);
                }
            }
        }
        Ok(ended)
    }

    /// What the socket was connected to, where that still is its peer.
    fn peer(&self, socket: &Connected) -> Option<Peer> {
        let (address, port) = socket.peer();
        let addr = match socket.is_v4() {
            true => Addr::from_v4_word(u32::from_ne_bytes(address[..4].try_into().ok()?)),
            false => Addr::from(address),
        };
        let port = Port::from_wire(u16::from_ne_bytes(port));
        let backend = Endpoint::new(addr, port, socket.protocol());
        if socket.protocol() == proto::TCP {
            let peer: Peer = bytemuck::try_pod_read_unaligned(&socket.value).ok()?;
            return (peer.backend == backend).then_some(peer);
        }
        let key = SocketKey { cookie: socket.cookie(), endpoint: backend };
        let vip = self.maps.answers.get(&key, 0).ok()?;
        Some(Peer { vip, backend })
    }

    fn is_gone(&mut self, vip: &Endpoint, backend: &Endpoint) -> bool {
        let Some(key) = FrontendKey::of(vip) else { return false };
        let address = SocketAddr::new(backend.addr.to_ip(), backend.port.get());
        *self.known.entry((key, address)).or_insert_with(|| (self.gone)(&key, address))
    }
}

/// The network namespaces beside the calling thread's own, each by a path.
fn others() -> io::Result<Vec<PathBuf>> {
    let mut seen = BTreeSet::from([fs::metadata("/proc/thread-self/ns/net")?.ino()]);
    let entries = |folder: &str| {
        let entries = Path::new(folder).read_dir().into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let processes = entries("/proc").into_iter().map(|process| process.join("ns/net"));
    let named = NAMED.into_iter().flat_map(entries);
    let mut found = Vec::new();
    for path in processes.chain(named) {
        if fs::metadata(&path).is_ok_and(|namespace| seen.insert(namespace.ino())) {
            found.push(path);
        }
    }
    Ok(found)
}
