//! What is done to a node, how often, and what clients may feel of it.

use std::time::Duration;

use clap::ValueEnum;

/// Between two health checks of a backend, and failed ones in a row that take it out: of weir, and of the peers' fast
/// settings.
pub const HEALTH_INTERVAL: Duration = Duration::from_millis(100);
pub const HEALTH_FALL: u32 = 3;
/// From so many events on a 99th percentile is more than the greatest value.
pub const EVENTS_FOR_P99: usize = 200;
/// Events of the kinds that have no 99th percentile, and of all kinds at the peers.
const EVENTS: usize = 30;
const EVENTS_OF_PEERS: usize = 10;

/// An event. It hits the node that announces the VIP which the client asks; that node's pod is one of the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// The link goes down and all processes are killed
    PowerOff,
    /// The agent is killed by SIGKILL and started again at once
    AgentSigkill,
    /// The agent is stopped by SIGSTOP until the VIP has moved, then continued
    AgentSigstop,
    /// The node's switch port passes nothing in either direction; the carrier stays
    CutTwoWay,
    /// What the node sends is lost; it hears everything
    CutOneWay,
    /// The uplink goes down for 200 ms and up, five times within 3 s
    UplinkFlap,
    /// The server's process is killed: its port refuses
    BackendKilled,
    /// The server's process is stopped by SIGSTOP: its kernel accepts, nobody answers
    BackendHung,
}

impl Kind {
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// How many events the figures are to be made of.
    pub fn events(self, of_weir: bool) -> usize {
        match self {
            _ if !of_weir => EVENTS_OF_PEERS,
            Self::PowerOff | Self::BackendKilled => EVENTS_FOR_P99,
            _ => EVENTS,
        }
    }

    /// What clients may feel of it, at weir; None: printed without a goal.
    pub fn goal(self) -> Option<Goal> {
        match self {
            Self::PowerOff => Some(Goal::Within(Duration::from_secs(1))),
            Self::BackendKilled => {
                Some(Goal::Within(HEALTH_INTERVAL * HEALTH_FALL + Duration::from_millis(100)))
            }
            Self::AgentSigkill => Some(Goal::Nothing),
            Self::AgentSigstop => Some(Goal::OnlyAtMove),
            _ => None,
        }
    }

    /// The event goes on for so long by itself.
    pub fn lasts(self) -> Duration {
        match self {
            Self::UplinkFlap => Duration::from_secs(3),
            _ => Duration::ZERO,
        }
    }

    /// Only one backend is hit: requests to the others go on, so it takes more of them to see when the last one fails.
    pub fn hits_one_backend(self) -> bool {
        matches!(self, Self::BackendKilled | Self::BackendHung)
    }
}

/// What clients may feel of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The 99th percentile of the start of the last request that failed.
    Within(Duration),
    /// No request fails, of any event.
    Nothing,
    /// Requests fail only close to the moment at which the VIP moved, of any event.
    OnlyAtMove,
}
