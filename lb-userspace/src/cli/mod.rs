//! The command line. Commands read the pinned maps and the status file themselves, so they work with
//! the agent dead; none of them writes. Reading and writing is at the edge: each command gathers a
//! plain value, makes its view from it purely, and [`output`] renders that.

pub mod args;
pub mod check;
mod fault;
mod output;

use std::{io, process::ExitCode};

use clap::{CommandFactory, Parser};

use args::{Cli, Command};

/// Runs the process's own command line. 0: done, 1: failed, 2: misused.
pub fn main() -> ExitCode {
    let done = run(Cli::parse());
    done.unwrap_or_else(|error| {
        eprint!("{}", fault::explain(&error));
        ExitCode::FAILURE
    })
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { dirs, command } = cli;
    let (text, ok) = match command {
        Command::Check(args) => check::run(&args, &dirs)?,
        Command::Completion { shell } => (completion(shell), true),
    };
    output::emit(&mut io::stdout().lock(), &text)?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn completion(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "weir", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
