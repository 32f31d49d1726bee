//! What a Service's conditions and Events say.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use super::{Note, ServiceObject};
use crate::addresses::{Assignment, Refusal};

/// Something is still being set up; False: all is done, or nothing more can be (KEP-4631).
pub const PROVISIONING: &str = "LoadBalancerProvisioning";

/// Clients are served (KEP-4631).
pub const SERVING: &str = "LoadBalancerServing";

/// Some ports are not served (KEP-1435).
pub const PORTS_ERROR: &str = "LoadBalancerPortsError";

/// The address stays although today's rules would not give it.
pub const KEPT: &str = "weir.dev/AddressKept";

/// Ours, in the order in which they are written.
pub const TYPES: [&str; 4] = [PROVISIONING, SERVING, PORTS_ERROR, KEPT];

/// Times are filled in by the caller.
pub fn conditions(
    service: &ServiceObject,
    assignment: &Assignment,
    served: &BTreeSet<IpAddr>,
) -> Vec<Condition> {
    let addresses: Vec<IpAddr> = assignment.addresses.iter().map(|it| it.address).collect();
    let refused = join(&assignment.refused);
    let blame = match assignment.refused.iter().any(Refusal::is_the_services) {
        true => "Unsupported",
        false => "Infrastructure",
    };
    let at = join(&addresses);
    // A node that has just started serves nothing that it knows of yet; the cluster still does.
    let known = service.condition(SERVING).is_some_and(|it| it.status == "True")
        && addresses.iter().all(|address| service.asks.held.contains_key(address));
    let serving =
        !addresses.is_empty() && (known || addresses.iter().all(|it| served.contains(it)));
    let provisioning = match (refused.is_empty(), serving) {
        (false, _) => (PROVISIONING, "False", blame, refused.clone()),
        (true, true) => (PROVISIONING, "False", "Complete", format!("the address is {at}")),
        (true, false) => (PROVISIONING, "True", "InProgress", format!("{at} is being set up")),
    };
    let serving = match (addresses.is_empty(), serving) {
        (true, _) => (SERVING, "False", blame, refused),
        (false, true) => (SERVING, "True", "Serving", format!("clients are served at {at}")),
        (false, false) => (SERVING, "False", "Provisioning", format!("{at} is being set up")),
    };
    let ports =
        ports(service, assignment).map(|(reason, text)| (PORTS_ERROR, "True", reason, text));
    let kept = (!assignment.kept.is_empty())
        .then(|| (KEPT, "True", "AddressKept", join(&assignment.kept)));
    [Some(provisioning), Some(serving), ports, kept].into_iter().flatten().map(condition).collect()
}

fn condition((type_, status, reason, message): (&str, &str, &str, String)) -> Condition {
    Condition {
        type_: type_.into(),
        status: status.into(),
        reason: reason.into(),
        message,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
        observed_generation: None,
    }
}

fn ports(service: &ServiceObject, assignment: &Assignment) -> Option<(&'static str, String)> {
    let taken = assignment.addresses.iter().flat_map(|given| {
        given.taken.iter().map(|(port, by)| {
            format!(
                "port {port} of {} is Service {by}'s; give it another port or address",
                given.address
            )
        })
    });
    let unsupported = service
        .unsupported
        .iter()
        .map(|(port, protocol)| format!("port {port}/{protocol}: weir carries TCP and UDP only"));
    let (taken, unsupported): (Vec<_>, Vec<_>) = (taken.collect(), unsupported.collect());
    let reason = if taken.is_empty() { "ProtocolUnsupported" } else { "PortTaken" };
    let all = join(&[taken, unsupported].concat());
    (!all.is_empty()).then_some((reason, all))
}

/// Events for what changes.
pub fn notes(service: &ServiceObject, assignment: &Assignment, now: &[Condition]) -> Vec<Note> {
    let mut notes = Vec::new();
    for given in &assignment.addresses {
        if !service.asks.held.contains_key(&given.address) {
            let pool = given.pool.as_deref().unwrap_or_default();
            let text = format!("{} of AddressPool {pool} is the Service's", given.address);
            notes.push(Note { warning: false, reason: "AddressAssigned", text });
        }
    }
    let stays = |held: &IpAddr| assignment.addresses.iter().any(|it| it.address == *held);
    for held in service.asks.held.keys().filter(|held| !stays(held)) {
        let text = format!("{held} is no longer the Service's");
        notes.push(Note { warning: false, reason: "AddressReleased", text });
    }
    let news = |type_: &str| {
        let now = now.iter().find(|it| it.type_ == type_)?;
        let then = service.condition(type_);
        then.is_none_or(|then| then.message != now.message).then_some(now)
    };
    if news(PROVISIONING).is_some() {
        notes.extend(assignment.refused.iter().map(|refusal| Note {
            warning: true,
            reason: refusal.reason(),
            text: refusal.to_string(),
        }));
    }
    if let Some(error) = news(PORTS_ERROR) {
        let reason = if error.reason == "PortTaken" { "PortTaken" } else { "ProtocolUnsupported" };
        notes.push(Note { warning: true, reason, text: error.message.clone() });
    }
    if let Some(kept) = news(KEPT) {
        notes.push(Note { warning: true, reason: "AddressKept", text: kept.message.clone() });
    }
    notes
}

/// The Service is none of ours any more.
pub fn withdrawn(service: &ServiceObject) -> Vec<Note> {
    let note = |held: &IpAddr| Note {
        warning: false,
        reason: "AddressReleased",
        text: format!("{held} is no longer the Service's"),
    };
    service.asks.held.keys().map(note).collect()
}

fn join<T: ToString>(parts: &[T]) -> String {
    parts.iter().map(T::to_string).collect::<Vec<_>>().join("; ")
}
