//! Ranges of addresses: reading, cutting, counting. Never lists the addresses in one: a /32 of IPv6
//! costs what a single address does.

use std::{fmt, net::IpAddr, str::FromStr};

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    pub fn other(self) -> Self {
        match self {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        }
    }

    fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// The address of this number; `number` fits the family.
    fn address(self, number: u128) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4((number as u32).into()),
            Family::V6 => IpAddr::V6(number.into()),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// The addresses of one family from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

/// Why a text is no range of addresses that may be given out.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadRange {
    #[error("{0:?} is no CIDR, no range FIRST-LAST and no address")]
    Form(String),
    #[error("{text:?}: the prefix of an {family} address has 0 to {} bits", .family.bits())]
    PrefixLength { text: String, family: Family },
    #[error(
        "{text:?} has bits behind its prefix: write {network}, or {address} for that address alone"
    )]
    HostBits { text: String, network: String, address: IpAddr },
    #[error("{0:?}: first and last are of different families")]
    Families(String),
    #[error("{0:?}: the last address is before the first")]
    Order(String),
    #[error("{0:?} is IPv4 in the form of IPv6: write it as IPv4")]
    Mapped(String),
    #[error("{0:?} holds addresses that no VIP can have: {1}")]
    Unusable(String, &'static str),
}

impl Range {
    /// None: families differ, or `last` is before `first`.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (Family::of(first) == Family::of(last) && first <= last).then_some(Self { first, last })
    }

    pub fn first(&self) -> IpAddr {
        self.first
    }

    pub fn last(&self) -> IpAddr {
        self.last
    }

    pub fn family(&self) -> Family {
        Family::of(self.first)
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        // The order of `IpAddr` puts all of IPv4 before IPv6, so a range never spans both.
        self.first <= address && address <= self.last
    }

    /// How many addresses; the greatest number for all of IPv6, which has one more.
    pub fn count(&self) -> u128 {
        (number(self.last) - number(self.first)).saturating_add(1)
    }

    pub fn overlap(&self, other: &Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// What is left of this range without `other`: nothing, one part or two.
    pub fn without(&self, other: &Self) -> impl Iterator<Item = Self> + use<> {
        let (below, above) = match self.overlap(other) {
            None => (Some(*self), None),
            Some(cut) => (
                (self.first < cut.first).then(|| Self { last: before(cut.first), ..*self }),
                after(cut.last)
                    .filter(|next| *next <= self.last)
                    .map(|first| Self { first, ..*self }),
            ),
        };
        below.into_iter().chain(above)
    }
}

/// In ascending order, each address in one range only.
pub fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.contains(range.first) || after(last.last) == Some(range.first) => {
                last.last = last.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// The next address of the family.
pub fn after(address: IpAddr) -> Option<IpAddr> {
    let family = Family::of(address);
    let most = u128::MAX >> (128 - family.bits());
    let number = number(address);
    (number < most).then(|| family.address(number + 1))
}

/// The address before one that is not the family's first.
fn before(address: IpAddr) -> IpAddr {
    Family::of(address).address(number(address).saturating_sub(1))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// `.0` and `.255` of IPv4: some old routers and firewalls take them for a network's own address or its
/// broadcast, whatever the prefix.
pub fn confuses_old_devices(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if matches!(v4.octets()[3], 0 | 255))
}

impl FromStr for Range {
    type Err = BadRange;

    /// A CIDR, `FIRST-LAST` or one address.
    fn from_str(text: &str) -> Result<Self, BadRange> {
        let form = || BadRange::Form(text.to_owned());
        let address = |part: &str| part.trim().parse::<IpAddr>().map_err(|_| form());
        let range = if let Some((network, length)) = text.split_once('/') {
            cidr(text, address(network)?, length.trim().parse().map_err(|_| form())?)?
        } else if let Some((first, last)) = text.split_once('-') {
            let (first, last) = (address(first)?, address(last)?);
            if Family::of(first) != Family::of(last) {
                return Err(BadRange::Families(text.to_owned()));
            }
            Self::new(first, last).ok_or_else(|| BadRange::Order(text.to_owned()))?
        } else {
            let only = address(text)?;
            Self { first: only, last: only }
        };
        refuse_unusable(text, &range)?;
        Ok(range)
    }
}

fn cidr(text: &str, network: IpAddr, length: u8) -> Result<Range, BadRange> {
    let family = Family::of(network);
    let Some(host_bits) = family.bits().checked_sub(length) else {
        return Err(BadRange::PrefixLength { text: text.to_owned(), family });
    };
    let hosts = match host_bits {
        0 => 0,
        bits => u128::MAX >> (128 - bits),
    };
    if number(network) & hosts != 0 {
        return Err(BadRange::HostBits {
            text: text.to_owned(),
            network: format!("{}/{length}", family.address(number(network) & !hosts)),
            address: network,
        });
    }
    Ok(Range { first: network, last: family.address(number(network) | hosts) })
}

fn refuse_unusable(text: &str, range: &Range) -> Result<(), BadRange> {
    let kinds: [(&str, &str, &str); 8] = [
        ("0.0.0.0", "0.255.255.255", "addresses of \"this host\""),
        ("127.0.0.0", "127.255.255.255", "loopback addresses"),
        ("169.254.0.0", "169.254.255.255", "link-local addresses"),
        ("224.0.0.0", "255.255.255.255", "multicast and reserved addresses"),
        ("::", "::1", "the unspecified and the loopback address"),
        ("::ffff:0:0", "::ffff:ffff:ffff", "IPv4 in the form of IPv6"),
        ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "link-local addresses"),
        ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "multicast addresses"),
    ];
    if matches!(range.first, IpAddr::V6(first) if first.to_ipv4_mapped().is_some()) {
        return Err(BadRange::Mapped(text.to_owned()));
    }
    for (first, last, kind) in kinds {
        let bad = Range { first: fixed(first), last: fixed(last) };
        if range.overlap(&bad).is_some() {
            return Err(BadRange::Unusable(text.to_owned(), kind));
        }
    }
    Ok(())
}

fn fixed(text: &'static str) -> IpAddr {
    text.parse().expect("the table above holds addresses only")
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        text.parse().unwrap()
    }

    fn shown(ranges: impl IntoIterator<Item = Range>) -> Vec<String> {
        ranges.into_iter().map(|range| range.to_string()).collect()
    }

    #[test]
    fn cidr_range_and_address_are_read() {
        for (text, first_last, count) in [
            ("192.0.2.0/24", "192.0.2.0-192.0.2.255", 256),
            ("192.0.2.7/32", "192.0.2.7", 1),
            ("192.0.2.7", "192.0.2.7", 1),
            ("192.0.2.250 - 192.0.3.5", "192.0.2.250-192.0.3.5", 12),
            ("2001:db8::/64", "2001:db8::-2001:db8::ffff:ffff:ffff:ffff", 1 << 64),
            ("2001:db8::1-2001:db8::f", "2001:db8::1-2001:db8::f", 15),
        ] {
            assert_eq!((range(text).to_string(), range(text).count()), (first_last.into(), count));
        }
    }

    #[test]
    fn what_is_no_range_says_why() {
        for (text, says) in [
            ("public", "no CIDR"),
            ("192.0.2.0/33", "0 to 32 bits"),
            ("2001:db8::/129", "0 to 128 bits"),
            ("192.0.2.10/24", "write 192.0.2.0/24, or 192.0.2.10 for"),
            ("192.0.2.1-2001:db8::1", "different families"),
            ("192.0.2.9-192.0.2.1", "before the first"),
            ("::ffff:192.0.2.1", "write it as IPv4"),
            ("0.0.0.0/0", "this host"),
            ("::/0", "unspecified"),
            ("223.0.0.0-224.0.0.1", "multicast"),
            ("fe80::1", "link-local"),
            ("127.0.0.1", "loopback"),
            ("", "no CIDR"),
        ] {
            let why = text.parse::<Range>().unwrap_err().to_string();
            assert!(why.contains(says), "{text}: {why}");
        }
    }

    #[test]
    fn ranges_are_cut_and_merged() {
        let cut = |a: &str, b: &str| shown(range(a).without(&range(b)));
        assert_eq!(cut("192.0.2.0/24", "198.51.100.0/24"), ["192.0.2.0-192.0.2.255"]);
        assert_eq!(
            cut("192.0.2.0/30", "192.0.2.1-192.0.2.2"),
            ["192.0.2.0", "192.0.2.3"],
            "in the middle"
        );
        assert!(cut("192.0.2.1", "192.0.2.0/24").is_empty());
        assert_eq!(cut("2001:db8::/126", "2001:db8::2-2001:db9::"), ["2001:db8::-2001:db8::1"]);
        let merged = merged(
            ["192.0.2.9", "2001:db8::1", "192.0.2.0/29", "192.0.2.8", "192.0.2.4-192.0.2.6"]
                .map(range)
                .to_vec(),
        );
        assert_eq!(shown(merged), ["192.0.2.0-192.0.2.9", "2001:db8::1"]);
    }

    #[test]
    fn the_ends_of_the_families_have_no_neighbour_beyond() {
        assert_eq!(after("255.255.255.255".parse().unwrap()), None);
        assert_eq!(after("192.0.2.255".parse().unwrap()), Some("192.0.3.0".parse().unwrap()));
        let all = Range::new("::".parse().unwrap(), IpAddr::V6(u128::MAX.into())).unwrap();
        assert_eq!(all.count(), u128::MAX);
        assert_eq!(all.without(&all).count(), 0);
    }
}
