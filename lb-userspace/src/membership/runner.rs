//! Runs the [`Machine`]: its sockets, its timers, its streams.
//!
//! On a thread of its own with some priority: whoever is late to hear others would take them for dead, or
//! be taken for dead. Decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
    time::sleep_until,
};

use super::{
    gossip::Counts,
    machine::{Facts, Machine, Output, Settings as MachineSettings},
    seal::{Keys, Opened, Refusals, Seal},
    sockets::{Listeners, Purpose, Sockets},
    stream::{self, Event},
    topic::{Change, Key, Topic},
    watch::{NodeStatus, Rules},
};
use crate::model::{Members, Problem};
use crate::watched::Watched as _;

/// Between two reports for status.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Between two tries to bind what could not be bound.
const BIND_RETRY: Duration = Duration::from_millis(100);
/// What streams want of the machine, under way.
const EVENTS: usize = 64;
/// Of the thread; the rest of the agent has 0.
const NICENESS: libc::c_int = -10;
/// How long refused datagrams are a problem that status shows.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    pub tunnel_port: u16,
    pub gossip_port: u16,
    pub rules: Rules,
    pub seeds: Vec<SocketAddr>,
}

/// What the agent says of itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Own {
    pub facts: Facts,
    /// The data plane holds all that is wanted.
    pub applied: bool,
    /// VIPs for which its data plane answers.
    pub announced: BTreeSet<IpAddr>,
    /// It hands over, and then it goes.
    pub leaving: bool,
    pub gone: bool,
    /// Nodes that are drained from forwarding.
    pub drained: BTreeSet<String>,
}

/// An entry that another task publishes; None ends it.
pub type Publication = (Key, Option<Vec<u8>>);

/// A question whether a gateway answers; None: there is none.
pub type Question = oneshot::Sender<Option<bool>>;

/// How membership and the agent's other tasks talk.
pub struct Channels {
    /// Addresses of all nodes, this one's too.
    pub nodes: watch::Receiver<Arc<BTreeMap<String, Vec<IpAddr>>>>,
    pub own: watch::Receiver<Arc<Own>>,
    /// One or two; the first seals.
    pub keys: watch::Receiver<Vec<[u8; 32]>>,
    pub publish: mpsc::UnboundedReceiver<Publication>,
    pub gateway: mpsc::Sender<Question>,
    pub members: watch::Sender<Arc<Members>>,
    pub report: watch::Sender<Arc<Report>>,
    pub verdicts: mpsc::UnboundedSender<Vec<Change>>,
    pub drains: mpsc::UnboundedSender<Vec<Change>>,
    pub claims: mpsc::UnboundedSender<Vec<Change>>,
}

/// What status shows beside [`Members`].
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub nodes: BTreeMap<String, NodeStatus>,
    pub counts: Counts,
    pub refusals: Refusals,
    pub problems: Vec<Problem>,
}

/// Starts membership. The future ends when the thread does: with an error, or because all that `nodes`
/// comes from is gone.
///
/// # Errors
/// No randomness, no thread, no runtime, no key.
pub fn start(
    settings: Settings,
    incarnation: u64,
    channels: Channels,
) -> io::Result<impl Future<Output = ()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let runner = Runner::new(settings, incarnation, &channels)?;
    let (ended, end) = oneshot::channel::<()>();
    thread::Builder::new().name("membership".into()).spawn(move || {
        raise_priority();
        runtime.block_on(runner.run(channels));
        drop(ended);
    })?;
    Ok(async move { drop(end.await) })
}

/// For this thread alone. Without the right to it the thread takes its turn with all others.
fn raise_priority() {
    // SAFETY: takes no pointer; 0 names the calling thread.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    if result != 0 {
        let error = io::Error::last_os_error();
        tracing::warn!(%error, "membership runs without priority");
    }
}

struct Runner {
    settings: Settings,
    machine: Machine,
    seal: Seal,
    keys: watch::Sender<Arc<Keys>>,
    probes: Sockets,
    gossip: Sockets,
    listeners: Listeners,
    serving: BTreeMap<IpAddr, AbortHandle>,
    bind_at: Instant,
    events: mpsc::Sender<Event>,
    event: mpsc::Receiver<Event>,
    answers: mpsc::Sender<bool>,
    answer: mpsc::Receiver<bool>,
    reported: Option<Instant>,
    /// Refused datagrams as of the last report, and when there were new ones.
    refused: (u64, Option<Instant>),
}

impl Runner {
    fn new(settings: Settings, incarnation: u64, channels: &Channels) -> io::Result<Self> {
        let now = Instant::now();
        let (random, secret) = (random()?, random()?);
        let machine = MachineSettings {
            node: settings.node.clone(),
            rules: settings.rules,
            gossip_port: settings.gossip_port,
            incarnation,
            random,
        };
        let secrets = channels.keys.copy();
        let no_key = || io::Error::other("no key for gossip");
        let seal = Seal::new(Keys::new(&secrets).ok_or_else(no_key)?, &secret, now);
        let (events, event) = mpsc::channel(EVENTS);
        let (answers, answer) = mpsc::channel(1);
        Ok(Self {
            machine: Machine::new(&machine, now),
            seal,
            keys: watch::Sender::new(Arc::new(Keys::new(&secrets).ok_or_else(no_key)?)),
            probes: Sockets::new(Purpose::Probes),
            gossip: Sockets::new(Purpose::Gossip(settings.gossip_port)),
            listeners: Listeners::default(),
            serving: BTreeMap::new(),
            bind_at: now,
            events,
            event,
            answers,
            answer,
            reported: None,
            refused: (0, None),
            settings,
        })
    }

    async fn run(mut self, mut channels: Channels) {
        self.follow(&channels.nodes.copy_and_update());
        self.take_own(&channels.own.copy_and_update());
        loop {
            self.open();
            let output = self.machine.poll(Instant::now());
            let changed = output.members.is_some();
            self.perform(output, &channels);
            self.report(&channels, changed);
            let wake = self.machine.next_timer().map_or(self.bind_at, |at| at.min(self.bind_at));
            tokio::select! {
                () = sleep_until(wake.into()) => {}
                () = self.probes.readable() => {}
                () = self.gossip.readable() => {}
                Some(event) = self.event.recv() => self.on_stream(event),
                Some(answered) = self.answer.recv() => {
                    self.machine.on_gateway(answered, Instant::now());
                }
                Some((key, value)) = channels.publish.recv() => {
                    self.publish((key, value));
                    while let Ok(more) = channels.publish.try_recv() {
                        self.publish(more);
                    }
                }
                Ok(()) = channels.own.changed() => {
                    self.take_own(&channels.own.copy_and_update());
                }
                Ok(()) = channels.keys.changed() => {
                    self.take_keys(&channels.keys.copy_and_update());
                }
                changed = channels.nodes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.follow(&channels.nodes.copy_and_update());
                }
            }
            // What arrived while this thread did not run must be heard before anything is judged.
            self.receive();
            let now = Instant::now();
            if self.machine.next_timer().is_some_and(|at| at <= now) {
                self.machine.on_timer(now);
            }
        }
    }

    fn follow(&mut self, nodes: &BTreeMap<String, Vec<IpAddr>>) {
        let own = nodes.get(&self.settings.node).map_or(&[][..], Vec::as_slice);
        self.probes.follow(own);
        self.gossip.follow(own);
        self.listeners.follow(own);
        self.serving.retain(|address, serving| {
            let stays = own.contains(address);
            if !stays {
                serving.abort();
            }
            stays
        });
        self.bind_at = Instant::now();
        self.machine.set_nodes(nodes, &self.settings.seeds, Instant::now());
    }

    /// Binds what could not be bound yet.
    fn open(&mut self) {
        if self.bind_at > Instant::now() {
            return;
        }
        self.bind_at = Instant::now() + BIND_RETRY;
        self.probes.open();
        self.gossip.open();
        for (address, listener) in self.listeners.open(self.settings.gossip_port) {
            let serve = stream::serve(listener, self.keys.subscribe(), self.events.clone());
            self.serving.insert(address, tokio::spawn(serve).abort_handle());
        }
    }

    fn take_own(&mut self, own: &Own) {
        let now = Instant::now();
        self.machine.set_facts(own.facts.clone());
        self.machine.set_applied(own.applied);
        self.machine.set_drained(own.drained.clone());
        self.machine.set_leaving(own.leaving);
        self.machine.set_announced(&own.announced, now);
        if own.gone {
            self.machine.gossip().leave(now);
        }
    }

    fn take_keys(&mut self, secrets: &[[u8; 32]]) {
        // Both are made of the same: either there are keys or there are none.
        if let (Some(keys), Some(same)) = (Keys::new(secrets), Keys::new(secrets)) {
            self.seal.set_keys(keys);
            self.keys.send_replace(Arc::new(same));
            tracing::info!(keys = secrets.len(), "keys of gossip changed");
        }
    }

    fn publish(&mut self, (key, value): Publication) {
        // Claims come many at a time, and what they wait for waits for seconds. All else changes where
        // flows go.
        let urgent = !key.topic.is_of_claims();
        self.machine.publish(key, value, urgent, Instant::now());
    }

    fn on_stream(&mut self, event: Event) {
        if let Event::End { result, .. } = &event {
            self.machine.note_pulled(result.is_ok());
        }
        if let Some((from, why)) = event.handle(self.machine.gossip(), Instant::now()) {
            self.seal.refuse(why, from);
        }
    }

    fn receive(&mut self) {
        let (machine, seal, gossip) = (&mut self.machine, &mut self.seal, &self.gossip);
        let tunnel_port = self.settings.tunnel_port;
        self.probes.receive(|from, bytes| {
            if from.port() == tunnel_port {
                machine.on_packet(from.ip(), bytes, Instant::now());
            }
        });
        gossip.receive(|from, bytes| {
            let now = Instant::now();
            match seal.open(from, bytes, now) {
                Opened::Plain(all) => {
                    for plain in all {
                        // What is malformed was counted.
                        let _malformed = machine.on_datagram(from, &plain, now);
                    }
                }
                Opened::Reply(bytes) => gossip.send(from, &bytes),
                Opened::Held | Opened::Ignored(_) => {}
            }
        });
    }

    fn perform(&mut self, output: Output, channels: &Channels) {
        let Output { probes, datagrams, pulls, ask_gateway, members, changes } = output;
        for (address, probe) in &probes {
            self.probes.send(SocketAddr::new(*address, self.settings.tunnel_port), probe);
        }
        for (to, plain) in &datagrams {
            self.gossip.send(*to, &self.seal.seal(plain, Instant::now()));
        }
        for pull in pulls {
            let keys = self.keys.copy();
            tokio::spawn(stream::pull(pull, keys, self.events.clone()));
        }
        if ask_gateway {
            self.ask_gateway(&channels.gateway);
        }
        if let Some(members) = members {
            channels.members.send_replace(members);
        }
        let (mut drains, mut verdicts, mut claims) = (Vec::new(), Vec::new(), Vec::new());
        for change in changes {
            match change.key.topic {
                Topic::DRAIN => drains.push(change),
                Topic::VERDICT => verdicts.push(change),
                topic if topic.is_of_claims() => claims.push(change),
                _ => {}
            }
        }
        for (changes, to) in
            [(drains, &channels.drains), (verdicts, &channels.verdicts), (claims, &channels.claims)]
        {
            if !changes.is_empty() {
                // A receiver that is gone shows as its task's end.
                let _ = to.send(changes);
            }
        }
    }

    fn ask_gateway(&self, gateway: &mpsc::Sender<Question>) {
        let (question, answer) = oneshot::channel();
        // A question that nobody takes stays unanswered, which the machine reckons with.
        if gateway.try_send(question).is_err() {
            return;
        }
        let answers = self.answers.clone();
        tokio::spawn(async move {
            if let Ok(answered) = answer.await {
                // Without a gateway nothing speaks against the others' death.
                let _ = answers.send(answered.unwrap_or(true)).await;
            }
        });
    }

    /// Tells status, now and then and when somebody's state changed.
    fn report(&mut self, channels: &Channels, changed: bool) {
        let now = Instant::now();
        if !changed && self.reported.is_some_and(|at| now - at < REPORT_INTERVAL) {
            return;
        }
        self.reported = Some(now);
        let refusals = self.seal.refusals();
        let mut problems = self.machine.problems(now);
        problems.extend(self.strangers(&refusals, now));
        channels.report.send_replace(Arc::new(Report {
            nodes: self.machine.status(now),
            counts: self.machine.counts(),
            refusals,
            problems,
        }));
    }

    /// That somebody speaks with another key is told for a while after the last time.
    fn strangers(&mut self, refusals: &Refusals, now: Instant) -> Option<Problem> {
        let strange = refusals.wrong_key.count + refusals.forged.count;
        if strange > self.refused.0 {
            self.refused = (strange, Some(now));
        }
        let recent = self.refused.1.is_some_and(|at| now - at < REFUSED_FOR);
        let from = refusals.wrong_key.last.or(refusals.forged.last).filter(|_| recent)?;
        let message = format!(
            "gossip from {from} is sealed with another key, and ignored: set the same gossip keys \
             (or the same seed) on all nodes, or find out who that is"
        );
        Some(Problem { object: "Agent".into(), message })
    }
}

fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| io::Error::other("the system gives no randomness"))?;
    Ok(bytes)
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
