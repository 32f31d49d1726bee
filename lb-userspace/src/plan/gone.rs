//! Which backends are gone, as far as those who talk with them must know. Pure.

use std::net::SocketAddr;

use super::desired::{FrontendKey, target};
use crate::model::{Health, Intent, Life, Members, Verdicts};

/// Whether a frontend's backend will answer no more: its node is dead, or its probe fails. One that is
/// drained, terminates or is no member any more is not gone: flows end there in their own time.
pub fn is_gone(
    intent: &Intent,
    members: &Members,
    verdicts: &Verdicts,
    frontend: &FrontendKey,
    backend: SocketAddr,
) -> bool {
    let of_frontend = intent.frontends.values().find_map(|object| {
        let port = object.ports.iter().find(|it| {
            it.port == frontend.port
                && it.protocol == frontend.protocol
                && object.addresses.contains(&frontend.address)
        })?;
        Some((object, port))
    });
    let Some((object, port)) = of_frontend else { return false };
    let pool = intent.members(object, frontend.address, port);
    let Some(member) = pool.iter().find(|member| member.endpoint == backend) else { return false };
    let dead = |name: &str| members.nodes.get(name).is_some_and(|node| node.life == Life::Dead);
    let down = || {
        let target = target(object, port, backend)?;
        Some(matches!(verdicts.get(&target)?, Health::Down(_)))
    };
    // Who hears nobody is cut off itself.
    member.node != members.own && !members.isolated && dead(member.node)
        || down().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        config::{Overrides, parse},
        model::Protocol,
        plan::targets,
    };

    const EXAMPLE: &str = include_str!("../../../docs/examples/weir.yaml");
    const HERE: &str = "10.1.0.10:8080";
    const THERE: &str = "10.1.1.10:8080";

    #[test]
    fn only_the_dead_and_the_failing_are_gone() {
        let overrides = Overrides { node: Some("worker-1".into()), ..Overrides::default() };
        let intent = parse(Path::new("weir.yaml"), EXAMPLE, &overrides).unwrap();
        let members = Members::assumed("worker-1", intent.nodes.keys().map(String::as_str));
        let mut dead = members.clone();
        dead.nodes.values_mut().for_each(|node| node.life = Life::Dead);
        let isolated = Members { isolated: true, ..dead.clone() };
        let up = Verdicts::new();
        let mut down = Verdicts::new();
        for target in targets(&intent).keys() {
            down.insert(target.clone(), Health::Down("refused".into()));
        }
        for (members, verdicts, backend, gone) in [
            (&members, &up, THERE, false),
            (&members, &down, THERE, true),
            (&members, &down, HERE, true),
            (&dead, &up, THERE, true),
            // A node that runs this is not dead.
            (&dead, &up, HERE, false),
            (&isolated, &up, THERE, false),
            // No member.
            (&dead, &down, "10.1.1.10:8081", false),
        ] {
            let frontend = FrontendKey {
                address: "198.51.100.2".parse().unwrap(),
                port: 80,
                protocol: Protocol::Tcp,
            };
            let found = is_gone(&intent, members, verdicts, &frontend, backend.parse().unwrap());
            assert_eq!(found, gone, "{backend}");
            let nobodys = FrontendKey { port: 81, ..frontend };
            assert!(!is_gone(&intent, members, verdicts, &nobodys, backend.parse().unwrap()));
        }
    }
}
