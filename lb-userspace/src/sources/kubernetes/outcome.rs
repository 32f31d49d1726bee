//! What became of our own Frontends in Kubernetes. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::snapshot::{Frontend, Objects};
use crate::model::{FrontendObject, Problem, intent};

/// By name.
pub type Outcomes = Arc<BTreeMap<String, Outcome>>;

/// All of them, and what became of each. A copy costs nothing.
#[derive(Clone, Debug, Default)]
pub struct OwnFrontends {
    pub objects: Objects<Frontend>,
    pub outcomes: Outcomes,
}

impl OwnFrontends {
    /// Whether nothing was touched.
    pub fn is(&self, other: &Self) -> bool {
        self.objects.ptr_eq(&other.objects) && Arc::ptr_eq(&self.outcomes, &other.outcomes)
    }
}

/// What became of one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    /// Those of its addresses where it has a port.
    pub addresses: BTreeSet<IpAddr>,
    /// Sentences; none: all of it is in force.
    pub wrong: Vec<String>,
    /// Something of it is another object's.
    pub conflict: bool,
}

/// `asked`: names of all; `in_force`: what is, beside objects of the file; `problems`: what is wrong with any;
/// `yielded`: origins of those of which the file has something.
///
/// As in a plan, of two that claim the same address and port the first by name has it.
pub fn outcomes<'a>(
    asked: impl Iterator<Item = &'a str>,
    in_force: impl Iterator<Item = &'a Arc<FrontendObject>>,
    problems: &[Problem],
    yielded: &BTreeSet<String>,
) -> Outcomes {
    let mut by_origin: BTreeMap<String, (&str, Outcome)> = asked
        .map(|name| {
            let origin = format!("Frontend/{name}");
            let conflict = yielded.contains(&origin);
            (origin, (name, Outcome { conflict, ..Outcome::default() }))
        })
        .collect();
    for Problem { object, message } in problems {
        if let Some((_, outcome)) = by_origin.get_mut(object) {
            outcome.wrong.push(message.clone());
        }
    }
    let mut taken = BTreeMap::new();
    for object in in_force.filter(|it| it.name.starts_with(intent::OF_FRONTEND)) {
        let origin = object.origin();
        let Some((_, outcome)) = by_origin.get_mut(&origin) else { continue };
        for key in object.keys() {
            let owner = taken.entry(key).or_insert_with(|| origin.clone());
            let (address, port, protocol) = key;
            if *owner == origin {
                outcome.addresses.insert(address);
            } else {
                outcome.wrong.push(format!("{owner} has {address} port {port}/{protocol} already"));
                outcome.conflict = true;
            }
        }
    }
    let by_name = by_origin.into_values().map(|(name, outcome)| (name.to_owned(), outcome));
    Arc::new(by_name.collect())
}
