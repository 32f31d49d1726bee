//! `weir probe`: a yes or no about this node's agent, for whoever restarts it or waits for it.
//!
//! Looks at the heart that the agent beats into the maps, and at nothing else: not at Kubernetes, not at
//! other nodes, not at what is served. So nothing that fails beyond this process gets it restarted.

use clap::ValueEnum;

use super::{args::Dirs, fault::Fault, read, snapshot::SILENCE_MS};
use crate::dataplane::maps::{Maps, OpenError};

/// What is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Question {
    /// Does it hang? An agent that has no maps yet waits until it knows what to serve, and does not
    Live,
    /// Does it run, with maps and all?
    Ready,
}

/// The answer: no error is yes.
///
/// # Errors
/// The agent does not, or it cannot be told whether it is ready.
pub fn run(question: Question, dirs: &Dirs) -> anyhow::Result<()> {
    let age = match Maps::open(dirs.pin_dir()) {
        Ok(maps) => read::heartbeat_ms(&maps)?,
        // A new weir beside the maps of an old one, too.
        Err(OpenError::NeverRan(_) | OpenError::OtherLayout { .. } | OpenError::Missing(_))
            if question == Question::Live =>
        {
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    Ok(judge(question, age)?)
}

/// By the age of the last heartbeat; none: there never was one.
fn judge(question: Question, age: Option<u64>) -> Result<(), Fault> {
    let what = match age {
        Some(age) if age <= SILENCE_MS => return Ok(()),
        Some(age) => format!("the agent's last heartbeat is {age} ms old"),
        None if question == Question::Live => return Ok(()),
        None => "no agent has beaten its heart into these maps".into(),
    };
    Err(Fault::new(
        what,
        "start `weir agent`, or restart the one that hangs; traffic goes on meanwhile",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heart_that_beats_is_alive_and_ready() {
        for question in [Question::Live, Question::Ready] {
            assert!(judge(question, Some(SILENCE_MS)).is_ok());
            assert!(judge(question, Some(SILENCE_MS + 1)).is_err());
        }
    }

    #[test]
    fn an_agent_that_starts_lives_and_is_not_ready() {
        assert!(judge(Question::Live, None).is_ok());
        assert!(judge(Question::Ready, None).is_err());
    }
}
