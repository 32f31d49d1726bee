//! Loads the BPF object: maps made or taken over, settings set, programs verified. Attaches nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{MapError, MapInfo},
    programs::{ProgramError, SchedClassifier, Xdp},
};
use lb_common::{
    abi::{map, program},
    globals::{SETTINGS, Settings, mask},
    net::{Addr, Port},
};

use super::{
    connect,
    keys::Keys,
    maps::{ArrivalMap, Maps, OpenError, require_bpffs},
    migrate::{Former, MigrateError, Takeover},
    mmap::{Access, Mapped},
    object,
    spec::{Mismatch, SPECS, links_dir, maps_dir},
};
use crate::model::{AgentSettings, Limits, Node};

/// Lines of the verifier's log that an error shows.
const VERIFIER_LINES: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{}", object::NOT_BUILT)]
    NotBuilt,
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("folder {path}: {source}")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "a pinned map cannot be taken over: the limits of the Agent object were changed (put them back), or another weir made it (run `weir agent --cleanup` first, which stops serving and forgets all flows): {0}"
    )]
    Pinned(#[from] Mismatch),
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    #[error("pinned map {map}: {source}")]
    Map {
        map: &'static str,
        #[source]
        source: MapError,
    },
    #[error(
        "the kernel refused the data plane (needs Linux 5.15 or newer, root or CAP_BPF and CAP_NET_ADMIN): {0}"
    )]
    Object(#[source] Box<EbpfError>),
    #[error(
        "the kernel refused program {program} (WEIR_LOG=debug shows the verifier's log): {reason}"
    )]
    Program { program: &'static str, reason: String },
    #[error("the data plane has no program {0}")]
    NoProgram(&'static str),
}

/// The loaded object.
pub struct Loaded {
    /// Holds the programs.
    pub(super) ebpf: Ebpf,
    pub(super) pin_dir: PathBuf,
    limits: Limits,
    settings: Settings,
    /// Another layout's maps, which the programs look at too.
    former: Option<Former>,
}

impl Loaded {
    /// The words of `STATE`, for whoever writes the heartbeat.
    pub fn state_words(&self) -> Result<Mapped<u64>, OpenError> {
        Maps::open_state(&maps_dir(&self.pin_dir))
    }

    /// The former layout's maps, if one is being taken over from. To be settled when these programs
    /// are on all devices.
    pub fn take_former(&mut self) -> Option<Unsettled> {
        let former = self.former.take()?;
        Some(Unsettled {
            pin_dir: self.pin_dir.clone(),
            limits: self.limits,
            settings: self.settings,
            former,
        })
    }
}

/// A take-over whose flows are still in two layouts' maps.
pub struct Unsettled {
    pin_dir: PathBuf,
    limits: Limits,
    settings: Settings,
    former: Former,
}

impl Unsettled {
    /// Moves all flows and loads the programs that look at this layout's maps only. When those are on
    /// all devices, the former layout may be forgotten. Blocks for as long as the flows take: ten to
    /// fifty microseconds each.
    pub fn settle(mut self) -> Result<(Loaded, Former), LoadError> {
        let dir = maps_dir(&self.pin_dir);
        let flows = self.former.empty(&dir)?;
        tracing::info!(flows, "flows of the former layout moved");
        let ebpf = programs(&dir, None, &self.limits, &self.settings)?;
        let Self { pin_dir, limits, settings, former } = self;
        Ok((Loaded { ebpf, pin_dir, limits, settings, former: None }, former))
    }
}

/// The constants that the programs are loaded with.
pub fn settings(agent: &AgentSettings, node: &Node) -> Settings {
    let keys = Keys::of(&agent.seed);
    let own = |v4| node.addresses.iter().find(|address| address.is_ipv4() == v4);
    let own = |v4| own(v4).map_or_else(Addr::default, |address| Addr::from(*address));
    Settings {
        flow_key: keys.flow,
        seed_tag: keys.tag,
        own_v4: own(true),
        own_v6: own(false),
        tunnel_port: Port::new(agent.tunnel_port),
        reserved: [0; 2],
        new_flows: agent.new_flows.per_second,
        names_errors: connect::names_errors().into(),
        source_mask_v4: mask(96 + agent.new_flows.prefix_v4),
        source_mask_v6: mask(agent.new_flows.prefix_v6),
        vni: agent.vni,
        yield_after: u32::try_from(agent.hold_downs.mute.as_millis()).unwrap_or(u32::MAX),
        takes_over: 0,
    }
}

/// Loads programs over the pinned maps, which are made where they are missing, or taken over from
/// another layout's.
pub fn load(
    pin_dir: &Path,
    limits: &Limits,
    settings: &Settings,
) -> Result<(Loaded, Maps), LoadError> {
    if !object::is_built() {
        return Err(LoadError::NotBuilt);
    }
    require_bpffs(pin_dir)?;
    let links = links_dir(pin_dir);
    fs::create_dir_all(&links).map_err(|source| LoadError::Folder { path: links, source })?;
    raise_memlock();
    let takeover = Takeover::begin(pin_dir, limits)?;
    let ebpf = programs(takeover.dir(), takeover.former(), limits, settings)?;
    let former = takeover.commit()?;
    let maps = Maps::open_with(&maps_dir(pin_dir), Access::ReadWrite)?;
    let (limits, settings) = (*limits, *settings);
    Ok((Loaded { ebpf, pin_dir: pin_dir.to_owned(), limits, settings, former }, maps))
}

/// Programs, verified, over the maps of a folder, and over the arrivals of a former layout.
fn programs(
    dir: &Path,
    former: Option<&Former>,
    limits: &Limits,
    settings: &Settings,
) -> Result<Ebpf, LoadError> {
    check_pinned(dir, limits)?;
    let mut loader = EbpfLoader::new();
    for spec in &SPECS {
        loader.map_pin_path(spec.name, dir.join(spec.name));
        if let Some(entries) = spec.entries(limits) {
            loader.map_max_entries(spec.name, entries);
        }
    }
    let mut settings = *settings;
    for (which, path) in former.iter().flat_map(|former| former.arrivals()) {
        loader.map_pin_path(old_name(which), path);
        settings.takes_over = 1;
    }
    loader.override_global(SETTINGS, &settings, true);
    let mut ebpf =
        loader.load(object::OBJECT).map_err(|error| LoadError::Object(Box::new(error)))?;
    // What the object made is checked as well: it may not be what this table says.
    check_pinned(dir, limits)?;
    xdp(&mut ebpf)?.load().map_err(|error| refused(program::INGRESS, &error))?;
    classifier(&mut ebpf)?.load().map_err(|error| refused(program::EGRESS, &error))?;
    for (program, info) in [
        (program::INGRESS, xdp(&mut ebpf)?.info()),
        (program::EGRESS, classifier(&mut ebpf)?.info()),
    ] {
        let instructions = info.ok().and_then(|info| info.verified_instruction_count());
        tracing::debug!(program, instructions, takes_over = settings.takes_over, "verified");
    }
    Ok(ebpf)
}

fn old_name(which: ArrivalMap) -> &'static str {
    match which {
        ArrivalMap::Opening => map::OLD_OPENING,
        ArrivalMap::Established => map::OLD_ESTABLISHED,
        ArrivalMap::Datagrams => map::OLD_DATAGRAMS,
    }
}

/// With the end of the verifier's log, which says why; all of it is thousands of lines.
pub(super) fn refused(program: &'static str, error: &ProgramError) -> LoadError {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return LoadError::Program { program, reason: error.to_string() };
    };
    let log = verifier_log.to_string();
    tracing::debug!(program, "{log}");
    let lines: Vec<_> = log.lines().collect();
    let end = lines[lines.len().saturating_sub(VERIFIER_LINES)..].join("\n");
    LoadError::Program { program, reason: format!("{io_error}\n{end}") }
}

pub(super) fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp, LoadError> {
    let found = ebpf.program_mut(program::INGRESS).and_then(|found| found.try_into().ok());
    found.ok_or(LoadError::NoProgram(program::INGRESS))
}

pub(super) fn classifier(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, LoadError> {
    let found = ebpf.program_mut(program::EGRESS).and_then(|found| found.try_into().ok());
    found.ok_or(LoadError::NoProgram(program::EGRESS))
}

/// aya takes pinned maps as they are.
fn check_pinned(dir: &Path, limits: &Limits) -> Result<(), LoadError> {
    for spec in &SPECS {
        let path = dir.join(spec.name);
        if !path.exists() {
            continue;
        }
        let info =
            MapInfo::from_pin(&path).map_err(|source| LoadError::Map { map: spec.name, source })?;
        spec.check(&info, Some(limits))?;
    }
    Ok(())
}

/// Kernels before 5.11 charge maps against this limit; where it cannot be raised they say so.
fn raise_memlock() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!(%error, "RLIMIT_MEMLOCK stays as it is");
    }
}
