//! `weir drain` and `weir undrain`: orders to the running agent, which tells all others.

use std::{io, net::SocketAddr, path::Path, time::Duration};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    args::{Dirs, Output},
    fault::Fault,
    output::{View, render, span},
};
use crate::{
    config::parse_duration,
    model::{Drainable, Life},
    report::{
        control::{self, Answer, Request, SOCKET},
        status::{AgentStatus, MemberStatus},
    },
};

#[derive(Args, Debug)]
pub struct DrainArgs {
    #[command(subcommand)]
    what: DrainWhat,
}

#[derive(Debug, Subcommand)]
enum DrainWhat {
    /// One backend: no new flows; it keeps those that it has until they end
    Backend {
        /// Its address and port, as `weir backends` lists it
        #[arg(value_name = "ADDRESS:PORT")]
        address: SocketAddr,
        /// After this it loses the flows that it still has, such as 30m; never, unless given
        #[arg(long, value_name = "TIME", value_parser = deadline)]
        deadline: Option<Duration>,
        #[command(flatten)]
        output: Output,
    },
    /// A node: its backends get no new flows; or, with --forwarding, it hands its VIPs over
    Node {
        /// Name of its Node object
        #[arg(value_name = "NAME")]
        name: String,
        /// From announcing and forwarding only: the node goes on receiving, and its backends serve
        #[arg(long, conflicts_with = "deadline")]
        forwarding: bool,
        /// After this its backends lose the flows that they still have, such as 30m; never, unless given
        #[arg(long, value_name = "TIME", value_parser = deadline)]
        deadline: Option<Duration>,
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
    /// One backend: it gets new flows again, unless its node is drained
    Backend {
        /// Its address and port
        #[arg(value_name = "ADDRESS:PORT")]
        address: SocketAddr,
        #[command(flatten)]
        output: Output,
    },
    /// A node: it announces and forwards again, and its backends get new flows again
    Node {
        /// Name of its Node object
        #[arg(value_name = "NAME")]
        name: String,
        /// It announces and forwards again; drained backends stay drained
        #[arg(long)]
        forwarding: bool,
        #[command(flatten)]
        output: Output,
    },
}

/// Longest deadline.
const MAX_DEADLINE: Duration = Duration::from_secs(30 * 24 * 3600);

fn deadline(text: &str) -> Result<Duration, String> {
    let read = parse_duration(text).filter(|time| *time <= MAX_DEADLINE);
    read.ok_or("allowed: up to 720h, as a whole number with ms, s, m or h".into())
}

/// What came of an order.
#[derive(Debug, Serialize)]
pub struct Outcome {
    what: Drainable,
    drained: bool,
    /// False: it was so already.
    changed: bool,
    /// What was put back by the same command.
    #[serde(skip_serializing_if = "Option::is_none")]
    also: Option<Drainable>,
    /// After which backends lose the flows that they still have.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_ms: Option<u64>,
    /// What the administrator should know besides.
    warning: Option<String>,
}

pub fn drain(dirs: &Dirs, args: DrainArgs) -> anyhow::Result<String> {
    let (what, deadline, output) = match args.what {
        DrainWhat::Backend { address, deadline, output } => {
            (Drainable::Backend(address), deadline, output)
        }
        DrainWhat::Node { name, forwarding: true, output, .. } => {
            (Drainable::Forwarding(name), None, output)
        }
        DrainWhat::Node { name, deadline, output, .. } => (Drainable::Node(name), deadline, output),
    };
    let deadline_ms = deadline.map(|time| time.as_millis() as u64);
    let request = Request::Drain { what: what.clone(), within_ms: deadline_ms };
    let (changed, warning) = order(dirs.state_dir(), &request)?;
    let agent = AgentStatus::read(dirs.state_dir()).ok().flatten();
    let warning = warning.or_else(|| agent.and_then(|agent| alone(&agent, &what)));
    let outcome = Outcome { what, drained: true, changed, also: None, deadline_ms, warning };
    render(&outcome, output.format)
}

pub fn undrain(dirs: &Dirs, args: UndrainArgs) -> anyhow::Result<String> {
    let (mut what, mut also, output) = match args.what {
        UndrainWhat::Backend { address, output } => (Drainable::Backend(address), None, output),
        UndrainWhat::Node { name, forwarding: true, output } => {
            (Drainable::Forwarding(name), None, output)
        }
        UndrainWhat::Node { name, output, .. } => {
            (Drainable::Forwarding(name.clone()), Some(Drainable::Node(name)), output)
        }
    };
    let put_back = |what: &Drainable| -> anyhow::Result<bool> {
        Ok(order(dirs.state_dir(), &Request::Undrain { what: what.clone() })?.0)
    };
    let mut changed = put_back(&what)?;
    // Of the two what was drained at all is told of.
    if let Some(second) = also.take()
        && put_back(&second)?
    {
        also = changed.then_some(what);
        (what, changed) = (second, true);
    }
    let outcome = Outcome { what, drained: false, changed, also, deadline_ms: None, warning: None };
    render(&outcome, output.format)
}

/// Asks the agent; returns whether anything changed, and what speaks against it.
fn order(state_dir: &Path, request: &Request) -> anyhow::Result<(bool, Option<String>)> {
    match control::ask(state_dir, request) {
        Ok(Answer::Done { changed, warning }) => Ok((changed, warning)),
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
fn alone(agent: &AgentStatus, what: &Drainable) -> Option<String> {
    let Drainable::Forwarding(node) = what else { return None };
    let takes_over = |member: &MemberStatus| {
        member.node != *node && member.life == Life::Alive && !member.drained
    };
    let nobody = !agent.members.is_empty() && !agent.members.iter().any(takes_over);
    nobody.then(|| {
        "no other node is alive and not drained: VIPs stay where they are rather than nowhere"
            .into()
    })
}

impl Outcome {
    fn sentence(&self) -> String {
        let Self { what, drained, changed, .. } = self;
        let until = match self.deadline_ms {
            Some(time) => format!("until they end, {} at most", span(time)),
            None => "until they end".into(),
        };
        let again = "`weir status` shows how many remain";
        let also = if self.also.is_some() { "; it announces and forwards again too" } else { "" };
        match (what, drained, changed) {
            (Drainable::Forwarding(node), true, true) => format!(
                "{node} is drained from forwarding: it hands its VIPs over and announces none; its \
                 backends serve on.\n`weir members` shows what it announces still; `weir undrain node \
                 {node}` puts it back.\n"
            ),
            (Drainable::Forwarding(node), true, false) => {
                format!("{node} was drained from forwarding already\n")
            }
            (Drainable::Forwarding(node), false, true) => {
                format!("{node} announces and forwards again\n")
            }
            (Drainable::Node(node), true, true) => format!(
                "The backends of {node} are drained: no new flows; they keep what they have {until}.\n\
                 {again}; `weir undrain node {node}` puts them back.\n"
            ),
            (Drainable::Node(node), true, false) => {
                format!("the backends of {node} were drained already\n")
            }
            (Drainable::Node(node), false, true) => {
                format!("the backends of {node} get new flows again{also}\n")
            }
            (Drainable::Forwarding(name) | Drainable::Node(name), false, false) => {
                format!("{name} was not drained\n")
            }
            (Drainable::Backend(address), true, true) => format!(
                "{address} is drained: no new flows; it keeps what it has {until}.\n\
                 {again}; `weir undrain backend {address}` puts it back.\n"
            ),
            (Drainable::Backend(address), true, false) => {
                format!("{address} was drained already\n")
            }
            (Drainable::Backend(address), false, true) => {
                format!("{address} gets new flows again\n")
            }
            (Drainable::Backend(address), false, false) => format!("{address} was not drained\n"),
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
    use crate::cli::args::Format;

    fn outcome(drained: bool, changed: bool, warning: Option<String>) -> Outcome {
        let what = Drainable::Forwarding("b".into());
        Outcome { what, drained, changed, also: None, deadline_ms: None, warning }
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
            for (what, again) in [
                (Drainable::Node("b".into()), "node b"),
                (Drainable::Backend("10.0.0.1:80".parse().unwrap()), "backend 10.0.0.1:80"),
            ] {
                let text = Outcome { what, ..outcome(drained, changed, None) }.text();
                assert_eq!(text.contains("drained"), drained || !changed, "{text}");
                assert_eq!(text.contains(again), drained && changed, "{text}");
            }
        }
        let limited = Outcome {
            what: Drainable::Node("b".into()),
            deadline_ms: Some(1_800_000),
            ..outcome(true, true, None)
        };
        assert!(limited.text().contains("until they end, 30 min at most"), "{}", limited.text());
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
        assert_eq!(alone(&agent, &what), None);
        for last in [member("a", Life::Dead, false), member("a", Life::Alive, true)] {
            agent.members[0] = last;
            assert!(alone(&agent, &what).is_some());
        }
        agent.members.clear();
        assert_eq!(alone(&agent, &what), None, "nothing known");
    }

    #[test]
    fn without_an_agent_the_state_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { pin_dir: None, state_dir: Some(dir.path().into()) };
        let request = Request::Undrain { what: Drainable::Forwarding("b".into()) };
        let error = order(dirs.state_dir(), &request).unwrap_err();
        let text = super::super::fault::explain(&error);
        assert!(
            text.contains("agent.sock does not answer") && text.contains("--state-dir"),
            "{text}"
        );
    }
}
