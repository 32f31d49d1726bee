//! Runs Kubernetes as a source: what it and the file say becomes one Intent, again with every change.
//!
//! Until Kubernetes has said everything once, what the checkpoint holds of it stays in force beside the file.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::sleep,
};

use super::{
    allocator,
    api::{self, Connection, Servers},
    health_ports,
    merge::{Inputs, Merged, Merger},
    outcome::OwnFrontends,
    snapshot::Snapshot,
    watch::{self as follow, Expected, Troubles},
};
use crate::{
    model::{Intent, KubernetesSettings, Members, Problem, Verdicts, intent},
    report::status::KubernetesStatus,
    sources::file::SourceStatus,
    watched::Watched as _,
};

/// Changes within this are one.
const COALESCE: Duration = Duration::from_millis(5);

/// What the source needs to know.
pub struct Inlets {
    /// What the file says.
    pub file: watch::Receiver<Arc<Intent>>,
    pub file_status: watch::Receiver<SourceStatus>,
    pub members: watch::Receiver<Arc<Members>>,
    pub verdicts: watch::Receiver<Arc<Verdicts>>,
    /// VIPs that the data plane serves.
    pub served: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    /// True: no addresses are given any more; a Lease is given back.
    pub stop: watch::Receiver<bool>,
}

/// What it tells.
pub struct Outlets {
    /// Of file and Kubernetes together.
    pub intent: watch::Receiver<Arc<Intent>>,
    pub status: watch::Receiver<Arc<KubernetesStatus>>,
    /// True once it has stopped as it was told to.
    pub stopped: watch::Receiver<bool>,
}

/// Where it runs.
#[derive(Clone, Debug)]
pub struct About {
    pub settings: KubernetesSettings,
    /// Name of this node.
    pub node: String,
    pub state_dir: PathBuf,
    /// Says the Unix time in ms.
    pub clock: fn() -> u64,
}

/// Starts everything. `checkpoint`: what was in force when an agent was here last.
pub fn start(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    about: About,
    checkpoint: Option<&Intent>,
    inlets: Inlets,
) -> Outlets {
    let file = inlets.file.copy();
    let mut merger = Merger::new(Arc::new(checkpoint.unwrap_or(&file).clone()));
    let first = merger.resume(&file).intent;
    let expected = expected(&first, &file);
    let (connection, connection_in) = watch::channel(None);
    let (servers, servers_in) = watch::channel(Servers::default());
    let (snapshot, snapshot_in) = watch::channel(None);
    let (troubles, troubles_in) = watch::channel(Troubles::default());
    let (intent, intent_in) = watch::channel(first);
    let (own, own_in) = watch::channel(OwnFrontends::default());
    let (status, status_in) = watch::channel(Arc::default());
    let doubts = Arc::new(Notify::new());

    let About { settings, node, state_dir, clock } = about;
    let channels = allocator::Inlets {
        connection: connection_in.clone(),
        snapshot: snapshot_in.clone(),
        intent: intent_in.clone(),
        own: own_in,
        members: inlets.members.clone(),
        served: inlets.served.clone(),
        stop: inlets.stop.clone(),
    };
    let (stopped, stopped_in) = watch::channel(false);
    // Another one's in each life of the agent.
    let me = format!("{node}_{}", clock());
    let allocate = allocator::run(settings.clone(), me, clock, channels, stopped);
    tasks.spawn(async move {
        allocate.await;
        Ok(())
    });
    health_ports::start(tasks, settings.default_class, node.clone(), snapshot_in.clone());
    let channels = api::Channels { connection, servers, doubts: doubts.clone() };
    let keeper = api::run(settings.clone(), node, state_dir, clock, channels);
    tasks.spawn(async move {
        keeper.await;
        Ok(())
    });
    let channels =
        follow::Channels { connection: connection_in.clone(), doubts, snapshot, troubles };
    let follow = follow::run(expected, follow::CONFIRM_AFTER, channels);
    tasks.spawn(async move {
        follow.await;
        Ok(())
    });
    let outlets = Outlets { intent: intent_in, status: status_in, stopped: stopped_in };
    let source = Source {
        settings,
        inlets,
        connection: connection_in,
        servers: servers_in,
        snapshot: snapshot_in,
        troubles: troubles_in,
        intent,
        own,
        status,
        merger,
        problems: Vec::new(),
        held: 0,
        half_dead: false,
        clock,
        complete_ms: None,
    };
    tasks.spawn(async move {
        source.run().await;
        Ok(())
    });
    outlets
}

/// What a checkpoint says of how much there is.
fn expected(first: &Intent, file: &Intent) -> Expected {
    let of = |prefix: &str| {
        let objects = first.frontends.values().filter(|it| it.name.starts_with(prefix));
        let origins: std::collections::BTreeSet<String> = objects.map(|it| it.origin()).collect();
        origins.len()
    };
    Expected {
        services: of(intent::OF_SERVICE),
        nodes: first.nodes.len().saturating_sub(file.nodes.len()),
        frontends: of(intent::OF_FRONTEND),
    }
}

struct Source {
    settings: KubernetesSettings,
    inlets: Inlets,
    connection: watch::Receiver<Option<Arc<Connection>>>,
    servers: watch::Receiver<Servers>,
    snapshot: watch::Receiver<Option<Snapshot>>,
    troubles: watch::Receiver<Troubles>,
    intent: watch::Sender<Arc<Intent>>,
    own: watch::Sender<OwnFrontends>,
    status: watch::Sender<Arc<KubernetesStatus>>,
    merger: Merger,
    /// Of the last merge, sorted.
    problems: Vec<Problem>,
    held: usize,
    half_dead: bool,
    clock: fn() -> u64,
    /// Unix time in ms of the first complete snapshot.
    complete_ms: Option<u64>,
}

/// What woke the source.
#[derive(Clone, Copy, Eq, PartialEq)]
enum News {
    Content,
    Account,
}

impl Source {
    async fn run(mut self) {
        loop {
            let news = self.changed().await;
            if news == News::Content {
                sleep(COALESCE).await;
                tokio::task::block_in_place(|| self.merge());
            }
            self.account();
        }
    }

    async fn changed(&mut self) -> News {
        let (held, half_dead) = (self.held > 0, self.half_dead);
        let (alive, news) = tokio::select! {
            result = self.inlets.file.changed() => (result.is_ok(), News::Content),
            result = self.inlets.file_status.changed() => (result.is_ok(), News::Content),
            result = self.snapshot.changed() => (result.is_ok(), News::Content),
            result = self.inlets.members.changed(), if half_dead => (result.is_ok(), News::Content),
            result = self.inlets.verdicts.changed(), if held => (result.is_ok(), News::Content),
            result = self.connection.changed() => (result.is_ok(), News::Account),
            result = self.servers.changed() => (result.is_ok(), News::Account),
            result = self.troubles.changed() => (result.is_ok(), News::Account),
        };
        if !alive {
            // A sender that is gone shows as its task's end.
            std::future::pending::<()>().await;
        }
        news
    }

    fn merge(&mut self) {
        let file = self.inlets.file.copy_and_update();
        let stale = self.inlets.file_status.copy_and_update().stale.is_some();
        let snapshot = self.snapshot.copy_and_update();
        let members = self.inlets.members.copy_and_update();
        let verdicts = self.inlets.verdicts.copy_and_update();
        let merged = match &snapshot {
            None => self.merger.resume(&file),
            Some(snapshot) => {
                self.complete_ms.get_or_insert_with(self.clock);
                self.merger.merge(&Inputs {
                    file: &file,
                    stale,
                    settings: &self.settings,
                    snapshot,
                    members: &members,
                    verdicts: &verdicts,
                    now: Instant::now(),
                })
            }
        };
        for problem in merged.problems.iter().filter(|it| self.problems.binary_search(it).is_err())
        {
            tracing::warn!(object = problem.object, "{}", problem.message);
        }
        let Merged { intent, problems, held, half_dead, outcomes } = merged;
        (self.problems, self.held, self.half_dead) = (problems, held, half_dead);
        self.intent.send_if_modified(|former| {
            let changed = !Arc::ptr_eq(former, &intent);
            *former = intent;
            changed
        });
        let objects = snapshot.map(|it| it.frontends).unwrap_or_default();
        let own = OwnFrontends { objects, outcomes };
        self.own.send_if_modified(|former| {
            let changed = !former.is(&own);
            *former = own;
            changed
        });
    }

    /// Says how things are.
    fn account(&mut self) {
        let connection = self.connection.copy_and_update();
        let servers = self.servers.copy_and_update();
        let troubles = self.troubles.copy_and_update();
        let snapshot = self.snapshot.copy();
        let stale = match (&connection, snapshot.is_some()) {
            (None, true) => {
                Some("no API server can be used; what Kubernetes said last stays in force")
            }
            (None, false) => Some(
                "no API server can be used, and Kubernetes has said nothing yet; what a checkpoint holds of it is \
                 in force",
            ),
            (Some(_), false) => {
                Some("the first lists are not complete yet; until then a checkpoint is in force")
            }
            (Some(_), true) => None,
        };
        let objects = snapshot.as_ref().map(counts).unwrap_or_default();
        let of_servers = servers
            .problems
            .into_iter()
            .map(|(server, message)| Problem { object: server, message });
        let of_kinds =
            troubles.into_iter().map(|(kind, message)| Problem { object: kind.into(), message });
        let problems = self.problems.iter().cloned().chain(of_servers).chain(of_kinds).collect();
        let status = KubernetesStatus {
            server: connection.as_ref().map(|it| it.server.clone()),
            since_ms: connection.as_ref().map(|it| it.since_ms),
            complete_ms: self.complete_ms,
            stale: stale.map(str::to_owned),
            objects,
            held: self.held,
            problems,
        };
        self.status.send_if_modified(|former| {
            let changed = **former != status;
            if changed {
                *former = Arc::new(status);
            }
            changed
        });
    }
}

fn counts(snapshot: &Snapshot) -> BTreeMap<String, usize> {
    let counts = [
        ("services", snapshot.services.len()),
        ("slices", snapshot.slices.len()),
        ("nodes", snapshot.nodes.len()),
        ("namespaces", snapshot.namespaces.len()),
        ("frontends", snapshot.frontends.len()),
        ("pools", snapshot.pools.len()),
    ];
    counts.map(|(kind, count)| (kind.to_owned(), count)).into()
}
