//! Over histories of pools and Services that come, change and go.

use proptest::prelude::*;

use super::{
    tests::{pool, port, service},
    *,
};
use crate::addresses::Audience;

/// A change of the world; numbers choose one of few.
#[derive(Clone, Debug)]
enum Change {
    Add { name: u8, key: u8, ports: u8, family: u8, asks: Option<u8> },
    Remove(u8),
    Key { name: u8, key: u8 },
    Ports { name: u8, ports: u8 },
    Pool { name: u8, first: u8, length: u8, auto: bool, closed: bool },
    RemovePool(u8),
}

fn change() -> impl Strategy<Value = Change> {
    let (name, key, ports) = (0..8u8, 0..3u8, 1..8u8);
    prop_oneof![
        5 => (name.clone(), key.clone(), ports.clone(), 0..5u8, prop::option::of(0..16u8)).prop_map(
            |(name, key, ports, family, asks)| Change::Add { name, key, ports, family, asks }
        ),
        2 => name.clone().prop_map(Change::Remove),
        1 => (name.clone(), key).prop_map(|(name, key)| Change::Key { name, key }),
        1 => (name, ports).prop_map(|(name, ports)| Change::Ports { name, ports }),
        3 => (0..3u8, 0..16u8, 1..8u8, any::<bool>(), any::<bool>()).prop_map(
            |(name, first, length, auto, closed)| Change::Pool { name, first, length, auto, closed }
        ),
        1 => (0..3u8).prop_map(Change::RemovePool),
    ]
}

#[derive(Clone, Debug, Default)]
struct World {
    pools: BTreeMap<u8, Pool>,
    services: BTreeMap<u8, Service>,
    age: i64,
}

fn key_of(key: u8) -> Option<String> {
    (key > 0).then(|| format!("k{key}"))
}

fn ports_of(bits: u8) -> BTreeSet<Port> {
    (0..3).filter(|bit| bits & 1 << bit != 0).map(|bit| port(80 + bit)).collect()
}

impl World {
    fn apply(&mut self, change: &Change) {
        self.age += 1;
        match *change {
            Change::Add { name, key, ports, family, asks } => {
                let mut new = service(&format!("s{name}"), self.age);
                (new.policy, new.families) = match family {
                    0 => (FamilyPolicy::RequireDualStack, Family::BOTH.to_vec()),
                    1 => (FamilyPolicy::PreferDualStack, vec![Family::V6, Family::V4]),
                    2 => (FamilyPolicy::SingleStack, vec![Family::V6]),
                    _ => (FamilyPolicy::SingleStack, vec![Family::V4]),
                };
                new.wishes.sharing_key = key_of(key);
                new.wishes.addresses = asks.map(|n| [192, 0, 2, n].into()).into_iter().collect();
                new.ports = ports_of(ports);
                self.services.entry(name).or_insert(new);
            }
            Change::Remove(name) => drop(self.services.remove(&name)),
            Change::Key { name, key } => {
                if let Some(service) = self.services.get_mut(&name) {
                    service.wishes.sharing_key = key_of(key);
                }
            }
            Change::Ports { name, ports } => {
                if let Some(service) = self.services.get_mut(&name) {
                    service.ports = ports_of(ports);
                }
            }
            Change::Pool { name, first, length, auto, closed } => {
                let last = first + length;
                let ranges = [
                    format!("192.0.2.{first}-192.0.2.{last}"),
                    format!("2001:db8::{first:x}-2001:db8::{last:x}"),
                ];
                let mut pool = pool(&format!("p{name}"), &[&ranges[0], &ranges[1]]);
                (pool.auto, pool.created) = (auto, self.age);
                if closed {
                    pool.audience =
                        Audience { namespaces: ["ops".into()].into(), ..Audience::default() };
                }
                self.pools.insert(name, pool);
            }
            Change::RemovePool(name) => drop(self.pools.remove(&name)),
        }
    }

    fn allocate(&self, reversed: bool) -> Allocation {
        let mut pools: Vec<_> = self.pools.values().cloned().collect();
        let mut services: Vec<_> = self.services.values().cloned().collect();
        if reversed {
            pools.reverse();
            services.reverse();
        }
        let (namespaces, reserved) = Default::default();
        allocate(&Inputs {
            pools: &pools,
            services: &services,
            namespaces: &namespaces,
            reserved: &reserved,
        })
    }

    /// Writes what was given into the Services, as the controller does.
    fn write(&mut self, allocation: &Allocation) {
        for service in self.services.values_mut() {
            let given = &allocation.services[&service.name].addresses;
            let own = |given: &Given| {
                service.ports.iter().filter(|p| !given.taken.contains_key(p)).copied().collect()
            };
            service.held = given.iter().map(|given| (given.address, own(given))).collect();
        }
    }
}

fn addresses(assignment: &Assignment) -> Vec<IpAddr> {
    assignment.addresses.iter().map(|given| given.address).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn histories_keep_the_rules(changes in prop::collection::vec(change(), 1..40)) {
        let mut world = World::default();
        for change in &changes {
            world.apply(change);
            let out = world.allocate(false);
            prop_assert_eq!(&out, &world.allocate(true), "order does not matter");

            let mut owners: BTreeMap<(IpAddr, Port), &ServiceName> = BTreeMap::new();
            for service in world.services.values() {
                let assignment = &out.services[&service.name];
                for given in &assignment.addresses {
                    // A port of an address is one Service's.
                    for port in service.ports.iter().filter(|p| !given.taken.contains_key(p)) {
                        let other = owners.insert((given.address, *port), &service.name);
                        prop_assert_eq!(other, None);
                    }
                    // What is new is shared only under a common key, and lies in a pool.
                    if service.held.contains_key(&given.address) {
                        continue;
                    }
                    prop_assert!(given.pool.is_some() && given.taken.is_empty());
                    for other in world.services.values().filter(|it| it.name != service.name) {
                        let there = other.held.contains_key(&given.address)
                            || addresses(&out.services[&other.name]).contains(&given.address);
                        prop_assert!(!there || share(service, other));
                    }
                }
                // What is held stays: with a port of its own and without a request, as it was.
                let serves = |held: &IpAddr| service.held[held]
                    .intersection(&service.ports).next().is_some();
                for held in service.held.keys().filter(|held| serves(held)) {
                    let asked = service.wishes.addresses.iter()
                        .any(|asked| asked.is_ipv4() == held.is_ipv4() && asked != held);
                    prop_assert!(asked || addresses(assignment).contains(held));
                }
                // Nobody goes without, or with less than asked, without being told.
                let families: BTreeSet<_> =
                    addresses(assignment).into_iter().map(Family::of).collect();
                let lacks = service.wanted().iter().any(|family| !families.contains(family));
                prop_assert!(!lacks || !assignment.refused.is_empty());
            }
            world.write(&out);
            // Written and read again it stays, but for what waits for an address that was left.
            let again = world.allocate(false);
            for service in world.services.values() {
                let (now, then) = (&out.services[&service.name], &again.services[&service.name]);
                if now.refused.is_empty() {
                    prop_assert_eq!(addresses(now), addresses(then));
                }
            }
        }
    }
}
