use std::path::Path;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    config::{Overrides, parse},
    model::{Health, Members, PoolMember, Verdicts, drains::NONE_DRAINED},
    plan::{askers, desired, follow},
};

const CONFIG: &str = "\
apiVersion: weir.dev/v1alpha1
kind: Agent
metadata: {name: a}
spec: {node: n0, uplinks: [eth0], seed: not a secret}
---
apiVersion: weir.dev/v1alpha1
kind: Node
metadata: {name: n0}
spec: {addresses: [10.0.0.1]}
---
apiVersion: weir.dev/v1alpha1
kind: Node
metadata: {name: n1}
spec: {addresses: [10.0.0.2]}
---
apiVersion: weir.dev/v1alpha1
kind: Frontend
metadata: {name: x}
spec:
  addresses: [192.0.2.1]
  ports: [{port: 80}]
  pool: {members: [{address: 10.1.0.1, node: n0}]}
  healthCheck: {type: TCP}
";

/// `frontend/x` is told of as `x` is, and has an address that another one has.
const NAMES: [&str; 8] = [
    "x",
    "frontend/x",
    "frontend/y",
    "service/d/a/1",
    "service/d/a/2",
    "service/d/ab/1",
    "service/d/b/1",
    "service/d/c/1",
];

/// Of a pool, by number: its node is unknown (9), or another one than elsewhere (8).
type Listed = Vec<(u8, bool)>;

fn member((at, terminating): &(u8, bool)) -> PoolMember {
    let node = match at {
        9 => "nobody".into(),
        8 => "n1".into(),
        at => format!("n{}", at % 2),
    };
    let address = format!("10.1.0.{}", if *at == 8 { 0 } else { *at }).parse().unwrap();
    PoolMember { address, port: Some(8080), weight: 1, node, terminating: *terminating, far: false }
}

fn pool(members: &Listed) -> Pool {
    let members: BTreeMap<u8, bool> = members.iter().copied().collect();
    Pool::Members(members.iter().map(|(at, ends)| member(&(*at, *ends))).collect())
}

/// All objects, with the same pool.
fn intent() -> Intent {
    let overrides = Overrides::default();
    let mut intent = parse(Path::new("weir.yaml"), CONFIG, &overrides).unwrap();
    let first = FrontendObject::clone(&intent.frontends["x"]);
    for (number, name) in (1..).zip(NAMES) {
        let number = if name == "service/d/c/1" { 1 } else { number };
        let addresses = vec![format!("192.0.2.{number}").parse().unwrap()];
        let object = FrontendObject { name: name.into(), addresses, ..first.clone() };
        intent.frontends.insert(name.into(), Arc::new(object));
    }
    intent
}

fn pools() -> impl Strategy<Value = Listed> {
    vec((0..10u8, any::<bool>()), 0..5)
}

fn differing<K: Copy + Ord, V: PartialEq>(
    before: &BTreeMap<K, V>,
    now: &BTreeMap<K, V>,
) -> BTreeSet<K> {
    let keys = before.keys().chain(now.keys());
    keys.filter(|key| before.get(key) != now.get(key)).copied().collect()
}

/// Follows a turn and returns whether it could.
fn follow_turn(
    plan: &mut Desired,
    asked: &mut Askers,
    former: &Intent,
    now: &Inputs<'_>,
    turn: u64,
) -> Result<bool, TestCaseError> {
    let before = plan.clone();
    let Some(edited) = edit(plan, now, asked, former) else {
        prop_assert_eq!(&*plan, &before);
        return Ok(false);
    };
    let moved = follow(plan, now, asked, now.verdicts.since(turn), std::iter::empty());
    prop_assert_eq!(&*plan, &desired(now));
    let frontends: BTreeSet<_> = edited.frontends.union(&moved).copied().collect();
    prop_assert!(frontends.is_superset(&differing(&before.frontends, &plan.frontends)));
    prop_assert_eq!(&edited.backends, &differing(&before.backends, &plan.backends));
    let gone = before.backends.iter().filter(|it| !plan.backends.contains_key(it.0));
    prop_assert!(edited.left.iter().eq(gone));
    prop_assert!(asked.targets.keys().eq(askers(now.intent).targets.keys()));
    Ok(true)
}

proptest! {
    #[test]
    fn an_edited_plan_is_equal_to_a_new_one(
        turns in vec((vec((0..NAMES.len(), pools()), 0..3), 0..8usize), 1..20),
    ) {
        let mut intent = intent();
        let members = Members::assumed("n0", ["n0", "n1"]);
        let mut verdicts = Verdicts::new();
        let mut asked = askers(&intent);
        let none = Inputs {
            intent: &intent.clone(),
            verdicts: &verdicts.clone(),
            members: &members,
            drained: &NONE_DRAINED,
        };
        let mut plan = desired(&none);
        for (edits, judged) in turns {
            let (former, turn) = (intent.clone(), verdicts.turn());
            for (at, members) in &edits {
                let object = intent.frontends.get_mut(NAMES[*at]).unwrap();
                Arc::make_mut(object).pool = pool(members);
            }
            let target = asked.targets.keys().nth(judged).cloned();
            if let Some(target) = target {
                let up = verdicts.get(&target).is_none_or(Health::serves);
                verdicts.insert(target, if up { Health::Down("bench".into()) } else { Health::Up });
            }
            let now = Inputs { intent: &intent, verdicts: &verdicts, ..none };
            if !follow_turn(&mut plan, &mut asked, &former, &now, turn)? {
                (plan, asked) = (desired(&now), askers(&intent));
            }
        }
    }
}

#[test]
fn only_pools_can_be_edited_and_only_of_objects_that_are_served() {
    let (former, verdicts) = (intent(), Verdicts::new());
    let members = Members::assumed("n0", ["n0", "n1"]);
    let edit_by = |change: &dyn Fn(&mut Intent)| {
        let mut intent = former.clone();
        change(&mut intent);
        let (mut asked, drained) = (askers(&former), &NONE_DRAINED);
        let before = Inputs { intent: &former, verdicts: &verdicts, members: &members, drained };
        let now = Inputs { intent: &intent, ..before };
        edit(&mut desired(&before), &now, &mut asked, &former).is_some()
    };
    let own = pool(&vec![(5, false)]);
    let object = |intent: &mut Intent, name: &str, change: &dyn Fn(&mut FrontendObject)| {
        change(Arc::make_mut(intent.frontends.get_mut(name).unwrap()));
    };
    let all_own = |intent: &mut Intent| {
        for name in NAMES {
            object(intent, name, &|it| it.pool = own.clone());
        }
    };
    assert!(edit_by(&|_| {}));
    assert!(!edit_by(&|it| all_own(it)), "one of them is refused");
    assert!(!edit_by(&|it| drop(it.frontends.remove("frontend/y"))));
    assert!(!edit_by(&|it| object(it, "frontend/y", &|it| it.echo = !it.echo)));
    assert!(!edit_by(&|it| drop(Arc::make_mut(&mut it.nodes).remove("n1"))));
}
