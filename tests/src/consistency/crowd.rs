//! The flows and when they send.
//!
//! Half are active and send every few seconds. The others are idle: they open, say at most one word
//! somewhere in the story, and go on when it is over. A lost packet of TCP is sent again as clients
//! do: after a second, then two, four and so on.

use super::{
    dice::Dice,
    scenario::Number,
    site::{NodeNumber, Site},
};

/// Ticks a second.
pub const SECOND: usize = 10;
/// How often a segment is sent again, each time after twice as long: two minutes in all.
pub const RETRANSMISSIONS: u8 = 7;

/// Of a hundred flows so many are UDP.
const UDP: usize = 20;
/// … are idle.
const IDLE: usize = 50;
/// … are there before the first step; the others open at any time during the story.
const EARLY: usize = 75;
/// … of the idle ones say something during the story.
const STIR: usize = 50;
/// Longest pause of an active flow; the mean is half of it.
const PAUSE: usize = 8 * SECOND;

/// When things happen, in ticks.
#[derive(Clone, Copy, Debug)]
pub struct Story {
    /// Flows open from here on.
    pub open: usize,
    /// The first step.
    pub begin: usize,
    pub interval: usize,
    /// The last set has been in force for one interval.
    pub end: usize,
    /// All flows that are left speak in this time.
    pub recall: (usize, usize),
    /// Nothing more can happen.
    pub over: usize,
}

impl Story {
    pub fn new(steps: usize, interval: usize) -> Self {
        let begin = 30 * SECOND;
        let end = begin + steps * interval;
        let recall = (end + 30 * SECOND, end + 60 * SECOND);
        let patience = SECOND << RETRANSMISSIONS;
        Self { open: 10 * SECOND, begin, interval, end, recall, over: recall.1 + patience }
    }

    /// The step that begins at a tick.
    pub fn step(&self, tick: usize) -> Option<usize> {
        let since = tick.checked_sub(self.begin)?;
        (since % self.interval == 0 && tick < self.end).then_some(since / self.interval)
    }
}

/// Why a flow broke.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Break {
    /// Delivered to a backend that does not know it: UDP meets a stranger, TCP is reset.
    Stranger,
    Refused,
    /// Never arrived, however often it was sent again.
    Lost,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum State {
    #[default]
    Unborn,
    /// Known by this backend.
    At(Number),
    Broken(Break),
}

#[derive(Clone, Debug)]
pub struct Flow {
    pub tcp: bool,
    pub slot: u16,
    pub forwarder: NodeNumber,
    pub state: State,
    /// How often the packet under way was sent again.
    pub again: u8,
    /// When it is sent again, after it was lost.
    retry: Option<usize>,
    idle: bool,
}

/// All flows, and the calendar of their packets.
pub struct Crowd {
    pub flows: Vec<Flow>,
    calendar: Vec<Vec<u32>>,
    story: Story,
}

impl Crowd {
    pub fn new(count: usize, site: &Site, story: Story, dice: &mut Dice) -> Self {
        let mut crowd =
            Self { flows: Vec::new(), calendar: vec![Vec::new(); story.over + 1], story };
        for number in 0..count as u32 {
            let (tcp, idle) = (!dice.percent(UDP), dice.percent(IDLE));
            let slot = site.slot(number, tcp);
            let state = State::Unborn;
            crowd.flows.push(Flow { tcp, slot, forwarder: 0, state, again: 0, retry: None, idle });
            let born = match dice.percent(EARLY) {
                true => story.open + dice.below(story.begin - story.open),
                false => story.begin + dice.below(story.end - story.begin),
            };
            crowd.note(number, born);
            if idle && dice.percent(STIR) {
                crowd.note(number, born + 1 + dice.below(story.end - born));
            }
            crowd.note(number, story.recall.0 + dice.below(story.recall.1 - story.recall.0));
        }
        crowd
    }

    /// A flow sends at this tick.
    fn note(&mut self, flow: u32, tick: usize) {
        if let Some(page) = self.calendar.get_mut(tick) {
            page.push(flow);
        }
    }

    /// Who sends now. A flow that waits to send again says nothing else.
    pub fn due(&mut self, tick: usize) -> Vec<u32> {
        let mut due = std::mem::take(&mut self.calendar[tick]);
        due.retain(|flow| {
            let it = &mut self.flows[*flow as usize];
            let sends = it.retry.is_none_or(|retry| retry == tick);
            it.retry.take_if(|retry| *retry == tick);
            sends && !matches!(it.state, State::Broken(_))
        });
        due
    }

    /// What a flow sent is dealt with: the next packet follows where it is active.
    pub fn go_on(&mut self, flow: u32, tick: usize, dice: &mut Dice) {
        let it = &mut self.flows[flow as usize];
        it.again = 0;
        let next = tick + 1 + dice.below(PAUSE);
        if !it.idle && next < self.story.end {
            self.note(flow, next);
        }
    }

    /// A segment was lost: it is sent again, until the client gives up.
    pub fn lost(&mut self, flow: u32, tick: usize) {
        let it = &mut self.flows[flow as usize];
        if it.again == RETRANSMISSIONS {
            it.state = State::Broken(Break::Lost);
            return;
        }
        let wait = SECOND << it.again;
        it.again += 1;
        it.retry = Some(tick + wait);
        self.note(flow, tick + wait);
    }
}
