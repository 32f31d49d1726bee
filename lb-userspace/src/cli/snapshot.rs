//! What the pinned maps held at one moment, in plain types. Views are made from it without I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use lb_common::{
    arrival::{Arrival, ArrivalKey, Tick},
    backend::BackendId,
    reason::{Counter, Reason},
};
use serde::{Serialize, Serializer};

use crate::{
    model::{Cidr, Protocol},
    report::status::{AgentStatus, FrontendStatus},
};

/// Address, port and protocol of a frontend, as `192.0.2.1:443/tcp` or `[2001:db8::1]:53/udp`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Door {
    pub address: SocketAddr,
    pub protocol: Protocol,
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, protocol_word(self.protocol))
    }
}

pub fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

impl FromStr for Door {
    type Err = String;

    /// The protocol may be left out: TCP.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((address, word)) if word.eq_ignore_ascii_case("tcp") => (address, Protocol::Tcp),
            Some((address, word)) if word.eq_ignore_ascii_case("udp") => (address, Protocol::Udp),
            Some((_, word)) => return Err(format!("protocol {word:?}: must be tcp or udp")),
        };
        let address = address.parse().map_err(
            |_| "must be ADDRESS:PORT[/tcp|/udp], an IPv6 address in brackets: [2001:db8::1]:443",
        )?;
        Ok(Self { address, protocol })
    }
}

impl Serialize for Door {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Age of a heartbeat beyond which the agent counts as dead (docs/architecture.md, "mute").
pub const SILENCE_MS: u64 = 5_000;

/// Whose word an answer is, and how old: what an agent's file says, and its maps cannot.
#[derive(Clone, Debug, Serialize)]
pub struct Account {
    /// The node whose view it is.
    pub node: String,
    /// Its agent lives, so that this is of now.
    pub agent_alive: bool,
    /// Age of the file; what is said is as old.
    pub age_ms: u64,
}

impl Account {
    pub fn text(&self) -> String {
        let (node, age) = (&self.node, super::output::span(self.age_ms));
        match self.agent_alive {
            true => format!("as {node} saw it {age} ago\n"),
            false => format!("the agent of {node} is DEAD: this is what it saw {age} ago\n"),
        }
    }
}

/// One look at the maps.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Age of the agent's last heartbeat in ms; none since the maps were made.
    pub heartbeat_ms: Option<u64>,
    /// CLOCK_MONOTONIC in ns, by which arrivals are told.
    pub now: u64,
    pub vips: BTreeMap<IpAddr, Vip>,
    pub frontends: BTreeMap<Door, Frontend>,
    pub backends: BTreeMap<BackendId, Backend>,
    /// Tunnel address of each node by index; 0, this node, is not listed.
    pub nodes: BTreeMap<u32, IpAddr>,
    pub uplinks: Vec<String>,
    /// Largest MSS that fits the tunnel, IPv4 and IPv6; 0: not clamped.
    pub mss: (u64, u64),
    pub reasons: Vec<(Reason, Counter)>,
}

impl Snapshot {
    /// Whether the agent beats.
    pub fn agent_alive(&self) -> bool {
        self.heartbeat_ms.is_some_and(|age| age <= SILENCE_MS)
    }
}

#[derive(Clone, Debug, Default)]
pub struct Vip {
    /// Interface on which this node announces it.
    pub announced_on: Option<String>,
    pub echo: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Frontend {
    /// Index into `SERVICES`.
    pub service: u32,
    pub slots: u32,
    /// `lb_common::service::flags`.
    pub flags: u32,
    /// Slots owned by each backend; [`BackendId::NONE`] where nobody owns them. Empty: no backends.
    pub owned: BTreeMap<BackendId, u32>,
    /// Networks whose clients it takes; none: everybody's.
    pub ranges: Option<BTreeSet<Cidr>>,
    pub counter: Counter,
}

impl Frontend {
    /// Backends that own at least one slot.
    pub fn owners(&self) -> impl Iterator<Item = (BackendId, u32)> + '_ {
        self.owned.iter().map(|(id, slots)| (*id, *slots)).filter(|(id, _)| *id != BackendId::NONE)
    }
}

#[derive(Clone, Debug)]
pub struct Backend {
    pub address: SocketAddr,
    /// Index of its node; 0: this one.
    pub node: u32,
    /// Of its node: `lb_common::hop::flags`.
    pub flags: u32,
    pub counter: Counter,
}

/// Which memory a flow is in.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    Opening,
    Established,
    Datagrams,
}

impl Memory {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Datagrams => "datagrams",
        }
    }
}

/// Half the range of the clock of arrivals (26 days): what seems older is newer.
const LONGEST_AGE_NS: u64 = 1 << 51;

/// One remembered flow, as the map holds it.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub memory: Memory,
    pub key: ArrivalKey,
    pub value: Arrival,
}

impl Flow {
    pub fn client(&self) -> SocketAddr {
        SocketAddr::new(self.key.client.to_ip(), self.key.client_port.get())
    }

    /// Since the last packet that was noted, at `now` in ns of CLOCK_MONOTONIC. One that was noted
    /// after `now` was read is of age 0.
    pub fn age_ms(&self, now: u64) -> u64 {
        let age = Tick::from_nanos(now).since(self.value.last_seen());
        if age > LONGEST_AGE_NS { 0 } else { age / 1_000_000 }
    }
}

/// The maps and, where there is one, the agent's own account, which adds names and weights.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    pub maps: &'a Snapshot,
    pub agent: Option<&'a AgentStatus>,
}

impl<'a> Sight<'a> {
    /// Name of a node, its address where no name is known.
    pub fn node_name(&self, index: u32) -> String {
        let unnamed = || self.agent.map_or("this node", |agent| agent.node.as_str()).to_owned();
        if index == 0 {
            return unnamed();
        }
        let Some(address) = self.maps.nodes.get(&index) else { return format!("node {index}") };
        let members = self.agent.map_or(&[][..], |agent| &agent.members);
        match members.iter().find(|member| member.addresses.contains(address)) {
            Some(member) => member.node.clone(),
            None => address.to_string(),
        }
    }

    /// Address of a backend, `gone` where that life is over.
    pub fn backend_name(&self, id: BackendId) -> String {
        match self.maps.backends.get(&id) {
            Some(backend) => backend.address.to_string(),
            None => format!("gone ({})", id.0),
        }
    }

    /// The frontend as planned.
    pub fn planned(&self, door: Door) -> Option<&'a FrontendStatus> {
        self.agent?.frontends.iter().find(|planned| {
            SocketAddr::new(planned.address, planned.port) == door.address
                && planned.protocol == door.protocol
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doors_are_read_and_written_in_one_form() {
        for (text, written) in [
            ("192.0.2.1:443", "192.0.2.1:443/tcp"),
            ("192.0.2.1:53/UDP", "192.0.2.1:53/udp"),
            ("[2001:db8::1]:443/tcp", "[2001:db8::1]:443/tcp"),
        ] {
            assert_eq!(text.parse::<Door>().unwrap().to_string(), written);
        }
    }

    #[test]
    fn what_is_no_door_is_refused_with_the_form_that_is_allowed() {
        for (text, part) in [
            ("192.0.2.1", "ADDRESS:PORT"),
            ("2001:db8::1:443", "brackets"),
            ("192.0.2.1:70000", "ADDRESS:PORT"),
            ("192.0.2.1:443/sctp", "tcp or udp"),
            ("name:443", "ADDRESS:PORT"),
            ("", "ADDRESS:PORT"),
        ] {
            let error = text.parse::<Door>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
