//! Next hops and announcements against real kernels, in a lab. Needs root.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::hop::Hop;
use lb_tests::lab::{Host, Lab, UPLINK};
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
    time::{sleep, timeout},
};
use weir::{
    announce::{self, Uplink},
    netlink::{self, Interfaces, Netlink},
};

/// For what must come on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

type Nodes = BTreeMap<String, Vec<IpAddr>>;
type Hops = Arc<BTreeMap<String, Hop>>;

fn runtime() -> Runtime {
    // One thread: sockets belong to the namespace of the thread that opens them.
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn mac(host: &Host) -> [u8; 6] {
    let interfaces = host
        .run(|| runtime().block_on(async { Netlink::open().unwrap().interfaces().await.unwrap() }));
    interfaces.by_name(UPLINK).unwrap().mac.unwrap()
}

/// Runs the hop tracker of node-1 on that node while `work` looks at what it publishes.
fn with_hops(
    node: &Host,
    nodes: Nodes,
    work: impl AsyncFnOnce(
        watch::Sender<Arc<Nodes>>,
        watch::Receiver<Hops>,
        watch::Receiver<Arc<Interfaces>>,
    ) + Send,
) {
    node.run(|| {
        runtime().block_on(async {
            let (nodes, wanted) = watch::channel(Arc::new(nodes));
            let (hops, seen) = watch::channel(Hops::default());
            let (interfaces, links) = watch::channel(Arc::default());
            let tracker = netlink::run("node-1".into(), wanted, hops, interfaces);
            tokio::select! {
                ended = tracker => panic!("tracker ended: {ended:?}"),
                () = work(nodes, seen, links) => {}
            }
        })
    });
}

async fn until(
    hops: &mut watch::Receiver<Hops>,
    what: &str,
    condition: impl Fn(&BTreeMap<String, Hop>) -> bool,
) -> Hops {
    let found = timeout(PATIENCE, hops.wait_for(|hops| condition(hops))).await;
    let found = found.map(|hops| hops.unwrap().clone());
    found.unwrap_or_else(|_| panic!("not in time: {what}; {:?}", hops.borrow()))
}

/// Whether there is a way to the node now.
fn found(hops: &BTreeMap<String, Hop>, node: &str) -> bool {
    hops.get(node).is_some_and(|hop| hop.ifindex != 0)
}

#[test]
fn hops_name_the_next_hop_by_its_resolved_mac() {
    let lab = Lab::builder().nodes(2, 1).client("client").build().unwrap();
    let (one, two) = (&lab.nodes()[0], &lab.nodes()[1]);
    let nodes = Nodes::from([
        ("node-1".into(), one.addresses().to_vec()),
        ("node-2".into(), two.addresses().to_vec()),
        ("six".into(), vec![two.v6()]),
        ("far".into(), lab.clients()[0].addresses().to_vec()),
    ]);
    let (own_mac, two_mac, router_mac) = (mac(one), mac(two), mac(lab.router()));
    let uplink = one.index(UPLINK).unwrap();
    with_hops(one, nodes, async |_nodes, mut hops, links| {
        let all = until(&mut hops, "all hops", |hops| {
            hops.len() == 3 && hops.values().all(|hop| hop.ifindex != 0)
        })
        .await;
        for (name, source, destination, next_hop) in [
            ("node-2", one.v4(), two.v4(), two_mac),
            ("six", one.v6(), two.v6(), two_mac),
            ("far", one.v4(), lab.clients()[0].v4(), router_mac),
        ] {
            let want = Hop {
                ifindex: uplink,
                mtu: 1500,
                destination_mac: next_hop,
                source_mac: own_mac,
                source: source.into(),
                destination: destination.into(),
                ..Hop::default()
            };
            assert_eq!(all[name], want, "{name}");
        }
        assert_eq!(links.borrow().by_name(UPLINK).unwrap().ifindex, uplink);
        let neighbours = Netlink::open().unwrap().neighbours().await.unwrap();
        assert!(neighbours[&(uplink, two.v4())].managed, "kept fresh by the kernel");
    });
}

#[test]
fn hops_follow_carrier_mtu_and_a_node_that_appears_late() {
    let lab = Lab::builder().nodes(2, 0).build().unwrap();
    let (one, two) = (&lab.nodes()[0], &lab.nodes()[1]);
    let late: IpAddr = "10.0.0.77".parse().unwrap();
    let nodes = Nodes::from([
        ("node-1".into(), vec![one.v4()]),
        ("node-2".into(), vec![two.v4()]),
        ("late".into(), vec![late]),
    ]);
    with_hops(one, nodes, async |nodes, mut hops, _links| {
        let all = until(&mut hops, "node-2 found", |hops| found(hops, "node-2")).await;
        assert_eq!(all["late"].ifindex, 0);
        assert_eq!(all["late"].destination.to_ip(), late);
        two.add_address(UPLINK, (late, 24)).unwrap();
        until(&mut hops, "late node found", |hops| found(hops, "late")).await;

        one.unplug().unwrap();
        until(&mut hops, "carrier lost", |hops| !found(hops, "node-2")).await;
        one.plug().unwrap();
        until(&mut hops, "carrier back", |hops| found(hops, "node-2")).await;

        let set = one.command("ip").args(["link", "set", UPLINK, "mtu", "1400"]).status();
        assert!(set.unwrap().success());
        until(&mut hops, "MTU followed", |hops| hops["node-2"].mtu == 1400).await;

        let mut fewer = (**nodes.borrow()).clone();
        fewer.remove("late");
        nodes.send_replace(Arc::new(fewer));
        until(&mut hops, "removed node gone", |hops| hops.len() == 1).await;
        let uplink = one.index(UPLINK).unwrap();
        let netlink = Netlink::open().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while netlink.neighbours().await.unwrap().get(&(uplink, late)).is_some_and(|it| it.managed)
        {
            assert!(Instant::now() < deadline, "still managed");
            sleep(Duration::from_millis(10)).await;
        }
    });
}

/// Whether the uplink of the calling thread's namespace is a member of the solicited-node group of
/// `vip` (RFC 4291 2.7.1), as the kernel lists groups.
fn joined(vip: Ipv6Addr) -> bool {
    let low = vip.to_bits() & 0xff_ffff;
    let group = format!("ff0200000000000000000001ff{low:06x}");
    let groups = fs::read_to_string("/proc/thread-self/net/igmp6").unwrap();
    groups.lines().any(|line| line.contains(UPLINK) && line.contains(&group))
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

type Announced = BTreeMap<IpAddr, Uplink>;

/// Runs the announcer on a node while `work` runs there too, and no longer.
fn announcing(
    node: &Host,
    announced: Announced,
    work: impl AsyncFnOnce(watch::Sender<Arc<Announced>>) + Send,
) {
    node.run(|| {
        runtime().block_on(async {
            let (sender, receiver) = watch::channel(Arc::new(announced));
            tokio::select! {
                ended = announce::run(receiver) => panic!("announcer ended: {ended:?}"),
                () = work(sender) => {}
            }
        })
    });
}

#[test]
fn a_takeover_is_announced_and_its_group_joined_until_it_is_withdrawn() {
    let lab = Lab::builder().nodes(2, 0).build().unwrap();
    let (one, two) = (&lab.nodes()[0], &lab.nodes()[1]);
    let vips = Lab::vips(7);
    let IpAddr::V6(six) = vips[1] else { panic!("IPv4 first") };
    let uplink = Uplink { name: UPLINK.into(), ifindex: one.index(UPLINK).unwrap(), mac: mac(one) };
    let both: BTreeMap<_, _> = vips.iter().map(|vip| (*vip, uplink.clone())).collect();
    let seen = two.capture(UPLINK).unwrap();
    let count = |vip| {
        let frame = announce::frames::announcement(vip, uplink.mac);
        // Ethernet may pad the ARP frame.
        seen.frames().iter().filter(|seen| seen.bytes.starts_with(&frame)).count()
    };
    // The agent announces and then dies.
    announcing(one, both.clone(), async |_announced| {
        eventually("group joined", || joined(six)).await;
        eventually("burst seen", || vips.map(count) == [announce::schedule::BURST.len(); 2]).await;
    });
    assert!(one.run(|| joined(six)), "the group outlives the agent");
    // The next one takes over, then withdraws.
    announcing(one, both, async |announced| {
        eventually("announced anew", || vips.map(count).iter().all(|seen| *seen > 4)).await;
        assert!(joined(six));
        announced.send_replace(Arc::default());
        eventually("group left", || !joined(six)).await;
    });
}

#[test]
fn a_group_that_an_agent_left_behind_is_left_by_the_next_one() {
    let lab = Lab::builder().nodes(1, 0).build().unwrap();
    let node = &lab.nodes()[0];
    let vip: Ipv6Addr = "fd00::107".parse().unwrap();
    let uplink = node.index(UPLINK).unwrap();
    node.run(|| {
        runtime().block_on(async {
            Netlink::open().unwrap().add_proxy(uplink, vip).await.unwrap();
            assert!(joined(vip));
        })
    });
    announcing(node, BTreeMap::new(), async |_announced| {
        eventually("group left", || !joined(vip)).await;
    });
}
