//! Which of a pool's endpoints are near enough to this node to be preferred.
//!
//! Pure. The hints of EndpointSlices say whose clients an endpoint is meant for; the node that sends a client's
//! packets on stands for the client. As a whole or not at all: where every usable endpoint is meant for some
//! nodes, and one for this node, only those for this node are near; else the same with zones; else all are.
//! What terminates and is not ready serves only where nothing else does, so it says nothing and is far from everybody
//! else.

use super::{members::Found, snapshot::Hints};

/// Whom the hints of one kind name.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Whom {
    /// There is no hint.
    #[default]
    Nobody,
    Others,
    /// This node, or its zone, too.
    Us,
}

impl Whom {
    fn of(names: &[String], own: Option<&str>) -> Self {
        match own.is_some_and(|own| names.iter().any(|name| name == own)) {
            true => Self::Us,
            false if names.is_empty() => Self::Nobody,
            false => Self::Others,
        }
    }
}

/// The hints of one endpoint, as this node sees them.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Hinted {
    node: Whom,
    zone: Whom,
}

impl Hinted {
    /// `own`, `zone`: this node's.
    pub fn of(hints: Option<&Hints>, own: &str, zone: Option<&str>) -> Self {
        let Some(hints) = hints else { return Self::default() };
        Self { node: Whom::of(&hints.nodes, Some(own)), zone: Whom::of(&hints.zones, zone) }
    }
}

/// What the usable endpoints of one pool agree on.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Near {
    node: Agreed,
    zone: Agreed,
    /// Some endpoint does not terminate.
    any_stays: bool,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Agreed {
    /// Every endpoint has a hint of the kind.
    all: bool,
    /// One of them names us.
    us: bool,
}

impl Agreed {
    fn among(hints: impl Iterator<Item = Whom> + Clone) -> Self {
        let all = hints.clone().next().is_some() && hints.clone().all(|whom| whom != Whom::Nobody);
        Self { all, us: all && hints.clone().any(|whom| whom == Whom::Us) }
    }
}

impl Near {
    pub fn among<'a>(usable: impl Iterator<Item = &'a Found>) -> Self {
        let stay = usable.filter(|it| !it.is_last_resort());
        let stay: Vec<Hinted> = stay.map(|it| it.hinted).collect();
        let hinted = stay.iter();
        Self {
            node: Agreed::among(hinted.clone().map(|it| it.node)),
            zone: Agreed::among(hinted.clone().map(|it| it.zone)),
            any_stays: !stay.is_empty(),
        }
    }

    /// Whether nodes may differ in what they prefer, this one or another.
    pub fn by_place(self) -> bool {
        self.node.all || self.zone.all
    }

    pub fn is_far(self, endpoint: &Found) -> bool {
        if endpoint.is_last_resort() {
            return self.any_stays;
        }
        match (self.node.us, self.zone.us) {
            (true, _) => endpoint.hinted.node != Whom::Us,
            (false, true) => endpoint.hinted.zone != Whom::Us,
            (false, false) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An endpoint with hints for nodes and zones, as node n1 in zone a sees it; `-`: terminating.
    fn endpoint(text: &str) -> Found {
        let (terminating, text) = (text.starts_with('-'), text.trim_start_matches('-'));
        let names = |kind: char| {
            let words = text.split(' ').filter(|word| word.starts_with(kind));
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        let hints = Hints { nodes: names('n'), zones: names('z') };
        Found {
            node: String::new(),
            ready: !terminating,
            serving: true,
            terminating,
            hinted: Hinted::of(Some(&hints), "n1", Some("za")),
        }
    }

    #[test]
    fn hints_count_as_a_whole_nodes_before_zones() {
        for (condition, usable, near, by_place) in [
            ("no hints", &["", ""][..], &[0, 1][..], false),
            ("a node of ours", &["n1 za", "n2 za", "n1 n2 zb"], &[0, 2], true),
            ("nodes, none of them ours", &["n2 zb", "n3 za"], &[1], true),
            ("one without a node", &["n1 zb", "za", "za"], &[1, 2], true),
            ("a zone of ours", &["za", "zb", "za zb"], &[0, 2], true),
            ("zones, none of them ours", &["zb", "zc"], &[0, 1], true),
            ("one without a zone", &["za", "zb", ""], &[0, 1, 2], false),
            ("one that ends says nothing", &["za", "zb", "-"], &[0], true),
            ("all end", &["-za", "-zb"], &[0, 1], false),
        ] {
            let endpoints: Vec<Found> = usable.iter().map(|text| endpoint(text)).collect();
            let found = Near::among(endpoints.iter());
            let not_far = (0..endpoints.len()).filter(|n| !found.is_far(&endpoints[*n]));
            assert_eq!(not_far.collect::<Vec<_>>(), near, "{condition}");
            assert_eq!(found.by_place(), by_place, "{condition}");
        }
    }

    #[test]
    fn a_node_without_a_zone_is_in_no_zone() {
        let hints = Hints { nodes: Vec::new(), zones: vec![String::new()] };
        let hinted = Hinted::of(Some(&hints), "n1", None);
        assert_eq!(hinted, Hinted { node: Whom::Nobody, zone: Whom::Others });
    }
}
