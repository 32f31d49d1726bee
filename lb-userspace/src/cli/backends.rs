//! `weir backends`: backends, their nodes, their health and what they own. Pure.

use std::net::SocketAddr;

use lb_common::{backend::BackendId, hop::flags};
use serde::Serialize;

use super::{
    output::{View, or_dash, table},
    snapshot::{Backend, Door, Sight},
};
use crate::report::status::HealthWord;

#[derive(Debug, Serialize)]
pub struct Backends {
    backends: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    address: SocketAddr,
    /// As the maps hold it: generation and index.
    id: u32,
    node: String,
    /// Lives on this node.
    local: bool,
    /// By the last probe, while the agent lived; null: not probed at this address.
    health: Option<HealthWord>,
    /// Why the last probe failed.
    reason: Option<String>,
    flags: Vec<&'static str>,
    /// Slots that it owns, over all frontends.
    slots: u64,
    /// Frontends in which it owns slots.
    frontends: Vec<Door>,
    packets: u64,
    bytes: u64,
}

impl Backends {
    pub fn new(sight: Sight<'_>) -> Self {
        let mut backends: Vec<_> =
            sight.maps.backends.iter().map(|(id, backend)| Row::new(sight, *id, backend)).collect();
        backends.sort_by_key(|row| (row.address, row.id));
        Self { backends }
    }
}

impl Row {
    fn new(sight: Sight<'_>, id: BackendId, backend: &Backend) -> Self {
        let owned = sight.maps.frontends.iter().filter_map(|(door, frontend)| {
            frontend.owned.get(&id).map(|slots| (*door, u64::from(*slots)))
        });
        let (frontends, slots): (Vec<_>, Vec<_>) = owned.unzip();
        // Probed in several ways, it is as ill as the worst of them.
        let targets = sight.agent.map_or(&[][..], |agent| &agent.targets);
        let worst = targets.iter().filter(|target| target.address == backend.address).max_by_key(
            |target| match target.health {
                HealthWord::Up => 0,
                HealthWord::Unknown => 1,
                HealthWord::Down => 2,
            },
        );
        Self {
            address: backend.address,
            id: id.0,
            node: sight.node_name(backend.node),
            local: backend.node == 0,
            health: worst.map(|target| target.health),
            reason: worst.and_then(|target| target.reason.clone()),
            flags: flag_words(backend.flags),
            slots: slots.iter().sum(),
            frontends,
            packets: backend.counter.packets,
            bytes: backend.counter.bytes,
        }
    }
}

/// Names of `lb_common::hop::flags`.
fn flag_words(set: u32) -> Vec<&'static str> {
    [(flags::CLAIMS_ALL, "claims_all"), (flags::DEAD, "dead")]
        .into_iter()
        .filter(|(flag, _)| set & flag != 0)
        .map(|(_, word)| word)
        .collect()
}

impl View for Backends {
    const SCHEMA: &'static str = "weir.backends/v1";

    fn text(&self) -> String {
        if self.backends.is_empty() {
            return "no backends\n".into();
        }
        let rows = self.backends.iter().map(|row| {
            let health = match (row.health, &row.reason) {
                (Some(HealthWord::Up), _) => "up".into(),
                (Some(HealthWord::Unknown), _) => "unknown".into(),
                (Some(HealthWord::Down), Some(reason)) => format!("down: {reason}"),
                (Some(HealthWord::Down), None) => "down".into(),
                (None, _) => "-".into(),
            };
            [
                row.address.to_string(),
                row.node.clone() + if row.local { " (here)" } else { "" },
                row.frontends.len().to_string(),
                row.slots.to_string(),
                row.packets.to_string(),
                or_dash(&row.flags.join(",")),
                health,
            ]
        });
        table(["BACKEND", "NODE", ">FRONTENDS", ">SLOTS", ">PACKETS", "FLAGS", "HEALTH"], rows)
    }
}
