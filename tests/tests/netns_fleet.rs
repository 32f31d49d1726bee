//! Agents die, come back, are reconfigured and removed while clients are served: no client notices. Needs root and `WEIR_BIN`.
//!
//! What a single agent refuses and leaves behind is in `netns_agent.rs`.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    maps::MapInfo,
    programs::links::{FdLink, PinnedLink},
};
use lb_tests::{
    fleet::{Fleet, SOON, frontend, members, pin_dir, tcp_check},
    lab::{Host, Lab, Node, UPLINK, XdpAttached, eventually},
    traffic::{
        Failure,
        http::{self, Connection, HttpServer},
        under_load,
    },
};
use serde_json::Value;

const ANSWER: Duration = Duration::from_secs(5);
const WEB: u16 = 80;
/// From which a client's connections take theirs.
const LOCAL_PORTS: &str = "net/ipv4/ip_local_port_range";
/// Requests that must have been served in a row, well or ill, before a phase of a test goes on.
const REQUESTS: usize = 60;

/// Two nodes with a pod each; every pod serves.
struct Site {
    lab: Lab,
    servers: Vec<HttpServer>,
}

impl Site {
    fn new() -> Self {
        let lab = Lab::builder().nodes(2, 1).client("client").build().expect("a lab (needs root)");
        let servers = lab
            .nodes()
            .iter()
            .map(|node| HttpServer::start(&node.pods()[0], node.name(), WEB).unwrap());
        let servers = servers.collect();
        Self { lab, servers }
    }

    fn node(&self, at: usize) -> &Node {
        &self.lab.nodes()[at]
    }

    fn client(&self) -> &Host {
        &self.lab.clients()[0]
    }

    /// A frontend over all pods on two VIPs of each family, so that every node is likely to announce some.
    fn web(&self) -> String {
        let pool = members(self.lab.nodes().iter().map(|node| (&node.pods()[0], &**node)));
        frontend("web", &self.vips(), &["80"], &pool, &tcp_check(WEB, 100))
    }

    fn vips(&self) -> Vec<IpAddr> {
        [Lab::vips(0), Lab::vips(1)].concat()
    }

    fn get(&self, vip: IpAddr, port: u16) -> Result<String, Failure> {
        let to = SocketAddr::new(vip, port);
        self.client().run(|| http::get(to, ANSWER)).server().map(str::to_owned)
    }

    /// Connections to every VIP, and who serves each. Their ports are no others': a connection from the
    /// same port to another VIP over the same backend would be a clash as long as these live.
    fn connect(&self) -> Vec<(String, Connection)> {
        self.client().sysctl(LOCAL_PORTS, "10000 19999").unwrap();
        let open = |vip: IpAddr| {
            self.client().run(|| {
                let mut connection = Connection::open(SocketAddr::new(vip, WEB), ANSWER).unwrap();
                (connection.get(ANSWER).unwrap().server, connection)
            })
        };
        let connections = self.vips().into_iter().cycle().take(12).map(open).collect();
        self.client().sysctl(LOCAL_PORTS, "20000 60999").unwrap();
        connections
    }

    fn all_live(&self, connections: &mut [(String, Connection)]) {
        for (name, connection) in connections {
            let answer = self.client().run(|| connection.get(ANSWER));
            assert_eq!(answer.map(|answer| answer.server).as_ref(), Ok(&*name));
        }
    }

    /// Runs `work` while requests go to all VIPs, one after the other, and returns how they failed.
    fn under_load(&self, work: impl FnOnce()) -> Vec<Failure> {
        under_load(&self.vips(), |vip| self.get(vip, WEB).err(), work)
    }
}

/// The kernel's ids of what a node has pinned, by the pin's name.
fn pinned(node: &Host) -> BTreeMap<String, u32> {
    let mut ids = BTreeMap::new();
    let root = pin_dir(node);
    for path in files(&root) {
        let id = match MapInfo::from_pin(&path) {
            Ok(map) => map.id(),
            Err(_) => FdLink::from(PinnedLink::from_pin(&path).unwrap()).info().unwrap().id(),
        };
        ids.insert(path.strip_prefix(&root).unwrap().display().to_string(), id);
    }
    ids
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let below = |entry: fs::DirEntry| match entry.file_type().unwrap().is_dir() {
        true => files(&entry.path()),
        false => vec![entry.path()],
    };
    entries.flat_map(below).collect()
}

fn status_holds(fleet: &Fleet<'_>, node: &Host, holds: impl Fn(&Value) -> bool) -> bool {
    fleet.ask(node, &["status"]).is_ok_and(|status| holds(&status))
}

#[test]
fn agents_killed_and_started_again_are_no_event_for_clients() {
    let site = Site::new();
    let fleet = Fleet::start(&site.lab, &site.web()).unwrap();
    let nodes = site.lab.nodes();
    let mut connections = site.connect();
    let ids = |fleet: &Fleet<'_>| {
        let backends = nodes.iter().map(|node| {
            let answer = fleet.ask(node, &["backends"]).unwrap();
            let backends = answer["backends"].as_array().unwrap().clone();
            backends
                .into_iter()
                .map(|b| (b["address"].to_string(), b["id"].to_string()))
                .collect::<BTreeMap<_, _>>()
        });
        (nodes.iter().map(|node| pinned(node)).collect::<Vec<_>>(), backends.collect::<Vec<_>>())
    };
    let before = ids(&fleet);
    nodes.iter().for_each(|node| preflight_knows_its_own(&fleet, node));
    let links = before.0[0].keys().filter(|name| name.starts_with("links/")).count();
    assert!(links >= 1 && before.0[0].len() > links + 10, "{:?}", before.0[0]);
    assert!(before.1.iter().all(|backends| backends.len() == 4), "{:?}", before.1);

    let failures =
        site.under_load(|| nodes.iter().for_each(|node| fleet.kill_agent(node).unwrap()));
    assert_eq!(failures, []);
    site.all_live(&mut connections);
    commands_work_without_an_agent(&site, &fleet, &connections);

    let failures = site.under_load(|| {
        for node in nodes {
            fleet.start_agent(node).unwrap();
        }
        fleet.wait_ready();
    });
    assert_eq!(failures, []);
    assert_eq!(ids(&fleet), before);
    site.all_live(&mut connections);

    // An end that was asked for is no event either.
    let failures =
        site.under_load(|| nodes.iter().for_each(|node| fleet.stop_agent(node).unwrap()));
    assert_eq!(failures, []);
    site.all_live(&mut connections);
}

/// `weir check` where weir serves: the machine may lack this or that, but the lab has what these look at.
fn preflight_knows_its_own(fleet: &Fleet<'_>, node: &Host) {
    let config = fleet.config();
    let config = config.to_str().unwrap();
    let arguments = ["check", "--config", config, "--node", node.name(), "-o", "json"];
    let output = fleet.weir(node, &arguments).unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = answer["findings"].as_array().unwrap();
    for check in ["config", "bpffs", "ip_forward", "ip6_forward", "link", "rp_filter", "xdp", "tc"]
    {
        let found: Vec<_> = findings.iter().filter(|finding| finding["check"] == check).collect();
        assert!(
            !found.is_empty() && found.iter().all(|f| f["level"] == "ok"),
            "{check}: {found:?}"
        );
    }
}

fn commands_work_without_an_agent(
    site: &Site,
    fleet: &Fleet<'_>,
    connections: &[(String, Connection)],
) {
    let vips = site.vips();
    for node in site.lab.nodes() {
        let list = |command: &[&str], key: &str| {
            fleet.ask(node, command).unwrap()[key].as_array().unwrap().clone()
        };
        assert_eq!(list(&["vips"], "vips").len(), vips.len());
        assert_eq!(list(&["backends"], "backends").len(), 4);
        for vip in &vips {
            assert_eq!(
                fleet.owners(node, SocketAddr::new(*vip, WEB)).len(),
                2,
                "{vip} on {}",
                node.name()
            );
        }
        let known = list(&["arrivals", "--limit", "0"], "arrivals");
        for (server, connection) in connections {
            // One port of the client may lead to several VIPs.
            let client = connection.local_addr().unwrap().to_string();
            let vip = connection.peer_addr().unwrap().to_string();
            let here = known.iter().any(|arrival| {
                arrival["client"] == client
                    && arrival["map"] == "established"
                    && arrival["frontend"].as_str().is_some_and(|it| it.starts_with(&vip))
            });
            assert_eq!(here, server == node.name(), "{client}");
        }
        assert!(fleet.count(node, "returned") > 0);
        eventually("the agent counts as dead", SOON, || {
            status_holds(fleet, node, |status| {
                status["agent"]["alive"] == false && status["dataplane"]["vips"] == 4
            })
        });
        for command in ["vips", "backends", "arrivals", "counters", "status"] {
            let output = fleet.weir(node, &[command]).unwrap();
            assert!(output.status.success() && !output.stdout.is_empty(), "{command}: {output:?}");
        }
    }
}

#[test]
fn cleanup_leaves_nothing_and_the_others_serve_on() {
    let site = Site::new();
    let fleet = Fleet::start(&site.lab, &site.web()).unwrap();
    let (gone, other) = (site.node(0), site.node(1));
    assert_eq!(gone.xdp(UPLINK).unwrap(), XdpAttached::Driver);

    let busy = cleanup(&fleet, gone);
    assert!(!busy.0, "an agent runs: {}", busy.1);
    assert!(busy.1.contains("another agent runs"), "{}", busy.1);

    fleet.stop_agent(gone).unwrap();
    // A configuration that nobody can read keeps nothing on the node.
    let good = fs::read(fleet.config()).unwrap();
    fs::write(fleet.config(), "kind: nonsense").unwrap();
    let cleaned = cleanup(&fleet, gone);
    fs::write(fleet.config(), good).unwrap();
    assert!(cleaned.0 && cleaned.1.contains("cannot be used"), "{}", cleaned.1);
    assert_eq!(gone.xdp(UPLINK).unwrap(), XdpAttached::None);
    assert!(!pin_dir(gone).exists(), "{:?}", files(&pin_dir(gone)));
    let again = cleanup(&fleet, gone);
    assert!(again.0, "{}", again.1);
    let told = String::from_utf8(fleet.weir(gone, &["vips"]).unwrap().stderr).unwrap();
    assert!(told.contains("no agent ever ran"), "{told}");

    let vips = site.vips();
    eventually("the other node has all VIPs", SOON, || {
        vips.iter().all(|vip| fleet.announces(other, *vip))
    });
    let serves = |vip: &IpAddr| site.get(*vip, WEB).as_deref() == Ok(other.name());
    eventually("the other node's pod serves all", SOON, || vips.iter().all(serves));
    for _ in 0..REQUESTS / vips.len() {
        assert!(vips.iter().all(serves));
    }
    // The node itself is an ordinary host again.
    for address in gone.pods()[0].addresses() {
        assert_eq!(site.get(address, WEB).as_deref(), Ok(gone.name()));
    }
}

/// `weir agent --cleanup` on a node: whether it went well, and what it said.
fn cleanup(fleet: &Fleet<'_>, node: &Host) -> (bool, String) {
    let output = fleet.agent_command(node).arg("--cleanup").output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_bad_configuration_changes_nothing_and_a_good_one_applies_live() {
    let site = Site::new();
    let fleet = Fleet::start(&site.lab, &site.web()).unwrap();
    let nodes = site.lab.nodes();
    let vips = site.vips();
    let error_says = |what: &[&str]| {
        nodes.iter().all(|node| {
            status_holds(&fleet, node, |status| {
                status["agent"]["config_error"]
                    .as_str()
                    .is_some_and(|error| what.iter().all(|what| error.contains(what)))
            })
        })
    };
    let pool = members(nodes.iter().map(|node| (&node.pods()[0], &**node)));
    let failures = site.under_load(|| {
        // Three mistakes: all are told, each with its place.
        let bad = frontend("bad", &Lab::vips(2), &["0"], &pool, "color: blue")
            + &frontend("twin", &[vips[0]], &["80"], &pool, "");
        fleet.configure(&(site.web() + &bad)).unwrap();
        eventually("the file is refused by name", SOON, || {
            error_says(&["port", "color", "twin", "web"])
        });
    });
    assert_eq!(failures, []);
    for vip in Lab::vips(2) {
        assert!(nodes.iter().all(|node| !fleet.announces(node, vip)), "nothing half applied");
    }

    let more = frontend("more", &Lab::vips(2), &["8080"], &pool, "")
        .replace("port: 8080", "port: 8080, targetPort: 80");
    let serves = |vip: IpAddr, port| {
        site.client().run(|| {
            http::get(SocketAddr::new(vip, port), Duration::from_millis(500)).server().is_ok()
        })
    };
    let failures = site.under_load(|| {
        fleet.configure(&(site.web() + &more)).unwrap();
        eventually("the new frontend serves", SOON, || {
            Lab::vips(2).iter().all(|vip| serves(*vip, 8080))
        });
    });
    assert_eq!(failures, []);
    let without_error = |status: &Value| status["agent"]["config_error"].is_null();
    eventually("the error is forgotten", SOON, || {
        nodes.iter().all(|node| status_holds(&fleet, node, without_error))
    });

    // A frontend that goes takes only itself along.
    let moved = more.replace("port: 8080", "port: 8081");
    fleet.configure(&(site.web() + &moved)).unwrap();
    eventually("the frontend has moved", SOON, || {
        Lab::vips(2)
            .iter()
            .all(|vip| serves(*vip, 8081) && site.get(*vip, 8080) == Err(Failure::Refused))
    });
    assert!(vips.iter().all(|vip| site.get(*vip, WEB).is_ok()));
    assert_eq!(site.servers.len(), 2);
}
