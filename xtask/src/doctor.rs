//! `doctor`: what this machine has of what weir needs, and how to get the rest. Changes nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::kubernetes::Parts;
use crate::process::{CommandExt as _, is_root};
use crate::setup::{self, Need};
use crate::toolchain::{self, Toolchain};
use crate::workspace::Workspace;

/// The oldest kernel that weir means to run on: Debian 12's.
const MIN_KERNEL: (u32, u32) = (6, 1);

/// One line of the report.
#[derive(Serialize)]
struct Finding {
    name: String,
    /// Weir can do without: it is reported, and no error.
    optional: bool,
    ok: bool,
    found: String,
    /// How to mend it; only where it is not `ok`.
    fix: Option<String>,
}

#[derive(Serialize)]
struct Report {
    schema: &'static str,
    findings: Vec<Finding>,
}

/// Prints the report; an error if anything that is not optional is missing.
pub fn run(workspace: &Workspace, json: bool) -> Result<()> {
    let mut findings = tools(workspace)?;
    findings.extend(system());
    let missing = findings.iter().filter(|f| !f.ok && !f.optional).count();
    if json {
        let report = Report { schema: "weir.xtask.doctor/v1", findings };
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        for finding in &findings {
            print_finding(finding);
        }
    }
    if missing > 0 {
        bail!("{missing} of the things that weir needs are missing");
    }
    Ok(())
}

fn print_finding(finding: &Finding) {
    let mark = match (finding.ok, finding.optional) {
        (true, _) => "ok",
        (false, true) => "-",
        (false, false) => "MISSING",
    };
    println!("{mark:8} {}: {}", finding.name, finding.found);
    if let Some(fix) = &finding.fix {
        println!("{:8} fix: {fix}", "");
    }
}

fn tools(workspace: &Workspace) -> Result<Vec<Finding>> {
    let stable = workspace.cargo().arg("--version").stdout_of();
    let mut findings = vec![Finding {
        name: "cargo that runs this".into(),
        optional: false,
        ok: stable.is_ok(),
        found: stable.map_or_else(|e| e.to_string(), |version| version.trim().into()),
        fix: None,
    }];
    let toolchains = toolchain::probe();
    let chosen = toolchain::choose(&toolchains);
    findings.extend(toolchains.iter().map(|found| toolchain_finding(found, chosen)));
    let kubernetes = setup::to_build_kubernetes(workspace, Parts::ControlPlane)?;
    let helm = setup::to_build_helm(workspace)?;
    let needs = [setup::to_build(), setup::to_run(), setup::to_lint(workspace), kubernetes, helm];
    findings.extend(needs.into_iter().flatten().map(need_finding));
    findings.push(optional_program("bpftool", "shows loaded programs and maps", "bpftool"));
    Ok(findings)
}

fn toolchain_finding(found: &Toolchain, chosen: Option<&Toolchain>) -> Finding {
    let verdict = match found.refusal() {
        Some(why) => why,
        None if chosen == Some(found) => "builds the BPF object".into(),
        None => "could build the BPF object too".into(),
    };
    let fix = (!found.has_sources).then(|| match found.needs_bootstrap {
        true => "apt-get install rust-web-src".to_owned(),
        false => format!("rustup component add rust-src --toolchain {}", found.name),
    });
    Finding {
        name: format!("tool-chain {}", found.name),
        optional: true,
        ok: found.refusal().is_none(),
        found: format!("{}: {verdict}", found.version),
        fix,
    }
}

fn need_finding(need: Need) -> Finding {
    Finding {
        fix: (!need.met).then(|| need.fix()),
        found: if need.met { "there".into() } else { format!("missing; {}", need.why) },
        name: need.what,
        optional: false,
        ok: need.met,
    }
}

fn optional_program(name: &str, why: &str, package: &str) -> Finding {
    let ok = crate::process::has_program(name);
    Finding {
        name: name.into(),
        optional: true,
        ok,
        found: if ok { "there".into() } else { format!("missing; {why}") },
        fix: (!ok).then(|| format!("apt-get install {package}")),
    }
}

fn system() -> Vec<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has_filesystem =
        |name: &str| filesystems.lines().any(|line| line.ends_with(&format!("\t{name}")));
    let mounted = |name: &str| {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        mounts.lines().any(|line| line.split(' ').nth(2) == Some(name))
    };
    let sudo = || Command::new("sudo").args(["-n", "true"]).stdout_of().is_ok();
    let required = |name: &str, ok: bool, good: &str, bad: &str, fix: &str| Finding {
        name: name.into(),
        optional: false,
        ok,
        found: if ok { good } else { bad }.into(),
        fix: (!ok).then(|| fix.into()),
    };
    vec![
        required(
            "kernel",
            kernel_version(&release).is_some_and(|version| version >= MIN_KERNEL),
            release.trim(),
            &format!("{}, older than {}.{}", release.trim(), MIN_KERNEL.0, MIN_KERNEL.1),
            "boot a newer kernel",
        ),
        required(
            "kernel BTF",
            Path::new("/sys/kernel/btf/vmlinux").is_file(),
            "there",
            "no /sys/kernel/btf/vmlinux",
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y",
        ),
        required(
            "bpffs",
            has_filesystem("bpf"),
            if mounted("bpf") { "mounted" } else { "can be mounted" },
            "the kernel has no bpf file system",
            "boot a kernel with CONFIG_BPF_SYSCALL=y",
        ),
        required(
            "cgroup v2",
            mounted("cgroup2"),
            "mounted",
            "not mounted",
            "mount -t cgroup2 none /sys/fs/cgroup",
        ),
        required(
            "root",
            is_root() || sudo(),
            if is_root() { "yes" } else { "through sudo" },
            "no, and sudo asks for a password",
            "run as root: packet and lab tests load BPF programs and make namespaces",
        ),
    ]
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_compare_as_numbers() {
        assert_eq!(kernel_version("6.18.0-rc1+deb13-amd64\n"), Some((6, 18)));
        assert_eq!(kernel_version("6.1.192"), Some((6, 1)));
        assert!(kernel_version("5.10.0-30") < Some(MIN_KERNEL));
        assert!(kernel_version("6.18") > Some(MIN_KERNEL));
        assert_eq!(kernel_version("unknown"), None);
    }
}
