//! Probes and their answers as bytes (see `lb_common::wire::geneve`).
//!
//! Reads what anyone may send: whatever is not an answer to us is `None`.

use lb_common::{
    abi::TUNNEL_VERSION,
    wire::geneve::{
        CLASS, CRITICAL, Geneve, OPTION_LENGTH, OptionHead, Probe, ProbeHeader, VERSION_LENGTH,
        kind, vni_word,
    },
};

/// UDP payload of a probe and of its answer.
pub const LENGTH: usize = size_of::<ProbeHeader>();

/// What an answer says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Answer {
    pub nonce: u64,
    pub version: u8,
    pub seed_tag: [u8; 8],
    /// Changes with every boot of the node.
    pub boot_id: [u8; 16],
    /// Age of the agent's heartbeat in ms; None: there never was one.
    pub heartbeat_age: Option<u32>,
    /// Layout version of its maps.
    pub layout: u32,
}

/// A probe that asks for `nonce` back.
pub fn probe(vni: u32, seed_tag: [u8; 8], nonce: u64) -> [u8; LENGTH] {
    bytemuck::cast(ProbeHeader {
        base: Geneve {
            version_length: VERSION_LENGTH,
            flags: CRITICAL,
            protocol: 0,
            vni: vni_word(vni),
        },
        option: OptionHead { class: CLASS, kind: kind::PROBE, length: OPTION_LENGTH },
        probe: Probe {
            version: TUNNEL_VERSION,
            seed_tag,
            nonce: bytemuck::cast(nonce),
            ..Probe::default()
        },
    })
}

/// Reads an answer of our VNI.
pub fn answer(vni: u32, payload: &[u8]) -> Option<Answer> {
    let header: ProbeHeader = bytemuck::pod_read_unaligned(payload.get(..LENGTH)?);
    let (base, option, probe) = (header.base, header.option, header.probe);
    let ours = base.version_length == VERSION_LENGTH
        && base.vni == vni_word(vni)
        && option.class == CLASS
        && option.kind == kind::PROBE_ANSWER
        && option.length == OPTION_LENGTH;
    let age = u32::from_be(probe.heartbeat_age);
    ours.then_some(Answer {
        nonce: bytemuck::cast(probe.nonce),
        version: probe.version,
        seed_tag: probe.seed_tag,
        boot_id: bytemuck::cast(probe.boot_id),
        heartbeat_age: (age != u32::MAX).then_some(age),
        layout: u32::from_be(probe.layout),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_has_the_bytes_of_the_tunnel_format() {
        let bytes = probe(0x77_6569, *b"seed-tag", u64::from_ne_bytes(*b"nonce-no"));
        let mut want = vec![12, 0x40, 0, 0, 0x77, 0x65, 0x69, 0, 0xff, 0x01, 0x82, 11, 1, 0, 0, 0];
        want.extend(b"seed-tag");
        want.extend(b"nonce-no");
        want.extend([0; 24]);
        assert_eq!(bytes[..], want);
    }

    #[test]
    fn answer_is_read_and_anything_else_is_not() {
        let mut bytes = probe(7, *b"seed-tag", 42);
        assert_eq!(answer(7, &bytes), None, "a probe is no answer");
        bytes[10] = kind::PROBE_ANSWER;
        bytes[32..48].copy_from_slice(b"boot-id-of-peer!");
        bytes[48..56].copy_from_slice(&[0, 0, 1, 0, 0, 0, 0, 3]);
        let read = answer(7, &bytes).unwrap();
        assert_eq!((read.nonce, read.version, read.layout), (42, TUNNEL_VERSION, 3));
        assert_eq!((read.heartbeat_age, &read.boot_id), (Some(256), b"boot-id-of-peer!"));
        bytes[48..52].fill(0xff);
        assert_eq!(answer(7, &bytes).unwrap().heartbeat_age, None);
        assert_eq!(answer(8, &bytes), None, "another VNI");
        assert_eq!(answer(7, &bytes[..55]), None, "cut short");
        assert_eq!(answer(7, &[]), None);
    }
}
