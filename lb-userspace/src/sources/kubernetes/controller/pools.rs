//! What an `AddressPool`'s status says.

use k8s_openapi::jiff::Timestamp;

use super::{Note, Write};
use crate::{
    addresses::{BadRange, PoolUse, Usage},
    sources::kubernetes::{
        crd::Condition,
        crd_pool::{AddressCounts, AddressPool, AddressPoolStatus},
    },
};

/// Longest [`list`] in a message.
const LISTED: usize = 8;

/// None: the status says so already.
pub fn pool(
    object: &AddressPool,
    usage: &PoolUse,
    bad: &[BadRange],
    now: Timestamp,
) -> Option<Write> {
    let former = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation;
    let conditions = conditions(usage, bad);
    let mut notes = Vec::new();
    let conditions = conditions.into_iter().map(|(type_, good, reason, message)| {
        let then = former.conditions.iter().find(|it| it.type_ == type_);
        if !good && then.is_none_or(|then| then.message != message) {
            notes.push(Note { warning: true, reason, text: message.clone() });
        }
        // `Ready` is good when true, the others when false.
        let holds = good == (type_ == READY);
        Condition::new(type_, holds, reason, message, generation).dated(&former.conditions, now)
    });
    let status = AddressPoolStatus {
        ipv4: counts(usage.v4),
        ipv6: counts(usage.v6),
        services: usage.services.try_into().unwrap_or(i64::MAX),
        conditions: conditions.collect(),
    };
    let (name, uid) = (object.metadata.name.clone()?, object.metadata.uid.clone()?);
    (status != former).then_some(Write::Pool { name, uid, status: Box::new(status), notes })
}

const READY: &str = "Ready";

/// Type, whether that is good, reason, message.
fn conditions(
    usage: &PoolUse,
    bad: &[BadRange],
) -> [(&'static str, bool, &'static str, String); 3] {
    let ready = match bad.is_empty() {
        true => (READY, true, "Ready", String::new()),
        false => (READY, false, "InvalidAddresses", list(bad.iter().map(BadRange::to_string))),
    };
    let overlaps = usage.overlaps.iter();
    let overlaps =
        list(overlaps.map(|it| format!("{} is of the older AddressPool {}", it.range, it.with)));
    let overlapping = match overlaps.is_empty() {
        true => ("Overlapping", true, "NoOverlap", String::new()),
        false => ("Overlapping", false, "PoolsOverlap", format!("{overlaps}; the rest is given")),
    };
    let empty = |usage: Usage| usage.total > 0 && usage.used >= usage.total;
    let families = match (empty(usage.v4), empty(usage.v6)) {
        (true, true) => "no address is left",
        (true, false) => "no IPv4 address is left",
        (false, true) => "no IPv6 address is left",
        (false, false) => "",
    };
    let exhausted = match families.is_empty() {
        true => ("Exhausted", true, "AddressesLeft", String::new()),
        false => ("Exhausted", false, "AddressPoolExhausted", families.to_owned()),
    };
    [ready, overlapping, exhausted]
}

/// The first of them, and how many more there are.
pub fn list(parts: impl ExactSizeIterator<Item = String>) -> String {
    let more = parts.len().saturating_sub(LISTED);
    let mut text = parts.take(LISTED).collect::<Vec<_>>().join("; ");
    if more > 0 {
        text = format!("{text}; and {more} more");
    }
    text
}

/// None: the pool has no addresses of the family.
fn counts(usage: Usage) -> Option<AddressCounts> {
    let told = |count: u128| i64::try_from(count).unwrap_or(i64::MAX);
    (usage.total > 0).then(|| AddressCounts {
        total: told(usage.total),
        used: told(usage.used),
        available: told(usage.total.saturating_sub(usage.used)),
    })
}
