use std::{fs, os::unix::fs::symlink, path::Path, time::SystemTime};

use super::*;
use crate::sources::trust::Choice;

const GOOD: &str = include_str!("../../../../docs/examples/weir.yaml");

fn clock() -> SystemTime {
    SystemTime::UNIX_EPOCH
}

fn open(path: &Path) -> FileSource {
    let overrides = Overrides { node: Some("worker-1".into()), ..Overrides::default() };
    FileSource::live(FirstLook::new(path.into(), overrides), None, clock).unwrap()
}

/// A source whose file then becomes `text`, seen twice.
fn after(text: &str) -> FileSource {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.yaml");
    fs::write(&path, GOOD).unwrap();
    let mut source = open(&path);
    fs::write(&path, text).unwrap();
    source.poll();
    source.poll();
    source
}

fn status(source: &FileSource) -> SourceStatus {
    source.status().borrow().clone()
}

#[test]
fn a_bad_first_file_gives_no_source() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.yaml");
    let first = || FirstLook::new(path.clone(), Overrides::default());
    assert!(FileSource::live(first(), None, clock).is_err());
    fs::write(&path, "kind: Agent").unwrap();
    assert!(FileSource::live(first(), None, clock).is_err());
}

#[test]
fn a_good_change_is_published_once_it_was_seen_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.yaml");
    fs::write(&path, GOOD).unwrap();
    let mut source = open(&path);
    let mut intents = source.intent();
    source.poll();
    assert!(!intents.has_changed().unwrap());
    fs::write(&path, GOOD.replace("198.51.100.3", "198.51.100.4")).unwrap();
    source.poll();
    assert!(!intents.has_changed().unwrap(), "half-written files must not count");
    source.poll();
    assert!(intents.has_changed().unwrap());
    let dns = intents.borrow_and_update().frontends["dns"].addresses.clone();
    assert_eq!(dns, ["198.51.100.4".parse::<std::net::IpAddr>().unwrap()]);
    assert!(status(&source).ok);
}

#[test]
fn links_that_are_swapped_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two, link) =
        (dir.path().join("one"), dir.path().join("two"), dir.path().join("weir.yaml"));
    fs::write(&one, GOOD).unwrap();
    fs::write(&two, GOOD.replace("198.51.100.3", "198.51.100.4")).unwrap();
    symlink(&one, &link).unwrap();
    let mut source = open(&link);
    let fresh = dir.path().join("fresh");
    symlink(&two, &fresh).unwrap();
    fs::rename(&fresh, &link).unwrap();
    source.poll();
    source.poll();
    assert!(source.intent().borrow().frontends["dns"].addresses[0].to_string().ends_with(".4"));
}

#[test]
fn a_bad_file_keeps_the_old_state_and_says_every_problem() {
    let text = GOOD.replace("port: 6443", "port: 0").replace("[eth0]", "[]");
    let source = after(&text);
    let status = status(&source);
    assert!(!status.ok);
    assert_eq!(status.problems.len(), 2, "{:?}", status.problems);
    assert_eq!(source.intent().borrow().frontends["api"].ports[0].port, 6443);
}

#[test]
fn a_file_that_vanishes_keeps_the_old_state_and_returns() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.yaml");
    fs::write(&path, GOOD).unwrap();
    let mut source = open(&path);
    fs::remove_file(&path).unwrap();
    source.poll();
    source.poll();
    assert!(status(&source).problems[0].contains("cannot be read"));
    assert_eq!(source.intent().borrow().frontends.len(), 3);
    fs::write(&path, GOOD).unwrap();
    source.poll();
    source.poll();
    assert!(status(&source).ok);
}

#[test]
fn agent_settings_wait_for_a_restart_while_the_rest_counts() {
    let text = GOOD.replace("[eth0]", "[eth1]\n  vni: 5").replace("198.51.100.3", "198.51.100.4");
    let source = after(&text);
    let status = status(&source);
    assert!(!status.ok);
    assert!(status.problems[0].contains("spec.uplinks changed, which needs a restart"));
    assert!(status.problems[1].contains("spec.vni changed"));
    let intent = source.intent().borrow().clone();
    assert_eq!(intent.agent.uplinks, ["eth0"]);
    assert!(intent.frontends["dns"].addresses[0].to_string().ends_with(".4"));
}

#[test]
fn slots_of_a_frontend_that_exists_are_refused_with_all_else() {
    let text = GOOD.replace("slots: 251", "slots: 509").replace("port: 6443", "port: 6444");
    let source = after(&text);
    let problems = status(&source).problems;
    assert!(
        problems[0].contains("Frontend/dns spec.slots: 509 slots instead of 251"),
        "{problems:?}"
    );
    assert_eq!(source.intent().borrow().frontends["api"].ports[0].port, 6443);
}

#[test]
fn a_new_default_of_slots_counts_for_new_frontends_only() {
    let new = "---\napiVersion: weir.dev/v1alpha1\nkind: Frontend\nmetadata: {name: new}\nspec:\n  \
               addresses: [198.51.100.9]\n  ports: [{port: 1}]\n  pool: {nodeSelector: {}}\n";
    let text = GOOD
        .replace("uplinks: [eth0]", "uplinks: [eth0]\n  defaultSlots: 1021")
        .replace("  slots: 251\n", "")
        + new;
    let source = after(&text);
    let status = status(&source);
    assert!(status.ok, "{:?}", status.problems);
    let intent = source.intent().borrow().clone();
    let slots = |name: &str| intent.slots(&intent.frontends[name]);
    assert_eq!((slots("api"), slots("dns"), slots("new")), (4093, 251, 1021));
}

#[test]
fn a_reload_judges_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.yaml");
    fs::write(&path, GOOD).unwrap();
    let mut source = open(&path);
    fs::write(&path, "{").unwrap();
    source.reload();
    assert!(!status(&source).ok);
}

/// The example with these lines instead of its own about gossip.
fn with_gossip(lines: &str) -> String {
    let text = GOOD.replacen("  gossip: {port: 6085}\n", lines, 1);
    assert_ne!(text, GOOD);
    text
}

#[test]
fn keys_and_announcing_interfaces_change_without_a_restart_and_port_and_seeds_do_not() {
    let key = "a key of many words";
    let source = after(&with_gossip(&format!(
        "  gossip: {{key: {key}, port: 7000, seeds: ['192.0.2.1:7000']}}\n  announce: \
         {{interfaces: ['eth*'], gateways: [192.0.2.254]}}\n"
    )));
    let problems = status(&source).problems;
    assert_eq!(problems.len(), 3, "{problems:?}");
    for (problem, field) in
        problems.iter().zip(["gossip.port", "gossip.seeds", "announce.gateways"])
    {
        assert!(problem.contains(&format!("spec.{field} changed")), "{problem}");
    }
    let agent = source.intent().borrow().agent.clone();
    assert_eq!(agent.gossip.keys, [crate::model::seed::gossip_key_from(key)]);
    assert_eq!((agent.gossip.port, agent.announce_interfaces), (6085, vec!["eth*".into()]));
}

#[test]
fn keys_wait_for_the_restart_together_with_the_seed() {
    let source = after(&GOOD.replace("put 16 or more", "replaced by"));
    let agent = source.intent().borrow().agent.clone();
    let text = "put 16 or more random characters here";
    assert_eq!(agent.gossip.keys, [crate::model::seed::gossip_key_from(text)]);
}

#[test]
fn a_key_file_is_followed_as_the_configuration_is() {
    let dir = tempfile::tempdir().unwrap();
    let (path, key) = (dir.path().join("weir.yaml"), dir.path().join("key"));
    fs::write(&key, "a key of many words").unwrap();
    fs::write(&path, with_gossip("  gossip: {keyFile: key}\n")).unwrap();
    let mut source = open(&path);
    let mut look = |text: Option<&str>| {
        match text {
            Some(text) => fs::write(&key, text).unwrap(),
            None => fs::remove_file(&key).unwrap(),
        }
        source.poll();
        source.poll();
        (source.intent().borrow().agent.gossip.keys[0], status(&source).ok)
    };
    let [one, two] =
        ["another key of words", "a third key of words"].map(crate::model::seed::gossip_key_from);
    assert_eq!(look(Some("another key of words")), (one, true));
    assert_eq!(look(Some("short")), (one, false));
    assert_eq!(look(None), (one, false));
    assert_eq!(look(Some("a third key of words\n")), (two, true));
}

/// A source that starts with a checkpoint of the good file, and the journal of that life. `crashed`: what
/// the file says now crashed the agent.
fn stale(path: &Path, crashed: bool) -> (FileSource, Arc<Mutex<Trust>>) {
    let (good, state_dir) = (path.with_file_name("good.yaml"), path.parent().unwrap());
    fs::write(&good, GOOD).unwrap();
    let overrides = || Overrides {
        node: Some("worker-1".into()),
        pin_dir: Some("/sys/fs/bpf/given".into()),
        state_dir: Some(state_dir.into()),
    };
    let intent = FirstLook::new(good, Overrides { pin_dir: None, ..overrides() });
    let intent = intent.intent().unwrap().clone();
    let asked = Digest::of(&intent).unwrap();
    let file = state_dir.join("checkpoint");
    let checkpoint = Checkpoint { file, intent, asked, written_ms: 7 };
    let first = FirstLook::new(path.into(), overrides());
    if crashed {
        let live = Digest::of(first.intent().unwrap()).unwrap();
        (0..3).for_each(|now| Trust::open(state_dir).begin(live, now));
    }
    let mut trust = Trust::open(state_dir);
    let live = first.intent().ok().map(|intent| Digest::of(intent).unwrap());
    let choice = trust.choose(live, std::slice::from_ref(&checkpoint), 4);
    assert_eq!(choice, Choice::Checkpoint(0));
    trust.begin(asked, 4);
    let trust = Arc::new(Mutex::new(trust));
    (FileSource::from_checkpoint(first, checkpoint, trust.clone(), clock), trust)
}

fn dns(source: &FileSource) -> String {
    source.intent().borrow().frontends["dns"].addresses[0].to_string()
}

#[test]
fn a_checkpoint_serves_until_the_file_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.yaml");
    fs::write(&path, "kind: Agent").unwrap();
    let (mut source, trust) = stale(&path, false);
    assert_eq!(source.intent().borrow().agent.pin_dir, Path::new("/sys/fs/bpf/given"));
    source.poll();
    source.poll();
    let status = status(&source);
    let stale = status.stale.unwrap();
    assert_eq!(
        (status.ok, stale.written_ms, stale.checkpoint),
        (false, 7, dir.path().join("checkpoint"))
    );
    assert!(stale.why.contains("weir.yaml cannot be used"), "{}", stale.why);
    assert!(status.problems.iter().any(|problem| problem.contains("apiVersion")), "what is wrong");

    fs::write(&path, GOOD.replace("198.51.100.3", "198.51.100.4")).unwrap();
    source.poll();
    source.poll();
    let status = source.status().borrow().clone();
    assert_eq!((dns(&source), status.ok, status.stale), ("198.51.100.4".into(), true, None));
    let asked = FirstLook::new(path, source.overrides.clone());
    assert_eq!(trust.lock().unwrap().tried(), Some(Digest::of(asked.intent().unwrap()).unwrap()));
}

#[test]
fn what_crashed_the_agent_counts_again_once_it_differs_or_somebody_insists() {
    let crashes = GOOD.replace("198.51.100.3", "198.51.100.4");
    for insists in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weir.yaml");
        fs::write(&path, &crashes).unwrap();
        let (mut source, trust) = stale(&path, true);
        // Another text that asks for the same.
        fs::write(&path, format!("{crashes}\n# nothing new")).unwrap();
        source.poll();
        source.poll();
        assert_eq!(dns(&source), "198.51.100.3");
        let why = status(&source).stale.unwrap().why;
        assert!(why.contains("crashed with, 3 times") && why.contains("SIGHUP"), "{why}");
        let (address, write) = match insists {
            true => ("198.51.100.4", None),
            false => ("198.51.100.5", Some(GOOD.replace("198.51.100.3", "198.51.100.5"))),
        };
        if let Some(text) = write {
            fs::write(&path, text).unwrap();
            source.poll();
            source.poll();
        } else {
            source.reload();
        }
        assert_eq!((dns(&source).as_str(), status(&source).stale), (address, None));
        assert_eq!(trust.lock().unwrap().distrusted(), None);
    }
}

#[test]
fn a_bad_file_still_tells_its_directories() {
    for (text, expected) in [
        ("spec:\n  stateDir: /x/y # here\n  bad", "/x/y"),
        ("spec: {stateDir: \"/x/y\", uplinks: [", "/x/y"),
        ("spec: {stateDir: y}", "/var/lib/weir"),
        ("", "/var/lib/weir"),
    ] {
        assert_eq!(config::likely_state_dir(text), Path::new(expected), "{text}");
    }
    assert_eq!(config::likely_pin_dir("{pinDir: /x, stateDir: /y, bad"), Path::new("/x"));
    assert_eq!(config::likely_pin_dir("stateDir: /y"), Path::new("/sys/fs/bpf/weir"));
}
