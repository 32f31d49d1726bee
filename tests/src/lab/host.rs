//! One machine of the lab: a namespace with addresses, the processes started on it, and its place for files.

use std::{
    ffi::OsStr,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use netlink_packet_route::link::XdpAttached;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    Capture, Namespace, Netlink, Offload, Prefix, device,
    netlink::{self},
};

/// How often [`Process::wait`] looks whether the process has ended.
const WAIT_STEP: Duration = Duration::from_millis(5);

/// A machine of the lab. Dropping it kills its processes.
pub struct Host {
    name: String,
    namespace: Namespace,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    processes: Mutex<Vec<Process>>,
}

/// What a host does with packets that are not for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    Off,
    On,
}

impl Host {
    /// A machine with a loopback device and no other. The addresses are what it will be known by; whoever adds the device
    /// sets them.
    pub(super) fn new(
        name: &str,
        v4: Ipv4Addr,
        v6: Ipv6Addr,
        forwarding: Forwarding,
    ) -> Result<Self> {
        let namespace = Namespace::new(name).with_context(|| format!("make host {name}"))?;
        let host = Self { name: name.to_owned(), namespace, v4, v6, processes: Mutex::default() };
        let on = if forwarding == Forwarding::On { "1" } else { "0" };
        // First of all: switching forwarding resets other settings of IPv4.
        host.sysctl("net/ipv4/ip_forward", on)?;
        host.sysctl("net/ipv6/conf/all/forwarding", on)?;
        for which in ["all", "default"] {
            host.sysctl(&format!("net/ipv4/conf/{which}/rp_filter"), "0")?;
            host.sysctl(&format!("net/ipv4/conf/{which}/send_redirects"), "0")?;
            // Addresses are usable at once: no duplicate address detection.
            host.sysctl(&format!("net/ipv6/conf/{which}/accept_dad"), "0")?;
            host.sysctl(&format!("net/ipv6/conf/{which}/accept_ra"), "0")?;
        }
        Netlink::with(&host.namespace, async |net| net.up("lo").await)?;
        Ok(host)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn v4(&self) -> IpAddr {
        self.v4.into()
    }

    pub fn v6(&self) -> IpAddr {
        self.v6.into()
    }

    /// The host's address of each family, IPv4 first: what most tests loop over.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4(), self.v6()]
    }

    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Runs `work` on a thread of its own inside the host and returns its value; a panic inside is passed on.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work)
    }

    /// The same on a thread that is in the host's cgroup: of the calls of its sockets learns whatever is put on that.
    /// `node` is the node that a pod is on, or the host itself.
    pub fn run_below<T: Send>(&self, node: &Host, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(|| {
            node.namespace.join_cgroup().expect("a thread may join a cgroup of its process");
            work()
        })
    }

    /// Starts a thread inside the host. It outlives power-off, and keeps the network alive until it ends.
    pub fn spawn_thread<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        self.namespace.spawn_thread(name, work)
    }

    /// A command that will run inside the host, for short work that the caller waits for: it is killed when the *thread*
    /// that starts it ends. What runs on is for [`Host::start`].
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.namespace.put_inside(&mut command);
        command
    }

    /// Starts a command made by [`Host::command`] that runs on. It dies with power-off, with the host and with this process.
    pub fn start(&self, command: Command) -> Result<Process> {
        let what = format!("start {:?} on {}", command.get_program(), self.name);
        let child = self.namespace.start(command).context(what)?;
        let process = Process { id: child.id(), child: Arc::new(Mutex::new(child)) };
        self.processes().push(process.clone());
        Ok(process)
    }

    /// Kills what [`Host::start`] started.
    pub fn kill_processes(&self) -> Result<()> {
        let doomed = std::mem::take(&mut *self.processes());
        doomed.iter().try_for_each(Process::kill)
    }

    fn processes(&self) -> MutexGuard<'_, Vec<Process>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A directory for the host's files that ends with the lab; it survives power-off. Valid from every process and thread.
    pub fn dir(&self) -> PathBuf {
        self.namespace.disk()
    }

    /// The host's own bpf file system, for pins; power-off empties it. Valid from every process and thread. Inside the host
    /// it is also /sys/fs/bpf.
    pub fn bpf_fs(&self) -> PathBuf {
        self.namespace.bpf_fs()
    }

    /// Sets a kernel parameter of the host's network, such as `net/ipv4/ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        // /proc/sys/net shows the network of the thread that opens it.
        self.run(|| fs::write(format!("/proc/sys/{name}"), value))
            .with_context(|| format!("set {name} = {value} on {}", self.name))
    }

    /// Sends `to` by `gateways`, spread over them by flow when they are several. Replaces the route that was there.
    pub fn route(&self, to: Prefix, gateways: &[IpAddr]) -> Result<()> {
        self.netlink(async |net| net.route(to, gateways).await)
    }

    pub fn unroute(&self, to: Prefix) -> Result<()> {
        self.netlink(async |net| net.unroute(to).await)
    }

    /// Adds an address to a device, for example a VIP to `lo`.
    pub fn add_address(&self, device: &str, address: Prefix) -> Result<()> {
        self.netlink(async |net| net.address(device, address).await)
    }

    /// How an XDP program is attached to a device.
    pub fn xdp(&self, device: &str) -> Result<XdpAttached> {
        self.netlink(async |net| net.xdp(device).await)
    }

    pub fn offload_is_on(&self, device: &str, offload: Offload) -> Result<bool> {
        self.run(|| device::offload_is_on(device, offload))
    }

    /// The index of a device.
    pub fn index(&self, device: &str) -> Result<u32> {
        self.run(|| netlink::index(device))
    }

    /// Starts to record what passes a device, both ways. See [`Capture`].
    pub fn capture(&self, device: &str) -> Result<Capture> {
        Capture::start(&self.namespace, device)
            .with_context(|| format!("capture on {} of {}", device, self.name))
    }

    pub(super) fn netlink<T: Send>(
        &self,
        work: impl AsyncFnOnce(&Netlink) -> Result<T> + Send,
    ) -> Result<T> {
        Netlink::with(&self.namespace, work).with_context(|| format!("host {}", self.name))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Nobody is left to tell; the keeper thread's end kills whatever this could not.
        drop(self.kill_processes());
    }
}

/// A process on a host. The host owns its life: dropping this handle changes nothing.
#[derive(Clone)]
pub struct Process {
    id: u32,
    child: Arc<Mutex<Child>>,
}

impl Process {
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Kills the process (SIGKILL) and waits until it is gone. Nothing happens to one that has ended.
    pub fn kill(&self) -> Result<()> {
        let mut child = self.child();
        child.kill().with_context(|| format!("kill process {}", self.id))?;
        child.wait().with_context(|| format!("wait for process {}", self.id))?;
        Ok(())
    }

    /// Sends a signal, such as SIGTERM, SIGSTOP or SIGHUP. Fails if the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // As long as the child is not waited for, its id belongs to nobody else.
        let mut child = self.child();
        anyhow::ensure!(child.try_wait()?.is_none(), "process {} has ended", self.id);
        kill(Pid::from_raw(self.id as i32), signal)
            .with_context(|| format!("send {signal} to {}", self.id))
    }

    pub fn is_running(&self) -> Result<bool> {
        Ok(self.child().try_wait()?.is_none())
    }

    /// Waits for the end, `timeout` at most; None: it runs on.
    pub fn wait(&self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + timeout;
        loop {
            let ended = self.child().try_wait()?;
            if ended.is_some() || Instant::now() >= deadline {
                return Ok(ended);
            }
            thread::sleep(WAIT_STEP);
        }
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
