//! Clients of VIPs in a lab: what they send reaches backends through weir, and what they get. Needs root and `WEIR_BIN`.
//!
//! Real kernels on both ends check every checksum on the way. Agents are only started here; how they live and die is in
//! `netns_fleet.rs`.

use std::{
    collections::BTreeSet,
    io::Read,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use etherparse::{SlicedPacket, TcpOptionElement, TransportSlice};
use lb_tests::{
    fleet::{Fleet, Member, SOON, frontend, members, tcp_check},
    lab::{Host, Lab, UPLINK, eventually},
    traffic::{
        Failure, bulk,
        http::{self, Connection, HttpServer},
        udp::{self, Flow},
    },
};
use socket2::{Domain, Protocol, Socket, Type};

/// VIPs of a fleet whose test needs one that a certain node announces.
const VIPS: u8 = 8;
const MEGABYTES: u64 = 1_000_000;
/// For an answer that comes at once, on a machine that is busy.
const ANSWER: Duration = Duration::from_secs(5);
const PORT: u16 = 5000;
const WEB: u16 = 80;

fn two_nodes() -> Lab {
    Lab::builder().nodes(2, 1).client("client").build().expect("a lab (needs root)")
}

/// One object for each of [`VIPS`] VIPs, both families, all over the same members.
fn many_vips(ports: &[&str], members: &[Member], more: &str) -> String {
    (0..VIPS)
        .map(|number| frontend(&format!("vip-{number}"), &Lab::vips(number), ports, members, more))
        .collect()
}

fn get(from: &Host, to: IpAddr, port: u16) -> Result<String, Failure> {
    let to = SocketAddr::new(to, port);
    from.run(|| http::get(to, ANSWER)).server().map(str::to_owned)
}

/// The largest UDP payload that fits the tunnel, by the MSS that the data plane clamps to.
fn largest_datagram(fleet: &Fleet<'_>, node: &Host, vip: IpAddr) -> usize {
    let status = fleet.ask(node, &["status"]).unwrap();
    let mss = if vip.is_ipv4() { "mss_v4" } else { "mss_v6" };
    let mss = status["dataplane"][mss].as_u64().expect("SYN-ACKs are clamped at an MTU of 1500");
    // 20 bytes of TCP header less 8 of UDP.
    mss as usize + 12
}

/// Moves 100 MB each way and datagrams of many sizes from the client to `server`, which is on (or is) the first node,
/// through VIPs that the other node announces; and less through those that the first one announces.
fn carries_everything(server: &Host, lab: &Lab) {
    let fleet = Fleet::start(
        lab,
        &many_vips(&["5000", "5000/UDP"], &members([(server, &*lab.nodes()[0])]), ""),
    )
    .unwrap();
    let _bulk = bulk::serve(server, PORT).unwrap();
    let _echo = udp::serve(server, "echo", PORT).unwrap();
    let (home, client) = (&lab.nodes()[0], &lab.clients()[0]);
    for announcer in lab.nodes() {
        for like in client.addresses() {
            let vip = fleet.vip_of(announcer, like, VIPS);
            let to = SocketAddr::new(vip, PORT);
            let remote = announcer.name() != home.name();
            let total = if remote { 100 } else { 10 } * MEGABYTES;
            let (there, here) = if remote {
                ("forwarded", "received")
            } else {
                ("delivered_local", "delivered_local")
            };
            let count = || {
                [
                    fleet.count(announcer, there),
                    fleet.count(home, here),
                    fleet.count(home, "returned"),
                ]
            };
            let before = count();
            assert_eq!(client.run(|| bulk::upload(to, total, 4 * ANSWER)), Ok(()), "up to {to}");
            assert_eq!(
                client.run(|| bulk::download(to, total, 4 * ANSWER)),
                Ok(()),
                "down from {to}"
            );
            let largest = largest_datagram(&fleet, announcer, vip);
            for size in [8, 100, 1_000, largest - 1, largest] {
                let series = client.run(|| udp::series(to, 20, size, ANSWER)).unwrap();
                assert_eq!(
                    series.answered,
                    [("echo".to_owned(), 20)].into(),
                    "{size} bytes to {to}: {series:?}"
                );
            }
            // No packet carries more than 64 kB, not even coalesced.
            let after = count();
            for (before, after) in before.into_iter().zip(after) {
                assert!(
                    after - before >= total / 65_536,
                    "through {} to {to}: {before} to {after}",
                    announcer.name()
                );
            }
        }
    }
}

#[test]
fn everything_arrives_at_a_pod_byte_exact() {
    let lab = two_nodes();
    carries_everything(&lab.nodes()[0].pods()[0], &lab);
}

#[test]
fn everything_arrives_at_a_nodes_own_server_byte_exact() {
    let lab = two_nodes();
    carries_everything(&lab.nodes()[0], &lab);
}

/// The largest frames of clients that keep to the clamped MSS fit the tunnel; whoever sends larger ones is told.
#[test]
fn clients_are_told_what_fits_the_tunnel() {
    let lab = two_nodes();
    let (home, other, client) = (&lab.nodes()[0], &lab.nodes()[1], &lab.clients()[0]);
    let pod = &home.pods()[0];
    let fleet = Fleet::start(&lab, &many_vips(&["80", "5000/UDP"], &members([(pod, &**home)]), ""))
        .unwrap();
    let _web = HttpServer::start(pod, "pod", WEB).unwrap();
    let _echo = udp::serve(pod, "echo", PORT).unwrap();
    for like in client.addresses() {
        let vip = fleet.vip_of(other, like, VIPS);
        let largest = largest_datagram(&fleet, other, vip);

        let seen = client.capture(UPLINK).unwrap();
        assert_eq!(get(client, vip, WEB).as_deref(), Ok("pod"));
        let offers = || {
            seen.frames().iter().filter_map(|frame| syn_ack_mss(&frame.bytes)).collect::<Vec<_>>()
        };
        eventually("the SYN-ACK is seen", SOON, || !offers().is_empty());
        assert_eq!(offers(), [largest as u16 - 12], "{vip}");

        let to = SocketAddr::new(vip, PORT);
        let too_big = fleet.count(other, "too_big");
        client.run(|| {
            let mut flow = Flow::open(to).unwrap();
            assert_eq!(flow.echo(largest, ANSWER).as_deref(), Ok("echo"));
            // The kernel takes it, as the path's MTU is still 1,500.
            assert!(flow.echo(largest + 1, Duration::from_millis(200)).is_err());
        });
        assert_eq!(fleet.count(other, "too_big"), too_big + 1);
        let headers = if vip.is_ipv4() { 28 } else { 48 };
        eventually("the path's MTU is lowered", SOON, || {
            path_mtu(client, vip) == Some(largest + headers)
        });
        // What now goes out of this size goes in one piece again.
        assert_eq!(
            client.run(|| Flow::open(to).unwrap().echo(largest, ANSWER)).as_deref(),
            Ok("echo")
        );
    }
}

/// The MSS that a SYN-ACK offers; None: the frame is no SYN-ACK.
fn syn_ack_mss(frame: &[u8]) -> Option<u16> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { return None };
    let mss = tcp.options_iterator().find_map(|option| match option {
        Ok(TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
        _ => None,
    });
    (tcp.syn() && tcp.ack()).then_some(mss)?
}

/// The MTU that a host has learnt for a destination.
fn path_mtu(host: &Host, to: IpAddr) -> Option<usize> {
    let output = host.command("ip").args(["route", "get", &to.to_string()]).output().unwrap();
    let route = String::from_utf8(output.stdout).unwrap();
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1)?.parse().ok()
}

#[test]
fn what_nobody_serves_is_refused_at_once_and_vips_answer_ping() {
    let lab = two_nodes();
    let (home, client) = (&lab.nodes()[0], &lab.clients()[0]);
    let pod = &home.pods()[0];
    let pool = members([(pod, &**home)]);
    // Nobody listens on port 81 of the pod, so its check fails.
    let dead = Lab::vips(10);
    let objects = many_vips(&["80"], &pool, "")
        + &frontend("dead", &dead, &["80", "80/UDP"], &pool, &tcp_check(81, 100))
        + &frontend("silent", &Lab::vips(11), &["80"], &pool, "echo: false");
    let fleet = Fleet::start(&lab, &objects).unwrap();
    let _web = HttpServer::start(pod, "pod", WEB).unwrap();
    client.sysctl("net/ipv4/ping_group_range", "0 0").unwrap();
    for announcer in lab.nodes() {
        for like in client.addresses() {
            let vip = fleet.vip_of(announcer, like, VIPS);
            assert_eq!(get(client, vip, WEB).as_deref(), Ok("pod"));
            let answered = fleet.count(announcer, "echo_answered");
            assert_eq!(client.run(|| ping(vip, ANSWER)), Ok(()), "ping {vip}");
            assert_eq!(fleet.count(announcer, "echo_answered"), answered + 1);
            refuses(client, vip, 81);
        }
    }
    let refused =
        || lab.nodes().iter().map(|node| fleet.count(node, "refused_no_backend")).sum::<u64>();
    let before = refused();
    for vip in dead {
        refuses(client, vip, WEB);
    }
    assert_eq!(refused(), before + 4, "TCP and UDP of both families");
    for vip in Lab::vips(11) {
        assert!(
            client.run(|| ping(vip, Duration::from_millis(200))).is_err(),
            "{vip} is to be silent"
        );
    }
}

/// TCP and UDP to this port are refused well before a client would send again.
fn refuses(client: &Host, vip: IpAddr, port: u16) {
    let to = SocketAddr::new(vip, port);
    let at_once = Duration::from_millis(900);
    assert_eq!(
        client.run(|| http::get(to, at_once).server().map(str::to_owned)),
        Err(Failure::Refused),
        "TCP {to}"
    );
    let answer = client.run(|| Flow::open(to).and_then(|mut flow| flow.echo(100, at_once)));
    assert_eq!(answer, Err(Failure::Refused), "UDP {to}");
}

/// One ICMP echo, answered with the same bytes by the same address.
fn ping(to: IpAddr, timeout: Duration) -> Result<(), Failure> {
    let (domain, protocol, request, reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    // The kernel fills in checksum and identifier, and keeps others' answers away.
    let mut socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    socket.set_read_timeout(Some(timeout))?;
    let mut echo = vec![request, 0, 0, 0, 0, 0, 0, 1];
    echo.extend(0..=99);
    socket.send(&echo)?;
    let mut answer = [0; 2048];
    let length = socket.read(&mut answer)?;
    let same = answer[0] == reply && answer[6..length] == echo[6..];
    same.then_some(()).ok_or_else(|| Failure::Wrong(format!("{:?}", &answer[..length])))
}

#[test]
fn clients_outside_of_the_source_ranges_get_nothing_and_a_new_list_counts_for_connections_there_are()
 {
    let lab = Lab::builder().nodes(2, 1).client("in").client("out").build().unwrap();
    let (home, [inside, outside]) = (&lab.nodes()[0], [0, 1].map(|at| &lab.clients()[at]));
    let pool = members([(&home.pods()[0], &**home)]);
    let _web = HttpServer::start(&home.pods()[0], "pod", WEB).unwrap();
    let of = |client: &Host| {
        let [v4, v6] = client.addresses();
        many_vips(&["80"], &pool, &format!("sourceRanges: [{v4}/32, \"{v6}/128\"]"))
    };
    let fleet = Fleet::start(&lab, &of(inside)).unwrap();
    let denied = |client: &Host, to| {
        let answer = client.run(|| http::get(to, Duration::from_millis(300)));
        answer.server().map(str::to_owned) == Err(Failure::Timeout)
    };
    let mut open = Vec::new();
    for announcer in lab.nodes() {
        for like in inside.addresses() {
            let vip = fleet.vip_of(announcer, like, VIPS);
            assert_eq!(get(inside, vip, WEB).as_deref(), Ok("pod"), "{vip}");
            let before = fleet.count(announcer, "source_denied");
            assert!(denied(outside, SocketAddr::new(vip, WEB)), "{vip}");
            assert!(fleet.count(announcer, "source_denied") > before, "{vip}");
            let to = SocketAddr::new(vip, WEB);
            open.push((vip, inside.run(|| Connection::open(to, ANSWER)).unwrap()));
        }
    }
    fleet.configure(&of(outside)).unwrap();
    for (vip, connection) in &mut open {
        let to = SocketAddr::new(*vip, WEB);
        eventually("the new list is in force", SOON, || {
            let answer = outside.run(|| http::get(to, Duration::from_millis(300)));
            answer.server() == Ok("pod") && denied(inside, to)
        });
        let answer = inside.run(|| connection.get(Duration::from_millis(300)));
        assert!(matches!(answer, Err(Failure::Timeout)), "{vip}: a connection goes on");
    }
}

#[test]
fn a_dead_backend_loses_its_slots_and_gets_them_back() {
    let lab = Lab::builder().nodes(3, 1).client("client").build().unwrap();
    let client = &lab.clients()[0];
    let pods: Vec<&Host> = lab.nodes().iter().map(|node| &node.pods()[0]).collect();
    let pool = members(lab.nodes().iter().map(|node| (&node.pods()[0], &**node)));
    let web = |pod: &&Host| Some(HttpServer::start(pod, pod.name(), WEB).unwrap());
    let mut servers: Vec<_> = pods.iter().map(web).collect();
    let vips = Lab::vips(0);
    let fleet =
        Fleet::start(&lab, &frontend("web", &vips, &["80"], &pool, &tcp_check(WEB, 100))).unwrap();
    let owning = |many: usize| {
        lab.nodes().iter().all(|node| {
            vips.iter().all(|vip| fleet.owners(node, SocketAddr::new(*vip, WEB)).len() == many)
        })
    };
    let serving = || -> BTreeSet<String> {
        vips.iter().flat_map(|vip| (0..30).map(|_| get(client, *vip, WEB).unwrap())).collect()
    };
    let names =
        |from: usize| pods[from..].iter().map(|pod| pod.name().to_owned()).collect::<BTreeSet<_>>();
    // Three checks in a row at 100 ms; the rest is for a machine that is busy.
    let noticed = Duration::from_millis(2_000);
    eventually("all are up", SOON, || owning(3));
    assert_eq!(serving(), names(0));

    servers[0] = None;
    eventually("the dead one owns nothing", noticed, || owning(2));
    assert_eq!(serving(), names(1));

    servers.clear();
    eventually("nobody owns anything", noticed, || owning(0));
    for vip in vips {
        assert_eq!(get(client, vip, WEB), Err(Failure::Refused));
    }

    servers.extend(pods.iter().map(web));
    eventually("all are back", noticed, || owning(3));
    assert_eq!(serving(), names(0));
}

#[test]
fn vips_move_when_their_announcer_loses_power() {
    let lab = Lab::builder().nodes(3, 1).client("client").build().unwrap();
    let client = &lab.clients()[0];
    let pool = members(lab.nodes().iter().map(|node| (&node.pods()[0], &**node)));
    let servers = lab
        .nodes()
        .iter()
        .map(|node| HttpServer::start(&node.pods()[0], node.name(), WEB).unwrap());
    let _servers: Vec<_> = servers.collect();
    let fleet = Fleet::start(&lab, &many_vips(&["80"], &pool, &tcp_check(WEB, 100))).unwrap();
    let doomed = &lab.nodes()[0];
    let vips = client.addresses().map(|like| fleet.vip_of(doomed, like, VIPS));
    // Connections to backends that live on must live on, although their packets take another way.
    let mut connections: Vec<_> =
        vips.iter().flat_map(|vip| survivors(client, *vip, doomed.name())).collect();
    assert!(connections.len() >= 8, "{} connections", connections.len());

    let seen = lab.router().capture(UPLINK).unwrap();
    doomed.power_off().unwrap();
    let off = Instant::now();
    let mut served_since = off;
    let mut in_a_row = 0;
    while in_a_row < 40 {
        let (vip, started) = (vips[in_a_row % 2], Instant::now());
        let to = SocketAddr::new(vip, WEB);
        match client.run(|| http::get(to, Duration::from_millis(300))).server() {
            Ok(_) if in_a_row == 0 => (in_a_row, served_since) = (1, started),
            Ok(_) => in_a_row += 1,
            Err(_) => in_a_row = 0,
        }
        assert!(off.elapsed() < SOON, "not served again");
    }
    println!("served again {:?} after the power was off", served_since - off);
    assert!(
        served_since - off < Duration::from_secs(3),
        "served again after {:?}",
        served_since - off
    );
    for vip in vips {
        let announced =
            seen.frames().iter().filter(|frame| is_announcement(&frame.bytes, vip)).count();
        assert!(announced > 0, "{vip} was not announced to the router");
        let announcers = lab.nodes()[1..].iter().filter(|node| fleet.announces(node, vip)).count();
        assert_eq!(announcers, 1, "{vip}");
    }
    for (name, connection) in &mut connections {
        let answer = client.run(|| connection.get(ANSWER)).unwrap();
        assert_eq!(answer.server, *name);
    }

    doomed.power_on().unwrap();
    fleet.start_agent(doomed).unwrap();
    fleet.wait_ready();
    eventually("its VIPs are back", SOON, || vips.iter().all(|vip| fleet.announces(doomed, *vip)));
    for vip in vips {
        assert!(get(client, vip, WEB).is_ok());
    }
    for (name, connection) in &mut connections {
        assert_eq!(client.run(|| connection.get(ANSWER)).unwrap().server, *name);
    }
}

/// Connections to `vip` that lead to others than `doomed`.
fn survivors(client: &Host, vip: IpAddr, doomed: &str) -> Vec<(String, Connection)> {
    let open = |_| {
        client.run(|| {
            let mut connection = Connection::open(SocketAddr::new(vip, WEB), ANSWER).unwrap();
            (connection.get(ANSWER).unwrap().server, connection)
        })
    };
    (0..12).map(open).filter(|(name, _)| name != doomed).collect()
}

/// Whether a frame is a gratuitous ARP or an unsolicited neighbour advertisement for `vip`.
fn is_announcement(frame: &[u8], vip: IpAddr) -> bool {
    match vip {
        IpAddr::V4(vip) => {
            // Sender and target are the same address (RFC 5227 3).
            frame[12..14] == [8, 6]
                && frame.get(28..32) == Some(&vip.octets())
                && frame.get(38..42) == Some(&vip.octets())
        }
        IpAddr::V6(vip) => {
            // To all nodes; type 136, target after the flags (RFC 4861 4.4).
            frame[12..14] == [0x86, 0xdd]
                && frame.get(38..40) == Some(&[0xff, 0x02])
                && frame.get(54) == Some(&136)
                && frame.get(62..78) == Some(&vip.octets())
        }
    }
}

#[test]
fn what_is_for_no_vip_passes_untouched() {
    let lab = two_nodes();
    let (home, client) = (&lab.nodes()[0], &lab.clients()[0]);
    let pod = &home.pods()[0];
    let pool = members([(pod, &**home)]);
    let fleet = Fleet::start(&lab, &frontend("vip", &Lab::vips(0), &["80", "5000/UDP"], &pool, ""))
        .unwrap();
    let _web = HttpServer::start(pod, "pod", WEB).unwrap();
    let _echo = udp::serve(pod, "pod", PORT).unwrap();
    let _bulk = bulk::serve(pod, PORT).unwrap();
    let _own = HttpServer::start(home, "node", WEB).unwrap();
    client.sysctl("net/ipv4/ping_group_range", "0 0").unwrap();
    let fates = ["forwarded", "received", "delivered_local", "returned", "fragment", "truncated"];
    let count = || fates.map(|reason| fleet.count(home, reason));
    let before = count();
    for (address, node) in pod.addresses().into_iter().zip(home.addresses()) {
        // The backend's own address and port: its answers must keep them.
        assert_eq!(get(client, address, WEB).as_deref(), Ok("pod"));
        assert_eq!(get(client, node, WEB).as_deref(), Ok("node"));
        for to in [address, node] {
            assert_eq!(client.run(|| ping(to, ANSWER)), Ok(()), "ping {to}");
        }
        let to = SocketAddr::new(address, PORT);
        assert_eq!(client.run(|| bulk::upload(to, 5 * MEGABYTES, ANSWER)), Ok(()));
        assert_eq!(client.run(|| bulk::download(to, 5 * MEGABYTES, ANSWER)), Ok(()));
        // In up to seven fragments, each way.
        for size in [1_400, 3_000, 9_000] {
            let series = client.run(|| udp::series(to, 10, size, ANSWER)).unwrap();
            assert_eq!(
                series.answered,
                [("pod".to_owned(), 10)].into(),
                "{size} bytes to {to}: {series:?}"
            );
        }
    }
    assert_eq!(count(), before, "{fates:?}");
}
