//! Puts the programs on a cgroup that calls on sockets pass, and leaves them there: links are pinned, so
//! that they outlive the agent, and a restarted one replaces the program inside the link, without a gap.
//!
//! Programs of others on the same cgroup run as well; nobody is displaced.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use aya::{
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramError, ProgramType, links::FdLink},
    sys::{BpfHelper, SyscallError, is_helper_supported},
};
use lb_common::abi::program;

use super::{
    attach::{AttachError, failed, link_error, pin_link, unpin},
    grace::bpf,
    load::{LoadError, Loaded, refused},
    spec::links_dir,
};
use crate::report::status::Attachment;

/// Where cgroup v2 is mounted: alone, or beside v1.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: libc::c_long = 0x6367_7270;

/// Commands of linux/bpf.h.
const OBJECT_GET: libc::c_int = 7;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

/// The part of `union bpf_attr` for an object's pin.
#[repr(C)]
struct PinCommand {
    path: u64,
    fd: u32,
    flags: u32,
}

/// And for a link.
#[repr(C)]
struct LinkCommand {
    link: u32,
    program: u32,
    flags: u32,
    former_program: u32,
}

/// Whether a program may say with which error a call fails; otherwise it is EPERM.
pub fn names_errors() -> bool {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval)
        .unwrap_or(false)
}

impl Loaded {
    /// Puts the programs on a cgroup; without one named, on the root of cgroup v2. Those that were on
    /// another one are taken off.
    pub fn attach_connect(&mut self, cgroup: Option<&Path>) -> Result<Attachment, AttachError> {
        let cgroup = match cgroup {
            Some(named) => named.to_owned(),
            None => root().ok_or(AttachError::NoCgroup)?,
        };
        let folder = File::open(&cgroup)
            .and_then(|folder| Ok((folder.metadata()?.ino(), folder)))
            .map_err(|source| AttachError::Cgroup { path: cgroup.clone(), source })?;
        let (id, folder) = folder;
        let links = links_dir(&self.pin_dir);
        for name in program::CONNECT {
            let program = self.sock_addr(name)?;
            let failed = |source| failed(name, &cgroup.display().to_string(), source);
            let pin = links.join(pin_name(name, id));
            if let Some(link) = attach(program, &folder, &pin).map_err(failed)? {
                pin_link(link, &pin)?;
            }
        }
        detach(&links, Some(id))?;
        let reason = (!is_root(&cgroup)).then(|| {
            "not the root of cgroup v2: serves processes of this cgroup and of those below it"
                .into()
        });
        Ok(Attachment {
            interface: cgroup.display().to_string(),
            program: "connect".into(),
            mode: "cgroup".into(),
            reason,
        })
    }

    /// Takes the programs off.
    pub fn detach_connect(&self) -> Result<(), AttachError> {
        detach(&links_dir(&self.pin_dir), None).map(drop)
    }

    /// The program, verified. They are no part of what an agent cannot start without.
    fn sock_addr(&mut self, name: &'static str) -> Result<&mut CgroupSockAddr, LoadError> {
        let found = self.ebpf.program_mut(name).and_then(|found| found.try_into().ok());
        let program: &mut CgroupSockAddr = found.ok_or(LoadError::NoProgram(name))?;
        if program.fd().is_err() {
            program.load().map_err(|error| refused(name, &error))?;
        }
        Ok(program)
    }
}

/// The root of cgroup v2, as far as this process sees it.
pub fn root() -> Option<PathBuf> {
    ROOTS.into_iter().map(PathBuf::from).find(|path| {
        nix::sys::statfs::statfs(path).is_ok_and(|found| found.filesystem_type().0 == CGROUP2_MAGIC)
    })
}

/// Whether a cgroup is the root: it alone has no type.
pub fn is_root(cgroup: &Path) -> bool {
    cgroup.join("cgroup.procs").exists() && !cgroup.join("cgroup.type").exists()
}

/// Of one program on one cgroup.
fn pin_name(program: &str, cgroup: u64) -> String {
    format!("{}-{cgroup}", hook(program))
}

fn hook(program: &str) -> &str {
    program.strip_prefix("weir_").unwrap_or(program)
}

/// The cgroup of a pinned link; none where it is no link of ours to a cgroup.
pub fn cgroup_of(pin: &Path) -> Option<u64> {
    let (name, cgroup) = pin.file_name()?.to_str()?.rsplit_once('-')?;
    let ours = program::CONNECT.into_iter().any(|program| hook(program) == name);
    cgroup.parse().ok().filter(|_| ours)
}

/// Puts a program into the pinned link, or into a new one, which is returned.
fn attach(
    program: &mut CgroupSockAddr,
    cgroup: &File,
    pin: &Path,
) -> Result<Option<FdLink>, ProgramError> {
    if let Some(link) = pinned(pin).map_err(ProgramError::IOError)? {
        let fd = program.fd()?.as_fd().as_raw_fd();
        match command(LINK_UPDATE, &link, fd) {
            Ok(()) => return Ok(None),
            // Its cgroup is gone.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                fs::remove_file(pin).map_err(ProgramError::IOError)?;
            }
            Err(io_error) => return Err(SyscallError { call: "bpf_link_update", io_error }.into()),
        }
    }
    // Links stand beside each other, whatever the mode.
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    FdLink::try_from(program.take_link(id)?).map(Some).map_err(link_error)
}

/// Takes the programs off at once, but those of one cgroup, and removes their pins, which it returns.
pub fn detach(links: &Path, but: Option<u64>) -> Result<Vec<String>, AttachError> {
    let mut removed = Vec::new();
    let entries = links.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    for pin in entries.filter(|pin| cgroup_of(pin).is_some_and(|cgroup| Some(cgroup) != but)) {
        let detached = pinned(&pin).and_then(|link| match link {
            Some(link) => command(LINK_DETACH, &link, 0),
            None => Ok(()),
        });
        match detached {
            Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => {
                return Err(AttachError::Pin { path: pin, message: error.to_string() });
            }
            _ => unpin(&pin)?,
        }
        removed.push(pin.display().to_string());
    }
    Ok(removed)
}

fn command(command: libc::c_int, link: &OwnedFd, program: i32) -> io::Result<()> {
    let link = link.as_raw_fd() as u32;
    let mut arguments = LinkCommand { link, program: program as u32, flags: 0, former_program: 0 };
    bpf(command, &mut arguments).map(drop)
}

/// The pinned link; none where there is none.
fn pinned(pin: &Path) -> io::Result<Option<OwnedFd>> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut arguments = PinCommand { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    match bpf(OBJECT_GET, &mut arguments) {
        // SAFETY: a new descriptor that nobody else has.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_pins_are_known_by_their_names() {
        for name in program::CONNECT {
            assert_eq!(cgroup_of(&Path::new("/pins").join(pin_name(name, 42))), Some(42));
        }
        for other in ["egress-3", "connect4", "connect4-x", "connect5-1", "other"] {
            assert_eq!(cgroup_of(Path::new(other)), None, "{other}");
        }
    }
}
