//! A real node of a cluster: a kubelet with containerd, runc and a bridge for pods on a node of the lab.
//!
//! ```text
//!   node's network ─ eth0 ─ routing ─ cni0, a bridge: 10.1.N.1, fd00:1:N::1 ─┬─ pod 10.1.N.2, fd00:1:N::2
//!                                                                            └─ pod 10.1.N.3, fd00:1:N::3
//! ```
//!
//! The lab routes a node's pod networks to the node already, so there is no overlay. All that the node runs lives in one
//! process namespace, whose first process ends with this program; so do all mounts, which are in a namespace of their own.
//! What containerd unpacks is on the node's disk, which is memory. Only [control groups](super::control_groups) must be
//! removed.
//!
//! Not as on other nodes: no AppArmor, no limits on disk; and what a kubelet sets in /proc/sys/kernel and /proc/sys/vm, which
//! would be for the whole machine, it sets in files that only it sees.

use std::{
    env,
    ffi::OsString,
    fs,
    net::IpAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    Cluster, Image,
    control_groups::{ControlGroups, first_version},
};
use crate::lab::{Node, Process};

/// Names the folder with Debian's packages containerd, containernetworking-plugins and runc in it.
pub const PACKAGES: &str = "WEIR_CONTAINER_PACKAGES";
/// A lab host's disk, as seen from inside.
const DISK: &str = "/sys/fs/disk";
/// The node's files on it.
const FOLDER: &str = "kubelet-files";
/// What weir's programs for sockets are put on, as seen from inside: on a machine with several nodes none can have the root
/// of cgroup v2.
pub const CGROUP: &str = "/run/cgroup-of-node";
/// Of that folder: what the kubelet runs without being told by an API server.
const STATIC_PODS: &str = "manifests";
/// What the parts log into, in that folder.
const LOGS: [&str; 3] = ["boot.log", "containerd.log", "kubelet.log"];
/// Bytes of each that are worth looking at.
const LOG_TAIL: usize = 3_000;

/// A node of a cluster. Dropping it ends all that runs on it.
pub struct KubeNode<'lab> {
    node: &'lab Node,
    files: Files,
    /// Ends everything on the node with it.
    boot: Process,
    // Removed when nobody is in them any more.
    _groups: ControlGroups,
}

/// The folder of a node's files.
pub struct Files {
    /// As this process and all others see it.
    pub outside: PathBuf,
    /// As everything on the node does, but containers.
    pub inside: PathBuf,
}

impl Files {
    /// Has the node's kubelet run a pod, or run it anew where the manifest is another one than before.
    pub fn write_static_pod(&self, name: &str, manifest: &str) -> Result<()> {
        let folder = self.outside.join(STATIC_PODS);
        // A kubelet reads what appears there at once, so it appears as a whole.
        let new = self.outside.join(name);
        fs::write(&new, manifest).with_context(|| format!("write {}", new.display()))?;
        Ok(fs::rename(&new, folder.join(name))?)
    }
}

impl<'lab> KubeNode<'lab> {
    /// Starts it. The node registers itself by its name in the lab; then it is for the caller to wait until it is ready.
    /// Its containers find these images there already, and the node what `prepare` writes.
    pub fn start(
        cluster: &Cluster,
        node: &'lab Node,
        images: &[Image],
        prepare: impl FnOnce(&Files) -> Result<()>,
    ) -> Result<Self> {
        let packages = packages()?;
        let (files, inside) = (node.dir().join(FOLDER), Path::new(DISK).join(FOLDER));
        fs::create_dir(&files).with_context(|| format!("{} was one already", node.name()))?;
        cluster.write_client(&files, &format!("system:node:{}", node.name()), "system:nodes")?;
        symlink(cluster.binary(), files.join("kubelet"))?;
        for (number, image) in images.iter().enumerate() {
            let to = files.join(format!("images/{number}"));
            fs::create_dir_all(&to)?;
            fs::copy(&image.path, to.join("archive.tar"))
                .with_context(|| format!("copy {}", image.path.display()))?;
            fs::write(to.join("name"), image.name)?;
        }
        fs::write(files.join("resolv.conf"), "")?;
        let runtime = include_str!("node/containerd.toml")
            .replace("{disk}", DISK)
            .replace("{files}", &inside.display().to_string())
            .replace("{packages}", &packages.display().to_string())
            .replace("{image}", Image::PODS);
        fs::write(files.join("containerd.toml"), runtime)?;
        fs::create_dir(files.join("cni"))?;
        fs::create_dir(files.join(STATIC_PODS))?;
        fs::write(files.join("cni/pods.conflist"), network(node))?;
        let groups = ControlGroups::make(node.name())?;
        fs::write(files.join("kubelet.json"), settings(&inside, &groups))?;

        let files = Files { outside: files, inside };
        prepare(&files)?;

        let log = fs::File::create(files.outside.join(LOGS[0]))?;
        let mut command = node.command("unshare");
        command
            // The shell is the first process of its namespace, and dies with unshare.
            .args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc"])
            .args(["sh", "-c", include_str!("node/boot.sh"), "boot"])
            .args([&files.inside, &packages])
            .arg(first_version()?.join(" "))
            .arg(groups.path())
            .arg(format!("--config={}", files.inside.join("kubelet.json").display()))
            .arg(format!("--kubeconfig={}", files.inside.join("kubeconfig").display()))
            .arg(format!("--root-dir={DISK}/kubelet"))
            .arg(format!("--cert-dir={DISK}/kubelet/pki"))
            .arg(format!("--hostname-override={}", node.name()))
            .arg(format!("--node-ip={},{}", node.v4(), node.v6()))
            .env_clear()
            .env("PATH", path())
            .stdout(log.try_clone()?)
            .stderr(log);
        let boot = node.start(command)?;
        Ok(Self { node, files, boot, _groups: groups })
    }

    pub fn node(&self) -> &'lab Node {
        self.node
    }

    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Whether the kubelet runs; it never ends by itself.
    pub fn is_running(&self) -> Result<bool> {
        self.boot.is_running()
    }

    /// The ends of all logs, for people.
    pub fn logs(&self) -> String {
        let tail = |name: &str| {
            let log = fs::read(self.node.dir().join(FOLDER).join(name)).unwrap_or_default();
            let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL)..]);
            format!("== {name} of {}\n{tail}\n", self.node.name())
        };
        LOGS.map(tail).concat()
    }
}

impl Drop for KubeNode<'_> {
    fn drop(&mut self) {
        // Nobody is left to tell; the host's end kills what this could not.
        drop(self.boot.kill());
    }
}

fn packages() -> Result<PathBuf> {
    let folder = env::var_os(PACKAGES).with_context(|| {
        format!("{PACKAGES} names no folder: start this by cargo xtask cluster")
    })?;
    fs::canonicalize(&folder).with_context(|| format!("{PACKAGES}={folder:?}"))
}

/// Where a kubelet finds mount, and runc what it calls.
fn path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
    path
}

/// How containerd connects pods: each to the node's bridge, by which it reaches all others.
fn network(node: &Node) -> String {
    let range =
        |(network, length): (IpAddr, u8)| json!([{"subnet": format!("{network}/{length}")}]);
    json!({
        "cniVersion": "1.0.0", "name": "pods",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": "/run/cni", "ranges": node.pod_networks().map(range),
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        }],
    })
    .to_string()
}

/// The kubelet's configuration. JSON is YAML.
fn settings(inside: &Path, groups: &ControlGroups) -> String {
    let file = |name: &str| inside.join(name);
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs", "cgroupRoot": groups.path(), "failCgroupV1": false,
        "failSwapOn": false, "makeIPTablesUtilChains": false,
        "authentication": {
            "anonymous": {"enabled": false}, "webhook": {"enabled": true},
            "x509": {"clientCAFile": file("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "staticPodPath": file(STATIC_PODS),
        "resolvConf": file("resolv.conf"), "podLogsDir": Path::new(DISK).join("pods-logs"),
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1Mi"},
    })
    .to_string()
}
