//! Hears who else answers for the VIPs announced here, and asks for them.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::sleep_until};

use super::{
    Uplink,
    conflict::{Conflicts, Owners},
    frames::{announcement, question},
    gateway::source,
    socket::{Listener, Sender},
};
use crate::{
    model::{Members, Problem},
    netlink::Interfaces,
    watched::Watched as _,
};

/// Between two looks when nothing is due.
const IDLE: Duration = Duration::from_secs(60);

/// Reports conflicts until a sender of its inputs is gone.
///
/// # Errors
/// No packet socket: the process lacks rights.
pub async fn run(
    mut announced: watch::Receiver<Arc<BTreeMap<IpAddr, Uplink>>>,
    mut interfaces: watch::Receiver<Arc<Interfaces>>,
    mut members: watch::Receiver<Arc<Members>>,
    problems: watch::Sender<Arc<Vec<Problem>>>,
) -> io::Result<()> {
    let (sender, listener) = (Sender::open()?, Listener::open()?);
    let mut conflicts = Conflicts::default();
    let mut owners = Owners::of(&interfaces.copy_and_update(), &members.copy_and_update());
    loop {
        let now = Instant::now();
        conflicts.set(&announced.copy_and_update(), now);
        let links = interfaces.copy();
        for (vip, uplink) in conflicts.take_questions(now) {
            ask(&sender, &links, vip, &uplink);
        }
        for (vip, uplink) in conflicts.take_defences(now) {
            tracing::info!(%vip, "announced again: another host had claimed it");
            if let Err(error) = sender.send(uplink.ifindex, &announcement(vip, uplink.mac)) {
                tracing::warn!(%vip, %error, "not announced again");
            }
        }
        report(&problems, conflicts.problems(&owners, now));
        let due = conflicts.next_due().unwrap_or(now + IDLE);
        tokio::select! {
            heard = listener.hear() => {
                for (ifindex, claim) in heard? {
                    conflicts.hear(ifindex, claim, &owners, Instant::now());
                }
            }
            changed = announced.changed() => if changed.is_err() { return Ok(()) },
            changed = facts(&mut interfaces, &mut members) => {
                if !changed {
                    return Ok(());
                }
                owners = Owners::of(&interfaces.copy(), &members.copy());
            }
            () = sleep_until(due.into()) => {}
        }
    }
}

/// Waits for a change; false: whoever told of changes is gone.
async fn facts(
    interfaces: &mut watch::Receiver<Arc<Interfaces>>,
    members: &mut watch::Receiver<Arc<Members>>,
) -> bool {
    tokio::select! {
        result = interfaces.changed() => result.is_ok(),
        result = members.changed() => result.is_ok(),
    }
}

/// From the node's own address, so that nobody takes the question for an announcement.
fn ask(sender: &Sender, interfaces: &Interfaces, vip: IpAddr, uplink: &Uplink) {
    let link = interfaces.by_index(uplink.ifindex);
    let source = link.and_then(|link| source(link, vip));
    if let Some(frame) = source.and_then(|source| question(vip, source, uplink.mac))
        && let Err(error) = sender.send(uplink.ifindex, &frame)
    {
        tracing::debug!(%vip, %error, "not asked who else has it");
    }
}

fn report(to: &watch::Sender<Arc<Vec<Problem>>>, now: Vec<Problem>) {
    to.send_if_modified(|former| {
        let changed = **former != now;
        if changed {
            for problem in now.iter().filter(|problem| !former.contains(problem)) {
                tracing::warn!(object = problem.object, "{}", problem.message);
            }
            *former = Arc::new(now);
        }
        changed
    });
}
