//! Lists and follows all kinds of objects on the server in use, and tells them as one [`Snapshot`].
//!
//! The first snapshot comes once every kind's first list is complete; from then on every change brings
//! another. A watch that ends, an answer 410 and another server lead to a new list, and what was known stays
//! until that is complete, and believed.
//!
//! A list is believed at once unless it is [suspicious](suspicion): it is empty or less than half of what was
//! known, or the cluster has gone back in time and something is missing. Such a list counts once all kinds have
//! been listed on the same server since, and [`CONFIRM_AFTER`] later a second list says the like. Until then the
//! former state stays, and status says so. What a watch says is gone is gone at once.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, StreamExt, stream::BoxStream};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::watcher::{self, Event},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    api::{Connection, chain},
    crd_pool::AddressPool,
    snapshot::{Frontend, Keep, Name, Namespace, Node, Objects, Service, Slice, Snapshot},
};
use crate::config::API_VERSION;
use crate::watched::Watched as _;

/// Services of other proxies, and those without an address of their own, do not concern us.
const SERVICES: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

/// Objects on a page of a list.
const PAGE: u32 = 500;

/// Shortest time between two snapshots: changes within it are one.
const COALESCE: Duration = Duration::from_millis(20);

/// Between two lists of which the second makes the first one believed.
pub const CONFIRM_AFTER: Duration = Duration::from_secs(30);

/// Fewer objects than this may become fewer than half by chance.
const FEW: usize = 8;

/// Our own kinds: whoever has not installed them has none.
const FRONTENDS: &str = "Frontends";
const POOLS: &str = "AddressPools";

/// All kinds.
const KINDS: [&str; 6] = ["Services", "EndpointSlices", "Nodes", "Namespaces", FRONTENDS, POOLS];

/// Between two tries after a failure.
const RETRY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(200)..=Duration::from_secs(5);

/// A watch that fails does so at once: one that is silent for so long works, and has nothing to tell.
const QUIET: Duration = Duration::from_secs(3);

/// Until it is looked again whether there is a kind that did not exist.
const ABSENT_RETRY: Duration = Duration::from_secs(15);

/// What went wrong with a kind of objects last, by name of the kind.
pub type Troubles = BTreeMap<&'static str, String>;

/// How many objects a checkpoint knows: what first lists are compared with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected {
    pub services: usize,
    pub nodes: usize,
    pub frontends: usize,
}

/// What the followers of all kinds share.
#[derive(Clone)]
struct Shared {
    connection: watch::Receiver<Option<Arc<Connection>>>,
    doubts: Arc<Notify>,
    troubles: watch::Sender<Troubles>,
    /// The session in which each kind was listed last, by name.
    listed: Arc<Mutex<BTreeMap<&'static str, u64>>>,
    confirm_after: Duration,
}

/// What a watch hears and tells.
pub struct Channels {
    /// The way to a server.
    pub connection: watch::Receiver<Option<Arc<Connection>>>,
    /// Told of failures.
    pub doubts: Arc<Notify>,
    pub snapshot: watch::Sender<Option<Snapshot>>,
    pub troubles: watch::Sender<Troubles>,
}

/// Follows for ever. `confirm_after`: [`CONFIRM_AFTER`].
pub async fn run(expected: Expected, confirm_after: Duration, channels: Channels) {
    let Channels { connection, doubts, snapshot, troubles } = channels;
    let listed = Arc::default();
    let shared = Shared { connection, doubts, troubles, listed, confirm_after };
    let mut tasks = JoinSet::new();
    let everything = || watcher::Config::default().page_size(PAGE);
    let services = everything().labels(SERVICES);
    let mut followed = Followed {
        services: start::<Service, _>(
            &mut tasks,
            &shared,
            "Services",
            expected.services,
            move |client| typed::<core::Service>(client, services.clone()),
        ),
        slices: start::<Slice, _>(&mut tasks, &shared, "EndpointSlices", 0, move |client| {
            typed::<discovery::EndpointSlice>(client, everything())
        }),
        nodes: start::<Node, _>(&mut tasks, &shared, "Nodes", expected.nodes, move |client| {
            typed::<core::Node>(client, everything())
        }),
        namespaces: start::<Namespace, _>(&mut tasks, &shared, "Namespaces", 0, move |client| {
            typed::<core::Namespace>(client, everything())
        }),
        frontends: start::<Frontend, _>(
            &mut tasks,
            &shared,
            FRONTENDS,
            expected.frontends,
            move |client| own(client, "Frontend", everything()),
        ),
        pools: start::<AddressPool, _>(&mut tasks, &shared, POOLS, 0, move |client| {
            typed::<AddressPool>(client, everything())
        }),
    };
    loop {
        followed.changed().await;
        sleep(COALESCE).await;
        if let Some(found) = followed.snapshot() {
            snapshot.send_replace(Some(found));
        }
    }
}

type Found<T> = watch::Receiver<Option<Objects<T>>>;

struct Followed {
    services: Found<Service>,
    slices: Found<Slice>,
    nodes: Found<Node>,
    namespaces: Found<Namespace>,
    frontends: Found<Frontend>,
    pools: Found<AddressPool>,
}

impl Followed {
    async fn changed(&mut self) {
        let alive = tokio::select! {
            result = self.services.changed() => result.is_ok(),
            result = self.slices.changed() => result.is_ok(),
            result = self.nodes.changed() => result.is_ok(),
            result = self.namespaces.changed() => result.is_ok(),
            result = self.frontends.changed() => result.is_ok(),
            result = self.pools.changed() => result.is_ok(),
        };
        if !alive {
            // Followers never end: the runtime does.
            std::future::pending::<()>().await;
        }
    }

    /// `None` until every first list is complete.
    fn snapshot(&mut self) -> Option<Snapshot> {
        Some(Snapshot {
            services: self.services.copy_and_update()?,
            slices: self.slices.copy_and_update()?,
            nodes: self.nodes.copy_and_update()?,
            namespaces: self.namespaces.copy_and_update()?,
            frontends: self.frontends.copy_and_update()?,
            pools: self.pools.copy_and_update()?,
        })
    }
}

type Events<K> = BoxStream<'static, Result<Event<K>, watcher::Error>>;

fn typed<K>(client: Client, config: watcher::Config) -> Events<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher::watcher(Api::<K>::all(client), config).boxed()
}

/// Objects of our own group; their definition may be missing.
fn own(client: Client, kind: &str, config: watcher::Config) -> Events<DynamicObject> {
    let (group, version) = API_VERSION.split_once('/').unwrap_or((API_VERSION, ""));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    watcher::watcher(Api::all_with(client, &resource), config).boxed()
}

/// Follows one kind beside the others. `expected`: how many objects were known before.
fn start<T, F>(
    tasks: &mut JoinSet<()>,
    shared: &Shared,
    kind: &'static str,
    expected: usize,
    open: F,
) -> Found<T>
where
    T: Keep + Send + Sync + 'static,
    T::Object: ResourceExt + Send + 'static,
    F: Fn(Client) -> Events<T::Object> + Send + Sync + 'static,
{
    let (out, found) = watch::channel(None);
    let shared = shared.clone();
    let follower = Follower { kind, shared, out, state: Objects::new(), expected, doubted: None };
    tasks.spawn(follower.run(open));
    found
}

/// Follows one kind of objects.
struct Follower<T> {
    kind: &'static str,
    shared: Shared,
    out: watch::Sender<Option<Objects<T>>>,
    state: Objects<T>,
    /// How many objects were known before the first list.
    expected: usize,
    /// The session whose list was not believed, and since when.
    doubted: Option<(u64, Instant)>,
}

/// Why a session with a server ends.
enum Ended {
    /// The kind does not exist there.
    Absent,
    /// A list is to be confirmed by another one.
    Doubted,
}

impl<T> Follower<T>
where
    T: Keep + Send + Sync + 'static,
    T::Object: ResourceExt + Send + 'static,
{
    async fn run(mut self, open: impl Fn(Client) -> Events<T::Object>) {
        let mut connections = self.shared.connection.clone();
        loop {
            let connection = match connections.wait_for(Option::is_some).await {
                Ok(connection) => connection.clone(),
                // The runtime ends.
                Err(_) => return,
            };
            let Some(connection) = connection else { continue };
            let events = open(connection.client.clone());
            let wait = tokio::select! {
                ended = self.follow(events, &connection) => match ended {
                    Ended::Absent => ABSENT_RETRY,
                    Ended::Doubted => self.shared.confirm_after,
                },
                _ = connections.changed() => continue,
            };
            tokio::select! {
                () = sleep(wait) => {}
                _ = connections.changed() => {}
            }
        }
    }

    async fn follow(&mut self, mut events: Events<T::Object>, connection: &Connection) -> Ended {
        let mut list: Option<Objects<T>> = None;
        let mut wait = *RETRY.start();
        let (mut published, mut troubled) = (false, false);
        loop {
            let next = match published {
                true if troubled => match timeout(QUIET, events.next()).await {
                    Ok(next) => next,
                    Err(_) => {
                        self.trouble(None);
                        troubled = false;
                        continue;
                    }
                },
                true => events.next().await,
                // What has come already is told together.
                false => match events.next().now_or_never() {
                    Some(next) => next,
                    None => {
                        self.publish();
                        published = true;
                        continue;
                    }
                },
            };
            match next {
                Some(Ok(event)) => {
                    // A list that begins proves nothing: it may fail as the one before did.
                    if !matches!(event, Event::Init) {
                        wait = *RETRY.start();
                    }
                    match self.take(event, &mut list, connection) {
                        Ok(changed) => published &= !changed,
                        Err(ended) => return ended,
                    }
                }
                Some(Err(error))
                    if is_absent(&error) && [FRONTENDS, POOLS].contains(&self.kind) =>
                {
                    self.trouble(None);
                    return match self.complete(Objects::new(), connection) {
                        true => {
                            self.publish();
                            Ended::Absent
                        }
                        false => Ended::Doubted,
                    };
                }
                Some(Err(error)) => {
                    self.trouble(Some(chain(&error)));
                    troubled = true;
                    self.shared.doubts.notify_one();
                    self.publish();
                    sleep(wait).await;
                    wait = (wait * 2).min(*RETRY.end());
                }
                // Watchers never end.
                None => return Ended::Absent,
            }
        }
    }

    /// Takes one event; returns whether it changed what is known.
    fn take(
        &mut self,
        event: Event<T::Object>,
        list: &mut Option<Objects<T>>,
        connection: &Connection,
    ) -> Result<bool, Ended> {
        match event {
            Event::Init => *list = Some(Objects::new()),
            Event::InitApply(object) => {
                let name = Arc::new(Name::of(&object));
                if let (Some(list), Some(kept)) = (list, T::keep(object)) {
                    list.insert(name, Arc::new(kept));
                }
            }
            Event::InitDone => {
                self.trouble(None);
                return match self.complete(list.take().unwrap_or_default(), connection) {
                    true => Ok(true),
                    false => Err(Ended::Doubted),
                };
            }
            Event::Apply(object) => {
                self.trouble(None);
                let name = Name::of(&object);
                let kept = T::keep(object);
                if self.state.get(&name).map(|known| &**known) == kept.as_ref() {
                    return Ok(false);
                }
                match kept {
                    Some(kept) => drop(self.state.insert(Arc::new(name), Arc::new(kept))),
                    None => drop(self.state.remove(&name)),
                }
                return Ok(true);
            }
            Event::Delete(object) => {
                self.state.remove(&Name::of(&object));
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes a whole list, unless it is not believed yet.
    fn complete(&mut self, mut list: Objects<T>, connection: &Connection) -> bool {
        let session = connection.session;
        let all_listed = {
            let mut listed = self.shared.listed.lock().unwrap_or_else(PoisonError::into_inner);
            listed.insert(self.kind, session);
            KINDS.iter().all(|kind| listed.get(kind) == Some(&session))
        };
        let known = match self.out.copy().is_some() {
            true => self.state.len(),
            false => self.expected,
        };
        let missing = self.state.keys().any(|name| !list.contains_key(name));
        if suspicion(known, list.len(), missing && connection.went_back) {
            let confirmed = self.doubted.is_some_and(|(doubted, since)| {
                doubted == session && all_listed && since.elapsed() >= self.shared.confirm_after
            });
            if !confirmed {
                let (_, since) = self
                    .doubted
                    .filter(|(doubted, _)| *doubted == session)
                    .unwrap_or((session, Instant::now()));
                self.doubted = Some((session, since));
                self.trouble(Some(format!(
                    "{} lists {} where {known} were known: that is believed once another list, {:?} later, says \
                     the like",
                    connection.server,
                    list.len(),
                    self.shared.confirm_after
                )));
                return false;
            }
            tracing::warn!(
                kind = self.kind,
                known,
                now = list.len(),
                "a shorter list is confirmed"
            );
            self.trouble(None);
        }
        self.doubted = None;
        for (name, known) in &self.state {
            if let Some(listed) = list.get_mut(name).filter(|listed| *listed == known) {
                *listed = known.clone();
            }
        }
        self.state = list;
        true
    }

    /// Tells what is known, once a list was complete.
    fn publish(&self) {
        let listed = self.shared.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let believed = self.out.copy().is_some() || self.doubted.is_none();
        if listed.contains_key(self.kind) && believed {
            let known = self.out.copy().as_ref().is_some_and(|it| it.ptr_eq(&self.state));
            if !known {
                self.out.send_replace(Some(self.state.clone()));
            }
        }
    }

    fn trouble(&self, what: Option<String>) {
        self.shared.troubles.send_if_modified(|troubles| {
            if troubles.get(self.kind) == what.as_ref() {
                return false;
            }
            match what {
                Some(what) => {
                    tracing::warn!(kind = self.kind, what, "Kubernetes");
                    troubles.insert(self.kind, what);
                }
                None => drop(troubles.remove(self.kind)),
            }
            true
        });
    }
}

/// Whether a list must be confirmed before it counts.
fn suspicion(known: usize, listed: usize, lost_by_going_back: bool) -> bool {
    let emptied = known > 0 && listed == 0;
    let halved = known >= FEW && listed * 2 < known;
    emptied || halved || lost_by_going_back
}

fn is_absent(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
