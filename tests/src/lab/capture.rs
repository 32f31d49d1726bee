//! Records frames of a device, in memory and bounded, to be looked at by a test or saved as pcap when one fails.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufWriter, ErrorKind, Read, Write},
    mem::size_of,
    os::fd::AsRawFd,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Namespace, netlink};

/// Frames kept; older ones make room and are counted.
pub const MAX_FRAMES: usize = 20_000;
/// Bytes kept of each frame.
pub const SNAP_LENGTH: usize = 2_048;
/// The largest frame a device hands over: a segmentation-offload frame with its headers.
const MAX_FRAME: usize = 1 << 16;
/// How long the thread may take to notice that it shall stop.
const POLL: Duration = Duration::from_millis(50);

/// A running record of one device. Dropping it stops it.
pub struct Capture {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    frames: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    frames: VecDeque<Frame>,
    forgotten: usize,
}

/// One frame as the device saw it.
#[derive(Clone, Debug)]
pub struct Frame {
    pub at: SystemTime,
    /// From the Ethernet header on, [`SNAP_LENGTH`] bytes at most.
    pub bytes: Vec<u8>,
    /// Bytes that the frame had.
    pub length: usize,
}

impl Capture {
    /// Records `device` of `namespace` from now on.
    pub fn start(namespace: &Namespace, device: &str) -> Result<Self> {
        let mut socket = namespace.run(|| open(device))?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let record = move || {
            let mut buffer = vec![0; MAX_FRAME];
            while !theirs.stop.load(Ordering::Relaxed) {
                match socket.read(&mut buffer) {
                    Ok(length) => theirs.kept().push(&buffer[..length]),
                    // A device that goes down says so once, and may come up again.
                    Err(error) if wait_on(&error) => {}
                    Err(error) => {
                        eprintln!("capture ends early: {error}");
                        return;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("lab-capture".into()).spawn(record)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What was seen so far, oldest first.
    pub fn frames(&self) -> Vec<Frame> {
        self.shared.kept().frames.iter().cloned().collect()
    }

    /// How many frames had to make room for later ones.
    pub fn forgotten(&self) -> usize {
        self.shared.kept().forgotten
    }

    /// Writes what was seen so far as a classic pcap file (microseconds, Ethernet).
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        let (magic, version, link_type) = (0xa1b2_c3d4_u32, 2_u32 | 4 << 16, 1_u32);
        for word in [magic, version, 0, 0, SNAP_LENGTH as u32, link_type] {
            file.write_all(&word.to_le_bytes())?;
        }
        for frame in self.frames() {
            let since = frame.at.duration_since(UNIX_EPOCH).unwrap_or_default();
            let lengths = [frame.bytes.len() as u32, frame.length as u32];
            for word in [since.as_secs() as u32, since.subsec_micros(), lengths[0], lengths[1]] {
                file.write_all(&word.to_le_bytes())?;
            }
            file.write_all(&frame.bytes)?;
        }
        file.flush()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed by it.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn push(&mut self, frame: &[u8]) {
        if self.frames.len() == MAX_FRAMES {
            self.frames.pop_front();
            self.forgotten += 1;
        }
        let bytes = frame[..frame.len().min(SNAP_LENGTH)].to_vec();
        self.frames.push_back(Frame { at: SystemTime::now(), bytes, length: frame.len() });
    }
}

fn wait_on(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::NetworkDown)
}

/// A packet socket bound to one device of the calling thread's network.
fn open(device: &str) -> Result<Socket> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // Protocol 0: nothing is received before it is bound to the device.
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket.set_read_timeout(Some(POLL))?;
    // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = netlink::index(device)? as i32;
    let (pointer, length) = ((&raw const address).cast(), size_of::<libc::sockaddr_ll>());
    // SAFETY: the pointer and the length describe `address`.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), pointer, length as u32) };
    if bound != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(socket)
}
