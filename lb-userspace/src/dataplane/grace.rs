//! What was freed waits here until no BPF program can still be reading it.
//!
//! A thread of its own waits, many freed places at a time, so that no change of the maps does.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::mpsc::{self, Receiver, Sender},
    thread,
};

/// Places that nothing current names any more.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Freed {
    /// First block and number of blocks in `OWNERS`.
    pub segments: Vec<(u32, u32)>,
    pub records: Vec<u32>,
    pub backends: Vec<u32>,
    pub frontends: Vec<u32>,
    pub nodes: Vec<u32>,
}

impl Freed {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn append(&mut self, mut more: Self) {
        self.segments.append(&mut more.segments);
        self.records.append(&mut more.records);
        self.backends.append(&mut more.backends);
        self.frontends.append(&mut more.frontends);
        self.nodes.append(&mut more.nodes);
    }
}

/// Returns once every BPF program that ran when it was called has ended.
pub type Synchronize = Box<dyn FnMut() -> io::Result<()> + Send>;

/// The waiting room.
pub struct Grace {
    retired: Sender<Freed>,
    ready: Receiver<Freed>,
    /// Batches handed in and not yet come back.
    waiting: usize,
}

impl Grace {
    /// Starts the thread, which ends with the returned value.
    pub fn start(mut synchronize: Synchronize) -> io::Result<Self> {
        let (retired, inbox) = mpsc::channel::<Freed>();
        let (outbox, ready) = mpsc::channel();
        thread::Builder::new().name("grace".into()).spawn(move || {
            while let Ok(first) = inbox.recv() {
                let batches: Vec<_> = std::iter::once(first).chain(inbox.try_iter()).collect();
                let passed = synchronize();
                if let Err(error) = &passed {
                    // Never reused, which is safe; the maps fill up and say so.
                    tracing::error!(%error, "no grace period to be had: freed places stay unused");
                }
                for batch in batches {
                    let freed = if passed.is_ok() { batch } else { Freed::default() };
                    if outbox.send(freed).is_err() {
                        return;
                    }
                }
            }
        })?;
        Ok(Self { retired, ready, waiting: 0 })
    }

    /// Hands in what was freed.
    pub fn retire(&mut self, freed: Freed) {
        if !freed.is_empty() && self.retired.send(freed).is_ok() {
            self.waiting += 1;
        }
    }

    /// What may be reused by now, without waiting.
    pub fn ready(&mut self) -> Freed {
        let mut all = Freed::default();
        for freed in self.ready.try_iter() {
            self.waiting -= 1;
            all.append(freed);
        }
        all
    }

    /// Waits until some of what was handed in comes back; `None` if nothing is under way.
    pub fn some(&mut self) -> Option<Freed> {
        if self.waiting == 0 {
            return None;
        }
        let mut all = self.ready.recv_timeout(MOST).ok()?;
        self.waiting -= 1;
        all.append(self.ready());
        Some(all)
    }

    /// Waits for a grace period that begins now, and all that was handed in.
    pub fn pass(&mut self) -> Freed {
        if self.retired.send(Freed::default()).is_ok() {
            self.waiting += 1;
        }
        self.wait()
    }

    /// Waits for all that was handed in.
    pub fn wait(&mut self) -> Freed {
        let mut all = self.ready();
        while let Some(more) = self.some() {
            all.append(more);
        }
        all
    }
}

/// Longest wait for one batch: a grace period takes tens of milliseconds.
const MOST: std::time::Duration = std::time::Duration::from_secs(5);

/// Waits for the end of running BPF programs.
///
/// The kernel lets a change of a map of maps return only after an RCU grace period, made for just
/// this use (linux kernel/bpf/syscall.c, `maybe_wait_bpf_programs`). membarrier(2) would do on most
/// machines, but not where CPUs run without ticks or only one is online.
pub struct Barrier {
    outer: OwnedFd,
    inner: OwnedFd,
}

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const TYPE_ARRAY: u32 = 2;
const TYPE_ARRAY_OF_MAPS: u32 = 12;

/// The head of `union bpf_attr` for BPF_MAP_CREATE.
#[repr(C, align(8))]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
}

/// The same for BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct Update {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Barrier {
    pub fn new() -> io::Result<Self> {
        let inner = create(TYPE_ARRAY, 0)?;
        let outer = create(TYPE_ARRAY_OF_MAPS, inner.as_raw_fd() as u32)?;
        Ok(Self { outer, inner })
    }

    /// Waits for one grace period.
    pub fn wait(&self) -> io::Result<()> {
        let (key, value) = (0_u32, self.inner.as_raw_fd() as u32);
        let mut update = Update {
            map_fd: self.outer.as_raw_fd() as u32,
            pad: 0,
            key: &raw const key as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        bpf(MAP_UPDATE_ELEM, &mut update).map(drop)
    }
}

fn create(map_type: u32, inner_map_fd: u32) -> io::Result<OwnedFd> {
    let mut create =
        Create { map_type, key_size: 4, value_size: 4, max_entries: 1, map_flags: 0, inner_map_fd };
    let fd = bpf(MAP_CREATE, &mut create)?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes live through the call and are the beginning of what the command reads,
    // of the size that is passed with them; what they point to lives in the callers.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    match result {
        0.. => Ok(result as i32),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_handed_in_comes_back_after_a_grace_period() {
        let (tell, told) = mpsc::channel();
        let mut grace =
            Grace::start(Box::new(move || tell.send(()).map_err(io::Error::other))).unwrap();
        assert_eq!(grace.wait(), Freed::default());
        grace.retire(Freed { records: vec![1], ..Freed::default() });
        grace.retire(Freed { records: vec![2], segments: vec![(3, 4)], ..Freed::default() });
        let back = grace.wait();
        assert_eq!((back.records, back.segments), (vec![1, 2], vec![(3, 4)]));
        assert!((1..=2).contains(&told.try_iter().count()));

        grace.retire(Freed { records: vec![3], ..Freed::default() });
        assert_eq!(grace.some().map(|freed| freed.records), Some(vec![3]));
        assert_eq!(grace.some(), None);
    }
}
