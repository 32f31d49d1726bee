//! `weir drain` and `weir undrain`: orders to the running agent, which tells all others.

use std::{io, path::Path};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    args::{Dirs, Output},
    fault::Fault,
    output::{View, render},
};
use crate::{
    model::{Drainable, Life},
    report::{
        control::{self, Answer, Request, SOCKET},
        status::AgentStatus,
    },
};

#[derive(Args, Debug)]
pub struct DrainArgs {
    #[command(subcommand)]
    what: DrainWhat,
}

#[derive(Debug, Subcommand)]
enum DrainWhat {
    /// A node, for maintenance: it hands its VIPs over and announces none, until it is undrained
    Node {
        /// Name of its Node object
        #[arg(value_name = "NAME")]
        name: String,
        /// From announcing and forwarding only: the node goes on receiving, and its backends serve
        #[arg(long, required = true)]
        forwarding: bool,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Args, Debug)]
pub struct UndrainArgs {
    #[command(subcommand)]
    what: UndrainWhat,
}

#[derive(Debug, Subcommand)]
enum UndrainWhat {
    /// A node: it announces and forwards again
    Node {
        /// Name of its Node object
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        output: Output,
    },
}

/// What came of an order.
#[derive(Debug, Serialize)]
pub struct Outcome {
    what: Drainable,
    drained: bool,
    /// False: it was so already.
    changed: bool,
    /// What the administrator should know besides.
    warning: Option<String>,
}

pub fn drain(dirs: &Dirs, args: DrainArgs) -> anyhow::Result<String> {
    let DrainWhat::Node { name, output, forwarding: _ } = args.what;
    order(dirs, Drainable::Forwarding(name), true, output)
}

pub fn undrain(dirs: &Dirs, args: UndrainArgs) -> anyhow::Result<String> {
    let UndrainWhat::Node { name, output } = args.what;
    order(dirs, Drainable::Forwarding(name), false, output)
}

fn order(dirs: &Dirs, what: Drainable, drained: bool, output: Output) -> anyhow::Result<String> {
    let state_dir = dirs.state_dir();
    let request = match drained {
        true => Request::Drain { what: what.clone() },
        false => Request::Undrain { what: what.clone() },
    };
    match control::ask(state_dir, &request) {
        Ok(Answer::Done { changed }) => {
            let agent = AgentStatus::read(state_dir).ok().flatten();
            let warning = agent.filter(|_| drained).and_then(|agent| warning(&agent, &what));
            render(&Outcome { what, drained, changed, warning }, output.format)
        }
        Ok(Answer::Refused { error, fix }) => Err(Fault::new(error, fix).into()),
        Err(error) => Err(unreachable(state_dir, error)),
    }
}

fn unreachable(state_dir: &Path, error: io::Error) -> anyhow::Error {
    let socket = state_dir.join(SOCKET);
    let fix = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "no agent runs with this state directory: start it, or name the right one with --state-dir"
        }
        io::ErrorKind::PermissionDenied => "run this as the agent's user, which is root",
        _ => "look at `weir status`, then try again",
    };
    let fault = Fault::new(format!("the agent at {} does not answer", socket.display()), fix);
    Err::<(), _>(error).context(fault).unwrap_err()
}

/// Whether nobody is left who could take over, as this node saw it last.
fn warning(agent: &AgentStatus, what: &Drainable) -> Option<String> {
    let Drainable::Forwarding(node) = what;
    let takes_over = |member: &&crate::report::status::MemberStatus| {
        member.node != *node && member.life == Life::Alive && !member.drained
    };
    let nobody = !agent.members.is_empty() && !agent.members.iter().any(|it| takes_over(&it));
    nobody.then(|| {
        "no other node is alive and not drained: VIPs stay where they are rather than nowhere"
            .into()
    })
}

impl Outcome {
    fn sentence(&self) -> String {
        let Drainable::Forwarding(node) = &self.what;
        match (self.drained, self.changed) {
            (true, true) => format!(
                "{node} is drained from forwarding: it hands its VIPs over and announces none; its \
                 backends serve on.\n`weir members` shows what it announces still; `weir undrain node \
                 {node}` puts it back.\n"
            ),
            (true, false) => format!("{node} was drained from forwarding already\n"),
            (false, true) => format!("{node} announces and forwards again\n"),
            (false, false) => format!("{node} was not drained\n"),
        }
    }
}

impl View for Outcome {
    const SCHEMA: &'static str = "weir.drain/v1";

    fn text(&self) -> String {
        let warning = self.warning.iter().map(|warning| format!("WARNING: {warning}\n"));
        self.sentence() + &warning.collect::<String>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::args::Format, report::status::MemberStatus};

    fn outcome(drained: bool, changed: bool, warning: Option<String>) -> Outcome {
        Outcome { what: Drainable::Forwarding("b".into()), drained, changed, warning }
    }

    #[test]
    fn every_outcome_says_what_is_so_now() {
        for (drained, changed, part) in [
            (true, true, "hands its VIPs over"),
            (true, false, "already"),
            (false, true, "announces and forwards again"),
            (false, false, "was not drained"),
        ] {
            assert!(outcome(drained, changed, None).text().contains(part));
        }
        let json = render(&outcome(true, true, Some("w".into())), Format::Json).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "schema": "weir.drain/v1", "what": "forwarding/b", "drained": true, "changed": true,
                "warning": "w",
            })
        );
    }

    #[test]
    fn draining_the_last_living_node_is_warned_of() {
        let member = |node: &str, life, drained| MemberStatus {
            node: node.into(),
            life,
            drained,
            ..Default::default()
        };
        let what = Drainable::Forwarding("b".into());
        let mut agent = AgentStatus {
            members: vec![member("a", Life::Alive, false), member("b", Life::Alive, false)],
            ..Default::default()
        };
        assert_eq!(warning(&agent, &what), None);
        for last in [member("a", Life::Dead, false), member("a", Life::Alive, true)] {
            agent.members[0] = last;
            assert!(warning(&agent, &what).is_some());
        }
        agent.members.clear();
        assert_eq!(warning(&agent, &what), None, "nothing known");
    }

    #[test]
    fn without_an_agent_the_state_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { pin_dir: None, state_dir: Some(dir.path().into()) };
        let output = Output { format: Format::Table };
        let error = order(&dirs, Drainable::Forwarding("b".into()), true, output).unwrap_err();
        let text = super::super::fault::explain(&error);
        assert!(
            text.contains("agent.sock does not answer") && text.contains("--state-dir"),
            "{text}"
        );
    }
}
