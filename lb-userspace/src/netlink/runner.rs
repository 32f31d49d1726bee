//! Keeps the hops to all other nodes true.
//!
//! Every change in the kernel wakes it; it then reads everything anew, so a lost event costs
//! nothing. Neighbours are the kernel's to resolve and to keep fresh: weir only asks for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::hop::Hop;
use tokio::{
    sync::watch,
    time::{sleep, sleep_until},
};

use super::{
    Interfaces, Netlink, NetlinkError,
    socket::Events,
    ways::{self, Ends, NeighbourKey, Neighbours, Route},
};
use crate::watched::Watched as _;

/// Events closer together than this are one.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// Rest after a refresh, as a multiple of its duration: storms of events get a fifth of one core.
const REST: u32 = 4;
/// Everything is read anew at least this often. Also how often a neighbour that the kernel does not
/// manage is asked again.
const FULL_REFRESH: Duration = Duration::from_secs(5);

/// Publishes a hop for every node of `nodes` but `node` itself, and this node's interfaces, until
/// the sender of `nodes` is gone.
///
/// `nodes` holds this node too: its addresses are the tunnel's sources. A node that cannot be
/// reached now has a hop with `ifindex` 0.
///
/// # Errors
/// No netlink socket can be opened. Later failures are told in the log and tried again.
pub async fn run(
    node: String,
    mut nodes: watch::Receiver<Arc<BTreeMap<String, Vec<IpAddr>>>>,
    hops: watch::Sender<Arc<BTreeMap<String, Hop>>>,
    interfaces: watch::Sender<Arc<Interfaces>>,
) -> io::Result<()> {
    let neighbour_events = Events::neighbours()?;
    let topology_events = Events::topology()?;
    let mut tracker = Tracker::new(Netlink::open()?);
    tracker.follow(&node, &nodes.copy_and_update());
    let mut routes_are_old = true;
    loop {
        let start = Instant::now();
        match tracker.refresh(routes_are_old).await {
            Ok(found) => {
                tracker.complaint = None;
                replace_if_changed(&interfaces, &tracker.interfaces);
                replace_if_changed(&hops, &found);
            }
            Err(error) => tracker.complain(&error),
        }
        sleep(DEBOUNCE.max(start.elapsed() * REST)).await;
        routes_are_old = tokio::select! {
            biased;
            changed = nodes.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                tracker.follow(&node, &nodes.copy_and_update());
                true
            }
            changed = topology_events.changed() => changed.map(|()| true)?,
            changed = neighbour_events.changed() => changed.map(|()| false)?,
            () = sleep_until((start + FULL_REFRESH).into()) => true,
        };
    }
}

fn replace_if_changed<T: Clone + PartialEq>(sender: &watch::Sender<Arc<T>>, now: &T) {
    sender.send_if_modified(|former| {
        let changed = **former != *now;
        if changed {
            *former = Arc::new(now.clone());
        }
        changed
    });
}

/// All that is known between two refreshes.
struct Tracker {
    netlink: Netlink,
    /// Per node, the ends to try in this order.
    wanted: BTreeMap<String, Vec<Ends>>,
    routes: BTreeMap<Ends, Route>,
    interfaces: Interfaces,
    /// When each neighbour was last asked for.
    asked: BTreeMap<NeighbourKey, Instant>,
    /// Why each node has no hop, as told in the log.
    reasons: BTreeMap<String, &'static str>,
    complaint: Option<String>,
}

impl Tracker {
    fn new(netlink: Netlink) -> Self {
        Self {
            netlink,
            wanted: BTreeMap::new(),
            routes: BTreeMap::new(),
            interfaces: Interfaces::default(),
            asked: BTreeMap::new(),
            reasons: BTreeMap::new(),
            complaint: None,
        }
    }

    fn follow(&mut self, own_name: &str, nodes: &BTreeMap<String, Vec<IpAddr>>) {
        let own = nodes.get(own_name).map_or(&[][..], Vec::as_slice);
        self.wanted = nodes
            .iter()
            .filter(|(name, _)| *name != own_name)
            .map(|(name, addresses)| (name.clone(), ways::ends(own, addresses)))
            .collect();
    }

    /// Reads what may have changed and returns all hops.
    async fn refresh(&mut self, routes_too: bool) -> Result<BTreeMap<String, Hop>, NetlinkError> {
        if routes_too {
            self.interfaces = self.netlink.interfaces().await?;
            self.routes.clear();
            for ends in self.wanted.values().flatten() {
                if let Some(route) = self.netlink.route(*ends).await? {
                    self.routes.insert(*ends, route);
                }
            }
        }
        let neighbours = self.netlink.neighbours().await?;
        self.ask(&neighbours).await?;
        Ok(self.hops(&neighbours))
    }

    /// Has the kernel resolve all next hops, and manage them where it can.
    async fn ask(&mut self, neighbours: &Neighbours) -> Result<(), NetlinkError> {
        let wanted: BTreeSet<NeighbourKey> =
            self.routes.iter().map(|(ends, route)| route.neighbour(ends.destination)).collect();
        for &(ifindex, address) in &wanted {
            let settled =
                neighbours.get(&(ifindex, address)).is_some_and(|it| it.managed || it.fixed);
            let asked = self.asked.get(&(ifindex, address));
            // A little less than the refresh, so that every refresh asks.
            if settled || asked.is_some_and(|at| at.elapsed() < FULL_REFRESH / 2) {
                continue;
            }
            self.asked.insert((ifindex, address), Instant::now());
            self.netlink.resolve(ifindex, address, true).await?;
        }
        let gone: Vec<_> = self.asked.keys().filter(|key| !wanted.contains(key)).copied().collect();
        for (ifindex, address) in gone {
            self.asked.remove(&(ifindex, address));
            if neighbours.get(&(ifindex, address)).is_some_and(|it| it.managed) {
                self.netlink.resolve(ifindex, address, false).await?;
            }
        }
        Ok(())
    }

    /// The first way that works, for each node.
    fn hops(&mut self, neighbours: &Neighbours) -> BTreeMap<String, Hop> {
        let mut hops = BTreeMap::new();
        for (name, all_ends) in &self.wanted {
            let tries: Vec<_> = all_ends
                .iter()
                .map(|ends| ways::hop(*ends, self.routes.get(ends), neighbours, &self.interfaces))
                .collect();
            let hop = match tries.iter().find_map(|hop| hop.as_ref().ok()) {
                Some(hop) => {
                    if self.reasons.remove(name).is_some() {
                        tracing::info!(node = name, ifindex = hop.ifindex, "way to node found");
                    }
                    *hop
                }
                None => {
                    let reason =
                        tries.first().and_then(|hop| hop.err()).unwrap_or(NO_COMMON_FAMILY);
                    if self.reasons.insert(name.clone(), reason) != Some(reason) {
                        tracing::warn!(node = name, reason, "no way to node");
                    }
                    all_ends.first().map_or_else(Hop::default, |ends| ways::no_way(*ends))
                }
            };
            hops.insert(name.clone(), hop);
        }
        self.reasons.retain(|name, _| self.wanted.contains_key(name));
        hops
    }

    fn complain(&mut self, error: &NetlinkError) {
        let text = error.to_string();
        if self.complaint.as_ref() != Some(&text) {
            tracing::error!(%error, "next hops not refreshed");
            self.complaint = Some(text);
        }
    }
}

const NO_COMMON_FAMILY: &str = "it has no address of a family that this node has one of";
