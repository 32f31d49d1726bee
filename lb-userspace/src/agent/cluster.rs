//! What is wanted: what the file says, and Kubernetes beside it where the file says so.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::report::unix_ms;
use crate::{
    model::{Intent, Members, Verdicts},
    report::status::KubernetesStatus,
    sources::{
        file::FileSource,
        kubernetes::source::{self, About, Inlets},
    },
    watched::Watched as _,
};

/// Between two words of a start that waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// For the Lease of allocation to be given back.
const GIVE_BACK: Duration = Duration::from_secs(1);

/// All sources as one.
pub struct Wanted {
    pub intent: watch::Receiver<Arc<Intent>>,
    /// None: it is not asked.
    pub kubernetes: Option<watch::Receiver<Arc<KubernetesStatus>>>,
    /// Who lives, and what serves: to be filled, as they decide what is believed of Kubernetes.
    pub members: watch::Sender<Arc<Members>>,
    pub verdicts: watch::Sender<Arc<Verdicts>>,
    /// To be filled too: VIPs that the data plane serves.
    pub served: watch::Sender<Arc<BTreeSet<IpAddr>>>,
    pub allocation: Allocation,
}

/// This agent's part in giving addresses to Services; nothing where Kubernetes is not asked.
pub struct Allocation {
    stop: watch::Sender<bool>,
    stopped: watch::Receiver<bool>,
}

impl Allocation {
    /// From now on this agent gives none.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Returns once another may, or after a while.
    pub async fn stopped(&mut self) {
        // Who does not give the Lease back keeps others from it for some seconds, and that is all.
        let _ = timeout(GIVE_BACK, self.stopped.wait_for(|stopped| *stopped)).await;
    }
}

/// Starts what follows Kubernetes, if the file wants it.
pub fn start(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    file: &FileSource,
    checkpoint: Option<&Intent>,
) -> Wanted {
    let agent = file.intent().copy().agent.clone();
    let (members, verdicts) =
        (watch::Sender::new(Arc::default()), watch::Sender::new(Arc::default()));
    let (served, stop) = (watch::Sender::default(), watch::Sender::new(false));
    let Some(settings) = agent.kubernetes else {
        let allocation = Allocation { stop, stopped: watch::Sender::new(true).subscribe() };
        let intent = file.intent();
        return Wanted { intent, kubernetes: None, members, verdicts, served, allocation };
    };
    let clock = || unix_ms(std::time::SystemTime::now());
    let about = About { settings, node: agent.node, state_dir: agent.state_dir, clock };
    let inlets = Inlets {
        file: file.intent(),
        file_status: file.status(),
        members: members.subscribe(),
        verdicts: verdicts.subscribe(),
        served: served.subscribe(),
        stop: stop.subscribe(),
    };
    let source::Outlets { intent, status, stopped } =
        source::start(tasks, about, checkpoint, inlets);
    let allocation = Allocation { stop, stopped };
    Wanted { intent, kubernetes: Some(status), members, verdicts, served, allocation }
}

impl Wanted {
    /// Returns once this node's own addresses are known: at once, but where only Kubernetes can say them and
    /// never did.
    pub async fn knows_this_node(&mut self) {
        let Some(status) = self.kubernetes.clone() else { return };
        let known = |intent: &Arc<Intent>| intent.nodes.contains_key(&intent.agent.node);
        let mut words = interval(PATIENCE);
        words.set_missed_tick_behavior(MissedTickBehavior::Delay);
        words.reset();
        let node = self.intent.copy().agent.node.clone();
        loop {
            tokio::select! {
                // A sender that is gone shows as its task's end.
                _ = self.intent.wait_for(known) => return,
                _ = words.tick() => {
                    let why = status.copy().stale.clone().unwrap_or_default();
                    tracing::warn!(node, why, "neither the file nor Kubernetes describes this node yet");
                }
            }
        }
    }
}
