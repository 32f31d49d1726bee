use std::{
    collections::{BTreeSet, VecDeque},
    path::Path,
    sync::Arc,
};

use proptest::prelude::*;

use super::*;
use crate::{
    config::{Overrides, parse},
    model::{Card, CardInterface, Intent, Life, MemberState, Members},
    netlink::{Interfaces, Link, Subnet},
};

const EXAMPLE: &str = include_str!("../../../docs/examples/weir.yaml");
const NODES: [&str; 3] = ["master-1", "worker-1", "worker-2"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A VIP outside every subnet, one of both families.
fn vips() -> BTreeSet<IpAddr> {
    ["198.51.100.1", "198.51.100.2", "198.51.100.3", "2001:db8:1::1"].map(ip).into()
}

fn intent(own: &str) -> Intent {
    let overrides = Overrides { node: Some(own.into()), ..Overrides::default() };
    parse(Path::new("weir.yaml"), EXAMPLE, &overrides).unwrap()
}

fn interfaces() -> Interfaces {
    Interfaces::new([Link {
        ifindex: 2,
        name: "eth0".into(),
        mac: Some([2, 0, 0, 0, 0, 1]),
        up: true,
        subnets: vec![Subnet { address: ip("192.0.2.9"), prefix: 24 }],
        ..Link::default()
    }])
}

fn card(subnet: &str) -> Card {
    let subnets = vec![(ip(subnet), 24)];
    let eth0 = CardInterface { name: "eth0".into(), mac: [2; 6], subnets };
    Card { interfaces: vec![eth0], announcing: true, ..Card::default() }
}

fn alive() -> MemberState {
    MemberState {
        life: Life::Alive,
        serves: true,
        announcing: true,
        heard: true,
        card: Some(Arc::new(card("192.0.2.8"))),
        ..MemberState::default()
    }
}

/// One node with its view and its maps.
struct Node {
    intent: Intent,
    members: Members,
    holders: BTreeMap<IpAddr, BTreeSet<String>>,
    maps: BTreeMap<IpAddr, u32>,
    election: Election,
}

impl Node {
    fn new(own: &str) -> Self {
        let nodes = NODES.map(|name| (name.to_owned(), alive())).into();
        let members = Members { own: own.into(), ready: true, isolated: false, nodes };
        let (holders, maps, election) = Default::default();
        Self { intent: intent(own), members, holders, maps, election }
    }

    fn decide(&mut self, now: Instant) {
        let (interfaces, vips) = (interfaces(), vips());
        let announced = self.election.decide(
            &Inputs {
                intent: &self.intent,
                interfaces: &interfaces,
                members: &self.members,
                vips: &vips,
                holders: &self.holders,
                announced: &self.maps,
            },
            now,
        );
        self.maps = announced.iter().map(|(vip, uplink)| (*vip, uplink.ifindex)).collect();
    }

    fn member(&mut self, name: &str) -> &mut MemberState {
        self.members.nodes.get_mut(name).unwrap()
    }

    fn why(&self, vip: IpAddr, now: Instant) -> Why {
        self.election.whys(now).remove(&vip).unwrap()
    }

    fn has(&self, vip: IpAddr) -> bool {
        self.maps.contains_key(&vip)
    }
}

/// A VIP whose candidates stand in the order of the result.
fn order(vip: &str) -> Vec<String> {
    let mut node = Node::new("worker-1");
    let now = Instant::now();
    node.decide(now);
    node.why(ip(vip), now).candidates.into_iter().map(|(name, _)| name).collect()
}

/// As the VIP's first, second and third candidate.
fn as_each(vip: &str) -> [(Node, IpAddr, Vec<String>); 3] {
    let order = order(vip);
    [0, 1, 2].map(|place| (Node::new(&order[place]), ip(vip), order.clone()))
}

const VIP: &str = "198.51.100.1";

#[test]
fn the_elected_takes_at_once_and_nobody_else_does() {
    let now = Instant::now();
    for (place, (mut node, vip, order)) in as_each(VIP).into_iter().enumerate() {
        node.decide(now);
        assert_eq!(node.has(vip), place == 0, "{place}");
        let why = node.why(vip, now);
        assert_eq!(why.elected.as_ref(), Some(&order[0]));
        assert_eq!(why.announced_by, order[..usize::from(place == 0)]);
    }
}

#[test]
fn who_is_not_elected_gives_up_only_what_a_better_one_has_announced_for_a_while() {
    let [_, (mut node, vip, order), _] = as_each(VIP);
    let start = Instant::now();
    node.maps.insert(vip, 2);
    node.decide(start + PATIENCE * 10);
    assert!(node.has(vip), "nobody confirms");
    node.member(&order[2]).announces.insert(vip);
    node.decide(start + PATIENCE * 20);
    assert!(node.has(vip), "only a worse one does");
    let since = start + PATIENCE * 30;
    node.member(&order[0]).announces.insert(vip);
    node.decide(since);
    assert!(node.has(vip) && node.election.next_deadline() == Some(since + OVERLAP));
    node.decide(since + OVERLAP);
    assert!(!node.has(vip));
    node.decide(since + PATIENCE * 10);
    assert!(!node.has(vip), "and does not take it back");
}

#[test]
fn one_candidate_after_the_other_takes_what_the_elected_leaves() {
    for (place, (mut node, vip, _)) in as_each(VIP).into_iter().enumerate().skip(1) {
        let start = Instant::now();
        node.decide(start);
        let turn = start + PATIENCE * place as u32;
        node.decide(turn - Duration::from_millis(1));
        assert!(!node.has(vip), "{place}");
        assert!(node.election.next_deadline() <= Some(turn));
        node.decide(turn);
        assert!(node.has(vip), "{place}");
    }
}

#[test]
fn who_sees_nobody_takes_nothing_new_and_keeps_what_it_has() {
    for (ready, isolated) in [(false, false), (true, true)] {
        let [(mut elected, vip, _), (mut second, ..), _] = as_each(VIP);
        let now = Instant::now();
        for node in [&mut elected, &mut second] {
            (node.members.ready, node.members.isolated) = (ready, isolated);
        }
        second.maps.insert(vip, 2);
        for later in [0, 10] {
            elected.decide(now + PATIENCE * later);
            second.decide(now + PATIENCE * later);
        }
        assert!(!elected.has(vip) && second.has(vip));
    }
}

#[test]
fn standing_comes_before_rendezvous() {
    let now = Instant::now();
    let order = order(VIP);
    let first = |change: &dyn Fn(&mut MemberState)| {
        let mut node = Node::new(&order[2]);
        change(node.member(&order[0]));
        node.decide(now);
        node.why(ip(VIP), now)
    };
    let elected = |change: &dyn Fn(&mut MemberState)| first(change).elected.unwrap();
    assert_eq!(elected(&|_| {}), order[0]);
    assert_eq!(elected(&|it| it.announcing = false), order[1]);
    assert_eq!(elected(&|it| it.unreachable.extend(["x".into()])), order[1]);
    assert_eq!(elected(&|it| it.life = Life::Mute), order[1], "it takes nothing new");
    let had = |it: &mut MemberState| {
        it.life = Life::Mute;
        it.announces.insert(ip(VIP));
    };
    assert_eq!(elected(&had), order[0], "it keeps what it has");
    let long = |it: &mut MemberState| {
        had(it);
        it.mute_long = true;
    };
    assert_eq!(elected(&long), order[1]);
    let dead = first(&|it| it.life = Life::Dead);
    assert_eq!(dead.excluded[&Exclusion::Dead], order[..1]);
    let leaving = Card { leaving: true, ..card("192.0.2.8") };
    let left = first(&|it| it.card = Some(Arc::new(leaving.clone())));
    assert_eq!(left.candidates.last(), Some(&(order[0].clone(), Standing::Leaving)));
}

#[test]
fn policies_exclude_and_a_vip_of_nobody_is_a_problem() {
    let now = Instant::now();
    let [_, _, (mut node, vip, order)] = as_each(VIP);
    node.holders.insert(vip, [order[1].clone()].into());
    node.decide(now);
    let why = node.why(vip, now);
    assert_eq!(why.elected.as_ref(), Some(&order[1]));
    assert_eq!(why.excluded[&Exclusion::NoBackend].len(), 2);

    node.holders.clear();
    let policy = &mut Arc::make_mut(node.intent.frontends.get_mut("api").unwrap()).announce;
    policy.nodes.match_labels.insert("role".into(), "master".into());
    node.decide(now);
    assert_eq!(node.why(vip, now).elected.as_deref(), Some("master-1"));

    Arc::make_mut(node.intent.frontends.get_mut("api").unwrap()).announce.interfaces =
        vec!["lan*".into()];
    node.maps.insert(vip, 2);
    node.decide(now);
    assert!(!node.has(vip));
    let problems = node.election.problems();
    assert_eq!(problems[0].object, format!("VIP/{VIP}"));
    assert!(
        problems[0].message.contains("labels do not match (worker-1, worker-2)"),
        "{problems:?}"
    );
}

#[test]
fn nodes_in_the_subnet_come_before_all_others() {
    let now = Instant::now();
    let [_, _, (mut node, vip, order)] = as_each(VIP);
    node.member(&order[1]).card = Some(Arc::new(card("198.51.100.9")));
    node.decide(now);
    let why = node.why(vip, now);
    assert_eq!((why.candidates.len(), why.elected.as_ref()), (1, Some(&order[1])));
    node.member(&order[1]).life = Life::Dead;
    node.decide(now);
    assert_eq!(node.why(vip, now).elected.as_ref(), Some(&order[0]), "better than nobody");
}

#[test]
fn who_joins_waits_for_what_the_others_say_of_themselves() {
    let [(mut node, vip, order), ..] = as_each(VIP);
    let now = Instant::now();
    for name in &order {
        node.member(name).announcing = false;
    }
    node.member(&order[1]).card = None;
    node.decide(now);
    assert!(!node.has(vip));
    node.member(&order[1]).card = Some(Arc::new(card("192.0.2.8")));
    node.decide(now);
    assert!(node.has(vip), "all boot at once");
}

/// What a node says of itself.
#[derive(Clone, Debug)]
struct Word {
    at: Instant,
    of: usize,
    state: MemberState,
}

/// What happens to a node.
#[derive(Clone, Copy, Debug)]
enum Event {
    Wants(bool),
    Reaches(bool),
    Leaves(bool),
    /// Its agent hangs; the others hold it for mute, and later for mute for long.
    Hangs(bool),
    /// Its agent lives and tells the truth, but takes nothing and gives nothing up.
    Idles(bool),
}

/// Three nodes that hear each other's words late.
struct World {
    nodes: [Node; 3],
    words: [VecDeque<Word>; 3],
    truth: [MemberState; 3],
    hung_since: [Option<Instant>; 3],
    idle: [bool; 3],
    /// ms from a word to each listener.
    delays: [u64; 3],
}

const STEP: Duration = Duration::from_millis(20);
const MUTE: Duration = Duration::from_secs(1);
const MUTE_LONG: Duration = Duration::from_secs(5);

impl World {
    fn new(delays: [u64; 3]) -> Self {
        Self {
            nodes: NODES.map(Node::new),
            words: Default::default(),
            truth: std::array::from_fn(|_| alive()),
            hung_since: [None; 3],
            idle: [false; 3],
            delays,
        }
    }

    fn happens(&mut self, at: usize, event: Event, now: Instant) {
        let truth = &mut self.truth[at];
        match event {
            Event::Wants(wants) => truth.announcing = wants,
            Event::Reaches(true) => truth.unreachable.clear(),
            Event::Reaches(false) => truth.unreachable.extend(["other".into()]),
            Event::Leaves(leaving) => {
                truth.card = Some(Arc::new(Card { leaving, ..card("192.0.2.8") }));
            }
            Event::Hangs(true) => self.hung_since[at] = self.hung_since[at].or(Some(now)),
            Event::Hangs(false) => {
                if self.hung_since[at].take().is_some_and(|since| now - since > MUTE_LONG) {
                    truth.announcing = false;
                }
            }
            Event::Idles(idle) => self.idle[at] = idle,
        }
        self.tell(at, now);
    }

    /// Its word is on its way to the others; it knows itself at once.
    fn tell(&mut self, of: usize, now: Instant) {
        *self.nodes[of].member(NODES[of]) = self.truth[of].clone();
        if self.hung_since[of].is_some() {
            return;
        }
        let state = self.truth[of].clone();
        for (to, words) in self.words.iter_mut().enumerate().filter(|(to, _)| *to != of) {
            let at = now + Duration::from_millis(self.delays[to]);
            words.push_back(Word { at, of, state: state.clone() });
        }
    }

    fn step(&mut self, now: Instant) {
        for to in 0..3 {
            while let Some(word) = self.words[to].pop_front_if(|word| word.at <= now) {
                *self.nodes[to].member(NODES[word.of]) = word.state;
            }
            for of in (0..3).filter(|of| *of != to) {
                let silent = self.hung_since[of].map_or(Duration::ZERO, |since| now - since);
                let member = self.nodes[to].member(NODES[of]);
                member.life = if silent > MUTE { Life::Mute } else { Life::Alive };
                member.mute_long = silent > MUTE_LONG;
            }
        }
        for at in 0..3 {
            if self.hung_since[at].is_some() {
                continue;
            }
            if !self.idle[at] {
                self.nodes[at].decide(now);
            }
            let announces: BTreeSet<_> = self.nodes[at].maps.keys().copied().collect();
            if self.truth[at].announces != announces {
                self.truth[at].announces = announces;
                self.tell(at, now);
            }
        }
        self.yields(now);
    }

    /// Whoever announces what a mute node has tells its data plane.
    fn yields(&mut self, now: Instant) {
        for at in 0..3 {
            if self.hung_since[at].is_some_and(|since| now - since > MUTE_LONG) {
                let others = |vip: &IpAddr| (0..3).any(|it| it != at && self.nodes[it].has(*vip));
                let taken: Vec<_> = self.nodes[at].maps.keys().copied().filter(others).collect();
                self.nodes[at].maps.retain(|vip, _| !taken.contains(vip));
            }
        }
    }

    fn announcers(&self, vip: IpAddr) -> usize {
        self.nodes.iter().filter(|node| node.has(vip)).count()
    }
}

fn events() -> impl Strategy<Value = Vec<(u64, usize, Event)>> {
    let event = (any::<bool>(), 0..5usize).prop_map(|(yes, kind)| match kind {
        0 => Event::Wants(yes),
        1 => Event::Reaches(yes),
        2 => Event::Leaves(yes),
        3 => Event::Hangs(yes),
        _ => Event::Idles(yes),
    });
    prop::collection::vec((0..1500u64, 0..3usize, event), 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn while_views_differ_somebody_announces_and_then_exactly_one_does(
        events in events(),
        delays in prop::array::uniform3(0..120u64),
    ) {
        let mut world = World::new(delays);
        let mut now = Instant::now();
        let run = |world: &mut World, now: &mut Instant, time: Duration, check: bool| {
            let end = *now + time;
            while *now < end {
                world.step(*now);
                *now += STEP;
                for vip in vips().into_iter().filter(|_| check) {
                    prop_assert!(world.announcers(vip) > 0, "{vip} is nobody's");
                }
            }
            Ok(())
        };
        run(&mut world, &mut now, Duration::from_secs(2), false)?;
        for (pause, at, event) in events {
            world.happens(at, event, now);
            run(&mut world, &mut now, Duration::from_millis(pause), true)?;
        }
        for at in 0..3 {
            world.happens(at, Event::Idles(false), now);
        }
        run(&mut world, &mut now, Duration::from_secs(9), true)?;
        let hung = world.hung_since.iter().flatten().count();
        for vip in vips() {
            prop_assert!(hung == 3 || world.announcers(vip) == 1, "{vip}: {}", world.announcers(vip));
        }
    }

    #[test]
    fn what_a_held_back_node_lost_does_not_return_to_it(gone in 0..3usize, wait in 0..4000u64) {
        let mut world = World::new([20, 40, 60]);
        let mut now = Instant::now();
        let mut run = |world: &mut World, ms: u64| {
            for _ in 0..ms / 20 {
                world.step(now);
                now += STEP;
            }
            now
        };
        let at = run(&mut world, 2000);
        world.happens(gone, Event::Hangs(true), at);
        let at = run(&mut world, 7000);
        prop_assert!(world.nodes[gone].maps.is_empty());
        world.happens(gone, Event::Hangs(false), at);
        run(&mut world, wait);
        prop_assert!(world.nodes[gone].maps.is_empty());
    }
}
