//! What `cargo xtask demo` shows: the outage as it was, and the same events with weir.
//!
//! Act one: one master's nftables are the entry to everything; the master loses power. Act two, on machines made anew: an
//! agent on every node; a master, a worker and an agent die, and all come back. A client beyond the router asks for both
//! services in both families all the while. From the moment when the agents run, the demo changes no route, no address and
//! no configuration: it only takes power away, kills, gives power back and starts agents again, as a supervisor would.

mod cluster;
mod load;
mod report;
mod stage;
mod window;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::traffic::http;
use cluster::{Cluster, MASTERS, SERVICES, WORKERS};
use report::{AsItWas, Report, WithWeir};
use stage::{Out, Stage};
use window::Window;

/// Dies first, in both acts; in the first it is the entry.
const VICTIM: &str = MASTERS[0];
/// Calm before the first event of an act.
const CALM: Duration = Duration::from_secs(3);
/// How long the outage of the first act is looked at.
const OUTAGE: Duration = Duration::from_secs(5);
/// All servers must answer for every VIP this long after the machines were switched on.
const READY: Duration = Duration::from_secs(30);
/// The end of a window in which everything must be as before.
const SETTLED: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The result as one JSON document on stdout; the live lines go to stderr.
    pub json: bool,
    /// Go on after an event that was not survived.
    pub keep_going: bool,
    /// How long each event with weir is looked at; more than the 3 s that failures may last.
    pub event: Duration,
}

/// Runs both acts and prints the result. False: the outage was not reproduced, or not survived.
pub fn run(options: Options) -> Result<bool> {
    ensure!(
        options.event >= window::GRACE + SETTLED,
        "an event is looked at for {} s at least",
        (window::GRACE + SETTLED).as_secs()
    );
    cluster::weir()?;
    let out = Out::new(options.json);
    let as_it_was = as_it_was(out)?;
    let with_weir = with_weir(out, options)?;
    let report = Report::new(as_it_was, with_weir);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("\n{report}");
    }
    Ok(report.ok)
}

/// Act one: everything depends on one master.
fn as_it_was(out: Out) -> Result<AsItWas> {
    out.act(&format!("As it was: the nftables of {VICTIM} spread all traffic over the servers"));
    let cluster = Cluster::build()?;
    cluster.balance_by_nftables(VICTIM)?;
    let mut stage = Stage::start(cluster, out)?;
    stage.until_ready(READY)?;
    stage.watch(CALM)?;

    let event = format!("{VICTIM} loses power");
    out.event(&event);
    stage.cluster.power_off(VICTIM)?;
    let window = stage.look(OUTAGE)?;
    let event = stage.event(event, window);
    let unreachable = !stage.answered_since(window.from);
    let served = served_directly(&stage.cluster);
    out.line(&format!(
        "  {}; {} of the other {} servers answer when asked directly",
        if unreachable { "everything is unreachable" } else { "something still answers" },
        served.len(),
        MASTERS.len() + WORKERS.len() - 1,
    ));
    Ok(AsItWas {
        reproduced: unreachable && served.len() == MASTERS.len() + WORKERS.len() - 1,
        servers_alive: served,
        event,
    })
}

/// The servers that answer the client at their own addresses.
fn served_directly(cluster: &Cluster) -> BTreeSet<String> {
    let mut served = BTreeSet::new();
    for service in SERVICES {
        for name in service.servers {
            let address = SocketAddr::new(cluster.node(name).v4(), service.port);
            let reply = cluster.client().run(|| http::get(address, load::DEADLINE));
            served.extend(reply.server().ok().map(str::to_owned));
        }
    }
    served
}

/// Act two: every node balances, and knows nobody whose death matters.
fn with_weir(out: Out, options: Options) -> Result<WithWeir> {
    out.act("With weir: the same machines, an agent on every node");
    let mut cluster = Cluster::build()?;
    let switched_on = Instant::now();
    cluster.balance_by_weir()?;
    let mut stage = Stage::start(cluster, out)?;
    stage.until_ready(READY)?;
    let ready = switched_on.elapsed();
    stage.watch(CALM)?;

    let mut act = Act { stage, options, result: WithWeir::new(ready) };
    if act.deaths_and_return()? && !act.stage.all_serve(SETTLED) {
        out.line("  not every server has come back");
        act.result.survived = false;
    }
    Ok(act.result)
}

/// The second act under way.
struct Act {
    stage: Stage,
    options: Options,
    result: WithWeir,
}

impl Act {
    /// False: an event was not survived, and nothing followed it.
    fn deaths_and_return(&mut self) -> Result<bool> {
        let name = format!("{VICTIM} loses power");
        if !self.happens(name, |cluster| cluster.power_off(VICTIM))? {
            return Ok(false);
        }
        // The hardest choice: a node to which the router sends what is for a VIP.
        let worker = self.stage.announcer_among(&WORKERS, &[])?;
        let name = format!("{worker} loses power");
        if !self.happens(name, |cluster| cluster.power_off(worker))? {
            return Ok(false);
        }
        let all = [MASTERS, WORKERS].concat();
        let agentless = self.stage.announcer_among(&all, &[VICTIM, worker])?;
        let name = format!("the agent on {agentless} is killed");
        if !self.happens(name, |cluster| cluster.kill_agent(agentless))? {
            return Ok(false);
        }
        self.happens("all come back".into(), |cluster| {
            cluster.node(VICTIM).power_on()?;
            cluster.node(worker).power_on()?;
            [VICTIM, worker, agentless].iter().try_for_each(|name| cluster.start_agent(name))
        })
    }

    /// Does it, looks at what the clients feel, and says whether to go on.
    fn happens(
        &mut self,
        name: String,
        deed: impl FnOnce(&mut Cluster) -> Result<()>,
    ) -> Result<bool> {
        let stage = &mut self.stage;
        stage.out.event(&name);
        let from = Instant::now();
        deed(&mut stage.cluster)?;
        let window = Window { from, ..stage.look(self.options.event)? };
        let event = stage.event(name, window);
        let survived = event.survived;
        if !survived {
            stage.out.line(&stage.cluster.logs());
        }
        self.result.add(event);
        Ok(survived || self.options.keep_going)
    }
}
