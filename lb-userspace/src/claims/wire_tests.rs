use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::model::Protocol;

fn frontend(address: &str) -> FrontendKey {
    FrontendKey { address: address.parse().unwrap(), port: 443, protocol: Protocol::Tcp }
}

fn owners(list: &[(&str, u16)]) -> Owners {
    list.iter().map(|(address, weight)| (address.parse().unwrap(), *weight)).collect()
}

fn claim(slots: impl IntoIterator<Item = u16>) -> Displaced {
    Displaced { flows: 300, slots: slots.into_iter().collect() }
}

/// Agents of different builds must understand each other.
#[test]
fn forms_are_golden() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let key = claim_key(&frontend("192.0.2.1"), "[2001:db8::1]:80".parse().unwrap());
    assert_eq!(key.topic, Topic::CLAIM);
    assert_eq!(
        hex(&key.name),
        "00000000000000000000ffffc000020101bb0620010db80000000000000000000000010050"
    );
    assert_eq!(hex(&encode_claim(&claim([1, 700]))), "01ac02000201bb05");
    assert_eq!(hex(&encode_claim(&claim([0, 1, 9]))), "01ac0201020302");
    let list = [(frontend("192.0.2.1"), Listing { epoch: 5, sum: 7 })].into();
    assert_eq!(
        hex(&encode_view(&list)),
        "0100000000000000000000ffffc000020101bb06050000000000000007000000"
    );
}

#[test]
fn every_slot_of_the_largest_table_fits_into_one_entry() {
    let all = claim(0..=u16::MAX);
    let eighth = claim((0..=u16::MAX).step_by(9));
    for claim in [all, eighth, Displaced::default(), claim([u16::MAX])] {
        let value = encode_claim(&claim);
        assert!(value.len() <= VALUE_MOST, "{}", value.len());
        assert_eq!(decode_claim(&value), Some(claim));
    }
}

#[test]
fn a_lineage_comes_back_as_differences_from_the_set_in_force() {
    let force = owners(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 1)]);
    let past = [
        owners(&[("10.0.0.1:80", 2), ("10.0.0.2:80", 1), ("[2001:db8::3]:80", 1)]),
        owners(&[]),
        owners(&[("10.0.0.9:80", 7)]),
    ];
    let lineage = Lineage {
        epoch: 9,
        owners: force.clone().into(),
        past: past.iter().cloned().map(Into::into).collect(),
    };
    let value = Descent::of(&lineage).encode().unwrap();
    let read = Descent::decode(&value).unwrap();
    assert_eq!((read.epoch, read.length()), (9, 3));
    assert_eq!(read.past(&force), past);
    let without = Lineage { past: Vec::new(), ..lineage };
    assert_eq!(Descent::of(&without).encode(), None);
}

#[test]
fn of_a_lineage_too_long_the_oldest_goes() {
    let many = |from: u32| -> Owners {
        (from..from + 800).map(|n| (SocketAddr::new(n.to_be_bytes().into(), 80), 1)).collect()
    };
    let past =
        vec![owners(&[("10.0.0.1:80", 1)]).into(), many(1 << 24).into(), many(2 << 24).into()];
    let lineage = Lineage { epoch: 1, owners: Owners::new().into(), past };
    let value = Descent::of(&lineage).encode().unwrap();
    assert!(value.len() <= VALUE_MOST);
    assert_eq!(Descent::decode(&value).unwrap().length(), 2);
}

#[test]
fn a_later_version_is_not_read() {
    let value = |mut value: Vec<u8>| {
        value[0] += 1;
        value
    };
    assert_eq!(decode_claim(&value(encode_claim(&claim([1])))), None);
    assert_eq!(decode_view(&value(encode_view(&BTreeMap::new()))), None);
    assert_eq!(decode_claim(b""), None);
}

proptest! {
    #[test]
    fn claims_come_back(flows: u64, slots: BTreeSet<u16>) {
        let claim = Displaced { flows, slots };
        prop_assert_eq!(decode_claim(&encode_claim(&claim)), Some(claim));
    }

    #[test]
    fn names_come_back(address: [u8; 16], port: u16, udp: bool, backend: [u8; 16], backend_port: u16) {
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        let frontend = FrontendKey { address: Addr::from(address).to_ip(), port, protocol };
        let backend = SocketAddr::new(Addr::from(backend).to_ip(), backend_port);
        let key = claim_key(&frontend, backend);
        prop_assert_eq!(read_claim_name(&key.name), Some((frontend, backend)));
        prop_assert_eq!(read_frontend_name(&frontend_name(&frontend)), Some(frontend));
    }

    /// Whatever comes is read or not, within the room that an entry has.
    #[test]
    fn no_bytes_do_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), known: bool) {
        if let Some(first) = bytes.first_mut().filter(|_| known) {
            *first = VERSION;
        }
        if let Some(claim) = decode_claim(&bytes) {
            prop_assert_eq!(decode_claim(&encode_claim(&claim)), Some(claim));
        }
        if let Some(list) = decode_view(&bytes) {
            prop_assert_eq!(decode_view(&encode_view(&list)), Some(list));
        }
        if let Some(descent) = Descent::decode(&bytes) {
            prop_assert!(descent.past(&Owners::new()).len() <= PAST);
        }
        let _ = (read_claim_name(&bytes), read_frontend_name(&bytes));
    }
}
