//! Keys that all agents share, and what is derived of them (HKDF, RFC 5869).

use ring::{
    aead::{CHACHA20_POLY1305, LessSafeKey, UnboundKey},
    hkdf::{HKDF_SHA256, KeyType, Prk, Salt},
};

/// One seals, both open: enough to change keys without a gap.
pub const KEYS_MOST: usize = 2;
/// Says on the wire which key was used, so that none is tried in vain.
pub type Hint = [u8; 4];
/// Names a process of an agent, or one end of a stream.
pub type SessionId = [u8; 16];

#[derive(Debug)]
pub struct Key {
    secret: Prk,
    pub hint: Hint,
}

/// The key that seals, then those that are accepted too.
#[derive(Debug)]
pub struct Keys(Vec<Key>);

impl Keys {
    /// The first seals; at most [`KEYS_MOST`] count. None: there is none.
    pub fn new(secrets: &[[u8; 32]]) -> Option<Self> {
        let keys: Vec<_> = secrets.iter().take(KEYS_MOST).map(Key::new).collect();
        (!keys.is_empty()).then_some(Self(keys))
    }

    pub fn first(&self) -> &Key {
        &self.0[0]
    }

    pub fn find(&self, hint: Hint) -> Option<&Key> {
        self.0.iter().find(|key| key.hint == hint)
    }
}

impl Key {
    fn new(secret: &[u8; 32]) -> Self {
        let secret = Salt::new(HKDF_SHA256, b"weir gossip 1").extract(secret);
        let hint = derive(&secret, &[b"hint"]);
        Self { secret, hint }
    }

    /// Seals all datagrams of one session.
    pub fn datagrams(&self, session: &SessionId) -> LessSafeKey {
        self.cipher(&[b"datagrams", session])
    }

    /// Seals one direction of a stream; both ends have thrown dice.
    pub fn stream(&self, direction: &[u8], client: &SessionId, server: &SessionId) -> LessSafeKey {
        self.cipher(&[b"stream", direction, client, server])
    }

    fn cipher(&self, info: &[&[u8]]) -> LessSafeKey {
        let okm = self.secret.expand(info, &CHACHA20_POLY1305);
        LessSafeKey::new(UnboundKey::from(
            okm.expect("the cipher's key is shorter than HKDF's limit"),
        ))
    }
}

/// Unpredictable values of one random seed.
#[derive(Debug)]
pub struct Dice {
    secret: Prk,
    thrown: u64,
}

impl Dice {
    pub fn new(seed: &[u8; 32]) -> Self {
        Self { secret: Prk::new_less_safe(HKDF_SHA256, seed), thrown: 0 }
    }

    pub fn throw(&mut self) -> [u8; 16] {
        self.thrown += 1;
        derive(&self.secret, &[&self.thrown.to_be_bytes()])
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn derive<const N: usize>(secret: &Prk, info: &[&[u8]]) -> [u8; N] {
    let mut out = [0; N];
    let okm = secret.expand(info, Length(N));
    okm.and_then(|okm| okm.fill(&mut out)).expect("a few bytes are below HKDF's limit");
    out
}
