//! What the agent starts with: its source, or a checkpoint where that says nothing good.

use std::{
    fs,
    fs::File,
    path::Path,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use anyhow::Context;
use nix::fcntl::Flock;

use super::{keep::Keep, report::unix_ms};
use crate::{
    cli::args::AgentArgs,
    model::Intent,
    sources::{
        checkpoint::{self, Digest},
        file::{FileSource, FirstLook},
        trust::{Choice, Trust},
    },
};

/// A life of the agent that has begun.
pub struct Begun {
    pub source: FileSource,
    /// No other agent has this one's pins.
    pub lock: Flock<File>,
    pub keep: Keep,
    /// What was in force when an agent was here last.
    pub checkpoint: Option<Intent>,
}

/// Reads the source and what earlier lives left, decides what to start with, and takes the lock.
///
/// # Errors
/// Every problem of the source, where there is no checkpoint either. Another agent runs.
pub fn begin(args: &AgentArgs) -> anyhow::Result<Begun> {
    let first = FirstLook::new(args.config.clone(), super::overrides(args));
    let now_ms = unix_ms(SystemTime::now());
    let state_dir = first.state_dir();
    let live = first.intent().ok();
    let asked = live.map(Digest::of).transpose().context("tell one configuration from another")?;
    let node = live.map(|intent| &intent.agent.node).or(args.node.as_ref());
    let mut found = checkpoint::read(&state_dir, node.map(String::as_str));
    let mut trust = Trust::open(&state_dir);
    let choice = trust.choose(asked, &found.checkpoints, now_ms);
    let newest = found.checkpoints.first().map(|it| it.intent.clone());
    let checkpoint = newest.clone();
    let chosen = match choice {
        Choice::Checkpoint(index) => Some(found.checkpoints.swap_remove(index)),
        Choice::Live => None,
        Choice::Nothing => return Err(nothing(&first, &state_dir)),
    };

    let settings = chosen.as_ref().map(|it| &it.intent).or(first.intent().ok());
    let pin_dir = args.pin_dir.clone().or(settings.map(|it| it.agent.pin_dir.clone()));
    let tried = chosen.as_ref().map(|it| it.asked).or(asked);
    let (Some(pin_dir), Some(tried)) = (pin_dir, tried) else {
        return Err(nothing(&first, &state_dir));
    };
    fs::create_dir_all(&state_dir)
        .with_context(|| format!("make state folder {}", state_dir.display()))?;
    let lock = super::lock(&pin_dir)?;
    // From here on an end that nobody asked for is a crash.
    trust.begin(tried, now_ms);
    let trust = Arc::new(Mutex::new(trust));
    let source = match chosen {
        Some(checkpoint) => {
            FileSource::from_checkpoint(first, checkpoint, trust.clone(), SystemTime::now)
        }
        None => FileSource::live(first, Some(trust.clone()), SystemTime::now)?,
    };
    let keep = Keep::new(state_dir, trust, newest, found.problems);
    Ok(Begun { source, lock, keep, checkpoint })
}

fn nothing(first: &FirstLook, state_dir: &Path) -> anyhow::Error {
    let no_checkpoint =
        format!("no configuration, and no checkpoint of one in {}", state_dir.display());
    match first.intent() {
        Err(errors) => anyhow::Error::from(errors.clone()).context(no_checkpoint),
        Ok(_) => anyhow::anyhow!(no_checkpoint),
    }
}
