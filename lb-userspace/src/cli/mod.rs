//! The command line. Commands read the pinned maps and the status file themselves, so they work with
//! the agent dead; none of them writes, and only `drain` and `undrain` ask the agent. Reading and writing is at the edge: each command gathers a
//! plain value, makes its view from it purely, and [`output`] renders that.

pub mod args;
pub mod arrivals;
mod backends;
pub mod check;
pub mod counters;
pub mod drain;
mod fault;
pub mod manifest;
mod members;
mod output;
pub mod owners;
pub mod probe;
mod read;
pub mod snapshot;
mod status;
pub mod vips;
mod why;

#[cfg(test)]
mod tests;

use std::{
    io,
    process::ExitCode,
    thread,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use clap::{CommandFactory, Parser};

use self::{
    args::{AgentArgs, Cli, Command, Dirs, Output},
    arrivals::{Arrivals, ArrivalsArgs, Filter},
    backends::Backends,
    counters::{Counters, CountersArgs},
    fault::Fault,
    members::Members,
    output::{Reader, View, emit, render},
    owners::{Owners, OwnersArgs},
    snapshot::{Account, Sight, Snapshot},
    status::Status,
    vips::{Vips, VipsArgs},
    why::Why,
};
use crate::{agent, dataplane::maps::Maps, report::status::AgentStatus};

/// Runs the process's own command line. 0: done, 1: failed, 2: misused.
pub fn main() -> ExitCode {
    run(Cli::parse()).unwrap_or_else(|error| {
        eprint!("{}", fault::explain(&error));
        ExitCode::FAILURE
    })
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { dirs, command } = cli;
    let text = match command {
        Command::Agent(command) => {
            agent::run(AgentArgs::new(command, dirs))?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Check(args) => {
            let (text, ok) = check::run(&args, &dirs)?;
            emit(&mut io::stdout().lock(), &text)?;
            return Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Probe { question } => {
            probe::run(question, &dirs)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Manifest { what } => manifest::run(what, &dirs)?,
        Command::Completion { shell } => completion(shell),
        Command::Vips(args) => vips(&dirs, args)?,
        Command::Members(output) => {
            let node = Node::look(&dirs)?;
            let (account, agent) = node.account(&dirs)?;
            render(&Members::new(account, agent), output.format)?
        }
        Command::Drain(args) => drain::drain(&dirs, args)?,
        Command::Undrain(args) => drain::undrain(&dirs, args)?,
        Command::Backends(output) => Node::look(&dirs)?.answer(output, Backends::new)?,
        Command::Owners(args) => owners(&dirs, &args)?,
        Command::Arrivals(args) => arrivals(&dirs, &args)?,
        Command::Counters(args) => return counters(&dirs, &args),
        Command::Status(output) => {
            let node = Node::look(&dirs)?;
            node.answer(output, |sight| Status::new(sight, node.status_error.clone()))?
        }
    };
    emit(&mut io::stdout().lock(), &text)?;
    Ok(ExitCode::SUCCESS)
}

/// What this node's maps and its agent's file say.
struct Node {
    maps: Maps,
    snapshot: Snapshot,
    agent: Option<AgentStatus>,
    /// Why there is no `agent` although there is a file. Only `weir status` tells: the others can do
    /// without.
    status_error: Option<String>,
}

impl Node {
    fn look(dirs: &Dirs) -> anyhow::Result<Self> {
        let maps = Maps::open(dirs.pin_dir())?;
        let snapshot = read::snapshot(&maps)?;
        let (agent, status_error) = match AgentStatus::read(dirs.state_dir()) {
            Ok(agent) => (agent, None),
            Err(error) => (None, Some(error.to_string())),
        };
        Ok(Self { maps, snapshot, agent, status_error })
    }

    fn sight(&self) -> Sight<'_> {
        Sight { maps: &self.snapshot, agent: self.agent.as_ref() }
    }

    /// The agent's file, and how old it is.
    fn account(&self, dirs: &Dirs) -> anyhow::Result<(Account, &AgentStatus)> {
        let Some(agent) = &self.agent else {
            let error = self.status_error.as_deref().unwrap_or("there is none");
            let dir = dirs.state_dir().display();
            let what = format!("no status file of an agent in {dir}: {error}");
            let fix = "start the agent, or name its folder with --state-dir";
            return Err(Fault::new(what, fix).into());
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let age_ms = (now.as_millis() as u64).saturating_sub(agent.written_ms);
        let (node, agent_alive) = (agent.node.clone(), self.snapshot.agent_alive());
        Ok((Account { node, agent_alive, age_ms }, agent))
    }

    fn answer<'a, V: View>(
        &'a self,
        output: Output,
        view: impl FnOnce(Sight<'a>) -> V,
    ) -> anyhow::Result<String> {
        render(&view(self.sight()), output.format)
    }
}

fn vips(dirs: &Dirs, args: VipsArgs) -> anyhow::Result<String> {
    let node = Node::look(dirs)?;
    let Some(only) = args.why else { return node.answer(args.output, Vips::new) };
    let (account, agent) = node.account(dirs)?;
    let view = Why::new(account, agent, only);
    match only {
        Some(vip) if view.is_empty() => {
            let fix = "`weir vips` lists those that are";
            Err(Fault::new(format!("no VIP {vip} is known to this node's agent"), fix).into())
        }
        _ => render(&view, args.output.format),
    }
}

fn owners(dirs: &Dirs, args: &OwnersArgs) -> anyhow::Result<String> {
    let node = Node::look(dirs)?;
    let door = args.frontend;
    let table =
        node.snapshot.frontends.get(&door).map(|found| read::owners(&node.maps, found.service));
    let view = table.and_then(|table| Owners::new(node.sight(), door, &table, args.slots));
    let view = view.ok_or_else(|| {
        Fault::new(format!("no frontend {door} on this node"), "`weir vips` lists those that are")
    })?;
    render(&view, args.output.format)
}

fn arrivals(dirs: &Dirs, args: &ArrivalsArgs) -> anyhow::Result<String> {
    let node = Node::look(dirs)?;
    let filter = Filter { backend: args.backend, client: args.client };
    let flows = read::flows(&node.maps, &node.snapshot, &filter)?;
    render(&Arrivals::new(node.sight(), flows, args.limit), args.output.format)
}

fn counters(dirs: &Dirs, args: &CountersArgs) -> anyhow::Result<ExitCode> {
    let node = Node::look(dirs)?;
    let mut before = Counters::new(node.sight(), args.by(), args.all);
    let mut looked = Instant::now();
    let Some(interval) = args.watch else {
        emit(&mut io::stdout().lock(), &render(&before, args.output.format)?)?;
        return Ok(ExitCode::SUCCESS);
    };
    loop {
        thread::sleep(interval);
        let node = Node::look(dirs)?;
        let now = Counters::new(node.sight(), args.by(), args.all);
        let since = now.since(&before, looked.elapsed());
        (before, looked) = (now, Instant::now());
        let text = output::render_line(&since, args.output.format)?;
        if emit(&mut io::stdout().lock(), &text)? == Reader::Gone {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn completion(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "weir", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
