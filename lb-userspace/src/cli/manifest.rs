//! `weir manifest`: objects to install in Kubernetes, on standard output.
//!
//! The static pod is for masters: kubelets run it before there is an API server, and without one. It must
//! ask nothing of the cluster, so configuration, secrets and credentials are files of the node.

use std::path::{Component, Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use nix::sys::utsname;

use super::{args::Dirs, fault::Fault};
use crate::{
    config::{self, Overrides},
    sources::kubernetes::crd,
};

/// Name of the configuration in its folder.
const CONFIG_FILE: &str = "weir.yaml";

#[derive(Clone, Debug, Subcommand)]
pub enum ManifestCommand {
    /// The definitions of our own kinds of objects
    Crds,
    /// A pod for a master's /etc/kubernetes/manifests, which runs weir before there is a cluster
    #[command(
        after_help = "Example:\n  weir manifest static-pod --image registry.example/weir:0.1.0 > /etc/kubernetes/manifests/weir.yaml"
    )]
    StaticPod(StaticPodArgs),
}

#[derive(Args, Clone, Debug)]
pub struct StaticPodArgs {
    /// The image, as this node's container runtime finds it
    #[arg(long, default_value = concat!("weir:", env!("CARGO_PKG_VERSION")))]
    pub image: String,
    /// Folder with weir.yaml and the files that it names, mounted at the same path
    #[arg(long, value_name = "DIR", default_value = "/etc/weir")]
    pub config_dir: PathBuf,
    /// Check weir.yaml, where it is there already, for this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Leave sockets of pods to their own time-outs; then CAP_SYS_ADMIN is not needed
    #[arg(long)]
    pub no_pod_sockets: bool,
}

/// With a name between two `@` where a value belongs.
const STATIC_POD: &str = include_str!("static_pod.yaml");

/// What the pod mounts, each at the path that it has on the node.
struct Folders {
    config: PathBuf,
    /// Of the agent: the file system that it is on is what is mounted.
    pins: PathBuf,
    state: PathBuf,
}

/// # Errors
/// A setting cannot stand in a manifest; the configuration is there and bad.
pub fn run(what: ManifestCommand, dirs: &Dirs) -> anyhow::Result<String> {
    match what {
        ManifestCommand::Crds => Ok(crd::manifests()?),
        ManifestCommand::StaticPod(args) => static_pod(&args, &folders(&args, dirs)?),
    }
}

/// By the configuration where it is there already; it may as well come later.
fn folders(args: &StaticPodArgs, dirs: &Dirs) -> anyhow::Result<Folders> {
    let file = args.config_dir.join(CONFIG_FILE);
    let config = args.config_dir.clone();
    if !file.exists() {
        let (pins, state) = (dirs.pin_dir().to_owned(), dirs.state_dir().to_owned());
        return Ok(Folders { config, pins, state });
    }
    let host = utsname::uname()?.nodename().to_string_lossy().to_lowercase();
    let overrides = Overrides {
        node: Some(args.node.clone().unwrap_or(host)),
        pin_dir: dirs.pin_dir.clone(),
        state_dir: dirs.state_dir.clone(),
    };
    let intent = config::load(&file, &overrides).with_context(|| {
        format!("{} cannot be used (--node says for whom it is)", file.display())
    })?;
    Ok(Folders { config, pins: intent.agent.pin_dir, state: intent.agent.state_dir })
}

/// The pod. Its paths are the node's, so that one configuration and one command line serve inside and outside.
fn static_pod(args: &StaticPodArgs, folders: &Folders) -> anyhow::Result<String> {
    let image = &args.image;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "./:@_-".contains(c);
    if image.is_empty() || !image.chars().all(is_plain) {
        let fix = "name it as in a pod, such as registry.example/weir:0.1.0";
        return Err(Fault::new(format!("{image:?} is no name of an image"), fix).into());
    }
    let (config, pins, state) =
        (plain(&folders.config)?, plain(&folders.pins)?, plain(&folders.state)?);
    let bpf = plain(folders.pins.parent().unwrap_or(Path::new("/")))?;
    let [capability, mount, volume] = match args.no_pod_sockets {
        true => [""; 3],
        false => POD_SOCKETS,
    };
    let values = [
        ("@config@", config),
        ("@pins@", pins),
        ("@bpf@", bpf),
        ("@state@", state),
        ("@capability@", capability),
        ("@mount@", mount),
        ("@volume@", volume),
        // Last: only it may hold an @.
        ("@image@", image),
    ];
    let pod = STATIC_POD.trim_end().to_owned();
    Ok(values.into_iter().fold(pod, |pod, (name, value)| pod.replace(name, value)))
}

/// What ending sockets of pods takes: to enter their network namespaces, and to see them, later ones too.
const POD_SOCKETS: [&str; 3] = [
    ", SYS_ADMIN",
    "    - {name: netns, mountPath: /run/netns, mountPropagation: HostToContainer}\n",
    "  - name: netns\n    hostPath: {path: /run/netns, type: DirectoryOrCreate}\n",
];

/// A path that a mount takes and YAML does not read otherwise.
fn plain(path: &Path) -> Result<&str, Fault> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let straight =
        path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    path.to_str()
        .filter(|text| {
            path.is_absolute() && path.parent().is_some() && straight && text.chars().all(is_plain)
        })
        .ok_or_else(|| {
            let fix = "give an absolute path of letters, digits and ./_- below the root";
            Fault::new(format!("{} cannot be mounted", path.display()), fix)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(config_dir: &Path) -> StaticPodArgs {
        StaticPodArgs {
            image: "registry.example/weir:1".into(),
            config_dir: config_dir.into(),
            node: Some("master-1".into()),
            no_pod_sockets: false,
        }
    }

    fn dirs(pin_dir: Option<&str>) -> Dirs {
        Dirs { pin_dir: pin_dir.map(Into::into), state_dir: None }
    }

    fn pod(args: StaticPodArgs, dirs: &Dirs) -> anyhow::Result<String> {
        run(ManifestCommand::StaticPod(args), dirs)
    }

    #[test]
    fn folders_are_those_of_the_configuration_and_the_command_line_wins() {
        let dir = tempfile::tempdir().unwrap();
        let text = "apiVersion: weir.dev/v1alpha1\nkind: Agent\nmetadata: {name: all}\nspec:\n  uplinks: [eth0]\n  \
                    seed: long enough\n  stateDir: /data/weir\n  pinDir: /bpf/weir\n---\napiVersion: \
                    weir.dev/v1alpha1\nkind: Node\nmetadata: {name: master-1}\nspec: {addresses: [10.0.0.1]}\n";
        std::fs::write(dir.path().join(CONFIG_FILE), text).unwrap();
        let said = pod(args(dir.path()), &dirs(None)).unwrap();
        for part in ["--state-dir=/data/weir\n", "--pin-dir=/bpf/weir\n", "mountPath: /bpf}"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let said = pod(args(dir.path()), &dirs(Some("/sys/fs/bpf/other"))).unwrap();
        assert!(said.contains("--pin-dir=/sys/fs/bpf/other\n"), "{said}");
        let other = StaticPodArgs { node: Some("master-2".into()), ..args(dir.path()) };
        assert!(pod(other, &dirs(None)).is_err(), "no such node");
    }

    #[test]
    fn what_cannot_stand_in_a_manifest_is_refused() {
        let missing = Path::new("/nowhere/weir");
        assert!(pod(args(missing), &dirs(None)).is_ok(), "the configuration may come later");
        for image in ["", "a b", "a\"b", "a\nb"] {
            let bad = StaticPodArgs { image: image.into(), ..args(missing) };
            assert!(pod(bad, &dirs(None)).is_err(), "{image:?}");
        }
        for folder in ["etc/weir", "/etc/../weir", "/", "/etc/we ir", "/a\nb"] {
            assert!(pod(args(Path::new(folder)), &dirs(None)).is_err(), "{folder:?}");
        }
    }

    #[test]
    fn pods_sockets_are_what_needs_the_administrators_capability() {
        let with = pod(args(Path::new("/nowhere")), &dirs(None)).unwrap();
        let without = StaticPodArgs { no_pod_sockets: true, ..args(Path::new("/nowhere")) };
        let without = pod(without, &dirs(None)).unwrap();
        assert!(with.contains("SYS_ADMIN") && with.matches("netns").count() == 4, "{with}");
        assert!(!without.contains("SYS_ADMIN") && !without.contains("netns"), "{without}");
    }
}
