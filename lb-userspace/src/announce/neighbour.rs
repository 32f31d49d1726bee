//! Sends announcements and keeps the kernel's proxy entries for IPv6 VIPs.
//!
//! A proxy entry makes the kernel join the VIP's solicited-node group, so that the NIC and snooping
//! switches let solicitations through to the data plane. It stays when this process dies, as the
//! VIP does; entries of a former life that nothing explains any more are removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::sleep_until};

use super::{Schedule, Uplink, frames::announcement, socket::Sender};
use crate::netlink::{Netlink, NetlinkError};
use crate::watched::Watched as _;

/// Between two looks at the proxy entries when nothing changes: the kernel drops them with a link
/// that is set down.
const PROXY_CHECK: Duration = Duration::from_secs(5);

/// Announces what `announced` holds until its sender is gone. What is announced then stays with the
/// data plane: nothing is taken back.
///
/// # Errors
/// No packet socket or no netlink socket: the process lacks rights.
pub async fn run(mut announced: watch::Receiver<Arc<BTreeMap<IpAddr, Uplink>>>) -> io::Result<()> {
    let socket = Sender::open()?;
    let netlink = Netlink::open()?;
    let mut schedule = Schedule::default();
    let mut wanted = announced.copy_and_update();
    let mut failing = Failing::default();
    schedule.set(&wanted, Instant::now());
    let mut check_at = Instant::now();
    loop {
        for (vip, uplink) in schedule.take_due(Instant::now()) {
            let sent = socket.send(uplink.ifindex, &announcement(vip, uplink.mac));
            if sent.is_err() {
                schedule.retry(vip, Instant::now());
            }
            failing.note(vip.to_string(), sent);
        }
        if check_at <= Instant::now() {
            reconcile(&netlink, &wanted, &mut failing).await;
            check_at = Instant::now() + PROXY_CHECK;
        }
        let wake = schedule.next_due().map_or(check_at, |due| due.min(check_at));
        tokio::select! {
            () = sleep_until(wake.into()) => {}
            changed = announced.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                wanted = announced.copy_and_update();
                schedule.set(&wanted, Instant::now());
                check_at = Instant::now();
            }
        }
    }
}

/// Removes the proxy entries of agents of this node, and names them.
pub async fn forget() -> io::Result<Vec<Ipv6Addr>> {
    let netlink = Netlink::open()?;
    let mut forgotten = Vec::new();
    for (ifindex, vip) in netlink.own_proxies().await.map_err(io::Error::other)? {
        netlink.delete_proxy(ifindex, vip).await.map_err(io::Error::other)?;
        forgotten.push(vip);
    }
    Ok(forgotten)
}

/// Adds the proxy entries that are missing and removes ours that nothing explains.
async fn reconcile(netlink: &Netlink, wanted: &BTreeMap<IpAddr, Uplink>, failing: &mut Failing) {
    let wanted: BTreeSet<(u32, Ipv6Addr)> = wanted
        .iter()
        .filter_map(|(vip, uplink)| match vip {
            IpAddr::V6(vip) => Some((uplink.ifindex, *vip)),
            IpAddr::V4(_) => None,
        })
        .collect();
    let have = match netlink.own_proxies().await {
        Ok(have) => have,
        Err(error) => return failing.note("proxy entries".into(), Err(error)),
    };
    failing.note("proxy entries".into(), Ok::<_, NetlinkError>(()));
    for &(ifindex, vip) in wanted.difference(&have) {
        let added = netlink.add_proxy(ifindex, vip).await;
        failing.note(format!("proxy entry of {vip}"), added);
    }
    for &(ifindex, vip) in have.difference(&wanted) {
        let deleted = netlink.delete_proxy(ifindex, vip).await;
        failing.note(format!("proxy entry of {vip}"), deleted);
    }
}

/// What goes wrong again and again is told once.
#[derive(Default)]
struct Failing(BTreeMap<String, String>);

impl Failing {
    fn note<E: ToString>(&mut self, what: String, result: Result<(), E>) {
        match result {
            Ok(()) => {
                self.0.remove(&what);
            }
            Err(error) => {
                let error = error.to_string();
                if self.0.get(&what) != Some(&error) {
                    tracing::warn!(what, error, "announcement failed");
                    self.0.insert(what, error);
                }
            }
        }
    }
}
