//! One host's kernel side: a network namespace and a mount namespace without names.
//!
//! Both live only as long as this process: file descriptors and one keeper thread hold them, so a panic, Ctrl-C or SIGKILL
//! leaves nothing behind, with no watchdog and no list to clean up. Inside, `/sys` shows the host's own devices,
//! `/sys/fs/bpf` is its own bpf file system, `/sys/fs/cgroup` a cgroup of its own and `/sys/fs/disk` a tmpfs of its own.
//!
//! Never enters a namespace on a thread that it did not start: a thread of the test harness or of an async runtime would
//! carry the wrong namespace into other work.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    panic,
    path::{Path, PathBuf},
    process::Child,
    process::Command,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::{Pid, geteuid, gettid},
};

use super::cgroup::Cgroup;

/// Where a host's own bpf file system is mounted, as seen from inside.
const BPF_FS: &str = "/sys/fs/bpf";
/// Where a host's own cgroup is mounted, as seen from inside.
const CGROUP: &str = "/sys/fs/cgroup";
/// Where a host keeps files, as seen from inside.
const DISK: &str = "/sys/fs/disk";

/// What a host sees as its network and its mounts. Dropping it ends them, once no process or thread is inside.
pub struct Namespace {
    fds: Arc<Fds>,
    /// The keeper thread: children that must die with the lab are started there, and its `/proc` entry makes the mounts
    /// reachable from outside.
    keeper: Option<JoinHandle<()>>,
    keeper_id: Pid,
    jobs: Option<mpsc::Sender<Command>>,
    cgroup: Cgroup,
    started: std::sync::Mutex<mpsc::Receiver<io::Result<Child>>>,
}

/// Handles of one pair of namespaces.
struct Fds {
    net: OwnedFd,
    mount: OwnedFd,
}

impl Namespace {
    /// Makes both namespaces. `name` becomes the keeper thread's name, for people who look with `ps -T`.
    pub fn new(name: &str) -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "the lab makes network namespaces and needs root: run this test as root"
        );
        let (made_tx, made) = mpsc::channel();
        let (jobs, queue) = mpsc::channel::<Command>();
        let (started_tx, started) = mpsc::channel();
        let keeper = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let failed = made_tx.send(make().map(|made| (made, gettid()))).is_err();
            while let (false, Ok(mut command)) = (failed, queue.recv()) {
                if started_tx.send(command.spawn()).is_err() {
                    return;
                }
            }
        })?;
        let ((fds, cgroup), keeper_id) = made.recv().context("the keeper thread ended early")??;
        let (fds, started) = (Arc::new(fds), std::sync::Mutex::new(started));
        Ok(Self { fds, keeper: Some(keeper), keeper_id, jobs: Some(jobs), cgroup, started })
    }

    /// Runs `work` on a thread of its own inside the namespaces and returns its value. A panic inside is passed on.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            self.fds.enter().expect("root may enter namespaces that it holds open");
            work()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(value) => value,
            Err(payload) => panic::resume_unwind(payload),
        }
    }

    /// Starts a thread inside the namespaces. It keeps them alive until it ends.
    pub fn spawn_thread<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let fds = Arc::clone(&self.fds);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            fds.enter().expect("root may enter namespaces that it holds open");
            work()
        })
    }

    /// Makes `command` run inside the namespaces, and die with the thread that starts it.
    pub fn put_inside(&self, command: &mut Command) {
        use std::os::unix::process::CommandExt;
        let fds = Arc::clone(&self.fds);
        let parent = Pid::this();
        // SAFETY: the closure runs between fork and exec and makes system calls only: no allocation, no locks.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                if Pid::parent() != parent {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                fds.enter()
            });
        }
    }

    /// Starts a command from the keeper thread, so that the kernel kills it when this namespace or this process ends.
    pub fn start(&self, command: Command) -> Result<Child> {
        let started = self.started.lock().map_err(|_| anyhow!("an earlier start panicked"))?;
        let jobs = self.jobs.as_ref().context("the namespace is going away")?;
        jobs.send(command).context("the keeper thread ended")?;
        Ok(started.recv().context("the keeper thread ended")??)
    }

    /// A path, as seen from inside, in a form that every process and thread on the machine can open while this lives.
    pub fn path_from_outside(&self, inside: &str) -> PathBuf {
        format!("/proc/{}/task/{}/root{inside}", Pid::this(), self.keeper_id).into()
    }

    /// The host's own bpf file system, as a path that is valid everywhere.
    pub fn bpf_fs(&self) -> PathBuf {
        self.path_from_outside(BPF_FS)
    }

    /// The host's own place for files, as a path that is valid everywhere.
    pub fn disk(&self) -> PathBuf {
        self.path_from_outside(DISK)
    }

    /// Moves the calling thread into this host's cgroup; see [`Cgroup::join`].
    pub fn join_cgroup(&self) -> Result<()> {
        self.cgroup.join()
    }

    /// Forgets every pinned BPF object, as a machine does that loses power.
    pub fn forget_pins(&self) -> Result<()> {
        self.run(|| {
            umount2(BPF_FS, MntFlags::MNT_DETACH).context("unmount bpffs")?;
            mount_new("bpf", BPF_FS)
        })
    }

    /// The thread to look at with `nsenter --target`.
    pub fn thread_id(&self) -> Pid {
        self.keeper_id
    }

    /// The network namespace, for netlink messages that name it. Valid as long as `self`.
    pub fn net_fd(&self) -> RawFd {
        self.fds.net.as_raw_fd()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(keeper) = self.keeper.take() {
            // A keeper that panicked has already said so, and its namespaces end all the same.
            drop(keeper.join());
        }
    }
}

impl Fds {
    /// Moves the calling thread (or the child after fork) inside, keeping the working directory. System calls only.
    fn enter(&self) -> io::Result<()> {
        let mut here = [0_u8; libc::PATH_MAX as usize];
        // SAFETY: the pointer and the length describe `here`.
        let known = !unsafe { libc::getcwd(here.as_mut_ptr().cast(), here.len()) }.is_null();
        // A mount namespace may be entered only by a thread that shares its root and working directory with none.
        unshare(CloneFlags::CLONE_FS)?;
        nix::sched::setns(&self.mount, CloneFlags::CLONE_NEWNS)?;
        nix::sched::setns(&self.net, CloneFlags::CLONE_NEWNET)?;
        if known {
            // SAFETY: `getcwd` ended the text with a zero byte.
            let moved = unsafe { libc::chdir(here.as_ptr().cast()) };
            if moved != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// Makes the calling thread's own namespaces and fills the mounts that hosts must not share.
fn make() -> Result<(Fds, Cgroup)> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("make a network and a mount namespace (needs CAP_SYS_ADMIN)")?;
    // "Slave": what is unmounted outside disappears here too, what is mounted here stays here.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .context("separate the mounts")?;
    mount_new("sysfs", "/sys")?;
    mount_new("tmpfs", "/sys/fs")?;
    for (kind, place) in [("bpf", BPF_FS), ("cgroup2", CGROUP), ("tmpfs", DISK)] {
        fs::create_dir(place).with_context(|| format!("create {place}"))?;
        mount_new(kind, place)?;
    }
    let cgroup = Cgroup::mount(Path::new(CGROUP))?;
    let open = |kind: &str| File::open(format!("/proc/thread-self/ns/{kind}")).map(OwnedFd::from);
    Ok((Fds { net: open("net")?, mount: open("mnt")? }, cgroup))
}

fn mount_new(kind: &str, place: &str) -> Result<()> {
    mount(Some("weir-lab"), place, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mount {kind} on {place}"))
}
