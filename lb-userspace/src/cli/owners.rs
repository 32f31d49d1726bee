//! `weir owners`: who owns a frontend's slots, and how fairly. Pure beside its arguments.

use std::collections::BTreeMap;

use clap::Args;
use lb_common::backend::BackendId;
use serde::Serialize;

use super::{
    args::Output,
    output::{View, percent, table},
    snapshot::{Door, Sight},
};

#[derive(Args, Debug)]
pub struct OwnersArgs {
    /// The frontend; without a protocol TCP. IPv6: [ADDRESS]:PORT
    #[arg(value_name = "VIP:PORT[/PROTO]")]
    pub frontend: Door,
    /// List every slot with its owner
    #[arg(long)]
    pub slots: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Serialize)]
pub struct Owners {
    frontend: Door,
    slots: u32,
    /// Slots that nobody owns.
    unowned: u32,
    /// The fair shares follow the weights of the agent's last plan; else all weigh the same.
    weights_known: bool,
    owners: Vec<Row>,
    /// Owner of each slot, with `--slots`.
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<Vec<Option<String>>>,
}

#[derive(Debug, Serialize)]
struct Row {
    backend: String,
    node: String,
    slots: u32,
    /// Of all slots, 0 to 1.
    share: f64,
    fair_share: f64,
    weight: Option<u16>,
}

impl Owners {
    /// `owners` has one id a slot, or none at all where there are no backends. `None`: no such
    /// frontend.
    pub fn new(sight: Sight<'_>, door: Door, owners: &[BackendId], list: bool) -> Option<Self> {
        let frontend = sight.maps.frontends.get(&door)?;
        let mut counts: BTreeMap<BackendId, u32> = BTreeMap::new();
        for id in owners {
            *counts.entry(*id).or_default() += 1;
        }
        let missing = frontend.slots.saturating_sub(owners.len() as u32);
        let unowned = counts.remove(&BackendId::NONE).unwrap_or_default() + missing;
        let (rows, weights_known) = rows(sight, door, &counts, frontend.slots);
        let name = |id: &BackendId| (*id != BackendId::NONE).then(|| sight.backend_name(*id));
        Some(Self {
            frontend: door,
            slots: frontend.slots,
            unowned,
            weights_known,
            owners: rows,
            table: list.then(|| owners.iter().map(name).collect()),
        })
    }
}

/// A row for each owner and for each backend that should own something.
fn rows(
    sight: Sight<'_>,
    door: Door,
    counts: &BTreeMap<BackendId, u32>,
    slots: u32,
) -> (Vec<Row>, bool) {
    let planned = sight.planned(door).map(|planned| &planned.weights);
    let ids: Vec<_> = counts
        .keys()
        .copied()
        .chain(sight.maps.backends.iter().filter_map(|(id, backend)| {
            let planned = planned.is_some_and(|weights| weights.contains_key(&backend.address));
            (planned && !counts.contains_key(id)).then_some(*id)
        }))
        .collect();
    let weight = |id: BackendId| {
        let backend = sight.maps.backends.get(&id)?;
        planned?.get(&backend.address).copied()
    };
    // A plan that does not know an owner is not the plan of this table.
    let known = !ids.is_empty() && ids.iter().all(|id| weight(*id).is_some());
    let weight = |id| if known { weight(id) } else { None };
    let total: f64 = ids.iter().map(|id| f64::from(weight(*id).unwrap_or(1))).sum();
    let mut rows: Vec<_> = ids
        .iter()
        .map(|id| {
            let owned = counts.get(id).copied().unwrap_or_default();
            Row {
                backend: sight.backend_name(*id),
                node: sight
                    .maps
                    .backends
                    .get(id)
                    .map_or_else(|| "-".into(), |backend| sight.node_name(backend.node)),
                slots: owned,
                share: f64::from(owned) / f64::from(slots.max(1)),
                fair_share: f64::from(weight(*id).unwrap_or(1)) / total,
                weight: weight(*id),
            }
        })
        .collect();
    rows.sort_by(|a, b| a.backend.cmp(&b.backend));
    (rows, known)
}

impl View for Owners {
    const SCHEMA: &'static str = "weir.owners/v1";

    fn text(&self) -> String {
        if let Some(slots) = &self.table {
            let line = |(slot, owner): (usize, &Option<String>)| {
                format!("{slot:>5}  {}\n", owner.as_deref().unwrap_or("-"))
            };
            return slots.iter().enumerate().map(line).collect();
        }
        let mut text =
            format!("{}: {} slots, {} without owner\n", self.frontend, self.slots, self.unowned);
        if self.owners.is_empty() {
            return text + "no backend owns a slot: clients are refused\n";
        }
        text += "\n";
        text += &table(
            ["BACKEND", "NODE", ">WEIGHT", ">SLOTS", ">SHARE", ">FAIR", ">OFF"],
            self.owners.iter().map(|row| {
                [
                    row.backend.clone(),
                    row.node.clone(),
                    row.weight.map_or_else(|| "-".into(), |weight| weight.to_string()),
                    row.slots.to_string(),
                    percent(row.share),
                    percent(row.fair_share),
                    format!("{:+.1} %", (row.share / row.fair_share - 1.0) * 100.0),
                ]
            }),
        );
        if !self.weights_known {
            text += "\nno weights known (no agent's plan of this table): equal ones assumed\n";
        }
        text
    }
}
