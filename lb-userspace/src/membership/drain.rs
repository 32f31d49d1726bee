//! Keeps orders to drain: on disk, and in what this member tells the others.
//!
//! `model::drains` decides which order counts. An order that was taken is on disk before anybody is told
//! of it; one that was heard counts at once, and is written as soon as the disk allows.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::topic::{Change, Key, Topic};
use crate::model::{
    Problem,
    drains::{DrainError, Drainable, Drains, Order},
};

/// Name of the file in the state directory.
pub const FILE: &str = "drains.json";

/// Value of `schema`. Keys are only ever added under one version.
const SCHEMA: &str = "weir.drains/v1";

/// What a file that cannot be read is renamed to.
const SET_ASIDE: &str = "drains.json.unreadable";

#[derive(Deserialize, Serialize)]
struct Stored<D> {
    schema: String,
    orders: D,
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
    /// Why the file was set aside when it was read.
    set_aside: Option<String>,
    /// Why the file does not hold what `drains` does.
    unwritten: Option<String>,
}

impl Keeper {
    /// Reads the orders of before. A file that says nothing sensible is set aside: the other members'
    /// orders come by gossip, and this node must start.
    ///
    /// # Errors
    /// The state directory cannot be read or written.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let file = state_dir.join(FILE);
        let (drains, set_aside) = match fs::read(&file) {
            Ok(bytes) => match parse(&bytes) {
                Ok(drains) => (drains, None),
                Err(error) => {
                    fs::rename(&file, state_dir.join(SET_ASIDE))?;
                    let message = format!(
                        "{}: {error}; it is now {SET_ASIDE}: what was drained is known from \
                         other nodes only",
                        file.display()
                    );
                    tracing::error!("{message}");
                    (Drains::default(), Some(message))
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Drains::default(), None),
            Err(error) => return Err(error),
        };
        Ok(Self { state_dir: state_dir.into(), drains, set_aside, unwritten: None })
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
        what: &Drainable,
        drained: bool,
        own: &str,
        at_ms: u64,
    ) -> Result<Option<Publication>, OrderError> {
        let Some(order) = self.drains.order(what, drained, own, at_ms) else { return Ok(None) };
        let mut drains = self.drains.clone();
        drains.hear(&what.to_string(), order.clone())?;
        write(&self.state_dir, &drains)
            .map_err(|source| OrderError::Write { file: self.state_dir.join(FILE), source })?;
        self.drains = drains;
        self.unwritten = None;
        tracing::info!(%what, drained, "ordered by an administrator");
        Ok(publication(&what.to_string(), &order))
    }

    /// Another member's entry. Returns what to repeat of it. Writes to disk where it is news.
    pub fn on_change(&mut self, change: &Change) -> Option<Publication> {
        // That an origin is gone takes nothing back: it was an administrator's order, not its own.
        let value = change.value.as_ref().filter(|_| change.key.topic == Topic::DRAIN)?;
        let name = std::str::from_utf8(&change.key.name).ok()?;
        let order: Order = postcard::from_bytes(value).ok()?;
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
        self.unwritten = write(&self.state_dir, &self.drains).err().map(|error| {
            let file = self.state_dir.join(FILE);
            format!("{}: cannot be written: {error}; a restart would forget orders", file.display())
        });
        publication(name, &order)
    }

    /// What is wrong with the file.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        let messages = self.set_aside.iter().chain(&self.unwritten);
        messages.map(|message| Problem { object: "Agent".into(), message: message.clone() })
    }
}

fn publication(name: &str, order: &Order) -> Option<Publication> {
    // Writing to memory fails for no order.
    let value = postcard::to_allocvec(order).ok()?;
    Some((Key::new(Topic::DRAIN, name), value))
}

fn parse(bytes: &[u8]) -> Result<Drains, String> {
    let stored: Stored<Drains> =
        serde_json::from_slice(bytes).map_err(|error| format!("not understood ({error})"))?;
    if stored.schema != SCHEMA {
        return Err(format!("schema {:?}, expected {SCHEMA:?}", stored.schema));
    }
    // What is beyond a limit must not come in by the file either.
    let mut drains = Drains::default();
    for (name, order) in stored.orders.iter() {
        drains.hear(name, order.clone()).map_err(|error| error.to_string())?;
    }
    Ok(drains)
}

/// Replaces the file, and returns when the disk holds it.
fn write(state_dir: &Path, drains: &Drains) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(state_dir)?;
    let stored = Stored { schema: SCHEMA.into(), orders: drains };
    serde_json::to_writer_pretty(&mut file, &stored)?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    file.persist(state_dir.join(FILE))?;
    File::open(state_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Drainable {
        Drainable::Forwarding(name.into())
    }

    fn heard(publication: &Publication) -> Change {
        let (key, value) = publication.clone();
        Change { origin: "other".into(), key, value: Some(value.into()) }
    }

    #[test]
    fn orders_outlive_restarts_at_those_who_took_and_those_who_heard_them() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut taker = Keeper::open(here.path()).unwrap();
        let mut hearer = Keeper::open(there.path()).unwrap();
        let told = taker.order(&node("b"), true, "a", 1).unwrap().unwrap();
        assert_eq!(taker.order(&node("b"), true, "a", 2).unwrap(), None);
        assert_eq!(hearer.on_change(&heard(&told)), Some(told.clone()), "it repeats what it heard");
        assert_eq!(hearer.on_change(&heard(&told)), None, "once");
        for dir in [&here, &there] {
            let again = Keeper::open(dir.path()).unwrap();
            assert_eq!(again.drains().forwarding().collect::<Vec<_>>(), ["b"]);
            assert_eq!(again.publications(), std::slice::from_ref(&told));
            assert_eq!(again.problems().count(), 0);
        }
    }

    #[test]
    fn an_order_that_was_undone_while_a_member_was_away_stays_undone() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut stays = Keeper::open(here.path()).unwrap();
        let mut away = Keeper::open(there.path()).unwrap();
        let drain = away.order(&node("b"), true, "z", 1).unwrap().unwrap();
        stays.on_change(&heard(&drain));
        drop(away);
        let undrain = stays.order(&node("b"), false, "a", 2).unwrap().unwrap();
        let mut away = Keeper::open(there.path()).unwrap();
        for old in away.publications() {
            assert_eq!(stays.on_change(&heard(&old)), None);
        }
        assert_eq!(away.on_change(&heard(&undrain)), Some(undrain));
        assert_eq!(away.drains(), stays.drains());
        assert_eq!(stays.drains().forwarding().count(), 0);
    }

    #[test]
    fn entries_that_end_or_cannot_be_read_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::open(dir.path()).unwrap();
        let (key, value) = keeper.order(&node("b"), true, "a", 1).unwrap().unwrap();
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
            assert_eq!(keeper.on_change(&change), None, "{change:?}");
        }
        assert_eq!(keeper.drains(), &before);
    }

    #[test]
    fn a_file_that_is_not_understood_is_set_aside_and_told_of() {
        for text in ["", "{", r#"{"schema":"weir.drains/v9","orders":{}}"#] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(FILE), text).unwrap();
            let mut keeper = Keeper::open(dir.path()).unwrap();
            let problem = keeper.problems().next().unwrap().message;
            assert!(problem.contains("drains.json.unreadable"), "{problem}");
            assert_eq!(fs::read_to_string(dir.path().join(SET_ASIDE)).unwrap(), text);
            assert!(keeper.order(&node("b"), true, "a", 1).unwrap().is_some());
            assert_eq!(Keeper::open(dir.path()).unwrap().problems().count(), 0);
        }
    }

    #[test]
    fn an_order_that_cannot_be_written_does_not_count_and_one_that_was_heard_does() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut other = Keeper::open(there.path()).unwrap();
        let told = other.order(&node("b"), true, "a", 1).unwrap().unwrap();
        let mut keeper = Keeper::open(here.path()).unwrap();
        drop(here);
        let error = keeper.order(&node("c"), true, "a", 1).unwrap_err().to_string();
        assert!(error.contains("drains.json: cannot be written"), "{error}");
        assert_eq!(keeper.drains().forwarding().count(), 0);
        assert!(keeper.on_change(&heard(&told)).is_some());
        assert_eq!(keeper.drains().forwarding().collect::<Vec<_>>(), ["b"]);
        assert!(keeper.problems().next().unwrap().message.contains("would forget"));
    }
}
