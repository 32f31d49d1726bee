//! Bytes of a stream: greetings, then sealed frames with their length in front.
//!
//! Each side throws sixteen random bytes, so that no recording fits another stream, and each direction has a
//! key of its own whose nonce counts frames: none can be left out, repeated or moved. An empty frame ends the
//! answer; without it the answer was cut.

use ring::aead::{Aad, LessSafeKey, MAX_TAG_LEN};

use crate::membership::seal::{Key, Keys, SessionId, nonce};

/// Longest content of a frame.
pub const FRAME_MOST: usize = 64 << 10;
/// The client's greeting: version, hint of its key, its random bytes. The server answers with its own
/// random bytes alone.
pub const GREETING: usize = 1 + 4 + size_of::<SessionId>();
/// First byte; another one is another format.
const VERSION: u8 = 0xb2;
const LENGTH: usize = size_of::<u32>();

/// A frame is not what the other side sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a frame is too long or forged")]
pub struct BadFrame;

pub fn greeting(key: &Key, random: &SessionId) -> [u8; GREETING] {
    let mut bytes = [VERSION; GREETING];
    bytes[1..5].copy_from_slice(&key.hint);
    bytes[5..].copy_from_slice(random);
    bytes
}

/// The key that a client uses, and its random bytes.
pub fn read_greeting<'a>(bytes: &[u8; GREETING], keys: &'a Keys) -> Option<(&'a Key, SessionId)> {
    let (hint, random) = bytes[1..].split_first_chunk()?;
    let key = keys.find(*hint).filter(|_| bytes[0] == VERSION)?;
    Some((key, random.try_into().ok()?))
}

/// Both directions of one stream.
pub struct Ends {
    pub asking: LessSafeKey,
    pub answering: LessSafeKey,
}

impl Ends {
    pub fn new(key: &Key, client: &SessionId, server: &SessionId) -> Self {
        let end = |direction: &[u8]| key.stream(direction, client, server);
        Self { asking: end(b"ask"), answering: end(b"answer") }
    }
}

/// Seals frames of one direction.
pub struct Writer {
    key: LessSafeKey,
    counter: u64,
}

impl Writer {
    pub fn new(key: LessSafeKey) -> Self {
        Self { key, counter: 0 }
    }

    /// `content` has at most [`FRAME_MOST`] bytes, or the other side ends the stream.
    pub fn frame(&mut self, content: &[u8]) -> Vec<u8> {
        self.counter += 1;
        let length = (content.len() + MAX_TAG_LEN) as u32;
        let mut bytes = Vec::with_capacity(LENGTH + length as usize);
        bytes.extend(length.to_be_bytes());
        bytes.extend(content);
        let tag = self.key.seal_in_place_separate_tag(
            nonce(self.counter),
            Aad::empty(),
            &mut bytes[LENGTH..],
        );
        bytes.extend(tag.expect("a frame is below the cipher's limit of 256 GiB").as_ref());
        bytes
    }
}

/// Opens frames of one direction, in whatever pieces they come.
pub struct Reader {
    key: LessSafeKey,
    counter: u64,
    bytes: Vec<u8>,
}

impl Reader {
    pub fn new(key: LessSafeKey) -> Self {
        Self { key, counter: 0, bytes: Vec::new() }
    }

    /// Takes what has arrived; the caller asks for frames in between.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame's content, if it is there.
    pub fn frame(&mut self) -> Result<Option<Vec<u8>>, BadFrame> {
        let Some((length, rest)) = self.bytes.split_first_chunk() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > FRAME_MOST + MAX_TAG_LEN {
            return Err(BadFrame);
        }
        let Some(sealed) = rest.get(..length) else { return Ok(None) };
        let mut content = sealed.to_vec();
        self.bytes.drain(..LENGTH + length);
        self.counter += 1;
        let opened = self.key.open_in_place(nonce(self.counter), Aad::empty(), &mut content);
        let length = opened.map_err(|_| BadFrame)?.len();
        content.truncate(length);
        Ok(Some(content))
    }
}
