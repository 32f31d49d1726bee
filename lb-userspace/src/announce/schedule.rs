//! When announcements are sent: a burst at takeover, then now and then.
//!
//! Pure: time comes in, what is due comes out. The burst is there because a single frame may be
//! lost; the repetition mends neighbours that missed all of it or switches that forgot.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::Uplink;

/// Announcements after a takeover, counted from it.
pub const BURST: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// Between announcements after the burst.
pub const REPEAT: Duration = Duration::from_secs(30);

/// Until the burst begins anew after an announcement that could not be sent.
pub const RETRY: Duration = Duration::from_secs(1);

/// All VIPs that are announced here and when each is due.
#[derive(Debug, Default)]
pub struct Schedule {
    vips: BTreeMap<IpAddr, Entry>,
}

#[derive(Debug)]
struct Entry {
    uplink: Uplink,
    since: Instant,
    sent: usize,
    due: Instant,
}

impl Schedule {
    /// Takes over what is announced now. A VIP that is new, or that moved to another interface or
    /// MAC, starts its burst; the others go on.
    pub fn set(&mut self, announced: &BTreeMap<IpAddr, Uplink>, now: Instant) {
        self.vips.retain(|vip, entry| announced.get(vip) == Some(&entry.uplink));
        for (vip, uplink) in announced {
            self.vips.entry(*vip).or_insert_with(|| Entry {
                uplink: uplink.clone(),
                since: now,
                sent: 0,
                due: now + BURST[0],
            });
        }
    }

    /// What must be sent now; each is then due again later.
    pub fn take_due(&mut self, now: Instant) -> Vec<(IpAddr, Uplink)> {
        let mut due = Vec::new();
        for (vip, entry) in self.vips.iter_mut().filter(|(_, entry)| entry.due <= now) {
            due.push((*vip, entry.uplink.clone()));
            entry.sent += 1;
            entry.due = match BURST.get(entry.sent) {
                Some(after) => entry.since + *after,
                None => now + REPEAT,
            };
        }
        due
    }

    /// An announcement was not sent, as the interface is down perhaps: its burst begins anew later.
    pub fn retry(&mut self, vip: IpAddr, now: Instant) {
        if let Some(entry) = self.vips.get_mut(&vip) {
            entry.since = now + RETRY;
            entry.sent = 0;
            entry.due = entry.since + BURST[0];
        }
    }

    /// When something is due next; None: nothing is announced.
    pub fn next_due(&self) -> Option<Instant> {
        self.vips.values().map(|entry| entry.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(vips: &[(&str, u32)]) -> BTreeMap<IpAddr, Uplink> {
        let uplink = |ifindex| Uplink { name: format!("eth{ifindex}"), ifindex, mac: [2; 6] };
        vips.iter().map(|(vip, ifindex)| (vip.parse().unwrap(), uplink(*ifindex))).collect()
    }

    /// Times in ms, until `end`, at which something is sent.
    fn times(schedule: &mut Schedule, start: Instant, end: Duration) -> Vec<u128> {
        let mut times = Vec::new();
        while let Some(due) = schedule.next_due().filter(|due| *due <= start + end) {
            for _ in schedule.take_due(due) {
                times.push((due - start).as_millis());
            }
        }
        times
    }

    #[test]
    fn a_takeover_is_a_burst_and_then_a_repetition() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.set(&announced(&[("192.0.2.1", 2)]), start);
        let sent = times(&mut schedule, start, Duration::from_secs(65));
        assert_eq!(sent, [0, 100, 500, 1000, 31_000, 61_000]);
    }

    #[test]
    fn only_vips_that_are_new_or_moved_start_a_burst() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.set(&announced(&[("192.0.2.1", 2), ("2001:db8::1", 2)]), start);
        times(&mut schedule, start, Duration::from_secs(2));
        let later = start + Duration::from_secs(2);
        schedule.set(&announced(&[("192.0.2.1", 2), ("2001:db8::1", 3), ("192.0.2.3", 2)]), later);
        let due: Vec<_> = schedule
            .take_due(later)
            .into_iter()
            .map(|(vip, up)| (vip.to_string(), up.ifindex))
            .collect();
        assert_eq!(due, [("192.0.2.3".into(), 2), ("2001:db8::1".into(), 3)]);
    }

    #[test]
    fn what_could_not_be_sent_begins_its_burst_anew() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.set(&announced(&[("192.0.2.1", 2)]), start);
        schedule.take_due(start);
        schedule.retry("192.0.2.1".parse().unwrap(), start);
        assert_eq!(times(&mut schedule, start, Duration::from_secs(3)), [1000, 1100, 1500, 2000]);
    }

    #[test]
    fn a_vip_that_is_withdrawn_is_silent() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.set(&announced(&[("192.0.2.1", 2)]), start);
        schedule.take_due(start);
        schedule.set(&BTreeMap::new(), start);
        assert_eq!(schedule.next_due(), None);
    }
}
