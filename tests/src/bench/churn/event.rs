//! What happens to backends, forwarders and agents, and what the conversations that went on meanwhile lost by it.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;

use super::{
    crowd::{Crowd, Losses},
    site::{Site, targets},
    system::{System, Weir},
};
use crate::traffic::long::By;

/// A router notices after this that a forwarder is gone.
const NOTICED: Duration = Duration::from_millis(300);
/// Of so many conversations one is opened anew during each event.
const ONE_BORN_OF: usize = 20;
/// And these openings go on for so long after the pause.
const BIRTHS: Duration = Duration::from_secs(1);
const FLAPS: usize = 4;

/// An event. Servers live on through all of them: no conversation may break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// A backend joins the pool
    Added,
    /// A backend leaves the pool; its server goes on with the conversations it has
    Removed,
    /// The same once its conversations have ended
    RemovedEmpty,
    /// A backend gets no new flows any more, by `weir drain backend`
    Drained,
    /// And gets them again
    Undrained,
    /// A backend leaves the pool and comes back, four times
    Flapped,
    /// All backends are replaced by others, one after the other; the former servers go on with what they have
    Rolled,
    /// A forwarder loses power and leaves the router's set
    ForwarderLeft,
    /// A forwarder that knows nothing of what was joins the router's set
    ForwarderJoined,
    /// One forwarder leaves and one without history joins while a backend joins and another leaves
    AllAtOnce,
    /// An agent is killed by SIGKILL and started again
    AgentSigkill,
    /// An agent is replaced by one of another layout version
    Upgraded,
    /// And by the former again
    Downgraded,
}

impl Kind {
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it concerns agents, which the control's forwarders do not have.
    pub fn of_agents(self) -> bool {
        matches!(self, Self::AgentSigkill | Self::Upgraded | Self::Downgraded)
    }
}

/// What one event came to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub kind: Kind,
    /// Conversations that lived when it began.
    pub connections: usize,
    pub flows: usize,
    /// Of them, and of those born meanwhile: how many broke.
    pub broken_connections: usize,
    pub broken_flows: usize,
    pub failures: BTreeMap<String, usize>,
    /// Conversations opened meanwhile, and openings that failed.
    pub born: usize,
    pub unborn: BTreeMap<String, usize>,
    /// The longest exchange by TCP, retransmissions included.
    pub longest_ms: u64,
    /// Datagrams that were sent again for want of an answer.
    pub resent: u64,
    pub took_ms: u64,
}

impl Serialize for Kind {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.name())
    }
}

impl Record {
    /// Adds what broke after everyone had spoken, before the next event.
    pub fn add_late(&mut self, late: &Losses) {
        for broken in &late.broken {
            match broken.by {
                By::Tcp => self.broken_connections += 1,
                By::Udp => self.broken_flows += 1,
            }
            *self.failures.entry(broken.failure.to_string()).or_default() += 1;
        }
        for failure in &late.unborn {
            *self.unborn.entry(failure.to_string()).or_default() += 1;
        }
    }
}

/// A site at work.
pub struct Run<'r, 'lab> {
    pub site: &'r mut Site,
    pub crowd: &'r Crowd,
    pub system: &'r dyn System,
    /// The same, if it is weir.
    pub weir: Option<&'r Weir<'lab>>,
    pub connections: usize,
    pub flows: usize,
    /// From the end of the deed until everyone is asked.
    pub pause: Duration,
}

impl Run<'_, '_> {
    /// Opens what is missing to as many conversations as there are to be, and ends what is too much. Returns what broke
    /// since the last event.
    pub fn fill(&self) -> Result<Losses> {
        let kinds = [(By::Tcp, self.connections), (By::Udp, self.flows)];
        let (tcp, udp) = self.crowd.living();
        let before = self.crowd.take();
        let mut missing = 0;
        for ((by, wanted), living) in kinds.into_iter().zip([tcp, udp]) {
            self.crowd.shrink(by, wanted);
            let more = wanted.saturating_sub(living);
            self.crowd.open(by, &targets(), more, Duration::from_millis(more as u64));
            missing += more;
        }
        self.crowd.wait_open(missing)?;
        self.crowd.round()?;
        let mut losses = self.crowd.take();
        losses.broken.extend(before.broken);
        Ok(losses)
    }

    /// One event, from a full crowd on until everyone has spoken after it. `number` counts events of the kind.
    pub fn event(&mut self, kind: Kind, number: usize) -> Result<Record> {
        let (connections, flows) = self.crowd.living();
        let births =
            [(By::Tcp, self.connections / ONE_BORN_OF), (By::Udp, self.flows / ONE_BORN_OF)];
        let from = Instant::now();
        self.crowd.quiet(true);
        for (by, count) in births {
            self.crowd.open(by, &targets(), count, self.pause + BIRTHS);
        }
        self.deed(kind, number).with_context(|| format!("{} {number}", kind.name()))?;
        thread::sleep(self.pause);
        self.crowd.quiet(false);
        self.crowd.wait_open(births.iter().map(|(_, count)| count).sum())?;
        self.crowd.round()?;
        let losses = self.crowd.take();
        let broken = |by| losses.broken.iter().filter(|broken| broken.by == by).count();
        Ok(Record {
            kind,
            connections,
            flows,
            broken_connections: broken(By::Tcp),
            broken_flows: broken(By::Udp),
            failures: count(losses.broken.iter().map(|broken| broken.failure.to_string())),
            born: losses.born,
            unborn: count(losses.unborn.iter().map(ToString::to_string)),
            longest_ms: losses.longest.as_millis() as u64,
            resent: losses.resent,
            took_ms: from.elapsed().as_millis() as u64,
        })
    }

    fn deed(&mut self, kind: Kind, number: usize) -> Result<()> {
        match kind {
            Kind::Added => {
                self.add()?;
                self.system.use_pool(self.site)
            }
            Kind::Removed => {
                self.remove(number)?;
                self.system.use_pool(self.site)
            }
            Kind::RemovedEmpty => {
                let pod = self.remove(number)?;
                self.crowd.end_with(&pod);
                self.system.use_pool(self.site)
            }
            Kind::Drained => {
                let pod = self.nth(number)?;
                self.site.drained.push(pod.clone());
                self.system.drain(self.site, &pod, true)
            }
            Kind::Undrained => {
                let pod = self.site.drained.pop().context("nothing is drained")?;
                self.system.drain(self.site, &pod, false)
            }
            Kind::Flapped => self.flap(number),
            Kind::Rolled => self.roll(),
            Kind::ForwarderLeft => self.leave(),
            Kind::ForwarderJoined => {
                let edge = self.boot()?;
                self.site.forwarders.insert(self.edges(), edge);
                self.site.spread()
            }
            Kind::AllAtOnce => self.all_at_once(number),
            Kind::AgentSigkill => self.agents()?.kill(self.node(number)),
            Kind::Upgraded => self.agents()?.replace(self.node(number), true),
            Kind::Downgraded => self.agents()?.replace(self.node(number), false),
        }
    }

    fn agents(&self) -> Result<&Weir<'_>> {
        self.weir.context("only weir has agents")
    }

    fn node(&self, number: usize) -> &crate::lab::Node {
        let nodes = self.site.powered();
        nodes[number % nodes.len()]
    }

    fn nth(&self, number: usize) -> Result<String> {
        let pool = &self.site.pool;
        let pod = pool
            .iter()
            .cycle()
            .skip(number * 3 % pool.len().max(1))
            .find(|pod| !self.site.drained.contains(pod));
        pod.cloned().context("the pool is empty")
    }

    fn add(&mut self) -> Result<()> {
        let pod = self.site.spare.pop_front().context("no spare pod is left")?;
        self.site.pool.insert(pod);
        Ok(())
    }

    fn remove(&mut self, number: usize) -> Result<String> {
        let pod = self.nth(number)?;
        self.site.pool.remove(&pod);
        self.site.spare.push_back(pod.clone());
        Ok(pod)
    }

    fn flap(&mut self, number: usize) -> Result<()> {
        let pod = self.nth(number)?;
        for _ in 0..FLAPS {
            self.site.pool.remove(&pod);
            self.system.use_pool(self.site)?;
            self.site.pool.insert(pod.clone());
            self.system.use_pool(self.site)?;
        }
        Ok(())
    }

    fn roll(&mut self) -> Result<()> {
        let former: Vec<_> = self.site.pool.iter().cloned().collect();
        for pod in former {
            self.add()?;
            self.system.use_pool(self.site)?;
            self.site.pool.remove(&pod);
            self.site.spare.push_back(pod);
            self.system.use_pool(self.site)?;
        }
        Ok(())
    }

    /// How many of the forwarders are edges; they come first.
    fn edges(&self) -> usize {
        self.site.forwarders.iter().filter(|name| name.starts_with("edge")).count()
    }

    fn power_off(&mut self) -> Result<()> {
        anyhow::ensure!(self.edges() > 0, "no edge is left that could leave");
        let edge = self.site.forwarders.remove(0);
        self.site.lab.node(&edge).power_off()?;
        self.system.lost(&edge);
        self.site.off.push_back(edge);
        Ok(())
    }

    fn leave(&mut self) -> Result<()> {
        self.power_off()?;
        thread::sleep(NOTICED);
        self.site.spread()
    }

    /// Starts the edge that was off longest. Once it is off the list, it is among those that use a new pool.
    fn boot(&mut self) -> Result<String> {
        let edge = self.site.off.front().cloned().context("no edge is off")?;
        self.system.boot(self.site, &edge)?;
        self.site.off.pop_front();
        Ok(edge)
    }

    fn all_at_once(&mut self, number: usize) -> Result<()> {
        let edge = self.boot()?;
        self.power_off()?;
        self.site.forwarders.insert(self.edges(), edge);
        self.remove(number)?;
        self.add()?;
        // The routes change while the agents take over the new pool, each at its own time.
        thread::scope(|scope| {
            let site = &*self.site;
            let routes = scope.spawn(|| {
                thread::sleep(NOTICED);
                site.spread()
            });
            self.system.use_pool(site)?;
            routes.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn count(failures: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    failures.for_each(|failure| *counts.entry(failure).or_default() += 1);
    counts
}
