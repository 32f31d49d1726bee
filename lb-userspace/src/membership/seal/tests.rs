use proptest::prelude::*;

use super::*;

const OLD: [u8; 32] = [1; 32];
const NEW: [u8; 32] = [2; 32];

fn keys(secrets: &[[u8; 32]]) -> Keys {
    Keys::new(secrets).unwrap()
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

fn seal(random: u8, now: Instant) -> Seal {
    Seal::new(keys(&[OLD]), &[random; 32], now)
}

/// Two that know each other; `a` speaks from port 1.
fn pair(now: Instant) -> (Seal, Seal) {
    let (mut a, mut b) = (seal(1, now), seal(2, now));
    assert_eq!(say(&mut a, &mut b, b"hello", now), [b"hello"]);
    (a, b)
}

/// Sends a datagram of `a` to `b` and answers what is asked.
fn say(a: &mut Seal, b: &mut Seal, plain: &[u8], now: Instant) -> Vec<Vec<u8>> {
    let bytes = a.seal(plain, now);
    hand(a, b, &bytes, now)
}

fn hand(a: &mut Seal, b: &mut Seal, bytes: &[u8], now: Instant) -> Vec<Vec<u8>> {
    let challenge = match b.open(at(1), bytes, now) {
        Opened::Plain(plain) => return plain,
        Opened::Reply(challenge) => challenge,
        other => panic!("{other:?}"),
    };
    let Opened::Reply(echo) = a.open(at(2), &challenge, now) else { panic!("no echo") };
    let Opened::Plain(plain) = b.open(at(1), &echo, now) else { panic!("not proven") };
    plain
}

#[test]
fn unknown_sender_is_asked_and_what_it_said_is_held() {
    let now = Instant::now();
    let (mut a, mut b) = (seal(1, now), seal(2, now));
    let said: Vec<_> = (0..6).map(|it| a.seal(&[it], now)).collect();
    let Opened::Reply(challenge) = b.open(at(1), &said[0], now) else { panic!("not asked") };
    assert_eq!(b.open(at(1), &said[0], now), Opened::Ignored(Why::Replayed));
    for bytes in &said[1..4] {
        assert_eq!(b.open(at(1), bytes, now), Opened::Held);
    }
    assert_eq!(b.open(at(1), &said[4], now), Opened::Ignored(Why::UnknownSession), "no room");
    let Opened::Reply(echo) = a.open(at(2), &challenge, now) else { panic!("no echo") };
    assert_eq!(b.open(at(3), &echo, now), Opened::Ignored(Why::UnknownSession), "another address");
    let all = vec![vec![0], vec![1], vec![2], vec![3]];
    assert_eq!(b.open(at(1), &echo, now), Opened::Plain(all));
    assert_eq!(b.open(at(1), &echo, now), Opened::Ignored(Why::UnknownSession), "asked once");
    assert_eq!(b.open(at(1), &said[5], now), Opened::Plain(vec![vec![5]]));
}

#[test]
fn sender_that_does_not_answer_is_given_up_and_asked_again() {
    let now = Instant::now();
    let (mut a, mut b) = (seal(1, now), seal(2, now));
    let first = a.seal(b"1", now);
    assert!(matches!(b.open(at(1), &first, now), Opened::Reply(_)));
    let again = now + ASK_AGAIN;
    let second = a.seal(b"2", again);
    assert!(matches!(b.open(at(1), &second, again), Opened::Reply(_)), "the challenge may be lost");
    let later = now + HELD_FOR;
    let third = a.seal(b"3", later);
    assert_eq!(hand(&mut a, &mut b, &third, later), [b"3"]);
    assert_eq!(b.refusals().unknown_session.count, 2);
}

#[test]
fn replayed_datagram_is_ignored_and_late_ones_are_not() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    let said: Vec<_> = (0..2000u16).map(|it| a.seal(&it.to_be_bytes(), now)).collect();
    assert!(matches!(b.open(at(1), &said[1023], now), Opened::Plain(_)));
    for bytes in said[..1023].iter().rev() {
        assert!(matches!(b.open(at(1), bytes, now), Opened::Plain(_)));
    }
    for bytes in &said[..1024] {
        assert_eq!(b.open(at(1), bytes, now), Opened::Ignored(Why::Replayed));
    }
    assert!(matches!(b.open(at(1), &said[1999], now), Opened::Plain(_)));
    assert!(matches!(b.open(at(1), &said[1999 - 976], now), Opened::Ignored(Why::Replayed)));
    assert!(matches!(b.open(at(1), &said[1024], now), Opened::Plain(_)));
    assert_eq!(b.refusals().replayed, Refusal { count: 1025, last: Some(at(1)) });
}

#[test]
fn own_datagram_that_comes_back_is_ignored() {
    let now = Instant::now();
    let mut a = seal(1, now);
    let bytes = a.seal(b"x", now);
    assert_eq!(a.open(at(1), &bytes, now), Opened::Ignored(Why::Replayed));
}

#[test]
fn recording_of_a_session_that_is_gone_is_never_accepted() {
    let now = Instant::now();
    let (mut a, _) = pair(now);
    let recorded = a.seal(b"recorded", now);
    let mut restarted = seal(3, now);
    assert!(matches!(restarted.open(at(1), &recorded, now), Opened::Reply(_)));
    let later = now + HELD_FOR;
    assert_eq!(restarted.open(at(1), b"", later), Opened::Ignored(Why::Malformed));
    assert_eq!((restarted.refusals().unknown_session.count, restarted.sessions()), (1, 0));
}

#[test]
fn recording_of_a_living_session_is_too_old_for_a_restarted_receiver() {
    let start = Instant::now();
    let (mut a, _) = pair(start);
    let recorded = a.seal(b"recorded", start);
    let now = start + 2 * HELD_FOR;
    let mut restarted = seal(3, now);
    assert_eq!(hand(&mut a, &mut restarted, &recorded, now), Vec::<Vec<u8>>::new());
    assert_eq!(say(&mut a, &mut restarted, b"new", now), [b"new"]);
    assert_eq!(restarted.refusals().replayed.count, 1);
}

#[test]
fn known_sender_from_another_address_is_asked_and_has_one_window() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    let bytes = a.seal(b"x", now);
    let Opened::Reply(challenge) = b.open(at(9), &bytes, now) else { panic!("not asked") };
    let Opened::Reply(echo) = a.open(at(2), &challenge, now) else { panic!("no echo") };
    assert_eq!(b.open(at(9), &echo, now), Opened::Plain(vec![b"x".to_vec()]));
    assert_eq!(b.open(at(1), &bytes, now), Opened::Ignored(Why::Replayed));
}

#[test]
fn strangers_and_changed_datagrams_are_ignored_without_an_answer() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    let mut stranger = Seal::new(keys(&[NEW]), &[9; 32], now);
    let bytes = stranger.seal(b"x", now);
    assert_eq!(b.open(at(5), &bytes, now), Opened::Ignored(Why::WrongKey));
    assert_eq!(b.refusals().wrong_key, Refusal { count: 1, last: Some(at(5)) });
    assert_eq!(b.open(at(5), &[0; 1201], now), Opened::Ignored(Why::Oversized));
    let good = a.seal(b"content", now);
    for length in 0..good.len() {
        assert!(
            matches!(b.open(at(1), &good[..length], now), Opened::Ignored(_)),
            "cut to {length}"
        );
    }
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(b.open(at(1), &bad, now), Opened::Ignored(_)), "bit {bit}");
    }
    assert_eq!(b.open(at(1), &good, now), Opened::Plain(vec![b"content".to_vec()]));
    let counted = b.refusals();
    assert_eq!(counted.total(), 2 + (good.len() + good.len() * 8) as u64);
    assert!(counted.forged.count > 0 && counted.malformed.count > 0);
}

#[test]
fn keys_change_without_a_lost_datagram() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    let mut said = 0;
    let mut check = |a: &mut Seal, b: &mut Seal| {
        // More than would be held if the sender had to prove itself again.
        let list: Vec<_> = (0..10).map(|it| a.seal(&[it], now)).collect();
        for bytes in list {
            assert!(matches!(b.open(at(1), &bytes, now), Opened::Plain(_)), "after {said}");
            said += 1;
        }
    };
    check(&mut a, &mut b);
    for (step, secrets) in [vec![OLD, NEW], vec![NEW, OLD], vec![NEW]].iter().enumerate() {
        b.set_keys(keys(secrets));
        check(&mut a, &mut b);
        a.set_keys(keys(secrets));
        check(&mut a, &mut b);
        let late = Seal::new(keys(&[OLD]), &[7 + step as u8; 32], now).seal(b"x", now);
        let accepted = secrets.contains(&OLD);
        assert_eq!(matches!(b.open(at(7), &late, now), Opened::Reply(_)), accepted);
    }
    assert_eq!(b.refusals().total(), b.refusals().wrong_key.count);
}

#[test]
fn full_tables_forget_the_oldest() {
    let start = Instant::now();
    let mut b = seal(0, start);
    let sender = |index: usize, now| {
        let mut random = [0; 32];
        random[..8].copy_from_slice(&(index as u64 + 1).to_be_bytes());
        Seal::new(keys(&[OLD]), &random, now)
    };
    for index in 0..PENDING_MOST + 10 {
        let bytes = sender(index, start).seal(b"x", start);
        assert!(matches!(b.open(at(1), &bytes, start), Opened::Reply(_)));
    }
    assert_eq!((b.pending.len(), b.refusals().unknown_session.count), (PENDING_MOST, 10));
    let mut now = start + HELD_FOR;
    for index in 0..SESSIONS_MOST + 10 {
        now += Duration::from_millis(1);
        assert_eq!(say(&mut sender(index, now), &mut b, b"x", now), [b"x"]);
    }
    assert_eq!(b.sessions(), SESSIONS_MOST);
}

#[test]
fn refusals_are_shown_by_reason() {
    let mut refusals = Refusals::default();
    refusals.count(Why::WrongKey, at(5));
    let told = refusals.by_name().into_iter().filter(|(_, refusal)| refusal.count > 0);
    assert_eq!(told.collect::<Vec<_>>(), [("wrong_key", Refusal { count: 1, last: Some(at(5)) })]);
}

proptest! {
    #[test]
    fn random_bytes_are_ignored(bytes in prop::collection::vec(any::<u8>(), 0..1300), head in any::<bool>()) {
        let now = Instant::now();
        let (mut a, mut b) = (seal(1, now), seal(2, now));
        let mut bytes = bytes;
        if head && bytes.len() >= 5 {
            bytes[..5].copy_from_slice(&a.seal(b"", now)[..5]);
        }
        prop_assert!(matches!(b.open(at(1), &bytes, now), Opened::Ignored(_)));
        prop_assert_eq!(b.refusals().total(), 1);
    }
}
