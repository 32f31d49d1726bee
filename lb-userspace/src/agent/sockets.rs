//! Has sockets on this node ended whose backend died: when somebody died, and once more for those that
//! were being connected meanwhile.
//!
//! Goes by what the data plane holds already, so that whoever connects anew gets another backend.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    dataplane::sockets::{Ended, Sockets},
    model::{Health, Intent, Life, Members, Verdicts},
    plan::{FrontendKey, gone::is_gone},
    watched::Watched as _,
};

/// From a look to the one for sockets that were being connected meanwhile.
const AGAIN: Duration = Duration::from_secs(1);

/// What tells who is gone.
#[derive(Clone, Default)]
pub struct View {
    /// None: nothing was applied yet.
    pub intent: Option<Arc<Intent>>,
    pub members: Arc<Members>,
    pub verdicts: Arc<Verdicts>,
}

impl View {
    /// Takes the later view's place by it. Returns whether somebody died in between.
    pub fn replace(&mut self, later: Self) -> bool {
        let died = later.dead().any(|name| !self.dead().any(|known| known == name))
            || later
                .verdicts
                .since(self.verdicts.turn())
                .any(|target| matches!(later.verdicts.get(target), Some(Health::Down(_))));
        *self = later;
        died
    }

    fn dead(&self) -> impl Iterator<Item = &str> {
        let nodes = self.members.nodes.iter();
        nodes.filter(|(_, node)| node.life == Life::Dead).map(|(name, _)| name.as_str())
    }

    fn is_gone(&self, frontend: &FrontendKey, backend: SocketAddr) -> bool {
        let Some(intent) = &self.intent else { return false };
        is_gone(intent, &self.members, &self.verdicts, frontend, backend)
    }
}

/// Runs until the sender is gone.
pub async fn run(mut sockets: Sockets, mut views: watch::Receiver<View>) {
    let (mut closed, mut again) = (0, None);
    loop {
        let died = match again {
            Some(at) => timeout_at(at, views.changed()).await,
            None => Ok(views.changed().await),
        };
        again = match died {
            Ok(Ok(())) => Some(Instant::now() + AGAIN),
            Ok(Err(_)) => return,
            Err(_) => None,
        };
        let view = views.copy_and_update();
        let look = tokio::task::spawn_blocking(move || {
            let ended = sockets.end(&|frontend, backend| view.is_gone(frontend, backend));
            (sockets, ended)
        });
        let Ok((back, ended)) = look.await else {
            tracing::error!("sockets to dead backends are ended no more: a look panicked");
            return std::future::pending().await;
        };
        sockets = back;
        match ended {
            Ok(ended) => closed = tell(ended, closed),
            Err(error) => tracing::error!(%error, "sockets to dead backends cannot be ended"),
        }
    }
}

/// Returns how many namespaces could not be looked into.
fn tell(ended: Ended, closed: usize) -> usize {
    let Ended { sockets, choices, namespaces, .. } = ended;
    if sockets + choices > 0 {
        tracing::info!(sockets, choices, namespaces, "sockets to dead backends ended");
    }
    if ended.closed > closed {
        let closed = ended.closed;
        tracing::warn!(
            closed,
            "network namespaces of pods cannot be looked into: their sockets to dead backends stay"
        );
    }
    ended.closed
}
