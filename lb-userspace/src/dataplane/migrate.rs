//! Takes over from a weir of another layout, older or newer, without losing a flow.
//!
//! Below the pin folder stand `v3` (the layout in force), `former-v2` (what is still being taken over
//! from) and `next` (not yet complete, of no use to anybody). A take-over goes:
//! 1. `next` gets all maps of this layout: one of the same form is the same map under a second pin;
//!    of all others, but arrivals, the contents are copied. The former agent is dead, so nothing of
//!    this changes meanwhile, save what the data plane counts.
//! 2. `v2` becomes `former-v2`, `next` becomes `v3`. From here on a successor goes on with 3.
//! 3. Programs that look for arrivals in `v3` first and then in `former-v2` replace the former ones:
//!    `egress` first, which makes no arrivals and finds all that `ingress` makes, then `ingress`.
//! 4. Arrivals are moved; programs that know of one layout only replace these; `former-v2` goes.
//!
//! Where it was cut off between 2 and 4 and a weir of `v2` comes, that takes its own arrivals back: they become part of
//! its `next`, with `v3` as what it takes over from, so that both are looked at whatever programs are attached.
//!
//! A map that cannot be carried stops the take-over before anything was changed: the programs of the
//! former layout serve on, with all their flows.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapError, MapInfo};
use lb_common::{abi::LAYOUT_VERSION, arrival::ArrivalWords};

use super::{
    grace::Barrier,
    maps::ArrivalMap,
    raw::Raw,
    spec::{Entries, Kind, Mismatch, SPECS, Spec, layout_dir, maps_dir},
};
use crate::model::Limits;

/// Not yet complete.
const NEXT: &str = "next";
/// Before the name of the folder that is taken over from.
const FORMER: &str = "former-";

/// Arrivals that are moved between two grace periods, which take tens of milliseconds.
const BATCH: usize = 8192;

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error(
        "this weir (layout {LAYOUT_VERSION}) cannot take over from the one of layout {layout}: {mismatch}; its programs serve on without an agent: start that weir again, or run `weir agent --cleanup` first, which stops serving and forgets all flows"
    )]
    Unfit { layout: u32, mismatch: Mismatch },
    #[error("pinned map {path}: {source}")]
    Map {
        path: PathBuf,
        #[source]
        source: MapError,
    },
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Another layout's maps, which are being taken over from.
pub struct Former {
    layout: u32,
    /// Its folder of maps.
    maps: PathBuf,
    /// Maps of arrivals that are not one and the same in both layouts.
    arrivals: Vec<ArrivalMap>,
    counted: Vec<Counted>,
}

/// A map of counters whose form changed, with what was copied of it.
struct Counted {
    name: &'static str,
    copied: Vec<Vec<u8>>,
}

/// A start of an agent, until its maps are in force.
pub struct Takeover {
    pin_dir: PathBuf,
    /// Where the maps are pinned for now.
    dir: PathBuf,
    former: Option<Former>,
}

impl Takeover {
    /// Finds what is there and makes `dir` hold what can be shared with it. Changes nothing that is
    /// in force.
    pub fn begin(pin_dir: &Path, limits: &Limits) -> Result<Self, MigrateError> {
        let next = pin_dir.join(NEXT);
        remove(&next)?;
        if let Some(layout) = in_force(pin_dir) {
            // Of a life that ended right after it had taken its own layout's arrivals back.
            remove(&folder(pin_dir, FORMER, layout))?;
        }
        let former = former_in(pin_dir);
        let start = |dir: PathBuf, former| {
            fs::create_dir_all(&dir).map_err(at(&dir))?;
            Ok(Self { pin_dir: pin_dir.to_owned(), dir, former })
        };
        let Some(layout) = in_force(pin_dir) else {
            let Some(interrupted) = former else { return start(maps_dir(pin_dir), None) };
            // Between the two renames of step 2: as before them.
            rename(&folder(pin_dir, FORMER, interrupted), &layout_dir(pin_dir, interrupted))?;
            return Self::begin(pin_dir, limits);
        };
        if layout == LAYOUT_VERSION {
            // Whoever began this has died after step 2.
            let own = maps_dir(pin_dir);
            let former = former.map(|layout| Former::find(pin_dir, layout, &own)).transpose()?;
            return start(own, former);
        }
        let (dir, maps) = (next.join("maps"), layout_dir(pin_dir, layout).join("maps"));
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        match former {
            Some(LAYOUT_VERSION) if take_back(pin_dir, &dir, limits)? => {}
            Some(interrupted) => Former::find(pin_dir, interrupted, &maps)?.merge_into(&maps)?,
            None => {}
        }
        let arrivals = share(layout, &maps, &dir, limits)?;
        start(dir, Some(Former { layout, maps, arrivals, counted: Vec::new() }))
    }

    /// Where programs find their maps, and where missing ones are to be made.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the programs must look at too.
    pub fn former(&self) -> Option<&Former> {
        self.former.as_ref()
    }

    /// Puts the maps in force, all of which are there. What was taken over from, if anything was.
    pub fn commit(mut self) -> Result<Option<Former>, MigrateError> {
        let Some(former) = self.former.as_mut() else { return Ok(None) };
        if self.dir != maps_dir(&self.pin_dir) {
            former.counted = copy_all(former, &self.dir)?;
            let aside = folder(&self.pin_dir, FORMER, former.layout);
            rename(&layout_dir(&self.pin_dir, former.layout), &aside)?;
            rename(&self.pin_dir.join(NEXT), &layout_dir(&self.pin_dir, LAYOUT_VERSION))?;
            // What was taken back is in force.
            remove(&folder(&self.pin_dir, FORMER, LAYOUT_VERSION))?;
            former.maps = aside.join("maps");
            tracing::info!(from = former.layout, to = LAYOUT_VERSION, "takes over another layout");
        }
        Ok(self.former)
    }
}

impl Former {
    fn find(pin_dir: &Path, layout: u32, own: &Path) -> Result<Self, MigrateError> {
        let maps = folder(pin_dir, FORMER, layout).join("maps");
        let mut arrivals = Vec::new();
        for which in ArrivalMap::ALL {
            if let Some(there) = info(&maps.join(which.name()))?
                && info(&own.join(which.name()))?.is_none_or(|own| own.id() != there.id())
            {
                arrivals.push(which);
            }
        }
        Ok(Self { layout, maps, arrivals, counted: Vec::new() })
    }

    /// The maps of arrivals that programs must look into beside their own.
    pub fn arrivals(&self) -> impl Iterator<Item = (ArrivalMap, PathBuf)> {
        self.arrivals.iter().map(|which| (*which, self.maps.join(which.name())))
    }

    /// Moves what is left, and adds what was counted between copy and switch. To be called when no
    /// program of the former layout is attached any more. Returns how many flows were moved; blocks.
    pub fn empty(&mut self, own: &Path) -> Result<u64, MigrateError> {
        let barrier = Barrier::new().map_err(at(own))?;
        barrier.wait().map_err(at(own))?;
        let mut moved = 0;
        // Openings first: one that is promoted meanwhile is then found as established.
        for (which, path) in self.arrivals() {
            let (from, to) = (open(&path)?, open(&own.join(which.name()))?);
            moved += move_flows(&from, &to, &barrier).map_err(at(&path))?;
        }
        for Counted { name, copied } in std::mem::take(&mut self.counted) {
            let path = self.maps.join(name);
            let (from, to) = (open(&path)?, open(&own.join(name))?);
            add_counts(&from, &copied, &to).map_err(at(&path))?;
        }
        Ok(moved)
    }

    /// Removes the pins; maps that nothing uses any more are then gone.
    pub fn forget(self) -> Result<(), MigrateError> {
        self.maps.parent().map_or(Ok(()), remove)
    }

    /// Copies arrivals into the layout that took over from this one and died before it was done. Its
    /// programs may still be attached, so nothing is moved.
    fn merge_into(self, maps: &Path) -> Result<(), MigrateError> {
        for (which, path) in self.arrivals() {
            let (from, to) = (open(&path)?, open(&maps.join(which.name()))?);
            for (key, value) in from.first(usize::MAX).map_err(at(&path))? {
                to.make(&key, &to.fit(&from, &value)).map_err(at(&path))?;
            }
        }
        self.forget()
    }
}

/// All folders of maps below the pin folder, whatever their layout and state.
pub fn folders(pin_dir: &Path) -> Vec<PathBuf> {
    let of_layout = |prefix| layouts(pin_dir, prefix).map(move |at| folder(pin_dir, prefix, at));
    of_layout("").chain(of_layout(FORMER)).chain([pin_dir.join(NEXT)]).collect()
}

fn folder(pin_dir: &Path, prefix: &str, layout: u32) -> PathBuf {
    pin_dir.join(format!("{prefix}v{layout}"))
}

fn layouts(pin_dir: &Path, prefix: &'static str) -> impl Iterator<Item = u32> {
    let entries = pin_dir.read_dir().into_iter().flatten().flatten();
    let layout = move |name: &str| name.strip_prefix(prefix)?.strip_prefix('v')?.parse().ok();
    entries.filter_map(move |entry| layout(entry.file_name().to_str()?))
}

/// There is one; of several, which no weir leaves, this layout's counts.
fn in_force(pin_dir: &Path) -> Option<u32> {
    layouts(pin_dir, "").max_by_key(|layout| (*layout == LAYOUT_VERSION, *layout))
}

fn former_in(pin_dir: &Path) -> Option<u32> {
    layouts(pin_dir, FORMER).max()
}

/// Pins this layout's own arrivals in `dir`: another layout was about to take them over. Programs may still be attached
/// that know of no others, and what these note must not be lost. False where limits want another size.
fn take_back(pin_dir: &Path, dir: &Path, limits: &Limits) -> Result<bool, MigrateError> {
    let maps = folder(pin_dir, FORMER, LAYOUT_VERSION).join("maps");
    let arrivals = ArrivalMap::ALL.map(ArrivalMap::name);
    let mut found = Vec::new();
    for spec in SPECS.iter().filter(|spec| arrivals.contains(&spec.name)) {
        let path = maps.join(spec.name);
        match info(&path)?.map(|info| spec.check(&info, Some(limits))) {
            Some(Ok(())) => found.push((path, dir.join(spec.name))),
            Some(Err(_)) => return Ok(false),
            None => {}
        }
    }
    found.iter().try_for_each(|(path, pin)| pin_too(path, pin))?;
    Ok(true)
}

fn pin_too(path: &Path, pin: &Path) -> Result<(), MigrateError> {
    let pinned = MapData::from_pin(path).map_err(map_at(path))?;
    pinned.pin(pin).map_err(|error| at(pin)(io::Error::other(error)))
}

/// Pins maps of the same form in `dir` too. Returns the maps of arrivals that have another one.
fn share(
    layout: u32,
    maps: &Path,
    dir: &Path,
    limits: &Limits,
) -> Result<Vec<ArrivalMap>, MigrateError> {
    let mut arrivals = Vec::new();
    for spec in SPECS.iter().filter(|spec| !matches!(spec.entries, Entries::Object)) {
        let path = maps.join(spec.name);
        let Some(info) = info(&path)? else { continue };
        if spec.check(&info, Some(limits)).is_ok() {
            let pin = dir.join(spec.name);
            if !pin.exists() {
                pin_too(&path, &pin)?;
            }
            continue;
        }
        spec.check_carried(&info).map_err(|mismatch| MigrateError::Unfit { layout, mismatch })?;
        if let Some(which) = ArrivalMap::ALL.into_iter().find(|which| which.name() == spec.name) {
            check_words(spec, &info)
                .map_err(|mismatch| MigrateError::Unfit { layout, mismatch })?;
            arrivals.push(which);
        }
    }
    Ok(arrivals)
}

fn check_words(spec: &Spec, info: &MapInfo) -> Result<(), Mismatch> {
    let least = size_of::<ArrivalWords>() as u32;
    if info.value_size() >= least {
        return Ok(());
    }
    let (found, expected) = (info.value_size().to_string(), format!("at least {least}"));
    Err(Mismatch { map: spec.name, property: "value size", found, expected })
}

/// Copies what is neither shared nor arrivals.
fn copy_all(former: &Former, dir: &Path) -> Result<Vec<Counted>, MigrateError> {
    let mut counted = Vec::new();
    for spec in SPECS
        .iter()
        .filter(|spec| !matches!(spec.kind, Kind::LruHash | Kind::SocketStorage))
        .filter(|spec| !matches!(spec.entries, Entries::Object))
    {
        let (path, own) = (former.maps.join(spec.name), dir.join(spec.name));
        let (Some(there), Some(here)) = (info(&path)?, info(&own)?) else { continue };
        if there.id() == here.id() {
            continue;
        }
        let (from, to) = (open(&path)?, open(&own)?);
        let copied = copy(&from, &to).map_err(at(&path))?;
        if spec.kind == Kind::PerCpuArray {
            counted.push(Counted { name: spec.name, copied });
        } else if let Some(beyond) = copied.get(to.entries() as usize..)
            && beyond.iter().any(|value| value.iter().any(|byte| *byte != 0))
        {
            let (found, expected) = (from.entries().to_string(), to.entries().to_string());
            let mismatch =
                Mismatch { map: spec.name, property: "number of entries", found, expected };
            return Err(MigrateError::Unfit { layout: former.layout, mismatch });
        }
    }
    Ok(counted)
}

/// Copies all entries for which there is room. Returns an array's values.
fn copy(from: &Raw, to: &Raw) -> io::Result<Vec<Vec<u8>>> {
    if !from.is_array() {
        for (key, value) in from.first(usize::MAX)? {
            to.put(&key, &to.fit(from, &value))?;
        }
        return Ok(Vec::new());
    }
    let mut values = Vec::new();
    for index in 0..from.entries() {
        let value = from.get(&index.to_ne_bytes())?.unwrap_or_default();
        // A new array is zero.
        if index < to.entries() && value.iter().any(|byte| *byte != 0) {
            to.put(&index.to_ne_bytes(), &to.fit(from, &value))?;
        }
        values.push(value);
    }
    Ok(values)
}

/// Moves all flows. Programs that look into both maps may run, none that knows only `from`.
fn move_flows(from: &Raw, to: &Raw, barrier: &Barrier) -> io::Result<u64> {
    let mut moved = 0;
    loop {
        let batch = from.first(BATCH)?;
        if batch.is_empty() {
            return Ok(moved);
        }
        let mut made = Vec::new();
        for (key, value) in &batch {
            made.push(to.make(key, &to.fit(from, value))?);
        }
        // Programs that looked before the flow was here have written where it was, and ended.
        barrier.wait()?;
        for ((key, value), made) in batch.iter().zip(made) {
            let now = from.get(key)?;
            let copy = to.fit(from, value);
            if made && now.as_ref() != Some(value) && to.get(key)?.as_ref() == Some(&copy) {
                match now {
                    Some(now) => to.replace(key, &to.fit(from, &now))?,
                    None => to.remove(key)?,
                };
            }
            from.remove(key)?;
            moved += u64::from(made);
        }
    }
}

/// Adds what was counted after the copy. A packet that is counted within the microsecond between
/// reading and writing one counter is lost to it.
fn add_counts(from: &Raw, copied: &[Vec<u8>], to: &Raw) -> io::Result<()> {
    for (index, before) in (0..to.entries()).zip(copied) {
        let key = index.to_ne_bytes();
        let now = from.get(&key)?.unwrap_or_default();
        if now == *before {
            continue;
        }
        let more = words(&now).zip(words(before)).map(|(now, before)| now.wrapping_sub(before));
        let more: Vec<u8> = more.flat_map(u64::to_ne_bytes).collect();
        let sum = to.get(&key)?.unwrap_or_default();
        let more = to.fit(from, &more);
        let sum = words(&sum).zip(words(&more)).map(|(sum, more)| sum.wrapping_add(more));
        to.put(&key, &sum.flat_map(u64::to_ne_bytes).collect::<Vec<_>>())?;
    }
    Ok(())
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word))
}

fn open(path: &Path) -> Result<Raw, MigrateError> {
    Raw::open(path).map_err(map_at(path))
}

/// What a pinned map is; none where there is none.
fn info(path: &Path) -> Result<Option<MapInfo>, MigrateError> {
    if !path.exists() {
        return Ok(None);
    }
    MapInfo::from_pin(path).map(Some).map_err(map_at(path))
}

fn rename(from: &Path, to: &Path) -> Result<(), MigrateError> {
    fs::rename(from, to).map_err(at(from))
}

fn remove(folder: &Path) -> Result<(), MigrateError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(folder)(error)),
        _ => Ok(()),
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> MigrateError {
    move |source| MigrateError::Io { path: path.to_owned(), source }
}

fn map_at(path: &Path) -> impl Fn(MapError) -> MigrateError {
    move |source| MigrateError::Map { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        frontends: 1,
        owner_blocks: 1,
        backends: 1,
        nodes: 1,
        vips: 1,
        opening: 1,
        established: 1,
        datagrams: 1,
        claims: 1,
        source_ranges: 1,
    };

    /// Folders only: maps need a kernel, and those that are missing are made anew.
    fn start_from(folders: &[String]) -> (bool, Vec<String>) {
        let pins = tempfile::tempdir().unwrap();
        for folder in folders {
            fs::create_dir_all(pins.path().join(folder).join("maps")).unwrap();
        }
        let takeover = Takeover::begin(pins.path(), &LIMITS).unwrap();
        assert!(takeover.dir().is_dir());
        let former = takeover.commit().unwrap();
        let took_over = former.is_some();
        assert!(maps_dir(pins.path()).is_dir());
        former.map(Former::forget).transpose().unwrap();
        let names = pins.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name());
        (took_over, names.map(|name| name.into_string().unwrap()).collect())
    }

    #[test]
    fn a_start_from_any_moment_of_a_take_over_leaves_this_layout_alone() {
        let own = format!("v{LAYOUT_VERSION}");
        let [older, newer, next] = ["v1", "v999", NEXT].map(str::to_owned);
        let former = |name: &String| format!("{FORMER}{name}");
        for (folders, takes_over) in [
            (vec![], false),
            (vec![next.clone()], false),
            (vec![own.clone()], false),
            (vec![own.clone(), next.clone()], false),
            (vec![older.clone()], true),
            (vec![newer.clone(), next.clone()], true),
            (vec![former(&newer), next.clone()], true),
            (vec![former(&own), next], false),
            (vec![former(&older), own.clone()], true),
            (vec![former(&own), newer.clone()], true),
            (vec![former(&own), own.clone()], false),
            (vec![former(&own), own.clone(), former(&newer)], true),
            (vec![former(&older), newer], true),
        ] {
            assert_eq!(start_from(&folders), (takes_over, vec![own.clone()]), "{folders:?}");
        }
    }
}
