//! The allocation itself: first what is held, then requests for an address, then everybody else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    pool::{Cut, Labels, Overlap, Pool, cut},
    range::{Family, after, confuses_old_devices},
    reason::{Kept, Refusal, Unfit},
    service::{FamilyPolicy, Port, Service, ServiceName},
};

#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub pools: &'a [Pool],
    pub services: &'a [Service],
    /// Labels by name.
    pub namespaces: &'a BTreeMap<String, Labels>,
    /// Addresses that are somebody else's, such as a `Frontend`'s, a node's or of a Service of another
    /// class, and whose.
    pub reserved: &'a BTreeMap<IpAddr, String>,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Allocation {
    pub services: BTreeMap<ServiceName, Assignment>,
    /// By name.
    pub pools: BTreeMap<String, PoolUse>,
}

/// What a Service has from now on, and what is to be told of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Assignment {
    /// Of the primary family first.
    pub addresses: Vec<Given>,
    pub refused: Vec<Refusal>,
    pub kept: Vec<Kept>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Given {
    pub address: IpAddr,
    /// Name of its pool; None: it is in none any more.
    pub pool: Option<String>,
    /// Ports that are not this Service's there, and whose they are.
    pub taken: BTreeMap<Port, ServiceName>,
}

/// What a pool gives and has given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PoolUse {
    pub v4: Usage,
    pub v6: Usage,
    /// How many Services hold addresses of it.
    pub services: u64,
    /// Its addresses that are an older pool's.
    pub overlaps: Vec<Overlap>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// Addresses; saturates where a pool is all of IPv6.
    pub total: u128,
    /// Held by Services or reserved.
    pub used: u128,
}

/// Same inputs in any order, same outcome. What a Service holds and may have in its families stays.
pub fn allocate(inputs: &Inputs<'_>) -> Allocation {
    let mut by_age: Vec<&Service> = inputs.services.iter().collect();
    by_age.sort_by_key(|service| (service.created, &service.name));
    let mut table = Table::new(inputs);
    table.hold(&by_age);
    let (asking, others): (Vec<&Service>, Vec<&Service>) =
        by_age.into_iter().partition(|service| !service.wishes.addresses.is_empty());
    let services = asking
        .into_iter()
        .chain(others)
        .map(|service| (service.name.clone(), table.assign(service)))
        .collect();
    Allocation { services, pools: table.uses() }
}

/// Who is where.
struct Table<'a> {
    inputs: &'a Inputs<'a>,
    pools: Vec<Free<'a>>,
    /// The older first.
    tenants: BTreeMap<IpAddr, Vec<Tenant<'a>>>,
    by_key: BTreeMap<&'a str, BTreeSet<IpAddr>>,
}

struct Tenant<'a> {
    service: &'a Service,
    /// Those that are its own on this address.
    ports: BTreeSet<Port>,
}

/// A pool, and where its free addresses begin.
struct Free<'a> {
    cut: Cut<'a>,
    /// Of each range the first address that may be free; None: none is. Only ever moves on, since
    /// nothing becomes free while addresses are given out.
    next: Vec<Option<IpAddr>>,
}

impl<'a> Table<'a> {
    fn new(inputs: &'a Inputs<'a>) -> Self {
        let pools = cut(inputs.pools)
            .into_iter()
            .map(|cut| Free { next: cut.ranges.iter().map(|r| Some(r.first())).collect(), cut })
            .collect();
        Self { inputs, pools, tenants: BTreeMap::new(), by_key: BTreeMap::new() }
    }

    /// Enters what is held. Ports that are served already stay whose they are; of others the oldest
    /// Service has them. Who has no port on an address does not hold it.
    fn hold(&mut self, by_age: &[&'a Service]) {
        for service in by_age {
            for (address, ports) in kept_of(service) {
                let served = service.ports.intersection(ports).copied().collect();
                self.enter(service, *address, served);
            }
        }
        for service in by_age {
            for address in kept_of(service).map(|(address, _)| *address) {
                self.enter(service, address, service.ports.clone());
            }
        }
        self.tenants.retain(|address, tenants| {
            tenants.retain(|it| !it.ports.is_empty() || it.service.ports.is_empty());
            for key in tenants.iter().filter_map(|it| it.service.wishes.sharing_key.as_deref()) {
                self.by_key.entry(key).or_default().insert(*address);
            }
            !tenants.is_empty()
        });
    }

    /// Gives a Service those of these ports on the address that are nobody's.
    fn enter(&mut self, service: &'a Service, address: IpAddr, mut ports: BTreeSet<Port>) {
        let tenants = self.tenants.entry(address).or_default();
        for tenant in tenants.iter().filter(|tenant| tenant.service.name != service.name) {
            ports.retain(|port| !tenant.ports.contains(port));
        }
        match tenants.iter_mut().find(|tenant| tenant.service.name == service.name) {
            Some(tenant) => tenant.ports.extend(ports),
            None => tenants.push(Tenant { service, ports }),
        }
    }

    fn assign(&mut self, service: &'a Service) -> Assignment {
        let mut assignment = Assignment::default();
        let mut addresses: Vec<IpAddr> = kept_of(service)
            .map(|(address, _)| *address)
            .filter(|address| self.tenant(service, *address).is_some())
            .collect();
        if !service.ending {
            self.grant(service, &mut addresses, &mut assignment);
        }
        addresses.sort_by_key(|address| {
            let family = Family::of(*address);
            (service.families.iter().position(|other| *other == family), *address)
        });
        assignment.addresses =
            addresses.into_iter().map(|address| self.given(service, address)).collect();
        assignment
    }

    /// Adds what the Service lacks, and takes out what it leaves for an address that it asks for.
    fn grant(&mut self, service: &'a Service, addresses: &mut Vec<IpAddr>, told: &mut Assignment) {
        let held = std::mem::take(addresses);
        let mut found = Vec::new();
        for &family in service.wanted() {
            let of_family = || held.iter().copied().filter(move |held| Family::of(*held) == family);
            let wish = service.wishes.addresses.iter().find(|wish| Family::of(**wish) == family);
            if of_family().next().is_some()
                && wish.is_none_or(|wish| of_family().any(|held| held == *wish))
            {
                addresses.extend(of_family());
                continue;
            }
            match self.find(service, family) {
                Ok(address) => found.push(address),
                Err(refusal) => {
                    told.refused.push(refusal);
                    told.kept.extend(of_family().map(Kept::Instead));
                    addresses.extend(of_family());
                }
            }
        }
        if service.families.is_empty() {
            addresses.extend(&held);
        }
        told.refused.dedup();
        self.tell_kept(service, addresses, &mut told.kept);
        if service.policy == FamilyPolicy::RequireDualStack
            && held.is_empty()
            && !told.refused.is_empty()
        {
            told.refused
                .extend(found.first().map(|found| Refusal::OtherFamily(Family::of(*found))));
            return;
        }
        for address in found {
            self.enter(service, address, service.ports.clone());
            if let Some(key) = service.wishes.sharing_key.as_deref() {
                self.by_key.entry(key).or_default().insert(address);
            }
            addresses.push(address);
        }
    }

    /// An address of the family that the Service may have.
    fn find(&mut self, service: &Service, family: Family) -> Result<IpAddr, Refusal> {
        let wishes = &service.wishes;
        if service.ports.is_empty() {
            return Err(Refusal::NoPort);
        }
        if let Some(text) = wishes.unreadable.first() {
            return Err(Refusal::Unreadable(text.clone()));
        }
        let foreign = |wish: &&IpAddr| !service.wanted().contains(&Family::of(**wish));
        if let Some(wish) = wishes.addresses.iter().find(foreign) {
            return Err(Refusal::NotItsFamily(*wish));
        }
        let mut asked = wishes.addresses.iter().filter(|wish| Family::of(**wish) == family);
        match (asked.next(), asked.next()) {
            (Some(_), Some(_)) => Err(Refusal::Several(family)),
            (Some(wish), None) => self.check(service, *wish).map(|()| *wish),
            (None, _) => self.choose(service, family),
        }
    }

    /// Whether a Service may have the address that it asks for.
    fn check(&self, service: &Service, address: IpAddr) -> Result<(), Refusal> {
        let asked = service.wishes.pool.as_ref();
        let Some(pool) = self.pool_of(address) else {
            return Err(Refusal::NotInAnyPool(address));
        };
        if let Some(asked) = asked.filter(|asked| **asked != pool.name) {
            return Err(Refusal::NotInPool { address, asked: asked.clone() });
        }
        if let Err(why) = pool.audience.admits(service, self.namespace(service)) {
            return Err(Refusal::NotPermitted { address, pool: pool.name.clone(), why });
        }
        if let Some(by) = self.inputs.reserved.get(&address) {
            return Err(Refusal::Reserved { address, by: by.clone() });
        }
        self.room(service, address)
    }

    /// Whether those who have the address share it with this Service.
    fn room(&self, service: &Service, address: IpAddr) -> Result<(), Refusal> {
        for tenant in self.tenants.get(&address).into_iter().flatten() {
            let by = || tenant.service.name.clone();
            if !share(tenant.service, service) {
                return Err(Refusal::Taken { address, by: by() });
            }
            if let Some(port) = service.ports.intersection(&tenant.ports).next() {
                return Err(Refusal::PortTaken { address, port: *port, by: by() });
            }
        }
        Ok(())
    }

    /// An address for a Service that asks for none: one shared by its key, or a free one.
    fn choose(&mut self, service: &Service, family: Family) -> Result<IpAddr, Refusal> {
        let fitting = self.fitting(service, family)?;
        if let Some(key) = service.wishes.sharing_key.as_deref() {
            let shared = self.by_key.get(key).into_iter().flatten().copied().find(|address| {
                Family::of(*address) == family
                    && fitting.iter().any(|pool| self.pools[*pool].cut.contains(*address))
                    && self.room(service, *address).is_ok()
            });
            if let Some(address) = shared {
                return Ok(address);
            }
        }
        let (tenants, reserved) = (&self.tenants, self.inputs.reserved);
        let used =
            |address: &IpAddr| tenants.contains_key(address) || reserved.contains_key(address);
        let mut name_of_full = Vec::new();
        for pool in fitting {
            let pool = &mut self.pools[pool];
            match pool.first(family, used) {
                Some(address) => return Ok(address),
                None => name_of_full.push(pool.cut.pool.name.clone()),
            }
        }
        Err(Refusal::Exhausted { family, pools: name_of_full })
    }

    /// Pools with addresses of the family for this Service, by index, in the order to try them.
    fn fitting(&self, service: &Service, family: Family) -> Result<Vec<usize>, Refusal> {
        if self.pools.is_empty() {
            return Err(Refusal::NoPools);
        }
        let asked = service.wishes.pool.as_ref();
        let named = |pool: &Pool| asked.is_none_or(|asked| *asked == pool.name);
        if let Some(asked) = asked
            && !self.pools.iter().any(|pool| named(pool.cut.pool))
        {
            return Err(Refusal::UnknownPool(asked.clone()));
        }
        let (mut fitting, mut unfit) = (Vec::new(), Vec::new());
        for (index, Free { cut, .. }) in self.pools.iter().enumerate() {
            if !cut.has(family) || !named(cut.pool) {
                continue;
            }
            let why = match cut.pool.audience.admits(service, self.namespace(service)) {
                Err(why) => Unfit::NotFor(why),
                Ok(()) if !cut.pool.auto && asked.is_none() => Unfit::ByRequest,
                Ok(()) => {
                    fitting.push(index);
                    continue;
                }
            };
            unfit.push((cut.pool.name.clone(), why));
        }
        match (fitting.is_empty(), unfit.is_empty()) {
            (false, _) => Ok(fitting),
            (true, false) => Err(Refusal::NonePermits { family, pools: unfit }),
            (true, true) => Err(Refusal::NoPoolOf(family)),
        }
    }

    fn tell_kept(&self, service: &Service, addresses: &[IpAddr], kept: &mut Vec<Kept>) {
        for &address in addresses {
            let pool = self.pool_of(address);
            let asked = service.wishes.pool.as_ref();
            kept.extend(match pool {
                None => Some(Kept::OutsidePools(address)),
                Some(pool) => match pool.audience.admits(service, self.namespace(service)) {
                    Err(why) => Some(Kept::NotPermitted { address, pool: pool.name.clone(), why }),
                    Ok(()) => asked.filter(|asked| **asked != pool.name).map(|asked| {
                        let (pool, asked) = (pool.name.clone(), asked.clone());
                        Kept::OtherPool { address, pool, asked }
                    }),
                },
            });
            if let Some(by) = self.inputs.reserved.get(&address) {
                kept.push(Kept::Reserved { address, by: by.clone() });
            }
            let older = self.tenants.get(&address).into_iter().flatten();
            let stranger = older
                .take_while(|tenant| tenant.service.name != service.name)
                .find(|tenant| !share(tenant.service, service));
            kept.extend(
                stranger.map(|tenant| Kept::Shared { address, with: tenant.service.name.clone() }),
            );
        }
    }

    fn given(&self, service: &Service, address: IpAddr) -> Given {
        let own = self.tenant(service, address).map(|tenant| &tenant.ports);
        let tenants = || self.tenants.get(&address).into_iter().flatten();
        let taken = service
            .ports
            .iter()
            .filter(|port| !own.is_some_and(|own| own.contains(port)))
            .filter_map(|port| {
                let owner = tenants().find(|tenant| tenant.ports.contains(port))?;
                Some((*port, owner.service.name.clone()))
            })
            .collect();
        Given { address, pool: self.pool_of(address).map(|pool| pool.name.clone()), taken }
    }

    fn tenant(&self, service: &Service, address: IpAddr) -> Option<&Tenant<'a>> {
        self.tenants.get(&address)?.iter().find(|tenant| tenant.service.name == service.name)
    }

    fn pool_of(&self, address: IpAddr) -> Option<&'a Pool> {
        let pool = self.pools.iter().find(|pool| pool.cut.contains(address))?;
        Some(pool.cut.pool)
    }

    fn namespace(&self, service: &Service) -> &'a Labels {
        static NONE: Labels = Labels::new();
        self.inputs.namespaces.get(&service.name.namespace).unwrap_or(&NONE)
    }

    fn uses(&self) -> BTreeMap<String, PoolUse> {
        let mut uses: BTreeMap<String, PoolUse> = BTreeMap::new();
        let mut holders: BTreeMap<&str, BTreeSet<&ServiceName>> = BTreeMap::new();
        for Free { cut, .. } in &self.pools {
            let usage = |family| Usage { total: cut.count(family), used: 0 };
            let [v4, v6] = Family::BOTH.map(usage);
            let overlaps = cut.overlaps.clone();
            let fresh = PoolUse { v4, v6, services: 0, overlaps };
            uses.insert(cut.pool.name.clone(), fresh);
        }
        let reserved = self.inputs.reserved.keys();
        let used: BTreeSet<IpAddr> = self.tenants.keys().chain(reserved).copied().collect();
        for address in used {
            let Some(pool) = self.pool_of(address) else { continue };
            if let Some(pool) = uses.get_mut(&pool.name) {
                match Family::of(address) {
                    Family::V4 => pool.v4.used += 1,
                    Family::V6 => pool.v6.used += 1,
                }
            }
            let tenants = self.tenants.get(&address).into_iter().flatten();
            holders.entry(&pool.name).or_default().extend(tenants.map(|t| &t.service.name));
        }
        for (name, holders) in holders {
            if let Some(pool) = uses.get_mut(name) {
                pool.services = holders.len() as u64;
            }
        }
        uses
    }
}

impl Free<'_> {
    /// The first free address of the family.
    fn first(&mut self, family: Family, used: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
        let avoid = self.cut.pool.avoid_buggy;
        let ranges = self.cut.ranges.iter().zip(&mut self.next);
        for (range, next) in ranges.filter(|(range, _)| range.family() == family) {
            while let Some(address) = *next {
                if !(used(&address) || avoid && confuses_old_devices(address)) {
                    return Some(address);
                }
                *next = after(address).filter(|next| range.contains(*next));
            }
        }
        None
    }
}

/// What a Service's status says and its families still allow. One that is ending keeps everything, and
/// so does one that does not say its families.
fn kept_of(service: &Service) -> impl Iterator<Item = (&IpAddr, &BTreeSet<Port>)> {
    service.held.iter().filter(|(address, _)| {
        service.ending
            || service.families.is_empty()
            || service.wanted().contains(&Family::of(**address))
    })
}

/// Whether two Services may have one address.
fn share(a: &Service, b: &Service) -> bool {
    a.wishes.sharing_key.is_some() && a.wishes.sharing_key == b.wishes.sharing_key
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
