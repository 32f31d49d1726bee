//! Datagrams between agents as bytes, before they are sealed.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::super::board::Delta;

/// Longest datagram before it is sealed: 1,200 bytes sealed.
pub const PLAIN_MOST: usize = 1_150;
/// What [`Datagram::Swim`] adds.
pub const SWIM_OVERHEAD: usize = 4;
/// What [`Datagram::Word`] with [`Word::Say`] adds at most, the sender's name apart.
pub const SAY_OVERHEAD: usize = 20;

/// The bytes are nothing that an agent sends.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("malformed")]
pub struct Malformed;

/// One process of a node's agent, for SWIM: the later incarnation is the living one.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Identity {
    #[serde(serialize_with = "write_name", deserialize_with = "read_name")]
    pub name: Arc<str>,
    pub incarnation: u64,
}

impl foca::Identity for Identity {
    type Addr = Arc<str>;

    fn renew(&self) -> Option<Self> {
        Some(Self { name: self.name.clone(), incarnation: self.incarnation.checked_add(1)? })
    }

    fn addr(&self) -> Arc<str> {
        self.name.clone()
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.incarnation > adversary.incarnation
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub enum Datagram<'a> {
    /// Of the SWIM library; says itself who sends.
    Swim(&'a [u8]),
    Word {
        sender: Identity,
        #[serde(borrow)]
        word: Word<'a>,
    },
}

#[derive(Debug, Deserialize, Serialize)]
pub enum Word<'a> {
    /// [`Delta`]s, each encoded on its own, so that it is passed on as it came.
    Say(#[serde(borrow)] Vec<&'a [u8]>),
    /// Hash of all shared logs and of those that the sender has for audiences with the receiver.
    Compare { shared: u64, audiences: u64 },
    /// Answer to a comparison that differed: a hash per bucket.
    Hashes(Vec<u64>),
    /// To an address whose node is not known: please ask this sender to join.
    Hello,
    /// The receiver has been heard in this later incarnation before.
    Outlived { incarnation: u64 },
}

/// What a stream carries after a request.
#[derive(Debug, Deserialize, Serialize)]
pub enum Chunk<'a> {
    /// Every audience that the sender says something to and the receiver is part of.
    Audiences(#[serde(borrow)] Vec<&'a str>),
    Deltas(#[serde(borrow)] Vec<Delta<'a>>),
}

pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("plain data has no value that cannot be encoded")
}

/// Reads a value that fills `bytes` exactly.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Malformed> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(Malformed),
    }
}

fn write_name<S: Serializer>(name: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name)
}

fn read_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    <&str>::deserialize(deserializer).map(Arc::from)
}
