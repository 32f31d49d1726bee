//! Who can be talked to: the SWIM library with its timers, for configured nodes only
//! (Das et al., SWIM: Scalable Weakly-consistent Infection-style Process Group Membership, DSN 2002).

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::BinaryHeap,
    num::{NonZeroU8, NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::{Duration, Instant},
};

use foca::{
    Config, Foca, Header, Member, Message, NoCustomBroadcast, Notification, PeriodicParams,
    PostcardCodec, Runtime, Timer,
};
use rand::{SeedableRng, rngs::StdRng};

use super::message::{Identity, Malformed, PLAIN_MOST, SWIM_OVERHEAD};

/// Between two members that are probed.
const PROBE_PERIOD: Duration = Duration::from_secs(1);
/// How long the probed one has to answer before others are asked to probe it.
const PROBE_RTT: Duration = Duration::from_millis(300);
/// Between two rounds in which changes of membership are told, as long as there are any.
const TELL_PERIOD: Duration = Duration::from_millis(200);
/// Between two requests to a random member for members.
const ASK_PERIOD: Duration = Duration::from_secs(30);

/// What the library wants done.
#[derive(Debug, Default)]
pub struct Effects {
    pub sends: Vec<(Identity, Vec<u8>)>,
    /// Who has become active.
    pub came: Vec<Arc<str>>,
    /// Somebody became active or no longer is.
    pub moved: bool,
    /// Members in a datagram that are not configured.
    pub strangers: u64,
    timers: Vec<(Duration, Timer<Identity>)>,
}

impl Runtime<Identity> for Effects {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        self.moved = true;
        if let Notification::MemberUp(it) = notification {
            self.came.push(it.name.clone());
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.sends.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Identity>, after: Duration) {
        self.timers.push((after, event));
    }
}

/// A timer of the library; the number keeps those of one instant in order.
#[derive(Debug)]
struct Due(Instant, u64, Timer<Identity>);

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

pub struct Swim {
    foca: Foca<Identity, PostcardCodec, StdRng, NoCustomBroadcast>,
    timers: BinaryHeap<Reverse<Due>>,
    timers_made: u64,
}

impl std::fmt::Debug for Swim {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Swim").field("own", self.own()).finish_non_exhaustive()
    }
}

impl Swim {
    pub fn new(own: Identity, rng_seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(rng_seed);
        Self {
            foca: Foca::new(own, config(1), rng, PostcardCodec),
            timers: BinaryHeap::new(),
            timers_made: 0,
        }
    }

    pub fn own(&self) -> &Identity {
        self.foca.identity()
    }

    /// Names of active members, suspected ones among them.
    pub fn active(&self) -> impl Iterator<Item = &Arc<str>> {
        self.foca.iter_members().map(|member| &member.id().name)
    }

    /// Fits repetitions and suspicion to the number of members.
    pub fn set_size(&mut self, members: usize) {
        let fits = self.foca.set_config(config(members));
        debug_assert!(fits.is_ok(), "only what may change differs");
    }

    /// Who sent the library's datagram, by its own word.
    pub fn sender(data: &[u8]) -> Result<Identity, Malformed> {
        let (header, _) =
            postcard::take_from_bytes::<Header<Identity>>(data).map_err(|_| Malformed)?;
        Ok(header.src)
    }

    pub fn on_data(
        &mut self,
        data: &[u8],
        known: impl Fn(&str) -> bool,
        now: Instant,
    ) -> Result<Effects, Malformed> {
        let (data, strangers) = admit(data, known)?;
        let mut effects = Effects { strangers, ..Effects::default() };
        // What it did before it found a fault stands.
        let result = self.foca.handle_data(&data, &mut effects);
        self.keep_timers(&mut effects, now);
        if result.is_err() && effects.sends.is_empty() && !effects.moved {
            return Err(Malformed);
        }
        Ok(effects)
    }

    /// Asks a node to let this one join, or to say who is there.
    pub fn announce(&mut self, to: Identity, now: Instant) -> Effects {
        self.act(now, |foca, effects| foca.announce(to, effects))
    }

    /// Takes another incarnation: this one is held for dead or old by others.
    pub fn rejoin(&mut self, incarnation: u64, now: Instant) -> Effects {
        let own = Identity { incarnation, ..self.own().clone() };
        self.act(now, |foca, effects| foca.change_identity(own, effects))
    }

    /// Tells some members that this one goes.
    pub fn leave(&mut self, now: Instant) -> Effects {
        self.act(now, |foca, effects| foca.leave_cluster(effects))
    }

    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse(due)| due.0)
    }

    /// Does one thing that is due.
    pub fn on_timer(&mut self, now: Instant) -> Option<Effects> {
        if self.next_timer()? > now {
            return None;
        }
        let Reverse(Due(_, _, timer)) = self.timers.pop()?;
        Some(self.act(now, |foca, effects| foca.handle_timer(timer, effects)))
    }

    fn act(
        &mut self,
        now: Instant,
        act: impl FnOnce(
            &mut Foca<Identity, PostcardCodec, StdRng, NoCustomBroadcast>,
            &mut Effects,
        ) -> Result<(), foca::Error>,
    ) -> Effects {
        let mut effects = Effects::default();
        // Its errors say that a timer came late or nothing was to change: it goes on by itself.
        let _went_on = act(&mut self.foca, &mut effects);
        self.keep_timers(&mut effects, now);
        effects
    }

    fn keep_timers(&mut self, effects: &mut Effects, now: Instant) {
        for (after, timer) in effects.timers.drain(..) {
            self.timers_made += 1;
            self.timers.push(Reverse(Due(now + after, self.timers_made, timer)));
        }
    }
}

/// Takes members out of a datagram that are not configured, and says how many.
fn admit(data: &[u8], known: impl Fn(&str) -> bool) -> Result<(Cow<'_, [u8]>, u64), Malformed> {
    let (header, rest) =
        postcard::take_from_bytes::<Header<Identity>>(data).map_err(|_| Malformed)?;
    let plain =
        matches!(header.message, Message::Announce | Message::TurnUndead | Message::Broadcast);
    let Some((count, mut rest)) = rest.split_first_chunk::<2>().filter(|_| !plain) else {
        return Ok((Cow::Borrowed(data), 0));
    };
    let head = data.len() - rest.len() - 2;
    let (mut kept, mut strangers) = (Vec::new(), 0);
    for _ in 0..u16::from_be_bytes(*count) {
        let (member, after) =
            postcard::take_from_bytes::<Member<Identity>>(rest).map_err(|_| Malformed)?;
        match known(&member.id().name) {
            true => kept.push(&rest[..rest.len() - after.len()]),
            false => strangers += 1,
        }
        rest = after;
    }
    if strangers == 0 {
        return Ok((Cow::Borrowed(data), 0));
    }
    let count = (kept.len() as u16).to_be_bytes();
    Ok((Cow::Owned([&data[..head], &count, &kept.concat(), rest].concat()), strangers))
}

fn config(members: usize) -> Config {
    let size = NonZeroU32::new(members as u32).unwrap_or(NonZeroU32::MIN);
    let lan = Config::new_lan(size);
    let periodic = |frequency, members| {
        NonZeroUsize::new(members).map(|num_members| PeriodicParams { frequency, num_members })
    };
    Config {
        probe_period: PROBE_PERIOD,
        probe_rtt: PROBE_RTT,
        max_packet_size: NonZeroUsize::new(PLAIN_MOST - SWIM_OVERHEAD).unwrap_or(NonZeroUsize::MIN),
        // One more than there are members is always enough in small groups.
        max_transmissions: lan.max_transmissions.max(NonZeroU8::MIN.saturating_add(3)),
        // Names are configured, so they are bounded.
        remove_down_after: None,
        notify_down_members: true,
        periodic_announce: periodic(ASK_PERIOD, 1),
        // The rounds of `Gossip` ask everybody who is not heard, down or never seen.
        periodic_announce_to_down_members: None,
        periodic_gossip: periodic(TELL_PERIOD, 2),
        ..lan
    }
}
