//! Views of made-up snapshots, and the grammar.

mod members;

use clap::{CommandFactory, Parser};
use lb_common::{
    arrival::{Arrival, ArrivalKey, Tick, flags as arrival_flags},
    backend::BackendId,
    hop::flags as hop_flags,
    net::{Addr, Port},
    reason::{Counter, Reason},
    service::flags as service_flags,
};
use serde_json::{Value, json};

use super::{
    args::{Cli, Command, Format},
    arrivals::{Arrivals, Filter},
    backends::Backends,
    counters::{By, Counters},
    output::{View, render},
    owners::Owners,
    snapshot::{Backend, Flow, Frontend, Memory, Sight, Snapshot, Vip},
    status::Status,
    vips::Vips,
};
use crate::{
    model::{Problem, Protocol},
    report::status::{
        AgentStatus, Attachment, FrontendStatus, HealthWord, MemberStatus, TargetStatus,
    },
};

const SECOND: u64 = 1_000_000_000;
const HERE: BackendId = BackendId::new(1, 0);
const THERE: BackendId = BackendId::new(2, 3);

fn counter(packets: u64) -> Counter {
    Counter { packets, bytes: packets * 100 }
}

/// One frontend with a local and a remote backend, one without any, and a VIP without frontends.
fn snapshot() -> Snapshot {
    let backend = |address: &str, node, flags| Backend {
        address: address.parse().unwrap(),
        node,
        flags,
        counter: counter(u64::from(node) + 5),
    };
    Snapshot {
        now: 1000 * SECOND,
        heartbeat_ms: Some(1000),
        vips: [
            ("192.0.2.1".parse().unwrap(), Vip { announced_on: Some("eth0".into()), echo: true }),
            ("2001:db8::1".parse().unwrap(), Vip { announced_on: None, echo: false }),
            ("192.0.2.9".parse().unwrap(), Vip::default()),
        ]
        .into(),
        frontends: [
            (
                "192.0.2.1:443".parse().unwrap(),
                Frontend {
                    service: 1,
                    slots: 10,
                    flags: service_flags::YOUNG,
                    owned: [(BackendId::NONE, 1), (HERE, 6), (THERE, 3)].into(),
                    ranges: None,
                    counter: counter(7),
                },
            ),
            (
                "[2001:db8::1]:53/udp".parse().unwrap(),
                Frontend {
                    service: 3,
                    slots: 10,
                    ranges: Some(["2001:db8:c::/48".parse().unwrap()].into()),
                    ..Default::default()
                },
            ),
        ]
        .into(),
        backends: [
            (HERE, backend("10.0.0.1:8443", 0, 0)),
            (THERE, backend("10.0.0.2:8443", 4, hop_flags::DEAD)),
        ]
        .into(),
        nodes: [(4, "10.9.0.2".parse().unwrap())].into(),
        uplinks: vec!["eth0".into()],
        mss: (1364, 0),
        reasons: vec![(Reason::Forwarded, counter(3)), (Reason::Clash, counter(0))],
    }
}

fn agent() -> AgentStatus {
    AgentStatus {
        schema: crate::report::status::SCHEMA.into(),
        node: "worker-1".into(),
        version: "0.1.0".into(),
        pid: 42,
        config: "/etc/weir/weir.yaml".into(),
        config_error: Some("line 3\nline 5".into()),
        attachments: vec![Attachment {
            interface: "eth0".into(),
            program: "ingress".into(),
            mode: "generic".into(),
            reason: Some("the driver has no native XDP".into()),
        }],
        problems: vec![Problem { object: "Frontend/dns".into(), message: "no member".into() }],
        members: vec![MemberStatus {
            node: "worker-2".into(),
            addresses: vec!["10.9.0.2".parse().unwrap()],
            heartbeat_ms: Some(61_000),
            ..MemberStatus::default()
        }],
        targets: vec![
            TargetStatus {
                address: "10.0.0.1:8443".parse().unwrap(),
                check: "tcp".into(),
                health: HealthWord::Up,
                reason: None,
                cause: None,
            },
            TargetStatus {
                address: "10.0.0.2:8443".parse().unwrap(),
                check: "http".into(),
                health: HealthWord::Down,
                reason: Some("status 500".into()),
                cause: None,
            },
        ],
        frontends: vec![FrontendStatus {
            object: "web".into(),
            address: "192.0.2.1".parse().unwrap(),
            port: 443,
            protocol: Protocol::Tcp,
            announcer: "worker-1".into(),
            weights: [("10.0.0.1:8443".parse().unwrap(), 3), ("10.0.0.2:8443".parse().unwrap(), 1)]
                .into(),
        }],
        ..Default::default()
    }
}

fn both(view: &impl View) -> (String, Value) {
    let json = render(view, Format::Json).unwrap();
    (render(view, Format::Table).unwrap(), serde_json::from_str(&json).unwrap())
}

/// Words of the line that starts so; tables are judged by content, not by their widths.
fn line<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
    let found = text.lines().find(|line| line.starts_with(start));
    found.unwrap_or_else(|| panic!("no line {start:?} in\n{text}")).split_whitespace().collect()
}

#[test]
fn vips_show_their_frontends_and_who_announces() {
    let (maps, agent) = (snapshot(), agent());
    let (text, json) = both(&Vips::new(Sight { maps: &maps, agent: Some(&agent) }));
    assert_eq!(
        line(&text, "192.0.2.1"),
        ["192.0.2.1", "443/tcp", "web", "2", "10", "here,", "on", "eth0", "young", "7"]
    );
    assert_eq!(line(&text, "192.0.2.9")[1..4], ["-", "-", "-"]);
    assert_eq!(json["schema"], "weir.vips/v1");
    assert_eq!(
        json["vips"][0],
        json!({
            "address": "192.0.2.1", "announced_on": "eth0", "announcer": "worker-1", "echo": true,
            "frontends": [{
                "port": 443, "protocol": "tcp", "object": "web", "service": 1, "slots": 10,
                "owners": 2, "flags": ["young"], "source_ranges": null, "packets": 7, "bytes": 700,
            }],
        })
    );
    let restricted = &json["vips"][2]["frontends"][0];
    assert_eq!(restricted["owners"], 0);
    assert_eq!(restricted["source_ranges"], json!(["2001:db8:c::/48"]));
    assert!(line(&text, "2001:db8::1").contains(&"source_ranges"), "{text}");
}

#[test]
fn backends_show_node_health_and_slots() {
    let (maps, agent) = (snapshot(), agent());
    let (text, json) = both(&Backends::new(Sight { maps: &maps, agent: Some(&agent) }));
    assert_eq!(
        line(&text, "10.0.0.1"),
        ["10.0.0.1:8443", "worker-1", "(here)", "1", "6", "5", "-", "up"]
    );
    assert!(text.contains("down: status 500"), "{text}");
    assert_eq!(
        json["backends"][1],
        json!({
            "address": "10.0.0.2:8443", "id": THERE.0, "node": "worker-2", "local": false,
            "health": "down", "reason": "status 500", "flags": ["dead"], "slots": 3,
            "frontends": ["192.0.2.1:443/tcp"], "packets": 9, "bytes": 900,
        })
    );
}

#[test]
fn without_an_agent_names_are_addresses_and_health_is_unknown() {
    let maps = snapshot();
    let (text, json) = both(&Backends::new(Sight { maps: &maps, agent: None }));
    assert_eq!(line(&text, "10.0.0.1")[1..4], ["this", "node", "(here)"]);
    assert_eq!(
        (&json["backends"][1]["node"], &json["backends"][1]["health"]),
        (&json!("10.9.0.2"), &json!(null))
    );
}

/// Slot 0 has no owner, six belong to the local backend, three to the remote one.
fn table() -> Vec<BackendId> {
    let mut table = vec![BackendId::NONE];
    table.extend([HERE; 6]);
    table.extend([THERE; 3]);
    table
}

#[test]
fn owners_compare_shares_with_the_weights() {
    let (maps, agent) = (snapshot(), agent());
    let door = "192.0.2.1:443".parse().unwrap();
    let view =
        Owners::new(Sight { maps: &maps, agent: Some(&agent) }, door, &table(), false).unwrap();
    let (text, json) = both(&view);
    assert!(text.starts_with("192.0.2.1:443/tcp: 10 slots, 1 without owner\n"), "{text}");
    assert_eq!(
        line(&text, "10.0.0.1"),
        ["10.0.0.1:8443", "worker-1", "3", "6", "60.00", "%", "75.00", "%", "-20.0", "%"]
    );
    assert_eq!((&json["schema"], &json["weights_known"]), (&json!("weir.owners/v1"), &json!(true)));
    assert_eq!(
        json["owners"][1],
        json!({
            "backend": "10.0.0.2:8443", "node": "worker-2", "slots": 3, "share": 0.3,
            "fair_share": 0.25, "weight": 1,
        })
    );
    assert_eq!(json.get("table"), None);
}

#[test]
fn owners_without_a_plan_say_that_weights_are_assumed() {
    let maps = snapshot();
    let sight = Sight { maps: &maps, agent: None };
    let door = "192.0.2.1:443".parse().unwrap();
    let (text, json) = both(&Owners::new(sight, door, &table(), false).unwrap());
    assert!(text.contains("equal ones assumed"), "{text}");
    assert_eq!(json["owners"][0]["fair_share"], 0.5);
    let (text, json) = both(&Owners::new(sight, door, &table(), true).unwrap());
    assert_eq!(text.lines().count(), 10);
    assert_eq!(
        (line(&text, "    0"), line(&text, "    9")),
        (vec!["0", "-"], vec!["9", "10.0.0.2:8443"])
    );
    assert_eq!((&json["table"][0], &json["table"][1]), (&json!(null), &json!("10.0.0.1:8443")));
}

#[test]
fn a_frontend_without_backends_and_one_that_is_absent_are_told_apart() {
    let maps = snapshot();
    let sight = Sight { maps: &maps, agent: None };
    let empty = Owners::new(sight, "[2001:db8::1]:53/udp".parse().unwrap(), &[], false).unwrap();
    let (text, json) = both(&empty);
    assert!(text.contains("clients are refused"), "{text}");
    assert_eq!((&json["unowned"], &json["owners"]), (&json!(10), &json!([])));
    assert!(Owners::new(sight, "192.0.2.1:80".parse().unwrap(), &[], false).is_none());
}

fn flow(memory: Memory, port: u16, backend: BackendId, service: u32, age: u64) -> Flow {
    let client: std::net::IpAddr = "198.51.100.7".parse().unwrap();
    let seen = Tick::from_nanos((1000 - age) * SECOND);
    Flow {
        memory,
        key: ArrivalKey::new(Addr::from(client), Port::new(port), backend),
        value: Arrival {
            service,
            seen: Arrival::pack(arrival_flags::BACKEND_SPOKE | arrival_flags::CLIENT_FIN, seen),
            ..Default::default()
        },
    }
}

#[test]
fn arrivals_are_listed_youngest_first_up_to_the_limit() {
    let maps = snapshot();
    let flows = vec![
        flow(Memory::Established, 1000, HERE, 1, 60),
        flow(Memory::Opening, 1001, THERE, 1, 1),
        flow(Memory::Datagrams, 1002, BackendId::new(9, 0), 8, 30),
    ];
    let (text, json) = both(&Arrivals::new(Sight { maps: &maps, agent: None }, flows, 2));
    assert!(text.ends_with("\n2 of 3; --limit 0 lists all\n"), "{text}");
    assert_eq!(
        line(&text, "198.51.100.7:1001")[1..4],
        ["192.0.2.1:443/tcp", "10.0.0.2:8443", "opening"]
    );
    assert_eq!(line(&text, "198.51.100.7:1002")[1..4], ["gone", "gone", "(9)"]);
    assert_eq!((&json["total"], json["arrivals"].as_array().unwrap().len()), (&json!(3), 2));
    let first = &json["arrivals"][0];
    assert_eq!(
        (&first["map"], &first["flags"]),
        (&json!("opening"), &json!(["client_fin", "backend_spoke"]))
    );
    // One step of the clock is 268 ms.
    assert!((732..=1268).contains(&first["age_ms"].as_u64().unwrap()), "{first}");
    let noted_after_the_look = flow(Memory::Opening, 1003, HERE, 1, 0);
    assert_eq!(noted_after_the_look.age_ms(maps.now - SECOND), 0);
}

#[test]
fn arrivals_are_filtered_by_client_and_backend_with_or_without_port() {
    let maps = snapshot();
    let found = flow(Memory::Opening, 1001, THERE, 1, 1);
    for (client, backend, kept) in [
        (None, None, true),
        (Some("198.51.100.7"), None, true),
        (Some("198.51.100.7:1001"), Some("10.0.0.2"), true),
        (Some("198.51.100.7:1002"), None, false),
        (Some("198.51.100.8"), None, false),
        (None, Some("10.0.0.2:8443"), true),
        (None, Some("10.0.0.1:8443"), false),
        (None, Some("[2001:db8::1]"), false),
    ] {
        let parse = |text: &str| text.parse().unwrap();
        let filter = Filter { client: client.map(parse), backend: backend.map(parse) };
        assert_eq!(filter.keeps(&maps, &found), kept, "{client:?} {backend:?}");
    }
}

#[test]
fn counters_hide_zeros_from_people_only_and_subtract_an_earlier_look() {
    let maps = snapshot();
    let before = Counters::new(Sight { maps: &maps, agent: None }, By::Reason, false);
    let (text, json) = both(&before);
    assert_eq!(line(&text, "forwarded")[..4], ["forwarded", "3", "300", "handled"]);
    assert!(!text.contains("clash"), "{text}");
    assert_eq!(
        json["counters"][1],
        json!({
            "name": "clash", "kind": "dropped", "help": Reason::Clash.help(), "packets": 0, "bytes": 0,
        })
    );
    let mut later = maps.clone();
    later.reasons[0].1 = counter(10);
    let later = Counters::new(Sight { maps: &later, agent: None }, By::Reason, true);
    let (text, json) = both(&later.since(&before, std::time::Duration::from_secs(2)));
    assert!(text.contains("clash"), "{text}");
    assert_eq!((&json["interval_s"], &json["counters"][0]["packets"]), (&json!(2.0), &json!(7)));
    // Maps made anew count from zero again.
    let (_, json) = both(&before.since(&later, std::time::Duration::from_secs(1)));
    assert_eq!(json["counters"][0]["packets"], 3);
}

#[test]
fn counters_of_frontends_and_backends_name_object_and_node() {
    let (maps, agent) = (snapshot(), agent());
    let sight = Sight { maps: &maps, agent: Some(&agent) };
    let (text, json) = both(&Counters::new(sight, By::Frontend, false));
    assert_eq!(line(&text, "192.0.2.1:443/tcp"), ["192.0.2.1:443/tcp", "7", "700", "web"]);
    assert_eq!((&json["by"], &json["schema"]), (&json!("frontend"), &json!("weir.counters/v1")));
    let (text, _) = both(&Counters::new(sight, By::Backend, false));
    assert_eq!(line(&text, "10.0.0.2"), ["10.0.0.2:8443", "9", "900", "worker-2"]);
}

#[test]
fn status_tells_a_living_agent_from_a_dead_one() {
    let (mut maps, agent) = (snapshot(), agent());
    let (text, json) = both(&Status::new(Sight { maps: &maps, agent: Some(&agent) }, None));
    assert!(
        text.starts_with("agent      alive, heartbeat 1.0 s ago\nnode       worker-1\n"),
        "{text}"
    );
    for part in [
        "REFUSED, the one before stays in force: line 3\n           line 5\n",
        "[2001:db8::1]:53/udp has no backend",
        "eth0       ingress  generic",
        "members    1 unknown",
        "targets: 1 down, 1 up",
        "status 500",
        "Frontend/dns",
        "MSS 1364 (IPv4), as it is (IPv6)",
    ] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
    assert_eq!(
        (&json["agent"]["alive"], &json["dataplane"]["mss_v6"]),
        (&json!(true), &json!(null))
    );

    maps.heartbeat_ms = Some(600_000);
    let (text, json) = both(&Status::new(Sight { maps: &maps, agent: Some(&agent) }, None));
    assert!(
        text.starts_with("agent      DEAD, last heartbeat 10 min ago; the data plane"),
        "{text}"
    );
    assert_eq!(
        (&json["agent"]["alive"], &json["agent"]["heartbeat_ms"]),
        (&json!(false), &json!(600_000))
    );

    maps.heartbeat_ms = None;
    let (text, _) = both(&Status::new(Sight { maps: &maps, agent: None }, None));
    assert!(text.starts_with("agent      DEAD, no heartbeat"), "{text}");
    assert!(text.contains("no status file"), "{text}");
    let (text, _) =
        both(&Status::new(Sight { maps: &maps, agent: None }, Some("cut short".into())));
    assert!(text.contains("unreadable: cut short"), "{text}");
}

#[test]
fn an_empty_node_is_said_to_be_empty() {
    let maps = Snapshot::default();
    let sight = Sight { maps: &maps, agent: None };
    assert_eq!(
        both(&Vips::new(sight)),
        ("no VIPs\n".into(), json!({"schema": "weir.vips/v1", "vips": []}))
    );
    assert_eq!(both(&Backends::new(sight)).0, "no backends\n");
    assert_eq!(both(&Arrivals::new(sight, vec![], 0)).0, "no arrivals\n");
    assert_eq!(both(&Counters::new(sight, By::Reason, false)).0, "nothing counted\n");
}

#[test]
fn the_grammar_is_sound_and_folders_may_stand_anywhere() {
    Cli::command().debug_assert();
    let cli = Cli::parse_from([
        "weir",
        "owners",
        "[2001:db8::1]:53/udp",
        "-o",
        "json",
        "--pin-dir",
        "/p",
    ]);
    assert_eq!(cli.dirs.pin_dir(), std::path::Path::new("/p"));
    assert_eq!(cli.dirs.state_dir(), std::path::Path::new("/var/lib/weir"));
    assert!(matches!(cli.command, Command::Owners(args) if args.output.format == Format::Json));
}

#[test]
fn what_is_misused_is_refused_with_the_allowed_form() {
    for (words, part) in [
        (&["weir", "owners", "192.0.2.1"][..], "ADDRESS:PORT"),
        (&["weir", "arrivals", "--client", "x"], "must be ADDRESS"),
        (&["weir", "counters", "--watch", "0"], "between 0.1 and 86400"),
        (&["weir", "counters", "--watch", "nan"], "between"),
        (&["weir", "counters", "--frontends", "--backends"], "cannot be used with"),
        (&["weir", "vips", "-o", "xml"], "json"),
    ] {
        let error = Cli::try_parse_from(words).unwrap_err().to_string();
        assert!(error.contains(part), "{words:?}: {error}");
    }
}

#[test]
fn completion_scripts_name_every_command() {
    use clap_complete::Shell;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let script = super::completion(shell);
        for command in Cli::command().get_subcommands() {
            assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
        }
        assert!(script.contains("pin-dir"), "{shell}");
    }
}
