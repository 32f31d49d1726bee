//! `weir arrivals`: the flows that this node remembers. Pure beside its arguments.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use clap::Args;
use lb_common::arrival::flags;
use serde::Serialize;

use super::{
    args::Output,
    output::{View, or_dash, span, table},
    snapshot::{Door, Flow, Memory, Sight, Snapshot},
};

/// Rows shown unless `--limit` says otherwise.
const DEFAULT_LIMIT: usize = 50;

#[derive(Args, Debug)]
pub struct ArrivalsArgs {
    /// Only flows of this backend
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub backend: Option<Peer>,
    /// Only flows of this client
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub client: Option<Peer>,
    /// At most this many, the latest first; 0: all
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT)]
    pub limit: usize,
    #[command(flatten)]
    pub output: Output,
}

/// An address with any port or with one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Peer {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for Peer {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(both) = text.parse::<SocketAddr>() {
            return Ok(Self { address: both.ip(), port: Some(both.port()) });
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let address = bare.parse().map_err(
            |_| "must be ADDRESS or ADDRESS:PORT, an IPv6 address with a port in brackets",
        )?;
        Ok(Self { address, port: None })
    }
}

impl Peer {
    fn matches(self, found: SocketAddr) -> bool {
        self.address == found.ip() && self.port.is_none_or(|port| port == found.port())
    }
}

/// Which flows to keep while the maps are read, so that a full map need not be held.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    pub backend: Option<Peer>,
    pub client: Option<Peer>,
}

impl Filter {
    pub fn keeps(&self, maps: &Snapshot, flow: &Flow) -> bool {
        let of_backend = |wanted: Peer| {
            maps.backends.get(&flow.key.backend).is_some_and(|found| wanted.matches(found.address))
        };
        self.client.is_none_or(|wanted| wanted.matches(flow.client()))
            && self.backend.is_none_or(of_backend)
    }
}

#[derive(Debug, Serialize)]
pub struct Arrivals {
    /// Flows that the filters keep; more than are listed where a limit cut them.
    total: usize,
    arrivals: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    map: Memory,
    client: SocketAddr,
    /// Null where the service has gone.
    frontend: Option<Door>,
    backend: String,
    /// As the maps hold it.
    backend_id: u32,
    flags: Vec<&'static str>,
    /// Since the last packet that was noted, in steps of 268 ms.
    age_ms: u64,
}

impl Arrivals {
    /// `limit` 0 lists all.
    pub fn new(sight: Sight<'_>, mut flows: Vec<Flow>, limit: usize) -> Self {
        let now = sight.maps.now;
        let total = flows.len();
        flows.sort_by_cached_key(|flow| {
            (flow.age_ms(now), flow.client(), flow.key.backend, flow.memory)
        });
        if limit > 0 {
            flows.truncate(limit);
        }
        Self { total, arrivals: flows.iter().map(|flow| Row::new(sight, flow)).collect() }
    }
}

impl Row {
    fn new(sight: Sight<'_>, flow: &Flow) -> Self {
        let doors = &sight.maps.frontends;
        Self {
            map: flow.memory,
            client: flow.client(),
            frontend: doors
                .iter()
                .find(|(_, frontend)| frontend.service == flow.value.service)
                .map(|(door, _)| *door),
            backend: sight.backend_name(flow.key.backend),
            backend_id: flow.key.backend.0,
            flags: flag_words(flow.value.flags()),
            age_ms: flow.age_ms(sight.maps.now),
        }
    }
}

/// Names of `lb_common::arrival::flags`.
fn flag_words(set: u32) -> Vec<&'static str> {
    [
        (flags::CLIENT_FIN, "client_fin"),
        (flags::BACKEND_FIN, "backend_fin"),
        (flags::BACKEND_RST, "backend_rst"),
        (flags::BACKEND_SPOKE, "backend_spoke"),
    ]
    .into_iter()
    .filter(|(flag, _)| set & flag != 0)
    .map(|(_, word)| word)
    .collect()
}

impl View for Arrivals {
    const SCHEMA: &'static str = "weir.arrivals/v1";

    fn text(&self) -> String {
        if self.arrivals.is_empty() {
            return "no arrivals\n".into();
        }
        let rows = self.arrivals.iter().map(|row| {
            [
                row.client.to_string(),
                row.frontend.map_or_else(|| "gone".into(), |door| door.to_string()),
                row.backend.clone(),
                row.map.word().into(),
                span(row.age_ms),
                or_dash(&row.flags.join(",")),
            ]
        });
        let mut text = table(["CLIENT", "FRONTEND", "BACKEND", "MAP", ">AGE", "FLAGS"], rows);
        if self.total > self.arrivals.len() {
            text += &format!("\n{} of {}; --limit 0 lists all\n", self.arrivals.len(), self.total);
        }
        text
    }
}
