//! The agent: one per node. The only place that spawns tasks, owns the order of start and end, and
//! reads the clock.
//!
//! Start: what to serve (the sources, or a checkpoint), lock, load, read back, `egress` on devices, maps
//! filled, `ingress` on uplinks. Where maps of a former agent serve, `ingress` follows `egress` at once,
//! and what another layout still holds is moved before anything is changed. Then every change of what
//! is wanted or known wakes one loop, which plans (anew, or what pools, verdicts and members changed),
//! applies what differs, announces after that, and reports. The end of the agent, however it comes,
//! changes nothing in the kernel: maps, programs and links stay.

mod begin;
mod cleanup;
mod cluster;
pub mod control;
mod heartbeat;
mod keep;
mod memory;
pub mod orders;
mod report;
mod sockets;
mod state;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::IsTerminal,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};

use crate::{
    announce, claims,
    cli::args::AgentArgs,
    config::Overrides,
    dataplane::{
        apply::DataPlane,
        grace::Barrier,
        keys::Keys,
        load::{self, Loaded},
        maps::Maps,
        scan::Scanner,
        sockets::Sockets,
    },
    health, heap,
    membership::{self, Change, drain::Keeper},
    model::{AgentSettings, Intent},
    netlink,
    plan::history::{self, History},
    sources::file::FileSource,
    watched::Watched as _,
};
use begin::{Begun, begin};
use memory::Memory;
use state::{Inlets, State};

/// Changes that come within this are one.
const COALESCE: Duration = Duration::from_millis(2);

/// Between two tries to apply what the kernel refused.
const RETRY: Duration = Duration::from_secs(1);

/// Between two looks at attachments, and the longest time between two reports.
const TICK: Duration = Duration::from_secs(1);

/// How long a restarted agent leaves the maps as they are to learn who serves, and who lives: until
/// membership gives the silent up.
const VERDICTS_WAIT: Duration = Duration::from_secs(1);
const MEMBERS_WAIT: Duration = Duration::from_millis(2500);

/// Longest wait for the first list of interfaces.
const INTERFACES_WAIT: Duration = Duration::from_secs(5);

/// Longest time for others to take this node's VIPs when the agent is asked to end.
const HANDOVER: Duration = Duration::from_secs(3);

/// For the last words to leave.
const FAREWELL: Duration = Duration::from_millis(20);

/// A killed agent holds its lock until the kernel has taken it apart.
const LOCK_WAIT: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Runs until SIGTERM or SIGINT; or, with `cleanup`, removes everything from the kernel and returns.
pub fn run(args: AgentArgs) -> anyhow::Result<()> {
    start_log();
    heap::keep_small();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        match args.cleanup {
            true => {
                let stay = args.stay;
                let mut end = EndSignals::new()?;
                cleanup::cleanup(args).await?;
                if stay {
                    end.asked().await;
                }
                Ok(())
            }
            false => {
                // From the first moment on: a start that is interrupted ends in order too.
                let mut end = EndSignals::new()?;
                match Agent::start(args, &mut end).await? {
                    Some(agent) => agent.run(end).await,
                    None => Ok(()),
                }
            }
        }
    });
    // Probes that are under way must not hold the process.
    runtime.shutdown_background();
    result
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("WEIR_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // Fails where a test has set one already, which then serves.
    let _ = subscriber.try_init();
}

fn overrides(args: &AgentArgs) -> Overrides {
    Overrides {
        node: args.node.clone(),
        pin_dir: args.pin_dir.clone(),
        state_dir: args.state_dir.clone(),
    }
}

/// One agent a pin folder: the lock is on the folder itself, and ends with the process.
fn lock(pin_dir: &Path) -> anyhow::Result<Flock<File>> {
    fs::create_dir_all(pin_dir).with_context(|| {
        format!(
            "make pin folder {}; is a bpffs mounted there? mount -t bpf bpf /sys/fs/bpf",
            pin_dir.display()
        )
    })?;
    let mut folder = File::open(pin_dir).with_context(|| format!("open {}", pin_dir.display()))?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((same, nix::Error::EWOULDBLOCK)) if Instant::now() < deadline => folder = same,
            Err((_, nix::Error::EWOULDBLOCK)) => bail!(
                "another agent runs with pin folder {}: stop it, or pass another --pin-dir",
                pin_dir.display()
            ),
            Err((_, error)) => {
                return Err(error).with_context(|| format!("lock {}", pin_dir.display()));
            }
        }
        std::thread::sleep(LOCK_RETRY);
    }
}

/// What asks the agent to end.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl EndSignals {
    fn new() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

struct Agent {
    state: State,
    inlets: Inlets,
    orders: Orders,
    /// What runs beside the loop; none of them ends before the agent.
    tasks: JoinSet<anyhow::Result<()>>,
    heartbeat: heartbeat::Heartbeat,
    allocation: cluster::Allocation,
    _lock: Flock<File>,
}

impl Agent {
    /// `None`: it was asked to end before it knew what to serve.
    async fn start(args: AgentArgs, end: &mut EndSignals) -> anyhow::Result<Option<Self>> {
        let Begun { source, lock, mut keep, checkpoint } = begin(&args)?;
        let mut tasks = JoinSet::new();
        let mut wanted = cluster::start(&mut tasks, &source, checkpoint.as_ref());
        tokio::select! {
            () = wanted.knows_this_node() => {}
            () = end.asked() => {
                keep.end(Instant::now()).await;
                return Ok(None);
            }
        }
        let intent = wanted.intent.copy();
        let agent = &intent.agent;
        let (loaded, maps, heartbeat) = load(&intent)?;
        let barrier = Barrier::new().context("make the map that waits for grace periods")?;
        let wait = Box::new(move || barrier.wait());
        let data_plane = DataPlane::new(maps, &agent.node, &agent.seed, wait)?;
        tracing::info!(node = agent.node, pin_dir = %agent.pin_dir.display(), "agent started");

        let keeper = Keeper::open(&agent.state_dir, report::unix_ms(SystemTime::now()))
            .with_context(|| format!("read drains in {}", agent.state_dir.display()))?;
        let (inlets, outlets, orders, allocation) =
            wire(&mut tasks, source, wanted, agent, &keeper)?;
        let about = report::About {
            config: absolute(&args.config),
            started: SystemTime::now(),
            state_dir: agent.state_dir.clone(),
        };
        let history = History::new(agent.seed, history::Rules::default());
        let memory = Memory::new(history, outlets.applied.clone());
        let state = State::new(data_plane, loaded, outlets, memory, (keeper, keep), about);
        Ok(Some(Self { state, inlets, orders, tasks, heartbeat, allocation, _lock: lock }))
    }

    /// Ends the take-over from another layout, if this start is one.
    async fn settle(&mut self) -> anyhow::Result<()> {
        let Some(unsettled) = self.state.take_former() else { return Ok(()) };
        let mut settled = tokio::task::spawn_blocking(|| unsettled.settle());
        let (loaded, former) = loop {
            self.heartbeat.turn();
            match timeout(TICK, &mut settled).await {
                Ok(settled) => break settled??,
                Err(_) => continue,
            }
        };
        self.state.replace(loaded, &self.inlets).await?;
        Ok(former.forget()?)
    }

    /// First state of the maps, programs on devices, then the loop.
    async fn run(mut self, mut end: EndSignals) -> anyhow::Result<()> {
        let interfaces = self.inlets.interfaces.wait_for(|found| found.iter().next().is_some());
        match timeout(INTERFACES_WAIT, interfaces).await {
            Ok(found) => drop(found.context("netlink ended")?),
            Err(_) => bail!("no list of interfaces from the kernel within {INTERFACES_WAIT:?}"),
        }
        self.state.attach_egress(&self.inlets).await?;
        if self.state.serves()? {
            self.state.attach_ingress(&self.inlets).await?;
            self.settle().await?;
            // A state that serves is better than one made without knowing who lives.
            let _ = timeout(VERDICTS_WAIT, self.inlets.all_judged()).await;
            let _ = timeout(MEMBERS_WAIT - VERDICTS_WAIT, self.inlets.all_found()).await;
        }
        let mut healthy = self.state.step(&mut self.inlets);
        self.state.attach_ingress(&self.inlets).await?;
        self.state.attach_connect(&self.inlets);
        self.settle().await?;
        self.state.report_now(&self.inlets).await;

        let mut tick = Instant::now() + TICK;
        let mut leave_by: Option<Instant> = None;
        while leave_by.is_none_or(|by| Instant::now() < by && !self.state.may_go(&self.inlets)) {
            self.heartbeat.turn();
            let retry = Instant::now() + RETRY;
            let deadline = self.state.next_deadline();
            tokio::select! {
                () = end.asked() => {
                    if leave_by.is_some() {
                        break;
                    }
                    tracing::info!("agent hands over and ends");
                    leave_by = Some(Instant::now() + HANDOVER);
                    self.state.leave();
                    self.allocation.stop();
                    continue;
                }
                () = self.inlets.changed() => sleep(COALESCE).await,
                () = sleep_until(retry.into()), if !healthy => {}
                () = sleep_until(deadline.unwrap_or(retry).into()), if deadline.is_some() => {}
                Some(asked) = self.orders.asked.recv() => {
                    self.state.obey(asked, &self.inlets);
                }
                Some(changes) = self.orders.heard.recv() => {
                    self.state.hear_orders(&changes);
                }
                () = sleep_until(tick.into()) => {
                    tick = Instant::now() + TICK;
                    self.state.tend().await;
                    self.state.look_at_attachments(&self.inlets).await;
                    self.state.report(&self.inlets);
                    continue;
                }
                Some(ended) = self.tasks.join_next() => {
                    ended.context("a task of the agent panicked")??;
                    bail!("a task of the agent ended");
                }
            }
            healthy = self.state.step(&mut self.inlets);
            self.state.report(&self.inlets);
        }
        self.state.report_now(&self.inlets).await;
        self.state.go().await;
        self.allocation.stopped().await;
        sleep(FAREWELL).await;
        tracing::info!("agent ends; maps, programs and links stay");
        Ok(())
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn load(intent: &Intent) -> anyhow::Result<(Loaded, Maps, heartbeat::Heartbeat)> {
    let agent = &intent.agent;
    let Some(node) = intent.nodes.get(&agent.node) else {
        bail!("no Node object is called {:?}: add one, or pass --node", agent.node);
    };
    let settings = load::settings(agent, node);
    let (loaded, maps) = load::load(&agent.pin_dir, &agent.limits, &settings)?;
    let heartbeat = heartbeat::start(loaded.state_words()?).context("start the heartbeat")?;
    Ok((loaded, maps, heartbeat))
}

/// Orders of administrators, given to this agent or to others.
struct Orders {
    asked: mpsc::Receiver<control::Asked>,
    heard: mpsc::UnboundedReceiver<Vec<Change>>,
}

/// Starts everything that runs beside the loop and connects it.
fn wire(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    source: FileSource,
    wanted: cluster::Wanted,
    agent: &AgentSettings,
    keeper: &Keeper,
) -> anyhow::Result<(Inlets, state::Outlets, Orders, cluster::Allocation)> {
    let nodes = watch::Sender::new(state::addresses(&wanted.intent.copy()));
    let targets = watch::Sender::new(crate::plan::targets(&wanted.intent.copy()));
    let keys = watch::Sender::new(agent.gossip.keys.clone());
    let drained = keeper.drains().forwarding().map(str::to_owned).collect();
    let own = watch::Sender::new(Arc::new(membership::Own { drained, ..Default::default() }));
    let announced = watch::Sender::new(Arc::new(BTreeMap::<IpAddr, announce::Uplink>::new()));
    let (hops, hops_in) = watch::channel(Arc::default());
    let (interfaces, interfaces_in) = watch::channel(Arc::default());
    let members = wanted.members;
    let members_in = members.subscribe();
    let (membership_report, membership_in) = watch::channel(Arc::default());
    let (conflicts, conflicts_in) = watch::channel(Arc::default());
    let verdicts = wanted.verdicts;
    let verdicts_in = verdicts.subscribe();
    let (publish, published) = mpsc::unbounded_channel();
    let (words, words_in) = mpsc::unbounded_channel();
    let (drains, drains_in) = mpsc::unbounded_channel();
    let (said_claims, claims_in) = mpsc::unbounded_channel();
    let (applied, applied_in) = watch::channel(Arc::default());
    let (consensus, consensus_in) = watch::channel(Arc::default());
    let (scanned, scanned_in) = watch::channel(Arc::default());
    let view = watch::Sender::new(sockets::View::default());
    let (questions, questions_in) = mpsc::channel(1);
    let (asked, asked_in) = mpsc::channel(control::MAX_WAITING);
    for (key, value) in keeper.publications() {
        // The receiver is above.
        let _ = publish.send((key, Some(value)));
    }
    let inlets = Inlets {
        intent: wanted.intent,
        source: source.status(),
        kubernetes: wanted.kubernetes,
        hops: hops_in,
        interfaces: interfaces_in.clone(),
        members: members_in.clone(),
        membership: membership_in,
        conflicts: conflicts_in,
        verdicts: verdicts_in,
        consensus: consensus_in,
        scanned: scanned_in,
    };
    let outlets = state::Outlets {
        nodes: nodes.clone(),
        targets: targets.clone(),
        keys: keys.clone(),
        own: own.clone(),
        announced: announced.clone(),
        publish: publish.clone(),
        applied: applied.clone(),
        view: view.clone(),
        served: wanted.served,
    };
    let seed_tag = Keys::of(&agent.seed).tag;
    // Greater in each life of the agent.
    let life = report::unix_ms(SystemTime::now());

    let (node, followed) = (agent.node.clone(), nodes.subscribe());
    tasks.spawn(async move {
        netlink::run(node, followed, hops, interfaces).await.context("follow routes and neighbours")
    });
    let channels = membership::Channels {
        nodes: nodes.subscribe(),
        own: own.subscribe(),
        keys: keys.subscribe(),
        publish: published,
        gateway: questions,
        members,
        report: membership_report,
        verdicts: words,
        drains,
        claims: said_claims,
    };
    let ended = membership::start(membership_settings(agent, seed_tag), life, channels)
        .context("start membership")?;
    tasks.spawn(async move {
        ended.await;
        Ok(())
    });
    let mut scanner = Scanner::open(&agent.pin_dir, &agent.seed, agent.arrivals)
        .context("open the maps of arrivals")?;
    let channels = claims::Channels {
        applied: applied_in,
        heard: claims_in,
        members: members_in.clone(),
        publish: publish.clone(),
        consensus,
        scanned,
    };
    let node = agent.node.clone();
    tasks.spawn(async move {
        claims::run(&node, Box::new(move || scanner.scan()), channels).await;
        Ok(())
    });
    let sockets = Sockets::open(&agent.pin_dir).context("open the maps of sockets")?;
    let followed = view.subscribe();
    tasks.spawn(async move {
        sockets::run(sockets, followed).await;
        Ok(())
    });
    let settings = health::Settings { node: agent.node.clone(), seed: agent.seed, run: life };
    let channels = health::Channels {
        targets: targets.subscribe(),
        members: members_in.clone(),
        words: words_in,
        publish,
        verdicts,
    };
    tasks.spawn(async move {
        health::run(settings, channels).await;
        Ok(())
    });
    let followed = announced.subscribe();
    tasks.spawn(async move { announce::run(followed).await.context("announce VIPs") });
    let yields = announce::yields::Settings {
        node: agent.node.clone(),
        tunnel_port: agent.tunnel_port,
        vni: agent.vni,
        seed_tag,
    };
    let (followed, known) = (announced.subscribe(), members_in.clone());
    let addresses = nodes.subscribe();
    tasks.spawn(async move {
        announce::yields::run(yields, addresses, followed, known).await;
        Ok(())
    });
    let (followed, links) = (announced.subscribe(), interfaces_in.clone());
    tasks.spawn(async move {
        let watched = announce::watch::run(followed, links, members_in, conflicts).await;
        watched.context("watch for others that answer for our VIPs")
    });
    let gateways = agent.gateways.clone();
    tasks.spawn(async move {
        let asked = announce::gateway::run(gateways, interfaces_in, questions_in).await;
        asked.context("ask gateways")
    });
    let socket = control::bind(&agent.state_dir)
        .with_context(|| format!("make a socket for orders in {}", agent.state_dir.display()))?;
    tasks.spawn(async move {
        control::run(socket, asked).await;
        Ok(())
    });
    tasks.spawn(async move {
        source.run().await;
        Ok(())
    });
    let orders = Orders { asked: asked_in, heard: drains_in };
    Ok((inlets, outlets, orders, wanted.allocation))
}

fn membership_settings(agent: &AgentSettings, seed_tag: [u8; 8]) -> membership::Settings {
    membership::Settings {
        node: agent.node.clone(),
        tunnel_port: agent.tunnel_port,
        gossip_port: agent.gossip.port,
        rules: membership::Rules {
            interval: agent.peer_interval,
            fall: agent.peer_fall,
            rise: agent.peer_rise,
            vni: agent.vni,
            seed: agent.seed,
            seed_tag,
            hold_downs: agent.hold_downs,
        },
        seeds: agent.gossip.seeds.clone(),
    }
}
