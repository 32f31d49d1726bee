//! What weir is told and what it knows, in plain types: no kube, no aya, no I/O.

pub mod drains;
pub mod health;
pub mod intent;
pub mod members;
pub mod seed;

pub use drains::{Drainable, Drained, Drains, Stage, Wish};
pub use health::{Cause, Health, Target, Targets, UnixTime, Verdicts};
pub use intent::{
    AgentSettings, AnnouncePolicy, ArrivalTimes, Check, CheckKind, Cidr, ConnectSettings, Delivery,
    FrontendObject, FrontendPort, Frontends, GossipSettings, HoldDowns, HttpCheck, Intent,
    KubernetesSettings, Limits, Member, NewFlows, Node, Pool, PoolMember, Protocol, Selector,
};
pub use members::{Card, CardInterface, Life, MemberState, Members};

/// Something that cannot be served as asked. It costs only its own object, and is shown in status.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, serde::Deserialize, serde::Serialize)]
pub struct Problem {
    /// Kind and name of the object, such as `Frontend/api`.
    pub object: String,
    /// What is wrong and what would mend it.
    pub message: String,
}
