//! The keyed flow hash: which slot a flow falls into. The same on every node of one seed.

use crate::{
    net::{Addr, Flow, Port},
    siphash::Sip13,
};

/// SipHash-1-3 of the five-tuple under the shared seed; the low 32 bits choose the slot, the high
/// ones the tunnel's source port.
///
/// The message is the bytes of the wire: client, VIP, both ports, protocol. Addresses are 4 or 16
/// bytes, so ports and protocol always share the last compression with the length.
#[inline(always)]
pub fn flow_hash(key: &[u64; 2], flow: &Flow) -> u64 {
    let rest = flow.client_port.wire() as u64
        | (flow.vip_port.wire() as u64) << 16
        | (flow.proto as u64) << 32;
    let state = Sip13::new(key[0], key[1]);
    let state = if flow.vip.is_v4() {
        state.word(flow.client.v4_word() as u64 | (flow.vip.v4_word() as u64) << 32)
    } else {
        feed(feed(state, &flow.client), &flow.vip)
    };
    state.finish_with(rest, 5)
}

/// The hash for client affinity: of the client's address alone.
#[inline(always)]
pub fn client_hash(key: &[u64; 2], client: &Addr) -> u64 {
    feed(Sip13::new(key[0], key[1]), client).finish()
}

/// 16-bit name of a backend in the tunnel header's list of those visited. Never 0, which marks an
/// empty place.
#[inline(always)]
pub fn fingerprint(key: &[u64; 2], addr: &Addr, port: Port) -> u16 {
    let hash = feed(Sip13::new(key[0], key[1]), addr).word(port.wire() as u64).finish();
    (hash as u16).max(1)
}

/// Slot of a hash by multiply-shift: no division, and bounded for the verifier.
#[inline(always)]
pub const fn slot_of(hash: u64, slots: u32) -> u32 {
    (((hash & 0xffff_ffff) * slots as u64) >> 32) as u32
}

#[inline(always)]
const fn feed(state: Sip13, addr: &Addr) -> Sip13 {
    let [first, second] = addr.halves();
    state.word(first).word(second)
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    fn flow(client: &str, vip: &str) -> Flow {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        Flow {
            client: addr(client),
            vip: addr(vip),
            client_port: Port::new(40000),
            vip_port: Port::new(443),
            proto: crate::net::proto::TCP,
        }
    }

    #[test]
    fn fingerprint_is_never_zero_and_most_differ() {
        let addr = Addr::from("10.0.0.1".parse::<IpAddr>().unwrap());
        let all = (0..=u16::MAX).map(|port| fingerprint(&[1, 2], &addr, Port::new(port)));
        let distinct: std::collections::BTreeSet<_> = all.collect();
        assert!(!distinct.contains(&0));
        // 65,536 draws of as many values leave 1 in e out.
        assert!((40_000..43_000).contains(&distinct.len()), "{}", distinct.len());
    }

    #[test]
    fn slots_stay_in_range_at_both_ends() {
        assert_eq!(slot_of(0, 4093), 0);
        assert_eq!(slot_of(u64::MAX, 4093), 4092);
        assert_eq!(slot_of(u64::MAX, 1), 0);
    }

    #[test]
    fn the_message_is_the_bytes_of_the_wire() {
        let ports = [0x9c, 0x40, 0x01, 0xbb, 6];
        let v4 = [&[192, 0, 2, 1, 198, 51, 100, 1][..], &ports].concat();
        assert_eq!(
            flow_hash(&[1, 2], &flow("192.0.2.1", "198.51.100.1")),
            crate::siphash::hash([1, 2], &v4)
        );
        let v6 = flow("2001:db8::1", "2001:db8::2");
        let message = [&v6.client.octets()[..], &v6.vip.octets(), &ports].concat();
        assert_eq!(flow_hash(&[1, 2], &v6), crate::siphash::hash([1, 2], &message));
    }

    #[test]
    fn every_part_of_the_tuple_and_the_key_matters() {
        let base = flow("192.0.2.1", "198.51.100.1");
        let of = |flow: &Flow| flow_hash(&[1, 2], flow);
        let mut seen = std::collections::BTreeSet::from([of(&base)]);
        for changed in [
            Flow { client: flow("192.0.2.2", "::").client, ..base },
            Flow { vip: flow("::", "198.51.100.2").vip, ..base },
            Flow { client_port: Port::new(40001), ..base },
            Flow { vip_port: Port::new(444), ..base },
            Flow { proto: crate::net::proto::UDP, ..base },
            flow("2001:db8::1", "2001:db8::2"),
            flow("2001:db8:0:1::1", "2001:db8::2"),
        ] {
            assert!(seen.insert(of(&changed)), "{changed:?}");
        }
        assert!(seen.insert(flow_hash(&[1, 3], &base)));
    }

    #[test]
    fn client_affinity_ignores_ports() {
        let a = flow("192.0.2.1", "198.51.100.1");
        assert_eq!(client_hash(&[1, 2], &a.client), client_hash(&[1, 2], &a.client));
        assert_ne!(client_hash(&[1, 2], &a.client), client_hash(&[1, 2], &a.vip));
    }
}
