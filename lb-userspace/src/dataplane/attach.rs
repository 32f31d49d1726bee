//! Puts the programs on devices and leaves them there: links are pinned, so that they outlive the
//! agent, and a restarted one replaces the program inside the link, without a gap.
//!
//! Never displaces a program of others.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
    links::{FdLink, LinkError, PinnedLink},
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
    xdp::XdpLink,
};
use lb_common::abi::program;

use super::{
    connect,
    hooks::{self, Hooks},
    inspect::program_name,
    load::{LoadError, Loaded, classifier, xdp},
    migrate,
    spec::links_dir,
};
use crate::report::status::Attachment;

/// The lowest priority that clsact has, and the place of our filter there.
const LAST_PRIORITY: u16 = u16::MAX;
const OWN_HANDLE: u16 = 1;

/// Longest wait for the kernel to detach what is no longer pinned, and the time between two looks.
const DETACH_WAIT: Duration = Duration::from_secs(5);
const DETACH_STEP: Duration = Duration::from_millis(5);

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error(
        "there is no interface {0}: name one that `ip link` shows as uplink in the Agent object"
    )]
    NoInterface(String),
    #[error(
        "{interface} has an XDP program of somebody else: {name} (id {id}); weir displaces nobody: remove it (ip link set dev {interface} xdp off), or name another uplink"
    )]
    Foreign { interface: String, name: String, id: u32 },
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("netlink about {interface}: {source}")]
    Netlink {
        interface: String,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("{program} cannot be attached to {interface}: {source}")]
    Program {
        program: &'static str,
        interface: String,
        #[source]
        source: Box<ProgramError>,
    },
    #[error(
        "there is no cgroup v2 at /sys/fs/cgroup or /sys/fs/cgroup/unified: processes of this node do not reach VIPs; name where it is mounted (connect.cgroup), or say connect.enabled: false"
    )]
    NoCgroup,
    #[error("connect.cgroup {path}: {source}")]
    Cgroup {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("pin {path}: {message}")]
    Pin { path: PathBuf, message: String },
    #[error(
        "{interface} keeps the program with id {id}, although its pin is gone: another process holds its link"
    )]
    StillThere { interface: String, id: u32 },
}

impl Loaded {
    /// Puts `egress` at the end of what a device sends through.
    pub async fn attach_egress(&mut self, interface: &str) -> Result<Attachment, AttachError> {
        let (ifindex, hooks) = look(interface).await?;
        let pin = links_dir(&self.pin_dir).join(format!("egress-{ifindex}"));
        let program = classifier(&mut self.ebpf)?;
        let failed = |source| failed(program::EGRESS, interface, source);
        let tcx = match hooks.egress_filters.is_empty() {
            true => attach_tcx(program, interface, &pin).map_err(failed)?,
            false => Err(format!(
                "filters of others must run before it: {}",
                hooks.egress_filters.join(", ")
            )),
        };
        let (mode, mut reason) = match tcx {
            Ok(link) => {
                pin_link(link, &pin)?;
                if hooks.own_filter {
                    own_filter(interface).and_then(detach).map_err(failed)?;
                }
                ("tcx", None)
            }
            Err(reason) => {
                attach_clsact(program, interface, &hooks).map_err(failed)?;
                unpin(&pin)?;
                ("clsact", Some(reason))
            }
        };
        if let Some(after) = behind(interface) {
            reason = Some(after);
        }
        Ok(Attachment {
            interface: interface.into(),
            program: "egress".into(),
            mode: mode.into(),
            reason,
        })
    }

    /// Looks again: moves `egress` behind filters that came later, and tells who else came.
    pub async fn look_at_egress(&mut self, former: &Attachment) -> Result<Attachment, AttachError> {
        let (_, hooks) = look(&former.interface).await?;
        let in_tcx = former.mode == "tcx";
        if in_tcx && !hooks.egress_filters.is_empty() {
            return self.attach_egress(&former.interface).await;
        }
        let reason = if in_tcx { behind(&former.interface) } else { former.reason.clone() };
        Ok(Attachment { reason, ..former.clone() })
    }

    /// Puts `ingress` on an uplink, in the driver where it can.
    pub async fn attach_ingress(&mut self, interface: &str) -> Result<Attachment, AttachError> {
        let (ifindex, hooks) = look(interface).await?;
        let pin = links_dir(&self.pin_dir).join(format!("ingress-{ifindex}"));
        let program = xdp(&mut self.ebpf)?;
        let failed = |source| failed(program::INGRESS, interface, source);
        let (mode, reason) = if replace_xdp(program, &pin).map_err(failed)? {
            (if hooks.xdp_generic { "generic" } else { "native" }, None)
        } else {
            refuse_foreign(interface, &hooks)?;
            let (link, mode, reason) = attach_xdp(program, interface, ifindex)?;
            pin_link(link, &pin)?;
            (mode, reason)
        };
        Ok(Attachment {
            interface: interface.into(),
            program: "ingress".into(),
            mode: mode.into(),
            reason,
        })
    }
}

async fn look(interface: &str) -> Result<(u32, Hooks), AttachError> {
    let ifindex = nix::net::if_::if_nametoindex(interface)
        .map_err(|_| AttachError::NoInterface(interface.to_owned()))?;
    let hooks = hooks::read(ifindex)
        .await
        .map_err(|source| AttachError::Netlink { interface: interface.to_owned(), source })?;
    Ok((ifindex, hooks))
}

fn refuse_foreign(interface: &str, hooks: &Hooks) -> Result<(), AttachError> {
    let Some(id) = hooks.xdp else { return Ok(()) };
    let name = program_name(id).unwrap_or_else(|| "unknown".to_owned());
    Err(AttachError::Foreign { interface: interface.to_owned(), name, id })
}

/// Replaces the program in the pinned link; false where there is none that still is on a device.
fn replace_xdp(program: &mut Xdp, pin: &Path) -> Result<bool, ProgramError> {
    let Some(link) = pinned(pin) else { return Ok(false) };
    let replaced = XdpLink::try_from(link).map_err(link_error).and_then(|link| {
        let id = program.attach_to_link(link)?;
        program.take_link(id)
    });
    match replaced {
        Ok(_) => Ok(true),
        Err(error) if is_defunct(&error) => {
            std::fs::remove_file(pin).map_err(ProgramError::IOError)?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn attach_xdp(
    program: &mut Xdp,
    interface: &str,
    ifindex: u32,
) -> Result<(FdLink, &'static str, Option<String>), AttachError> {
    let mut attach = |mode| {
        let id = program.attach_to_if_index(ifindex, mode)?;
        FdLink::try_from(program.take_link(id)?).map_err(link_error)
    };
    let refused = match attach(XdpMode::Driver) {
        Ok(link) => return Ok((link, "native", None)),
        Err(error) => error,
    };
    match attach(XdpMode::Skb) {
        Ok(link) => {
            let reason = format!("the driver refuses native mode: {}", chain(&refused));
            Ok((link, "generic", Some(reason)))
        }
        Err(error) => Err(failed(program::INGRESS, interface, error)),
    }
}

/// A tcx link with the program in it; or why there is none.
fn attach_tcx(
    program: &mut SchedClassifier,
    interface: &str,
    pin: &Path,
) -> Result<Result<FdLink, String>, ProgramError> {
    if let Some(link) = pinned(pin) {
        let replaced = SchedClassifierLink::try_from(link).map_err(link_error);
        match replaced.and_then(|link| program.attach_to_link(link)) {
            Ok(id) => return FdLink::try_from(program.take_link(id)?).map(Ok).map_err(link_error),
            Err(error) if is_defunct(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let last = TcAttachOptions::TcxOrder(LinkOrder::last());
    match program.attach_with_options(interface, TcAttachType::Egress, last) {
        Ok(id) => FdLink::try_from(program.take_link(id)?).map(Ok).map_err(link_error),
        Err(ProgramError::SyscallError(error)) => {
            Ok(Err(format!("the kernel has no tcx: {error}")))
        }
        Err(error) => Err(error),
    }
}

/// At the lowest priority; one that is there already gets the program anew.
fn attach_clsact(
    program: &mut SchedClassifier,
    interface: &str,
    hooks: &Hooks,
) -> Result<(), ProgramError> {
    let id = if hooks.own_filter {
        program.attach_to_link(own_filter(interface)?)?
    } else {
        match qdisc_add_clsact(interface) {
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
            result => result?,
        }
        let options = NlOptions {
            priority: LAST_PRIORITY,
            handle: TcHandle::new(0, OWN_HANDLE),
            classid: None,
        };
        program.attach_with_options(
            interface,
            TcAttachType::Egress,
            TcAttachOptions::Netlink(options),
        )?
    };
    // Dropped, it would detach: the filter must outlive the agent.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

fn own_filter(interface: &str) -> Result<SchedClassifierLink, ProgramError> {
    let handle = TcHandle::new(0, OWN_HANDLE);
    SchedClassifierLink::attached(interface, TcAttachType::Egress, LAST_PRIORITY, handle, None)
        .map_err(|error| TcError::IoError(error).into())
}

fn detach(link: SchedClassifierLink) -> Result<(), ProgramError> {
    aya::programs::Link::detach(link)
}

/// What the first program behind ours at the tcx hook means.
fn behind(interface: &str) -> Option<String> {
    let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Egress).ok()?;
    let own = |info: &aya::programs::ProgramInfo| {
        program::EGRESS.starts_with(info.name_as_str().unwrap_or("?"))
    };
    let behind = programs.iter().skip_while(|info| !own(info)).find(|info| !own(info))?;
    let name = behind.name_as_str().unwrap_or("a program");
    Some(format!("runs before {name} (id {}), which sees the VIP as source", behind.id()))
}

fn pinned(pin: &Path) -> Option<FdLink> {
    match PinnedLink::from_pin(pin) {
        Ok(link) => Some(link.into()),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            None
        }
        Err(error) => {
            tracing::warn!(pin = %pin.display(), %error, "pinned link cannot be opened");
            None
        }
    }
}

/// Pins a link, in the place of one that is there.
pub(super) fn pin_link(link: FdLink, pin: &Path) -> Result<(), AttachError> {
    let failed = |message: String| AttachError::Pin { path: pin.to_owned(), message };
    let is_same = |there: &FdLink| {
        let ids = [&link, there].map(|link| link.info().ok().map(|info| info.id()));
        ids[0].is_some() && ids[0] == ids[1]
    };
    match pinned(pin) {
        Some(there) if is_same(&there) => return Ok(()),
        Some(_) => unpin(pin)?,
        None => {}
    }
    link.pin(pin).map(drop).map_err(|error| failed(chain(&error)))
}

pub(super) fn unpin(pin: &Path) -> Result<(), AttachError> {
    match std::fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(AttachError::Pin { path: pin.to_owned(), message: error.to_string() })
        }
        _ => Ok(()),
    }
}

/// The link's device is gone.
fn is_defunct(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error)
        if error.io_error.raw_os_error() == Some(libc::ENOLINK))
}

pub(super) fn link_error(error: LinkError) -> ProgramError {
    match error {
        LinkError::SyscallError(error) => error.into(),
        error => ProgramError::IOError(io::Error::other(error)),
    }
}

pub(super) fn failed(program: &'static str, interface: &str, source: ProgramError) -> AttachError {
    AttachError::Program { program, interface: interface.to_owned(), source: Box::new(source) }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// Detaches everything that is pinned below a folder and removes the pins; also weir's filters on
/// these devices. This node serves nothing any more.
pub async fn cleanup(pin_dir: &Path, devices: &[String]) -> Result<Vec<String>, AttachError> {
    let mut removed = Vec::new();
    for device in devices {
        let Ok((_, hooks)) = look(device).await else { continue };
        if hooks.own_filter {
            own_filter(device)
                .and_then(detach)
                .map_err(|source| failed(program::EGRESS, device, source))?;
            removed.push(format!("filter on {device}"));
        }
    }
    removed.extend(connect::detach(&links_dir(pin_dir), None)?);
    let mut programs = BTreeSet::new();
    let maps = migrate::folders(pin_dir).into_iter().map(|folder| folder.join("maps"));
    // Links first: programs must not run over maps that are going away.
    for dir in std::iter::once(links_dir(pin_dir)).chain(maps) {
        let entries = dir.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
        for path in entries.collect::<Vec<_>>() {
            if dir == links_dir(pin_dir) {
                if !is_own(&path) {
                    continue;
                }
                programs
                    .extend(pinned(&path).and_then(|link| Some(link.info().ok()?.program_id())));
            }
            unpin(&path)?;
            removed.push(path.display().to_string());
        }
        for folder in
            [dir.as_path(), dir.parent().filter(|parent| *parent != pin_dir).unwrap_or(&dir)]
        {
            // Not empty or not there: then there is nothing of ours to remove.
            let _ = std::fs::remove_dir(folder);
        }
    }
    let _ = std::fs::remove_dir(pin_dir);
    detached(&programs, devices).await?;
    Ok(removed)
}

/// Whether a pinned link is named as ours are.
fn is_own(link: &Path) -> bool {
    let name = link.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let index = name.strip_prefix("egress-").or(name.strip_prefix("ingress-"));
    index.is_some_and(|index| index.parse::<u32>().is_ok())
}

/// Waits until none of these programs is on any of the devices: the kernel detaches a link some time
/// after its last pin and descriptor are gone.
async fn detached(programs: &BTreeSet<u32>, devices: &[String]) -> Result<(), AttachError> {
    let deadline = Instant::now() + DETACH_WAIT;
    for device in devices {
        while let Ok((_, hooks)) = look(device).await {
            let tcx = SchedClassifier::query_tcx(device, TcAttachType::Egress);
            let tcx = tcx.map_or_else(|_| Vec::new(), |(_, programs)| programs);
            let there = hooks.xdp.into_iter().chain(tcx.iter().map(|info| info.id()));
            let Some(id) = there.into_iter().find(|id| programs.contains(id)) else { break };
            if Instant::now() >= deadline {
                return Err(AttachError::StillThere { interface: device.clone(), id });
            }
            tokio::time::sleep(DETACH_STEP).await;
        }
    }
    Ok(())
}
