//! What a scan of the arrivals finds in real maps, as the product fills them.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use lb_common::{
    arrival::flags,
    backend::BackendId,
    hash::{flow_hash, slot_of},
    net::{Flow, Port},
};
use lb_tests::plane::{Plane, key, seen};
use weir::{
    dataplane::maps::ArrivalMap,
    model::{ArrivalTimes, Protocol},
    plan::FrontendKey,
};

const HERE: &str = "10.1.0.1:8080";
const ELSEWHERE: &str = "10.2.0.1:8080";
const FLOWS: u16 = 500;

/// A pool of one backend here and one elsewhere behind a TCP and a UDP port; those that terminate take no
/// new flows.
fn text([here, elsewhere]: [bool; 2]) -> String {
    format!(
        "apiVersion: weir.dev/v1alpha1
kind: Agent
metadata: {{name: cluster}}
spec:
  node: here
  uplinks: [lo]
  seed: 0123456789abcdef
  limits: {{frontends: 8, ownerBlocks: 8192, backends: 16, nodes: 8, opening: 4096, established: 4096, datagrams: 4096}}
---
apiVersion: weir.dev/v1alpha1
kind: Node
metadata: {{name: here}}
spec: {{addresses: [192.0.2.1]}}
---
apiVersion: weir.dev/v1alpha1
kind: Node
metadata: {{name: elsewhere}}
spec: {{addresses: [192.0.2.2]}}
---
apiVersion: weir.dev/v1alpha1
kind: Frontend
metadata: {{name: web}}
spec:
  addresses: [198.51.100.1]
  ports:
  - {{port: 80, targetPort: 8080}}
  - {{port: 80, protocol: UDP, targetPort: 8080}}
  pool:
    members:
    - {{address: 10.1.0.1, node: here, terminating: {here}}}
    - {{address: 10.2.0.1, node: elsewhere, terminating: {elsewhere}}}
"
    )
}

fn frontend(protocol: Protocol) -> FrontendKey {
    FrontendKey { address: [198, 51, 100, 1].into(), port: 80, protocol }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The slot of the flow from client port `port`, reckoned without the product's scan.
fn slot(plane: &Plane, protocol: Protocol, port: u16) -> u16 {
    let endpoint = frontend(protocol).endpoint();
    let flow = Flow {
        client: std::net::IpAddr::from([203, 0, 113, 9]).into(),
        vip: endpoint.addr,
        client_port: Port::new(port),
        vip_port: endpoint.port,
        proto: protocol.number(),
    };
    slot_of(flow_hash(&plane.flow_key(), &flow), 4093) as u16
}

/// Flows of one client to a backend, of a map each protocol.
fn arrive(plane: &Plane, which: ArrivalMap, protocol: Protocol, backend: BackendId) {
    let service = plane.service(&frontend(protocol)).unwrap();
    let flow = |port| {
        (key([203, 0, 113, 9], port, backend), seen(service, 0, Duration::from_secs(1)).unwrap())
    };
    plane.arrive(which, (1..=FLOWS).map(flow)).unwrap();
}

#[test]
fn flows_in_slots_of_others_are_displaced_and_only_those() {
    let mut plane = Plane::new(&text([false, false])).unwrap();
    let (here, elsewhere) =
        (plane.backend(address(HERE)).unwrap(), plane.backend(address(ELSEWHERE)).unwrap());
    let mut scanner = plane.scanner().unwrap();
    arrive(&plane, ArrivalMap::Established, Protocol::Tcp, here);
    arrive(&plane, ArrivalMap::Datagrams, Protocol::Udp, here);
    // Of a backend elsewhere, of a life that is over, and of a frontend that is none.
    arrive(&plane, ArrivalMap::Opening, Protocol::Tcp, elsewhere);
    arrive(&plane, ArrivalMap::Opening, Protocol::Tcp, here.next_life());
    let of_none = seen(6, 0, Duration::ZERO).unwrap();
    plane.arrive(ArrivalMap::Opening, [(key([203, 0, 113, 7], 7, here), of_none)]).unwrap();

    let scan = scanner.scan().unwrap();
    assert_eq!(scan.arrivals, 4 * u64::from(FLOWS) + 1);
    assert_eq!(scan.flows, [(address(HERE), 2 * u64::from(FLOWS))].into());
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let service = plane.service(&frontend(protocol)).unwrap();
        let owners = plane.maps.owners_of(&plane.maps.service(service).unwrap().record);
        let slots = (1..=FLOWS).map(|port| slot(&plane, protocol, port));
        let lost: Vec<u16> = slots.filter(|slot| owners[usize::from(*slot)] != here).collect();
        let found = &scan.displaced[&frontend(protocol)][&address(HERE)];
        assert_eq!(found.flows, lost.len() as u64);
        assert_eq!(found.slots, lost.into_iter().collect::<BTreeSet<u16>>());
        assert!(found.flows > 100 && found.flows < 400, "{}", found.flows);
    }

    // Alone it owns all; when it terminates too, nobody owns anything.
    plane.apply(&text([false, true])).unwrap();
    assert!(scanner.scan().unwrap().displaced.is_empty());
    plane.apply(&text([true, true])).unwrap();
    let scan = scanner.scan().unwrap();
    let found = &scan.displaced[&frontend(Protocol::Tcp)][&address(HERE)];
    assert_eq!((found.flows, scan.forgotten), (u64::from(FLOWS), 0));
}

#[test]
fn flows_that_were_silent_for_too_long_are_forgotten_and_no_others() {
    let plane = Plane::new(&text([false, false])).unwrap();
    let here = plane.backend(address(HERE)).unwrap();
    let service = plane.service(&frontend(Protocol::Tcp)).unwrap();
    let times = ArrivalTimes::default();
    let fins = flags::CLIENT_FIN | flags::BACKEND_FIN;
    let (mut port, mut stay) = (0, Vec::new());
    for (which, flags, most) in [
        (ArrivalMap::Opening, 0, times.opening),
        (ArrivalMap::Established, 0, times.established),
        (ArrivalMap::Established, fins, times.closed),
        (ArrivalMap::Established, flags::BACKEND_RST, times.closed),
        (ArrivalMap::Datagrams, 0, times.datagrams),
    ] {
        for (ago, stays) in [(most * 9 / 10, true), (most + Duration::from_secs(1), false)] {
            port += 1;
            let key = key([203, 0, 113, 9], port, here);
            plane.arrive(which, [(key, seen(service, flags, ago).unwrap())]).unwrap();
            if stays {
                stay.push((which, key));
            }
        }
    }
    let mut scanner = plane.scanner().unwrap();
    let scan = scanner.scan().unwrap();
    assert_eq!((scan.arrivals, scan.forgotten), (10, 5));
    // What both sides have closed is no flow that a drain waits for.
    assert_eq!(scan.flows, [(address(HERE), 3)].into());
    for which in ArrivalMap::ALL {
        for found in plane.maps.arrivals(which).iter() {
            let (key, _) = found.unwrap();
            assert!(stay.contains(&(which, key)), "{which:?} {key:?}");
        }
    }
    assert_eq!(scanner.scan().unwrap().arrivals, 5);
}
