//! Sends announcements and keeps the kernel's proxy entries for IPv6 VIPs.
//!
//! A proxy entry makes the kernel join the VIP's solicited-node group, so that the NIC and snooping
//! switches let solicitations through to the data plane. It stays when this process dies, as the
//! VIP does; entries of a former life that nothing explains any more are removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};
use tokio::{sync::watch, time::sleep_until};

use super::{Schedule, Uplink, frames::announcement};
use crate::netlink::{Netlink, NetlinkError};

/// Between two looks at the proxy entries when nothing changes.
const PROXY_CHECK: Duration = Duration::from_secs(10);

/// Announces what `announced` holds until its sender is gone. What is announced then stays with the
/// data plane: nothing is taken back.
///
/// # Errors
/// No packet socket or no netlink socket: the process lacks rights.
pub async fn run(mut announced: watch::Receiver<Arc<BTreeMap<IpAddr, Uplink>>>) -> io::Result<()> {
    // No protocol: this socket never receives.
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None)?;
    let netlink = Netlink::open()?;
    let mut schedule = Schedule::default();
    let mut wanted = announced.borrow_and_update().clone();
    let mut failing = Failing::default();
    schedule.set(&wanted, Instant::now());
    let mut check_at = Instant::now();
    loop {
        for (vip, uplink) in schedule.take_due(Instant::now()) {
            let sent = send(&socket, uplink.ifindex, &announcement(vip, uplink.mac));
            failing.note(vip, sent.map_err(|error| error.to_string()));
        }
        if check_at <= Instant::now() {
            let result = reconcile(&netlink, &wanted).await;
            failing
                .note(IpAddr::V6(Ipv6Addr::UNSPECIFIED), result.map_err(|error| error.to_string()));
            check_at = Instant::now() + PROXY_CHECK;
        }
        let wake = schedule.next_due().map_or(check_at, |due| due.min(check_at));
        tokio::select! {
            () = sleep_until(wake.into()) => {}
            changed = announced.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                wanted = announced.borrow_and_update().clone();
                schedule.set(&wanted, Instant::now());
                check_at = Instant::now();
            }
        }
    }
}

/// Adds the proxy entries that are missing and removes ours that nothing explains.
async fn reconcile(
    netlink: &Netlink,
    wanted: &BTreeMap<IpAddr, Uplink>,
) -> Result<(), NetlinkError> {
    let wanted: BTreeSet<(u32, Ipv6Addr)> = wanted
        .iter()
        .filter_map(|(vip, uplink)| match vip {
            IpAddr::V6(vip) => Some((uplink.ifindex, *vip)),
            IpAddr::V4(_) => None,
        })
        .collect();
    let have = netlink.own_proxies().await?;
    for (ifindex, vip) in wanted.difference(&have) {
        netlink.add_proxy(*ifindex, *vip).await?;
    }
    for (ifindex, vip) in have.difference(&wanted) {
        netlink.delete_proxy(*ifindex, *vip).await?;
    }
    Ok(())
}

/// What goes wrong again and again is told once.
#[derive(Default)]
struct Failing(BTreeMap<IpAddr, String>);

impl Failing {
    fn note(&mut self, vip: IpAddr, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.0.remove(&vip);
            }
            Err(error) => {
                if self.0.insert(vip, error.clone()).as_ref() != Some(&error) {
                    tracing::warn!(%vip, error, "announcement failed");
                }
            }
        }
    }
}

/// Sends a whole frame on an interface.
fn send(socket: &Socket, ifindex: u32, frame: &[u8]) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: i32::try_from(ifindex).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: frame and address outlive the call, and both lengths are theirs.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
