//! Who allocates: the holder of one `Lease` in our namespace.
//!
//! [`Election`] decides and does no I/O. It never compares a timestamp of another clock with ours: a
//! Lease is held by who it says until this process itself has seen it unchanged for as long as it lasts.
//! Traffic never depends on it: without a holder no Service gets a new address, and nothing else.

use std::time::Duration;

use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{Instant, timeout};

/// Name of the Lease.
pub const NAME: &str = "weir-addresses";

/// How long a Lease that nobody renews is its holder's.
pub const DURATION: Duration = Duration::from_secs(15);

/// A holder stops after this without a renewal: well before others may begin.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// Between two looks at the Lease; by up to a fifth more at random.
pub const RETRY: Duration = Duration::from_secs(2);

/// So many look that often. All others look the more seldom the later their turn is, so that a thousand
/// candidates cost the API server little more than ten, and any of them takes the Lease if need be.
const KEEN: usize = 3;

/// Longest time between two looks.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// How long a candidate rests between two looks; `turn`: how many come before it.
pub fn rest(turn: usize) -> Duration {
    let times = turn.saturating_add(2).saturating_sub(KEEN).max(1);
    RETRY.saturating_mul(u32::try_from(times).unwrap_or(u32::MAX)).min(LONGEST_RETRY)
}

/// Of one request: a server that hangs must not use up the deadline.
const REQUEST: Duration = Duration::from_secs(3);

/// What this process knows of the Lease.
#[derive(Debug)]
pub struct Election {
    me: String,
    /// The last version of it that was seen, and when that was first seen.
    seen: Option<(String, Instant)>,
    /// When the request began that made or kept it ours.
    renewed: Option<Instant>,
}

/// What to do about the Lease.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Create(LeaseSpec),
    /// With the version that was looked at: whoever is faster wins.
    Replace(LeaseSpec),
    /// It is somebody else's.
    Wait,
}

impl Election {
    /// `me`: this process's name, no other's, also not that of a former life.
    pub fn new(me: String) -> Self {
        Self { me, seen: None, renewed: None }
    }

    /// Whether this process may write on the strength of the Lease.
    pub fn leads(&self, now: Instant) -> bool {
        self.until().is_some_and(|until| now < until)
    }

    /// Until when it may, unless it renews.
    pub fn until(&self) -> Option<Instant> {
        self.renewed.map(|renewed| renewed + RENEW_DEADLINE)
    }

    /// What the Lease as it stands calls for. `wall` is only written, for people.
    pub fn step(&mut self, lease: Option<&Lease>, now: Instant, wall: Timestamp) -> Step {
        let Some(lease) = lease else {
            (self.seen, self.renewed) = (None, None);
            return Step::Create(self.spec(1, MicroTime(wall), wall));
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let transitions = spec.lease_transitions.unwrap_or(0);
        if holder == self.me {
            let acquired = spec.acquire_time.unwrap_or(MicroTime(wall));
            return Step::Replace(self.spec(transitions, acquired, wall));
        }
        self.renewed = None;
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => {
                self.seen = Some((version, now));
                now
            }
        };
        let lasts = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
        let lasts = lasts.map_or(DURATION, Duration::from_secs);
        if !holder.is_empty() && now < since + lasts {
            return Step::Wait;
        }
        Step::Replace(self.spec(transitions.saturating_add(1), MicroTime(wall), wall))
    }

    /// The step was done; its request began at `began`.
    pub fn done(&mut self, began: Instant) {
        (self.seen, self.renewed) = (None, Some(began));
    }

    fn spec(&self, transitions: i32, acquired: MicroTime, wall: Timestamp) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            lease_transitions: Some(transitions),
            acquire_time: Some(acquired),
            renew_time: Some(MicroTime(wall)),
            ..LeaseSpec::default()
        }
    }
}

/// Looks at the Lease once and does what it calls for. An error costs nothing but the time until the
/// next try; another who was faster is none.
pub async fn turn(
    election: &mut Election,
    client: &Client,
    namespace: &str,
    wall: Timestamp,
) -> Result<(), kube::Error> {
    let leases = Api::<Lease>::namespaced(client.clone(), namespace);
    let began = Instant::now();
    let lease = within(leases.get_opt(NAME).boxed()).await?;
    let mut metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
    let parameters = PostParams::default();
    let done = match election.step(lease.as_ref(), began, wall) {
        Step::Wait => return Ok(()),
        Step::Create(spec) => {
            let lease = Lease { metadata, spec: Some(spec) };
            within(leases.create(&parameters, &lease).boxed()).await
        }
        Step::Replace(spec) => {
            metadata = lease.map(|lease| lease.metadata).unwrap_or(metadata);
            let lease = Lease { metadata, spec: Some(spec) };
            within(leases.replace(NAME, &parameters, &lease).boxed()).await
        }
    };
    match done {
        Ok(_) => election.done(began),
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Gives the Lease back, so that another need not wait; best effort.
pub async fn release(election: &mut Election, client: &Client, namespace: &str) {
    let leases = Api::<Lease>::namespaced(client.clone(), namespace);
    election.renewed = None;
    let Ok(Some(mut lease)) = within(leases.get_opt(NAME).boxed()).await else { return };
    let Some(spec) = &mut lease.spec else { return };
    if spec.holder_identity.as_ref() == Some(&election.me) {
        spec.holder_identity = None;
        let parameters = PostParams::default();
        let replace = leases.replace(NAME, &parameters, &lease).boxed();
        if let Err(error) = within(replace).await {
            tracing::warn!(%error, "the Lease of allocation is not given back; it runs out by itself");
        }
    }
}

async fn within<T>(request: BoxFuture<'_, Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match timeout(REQUEST, request).await {
        Ok(answer) => answer,
        Err(elapsed) => Err(kube::Error::Service(elapsed.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The API server: the Lease as it stands, and its version.
    #[derive(Default)]
    struct Store {
        lease: Option<Lease>,
        version: u64,
    }

    impl Store {
        /// A whole turn of one candidate; `wall` may be any time.
        fn turn(&mut self, election: &mut Election, now: Instant, wall: Timestamp) -> bool {
            let (Step::Create(spec) | Step::Replace(spec)) =
                election.step(self.lease.as_ref(), now, wall)
            else {
                return election.leads(now);
            };
            self.put(spec);
            election.done(now);
            election.leads(now)
        }

        fn put(&mut self, spec: LeaseSpec) {
            self.version += 1;
            let metadata = ObjectMeta {
                resource_version: Some(self.version.to_string()),
                ..ObjectMeta::default()
            };
            self.lease = Some(Lease { metadata, spec: Some(spec) });
        }

        fn spec(&self) -> &LeaseSpec {
            self.lease.as_ref().unwrap().spec.as_ref().unwrap()
        }
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_first_takes_it_and_keeps_it_while_it_renews() {
        let (start, wall) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
        let mut store = Store::default();
        for n in 0..60 {
            let now = start + RETRY * n;
            assert!(store.turn(&mut a, now, wall));
            assert!(!store.turn(&mut b, now, wall), "although its clock stands still");
        }
        assert_eq!(store.spec().lease_transitions, Some(1));
    }

    #[test]
    fn a_silent_holder_ends_before_another_begins() {
        let (start, wall) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
        let mut store = Store::default();
        assert!(store.turn(&mut a, start, wall));
        // Somebody with a clock a year ahead does not take it sooner.
        let ahead = wall + secs(365 * 24 * 3600);
        assert!(!store.turn(&mut b, start, ahead));
        assert!(a.leads(start + RENEW_DEADLINE - secs(1)) && !a.leads(start + RENEW_DEADLINE));
        assert!(!store.turn(&mut b, start + DURATION - secs(1), ahead));
        assert!(store.turn(&mut b, start + DURATION, ahead));
        assert_eq!(store.spec().lease_transitions, Some(2));
        assert!(!store.turn(&mut a, start + DURATION, wall), "it sees that it is another's");
    }

    #[test]
    fn a_candidate_waits_from_when_it_saw_the_lease_first() {
        let (start, wall) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let mut store = Store::default();
        store.turn(&mut Election::new("a".into()), start, wall);
        let mut late = Election::new("late".into());
        assert!(!store.turn(&mut late, start + secs(100), wall));
        assert!(!store.turn(&mut late, start + secs(114), wall));
        assert!(store.turn(&mut late, start + secs(115), wall));
    }

    #[test]
    fn a_lease_given_back_is_taken_at_once() {
        let (now, wall) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let mut store = Store::default();
        store.turn(&mut Election::new("a".into()), now, wall);
        let given_back = LeaseSpec { holder_identity: None, ..store.spec().clone() };
        store.put(given_back);
        assert!(store.turn(&mut Election::new("b".into()), now, wall));
    }

    #[test]
    fn later_candidates_look_more_seldom_and_none_never() {
        assert_eq!([0, 2, 3, 4].map(rest), [2, 2, 4, 6].map(Duration::from_secs));
        assert_eq!([100, usize::MAX].map(rest), [LONGEST_RETRY; 2]);
        let a_second: f64 = (0..1000).map(|turn| 1.0 / rest(turn).as_secs_f64()).sum();
        assert!(a_second < 20.0, "{a_second} looks a second of a thousand candidates");
    }

    #[test]
    fn a_lease_that_is_gone_is_made_anew_and_leads_only_when_written() {
        let (now, wall) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let mut election = Election::new("a".into());
        let mut store = Store::default();
        assert!(store.turn(&mut election, now, wall));
        assert!(matches!(election.step(None, now, wall), Step::Create(_)));
        assert!(!election.leads(now));
    }
}
