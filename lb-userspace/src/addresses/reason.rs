//! Why a Service has no address, or has one that it would not be given today: one word for programs,
//! one sentence for people.

use std::{fmt, net::IpAddr};

use super::{
    pool::NotFor,
    range::Family,
    service::{Port, ServiceName},
};

/// Why a Service is not given what it is to have.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Refusal {
    /// A text that was to be an address.
    Unreadable(String),
    /// An address of a family that the Service does not have.
    NotItsFamily(IpAddr),
    /// Several addresses of one family.
    Several(Family),
    /// It has no port of TCP or UDP.
    NoPort,
    /// There is no pool at all.
    NoPools,
    UnknownPool(String),
    NoPoolOf(Family),
    /// Pools have the family, but none is for this Service.
    NonePermits {
        family: Family,
        pools: Vec<(String, Unfit)>,
    },
    Exhausted {
        family: Family,
        pools: Vec<String>,
    },
    NotInAnyPool(IpAddr),
    NotInPool {
        address: IpAddr,
        asked: String,
    },
    NotPermitted {
        address: IpAddr,
        pool: String,
        why: NotFor,
    },
    /// By what else than a Service of ours.
    Reserved {
        address: IpAddr,
        by: String,
    },
    Taken {
        address: IpAddr,
        by: ServiceName,
    },
    /// Under a common sharing key.
    PortTaken {
        address: IpAddr,
        port: Port,
        by: ServiceName,
    },
    /// An address of this family could be had, but both are required and the other was refused.
    OtherFamily(Family),
}

/// Why a pool gives a Service nothing by itself.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Unfit {
    NotFor(NotFor),
    /// Only who asks for the pool has its addresses.
    ByRequest,
}

impl Refusal {
    /// As reason of Events: CamelCase.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::Unreadable(_) | Refusal::NotItsFamily(_) | Refusal::Several(_) => {
                "InvalidAddressRequest"
            }
            Refusal::NoPort => "NoServedPort",
            Refusal::NoPools | Refusal::NoPoolOf(_) => "NoAddressPool",
            Refusal::UnknownPool(_) => "UnknownAddressPool",
            Refusal::NonePermits { .. } | Refusal::NotPermitted { .. } => "AddressPoolNotPermitted",
            Refusal::Exhausted { .. } => "AddressPoolExhausted",
            Refusal::NotInAnyPool(_) | Refusal::NotInPool { .. } => "AddressNotInPool",
            Refusal::Reserved { .. } | Refusal::Taken { .. } => "AddressTaken",
            Refusal::PortTaken { .. } => "PortTaken",
            Refusal::OtherFamily(_) => "DualStackUnsatisfied",
        }
    }

    /// Whether the Service asks for what cannot be, so that only its owner can mend it.
    pub fn is_the_services(&self) -> bool {
        matches!(
            self,
            Refusal::Unreadable(_)
                | Refusal::NotItsFamily(_)
                | Refusal::Several(_)
                | Refusal::NoPort
                | Refusal::UnknownPool(_)
                | Refusal::NotInAnyPool(_)
                | Refusal::NotInPool { .. }
                | Refusal::PortTaken { .. }
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Unreadable(text) => write!(f, "the requested {text:?} is no address"),
            Refusal::NotItsFamily(address) => {
                let family = Family::of(*address);
                write!(
                    f,
                    "{address} is requested, but the Service has no {family} cluster address: "
                )?;
                f.write_str("see spec.ipFamilies and spec.ipFamilyPolicy")
            }
            Refusal::Several(family) => {
                write!(f, "several {family} addresses are requested: one of a family can be had")
            }
            Refusal::NoPort => f.write_str("the Service has no TCP or UDP port"),
            Refusal::NoPools => f.write_str("there is no AddressPool: create one"),
            Refusal::UnknownPool(pool) => write!(f, "there is no AddressPool {pool}"),
            Refusal::NoPoolOf(family) => write!(f, "no AddressPool has {family} addresses"),
            Refusal::NonePermits { family, pools } => {
                write!(f, "no AddressPool gives this Service an {family} address: ")?;
                for (n, (pool, unfit)) in pools.iter().enumerate() {
                    write!(f, "{}{pool} {unfit}", if n == 0 { "" } else { "; " })?;
                }
                Ok(())
            }
            Refusal::Exhausted { family, pools } => {
                let s = if pools.len() == 1 { "" } else { "s" };
                write!(f, "every {family} address of AddressPool{s} {} is in use", pools.join(", "))
            }
            Refusal::NotInAnyPool(address) => {
                write!(f, "the requested {address} is in no AddressPool")
            }
            Refusal::NotInPool { address, asked } => {
                write!(f, "the requested {address} is not in the requested AddressPool {asked}")
            }
            Refusal::NotPermitted { address, pool, why } => {
                write!(f, "the requested {address} is of AddressPool {pool}, which {why}")
            }
            Refusal::Reserved { address, by } => {
                write!(f, "the requested {address} is an address of {by}")
            }
            Refusal::Taken { address, by } => write!(
                f,
                "the requested {address} is held by Service {by}; both need the same \
                 weir.dev/sharing-key to share it"
            ),
            Refusal::PortTaken { address, port, by } => {
                write!(f, "port {port} of the shared {address} is Service {by}'s")
            }
            Refusal::OtherFamily(family) => {
                write!(f, "both families are required, so no {family} address is given either")
            }
        }
    }
}

impl fmt::Display for NotFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotFor::Namespace => "is not for this namespace",
            NotFor::Labels => "is not for Services with these labels",
        })
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::NotFor(why) => why.fmt(f),
            Unfit::ByRequest => f.write_str("is given by request only"),
        }
    }
}

/// An address that a Service has and would not be given today. It stays, since clients know it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kept {
    OutsidePools(IpAddr),
    OtherPool {
        address: IpAddr,
        pool: String,
        asked: String,
    },
    NotPermitted {
        address: IpAddr,
        pool: String,
        why: NotFor,
    },
    /// With an older Service, and no common sharing key.
    Shared {
        address: IpAddr,
        with: ServiceName,
    },
    /// Something else claims it.
    Reserved {
        address: IpAddr,
        by: String,
    },
    /// The Service asks for another address, which it cannot have; the refusal says why.
    Instead(IpAddr),
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kept::OutsidePools(address) => {
                write!(f, "{address} is in no AddressPool any more; it is kept")
            }
            Kept::OtherPool { address, pool, asked } => write!(
                f,
                "{address} of AddressPool {pool} is kept, although {asked} is requested: to move, \
                 request an address of that pool"
            ),
            Kept::NotPermitted { address, pool, why } => {
                write!(f, "{address} is kept, although AddressPool {pool} {why}")
            }
            Kept::Shared { address, with } => write!(
                f,
                "{address} is shared with Service {with} without a common weir.dev/sharing-key; \
                 it is kept"
            ),
            Kept::Reserved { address, by } => {
                write!(f, "{address} is an address of {by} too; it is kept")
            }
            Kept::Instead(address) => {
                write!(f, "{address} is kept until the requested address can be had")
            }
        }
    }
}
