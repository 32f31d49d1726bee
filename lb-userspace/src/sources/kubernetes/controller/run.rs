//! Runs the allocation while this process holds the Lease.
//!
//! Two things must hold before anything is decided: what is known is at least as new as the moment the
//! Lease became ours, since a predecessor's last word may be on its way to us; and everything that was
//! written here has come back. So no address is ever given twice because a view was old.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt, stream};
use k8s_openapi::{api::core::v1::Service, jiff::Timestamp};
use kube::{Api, Client, ResourceExt, api::ListParams};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{AddressPool, Judged, ServiceObject, State, Write, commit, writes};
use crate::{
    addresses::Labels,
    sources::kubernetes::lease::{self, Election},
    watched::Watched as _,
};

/// Changes within this are one.
const COALESCE: Duration = Duration::from_millis(10);

/// Writes under way at once.
const AT_ONCE: usize = 16;

/// Before a failed write is tried again; doubles up to the last.
const AGAIN: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(250)..=Duration::from_secs(30);

/// Between two looks whether what is known is new enough.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Of the list that says how new it must be.
const LIST: Duration = Duration::from_secs(30);

/// Objects in one page of it.
const PAGE: u32 = 500;

/// What the controller looks at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    pub services: Vec<ServiceObject>,
    pub pools: Vec<AddressPool>,
    pub frontends: Vec<Judged>,
    /// Labels by name.
    pub namespaces: BTreeMap<String, Labels>,
    /// Addresses that are something else's, and whose.
    pub reserved: BTreeMap<IpAddr, String>,
}

/// What the controller works with.
pub struct Desk<S> {
    /// None: there is no way to the API now.
    pub client: watch::Receiver<Option<Client>>,
    /// None: the first lists are not complete.
    pub snapshot: watch::Receiver<Option<S>>,
    /// Reads one; only called while the Lease is held.
    pub world: Box<dyn Fn(&S) -> World + Send + Sync>,
    /// Addresses that this node serves.
    pub served: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    /// True: give the Lease back and end.
    pub stop: watch::Receiver<bool>,
    /// Of the Lease.
    pub namespace: String,
    /// Name of this process in this life.
    pub me: String,
    /// Services without a class are ours.
    pub default_class: bool,
    /// How many other candidates for the Lease come before this one.
    pub turn: Box<dyn Fn() -> usize + Send + Sync>,
    /// Says the Unix time in ms.
    pub clock: fn() -> u64,
    /// Of the small differences in time that keep processes apart.
    pub seed: u64,
}

/// Runs until told to stop.
pub async fn run<S: Clone + Send + Sync>(desk: Desk<S>) {
    let (tell, until) = watch::channel(None);
    let mut stop = desk.stop.clone();
    let mut election = Election::new(desk.me.clone());
    tokio::select! {
        () = elect(&desk, &mut election, tell) => {}
        () = Writer::new(&desk, until).run() => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    let client = desk.client.copy();
    if let Some(client) = client {
        lease::release(&mut election, &client, &desk.namespace).await;
    }
}

/// Keeps the Lease or waits for it; tells until when it is ours.
async fn elect<S>(desk: &Desk<S>, election: &mut Election, tell: watch::Sender<Option<Instant>>) {
    let mut failing = false;
    let mut random = StdRng::seed_from_u64(desk.seed);
    loop {
        let client = desk.client.copy();
        if let Some(client) = client {
            let wall = timestamp(desk.clock);
            let turn = lease::turn(election, &client, &desk.namespace, wall).await;
            match &turn {
                Err(error) if !failing => {
                    tracing::warn!(error = %commit::chain(error), "the Lease of allocation cannot be had");
                }
                _ => {}
            }
            failing = turn.is_err();
        }
        let until = election.until().filter(|_| election.leads(Instant::now()));
        tell.send_if_modified(|known| {
            let changed = known.is_some() != until.is_some();
            if changed {
                tracing::info!(holder = until.is_some(), "Lease of allocation");
            }
            *known = until;
            changed
        });
        let rest = match until {
            Some(_) => lease::RETRY,
            None => lease::rest((desk.turn)()),
        };
        sleep(rest.mul_f64(random.random_range(1.0..1.2))).await;
    }
}

fn timestamp(clock: fn() -> u64) -> Timestamp {
    let ms = i64::try_from(clock()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

struct Writer<'a, S> {
    desk: &'a Desk<S>,
    snapshot: watch::Receiver<Option<S>>,
    served: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    client: watch::Receiver<Option<Client>>,
    until: watch::Receiver<Option<Instant>>,
    /// What is known is as new as our Lease.
    fresh: bool,
    /// Versions that were written and have not come back, by UID.
    written: BTreeMap<String, u64>,
    /// Of objects whose last write failed, by UID: how often, and when it is tried again.
    failed: BTreeMap<String, (u32, Instant)>,
    /// Another look is due without anything having changed.
    due: Option<Instant>,
    random: StdRng,
}

impl<'a, S: Clone> Writer<'a, S> {
    fn new(desk: &'a Desk<S>, until: watch::Receiver<Option<Instant>>) -> Self {
        Self {
            desk,
            snapshot: desk.snapshot.clone(),
            served: desk.served.clone(),
            client: desk.client.clone(),
            until,
            fresh: false,
            written: BTreeMap::new(),
            failed: BTreeMap::new(),
            due: None,
            random: StdRng::seed_from_u64(desk.seed),
        }
    }

    async fn run(mut self) {
        loop {
            self.round().await;
            self.changed().await;
            sleep(COALESCE).await;
        }
    }

    async fn changed(&mut self) {
        let due = self.due;
        let later = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => pending().await,
            }
        };
        let alive = tokio::select! {
            result = self.snapshot.changed() => result.is_ok(),
            result = self.served.changed() => result.is_ok(),
            result = self.client.changed() => result.is_ok(),
            result = self.until.changed() => result.is_ok(),
            () = later => true,
        };
        if !alive {
            // A sender that is gone shows as its task's end.
            pending::<()>().await;
        }
    }

    fn leads(&self) -> bool {
        self.until.copy().is_some_and(|until| Instant::now() < until)
    }

    async fn round(&mut self) {
        self.due = None;
        let client = self.client.copy_and_update();
        self.until.copy_and_update();
        let served = self.served.copy_and_update();
        if !self.leads() {
            self.fresh = false;
            self.written.clear();
            self.failed.clear();
            self.snapshot.mark_unchanged();
            return;
        }
        let Some(client) = client else { return };
        let Some(world) = self.snapshot.copy_and_update().as_ref().map(&self.desk.world) else {
            return;
        };
        if !self.is_fresh(&client, &world).await {
            self.due = Some(Instant::now() + LOOK_AGAIN);
            return;
        }
        if !self.has_come_back(&world) {
            return;
        }
        let state = State {
            services: &world.services,
            pools: &world.pools,
            frontends: &world.frontends,
            namespaces: &world.namespaces,
            reserved: &world.reserved,
            served: &served,
            now: timestamp(self.desk.clock),
        };
        self.commit(&client, writes(&state)).await;
    }

    /// Whether every Service that the API has now is known as it is now, or newer.
    async fn is_fresh(&mut self, client: &Client, world: &World) -> bool {
        if !self.fresh {
            let known = world.versions();
            match timeout(LIST, self.list(client)).await {
                Ok(Ok(listed)) => {
                    let is_known = |(uid, version): (&String, &u64)| {
                        known.get(uid).is_some_and(|it| it >= version)
                    };
                    self.fresh = listed.iter().all(is_known);
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = %commit::chain(&error), "Services cannot be listed");
                }
                Err(_) => tracing::warn!("Services are not listed within {LIST:?}"),
            }
        }
        self.fresh
    }

    async fn list(&self, client: &Client) -> Result<BTreeMap<String, u64>, kube::Error> {
        let services = Api::<Service>::all(client.clone());
        let mut page = ListParams::default().limit(PAGE);
        let mut listed = BTreeMap::new();
        loop {
            let list = services.list(&page).await?;
            let default_class = self.desk.default_class;
            let read = list.items.iter().filter_map(|it| ServiceObject::read(it, default_class));
            listed.extend(read.map(|it| (it.uid, number(&it.resource_version))));
            match list.metadata.continue_.filter(|more| !more.is_empty()) {
                Some(more) => page = page.continue_token(&more),
                None => return Ok(listed),
            }
        }
    }

    /// Whether all that was written here is known by now; what is gone has nothing to come back.
    fn has_come_back(&mut self, world: &World) -> bool {
        let known = world.versions();
        self.written.retain(|uid, version| known.get(uid).is_some_and(|it| it < version));
        self.written.is_empty()
    }

    async fn commit(&mut self, client: &Client, writes: Vec<Write>) {
        let now = Instant::now();
        let uids: BTreeSet<&str> = writes.iter().map(uid).collect();
        self.failed.retain(|failed, _| uids.contains(failed.as_str()));
        let due = |write: &Write| self.failed.get(uid(write)).is_none_or(|(_, at)| *at <= now);
        let writes: Vec<Write> = writes.into_iter().filter(due).collect();
        let (me, clock, until) = (self.desk.me.as_str(), self.desk.clock, &self.until);
        let done: Vec<_> = stream::iter(writes)
            .map(|write| {
                let committed = async move {
                    let leads = || until.copy().is_some_and(|until| Instant::now() < until);
                    let done = commit::commit(client, &write, me, || timestamp(clock), leads).await;
                    (write, done)
                };
                committed.boxed()
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (write, done) in done {
            let uid = uid(&write).to_owned();
            self.written.extend(done.version.map(|version| (uid.clone(), version)));
            let Some(error) = done.error else {
                self.failed.remove(&uid);
                continue;
            };
            let times = self.failed.get(&uid).map_or(0, |(times, _)| *times).saturating_add(1);
            if times == 1 {
                tracing::info!(object = commit::name(&write), error, "not written; tried again");
            }
            let wait = back_off(times).mul_f64(self.random.random_range(1.0..1.5));
            self.failed.insert(uid, (times, now + wait));
        }
        self.due = self.failed.values().map(|(_, at)| *at).min();
    }
}

/// The longer the more often it failed.
fn back_off(times: u32) -> Duration {
    let doubled = AGAIN.start().saturating_mul(1 << times.saturating_sub(1).min(16));
    doubled.min(*AGAIN.end())
}

fn uid(write: &Write) -> &str {
    match write {
        Write::Service { target, .. } => &target.uid,
        Write::Pool { uid, .. } | Write::Frontend { uid, .. } => uid,
    }
}

impl World {
    /// Resource versions by UID.
    fn versions(&self) -> BTreeMap<String, u64> {
        let services =
            self.services.iter().map(|it| (it.uid.clone(), number(&it.resource_version)));
        let pools = self
            .pools
            .iter()
            .filter_map(|it| Some((it.uid()?, number(&it.resource_version().unwrap_or_default()))));
        let frontends = self.frontends.iter().map(|it| &it.object);
        let frontends = frontends.map(|it| (it.uid.clone(), number(&it.resource_version)));
        services.chain(pools).chain(frontends).collect()
    }
}

/// A resource version: a number, greater with every change (KEP-5504).
fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compiles: whoever runs it may spawn it.
    #[expect(dead_code, reason = "it is enough that it compiles")]
    fn it_can_be_spawned(desk: Desk<()>) -> impl Future<Output = ()> + Send {
        run(desk)
    }

    #[test]
    fn waits_between_tries_grow_up_to_a_limit() {
        assert_eq!([1, 2, 5].map(back_off), [250, 500, 4_000].map(Duration::from_millis));
        assert_eq!([8, 9, 1_000].map(back_off), [*AGAIN.end(); 3]);
    }
}
