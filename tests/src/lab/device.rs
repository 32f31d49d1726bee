//! What rtnetlink cannot do to a device: switch checksum and segmentation offloads, attach a two-instruction XDP program.
//!
//! All functions act on the network namespace of the calling thread.

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// An offload of a device: `ethtool` command numbers to read and to set it (linux/ethtool.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    pub name: &'static str,
    get: u32,
    set: u32,
}

/// Checksums left to the device: off means that every frame on the wire carries a right one.
pub const TX_CHECKSUM: Offload = Offload { name: "tx-checksumming", get: 0x16, set: 0x17 };
/// Frames above the MTU that the device is to cut.
pub const TCP_SEGMENTATION: Offload =
    Offload { name: "tcp-segmentation-offload", get: 0x1e, set: 0x1f };
/// Frames above the MTU that the driver's edge is to cut.
pub const GENERIC_SEGMENTATION: Offload =
    Offload { name: "generic-segmentation-offload", get: 0x23, set: 0x24 };

/// All that lets a frame reach the wire unfinished: `ethtool -K DEV tx off tso off gso off`.
pub const UNFINISHED_FRAMES: [Offload; 3] = [TX_CHECKSUM, TCP_SEGMENTATION, GENERIC_SEGMENTATION];

const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Switches every offload of [`UNFINISHED_FRAMES`] off and checks that it is.
pub fn finish_frames(name: &str) -> Result<()> {
    for offload in UNFINISHED_FRAMES {
        ethtool(name, EthtoolValue { command: offload.set, data: 0 })
            .with_context(|| format!("switch {} off on {name}", offload.name))?;
        ensure!(!offload_is_on(name, offload)?, "{} stays on at {name}", offload.name);
    }
    Ok(())
}

/// Whether an offload of a device is on.
pub fn offload_is_on(name: &str, offload: Offload) -> Result<bool> {
    let value = ethtool(name, EthtoolValue { command: offload.get, data: 0 });
    Ok(value.with_context(|| format!("read {} of {name}", offload.name))? != 0)
}

fn ethtool(name: &str, mut value: EthtoolValue) -> io::Result<u32> {
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: `request` names a device and points to `value`, which the command reads and writes; both live on.
    let done = unsafe { libc::ioctl(any.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
}

/// What a [`Verdict`] program says of every frame (`enum xdp_action`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Drop = 1,
    Pass = 2,
    /// Back to where it came from, unchanged.
    Tx = 3,
}

/// An XDP program attached to a device in native mode, that gives every frame the same verdict. Dropping it detaches it.
pub struct Gate(OwnedFd);

impl Gate {
    /// Attaches a passing gate. A veth device delivers what its peer sends by XDP_TX only if it has such a program.
    pub fn attach(name: &str) -> Result<Self> {
        let program = load(Verdict::Pass)?;
        let link = LinkCreate {
            program: program.as_raw_fd(),
            interface: super::netlink::index(name)?,
            attach_type: BPF_XDP,
            flags: XDP_FLAGS_DRV_MODE,
        };
        Ok(Self(
            bpf(BPF_LINK_CREATE, &link)
                .with_context(|| format!("attach XDP to {name} in native mode"))?,
        ))
    }

    /// Changes the verdict between two frames; the device has a program all along.
    pub fn set(&self, verdict: Verdict) -> Result<()> {
        let program = load(verdict)?;
        let update = LinkUpdate {
            link: self.0.as_raw_fd(),
            program: program.as_raw_fd(),
            flags: 0,
            old_program: 0,
        };
        bpf_call(BPF_LINK_UPDATE, &update).context("replace the XDP program of a switch port")?;
        Ok(())
    }
}

/// What `bpftool` and weir call a gate's program.
const GATE_NAME: &[u8; 16] = b"lab_gate\0\0\0\0\0\0\0\0";
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// First fields of `union bpf_attr` for BPF_PROG_LOAD; what follows counts as zero.
#[repr(C)]
struct ProgLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    /// Log level, size and buffer, kernel version and flags.
    unused: [u32; 6],
    name: [u8; 16],
}

/// The same for BPF_LINK_CREATE.
#[repr(C)]
struct LinkCreate {
    program: RawFd,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

/// The same for BPF_LINK_UPDATE.
#[repr(C)]
struct LinkUpdate {
    link: RawFd,
    program: RawFd,
    flags: u32,
    old_program: u32,
}

/// Loads `r0 = verdict; exit`.
fn load(verdict: Verdict) -> Result<OwnedFd> {
    let code = [
        Instruction { code: 0xb7, registers: 0, offset: 0, immediate: verdict as i32 },
        Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 },
    ];
    let license = c"Apache-2.0";
    let program = ProgLoad {
        kind: BPF_PROG_TYPE_XDP,
        count: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        unused: [0; 6],
        name: *GATE_NAME,
    };
    bpf(BPF_PROG_LOAD, &program).context("load an XDP program")
}

/// A bpf(2) command that returns a new file descriptor.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let fd = bpf_call(command, attributes)?;
    // SAFETY: the kernel has just made this descriptor for us (always close-on-exec).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf_call<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    let (pointer, size) = (std::ptr::from_ref(attributes), size_of::<T>());
    // SAFETY: the kernel reads `size` bytes at `pointer`; the buffers that they name outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}
