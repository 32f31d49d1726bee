//! What the agent does with an order of an administrator.

use crate::{
    membership::drain::{Keeper, Publication},
    model::{Drainable, Intent},
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
    let (what, drained) = match request {
        Request::Drain { what } => (what, true),
        Request::Undrain { what } => (what, false),
    };
    let Drainable::Forwarding(node) = what;
    // What left the configuration while it was drained may be put back.
    if !intent.nodes.contains_key(node) && keeper.drains().get(what).is_none() {
        let names: Vec<_> = intent.nodes.keys().take(MAX_NAMES).cloned().collect();
        let more = if intent.nodes.len() > MAX_NAMES { ", …" } else { "" };
        let fix = format!("name one of the configured nodes: {}{more}", names.join(", "));
        return (None, Answer::refused(format!("no node is called {node:?}"), fix));
    }
    match keeper.order(what, drained, &intent.agent.node, now_ms) {
        Ok(publication) => {
            let changed = publication.is_some();
            (publication, Answer::Done { changed })
        }
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            (None, Answer::refused(error, "nothing was changed; mend this and try again"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

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

    #[test]
    fn a_configured_node_is_drained_once_and_put_back_once() {
        let dir = tempfile::tempdir().unwrap();
        let (mut keeper, intent) = (Keeper::open(dir.path()).unwrap(), intent());
        for (drained, changed) in [(false, false), (true, true), (true, false), (false, true)] {
            let what = node("worker-2");
            let request = match drained {
                true => Request::Drain { what },
                false => Request::Undrain { what },
            };
            let (published, answer) = obey(&request, &intent, &mut keeper, 1);
            assert_eq!((published.is_some(), answer), (changed, Answer::Done { changed }));
            assert_eq!(keeper.drains().is_drained(&node("worker-2")), drained);
        }
    }

    #[test]
    fn a_node_that_nobody_knows_is_refused_unless_it_was_drained_before() {
        let dir = tempfile::tempdir().unwrap();
        let (mut keeper, mut intent) = (Keeper::open(dir.path()).unwrap(), intent());
        let (published, answer) =
            obey(&Request::Drain { what: node("worker-3") }, &intent, &mut keeper, 1);
        let Answer::Refused { error, fix } = answer else { panic!("{answer:?}") };
        assert!(published.is_none() && error.contains("\"worker-3\""), "{error}");
        assert!(fix.contains("master-1, worker-1, worker-2"), "{fix}");

        obey(&Request::Drain { what: node("worker-2") }, &intent, &mut keeper, 1);
        intent.nodes.remove("worker-2");
        let (_, answer) =
            obey(&Request::Undrain { what: node("worker-2") }, &intent, &mut keeper, 1);
        assert_eq!(answer, Answer::Done { changed: true });
    }

    #[test]
    fn an_order_that_cannot_be_kept_is_refused_with_the_cause() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::open(dir.path()).unwrap();
        drop(dir);
        let (published, answer) =
            obey(&Request::Drain { what: node("worker-2") }, &intent(), &mut keeper, 1);
        let Answer::Refused { error, .. } = answer else { panic!("{answer:?}") };
        assert!(published.is_none());
        assert!(error.contains("drains.json: cannot be written: No such file"), "{error}");
    }
}
