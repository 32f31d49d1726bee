//! Looks at this machine. Every look that fails is `None`: a container that hides something must not
//! stop the rest. Changes nothing.

use std::{fs, net::IpAddr, path::Path, str::FromStr};

use lb_common::wire::geneve::{OVERHEAD_V4, OVERHEAD_V6};

use super::{
    CheckArgs,
    facts::{Cgroup, Config, Conntrack, Facts, Host, Link, Uplink},
    links, nic,
};
use crate::{
    cli::args::Dirs,
    config::{self, Overrides},
    dataplane::{connect, inspect},
    model::ConnectSettings,
    netlink::{self, diag::Diag},
};

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: libc::c_long = 0xcafe_4a11;

pub fn gather(args: &CheckArgs, dirs: &Dirs) -> Facts {
    let mut facts = Facts { overhead: OVERHEAD_V6, ..Default::default() };
    let mut uplinks = args.uplinks.clone();
    let mut pin_dir = dirs.pin_dir().to_owned();
    let mut settings = ConnectSettings::default();
    if let Some(path) = &args.config {
        let overrides = Overrides {
            node: args.node.clone(),
            pin_dir: dirs.pin_dir.clone(),
            state_dir: dirs.state_dir.clone(),
        };
        facts.config = Some(match config::load(path, &overrides) {
            Err(errors) => Config::Refused(errors.lines().collect()),
            Ok(intent) => {
                // A node's first address is the one that the tunnel takes.
                let mut outer = intent.nodes.values().filter_map(|node| node.addresses.first());
                facts.overhead = if outer.any(IpAddr::is_ipv6) { OVERHEAD_V6 } else { OVERHEAD_V4 };
                pin_dir.clone_from(&intent.agent.pin_dir);
                uplinks.extend(intent.agent.uplinks);
                settings = intent.agent.connect;
                Config::Valid { frontends: intent.frontends.len(), nodes: intent.nodes.len() }
            }
        });
    }
    uplinks.sort();
    uplinks.dedup();
    facts.host = host(&pin_dir);
    facts.host.cgroup = cgroup(&settings);
    facts.uplinks = uplink_facts(&uplinks);
    facts
}

fn host(pin_dir: &Path) -> Host {
    Host {
        release: nix::sys::utsname::uname().ok().map(|uts| uts.release().to_string_lossy().into()),
        btf: Path::new("/sys/kernel")
            .try_exists()
            .ok()
            .filter(|there| *there)
            .and_then(|_| Path::new("/sys/kernel/btf/vmlinux").try_exists().ok()),
        capabilities: capabilities(),
        pin_dir: pin_dir.to_owned(),
        bpffs: on_bpffs(pin_dir),
        jit: sysctl("net.core.bpf_jit_enable"),
        forward_v4: sysctl("net.ipv4.ip_forward"),
        forward_v6: sysctl("net.ipv6.conf.all.forwarding"),
        conntrack: conntrack(),
        clock_synchronised: clock_synchronised(),
        open_files: nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
            .ok()
            .map(|(_, hard)| hard),
        cgroup: Cgroup::Unknown,
        ends_sockets: Diag::open().and_then(|mut diag| diag.can_destroy()).ok(),
    }
}

fn cgroup(settings: &ConnectSettings) -> Cgroup {
    if !settings.enabled {
        return Cgroup::Off;
    }
    match settings.cgroup.clone().or_else(connect::root) {
        Some(path) if connect::is_root(&path) => Cgroup::Root(path),
        Some(path) if path.is_dir() => Cgroup::Below(path),
        _ => Cgroup::Absent,
    }
}

/// Of this network namespace where the key is per namespace. Keys are given with dots; `/` stands
/// for the dot of an interface's name, as with sysctl(8).
fn sysctl<T: FromStr>(key: &str) -> Option<T> {
    let path: String = key
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            c => c,
        })
        .collect();
    fs::read_to_string(Path::new("/proc/sys").join(path)).ok()?.trim().parse().ok()
}

fn capabilities() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

/// Of the folder, or of the nearest one above that exists.
fn on_bpffs(dir: &Path) -> Option<bool> {
    for path in dir.ancestors() {
        match nix::sys::statfs::statfs(path) {
            Ok(found) => return Some(found.filesystem_type().0 == BPF_FS_MAGIC),
            Err(nix::Error::ENOENT) => {}
            Err(_) => return None,
        }
    }
    None
}

fn conntrack() -> Option<Conntrack> {
    if !Path::new("/proc/sys/net").exists() {
        return None;
    }
    if !Path::new("/proc/sys/net/netfilter/nf_conntrack_count").exists() {
        return Some(Conntrack::Absent);
    }
    Some(Conntrack::Present {
        count: sysctl("net.netfilter.nf_conntrack_count")?,
        max: sysctl("net.netfilter.nf_conntrack_max")?,
        loose: sysctl("net.netfilter.nf_conntrack_tcp_loose"),
    })
}

fn clock_synchronised() -> Option<bool> {
    // SAFETY: timex is plain numbers, for which zero is a value; modes 0 asks and changes nothing.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a timex that lives here.
    let state = unsafe { libc::adjtimex(&mut timex) };
    (state >= 0).then_some(state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0)
}

fn uplink_facts(names: &[String]) -> Vec<Uplink> {
    if names.is_empty() {
        return Vec::new();
    }
    let links = links::list(names).ok();
    names
        .iter()
        .map(|name| {
            let found = links.as_ref().and_then(|links| links.get(name));
            let link = match (&links, found) {
                (None, _) => Link::Unknown,
                (Some(_), None) => Link::Absent,
                (Some(_), Some(found)) => Link::Present(found.facts.clone()),
            };
            Uplink {
                name: name.clone(),
                link,
                driver: netlink::driver(name).ok(),
                rp_filter: rp_filter(name),
                strips_vlan: nic::strips_vlan(name).ok(),
                xdp: found.map(|found| found.xdp.iter().map(|id| xdp_name(*id)).collect()),
                tc: found.and_then(|found| tc(name, found)),
            }
        })
        .collect()
}

/// The kernel uses the larger of both.
fn rp_filter(interface: &str) -> Option<u32> {
    let own = sysctl(&format!("net.ipv4.conf.{}.rp_filter", interface.replace('.', "/")))?;
    let all: u32 = sysctl("net.ipv4.conf.all.rp_filter")?;
    Some(all.max(own))
}

fn xdp_name(id: u32) -> String {
    inspect::program_name(id).unwrap_or_else(|| format!("program {id}"))
}

fn tc(interface: &str, found: &links::Found) -> Option<Vec<String>> {
    let mut names = inspect::foreign_tcx(interface);
    names.extend(found.filters.clone()?);
    Some(names)
}
