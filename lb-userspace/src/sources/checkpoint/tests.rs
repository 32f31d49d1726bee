use std::{os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    config::{Overrides, parse as parse_config},
    model::{Check, CheckKind, HttpCheck, Pool, Selector},
};

fn intent() -> Intent {
    let text = include_str!("../../../../docs/examples/weir.yaml");
    let overrides = Overrides { node: Some("worker-1".into()), ..Overrides::default() };
    parse_config(Path::new("weir.yaml"), text, &overrides).unwrap()
}

/// The same with another set of frontends.
fn other() -> Intent {
    let mut intent = intent();
    intent.frontends = intent.frontends.skip(1);
    intent
}

fn digest_of(intent: &Intent) -> Digest {
    Digest::of(intent).unwrap()
}

fn keep(dir: &Path, intent: &Intent, now_ms: u64) -> io::Result<()> {
    write(dir, intent, digest_of(intent), now_ms)
}

fn bytes_of(intent: &Intent) -> Vec<u8> {
    let mut file = io::Cursor::new(Vec::new());
    write_to(&mut file, intent, digest_of(intent), 2).unwrap();
    file.into_inner()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn newest(dir: &Path) -> PathBuf {
    dir.join(FILES[0])
}

fn read_intents(dir: &Path) -> Vec<Intent> {
    let found = read(dir, Some("worker-1"));
    assert_eq!(found.problems, [""; 0]);
    found.checkpoints.into_iter().map(|it| it.intent).collect()
}

#[test]
fn the_newest_and_the_one_before_it_are_kept_for_their_owner_alone() {
    let dir = folder();
    assert!(read(dir.path(), None).checkpoints.is_empty());
    keep(dir.path(), &intent(), 1).unwrap();
    assert_eq!(read_intents(dir.path()), [intent()]);
    // Left by a life that was cut off.
    fs::write(dir.path().join(FRESH), "half").unwrap();
    fs::set_permissions(dir.path().join(FRESH), fs::Permissions::from_mode(0o644)).unwrap();
    keep(dir.path(), &other(), 2).unwrap();
    assert_eq!(read_intents(dir.path()), [other(), intent()]);
    for name in FILES {
        let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
    assert!(EVERY_FILE.iter().all(|name| name.starts_with(FILES[0])));
    assert!(FILES.iter().all(|name| EVERY_FILE.contains(&format!("{name}.{SET_ASIDE}").as_str())));
    let [newest, previous] = &read(dir.path(), None).checkpoints[..] else { panic!() };
    assert_eq!((newest.written_ms, previous.written_ms), (2, 1));
    assert_eq!(newest.asked, digest_of(&other()));
    assert_ne!(newest.asked, previous.asked);
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_set_aside_and_the_previous_one_serves() {
    let (whole, dir) = (bytes_of(&other()), folder());
    keep(dir.path(), &intent(), 1).unwrap();
    for length in 0..whole.len() {
        let file = Path::new("f");
        assert!(matches!(parse(file, &whole[..length], None), Err(Flaw::Damaged(_))), "{length}");
    }
    fs::rename(newest(dir.path()), dir.path().join(FILES[1])).unwrap();
    fs::write(newest(dir.path()), &whole[..whole.len() / 2]).unwrap();
    let found = read(dir.path(), Some("worker-1"));
    assert_eq!(found.checkpoints.iter().map(|it| &it.intent).collect::<Vec<_>>(), [&intent()]);
    let problem = &found.problems[0];
    assert!(problem.contains("damaged") && problem.contains("checkpoint.set-aside"), "{problem}");
    assert_eq!(
        fs::read(dir.path().join("checkpoint.set-aside")).unwrap(),
        &whole[..whole.len() / 2]
    );
    assert_eq!(read_intents(dir.path()), [intent()], "told of once");
}

#[test]
fn files_of_other_nodes_and_builds_are_set_aside_with_what_to_do() {
    let body = |text: &str| format!("{SCHEMA} {}\n{text}", Digest::of_bytes(text.as_bytes()));
    let whole = String::from_utf8(bytes_of(&intent())).unwrap();
    let json = whole.split_once('\n').unwrap().1;
    for (text, node, parts) in [
        (whole.clone(), "worker-2", ["of node \"worker-1\"", "--state-dir"]),
        (
            whole.replacen("/v1", "/v2", 1),
            "worker-1",
            ["schema \"weir.checkpoint/v2\"", "that build"],
        ),
        (body(&json.replacen("\"vni\"", "\"vnj\"", 1)), "worker-1", ["vnj", "another build"]),
        (body(&json.replacen("\"worker-1\"", "\"a\"", 1)), "a", ["of node \"a\"", "--state-dir"]),
        (String::new(), "worker-1", ["damaged", "remove it"]),
    ] {
        let dir = folder();
        fs::write(newest(dir.path()), text).unwrap();
        let found = read(dir.path(), Some(node));
        assert!(found.checkpoints.is_empty());
        let problem = &found.problems[0];
        assert!(parts.iter().all(|part| problem.contains(part)), "{problem}");
        assert!(problem.contains(&*newest(dir.path()).to_string_lossy()), "{problem}");
        assert!(!newest(dir.path()).exists());
    }
}

#[test]
fn what_cannot_be_written_leaves_what_was_there() {
    let dir = folder();
    keep(dir.path(), &intent(), 1).unwrap();
    fs::create_dir(dir.path().join(FRESH)).unwrap();
    assert!(keep(dir.path(), &other(), 2).is_err());
    fs::remove_dir(dir.path().join(FRESH)).unwrap();
    assert_eq!(read_intents(dir.path()), [intent()]);
}

fn check() -> impl Strategy<Value = Check> {
    let http = (
        ".{0,8}",
        proptest::option::of(".{0,8}"),
        prop::collection::vec(any::<(u16, u16)>(), 0..3),
    );
    let http = http.prop_map(|(path, host, accept)| HttpCheck { path, host, accept });
    let kind = prop_oneof![
        Just(CheckKind::Tcp),
        http.clone().prop_map(CheckKind::Http),
        (http, any::<bool>()).prop_map(|(http, verify)| CheckKind::Https { http, verify }),
    ];
    let rest = (any::<Option<u16>>(), any::<u64>(), any::<u32>(), any::<u8>());
    (kind, rest).prop_map(|(kind, (port, time, count, jitter_percent))| Check {
        kind,
        port,
        interval: Duration::from_nanos(time),
        timeout: Duration::from_millis(time >> 20),
        rise: count,
        fall: !count,
        jitter_percent,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_intent_comes_back_as_it_was(
        check in proptest::option::of(check()),
        addresses in prop::collection::vec(any::<std::net::IpAddr>(), 1..4),
        labels in prop::collection::btree_map(".{0,6}", ".{0,6}", 0..4),
        (seed, keys) in any::<([u8; 16], Vec<[u8; 32]>)>(),
        (port, weight, terminating, by_label) in any::<(Option<u16>, u16, bool, bool)>(),
    ) {
        let mut intent = intent();
        (intent.agent.seed, intent.agent.gossip.keys) = (seed, keys);
        Arc::make_mut(&mut intent.nodes).get_mut("worker-1").unwrap().labels.clone_from(&labels);
        let apps = Arc::make_mut(intent.frontends.get_mut("apps").unwrap());
        (apps.check, apps.addresses) = (check, addresses.clone());
        match &mut apps.pool {
            pool if by_label => *pool = Pool::Nodes { selector: Selector { match_labels: labels, ..Selector::default() }, weight },
            Pool::Members(members) => for member in members {
                member.address = addresses[0];
                (member.port, member.weight, member.terminating) = (port, weight, terminating);
            },
            Pool::Nodes { .. } => unreachable!(),
        }
        let bytes = bytes_of(&intent);
        let read = parse(Path::new("f"), &bytes, Some("worker-1")).unwrap();
        prop_assert_eq!(&read.intent, &intent);
        prop_assert_eq!(read.asked, digest_of(&read.intent));
        let text = serde_json::to_string(&read.asked).unwrap();
        prop_assert_eq!(serde_json::from_str::<Digest>(&text).unwrap(), read.asked);
    }

    #[test]
    fn no_flipped_bit_goes_unnoticed(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut bytes = bytes_of(&intent());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(parse(Path::new("f"), &bytes, None).is_err());
    }
}
