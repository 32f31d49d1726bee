//! Keeps orders to drain: on disk, and in what this member tells the others.
//!
//! `model::drains` decides which order counts. An order that was taken is on disk before anybody is told
//! of it; one that was heard counts at once, and is written as soon as the disk allows.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::topic::{Change, Key, Topic};
use crate::model::{
    Problem,
    drains::{DrainError, Drains, Order, Wish},
};

/// Name of the file in the state directory.
pub const FILE: &str = "drains.json";

/// Value of `schema`. Keys are only ever added under one version.
const SCHEMA: &str = "weir.drains/v1";

/// What a file that cannot be read is renamed to.
const SET_ASIDE: &str = "drains.json.unreadable";

/// What was put back is forgotten after this. Until then every member that lives has heard of it, and a
/// member that was away for longer forgets what it has on disk: so nobody repeats what was undone.
const FORGET_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);

/// How often the file says that its member lives.
const SEEN_EVERY: Duration = Duration::from_secs(24 * 3600);

#[derive(Deserialize, Serialize)]
struct Stored<D> {
    schema: String,
    orders: D,
    #[serde(flatten)]
    times: Times,
}

/// Unix times in ms by the own clock.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Times {
    /// When this member lived last. Absent from files of earlier builds.
    #[serde(default)]
    seen_ms: Option<u64>,
    /// By name: when this member came to know that it was put back.
    #[serde(default)]
    put_back_ms: BTreeMap<String, u64>,
}

impl Times {
    /// Brings them in line with the orders.
    fn follow(&mut self, drains: &Drains, now_ms: u64) {
        let names = drains.put_back();
        let known =
            names.map(|name| (name.to_owned(), *self.put_back_ms.get(name).unwrap_or(&now_ms)));
        self.put_back_ms = known.collect();
        self.seen_ms = Some(now_ms);
    }
}

/// Whether so much time has passed. A clock that went back says nothing.
fn passed(since_ms: u64, time: Duration, now_ms: u64) -> bool {
    now_ms.checked_sub(since_ms).is_some_and(|ms| u128::from(ms) >= time.as_millis())
}

/// An entry that this member publishes.
pub type Publication = (Key, Vec<u8>);

#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error(transparent)]
    Drain(#[from] DrainError),
    #[error("{}: cannot be written", .file.display())]
    Write { file: PathBuf, source: io::Error },
}

/// The orders that this member holds.
#[derive(Debug)]
pub struct Keeper {
    state_dir: PathBuf,
    drains: Drains,
    times: Times,
    /// Why the file was set aside when it was read.
    set_aside: Option<String>,
    /// Why the file does not hold what `drains` does.
    unwritten: Option<String>,
}

impl Keeper {
    /// Reads the orders of before. A file that says nothing sensible, or is too old to be believed, is set
    /// aside: the other members' orders come by gossip, and this node must start.
    ///
    /// # Errors
    /// The state directory cannot be read or written.
    pub fn open(state_dir: &Path, now_ms: u64) -> io::Result<Self> {
        let file = state_dir.join(FILE);
        let ((drains, times), set_aside) = match fs::read(&file) {
            Ok(bytes) => match parse(&bytes, now_ms) {
                Ok(found) => (found, None),
                Err(error) => {
                    fs::rename(&file, state_dir.join(SET_ASIDE))?;
                    let message = format!(
                        "{}: {error}; it is now {SET_ASIDE}: what was drained is known from \
                         other nodes only",
                        file.display()
                    );
                    tracing::error!("{message}");
                    (Default::default(), Some(message))
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Default::default(), None),
            Err(error) => return Err(error),
        };
        Ok(Self { state_dir: state_dir.into(), drains, times, set_aside, unwritten: None })
    }

    pub fn drains(&self) -> &Drains {
        &self.drains
    }

    /// All entries, for a member that starts.
    pub fn publications(&self) -> Vec<Publication> {
        self.drains.iter().filter_map(|(name, order)| publication(name, order)).collect()
    }

    /// An order of an administrator to this member, `own`. Returns what to publish; `None`: it is so
    /// already. Writes to disk, and waits for it.
    ///
    /// # Errors
    /// It cannot be kept; then it does not count.
    pub fn order(
        &mut self,
        wish: &Wish,
        own: &str,
        now_ms: u64,
    ) -> Result<Option<Publication>, OrderError> {
        let Some(order) = self.drains.order(wish, own, now_ms) else { return Ok(None) };
        let Wish { what, drained, .. } = wish;
        let (mut drains, mut times) = (self.drains.clone(), self.times.clone());
        drains.hear(&what.to_string(), order.clone())?;
        times.follow(&drains, now_ms);
        write(&self.state_dir, &drains, &times)
            .map_err(|source| OrderError::Write { file: self.state_dir.join(FILE), source })?;
        (self.drains, self.times) = (drains, times);
        self.unwritten = None;
        tracing::info!(%what, drained, deadline_ms = order.deadline_ms, "ordered by an administrator");
        Ok(publication(&what.to_string(), &order))
    }

    /// Another member's entry. Returns what to repeat of it. Writes to disk where it is news.
    pub fn on_change(&mut self, change: &Change, now_ms: u64) -> Option<Publication> {
        // That an origin is gone takes nothing back: it was an administrator's order, not its own.
        let value = change.value.as_ref().filter(|_| change.key.topic == Topic::DRAIN)?;
        let name = std::str::from_utf8(&change.key.name).ok()?;
        let order = decode(value)?;
        match self.drains.hear(name, order.clone()) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => {
                tracing::warn!(origin = %change.origin, name, %error, "order ignored");
                return None;
            }
        }
        let Order { author, drained, .. } = &order;
        tracing::info!(what = name, drained, author, "ordered at another node");
        self.keep(now_ms);
        publication(name, &order)
    }

    /// Forgets what was put back long ago; returns what to publish no longer. Now and then writes to disk
    /// that this member lives. To be called every now and then.
    pub fn tend(&mut self, now_ms: u64) -> Vec<Key> {
        let put_back = self.times.put_back_ms.iter();
        let old = put_back.filter(|(_, since)| passed(**since, FORGET_AFTER, now_ms));
        let old: Vec<String> = old.map(|(name, _)| name.clone()).collect();
        old.iter().for_each(|name| self.drains.forget(name));
        let seen = self.times.seen_ms.unwrap_or_default();
        let worth = self.drains.iter().next().is_some() && passed(seen, SEEN_EVERY, now_ms);
        if worth || !old.is_empty() {
            self.keep(now_ms);
        }
        old.iter().map(|name| Key::new(Topic::DRAIN, name.as_str())).collect()
    }

    /// Writes what counts by now.
    fn keep(&mut self, now_ms: u64) {
        self.times.follow(&self.drains, now_ms);
        self.unwritten = write(&self.state_dir, &self.drains, &self.times).err().map(|error| {
            let file = self.state_dir.join(FILE);
            format!("{}: cannot be written: {error}; a restart would forget orders", file.display())
        });
    }

    /// What is wrong with the file.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        let messages = self.set_aside.iter().chain(&self.unwritten);
        messages.map(|message| Problem { object: "Agent".into(), message: message.clone() })
    }
}

fn publication(name: &str, order: &Order) -> Option<Publication> {
    Some((Key::new(Topic::DRAIN, name), encode(order)?))
}

/// An order as gossip carries it. What was added later stands behind the rest, where builds that do not
/// know it do not look, and is absent where it says nothing.
fn encode(order: &Order) -> Option<Vec<u8>> {
    let Order { stamp, author, drained, at_ms, deadline_ms } = order;
    // Writing to memory fails for no order.
    let mut value = postcard::to_allocvec(&(stamp, author, drained, at_ms)).ok()?;
    if let Some(deadline) = deadline_ms {
        value.extend(postcard::to_allocvec(deadline).ok()?);
    }
    Some(value)
}

fn decode(value: &[u8]) -> Option<Order> {
    let ((stamp, author, drained, at_ms), rest) = postcard::take_from_bytes(value).ok()?;
    let deadline_ms = match rest {
        [] => None,
        rest => Some(postcard::from_bytes(rest).ok()?),
    };
    Some(Order { stamp, author, drained, at_ms, deadline_ms })
}

fn parse(bytes: &[u8], now_ms: u64) -> Result<(Drains, Times), String> {
    let stored: Stored<Drains> =
        serde_json::from_slice(bytes).map_err(|error| format!("not understood ({error})"))?;
    if stored.schema != SCHEMA {
        return Err(format!("schema {:?}, expected {SCHEMA:?}", stored.schema));
    }
    let mut times = stored.times;
    if times.seen_ms.is_some_and(|seen| passed(seen, FORGET_AFTER, now_ms)) {
        return Err("written so long ago that what was undone since is forgotten elsewhere".into());
    }
    // What is beyond a limit must not come in by the file either.
    let mut drains = Drains::default();
    for (name, order) in stored.orders.iter() {
        drains.hear(name, order.clone()).map_err(|error| error.to_string())?;
    }
    times.follow(&drains, now_ms);
    Ok((drains, times))
}

/// Replaces the file, and returns when the disk holds it.
fn write(state_dir: &Path, drains: &Drains, times: &Times) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(state_dir)?;
    let stored = Stored { schema: SCHEMA.into(), orders: drains, times: times.clone() };
    serde_json::to_writer_pretty(&mut file, &stored)?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    file.persist(state_dir.join(FILE))?;
    File::open(state_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Drainable;

    const DAY: u64 = 24 * 3600 * 1000;

    fn wish(name: &str, drained: bool) -> Wish {
        Wish { what: Drainable::Forwarding(name.into()), drained, deadline_ms: None }
    }

    fn heard(publication: &Publication) -> Change {
        let (key, value) = publication.clone();
        Change { origin: "other".into(), key, value: Some(value.into()) }
    }

    #[test]
    fn orders_outlive_restarts_at_those_who_took_and_those_who_heard_them() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut taker = Keeper::open(here.path(), 1).unwrap();
        let mut hearer = Keeper::open(there.path(), 1).unwrap();
        let told = taker.order(&wish("b", true), "a", 1).unwrap().unwrap();
        assert_eq!(taker.order(&wish("b", true), "a", 2).unwrap(), None);
        assert_eq!(
            hearer.on_change(&heard(&told), 1),
            Some(told.clone()),
            "it repeats what it heard"
        );
        assert_eq!(hearer.on_change(&heard(&told), 1), None, "once");
        for dir in [&here, &there] {
            let again = Keeper::open(dir.path(), 1).unwrap();
            assert_eq!(again.drains().forwarding().collect::<Vec<_>>(), ["b"]);
            assert_eq!(again.publications(), std::slice::from_ref(&told));
            assert_eq!(again.problems().count(), 0);
        }
    }

    #[test]
    fn an_order_that_was_undone_while_a_member_was_away_stays_undone() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut stays = Keeper::open(here.path(), 1).unwrap();
        let mut away = Keeper::open(there.path(), 1).unwrap();
        let drain = away.order(&wish("b", true), "z", 1).unwrap().unwrap();
        stays.on_change(&heard(&drain), 1);
        drop(away);
        let undrain = stays.order(&wish("b", false), "a", 2).unwrap().unwrap();
        let mut away = Keeper::open(there.path(), 1).unwrap();
        for old in away.publications() {
            assert_eq!(stays.on_change(&heard(&old), 1), None);
        }
        assert_eq!(away.on_change(&heard(&undrain), 1), Some(undrain));
        assert_eq!(away.drains(), stays.drains());
        assert_eq!(stays.drains().forwarding().count(), 0);
    }

    #[test]
    fn entries_that_end_or_cannot_be_read_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::open(dir.path(), 1).unwrap();
        let (key, value) = keeper.order(&wish("b", true), "a", 1).unwrap().unwrap();
        let before = keeper.drains().clone();
        let change = |key: &Key, value: Option<&[u8]>| Change {
            origin: "other".into(),
            key: key.clone(),
            value: value.map(Into::into),
        };
        let other = Key::new(Topic::VERDICT, key.name.clone());
        let unnamed = Key::new(Topic::DRAIN, [0xff]);
        for change in [
            change(&key, None),
            change(&key, Some(&[1, 200])),
            change(&other, Some(&value)),
            change(&unnamed, Some(&value)),
        ] {
            assert_eq!(keeper.on_change(&change, 1), None, "{change:?}");
        }
        assert_eq!(keeper.drains(), &before);
    }

    #[test]
    fn a_file_that_is_not_understood_is_set_aside_and_told_of() {
        for text in ["", "{", r#"{"schema":"weir.drains/v9","orders":{}}"#] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(FILE), text).unwrap();
            let mut keeper = Keeper::open(dir.path(), 1).unwrap();
            let problem = keeper.problems().next().unwrap().message;
            assert!(problem.contains("drains.json.unreadable"), "{problem}");
            assert_eq!(fs::read_to_string(dir.path().join(SET_ASIDE)).unwrap(), text);
            assert!(keeper.order(&wish("b", true), "a", 1).unwrap().is_some());
            assert_eq!(Keeper::open(dir.path(), 1).unwrap().problems().count(), 0);
        }
    }

    #[test]
    fn an_order_that_cannot_be_written_does_not_count_and_one_that_was_heard_does() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut other = Keeper::open(there.path(), 1).unwrap();
        let told = other.order(&wish("b", true), "a", 1).unwrap().unwrap();
        let mut keeper = Keeper::open(here.path(), 1).unwrap();
        drop(here);
        let error = keeper.order(&wish("c", true), "a", 1).unwrap_err().to_string();
        assert!(error.contains("drains.json: cannot be written"), "{error}");
        assert_eq!(keeper.drains().forwarding().count(), 0);
        assert!(keeper.on_change(&heard(&told), 1).is_some());
        assert_eq!(keeper.drains().forwarding().collect::<Vec<_>>(), ["b"]);
        assert!(keeper.problems().next().unwrap().message.contains("would forget"));
    }

    #[test]
    fn a_deadline_is_carried_and_kept_and_harms_no_build_that_does_not_know_it() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut taker = Keeper::open(here.path(), 1).unwrap();
        let mut hearer = Keeper::open(there.path(), 1).unwrap();
        let what = Drainable::Backend("10.0.0.1:80".parse().unwrap());
        let wish = Wish { what: what.clone(), drained: true, deadline_ms: Some(1 << 50) };
        let told = taker.order(&wish, "a", 1).unwrap().unwrap();
        // An earlier build: four fields, and nothing is asked of what follows.
        let early: (u64, String, bool, u64) = postcard::from_bytes(&told.1).unwrap();
        assert_eq!(early, (1, "a".into(), true, 1));
        let repeated = (told.0.clone(), postcard::to_allocvec(&early).unwrap());
        assert!(hearer.on_change(&heard(&repeated), 1).is_some());
        assert_eq!(hearer.drains().get(&what).unwrap().deadline_ms, None);
        assert_eq!(hearer.on_change(&heard(&told), 1), Some(told.clone()), "more is known: news");
        assert_eq!(hearer.on_change(&heard(&repeated), 1), None);
        for dir in [&here, &there] {
            let again = Keeper::open(dir.path(), 1).unwrap();
            assert_eq!(again.publications(), std::slice::from_ref(&told));
        }
    }

    #[test]
    fn a_file_of_an_earlier_build_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"schema":"weir.drains/v1","orders":{
            "forwarding/b":{"stamp":3,"author":"a","drained":true,"at_ms":5}}}"#;
        fs::write(dir.path().join(FILE), text).unwrap();
        let keeper = Keeper::open(dir.path(), 400 * DAY).unwrap();
        assert_eq!(keeper.drains().forwarding().collect::<Vec<_>>(), ["b"]);
        assert_eq!(keeper.problems().count(), 0);
    }

    #[test]
    fn what_was_put_back_is_forgotten_after_a_month_and_by_those_who_were_away_so_long() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut keeper = Keeper::open(here.path(), 0).unwrap();
        let mut away = Keeper::open(there.path(), 0).unwrap();
        let drain = keeper.order(&wish("b", true), "a", 0).unwrap().unwrap();
        keeper.order(&wish("c", true), "a", 0).unwrap();
        away.on_change(&heard(&drain), 0);
        drop(away);
        keeper.order(&wish("b", false), "a", DAY).unwrap();
        for day in 1..31 {
            assert_eq!(keeper.tend(day * DAY), [], "day {day}");
            keeper = Keeper::open(here.path(), day * DAY).unwrap();
        }
        assert_eq!(keeper.tend(31 * DAY), [Key::new(Topic::DRAIN, "forwarding/b")]);
        assert_eq!(keeper.tend(31 * DAY), []);
        let keeper = Keeper::open(here.path(), 31 * DAY).unwrap();
        assert_eq!(
            keeper.drains().iter().map(|(name, _)| name).collect::<Vec<_>>(),
            ["forwarding/c"]
        );
        let away = Keeper::open(there.path(), 31 * DAY).unwrap();
        assert_eq!(away.publications(), [], "it repeats nothing that was undone");
        assert!(away.problems().next().unwrap().message.contains("so long ago"));
    }
}
