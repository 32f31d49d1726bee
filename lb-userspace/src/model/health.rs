//! What probes say.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use super::Check;

/// One thing to probe. Equal targets of several frontends are probed once.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Target {
    /// Where the probe goes (the check's own port applied).
    pub address: SocketAddr,
    pub check: Check,
}

/// All targets, each with the name of the node that it is on.
pub type Targets = BTreeMap<Arc<Target>, Arc<str>>;

/// The state of one target. One that was never decided is `Unknown` and counts as up: an agent that
/// starts must not take away what serves.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Health {
    #[default]
    Unknown,
    Up,
    /// Why the last probe failed.
    Down(String),
}

impl Health {
    pub fn serves(&self) -> bool {
        !matches!(self, Self::Down(_))
    }
}

/// Time since 1970.
pub type UnixTime = Duration;

/// Whose word a verdict is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cause {
    /// The nodes that probe the target.
    pub by: Vec<Arc<str>>,
    /// How many of them say that it is up, and that it is down; the others said nothing yet.
    pub up: usize,
    pub down: usize,
    /// Since when the target has been up, or down.
    pub since: UnixTime,
}

/// Parts of [`Verdicts`]: as many as make a copy of the list of parts and one of a part of 10,000
/// verdicts cost about the same.
const SHARDS: usize = 128;
/// Verdicts that a part remembers as its last, so that who follows it need not look at all of it.
const LATELY: usize = 8;
/// Forgotten targets that are remembered as such.
const FORGOTTEN: usize = 1024;

/// The latest word on every target; one that is absent is `Unknown`. Remembers which came last, so that
/// who follows it need not look at all.
///
/// A copy shares all that neither side changes: it costs a fixed number of parts, not what there is.
#[derive(Clone, Debug)]
pub struct Verdicts {
    /// By hash of the target.
    shards: Vec<Arc<Shard>>,
    len: usize,
    turn: u64,
    removals: u64,
    /// The targets that were forgotten last, at most [`FORGOTTEN`].
    forgotten: Arc<VecDeque<Arc<Target>>>,
}

#[derive(Clone, Debug, Default)]
struct Shard {
    /// The last turn of an entry.
    newest: u64,
    /// The last turns and their targets, the oldest first: all after `lately_since`.
    lately: VecDeque<(u64, Arc<Target>)>,
    lately_since: u64,
    entries: BTreeMap<Arc<Target>, Entry>,
}

impl Shard {
    /// Notes that a target had a turn, the newest.
    fn note(&mut self, turn: u64, target: &Arc<Target>) {
        self.newest = turn;
        if self.lately.len() == LATELY {
            self.lately_since = self.lately.pop_front().map_or(turn, |(turn, _)| turn);
        }
        self.lately.push_back((turn, target.clone()));
    }

    /// The targets whose last turn came after `turn`.
    fn since(&self, turn: u64) -> impl Iterator<Item = &Target> {
        let known = turn >= self.lately_since;
        let lately = self.lately.iter().filter(move |(at, _)| known && *at > turn);
        // One that had another turn since, or was forgotten, is not named twice, or at all.
        let lately = lately
            .filter(|(at, target)| self.entries.get(target).is_some_and(|entry| entry.turn == *at));
        // A part is looked through only where its last turns are not enough.
        let all = (!known).then_some(&self.entries).into_iter().flatten();
        let all = all.filter(move |(_, entry)| entry.turn > turn);
        lately.map(|(_, target)| &**target).chain(all.map(|(target, _)| &**target))
    }
}

#[derive(Clone, Debug)]
struct Entry {
    turn: u64,
    health: Health,
    cause: Option<Arc<Cause>>,
}

impl Default for Verdicts {
    fn default() -> Self {
        Self {
            shards: vec![Arc::default(); SHARDS],
            len: 0,
            turn: 0,
            removals: 0,
            forgotten: Arc::default(),
        }
    }
}

impl Verdicts {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn get(&self, target: &Target) -> Option<&Health> {
        self.entry(target).map(|entry| &entry.health)
    }

    /// Whose word it is, where that is known.
    pub fn cause(&self, target: &Target) -> Option<&Cause> {
        self.entry(target)?.cause.as_deref()
    }

    pub fn contains_key(&self, target: &Target) -> bool {
        self.entry(target).is_some()
    }

    /// In no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Target, &Health)> {
        let entries = self.shards.iter().flat_map(|shard| &shard.entries);
        entries.map(|(target, entry)| (&**target, &entry.health))
    }

    /// In no order.
    pub fn keys(&self) -> impl Iterator<Item = &Target> {
        self.iter().map(|(target, _)| target)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the next turn.
    pub fn insert(&mut self, target: impl Into<Arc<Target>>, health: Health) {
        self.insert_with(target, health, None);
    }

    /// Takes the next turn.
    pub fn insert_with(
        &mut self,
        target: impl Into<Arc<Target>>,
        health: Health,
        cause: Option<Cause>,
    ) {
        let target = target.into();
        self.turn += 1;
        let entry = Entry { turn: self.turn, health, cause: cause.map(Arc::new) };
        let shard = Arc::make_mut(&mut self.shards[shard_of(&target)]);
        shard.note(self.turn, &target);
        self.len += usize::from(shard.entries.insert(target, entry).is_none());
    }

    /// Takes no turn: a verdict is the same, whoever gave it. Nothing where there is no verdict.
    pub fn set_cause(&mut self, target: &Target, cause: Cause) {
        let shard = &mut self.shards[shard_of(target)];
        if shard.entries.contains_key(target)
            && let Some(entry) = Arc::make_mut(shard).entries.get_mut(target)
        {
            entry.cause = Some(Arc::new(cause));
        }
    }

    /// Forgets a target that nobody asks any more.
    pub fn remove(&mut self, target: &Target) {
        let shard = &mut self.shards[shard_of(target)];
        if shard.entries.contains_key(target)
            && let Some((target, _)) = Arc::make_mut(shard).entries.remove_entry(target)
        {
            self.len -= 1;
            self.removals += 1;
            let forgotten = Arc::make_mut(&mut self.forgotten);
            forgotten.truncate(FORGOTTEN - 1);
            forgotten.push_front(target);
        }
    }

    /// The targets that were forgotten after the first so many; `None`: nobody knows them all any more.
    pub fn forgotten_since(&self, removals: u64) -> Option<impl Iterator<Item = &Target>> {
        let count = usize::try_from(self.removals.checked_sub(removals)?).ok()?;
        let known = count <= self.forgotten.len();
        known.then(|| self.forgotten.iter().take(count).map(|target| &**target))
    }

    /// How many targets were forgotten so far: [`Verdicts::since`] does not name them.
    pub fn removals(&self) -> u64 {
        self.removals
    }

    /// The last turn taken.
    pub fn turn(&self) -> u64 {
        self.turn
    }

    /// The targets whose latest verdict came after a turn, in no order.
    pub fn since(&self, turn: u64) -> impl Iterator<Item = &Target> {
        let shards = self.shards.iter().filter(move |shard| shard.newest > turn);
        shards.flat_map(move |shard| shard.since(turn))
    }

    fn entry(&self, target: &Target) -> Option<&Entry> {
        self.shards[shard_of(target)].entries.get(target)
    }
}

fn shard_of(target: &Target) -> usize {
    let mut hasher = DefaultHasher::new();
    target.address.hash(&mut hasher);
    hasher.finish() as usize % SHARDS
}

impl<const N: usize> From<[(Target, Health); N]> for Verdicts {
    fn from(list: [(Target, Health); N]) -> Self {
        list.into_iter().collect()
    }
}

impl FromIterator<(Target, Health)> for Verdicts {
    fn from_iter<I: IntoIterator<Item = (Target, Health)>>(list: I) -> Self {
        let mut verdicts = Self::new();
        list.into_iter().for_each(|(target, health)| verdicts.insert(target, health));
        verdicts
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::CheckKind;

    fn target(n: u32) -> Target {
        let check = Check {
            kind: CheckKind::Tcp,
            port: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 1,
            fall: 1,
            jitter_percent: 0,
        };
        Target { address: (std::net::Ipv4Addr::from(0x0a00_0000 + n), 80).into(), check }
    }

    #[test]
    fn what_came_after_a_turn_is_found_and_a_copy_stays_as_it_was() {
        let mut verdicts: Verdicts = (0..1000).map(|n| (target(n), Health::Up)).collect();
        let (copy, turn) = (verdicts.clone(), verdicts.turn());
        verdicts.insert(target(7), Health::Down("refused".into()));
        verdicts.insert(target(2000), Health::Up);
        verdicts.insert(target(7), Health::Up);
        let mut since: Vec<_> = verdicts.since(turn).collect();
        since.sort();
        assert_eq!(since, [&target(7), &target(2000)]);
        assert_eq!((verdicts.len(), copy.len()), (1001, 1000));
        assert_eq!(copy.since(turn).count(), 0);
        assert_eq!(verdicts.get(&target(7)), Some(&Health::Up));

        verdicts.remove(&target(7));
        verdicts.remove(&target(3000));
        assert_eq!((verdicts.len(), verdicts.removals()), (1000, 1));
        assert_eq!(verdicts.get(&target(7)), None);
        assert!(verdicts.forgotten_since(0).unwrap().eq([&target(7)]));
        assert_eq!(verdicts.forgotten_since(1).unwrap().count(), 0);
        for n in 0..FORGOTTEN as u32 {
            verdicts.insert(target(n), Health::Up);
            verdicts.remove(&target(n));
        }
        assert_eq!(verdicts.forgotten_since(1).unwrap().count(), FORGOTTEN);
        assert!(verdicts.forgotten_since(0).is_none(), "the first one is lost");
    }

    #[test]
    fn what_came_after_any_turn_is_named_once_however_much_it_is() {
        let mut verdicts = Verdicts::new();
        let mut last = BTreeMap::new();
        for n in 0..40 * SHARDS as u32 {
            // Most change again and again, and some are forgotten.
            let target = target(n * 7919 % (3 * SHARDS as u32));
            verdicts.insert(target.clone(), Health::Up);
            last.insert(target.clone(), verdicts.turn());
            if n % 11 == 0 {
                verdicts.remove(&target);
                last.remove(&target);
            }
        }
        for turn in (0..=verdicts.turn()).step_by(13) {
            let mut since: Vec<_> = verdicts.since(turn).collect();
            since.sort();
            let wanted = last.iter().filter(|(_, at)| **at > turn).map(|(target, _)| target);
            assert_eq!(since, wanted.collect::<Vec<_>>(), "after {turn}");
        }
    }

    #[test]
    fn a_cause_takes_no_turn_and_one_change_copies_one_part() {
        let mut verdicts: Verdicts = (0..1000).map(|n| (target(n), Health::Up)).collect();
        let (copy, turn) = (verdicts.clone(), verdicts.turn());
        let cause = Cause { by: vec!["a".into()], up: 1, down: 0, since: UnixTime::ZERO };
        verdicts.set_cause(&target(7), cause.clone());
        verdicts.set_cause(&target(2000), cause.clone());
        assert_eq!((verdicts.turn(), verdicts.len()), (turn, 1000));
        assert_eq!((verdicts.cause(&target(7)), copy.cause(&target(7))), (Some(&cause), None));
        let shared = verdicts.shards.iter().zip(&copy.shards);
        assert_eq!(shared.filter(|(a, b)| !Arc::ptr_eq(a, b)).count(), 1);
    }
}
