//! The world that the rows live in, and how a row is run.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_common::frontend::Vip;
use lb_common::hop::Hop;
use lb_common::reason::Reason;
use lb_common::service::flags;
use lb_tests::model::{VipState, Way, World};
use lb_tests::packet::{Frame, check, unwrap_tunnel};
use lb_tests::rig::{
    Action, FLOW_KEY, GATEWAY_MAC, MTU, NODE_MAC, OTHER_UPLINK, Outcome, PEER, PEER_OVER_V6, Rig,
    SEED_TAG, SLOTS, Service, TUNNEL_PORT, Target, UPLINK, VNI, assert_same, hop_to_peer, own,
    peer,
};

use crate::chain;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const CLIENT_PORT: u16 = 40_000;
/// Port of every backend.
pub const BACKEND_PORT: u16 = 8080;

/// Ports of the VIP, each with a pool of another kind, for TCP and UDP alike.
pub const LOCAL: u16 = 80;
pub const REMOTE: u16 = 81;
pub const EMPTY: u16 = 82;
pub const LOCAL_ONLY: u16 = 83;
/// Its slots name a backend that has left.
pub const STALE: u16 = 84;
/// Its backend's node has no next hop.
pub const NOWHERE: u16 = 85;
/// As `REMOTE`, the other node reached over IPv6.
pub const REMOTE_OVER_V6: u16 = 86;
/// As `REMOTE`, by another interface.
pub const REMOTE_ELSEWHERE: u16 = 87;
/// The same backend as `LOCAL`.
pub const ALSO_LOCAL: u16 = 88;
/// One local and one remote backend, by the client's address alone.
pub const AFFINE: u16 = 89;
/// As `REMOTE` and `LOCAL`, for clients of [`ranges`] only.
pub const GUARDED: u16 = 90;
pub const GUARDED_LOCAL: u16 = 91;
/// The same without a backend.
pub const GUARDED_EMPTY: u16 = 92;
/// No frontend.
pub const CLOSED: u16 = 9999;

/// Node without an entry in `HOPS`, and node behind the other uplink.
const NODE_NOWHERE: u32 = 5;
const NODE_ELSEWHERE: u32 = 6;

/// An address of the family that `v6` names.
pub fn addr(v6: bool, v4_text: &str, v6_text: &str) -> IpAddr {
    (if v6 { v6_text } else { v4_text }).parse().unwrap()
}

pub fn client(v6: bool) -> IpAddr {
    addr(v6, "198.51.100.7", "2001:db8:c::7")
}

pub fn vip(v6: bool) -> IpAddr {
    addr(v6, "192.0.2.1", "2001:db8::1")
}

/// A VIP that another node announces, without frontends, that answers no echo.
pub fn other_vip(v6: bool) -> IpAddr {
    addr(v6, "192.0.2.9", "2001:db8::9")
}

/// An address that is no VIP and whose bit in the filter is clear.
pub fn stranger(v6: bool) -> IpAddr {
    addr(v6, "203.0.113.77", "2001:db8:77::1")
}

pub fn local_backend(v6: bool) -> IpAddr {
    addr(v6, "10.1.0.1", "fd01::1")
}

pub fn remote_backend(v6: bool) -> IpAddr {
    addr(v6, "10.1.0.2", "fd01::2")
}

/// The networks of clients that guarded ports take: the client is the last of the first.
pub fn ranges(v6: bool) -> [(IpAddr, u32); 2] {
    let [first, second] = if v6 { [125, 64] } else { [29, 25] };
    [
        (addr(v6, "198.51.100.0", "2001:db8:c::"), first),
        (addr(v6, "203.0.113.128", "2001:db8:d::"), second),
    ]
}

/// A client next to the first of these networks.
pub fn outsider(v6: bool) -> IpAddr {
    addr(v6, "198.51.100.8", "2001:db8:c::8")
}

/// A frame of the client for the VIP, as the gateway hands it over.
pub fn to_vip(v6: bool) -> Frame {
    Frame::ip(client(v6), vip(v6)).macs(NODE_MAC, GATEWAY_MAC)
}

/// With ports: TCP with an ACK of nothing in particular, or UDP.
pub fn to_port(v6: bool, proto: u8, port: u16) -> Frame {
    let frame = to_vip(v6).payload_length(20);
    if proto == TCP {
        frame.tcp(CLIENT_PORT, port, "PA").ack(77)
    } else {
        frame.udp(CLIENT_PORT, port)
    }
}

/// A frame of the VIP's for the client, as this node sends it back.
pub fn from_vip(v6: bool) -> Frame {
    Frame::ip(vip(v6), client(v6)).macs(GATEWAY_MAC, NODE_MAC)
}

/// Name of family and protocol.
pub fn kind(v6: bool, proto: u8) -> String {
    format!("{} {}", if v6 { "v6" } else { "v4" }, if proto == TCP { "TCP" } else { "UDP" })
}

/// All four of family and protocol.
pub fn kinds() -> impl Iterator<Item = (bool, u8)> {
    [(false, TCP), (false, UDP), (true, TCP), (true, UDP)].into_iter()
}

/// The services above.
fn services() -> Vec<Service> {
    let mut services = Vec::new();
    for (v6, proto) in kinds() {
        let target = |addr, node| Target { addr, port: BACKEND_PORT, node };
        let local = target(local_backend(v6), 0);
        let remote = |node| target(remote_backend(v6), node);
        for (port, backends, flags) in [
            (LOCAL, vec![local], 0),
            (REMOTE, vec![remote(PEER)], 0),
            (EMPTY, vec![], 0),
            (LOCAL_ONLY, vec![], flags::LOCAL_ONLY),
            (STALE, vec![target(gone(v6), PEER)], 0),
            (NOWHERE, vec![remote(NODE_NOWHERE)], 0),
            (REMOTE_OVER_V6, vec![remote(PEER_OVER_V6)], 0),
            (REMOTE_ELSEWHERE, vec![remote(NODE_ELSEWHERE)], 0),
            (ALSO_LOCAL, vec![local], 0),
            (AFFINE, vec![local, remote(PEER)], flags::CLIENT_AFFINITY),
            (GUARDED, vec![remote(PEER)], 0),
            (GUARDED_LOCAL, vec![local], 0),
            (GUARDED_EMPTY, vec![], 0),
        ] {
            services.push(Service { vip: vip(v6), port, proto, backends, flags, slots: SLOTS });
        }
        services.extend(chain::pools(v6, proto).into_iter().map(|(service, _)| service));
    }
    services
}

/// A backend that has left.
fn gone(v6: bool) -> IpAddr {
    addr(v6, "10.1.0.9", "fd01::9")
}

/// A rig with the services above.
pub fn rig() -> Rig {
    filled(Rig::new().unwrap())
}

/// The same in a rig that limits new flows.
pub fn limiting_rig(new_flows: u32) -> Rig {
    filled(Rig::limited(new_flows).unwrap())
}

fn filled(mut rig: Rig) -> Rig {
    rig.hop(NODE_ELSEWHERE, hop_to_peer(OTHER_UPLINK, false)).unwrap();
    for (node, flags) in chain::NODES {
        rig.hop(node, Hop { flags, ..hop_to_peer(UPLINK, false) }).unwrap();
    }
    for service in services() {
        rig.service(&service).unwrap();
    }
    for (v6, proto) in kinds() {
        chain::load(&mut rig, v6, proto);
        for port in [GUARDED, GUARDED_LOCAL, GUARDED_EMPTY] {
            let service = rig.service_index(vip(v6), port, proto).unwrap();
            rig.ranges(service, &ranges(v6)).unwrap();
        }
    }
    for v6 in [false, true] {
        let stale =
            rig.backend(Target { addr: gone(v6), port: BACKEND_PORT, node: PEER }, TCP).unwrap();
        rig.forget_backend(stale).unwrap();
        rig.vip(other_vip(v6), Vip { announced_on: 0, flags: 0 }).unwrap();
    }
    rig
}

/// The same for the model.
pub fn model_world() -> World {
    let way = |same_interface, over_v6| Way { mtu: MTU as usize, same_interface, over_v6 };
    let both = [false, true];
    World {
        mac: NODE_MAC,
        own: both.map(own).to_vec(),
        tunnel_port: TUNNEL_PORT,
        vni: VNI,
        seed_tag: SEED_TAG,
        flow_key: FLOW_KEY,
        members: both.map(peer).to_vec(),
        vips: both
            .into_iter()
            .flat_map(|v6| {
                [
                    (vip(v6), VipState { announced: true, echo: true }),
                    (other_vip(v6), VipState { announced: false, echo: false }),
                ]
            })
            .collect(),
        services: services(),
        ranges: kinds()
            .flat_map(|(v6, proto)| {
                let guarded = [GUARDED, GUARDED_LOCAL, GUARDED_EMPTY];
                guarded.map(|port| ((vip(v6), port, proto), ranges(v6).to_vec()))
            })
            .collect(),
        gone: both.map(gone).to_vec(),
        ways: [
            (PEER, way(true, false)),
            (PEER_OVER_V6, way(true, true)),
            (NODE_ELSEWHERE, way(false, false)),
        ]
        .into_iter()
        .chain(chain::NODES.map(|(node, _)| (node, way(true, false))))
        .collect(),
        nodes: chain::NODES.into(),
        candidates: kinds()
            .flat_map(|(v6, proto)| chain::pools(v6, proto))
            .map(|(service, candidates)| ((service.vip, service.port, service.proto), candidates))
            .collect(),
    }
}

/// Which program a row runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Hook {
    Ingress,
    Egress,
}

/// What the frame must look like afterwards.
pub enum Output {
    Same,
    Is(Vec<u8>),
    /// From the tunnel's source port, which only the flow hash knows.
    Tunnel(Box<dyn Fn(u16) -> Frame>),
    /// It was dropped: nobody sees it.
    Gone,
}

/// One case.
pub struct Row {
    pub name: String,
    pub hook: Hook,
    /// Done before the run.
    pub before: Box<dyn Fn(&mut Rig)>,
    /// `before` changes the world, so the row needs a rig of its own.
    pub alone: bool,
    pub frame: Vec<u8>,
    pub action: Action,
    pub counts: Vec<Reason>,
    pub output: Output,
}

impl Row {
    fn new(name: String, frame: &Frame, action: Action, counts: &[Reason], output: Output) -> Self {
        Self {
            name,
            hook: Hook::Ingress,
            before: Box::new(|_| {}),
            alone: false,
            frame: frame.build(),
            action,
            counts: counts.to_vec(),
            output,
        }
    }

    pub fn dropped(name: impl Into<String>, frame: &Frame, why: Reason) -> Self {
        Self::new(name.into(), frame, Action::Drop, &[why], Output::Gone)
    }

    /// To the kernel as it came, and not counted.
    pub fn untouched(name: impl Into<String>, frame: &Frame) -> Self {
        Self::new(name.into(), frame, Action::Pass, &[], Output::Same)
    }

    pub fn passed(
        name: impl Into<String>,
        frame: &Frame,
        counts: &[Reason],
        output: &Frame,
    ) -> Self {
        Self::new(name.into(), frame, Action::Pass, counts, Output::Is(output.build()))
    }

    /// Sent back by the interface it came from.
    pub fn answered(name: impl Into<String>, frame: &Frame, why: Reason, output: &Frame) -> Self {
        Self::new(name.into(), frame, Action::Tx, &[why], Output::Is(output.build()))
    }

    pub fn tunnelled(
        name: impl Into<String>,
        frame: &Frame,
        action: Action,
        output: impl Fn(u16) -> Frame + 'static,
    ) -> Self {
        Self::sent(name, frame, action, &[Reason::Forwarded], output)
    }

    /// As `tunnelled`, for other reasons.
    pub fn sent(
        name: impl Into<String>,
        frame: &Frame,
        action: Action,
        counts: &[Reason],
        output: impl Fn(u16) -> Frame + 'static,
    ) -> Self {
        Self::new(name.into(), frame, action, counts, Output::Tunnel(Box::new(output)))
    }

    /// A backend's frame on its way out: changed if it is an answer, never stopped.
    pub fn leaving(
        name: impl Into<String>,
        frame: &Frame,
        counts: &[Reason],
        output: Output,
    ) -> Self {
        Self { hook: Hook::Egress, ..Self::new(name.into(), frame, Action::Next, counts, output) }
    }

    /// Behind other packets.
    pub fn after(mut self, before: impl Fn(&mut Rig) + 'static) -> Self {
        self.before = Box::new(before);
        self
    }

    /// In another world.
    pub fn changed(self, before: impl Fn(&mut Rig) + 'static) -> Self {
        Self { alone: true, ..self.after(before) }
    }

    fn run(&self, rig: &mut Rig) -> Outcome {
        (self.before)(rig);
        match self.hook {
            Hook::Ingress => rig.ingress(&self.frame),
            Hook::Egress => rig.egress(&self.frame),
        }
        .unwrap_or_else(|error| panic!("{}: {error:#}", self.name))
    }

    fn verify(&self, outcome: &Outcome) {
        let name = &self.name;
        assert_eq!((outcome.action, &outcome.reasons), (self.action, &self.counts), "{name}");
        // What is counted beside the fate counts the packet inside.
        let beside = outcome.reason_bytes as usize - self.frame.len() * self.counts.len().min(1);
        match self.counts.len() {
            0 | 1 => assert_eq!(beside, 0, "{name}: bytes counted"),
            more => assert!(beside.is_multiple_of(more - 1) && beside > 0, "{name}: bytes counted"),
        }
        let want = match &self.output {
            Output::Gone => return,
            Output::Same => self.frame.clone(),
            Output::Is(frame) => frame.clone(),
            Output::Tunnel(frame) => {
                let Some((port, _)) = unwrap_tunnel(&outcome.frame) else {
                    panic!(
                        "{name}: no tunnel packet: {:?}",
                        lb_tests::packet::describe(&outcome.frame)
                    );
                };
                assert!(port >= 0xc000, "{name}: source port {port} is no dynamic one");
                frame(port).build()
            }
        };
        assert_same(name, &self.frame, &want, &outcome.frame);
        if !matches!(self.output, Output::Same) {
            check(&outcome.frame).unwrap_or_else(|complaint| panic!("{name}: {complaint}"));
        }
    }
}

/// Runs all rows and fails with the names of all that went wrong.
pub fn run(rows: Vec<Row>) {
    let mut shared = rig();
    for row in &rows {
        if row.alone {
            row.verify(&row.run(&mut rig()));
        } else {
            shared.clear_arrivals().unwrap();
            row.verify(&row.run(&mut shared));
        }
    }
}

/// Runs a row whose state the clock undoes, until it was fast enough.
pub fn run_in_time(row: &Row, mut rig: Rig) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let outcome = row.run(&mut rig);
        if outcome.reasons == row.counts || Instant::now() > deadline {
            return row.verify(&outcome);
        }
    }
}
