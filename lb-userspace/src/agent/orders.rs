//! What the agent does with an order of an administrator.

use std::net::SocketAddr;

use crate::{
    membership::drain::{Keeper, Publication},
    model::{Drainable, Intent, Wish},
    plan,
    report::control::{Answer, Request},
};

/// Names that an answer lists at most.
const MAX_NAMES: usize = 10;

/// Carries it out: what counts from now on is in `keeper`. Returns what to publish, and the answer.
/// Writes to disk.
pub fn obey(
    request: &Request,
    intent: &Intent,
    keeper: &mut Keeper,
    now_ms: u64,
) -> (Option<Publication>, Answer) {
    let wish = match request.clone() {
        Request::Drain { what, within_ms } => {
            let deadline_ms = within_ms.map(|within| now_ms.saturating_add(within));
            Wish { what, drained: true, deadline_ms }
        }
        Request::Undrain { what } => Wish { what, drained: false, deadline_ms: None },
    };
    // What left the configuration while it was drained may be put back.
    if keeper.drains().get(&wish.what).is_none()
        && let Err(refused) = known(&wish, intent)
    {
        return (None, refused);
    }
    match keeper.order(&wish, &intent.agent.node, now_ms) {
        Ok(publication) => {
            let changed = publication.is_some();
            let takes_away = wish.drained && !matches!(wish.what, Drainable::Forwarding(_));
            let warning = takes_away.then(|| refused(intent, keeper, now_ms)).flatten();
            (publication, Answer::Done { changed, warning })
        }
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            (None, Answer::refused(error, "nothing was changed; mend this and try again"))
        }
    }
}

/// Whose clients no backend is left for.
fn refused(intent: &Intent, keeper: &Keeper, now_ms: u64) -> Option<String> {
    let objects = plan::all_drained(intent, &keeper.drains().at(now_ms));
    (!objects.is_empty()).then(|| {
        let objects: Vec<_> = objects.into_iter().take(MAX_NAMES).collect();
        format!(
            "no backend takes new flows any more: clients of {} are refused",
            objects.join(", ")
        )
    })
}

/// Whether the configuration has such a thing, and it can be drained so.
fn known(wish: &Wish, intent: &Intent) -> Result<(), Answer> {
    let fix = |what: &str, names: Vec<String>| {
        let more = if names.len() > MAX_NAMES { ", …" } else { "" };
        let names = names.into_iter().take(MAX_NAMES).collect::<Vec<_>>().join(", ");
        format!("name one of the configured {what}: {names}{more}")
    };
    match &wish.what {
        Drainable::Forwarding(node) | Drainable::Node(node) if !intent.nodes.contains_key(node) => {
            let fix = fix("nodes", intent.nodes.keys().cloned().collect());
            Err(Answer::refused(format!("no node is called {node:?}"), fix))
        }
        Drainable::Backend(address) => {
            let backends = plan::pooled(intent);
            if backends.contains_key(address) {
                return Ok(());
            }
            // Another port of the same host is the likelier slip.
            let alike = |it: &&SocketAddr| it.ip() == address.ip();
            let mut names: Vec<_> =
                backends.keys().filter(alike).map(ToString::to_string).collect();
            if names.is_empty() {
                names = backends.keys().map(ToString::to_string).collect();
            }
            let error = format!("no pool has a backend {address}");
            Err(Answer::refused(error, fix("backends", names)))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::config::{Overrides, parse};

    fn intent() -> Intent {
        let text = include_str!("../../../docs/examples/weir.yaml");
        let overrides = Overrides { node: Some("worker-1".into()), ..Overrides::default() };
        parse(Path::new("weir.yaml"), text, &overrides).unwrap()
    }

    fn node(name: &str) -> Drainable {
        Drainable::Forwarding(name.into())
    }

    fn drain(what: Drainable) -> Request {
        Request::Drain { what, within_ms: None }
    }

    #[test]
    fn a_configured_node_is_drained_once_and_put_back_once() {
        let dir = tempfile::tempdir().unwrap();
        let (mut keeper, intent) = (Keeper::open(dir.path(), 1).unwrap(), intent());
        for (drained, changed) in [(false, false), (true, true), (true, false), (false, true)] {
            let what = node("worker-2");
            let request = match drained {
                true => Request::Drain { what, within_ms: None },
                false => Request::Undrain { what },
            };
            let (published, answer) = obey(&request, &intent, &mut keeper, 1);
            assert_eq!((published.is_some(), answer), (changed, Answer::done(changed)));
            assert_eq!(keeper.drains().is_drained(&node("worker-2")), drained);
        }
    }

    #[test]
    fn a_node_that_nobody_knows_is_refused_unless_it_was_drained_before() {
        let dir = tempfile::tempdir().unwrap();
        let (mut keeper, mut intent) = (Keeper::open(dir.path(), 1).unwrap(), intent());
        let (published, answer) = obey(&drain(node("worker-3")), &intent, &mut keeper, 1);
        let Answer::Refused { error, fix } = answer else { panic!("{answer:?}") };
        assert!(published.is_none() && error.contains("\"worker-3\""), "{error}");
        assert!(fix.contains("master-1, worker-1, worker-2"), "{fix}");

        obey(&drain(node("worker-2")), &intent, &mut keeper, 1);
        Arc::make_mut(&mut intent.nodes).remove("worker-2");
        let (_, answer) =
            obey(&Request::Undrain { what: node("worker-2") }, &intent, &mut keeper, 1);
        assert_eq!(answer, Answer::done(true));
    }

    #[test]
    fn an_order_that_cannot_be_kept_is_refused_with_the_cause() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::open(dir.path(), 1).unwrap();
        drop(dir);
        let (published, answer) = obey(&drain(node("worker-2")), &intent(), &mut keeper, 1);
        let Answer::Refused { error, .. } = answer else { panic!("{answer:?}") };
        assert!(published.is_none());
        assert!(error.contains("drains.json: cannot be written: No such file"), "{error}");
    }

    #[test]
    fn a_backend_is_drained_by_its_address_and_port_until_a_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let (mut keeper, intent) = (Keeper::open(dir.path(), 1).unwrap(), intent());
        let address = *plan::pooled(&intent).keys().next().unwrap();
        let what = Drainable::Backend(address);
        let wrong = Drainable::Backend(SocketAddr::new(address.ip(), 1));
        let (published, answer) = obey(&drain(wrong), &intent, &mut keeper, 1);
        let Answer::Refused { error, fix } = answer else { panic!("{answer:?}") };
        assert!(published.is_none() && error.contains(":1") && fix.contains(&address.to_string()));

        for (within_ms, deadline_ms) in [(Some(500), Some(1500)), (None, None)] {
            let request = Request::Drain { what: what.clone(), within_ms };
            let (_, answer) = obey(&request, &intent, &mut keeper, 1000);
            assert_eq!(answer, Answer::done(true));
            assert_eq!(keeper.drains().get(&what).unwrap().deadline_ms, deadline_ms);
        }
        let node = Drainable::Node("worker-2".into());
        let (_, answer) = obey(&drain(node.clone()), &intent, &mut keeper, 1);
        let Answer::Done { changed: true, warning: Some(warning) } = answer else {
            panic!("{answer:?}")
        };
        assert!(warning.contains("clients of apps are refused"), "both backends are drained");
        assert!(keeper.drains().is_drained(&node) && keeper.drains().forwarding().next().is_none());
    }
}
