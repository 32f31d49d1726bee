//! The rows of the bench: which packet, which program, and what the maps hold.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use lb_common::abi::{BLOCK_SLOTS, capacity, map};
use lb_common::arrival::{Arrival, ArrivalKey};
use lb_common::frontend::filter_position;
use lb_common::net::{Addr, Port};

use super::against::TOO_OLD;
use super::template::{FIRST_ADDRESS, TEMPLATE, Template, client};
use super::{EGRESS, FLOWS, INGRESS, Rigs};
use crate::packet::{Frame, Outer, Tunnel};
use crate::rig::{
    GATEWAY_MAC, NODE_MAC, Rig, SEED_TAG, Service, TUNNEL_PORT, Target, UPLINK, VNI, hop_to_peer,
    own, peer,
};

/// Services loaded.
pub const SERVICES: usize = 10_000;
/// Different pools among them, and backends in each.
const POOLS: usize = 250;
const BACKENDS: usize = 10;
const SLOTS: u32 = 4093;
/// Nodes that the backends are on.
const NODES: u32 = 10;

const TCP: u8 = 6;
const UDP: u8 = 17;
const PORT: u16 = 443;
/// The port whose backend is on this node.
const LOCAL_PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;

/// Length of every frame: more than any template.
const FRAME: usize = 256;

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
/// `TC_ACT_UNSPEC`.
const TC_NEXT: u32 = u32::MAX;

/// Arrivals of both families at the most flows, without eviction.
const ARRIVALS: u32 = 4 * FLOWS[2];

pub const SIZES: &[(&str, u32)] = &[
    (map::FRONTENDS, 16_384),
    (map::FRONTEND_OF, 32_768),
    (map::SERVICES, 32_768),
    (map::RECORDS, 65_536),
    (map::OWNERS, (POOLS as u32 + 8) * SLOTS.div_ceil(BLOCK_SLOTS)),
    (map::BACKENDS, capacity::BACKENDS),
    (map::ESTABLISHED, ARRIVALS),
    (map::SERVICE_COUNTERS, 32_768),
    (map::BACKEND_COUNTERS, capacity::BACKENDS),
];

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hook {
    Xdp,
    Tc,
}

/// A program, by its name in the object that has it.
#[derive(Clone, Copy, Debug)]
pub enum Loaded {
    Product(&'static str),
    Bench(&'static str),
}

/// One row: a packet, the program that meets it, and the verdict that every run must give.
pub struct Cell {
    pub name: &'static str,
    pub hook: Hook,
    pub program: Loaded,
    pub verdict: u32,
    pub frame: Vec<u8>,
    /// Bytes that a run may change, all in front.
    restored: usize,
    address_at: usize,
    port_at: usize,
}

impl Cell {
    /// What the wrapper is to do before each run.
    pub fn template(&self, flows: u32) -> Template {
        let mut bytes = [0; TEMPLATE];
        bytes.copy_from_slice(&self.frame[..TEMPLATE]);
        Template {
            words: bytemuck::cast(bytes),
            restored: self.restored.div_ceil(8) as u32,
            length: self.frame.len() as u32,
            address_at: self.address_at as u32,
            port_at: self.port_at as u32,
            flows,
            pad: 0,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }
}

/// The client's address: its last four bytes vary.
fn client_addr(v6: bool, last: u32) -> IpAddr {
    let [a, b, c, d] = last.to_be_bytes();
    if v6 {
        let [e, f] = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, e, f).into()
    } else {
        Ipv4Addr::new(a, b, c, d).into()
    }
}

fn vip(v6: bool, index: usize) -> IpAddr {
    let [high, low] = (index as u16).to_be_bytes();
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0x5, 0, 0, 0, 0, index as u16).into()
    } else {
        Ipv4Addr::new(192, 168, high, low).into()
    }
}

fn target(v6: bool, pool: usize, index: usize, node: u32) -> Target {
    let number = (pool * BACKENDS + index) as u16;
    let [high, low] = number.to_be_bytes();
    let addr: IpAddr = if v6 {
        Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, node as u16, number).into()
    } else {
        Ipv4Addr::new(10, 100 + node as u8, high, low).into()
    };
    Target { addr, port: BACKEND_PORT, node }
}

/// An address whose bit in the filter no VIP sets.
fn stranger(v6: bool) -> IpAddr {
    let taken: Vec<_> = (0..SERVICES / 10)
        .flat_map(|index| [vip(false, index), vip(true, index)])
        .map(|vip| filter_position(&Addr::from(vip)))
        .collect();
    (0..u16::MAX)
        .map(|low| -> IpAddr {
            let [c, d] = low.to_be_bytes();
            if v6 {
                Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, low).into()
            } else {
                Ipv4Addr::new(203, 0, c, d).into()
            }
        })
        .find(|addr| !taken.contains(&filter_position(&Addr::from(*addr))))
        .expect("a thousand VIPs set few of the filter's bits")
}

/// Ten thousand services: a thousand VIPs of both families, with ten ports each. The first VIP of each
/// family has the services that packets are sent to.
fn load(rig: &mut Rig) -> Result<()> {
    for node in 1..=NODES {
        rig.hop(node, hop_to_peer(UPLINK, false))?;
    }
    let mut loaded = 0;
    for v6 in [false, true] {
        for (port, proto) in [(PORT, TCP), (PORT, UDP), (LOCAL_PORT, TCP), (LOCAL_PORT, UDP)] {
            let backends = match port {
                LOCAL_PORT => vec![target(v6, 0, 0, 0)],
                _ => (0..BACKENDS)
                    .map(|index| target(v6, 0, index, 1 + index as u32 % NODES))
                    .collect(),
            };
            rig.service(&Service {
                vip: vip(v6, 0),
                port,
                proto,
                backends,
                flags: 0,
                slots: SLOTS,
            })?;
            loaded += 1;
        }
    }
    for number in 0..SERVICES - loaded {
        let v6 = number % 2 == 1;
        let pool = 1 + number / 2 % (POOLS / 2);
        let backends =
            (0..BACKENDS).map(|index| target(v6, pool, index, 1 + index as u32 % NODES)).collect();
        let port = 1000 + (number / 2 % 10) as u16;
        rig.service(&Service {
            vip: vip(v6, 1 + number / 20),
            port,
            proto: TCP,
            backends,
            flags: 0,
            slots: SLOTS,
        })?;
    }
    Ok(())
}

/// Makes every flow known at the local backend.
fn know(rig: &mut Rig, v6: bool) -> Result<()> {
    let id = rig.backend(target(v6, 0, 0, 0), TCP)?;
    let service = rig.service_index(vip(v6, 0), LOCAL_PORT, TCP)?;
    let established = rig.writer(map::ESTABLISHED)?;
    for flow in 0..FLOWS[2] {
        let (last, port) = client(flow);
        let key = ArrivalKey::new(client_addr(v6, last).into(), Port::new(port), id);
        established.put(&key, &Arrival { service, ..Default::default() })?;
    }
    Ok(())
}

/// Fills the maps of a product.
fn fill(product: &mut Rig) -> Result<()> {
    load(product)?;
    know(product, false)?;
    know(product, true)
}

/// Fills the maps and lists the rows.
pub fn all(rigs: &mut Rigs) -> Result<Vec<Cell>> {
    fill(&mut rigs.product)?;
    load(&mut rigs.bench)?;
    if let Some(earlier) = &mut rigs.earlier {
        fill(&mut earlier.rig).context(TOO_OLD)?;
    }
    let ingress = Loaded::Product(INGRESS);
    let floor = to(false, stranger(false), TCP, PORT);
    let mut cells = vec![xdp("floor", Loaded::Bench("floor_xdp"), XDP_PASS, floor)];
    for (name, v6) in [("not_ours_v4", false), ("not_ours_v6", true)] {
        cells.push(xdp(name, ingress, XDP_PASS, to(v6, stranger(v6), TCP, PORT)));
    }
    for (name, control, v6, proto) in [
        ("forward_v4_tcp", "control_v4_tcp", false, TCP),
        ("forward_v4_udp", "control_v4_udp", false, UDP),
        ("forward_v6_tcp", "control_v6_tcp", true, TCP),
        ("forward_v6_udp", "control_v6_udp", true, UDP),
    ] {
        let frame = to(v6, vip(v6, 0), proto, PORT);
        cells.push(xdp(name, ingress, XDP_TX, frame.clone()));
        cells.push(xdp(control, Loaded::Bench("control"), XDP_TX, frame));
    }
    for (name, v6) in [("receive_v4_tcp", false), ("receive_v6_tcp", true)] {
        cells.push(received(name, ingress, v6));
    }
    cells.push(leaving("floor_egress", Loaded::Bench("floor_tc"), false));
    for (name, v6) in [("egress_v4_tcp", false), ("egress_v6_tcp", true)] {
        cells.push(leaving(name, Loaded::Product(EGRESS), v6));
    }
    Ok(cells)
}

/// Sizes of Ethernet and IP headers together, and where addresses end.
const fn l4(v6: bool) -> usize {
    if v6 { 54 } else { 34 }
}

/// A client's frame.
fn to(v6: bool, destination: IpAddr, proto: u8, port: u16) -> (bool, Frame) {
    let frame = Frame::ip(client_addr(v6, FIRST_ADDRESS), destination).macs(NODE_MAC, GATEWAY_MAC);
    let (first, port) = (client(0).1, port);
    let frame = match proto {
        TCP => frame.tcp(first, port, "A").payload_length(FRAME - l4(v6) - 20),
        _ => frame.udp(first, port).payload_length(FRAME - l4(v6) - 8),
    };
    (v6, frame)
}

fn xdp(name: &'static str, program: Loaded, verdict: u32, (v6, frame): (bool, Frame)) -> Cell {
    Cell {
        name,
        hook: Hook::Xdp,
        program,
        verdict,
        frame: frame.build(),
        // A forwarder changes Ethernet and TTL, and needs a client and a port.
        restored: l4(v6) + 4,
        // The source address is the last but one.
        address_at: l4(v6) - if v6 { 20 } else { 8 },
        port_at: l4(v6),
    }
}

/// A known flow's packet out of the tunnel, which is over IPv4.
fn received(name: &'static str, program: Loaded, v6: bool) -> Cell {
    /// Outer IPv4, UDP and our Geneve headers.
    const OUTER: usize = 84;
    let (_, inner) = to(v6, vip(v6, 0), TCP, LOCAL_PORT);
    let outer =
        Outer::new(peer(false), own(false), 0xc000, TUNNEL_PORT).macs(NODE_MAC, GATEWAY_MAC);
    let backend = target(v6, 0, 0, 0);
    let frame = Tunnel::new(VNI, SEED_TAG, backend.addr, backend.port)
        .carry(&outer, &inner.packet())
        .build();
    let inner_l4 = OUTER + l4(v6);
    Cell {
        name,
        hook: Hook::Xdp,
        program,
        verdict: XDP_PASS,
        frame,
        restored: inner_l4 + 20,
        address_at: inner_l4 - if v6 { 20 } else { 8 },
        port_at: inner_l4,
    }
}

/// The local backend's answer to a known flow.
fn leaving(name: &'static str, program: Loaded, v6: bool) -> Cell {
    let frame = Frame::ip(target(v6, 0, 0, 0).addr, client_addr(v6, FIRST_ADDRESS))
        .macs(GATEWAY_MAC, NODE_MAC)
        .tcp(BACKEND_PORT, client(0).1, "A")
        .payload_length(FRAME - l4(v6) - 20);
    Cell {
        name,
        hook: Hook::Tc,
        program,
        verdict: TC_NEXT,
        frame: frame.build(),
        restored: l4(v6) + 20,
        address_at: l4(v6) - 4,
        port_at: l4(v6) + 2,
    }
}
