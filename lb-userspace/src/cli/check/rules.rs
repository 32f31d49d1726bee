//! Judges facts. Pure: every sentence that `weir check` can say is made here.

use serde::Serialize;

use super::facts::{Cgroup, Config, Conntrack, Facts, Host};

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Could not be found out.
    Unknown,
    /// weir runs, but something is lost.
    Warn,
    /// weir will not work.
    Fail,
}

impl Level {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One line of the answer.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    pub check: &'static str,
    /// The interface it is about; empty for the host.
    pub subject: String,
    pub level: Level,
    pub message: String,
    /// What would mend it; a command where there is one.
    pub fix: Option<String>,
}

impl Finding {
    pub fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, subject: String::new(), level: Level::Ok, message: message.into(), fix: None }
    }

    pub fn bad(
        check: &'static str,
        level: Level,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { level, fix: Some(fix.into()), ..Self::ok(check, message) }
    }

    /// `what` could not be read.
    pub fn unknown(check: &'static str, what: &str) -> Self {
        Self { level: Level::Unknown, ..Self::ok(check, format!("cannot be read here: {what}")) }
    }

    pub fn about(self, subject: &str) -> Self {
        Self { subject: subject.into(), ..self }
    }
}

/// Oldest kernel that has what the programs need: bounded loops, BPF links for XDP, ring of helpers
/// that the egress program calls.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// First kernel with tcx, where the order among egress programs can be had without clsact.
const TCX_KERNEL: (u32, u32) = (6, 6);

/// Hard limit of open files below which many probes at once would fail.
const OPEN_FILES: u64 = 4096;

/// Share of the conntrack table, in percent, beyond which a burst fills it.
const CONNTRACK_PERCENT: u64 = 80;

/// Everything, in the order in which it is best read.
pub fn evaluate(facts: &Facts) -> Vec<Finding> {
    let host = &facts.host;
    let mut findings: Vec<_> = facts.config.iter().flat_map(config).collect();
    findings.extend([
        kernel(host),
        btf(host),
        capabilities(host),
        bpffs(host),
        jit(host),
        forwarding("ip_forward", "net.ipv4.ip_forward", host.forward_v4),
        forwarding("ip6_forward", "net.ipv6.conf.all.forwarding", host.forward_v6),
        conntrack_size(host),
        conntrack_loose(host),
        clock(host),
        open_files(host),
        cgroup(host),
        ends_sockets(host),
    ]);
    for uplink in &facts.uplinks {
        findings.extend(super::uplink_rules::evaluate(uplink, facts));
    }
    findings
}

fn config(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "config";
    match config {
        Config::Valid { frontends, nodes } => {
            let objects = format!("valid: {frontends} Frontend and {nodes} Node objects");
            vec![Finding::ok(CHECK, objects)]
        }
        Config::Refused(problems) => problems
            .iter()
            .map(|problem| {
                Finding::bad(
                    CHECK,
                    Level::Fail,
                    problem,
                    "mend the file; a running agent keeps the last valid one",
                )
            })
            .collect(),
    }
}

/// `6.18.2-cloud` → (6, 18).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel(host: &Host) -> Finding {
    const CHECK: &str = "kernel";
    let Some(release) = &host.release else { return Finding::unknown(CHECK, "uname") };
    let Some(found) = version(release) else {
        return Finding::unknown(CHECK, &format!("version in {release:?}"));
    };
    if found < OLDEST_KERNEL {
        let (major, minor) = OLDEST_KERNEL;
        Finding::bad(
            CHECK,
            Level::Fail,
            format!("{release} is older than {major}.{minor}"),
            format!("boot a kernel from {major}.{minor} on"),
        )
    } else if found < TCX_KERNEL {
        Finding::bad(
            CHECK,
            Level::Warn,
            format!("{release} has no tcx: egress attaches by clsact, behind whatever is there"),
            "none needed; a kernel from 6.6 on gives a firmer place in the order",
        )
    } else {
        Finding::ok(CHECK, release)
    }
}

fn btf(host: &Host) -> Finding {
    const CHECK: &str = "btf";
    match host.btf {
        None => Finding::unknown(CHECK, "/sys/kernel/btf"),
        Some(true) => Finding::ok(CHECK, "the kernel describes its types"),
        Some(false) => Finding::bad(
            CHECK,
            Level::Warn,
            "no /sys/kernel/btf/vmlinux: maps and programs show without their types",
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y",
        ),
    }
}

/// Of linux/capability.h.
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// Capabilities that the agent cannot do without, by number.
const NEEDED: [(u32, &str); 4] =
    [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (PERFMON, "CAP_PERFMON"), (BPF, "CAP_BPF")];

/// Without them something is lost.
const USED: [(u32, &str, &str); 2] = [
    (SYS_ADMIN, "CAP_SYS_ADMIN", "sockets of pods that lead to a dead backend are not ended"),
    (23, "CAP_SYS_NICE", "probes of other nodes may come late on a busy node"),
];

fn capabilities(host: &Host) -> Finding {
    const CHECK: &str = "capabilities";
    let Some(set) = host.capabilities else { return Finding::unknown(CHECK, "/proc/self/status") };
    let lacks = |number: u32| set >> number & 1 == 0;
    let fix =
        |missing: &str| format!("run as root, or add {missing} to the container's securityContext");
    // The kernel takes CAP_SYS_ADMIN for the two that were split off from it.
    let stands_in = |number| matches!(number, PERFMON | BPF) && !lacks(SYS_ADMIN);
    let missing = NEEDED.into_iter().filter(|&(number, _)| lacks(number) && !stands_in(number));
    let missing: Vec<_> = missing.map(|(_, name)| name).collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Finding::bad(CHECK, Level::Fail, format!("missing: {missing}"), fix(&missing));
    }
    match USED.into_iter().find(|(number, ..)| lacks(*number)) {
        Some((_, name, lost)) => {
            Finding::bad(CHECK, Level::Warn, format!("missing: {name}: {lost}"), fix(name))
        }
        None => Finding::ok(CHECK, "all that the agent uses"),
    }
}

fn bpffs(host: &Host) -> Finding {
    const CHECK: &str = "bpffs";
    let dir = host.pin_dir.display();
    match host.bpffs {
        None => Finding::unknown(CHECK, &host.pin_dir.display().to_string()),
        Some(true) => Finding::ok(CHECK, format!("{dir} is on a bpffs")),
        Some(false) => Finding::bad(
            CHECK,
            Level::Fail,
            format!("{dir} is not on a bpffs: maps could not outlive the agent"),
            "mount -t bpf bpf /sys/fs/bpf (in a container: mount the host's /sys/fs/bpf)",
        ),
    }
}

fn jit(host: &Host) -> Finding {
    const CHECK: &str = "jit";
    match host.jit {
        None => Finding::unknown(CHECK, "net.core.bpf_jit_enable"),
        Some(0) => Finding::bad(
            CHECK,
            Level::Warn,
            "off: every packet is interpreted, several times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => Finding::ok(CHECK, "on"),
    }
}

fn forwarding(check: &'static str, key: &str, value: Option<u32>) -> Finding {
    match value {
        None => Finding::unknown(check, key),
        Some(0) => Finding::bad(
            check,
            Level::Warn,
            "off: backends in pods behind this node get nothing; only its own servers do",
            format!("sysctl -w {key}=1"),
        ),
        Some(_) => Finding::ok(check, "on"),
    }
}

fn conntrack_size(host: &Host) -> Finding {
    const CHECK: &str = "conntrack_size";
    match host.conntrack {
        None => Finding::unknown(CHECK, "net.netfilter.nf_conntrack_max"),
        Some(Conntrack::Absent) => Finding::ok(CHECK, "nf_conntrack is not loaded"),
        Some(Conntrack::Present { count, max, .. }) => {
            let full =
                max > 0 && count.saturating_mul(100) >= max.saturating_mul(CONNTRACK_PERCENT);
            if !full {
                return Finding::ok(CHECK, format!("{count} of {max} entries"));
            }
            Finding::bad(
                CHECK,
                Level::Warn,
                format!("{count} of {max} entries: when it is full, delivered packets are dropped"),
                format!("sysctl -w net.netfilter.nf_conntrack_max={}", max.saturating_mul(4)),
            )
        }
    }
}

fn conntrack_loose(host: &Host) -> Finding {
    const CHECK: &str = "conntrack_loose";
    match host.conntrack {
        Some(Conntrack::Absent) => Finding::ok(CHECK, "nf_conntrack is not loaded"),
        Some(Conntrack::Present { loose: Some(0), .. }) => Finding::bad(
            CHECK,
            Level::Warn,
            "nf_conntrack_tcp_loose is 0: connections that conntrack meets halfway count as invalid",
            "sysctl -w net.netfilter.nf_conntrack_tcp_loose=1",
        ),
        Some(Conntrack::Present { loose: Some(_), .. }) => {
            Finding::ok(CHECK, "connections are picked up halfway")
        }
        _ => Finding::unknown(CHECK, "net.netfilter.nf_conntrack_tcp_loose"),
    }
}

fn clock(host: &Host) -> Finding {
    const CHECK: &str = "clock";
    match host.clock_synchronised {
        None => Finding::unknown(CHECK, "adjtimex"),
        Some(true) => Finding::ok(CHECK, "synchronised"),
        Some(false) => Finding::bad(
            CHECK,
            Level::Warn,
            "not synchronised: certificates may be refused, logs of nodes cannot be compared",
            "run chrony, systemd-timesyncd or the like",
        ),
    }
}

fn open_files(host: &Host) -> Finding {
    const CHECK: &str = "open_files";
    match host.open_files {
        None => Finding::unknown(CHECK, "RLIMIT_NOFILE"),
        Some(limit) if limit < OPEN_FILES => Finding::bad(
            CHECK,
            Level::Warn,
            format!("hard limit {limit}: many health checks at once would run out of sockets"),
            format!("LimitNOFILE={OPEN_FILES} in the unit, or ulimit -n {OPEN_FILES}"),
        ),
        Some(limit) => Finding::ok(CHECK, format!("hard limit {limit}")),
    }
}

fn cgroup(host: &Host) -> Finding {
    const CHECK: &str = "cgroup";
    const FIX: &str = "mount the host's cgroup v2 and name it: connect.cgroup";
    let bad = |message: String| Finding::bad(CHECK, Level::Warn, message, FIX);
    match &host.cgroup {
        Cgroup::Unknown => Finding::unknown(CHECK, "cgroup v2"),
        Cgroup::Off => Finding::ok(CHECK, "not needed: connect.enabled is false"),
        Cgroup::Root(path) => Finding::ok(CHECK, format!("{} is the root", path.display())),
        Cgroup::Below(path) => bad(format!(
            "{} is not the root of cgroup v2: only processes below it reach VIPs from this node",
            path.display()
        )),
        Cgroup::Absent => {
            bad("no cgroup v2 is there: processes of this node do not reach VIPs".to_owned())
        }
    }
}

fn ends_sockets(host: &Host) -> Finding {
    const CHECK: &str = "sock_destroy";
    match host.ends_sockets {
        None => Finding::unknown(CHECK, "sock_diag"),
        Some(true) => Finding::ok(CHECK, "sockets to dead backends can be ended"),
        Some(false) => Finding::bad(
            CHECK,
            Level::Warn,
            "clients on this node wait for a backend that died until their own time-outs",
            "boot a kernel with CONFIG_INET_DIAG_DESTROY=y",
        ),
    }
}
