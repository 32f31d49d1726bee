//! What the loop keeps of the sets of before, and what it tells those who look for displaced flows.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::hop::flags;
use tokio::sync::watch;

use crate::{
    model::{Life, Members},
    plan::{
        Changed, Desired, Edited, FrontendKey, History,
        flows::{Applied, Consensus},
        history::Touched,
    },
};

/// Shortest time between two words of what was applied: telling costs as much as changed lately.
const TELL_REST: Duration = Duration::from_millis(200);

/// The history, and what was told of it.
pub struct Memory {
    pub history: History,
    outlet: watch::Sender<Arc<Applied>>,
    told: Option<Instant>,
    /// Something was applied since.
    untold: bool,
}

/// How a plan differs from the one before.
pub enum Difference {
    /// It was made anew; this was the former.
    Anew(Desired),
    /// Only these frontends' owners changed.
    Owners(BTreeSet<FrontendKey>),
    /// Only pools changed.
    Pools(Edited),
}

impl Memory {
    pub fn new(history: History, outlet: watch::Sender<Arc<Applied>>) -> Self {
        Self { history, outlet, told: None, untold: false }
    }

    /// Writes into the plan what must be held beside the sets of now.
    pub fn remember(
        &mut self,
        plan: &mut Desired,
        difference: &Difference,
        consensus: &Arc<Consensus>,
        members: &Arc<Members>,
        now: Instant,
    ) -> Touched {
        let changed = match difference {
            Difference::Anew(before) => Changed::Anew(before),
            Difference::Owners(frontends) => Changed::Owners(frontends),
            Difference::Pools(edited) => Changed::Pools(edited),
        };
        self.history.remember(plan, changed, consensus, members, now)
    }

    /// Tells what the data plane holds since a turn; soon, if it was told just now.
    pub fn tell(&mut self, turn: u64, applied: bool, now: Instant) {
        self.untold |= applied;
        if !self.untold || self.told.is_some_and(|at| now < at + TELL_REST) {
            return;
        }
        (self.told, self.untold) = (Some(now), false);
        let recent = self.history.recent();
        self.outlet.send_if_modified(|former| {
            let changed = former.recent != recent;
            if changed {
                *former = Arc::new(Applied { turn, recent });
            }
            changed
        });
    }

    /// When a turn may bring something new although nothing changed.
    pub fn next_deadline(&self) -> Option<Instant> {
        let untold = self.told.filter(|_| self.untold).map(|at| at + TELL_REST);
        [self.history.next_deadline(), untold].into_iter().flatten().min()
    }
}

/// What receivers must know of a node ([`lb_common::hop::flags`]): a dead one's flows are lost, and one
/// whose agent is silent cannot claim.
pub fn hop_flags(node: &str, members: &Members) -> u32 {
    match members.nodes.get(node) {
        Some(member) if member.life == Life::Dead => flags::DEAD,
        _ if members.has_agent(node) => 0,
        _ => flags::CLAIMS_ALL,
    }
}
