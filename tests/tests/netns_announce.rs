//! What announcing needs of a real link: a gateway that is asked, other hosts that claim a VIP, agents that
//! hang. Needs root and `WEIR_BIN`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_tests::{
    fleet::{Fleet, SOON, frontend, members},
    lab::{Host, Lab, Node, UPLINK, default_route, eventually},
};
use nix::sys::signal::Signal;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use weir::{
    announce::{self, Uplink, gateway},
    model::{Card, CardInterface, MemberState, Members},
    netlink::{Interfaces, Netlink},
};

/// For what must come on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

fn runtime() -> Runtime {
    // One thread: sockets belong to the namespace of the thread that opens them.
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn interfaces(host: &Host) -> Interfaces {
    host.run(|| runtime().block_on(async { Netlink::open().unwrap().interfaces().await.unwrap() }))
}

fn mac(host: &Host) -> [u8; 6] {
    interfaces(host).by_name(UPLINK).unwrap().mac.unwrap()
}

/// Asks questions on a node, whose interfaces change while `work` runs.
fn asking(
    node: &Node,
    configured: Vec<IpAddr>,
    work: impl AsyncFnOnce(mpsc::Sender<oneshot::Sender<gateway::Answer>>) + Send,
) {
    let links = watch::Sender::new(Arc::new(interfaces(node)));
    node.run(|| {
        runtime().block_on(async {
            let (ask, questions) = mpsc::channel(1);
            tokio::select! {
                ended = gateway::run(configured, links.subscribe(), questions) => {
                    panic!("ended: {ended:?}")
                }
                () = work(ask) => {}
            }
        })
    });
}

/// The answer, and how long it took.
async fn ask(to: &mpsc::Sender<oneshot::Sender<gateway::Answer>>) -> (gateway::Answer, Duration) {
    let (reply, answer) = oneshot::channel();
    let start = Instant::now();
    to.send(reply).await.unwrap();
    (timeout(PATIENCE, answer).await.unwrap().unwrap(), start.elapsed())
}

#[test]
fn a_gateway_answers_until_the_cable_is_out_and_then_nobody_does() {
    let lab = Lab::builder().nodes(1, 0).client("client").build().unwrap();
    let (node, router) = (&lab.nodes()[0], lab.router());
    for configured in [vec![], vec![router.v4()], vec![router.v6()]] {
        asking(node, configured.clone(), async |to| {
            assert_eq!(ask(&to).await.0, Some(true), "{configured:?}");
            node.unplug().unwrap();
            let (answer, took) = ask(&to).await;
            assert_eq!(answer, Some(false), "{configured:?}");
            assert!(took >= Duration::from_millis(190), "{took:?}");
            node.plug().unwrap();
            let deadline = Instant::now() + PATIENCE;
            while ask(&to).await.0 != Some(true) {
                assert!(Instant::now() < deadline, "{configured:?}: no answer again");
            }
        });
    }
}

#[test]
fn a_gateway_whose_route_went_down_with_the_link_is_not_forgotten() {
    let lab = Lab::builder().nodes(1, 0).client("client").build().unwrap();
    let node = &lab.nodes()[0];
    asking(node, vec![], async |to| {
        assert_eq!(ask(&to).await.0, Some(true));
        let down = node.command("ip").args(["link", "set", UPLINK, "down"]).status();
        assert!(down.unwrap().success());
        assert_eq!(ask(&to).await.0, Some(false));
        assert_eq!(ask(&to).await.0, Some(false), "also when the routes have been read again");
    });
}

#[test]
fn without_default_routes_there_is_nobody_to_ask() {
    let lab = Lab::builder().nodes(1, 0).build().unwrap();
    let node = &lab.nodes()[0];
    for like in node.addresses() {
        node.unroute(default_route(like)).unwrap();
    }
    asking(node, vec![], async |to| assert_eq!(ask(&to).await.0, None));
    let nobody = "10.0.0.99".parse().unwrap();
    asking(node, vec![nobody], async |to| assert_eq!(ask(&to).await.0, Some(false)));
}

/// Looks for conflicts about VIPs that the first node announces, while `work` runs there.
fn watching(
    node: &Node,
    members: Members,
    vips: &[IpAddr],
    work: impl AsyncFnOnce(watch::Receiver<Arc<Vec<weir::model::Problem>>>) + Send,
) {
    let links = watch::Sender::new(Arc::new(interfaces(node)));
    let members = watch::Sender::new(Arc::new(members));
    let uplink =
        Uplink { name: UPLINK.into(), ifindex: node.index(UPLINK).unwrap(), mac: mac(node) };
    let announced: BTreeMap<_, _> = vips.iter().map(|vip| (*vip, uplink.clone())).collect();
    node.run(|| {
        runtime().block_on(async {
            let announced = watch::Sender::new(Arc::new(announced));
            let (problems, seen) = watch::channel(Arc::default());
            let watch = announce::watch::run(
                announced.subscribe(),
                links.subscribe(),
                members.subscribe(),
                problems,
            );
            tokio::select! {
                ended = watch => panic!("ended: {ended:?}"),
                () = work(seen) => {}
            }
        })
    });
}

#[test]
fn a_host_that_has_a_vip_is_reported_with_its_mac() {
    let lab = Lab::builder().nodes(2, 0).build().unwrap();
    let (one, two) = (&lab.nodes()[0], &lab.nodes()[1]);
    let vips = Lab::vips(3);
    for (vip, prefix) in vips.into_iter().zip([24, 64]) {
        two.add_address(UPLINK, (vip, prefix)).unwrap();
    }
    watching(one, Members::default(), &vips, async |mut seen| {
        let both = |problems: &Arc<Vec<weir::model::Problem>>| problems.len() == 2;
        let problems = timeout(PATIENCE, seen.wait_for(both)).await.unwrap().unwrap().clone();
        let [a, b, c, d, e, f] = mac(two);
        let shown = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} on {UPLINK}");
        for (problem, vip) in problems.iter().zip(vips) {
            assert_eq!(problem.object, format!("VIP/{vip}"));
            assert!(problem.message.contains(&shown), "{problem:?}");
        }
    });
}

#[test]
fn a_member_that_hands_over_is_no_conflict() {
    let lab = Lab::builder().nodes(2, 0).build().unwrap();
    let (one, two) = (&lab.nodes()[0], &lab.nodes()[1]);
    let vip = Lab::vips(3)[0];
    two.add_address(UPLINK, (vip, 24)).unwrap();
    let interface = CardInterface { name: UPLINK.into(), mac: mac(two), subnets: vec![] };
    let card = Card { interfaces: vec![interface], ..Card::default() };
    let state = MemberState { card: Some(Arc::new(card)), ..MemberState::default() };
    let nodes = [(two.name().to_owned(), state)].into();
    let members = Members { own: one.name().into(), nodes, ..Members::default() };
    let seen_by_two = two.capture(UPLINK).unwrap();
    watching(one, members, &[vip], async |seen| {
        let question = announce::frames::question(vip, one.v4(), mac(one)).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !seen_by_two.frames().iter().any(|frame| frame.bytes.starts_with(&question)) {
            assert!(Instant::now() < deadline, "not asked");
            sleep(Duration::from_millis(10)).await;
        }
        // Long enough for the answer to come; it says the same as the frames above.
        sleep(Duration::from_millis(200)).await;
        assert!(seen.borrow().is_empty(), "{:?}", seen.borrow());
    });
}

/// A fleet of two nodes, a VIP of each family that the first one announces, and all VIPs.
const VIPS: u8 = 6;

fn fleet(lab: &Lab) -> Fleet<'_> {
    let pool = members(lab.nodes().iter().map(|node| (&node.pods()[0], &**node)));
    let vips: Vec<_> = (0..VIPS).flat_map(Lab::vips).collect();
    Fleet::start(lab, &frontend("web", &vips, &["80"], &pool, "")).unwrap()
}

/// MACs that answer a question for an address within a moment, as a host hears them; announcements of
/// these moments too.
fn answers(host: &Host, vip: IpAddr) -> BTreeSet<[u8; 6]> {
    let seen = host.capture(UPLINK).unwrap();
    let asks =
        announce::frames::question(vip, host.addresses()[usize::from(vip.is_ipv6())], mac(host));
    let uplink = host.index(UPLINK).unwrap();
    host.run(|| {
        let sender = announce::socket::Sender::open().unwrap();
        sender.send(uplink, &asks.unwrap()).unwrap();
    });
    std::thread::sleep(Duration::from_millis(200));
    let claims = seen.frames().into_iter();
    let claims = claims.filter_map(|frame| announce::frames::Claim::read(&frame.bytes));
    claims.filter(|claim| claim.address == vip).map(|claim| claim.mac).collect()
}

#[test]
fn vips_of_an_agent_that_hangs_move_and_its_data_plane_gives_way() {
    let lab = Lab::builder().nodes(3, 1).client("client").build().unwrap();
    let fleet = fleet(&lab);
    let (hung, router) = (&lab.nodes()[0], lab.router());
    let vips = router.addresses().map(|like| fleet.vip_of(hung, like, VIPS));
    for vip in vips {
        assert_eq!(answers(router, vip), [mac(hung)].into(), "{vip}");
    }
    let agent = fleet.agent(hung);
    agent.signal(Signal::SIGSTOP).unwrap();
    let start = Instant::now();
    for vip in vips {
        eventually("another one announces", SOON, || {
            lab.nodes()[1..].iter().any(|node| fleet.announces(node, vip))
        });
        assert!(start.elapsed() > Duration::from_secs(4), "{:?}", start.elapsed());
        eventually("the former announcer gives way", SOON, || !fleet.announces(hung, vip));
        let new = lab.nodes()[1..].iter().find(|node| fleet.announces(node, vip)).unwrap();
        assert_eq!(answers(router, vip), [mac(new)].into(), "{vip}");
    }
    assert!(fleet.count(hung, "yield_taken") > 0);

    agent.signal(Signal::SIGCONT).unwrap();
    eventually("they return, and nobody else has them", 2 * SOON, || {
        vips.iter().all(|vip| {
            let others = lab.nodes()[1..].iter().filter(|node| fleet.announces(node, *vip));
            fleet.announces(hung, *vip) && others.count() == 0
        })
    });
    for vip in vips {
        assert_eq!(answers(router, vip), [mac(hung)].into(), "{vip}");
    }
}

#[test]
fn a_foreign_host_with_our_vip_is_a_problem_in_status() {
    let lab = Lab::builder().nodes(2, 1).client("client").build().unwrap();
    let fleet = fleet(&lab);
    let (node, router) = (&lab.nodes()[0], lab.router());
    let vip = fleet.vip_of(node, router.v4(), VIPS);
    router.add_address(UPLINK, (vip, 24)).unwrap();
    let claim = announce::frames::announcement(vip, mac(router));
    let uplink = router.index(UPLINK).unwrap();
    router.run(|| announce::socket::Sender::open().unwrap().send(uplink, &claim).unwrap());
    let [a, b, c, d, e, f] = mac(router);
    let shown = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    eventually("the conflict is in the status", SOON, || {
        let status = fleet.ask(node, &["status"]).unwrap_or_default();
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        problems.iter().any(|problem| {
            problem["object"] == format!("VIP/{vip}")
                && problem["message"].as_str().is_some_and(|message| message.contains(&shown))
        })
    });
}
