//! What all members say, replicated: per origin versioned entries, of which only changes travel
//! (van Renesse et al., Efficient Reconciliation and Flow Control for Anti-Entropy Protocols, LADIS 2008).
//!
//! Each origin has a log for all members and any number of logs for named audiences. A log's entries carry
//! rising versions; "everything above version v" is all that one member needs to know from another.
//! Pure: nothing here sends, reads a clock or knows who lives.
//!
//! Invariant: a value is only ever replaced by one that its origin said later, also across restarts of the origin.

mod delta;
mod log;
mod sums;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hasher,
    sync::Arc,
};

use siphasher::sip::SipHasher13;

pub use self::delta::{Delta, Have, INCARNATION_END, Item, Mark, Request, Wanted};
use self::log::{Applied, Log, Usage};
use self::sums::Sums;
use super::topic::{Change, Key};

/// Entries of one origin, tombstones among them.
pub const ENTRIES_MOST: usize = 200_000;
/// Bytes of one origin: names, values and [`ENTRY_COST`] each.
pub const BYTES_MOST: usize = 64 << 20;
/// What an entry costs beside its name and value.
pub const ENTRY_COST: usize = 128;
/// Length of one value. One that does not fit into a datagram travels by stream.
pub const VALUE_MOST: usize = 16 << 10;
/// Length of an entry's name.
pub const NAME_MOST: usize = 255;
/// Audiences of one origin.
pub const LOGS_MOST: usize = 1024;
/// Length of an audience's name.
pub const LOG_NAME_MOST: usize = 255;
/// Ends of entries that a log remembers; who misses more gets the whole log.
pub const TOMBSTONES_MOST: usize = 1024;
/// Ranges beyond a gap that a log remembers.
pub const AHEAD_MOST: usize = 16;
/// Bytes of what a request says that the asker has; of more it asks for a part of the buckets.
pub const REQUEST_MOST: usize = 48 << 10;
/// Groups of origins whose states are compared by one hash each.
pub const BUCKETS: usize = 64;

/// All logs of one origin.
#[derive(Debug, Default)]
struct Origin {
    logs: BTreeMap<Arc<str>, Log>,
    usage: Usage,
}

/// What came of a delta.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    /// It told something that was not known.
    pub news: bool,
    /// More is known elsewhere than has arrived here.
    pub behind: bool,
    /// It speaks for a node that is not configured.
    pub stranger: bool,
    /// It says of this node itself what this node never said: it has been up in this later incarnation.
    pub outlived: Option<u64>,
}

/// All that is known of all.
#[derive(Debug)]
pub struct Board {
    own: Arc<str>,
    origins: BTreeMap<Arc<str>, Origin>,
    /// Who hears the own logs for audiences.
    audiences: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    sums: Sums,
    /// Own logs are complete: see [`Board::settle`].
    settled: bool,
    /// The greatest version of an own log that was ended.
    ended: u64,
    changes: Vec<Change>,
    refused: u64,
}

impl Board {
    /// `incarnation` rises with each start, by more than one per 2^20 changes of the process before:
    /// milliseconds of the wall clock will do.
    pub fn new(own: Arc<str>, incarnation: u64) -> Self {
        let mut logs = BTreeMap::new();
        logs.insert(Arc::from(""), Log::new(incarnation.min(INCARNATION_END - 1), 0, false));
        let origins = [(own.clone(), Origin { logs, usage: Usage::default() })].into();
        let (audiences, changes) = (BTreeMap::new(), Vec::new());
        let (sums, settled) = (Sums::new(), false);
        let mut board =
            Self { own, origins, audiences, sums, settled, ended: 0, changes, refused: 0 };
        board.sum_own();
        board
    }

    /// Whose word counts beside this node's own. What others said before is over.
    pub fn set_origins<'a>(&mut self, names: impl Iterator<Item = &'a Arc<str>>) {
        let mut before = std::mem::take(&mut self.origins);
        let own = self.own.clone();
        for name in names.filter(|name| **name != own).cloned().chain([own.clone()]) {
            let origin = before.remove(&name).unwrap_or_default();
            self.origins.insert(name, origin);
        }
        for (name, origin) in before {
            self.sums.forget(&name);
            let entries = origin.logs.values().flat_map(Log::iter);
            self.changes.extend(entries.map(|(key, _)| Change {
                origin: name.clone(),
                key: key.clone(),
                value: None,
            }));
        }
    }

    /// Changes of others' entries since the last call, oldest first.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Items and publications refused for being beyond a limit.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Entries and bytes of all origins.
    pub fn size(&self) -> (usize, usize) {
        self.origins.values().fold((0, 0), |(entries, bytes), origin| {
            (entries + origin.usage.entries, bytes + origin.usage.bytes)
        })
    }

    /// Sets or ends an own entry; false if it exceeds a limit.
    pub fn publish(&mut self, audience: &str, key: Key, value: Option<&[u8]>) -> bool {
        let incarnation = self.own_mark("").unwrap_or_default().incarnation;
        let Some(origin) = self.origins.get_mut(&self.own) else { return false };
        let room = origin.logs.contains_key(audience) || origin.logs.len() <= LOGS_MOST;
        let done = room && audience.len() <= LOG_NAME_MOST && {
            let new = || Log::new(incarnation, self.ended, self.settled);
            let log = origin.logs.entry(audience.into()).or_insert_with(new);
            log.publish(key, value, &mut origin.usage)
        };
        self.refused += u64::from(!done);
        self.sum(&self.own.clone(), audience);
        done
    }

    /// Who hears what is published to this audience from now on; returns who no longer does.
    pub fn set_audience(
        &mut self,
        audience: &str,
        nodes: BTreeSet<Arc<str>>,
    ) -> BTreeSet<Arc<str>> {
        let before = self.audiences.insert(audience.into(), nodes.clone()).unwrap_or_default();
        before.difference(&nodes).cloned().collect()
    }

    /// Ends an audience with all that was said to it.
    pub fn end_audience(&mut self, audience: &str) -> BTreeSet<Arc<str>> {
        if let Some(origin) = self.origins.get_mut(&self.own)
            && let Some(mut log) = origin.logs.remove(audience)
        {
            self.ended = self.ended.max(log.mark().version);
            log.clear(&mut origin.usage);
        }
        self.sum(&self.own.clone(), audience);
        self.audiences.remove(audience).unwrap_or_default()
    }

    pub fn audience(&self, audience: &str) -> impl Iterator<Item = &Arc<str>> {
        self.audiences.get(audience).into_iter().flatten()
    }

    /// Own logs are complete: what an earlier incarnation said and this one has not is over.
    pub fn settle(&mut self) {
        self.settled = true;
        for log in self.origins.get_mut(&self.own).into_iter().flat_map(|it| it.logs.values_mut()) {
            if !log.is_settled() {
                log.settle();
            }
        }
        self.sum_own();
    }

    /// Says everything again under a later incarnation.
    pub fn rebase(&mut self, incarnation: u64) {
        self.ended = 0;
        for log in self.origins.get_mut(&self.own).into_iter().flat_map(|it| it.logs.values_mut()) {
            log.rebase(incarnation);
        }
        self.sum_own();
    }

    pub fn own_mark(&self, audience: &str) -> Option<Mark> {
        Some(self.own_log(audience)?.mark())
    }

    /// The first own changes above `from` that fit into `budget` bytes; if the first one does not or some are
    /// forgotten, only how far the log is.
    pub fn own_after(&self, audience: &str, from: u64, budget: usize) -> Option<Delta<'_>> {
        let (name, log) = self.origins.get(&self.own)?.logs.get_key_value(audience)?;
        let latest = log.mark().version;
        let (items, to) =
            if from < log.floor() { (Vec::new(), from) } else { log.after(from, budget) };
        let range = if to == from { (latest, latest) } else { (from, to) };
        Some(log.delta(&self.own, name, items, range))
    }

    /// Version of the latest value of an entry; rises across incarnations.
    pub fn version(&self, origin: &str, key: &Key) -> Option<u64> {
        self.origins.get(origin)?.logs.values().filter_map(|log| log.slot_version(key)).max()
    }

    pub fn get(&self, origin: &str, key: &Key) -> Option<&Arc<[u8]>> {
        self.origins.get(origin)?.logs.values().find_map(|log| log.get(key))
    }

    /// Takes what another member says.
    pub fn apply(&mut self, delta: &Delta<'_>) -> Outcome {
        if delta.origin == &*self.own {
            return self.told_of_self(delta.log, delta.incarnation, delta.latest);
        }
        let Some((name, origin)) = self.origins.get_key_value(delta.origin) else {
            return Outcome { stranger: true, ..Outcome::default() };
        };
        let room = origin.logs.contains_key(delta.log) || origin.logs.len() <= LOGS_MOST;
        if !room || delta.log.len() > LOG_NAME_MOST {
            self.refused += 1;
            return Outcome::default();
        }
        let name = name.clone();
        let Some(origin) = self.origins.get_mut(delta.origin) else { return Outcome::default() };
        let log = origin.logs.entry(delta.log.into()).or_default();
        let Applied { news, behind, refused, changes } = log.apply(delta, &mut origin.usage);
        self.refused += refused;
        let change = |(key, value)| Change { origin: name.clone(), key, value };
        self.changes.extend(changes.into_iter().map(change));
        self.sum(&name, delta.log);
        Outcome { news, behind, ..Outcome::default() }
    }

    /// Takes the word that a log has got to a mark somewhere.
    pub fn tell(&mut self, have: &Have) -> Outcome {
        if *have.origin == *self.own {
            return self.told_of_self(&have.log, have.mark.incarnation, have.mark.version);
        }
        let Some(origin) = self.origins.get_mut(&*have.origin) else {
            return Outcome { stranger: true, ..Outcome::default() };
        };
        // Another audience's log is none of our business.
        let Some(log) = (match &*have.log {
            "" => Some(origin.logs.entry("".into()).or_default()),
            name => origin.logs.get_mut(name),
        }) else {
            return Outcome::default();
        };
        let (news, behind) = (log.tell(have.mark), log.is_behind());
        self.sum(&have.origin, &have.log);
        Outcome { news, behind, ..Outcome::default() }
    }

    /// Buckets with shared logs that are behind, and an origin that is behind with an audience's log.
    pub fn behind(&self) -> (u64, Option<&Arc<str>>) {
        self.sums.behind()
    }

    /// One hash per bucket over origin, incarnation and version of the logs for all.
    pub fn hashes(&self) -> [u64; BUCKETS] {
        self.sums.hashes()
    }

    /// One hash over the logs for audiences that `from` says to `to`; one of both is this node.
    pub fn audience_hash(&self, from: &str, to: &str) -> u64 {
        self.audience_logs(from, to)
            .fold(0, |sum, (name, log)| sum.wrapping_add(hash(from, name, log.mark())))
    }

    /// A request for these buckets (as many as [`REQUEST_MOST`] lets), and for what `asked` says to audiences.
    pub fn request(&self, asked: &str, buckets: u64, audiences: bool) -> Request {
        let shared = self.origins.iter().filter(|(name, _)| buckets & 1 << bucket(name) != 0);
        let shared = shared.filter_map(|(name, origin)| Some((name, "", origin.logs.get("")?)));
        let have =
            |origin: &str, log: &str, mark| Have { origin: origin.into(), log: log.into(), mark };
        let nothing = Mark::default();
        let mut list: Vec<_> = shared
            .filter(|it| it.2.mark() > nothing)
            .map(|(origin, name, log)| have(origin, name, log.mark()))
            .collect();
        if audiences {
            let logs = self.audience_logs(asked, &self.own);
            list.extend(logs.map(|(name, log)| have(asked, name, log.mark())));
        }
        let mut buckets = buckets;
        while list.iter().map(Have::size).sum::<usize>() > REQUEST_MOST && buckets != 0 {
            buckets &= buckets - 1;
            list.retain(|it| !it.log.is_empty() || buckets & 1 << bucket(&it.origin) != 0);
        }
        Request { asker: self.own.to_string(), buckets, audiences, have: list }
    }

    /// Logs that a request asks for and that are further here, and the names of the audiences with the asker
    /// if asked for.
    pub fn wanted(&self, request: &Request) -> (Vec<Wanted>, Vec<String>) {
        let have: BTreeMap<_, _> =
            request.have.iter().map(|it| ((&*it.origin, &*it.log), it.mark)).collect();
        let mut wanted = Vec::new();
        let mut add = |origin: &str, name: &str, log: &Log| {
            let (here, there) =
                (log.mark(), have.get(&(origin, name)).copied().unwrap_or_default());
            if here > there {
                let same = here.incarnation == there.incarnation && there.version >= log.floor();
                let version = if same { there.version } else { 0 };
                let mark = Mark { incarnation: here.incarnation, version };
                wanted.push(Wanted {
                    origin: origin.into(),
                    log: name.into(),
                    mark,
                    floor: log.floor(),
                });
            }
        };
        for (origin, it) in
            self.origins.iter().filter(|it| request.buckets & 1 << bucket(it.0) != 0)
        {
            if let Some(log) = it.logs.get("") {
                add(origin, "", log);
            }
        }
        let mut audiences = Vec::new();
        if request.audiences {
            for (name, log) in self.audience_logs(&self.own, &request.asker) {
                add(&self.own, name, log);
                audiences.push(name.to_string());
            }
        }
        (wanted, audiences)
    }

    /// The next piece of a wanted log; moves its mark on. None: nothing is left.
    pub fn piece<'a>(&'a self, wanted: &mut Wanted, budget: usize) -> Option<Delta<'a>> {
        let (origin, it) = self.origins.get_key_value(&*wanted.origin)?;
        let (name, log) = it.logs.get_key_value(&*wanted.log)?;
        let (here, floor) = (log.mark(), log.floor());
        let overtaken = floor > wanted.floor && floor > wanted.mark.version;
        if here.incarnation != wanted.mark.incarnation || overtaken {
            wanted.mark = Mark { incarnation: here.incarnation, version: 0 };
            wanted.floor = floor;
        }
        let from = wanted.mark.version;
        let (items, to) = log.after(from, budget);
        if to <= from {
            return None;
        }
        wanted.mark.version = to;
        Some(Delta { full: from < floor, ..log.delta(origin, name, items, (from, to)) })
    }

    /// Drops logs for audiences of `origin` that this node is no longer part of.
    pub fn keep_audiences(&mut self, origin: &str, audiences: &[&str]) {
        let Some((name, _)) = self.origins.get_key_value(origin).filter(|_| origin != &*self.own)
        else {
            return;
        };
        let name = name.clone();
        let Some(origin) = self.origins.get_mut(&name) else { return };
        let gone = |log: &Arc<str>| !log.is_empty() && !audiences.contains(&&**log);
        for audience in origin.logs.keys().filter(|log| gone(log)).cloned().collect::<Vec<_>>() {
            let Some(mut log) = origin.logs.remove(&audience) else { continue };
            self.changes.extend(log.iter().map(|(key, _)| Change {
                origin: name.clone(),
                key: key.clone(),
                value: None,
            }));
            log.clear(&mut origin.usage);
            self.sums.note(&name, &audience, None);
        }
    }

    /// Brings the sums up to date with a log that may have changed.
    fn sum(&mut self, origin: &str, log: &str) {
        if let Some((name, origin)) = self.origins.get_key_value(origin) {
            let progress = origin.logs.get(log).map(|log| (log.mark(), log.is_behind()));
            self.sums.note(name, log, progress);
        }
    }

    /// The same for all that this node says itself; its own logs for audiences are never behind.
    fn sum_own(&mut self) {
        self.sum(&self.own.clone(), "");
    }

    fn own_log(&self, audience: &str) -> Option<&Log> {
        self.origins.get(&self.own)?.logs.get(audience)
    }

    /// Logs for audiences that `from` says to `to`.
    fn audience_logs<'a>(
        &'a self,
        from: &str,
        to: &str,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Log)> {
        let own = from == &*self.own;
        let to: Arc<str> = to.into();
        self.origins.get(from).into_iter().flat_map(|origin| &origin.logs).filter(
            move |(name, _)| {
                let hears = || self.audiences.get(*name).is_some_and(|nodes| nodes.contains(&to));
                !name.is_empty() && (!own || hears())
            },
        )
    }

    fn told_of_self(&self, log: &str, incarnation: u64, version: u64) -> Outcome {
        let told = Mark { incarnation, version };
        let later = told.is_sound() && self.own_mark(log).is_some_and(|own| told > own);
        Outcome {
            outlived: later.then_some(incarnation).filter(|it| it + 2 < INCARNATION_END),
            ..Outcome::default()
        }
    }
}

/// The bucket of an origin.
fn bucket(origin: &str) -> usize {
    (hash(origin, "", Mark::default()) % BUCKETS as u64) as usize
}

fn hash(origin: &str, log: &str, mark: Mark) -> u64 {
    let mut hasher = SipHasher13::new();
    for part in [origin, log] {
        hasher.write(part.as_bytes());
        hasher.write_u8(0xff);
    }
    hasher.write(&mark.incarnation.to_le_bytes());
    hasher.write(&mark.version.to_le_bytes());
    hasher.finish()
}
