//! What is known of all nodes: members, who announces, drains.

use super::*;
use crate::{
    cli::{members::Members, snapshot::Account, why::Why},
    model::Life,
    report::status::{
        CandidateStatus, DrainStatus, MemberStatus, RemainingStatus, UnsettledStatus, VipStatus,
    },
    sources::Stale,
};

fn account(agent_alive: bool) -> Account {
    Account { node: "a".into(), agent_alive, age_ms: 300_000 }
}

fn member(node: &str, life: Life) -> MemberStatus {
    MemberStatus {
        node: node.into(),
        life,
        heard: life == Life::Alive,
        serves: life != Life::Dead,
        announcing: life == Life::Alive,
        version: Some("0.1.0".into()),
        layout: Some(3),
        last_answer_ms: Some(10),
        heartbeat_ms: Some(120),
        ..Default::default()
    }
}

fn vip(elected: Option<&str>, announced_by: &[&str]) -> VipStatus {
    let candidate = |node: &str, standing: &str| CandidateStatus {
        node: node.into(),
        standing: standing.into(),
    };
    VipStatus {
        address: "192.0.2.1".parse().unwrap(),
        elected: elected.map(Into::into),
        announced_by: announced_by.iter().map(|node| (*node).into()).collect(),
        candidates: vec![candidate("a", "ready"), candidate("b", "ready"), candidate("c", "mute")],
        excluded: [("dead".into(), vec!["d".into()])].into(),
        for_seconds: 30,
    }
}

fn agent_with(members: Vec<MemberStatus>, vips: Vec<VipStatus>) -> AgentStatus {
    AgentStatus { node: "a".into(), version: "0.1.0".into(), members, vips, ..agent() }
}

fn problem(object: &str, message: &str) -> Problem {
    Problem { object: object.into(), message: message.into() }
}

#[test]
fn members_show_every_node_and_what_is_the_matter_with_it() {
    let members = vec![
        MemberStatus { last_answer_ms: None, ..member("a", Life::Alive) },
        MemberStatus {
            serves: false,
            held_for_ms: Some(3_200),
            deaths: 2,
            announcing: false,
            leaving: true,
            drained: true,
            unreachable: vec!["c".into()],
            ..member("b", Life::Alive)
        },
        MemberStatus {
            suspected_by: vec!["a".into(), "b".into()],
            version: Some("0.2.0".into()),
            seed_differs: true,
            ..member("c", Life::Dead)
        },
        MemberStatus { node: "d".into(), ..Default::default() },
    ];
    let mut agent = agent_with(members, vec![vip(Some("a"), &["a", "b"])]);
    agent.problems =
        vec![problem("Node/c", "it holds another seed"), problem("Frontend/x", "no member")];
    let (text, json) = both(&Members::new(account(true), &agent));
    assert!(text.starts_with("as a saw it 5 min ago\n"), "{text}");
    for (start, cells) in [
        ("a ", "a alive here yes 1 0.1.0 3 same 120 ms this node"),
        (
            "b ",
            "b alive heard no 1 still 0.1.0 3 same 120 ms drained from forwarding; held back for \
             3.2 s; died 2 times; does not reach c",
        ),
        ("c ", "c DEAD silent no no 0.2.0 3 OTHER 120 ms SKEWED, see below; suspected by a, b"),
        ("d ", "d unknown silent no no - - - - -"),
    ] {
        assert_eq!(line(&text, start).join(" "), cells);
    }
    assert!(
        text.contains("Node/c  it holds another seed") && !text.contains("no member"),
        "{text}"
    );
    assert_eq!(
        (&json["schema"], &json["agent_alive"], &json["age_ms"]),
        (&json!("weir.members/v1"), &json!(true), &json!(300_000))
    );
    let row = &json["members"][2];
    assert_eq!(
        (&row["life"], &row["skewed"], &row["announces"], &row["own"]),
        (&json!("dead"), &json!(true), &json!(0), &json!(false))
    );
    assert_eq!(json["problems"].as_array().unwrap().len(), 1);
}

#[test]
fn a_dead_agents_word_is_dated_and_isolation_is_said_first() {
    let agent = AgentStatus { isolated: true, ..agent_with(vec![], vec![]) };
    for text in [
        both(&Members::new(account(false), &agent)).0,
        both(&Why::new(account(false), &agent, None)).0,
    ] {
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("the agent of a is DEAD: this is what it saw 5 min ago"));
        assert!(lines.next().unwrap().starts_with("ISOLATED"), "{text}");
    }
}

#[test]
fn why_explains_every_case_and_says_what_to_do() {
    for (elected, announced_by, summary, fix) in [
        (
            Some("a"),
            &["a"][..],
            "a announces it, for 30.0 s. It is elected: of the nodes that are ready it comes first",
            None,
        ),
        (Some("c"), &["c"], "It is elected: no other is better than mute.", None),
        (
            Some("a"),
            &[],
            "nobody announces it, for 30.0 s. a is elected and takes it",
            Some("`weir status` on a"),
        ),
        (Some("a"), &["b"], "b announces it, for 30.0 s. a is elected", Some("too long")),
        (Some("a"), &["a", "b"], "a and b announce it at once", Some("may not hear each other")),
        (
            None,
            &[],
            "nobody announces it, for 30.0 s. No node may",
            Some("spec.announce.nodeSelector"),
        ),
    ] {
        let agent = agent_with(vec![], vec![vip(elected, announced_by)]);
        let (text, json) = both(&Why::new(account(true), &agent, None));
        let row = &json["vips"][0];
        assert!(row["summary"].as_str().unwrap().contains(summary), "{row}");
        assert!(text.contains(&format!("\n192.0.2.1: {}", row["summary"].as_str().unwrap())));
        match fix {
            Some(fix) => assert!(row["fix"].as_str().unwrap().contains(fix), "{row}"),
            None => assert_eq!(row["fix"], json!(null)),
        }
        let announces = if announced_by.contains(&"a") { "yes" } else { "no" };
        assert_eq!(line(&text, "a  "), ["a", "ready", announces]);
        assert_eq!(line(&text, "d  "), ["d", "excluded:", "dead", "no"]);
    }
}

#[test]
fn what_has_just_begun_needs_no_mending() {
    let fresh = VipStatus { for_seconds: 2, ..vip(Some("a"), &["a", "b"]) };
    let agent = agent_with(vec![], vec![fresh]);
    let (_, json) = both(&Why::new(account(true), &agent, None));
    assert_eq!(json["vips"][0]["fix"], json!(null));
}

#[test]
fn why_answers_for_one_vip_or_for_all() {
    let other = VipStatus { address: "2001:db8::1".parse().unwrap(), ..vip(None, &[]) };
    let agent = agent_with(vec![], vec![vip(Some("a"), &["a"]), other]);
    let why = |only: Option<&str>| {
        Why::new(account(true), &agent, only.map(|only| only.parse().unwrap()))
    };
    let (_, json) = both(&why(None));
    assert_eq!(json["vips"].as_array().unwrap().len(), 2);
    let (text, json) = both(&why(Some("2001:db8::1")));
    assert_eq!((json["vips"].as_array().unwrap().len(), text.contains("192.0.2.1")), (1, false));
    assert!(why(Some("192.0.2.77")).is_empty());
    assert!(
        both(&Why::new(account(true), &agent_with(vec![], vec![]), None)).0.contains("no VIPs")
    );
}

#[test]
fn status_counts_members_and_names_isolation_drains_and_gossip() {
    let maps = snapshot();
    let agent = AgentStatus {
        isolated: true,
        drains: vec![DrainStatus {
            what: "forwarding/b".into(),
            author: "a".into(),
            ..Default::default()
        }],
        gossip: [("replayed".into(), 0), ("wrong_key".into(), 7)].into(),
        ..agent_with(
            vec![member("a", Life::Alive), member("b", Life::Alive), member("c", Life::Dead)],
            vec![],
        )
    };
    let (text, json) = both(&Status::new(Sight { maps: &maps, agent: Some(&agent) }, None));
    for part in [
        "\nISOLATED   the other nodes and the gateway are silent",
        "\nmembers    2 alive, 1 DEAD\n",
        "\ndrained    forwarding/b for ",
        ", ordered at a\n",
        "\ngossip     wrong_key 7\n",
    ] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
    assert_eq!(
        (&json["isolated"], &json["members"][2]["life"], &json["drains"][0]["what"]),
        (&json!(true), &json!("dead"), &json!("forwarding/b"))
    );
    assert_eq!(json["gossip"]["wrong_key"], 7);
}

#[test]
fn drains_and_whys_are_asked_for_by_name() {
    let parse = |words: &[&str]| Cli::try_parse_from([&["weir"], words].concat());
    let why = |words: &[&str]| match parse(words).unwrap().command {
        Command::Vips(args) => args.why,
        command => panic!("{command:?}"),
    };
    assert_eq!(why(&["vips"]), None);
    assert_eq!(why(&["vips", "--why"]), Some(None));
    assert_eq!(why(&["vips", "--why", "192.0.2.1"]), Some(Some("192.0.2.1".parse().unwrap())));
    for words in [
        &["drain", "node", "b", "--forwarding", "-o", "json"][..],
        &["drain", "node", "b", "--deadline", "30m"],
        &["drain", "backend", "10.0.0.1:80", "--deadline", "90s"],
        &["undrain", "node", "b"],
        &["undrain", "node", "b", "--forwarding"],
        &["undrain", "backend", "[2001:db8::1]:80"],
        &["members", "-o", "json"],
    ] {
        assert!(parse(words).is_ok(), "{words:?}");
    }
    for (words, part) in [
        (&["drain", "node", "--forwarding"][..], "NAME"),
        (&["drain", "node", "b", "--forwarding", "--deadline", "1m"], "cannot be used with"),
        (&["drain", "node", "b", "--deadline", "1 week"], "with ms, s, m or h"),
        (&["drain", "backend", "10.0.0.1"], "invalid"),
        (&["drain"], "node"),
        (&["vips", "--why", "x"], "invalid"),
    ] {
        let error = parse(words).unwrap_err().to_string();
        assert!(error.contains(part), "{words:?}: {error}");
    }
}

#[test]
fn status_says_what_is_drained_what_remains_and_who_is_waited_for() {
    let remaining = |flows| RemainingStatus {
        backend: "10.0.0.1:80".parse().unwrap(),
        flows,
        node: "b".into(),
    };
    let drains = vec![
        DrainStatus {
            what: "node/b".into(),
            author: "a".into(),
            at_ms: 1_000,
            deadline_ms: Some(661_000),
            remaining: vec![remaining(3)],
        },
        DrainStatus {
            what: "backend/10.0.0.1:80".into(),
            remaining: vec![remaining(0)],
            ..Default::default()
        },
    ];
    let unsettled = UnsettledStatus {
        young: 2,
        young_for_ms: Some(7_000),
        waiting: [("c".into(), 1)].into(),
        kept: 4,
        cut_short: 0,
    };
    let stale = Some(Stale {
        why: "mend it".into(),
        checkpoint: "/s/checkpoint".into(),
        written_ms: 1_000,
    });
    let agent = AgentStatus { written_ms: 61_000, drains, unsettled, stale, ..agent() };
    let maps = snapshot();
    let (text, json) = both(&Status::new(Sight { maps: &maps, agent: Some(&agent) }, None));
    for line in [
        "drained    node/b for 60.0 s, ordered at a; flows end in 10 min\n",
        "           10.0.0.1:80 at b has 3 flows left; `weir arrivals --backend 10.0.0.1:80` at b lists",
        "drained    backend/10.0.0.1:80, terminating by the configuration\n",
        "           10.0.0.1:80 at b has 0 flows left\n",
        "young      2 frontends for up to 7.0 s; they wait for c (1)\n",
        "kept       4 backends",
        "STALE      in force is a checkpoint, 60.0 s old: /s/checkpoint\n           mend it\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert_eq!(json["drains"][0]["remaining"][0]["flows"], 3);
    assert_eq!(
        (&json["unsettled"]["waiting"]["c"], &json["agent"]["stale"]["why"]),
        (&json!(1), &json!("mend it"))
    );
}
