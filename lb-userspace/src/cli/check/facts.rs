//! What `weir check` looks at, as plain values. `None` always means "could not be found out", as in
//! a container that hides it; what is known to be absent has a value of its own.

use std::path::PathBuf;

/// All that the rules judge.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// None: no file was named.
    pub config: Option<Config>,
    pub host: Host,
    pub uplinks: Vec<Uplink>,
    /// Bytes that the tunnel adds, for the wider of the families that the nodes use.
    pub overhead: u32,
}

/// What became of the configuration file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Config {
    Valid {
        frontends: usize,
        nodes: usize,
    },
    /// One line per problem, with its place.
    Refused(Vec<String>),
}

#[derive(Clone, Debug, Default)]
pub struct Host {
    /// As `uname -r` has it.
    pub release: Option<String>,
    pub btf: Option<bool>,
    /// Effective capabilities of this process, one bit each.
    pub capabilities: Option<u64>,
    pub pin_dir: PathBuf,
    /// Whether the pin folder, or the nearest folder above that exists, is on a bpffs.
    pub bpffs: Option<bool>,
    /// `net.core.bpf_jit_enable`.
    pub jit: Option<u32>,
    /// `net.ipv4.ip_forward`.
    pub forward_v4: Option<u32>,
    /// `net.ipv6.conf.all.forwarding`.
    pub forward_v6: Option<u32>,
    pub conntrack: Option<Conntrack>,
    /// Whether the kernel's clock is kept by something (adjtimex).
    pub clock_synchronised: Option<bool>,
    /// Hard limit of open files.
    pub open_files: Option<u64>,
    pub cgroup: Cgroup,
    /// Whether the kernel ends sockets on demand (`CONFIG_INET_DIAG_DESTROY`).
    pub ends_sockets: Option<bool>,
}

/// Where the programs for sockets go.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Cgroup {
    #[default]
    Unknown,
    /// They are not wanted.
    Off,
    /// No cgroup v2, or not at the named place.
    Absent,
    /// Not the root as this process sees it.
    Below(PathBuf),
    Root(PathBuf),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Conntrack {
    /// Not loaded.
    Absent,
    Present {
        count: u64,
        max: u64,
        /// `nf_conntrack_tcp_loose`.
        loose: Option<u32>,
    },
}

#[derive(Clone, Debug, Default)]
pub struct Uplink {
    pub name: String,
    pub link: Link,
    /// Kernel driver, from the device itself.
    pub driver: Option<String>,
    /// The larger of `rp_filter` of the interface and of `all`, which is what the kernel uses.
    pub rp_filter: Option<u32>,
    /// Whether the device takes VLAN tags off before XDP sees them.
    pub strips_vlan: Option<bool>,
    /// Programs at the XDP hook.
    pub xdp: Option<Vec<String>>,
    /// Filters and programs of others at the tc hooks, each with its place: `tcx egress: name`.
    pub tc: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Link {
    /// The links could not be listed.
    #[default]
    Unknown,
    Absent,
    Present(LinkFacts),
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LinkFacts {
    pub up: bool,
    /// Has Ethernet headers.
    pub ethernet: bool,
    pub mtu: u32,
    /// VLAN interfaces on top of it.
    pub vlans: Vec<String>,
}
