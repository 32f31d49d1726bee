//! `weir vips`: VIPs and their frontends. Pure.

use std::{collections::BTreeSet, net::IpAddr};

use clap::Args;
use lb_common::service::flags;
use serde::Serialize;

use super::{
    args::Output,
    output::{View, or_dash, table},
    snapshot::{Sight, protocol_word},
};
use crate::model::Cidr;

#[derive(Args, Debug)]
pub struct VipsArgs {
    /// Explain who announces each VIP, or this one, and why
    #[arg(long, value_name = "VIP", num_args = 0..=1)]
    pub why: Option<Option<IpAddr>>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Serialize)]
pub struct Vips {
    vips: Vec<VipRow>,
}

#[derive(Debug, Serialize)]
struct VipRow {
    address: IpAddr,
    /// Interface on which this node answers for it.
    announced_on: Option<String>,
    /// Node that announces it by the agent's plan.
    announcer: Option<String>,
    echo: bool,
    frontends: Vec<FrontendRow>,
}

#[derive(Debug, Serialize)]
struct FrontendRow {
    port: u16,
    protocol: &'static str,
    object: Option<String>,
    service: u32,
    slots: u32,
    /// Backends that own slots.
    owners: usize,
    flags: Vec<&'static str>,
    /// Networks whose clients it takes; null: everybody's.
    source_ranges: Option<BTreeSet<Cidr>>,
    packets: u64,
    bytes: u64,
}

impl Vips {
    pub fn new(sight: Sight<'_>) -> Self {
        let vips = sight.maps.vips.iter().map(|(address, vip)| {
            let frontends: Vec<_> =
                sight.maps.frontends.keys().filter(|door| door.address.ip() == *address).collect();
            let planned = frontends.iter().find_map(|door| sight.planned(**door));
            VipRow {
                address: *address,
                announced_on: vip.announced_on.clone(),
                announcer: planned
                    .map(|planned| planned.announcer.clone())
                    .filter(|announcer| !announcer.is_empty()),
                echo: vip.echo,
                frontends: frontends
                    .into_iter()
                    .map(|door| FrontendRow::new(sight, door))
                    .collect(),
            }
        });
        Self { vips: vips.collect() }
    }
}

impl FrontendRow {
    fn new(sight: Sight<'_>, door: &super::snapshot::Door) -> Self {
        let frontend = &sight.maps.frontends[door];
        Self {
            port: door.address.port(),
            protocol: protocol_word(door.protocol),
            object: sight.planned(*door).map(|planned| planned.object.clone()),
            service: frontend.service,
            slots: frontend.slots,
            owners: frontend.owners().count(),
            flags: flag_words(frontend.flags),
            source_ranges: frontend.ranges.clone(),
            packets: frontend.counter.packets,
            bytes: frontend.counter.bytes,
        }
    }
}

/// Names of `lb_common::service::flags`.
fn flag_words(set: u32) -> Vec<&'static str> {
    [
        (flags::YOUNG, "young"),
        (flags::ALWAYS_YOUNG, "always_young"),
        (flags::LOCAL_ONLY, "local_only"),
        (flags::CLIENT_AFFINITY, "client_affinity"),
        (flags::STATELESS, "stateless"),
    ]
    .into_iter()
    .filter(|(flag, _)| set & flag != 0)
    .map(|(_, word)| word)
    .collect()
}

impl View for Vips {
    const SCHEMA: &'static str = "weir.vips/v1";

    fn text(&self) -> String {
        if self.vips.is_empty() {
            return "no VIPs\n".into();
        }
        let rows = self.vips.iter().flat_map(|vip| {
            let announced = match (&vip.announced_on, &vip.announcer) {
                (Some(interface), _) => format!("here, on {interface}"),
                (None, Some(node)) => format!("by {node}"),
                (None, None) => "not here".into(),
            };
            let head = [vip.address.to_string(), announced];
            let none = vip.frontends.is_empty().then(|| row(&head, None));
            none.into_iter()
                .chain(vip.frontends.iter().map(move |frontend| row(&head, Some(frontend))))
        });
        table(
            ["VIP", ">PORT", "OBJECT", ">OWNERS", ">SLOTS", "ANNOUNCED", "FLAGS", ">PACKETS"],
            rows,
        )
    }
}

fn row([address, announced]: &[String; 2], frontend: Option<&FrontendRow>) -> [String; 8] {
    let restricted =
        |frontend: &FrontendRow| frontend.source_ranges.as_ref().map(|_| "source_ranges");
    let flags = |frontend: &FrontendRow| {
        let flags: Vec<_> = frontend.flags.iter().copied().chain(restricted(frontend)).collect();
        flags.join(",")
    };
    let cell = |read: fn(&FrontendRow) -> String| or_dash(&frontend.map(read).unwrap_or_default());
    [
        address.clone(),
        cell(|frontend| format!("{}/{}", frontend.port, frontend.protocol)),
        cell(|frontend| frontend.object.clone().unwrap_or_default()),
        cell(|frontend| frontend.owners.to_string()),
        cell(|frontend| frontend.slots.to_string()),
        announced.clone(),
        or_dash(&frontend.map(flags).unwrap_or_default()),
        cell(|frontend| frontend.packets.to_string()),
    ]
}
