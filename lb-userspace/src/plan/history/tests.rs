use proptest::prelude::*;

use super::*;
use crate::{
    model::{Life, MemberState, Protocol},
    plan::{DesiredBackend, DesiredFrontend, DesiredNode},
};

const SEED: Seed = [7; 16];

fn key(n: u8) -> FrontendKey {
    FrontendKey { address: [192, 0, 2, n].into(), port: 80, protocol: Protocol::Tcp }
}

fn backend(n: u8) -> SocketAddr {
    SocketAddr::new([10, 0, 0, n].into(), 8080)
}

fn owners(backends: &[u8]) -> Owners {
    backends.iter().map(|n| (backend(*n), 1)).collect()
}

fn named(backends: &[u8]) -> u64 {
    epoch(&owners(backends), 251, &SEED)
}

/// Past sets by their backends.
fn former(backends: &[u8]) -> Former {
    Former::Owners(named(backends), Arc::new(owners(backends)))
}

/// One node's history, driven as its agent does.
struct Node {
    history: History,
    plan: Desired,
    consensus: Consensus,
    members: Arc<Members>,
    now: Instant,
}

impl Node {
    fn new() -> Self {
        let mut members = Members::assumed("a", ["a", "b", "c"]);
        members.ready = true;
        Self {
            history: History::new(SEED, Rules::default()),
            plan: Desired::default(),
            consensus: Consensus::default(),
            members: Arc::new(members),
            now: Instant::now(),
        }
    }

    /// A plan of frontends over pools; everything lives on node `b`.
    fn plan(pools: &[&[u8]]) -> Desired {
        let mut plan = Desired::default();
        plan.nodes.insert("b".into(), DesiredNode { addresses: Vec::new() });
        for (n, pool) in (1..).zip(pools) {
            let frontend = DesiredFrontend {
                object: "web".into(),
                slots: 251,
                owners: Arc::new(owners(pool)),
                inside: None,
                flags: 0,
                past: Vec::new(),
                claims: None,
                ranges: None,
            };
            plan.frontends.insert(key(n), frontend);
            for n in *pool {
                let protocols = BTreeSet::from([Protocol::Tcp]);
                plan.backends.insert(backend(*n), DesiredBackend { node: "b".into(), protocols });
            }
        }
        plan
    }

    fn remember(&mut self, changed: Option<Desired>) -> Touched {
        let consensus = match *self.history.consensus == self.consensus {
            true => self.history.consensus.clone(),
            false => Arc::new(self.consensus.clone()),
        };
        let (members, now) = (self.members.clone(), self.now);
        match changed {
            Some(plan) => {
                let before = std::mem::replace(&mut self.plan, plan);
                let changed = Changed::Anew(&before);
                self.history.remember(&mut self.plan, changed, &consensus, &members, now)
            }
            None => {
                let changed = Changed::Owners(&BTreeSet::new());
                self.history.remember(&mut self.plan, changed, &consensus, &members, now)
            }
        }
    }

    /// The set of the first frontend changes by a verdict: its backends stay.
    fn own(&mut self, backends: &[u8]) {
        let wanted = self.plan.frontends.get_mut(&key(1)).unwrap();
        wanted.owners = Arc::new(owners(backends));
        let consensus = self.history.consensus.clone();
        let changed = BTreeSet::from([key(1)]);
        let changed = Changed::Owners(&changed);
        let members = self.members.clone();
        self.history.remember(&mut self.plan, changed, &consensus, &members, self.now);
    }

    fn pass(&mut self, milliseconds: u64) -> Touched {
        self.now += Duration::from_millis(milliseconds);
        self.remember(None)
    }

    /// A member holds what this node does, or something else.
    fn says(&mut self, member: &str, epoch: u64) {
        let view = self.consensus.views.entry(member.into()).or_default();
        Arc::make_mut(view).insert(key(1), epoch);
    }

    fn all_say(&mut self, epoch: u64) {
        ["a", "b", "c"].iter().for_each(|member| self.says(member, epoch));
    }

    fn life(&mut self, member: &str, life: Life) {
        let mut members = Members::clone(&self.members);
        members.nodes.insert(member.into(), MemberState { life, ..MemberState::default() });
        self.members = Arc::new(members);
    }

    fn is_young(&self) -> bool {
        self.plan.frontends[&key(1)].flags & YOUNG != 0
    }

    fn past(&self) -> &[Former] {
        &self.plan.frontends[&key(1)].past
    }
}

/// A node whose frontend is settled over backends 1 to 3.
fn settled() -> Node {
    let mut node = Node::new();
    node.remember(Some(Node::plan(&[&[1, 2, 3]])));
    node.all_say(named(&[1, 2, 3]));
    node.pass(5000);
    assert!(!node.is_young());
    node
}

#[test]
fn a_frontend_is_young_until_every_living_agent_holds_the_same_set() {
    let mut node = Node::new();
    node.remember(Some(Node::plan(&[&[1, 2]])));
    assert!(node.is_young() && node.past().is_empty());
    node.pass(5000);
    assert!(node.is_young(), "nobody said anything");
    node.says("a", named(&[1, 2]));
    node.says("b", named(&[1, 2]));
    node.says("c", named(&[1]));
    node.pass(1000);
    assert!(node.is_young());
    assert_eq!(node.history.unsettled().waiting, [("c".into(), 1)].into());
    node.all_say(named(&[1, 2]));
    let touched = node.pass(1000);
    assert!(!node.is_young());
    assert_eq!(touched.frontends, [key(1)].into());
    assert_eq!(node.history.recent().len(), 1, "others may still wait for this node's word");
    node.pass(60_000);
    assert_eq!((node.history.recent().len(), node.history.next_deadline()), (0, None));
}

#[test]
fn youth_lasts_as_long_as_scans_need_though_all_agree() {
    let mut node = settled();
    node.all_say(named(&[1, 2]));
    node.own(&[1, 2]);
    assert!(node.is_young());
    node.pass(4999);
    assert!(node.is_young());
    assert_eq!(node.history.next_deadline(), Some(node.now + Duration::from_millis(1)));
    node.pass(1);
    assert!(!node.is_young());
    assert_eq!(node.past(), [former(&[1, 2, 3])], "kept for those who cannot claim");
}

#[test]
fn mute_and_dead_members_are_not_waited_for() {
    for life in [Life::Mute, Life::Dead, Life::Unknown] {
        let mut node = settled();
        node.own(&[1]);
        node.says("a", named(&[1]));
        node.says("b", named(&[1]));
        node.pass(5000);
        assert!(node.is_young());
        node.life("c", life);
        node.pass(1000);
        assert!(!node.is_young(), "{life:?}");
    }
}

#[test]
fn a_member_that_says_nothing_of_an_old_change_is_not_waited_for() {
    let mut node = settled();
    node.consensus.views.clear();
    node.own(&[1]);
    node.pass(59_000);
    assert!(node.is_young());
    node.pass(1000);
    assert!(!node.is_young());

    node.says("c", named(&[2]));
    node.own(&[1, 2]);
    node.pass(600_000);
    assert!(node.is_young(), "one that says another set is");
}

#[test]
fn the_last_three_sets_are_kept_and_none_twice() {
    let mut node = settled();
    for pool in [&[1, 2][..], &[1], &[1, 4], &[4]] {
        node.pass(1000);
        node.own(pool);
    }
    assert_eq!(node.past(), [former(&[1, 4]), former(&[1]), former(&[1, 2])]);
    node.pass(1000);
    node.own(&[1]);
    assert_eq!(node.past(), [former(&[4]), former(&[1, 4]), former(&[1, 2])]);
    node.pass(1000);
    node.own(&[]);
    node.pass(1000);
    node.own(&[5]);
    let expected = [former(&[1]), former(&[4]), former(&[1, 4])];
    assert_eq!(node.past(), expected, "who owned nothing knows nothing");
}

#[test]
fn sets_enter_history_a_second_apart_while_owners_change_at_once() {
    let mut node = settled();
    for pool in [&[1, 2][..], &[1], &[1, 4]] {
        node.own(pool);
        assert_eq!(*node.plan.frontends[&key(1)].owners, owners(pool));
        node.pass(100);
    }
    assert_eq!(node.past(), [former(&[1, 2, 3])]);
    node.pass(900);
    node.own(&[4]);
    assert_eq!(node.past(), [former(&[1, 4]), former(&[1, 2, 3])]);

    let mut node = settled();
    node.own(&[1]);
    node.pass(10);
    node.own(&[1, 2, 3]);
    node.pass(10);
    node.own(&[2]);
    assert_eq!(
        node.past(),
        [former(&[1, 2, 3])],
        "a set of long ago that came back goes there again"
    );
}

#[test]
fn a_node_without_history_takes_that_of_others_or_else_ranks() {
    let lineage = |epoch: &[u8], past: &[&[u8]]| Lineage {
        epoch: named(epoch),
        owners: Arc::new(owners(epoch)),
        past: past.iter().map(|it| Arc::new(owners(it))).collect(),
    };
    for (theirs, expected) in [
        (lineage(&[1, 2], &[&[1], &[2]]), vec![former(&[1]), former(&[2])]),
        // One step behind the others, or ahead of them.
        (lineage(&[3], &[&[1, 2], &[2]]), vec![former(&[3]), former(&[2])]),
        (lineage(&[1], &[&[2], &[3], &[4]]), vec![former(&[1]), former(&[2]), former(&[3])]),
    ] {
        let mut node = Node::new();
        node.consensus.lineages.insert(key(1), theirs);
        node.remember(Some(Node::plan(&[&[1, 2]])));
        assert_eq!(node.past(), expected);
    }
    let mut node = Node::new();
    node.says("b", 1);
    node.remember(Some(Node::plan(&[&[1, 2]])));
    assert_eq!(node.past(), []);
    node.pass(2000);
    assert_eq!(node.past(), [Former::Rank(2), Former::Rank(3), Former::Rank(4)]);
    node.own(&[1]);
    assert_eq!(node.past(), [former(&[1, 2]), Former::Rank(2), Former::Rank(3)]);
    node.consensus.lineages.insert(key(1), lineage(&[1], &[&[4]]));
    node.pass(1000);
    assert_eq!(node.past(), [former(&[1, 2]), former(&[4])]);
}

#[test]
fn a_backend_that_left_lives_while_its_service_is_young_or_somebody_claims_for_it() {
    let mut node = settled();
    let kept = |node: &Node| node.plan.backends.contains_key(&backend(3));
    node.remember(Some(Node::plan(&[&[1, 2]])));
    assert!(kept(&node) && node.is_young());
    node.pass(20_000);
    assert!(kept(&node), "young: {:?}", node.history.unsettled());
    let claimed = Claimed {
        slots: [(7, [backend(3)].into())].into(),
        flows: [(backend(3), (1, "b".into()))].into(),
    };
    let claimed = Arc::new(claimed);
    node.consensus.claims.insert(key(1), claimed.clone());
    node.all_say(named(&[1, 2]));
    let touched = node.pass(1000);
    assert_eq!(touched.frontends, [key(1)].into());
    assert!(kept(&node) && !node.is_young());
    assert_eq!(node.plan.frontends[&key(1)].claims, Some(claimed));
    node.remember(Some(Node::plan(&[&[1, 2]])));
    assert!(kept(&node) && node.plan.frontends[&key(1)].claims.is_some(), "also in a new plan");
    node.consensus.claims.clear();
    let touched = node.pass(1000);
    assert!(!kept(&node) && node.plan.frontends[&key(1)].claims.is_none());
    assert_eq!(touched.backends, [backend(3)].into());
}

#[test]
fn a_backend_whose_deadline_has_passed_ends_whoever_claims_for_it() {
    let over = || Desired { over: [backend(3)].into(), ..Node::plan(&[&[1, 2]]) };
    let kept = |node: &Node| node.plan.backends.contains_key(&backend(3));
    let claimed = || Claimed {
        slots: [(7, [backend(3)].into())].into(),
        flows: [(backend(3), (1, "b".into()))].into(),
    };
    // From a pool, and after it had left its pools already.
    for left in [false, true] {
        let mut node = settled();
        if left {
            node.remember(Some(Node::plan(&[&[1, 2]])));
            assert!(kept(&node));
        }
        node.consensus.claims.insert(key(1), Arc::new(claimed()));
        node.remember(Some(over()));
        assert!(!kept(&node));
        node.pass(1000);
        assert!(!kept(&node), "it does not come back by claims");
    }
}

#[test]
fn a_backend_that_owned_nothing_lingers_and_a_claimed_stranger_lives() {
    let mut node = settled();
    let pool = Node::plan(&[&[1, 2, 3]]).backends;
    let with_pool = |mut plan: Desired| {
        plan.backends.extend(pool.clone());
        plan
    };
    node.remember(Some(with_pool(Node::plan(&[&[1, 2, 3]]))));
    node.own(&[1, 2]);
    node.all_say(named(&[1, 2]));
    for pool in [&[1_u8][..], &[2], &[1, 2]] {
        node.pass(2000);
        node.own(pool);
    }
    node.pass(5000);
    assert!(!node.is_young());
    node.remember(Some(Node::plan(&[&[1, 2]])));
    node.pass(9999);
    assert!(node.plan.backends.contains_key(&backend(3)));
    let by = node.history.next_deadline().unwrap();
    assert_eq!(by, node.now + Duration::from_millis(1));
    let touched = node.pass(1);
    assert_eq!(touched.backends, [backend(3)].into());

    let flows = [(backend(9), (1, Arc::from("b"))), (backend(8), (1, Arc::from("nowhere")))].into();
    let claimed = Claimed { flows, ..Claimed::default() };
    node.consensus.claims.insert(key(1), Arc::new(claimed));
    let touched = node.pass(1000);
    assert_eq!(touched.backends, [backend(9)].into());
    assert_eq!(node.plan.backends[&backend(9)].node, "b");
}

#[test]
fn too_many_that_left_end_the_first_ones() {
    let mut node = Node::new();
    node.history.rules.kept = 2;
    node.remember(Some(Node::plan(&[&[1, 2, 3, 4, 5]])));
    for pool in [&[2, 3, 4, 5][..], &[3, 4, 5], &[4, 5]] {
        node.remember(Some(Node::plan(&[pool])));
        node.pass(1000);
    }
    assert!(!node.plan.backends.contains_key(&backend(1)));
    assert_eq!(node.plan.backends.len(), 4);
    let unsettled = node.history.unsettled();
    assert_eq!((unsettled.kept, unsettled.cut_short), (2, 1));
}

#[test]
fn a_restarted_agent_goes_on_where_the_former_stopped() {
    let left = |epoch, young| Left {
        epoch,
        young,
        tables: vec![
            (5, Arc::new(owners(&[1, 2]))),
            (9, Arc::new(owners(&[3]))),
            (0, Arc::default()),
        ],
    };
    let before = Node::plan(&[&[1, 2, 3]]);
    for young in [false, true] {
        let mut node = Node::new();
        node.plan = before.clone();
        node.history.resume([(key(1), left(named(&[1, 2]), young))].into(), node.now);
        node.remember(Some(Node::plan(&[&[1, 2]])));
        assert_eq!((node.is_young(), node.past()), (young, &[Former::Held(9)][..]));
        assert!(node.plan.backends.contains_key(&backend(3)));
        node.own(&[1]);
        assert_eq!(node.past(), [former(&[1, 2]), Former::Held(9)]);
    }
    let mut node = Node::new();
    node.history.resume([(key(1), left(named(&[1, 2]), false))].into(), node.now);
    node.remember(Some(Node::plan(&[&[1]])));
    assert!(node.is_young());
    assert_eq!(node.past(), [Former::Held(5), Former::Held(9)]);
}

#[test]
fn frontends_that_depend_on_the_node_wait_for_nobody() {
    let mut node = Node::new();
    let mut plan = Node::plan(&[&[1]]);
    plan.frontends.get_mut(&key(1)).unwrap().flags = ALWAYS_YOUNG;
    node.remember(Some(plan));
    node.pass(5000);
    assert_eq!(node.plan.frontends[&key(1)].flags, ALWAYS_YOUNG);
}

proptest! {
    #[test]
    fn increments_remember_what_new_plans_would(
        turns in prop::collection::vec((0u8..32, 0u64..3000, 0u8..8), 1..40),
    ) {
        let full: &[u8] = &[0, 1, 2, 3, 4];
        let (mut stepwise, mut anew) = (Node::new(), Node::new());
        anew.now = stepwise.now;
        for node in [&mut stepwise, &mut anew] {
            node.remember(Some(Node::plan(&[full])));
        }
        for (set, wait, heard) in turns {
            let set: Vec<u8> = (0..5).filter(|n| set >> n & 1 == 1).collect();
            for node in [&mut stepwise, &mut anew] {
                node.now += Duration::from_millis(wait);
                if heard == 0 {
                    node.all_say(named(&set));
                }
            }
            stepwise.own(&set);
            stepwise.remember(None);
            let mut plan = Node::plan(&[full]);
            plan.frontends.get_mut(&key(1)).unwrap().owners = Arc::new(owners(&set));
            anew.remember(Some(plan));
            anew.remember(None);
            prop_assert_eq!(&stepwise.plan, &anew.plan);
            prop_assert!(stepwise.past().len() <= PAST);
            let current = Former::Owners(named(&set), Arc::new(owners(&set)));
            prop_assert!(!stepwise.past().contains(&current));
        }
    }
}
