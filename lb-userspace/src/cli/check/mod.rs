//! `weir check`: whether this machine can run weir. Gathers facts (I/O), judges them (pure), says
//! what would mend each. Changes nothing.

pub mod facts;
mod gather;
mod links;
mod nic;
pub mod rules;
mod uplink_rules;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use self::rules::{Finding, Level};
use super::{
    args::{Dirs, Output},
    output::{self, View},
};

#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Check the uplinks, folders and tunnel of this configuration
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of this node, over the Agent object's
    #[arg(long, value_name = "NAME", requires = "config")]
    pub node: Option<String>,
    /// Check this interface as an uplink; may be given several times
    #[arg(long = "uplink", value_name = "IFACE")]
    pub uplinks: Vec<String>,
    #[command(flatten)]
    pub output: Output,
}

/// The whole answer.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Nothing failed.
    pub ok: bool,
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn new(findings: Vec<Finding>) -> Self {
        Self { ok: findings.iter().all(|finding| finding.level != Level::Fail), findings }
    }
}

impl View for Report {
    const SCHEMA: &'static str = "weir.check/v1";

    fn text(&self) -> String {
        let mut text = String::new();
        for Finding { check, subject, level, message, fix } in &self.findings {
            let what =
                if subject.is_empty() { (*check).into() } else { format!("{subject} {check}") };
            text += &format!("{:<8}{what:<18}{message}\n", level.word());
            if let Some(fix) = fix {
                text += &format!("{:26}fix: {fix}\n", "");
            }
        }
        let count = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        text + &format!(
            "\n{} ok, {} warnings, {} failures, {} unknown\n",
            count(Level::Ok),
            count(Level::Warn),
            count(Level::Fail),
            count(Level::Unknown)
        )
    }
}

/// Gathers and judges. The answer and whether all is well.
pub fn run(args: &CheckArgs, dirs: &Dirs) -> anyhow::Result<(String, bool)> {
    let facts = gather::gather(args, dirs);
    let report = Report::new(rules::evaluate(&facts));
    Ok((output::render(&report, args.output.format)?, report.ok))
}
