//! What a `Frontend`'s status says.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use k8s_openapi::jiff::Timestamp;

use super::{Note, Write, pools::list};
use crate::sources::kubernetes::{
    crd::{Condition, FrontendStatus},
    outcome::Outcome,
    snapshot::Frontend,
};

/// All of it is in force.
const ACCEPTED: &str = "Accepted";

/// Its addresses are in the data plane.
const SERVED: &str = "Served";

/// A Frontend and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    pub name: String,
    pub object: Arc<Frontend>,
    pub outcome: Outcome,
}

impl Judged {
    /// None: the status says so already.
    pub(super) fn told(&self, served: &BTreeSet<IpAddr>, now: Timestamp) -> Option<Write> {
        let (former, generation) = (&self.object.status, Some(self.object.generation));
        let mut notes = Vec::new();
        let conditions = [self.accepted(), self.served(served)];
        let conditions = conditions.map(|(type_, good, reason, message)| {
            let now_is = Condition::new(type_, good, reason, message, generation);
            let then = former.conditions.iter().find(|it| it.type_ == type_);
            let is_known = |then: &Condition| {
                then.status == now_is.status && (good || then.message == now_is.message)
            };
            // What is not served is being set up, or not accepted and told.
            if !then.is_some_and(is_known) && (good || type_ == ACCEPTED) {
                notes.push(Note { warning: !good, reason, text: now_is.message.clone() });
            }
            now_is.dated(&former.conditions, now)
        });
        let status =
            FrontendStatus { observed_generation: generation, conditions: conditions.into() };
        let (name, uid) = (self.name.clone(), self.object.uid.clone());
        (status != *former).then_some(Write::Frontend { name, uid, status, notes })
    }

    /// Type, whether that is good, reason, message.
    fn accepted(&self) -> (&'static str, bool, &'static str, String) {
        let Outcome { addresses, wrong, conflict } = &self.outcome;
        let reason = match (wrong.is_empty(), conflict, addresses.is_empty()) {
            (true, ..) => return (ACCEPTED, true, "Accepted", "all of it is in force".into()),
            (_, true, _) => "Conflict",
            (_, _, true) => "Invalid",
            (_, _, false) => "Incomplete",
        };
        let rest = if addresses.is_empty() { "nothing of it" } else { "the rest" };
        let message = format!("{}; {rest} is in force", list(wrong.iter().cloned()));
        (ACCEPTED, false, reason, message)
    }

    fn served(&self, served: &BTreeSet<IpAddr>) -> (&'static str, bool, &'static str, String) {
        let addresses = &self.outcome.addresses;
        let at = list(addresses.iter().map(IpAddr::to_string));
        // A node that has just started serves nothing that it knows of yet; the cluster still does.
        let is_known = self.object.status.conditions.iter().any(|it| {
            it.type_ == SERVED
                && it.status == "True"
                && it.observed_generation == Some(self.object.generation)
        });
        match addresses.is_empty() {
            true => (SERVED, false, "NotAccepted", "nothing of it is in force".into()),
            false if is_known || addresses.is_subset(served) => {
                (SERVED, true, "Served", format!("clients are served at {at}"))
            }
            false => (SERVED, false, "Pending", format!("{at} is being set up")),
        }
    }
}
