//! One row per thing that `weir check` can find.

use super::{
    Report,
    facts::{Cgroup, Config, Conntrack, Facts, Host, Link, LinkFacts, Uplink},
    rules::{Level, evaluate},
};
use crate::cli::{args::Format, output::render};

/// A machine on which all is well.
fn good() -> Facts {
    Facts {
        config: Some(Config::Valid { frontends: 2, nodes: 6 }),
        host: Host {
            release: Some("6.18.2-cloud".into()),
            btf: Some(true),
            capabilities: Some(u64::MAX),
            pin_dir: "/sys/fs/bpf/weir".into(),
            bpffs: Some(true),
            jit: Some(1),
            forward_v4: Some(1),
            forward_v6: Some(1),
            conntrack: Some(Conntrack::Present { count: 10, max: 1000, loose: Some(1) }),
            clock_synchronised: Some(true),
            open_files: Some(1 << 20),
            cgroup: Cgroup::Root("/sys/fs/cgroup".into()),
            ends_sockets: Some(true),
        },
        uplinks: vec![Uplink {
            name: "eth0".into(),
            link: link(|_| ()),
            driver: Some("ice".into()),
            rp_filter: Some(2),
            strips_vlan: Some(true),
            xdp: Some(vec!["weir_ingress".into()]),
            tc: Some(vec![]),
        }],
        overhead: 96,
    }
}

fn link(change: impl FnOnce(&mut LinkFacts)) -> Link {
    let mut link = LinkFacts { up: true, ethernet: true, mtu: 1600, vlans: vec![] };
    change(&mut link);
    Link::Present(link)
}

struct Case {
    name: &'static str,
    change: fn(&mut Facts),
    /// What it must say beyond ok: check, level, part of the message or of the fix.
    expect: &'static [(&'static str, Level, &'static str)],
}

#[test]
fn a_good_machine_has_no_complaint() {
    let findings = evaluate(&good());
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:#?}");
    assert!(Report::new(findings).ok);
}

#[test]
fn what_the_host_lacks_is_said_with_its_fix() {
    use Level::{Fail, Warn};
    check(&[
        Case {
            name: "configuration refused, every problem by itself",
            change: |facts| {
                facts.config =
                    Some(Config::Refused(vec!["f:3:1: port".into(), "f:9:1: name".into()]));
            },
            expect: &[("config", Fail, "f:3:1"), ("config", Fail, "f:9:1")],
        },
        Case {
            name: "kernel before 5.15",
            change: |facts| facts.host.release = Some("5.10.0-9-amd64".into()),
            expect: &[("kernel", Fail, "5.15")],
        },
        Case {
            name: "no cgroup v2",
            change: |facts| facts.host.cgroup = Cgroup::Absent,
            expect: &[("cgroup", Warn, "connect.cgroup")],
        },
        Case {
            name: "a container's own cgroup",
            change: |facts| facts.host.cgroup = Cgroup::Below("/sys/fs/cgroup".into()),
            expect: &[("cgroup", Warn, "not the root")],
        },
        Case {
            name: "a kernel that ends no sockets",
            change: |facts| facts.host.ends_sockets = Some(false),
            expect: &[("sock_destroy", Warn, "CONFIG_INET_DIAG_DESTROY")],
        },
        Case {
            name: "kernel before tcx",
            change: |facts| facts.host.release = Some("6.1.0".into()),
            expect: &[("kernel", Warn, "tcx")],
        },
        Case {
            name: "no type information",
            change: |facts| facts.host.btf = Some(false),
            expect: &[("btf", Warn, "CONFIG_DEBUG_INFO_BTF")],
        },
        Case {
            name: "no capability at all",
            change: |facts| facts.host.capabilities = Some(0),
            expect: &[("capabilities", Fail, "CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON, CAP_BPF")],
        },
        Case {
            name: "SYS_ADMIN stands for BPF and PERFMON, not for NET_ADMIN and NET_RAW",
            change: |facts| facts.host.capabilities = Some(1 << 21),
            expect: &[("capabilities", Fail, "missing: CAP_NET_ADMIN, CAP_NET_RAW")],
        },
        Case {
            name: "no SYS_ADMIN",
            change: |facts| facts.host.capabilities = Some(!(1 << 21)),
            expect: &[("capabilities", Warn, "sockets of pods")],
        },
        Case {
            name: "pins off bpffs",
            change: |facts| facts.host.bpffs = Some(false),
            expect: &[("bpffs", Fail, "mount -t bpf")],
        },
        Case {
            name: "no JIT",
            change: |facts| facts.host.jit = Some(0),
            expect: &[("jit", Warn, "bpf_jit_enable=1")],
        },
        Case {
            name: "no forwarding",
            change: |facts| (facts.host.forward_v4, facts.host.forward_v6) = (Some(0), Some(0)),
            expect: &[
                ("ip_forward", Warn, "net.ipv4.ip_forward=1"),
                ("ip6_forward", Warn, "net.ipv6.conf.all.forwarding=1"),
            ],
        },
        Case {
            name: "conntrack nearly full and strict",
            change: |facts| {
                facts.host.conntrack =
                    Some(Conntrack::Present { count: 80, max: 100, loose: Some(0) });
            },
            expect: &[
                ("conntrack_size", Warn, "nf_conntrack_max=400"),
                ("conntrack_loose", Warn, "tcp_loose=1"),
            ],
        },
        Case {
            name: "no conntrack is fine",
            change: |facts| facts.host.conntrack = Some(Conntrack::Absent),
            expect: &[],
        },
        Case {
            name: "clock runs free",
            change: |facts| facts.host.clock_synchronised = Some(false),
            expect: &[("clock", Warn, "chrony")],
        },
        Case {
            name: "few files",
            change: |facts| facts.host.open_files = Some(1024),
            expect: &[("open_files", Warn, "1024")],
        },
    ]);
}

#[test]
fn what_an_uplink_lacks_is_said_with_its_fix() {
    use Level::{Fail, Warn};
    check(&[
        Case {
            name: "absent interface has one finding only",
            change: |facts| facts.uplinks[0].link = Link::Absent,
            expect: &[("link", Fail, "no such interface")],
        },
        Case {
            name: "down",
            change: |facts| facts.uplinks[0].link = link(|link| link.up = false),
            expect: &[("link", Fail, "ip link set eth0 up")],
        },
        Case {
            name: "no Ethernet",
            change: |facts| facts.uplinks[0].link = link(|link| link.ethernet = false),
            expect: &[("link", Fail, "MAC")],
        },
        Case {
            name: "usual MTU: 1500 - 96 - 40 and - 60",
            change: |facts| facts.uplinks[0].link = link(|link| link.mtu = 1500),
            expect: &[("mtu", Warn, "clamped to 1364 (IPv4) and 1344 (IPv6)")],
        },
        Case {
            name: "MTU that just fits",
            change: |facts| facts.uplinks[0].link = link(|link| link.mtu = 1596),
            expect: &[],
        },
        Case {
            name: "MTU too small for IPv6 in the tunnel",
            change: |facts| facts.uplinks[0].link = link(|link| link.mtu = 1375),
            expect: &[("mtu", Fail, "1279")],
        },
        Case {
            name: "MTU below the headers",
            change: |facts| facts.uplinks[0].link = link(|link| link.mtu = 68),
            expect: &[("mtu", Fail, "leaves 0")],
        },
        Case {
            name: "driver without native XDP",
            change: |facts| facts.uplinks[0].driver = Some("e1000".into()),
            expect: &[("driver", Warn, "generic")],
        },
        Case {
            name: "strict reverse path on the only uplink",
            change: |facts| facts.uplinks[0].rp_filter = Some(1),
            expect: &[("rp_filter", Warn, "net.ipv4.conf.eth0.rp_filter=2")],
        },
        Case {
            name: "strict reverse path with two uplinks",
            change: |facts| {
                facts.uplinks[0].rp_filter = Some(1);
                facts.uplinks.push(Uplink { rp_filter: Some(0), ..good().uplinks.remove(0) });
            },
            expect: &[("rp_filter", Fail, "strict")],
        },
        Case {
            name: "tags stripped under VLANs",
            change: |facts| facts.uplinks[0].link = link(|link| link.vlans = vec!["eth0.5".into()]),
            expect: &[("vlan", Warn, "ethtool -K eth0 rxvlan off")],
        },
        Case {
            name: "tags kept under VLANs",
            change: |facts| {
                facts.uplinks[0].link = link(|link| link.vlans = vec!["eth0.5".into()]);
                facts.uplinks[0].strips_vlan = Some(false);
            },
            expect: &[],
        },
        Case {
            name: "hook taken",
            change: |facts| facts.uplinks[0].xdp = Some(vec!["xdp_root".into()]),
            expect: &[("xdp", Fail, "xdp_root")],
        },
        Case {
            name: "hook free",
            change: |facts| facts.uplinks[0].xdp = Some(vec![]),
            expect: &[],
        },
        Case {
            name: "others at tc",
            change: |facts| facts.uplinks[0].tc = Some(vec!["tcx egress: cil_to_netdev".into()]),
            expect: &[("tc", Warn, "cil_to_netdev")],
        },
    ]);
}

fn check(cases: &[Case]) {
    for Case { name, change, expect } in cases {
        let mut facts = good();
        change(&mut facts);
        let findings = evaluate(&facts);
        let bad: Vec<_> = findings.iter().filter(|finding| finding.level != Level::Ok).collect();
        assert_eq!(bad.len(), expect.len(), "{name}: {bad:#?}");
        for (finding, (check, level, part)) in bad.iter().zip(*expect) {
            assert_eq!((finding.check, finding.level), (*check, *level), "{name}");
            let fix = finding.fix.as_deref().unwrap_or_default();
            assert!(!fix.is_empty(), "{name}: no fix");
            assert!(finding.message.contains(part) || fix.contains(part), "{name}: {finding:?}");
        }
        let fails = expect.iter().any(|(_, level, _)| *level == Level::Fail);
        assert_eq!(Report::new(findings).ok, !fails, "{name}");
    }
}

#[test]
fn a_place_that_hides_everything_is_unknown_and_not_a_failure() {
    let facts = Facts {
        uplinks: vec![Uplink { name: "eth0".into(), ..Default::default() }],
        ..Default::default()
    };
    let findings = evaluate(&facts);
    assert!(findings.iter().all(|finding| finding.level == Level::Unknown), "{findings:#?}");
    assert!(Report::new(findings).ok);
}

#[test]
fn the_answer_exists_for_people_and_for_programs() {
    let mut facts = good();
    facts.uplinks[0].xdp = Some(vec!["xdp_root".into()]);
    let report = Report::new(evaluate(&facts));
    let text = render(&report, Format::Table).unwrap();
    assert!(text.contains("fail    eth0 xdp          taken by xdp_root"), "{text}");
    assert!(text.ends_with("\n20 ok, 0 warnings, 1 failures, 0 unknown\n"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&render(&report, Format::Json).unwrap()).unwrap();
    assert_eq!((&json["schema"], &json["ok"]), (&"weir.check/v1".into(), &false.into()));
    let xdp =
        json["findings"].as_array().unwrap().iter().find(|row| row["check"] == "xdp").unwrap();
    assert_eq!((&xdp["subject"], &xdp["level"]), (&"eth0".into(), &"fail".into()));
}
