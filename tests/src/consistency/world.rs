//! Time goes on: sets come into force, agents take their turns, flows send.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use anyhow::Result;
use serde::Serialize;
use weir::model::Intent;

use super::{
    Mode, Settings,
    agent::{Agent, News},
    baseline::{Baselines, Fate},
    crowd::{Break, Crowd, SECOND, State, Story},
    dice::Dice,
    gossip::Gossip,
    scenario::Scenario,
    site::{NodeNumber, Site, name_of, node_of},
    walk::{End, Held, Without, walk},
};

/// Of a hundred flows so many change their forwarder at each step.
const MOVED: usize = 75;
/// Where views differ: of a hundred nodes so many are one step behind, and so many have no history.
const BEHIND: usize = 20;
const FORGETFUL: usize = 20;
/// Where views differ, the others follow a change within so many ticks.
const JITTER: usize = SECOND / 2;

/// What a story came to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Tally {
    /// Flows that broke because a backend got them that does not know them (TCP: a reset) …
    pub strangers: usize,
    /// … because they were refused …
    pub refused: usize,
    /// … because a segment never arrived, however often it was sent again.
    pub lost: usize,
    /// Of the same flows those that break with Maglev alone, and with flow tables in the forwarders.
    pub maglev: usize,
    pub tracked: usize,
    pub packets: u64,
    /// How often receivers sent a packet on, all together and at most for one packet.
    pub sends: u64,
    pub most_sends: usize,
    /// Segments that were dropped, so that clients sent them again.
    pub again: u64,
    /// Datagrams that were dropped.
    pub datagrams_lost: u64,
}

impl Tally {
    /// Flows that weir broke.
    pub fn broken(&self) -> usize {
        self.strangers + self.refused + self.lost
    }
}

pub struct World<'a> {
    site: &'a Site,
    scenario: &'a Scenario,
    mode: Mode,
    without: Without,
    story: Story,
    /// Tick 0.
    start: Instant,
    intents: Vec<Intent>,
    nodes: Arc<[String]>,
    agents: Vec<Agent>,
    gossip: Gossip,
    crowd: Crowd,
    /// Flows by the backend that knows them.
    at: Vec<Vec<u32>>,
    baselines: Baselines,
    dice: Dice,
    tally: Tally,
}

impl<'a> World<'a> {
    pub fn new(site: &'a Site, scenario: &'a Scenario, settings: &Settings) -> Result<Self> {
        let Settings { mode, without, flows, interval_s, seed } = *settings;
        let mut dice = Dice::new(seed, 1);
        let story = Story::new(scenario.sets.len() - 1, interval_s as usize * SECOND);
        let crowd = Crowd::new(flows, site, story, &mut Dice::new(seed, 2));
        let all = scenario.backends();
        let present = match mode {
            Mode::Equal => all,
            Mode::Hard => scenario.sets[0].iter().max().map_or(0, |last| last + 1),
        };
        let nodes = usize::from(node_of(present - 1)) + 1;
        let forgetful = match mode {
            Mode::Equal => vec![false; nodes],
            Mode::Hard => dice.choose(nodes, FORGETFUL),
        };
        let start = Instant::now();
        let agents = (0..).zip(forgetful);
        let agents = agents.map(|(node, forgetful)| Agent::new(node, 0, 0, forgetful, site, start));
        let mut former = BTreeSet::new();
        let intents = scenario.sets.iter().map(|set| {
            former.extend(set);
            site.intent(set, &former, all)
        });
        let mut world = Self {
            site,
            scenario,
            mode,
            without,
            story,
            start,
            intents: intents.collect::<Result<_>>()?,
            nodes: (0..nodes as NodeNumber).map(name_of).collect(),
            agents: agents.collect(),
            gossip: Gossip::new(),
            crowd,
            at: vec![Vec::new(); all.into()],
            baselines: Baselines::new(flows),
            dice,
            tally: Tally::default(),
        };
        world.spread(100);
        Ok(world)
    }

    /// To the end.
    pub fn run(mut self) -> Result<Tally> {
        for now in 0..=self.story.over {
            if let Some(step) = self.story.step(now) {
                self.step(step + 1, now);
            }
            if now == self.story.end {
                self.catch_up(now);
            }
            self.agents_act(now);
            for flow in self.crowd.due(now) {
                self.send(flow, now)?;
            }
        }
        for flow in &self.crowd.flows {
            match flow.state {
                State::Broken(Break::Stranger) => self.tally.strangers += 1,
                State::Broken(Break::Refused) => self.tally.refused += 1,
                State::Broken(Break::Lost) => self.tally.lost += 1,
                State::Unborn | State::At(_) => {}
            }
        }
        let broken = |fates: &[Fate]| fates.iter().filter(|fate| **fate == Fate::Broken).count();
        self.tally.maglev = broken(&self.baselines.maglev);
        self.tally.tracked = broken(&self.baselines.tracked);
        Ok(self.tally)
    }

    /// A set comes into force, and traffic is spread anew.
    fn step(&mut self, set: usize, now: usize) {
        let behind = match self.mode {
            Mode::Equal => vec![false; self.agents.len()],
            Mode::Hard => self.dice.choose(self.agents.len(), BEHIND),
        };
        for (agent, behind) in self.agents.iter_mut().zip(behind) {
            agent.due = Some(match self.mode {
                Mode::Equal => (now, set),
                Mode::Hard if behind => (now, set - 1),
                Mode::Hard => (now + self.dice.below(JITTER), set),
            });
            agent.forget(self.site);
        }
        let newest = self.scenario.sets[set].iter().max().map_or(0, |newest| node_of(*newest));
        let joining = self.agents.len() as NodeNumber..=newest;
        if !joining.is_empty() {
            let join = |node| Agent::new(node, set, now, false, self.site, self.start);
            self.agents.extend(joining.map(join));
            self.nodes = (0..self.agents.len() as NodeNumber).map(name_of).collect();
        }
        self.spread(MOVED);
    }

    /// Those that were behind learn of the last set.
    fn catch_up(&mut self, now: usize) {
        let last = self.scenario.sets.len() - 1;
        for agent in self.agents.iter_mut().filter(|agent| agent.set != last) {
            agent.due = Some((now, last));
        }
    }

    /// So many of a hundred flows come to another forwarder.
    fn spread(&mut self, percent: usize) {
        for flow in &mut self.crowd.flows {
            if self.dice.percent(percent) {
                flow.forwarder = self.dice.below(self.agents.len()) as NodeNumber;
            }
        }
    }

    fn agents_act(&mut self, now: usize) {
        let lineages = self.gossip.hear(now);
        let news = News {
            now,
            site: self.site,
            intents: &self.intents,
            consensus: &self.gossip.consensus.clone(),
            lineages: &lineages,
            nodes: &self.nodes,
        };
        for (number, agent) in (0..).zip(&mut self.agents) {
            agent.turn(&news);
            if let Some(word) = agent.scan(&self.crowd, &self.at, now) {
                self.gossip.say(number, word, now, &mut self.dice);
            }
        }
    }

    /// One packet of a flow, under weir and under the baselines.
    fn send(&mut self, number: u32, now: usize) -> Result<()> {
        let flow = &self.crowd.flows[number as usize];
        let agents = &self.agents;
        let set = &self.scenario.sets[agents[usize::from(flow.forwarder)].set];
        let table = self.site.maglev(set)?;
        self.baselines.packet(number, flow.slot, flow.forwarder, &table);

        let protocol = usize::from(!flow.tcp);
        let held = |node: NodeNumber| -> &Held { &agents[usize::from(node)].held[protocol] };
        let (end, sends) = walk(self.site, held, flow, self.without);
        let (tcp, tally) = (flow.tcp, &mut self.tally);
        tally.packets += 1;
        tally.sends += sends as u64;
        tally.most_sends = tally.most_sends.max(sends);
        let state = &mut self.crowd.flows[number as usize].state;
        match end {
            End::Delivered(backend) => {
                match *state {
                    State::Unborn => {
                        *state = State::At(backend);
                        self.at[usize::from(backend)].push(number);
                    }
                    State::At(known) if known == backend => {}
                    _ => *state = State::Broken(Break::Stranger),
                }
                self.crowd.go_on(number, now, &mut self.dice);
            }
            End::Refused => *state = State::Broken(Break::Refused),
            End::Dropped(_) if tcp => {
                tally.again += 1;
                self.crowd.lost(number, now);
            }
            End::Dropped(_) => {
                tally.datagrams_lost += 1;
                self.crowd.go_on(number, now, &mut self.dice);
            }
        }
        Ok(())
    }
}
