//! Failover as clients feel it: nodes lose power, agents hang, cables are cut, servers die; weir beside its peers.
//!
//! One site (see [`site`]) for each system and cluster size, on which event follows event: calm, the deed, calm again,
//! everything put back. Each event is recorded at once (see [`results`]); a run that is stopped goes on where it was.

mod calm;
mod felt;
mod kind;
mod load;
mod peers;
mod report;
mod results;
mod site;
mod system;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use kind::Kind;
use peers::{Pace, Peer, Spreader};
use report::{Report, Row, Settings};
use results::{Record, Results};
use site::Site;
use system::{System, Weir};

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Cluster sizes
    #[arg(long, value_delimiter = ',', default_values_t = [3, 10])]
    nodes: Vec<usize>,
    /// Kinds of events; all, if none is given
    #[arg(long, value_enum, value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// What balances
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Family::Weir, Family::Haproxy, Family::Nftables])]
    systems: Vec<Family>,
    /// Events of each kind, instead of as many as the figures need
    #[arg(long)]
    events: Option<usize>,
    /// Where events are recorded, instead of in the user's cache
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Marks what is recorded; counts what has the same mark, of whatever revision
    #[arg(long)]
    label: Option<String>,
    /// Forget what was recorded of this revision or label
    #[arg(long)]
    fresh: bool,
    /// Instead of events: so many minutes of ten nodes in which none dies, while all processors are busy
    #[arg(long, value_name = "MINUTES")]
    calm: Option<u64>,
}

/// What `--systems` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Family {
    /// This one
    Weir,
    /// keepalived and HAProxy, at their defaults and at their fast settings
    Haproxy,
    /// keepalived and nftables, likewise
    Nftables,
}

/// A system that has rows in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    Weir,
    Peer(Spreader, Pace),
}

impl Family {
    fn contenders(self) -> Vec<Contender> {
        let both = |spreader| {
            [Pace::Default, Pace::Fast].map(|pace| Contender::Peer(spreader, pace)).into()
        };
        match self {
            Self::Weir => vec![Contender::Weir],
            Self::Haproxy => both(Spreader::HaProxy),
            Self::Nftables => both(Spreader::Nftables),
        }
    }
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Weir => "weir",
            Self::Peer(Spreader::HaProxy, Pace::Default) => "keepalived+haproxy",
            Self::Peer(Spreader::HaProxy, Pace::Fast) => "keepalived+haproxy fast",
            Self::Peer(Spreader::Nftables, Pace::Default) => "keepalived+nft",
            Self::Peer(Spreader::Nftables, Pace::Fast) => "keepalived+nft fast",
        }
    }

    fn settings(self) -> String {
        match self {
            Self::Weir => Weir::settings(),
            Self::Peer(spreader, pace) => peers::settings(spreader, pace),
        }
    }

    fn start(self, site: &Site) -> Result<Box<dyn System + '_>> {
        Ok(match self {
            Self::Weir => Box::new(Weir::start(site)?),
            Self::Peer(spreader, pace) => Box::new(Peer::start(site, spreader, pace)?),
        })
    }
}

/// Measures what is not recorded yet and prints the table. False: a goal was missed.
pub fn run(options: &Options, json: bool) -> Result<bool> {
    if let Some(minutes) = options.calm {
        return calm::run(minutes, json);
    }
    let mut results =
        Results::open(options.results.as_deref(), options.label.as_deref(), options.fresh)?;
    eprintln!("events are recorded in {}", results.path().display());
    for contender in options.contenders() {
        for &nodes in &options.nodes {
            measure(options, contender, nodes, &mut results)
                .with_context(|| format!("{} with {nodes} nodes", contender.name()))?;
        }
    }
    let report = report(options, &results);
    super::show(&report, json, report::print)?;
    Ok(report.ok)
}

/// One site, and on it all events that are missing.
fn measure(
    options: &Options,
    contender: Contender,
    nodes: usize,
    results: &mut Results,
) -> Result<()> {
    let settings = results::hash(&all_settings(contender));
    let missing = |results: &Results| {
        options.kinds().into_iter().find_map(|kind| {
            let done = results.of(contender.name(), nodes, &kind.name(), &settings).len();
            (done < options.events(contender, kind)).then_some((kind, done))
        })
    };
    if missing(results).is_none() {
        return Ok(());
    }
    let site = Site::build(nodes)?;
    let system = contender.start(&site)?;
    system.wait_ready()?;
    while let Some((kind, number)) = missing(results) {
        let outcome = site.event(&*system, kind, number)?;
        let felt = &outcome.felt;
        eprintln!(
            "{} {nodes} {} {}: {} on {}: last failed {:.0} ms, {} of {} failed, gap {:.0} ms, moved {:?} ms, on return {}{}{}",
            contender.name(),
            kind.name(),
            number + 1,
            outcome.vip,
            outcome.node,
            felt.last_failed_ms,
            felt.failed,
            felt.requests,
            felt.longest_gap_ms,
            outcome.moved_ms,
            outcome.failed_on_return,
            if outcome.astray { "; ASTRAY: another node was to announce" } else { "" },
            if outcome.over { "" } else { "; NO END" },
        );
        results.add(Record {
            revision: String::new(),
            label: None,
            settings: settings.clone(),
            system: contender.name().to_owned(),
            nodes,
            kind: kind.name(),
            at: 0,
            outcome,
        })?;
    }
    Ok(())
}

impl Options {
    fn kinds(&self) -> Vec<Kind> {
        if self.kinds.is_empty() { Kind::value_variants().to_vec() } else { self.kinds.clone() }
    }

    fn contenders(&self) -> Vec<Contender> {
        self.systems.iter().flat_map(|family| family.contenders()).collect()
    }

    fn events(&self, contender: Contender, kind: Kind) -> usize {
        self.events.unwrap_or_else(|| kind.events(contender == Contender::Weir))
    }
}

/// What the figures of a system depend on beside the code.
fn all_settings(contender: Contender) -> String {
    format!("{}\n{}", site::settings(), contender.settings())
}

/// The table of what is asked for, as far as it is recorded.
fn report(options: &Options, results: &Results) -> Report {
    let mut rows = Vec::new();
    for &nodes in &options.nodes {
        for kind in options.kinds() {
            for contender in options.contenders() {
                let settings = results::hash(&all_settings(contender));
                let records = results.of(contender.name(), nodes, &kind.name(), &settings);
                let of = options.events(contender, kind);
                let row = Row::new(kind, &records, of, contender == Contender::Weir);
                let agent = matches!(kind, Kind::AgentSigkill | Kind::AgentSigstop);
                let remark = (agent && contender != Contender::Weir).then_some(peers::REMARK);
                rows.extend(row.map(|row| Row { remark, ..row }));
            }
        }
    }
    let own = Settings { of: "bench".into(), text: site::settings() };
    let settings =
        |contender: Contender| Settings { of: contender.name().into(), text: contender.settings() };
    Report {
        schema: "weir.bench-failover/v1",
        revision: results.revision().to_owned(),
        label: options.label.clone(),
        settings: std::iter::once(own)
            .chain(options.contenders().into_iter().map(settings))
            .collect(),
        ok: rows.iter().all(|row| row.met != Some(false)),
        rows,
    }
}
