//! One node's agent: plans, remembers, scans and speaks by the product's own code. Only maps, sockets
//! and time are made up.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use weir::{
    claims::{fold::Fold, publish::Publisher},
    membership::{Change, Publication},
    model::{Intent, Members, Verdicts, drains::NONE_DRAINED},
    plan::{
        self, Changed, Desired, FrontendKey, History, Inputs,
        flows::{Consensus, Displaced, Former, Lineage},
        history::Rules,
    },
};

use super::{
    crowd::{Crowd, SECOND, State},
    site::{NodeNumber, Site, backend_address, backend_number, frontend, id_of, name_of, node_of},
    walk::{Held, nobody},
};

/// Between the starts of two scans: after a change, while something is young or claimed, else.
const SCAN: [usize; 3] = [SECOND, 5 * SECOND, 30 * SECOND];

/// Frontends that changed lately.
type Recent = Arc<BTreeMap<FrontendKey, Lineage>>;

/// What an agent is told in one turn.
pub struct News<'a> {
    pub now: usize,
    pub site: &'a Site,
    /// By set.
    pub intents: &'a [Intent],
    pub consensus: &'a Arc<Consensus>,
    /// Said of sets of before.
    pub lineages: &'a [Change],
    /// Names of all nodes there are.
    pub nodes: &'a Arc<[String]>,
}

pub struct Agent {
    number: NodeNumber,
    start: Instant,
    /// Loses its history at each step.
    forgetful: bool,
    /// The set in force since the last turn.
    pub set: usize,
    /// When the next one comes.
    pub due: Option<(usize, usize)>,
    history: History,
    desired: Desired,
    nodes: Arc<[String]>,
    members: Arc<Members>,
    /// What all know, as it was heard last, and what this node makes of it.
    heard: Arc<Consensus>,
    consensus: Arc<Consensus>,
    /// What others say of sets of before.
    lineages: Fold,
    /// What the data plane holds of the frontends, TCP first.
    pub held: [Held; 2],
    recent: Recent,
    publisher: Publisher,
    /// What was recent at the last scan, and when it was.
    scanned: (Recent, Option<usize>),
}

impl Agent {
    /// `start` is tick 0. Whoever joins late or is forgetful has waited for others' history in vain.
    pub fn new(
        number: NodeNumber,
        set: usize,
        now: usize,
        forgetful: bool,
        site: &Site,
        start: Instant,
    ) -> Self {
        Self {
            number,
            start,
            forgetful,
            set,
            due: Some((now, set)),
            history: history(site, now > 0),
            desired: Desired::default(),
            nodes: Arc::default(),
            members: Arc::default(),
            heard: Arc::default(),
            consensus: Arc::default(),
            lineages: Fold::new(name_of(number).into()),
            held: [nobody(), nobody()],
            recent: Arc::default(),
            publisher: Publisher::default(),
            scanned: Default::default(),
        }
    }

    /// A step begins: history is lost where this node is forgetful.
    pub fn forget(&mut self, site: &Site) {
        if self.forgetful {
            self.history = history(site, true);
            self.lineages = Fold::new(name_of(self.number).into());
            self.desired = Desired::default();
        }
    }

    /// One turn, where there is a reason for it.
    pub fn turn(&mut self, news: &News<'_>) {
        let now = self.start + tick(news.now);
        let due = self.due.take_if(|(when, _)| *when <= news.now);
        let joined = !Arc::ptr_eq(&self.nodes, news.nodes);
        let heard = self.hear(news);
        let late = self.history.next_deadline().is_some_and(|at| at <= now);
        if due.is_none() && !joined && !heard && !late {
            return;
        }
        if joined {
            self.nodes = news.nodes.clone();
            let names = self.nodes.iter().map(String::as_str);
            let assumed = Members::assumed(&name_of(self.number), names);
            self.members = Arc::new(Members { ready: true, ..assumed });
        }
        let before = due.map(|(_, set)| {
            self.set = set;
            let (intent, verdicts) = (&news.intents[set], &Verdicts::default());
            let members = &self.members;
            let inputs = Inputs { intent, verdicts, members, drained: &NONE_DRAINED };
            std::mem::replace(&mut self.desired, plan::desired(&inputs))
        });
        let (none, plan) = (BTreeSet::new(), &mut self.desired);
        let changed = before.as_ref().map_or(Changed::Owners(&none), Changed::Anew);
        let touched = self.history.remember(plan, changed, &self.consensus, &self.members, now);
        if due.is_some() || !touched.frontends.is_empty() || !touched.backends.is_empty() {
            self.hold(news.site);
        }
        let recent = self.history.recent();
        if self.recent != recent {
            self.recent = recent;
            self.lineages.set_recent(&self.recent);
        }
    }

    /// Takes note of what is said; whether it is new.
    fn hear(&mut self, news: &News<'_>) -> bool {
        if !self.forgetful {
            news.lineages.iter().for_each(|change| self.lineages.on_change(change));
        }
        let lineages = self.lineages.take();
        if lineages.is_none() && Arc::ptr_eq(&self.heard, news.consensus) {
            return false;
        }
        let known = &self.consensus.lineages;
        let lineages = lineages.map_or_else(|| known.clone(), |it| it.lineages.clone());
        self.heard = news.consensus.clone();
        self.consensus = match lineages.is_empty() {
            true => self.heard.clone(),
            false => Arc::new(Consensus { lineages, ..Consensus::clone(&self.heard) }),
        };
        true
    }

    /// Writes what is wanted into the data plane.
    fn hold(&mut self, site: &Site) {
        let backends: BTreeSet<_> = self.desired.backends.keys().map(backend_number).collect();
        for (held, tcp) in self.held.iter_mut().zip([true, false]) {
            let wanted = &self.desired.frontends[&frontend(tcp)];
            held.table = site.table(&wanted.owners);
            held.past = Default::default();
            for (place, former) in held.past.iter_mut().zip(&wanted.past) {
                *place = Some(match former {
                    Former::Owners(_, owners) => site.table(owners),
                    Former::Rank(rank) => {
                        site.ranks(&wanted.owners)[usize::from(*rank) - 2].clone()
                    }
                    Former::Held(_) => unreachable!("no agent was here before"),
                });
            }
            held.flags = wanted.flags;
            held.claims =
                wanted.claims.as_ref().map(|claims| site.claims(claims)).unwrap_or_default();
            held.backends.clone_from(&backends);
        }
    }

    /// Looks for displaced flows among those that end here, where it is time; what is to be told then.
    /// `at`: flows by backend.
    pub fn scan(&mut self, crowd: &Crowd, at: &[Vec<u32>], now: usize) -> Option<Vec<Publication>> {
        let rest = match () {
            () if self.recent != self.scanned.0 => SCAN[0],
            () if self.publisher.claims_any() || !self.recent.is_empty() => SCAN[1],
            () => SCAN[2],
        };
        if self.scanned.1.is_some_and(|last| now < last + rest) {
            return None;
        }
        self.scanned = (self.recent.clone(), Some(now));
        let mut displaced: BTreeMap<FrontendKey, BTreeMap<SocketAddr, Displaced>> = BTreeMap::new();
        let here = (0..).zip(at).filter(|(backend, _)| node_of(*backend) == self.number);
        for (backend, number) in
            here.flat_map(|(backend, of)| of.iter().map(move |it| (backend, *it)))
        {
            let flow = &crowd.flows[number as usize];
            let owner = self.held[usize::from(!flow.tcp)].table[usize::from(flow.slot)];
            if flow.state != State::At(backend) || owner == id_of(backend).0 {
                continue;
            }
            let claims = displaced.entry(frontend(flow.tcp)).or_default();
            let claim = claims.entry(backend_address(backend)).or_default();
            claim.flows += 1;
            claim.slots.insert(flow.slot);
        }
        let claims = self.publisher.claims(&displaced);
        let views = self.publisher.views(&self.recent);
        let lineages = self.publisher.lineages(&self.recent, &self.members);
        Some([claims, views, lineages].concat())
    }
}

fn history(site: &Site, waited: bool) -> History {
    let ranks = if waited { Duration::ZERO } else { Rules::default().ranks };
    History::new(site.seed, Rules { ranks, ..Rules::default() })
}

fn tick(ticks: usize) -> Duration {
    Duration::from_secs(1) / SECOND as u32 * ticks as u32
}
