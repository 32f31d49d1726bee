//! The configuration file as a source: publishes its [`Intent`], again whenever the file changes.
//!
//! A file that is bad, or that asks for what a running agent cannot change, never replaces the
//! state before it: the old one stays in force as a whole, and the log and [`SourceStatus`] say so
//! until the file is right.
//!
//! An agent that starts with a bad file serves from a [`Checkpoint`] until the file is right; the same where
//! the file asks for what crashed the agent before, until it asks for something else or SIGHUP insists.
//!
//! The text itself is compared, and that of the files of secrets which it names, so it does not
//! matter how a file is replaced: in place, by rename, or by the symbolic links of a ConfigMap.

use std::{
    collections::BTreeMap,
    fs, future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tracing::{error, info, warn};

use super::{
    Stale,
    checkpoint::{Checkpoint, Digest},
    trust::Trust,
};
use crate::{
    config::{self, Beside, ConfigErrors, Overrides},
    model::{AgentSettings, FrontendObject, Intent},
    watched::Watched as _,
};

/// How often the file is looked at. A change counts once it was seen twice: a file that is being
/// written may by chance be valid halfway.
pub const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// What status shows of the file.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
pub struct SourceStatus {
    /// What is in force is what the file says.
    pub ok: bool,
    /// Why not, one sentence each.
    pub problems: Vec<String>,
    /// When the state in force was read.
    pub loaded_at: std::time::SystemTime,
    /// Set while a checkpoint is in force.
    pub stale: Option<Stale>,
}

/// The file as it was at one moment.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Look {
    /// Or why it could not be read.
    text: Result<String, ConfigErrors>,
    /// The files of secrets that the judged text names.
    beside: Beside,
}

/// The file at the agent's start, read once.
#[derive(Debug)]
pub struct FirstLook {
    path: PathBuf,
    overrides: Overrides,
    look: Look,
    read: Result<Intent, ConfigErrors>,
}

impl FirstLook {
    pub fn new(path: PathBuf, overrides: Overrides) -> Self {
        let text = config::read_text(&path);
        let (read, beside) = read(&path, &text, &overrides);
        Self { path, overrides, look: Look { text, beside }, read }
    }

    /// What the file asks for.
    ///
    /// # Errors
    /// Every problem of the file.
    pub fn intent(&self) -> Result<&Intent, &ConfigErrors> {
        self.read.as_ref()
    }

    /// The state directory by what can be told of a file that may be bad.
    pub fn state_dir(&self) -> PathBuf {
        match (&self.read, &self.overrides.state_dir) {
            (_, Some(given)) => given.clone(),
            (Ok(intent), None) => intent.agent.state_dir.clone(),
            (Err(_), None) => {
                config::likely_state_dir(self.look.text.as_deref().unwrap_or_default())
            }
        }
    }
}

fn read(
    path: &Path,
    text: &Result<String, ConfigErrors>,
    overrides: &Overrides,
) -> (Result<Intent, ConfigErrors>, Beside) {
    match text {
        Ok(text) => config::parse_with(path, text, overrides),
        Err(errors) => (Err(errors.clone()), Beside::new()),
    }
}

/// Watches one file and those that it names. The agent opens it, takes the receivers and then runs it.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    overrides: Overrides,
    clock: fn() -> std::time::SystemTime,
    /// What was judged last.
    judged: Look,
    /// Seen once, and not judged yet.
    fresh: Option<Look>,
    /// Knows what the file must not bring into force, and is told what it does.
    trust: Option<Arc<Mutex<Trust>>>,
    intent: watch::Sender<Arc<Intent>>,
    status: watch::Sender<SourceStatus>,
}

impl FileSource {
    /// Starts with what the file says. `clock` is asked for `loaded_at`.
    ///
    /// # Errors
    /// Every problem of the file: an agent without any state has nothing to keep.
    pub fn live(
        first: FirstLook,
        trust: Option<Arc<Mutex<Trust>>>,
        clock: fn() -> std::time::SystemTime,
    ) -> Result<Self, ConfigErrors> {
        let FirstLook { path, overrides, look, read } = first;
        let intent = watch::Sender::new(Arc::new(read?));
        let (ok, problems) = (true, Vec::new());
        let status = SourceStatus { ok, problems, loaded_at: clock(), stale: None };
        let status = watch::Sender::new(status);
        Ok(Self { path, overrides, clock, judged: look, fresh: None, trust, intent, status })
    }

    /// Starts with a checkpoint, as the file is bad, or `trust` has a reason to suspect what it asks for.
    /// What the command line says instead of the file holds for the checkpoint too.
    pub fn from_checkpoint(
        first: FirstLook,
        checkpoint: Checkpoint,
        trust: Arc<Mutex<Trust>>,
        clock: fn() -> std::time::SystemTime,
    ) -> Self {
        let state_dir = first.state_dir();
        let FirstLook { path, overrides, look, read } = first;
        let Checkpoint { file, mut intent, written_ms, .. } = checkpoint;
        intent.agent.state_dir = state_dir;
        if let Some(pin_dir) = &overrides.pin_dir {
            intent.agent.pin_dir.clone_from(pin_dir);
        }
        let (why, problems) = match read {
            Err(errors) => {
                let fix = "mend it, and it comes into force at once";
                let why = format!("{} cannot be used: {fix}", path.display());
                (why, errors.lines().collect::<Vec<_>>())
            }
            Ok(_) => (suspicion(&path), vec![suspicion(&path)]),
        };
        for problem in &problems {
            error!(%problem, checkpoint = %file.display(), "the agent serves from a checkpoint");
        }
        let stale = Some(Stale { why, checkpoint: file, written_ms });
        let status = SourceStatus { ok: false, problems, loaded_at: clock(), stale };
        let intent = watch::Sender::new(Arc::new(intent));
        let (status, trust) = (watch::Sender::new(status), Some(trust));
        Self { path, overrides, clock, judged: look, fresh: None, trust, intent, status }
    }

    pub fn intent(&self) -> watch::Receiver<Arc<Intent>> {
        self.intent.subscribe()
    }

    pub fn status(&self) -> watch::Receiver<SourceStatus> {
        self.status.subscribe()
    }

    /// Watches for ever: every [`POLL_INTERVAL`], and at once on SIGHUP. Ends only by being dropped.
    pub async fn run(mut self) {
        let mut hangups = match signal(SignalKind::hangup()) {
            Ok(signal) => Some(signal),
            Err(error) => {
                warn!(%error, "SIGHUP will not reload the configuration");
                None
            }
        };
        let mut ticks = interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.poll(),
                () = hangup(&mut hangups) => self.reload(),
            }
        }
    }

    /// One look at the file; judges a change that it sees for the second time.
    pub fn poll(&mut self) {
        let named = self.judged.beside.keys();
        let look = Look {
            text: config::read_text(&self.path),
            beside: named.map(|file| (file.clone(), fs::read_to_string(file).ok())).collect(),
        };
        if look == self.judged {
            self.fresh = None;
        } else if self.fresh.as_ref() == Some(&look) {
            self.judge(look.text, false);
        } else {
            self.fresh = Some(look);
        }
    }

    /// Judges the file as it is now, changed or not, suspected or not.
    pub fn reload(&mut self) {
        self.judge(config::read_text(&self.path), true);
    }

    /// `insists`: an administrator wants it.
    fn judge(&mut self, text: Result<String, ConfigErrors>, insists: bool) {
        self.fresh = None;
        let (read, beside) = read(&self.path, &text, &self.overrides);
        self.judged = Look { text, beside };
        let read = match read {
            Ok(intent) if !insists && self.suspects(&intent) => {
                self.refuse(vec![suspicion(&self.path)]);
                return;
            }
            read => read,
        };
        let asked = read.as_ref().ok().and_then(|intent| Digest::of(intent).ok());
        let old = self.intent.copy();
        let succeeded = read
            .map_err(|errors| errors.lines().collect())
            .and_then(|new| succeed(&old, new).map_err(|problems| self.named(problems)));
        match succeeded {
            Ok((intent, restarts)) => {
                let problems = self.named(restarts);
                for problem in &problems {
                    warn!(%problem, "part of the new configuration is not in force");
                }
                let changed = *old != intent;
                // What waits for a restart was not tried.
                let tried = match problems.is_empty() {
                    true => asked,
                    false => Digest::of(&intent).ok(),
                };
                info!(file = %self.path.display(), changed, "configuration loaded");
                if let Some(trust) = &self.trust
                    && let Some(tried) = tried
                {
                    // Before it can do any harm.
                    trust.lock().unwrap_or_else(PoisonError::into_inner).tries(tried);
                }
                if changed {
                    self.intent.send_replace(Arc::new(intent));
                }
                let ok = problems.is_empty();
                let loaded_at = (self.clock)();
                self.status.send_replace(SourceStatus { ok, problems, loaded_at, stale: None });
            }
            Err(problems) => self.refuse(problems),
        }
    }

    /// What is in force stays.
    fn refuse(&self, problems: Vec<String>) {
        for problem in &problems {
            error!(%problem, "the new configuration is refused; the former stays in force");
        }
        self.status.send_modify(|status| {
            status.ok = false;
            status.problems = problems;
        });
    }

    /// Whether it is what crashed the agent.
    fn suspects(&self, intent: &Intent) -> bool {
        let trust = self.trust.as_ref().map(|it| it.lock().unwrap_or_else(PoisonError::into_inner));
        let distrusted = trust.and_then(|trust| trust.distrusted());
        distrusted.is_some_and(|it| Digest::of(intent).is_ok_and(|digest| digest == it))
    }

    fn named(&self, problems: Vec<String>) -> Vec<String> {
        problems.iter().map(|problem| format!("{}: {problem}", self.path.display())).collect()
    }
}

fn suspicion(path: &Path) -> String {
    let crashes = super::trust::CRASHES;
    format!(
        "{} asks for what the agent crashed with, {crashes} times within a minute: change it, or send the \
         agent SIGHUP to try it once more",
        path.display()
    )
}

async fn hangup(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => match signal.recv().await {
            Some(()) => (),
            None => future::pending().await,
        },
        None => future::pending().await,
    }
}

/// What follows the state in force when a valid new one comes: the state to publish, and what of it
/// waits for a restart.
///
/// # Errors
/// What a running agent cannot do at all; then nothing of the new state is taken.
fn succeed(old: &Intent, mut new: Intent) -> Result<(Intent, Vec<String>), Vec<String>> {
    keep_slots(old, &mut new)?;
    let restarts = changed_settings(&old.agent, &new.agent)
        .into_iter()
        .map(|field| {
            format!(
                "Agent spec.{field} changed, which needs a restart; the former value is in force"
            )
        })
        .collect();
    new.agent = keep_settings(&old.agent, new.agent);
    Ok((new, restarts))
}

/// The old settings with those of the new ones that may change while the agent runs.
fn keep_settings(old: &AgentSettings, new: AgentSettings) -> AgentSettings {
    let mut kept = AgentSettings {
        default_slots: new.default_slots,
        announce_interfaces: new.announce_interfaces,
        ..old.clone()
    };
    // A key may follow from the seed, and then waits with it.
    if new.seed == old.seed {
        kept.gossip.keys = new.gossip.keys;
    }
    kept
}

/// A frontend's slots are fixed for its life: those that exist and name none keep what they have,
/// whatever the default is now.
fn keep_slots(old: &Intent, new: &mut Intent) -> Result<(), Vec<String>> {
    let mut known: BTreeMap<_, u32> = BTreeMap::new();
    for object in old.frontends.values() {
        known.extend(object.keys().map(|key| (key, old.slots(object))));
    }
    let mut problems = Vec::new();
    let default = new.agent.default_slots;
    let mut settled = Vec::new();
    for (name, object) in &new.frontends {
        let mut kept: Vec<u32> = object.keys().filter_map(|key| known.get(&key).copied()).collect();
        kept.sort_unstable();
        kept.dedup();
        let wanted = object.slots.or(kept.first().copied()).unwrap_or(default);
        match kept.iter().find(|slots| **slots != wanted) {
            Some(had) => problems.push(format!(
                "Frontend/{} spec.slots: {wanted} slots instead of {had}; the number is fixed for \
                 a frontend's life: put it back, or remove the frontend and make it anew",
                object.name
            )),
            None if kept.is_empty() || object.slots == Some(wanted) => {}
            None => {
                let object = FrontendObject { slots: Some(wanted), ..(**object).clone() };
                settled.push((name.clone(), Arc::new(object)));
            }
        }
    }
    new.frontends.extend(settled);
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// Names, as in the file, of the settings that differ and need a restart.
fn changed_settings(old: &AgentSettings, new: &AgentSettings) -> Vec<&'static str> {
    // Taken apart, so that a new setting cannot be forgotten here.
    let AgentSettings {
        node,
        uplinks,
        egress_devices,
        tunnel_port,
        vni,
        seed,
        default_slots: _,
        pin_dir,
        state_dir,
        limits,
        peer_interval,
        peer_fall,
        peer_rise,
        gossip,
        hold_downs,
        arrivals,
        new_flows,
        connect,
        announce_interfaces: _,
        gateways,
        kubernetes,
    } = new;
    let peers = (peer_interval, peer_fall, peer_rise);
    [
        ("node", *node != old.node),
        ("uplinks", *uplinks != old.uplinks),
        ("egressDevices", *egress_devices != old.egress_devices),
        ("tunnelPort", *tunnel_port != old.tunnel_port),
        ("vni", *vni != old.vni),
        ("seed", *seed != old.seed),
        ("pinDir", *pin_dir != old.pin_dir),
        ("stateDir", *state_dir != old.state_dir),
        ("limits", *limits != old.limits),
        ("peers", peers != (&old.peer_interval, &old.peer_fall, &old.peer_rise)),
        ("connect", *connect != old.connect),
        ("newFlows", *new_flows != old.new_flows),
        ("gossip.port", gossip.port != old.gossip.port),
        ("gossip.seeds", gossip.seeds != old.gossip.seeds),
        ("holdDowns", *hold_downs != old.hold_downs),
        ("arrivals", *arrivals != old.arrivals),
        ("announce.gateways", *gateways != old.gateways),
        ("kubernetes", *kubernetes != old.kubernetes),
    ]
    .into_iter()
    .filter_map(|(name, changed)| changed.then_some(name))
    .collect()
}

#[cfg(test)]
mod tests;
