//! Nodes that notice each other: cuts, hand-overs, drains and strangers, while clients are served. Needs root and `WEIR_BIN`.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use lb_tests::{
    fleet::{Fleet, SOON, family, frontend, members, tcp_check},
    lab::{Host, Lab, Node, eventually},
    traffic::{
        Failure,
        http::{self, HttpServer},
        under_load,
    },
};
use nix::sys::signal::Signal;
use serde_json::Value;

const ANSWER: Duration = Duration::from_secs(5);
const WEB: u16 = 80;
/// VIPs of each family: enough that every node is likely to announce one.
const VIPS: u8 = 6;
/// A mute node's VIPs move after 5 s.
const MUTE_MOVES: Duration = Duration::from_secs(30);
/// Short, so that tests need not wait for what they do not look at.
const HOLD_DOWNS: &str = "holdDowns: {backends: 500ms, vips: 1s}";

/// Three nodes with a pod each; every pod serves.
struct Site {
    lab: Lab,
    servers: Vec<HttpServer>,
}

impl Site {
    fn new() -> Self {
        let lab = Lab::builder().nodes(3, 1).client("client").build().expect("a lab (needs root)");
        let serve = |node: &Node| HttpServer::start(&node.pods()[0], node.name(), WEB).unwrap();
        let servers = lab.nodes().iter().map(serve).collect();
        Self { lab, servers }
    }

    fn node(&self, at: usize) -> &Node {
        &self.lab.nodes()[at]
    }

    fn fleet(&self, agent: &str) -> Fleet<'_> {
        let fleet = self.prepare(agent);
        self.lab.nodes().iter().for_each(|node| drop(fleet.start_agent(node).unwrap()));
        fleet.wait_ready();
        fleet
    }

    fn prepare(&self, agent: &str) -> Fleet<'_> {
        let pool = members(self.lab.nodes().iter().map(|node| (&node.pods()[0], &**node)));
        let web = frontend("web", &self.vips(), &["80"], &pool, &tcp_check(WEB, 100));
        Fleet::prepare_with(&self.lab, agent, &web).unwrap()
    }

    fn vips(&self) -> Vec<IpAddr> {
        (0..VIPS).flat_map(Lab::vips).collect()
    }

    fn get(&self, vip: IpAddr) -> Result<String, Failure> {
        let to = SocketAddr::new(vip, WEB);
        self.lab.clients()[0].run(|| http::get(to, ANSWER)).server().map(str::to_owned)
    }

    /// Runs `work` while requests go to all VIPs, one after the other, and returns how they failed.
    fn under_load(&self, work: impl FnOnce()) -> Vec<Failure> {
        under_load(&self.vips(), |vip| self.get(vip).err(), work)
    }

    /// The VIPs that a node announces.
    fn announced(&self, fleet: &Fleet<'_>, node: &Host) -> Vec<IpAddr> {
        self.vips().into_iter().filter(|vip| fleet.announces(node, *vip)).collect()
    }

    /// Whether just one of `nodes` announces each VIP.
    fn one_announcer(&self, fleet: &Fleet<'_>, nodes: &[&Node]) -> bool {
        let counts = |vip: &IpAddr| nodes.iter().filter(|node| fleet.announces(node, *vip)).count();
        self.vips().iter().all(|vip| counts(vip) == 1)
    }
}

/// A node as another sees it.
fn member(fleet: &Fleet<'_>, observer: &Host, of: &Host) -> Value {
    let answer = fleet.ask(observer, &["members"]).unwrap_or_default();
    let members = answer["members"].as_array().cloned().unwrap_or_default();
    members.into_iter().find(|member| member["node"] == of.name()).unwrap_or_default()
}

fn life(fleet: &Fleet<'_>, observer: &Host, of: &Host) -> String {
    member(fleet, observer, of)["life"].as_str().unwrap_or_default().to_owned()
}

fn nft(node: &Host, arguments: &str) {
    let mut command: Command = node.command("nft");
    let output = command.args(arguments.split(' ')).output().expect("nft runs");
    assert!(output.status.success(), "{arguments}: {output:?}");
}

/// Loses what `from` sends its own way to `to`, or lets it through again: probes and gossip, not what XDP sends.
fn cut(from: &Host, to: &Host) {
    nft(from, "add table inet cut");
    nft(from, "add chain inet cut output { type filter hook output priority 0 ; }");
    nft(from, &format!("add rule inet cut output ip daddr {} drop", to.v4()));
    nft(from, &format!("add rule inet cut output ip6 daddr {} drop", to.v6()));
}

fn mend(from: &Host) {
    nft(from, "delete table inet cut");
}

#[test]
fn what_one_node_alone_does_not_reach_lives_and_the_other_announces() {
    let site = Site::new();
    let fleet = site.fleet(HOLD_DOWNS);
    let [a, b, c] = [0, 1, 2].map(|at| site.node(at));
    let failures = site.under_load(|| {
        cut(a, b);
        eventually("it says so", SOON, || {
            let unreachable = member(&fleet, c, a)["unreachable"].clone();
            unreachable.as_array().is_some_and(|names| names.iter().any(|it| *it == b.name()))
        });
        eventually("it gave its VIPs to who reaches all", SOON, || {
            site.announced(&fleet, a).is_empty() && site.one_announcer(&fleet, &[b, c])
        });
    });
    assert_eq!(failures, []);
    for observer in [a, b, c] {
        assert!([a, b, c].iter().all(|of| life(&fleet, observer, of) == "alive"));
    }
    mend(a);
    fleet.wait_ready();
}

#[test]
fn a_node_that_hears_nobody_and_no_gateway_keeps_what_it_has_and_comes_back_in_order() {
    let site = Site::new();
    let fleet = site.fleet(HOLD_DOWNS);
    let (cut_off, others) = (site.node(0), [site.node(1), site.node(2)]);
    let before = site.announced(&fleet, cut_off);
    cut_off.unplug().unwrap();
    eventually("the others have all VIPs", SOON, || site.one_announcer(&fleet, &others));
    eventually("it knows that the fault is its own", SOON, || {
        fleet.ask(cut_off, &["status"]).is_ok_and(|status| status["isolated"] == true)
    });
    assert_eq!(site.announced(&fleet, cut_off), before);
    assert!(others.iter().all(|other| life(&fleet, other, cut_off) == "dead"));
    assert!(others.iter().all(|other| life(&fleet, cut_off, other) == "alive"));
    let vips = site.vips();
    let served = |vip: &IpAddr| site.get(*vip).is_ok_and(|name| name != cut_off.name());
    eventually("all VIPs are served", SOON, || vips.iter().all(served));

    let failures = site.under_load(|| {
        cut_off.plug().unwrap();
        fleet.wait_ready();
    });
    assert_eq!(failures, []);
    assert!(others.iter().all(|other| member(&fleet, other, cut_off)["deaths"] == 1));
}

#[test]
fn an_agent_that_is_asked_to_end_hands_over_first() {
    let site = Site::new();
    let fleet = site.fleet(HOLD_DOWNS);
    let (ends, others) = (site.node(0), [site.node(1), site.node(2)]);
    let failures = site.under_load(|| {
        fleet.stop_agent(ends).unwrap();
        assert_eq!(site.announced(&fleet, ends), Vec::<IpAddr>::new());
        eventually("the others have all VIPs", SOON, || site.one_announcer(&fleet, &others));
    });
    assert_eq!(failures, []);
    let failures = site.under_load(|| {
        fleet.start_agent(ends).unwrap();
        fleet.wait_ready();
    });
    assert_eq!(failures, []);
}

#[test]
fn a_stopped_agent_loses_its_vips_and_its_node_still_serves() {
    let site = Site::new();
    let fleet = site.fleet(HOLD_DOWNS);
    let (stopped, others) = (site.node(0), [site.node(1), site.node(2)]);
    assert!(!site.announced(&fleet, stopped).is_empty(), "of {VIPS} VIPs one at least");
    let failures = site.under_load(|| {
        fleet.agent(stopped).signal(Signal::SIGSTOP).unwrap();
        eventually("the others have all VIPs", MUTE_MOVES, || site.one_announcer(&fleet, &others));
    });
    assert_eq!(failures, []);
    assert!(others.iter().all(|other| life(&fleet, other, stopped) == "mute"));
    let owners = fleet.owners(others[0], SocketAddr::new(site.vips()[0], WEB));
    assert_eq!(owners.len(), 3, "its backend stays");
    assert!(fleet.count(stopped, "yield_taken") > 0, "its data plane gave way");

    let failures = site.under_load(|| {
        fleet.agent(stopped).signal(Signal::SIGCONT).unwrap();
        fleet.wait_ready();
    });
    assert_eq!(failures, []);
}

#[test]
fn a_drained_node_announces_nothing_until_it_is_undrained() {
    let site = Site::new();
    let fleet = site.fleet(HOLD_DOWNS);
    let [a, b, c] = [0, 1, 2].map(|at| site.node(at));
    let failures = site.under_load(|| {
        // Any node takes the order.
        let done = fleet.weir(c, &["drain", "node", a.name(), "--forwarding"]).unwrap();
        assert!(done.status.success(), "{done:?}");
        eventually("the others have all VIPs", SOON, || {
            site.announced(&fleet, a).is_empty() && site.one_announcer(&fleet, &[b, c])
        });
    });
    assert_eq!(failures, []);
    assert_eq!(member(&fleet, b, a)["drained"], true);
    assert_eq!(member(&fleet, b, a)["serves"], true, "its backends stay");

    // The order outlives the agents.
    [a, b, c].iter().for_each(|node| fleet.kill_agent(node).unwrap());
    [a, b, c].iter().for_each(|node| drop(fleet.start_agent(node).unwrap()));
    fleet.wait_ready();
    // While no other agent was there, it may have taken what nobody else had.
    eventually("it announces nothing", SOON, || {
        site.announced(&fleet, a).is_empty() && site.one_announcer(&fleet, &[b, c])
    });
    let wrong = fleet.weir(c, &["drain", "node", "nobody", "--forwarding"]).unwrap();
    assert!(!wrong.status.success() && !wrong.stderr.is_empty(), "{wrong:?}");

    let failures = site.under_load(|| {
        let done = fleet.weir(b, &["undrain", "node", a.name()]).unwrap();
        assert!(done.status.success(), "{done:?}");
        eventually("it announces again", SOON, || !site.announced(&fleet, a).is_empty());
        fleet.wait_ready();
    });
    assert_eq!(failures, []);
}

#[test]
fn drained_backends_own_nothing_on_any_node_until_they_are_undrained() {
    let site = Site::new();
    let fleet = site.fleet(HOLD_DOWNS);
    let [a, b, c] = [0, 1, 2].map(|at| site.node(at));
    let web = SocketAddr::new(site.vips()[0], WEB);
    let backend = |node: &Node| {
        let address = family(node.pods()[0].addresses(), web.ip());
        SocketAddr::new(address, WEB).to_string()
    };
    let owners = |expected: &[&Node]| {
        let mut expected: Vec<_> = expected.iter().map(|node| backend(node)).collect();
        expected.sort();
        eventually("all nodes have these owners", SOON, || {
            [a, b, c].iter().all(|node| {
                let mut owners: Vec<_> = fleet.owners(node, web).into_keys().collect();
                owners.sort();
                owners == expected
            })
        });
    };
    let order = |node: &Node, words: &[&str]| {
        let done = fleet.weir(node, words).unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).unwrap()
    };
    owners(&[a, b, c]);
    let failures = site.under_load(|| {
        order(c, &["drain", "backend", &backend(a)]);
        owners(&[b, c]);
        // An order outlives the agents.
        [a, b, c].iter().for_each(|node| fleet.kill_agent(node).unwrap());
        [a, b, c].iter().for_each(|node| drop(fleet.start_agent(node).unwrap()));
        fleet.wait_ready();
        owners(&[b, c]);
        order(a, &["drain", "node", b.name(), "--deadline", "1s"]);
        owners(&[c]);
        eventually("what is drained is told of everywhere", SOON, || {
            [a, b, c].iter().all(|node| {
                let drains = fleet.ask(node, &["status"]).unwrap()["drains"].clone();
                drains.as_array().is_some_and(|drains| drains.len() == 2)
            })
        });
        order(b, &["undrain", "node", b.name()]);
        owners(&[b, c]);
    });
    assert_eq!(failures, []);
    order(a, &["drain", "node", b.name()]);
    let said = order(a, &["drain", "node", c.name()]);
    assert!(said.contains("WARNING: no backend takes new flows any more"), "{said}");
    owners(&[]);
    for words in [["undrain", "node", b.name()], ["undrain", "node", c.name()]] {
        order(a, &words);
    }
    order(a, &["undrain", "backend", &backend(a)]);
    owners(&[a, b, c]);
}

#[test]
fn an_agent_with_another_key_is_counted_not_heard_and_harms_nobody() {
    let site = Site::new();
    let fleet = site.prepare("gossip: {key: the key of this whole fleet}");
    let stranger = site.prepare("gossip: {key: some other key of a stranger}");
    let [a, b, c] = [0, 1, 2].map(|at| site.node(at));
    fleet.start_agent(a).unwrap();
    fleet.start_agent(b).unwrap();
    stranger.start_agent(c).unwrap();
    eventually("data planes see each other", SOON, || {
        let all = [(a, b), (b, a), (a, c), (c, a), (b, c), (c, b)];
        all.iter().all(|(observer, of)| life(&fleet, observer, of) == "alive")
    });
    eventually("those with one key hear each other", SOON, || {
        member(&fleet, a, b)["heard"] == true && member(&fleet, b, a)["heard"] == true
    });
    eventually("the wrong key is counted", SOON, || {
        let status = fleet.ask(a, &["status"]).unwrap();
        status["gossip"]["wrong_key"].as_u64().is_some_and(|count| count > 0)
    });
    assert_eq!(member(&fleet, a, c)["heard"], false);
    assert_eq!(member(&fleet, c, a)["heard"], false);
    let vips = site.vips();
    eventually("every VIP is served", SOON, || vips.iter().all(|vip| site.get(*vip).is_ok()));
    let failures = site.under_load(|| {});
    assert_eq!(failures, []);
}

#[test]
fn a_backend_without_an_agent_is_watched_by_the_others() {
    let mut site = Site::new();
    let (gone, others) = (0, [1, 2]);
    let fleet = {
        // The site lends itself to the fleet, so the server that ends is taken out first.
        let server = site.servers.remove(gone);
        let fleet = site.fleet(HOLD_DOWNS);
        fleet.kill_agent(site.node(gone)).unwrap();
        for at in others {
            eventually("it is mute", SOON, || {
                life(&fleet, site.node(at), site.node(gone)) == "mute"
            });
        }
        drop(server);
        fleet
    };
    let frontend = SocketAddr::new(site.vips()[0], WEB);
    for at in others {
        eventually("its backend owns nothing", SOON, || {
            fleet.owners(site.node(at), frontend).len() == 2
        });
    }
}
