//! From the words of all probers to one verdict a target.
//!
//! The majority of a target's probers decides: where its node has an agent, that is the only one. A
//! verdict is sticky: probers without a word, ties, entries that vanish and agents that start again
//! change nothing until somebody says something new. A target that nobody ever judged has no verdict.
//!
//! Pure: told what was probed, what others say and who lives; never probes, sends or reads a clock. A
//! word costs what it concerns, not what there is; a change of the living agents costs one pass.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    assign::Agents,
    word::{Name, Word, name},
};
use crate::{
    membership::topic::{Change, Key, Topic},
    model::{Cause, Health, Members, Target, Targets, UnixTime, Verdicts},
};

/// An entry of this member that all others should know; without a value: its end.
pub type Publication = (Key, Option<Vec<u8>>);

/// Another member's entry is no word on a target.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a verdict that is none")]
pub struct Malformed;

/// One target and who probes it.
#[derive(Debug)]
struct Asked {
    target: Arc<Target>,
    node: Arc<str>,
    probers: Vec<Arc<str>>,
}

/// All words, and what follows from them.
#[derive(Debug)]
pub struct Combine {
    own: Arc<str>,
    seed: [u8; 16],
    /// This agent's life.
    run: u64,
    agents: Agents,
    asked: BTreeMap<Name, Asked>,
    names: BTreeMap<Arc<Target>, Name>,
    /// By target and member, also of targets that nobody asks for here yet: as many as the board holds.
    words: BTreeMap<Name, BTreeMap<Arc<str>, Word>>,
    /// The latest life of each other member.
    runs: BTreeMap<Arc<str>, u64>,
    verdicts: Verdicts,
    publications: Vec<Publication>,
    /// What this member probes may have changed.
    reassigned: bool,
    /// Verdicts or their causes have changed.
    touched: bool,
}

impl Combine {
    /// Nothing known, nobody else alive. `run` must be greater in each life of the agent.
    pub fn new(own: &str, seed: [u8; 16], run: u64) -> Self {
        Self {
            own: own.into(),
            seed,
            run,
            agents: Agents::of(own, &Members::default()),
            asked: BTreeMap::new(),
            names: BTreeMap::new(),
            words: BTreeMap::new(),
            runs: BTreeMap::new(),
            verdicts: Verdicts::new(),
            publications: Vec::new(),
            reassigned: false,
            touched: false,
        }
    }

    /// What is to be judged. The verdicts of what is no longer asked for are forgotten.
    pub fn set_targets(&mut self, wanted: &Targets, now: UnixTime) {
        let gone = self.names.iter().filter(|(target, _)| !wanted.contains_key(*target));
        for (target, name) in gone.map(|(target, name)| (target.clone(), *name)).collect::<Vec<_>>()
        {
            self.withdraw(&name);
            self.names.remove(&target);
            self.asked.remove(&name);
            self.verdicts.remove(&target);
            (self.reassigned, self.touched) = (true, true);
        }
        for (target, node) in wanted {
            let name = match self.names.get(target) {
                Some(name) if self.asked[name].node == *node => continue,
                Some(name) => *name,
                None => name(&self.seed, target),
            };
            self.names.insert(target.clone(), name);
            let (target, node) = (target.clone(), node.clone());
            let probers = self.asked.remove(&name).map_or_else(Vec::new, |former| former.probers);
            self.asked.insert(name, Asked { target, node, probers });
            self.assign(&name, now);
        }
    }

    /// Who lives. A node that is cut off from most others keeps what it knew of them.
    pub fn set_members(&mut self, members: &Members, now: UnixTime) {
        if members.isolated {
            return;
        }
        let agents = Agents::of(&self.own, members);
        if agents == self.agents {
            return;
        }
        self.agents = agents;
        for name in self.asked.keys().copied().collect::<Vec<_>>() {
            self.assign(&name, now);
        }
    }

    /// This member's probes have decided anew. Counts only while it is the target's prober.
    pub fn on_probe(&mut self, target: &Target, health: &Health, now: UnixTime) {
        let Some(name) = self.names.get(target).copied() else { return };
        let Some(word) = Word::new(self.run, health) else { return };
        if !self.is_mine(&name) {
            return;
        }
        let words = self.words.entry(name).or_default();
        let former = words.get(&self.own);
        // Reasons come and go with every probe of some targets: the first is enough for the others.
        if former.is_none_or(|former| former.up != word.up) {
            self.publications.push((key(&name), Some(word.encode())));
        }
        words.insert(self.own.clone(), word);
        self.judge(&name, now);
    }

    /// Another member's entry changed. Those of other topics are nothing to this.
    pub fn on_change(&mut self, change: &Change, now: UnixTime) -> Result<(), Malformed> {
        let Change { origin, key, value } = change;
        if key.topic != Topic::VERDICT || *origin == self.own {
            return Ok(());
        }
        let name = Name::try_from(key.name.as_slice()).map_err(|_| Malformed)?;
        match value {
            Some(value) => {
                let word = Word::decode(value).ok_or(Malformed)?;
                let run = self.runs.entry(origin.clone()).or_insert(word.run);
                if word.run < *run {
                    return Ok(());
                }
                if std::mem::replace(run, word.run) < word.run {
                    self.forget(origin, now);
                }
                self.words.entry(name).or_default().insert(origin.clone(), word);
            }
            None => self.forget_word(&name, origin),
        }
        self.judge(&name, now);
        Ok(())
    }

    /// The targets that this member probes.
    pub fn mine(&self) -> BTreeSet<Arc<Target>> {
        let mine = self.asked.values().filter(|asked| asked.probers.contains(&self.own));
        mine.map(|asked| asked.target.clone()).collect()
    }

    /// Whether [`Combine::mine`] may have changed since this was asked last.
    pub fn take_reassigned(&mut self) -> bool {
        std::mem::take(&mut self.reassigned)
    }

    /// What the others should know, in order.
    pub fn take_publications(&mut self) -> Vec<Publication> {
        std::mem::take(&mut self.publications)
    }

    /// Whether [`Combine::verdicts`] have changed since this was asked last, be it only in their causes.
    pub fn take_touched(&mut self) -> bool {
        std::mem::take(&mut self.touched)
    }

    pub fn verdicts(&self) -> &Verdicts {
        &self.verdicts
    }

    fn is_mine(&self, name: &Name) -> bool {
        self.asked.get(name).is_some_and(|asked| asked.probers.contains(&self.own))
    }

    /// Gives a target its probers. Whoever is none any more withdraws its word.
    fn assign(&mut self, name: &Name, now: UnixTime) {
        let Some(asked) = self.asked.get_mut(name) else { return };
        let probers = self.agents.probers(&self.seed, &asked.node, name);
        if probers == asked.probers {
            return;
        }
        let [was, is] = [&asked.probers, &probers].map(|probers| probers.contains(&self.own));
        asked.probers = probers;
        self.reassigned |= was != is;
        if was && !is {
            self.withdraw(name);
        }
        self.judge(name, now);
    }

    /// Ends this member's own word.
    fn withdraw(&mut self, name: &Name) {
        let own = self.own.clone();
        if self.words.get(name).is_some_and(|words| words.contains_key(&own)) {
            self.forget_word(name, &own);
            self.publications.push((key(name), None));
        }
    }

    fn forget_word(&mut self, name: &Name, origin: &Arc<str>) {
        if let Some(words) = self.words.get_mut(name) {
            words.remove(origin);
            if words.is_empty() {
                self.words.remove(name);
            }
        }
    }

    /// An agent has started again: what it said before is void, what followed from that stands.
    fn forget(&mut self, origin: &Arc<str>, now: UnixTime) {
        let said = self.words.iter().filter(|(_, words)| words.contains_key(origin));
        for name in said.map(|(name, _)| *name).collect::<Vec<_>>() {
            self.forget_word(&name, origin);
            self.judge(&name, now);
        }
    }

    /// Takes over what the probers of a target say, if that decides.
    fn judge(&mut self, name: &Name, now: UnixTime) {
        let Some(Asked { target, probers, .. }) = self.asked.get(name) else { return };
        let words = self.words.get(name);
        let said = probers.iter().filter_map(|prober| words?.get(prober));
        let (ups, downs): (Vec<_>, Vec<_>) = said.partition(|word| word.up);
        let former = self.verdicts.get(target);
        let health = match majority(probers.len(), ups.len(), downs.len()) {
            Some(true) => Some(Health::Up),
            Some(false) => downs.first().map(|word| word.health()),
            None => former.cloned(),
        };
        let Some(health) = health else { return };
        let known = self.verdicts.cause(target);
        let same = former.is_some_and(|former| former.serves() == health.serves());
        let since = known.filter(|_| same).map_or(now, |known| known.since);
        let cause = Cause { by: probers.clone(), up: ups.len(), down: downs.len(), since };
        match (former == Some(&health), known == Some(&cause)) {
            (true, true) => return,
            (true, false) => self.verdicts.set_cause(target, cause),
            (false, _) => self.verdicts.insert_with(target.clone(), health, Some(cause)),
        }
        self.touched = true;
    }
}

/// Whether a target is up by the votes of its probers; `None` if they do not decide.
fn majority(probers: usize, up: usize, down: usize) -> Option<bool> {
    match (2 * up > probers, 2 * down > probers) {
        (true, false) => Some(true),
        (false, true) => Some(false),
        _ => None,
    }
}

fn key(name: &Name) -> Key {
    Key::new(Topic::VERDICT, *name)
}

#[cfg(test)]
#[path = "combine_tests.rs"]
mod tests;
