//! The command line's grammar. Nothing here reads or writes anything.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::{
    arrivals::ArrivalsArgs,
    check::CheckArgs,
    counters::CountersArgs,
    drain::{DrainArgs, UndrainArgs},
    manifest::ManifestCommand,
    owners::OwnersArgs,
    probe::Question,
    vips::VipsArgs,
};

/// Where the agent pins its maps unless told otherwise.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/weir";

/// Where the agent keeps its files unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/weir";

/// weir: a node-level L4 load balancer whose front door stays open when nodes, agents or the API
/// server die.
///
/// `weir agent` runs on every node. The other commands read the pinned maps themselves, so they
/// work while no agent runs; only `drain` and `undrain` need one.
#[derive(Debug, Parser)]
#[command(name = "weir", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub dirs: Dirs,
    #[command(subcommand)]
    pub command: Command,
}

/// The two folders that tell one node's weir from another's on the same kernel.
#[derive(Args, Clone, Debug)]
pub struct Dirs {
    /// Folder of the pinned maps, on a bpffs [default: /sys/fs/bpf/weir, or the Agent object's]
    #[arg(long, global = true, value_name = "DIR")]
    pub pin_dir: Option<PathBuf>,
    /// Folder of the agent's own files [default: /var/lib/weir, or the Agent object's]
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

impl Dirs {
    pub fn pin_dir(&self) -> &Path {
        self.pin_dir.as_deref().unwrap_or(Path::new(DEFAULT_PIN_DIR))
    }

    pub fn state_dir(&self) -> &Path {
        self.state_dir.as_deref().unwrap_or(Path::new(DEFAULT_STATE_DIR))
    }
}

/// How a command answers.
#[derive(Args, Clone, Copy, Debug)]
pub struct Output {
    /// A table for people, or JSON with a `schema` field for programs
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run this node's agent
    #[command(after_help = "Example:\n  weir agent --config /etc/weir/weir.yaml")]
    Agent(AgentCommand),
    /// List VIPs and their frontends, or explain who announces them
    #[command(
        after_help = "Examples:\n  weir vips -o json\n  weir vips --why\n  weir vips --why 192.0.2.10"
    )]
    Vips(VipsArgs),
    /// List all nodes as this one sees them
    #[command(after_help = "Example:\n  weir members")]
    Members(Output),
    /// Take something out of service on all nodes, by the running agent
    #[command(
        after_help = "Examples:\n  weir drain backend 10.1.0.7:8080 --deadline 30m\n  weir drain node worker-1\n  weir drain node worker-1 --forwarding"
    )]
    Drain(DrainArgs),
    /// Put back what was drained
    #[command(
        after_help = "Examples:\n  weir undrain backend 10.1.0.7:8080\n  weir undrain node worker-1"
    )]
    Undrain(UndrainArgs),
    /// List backends, the nodes they live on and the slots that they own
    #[command(after_help = "Example:\n  weir backends")]
    Backends(Output),
    /// Show which backends own a frontend's slots
    #[command(
        after_help = "Examples:\n  weir owners 192.0.2.10:443\n  weir owners '[2001:db8::10]:53/udp' --slots"
    )]
    Owners(OwnersArgs),
    /// List the flows that this node remembers
    #[command(
        after_help = "Examples:\n  weir arrivals --backend 10.1.0.7:8080\n  weir arrivals --client 198.51.100.9 --limit 0 -o json"
    )]
    Arrivals(ArrivalsArgs),
    /// Show what happened to packets, by reason, frontend or backend
    #[command(
        after_help = "Examples:\n  weir counters\n  weir counters --watch 1\n  weir counters --backends -o json"
    )]
    Counters(CountersArgs),
    /// Show the agent, its peers, problems and the health of targets
    #[command(after_help = "Example:\n  weir status")]
    Status(Output),
    /// Tell whether the agent lives or is ready, by the exit status alone
    #[command(after_help = "Example:\n  weir probe ready")]
    Probe {
        /// What is asked
        question: Question,
    },
    /// Check whether this machine can run weir; exit status 1 if it cannot
    #[command(
        after_help = "Examples:\n  weir check --config /etc/weir/weir.yaml\n  weir check --uplink eth0 --uplink eth1"
    )]
    Check(CheckArgs),
    /// Print objects to install in Kubernetes
    #[command(after_help = "Example:\n  weir manifest crds | kubectl apply --server-side -f -")]
    Manifest {
        #[command(subcommand)]
        what: ManifestCommand,
    },
    /// Print a shell completion script
    #[command(after_help = "Example:\n  weir completion bash > /etc/bash_completion.d/weir")]
    Completion {
        /// The shell to complete for
        shell: Shell,
    },
}

#[derive(Args, Debug)]
pub struct AgentCommand {
    /// YAML file of Agent, Node and Frontend objects; read again whenever it changes
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Name of this node, over the Agent object's
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Run nothing; detach the programs and remove the pins: this node stops serving
    #[arg(long)]
    pub cleanup: bool,
    /// Then wait to be told to end: a pod that ends would be started again
    #[arg(long, requires = "cleanup")]
    pub stay: bool,
}

/// What `weir agent` was told. The folders win over the `Agent` object's.
#[derive(Clone, Debug)]
pub struct AgentArgs {
    pub config: PathBuf,
    pub node: Option<String>,
    pub pin_dir: Option<PathBuf>,
    pub state_dir: Option<PathBuf>,
    /// Run nothing: detach the programs and remove the pins.
    pub cleanup: bool,
    /// Wait for a signal after that.
    pub stay: bool,
}

impl AgentArgs {
    pub fn new(command: AgentCommand, dirs: Dirs) -> Self {
        let AgentCommand { config, node, cleanup, stay } = command;
        Self { config, node, pin_dir: dirs.pin_dir, state_dir: dirs.state_dir, cleanup, stay }
    }
}
