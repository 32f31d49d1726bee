//! Whom this node probes and how often, and what it tells others.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Eye, Finding, Node, Report, Watch,
    duty::{Ticket, WATCHED_LEAST, WATCHERS},
};
use crate::model::Life;

/// Between two probes of the bulk: of all nodes at the start, of dead ones, of everybody in an alarm.
const PROBE_GAP: Duration = Duration::from_micros(500);
/// Between two rounds to a dead node that others watch.
const DEAD_PACE: Duration = Duration::from_secs(1);
/// A node that is back and hasn't learned of its death from its watchers after this is told by all.
pub(super) const TELL_AFTER: Duration = Duration::from_secs(1);

impl Watch {
    /// Ranks this node among the watchers of every other: once for each set of nodes.
    pub(super) fn rank_all(&mut self) {
        let able: Vec<Ticket> =
            self.nodes.values().filter(|node| node.able).map(|node| node.ticket).collect();
        for node in self.nodes.values_mut() {
            let own = node.ticket.rank(self.own_ticket);
            let above = |other: &&Ticket| **other != node.ticket && node.ticket.rank(**other) > own;
            node.ahead = able.iter().filter(above).count();
        }
    }

    /// Keeps the ranks true when a node can no longer watch, or can again.
    pub(super) fn update_able(&mut self) {
        let mut moved = Vec::new();
        for node in self.nodes.values_mut() {
            let able = matches!(node.fate.life, Life::Unknown | Life::Alive);
            if able != node.able {
                node.able = able;
                moved.push((node.ticket, able));
            }
        }
        for (other, able) in moved {
            for node in self.nodes.values_mut().filter(|node| node.ticket != other) {
                if node.ticket.rank(other) > node.ticket.rank(self.own_ticket) {
                    node.ahead = if able { node.ahead + 1 } else { node.ahead - 1 };
                }
            }
        }
    }

    /// Opens and closes eyes and sets their pace.
    pub(super) fn assign(&mut self, now: Instant) {
        let reach = self.reach();
        let count = |life| self.nodes.values().filter(|node| node.fate.life == life).count();
        let bulk =
            |base: Duration, nodes| base.max(PROBE_GAP * u32::try_from(nodes).unwrap_or(u32::MAX));
        let unknown = bulk(self.rules.interval, count(Life::Unknown));
        let dead = bulk(DEAD_PACE.max(self.rules.interval), count(Life::Dead));
        let everybody = self.alarmed(reach).then(|| bulk(self.rules.interval, self.nodes.len()));
        let mut opened = 0;
        for (name, node) in &mut self.nodes {
            let pace = match node.fate.life {
                _ if node.ahead < reach => Some(self.rules.interval),
                Life::Unknown => Some(unknown),
                Life::Dead if node.eye.gist(&self.rules).rising => Some(self.rules.interval),
                Life::Dead => Some(dead),
                Life::Alive | Life::Mute => everybody,
            };
            match pace {
                Some(pace) if !node.eye.is_open() || pace < node.pace => {
                    let at = now + PROBE_GAP * opened;
                    node.reschedule(name, &mut self.due, |eye| eye.open(at));
                    opened += 1;
                }
                Some(_) => {}
                None if node.eye.is_open() => node.reschedule(name, &mut self.due, Eye::close),
                None => {}
            }
            node.pace = pace.unwrap_or_default();
        }
    }

    /// This node watches all nodes that fewer others than this rank above it for: its duty, or more
    /// where it would watch hardly anybody.
    fn reach(&self) -> usize {
        let mut ahead: Vec<usize> = self.nodes.values().map(|node| node.ahead).collect();
        let least = WATCHED_LEAST.min(ahead.len());
        if least == 0 {
            return WATCHERS;
        }
        let (_, last, _) = ahead.select_nth_unstable(least - 1);
        WATCHERS.max(*last + 1)
    }

    /// At least half of the living nodes that this one watches are silent: all others are looked at too.
    fn alarmed(&self, reach: usize) -> bool {
        let living = |node: &&Node| node.ahead < reach && node.fate.life.forwards();
        let watched = self.nodes.values().filter(living);
        let (all, silent) = watched.fold((0, 0), |(all, silent), node| {
            (all + 1, silent + usize::from(node.finding(&self.rules) == Some(Finding::Silent)))
        });
        silent > 0 && silent * 2 >= all
    }

    /// Notes what others should hear.
    pub(super) fn speak(&mut self, now: Instant) {
        for (name, node) in &mut self.nodes {
            let report = if node.ahead < WATCHERS {
                let finding = node.finding(&self.rules).unwrap_or_default();
                Report { finding, void: node.fate.void }
            } else {
                let untold = node.fate.back.is_some_and(|at| now - at >= TELL_AFTER);
                let void = if untold { node.fate.void } else { 0 };
                Report { finding: Finding::Answers, void }
            };
            if report != node.said {
                node.said = report;
                self.reports.push((Arc::clone(name), report));
            }
        }
    }
}
