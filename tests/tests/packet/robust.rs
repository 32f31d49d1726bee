//! Frames that nobody would send: cut at every length, mutated, random. Never a crash, never a
//! packet sent on wrongly, never a changed byte in what is not ours; and the fate is the model's.

use lb_common::abi::{budget, program};
use lb_common::reason::Reason;
use lb_tests::model::Model;
use lb_tests::packet::{Frame, Outer, Probe, Tunnel, hex};
use lb_tests::random::Random;
use lb_tests::rig::{Action, GATEWAY_MAC, NODE_MAC, Rig, SEED_TAG, TUNNEL_PORT, VNI, own, peer};

use crate::egress::{accept, from_backend, handshake};
use crate::world::*;

/// Shortest frame that a test run takes.
const SHORTEST: usize = 14;

/// Ports of pools of every kind, but for those of [`crate::chain`].
const PORTS: [u16; 13] = [
    LOCAL,
    REMOTE,
    REMOTE_OVER_V6,
    EMPTY,
    CLOSED,
    LOCAL_ONLY,
    STALE,
    NOWHERE,
    ALSO_LOCAL,
    AFFINE,
    GUARDED,
    GUARDED_LOCAL,
    GUARDED_EMPTY,
];

/// Frames of flows that nobody knows.
fn unknown() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let outer =
        Outer::new(peer(false), own(false), 0xc123, TUNNEL_PORT).macs(NODE_MAC, GATEWAY_MAC);
    for (v6, proto) in kinds() {
        let tunnel = Tunnel::new(VNI, SEED_TAG, local_backend(v6), BACKEND_PORT);
        let young = Tunnel { data_flags: 1, visited: [1, 2, 3, 0, 0, 0, 0], ..tunnel.clone() };
        for port in PORTS.into_iter().chain(crate::chain::PORTS) {
            frames.push(to_port(v6, proto, port));
            let syn = to_vip(v6).tcp(CLIENT_PORT, port, "S");
            for packet in [to_port(v6, proto, port), syn] {
                frames.push(tunnel.carry(&outer, &packet.packet()));
                frames.push(young.carry(&outer, &packet.packet()));
            }
        }
    }
    frames.iter().map(Frame::build).collect()
}

/// Frames of every other kind that weir handles.
fn samples() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (v6, proto) in kinds() {
        for port in PORTS {
            frames.push(to_port(v6, proto, port));
        }
        frames.push(to_port(v6, proto, LOCAL).vlan(7));
        frames.push(to_port(v6, proto, REMOTE).tag(0x88a8, 7).vlan(8));
        frames.push(to_port(v6, proto, LOCAL).addresses(client(v6), stranger(v6)));
        for over_v6 in [false, true] {
            let outer = Outer::new(peer(over_v6), own(over_v6), 0xc123, TUNNEL_PORT)
                .macs(NODE_MAC, GATEWAY_MAC);
            let tunnel = Tunnel::new(VNI, SEED_TAG, local_backend(v6), BACKEND_PORT);
            frames.push(tunnel.carry(&outer, &to_port(v6, proto, REMOTE).packet()));
            frames.push(Probe::ask(VNI, SEED_TAG, [9; 8]).frame(&outer));
            frames.push(Tunnel::yields(VNI, SEED_TAG, other_vip(v6)).carry(&outer, &[]));
        }
    }
    for v6 in [false, true] {
        frames.push(to_vip(v6).icmp(if v6 { 128 } else { 8 }, 0, [1, 2, 3, 4]).payload_length(40));
        frames.push(to_vip(v6).proto(132).payload_length(20));
        frames.push(to_vip(v6).tcp(CLIENT_PORT, CLOSED, "S").mss(1460));
    }
    frames.push(to_port(false, TCP, LOCAL).options(&[0x94, 4, 0, 0]));
    frames.push(to_port(true, TCP, REMOTE).extension(0, 1).extension(60, 2));
    frames.push(
        Frame::arp(
            1,
            (GATEWAY_MAC, "198.51.100.7".parse().unwrap()),
            ([0; 6], "192.0.2.1".parse().unwrap()),
        )
        .macs([0xff; 6], GATEWAY_MAC),
    );
    let claimed = (GATEWAY_MAC, "192.0.2.1".parse().unwrap());
    frames.push(Frame::arp(1, claimed, claimed).macs([0xff; 6], GATEWAY_MAC));
    frames.push(Frame::solicitation(
        "2001:db8:c::7".parse().unwrap(),
        GATEWAY_MAC,
        "2001:db8::1".parse().unwrap(),
    ));
    frames.iter().map(Frame::build).collect()
}

#[test]
fn frames_cut_at_every_length_meet_the_models_fate() {
    let (mut rig, model) = (rig(), model());
    for frame in samples() {
        for length in SHORTEST..=frame.len() {
            compare(&mut rig, &model, &frame[..length]);
        }
    }
}

#[test]
fn answers_cut_at_every_length_leave_as_they_came() {
    for v6 in [false, true] {
        let mut rig = rig();
        handshake(&mut rig, v6);
        let data = from_backend(v6).tcp(BACKEND_PORT, CLIENT_PORT, "PA").payload_length(40).build();
        let syn_ack = accept(v6).tcp_options(&[1, 2, 4, 0xff, 0xff, 0, 0, 0]).build();
        for frame in [data, syn_ack] {
            for length in shortest(&frame)..frame.len() {
                let outcome = rig.egress(&frame[..length]).unwrap();
                assert_eq!(
                    (outcome.action, outcome.reasons),
                    (Action::Next, vec![]),
                    "{length} bytes"
                );
                assert_eq!(outcome.frame, frame[..length], "{length} bytes");
            }
        }
    }
}

/// Shortest frame that tc's test run takes: a whole IP header where the type says IP.
fn shortest(frame: &[u8]) -> usize {
    SHORTEST
        + match frame[12..14] {
            [8, 0] => 20,
            [0x86, 0xdd] => 40,
            _ => 1,
        }
}

fn model() -> Model {
    Model::new(crate::world::model_world())
}

/// One run against the model: verdict, reason, and no changed byte in what is passed untouched.
fn compare(rig: &mut Rig, model: &Model, frame: &[u8]) {
    let outcome = rig.ingress(frame).unwrap();
    let fate = model.fate(frame);
    let same =
        (outcome.action, outcome.reasons.as_slice()) == (fate.action, fate.reasons.as_slice());
    if !same || (fate.reasons.is_empty() && outcome.frame != frame) {
        let path = lb_tests::rig::dump("model", &[frame, &outcome.frame]).unwrap();
        panic!(
            "model: {:?} {:?}, program: {:?} {:?} ({} bytes; capture {})\n{}",
            fate.action,
            fate.reasons,
            outcome.action,
            outcome.reasons,
            frame.len(),
            path.display(),
            hex(frame)
        );
    }
    if outcome.action == Action::Tx || outcome.action == Action::Redirect {
        assert!(!outcome.reasons.is_empty(), "sent without a reason\n{}", hex(frame));
    }
}

/// Mutated frames a run: `WEIR_FUZZ` sets another number for a longer hunt.
const MUTATIONS: u64 = 100_000;

/// Frames between two looks at the counters.
const BATCH: usize = 256;

#[test]
fn mutated_frames_meet_the_models_fate() {
    let number = |name: &str, default| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
    };
    let (mut rig, model, samples) = (rig(), model(), [samples(), unknown()].concat());
    let mut random = Random::new(number("WEIR_FUZZ_SEED", 1));
    for _ in 0..number("WEIR_FUZZ", MUTATIONS).div_ceil(BATCH as u64) {
        let frames: Vec<_> = (0..BATCH)
            .map(|_| mutate(&samples[random.below(samples.len())], &mut random))
            .collect();
        forget(&mut rig);
        if !agree(&mut rig, &model, &frames) {
            // One by one: to find the frame and say what became of it, or since one left something
            // behind that the next one met.
            for frame in &frames {
                forget(&mut rig);
                compare(&mut rig, &model, frame);
            }
        }
    }
}

/// What the model does not know of: arrivals, yields, limits that are used up, what was counted before.
fn forget(rig: &mut Rig) {
    rig.reasons().unwrap();
    rig.clear_arrivals().unwrap();
    rig.clear_yields().unwrap();
    for index in 0..budget::ENTRIES {
        rig.budget(index, 0).unwrap();
    }
}

/// Whether all verdicts and the sum of all reasons are the model's, and what it passes untouched is.
fn agree(rig: &mut Rig, model: &Model, frames: &[Vec<u8>]) -> bool {
    let mut expected = std::collections::BTreeMap::new();
    let mut same = true;
    for frame in frames {
        let (action, after) = rig.verdict(program::INGRESS, frame).unwrap();
        let fate = model.fate(frame);
        same &= action == fate.action && (!fate.reasons.is_empty() || after == *frame);
        for reason in fate.reasons {
            *expected.entry(reason).or_insert(0) += 1;
        }
    }
    same && rig.reasons().unwrap().0 == expected
}

/// Some bytes changed, the frame cut or grown; now and then nothing but noise.
fn mutate(sample: &[u8], random: &mut Random) -> Vec<u8> {
    if random.below(50) == 0 {
        return (0..SHORTEST + random.below(150)).map(|_| random.next() as u8).collect();
    }
    let mut frame = sample.to_vec();
    for _ in 0..random.below(5) {
        let at = random.below(frame.len());
        frame[at] = match random.below(4) {
            0 => random.next() as u8,
            1 => frame[at] ^ 1 << random.below(8),
            2 => 0,
            _ => 0xff,
        };
    }
    match random.below(8) {
        0 => frame.truncate(SHORTEST + random.below(frame.len() - SHORTEST + 1)),
        1 => frame.extend((0..random.below(64)).map(|_| random.next() as u8)),
        _ => {}
    }
    frame
}

#[test]
fn mutated_answers_are_never_stopped() {
    let mut rig = rig();
    for v6 in [false, true] {
        handshake(&mut rig, v6);
        rig.ingress(&to_port(v6, UDP, LOCAL).build()).unwrap();
    }
    let mut samples = Vec::new();
    for v6 in [false, true] {
        samples
            .push(from_backend(v6).tcp(BACKEND_PORT, CLIENT_PORT, "PA").payload_length(40).build());
        samples.push(accept(v6).mss(1460).build());
        samples.push(
            from_backend(v6).udp(BACKEND_PORT, CLIENT_PORT).payload_length(40).vlan(7).build(),
        );
    }
    let mut random = Random::new(2);
    for _ in 0..MUTATIONS / 4 {
        let frame = mutate(&samples[random.below(samples.len())], &mut random);
        if frame.len() < shortest(&frame) {
            continue;
        }
        let (action, after) = rig.verdict(program::EGRESS, &frame).unwrap();
        assert_eq!(action, Action::Next, "{}", hex(&frame));
        assert_eq!(after.len(), frame.len(), "{}", hex(&frame));
    }
}

/// A 9,000-byte frame lies in several buffers; its headers are all in the first.
#[test]
fn jumbo_frames_are_forwarded_where_they_fit_and_answered_where_not() {
    let mut rig = rig();
    for (v6, proto) in kinds() {
        let frame = to_port(v6, proto, LOCAL).payload_length(8900).build();
        let outcome = rig.ingress(&frame).unwrap();
        assert_eq!((outcome.action, outcome.reasons), (Action::Pass, vec![Reason::DeliveredLocal]));
        assert_eq!(outcome.frame.len(), frame.len());
        let frame = to_port(v6, proto, REMOTE).payload_length(8900).build();
        let outcome = rig.ingress(&frame).unwrap();
        assert_eq!((outcome.action, outcome.reasons), (Action::Tx, vec![Reason::TooBig]));
    }
}
