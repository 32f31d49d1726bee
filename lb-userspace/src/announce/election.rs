//! Which VIPs this node announces, and why.
//!
//! All nodes choose by the same order of candidates, but their views may differ for a moment. So who is
//! elected takes a VIP at once, and who had it gives it up only when a better candidate has said for a
//! while that it announces it: two announcers are harmless, none is not. Who is elected and says nothing
//! is passed over, one candidate a second. Pure: time comes in; nothing is sent or written here.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    Uplink,
    candidates::{Candidate, Exclusion, Facts, Field, Fields, Inputs, Standing},
    uplink::{allows, announcing_interfaces, uplink_for},
};
use crate::model::{CardInterface, Life, MemberState, Members, Problem};

/// How long each candidate waits for one that is before it.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// How long a better candidate must have said without a break that it announces a VIP before this node
/// gives it up: longer than two members' views differ, so that two never give way to each other.
pub const OVERLAP: Duration = Duration::from_millis(500);

/// How long after an agent was mute its word on a VIP that others took from it does not count, unless it
/// takes that word back: longer than a mute agent looks alive.
pub const DISTRUST: Duration = Duration::from_secs(3);

/// Candidates, and nodes of each kind of exclusion, that a [`Why`] names.
pub const MOST_NAMED: usize = 8;

/// Who announces a VIP, as this node sees it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Why {
    /// None: no living node may announce it.
    pub elected: Option<String>,
    /// Nodes that say that they announce it, up to [`MOST_NAMED`]; this one by its own decision.
    pub announced_by: Vec<String>,
    /// In the order in which they are elected, up to [`MOST_NAMED`].
    pub candidates: Vec<(String, Standing)>,
    /// Nodes that may not, up to [`MOST_NAMED`] for each reason.
    pub excluded: BTreeMap<Exclusion, Vec<String>>,
    /// How long ago the elected changed, or what this node does about it.
    pub for_seconds: u64,
}

/// What is remembered of a VIP between two turns.
#[derive(Debug)]
struct Memory {
    why: Why,
    announced: bool,
    since: Instant,
    /// Nobody better announces it, and this node does not either: since then.
    open: Option<Instant>,
    /// Who announces it and is better, and since when, while this node does too.
    better: Option<(String, Instant)>,
    /// Who announced it when it was mute for long, and was last seen mute: others have it since.
    void: BTreeMap<String, Instant>,
    /// When time alone may change the decision.
    deadline: Option<Instant>,
}

/// The elections of all VIPs, from this node's point of view.
#[derive(Debug, Default)]
pub struct Election(BTreeMap<IpAddr, Memory>);

impl Election {
    /// What this node announces from now on, and on which interface. To be called when any input
    /// changes, and at [`Self::next_deadline`].
    pub fn decide(&mut self, inputs: &Inputs<'_>, now: Instant) -> BTreeMap<IpAddr, Uplink> {
        self.0.retain(|vip, _| inputs.vips.contains(vip));
        let own = announcing_interfaces(&inputs.intent.agent, inputs.interfaces);
        let fields = Fields::new(*inputs, &own);
        let mut announced = BTreeMap::new();
        for vip in inputs.vips.iter().copied() {
            let field = fields.of(vip);
            let memory = self.0.entry(vip).or_insert_with(|| Memory::new(now));
            memory.distrust(inputs.members, vip, now);
            let turn = turn(inputs, &field, vip, &memory.void);
            let uplink = memory
                .decide(&turn, now)
                .then(|| uplink(inputs, &own, fields.patterns(vip), vip))
                .flatten();
            memory.explain(inputs, &field, vip, uplink.is_some(), now);
            announced.extend(uplink.map(|uplink| (vip, uplink)));
        }
        announced
    }

    /// When [`Self::decide`] may say something else although nothing changed.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.0.values().filter_map(|memory| memory.deadline).min()
    }

    /// Who is elected for a VIP.
    pub fn elected(&self, vip: IpAddr) -> Option<&str> {
        self.0.get(&vip)?.why.elected.as_deref()
    }

    pub fn whys(&self, now: Instant) -> BTreeMap<IpAddr, Why> {
        let why = |(vip, memory): (&IpAddr, &Memory)| {
            let for_seconds = now.saturating_duration_since(memory.since).as_secs();
            (*vip, Why { for_seconds, ..memory.why.clone() })
        };
        self.0.iter().map(why).collect()
    }

    /// VIPs that nobody may announce.
    pub fn problems(&self) -> Vec<Problem> {
        let homeless = self.0.iter().filter(|(_, memory)| memory.why.elected.is_none());
        homeless.map(|(vip, memory)| memory.why.problem(*vip)).collect()
    }
}

impl Why {
    fn problem(&self, vip: IpAddr) -> Problem {
        let reason = |(reason, nodes): (&Exclusion, &Vec<String>)| {
            format!("{} ({})", reason.word(), nodes.join(", "))
        };
        let reasons: Vec<_> = self.excluded.iter().map(reason).collect();
        let message = format!("no node announces it: {}", reasons.join("; "));
        Problem { object: format!("VIP/{vip}"), message }
    }
}

/// One VIP's view in one turn.
struct Turn<'a> {
    /// Candidates before this node; all where it is none itself.
    ahead: &'a [Candidate<'a>],
    /// Its place; None: it may not announce.
    place: Option<usize>,
    nobody: bool,
    /// The first candidate ahead that says that it announces the VIP.
    better: Option<&'a str>,
    announced: bool,
    /// Whether anything may be taken or given up.
    free: bool,
    /// How long this node waits even where it comes first.
    patience: Duration,
}

fn turn<'a>(
    inputs: &Inputs<'_>,
    field: &'a Field<'a>,
    vip: IpAddr,
    void: &BTreeMap<String, Instant>,
) -> Turn<'a> {
    let members = inputs.members;
    let place = field.order.iter().position(|it| it.name == members.own);
    let ahead = &field.order[..place.unwrap_or(field.order.len())];
    let says =
        |it: &&Candidate<'_>| it.member.announces.contains(&vip) && !void.contains_key(it.name);
    // Who joins and has not yet read what the others say of themselves would take what they have.
    let joining = place.is_some_and(|at| field.order[at].standing == Standing::HeldBack);
    let unheard = |it: &Candidate<'_>| it.name != members.own && it.member.card.is_none();
    let late = joining && field.order.iter().any(unheard);
    Turn {
        ahead,
        place,
        nobody: field.order.is_empty(),
        better: ahead.iter().find(says).map(|it| it.name),
        announced: inputs.announced.contains_key(&vip),
        free: members.ready && !members.isolated,
        patience: if late { PATIENCE } else { Duration::ZERO },
    }
}

impl Memory {
    fn new(now: Instant) -> Self {
        Self {
            why: Why::default(),
            announced: false,
            since: now,
            open: None,
            better: None,
            void: BTreeMap::new(),
            deadline: None,
        }
    }

    /// Notes whose word tells what was: an agent that wakes may have lost the VIP meanwhile.
    fn distrust(&mut self, members: &Members, vip: IpAddr, now: Instant) {
        for (name, member) in &members.nodes {
            let known = self.void.get_mut(name);
            match known {
                Some(mute) if member.life == Life::Mute => *mute = now,
                None if member.mute_long && member.announces.contains(&vip) => {
                    self.void.insert(name.clone(), now);
                }
                _ => {}
            }
        }
        self.void.retain(|name, mute| {
            let says = members.nodes.get(name).is_some_and(|it| it.announces.contains(&vip));
            says && now < *mute + DISTRUST
        });
    }

    /// Whether this node announces the VIP now.
    fn decide(&mut self, turn: &Turn<'_>, now: Instant) -> bool {
        let better = turn.better.filter(|_| turn.announced && turn.free);
        self.better = better.map(|name| match self.better.take() {
            Some((same, since)) if same == name => (same, since),
            _ => (name.to_owned(), now),
        });
        let open = turn.better.is_none() && !turn.announced && turn.free && turn.place.is_some();
        self.open = open.then(|| self.open.unwrap_or(now));

        let gives_up = self.better.as_ref().map(|(_, since)| *since + OVERLAP);
        let waits = PATIENCE * turn.ahead.len() as u32;
        let takes = self.open.map(|since| since + waits.max(turn.patience));
        let trusts = self.void.values().map(|mute| *mute + DISTRUST).min();
        let deadlines = [gives_up, takes, trusts].into_iter().flatten();
        self.deadline = deadlines.filter(|at| *at > now).min();
        if !turn.free {
            turn.announced
        } else if turn.nobody {
            false
        } else if turn.announced {
            gives_up.is_none_or(|at| at > now)
        } else {
            takes.is_some_and(|at| at <= now)
        }
    }

    fn explain(
        &mut self,
        inputs: &Inputs<'_>,
        field: &Field<'_>,
        vip: IpAddr,
        announced: bool,
        now: Instant,
    ) {
        let announces = |name: &str, member: &MemberState| match name == inputs.members.own {
            true => announced,
            false => member.announces.contains(&vip),
        };
        let out = field.excluded.values().flatten().map(|it| (it.name(), it.member));
        let all = field.order.iter().map(|it| (it.name, it.member)).chain(out);
        let by = all.filter(|(name, member)| announces(name, member));
        let named = |nodes: &Vec<Facts<'_>>| {
            nodes.iter().take(MOST_NAMED).map(|facts| facts.name().to_owned()).collect()
        };
        let first = field.order.iter().take(MOST_NAMED);
        let why = Why {
            elected: field.order.first().map(|it| it.name.to_owned()),
            announced_by: by.take(MOST_NAMED).map(|(name, _)| name.to_owned()).collect(),
            candidates: first.map(|it| (it.name.to_owned(), it.standing)).collect(),
            excluded: field.excluded.iter().map(|(why, nodes)| (*why, named(nodes))).collect(),
            for_seconds: 0,
        };
        if why.elected != self.why.elected || announced != self.announced {
            self.since = now;
        }
        self.announced = announced;
        self.why = why;
    }
}

/// Where this node announces a VIP: where it may, else where it did, as long as that is there.
fn uplink(
    inputs: &Inputs<'_>,
    own: &[CardInterface],
    patterns: &[String],
    vip: IpAddr,
) -> Option<Uplink> {
    let names = own.iter().map(|it| &it.name).filter(|name| allows(patterns, name));
    let names: Vec<_> = names.cloned().collect();
    uplink_for(vip, &names, inputs.interfaces).or_else(|| {
        let link = inputs.interfaces.by_index(*inputs.announced.get(&vip)?)?;
        Some(Uplink { name: link.name.clone(), ifindex: link.ifindex, mac: link.mac? })
    })
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
