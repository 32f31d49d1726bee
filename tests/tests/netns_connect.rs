//! Processes on nodes reach VIPs: their calls on sockets get a backend's address, and show the VIP.
//!
//! A client here is a thread in its host's network and in its node's cgroup, where the agent puts its programs. Servers
//! are pods of other nodes.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use lb_tests::{
    fleet::{Fleet, frontend, members, tcp_check},
    lab::{Host, Lab, Node, eventually},
    traffic::{
        http::{self, HttpServer},
        udp,
    },
};

const WEB: u16 = 80;
const DNS: u16 = 53;
const TIMEOUT: Duration = Duration::from_secs(3);
/// What needs no answer of anybody, on a machine that is busy.
const AT_ONCE: Duration = Duration::from_millis(500);
/// A node's death is known after 300 ms.
const DETECTED: Duration = Duration::from_secs(3);
const FLOWS: usize = 20;

/// The first node has the clients, the others a server in a pod.
fn lab(nodes: usize) -> Lab {
    Lab::builder().nodes(nodes, 1).build().unwrap()
}

fn servers(lab: &Lab) -> Vec<HttpServer> {
    pods(lab).map(|(pod, _)| HttpServer::start(pod, pod.name(), WEB).unwrap()).collect()
}

fn pods(lab: &Lab) -> impl Iterator<Item = (&Host, &Host)> {
    lab.nodes()[1..].iter().map(|node| (&node.pods()[0], &**node))
}

fn web(lab: &Lab, more: &str) -> String {
    frontend("web", &Lab::vips(0), &["80"], &members(pods(lab)), more)
}

/// The host itself and a pod of it.
fn clients(node: &Node) -> [&Host; 2] {
    [node, &node.pods()[0]]
}

/// The form in which a dual-stack socket names an IPv4 address.
fn mapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        v6 => v6,
    }
}

fn any(like: SocketAddr) -> SocketAddr {
    let any = if like.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    any.parse().unwrap()
}

/// All ways to name both VIPs of a number.
fn names(number: u8, port: u16) -> BTreeSet<SocketAddr> {
    let vips = Lab::vips(number).into_iter();
    vips.flat_map(|vip| [vip, mapped(vip)]).map(|vip| SocketAddr::new(vip, port)).collect()
}

#[test]
fn tcp_reaches_all_backends_and_its_peer_is_the_vip() {
    let lab = lab(3);
    let _servers = servers(&lab);
    let _fleet = Fleet::start(&lab, &web(&lab, "")).unwrap();
    let node = &lab.nodes()[0];
    for client in clients(node) {
        for vip in names(0, WEB) {
            let servers: BTreeSet<_> = client.run_below(node, || {
                let flow = |_| {
                    let mut connection = http::Connection::open(vip, TIMEOUT).unwrap();
                    assert_eq!(connection.peer_addr().unwrap(), vip);
                    connection.get(TIMEOUT).unwrap().server
                };
                (0..FLOWS).map(flow).collect()
            });
            assert_eq!(servers.len(), 2, "{} to {vip}: {servers:?}", client.name());
        }
    }
}

#[test]
fn clients_stay_with_a_backend_where_they_shall() {
    let lab = lab(3);
    let _servers = servers(&lab);
    let _fleet = Fleet::start(&lab, &web(&lab, "sessionAffinity: ClientIP\n")).unwrap();
    let node = &lab.nodes()[0];
    for vip in names(0, WEB) {
        let servers: BTreeSet<_> = node.run_below(node, || {
            let get = |_| http::get(vip, TIMEOUT).server().unwrap().to_owned();
            (0..FLOWS).map(get).collect()
        });
        assert_eq!(servers.len(), 1, "{vip}: {servers:?}");
    }
}

#[test]
fn udp_with_and_without_a_peer_hears_the_vip() {
    let lab = lab(3);
    let servers = pods(&lab).map(|(pod, _)| udp::serve(pod, pod.name(), DNS).unwrap());
    let _servers: Vec<_> = servers.collect();
    let members = members(pods(&lab));
    let objects = frontend("dns", &Lab::vips(0), &["53/UDP"], &members, "")
        + &frontend("other", &Lab::vips(1), &["53/UDP"], &members, "");
    let _fleet = Fleet::start(&lab, &objects).unwrap();
    let node = &lab.nodes()[0];
    for client in clients(node) {
        for vip in names(0, DNS) {
            client.run_below(node, || {
                let answered = udp::series(vip, FLOWS, 100, TIMEOUT).unwrap();
                assert_eq!(answered.answered.values().sum::<usize>(), FLOWS, "{answered:?}");
                assert_eq!(answered.answered.len(), 1, "{answered:?}");
                let socket = UdpSocket::bind(any(vip)).unwrap();
                socket.connect(vip).unwrap();
                assert_eq!(socket.peer_addr().unwrap(), vip);
            });
        }
        for (vip, other) in names(0, DNS).into_iter().zip(names(1, DNS)) {
            let chosen: BTreeSet<_> =
                client.run_below(node, || (0..FLOWS).map(|_| talk_with_both(vip, other)).collect());
            assert!(chosen.len() > 1, "{} to {vip}: {chosen:?}", client.name());
        }
    }
}

/// One socket without a peer asks two VIPs by turns, even of one backend; each answers by its own name and by one server,
/// which are returned.
fn talk_with_both(vip: SocketAddr, other: SocketAddr) -> [String; 2] {
    let socket = UdpSocket::bind(any(vip)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    let ask = |to: SocketAddr| {
        let mut answer = [0; 100];
        socket.send_to(b"who?", to).unwrap();
        let (length, from) = socket.recv_from(&mut answer).unwrap();
        assert_eq!(from, to);
        String::from_utf8(answer[4..length].to_vec()).unwrap()
    };
    let first = [ask(vip), ask(other)];
    for _ in 0..3 {
        assert_eq!([ask(vip), ask(other)], first);
    }
    first
}

#[test]
fn without_a_backend_or_a_frontend_a_call_fails_at_once() {
    let lab = lab(2);
    // Nobody listens where the check looks.
    let (members, check) = (members(pods(&lab)), tcp_check(81, 100));
    let objects = frontend("empty", &Lab::vips(0), &["80", "53/UDP"], &members, &check);
    let fleet = Fleet::start(&lab, &objects).unwrap();
    let node = &lab.nodes()[0];
    let empty = |vip| fleet.owners(node, SocketAddr::new(vip, WEB)).is_empty();
    eventually("no backend is left", TIMEOUT, || Lab::vips(0).into_iter().all(empty));
    let refused = |what: &str, call: &dyn Fn() -> std::io::Result<()>| {
        let started = Instant::now();
        let error = call().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{what}: {error}");
        assert!(started.elapsed() < AT_ONCE, "{what}: {:?}", started.elapsed());
    };
    for client in clients(node) {
        client.run_below(node, || {
            for vip in names(0, WEB) {
                refused("TCP", &|| TcpStream::connect(vip).map(drop));
            }
            for vip in names(0, WEB + 1) {
                refused("no frontend", &|| TcpStream::connect(vip).map(drop));
            }
            for vip in names(0, DNS) {
                let socket = UdpSocket::bind(any(vip)).unwrap();
                refused("a datagram", &|| socket.send_to(b"x", vip).map(drop));
                refused("UDP", &|| socket.connect(vip));
            }
        });
    }
}

#[test]
fn what_is_for_no_vip_stays_as_it_is() {
    let lab = lab(2);
    let _servers = servers(&lab);
    let pod = &lab.nodes()[1].pods()[0];
    let _echo = udp::serve(pod, pod.name(), DNS).unwrap();
    let members = members(pods(&lab));
    let both = frontend("both", &Lab::vips(0), &["80", "53/UDP"], &members, "");
    let _fleet = Fleet::start(&lab, &both).unwrap();
    let node = &lab.nodes()[0];
    for (address, vip) in pod.addresses().into_iter().zip(Lab::vips(0)) {
        node.run_below(node, || {
            let direct = SocketAddr::new(address, WEB);
            let connection = http::Connection::open(direct, TIMEOUT).unwrap();
            assert_eq!(connection.peer_addr().unwrap(), direct);
            let echo = SocketAddr::new(address, DNS);
            talk_with_both(echo, echo);
            // A socket that was given a VIP, and then the backend itself.
            let socket = UdpSocket::bind(any(echo)).unwrap();
            socket.connect(SocketAddr::new(vip, DNS)).unwrap();
            socket.connect(echo).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), echo);
        });
    }
    // Nobody outside the cgroup is concerned: the network answers for the VIP.
    let vip = SocketAddr::new(Lab::vips(0)[0], WEB);
    let outside = lab.nodes()[0].pods()[0].run(|| http::get(vip, TIMEOUT));
    assert_eq!(outside.server().unwrap(), pod.name());
}

#[test]
fn a_client_whose_backends_node_dies_is_told_at_once_and_reaches_another() {
    let lab = lab(3);
    let _servers = servers(&lab);
    let fleet = Fleet::start(&lab, &web(&lab, "")).unwrap();
    let [node, doomed, other] = [0, 1, 2].map(|at| &lab.nodes()[at]);
    // A pod has a process, by which its network is found.
    let mut pause = Command::new("sleep");
    pause.arg("600");
    let inside = &node.pods()[0];
    inside.namespace().put_inside(&mut pause);
    inside.start(pause).unwrap();

    let hosts: Vec<_> = clients(node).into_iter().collect();
    let vips: Vec<_> = names(0, WEB).into_iter().collect();
    std::thread::scope(|scope| {
        let (ready, all_ready) = std::sync::mpsc::channel();
        let clients: Vec<_> = hosts
            .iter()
            .flat_map(|host| vips.iter().map(move |vip| (*host, *vip)))
            .map(|(host, vip)| {
                let ready = ready.clone();
                scope.spawn(move || {
                    host.run_below(node, || {
                        let stays = conversation(vip, other.pods()[0].name());
                        let mut cut = conversation(vip, doomed.pods()[0].name());
                        ready.send(()).unwrap();
                        (wait_for_the_end(&mut cut), after_the_end(vip, stays))
                    })
                })
            })
            .collect();
        clients.iter().for_each(|_| all_ready.recv().unwrap());
        let started = Instant::now();
        doomed.power_off().unwrap();
        for client in clients {
            let ((ended, error), server) = client.join().unwrap();
            assert_eq!(error, Some(ErrorKind::ConnectionAborted));
            assert!(ended - started < DETECTED, "{:?}", ended - started);
            assert_eq!(server, other.pods()[0].name());
            println!("cut after {:?}", ended - started);
        }
    });
    drop(fleet);
}

/// A connection to a VIP that leads to one server.
fn conversation(vip: SocketAddr, server: &str) -> TcpStream {
    loop {
        let mut stream = TcpStream::connect_timeout(&vip, TIMEOUT).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        if ask(&mut stream) == server {
            return stream;
        }
    }
}

fn ask(stream: &mut TcpStream) -> String {
    use std::io::Write;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n").unwrap();
    let mut answer = [0; 1000];
    let length = stream.read(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer[..length]).into_owned();
    text.rsplit("\r\n").next().unwrap_or_default().to_owned()
}

/// When and how a connection over which nothing is said ends.
fn wait_for_the_end(stream: &mut TcpStream) -> (Instant, Option<ErrorKind>) {
    stream.set_read_timeout(Some(2 * DETECTED)).unwrap();
    let end = stream.read(&mut [0]).map_err(|error| error.kind());
    (Instant::now(), end.err())
}

/// The other server keeps its connections and gets the next one; its name.
fn after_the_end(vip: SocketAddr, mut stays: TcpStream) -> String {
    let kept = ask(&mut stays);
    let started = Instant::now();
    let mut stream = TcpStream::connect_timeout(&vip, TIMEOUT).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert_eq!(ask(&mut stream), kept);
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    kept
}

#[test]
fn a_client_whose_backend_fails_its_check_is_told() {
    let lab = lab(3);
    let _servers = servers(&lab);
    // The check has a port of its own, so that it fails alone.
    let checked = lab.nodes()[1..].iter().map(|node| HttpServer::start(&node.pods()[0], "", 81));
    let mut checked: Vec<_> = checked.map(Result::unwrap).collect();
    let _echoes: Vec<_> =
        pods(&lab).map(|(pod, _)| udp::serve(pod, pod.name(), DNS).unwrap()).collect();
    let members = members(pods(&lab));
    let both = frontend("both", &Lab::vips(0), &["80", "53/UDP"], &members, &tcp_check(81, 100));
    let _fleet = Fleet::start(&lab, &both).unwrap();
    let [node, failing, other] = [0, 1, 2].map(|at| &lab.nodes()[at]);
    let vip = SocketAddr::new(Lab::vips(0)[0], WEB);
    node.run_below(node, || {
        let stays = conversation(vip, other.pods()[0].name());
        let direct = SocketAddr::new(failing.pods()[0].v4(), WEB);
        let mut untouched = TcpStream::connect_timeout(&direct, TIMEOUT).unwrap();
        let mut cut = conversation(vip, failing.pods()[0].name());
        let flow = datagrams(SocketAddr::new(vip.ip(), DNS), failing.pods()[0].name());
        drop(checked.remove(0));
        let (_, error) = wait_for_the_end(&mut cut);
        assert_eq!(error, Some(ErrorKind::ConnectionAborted));
        let error = flow.recv(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        assert_eq!(after_the_end(vip, stays), other.pods()[0].name());
        // Who went there without a VIP is none of our business.
        untouched.set_read_timeout(Some(TIMEOUT)).unwrap();
        assert_eq!(ask(&mut untouched), failing.pods()[0].name());
    });
}

/// A UDP socket whose peer is a VIP and that leads to one server.
fn datagrams(vip: SocketAddr, server: &str) -> UdpSocket {
    loop {
        let socket = UdpSocket::bind(any(vip)).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.connect(vip).unwrap();
        socket.send(b"").unwrap();
        let mut answer = [0; 100];
        let length = socket.recv(&mut answer).unwrap();
        if &answer[..length] == server.as_bytes() {
            return socket;
        }
    }
}

#[test]
fn a_dead_agent_leaves_the_way_open_and_cleanup_closes_it() {
    let lab = lab(2);
    let _servers = servers(&lab);
    let fleet = Fleet::start(&lab, &web(&lab, "")).unwrap();
    let node = &lab.nodes()[0];
    let vip = SocketAddr::new(Lab::vips(0)[0], WEB);
    let peer = || {
        node.run_below(node, || {
            let connection = http::Connection::open(vip, TIMEOUT)?;
            connection.peer_addr()
        })
    };
    let kept = node.run_below(node, || conversation(vip, lab.nodes()[1].pods()[0].name()));
    fleet.kill_agent(node).unwrap();
    assert_eq!(peer(), Ok(vip));
    fleet.start_agent(node).unwrap();
    fleet.wait_ready();
    assert_eq!(peer(), Ok(vip));
    assert_eq!(kept.peer_addr().unwrap(), vip, "what a socket got outlives the agent");
    assert_eq!(links(node).len(), 8, "{:?}", links(node));

    fleet.stop_agent(node).unwrap();
    let config = fleet.config().display().to_string();
    let arguments = ["agent", "--cleanup", "--node", node.name(), "--config", &config];
    let output = fleet.weir(node, &arguments).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("connect4"), "{said}");
    assert_eq!(links(node), BTreeSet::new());
    assert_ne!(kept.peer_addr().unwrap(), vip, "nobody shows it the VIP any more");
}

/// What is pinned of the programs for sockets.
fn links(node: &Host) -> BTreeSet<String> {
    let entries = lb_tests::fleet::pin_dir(node).join("links").read_dir().into_iter().flatten();
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| !name.contains("gress")).collect()
}

#[test]
fn another_cgroup_takes_the_programs_and_a_disabled_one_loses_them() {
    let lab = lab(2);
    let _servers = servers(&lab);
    let node = &lab.nodes()[0];
    let fleet =
        Fleet::prepare_with(&lab, "connect: {cgroup: /sys/fs/cgroup}\n", &web(&lab, "")).unwrap();
    for node in lab.nodes() {
        fleet.start_agent(node).unwrap();
    }
    fleet.wait_ready();
    assert_eq!(links(node).len(), 8);
    let text = std::fs::read_to_string(fleet.config()).unwrap();
    std::fs::write(fleet.config(), text.replace("cgroup: /sys/fs/cgroup", "enabled: false"))
        .unwrap();
    fleet.stop_agent(node).unwrap();
    fleet.start_agent(node).unwrap();
    eventually("the programs are off", TIMEOUT, || links(node).is_empty());
}
