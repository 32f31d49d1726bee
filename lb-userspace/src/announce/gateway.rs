//! Asks the default gateways whether they are there: a node that hears nobody must know whether the
//! others are gone or it is itself.
//!
//! Asks by ARP and neighbour solicitation over packet sockets, past the kernel's neighbour table, which
//! holds a dead gateway for alive for seconds. An answer says only that the link works.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep_until, timeout_at},
};

use super::{
    frames::question,
    socket::{Listener, Sender},
};
use crate::netlink::{Interfaces, Link, Netlink};
use crate::watched::Watched as _;

/// Questions to each gateway, and the time between them.
const ATTEMPTS: u32 = 3;
const BETWEEN: Duration = Duration::from_millis(50);

/// From the first question until nobody answers any more.
const PATIENCE: Duration = Duration::from_millis(200);

/// Between two looks at the default routes while no interface changes.
const REFRESH: Duration = Duration::from_secs(60);

/// Gateways that are asked at once; more would only say the same.
const MOST: usize = 8;

/// A gateway and the interface that leads to it.
type Place = (u32, IpAddr);

/// What a question brings: whether any gateway answers; None: there is none to ask.
pub type Answer = Option<bool>;

/// Answers questions until nobody can ask any more. Asks the `configured` gateways, or, where there are
/// none, those of the kernel's default routes.
///
/// # Errors
/// No packet socket or no netlink socket: the process lacks rights.
pub async fn run(
    configured: Vec<IpAddr>,
    mut interfaces: watch::Receiver<Arc<Interfaces>>,
    mut questions: mpsc::Receiver<oneshot::Sender<Answer>>,
) -> io::Result<()> {
    let (netlink, sender) = (Netlink::open()?, Sender::open()?);
    let mut known = BTreeSet::new();
    loop {
        interfaces.mark_unchanged();
        // In this order: a link that went down has taken its routes along, and must be seen as down.
        let routes = netlink.default_gateways().await;
        let links =
            netlink.interfaces().await.map_or_else(|_| interfaces.copy_and_update(), Arc::new);
        match routes {
            Ok(now) => known = followed(&known, now, &links),
            Err(error) => tracing::debug!(%error, "default routes not read"),
        }
        let refresh = Instant::now() + REFRESH;
        tokio::select! {
            asked = questions.recv() => {
                let Some(asked) = asked else { return Ok(()) };
                let places = match configured.is_empty() {
                    true => known.clone(),
                    false => places(&configured, &links),
                };
                let nobody = configured.is_empty() && places.is_empty();
                let answer = match nobody {
                    true => None,
                    false => Some(ask(&sender, &places, &links).await?),
                };
                // Who asked may have gone.
                let _ = asked.send(answer);
            }
            changed = interfaces.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
            () = sleep_until(refresh.into()) => {}
        }
    }
}

/// The kernel drops the routes of a link that is set down; the question is asked just then.
fn followed(
    known: &BTreeSet<Place>,
    now: BTreeSet<Place>,
    interfaces: &Interfaces,
) -> BTreeSet<Place> {
    let down = |place: &&Place| !interfaces.by_index(place.0).is_some_and(|link| link.up);
    known.iter().filter(down).chain(&now).copied().collect()
}

/// Where configured gateways are asked: on every interface with a subnet that holds them; link-local
/// ones on each that has link-local addresses.
fn places(gateways: &[IpAddr], interfaces: &Interfaces) -> BTreeSet<Place> {
    let on = |gateway: &IpAddr| {
        let gateway = *gateway;
        let holds = move |link: &&Link| link.subnets.iter().any(|subnet| subnet.holds(gateway));
        interfaces.iter().filter(holds).map(move |link| (link.ifindex, gateway))
    };
    gateways.iter().flat_map(on).collect()
}

/// Whether any of them answers in time.
async fn ask(
    sender: &Sender,
    places: &BTreeSet<Place>,
    interfaces: &Interfaces,
) -> io::Result<bool> {
    // Opened before the first question, so that no answer is missed; and only for as long.
    let listener = Listener::open()?;
    let questions: Vec<_> = places
        .iter()
        .take(MOST)
        .filter_map(|(ifindex, gateway)| {
            let link = interfaces.by_index(*ifindex)?;
            Some((*ifindex, question(*gateway, source(link, *gateway)?, link.mac?)?))
        })
        .collect();
    let start = Instant::now();
    for attempt in 1..=ATTEMPTS {
        for (ifindex, frame) in &questions {
            if let Err(error) = sender.send(*ifindex, frame) {
                tracing::debug!(ifindex, %error, "gateway not asked");
            }
        }
        let until = if attempt < ATTEMPTS { start + attempt * BETWEEN } else { start + PATIENCE };
        if answered(&listener, places, until).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn answered(
    listener: &Listener,
    places: &BTreeSet<Place>,
    until: Instant,
) -> io::Result<bool> {
    while let Ok(heard) = timeout_at(until.into(), listener.hear()).await {
        if heard?.iter().any(|(ifindex, claim)| places.contains(&(*ifindex, claim.address))) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The address of an interface from which `target` is asked: of its subnet if there is one, else of its
/// family.
pub(super) fn source(link: &Link, target: IpAddr) -> Option<IpAddr> {
    let mut family = link.subnets.iter().filter(|it| it.address.is_ipv4() == target.is_ipv4());
    let near = family.clone().find(|subnet| subnet.holds(target));
    near.or_else(|| family.next()).map(|subnet| subnet.address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Subnet;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn link(ifindex: u32, up: bool, subnets: &[(&str, u8)]) -> Link {
        let subnet =
            |(address, prefix): &(&str, u8)| Subnet { address: ip(address), prefix: *prefix };
        let subnets = subnets.iter().map(subnet).collect();
        Link { ifindex, up, mac: Some([2; 6]), subnets, ..Link::default() }
    }

    #[test]
    fn gateways_of_a_link_that_is_down_stay_known_and_others_do_not() {
        let links = Interfaces::new([link(2, true, &[]), link(3, false, &[])]);
        let known = [(2, ip("192.0.2.1")), (3, ip("192.0.2.2")), (4, ip("192.0.2.3"))].into();
        let now = [(2, ip("fe80::1"))].into();
        let want = [(2, ip("fe80::1")), (3, ip("192.0.2.2")), (4, ip("192.0.2.3"))];
        assert_eq!(followed(&known, now, &links), want.into());
    }

    #[test]
    fn configured_gateways_are_asked_where_their_subnet_is() {
        let links = Interfaces::new([
            link(2, true, &[("192.0.2.7", 24), ("fe80::7", 64)]),
            link(3, true, &[("198.51.100.7", 24), ("fe80::8", 64)]),
        ]);
        let at = |gateway| places(&[ip(gateway)], &links);
        assert_eq!(at("192.0.2.1"), [(2, ip("192.0.2.1"))].into());
        assert_eq!(at("fe80::1"), [(2, ip("fe80::1")), (3, ip("fe80::1"))].into());
        assert_eq!(at("203.0.113.1"), [].into());
    }

    #[test]
    fn a_question_comes_from_the_nearest_address_of_the_family() {
        let link = link(2, true, &[("2001:db8::7", 64), ("fe80::7", 64), ("192.0.2.7", 24)]);
        let from = |target| source(&link, ip(target)).unwrap();
        assert_eq!(from("fe80::1"), ip("fe80::7"));
        assert_eq!(from("2001:db8:9::1"), ip("2001:db8::7"));
        assert_eq!(from("203.0.113.1"), ip("192.0.2.7"));
    }
}
