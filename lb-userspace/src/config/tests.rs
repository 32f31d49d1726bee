use std::time::Duration;

use super::*;
use crate::model::{CheckKind, Pool, Protocol};

mod members;

const EXAMPLE: &str = include_str!("../../../docs/examples/weir.yaml");

/// A good file; every bad one below is this one with something replaced. Lines matter.
const GOOD: &str = "\
apiVersion: weir.dev/v1alpha1
kind: Agent
metadata: {name: a}
spec:
  node: n1
  uplinks: [eth0]
  seed: 0123456789abcdef-
  limits: {frontends: 4, vips: 3, backends: 6, nodes: 2, ownerBlocks: 1025}
---
apiVersion: weir.dev/v1alpha1
kind: Node
metadata: {name: n1, labels: {role: server}}
spec:
  addresses: [192.0.2.1, '2001:db8::1']
---
apiVersion: weir.dev/v1alpha1
kind: Node
metadata: {name: n2}
spec:
  addresses: [192.0.2.2]
---
apiVersion: weir.dev/v1alpha1
kind: Frontend
metadata: {name: web}
spec:
  addresses: [198.51.100.1]
  ports:
  - {name: http, port: 80, targetPort: 8080}
  pool:
    members:
    - {address: 10.0.0.1, node: n1}
    - {address: 192.0.2.2}
  healthCheck: {type: HTTP, interval: 1s}
---
apiVersion: weir.dev/v1alpha1
kind: Frontend
metadata: {name: dns}
spec:
  addresses: [198.51.100.2]
  ports: [{port: 53, protocol: UDP}]
  pool: {nodeSelector: {matchLabels: {role: server}}}
";

fn parse_text(text: &str) -> Result<Intent, ConfigErrors> {
    parse(Path::new("weir.yaml"), text, &Overrides::default())
}

fn errors(text: &str) -> Vec<String> {
    parse_text(text).unwrap_err().lines().collect()
}

#[test]
fn the_example_is_valid_and_serves_every_node() {
    for name in ["master-1", "worker-1", "worker-2"] {
        let overrides = Overrides { node: Some(name.into()), ..Overrides::default() };
        let intent = parse(Path::new("weir.yaml"), EXAMPLE, &overrides).unwrap();
        assert_eq!((intent.agent.node.as_str(), intent.nodes.len()), (name, 3));
        let api = intent.frontends["api"].check.clone().unwrap();
        let CheckKind::Https { http, verify } = api.kind else { panic!("{:?}", api.kind) };
        assert_eq!(http.accept, [(200, 399), (401, 401), (403, 403)]);
        assert!(!verify);
        let Pool::Members(members) = &intent.frontends["dns"].pool else { panic!() };
        assert_eq!(members[0].node, "worker-1");
    }
}

#[test]
fn fields_that_are_absent_have_their_defaults() {
    let intent = parse_text(GOOD).unwrap();
    let agent = &intent.agent;
    assert_eq!((agent.tunnel_port, agent.vni, agent.default_slots), (6084, 0x77_6569, 4093));
    assert_eq!(agent.pin_dir, Path::new("/sys/fs/bpf/weir"));
    assert_eq!(agent.state_dir, Path::new("/var/lib/weir"));
    assert_eq!(agent.peer_interval, Duration::from_millis(100));
    assert_eq!((agent.peer_fall, agent.peer_rise), (3, 3));
    assert_eq!((agent.limits.frontends, agent.limits.opening), (4, 65_536));

    let web = &intent.frontends["web"];
    assert!(web.echo && !web.client_affinity && web.slots.is_none());
    assert_eq!(web.ports[0].protocol, Protocol::Tcp);
    let check = web.check.as_ref().unwrap();
    assert_eq!(
        (check.interval, check.timeout),
        (Duration::from_secs(1), Duration::from_millis(500))
    );
    assert_eq!((check.rise, check.fall, check.jitter_percent), (2, 3, 10));
    let CheckKind::Http(http) = &check.kind else { panic!("{:?}", check.kind) };
    assert_eq!((http.path.as_str(), &http.host, &http.accept[..]), ("/", &None, &[(200, 399)][..]));
    assert_eq!(intent.frontends["dns"].ports[0].target_port, 53);
}

#[test]
fn overrides_win_over_the_file() {
    let overrides = Overrides {
        node: Some("n2".into()),
        pin_dir: Some("/run/pins".into()),
        state_dir: Some("/run/state".into()),
    };
    let agent = parse(Path::new("weir.yaml"), GOOD, &overrides).unwrap().agent;
    assert_eq!(agent.node, "n2");
    assert_eq!((agent.pin_dir, agent.state_dir), ("/run/pins".into(), "/run/state".into()));
}

#[test]
fn a_seed_file_lies_beside_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("seed"), "0123456789abcdef-\n").unwrap();
    let text = GOOD.replace("seed: 0123456789abcdef-", "seedFile: seed");
    let from_file = parse(&dir.path().join("weir.yaml"), &text, &Overrides::default()).unwrap();
    assert_eq!(from_file.agent.seed, parse_text(GOOD).unwrap().agent.seed);
}

/// Replace this, by that: on this line stands this.
type Row = (&'static str, &'static str, usize, &'static str);

#[test]
fn values_that_are_wrong_are_named_with_line_field_and_what_is_allowed() {
    let rows: &[Row] = &[
        (
            "kind: Agent",
            "kind: Agnet",
            2,
            "Agnet/a kind: unknown `Agnet`, did you mean `Agent`?; allowed: Agent, Node, Frontend",
        ),
        ("kind: Agent", "kind: BgpPeer", 2, "`BgpPeer` is not built yet"),
        (
            "v1alpha1\nkind: Agent",
            "v1\nkind: Agent",
            1,
            "Agent/a apiVersion: unknown `weir.dev/v1`; allowed: weir.dev/v1alpha1",
        ),
        ("  uplinks: [eth0]\n", "", 5, "Agent/a spec: `uplinks` is missing"),
        ("[eth0]", "[]", 6, "spec.uplinks: the list is empty"),
        ("[eth0]", "[a, b, c, d, e, f, g, h, i]", 6, "9 interfaces; allowed: up to 8"),
        ("[eth0]", "[eth0, eth0]", 6, "Agent/a spec.uplinks[1]: `eth0` appears twice"),
        ("[eth0]", "['et/h0']", 6, "is not an interface's name"),
        ("[eth0]", "eth0", 6, "the string `eth0` is not allowed here; allowed: a list"),
        ("seed: 0123456789abcdef-", "seed: abc", 7, "the seed has 3 bytes; allowed: 8 or more"),
        (
            "seed: 0123456789abcdef-",
            "seed: 12345678",
            7,
            "the number 12345678 is not allowed here; allowed: a string (put it in quotes)",
        ),
        ("seed: 0123456789abcdef-", "seedFile: none", 7, "none cannot be read"),
        ("  seed: 0123456789abcdef-\n", "", 5, "`seed` is missing"),
        ("  node: n1\n", "", 5, "`node` is missing: name this node here or with --node"),
        ("node: n1", "node: n9", 5, "Agent/a spec.node: no object `Node/n9`"),
        (
            "node: n1",
            "node: n1\n  vni: 16777216",
            6,
            "spec.vni: 16777216 is out of range; allowed: 0 to 16777215",
        ),
        ("node: n1", "node: n1\n  pinDir: pins", 6, "`pins` is not an absolute path"),
        (
            "node: n1",
            "node: n1\n  defaultSlots: 65521",
            6,
            "65521 is out of range; allowed: 1 to 65520",
        ),
        (
            "node: n1",
            "node: n1\n  peers: {interval: 1}",
            6,
            "the number 1 is not allowed here; allowed: 10ms to 60s",
        ),
        (
            "limits: {",
            "limits: {backend: 1, ",
            8,
            "unknown field `backend`, did you mean `backends`?",
        ),
        (
            "limits: {frontends: 4",
            "limits: {frontends: 1",
            8,
            "2 frontends (addresses × ports), but `limits.frontends` leaves room for 1",
        ),
        ("vips: 3", "vips: 1", 8, "`limits.vips`"),
        (
            "backends: 6",
            "backends: 3",
            8,
            "3 different backends, but `limits.backends` leaves room for 2",
        ),
        (
            "nodes: 2, ownerBlocks: 1025}",
            "nodes: 2, ownerBlocks: 1025, sourceRanges: 0}",
            8,
            "out of range; allowed: 1 to 1048576",
        ),
        ("nodes: 2", "nodes: 1", 8, "2 nodes, but `limits.nodes` leaves room for 1"),
        (
            "ownerBlocks: 1025",
            "ownerBlocks: 768",
            8,
            "768 blocks of 16 slots for 2 slot tables and one to switch, but `limits.ownerBlocks` leaves room for 767",
        ),
        (
            "'2001:db8::1'",
            "192.0.2.3",
            14,
            "Node/n1 spec.addresses[1]: 192.0.2.3 is of the same family as 192.0.2.1",
        ),
        (
            "[192.0.2.2]",
            "[192.0.2.1]",
            20,
            "Node/n2 spec.addresses[0]: 192.0.2.1 is Node/n1's already",
        ),
        ("[192.0.2.2]", "[192.0.2]", 20, "`192.0.2` is not an IPv4 or IPv6 address"),
        (
            "metadata: {name: n2}",
            "metadata: {name: n1}",
            18,
            "`Node/n1` exists already, on line 12",
        ),
        ("metadata: {name: n2}", "metadata: {name: N_2}", 18, "`N_2` is not a name"),
        ("metadata: {name: n2}", "metadata: {}", 18, "Node metadata: `name` is missing"),
        (
            "  healthCheck: {type: HTTP",
            "  healthcheck: {type: HTTP",
            33,
            "Frontend/web spec: unknown field `healthcheck`, did you mean `healthCheck`?; allowed: addresses, ports",
        ),
        ("[198.51.100.1]", "[192.0.2.1]", 26, "192.0.2.1 is Node/n1's own address"),
        ("[198.51.100.1]", "[224.0.0.1]", 26, "224.0.0.1 is a multicast address"),
        ("[198.51.100.1]", "[127.0.0.1]", 26, "127.0.0.1 is a loopback address"),
        ("[198.51.100.1]", "['::']", 26, ":: is the unspecified address"),
        ("[198.51.100.1]", "['fe80::1']", 26, "fe80::1 is a link-local address"),
        ("[198.51.100.1]", "['::ffff:192.0.2.9']", 26, "an IPv4 address in IPv6 form"),
        ("[198.51.100.1]", "[255.255.255.255]", 26, "the broadcast address"),
        (
            "[198.51.100.1]",
            "[198.51.100.1, 198.51.100.1]",
            26,
            "spec.addresses[1]: 198.51.100.1 appears twice",
        ),
        (
            "[198.51.100.1]",
            "[198.51.100.1, '2001:db8:1::1']",
            26,
            "Frontend/web spec.addresses[1]: 2001:db8:1::1 has no IPv6 member in its pool",
        ),
        ("[198.51.100.1]", "[10.0.0.1]", 31, "10.0.0.1 is an address of Frontend/web"),
        (
            "port: 80,",
            "port: 0,",
            28,
            "Frontend/web spec.ports[0].port: 0 is out of range; allowed: 1 to 65535",
        ),
        (
            "port: 80,",
            "port: '80',",
            28,
            "the string `80` is not allowed here; allowed: a number from 1 to 65535",
        ),
        (
            "targetPort: 8080}",
            "targetPort: 8080, protocol: SCTP}",
            28,
            "`SCTP` is not built yet; allowed: TCP, UDP",
        ),
        (
            "targetPort: 8080}",
            "targetPort: 8080}\n  - {port: 80}",
            29,
            "spec.ports[1]: 80/TCP appears twice",
        ),
        (
            "targetPort: 8080}",
            "targetPort: 8080}\n  - {port: 81, name: http}",
            29,
            "`http` appears twice",
        ),
        (
            "10.0.0.1, node: n1",
            "'2001:db8::9', node: n1",
            31,
            "2001:db8::9 serves no address: none is IPv6",
        ),
        ("10.0.0.1, node: n1", "10.0.0.1, node: n7", 31, "no object `Node/n7`; allowed: n1, n2"),
        ("10.0.0.1, node: n1", "10.0.0.1", 31, "`node` is missing: no node has 10.0.0.1"),
        (
            "10.0.0.1, node: n1",
            "192.0.2.1, node: n2",
            31,
            "192.0.2.1 is Node/n1's own address, not `n2`'s",
        ),
        ("10.0.0.1, node: n1", "192.0.2.2, port: 8080", 32, "192.0.2.2:8080 is a member twice"),
        (
            "node: n1}",
            "node: n1, weight: 0}",
            31,
            "spec.pool.members[0].weight: 0 is out of range; allowed: 1 to 65535",
        ),
        ("node: n1}", "node: n1, weight: 65536}", 31, "65536 is out of range"),
        (
            "{nodeSelector: {matchLabels: {role: server}}}",
            "{}",
            41,
            "neither given; allowed: either `members` or `nodeSelector`",
        ),
        ("{nodeSelector: {matchLabels: {role: server}}}", "{members: []}", 41, "the list is empty"),
        ("role: server}}}", "role: db}}}", 39, "198.51.100.2 has no IPv4 member in its pool"),
        (
            "role: server}}}",
            "role: 1}}}",
            41,
            "spec.pool.nodeSelector.matchLabels.role: the number 1",
        ),
        (
            "[198.51.100.2]",
            "[198.51.100.2]\n  delivery: nat",
            40,
            "`nat` is not built yet; allowed: tunnel",
        ),
        (
            "[198.51.100.2]",
            "[198.51.100.2]\n  slots: 0",
            40,
            "0 is out of range; allowed: 1 to 65520",
        ),
        (
            "[198.51.100.2]",
            "[198.51.100.2]\n  sessionAffinity: clientip",
            40,
            "did you mean `ClientIP`?; allowed: None, ClientIP",
        ),
        ("[198.51.100.2]", "[198.51.100.2]\n  echo: yes", 40, "allowed: true, false"),
        (
            "[198.51.100.2]",
            "[198.51.100.2]\n  healthCheck: {type: TCP}",
            40,
            "`port` is missing: nothing answers TCP on the target of port 53/UDP",
        ),
        (
            "[{port: 53, protocol: UDP}]",
            "[{port: 80}]\n  addresses: [198.51.100.1]",
            41,
            "`addresses` appears twice",
        ),
        (
            "interval: 1s",
            "interval: 1s, timeout: 2s",
            33,
            "spec.healthCheck.timeout: 2s is longer than the interval; allowed: up to 1s",
        ),
        (
            "interval: 1s",
            "interval: soon",
            33,
            "`soon` is not such a duration; allowed: 20ms to 3600s",
        ),
        ("interval: 1s", "acceptStatus: [700]", 33, "700 is out of range; allowed: 100 to 599"),
        ("interval: 1s", "acceptStatus: ['399-200']", 33, "`399-200` is not a status or range"),
        ("interval: 1s", "jitter: 101%", 33, "`101%` is not a share"),
        ("interval: 1s", "path: livez", 33, "`livez` is not a path"),
        (
            "type: HTTP,",
            "type: TCP, path: /,",
            33,
            "healthCheck.path: this type of check does not use it",
        ),
        ("type: HTTP,", "type: GRPC,", 33, "`GRPC` is not built yet; allowed: TCP, HTTP, HTTPS"),
        ("  healthCheck: {type: HTTP,", "  healthCheck: {type: HTTP", 33, "not valid YAML"),
    ];
    assert_refused(rows);
}

/// Each row's mistake yields its message, and that alone.
fn assert_refused(rows: &[Row]) {
    let mut failures = String::new();
    for (from, to, line, expected) in rows {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from} is not in the good file");
        let errors = errors(&text);
        let found = errors.iter().any(|error| {
            error.starts_with(&format!("weir.yaml:{line}:")) && error.contains(expected)
        });
        if !found || errors.len() != 1 {
            failures += &format!("{from} → {to}\nwanted line {line}: {expected}\n{errors:#?}\n");
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn two_objects_with_one_frontend_are_both_named() {
    let second = GOOD
        .replace("[198.51.100.2]", "[198.51.100.1]")
        .replace("[{port: 53, protocol: UDP}]", "[{port: 53}, {port: 80}]");
    let errors = errors(&second);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(
        errors[0]
            .contains("Frontend/dns and Frontend/web (line 28) both have 198.51.100.1 port 80/TCP"),
        "{errors:#?}"
    );
}

#[test]
fn a_backend_on_two_nodes_is_refused() {
    let members = "{members: [{address: 10.0.0.1, port: 8080, node: n2}]}";
    let text = GOOD.replace("{nodeSelector: {matchLabels: {role: server}}}", members);
    let errors = errors(&text);
    assert!(
        errors[0].contains("10.0.0.1:8080 is on node `n1` here and on `n2` in Frontend/dns"),
        "{errors:?}"
    );
}

#[test]
fn every_problem_is_reported_at_once_by_line() {
    let text = GOOD
        .replace("[eth0]", "[]")
        .replace("port: 80,", "port: 0, prot: TCP,")
        .replace("'2001:db8::1'", "nonsense")
        .replace("protocol: UDP", "protocol: udp");
    let lines: Vec<usize> =
        parse_text(&text).unwrap_err().errors.iter().map(|error| error.at.line).collect();
    assert_eq!(lines, [6, 14, 28, 28, 40]);
}

#[test]
fn no_agent_or_two_are_refused() {
    let without = GOOD.split_once("---\n").unwrap().1;
    assert_eq!(errors(without), ["weir.yaml: no object of kind Agent; allowed: exactly one"]);
    assert_eq!(errors(""), ["weir.yaml: no object of kind Agent; allowed: exactly one"]);
    let agent = GOOD.split_once("---\n").unwrap().0.replace("name: a", "name: b");
    let twice = errors(&format!("{GOOD}---\n{agent}"));
    assert!(
        twice.len() == 1 && twice[0].contains("a second Agent beside that of line 5"),
        "{twice:?}"
    );
}

#[test]
fn empty_documents_and_comments_are_no_objects() {
    let text = format!("---\n# nothing\n---\n{GOOD}---\n");
    assert_eq!(parse_text(&text).unwrap(), parse_text(GOOD).unwrap());
}

#[test]
fn documents_that_are_no_objects_are_errors() {
    for text in ["3", "[a]", "!tag {a: b}", "null: 1", "? [a]\n: b", "\u{0}", "*x", "&a [*a]"] {
        assert!(!errors(text).is_empty(), "{text}");
    }
}

#[test]
fn deep_nesting_neither_crashes_nor_passes() {
    for text in ["[".repeat(100_000), "- ".repeat(100_000), "? ".repeat(100_000)] {
        assert!(!errors(&text).is_empty());
    }
    let steps = (0..MAX_INDENT).map(|i| format!("{}a:\n", " ".repeat(i)));
    assert!(!errors(&steps.collect::<String>()).is_empty());
}

#[test]
fn very_many_errors_are_counted_and_not_listed() {
    let fields: String = (0..500).map(|i| format!("x{i}: 1\n")).collect();
    let errors = parse_text(&fields).unwrap_err().errors;
    assert_eq!(errors.len(), MAX_ERRORS + 1);
    assert!(errors[MAX_ERRORS].message.contains("more problems are not shown"));
}

#[test]
fn a_file_that_cannot_be_read_is_one_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = load(&dir.path().join("none.yaml"), &Overrides::default()).unwrap_err();
    assert!(error.to_string().contains("none.yaml: cannot be read: No such file"), "{error}");
    fs::write(dir.path().join("binary"), [0xff, 0xfe]).unwrap();
    assert!(load(&dir.path().join("binary"), &Overrides::default()).is_err());
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(
        at in 0..GOOD.len(), length in 0..40usize, junk in "[ -~\\n]{0,12}",
    ) {
        let end = (at + length).min(GOOD.len());
        let _ = parse_text(&format!("{}{junk}{}", &GOOD[..at], &GOOD[end..]));
    }

    #[test]
    fn order_of_documents_does_not_matter(seed in 0u64..24) {
        let mut documents: Vec<&str> = GOOD.split("---\n").collect();
        let length = documents.len();
        for (i, at) in (0..length).zip([seed % 4, seed / 4, seed % 5, seed % 3, seed]) {
            documents.swap(i, at as usize % length);
        }
        let documents: Vec<String> =
            documents.iter().map(|text| format!("{}\n", text.trim_end())).collect();
        proptest::prop_assert_eq!(
            parse_text(&documents.join("---\n")).unwrap(), parse_text(GOOD).unwrap()
        );
    }
}

#[test]
fn source_ranges_beyond_their_limit_are_an_error() {
    let ranges = "  echo: false\n  sourceRanges: [10.0.0.0/8, 192.0.2.0/24, '2001:db8::/32']\n---";
    let text = GOOD.replacen("  healthCheck: {type: HTTP, interval: 1s}\n---", ranges, 1);
    let limited =
        |limit: u32| text.replacen("nodes: 2,", &format!("nodes: 2, sourceRanges: {limit},"), 1);
    // The Frontend has no IPv6 address.
    assert_eq!(parse_text(&limited(2)).unwrap().frontends["web"].source_ranges.len(), 3);
    let errors = errors(&limited(1));
    assert!(errors[0].contains("`limits.sourceRanges` leaves room for 1"), "{errors:?}");
}
