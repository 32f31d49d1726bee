//! From findings to lives: who is dead, who is mute, who returns.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Finding, JOIN_MOST, Node, Watch, duty::watchers, gateway::Word};
use crate::model::Life;

/// Members that must agree on a death.
const LEAST_ACCUSERS: usize = 2;
/// That many members that find a node silent make its own word doubtful, unless it answers here.
const LEAST_DOUBTERS: usize = 2;
/// A node that only this one cannot reach, and whose agent is heard, is held for alive after this.
const VOUCHED: Duration = Duration::from_secs(2);

/// After isolation others may accuse each other for a while: their reports of the cut are taken back
/// only as gossip finds its way again. Until then nobody dies.
const HEALING: Duration = Duration::from_secs(2);

/// What is said of a node that lives so far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    Lives,
    Silent,
    /// To this node, and nobody else's word counts.
    SilentToOne,
}

impl Watch {
    /// Draws the conclusions from all that came in.
    pub fn decide(&mut self, now: Instant) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        // A death or return may take away or bring a witness; every pass but the last moves somebody.
        let mut moved = true;
        while moved {
            self.weigh();
            moved = self.follow_findings();
            moved |= self.bury(now);
            moved |= self.bring_back(now);
            self.update_able();
            self.moved |= moved;
        }
        let unknown = |node: &&Node| node.fate.life == Life::Unknown;
        self.unknown = self.nodes.values().filter(unknown).count();
        let started = *self.started.get_or_insert(now);
        // The network of a node that boots may need its time: the silent are not dead for that.
        self.ready |= self.nodes.values().all(|node| node.fate.life.forwards())
            || now >= started + JOIN_MOST && self.unknown == 0;
        self.assign(now);
        self.speak(now);
        self.wake = self.next_wake(now);
        self.changed = true;
    }

    /// Counts accusers and finds out whose word counts.
    fn weigh(&mut self) {
        let accusers: Vec<usize> = self
            .nodes
            .keys()
            .map(|name| {
                let accusing = self.words_on(name).filter(|(origin, word)| {
                    word.finding == Finding::Silent && self.speaks(origin)
                });
                accusing.count()
            })
            .collect();
        let rules = &self.rules;
        for (node, accusers) in self.nodes.values_mut().zip(accusers) {
            node.accusers = accusers;
            let gist = node.eye.gist(rules);
            // What this node sees for itself outweighs what it is told.
            let credible = match gist.finding {
                Some(Finding::Silent) => false,
                Some(finding) if finding != Finding::Unheard && !gist.failing => true,
                _ => accusers < LEAST_DOUBTERS,
            };
            node.trusted = node.fate.life == Life::Alive && credible;
        }
    }

    /// First answers, first silence, and what agents do. True if somebody's life changed.
    fn follow_findings(&mut self) -> bool {
        let told: Vec<Finding> = self.nodes.keys().map(|name| self.told(name)).collect();
        let mut moved = false;
        for (node, told) in self.nodes.values_mut().zip(told) {
            let before = node.fate.life;
            match (before, node.eye.gist(&self.rules).finding) {
                (Life::Dead, _) => {}
                (Life::Unknown, Some(Finding::Unheard | Finding::Silent)) => node.fate.give_up(),
                (_, Some(Finding::Silent | Finding::Unheard)) | (Life::Unknown, None) => {}
                (_, Some(finding)) => node.fate.observe(finding, node.card),
                (_, None) => node.fate.observe(told, node.card),
            }
            moved |= node.fate.life != before;
        }
        moved
    }

    /// What others say of an agent that this node doesn't look after: any positive word counts.
    fn told(&self, name: &str) -> Finding {
        let credible = self.words_on(name).filter(|(origin, _)| self.trusts(origin));
        let mut findings = credible.map(|(_, word)| word.finding).filter(|it| it.is_mute());
        let first = findings.next();
        if findings.chain(first).any(|it| it == Finding::MuteLong) {
            Finding::MuteLong
        } else {
            first.unwrap_or_default()
        }
    }

    fn trusts(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|node| node.trusted)
    }

    /// Lets die whom the witnesses condemn, once the gateway agrees where it must be asked.
    fn bury(&mut self, now: Instant) -> bool {
        let alone = !self.nodes.values().any(|node| node.trusted);
        let (mut condemned, mut lonely) = (Vec::new(), alone);
        for (name, node) in self.nodes.iter().filter(|(_, node)| node.fate.life.forwards()) {
            let verdict = self.verdict(name, node, alone);
            if verdict != Verdict::Lives {
                condemned.push(Arc::clone(name));
            }
            lonely |= verdict == Verdict::SilentToOne;
        }
        let word = if condemned.is_empty() {
            self.gateway.rest();
            Word::Wait
        } else if lonely || self.half_fell(now) {
            self.gateway.word(now)
        } else {
            self.gateway.rest();
            let healing = self.isolated || self.healing.is_some_and(|until| until > now);
            if healing { Word::Wait } else { Word::Stands }
        };
        if self.isolated && word != Word::Isolated {
            self.healing = Some(now + HEALING);
            tracing::info!("this node is no longer cut off");
        }
        if !self.isolated && word == Word::Isolated {
            tracing::warn!("neither other nodes nor the gateway answer: this node is cut off");
        }
        self.isolated = word == Word::Isolated;
        match word {
            Word::Wait => false,
            Word::Stands => self.let_die(&condemned, now),
            Word::Isolated => self.take_deaths_back(),
        }
    }

    /// What the witnesses say: most of those whose word counts, two at least. `alone`: nobody's but
    /// this node's does.
    fn verdict(&self, name: &str, node: &Node, alone: bool) -> Verdict {
        let own = node.finding(&self.rules);
        let own_silent = own == Some(Finding::Silent);
        if alone {
            let unreached = own.is_some_and(Finding::is_unreached);
            return if unreached { Verdict::SilentToOne } else { Verdict::Lives };
        }
        if node.accusers == 0 && !own_silent {
            return Verdict::Lives;
        }
        let (mut silent, mut witnesses) = (0, 0);
        for finding in self.testimony(name, node).into_iter().chain(own) {
            silent += usize::from(finding == Finding::Silent);
            witnesses += usize::from(finding != Finding::Unheard);
        }
        match (silent, witnesses) {
            (1, 1) if own_silent => Verdict::SilentToOne,
            _ if silent >= LEAST_ACCUSERS && silent * 2 > witnesses => Verdict::Silent,
            _ => Verdict::Lives,
        }
    }

    /// What others whose word counts find: a node's watchers, and whoever else accuses it.
    fn testimony(&self, name: &str, node: &Node) -> Vec<Finding> {
        let able = self.nodes.iter().filter(|(_, other)| other.able && other.ticket != node.ticket);
        let able = able.map(|(name, other)| (other.ticket, Some(name)));
        let own = (self.own_ticket, None);
        let watchers = watchers(node.ticket, able.chain([own])).into_iter().flatten();
        let accusing = self.words_on(name).filter(|(_, word)| word.finding == Finding::Silent);
        let accusers = accusing.map(|(origin, _)| origin);
        let witnesses: BTreeSet<_> =
            watchers.chain(accusers).filter(|it| self.trusts(it)).collect();
        let words = self.words.get(name);
        let finding = |witness| words.and_then(|it| it.get(witness)).map(|word| word.finding);
        witnesses
            .into_iter()
            .map(|witness: &Arc<str>| finding(witness).unwrap_or_default())
            .collect()
    }

    /// Whether half of the members or more fell silent within the suspicion time.
    fn half_fell(&self, now: Instant) -> bool {
        let since = now.checked_sub(self.rules.suspicion());
        let (mut members, mut fallen) = (1, 0);
        for (name, node) in &self.nodes {
            let died = node.fate.died_since(since);
            let gist = node.eye.gist(&self.rules);
            let falling = gist.failing
                || gist.finding == Some(Finding::Silent)
                || self
                    .words_on(name)
                    .any(|(origin, word)| word.finding == Finding::Silent && self.trusts(origin));
            members += usize::from(died || node.fate.life.forwards());
            fallen += usize::from(died || (node.fate.life.forwards() && falling));
        }
        fallen * 2 >= members
    }

    fn let_die(&mut self, condemned: &[Arc<str>], now: Instant) -> bool {
        for name in condemned {
            let Some(node) = self.nodes.get_mut(name) else { continue };
            tracing::warn!(node = &**name, accusers = node.accusers, "node is dead");
            node.fate.die(node.card, now);
        }
        !condemned.is_empty()
    }

    /// What died as part of what turns out to be this node's own isolation lives.
    fn take_deaths_back(&mut self) -> bool {
        let since =
            self.gateway.asked_since().and_then(|at| at.checked_sub(self.rules.suspicion()));
        let mut moved = false;
        for node in self.nodes.values_mut().filter(|node| node.fate.died_since(since)) {
            node.fate.revoke();
            moved = true;
        }
        moved
    }

    /// Lets dead nodes return whom everything speaks for, and long enough.
    fn bring_back(&mut self, now: Instant) -> bool {
        let dead = self.nodes.iter().filter(|(_, node)| node.fate.life == Life::Dead);
        let mut waits: BTreeMap<_, _> = dead
            .filter_map(|(name, node)| Some((Arc::clone(name), self.pardon(name, node)?)))
            .collect();
        let mut moved = false;
        for (name, node) in &mut self.nodes {
            let Some((wait, finding)) = waits.remove(name) else {
                node.pardoned = None;
                continue;
            };
            let (since, _) = *node.pardoned.insert((node.pardoned.map_or(now, |it| it.0), wait));
            if now.saturating_duration_since(since) >= wait {
                node.pardoned = None;
                node.fate.return_alive(finding, &self.rules.hold_downs, now);
                tracing::info!(node = &**name, held_for = ?node.fate.held_for(now), "node is back");
                moved = true;
            }
        }
        moved
    }

    /// How long what speaks for a dead node must hold, and what it returns as: it has answered here for
    /// `rise` rounds and isn't condemned, or others vouch for it.
    fn pardon(&self, name: &str, node: &Node) -> Option<(Duration, Finding)> {
        let gist = node.eye.gist(&self.rules);
        if gist.risen && self.verdict(name, node, false) == Verdict::Lives {
            // Two that still accuse it may condemn it again when a witness drops out.
            let disputed = node.accusers >= LEAST_ACCUSERS;
            let wait = if disputed { self.rules.suspicion() } else { Duration::ZERO };
            return Some((wait, gist.finding.unwrap_or_default()));
        }
        self.vouched(node).then(|| (VOUCHED, self.told(name)))
    }

    /// Its agent is heard, nobody but this node finds it silent, and somebody else would.
    fn vouched(&self, node: &Node) -> bool {
        let others = || self.nodes.values().filter(|it| it.trusted && it.ticket != node.ticket);
        node.heard && node.accusers == 0 && others().next().is_some()
    }

    /// When time alone changes a decision.
    fn next_wake(&self, now: Instant) -> Option<Instant> {
        let of_nodes = self.nodes.values().flat_map(|node| {
            let tell = node.fate.back.map(|at| at + super::assign::TELL_AFTER);
            let tell = tell.filter(|_| node.fate.void > 0);
            [node.fate.held_until(now), node.pardoned.map(|(since, wait)| since + wait), tell]
        });
        let join = self.started.filter(|_| !self.ready).map(|started| started + JOIN_MOST);
        let all = of_nodes.flatten().chain(self.gateway.next_timer()).chain(self.healing);
        let all = all.chain(join);
        all.filter(|at| *at > now).min()
    }
}
