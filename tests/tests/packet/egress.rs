//! The return: what leaves by the uplinks, with the VIP put back where a flow came through one.

use lb_common::reason::Reason;
use lb_tests::packet::Frame;
use lb_tests::rig::{GATEWAY_MAC, MSS, NODE_MAC, Rig};

use crate::world::*;

/// First sequence number of the client, and of the backend.
pub const CLIENT_SEQ: u32 = u32::MAX;
pub const BACKEND_SEQ: u32 = 0xffff_fff0;

/// A frame of the backend for the client, as the host routes it out.
pub fn from_backend(v6: bool) -> Frame {
    Frame::ip(local_backend(v6), client(v6)).macs(GATEWAY_MAC, NODE_MAC).ttl(63)
}

/// The client's SYN.
pub fn syn(v6: bool) -> Frame {
    to_vip(v6).tcp(CLIENT_PORT, LOCAL, "S").seq(CLIENT_SEQ).mss(1460)
}

/// The backend's SYN-ACK.
pub fn accept(v6: bool) -> Frame {
    from_backend(v6)
        .tcp(BACKEND_PORT, CLIENT_PORT, "SA")
        .seq(BACKEND_SEQ)
        .ack(CLIENT_SEQ.wrapping_add(1))
}

/// The client's ACK, by which it is known to have heard the backend.
pub fn ack(v6: bool) -> Frame {
    to_vip(v6)
        .tcp(CLIENT_PORT, LOCAL, "A")
        .seq(CLIENT_SEQ.wrapping_add(1))
        .ack(BACKEND_SEQ.wrapping_add(1))
}

pub fn handshake(rig: &mut Rig, v6: bool) {
    rig.ingress(&syn(v6).build()).unwrap();
    rig.egress(&accept(v6).build()).unwrap();
    rig.ingress(&ack(v6).build()).unwrap();
}

fn returned(frame: &Frame, v6: bool) -> Frame {
    frame.clone().addresses(vip(v6), client(v6)).ports(LOCAL, CLIENT_PORT)
}

fn is(frame: &Frame) -> Output {
    Output::Is(frame.build())
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for v6 in [false, true] {
        tcp(&mut rows, v6);
        mss(&mut rows, v6);
        udp(&mut rows, v6);
        others(&mut rows, v6);
        clash(&mut rows, v6);
    }
    rows
}

fn tcp(rows: &mut Vec<Row>, v6: bool) {
    let family = if v6 { "v6" } else { "v4" };
    let mut row = |name: &str, frame: Frame, prepare: fn(&mut Rig, bool)| {
        let output = is(&returned(&frame, v6));
        rows.push(
            Row::leaving(format!("{family} return: {name}"), &frame, &[Reason::Returned], output)
                .after(move |rig| prepare(rig, v6)),
        );
    };
    let opened = |rig: &mut Rig, v6| {
        rig.ingress(&syn(v6).build()).unwrap();
    };
    row("SYN-ACK", accept(v6), opened);
    row("SYN-ACK again, as it crosses the client's answer", accept(v6), handshake);
    row("SYN-ACK again", accept(v6), |rig, v6| {
        rig.ingress(&syn(v6).build()).unwrap();
        rig.egress(&accept(v6).build()).unwrap();
    });
    row(
        "RST of a closed port",
        from_backend(v6).tcp(BACKEND_PORT, CLIENT_PORT, "RA").ack(0),
        opened,
    );
    let data = from_backend(v6)
        .tcp(BACKEND_PORT, CLIENT_PORT, "PA")
        .seq(BACKEND_SEQ.wrapping_add(1))
        .ack(0);
    row("data", data.clone().payload_length(100), handshake);
    row("odd data", data.clone().payload(b"x"), handshake);
    row("1,500 bytes", data.clone().payload_length(1440), handshake);
    row("FIN", data.clone().tcp(BACKEND_PORT, CLIENT_PORT, "FA"), handshake);
    row("tagged data", data.clone().payload_length(9).vlan(7), handshake);
    row("two tags", data.clone().payload_length(9).tag(0x88a8, 7).vlan(8), handshake);
    row("DSCP stays", data.clone().tos(0xb9), handshake);
    if v6 {
        row("extension headers", data.clone().extension(0, 1).extension(60, 2), handshake);
    } else {
        row("IP options", data.clone().options(&[0x94, 4, 0, 0]), handshake);
    }
}

/// The MSS option at every place, and where it is left alone.
fn mss(rows: &mut Vec<Row>, v6: bool) {
    let family = if v6 { "v6" } else { "v4" };
    let limit = MSS[usize::from(v6)] as u16;
    let [high, low] = limit.to_be_bytes();
    let (big_high, big_low) = (1460u16.to_be_bytes()[0], 1460u16.to_be_bytes()[1]);
    let cases: [(&str, Vec<u8>, Vec<u8>); 9] = [
        ("first", vec![2, 4, big_high, big_low, 1, 3, 3, 7], vec![2, 4, high, low, 1, 3, 3, 7]),
        (
            "at an odd place",
            vec![1, 2, 4, big_high, big_low, 1, 1, 0],
            vec![1, 2, 4, high, low, 1, 1, 0],
        ),
        ("last", vec![1, 1, 4, 2, 2, 4, big_high, big_low], vec![1, 1, 4, 2, 2, 4, high, low]),
        (
            "behind timestamps",
            [vec![8, 10, 1, 2, 3, 4, 5, 6, 7, 8], vec![2, 4, 0xff, 0xff, 0, 0]].concat(),
            [vec![8, 10, 1, 2, 3, 4, 5, 6, 7, 8], vec![2, 4, high, low, 0, 0]].concat(),
        ),
        ("small enough", vec![2, 4, 2, 0], vec![2, 4, 2, 0]),
        ("just right", vec![2, 4, high, low], vec![2, 4, high, low]),
        ("none", vec![1, 1, 1, 0], vec![1, 1, 1, 0]),
        ("behind the end", vec![0, 2, 4, 0xff, 0xff, 0, 0, 0], vec![0, 2, 4, 0xff, 0xff, 0, 0, 0]),
        ("cut short", vec![1, 1, 2, 4], vec![1, 1, 2, 4]),
    ];
    for (name, before, after) in cases {
        let frame = accept(v6).tcp_options(&before);
        let output = is(&returned(&accept(v6).tcp_options(&after), v6));
        rows.push(
            Row::leaving(format!("{family} MSS {name}"), &frame, &[Reason::Returned], output)
                .after(move |rig| {
                    rig.ingress(&syn(v6).build()).unwrap();
                }),
        );
    }
    let data =
        from_backend(v6).tcp(BACKEND_PORT, CLIENT_PORT, "A").tcp_options(&[2, 4, 0xff, 0xff]);
    rows.push(
        Row::leaving(
            format!("{family} MSS of no SYN-ACK"),
            &data,
            &[Reason::Returned],
            is(&returned(&data, v6)),
        )
        .after(move |rig| handshake(rig, v6)),
    );
}

fn udp(rows: &mut Vec<Row>, v6: bool) {
    let family = if v6 { "v6" } else { "v4" };
    let mut row = |name: &str, frame: Frame| {
        let output = is(&returned(&frame, v6));
        rows.push(
            Row::leaving(
                format!("{family} return: UDP, {name}"),
                &frame,
                &[Reason::Returned],
                output,
            )
            .after(move |rig| {
                rig.ingress(&to_port(v6, UDP, LOCAL).build()).unwrap();
            }),
        );
    };
    let frame = from_backend(v6).udp(BACKEND_PORT, CLIENT_PORT);
    row("100 bytes", frame.clone().payload_length(100));
    row("no payload", frame.clone());
    row("tagged", frame.clone().payload(b"x").vlan(7));
    if !v6 {
        row("without checksum stays without", frame.clone().payload(b"x").no_checksum());
    }
    // Two bytes that make the checksum come out as 0, which is sent as all ones (RFC 768).
    let zero = (0..=u16::MAX)
        .map(|word| frame.clone().payload(&word.to_be_bytes()))
        .find(|frame| returned(frame, v6).build().ends_with_checksum(v6))
        .expect("some word gives that sum");
    row("checksum that comes out as 0", zero);
}

trait EndsWithChecksum {
    fn ends_with_checksum(&self, v6: bool) -> bool;
}

impl EndsWithChecksum for Vec<u8> {
    /// Whether the UDP checksum is all ones.
    fn ends_with_checksum(&self, v6: bool) -> bool {
        let at = 14 + if v6 { 40 } else { 20 } + 6;
        self[at..at + 2] == [0xff, 0xff]
    }
}

/// What stays as it is.
fn others(rows: &mut Vec<Row>, v6: bool) {
    let family = if v6 { "v6" } else { "v4" };
    let mut row = |name: &str, frame: Frame, counts: &[Reason]| {
        rows.push(Row::leaving(
            format!("{family} leaves alone: {name}"),
            &frame,
            counts,
            Output::Same,
        ));
    };
    let backend = |letters: &str| from_backend(v6).tcp(BACKEND_PORT, CLIENT_PORT, letters);
    row("backend's data of no flow", backend("A"), &[Reason::ReturnUnknown]);
    row(
        "backend's UDP of no flow",
        from_backend(v6).udp(BACKEND_PORT, CLIENT_PORT),
        &[Reason::ReturnUnknown],
    );
    row("backend's SYN", backend("S"), &[Reason::ReturnUnknown]);
    row("backend's SYN-ACK to a direct client", accept(v6), &[Reason::ReturnNotOpening]);
    row("backend's fragment", backend("A").fragment(0, true).payload_length(24), &[]);
    row("backend's echo", from_backend(v6).icmp(8, 0, [0; 4]), &[]);
    row("other port of the backend", from_backend(v6).tcp(1, CLIENT_PORT, "A"), &[]);
    row(
        "other host",
        from_backend(v6).addresses(stranger(v6), client(v6)).tcp(BACKEND_PORT, CLIENT_PORT, "A"),
        &[],
    );
    row(
        "backend of another node",
        from_backend(v6).addresses(remote_backend(v6), client(v6)).tcp(
            BACKEND_PORT,
            CLIENT_PORT,
            "A",
        ),
        &[],
    );
    row("cut in the transport header", backend("A").truncate(14 + if v6 { 50 } else { 30 }), &[]);
    rows.push(
        Row::leaving(
            format!("{family} leaves alone: SYN-ACK of another handshake"),
            &accept(v6).ack(7),
            &[Reason::ReturnNotOpening],
            Output::Same,
        )
        .after(move |rig| {
            rig.ingress(&syn(v6).build()).unwrap();
        }),
    );
    if !v6 {
        let arp = Frame::arp(
            1,
            (NODE_MAC, "10.1.0.1".parse().unwrap()),
            ([0; 6], "10.1.0.9".parse().unwrap()),
        );
        rows.push(Row::leaving("leaves alone: ARP", &arp, &[], Output::Same));
    }
}

/// One client port towards two frontends over one backend.
fn clash(rows: &mut Vec<Row>, v6: bool) {
    let family = if v6 { "v6" } else { "v4" };
    let second = to_vip(v6).tcp(CLIENT_PORT, ALSO_LOCAL, "S");
    rows.push(
        Row::dropped(
            format!("{family} clash of two frontends over one backend"),
            &second,
            Reason::Clash,
        )
        .after(move |rig| handshake(rig, v6)),
    );
    // While the first has not been accepted, the later handshake wins.
    let delivered =
        second.clone().addresses(client(v6), local_backend(v6)).ports(CLIENT_PORT, BACKEND_PORT);
    rows.push(
        Row::passed(
            format!("{family} no clash with an opening"),
            &second,
            &[Reason::DeliveredLocal],
            &delivered,
        )
        .after(move |rig| {
            rig.ingress(&syn(v6).build()).unwrap();
        }),
    );
    let again = syn(v6);
    let delivered =
        again.clone().addresses(client(v6), local_backend(v6)).ports(CLIENT_PORT, BACKEND_PORT);
    rows.push(
        Row::passed(
            format!("{family} no clash with the same frontend"),
            &again,
            &[Reason::DeliveredLocal],
            &delivered,
        )
        .after(move |rig| handshake(rig, v6)),
    );
}
