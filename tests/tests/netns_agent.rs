//! The agent's life on one node: what it refuses, what it leaves, what its successor takes over.
//! Needs root, and the binary that `WEIR_BIN` names.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use aya::{
    maps::{MapData, MapInfo},
    programs::links::{FdLink, PinnedLink},
};
use lb_common::{
    abi::{LAYOUT_VERSION, map, program},
    backend::BackendId,
};
use lb_tests::lab::{Gate, Host, Lab, Process, UPLINK, XdpAttached, eventually};
use nix::sys::signal::Signal;
use weir::{
    dataplane::maps::Maps,
    report::status::{self, AgentStatus},
};

/// For what an agent does at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(15);

/// A lab of one node and its agent's files.
struct Rig {
    lab: Lab,
    files: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let lab = Lab::builder().nodes(1, 0).build().expect("a lab (needs root)");
        let rig = Self { lab, files: tempfile::tempdir().unwrap() };
        rig.configure("");
        rig
    }

    fn node(&self) -> &Host {
        self.lab.node("node-1")
    }

    /// Writes the configuration; `limits` goes into the Agent object.
    fn configure(&self, limits: &str) {
        let (v4, v6) = (self.node().v4(), self.node().v6());
        let [vip4, vip6] = Lab::vips(0);
        let text = format!(
            "apiVersion: weir.dev/v1alpha1\nkind: Agent\nmetadata: {{name: rig}}\n\
             spec: {{uplinks: [{UPLINK}], seed: the seed of the rig, limits: {{{limits}}}}}\n---\n\
             apiVersion: weir.dev/v1alpha1\nkind: Node\nmetadata: {{name: node-1}}\n\
             spec: {{addresses: [\"{v4}\", \"{v6}\"]}}\n---\n\
             apiVersion: weir.dev/v1alpha1\nkind: Frontend\nmetadata: {{name: web}}\n\
             spec: {{addresses: [\"{vip4}\", \"{vip6}\"], ports: [{{port: 80, targetPort: 8080}}], \
             pool: {{nodeSelector: {{matchLabels: {{}}}}}}}}\n"
        );
        fs::write(self.config(), text).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.files.path().join("weir.yaml")
    }

    fn pins(&self) -> PathBuf {
        self.node().bpf_fs().join("weir")
    }

    fn agent(&self) -> Command {
        let binary =
            std::env::var_os("WEIR_BIN").expect("WEIR_BIN: the binary, from cargo build -p weir");
        let mut command = self.node().command(fs::canonicalize(binary).unwrap());
        command.args(["agent", "--node", "node-1", "--config"]).arg(self.config());
        command.arg("--pin-dir").arg(self.pins()).arg("--state-dir").arg(self.node().dir());
        command
    }

    /// Starts an agent and waits until its programs are on the uplink.
    fn start(&self) -> Process {
        let before = self.maps().and_then(|maps| maps.heartbeat());
        // That of the agent before.
        let _ = fs::remove_file(self.node().dir().join(status::FILE));
        let process = self.node().start(self.agent()).unwrap();
        eventually("the agent serves", SOON, || {
            let alive =
                |maps: &Maps| maps.heartbeat() > before && maps.frontends.iter().count() == 2;
            self.maps().is_some_and(|maps| alive(&maps)) && self.has_xdp() && self.has_links()
        });
        process
    }

    /// Runs an agent that is expected to end by itself; what it said.
    fn refused(&self) -> String {
        let Output { status, stderr, .. } = self.agent().output().unwrap();
        assert!(!status.success());
        String::from_utf8(stderr).unwrap()
    }

    fn maps(&self) -> Option<Maps> {
        Maps::open(&self.pins()).ok()
    }

    /// All programs' links are pinned, which follows being attached.
    fn has_links(&self) -> bool {
        let all = 2 + program::CONNECT.len();
        fs::read_dir(self.pins().join("links")).is_ok_and(|entries| entries.count() == all)
    }

    fn has_xdp(&self) -> bool {
        self.node().xdp(UPLINK).unwrap() != XdpAttached::None
    }

    /// The pinned links by name, with the kernel's ids.
    fn links(&self) -> Vec<(String, u32)> {
        let entries = fs::read_dir(self.pins().join("links")).unwrap().map(Result::unwrap);
        let mut links: Vec<_> = entries
            .map(|entry| {
                let link = FdLink::from(PinnedLink::from_pin(entry.path()).unwrap());
                (entry.file_name().into_string().unwrap(), link.info().unwrap().id())
            })
            .collect();
        links.sort();
        links
    }

    /// Service indices and owners of every frontend: what a restart must not change.
    fn ids(&self) -> Vec<(u32, u64, Vec<BackendId>)> {
        let maps = self.maps().unwrap();
        let frontends = maps.frontends.iter().map(Result::unwrap);
        let mut ids: Vec<_> = frontends
            .map(|(_, frontend)| {
                let service = maps.service(frontend.outside).unwrap();
                (frontend.outside, service.word.0, maps.owners_of(&service.record))
            })
            .collect();
        ids.sort();
        ids
    }
}

#[test]
fn a_killed_agent_leaves_everything_and_its_successor_changes_no_id() {
    let rig = Rig::new();
    let first = rig.start();
    let (links, ids) = (rig.links(), rig.ids());
    assert_eq!(links.len(), 2 + program::CONNECT.len(), "{links:?}");
    assert!(ids.iter().all(|(_, _, owners)| owners.iter().all(|id| *id != BackendId::NONE)));

    first.kill().unwrap();
    assert!(rig.has_xdp());
    assert_eq!((rig.links(), rig.ids()), (links.clone(), ids.clone()));

    let second = rig.start();
    assert_eq!((rig.links(), rig.ids()), (links.clone(), ids.clone()));
    second.signal(Signal::SIGTERM).unwrap();
    assert!(second.wait(SOON).unwrap().is_some_and(|status| status.success()));
    assert!(rig.has_xdp());
    assert_eq!((rig.links(), rig.ids()), (links, ids));
}

#[test]
fn a_second_agent_is_refused_while_the_first_runs() {
    let rig = Rig::new();
    let first = rig.start();
    let said = rig.refused();
    assert!(said.contains("another agent runs with pin folder"), "{said}");
    assert!(first.is_running().unwrap());
}

#[test]
fn a_program_of_others_on_the_uplink_is_named_and_stays() {
    let rig = Rig::new();
    let gate = rig.node().run(|| Gate::attach(UPLINK)).unwrap();
    let said = rig.refused();
    assert!(said.contains("has an XDP program of somebody else: lab_gate"), "{said}");
    assert!(rig.has_xdp());
    drop(gate);
    rig.start();
}

#[test]
fn other_limits_are_refused_with_the_map_that_differs() {
    let rig = Rig::new();
    let first = rig.start();
    let ids = rig.ids();
    first.kill().unwrap();
    rig.configure("backends: 100");
    let said = rig.refused();
    let expected = "map BACKENDS: number of entries is 8192, expected 100";
    assert!(said.contains(expected) && said.contains("--cleanup"), "{said}");
    assert_eq!(rig.ids(), ids);
    assert!(rig.has_xdp());
}

impl Rig {
    fn checkpoint(&self) -> PathBuf {
        self.node().dir().join("checkpoint")
    }

    fn status(&self) -> Option<AgentStatus> {
        AgentStatus::read(&self.node().dir()).ok().flatten()
    }

    /// Waits until the agent that was started last says this.
    fn says(&self, what: &str, is_so: impl Fn(&AgentStatus) -> bool) {
        eventually(what, SOON, || self.status().is_some_and(|it| is_so(&it)));
    }

    /// Ports of the frontends in force.
    fn serves(&self, port: u16) {
        let all = |it: &AgentStatus| it.frontends.iter().all(|frontend| frontend.port == port);
        self.says("the port is served", |it| it.frontends.len() == 2 && all(it));
    }

    /// Rewrites the configuration.
    fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.config()).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(self.config(), text.replace(from, to)).unwrap();
    }

    /// Runs an agent until it has proved the configuration good, and ends it roughly.
    fn prove(&self, checkpoints: usize) {
        let agent = self.start();
        eventually("checkpoints are written", SOON, || {
            let files = ["checkpoint", "checkpoint.previous"];
            files.iter().filter(|it| self.node().dir().join(it).exists()).count() == checkpoints
        });
        agent.kill().unwrap();
    }
}

#[test]
fn an_agent_with_a_bad_file_serves_from_its_checkpoint_until_the_file_is_mended() {
    let rig = Rig::new();
    rig.prove(1);
    let (good, ids) = (fs::read_to_string(rig.config()).unwrap(), rig.ids());
    fs::write(rig.config(), "kind: nonsense").unwrap();
    let agent = rig.start();
    assert_eq!(rig.ids(), ids);
    rig.says("it says that its view is stale", |it| {
        it.stale.as_ref().is_some_and(|stale| stale.checkpoint == rig.checkpoint())
            && it.config_error.as_ref().is_some_and(|error| error.contains("nonsense"))
    });
    fs::write(rig.config(), good.replace("port: 80,", "port: 81,")).unwrap();
    rig.serves(81);
    rig.says("its view is not stale", |it| it.stale.is_none() && it.config_error.is_none());
    agent.kill().unwrap();
    fs::remove_file(rig.config()).unwrap();
    let _agent = rig.start();
    rig.says("a file that is missing is told of", |it| {
        it.stale.as_ref().is_some_and(|stale| stale.why.contains("weir.yaml cannot be used"))
    });
}

#[test]
fn a_checkpoint_that_is_damaged_is_set_aside_and_the_previous_one_serves() {
    let rig = Rig::new();
    rig.prove(1);
    rig.edit("port: 80,", "port: 81,");
    rig.prove(2);
    fs::write(rig.config(), "kind: nonsense").unwrap();
    let whole = fs::read(rig.checkpoint()).unwrap();
    fs::write(rig.checkpoint(), &whole[..whole.len() - 1]).unwrap();
    let agent = rig.start();
    rig.serves(80);
    rig.says("what was set aside is told of", |it| {
        it.problems.iter().any(|problem| problem.message.contains("checkpoint.set-aside"))
    });
    assert_eq!(
        fs::read(rig.node().dir().join("checkpoint.set-aside")).unwrap().len(),
        whole.len() - 1
    );
    agent.kill().unwrap();

    // Nothing is left to start with.
    for file in ["checkpoint", "checkpoint.previous"] {
        let _ = fs::write(rig.node().dir().join(file), "");
    }
    let said = rig.refused();
    assert!(said.contains("nonsense") && said.contains("no checkpoint of one in"), "{said}");
    assert!(rig.has_xdp(), "the data plane goes on");
}

#[test]
fn what_crashed_an_agent_three_times_waits_until_somebody_insists() {
    let rig = Rig::new();
    rig.prove(1);
    rig.edit("port: 80,", "port: 81,");
    for _ in 0..3 {
        rig.start().kill().unwrap();
    }
    let agent = rig.start();
    rig.says("it says why", |it| {
        it.stale.as_ref().is_some_and(|stale| stale.why.contains("crashed with, 3 times"))
    });
    rig.serves(80);
    agent.signal(Signal::SIGHUP).unwrap();
    rig.serves(81);
    rig.says("its view is not stale", |it| it.stale.is_none());
}

#[test]
fn an_agent_that_is_killed_twenty_times_keeps_what_proved_good() {
    let rig = Rig::new();
    rig.prove(1);
    let ids = rig.ids();
    for _ in 0..20 {
        let agent = rig.start();
        assert_eq!(rig.ids(), ids);
        agent.kill().unwrap();
    }
    let _agent = rig.start();
    rig.says("it serves the file", |it| it.stale.is_none() && it.config_error.is_none());
}

/// As if a weir of another layout had made what is pinned.
fn rename_layout(rig: &Rig, name: &str) -> PathBuf {
    let maps = rig.pins().join(name);
    fs::rename(rig.pins().join(format!("v{LAYOUT_VERSION}")), &maps).unwrap();
    maps.join("maps")
}

#[test]
fn another_layout_of_the_same_forms_is_taken_over_with_all_ids_and_maps() {
    let rig = Rig::new();
    let map_id = |rig: &Rig| {
        let maps = rig.pins().join(format!("v{LAYOUT_VERSION}/maps"));
        MapInfo::from_pin(maps.join(map::ESTABLISHED)).unwrap().id()
    };
    rig.start().kill().unwrap();
    let (links, ids, established) = (rig.links(), rig.ids(), map_id(&rig));
    rename_layout(&rig, "v9");
    let second = rig.start();
    let forgotten = || fs::read_dir(rig.pins()).unwrap().count() == 2;
    eventually("the former layout is forgotten", SOON, forgotten);
    assert_eq!((rig.links(), rig.ids(), map_id(&rig)), (links.clone(), ids.clone(), established));
    second.kill().unwrap();
    // As a take-over that died between its two renames leaves it.
    rename_layout(&rig, "former-v9");
    rig.start();
    eventually("the former layout is forgotten", SOON, forgotten);
    assert_eq!((rig.links(), rig.ids(), map_id(&rig)), (links, ids, established));
}

#[test]
fn a_layout_that_cannot_be_taken_over_is_named_and_serves_on() {
    let rig = Rig::new();
    rig.start().kill().unwrap();
    let maps = rename_layout(&rig, "v9");
    fs::remove_file(maps.join(map::ESTABLISHED)).unwrap();
    let other = MapData::from_pin(maps.join(map::FRONTENDS)).unwrap();
    other.pin(maps.join(map::ESTABLISHED)).unwrap();
    let links = rig.links();
    let said = rig.refused();
    let expected = "layout 9: map ESTABLISHED: type is Hash, expected LruHash";
    assert!(said.contains(expected) && said.contains("--cleanup"), "{said}");
    assert!(rig.has_xdp());
    assert_eq!((rig.links(), maps.join(map::FRONTENDS).exists()), (links, true));
}

#[test]
fn cleanup_leaves_nothing_behind_but_what_is_not_weirs() {
    let rig = Rig::new();
    let agent = rig.start();
    let proxies = || {
        let output = rig.node().command("ip").args(["-6", "neigh", "show", "proxy"]).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    eventually("the VIP has a proxy entry", SOON, || !proxies().is_empty());
    agent.kill().unwrap();
    // As a take-over that died leaves it.
    let maps = rename_layout(&rig, "former-v9");
    fs::create_dir(rig.pins().join("next")).unwrap();
    let foreign = [rig.pins().join("links/other"), rig.pins().join("other")];
    let of_others = MapData::from_pin(maps.join(map::FRONTENDS)).unwrap();
    foreign.iter().for_each(|path| of_others.pin(path).unwrap());

    let cleaned = rig.agent().arg("--cleanup").output().unwrap();
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert!(!rig.has_xdp());
    assert_eq!(proxies(), "");
    let left = |name: &str| rig.node().dir().join(name).exists();
    assert!(!left("agent.sock") && !left("status.json"));
    for path in &foreign {
        fs::remove_file(path).expect("cleanup leaves what is not weir's");
    }
    let again = rig.agent().arg("--cleanup").output().unwrap();
    assert!(again.status.success(), "{again:?}");
    assert!(!rig.pins().exists());
    rig.start();
}
