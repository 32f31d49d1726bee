//! Which intent an agent dares to start with: a journal of its lives.
//!
//! A life that ends without saying so crashed. Three crashes within a minute throw suspicion on the
//! intent of the last one, unless it proved good before: then it is not what kills, as with an agent that
//! is killed again and again from outside, and giving it up would only change what serves well. A
//! suspected intent is not used until the source says something else, or an administrator insists.
//!
//! The journal must hold against the end of the process, not of the machine: it is replaced as a whole,
//! and not synced.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::checkpoint::{Checkpoint, Digest};

/// Name of the file in the state directory.
pub const FILE: &str = "lives.json";

const SCHEMA: &str = "weir.lives/v1";

/// While it is written.
const FRESH: &str = "lives.json.new";

/// So many crashes within this are a loop.
pub const CRASHES: usize = 3;
pub const WITHIN_MS: u64 = 60_000;

/// Lives that are kept.
const MAX_LIVES: usize = 8;

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Life {
    /// Unix time in ms.
    started_ms: u64,
    /// The last intent that it took up.
    tried: Digest,
    /// It ended in order.
    ended: bool,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Journal {
    schema: String,
    /// The oldest first.
    lives: Vec<Life>,
    /// The intent that crashed an agent.
    distrusted: Option<Digest>,
}

impl Default for Journal {
    fn default() -> Self {
        Self { schema: SCHEMA.into(), lives: Vec::new(), distrusted: None }
    }
}

impl Journal {
    /// The intent that is to blame for a loop of crashes, if there is one. `good`: those that proved to be.
    fn blamed(&self, good: &[Digest], now_ms: u64) -> Option<Digest> {
        let recent = |life: &&Life| {
            !life.ended && now_ms.checked_sub(life.started_ms).is_some_and(|age| age <= WITHIN_MS)
        };
        let crashes = self.lives.iter().rev().take_while(recent).count();
        let last = self.lives.last().filter(|_| crashes >= CRASHES)?;
        (!good.contains(&last.tried)).then_some(last.tried)
    }
}

/// What an agent starts with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Choice {
    /// What the source says.
    Live,
    /// The checkpoint of this index.
    Checkpoint(usize),
    /// There is nothing.
    Nothing,
}

/// The journal of one state directory, which one agent at a time has open.
#[derive(Debug)]
pub struct Trust {
    state_dir: PathBuf,
    journal: Journal,
}

impl Trust {
    /// Reads the journal. One that says nothing sensible counts as none: suspicion is all it could cost.
    pub fn open(state_dir: &Path) -> Self {
        let read = fs::read(state_dir.join(FILE)).ok();
        let journal = read.and_then(|bytes| serde_json::from_slice::<Journal>(&bytes).ok());
        let journal = journal.filter(|it| it.schema == SCHEMA).unwrap_or_default();
        Self { state_dir: state_dir.into(), journal }
    }

    /// What to start with. `live`: what the source says, if it can be read at all. To be asked before
    /// [`begin`](Self::begin); what is suspected from now on is written there.
    pub fn choose(
        &mut self,
        live: Option<Digest>,
        checkpoints: &[Checkpoint],
        now_ms: u64,
    ) -> Choice {
        let good: Vec<Digest> = checkpoints.iter().map(|it| it.asked).collect();
        let blamed = self.journal.blamed(&good, now_ms);
        let distrusted = blamed.or(self.journal.distrusted);
        // The newest of them is not the one that crashed: that did not prove good.
        let other = good.iter().position(|digest| Some(*digest) != distrusted);
        let choice = match (live, other) {
            (Some(live), Some(index)) if Some(live) == distrusted => Choice::Checkpoint(index),
            (Some(_), _) => Choice::Live,
            (None, Some(index)) => Choice::Checkpoint(index),
            (None, None) => Choice::Nothing,
        };
        // Where the source cannot be read, it may yet come back with what was suspected.
        let stays = choice != Choice::Live;
        self.journal.distrusted = distrusted.filter(|_| stays);
        choice
    }

    /// The intent that is not to be used.
    pub fn distrusted(&self) -> Option<Digest> {
        self.journal.distrusted
    }

    /// What the source asked for that is in force in this life.
    pub fn tried(&self) -> Option<Digest> {
        self.journal.lives.last().map(|life| life.tried)
    }

    /// A life begins, with this intent.
    pub fn begin(&mut self, tried: Digest, now_ms: u64) {
        let excess = (self.journal.lives.len() + 1).saturating_sub(MAX_LIVES);
        self.journal.lives.drain(..excess);
        self.journal.lives.push(Life { started_ms: now_ms, tried, ended: false });
        self.write();
    }

    /// It takes up another one, which the source says now: nothing is suspected any more.
    pub fn tries(&mut self, tried: Digest) {
        self.journal.distrusted = None;
        if let Some(life) = self.journal.lives.last_mut() {
            life.tried = tried;
        }
        self.write();
    }

    /// It ends in order.
    pub fn end(&mut self) {
        if let Some(life) = self.journal.lives.last_mut() {
            life.ended = true;
        }
        self.write();
    }

    /// That it cannot be written stops nothing.
    fn write(&self) {
        let (fresh, file) = (self.state_dir.join(FRESH), self.state_dir.join(FILE));
        let write = || -> io::Result<()> {
            fs::write(&fresh, serde_json::to_vec_pretty(&self.journal)?)?;
            fs::rename(&fresh, &file)
        };
        if let Err(error) = write() {
            tracing::warn!(%error, file = %file.display(), "the journal of lives cannot be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Overrides, parse},
        model::Intent,
    };

    /// Different intents, and checkpoints of them.
    fn checkpoints(count: usize) -> Vec<Checkpoint> {
        let text = include_str!("../../../docs/examples/weir.yaml");
        let overrides = Overrides { node: Some("worker-1".into()), ..Overrides::default() };
        let intent = parse(Path::new("weir.yaml"), text, &overrides).unwrap();
        let checkpoint = |vni| {
            let mut intent: Intent = intent.clone();
            intent.agent.vni = vni;
            let asked = Digest::of(&intent).unwrap();
            Checkpoint { file: "checkpoint".into(), intent, asked, written_ms: 0 }
        };
        (0..count as u32).map(checkpoint).collect()
    }

    /// A start at this time, as the agent does it. Nobody ends it in order.
    fn start(dir: &Path, live: Option<Digest>, good: &[Checkpoint], now_ms: u64) -> Choice {
        let mut trust = Trust::open(dir);
        let choice = trust.choose(live, good, now_ms);
        let tried = match choice {
            Choice::Live => live.unwrap(),
            Choice::Checkpoint(index) => good[index].asked,
            Choice::Nothing => return choice,
        };
        trust.begin(tried, now_ms);
        choice
    }

    #[test]
    fn after_three_crashes_in_a_minute_the_last_good_one_serves_until_the_source_differs() {
        let dir = tempfile::tempdir().unwrap();
        let all = checkpoints(4);
        let (good, bad, mended) = (&all[..2], Some(all[2].asked), Some(all[3].asked));
        let mut now = 1_000_000;
        let mut next = |live| {
            now += 10_000;
            start(dir.path(), live, good, now)
        };
        assert_eq!([bad, bad, bad].map(&mut next), [Choice::Live, Choice::Live, Choice::Live]);
        assert_eq!(next(bad), Choice::Checkpoint(0));
        for _ in 0..10 {
            assert_eq!(next(bad), Choice::Checkpoint(0), "crashed or not, however long ago");
        }
        assert_eq!(next(None), Choice::Checkpoint(0));
        assert_eq!(next(bad), Choice::Checkpoint(0));
        assert_eq!(next(mended), Choice::Live);
        assert_eq!(next(bad), Choice::Live, "a new chance");
    }

    #[test]
    fn an_agent_that_is_killed_again_and_again_keeps_what_proved_good() {
        let dir = tempfile::tempdir().unwrap();
        let good = checkpoints(2);
        for now in 0..40 {
            let live = Some(good[now as usize / 20].asked);
            assert_eq!(start(dir.path(), live, &good, now), Choice::Live, "{now}");
        }
    }

    #[test]
    fn crashes_that_are_rare_or_follow_a_proper_end_blame_nobody() {
        let all = checkpoints(2);
        let (good, fresh) = (&all[..1], Some(all[1].asked));
        for (gap_ms, ends) in [(31_000, false), (10, true)] {
            let dir = tempfile::tempdir().unwrap();
            for turn in 1..30 {
                assert_eq!(start(dir.path(), fresh, good, turn * gap_ms), Choice::Live);
                if ends && turn % 3 == 0 {
                    Trust::open(dir.path()).end();
                }
            }
        }
        // A clock that went back.
        let dir = tempfile::tempdir().unwrap();
        for now in [9_000_000, 9_000_001, 9_000_002, 5] {
            assert_eq!(start(dir.path(), fresh, good, now), Choice::Live);
        }
    }

    #[test]
    fn a_change_that_crashes_a_running_agent_is_blamed() {
        let dir = tempfile::tempdir().unwrap();
        let all = checkpoints(2);
        let (good, bad) = (&all[..1], all[1].asked);
        start(dir.path(), Some(good[0].asked), good, 0);
        let mut trust = Trust::open(dir.path());
        trust.tries(bad);
        for now in 1..3 {
            assert_eq!(start(dir.path(), Some(bad), good, now), Choice::Live);
        }
        assert_eq!(start(dir.path(), Some(bad), good, 3), Choice::Checkpoint(0));
        let mut trust = Trust::open(dir.path());
        assert_eq!(trust.distrusted(), Some(bad));
        trust.tries(bad);
        assert_eq!(Trust::open(dir.path()).distrusted(), None, "an administrator insisted");
    }

    #[test]
    fn without_a_checkpoint_there_is_no_choice_and_nonsense_counts_as_no_journal() {
        let dir = tempfile::tempdir().unwrap();
        let bad = Some(checkpoints(1)[0].asked);
        for now in 0..20 {
            assert_eq!(start(dir.path(), bad, &[], now), Choice::Live);
        }
        assert_eq!(start(dir.path(), None, &[], 21), Choice::Nothing);
        let journal = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(journal.matches("started_ms").count(), MAX_LIVES);
        for text in ["", "{", r#"{"schema":"weir.lives/v2","lives":[],"distrusted":null}"#] {
            fs::write(dir.path().join(FILE), text).unwrap();
            assert_eq!(Trust::open(dir.path()).journal, Journal::default());
        }
    }
}
