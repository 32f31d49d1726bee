//! How words become datagrams.

use rand::{rngs::StdRng, seq::SliceRandom};

use super::{message::SAY_OVERHEAD, rumours::LENGTH_OF_LENGTH, *};

/// What a delta takes beside its items and names.
const DELTA_OVERHEAD: usize = 64;

impl Gossip {
    /// Own changes that have not been told, as deltas that fit into a datagram each; the last one only tells how far
    /// the log is where there are too many.
    pub(super) fn own_rumours(&mut self, audience: &str) -> Vec<Rumour> {
        let budget = self.delta_budget(audience);
        let told = self.told.entry(audience.into()).or_default();
        let mut rumours = Vec::new();
        while let Some(delta) = self.board.own_after(audience, told.version, budget) {
            if delta.latest <= told.version {
                break;
            }
            let only_tells = rumours.len() + 1 >= BURST && delta.to < delta.latest;
            let delta = match only_tells {
                true => Delta { from: delta.latest, to: delta.latest, items: Vec::new(), ..delta },
                false => delta,
            };
            told.version = delta.to;
            rumours.push(Rumour::new(&delta, self.own.clone(), encode(&delta), 0));
        }
        rumours
    }

    /// Tells the latest own change to all or several members.
    pub(super) fn tell_urgently(&mut self, version: u64) -> Vec<(Arc<str>, Vec<u8>)> {
        let budget = self.delta_budget("");
        let Some(delta) = self.board.own_after("", version - 1, budget) else { return Vec::new() };
        let delta = Delta { urgent: true, ..delta };
        let bytes = encode(&delta);
        let rumour = Rumour::new(&delta, self.own.clone(), bytes.clone(), 1);
        self.rumours.add(rumour);
        let told = self.told.entry("".into()).or_default();
        if told.version + 1 == version {
            told.version = version;
        }
        let all = self.swim.active().count() <= SMALL;
        let targets = self.some_heard(if all { SMALL } else { URGENT_TO }, |_| true);
        targets.into_iter().map(|node| (node, bytes.clone())).collect()
    }

    pub(super) fn own_version(&self, audience: &str) -> u64 {
        self.board.own_mark(audience).map_or(0, |mark| mark.version)
    }

    pub(super) fn spread_soon(&mut self, now: Instant) {
        let soonest = self.last_spread.map_or(now + BATCH, |last| (now + BATCH).max(last + SPREAD));
        self.next_spread = Some(self.next_spread.map_or(soonest, |at| at.min(soonest)));
    }

    /// Sends the hashes of what this node knows.
    pub(super) fn compare_with(&mut self, node: &Arc<str>, now: Instant) {
        let shared = sum(&self.board.hashes());
        let audiences = self.board.audience_hash(&self.own, node);
        self.send_word(node, Word::Compare { shared, audiences }, now);
    }

    /// Sends encoded deltas, in as many datagrams as it takes.
    pub(super) fn say(&mut self, to: &Arc<str>, deltas: &[Vec<u8>], now: Instant) {
        let budget = self.say_budget();
        let mut rest = deltas;
        while !rest.is_empty() {
            let mut left = budget;
            let fits = |bytes: &&Vec<u8>| match left.checked_sub(bytes.len() + LENGTH_OF_LENGTH) {
                Some(less) => {
                    left = less;
                    true
                }
                None => false,
            };
            let count = rest.iter().take_while(fits).count();
            let (now_sent, later) = rest.split_at(count.max(1));
            rest = later;
            if count > 0 {
                let said = now_sent.iter().map(Vec::as_slice).collect();
                self.send_word(to, Word::Say(said), now);
            }
        }
    }

    /// Room for deltas in one datagram.
    pub(super) fn say_budget(&self) -> usize {
        PLAIN_MOST.saturating_sub(SAY_OVERHEAD + self.own.len())
    }

    pub(super) fn send_word(&mut self, to: &str, word: Word<'_>, now: Instant) {
        let sender = self.swim.own().clone();
        self.send(to, &Datagram::Word { sender, word }, now);
    }

    pub(super) fn send(&mut self, to: &str, datagram: &Datagram<'_>, now: Instant) {
        if let Some(address) = self.nodes.get_mut(to).and_then(|node| node.address(now)) {
            self.push(address, encode(datagram));
        }
    }

    pub(super) fn push(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        self.counts.datagrams += 1;
        self.counts.bytes += bytes.len() as u64;
        self.out.push((to, bytes));
    }

    /// Up to `count` random nodes that are heard.
    pub(super) fn some_heard(
        &mut self,
        count: usize,
        wanted: impl Fn(&Arc<str>) -> bool,
    ) -> Vec<Arc<str>> {
        let heard = self.heard.iter().filter(|it| wanted(it)).cloned().collect();
        some(heard, count, &mut self.rng)
    }

    fn delta_budget(&self, audience: &str) -> usize {
        let names = self.own.len() + audience.len();
        self.say_budget().saturating_sub(names + DELTA_OVERHEAD)
    }
}

/// `count` of these at random, fewer if there are not so many.
pub(super) fn some<T>(mut all: Vec<T>, count: usize, rng: &mut StdRng) -> Vec<T> {
    all.shuffle(rng);
    all.truncate(count);
    all
}

pub(super) fn sum(hashes: &[u64]) -> u64 {
    hashes.iter().fold(0, |sum, hash| sum.wrapping_add(*hash))
}
