//! Seals datagrams between agents: nobody without a shared key reads, writes or repeats any.
//!
//! A sender is a session: sixteen random bytes of a process, a key derived of them (ChaCha20-Poly1305,
//! RFC 8439) and a counter that is the nonce. A receiver that does not know a session, or not from this
//! address, holds what it says and asks it to repeat a random number under its own key: a recording cannot.
//! Needs no wall clock. Nothing is ever sent because of a datagram that is not authentic.
//!
//! What it does not promise: a datagram says nothing of whom it was for, so one that was intercepted may
//! be handed to another member once. It is a true word all the same.

mod keys;
mod session;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use ring::aead::{Aad, LessSafeKey, MAX_TAG_LEN, Nonce};

pub use self::keys::{Dice, Key, Keys, SessionId};
use self::{keys::Hint, session::Session};

/// Longest sealed datagram.
pub const DATAGRAM_MOST: usize = 1_200;
/// What sealing adds: version, key hint, session, counter, kind, tag.
pub const OVERHEAD: usize = HEADER + 1 + TAG;
/// Senders known; of more, the one silent for longest is forgotten and asked again when it speaks.
pub const SESSIONS_MOST: usize = 4_096;
/// Senders asked at the same time; of more, the one asked first is given up.
pub const PENDING_MOST: usize = 256;
/// Datagrams held for a sender that is asked.
pub const HELD_MOST: usize = 4;
/// How long they are held.
const HELD_FOR: Duration = Duration::from_secs(2);
/// A sender that goes on speaking is asked again after this.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// First byte; another one is another format.
const VERSION: u8 = 0xb1;
const HEADER: usize = 1 + size_of::<Hint>() + size_of::<SessionId>() + size_of::<u64>();
const TAG: usize = 16;

/// What a sealed datagram is; the last byte within the seal.
mod kind {
    pub const DATA: u8 = 0;
    /// A number to repeat.
    pub const CHALLENGE: u8 = 1;
    /// The number, then the lowest counter that may still be under way.
    pub const ECHO: u8 = 2;
}

/// Why a datagram was ignored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Why {
    /// Not the length or first byte of a sealed datagram, or nonsense within.
    Malformed,
    Oversized,
    /// Sealed with a key that is not ours.
    WrongKey,
    /// Names our key, but was not made with it or was changed.
    Forged,
    /// It was here before, or is our own.
    Replayed,
    /// Its sender has not answered, or there was no room to hold it.
    UnknownSession,
}

/// What came of a datagram.
#[derive(Debug, Eq, PartialEq)]
pub enum Opened {
    /// Contents in the order of arrival: of this datagram, or of those held before.
    Plain(Vec<Vec<u8>>),
    /// To be sent back as it is.
    Reply(Vec<u8>),
    /// Its sender is being asked.
    Held,
    Ignored(Why),
}

/// How often something was ignored.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Refusal {
    pub count: u64,
    /// Where the last one came from, by its own word.
    pub last: Option<SocketAddr>,
}

/// What was ignored, by reason.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Refusals {
    pub malformed: Refusal,
    pub oversized: Refusal,
    pub wrong_key: Refusal,
    pub forged: Refusal,
    pub replayed: Refusal,
    pub unknown_session: Refusal,
}

impl Refusals {
    fn count(&mut self, why: Why, from: SocketAddr) {
        let it = match why {
            Why::Malformed => &mut self.malformed,
            Why::Oversized => &mut self.oversized,
            Why::WrongKey => &mut self.wrong_key,
            Why::Forged => &mut self.forged,
            Why::Replayed => &mut self.replayed,
            Why::UnknownSession => &mut self.unknown_session,
        };
        it.count += 1;
        it.last = Some(from);
    }

    /// All of them, by the name that status gives them.
    pub fn by_name(&self) -> [(&'static str, Refusal); 6] {
        let Self { malformed, oversized, wrong_key, forged, replayed, unknown_session } = *self;
        [
            ("malformed", malformed),
            ("oversized", oversized),
            ("wrong_key", wrong_key),
            ("forged", forged),
            ("replayed", replayed),
            ("unknown_session", unknown_session),
        ]
    }

    pub fn total(&self) -> u64 {
        self.by_name().iter().map(|(_, it)| it.count).sum()
    }
}

/// A sender that was asked.
#[derive(Debug)]
struct Pending {
    from: SocketAddr,
    session: SessionId,
    nonce: [u8; 16],
    /// Counter and content.
    held: Vec<(u64, Vec<u8>)>,
    since: Instant,
    asked: Instant,
}

/// One agent's own session, and what it knows of others'.
#[derive(Debug)]
pub struct Seal {
    keys: Keys,
    own: LessSafeKey,
    session: SessionId,
    counter: u64,
    /// Counters of two to four seconds and of up to two seconds ago.
    marks: (u64, u64),
    marked: Instant,
    dice: Dice,
    sessions: BTreeMap<SessionId, Session>,
    pending: Vec<Pending>,
    refusals: Refusals,
}

/// A datagram's parts.
struct Parts<'a> {
    header: &'a [u8],
    hint: Hint,
    session: SessionId,
    counter: u64,
    sealed: &'a [u8],
}

impl Seal {
    /// `random` comes from the system and is used for nothing else.
    pub fn new(keys: Keys, random: &[u8; 32], now: Instant) -> Self {
        let mut dice = Dice::new(random);
        let session = dice.throw();
        Self {
            own: keys.first().datagrams(&session),
            keys,
            session,
            counter: 0,
            marks: (0, 0),
            marked: now,
            dice,
            sessions: BTreeMap::new(),
            pending: Vec::new(),
            refusals: Refusals::default(),
        }
    }

    /// Other shared keys from now on; no datagram is lost as long as both sides hold the one that is used.
    pub fn set_keys(&mut self, keys: Keys) {
        self.own = keys.first().datagrams(&self.session);
        for session in self.sessions.values_mut() {
            session.keys.retain(|(hint, _)| keys.find(*hint).is_some());
        }
        self.keys = keys;
    }

    pub fn refusals(&self) -> Refusals {
        self.refusals
    }

    /// Counts what came otherwise than by datagram.
    pub fn refuse(&mut self, why: Why, from: SocketAddr) {
        self.refusals.count(why, from);
    }

    /// Senders known.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Seals a datagram for anybody who holds the key. `plain` has [`DATAGRAM_MOST`] − [`OVERHEAD`] bytes at
    /// most, or others ignore it.
    pub fn seal(&mut self, plain: &[u8], now: Instant) -> Vec<u8> {
        self.seal_as(kind::DATA, plain, now)
    }

    /// Opens a datagram that came from `from`.
    pub fn open(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) -> Opened {
        self.give_up(now);
        self.try_open(from, bytes, now).unwrap_or_else(|why| {
            self.refusals.count(why, from);
            Opened::Ignored(why)
        })
    }

    fn try_open(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) -> Result<Opened, Why> {
        let parts = Parts::read(bytes)?;
        if parts.session == self.session {
            return Err(Why::Replayed);
        }
        let key = self.keys.find(parts.hint).ok_or(Why::WrongKey)?;
        let make = || key.datagrams(&parts.session);
        let mut plain = match self.sessions.get_mut(&parts.session) {
            Some(session) => parts.open(session.key(parts.hint, make))?,
            None => parts.open(&make())?,
        };
        match plain.pop() {
            Some(kind::DATA) => self.take(from, &parts, plain, now),
            Some(kind::CHALLENGE) => self.answer(&parts, &plain, now),
            Some(kind::ECHO) => self.prove(from, &parts, &plain, now),
            _ => Err(Why::Malformed),
        }
    }

    fn take(
        &mut self,
        from: SocketAddr,
        parts: &Parts<'_>,
        plain: Vec<u8>,
        now: Instant,
    ) -> Result<Opened, Why> {
        let Some(session) = self.sessions.get_mut(&parts.session) else {
            return self.hold(from, parts, plain, now);
        };
        if !session.window.is_fresh(parts.counter) {
            return Err(Why::Replayed);
        }
        if !session.addresses.contains(&from) {
            return self.hold(from, parts, plain, now);
        }
        session.window.accept(parts.counter);
        session.used = now;
        Ok(Opened::Plain(vec![plain]))
    }

    /// Keeps what an unproven sender says, and asks it.
    fn hold(
        &mut self,
        from: SocketAddr,
        parts: &Parts<'_>,
        plain: Vec<u8>,
        now: Instant,
    ) -> Result<Opened, Why> {
        let known = |it: &Pending| it.from == from && it.session == parts.session;
        let pending = match self.pending.iter().position(known) {
            Some(at) => &mut self.pending[at],
            None => {
                if self.pending.len() >= PENDING_MOST {
                    let given_up = self.pending.remove(0);
                    self.refuse_held(&given_up);
                }
                let nonce = self.dice.throw();
                let session = parts.session;
                self.pending.push(Pending {
                    from,
                    session,
                    nonce,
                    held: Vec::new(),
                    since: now,
                    asked: now,
                });
                let last = self.pending.len() - 1;
                &mut self.pending[last]
            }
        };
        let ask = pending.held.is_empty() || now >= pending.asked + ASK_AGAIN;
        if pending.held.iter().any(|(counter, _)| *counter == parts.counter) {
            return Err(Why::Replayed);
        }
        let room = pending.held.len() < HELD_MOST;
        if room {
            pending.held.push((parts.counter, plain));
        }
        if ask {
            pending.asked = now;
            let nonce = pending.nonce;
            if !room {
                self.refusals.count(Why::UnknownSession, from);
            }
            return Ok(Opened::Reply(self.seal_as(kind::CHALLENGE, &nonce, now)));
        }
        if room { Ok(Opened::Held) } else { Err(Why::UnknownSession) }
    }

    /// Repeats a number under the own session.
    fn answer(&mut self, parts: &Parts<'_>, nonce: &[u8], now: Instant) -> Result<Opened, Why> {
        let nonce: &[u8; 16] = nonce.try_into().map_err(|_| Why::Malformed)?;
        if let Some(session) = self.sessions.get_mut(&parts.session)
            && !session.window.accept(parts.counter)
        {
            return Err(Why::Replayed);
        }
        self.move_marks(now);
        let echo = [&nonce[..], &(self.marks.0 + 1).to_be_bytes()].concat();
        Ok(Opened::Reply(self.seal_as(kind::ECHO, &echo, now)))
    }

    /// A sender has answered: what it said counts.
    fn prove(
        &mut self,
        from: SocketAddr,
        parts: &Parts<'_>,
        echo: &[u8],
        now: Instant,
    ) -> Result<Opened, Why> {
        let (nonce, floor) = echo.split_first_chunk::<16>().ok_or(Why::Malformed)?;
        let floor = u64::from_be_bytes(floor.try_into().map_err(|_| Why::Malformed)?);
        let asked = |it: &Pending| (it.from, it.session, &it.nonce) == (from, parts.session, nonce);
        let at = self.pending.iter().position(asked).ok_or(Why::UnknownSession)?;
        let pending = self.pending.remove(at);
        if !self.sessions.contains_key(&parts.session) {
            self.make_room();
        }
        let session =
            self.sessions.entry(parts.session).or_insert_with(|| Session::new(floor, now));
        session.prove(from);
        session.used = now;
        let (fresh, old): (Vec<_>, Vec<_>) =
            pending.held.into_iter().partition(|(counter, _)| session.window.accept(*counter));
        session.window.accept(parts.counter);
        old.iter().for_each(|_| self.refusals.count(Why::Replayed, from));
        Ok(Opened::Plain(fresh.into_iter().map(|(_, plain)| plain).collect()))
    }

    fn make_room(&mut self) {
        while self.sessions.len() >= SESSIONS_MOST {
            let idle = self.sessions.iter().min_by_key(|(_, session)| session.used);
            let Some(idle) = idle.map(|(id, _)| *id) else { return };
            self.sessions.remove(&idle);
        }
    }

    /// Forgets senders that have not answered.
    fn give_up(&mut self, now: Instant) {
        while self.pending.first().is_some_and(|oldest| now >= oldest.since + HELD_FOR) {
            let oldest = self.pending.remove(0);
            self.refuse_held(&oldest);
        }
    }

    fn refuse_held(&mut self, pending: &Pending) {
        pending.held.iter().for_each(|_| self.refusals.count(Why::UnknownSession, pending.from));
    }

    fn seal_as(&mut self, kind: u8, plain: &[u8], now: Instant) -> Vec<u8> {
        self.move_marks(now);
        self.counter += 1;
        let mut bytes = Vec::with_capacity(plain.len() + OVERHEAD);
        bytes.push(VERSION);
        bytes.extend(self.keys.first().hint);
        bytes.extend(self.session);
        bytes.extend(self.counter.to_be_bytes());
        let mut sealed = [plain, &[kind]].concat();
        let result =
            self.own.seal_in_place_append_tag(nonce(self.counter), Aad::from(&bytes), &mut sealed);
        result.expect("a datagram is below the cipher's limit of 256 GiB");
        bytes.extend(sealed);
        bytes
    }

    fn move_marks(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.marked);
        if age >= 2 * HELD_FOR {
            self.marks = (self.counter, self.counter);
        } else if age >= HELD_FOR {
            self.marks = (self.marks.1, self.counter);
        } else {
            return;
        }
        self.marked = now;
    }
}

impl<'a> Parts<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Why> {
        if bytes.len() > DATAGRAM_MOST {
            return Err(Why::Oversized);
        }
        let (header, sealed) = bytes.split_at_checked(HEADER).ok_or(Why::Malformed)?;
        let (version, rest) = header.split_first().ok_or(Why::Malformed)?;
        let (hint, rest) = rest.split_first_chunk().ok_or(Why::Malformed)?;
        let (session, counter) = rest.split_first_chunk().ok_or(Why::Malformed)?;
        let counter = u64::from_be_bytes(counter.try_into().map_err(|_| Why::Malformed)?);
        if *version != VERSION || sealed.len() <= TAG {
            return Err(Why::Malformed);
        }
        Ok(Self { header, hint: *hint, session: *session, counter, sealed })
    }

    /// The content with its kind behind it.
    fn open(&self, key: &LessSafeKey) -> Result<Vec<u8>, Why> {
        let mut plain = self.sealed.to_vec();
        let opened = key.open_in_place(nonce(self.counter), Aad::from(self.header), &mut plain);
        let length = opened.map_err(|_| Why::Forged)?.len();
        plain.truncate(length);
        Ok(plain)
    }
}

/// The counter, padded to the left; never used twice with a session's key.
pub(crate) fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

const _: () = assert!(TAG == MAX_TAG_LEN);
const _: () = assert!(super::gossip::PLAIN_MOST + OVERHEAD <= DATAGRAM_MOST);
