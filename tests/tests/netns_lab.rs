//! The lab itself: what it promises to the tests that use it. Needs root.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::unix::process::ExitStatusExt,
    process::Command,
    thread,
    time::Duration,
};

use lb_tests::{
    lab::{
        Capture, Gate, Host, Lab, Netlink, TX_CHECKSUM, UNFINISHED_FRAMES, UPLINK, Verdict,
        XdpAttached, default_route, eventually, host_route, offload_is_on,
    },
    traffic::{
        Failure, bulk,
        http::{self, HttpServer},
        udp,
    },
};
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, Socket, Type};

/// For what should work at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(5);
/// For what should not work at all.
const IN_VAIN: Duration = Duration::from_millis(300);
const MEGABYTES: u64 = 1_000_000;

fn two_nodes() -> Lab {
    Lab::builder().nodes(2, 1).client("client").build().expect("a lab (needs root)")
}

fn soon(what: &str, done: impl FnMut() -> bool) {
    eventually(what, SOON, done);
}

fn get(from: &Host, to: IpAddr, port: u16, timeout: Duration) -> Result<String, Failure> {
    from.run(|| http::get(SocketAddr::new(to, port), timeout)).server().map(str::to_owned)
}

#[test]
fn everyone_reaches_everyone_in_both_families() {
    let lab = two_nodes();
    let hosts: Vec<&Host> = lab
        .nodes()
        .iter()
        .flat_map(|node| std::iter::once(&**node).chain(node.pods()))
        .chain(lab.clients())
        .collect();
    let servers: Vec<_> =
        hosts.iter().map(|host| HttpServer::start(host, host.name(), 80).unwrap()).collect();
    for from in &hosts {
        for to in &hosts {
            for address in to.addresses() {
                let reply = get(from, address, 80, SOON);
                assert_eq!(reply.as_deref(), Ok(to.name()), "{} to {address}", from.name());
            }
        }
    }
    assert!(servers.iter().all(|server| server.answered() == 2 * hosts.len() as u64));
}

#[test]
fn bulk_and_datagrams_arrive_byte_exact_in_both_directions() {
    let lab = two_nodes();
    let (client, pod) = (&lab.clients()[0], &lab.nodes()[0].pods()[0]);
    let server = bulk::serve(pod, 0).unwrap();
    let echo = udp::serve(pod, "echo", 0).unwrap();
    for address in pod.addresses() {
        let to = SocketAddr::new(address, server.port());
        assert_eq!(client.run(|| bulk::upload(to, 20 * MEGABYTES, 4 * SOON)), Ok(()));
        assert_eq!(client.run(|| bulk::download(to, 20 * MEGABYTES, 4 * SOON)), Ok(()));
        // 3,000 bytes travel in fragments.
        for size in [8, 1_400, 3_000] {
            let series = client
                .run(|| udp::series(SocketAddr::new(address, echo.port()), 20, size, SOON))
                .unwrap();
            assert_eq!(
                series.answered,
                [("echo".to_owned(), 20)].into(),
                "{size} bytes to {address}: {series:?}"
            );
        }
    }
}

#[test]
fn frames_on_the_switch_are_finished_and_pods_send_large_ones() {
    let lab = two_nodes();
    let node = &lab.nodes()[0];
    for offload in UNFINISHED_FRAMES {
        for host in [&**node, lab.router()] {
            assert!(
                !host.offload_is_on(UPLINK, offload).unwrap(),
                "{} at {}",
                offload.name,
                host.name()
            );
            let port = lab.switch().run(|| offload_is_on(host.name(), offload));
            assert!(!port.unwrap(), "{} at the port of {}", offload.name, host.name());
        }
        for host in [&node.pods()[0], &lab.clients()[0]] {
            assert!(
                host.offload_is_on(UPLINK, offload).unwrap(),
                "{} at {}",
                offload.name,
                host.name()
            );
        }
    }
    // And so it is on the wire: what leaves the pod large crosses the router in pieces.
    let (pod, wire) = (node.capture("pod-1").unwrap(), lab.router().capture(UPLINK).unwrap());
    let server = bulk::serve(&node.pods()[0], 0).unwrap();
    let to = SocketAddr::new(node.pods()[0].v4(), server.port());
    assert_eq!(lab.clients()[0].run(|| bulk::download(to, MEGABYTES, SOON)), Ok(()));
    let longest = |capture: &Capture| capture.frames().iter().map(|frame| frame.length).max();
    soon("the pod sends large frames", || longest(&pod) > Some(9_000));
    assert_eq!(longest(&wire), Some(1_514));
}

#[test]
fn checksums_that_pods_leave_to_their_device_are_right_on_the_wire() {
    let lab = two_nodes();
    let (pod, client) = (&lab.nodes()[0].pods()[0], &lab.clients()[0]);
    let echo = udp::serve(client, "client", 0).unwrap();
    let wire = lab.router().capture(UPLINK).unwrap();
    assert!(pod.offload_is_on(UPLINK, TX_CHECKSUM).unwrap());
    let to = SocketAddr::new(client.v4(), echo.port());
    assert_eq!(pod.run(|| udp::series(to, 1, 64, SOON)).unwrap().answered.len(), 1);
    let port = echo.port().to_be_bytes();
    let sent =
        || wire.frames().into_iter().find(|frame| frame.bytes.get(36..38) == Some(&port[..]));
    soon("the datagram is seen", || sent().is_some());
    assert_eq!(sum_of_udp_v4(&sent().unwrap().bytes[14..]), 0xffff);
}

#[test]
fn a_wrong_checksum_survives_the_way_and_the_receiver_refuses_it() {
    let lab = two_nodes();
    let (node, client) = (&lab.nodes()[0], &lab.clients()[0]);
    let echo = udp::serve(client, "client", 9).unwrap();
    let (answers, raw) = node.run(|| {
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap();
        (UdpSocket::bind((node.v4(), 0)).unwrap(), raw)
    });
    answers.set_read_timeout(Some(IN_VAIN)).unwrap();
    let (from, to) = (answers.local_addr().unwrap().port(), echo.port());
    let send = |flip: u16| {
        let mut packet = ipv4_udp(node.v4(), client.v4(), from, to, b"12345678");
        let right = !(sum_of_udp_v4(&packet) as u16);
        packet[26..28].copy_from_slice(&(right ^ flip).to_be_bytes());
        raw.send_to(&packet[20..], &SocketAddr::new(client.v4(), 0).into()).unwrap();
        answers.recv(&mut [0; 64])
    };
    assert_eq!(send(0).unwrap(), b"12345678client".len());
    assert!(send(0x0100).is_err(), "a wrong checksum was accepted");
}

/// An IPv4 header with what the pseudo header needs, and a UDP datagram with checksum 0.
fn ipv4_udp(source: IpAddr, destination: IpAddr, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len() as u16).to_be_bytes();
    let mut packet = vec![0; 12];
    for address in [source, destination] {
        let IpAddr::V4(address) = address else { panic!("{address} is not IPv4") };
        packet.extend(address.octets());
    }
    packet.extend([from.to_be_bytes(), to.to_be_bytes(), length, [0, 0]].concat());
    packet.extend(payload);
    packet
}

/// Sum over pseudo header and datagram of an IPv4 packet without options: 0xffff if its UDP checksum is right.
fn sum_of_udp_v4(packet: &[u8]) -> u32 {
    let length = packet.len() - 20;
    let words = packet[12..]
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum = words.sum::<u32>() + 17 + length as u32;
    (sum & 0xffff) + (sum >> 16)
}

#[test]
fn switch_ports_of_nodes_run_xdp_natively_and_pass() {
    let lab = two_nodes();
    for node in lab.nodes() {
        let mode = Netlink::with(lab.switch(), async |net| net.xdp(node.name()).await);
        assert_eq!(mode.unwrap(), XdpAttached::Driver, "{}", node.name());
        assert_eq!(
            node.xdp(UPLINK).unwrap(),
            XdpAttached::None,
            "{} is left to the agent",
            node.name()
        );
    }
}

#[test]
fn what_a_node_sends_by_xdp_tx_reaches_the_switch() {
    let lab = two_nodes();
    let (client, node) = (&lab.clients()[0], &lab.nodes()[0]);
    // So that nobody has to ask for addresses: the datagram below is then the only frame with its bytes.
    assert_eq!(get(client, node.v4(), 80, SOON), Err(Failure::Refused));
    let mirror = node.run(|| Gate::attach(UPLINK)).unwrap();
    mirror.set(Verdict::Tx).unwrap();
    let port = Capture::start(lab.switch(), node.name()).unwrap();
    let marker = b"there and back again";
    client.run(|| {
        UdpSocket::bind((client.v4(), 0)).unwrap().send_to(marker, (node.v4(), 9)).unwrap()
    });
    let seen = || port.frames().iter().filter(|frame| frame.bytes.ends_with(marker)).count();
    soon("the frame passes the port there and back", || seen() == 2);
}

#[test]
fn power_off_silences_a_node_and_its_pods_and_power_on_heals() {
    let lab = two_nodes();
    let (client, node, other) = (&lab.clients()[0], &lab.nodes()[0], &lab.nodes()[1]);
    let pod = &node.pods()[0];
    let _servers =
        [node, pod, &**other].map(|host| HttpServer::start(host, host.name(), 80).unwrap());
    let process = node.start(sleep(node)).unwrap();
    let in_pod = pod.start(sleep(pod)).unwrap();
    fs::create_dir(node.bpf_fs().join("pins")).unwrap();
    fs::write(node.dir().join("checkpoint"), "kept").unwrap();
    for round in 0..2 {
        node.power_off().unwrap();
        for address in node.addresses().into_iter().chain(pod.addresses()) {
            let answer = get(client, address, 80, IN_VAIN);
            assert!(
                matches!(answer, Err(Failure::Timeout | Failure::Unreachable)),
                "{address}: {answer:?}"
            );
        }
        assert_eq!(get(client, other.v4(), 80, SOON).as_deref(), Ok(other.name()));
        node.power_on().unwrap();
        for host in [node, pod] {
            for address in host.addresses() {
                let healed = || get(client, address, 80, IN_VAIN).as_deref() == Ok(host.name());
                soon(&format!("round {round}: {address} answers again"), healed);
            }
        }
    }
    assert!(
        !process.is_running().unwrap() && !in_pod.is_running().unwrap(),
        "processes survive a power cut"
    );
    assert!(!node.bpf_fs().join("pins").exists(), "pins survive a power cut");
    assert_eq!(fs::read_to_string(node.dir().join("checkpoint")).unwrap(), "kept");
}

#[test]
fn a_one_way_cut_loses_what_the_node_sends_and_nothing_else() {
    let lab = two_nodes();
    let (client, node) = (&lab.clients()[0], &lab.nodes()[0]);
    let _server = HttpServer::start(node, node.name(), 80).unwrap();
    // So that nobody has to ask for addresses during the cut.
    assert!(get(client, node.v4(), 80, SOON).is_ok());
    node.sending(Verdict::Drop).unwrap();
    let arriving = node.capture(UPLINK).unwrap();
    assert_eq!(get(client, node.v4(), 80, IN_VAIN), Err(Failure::Timeout));
    soon("the SYN arrives all the same", || !arriving.frames().is_empty());
    node.sending(Verdict::Pass).unwrap();
    soon("the node is heard again", || get(client, node.v4(), 80, IN_VAIN).is_ok());
}

#[test]
fn parallel_labs_with_the_same_names_and_addresses_do_not_meet() {
    let labs = thread::scope(|scope| {
        let making = [0, 1, 2].map(|_| scope.spawn(two_nodes));
        making.map(|lab| lab.join().unwrap())
    });
    let servers: Vec<_> =
        labs.iter().map(|lab| HttpServer::start(&lab.nodes()[0], "mine", 80).unwrap()).collect();
    for (at, lab) in labs.iter().enumerate() {
        assert_eq!(get(&lab.clients()[0], lab.nodes()[0].v6(), 80, SOON).as_deref(), Ok("mine"));
        assert!(
            servers
                .iter()
                .enumerate()
                .all(|(other, server)| server.answered() == u64::from(other <= at))
        );
    }
}

#[test]
fn the_router_spreads_flows_over_several_next_hops() {
    let lab = two_nodes();
    let (client, nodes) = (&lab.clients()[0], lab.nodes());
    lab.router().sysctl("net/ipv4/fib_multipath_hash_policy", "1").unwrap();
    lab.router().sysctl("net/ipv6/fib_multipath_hash_policy", "1").unwrap();
    let shared: [IpAddr; 2] = ["203.0.113.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    let _servers =
        [&nodes[0], &nodes[1]].map(|node| HttpServer::start(node, node.name(), 80).unwrap());
    for (family, address) in shared.into_iter().enumerate() {
        nodes.iter().for_each(|node| node.add_address("lo", host_route(address)).unwrap());
        let hops = nodes.iter().map(|node| node.addresses()[family]).collect::<Vec<_>>();
        lab.router().route(host_route(address), &hops).unwrap();
        // The kernel passes over a hop whose neighbour it does not know yet, which moves flows once it does.
        for hop in &hops {
            assert!(get(client, *hop, 80, SOON).is_ok());
        }
        let names: BTreeSet<_> = (0..40).map(|_| get(client, address, 80, SOON).unwrap()).collect();
        assert_eq!(names.len(), 2, "{address}: {names:?}");
        lab.router().route(host_route(address), &hops[..1]).unwrap();
        assert!((0..20).all(|_| get(client, address, 80, SOON).as_deref() == Ok(nodes[0].name())));
        lab.router().unroute(host_route(address)).unwrap();
        assert!(get(client, address, 80, IN_VAIN).is_err());
    }
}

#[test]
fn commands_run_inside_their_host() {
    let lab = two_nodes();
    let node = &lab.nodes()[0];
    fs::write(node.dir().join("note"), "from outside").unwrap();
    let output = node.command("cat").arg(node.dir().join("note")).output().unwrap();
    assert_eq!(output.stdout, b"from outside");
    let devices = node.command("ls").arg("/sys/class/net").output().unwrap();
    assert_eq!(String::from_utf8(devices.stdout).unwrap(), "eth0\nlo\npod-1\n");
    let here = node.command("pwd").output().unwrap();
    assert_eq!(
        String::from_utf8(here.stdout).unwrap().trim(),
        std::env::current_dir().unwrap().to_str().unwrap()
    );
    let process = node.start(sleep(node)).unwrap();
    process.signal(Signal::SIGTERM).unwrap();
    assert_eq!(process.wait(SOON).unwrap().unwrap().signal(), Some(Signal::SIGTERM as i32));
}

#[test]
fn clients_say_what_happened_to_them() {
    let lab = two_nodes();
    let (client, node) = (&lab.clients()[0], &lab.nodes()[0]);
    for address in node.addresses() {
        assert_eq!(get(client, address, 81, SOON), Err(Failure::Refused));
        let nobody = client.run(|| udp::series(SocketAddr::new(address, 81), 1, 8, SOON)).unwrap();
        assert_eq!(nobody.failed, [(Failure::Refused, 1)].into());
        let server = HttpServer::start(node, node.name(), 80).unwrap();
        let to = SocketAddr::new(address, 80);
        let mut open = client.run(|| http::Connection::open(to, SOON)).unwrap();
        for _ in 0..3 {
            assert_eq!(open.get(SOON).unwrap().server, node.name());
        }
        server.set_status(503);
        assert_eq!(get(client, address, 80, SOON), Err(Failure::Wrong("status 503".into())));
        drop(server);
        assert!(matches!(open.get(SOON), Err(Failure::Closed | Failure::Reset)));
    }
    let nowhere =
        client.run(|| http::get("[2001:db8::9]:80".parse().unwrap(), SOON)).server().unwrap_err();
    assert_eq!(nowhere, Failure::Unreachable, "the router has no route");
    assert_eq!(default_route(node.v4()), ("0.0.0.0".parse().unwrap(), 0));
}

#[test]
fn a_capture_is_saved_as_pcap() {
    let lab = two_nodes();
    let (client, node) = (&lab.clients()[0], &lab.nodes()[0]);
    let capture = node.capture(UPLINK).unwrap();
    assert_eq!(get(client, node.v4(), 80, SOON), Err(Failure::Refused));
    soon("SYN and RST are seen", || capture.frames().len() >= 2);
    let path = node.dir().join("trace.pcap");
    capture.save(&path).unwrap();
    let (bytes, frames) = (fs::read(&path).unwrap(), capture.frames());
    assert_eq!(bytes[..4], [0xd4, 0xc3, 0xb2, 0xa1]);
    assert!(
        bytes.len()
            >= 24 + frames.iter().take(2).map(|frame| 16 + frame.bytes.len()).sum::<usize>()
    );
    assert_eq!(capture.forgotten(), 0);
}

/// Something that runs on until it is killed.
fn sleep(host: &Host) -> Command {
    let mut command = host.command("sleep");
    command.arg("1000");
    command
}
