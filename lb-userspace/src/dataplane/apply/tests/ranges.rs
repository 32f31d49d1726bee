//! Whose clients frontends take.

use lb_common::{
    frontend::{SourceRange, frontend_flags},
    globals::mask,
};

use super::*;

const WEB: &str = "192.0.2.1:80";
/// One in each of the networks 10.1.0.0/16 and so on.
const CLIENTS: [&str; 4] = ["10.1.0.1", "10.2.0.1", "10.3.0.1", "10.4.0.1"];

/// A plan of frontends with their ranges; none: everybody.
fn site(frontends: &[(&str, Option<&[u8]>)]) -> Desired {
    let backends: [u32; 2] = [1, 2];
    let all: Vec<(&str, &[u32])> = frontends.iter().map(|(at, _)| (*at, &backends[..])).collect();
    let mut plan = plan(&all);
    for (at, networks) in frontends {
        let network = |n: &u8| format!("10.{n}.0.0/16").parse().unwrap();
        let ranges = networks.map(|networks| Arc::new(networks.iter().map(network).collect()));
        plan.frontends.get_mut(&key(at)).unwrap().ranges = ranges;
    }
    plan
}

/// Whether a frontend takes a client, as the programs would find it; none where there is no frontend.
fn takes(store: &Fake, at: &str, client: &str) -> Option<bool> {
    let frontend = store.frontends.get(&key(at).endpoint())?;
    let client = Addr::from(client.parse::<IpAddr>().unwrap()).halves();
    let holds = |range: SourceRange| {
        let (network, mask) = (range.addr.halves(), mask(range.length()));
        let same = |at: usize| client[at] & mask[at] == network[at];
        range.frontend == frontend.outside / 2 && same(0) && same(1)
    };
    let in_ranges = || store.ranges.iter().any(|(range, ())| holds(range));
    Some(frontend.flags & frontend_flags::RANGES == 0 || in_ranges())
}

/// Those of [`CLIENTS`] that a frontend takes, by their networks.
fn taken(store: &Fake, at: &str) -> Option<BTreeSet<u8>> {
    let clients = (1..).zip(CLIENTS);
    let taken = clients.filter_map(|(n, client)| takes(store, at, client)?.then_some(n));
    takes(store, at, CLIENTS[0]).map(|_| taken.collect())
}

fn wanted(networks: Option<&[u8]>) -> BTreeSet<u8> {
    networks.unwrap_or(&[1, 2, 3, 4]).iter().copied().collect()
}

#[test]
fn a_frontend_takes_the_clients_of_its_list_and_a_change_leaves_nothing_behind() {
    let mut data_plane = data_plane(Fake::new(&LIMITS));
    let lists: [Option<&[u8]>; 7] =
        [None, Some(&[1]), Some(&[1, 2]), Some(&[2, 3]), Some(&[]), Some(&[4]), None];
    for list in lists {
        apply(&mut data_plane, &site(&[(WEB, list), ("192.0.2.2:80", Some(&[3]))]));
        let store = data_plane.store();
        assert_eq!(taken(store, WEB), Some(wanted(list)), "{list:?}");
        assert_eq!(taken(store, "192.0.2.2:80"), Some(wanted(Some(&[3]))), "{list:?}");
        assert_eq!(store.ranges.iter().count(), list.map_or(0, <[u8]>::len) + 1, "{list:?}");
    }
    apply(&mut data_plane, &Desired::default());
    assert_eq!(data_plane.store().ranges.iter().count(), 0);
}

#[test]
fn a_change_of_ranges_alone_leaves_the_services_records_alone() {
    let mut data_plane = data_plane(Fake::new(&LIMITS));
    apply(&mut data_plane, &site(&[(WEB, Some(&[1]))]));
    let before = data_plane.store().clone();
    apply(&mut data_plane, &site(&[(WEB, Some(&[2]))]));
    let after = data_plane.store();
    assert_eq!((&after.services, &after.records), (&before.services, &before.records));
}

#[test]
fn a_stop_after_any_step_opens_to_nobody_else_and_shuts_nobody_out_who_stays() {
    const ALL: [&str; 4] = [WEB, "192.0.2.2:80", "192.0.2.3:80", "192.0.2.4:80"];
    let before: [(&str, Option<&[u8]>); 3] =
        [(ALL[0], Some(&[1, 3])), (ALL[1], None), (ALL[2], Some(&[1, 2]))];
    let after: [(&str, Option<&[u8]>); 3] =
        [(ALL[0], Some(&[2, 3])), (ALL[1], Some(&[1])), (ALL[3], Some(&[4]))];
    for (before, after) in [(before, after), (after, before)] {
        let mut start = data_plane(Fake::new(&LIMITS));
        apply(&mut start, &site(&before));
        let start = start.store().clone();
        let after_plan = site(&after);
        let mut straight = data_plane(start.clone());
        apply(&mut straight, &after_plan);
        for stop in 0..straight.store().steps - start.steps {
            let mut stopped =
                data_plane(Fake { stop_after: Some(start.steps + stop), ..start.clone() });
            stopped.apply(&after_plan, &around(), &Scope::All).unwrap_err();
            let store = Fake { stop_after: None, ..stopped.store().clone() };
            for at in ALL {
                let Some(found) = taken(&store, at) else { continue };
                let of = |site: &[(&str, Option<&[u8]>)]| {
                    let list = site.iter().find(|(name, _)| *name == at);
                    list.map(|(_, networks)| wanted(*networks))
                };
                let lists: Vec<_> = [of(&before), of(&after)].into_iter().flatten().collect();
                let may = lists.iter().any(|list| list.is_superset(&found))
                    || lists.iter().flatten().copied().collect::<BTreeSet<_>>() == found;
                assert!(may, "step {stop}: {at} takes {found:?} of {lists:?}");
                let stays = |n: &u8| lists.iter().all(|list| list.contains(n));
                let staying = lists.iter().flatten().copied().filter(stays).collect();
                // What goes altogether may shut its clients out before.
                let gone = of(&after).is_none();
                assert!(gone || found.is_superset(&staying), "step {stop}: {at} takes {found:?}");
            }
            let mut next = data_plane(store);
            apply(&mut next, &after_plan);
            for at in ALL {
                assert_eq!(taken(next.store(), at), taken(straight.store(), at), "step {stop}");
            }
            assert_eq!(
                next.store().ranges.iter().count(),
                straight.store().ranges.iter().count(),
                "step {stop}"
            );
            assert_eq!(room(&next), room(&straight), "step {stop}");
        }
    }
}

#[test]
fn ranges_that_do_not_fit_are_closed_and_told_until_there_is_room() {
    let mut data_plane = data_plane(Fake::new(&Limits { source_ranges: 3, ..LIMITS }));
    let both: [(&str, Option<&[u8]>); 2] = [(WEB, Some(&[1, 2])), ("192.0.2.2:80", Some(&[3, 4]))];
    let problems = data_plane.apply(&site(&both), &around(), &Scope::All).unwrap();
    assert_eq!(problems.len(), 1, "{problems:?}");
    let message = &problems[0].message;
    assert!(message.contains("192.0.2.2:80/TCP is closed to clients of some"), "{message}");
    assert!(message.contains("map SOURCE_RANGES is full at 3"), "{message}");
    assert_eq!(taken(data_plane.store(), WEB), Some(wanted(Some(&[1, 2]))));
    assert_eq!(taken(data_plane.store(), "192.0.2.2:80"), Some(wanted(Some(&[3]))));

    let fewer: [(&str, Option<&[u8]>); 2] = [(WEB, Some(&[1])), ("192.0.2.2:80", Some(&[3, 4]))];
    apply(&mut data_plane, &site(&fewer));
    assert_eq!(taken(data_plane.store(), "192.0.2.2:80"), Some(wanted(Some(&[3, 4]))));
    // A full map still takes another list of the same length.
    let other: [(&str, Option<&[u8]>); 2] = [(WEB, Some(&[1])), ("192.0.2.2:80", Some(&[1, 2]))];
    apply(&mut data_plane, &site(&other));
    assert_eq!(taken(data_plane.store(), "192.0.2.2:80"), Some(wanted(Some(&[1, 2]))));
}

#[test]
fn a_frontend_for_which_there_is_no_room_leaves_no_ranges() {
    let mut data_plane = data_plane(Fake::new(&Limits { frontends: 2, ..LIMITS }));
    let sites = [(WEB, None), ("192.0.2.2:80", None), ("192.0.2.3:80", Some(&[1][..]))];
    assert_eq!(data_plane.apply(&site(&sites), &around(), &Scope::All).unwrap().len(), 1);
    assert_eq!(data_plane.store().ranges.iter().count(), 0);
}
