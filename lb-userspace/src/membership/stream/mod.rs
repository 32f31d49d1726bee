//! What is too much for datagrams: pulls over TCP, on the port of gossip.
//!
//! A client asks once and is answered in sealed chunks. Neither side waits for the other for long, few are
//! answered at once and all together at a bounded rate: a slow or silent peer harms nobody. What is asked and
//! heard goes to the gossip's owner as [`Event`]s, who alone touches it.

mod frame;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

pub use self::frame::{BadFrame, Ends, FRAME_MOST, Reader, Writer};
use self::frame::{GREETING, greeting, read_greeting};
use super::{
    board::Request,
    gossip::{Gossip, Malformed, Pull, Serving, decode, encode},
    seal::{Keys, SessionId, Why},
};
use crate::watched::Watched as _;

/// Answered at the same time.
pub const SERVED_MOST: usize = 4;
/// Connections at the same time, those that have not yet asked among them.
pub const CONNECTIONS_MOST: usize = 64;
/// Bytes per second of all answers together, and of these at once.
pub const RATE: u64 = 32 << 20;
pub const BURST: u64 = 1 << 20;
/// For connecting and greeting, and for the request.
const GREET: Duration = Duration::from_secs(2);
/// For a place among those who are answered.
const QUEUE: Duration = Duration::from_secs(5);
/// For one frame.
const FRAME: Duration = Duration::from_secs(5);
/// For a whole answer.
const ANSWER: Duration = Duration::from_secs(55);
/// After an error of accepting (no descriptors left).
const PAUSE: Duration = Duration::from_millis(100);
/// Read at once.
const READ: usize = 16 << 10;

/// Why a stream ended early.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("no answer in time")]
    Late(#[from] tokio::time::error::Elapsed),
    #[error("greets with another key")]
    WrongKey,
    #[error(transparent)]
    Frame(#[from] BadFrame),
    #[error("nonsense within a frame")]
    Malformed,
    #[error("no randomness from the system")]
    NoRandom,
    #[error("the agent goes")]
    Gone,
}

/// What a stream wants of the gossip's owner, who calls [`Event::handle`].
#[derive(Debug)]
pub enum Event {
    /// Somebody asks.
    Begin { request: Request, reply: oneshot::Sender<Option<Serving>> },
    /// The next chunk of an answer.
    Next { serving: Serving, reply: oneshot::Sender<(Serving, Option<Vec<u8>>)> },
    /// A chunk of an answer to us.
    Chunk { node: Arc<str>, chunk: Vec<u8> },
    /// The answer is over.
    End { node: Arc<str>, result: Result<(), StreamError> },
    /// Somebody spoke who is none of us: to be counted, see [`super::seal::Seal::refuse`].
    Refused { from: SocketAddr, why: Why },
}

impl Event {
    /// Answers or takes it in. Returns what was refused.
    pub fn handle(self, gossip: &mut Gossip, now: Instant) -> Option<(SocketAddr, Why)> {
        // A reply that nobody waits for belongs to a stream that has ended.
        match self {
            Self::Begin { request, reply } => drop(reply.send(gossip.serve(&request, now))),
            Self::Next { mut serving, reply } => {
                let chunk = gossip.next_chunk(&mut serving);
                drop(reply.send((serving, chunk)));
            }
            Self::Chunk { node, chunk } => {
                // Counted there; the rest of the answer may be sound.
                let _malformed = gossip.on_chunk(&node, &chunk, now);
            }
            Self::End { node, result } => {
                if let Err(error) = result {
                    tracing::debug!(%node, %error, "pull failed");
                }
                gossip.on_pulled(&node, now);
            }
            Self::Refused { from, why } => return Some((from, why)),
        }
        None
    }
}

/// The content of a client's only frame.
pub fn write_request(request: &Request) -> Vec<u8> {
    encode(request)
}

/// Reads what [`write_request`] wrote.
pub fn read_request(bytes: &[u8]) -> Result<Request, Malformed> {
    decode(bytes)
}

/// What all answers share.
struct Shared {
    slots: Semaphore,
    bucket: Mutex<Bucket>,
    events: mpsc::Sender<Event>,
}

/// Answers all who ask, until dropped.
pub async fn serve(
    listener: TcpListener,
    keys: watch::Receiver<Arc<Keys>>,
    events: mpsc::Sender<Event>,
) {
    let bucket = Mutex::new(Bucket { level: BURST, at: Instant::now() });
    let shared = Arc::new(Shared { slots: Semaphore::new(SERVED_MOST), bucket, events });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, from)) if connections.len() < CONNECTIONS_MOST => {
                    let keys = keys.copy();
                    connections.spawn(attend(socket, from, keys, shared.clone()));
                }
                // Closed at once.
                Ok(_) => {}
                Err(_) => sleep(PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Asks a member; tells `events` what it answers and, in any case, the end.
pub async fn pull(pull: Pull, keys: Arc<Keys>, events: mpsc::Sender<Event>) {
    let Pull { node, address, request } = pull;
    let asked = timeout(ANSWER, ask(&node, address, &request, &keys, &events)).await;
    let result = asked.unwrap_or_else(|late| Err(late.into()));
    // Without an owner nobody waits for the end.
    let _gone = events.send(Event::End { node, result }).await;
}

async fn ask(
    node: &Arc<str>,
    address: SocketAddr,
    request: &Request,
    keys: &Keys,
    events: &mpsc::Sender<Event>,
) -> Result<(), StreamError> {
    let mut socket = timeout(GREET, TcpStream::connect(address)).await??;
    let own = random()?;
    socket.write_all(&greeting(keys.first(), &own)).await?;
    let mut other = SessionId::default();
    timeout(GREET, socket.read_exact(&mut other)).await??;
    let Ends { asking, answering } = Ends::new(keys.first(), &own, &other);
    let frame = Writer::new(asking).frame(&write_request(request));
    timeout(FRAME, socket.write_all(&frame)).await??;
    let mut reader = Reader::new(answering);
    loop {
        let chunk = timeout(QUEUE + FRAME, read_frame(&mut socket, &mut reader)).await??;
        if chunk.is_empty() {
            return Ok(());
        }
        let event = Event::Chunk { node: node.clone(), chunk };
        events.send(event).await.map_err(|_| StreamError::Gone)?;
    }
}

/// Reads one request and answers it.
async fn attend(mut socket: TcpStream, from: SocketAddr, keys: Arc<Keys>, shared: Arc<Shared>) {
    let asked = timeout(GREET, listen(&mut socket, &keys)).await;
    let result = match asked.unwrap_or_else(|late| Err(late.into())) {
        Ok((request, writer)) => answer(&mut socket, request, writer, &shared).await,
        Err(error) => Err(error),
    };
    let why = match result {
        Err(StreamError::WrongKey) => Why::WrongKey,
        Err(StreamError::Frame(_)) => Why::Forged,
        Err(StreamError::Malformed) => Why::Malformed,
        // Slow, gone or served: nobody's guilt.
        _ => return,
    };
    // With the owner this busy a count more or less is no matter.
    let _full = shared.events.try_send(Event::Refused { from, why });
}

async fn listen(socket: &mut TcpStream, keys: &Keys) -> Result<(Request, Writer), StreamError> {
    let mut bytes = [0; GREETING];
    socket.read_exact(&mut bytes).await?;
    let (key, other) = read_greeting(&bytes, keys).ok_or(StreamError::WrongKey)?;
    let own = random()?;
    socket.write_all(&own).await?;
    let Ends { asking, answering } = Ends::new(key, &other, &own);
    let request = read_frame(socket, &mut Reader::new(asking)).await?;
    let request = read_request(&request).map_err(|_| StreamError::Malformed)?;
    Ok((request, Writer::new(answering)))
}

async fn answer(
    socket: &mut TcpStream,
    request: Request,
    mut writer: Writer,
    shared: &Shared,
) -> Result<(), StreamError> {
    let slot = timeout(QUEUE, shared.slots.acquire()).await?;
    let _slot = slot.map_err(|_| StreamError::Gone)?;
    let chunks = async {
        let begin = |reply| Event::Begin { request, reply };
        let Some(mut serving) = shared.owner(begin).await? else { return Ok(()) };
        loop {
            let (rest, chunk) = shared.owner(|reply| Event::Next { serving, reply }).await?;
            serving = rest;
            let last = chunk.is_none();
            let frame = writer.frame(&chunk.unwrap_or_default());
            let wait = shared.bucket.lock().await.take(frame.len() as u64, Instant::now());
            sleep(wait).await;
            timeout(FRAME, socket.write_all(&frame)).await??;
            if last {
                return Ok(());
            }
        }
    };
    timeout(ANSWER, chunks).await?
}

impl Shared {
    /// Asks the gossip's owner.
    async fn owner<T>(
        &self,
        event: impl FnOnce(oneshot::Sender<T>) -> Event,
    ) -> Result<T, StreamError> {
        let (reply, answer) = oneshot::channel();
        self.events.send(event(reply)).await.map_err(|_| StreamError::Gone)?;
        answer.await.map_err(|_| StreamError::Gone)
    }
}

async fn read_frame(socket: &mut TcpStream, reader: &mut Reader) -> Result<Vec<u8>, StreamError> {
    let mut bytes = [0; READ];
    loop {
        if let Some(frame) = reader.frame()? {
            return Ok(frame);
        }
        match socket.read(&mut bytes).await? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            length => reader.push(&bytes[..length]),
        }
    }
}

fn random() -> Result<SessionId, StreamError> {
    let mut bytes = SessionId::default();
    SystemRandom::new().fill(&mut bytes).map_err(|_| StreamError::NoRandom)?;
    Ok(bytes)
}

/// Bytes that may be sent now.
#[derive(Debug)]
struct Bucket {
    level: u64,
    at: Instant,
}

impl Bucket {
    /// Takes `bytes` out and says how long to wait before they are sent.
    fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let since = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        self.level = (self.level + (since.as_secs_f64() * RATE as f64) as u64).min(BURST);
        if bytes <= self.level {
            self.level -= bytes;
            return Duration::ZERO;
        }
        // Whoever comes next waits for this one's debt too.
        let debt = Duration::from_secs_f64((bytes - self.level) as f64 / RATE as f64);
        (self.level, self.at) = (0, self.at + debt);
        self.at - now
    }
}
