//! Streams: whom to ask for what, and what to answer.

use std::collections::VecDeque;

use super::{message::Chunk, *};
use crate::membership::board::{Item, Request, Wanted};

/// What is missing may still come by datagrams for this long.
const PATIENCE: Duration = Duration::from_millis(300);
/// Between the beginnings of two pulls.
const INTERVAL: Duration = Duration::from_secs(1);
/// After this a pull whose end nobody told is over.
const PULL_MOST: Duration = Duration::from_secs(60);
/// Bytes of a chunk of a stream, and room that is left for the next log in one.
const CHUNK: usize = 48 << 10;
const CHUNK_REST: usize = 24 << 10;

/// A wish to ask a member over a stream.
#[derive(Clone, Debug)]
pub struct Pull {
    pub node: Arc<str>,
    pub address: SocketAddr,
    pub request: Request,
}

/// An answer that is being given.
#[derive(Debug)]
pub struct Serving {
    audiences: Option<Vec<String>>,
    wanted: VecDeque<Wanted>,
}

/// What is known to be missing.
#[derive(Debug, Default)]
pub(super) struct Pulling {
    since: Option<Instant>,
    /// Who told of what is missing.
    teller: Option<Arc<str>>,
    /// Whose state differed, and how it was.
    differs: Option<(Arc<str>, [u64; BUCKETS])>,
    /// Who says something to audiences that is missing.
    speaker: Option<Arc<str>>,
    last: Option<Instant>,
    running: Option<(Arc<str>, Instant)>,
    wishes: Vec<Pull>,
}

impl Pulling {
    pub fn want_rest(&mut self, teller: &Arc<str>, now: Instant) {
        self.teller = Some(teller.clone());
        self.want_more(now);
    }

    pub fn want_difference(&mut self, with: &Arc<str>, theirs: [u64; BUCKETS], now: Instant) {
        self.differs = Some((with.clone(), theirs));
        self.want_more(now);
    }

    pub fn want_audiences(&mut self, of: &Arc<str>, now: Instant) {
        self.speaker = Some(of.clone());
        self.want_more(now);
    }

    pub fn want_more(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    pub fn due(&self) -> Option<Instant> {
        let patient = self.since? + PATIENCE;
        let spaced = self.last.map_or(patient, |last| patient.max(last + INTERVAL));
        Some(self.running.as_ref().map_or(spaced, |(_, end)| spaced.max(*end)))
    }
}

impl Gossip {
    /// Streams to open: each is answered with [`Self::on_chunk`] for every chunk, and [`Self::on_pulled`] once.
    /// One at a time and one per second at most.
    pub fn take_pulls(&mut self) -> Vec<Pull> {
        std::mem::take(&mut self.pulling.wishes)
    }

    /// Takes one chunk of a stream that `node` answers.
    pub fn on_chunk(&mut self, node: &str, chunk: &[u8], now: Instant) -> Result<(), Malformed> {
        let Some((node, _)) = self.nodes.get_key_value(node) else { return Ok(()) };
        let node = node.clone();
        let chunk = decode(chunk);
        self.counts.malformed += u64::from(chunk.is_err());
        match chunk? {
            Chunk::Audiences(audiences) => self.board.keep_audiences(&node, &audiences),
            Chunk::Deltas(deltas) => {
                for delta in deltas {
                    self.apply(&delta, &node, now);
                }
            }
        }
        Ok(())
    }

    /// The stream has ended, well or not: what is still missing is asked for again, of somebody else.
    pub fn on_pulled(&mut self, node: &str, now: Instant) {
        self.pulling.running.take_if(|(asked, _)| **asked == *node);
        self.pulling.teller = None;
        if !matches!(self.board.behind(), (0, None)) {
            self.pulling.want_more(now);
        }
    }

    /// Begins to answer. None: nobody who asks is configured.
    pub fn serve(&mut self, request: &Request, now: Instant) -> Option<Serving> {
        let Some((asker, _)) = self.nodes.get_key_value(&*request.asker) else {
            self.counts.strangers += 1;
            return None;
        };
        let asker = asker.clone();
        // What the asker has more is asked for in turn.
        for have in &request.have {
            let outcome = self.board.tell(have);
            self.react(outcome, &asker, now);
        }
        self.counts.served += 1;
        let (wanted, audiences) = self.board.wanted(request);
        Some(Serving { audiences: request.audiences.then_some(audiences), wanted: wanted.into() })
    }

    /// The next chunk of an answer; None: this was all. What changes meanwhile is in it or not.
    pub fn next_chunk(&self, serving: &mut Serving) -> Option<Vec<u8>> {
        if let Some(audiences) = serving.audiences.take() {
            return Some(encode(&Chunk::Audiences(audiences.iter().map(String::as_str).collect())));
        }
        let (mut deltas, mut left) = (Vec::new(), CHUNK);
        while left >= CHUNK_REST
            && let Some(wanted) = serving.wanted.front_mut()
        {
            let Some(delta) = self.board.piece(wanted, left) else {
                serving.wanted.pop_front();
                continue;
            };
            let names = delta.origin.len() + delta.log.len();
            let items = delta.items.iter().map(Item::size).sum::<usize>();
            left = left.saturating_sub(names + items + 64);
            deltas.push(delta);
        }
        (!deltas.is_empty()).then(|| encode(&Chunk::Deltas(deltas)))
    }

    /// Chooses whom to ask for what is missing.
    pub(super) fn pull(&mut self, now: Instant) {
        self.pulling.since = None;
        self.pulling.running = None;
        let heard = self.heard();
        let (behind, source) = self.board.behind();
        let speaker =
            self.pulling.speaker.take().or(source.cloned()).filter(|it| heard.contains(it));
        let ours = self.board.hashes();
        let differs = self.pulling.differs.take().filter(|it| heard.contains(&it.0));
        let differs = differs.map(|(node, theirs)| (node, difference(&ours, &theirs)));
        let differs = differs.filter(|it| it.1 != 0);
        let (node, buckets, audiences) = match (speaker, differs) {
            (Some(node), later) => {
                if later.is_some() {
                    // Compared again in the next round.
                    self.pulling.since = Some(now);
                }
                (node, behind, true)
            }
            (None, Some((node, buckets))) => (node, buckets | behind, false),
            (None, None) if behind != 0 => {
                let teller = self.pulling.teller.take().filter(|it| heard.contains(it));
                let Some(node) = teller.or_else(|| self.some_heard(1, |_| true).pop()) else {
                    return;
                };
                (node, behind, false)
            }
            (None, None) => return,
        };
        let Some(address) = self.nodes.get_mut(&node).and_then(|it| it.address(now)) else {
            return;
        };
        self.counts.pulls += 1;
        self.pulling.last = Some(now);
        self.pulling.running = Some((node.clone(), now + PULL_MOST));
        let request = self.board.request(&node, buckets, audiences);
        self.pulling.wishes.push(Pull { node, address, request });
    }
}

/// Buckets whose hashes differ.
fn difference(ours: &[u64; BUCKETS], theirs: &[u64; BUCKETS]) -> u64 {
    let differs = |(at, _): &(usize, (&u64, &u64))| 1u64 << at;
    let pairs = ours.iter().zip(theirs).enumerate().filter(|(_, (our, their))| our != their);
    pairs.fold(0, |mask, pair| mask | differs(&pair))
}
