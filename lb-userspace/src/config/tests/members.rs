//! Gossip, hold-downs and who announces.

use super::*;
use crate::model::{
    ArrivalTimes, ConnectSettings, HoldDowns,
    seed::{gossip_key_from, seed_from},
};

/// The good file with further lines in the agent's `spec`.
fn with_agent(lines: &str) -> String {
    GOOD.replacen("node: n1\n", &format!("node: n1\n{lines}"), 1)
}

#[test]
fn without_fields_agents_talk_by_the_seed_and_every_node_announces() {
    let intent = parse_text(GOOD).unwrap();
    let agent = &intent.agent;
    let seed = "0123456789abcdef-";
    assert_eq!((agent.seed, agent.gossip.port), (seed_from(seed), 6085));
    assert_eq!(agent.gossip.keys, [gossip_key_from(seed)]);
    assert_eq!((&agent.gossip.seeds, &agent.gateways), (&vec![], &vec![]));
    assert_eq!(agent.hold_downs, HoldDowns::default());
    assert_eq!(agent.arrivals, ArrivalTimes::default());
    assert!(agent.announce_interfaces.is_empty());
    assert_eq!(agent.connect, ConnectSettings { enabled: true, cgroup: None });
    let web = &intent.frontends["web"];
    assert!(!web.local_only && web.announce == Default::default());
}

#[test]
fn every_field_of_members_is_read() {
    let text = with_agent(
        "  gossip:
    port: 7000
    key: a key of many words
    previousKey: another key of words
    seeds: ['192.0.2.7:7000', '[2001:db8::7]:7000']
  holdDowns: {backends: 2s, vips: 0s, most: 30s, forget: 5m, mute: 10s}
  arrivals: {established: 24h, closed: 10s, opening: 20s, datagrams: 30s}
  announce: {interfaces: ['eth*'], gateways: [192.0.2.254, 'fe80::1']}
  connect: {enabled: false, cgroup: /sys/fs/cgroup/pods}
",
    );
    let text = text.replace(
        "addresses: [198.51.100.1]",
        "addresses: [198.51.100.1]
  externalTrafficPolicy: Local
  announce: {nodeSelector: {matchLabels: {role: server}}, interfaces: [eth0, 'bond*']}",
    );
    let intent = parse_text(&text).unwrap();
    let agent = intent.agent;
    assert_eq!(agent.gossip.port, 7000);
    let keys = ["a key of many words", "another key of words"].map(gossip_key_from);
    assert_eq!(agent.gossip.keys, keys);
    assert_eq!(
        agent.gossip.seeds,
        ["192.0.2.7:7000", "[2001:db8::7]:7000"].map(|it| it.parse().unwrap())
    );
    let seconds = Duration::from_secs;
    assert_eq!(
        agent.arrivals,
        ArrivalTimes {
            established: seconds(24 * 3600),
            closed: seconds(10),
            opening: seconds(20),
            datagrams: seconds(30),
        }
    );
    assert_eq!(
        agent.hold_downs,
        HoldDowns {
            backends: seconds(2),
            vips: Duration::ZERO,
            most: seconds(30),
            forget: seconds(300),
            mute: seconds(10),
        }
    );
    let cgroup = Some("/sys/fs/cgroup/pods".into());
    assert_eq!(agent.connect, ConnectSettings { enabled: false, cgroup });
    assert_eq!(agent.announce_interfaces, ["eth*"]);
    assert_eq!(agent.gateways, ["192.0.2.254", "fe80::1"].map(|it| it.parse::<IpAddr>().unwrap()));
    let web = &intent.frontends["web"];
    assert!(web.local_only);
    assert_eq!(web.announce.nodes.match_labels["role"], "server");
    assert_eq!(web.announce.interfaces, ["eth0", "bond*"]);
}

#[test]
fn keys_may_stand_in_files_and_the_seed_may_be_the_previous_one() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("key"), "a key of many words\n").unwrap();
    let text = with_agent("  gossip: {keyFile: key, previousKey: 0123456789abcdef-}\n");
    let path = dir.path().join("weir.yaml");
    let (intent, beside) = parse_with(&path, &text, &Overrides::default());
    let keys = ["a key of many words", "0123456789abcdef-"].map(gossip_key_from);
    assert_eq!(intent.unwrap().agent.gossip.keys, keys);
    assert_eq!(beside, [(dir.path().join("key"), Some("a key of many words\n".into()))].into());

    fs::remove_file(dir.path().join("key")).unwrap();
    let (intent, beside) = parse_with(&path, &text, &Overrides::default());
    assert!(intent.unwrap_err().to_string().contains("key cannot be read"));
    assert_eq!(beside, [(dir.path().join("key"), None)].into());
}

#[test]
fn equal_keys_are_one() {
    let text = with_agent("  gossip: {previousKey: 0123456789abcdef-}\n");
    assert_eq!(parse_text(&text).unwrap().agent.gossip.keys.len(), 1);
}

#[test]
fn wrong_values_are_named_with_what_is_allowed() {
    assert_refused(&[
        (
            "node: n1",
            "node: n1\n  gossip: {key: short}",
            6,
            "spec.gossip.key: the key has 5 bytes; allowed: 16 or more, hard to guess",
        ),
        (
            "node: n1",
            "node: n1\n  gossip: {previousKey: short}",
            6,
            "spec.gossip.previousKey: the key has 5 bytes",
        ),
        (
            "node: n1",
            "node: n1\n  gossip: {key: a key of many words, keyFile: key}",
            6,
            "both `key` and `keyFile` are given; allowed: one of them",
        ),
        ("node: n1", "node: n1\n  gossip: {previousKeyFile: none}", 6, "none cannot be read"),
        (
            "node: n1",
            "node: n1\n  gossip: {port: 6084}",
            6,
            "spec.gossip.port: 6084 is the tunnel's port too; allowed: another one",
        ),
        ("node: n1", "node: n1\n  tunnelPort: 6085", 5, "`gossip.port`: 6085 is the tunnel's"),
        (
            "node: n1",
            "node: n1\n  gossip: {seeds: [192.0.2.1]}",
            6,
            "spec.gossip.seeds[0]: `192.0.2.1` is not a member's address; allowed: a unicast",
        ),
        ("node: n1", "node: n1\n  gossip: {seeds: ['224.0.0.1:1']}", 6, "is not a member's"),
        (
            "node: n1",
            "node: n1\n  gossip: {keys: []}",
            6,
            "unknown field `keys`, did you mean `key`?",
        ),
        ("node: n1", "node: n1\n  holdDowns: {mute: 500ms}", 6, "allowed: 1s to 3600s"),
        ("node: n1", "node: n1\n  arrivals: {closed: 9s}", 6, "allowed: 10s to 604800s"),
        (
            "node: n1",
            "node: n1\n  holdDowns: {most: 3s}",
            6,
            "`most` is 3s, shorter than the first hold-down; allowed: 5s or more",
        ),
        (
            "node: n1",
            "node: n1\n  announce: {gateways: [127.0.0.1]}",
            6,
            "127.0.0.1 is a loopback address; allowed: a router's own address",
        ),
        (
            "node: n1",
            "node: n1\n  announce: {interfaces: [eth0, eth0]}",
            6,
            "spec.announce.interfaces[1]: `eth0` appears twice",
        ),
        (
            "[198.51.100.2]",
            "[198.51.100.2]\n  externalTrafficPolicy: local",
            40,
            "did you mean `Local`?; allowed: Cluster, Local",
        ),
        (
            "[198.51.100.2]",
            "[198.51.100.2]\n  announce: {nodeSelector: {matchLabels: {role: router}}}",
            40,
            "no node has the labels of `nodeSelector`: nobody would announce it",
        ),
        ("node: n1", "node: n1\n  connect: {cgroup: there}", 6, "not an absolute path"),
        ("[198.51.100.2]", "[198.51.100.2]\n  announce: {interfaces: ['a b']}", 40, "interface's"),
    ]);
}
