//! A cluster under load, watched second by second.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::{
    cluster::{Cluster, SERVICES, Target, targets},
    load::{Load, Sample},
    report::{Event, TargetFelt},
    window::{Felt, Window},
};

/// Between two live lines.
const LINE: Duration = Duration::from_secs(1);

/// Where people look: stdout, or stderr if stdout is for a program.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    aside: bool,
}

impl Out {
    pub fn new(aside: bool) -> Self {
        Self { aside }
    }

    pub fn line(self, text: &str) {
        if self.aside {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }

    pub fn act(self, what: &str) {
        self.line(&format!("\n{what}"));
    }

    pub fn event(self, what: &str) {
        self.line(&format!("  --- {what} ---"));
    }
}

/// One act: machines, the client, and what it has felt so far.
pub struct Stage {
    // Its threads hold the client's network; they end first.
    load: Load,
    pub cluster: Cluster,
    pub out: Out,
    targets: Vec<Target>,
    samples: Vec<Sample>,
    start: Instant,
    /// Until when everything has been shown.
    shown: Instant,
}

impl Stage {
    /// Starts the client.
    pub fn start(cluster: Cluster, out: Out) -> Result<Self> {
        let targets = targets();
        let addresses: Vec<SocketAddr> = targets.iter().map(|target| target.address).collect();
        let load = Load::start(cluster.client(), &addresses)?;
        let now = Instant::now();
        Ok(Self { load, cluster, out, targets, samples: Vec::new(), start: now, shown: now })
    }

    /// Watches until a whole second has no failure and every server in it.
    pub fn until_ready(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            self.watch(LINE)?;
            let window = self.last(LINE);
            let felt = |target| window.felt(&self.samples, target);
            let failures: u64 = (0..self.targets.len()).map(|t| felt(t).failures).sum();
            if failures == 0 && self.all_serve(LINE) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("not every server answered within {timeout:?}\n{}", self.cluster.logs());
            }
        }
    }

    /// Whether every target was answered by all its servers in the `time` up to now.
    pub fn all_serve(&self, time: Duration) -> bool {
        let window = self.last(time);
        let mut targets = self.targets.iter().enumerate();
        targets.all(|(at, target)| {
            window.servers(&self.samples, at).len() == target.service.servers.len()
        })
    }

    fn last(&self, time: Duration) -> Window {
        Window { from: self.shown.checked_sub(time).unwrap_or(self.start), to: self.shown }
    }

    /// Whether a request that was sent after this moment was answered.
    pub fn answered_since(&self, moment: Instant) -> bool {
        let mut since = self.samples.iter().filter(|sample| sample.sent >= moment);
        since.any(|sample| sample.outcome.is_ok())
    }

    /// Watches for so long, and says which window that was.
    pub fn look(&mut self, time: Duration) -> Result<Window> {
        let from = Instant::now();
        self.watch(time)?;
        let to = self.shown;
        Ok(Window { from, to })
    }

    /// Prints a line per second; fails if an agent ends that nobody killed.
    pub fn watch(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            thread::sleep(left.min(LINE));
            let window = Window { from: self.shown, to: Instant::now() };
            self.samples.extend(self.load.take());
            self.shown = window.to;
            self.out.line(&self.line(window));
            self.cluster.check_agents()?;
        }
        Ok(())
    }

    fn line(&self, window: Window) -> String {
        let felt = |at: usize| window.felt(&self.samples, at);
        let mut all = Felt::default();
        let mut who = String::new();
        for service in SERVICES {
            let here = |(_, target): &(usize, &Target)| target.service.name == service.name;
            let of_service = self.targets.iter().enumerate().filter(here);
            let felt = of_service.fold(Felt::default(), |sum, (at, _)| sum.and(&felt(at)));
            let servers = felt.servers.iter().map(|(name, count)| format!("{name} {count}"));
            let servers: Vec<_> = servers.collect();
            who += &format!("  │ {}: {:36}", service.name, servers.join(" "));
            all = all.and(&felt);
        }
        let causes: Vec<_> = all.causes.iter().map(|(what, n)| format!("{n} {what}")).collect();
        let causes = causes.join(", ");
        let line = format!(
            "  {:3} s  {:3} requests {:3} failed{who} {causes}",
            (window.to - self.start).as_secs(),
            all.requests,
            all.failures,
        );
        line.trim_end().to_owned()
    }

    /// What the clients felt of an event.
    pub fn event(&self, name: String, window: Window) -> Event {
        let felt = |(at, target): (usize, &Target)| TargetFelt {
            target: target.name(),
            vip: target.address,
            felt: window.felt(&self.samples, at),
        };
        Event::new(name, self.targets.iter().enumerate().map(felt).collect())
    }

    /// The first of `nodes`, less those that are `dead`, to whom the router sends what is for a VIP; else the first.
    pub fn announcer_among<'n>(&self, nodes: &[&'n str], dead: &[&str]) -> Result<&'n str> {
        let living = || nodes.iter().copied().filter(|name| !dead.contains(name));
        for target in &self.targets {
            let announcer = self.cluster.announcer(target.address.ip())?;
            if let Some(name) = living().find(|name| Some(*name) == announcer) {
                return Ok(name);
            }
        }
        match living().next() {
            Some(name) => Ok(name),
            None => bail!("nobody is left alive of {nodes:?}"),
        }
    }
}
