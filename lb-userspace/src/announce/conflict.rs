//! Who else answers for a VIP that this node announces. Pure: time and frames come in, questions and
//! problems come out; `watch` does the rest.
//!
//! Claims are heard as they come, and answered by another announcement: neighbours believe who spoke
//! last. Besides every VIP is asked for a moment after its takeover and now and then, because who answers
//! only when asked is not heard otherwise.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{Uplink, frames::Claim};
use crate::{
    model::{Members, Problem},
    netlink::Interfaces,
};

/// For this time members may answer too: one of the two has not heard of the other yet.
/// Nor is a MAC foreign before all members have said which are theirs.
pub const HANDOVER: Duration = Duration::from_secs(10);

/// From a takeover to the first question, and from one to the next.
pub const FIRST_QUESTION: Duration = Duration::from_secs(1);
pub const QUESTIONS: Duration = Duration::from_secs(30);

/// From a claim to the announcement that takes the VIP back, in the neighbours' eyes: who only handed over
/// or just started is silent by then.
pub const DEFENCE: Duration = Duration::from_secs(1);

/// Shortest time between two of them, so that two hosts with one address do not shout each other down
/// (DEFEND_INTERVAL of RFC 5227 1.1).
pub const DEFENCE_REST: Duration = Duration::from_secs(10);

/// How long a claim is reported that is not heard again: two questions.
pub const MEMORY: Duration = Duration::from_secs(60);

/// MACs remembered for one VIP; whoever sends more is not told apart.
pub const MOST_MACS: usize = 4;

/// Who MACs belong to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Owners {
    /// Of this host's interfaces: what they say is no conflict.
    pub own: BTreeSet<[u8; 6]>,
    /// Of other members' interfaces, with the member's name.
    pub members: BTreeMap<[u8; 6], String>,
    /// Every other member has said which MACs it has, this time or once: one that was never heard may
    /// just be starting.
    pub complete: bool,
}

impl Owners {
    pub fn of(interfaces: &Interfaces, members: &Members) -> Self {
        let others = || members.nodes.iter().filter(|(name, _)| **name != members.own);
        let cards = others().filter_map(|(name, it)| Some((name, it.card.as_ref()?)));
        let macs = cards.flat_map(|(name, card)| {
            card.interfaces.iter().map(|interface| (interface.mac, name.clone()))
        });
        Self {
            own: interfaces.iter().filter_map(|link| link.mac).collect(),
            members: macs.collect(),
            complete: others().all(|(_, it)| it.card.is_some()),
        }
    }
}

/// All VIPs that are announced here.
#[derive(Debug, Default)]
pub struct Conflicts(BTreeMap<IpAddr, Watched>);

#[derive(Debug)]
struct Watched {
    uplink: Uplink,
    since: Instant,
    question: Instant,
    /// By MAC: when it was heard first and last.
    heard: BTreeMap<[u8; 6], (Instant, Instant)>,
    /// The handover was over when problems were looked for.
    judged: bool,
    /// When the VIP is announced once more, and when it was last for this reason.
    defence: Option<Instant>,
    defended: Option<Instant>,
}

impl Conflicts {
    /// Takes over what is announced now; what is announced elsewhere is forgotten.
    pub fn set(&mut self, announced: &BTreeMap<IpAddr, Uplink>, now: Instant) {
        self.0.retain(|vip, watched| announced.get(vip) == Some(&watched.uplink));
        for (vip, uplink) in announced {
            self.0.entry(*vip).or_insert_with(|| Watched {
                uplink: uplink.clone(),
                since: now,
                question: now + FIRST_QUESTION,
                heard: BTreeMap::new(),
                judged: false,
                defence: None,
                defended: None,
            });
        }
    }

    /// Somebody claims an address, heard on an interface.
    pub fn hear(&mut self, ifindex: u32, claim: Claim, owners: &Owners, now: Instant) {
        let watched = self.0.get_mut(&claim.address);
        let Some(watched) = watched.filter(|it| it.uplink.ifindex == ifindex) else { return };
        if claim.mac == watched.uplink.mac || owners.own.contains(&claim.mac) {
            return;
        }
        let rested = watched.defended.map_or(now, |at| at + DEFENCE_REST);
        watched.defence = Some(rested.max(now + DEFENCE));
        watched.heard.retain(|_, (_, last)| now < *last + MEMORY);
        if watched.heard.len() < MOST_MACS || watched.heard.contains_key(&claim.mac) {
            watched.heard.entry(claim.mac).or_insert((now, now)).1 = now;
        }
    }

    /// VIPs that are to be asked for now, and where.
    pub fn take_questions(&mut self, now: Instant) -> Vec<(IpAddr, Uplink)> {
        let due = self.0.iter_mut().filter(|(_, watched)| watched.question <= now);
        let ask = |(vip, watched): (&IpAddr, &mut Watched)| {
            watched.question = now + QUESTIONS;
            (*vip, watched.uplink.clone())
        };
        due.map(ask).collect()
    }

    /// VIPs that are to be announced again now, because others claimed them since.
    pub fn take_defences(&mut self, now: Instant) -> Vec<(IpAddr, Uplink)> {
        let due = self.0.iter_mut().filter(|(_, it)| it.defence.is_some_and(|at| at <= now));
        let defend = |(vip, watched): (&IpAddr, &mut Watched)| {
            (watched.defence, watched.defended) = (None, Some(now));
            (*vip, watched.uplink.clone())
        };
        due.map(defend).collect()
    }

    /// When a question or a defence is due, or a problem ends.
    pub fn next_due(&self) -> Option<Instant> {
        let ends = self.0.values().flat_map(|it| it.heard.values().map(|(_, last)| *last + MEMORY));
        let judged = self.0.values().filter(|it| !it.heard.is_empty() && !it.judged);
        let judged = judged.map(|it| it.since + HANDOVER);
        let defences = self.0.values().filter_map(|it| it.defence);
        self.0.values().map(|it| it.question).chain(ends).chain(judged).chain(defences).min()
    }

    /// What is wrong now, in the order of the VIPs.
    pub fn problems(&mut self, owners: &Owners, now: Instant) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (vip, watched) in &mut self.0 {
            watched.heard.retain(|_, (_, last)| now < *last + MEMORY);
            let over = watched.since + HANDOVER;
            watched.judged = now >= over;
            let counts = |mac: &[u8; 6], (first, last): (Instant, Instant)| match owners
                .members
                .contains_key(mac)
            {
                true => last >= first + HANDOVER,
                false => owners.complete || now >= over,
            };
            let counting = watched.heard.iter().filter(|(mac, times)| counts(mac, **times));
            let macs: Vec<_> = counting.map(|(mac, _)| mac).collect();
            if macs.is_empty() {
                continue;
            }
            let mut message = "also answered for by".to_owned();
            for (place, mac) in macs.iter().enumerate() {
                let [a, b, c, d, e, f] = mac;
                let comma = if place > 0 { "," } else { "" };
                let owner = owners.members.get(*mac);
                let owner = owner.map(|name| format!(" (node {name})")).unwrap_or_default();
                // Writing to a string cannot fail.
                let _ = write!(
                    message,
                    "{comma} {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}{owner}"
                );
            }
            let advice = match macs.iter().all(|mac| owners.members.contains_key(*mac)) {
                true => {
                    "its agent does not know that this node announces it; see weir members there"
                }
                false => "take the address from that host, or choose another VIP",
            };
            let _ = write!(message, " on {}; {advice}", watched.uplink.name);
            problems.push(Problem { object: format!("VIP/{vip}"), message });
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const MEMBER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const FOREIGN: [u8; 6] = [2, 0, 0, 0, 0, 0xee];

    fn vip() -> IpAddr {
        "192.0.2.1".parse().unwrap()
    }

    fn owners() -> Owners {
        let members = [(MEMBER, "worker-2".into())].into();
        Owners { own: [OWN].into(), members, complete: true }
    }

    fn watched(now: Instant) -> Conflicts {
        let mut conflicts = Conflicts::default();
        let uplink = Uplink { name: "eth0".into(), ifindex: 2, mac: OWN };
        conflicts.set(&[(vip(), uplink)].into(), now);
        conflicts
    }

    fn messages(conflicts: &mut Conflicts, now: Instant) -> Vec<String> {
        conflicts.problems(&owners(), now).into_iter().map(|it| it.message).collect()
    }

    fn after(now: Instant, seconds: u64) -> Instant {
        now + Duration::from_secs(seconds)
    }

    #[test]
    fn a_foreign_mac_is_a_problem_until_it_is_not_heard_for_a_while() {
        let now = Instant::now();
        let mut conflicts = watched(now);
        conflicts.hear(2, Claim { address: vip(), mac: FOREIGN }, &owners(), now);
        let problem = conflicts.problems(&owners(), now).remove(0);
        assert_eq!(problem.object, "VIP/192.0.2.1");
        assert_eq!(
            problem.message,
            "also answered for by 02:00:00:00:00:ee on eth0; take the address from that host, or \
             choose another VIP"
        );
        assert_eq!(messages(&mut conflicts, after(now, 59)).len(), 1);
        assert_eq!(messages(&mut conflicts, after(now, 60)).len(), 0);
    }

    #[test]
    fn a_vip_that_others_claimed_is_announced_again_once_they_are_silent_and_seldom() {
        let now = Instant::now();
        let mut conflicts = watched(now);
        let claim = Claim { address: vip(), mac: MEMBER };
        let half = now + Duration::from_millis(500);
        conflicts.hear(2, claim, &owners(), now);
        conflicts.hear(2, claim, &owners(), half);
        assert_eq!(conflicts.next_due(), Some(after(now, 1)), "the question");
        conflicts.take_questions(after(now, 1));
        assert_eq!(conflicts.take_defences(after(now, 1)), []);
        assert_eq!(conflicts.next_due(), Some(after(half, 1)));
        assert_eq!(conflicts.take_defences(after(half, 1)).len(), 1);
        assert_eq!(conflicts.take_defences(after(half, 2)), []);
        conflicts.hear(2, claim, &owners(), after(half, 2));
        assert_eq!(conflicts.take_defences(after(half, 10)), []);
        assert_eq!(conflicts.take_defences(after(half, 11)).len(), 1);
    }

    #[test]
    fn own_answers_other_addresses_and_other_interfaces_are_no_conflict() {
        let now = Instant::now();
        let mut conflicts = watched(now);
        conflicts.hear(2, Claim { address: vip(), mac: OWN }, &owners(), now);
        conflicts.hear(3, Claim { address: vip(), mac: FOREIGN }, &owners(), now);
        let other = "192.0.2.9".parse().unwrap();
        conflicts.hear(2, Claim { address: other, mac: FOREIGN }, &owners(), now);
        assert_eq!(messages(&mut conflicts, now).len(), 0);
    }

    #[test]
    fn a_member_is_a_conflict_only_after_the_handover() {
        let now = Instant::now();
        let mut conflicts = watched(now);
        let claim = Claim { address: vip(), mac: MEMBER };
        conflicts.hear(2, claim, &owners(), after(now, 20));
        conflicts.hear(2, claim, &owners(), after(now, 29));
        assert_eq!(messages(&mut conflicts, after(now, 50)).len(), 0);
        conflicts.hear(2, claim, &owners(), after(now, 50));
        let message = messages(&mut conflicts, after(now, 50)).remove(0);
        assert!(
            message.contains("02:00:00:00:00:02 (node worker-2) on eth0; its agent"),
            "{message}"
        );
    }

    #[test]
    fn while_members_have_not_said_which_macs_they_have_nobody_is_foreign() {
        let now = Instant::now();
        let mut conflicts = watched(now);
        conflicts.hear(2, Claim { address: vip(), mac: FOREIGN }, &Owners::default(), now);
        conflicts.hear(2, Claim { address: vip(), mac: MEMBER }, &Owners::default(), now);
        assert_eq!(conflicts.problems(&Owners::default(), now).len(), 0);
        let message = messages(&mut conflicts, now).remove(0);
        assert!(message.contains(":ee on eth0"), "only the foreign one: {message}");
        conflicts.take_questions(after(now, 1));
        conflicts.take_defences(after(now, 1));
        assert_eq!(conflicts.next_due(), Some(after(now, 10)), "then judged in any case");
        assert_eq!(conflicts.problems(&Owners::default(), after(now, 10)).len(), 1);
    }

    #[test]
    fn a_flood_of_macs_is_bounded() {
        let now = Instant::now();
        let mut conflicts = watched(now);
        for last in 0..100 {
            let mac = [2, 0, 0, 0, 9, last];
            conflicts.hear(2, Claim { address: vip(), mac }, &owners(), now);
        }
        assert_eq!(conflicts.0[&vip()].heard.len(), MOST_MACS);
    }

    #[test]
    fn questions_come_after_a_takeover_and_now_and_then() {
        let now = Instant::now();
        let mut conflicts = watched(now);
        let mut asked = Vec::new();
        while let Some(due) = conflicts.next_due().filter(|due| *due <= after(now, 65)) {
            assert_eq!(conflicts.take_questions(due).len(), 1);
            asked.push((due - now).as_secs());
        }
        assert_eq!(asked, [1, 31, 61]);
        conflicts.set(&BTreeMap::new(), now);
        assert_eq!(conflicts.next_due(), None);
    }
}
