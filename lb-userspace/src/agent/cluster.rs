//! What is wanted: what the file says, and Kubernetes beside it where the file says so.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::report::unix_ms;
use crate::{
    model::{Intent, Members, Verdicts},
    report::status::KubernetesStatus,
    sources::{
        file::FileSource,
        kubernetes::source::{self, About, Inlets},
    },
};

/// Between two words of a start that waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// All sources as one.
pub struct Wanted {
    pub intent: watch::Receiver<Arc<Intent>>,
    /// None: it is not asked.
    pub kubernetes: Option<watch::Receiver<Arc<KubernetesStatus>>>,
    /// Who lives, and what serves: to be filled, as they decide what is believed of Kubernetes.
    pub members: watch::Sender<Arc<Members>>,
    pub verdicts: watch::Sender<Arc<Verdicts>>,
}

/// Starts what follows Kubernetes, if the file wants it.
pub fn start(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    file: &FileSource,
    checkpoint: Option<&Intent>,
) -> Wanted {
    let agent = file.intent().borrow().agent.clone();
    let (members, verdicts) =
        (watch::Sender::new(Arc::default()), watch::Sender::new(Arc::default()));
    let Some(settings) = agent.kubernetes else {
        return Wanted { intent: file.intent(), kubernetes: None, members, verdicts };
    };
    let clock = || unix_ms(std::time::SystemTime::now());
    let about = About { settings, node: agent.node, state_dir: agent.state_dir, clock };
    let inlets = Inlets {
        file: file.intent(),
        file_status: file.status(),
        members: members.subscribe(),
        verdicts: verdicts.subscribe(),
    };
    let outlets = source::start(tasks, about, checkpoint, inlets);
    Wanted { intent: outlets.intent, kubernetes: Some(outlets.status), members, verdicts }
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
        let node = self.intent.borrow().agent.node.clone();
        loop {
            tokio::select! {
                // A sender that is gone shows as its task's end.
                _ = self.intent.wait_for(known) => return,
                _ = words.tick() => {
                    let why = status.borrow().stale.clone().unwrap_or_default();
                    tracing::warn!(node, why, "neither the file nor Kubernetes describes this node yet");
                }
            }
        }
    }
}
