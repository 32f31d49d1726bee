//! Agents are killed, upgraded to a weir with another layout of its maps, and downgraded, while connections live and datagrams
//! flow: nothing breaks, nothing is lost. Needs root, `WEIR_BIN` and `WEIR_NEXT_BIN`.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    abi::{LAYOUT_VERSION, map},
    arrival::{Arrival, ArrivalKey},
    backend::BackendId,
    net::{Addr, Port},
};
use lb_tests::{
    fleet::{BINARY, Fleet, NEXT_BINARY, SOON, frontend, members, pin_dir, tcp_check},
    lab::{Host, Lab, Node, eventually},
    pins::Pins,
    traffic::{
        Server,
        http::{Connection, HttpServer},
        udp::{self, Flow},
    },
};
use weir::{
    dataplane::load::{Loaded, load},
    model::Limits,
};

/// For one answer: far beyond what a machine that is busy needs.
const ANSWER: Duration = Duration::from_secs(10);
const WEB: u16 = 80;
const ECHO: u16 = 7777;
/// Connections to each VIP that are used all the time, and those that are not before the end.
const ACTIVE: usize = 12;
const IDLE: usize = 12;
const DATAGRAM: usize = 200;
/// Rounds of all flows between two events.
const ROUNDS: u64 = 5;

/// Two nodes with a pod each; every pod serves TCP and UDP.
struct Site {
    lab: Lab,
    _servers: Vec<(HttpServer, Server)>,
}

impl Site {
    fn new() -> Self {
        let lab = Lab::builder().nodes(2, 1).client("client").build().expect("a lab (needs root)");
        let serve = |node: &Node| {
            let pod = &node.pods()[0];
            let web = HttpServer::start(pod, node.name(), WEB).unwrap();
            (web, udp::serve(pod, node.name(), ECHO).unwrap())
        };
        let servers = lab.nodes().iter().map(serve).collect();
        Self { lab, _servers: servers }
    }

    fn fleet(&self) -> Fleet<'_> {
        let pool = members(self.lab.nodes().iter().map(|node| (&node.pods()[0], &**node)));
        let vips = Lab::vips(0);
        // Were the ranges lost on the way, all flows would be dropped until the agent has written them again.
        let [v4, v6] = self.client().addresses();
        let check = format!("{}\nsourceRanges: [{v4}/32, \"{v6}/128\"]\n", tcp_check(WEB, 100));
        let web = frontend("web", &vips, &["80"], &pool, &check);
        let echo = frontend("echo", &vips, &["7777/UDP"], &pool, &check);
        Fleet::start(&self.lab, &(web + &echo)).unwrap()
    }

    fn client(&self) -> &Host {
        &self.lab.clients()[0]
    }

    fn connect(&self, count: usize) -> Vec<(String, Connection)> {
        let open = |vip| {
            let mut connection = Connection::open(SocketAddr::new(vip, WEB), ANSWER).unwrap();
            (connection.get(ANSWER).unwrap().server, connection)
        };
        let vips = || Lab::vips(0).into_iter().flat_map(|vip| std::iter::repeat_n(vip, count));
        self.client().run(|| vips().map(open).collect())
    }

    fn flows(&self) -> Vec<(String, Flow)> {
        let open = |vip| {
            let mut flow = Flow::open(SocketAddr::new(vip, ECHO)).unwrap();
            (flow.echo(DATAGRAM, ANSWER).unwrap(), flow)
        };
        let vips = || Lab::vips(0).into_iter().flat_map(|vip| std::iter::repeat_n(vip, ACTIVE));
        self.client().run(|| vips().map(open).collect())
    }

    /// Runs `work` while all flows are used, one after the other, and a connection is made in each round, which is then
    /// used too. Every segment and every datagram must get its answer from the server that had the flow from the start.
    fn live_through(&self, work: impl FnOnce(&dyn Fn())) {
        let mut idle = self.connect(IDLE);
        let (ended, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            let client = scope.spawn(|| {
                self.client().run(|| {
                    let mut connections = self.connect(ACTIVE);
                    let mut flows = self.flows();
                    while !ended.load(Ordering::Relaxed) {
                        connections.iter_mut().for_each(answers);
                        for (name, flow) in &mut flows {
                            assert_eq!(flow.echo(DATAGRAM, ANSWER).as_ref(), Ok(&*name));
                        }
                        connections.extend(self.connect(1));
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                });
                connections_made(&rounds)
            });
            let end = End(&ended);
            let go_on = || {
                let enough = rounds.load(Ordering::Relaxed) + ROUNDS;
                eventually("all flows go on", 4 * SOON, || {
                    assert!(!client.is_finished(), "a flow broke");
                    rounds.load(Ordering::Relaxed) >= enough
                });
            };
            go_on();
            work(&go_on);
            go_on();
            drop(end);
            println!("{} connections were made meanwhile", client.join().expect("no flow breaks"));
        });
        self.client().run(|| idle.iter_mut().for_each(answers));
    }
}

fn connections_made(rounds: &AtomicU64) -> u64 {
    rounds.load(Ordering::Relaxed) * Lab::vips(0).len() as u64
}

fn answers((name, connection): &mut (String, Connection)) {
    let answer = connection.get(ANSWER).map(|answer| answer.server);
    assert_eq!(answer.as_ref(), Ok(&*name));
}

/// Ends the client also when the work panics.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// All counters of a node by name.
fn counters(fleet: &Fleet<'_>, node: &Host) -> BTreeMap<String, u64> {
    let answer = fleet.ask(node, &["counters"]).unwrap();
    let counters = answer["counters"].as_array().unwrap().iter();
    counters
        .map(|counter| {
            (counter["name"].as_str().unwrap().to_owned(), counter["packets"].as_u64().unwrap())
        })
        .collect()
}

/// What stands in a node's pin folder.
fn folders(node: &Host) -> Vec<String> {
    let entries = fs::read_dir(pin_dir(node)).unwrap().map(Result::unwrap);
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn no_flow_breaks_and_no_datagram_is_lost_when_agents_are_killed_again_and_again() {
    let site = Site::new();
    let fleet = site.fleet();
    site.live_through(|go_on| {
        for _ in 0..5 {
            for node in site.lab.nodes() {
                fleet.kill_agent(node).unwrap();
                go_on();
                fleet.start_agent(node).unwrap();
            }
            fleet.wait_ready();
        }
    });
}

#[test]
fn no_flow_breaks_when_agents_are_upgraded_and_downgraded_to_other_layouts() {
    let site = Site::new();
    let fleet = site.fleet();
    let before: Vec<_> = site.lab.nodes().iter().map(|node| folders(node)).collect();
    site.live_through(|go_on| {
        for binary in [NEXT_BINARY, BINARY].repeat(3) {
            for node in site.lab.nodes() {
                let counted = counters(&fleet, node);
                fleet.kill_agent(node).unwrap();
                go_on();
                fleet.install(node, binary).unwrap();
                fleet.start_agent(node).unwrap();
                fleet.wait_attached(node);
                for (name, now) in counters(&fleet, node) {
                    assert!(now >= counted[&name], "{name}: {} and then {now}", counted[&name]);
                }
                assert_eq!(folders(node).len(), 2, "{:?}", folders(node));
            }
            fleet.wait_ready();
        }
    });
    let after: Vec<_> = site.lab.nodes().iter().map(|node| folders(node)).collect();
    assert_eq!(after, before);
}

#[test]
fn a_take_over_that_is_killed_at_any_moment_loses_nothing() {
    let site = Site::new();
    let fleet = site.fleet();
    let node = site.lab.node("node-1");
    site.live_through(|go_on| {
        fleet.kill_agent(node).unwrap();
        for (step, binary) in [NEXT_BINARY, BINARY, BINARY].iter().cycle().take(24).enumerate() {
            fleet.install(node, binary).unwrap();
            let agent = fleet.start_agent(node).unwrap();
            // Not a wait for anything: the moment of death is what is varied.
            thread::sleep(Duration::from_millis(25) * step as u32);
            agent.kill().unwrap();
            go_on();
        }
        fleet.start_agent(node).unwrap();
        fleet.wait_ready();
    });
    assert_eq!(folders(node).len(), 2, "{:?}", folders(node));
}

/// A quarter million flows, of which none may be missing, wrong, or twice.
#[test]
fn all_flows_of_a_full_map_are_moved_and_the_former_layout_goes() {
    let pins = Pins::private().unwrap();
    let pin_dir = pins.dir("weir");
    let limits = Limits::default();
    let flows = limits.established * 9 / 10;
    let load = |limits: &Limits| load(&pin_dir, limits, &Default::default()).unwrap();
    let maps = pin_dir.join(format!("v{LAYOUT_VERSION}"));
    let established = || {
        let data = MapData::from_pin(maps.join("maps").join(map::ESTABLISHED)).unwrap();
        let map = Map::from_map_data(data).unwrap();
        HashMap::<_, ArrivalKey, Arrival>::try_from(map).unwrap()
    };
    let flow = |number: u32| {
        let client = Addr::from_halves([0, u64::from(number)]);
        let key = ArrivalKey::new(client, Port::new(80), BackendId::new(1, 1));
        (key, Arrival { service: number, ..Default::default() })
    };
    drop(load(&limits));
    let mut before = established();
    for (key, arrival) in (0..flows).map(flow) {
        before.insert(key, arrival, 0).unwrap();
    }
    fs::rename(&maps, pin_dir.join("v9")).unwrap();
    // Of another number of entries, so it is not the same map.
    let (mut loaded, _) = load(&Limits { established: limits.established + 1, ..limits });
    assert_eq!(established().keys().count(), 0);
    let start = Instant::now();
    let (_loaded, former): (Loaded, _) = loaded.take_former().expect("a former").settle().unwrap();
    println!("{flows} flows were moved within {:?}", start.elapsed());
    former.forget().unwrap();
    assert_eq!(before.keys().count(), 0);
    let after: BTreeMap<_, _> = established().iter().map(Result::unwrap).map(number).collect();
    assert!((0..flows).eq(after.keys().copied()), "{} flows are left", after.len());
    assert!(after.iter().all(|(number, arrival)| arrival == &flow(*number).1));
    assert_eq!(fs::read_dir(&pin_dir).unwrap().count(), 2);
}

fn number((key, arrival): (ArrivalKey, Arrival)) -> (u32, Arrival) {
    (key.client.halves()[1] as u32, arrival)
}
