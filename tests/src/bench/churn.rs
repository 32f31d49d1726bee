//! Nothing breaks while everything changes: long conversations through a router that spreads them over forwarders, and
//! backends, forwarders and agents that come, go and die.
//!
//! One [`site`], on it a [`crowd`] of conversations; [`event`]s follow each other. What broke is counted for the event
//! during which it did. `--control` runs the same events against the classic design, which shows that the bench can fail.

mod control;
pub(super) mod crowd;
mod event;
mod report;
pub(super) mod site;
pub(super) mod system;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum as _};

use crate::fleet::{self, NEXT_BINARY};

use control::Control;
pub use crowd::Crowd;
use event::Run;
pub use event::{Kind, Record};
use report::Report;
use site::Forwarders;
pub use site::Site;
use system::{System, Weir};

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// TCP connections, half of them by IPv6
    #[arg(long, default_value_t = 2000)]
    pub connections: usize,
    /// UDP flows, half of them by IPv6
    #[arg(long, default_value_t = 200)]
    pub flows: usize,
    /// Kinds of changes to backends and forwarders, in this order; all, if none is given
    #[arg(long, value_enum, value_delimiter = ',')]
    pub events: Vec<Kind>,
    /// How often they are gone through
    #[arg(long, default_value_t = 2)]
    pub rounds: usize,
    /// Agents killed after that, one after the other
    #[arg(long, default_value_t = 20)]
    pub kills: usize,
    /// Agents upgraded to `$WEIR_NEXT_BIN` after that, and downgraded again
    #[arg(long, default_value_t = 5)]
    pub upgrades: usize,
    /// From the end of a deed until everyone must speak
    #[arg(long, default_value_t = 3000)]
    pub pause_ms: u64,
    /// The same against Maglev with a table of flows in each forwarder
    #[arg(long)]
    pub control: bool,
}

/// Measures and prints the table. False: something broke at weir, or nothing did at the control.
pub fn run(options: &Options, json: bool) -> Result<bool> {
    if options.upgrades > 0 {
        // Before a run of minutes ends in this.
        fleet::named(NEXT_BINARY)?;
    }
    let weir = measure_weir(options)?;
    let control = options.control.then(|| measure_control(options)).transpose()?;
    let report = Report::new(options, &weir, control.as_deref());
    super::show(&report, json, report::print)?;
    Ok(report.ok)
}

/// All events with weir on every node.
pub fn measure_weir(options: &Options) -> Result<Vec<Record>> {
    let mut site = Site::build(Forwarders::Mixed)?;
    let lab = Arc::clone(&site.lab);
    let weir = Weir::start(&site, &lab, &site.powered(), &site.pool)?;
    measure(options, &mut site, &weir, Some(&weir))
}

/// Those that the control can have.
pub fn measure_control(options: &Options) -> Result<Vec<Record>> {
    let mut site = Site::build(Forwarders::Edges)?;
    let lab = Arc::clone(&site.lab);
    let control = Control::start(&site, &lab)?;
    measure(options, &mut site, &control, None)
}

fn measure(
    options: &Options,
    site: &mut Site,
    system: &dyn System,
    weir: Option<&Weir<'_>>,
) -> Result<Vec<Record>> {
    // Both ends of each connection are in this process, and its broken predecessors for a while.
    let files = 4 * (options.connections + options.flows) as u64 + 1024;
    let crowd = Crowd::new(&site.lab.clients()[0], files)?;
    let mut run = Run {
        site,
        crowd: &crowd,
        system,
        weir,
        connections: options.connections,
        flows: options.flows,
        pause: Duration::from_millis(options.pause_ms),
    };
    let mut records: Vec<Record> = Vec::new();
    let mut numbers = BTreeMap::new();
    let name = if weir.is_some() { "weir" } else { "control" };
    for kind in options.plan() {
        if weir.is_none() && kind.of_agents() {
            continue;
        }
        let late = run.fill()?;
        match records.last_mut() {
            Some(last) => last.add_late(&late),
            None => ensure!(late.is_empty(), "before the first event: {late:?}"),
        }
        let number = numbers.entry(kind).or_insert(0);
        let record = run.event(kind, *number)?;
        *number += 1;
        eprintln!("{name} {}", report::line(&record));
        records.push(record);
    }
    let late = run.fill()?;
    if let Some(last) = records.last_mut() {
        last.add_late(&late);
    }
    Ok(records)
}

impl Options {
    /// All events in their order.
    fn plan(&self) -> Vec<Kind> {
        let all = || Kind::value_variants().iter().copied().filter(|kind| !kind.of_agents());
        let round: Vec<_> =
            if self.events.is_empty() { all().collect() } else { self.events.clone() };
        let rounds = (0..self.rounds).flat_map(|_| round.iter().copied());
        rounds
            .chain(std::iter::repeat_n(Kind::AgentSigkill, self.kills))
            .chain(std::iter::repeat_n(Kind::Upgraded, self.upgrades))
            .chain(std::iter::repeat_n(Kind::Downgraded, self.upgrades))
            .collect()
    }
}
