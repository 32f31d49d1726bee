//! All map statics and typed accessors: the only file that dereferences map values.
//!
//! Values are copied out at once, because the element behind a pointer may be reused by the next
//! insert; only arrivals and counters are changed in place.

use core::{arch::asm, mem::offset_of};

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage, lpm_trie},
    helpers::generated::{bpf_ktime_get_boot_ns, bpf_ktime_get_coarse_ns},
    macros::btf_map,
    programs::SockAddrContext,
};
use lb_common::{
    abi::{BLOCK_SLOTS, YIELD_LIFE, budget, capacity},
    arrival::{Arrival, ArrivalKey, ArrivalWords, Tick},
    backend::{Backend, BackendId},
    chain,
    claim::{Claim, ClaimKey},
    frontend::{self, Endpoint, FILTER_WORDS, Frontend, SourceRange, Vip, frontend_flags},
    globals::{Settings, state},
    hop::{Hop, Member, Uplink, Uplinks},
    net::{Addr, Port},
    reason::Counter,
    service::{OwnerBlock, Record, ServiceWord},
    socket::{Peer, SocketKey},
};

use crate::chain::Case;

const MMAP: usize = BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
/// In ns.
const SECOND: u64 = 1_000_000_000;
/// What follows the first word of a [`SourceRange`].
type RangeBits = [u32; 5];
const _: () = assert!(size_of::<lpm_trie::Key<RangeBits>>() == size_of::<SourceRange>());
const SERVICES_CAPACITY: usize = 2 * capacity::FRONTENDS as usize;

#[btf_map]
static FRONTENDS: HashMap<Endpoint, Frontend, { capacity::FRONTENDS as usize }, NO_PREALLOC> =
    HashMap::new();
/// Only the presence of an entry counts. The key is [`SourceRange`], of whose bits behind the first word
/// the kernel knows nothing.
#[btf_map]
static SOURCE_RANGES: LpmTrie<RangeBits, u32, { capacity::SOURCE_RANGES as usize }> =
    LpmTrie::new();
#[btf_map]
static FRONTEND_OF: Array<Endpoint, SERVICES_CAPACITY> = Array::new();
#[btf_map]
static SERVICES: Array<u64, SERVICES_CAPACITY, MMAP> = Array::new();
#[btf_map]
static RECORDS: Array<Record, { 2 * SERVICES_CAPACITY }, MMAP> = Array::new();
#[btf_map]
static OWNERS: Array<OwnerBlock, { capacity::OWNER_BLOCKS as usize }, MMAP> = Array::new();
#[btf_map]
static BACKENDS: Array<Backend, { capacity::BACKENDS as usize }, MMAP> = Array::new();
#[btf_map]
static LOCAL_BACKENDS: HashMap<
    Endpoint,
    BackendId,
    { 2 * capacity::BACKENDS as usize },
    NO_PREALLOC,
> = HashMap::new();
#[btf_map]
static HOPS: Array<Hop, { capacity::NODES as usize }, MMAP> = Array::new();
#[btf_map]
static VIPS: HashMap<Addr, Vip, { capacity::VIPS as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
static VIP_FILTER: Array<u64, { FILTER_WORDS as usize }, MMAP> = Array::new();
#[btf_map]
static UPLINKS: Array<Uplinks, 1> = Array::new();
#[btf_map]
static MEMBERS: HashMap<Addr, Member, { 2 * capacity::NODES as usize }, NO_PREALLOC> =
    HashMap::new();
#[btf_map]
static OPENING: LruHashMap<ArrivalKey, Arrival, { capacity::OPENING as usize }> = LruHashMap::new();
#[btf_map]
static ESTABLISHED: LruHashMap<ArrivalKey, Arrival, { capacity::ESTABLISHED as usize }> =
    LruHashMap::new();
#[btf_map]
static DATAGRAMS: LruHashMap<ArrivalKey, Arrival, { capacity::DATAGRAMS as usize }> =
    LruHashMap::new();
/// The same of the layout that is taken over from; the loader puts its maps here.
#[btf_map]
static OLD_OPENING: LruHashMap<ArrivalKey, ArrivalWords, 1> = LruHashMap::new();
#[btf_map]
static OLD_ESTABLISHED: LruHashMap<ArrivalKey, ArrivalWords, 1> = LruHashMap::new();
#[btf_map]
static OLD_DATAGRAMS: LruHashMap<ArrivalKey, ArrivalWords, 1> = LruHashMap::new();
#[btf_map]
static STATE: Array<u64, { state::ENTRIES as usize }, MMAP> = Array::new();
#[btf_map]
static SERVICE_COUNTERS: PerCpuArray<Counter, SERVICES_CAPACITY> = PerCpuArray::new();
#[btf_map]
static BACKEND_COUNTERS: PerCpuArray<Counter, { capacity::BACKENDS as usize }> = PerCpuArray::new();
#[btf_map]
static REASON_COUNTERS: PerCpuArray<Counter, { capacity::REASONS as usize }> = PerCpuArray::new();
/// VIPs that others took while the agent was silent, and when each was last said, by [`boot_now`].
/// Written here, cleared by the agent that returns.
#[btf_map]
static YIELDS: HashMap<Addr, u64, { capacity::VIPS as usize }, NO_PREALLOC> = HashMap::new();
/// Who else knows flows of a slot.
#[btf_map]
static CLAIMS: HashMap<ClaimKey, Claim, { capacity::CLAIMS as usize }, NO_PREALLOC> =
    HashMap::new();
/// What this CPU did, each of [`budget`] in the window that began at the first word.
#[btf_map]
static BUDGETS: PerCpuArray<[u64; 2], { budget::ENTRIES as usize }> = PerCpuArray::new();
/// The packet that a stage put aside.
#[btf_map]
static UNDECIDED: PerCpuArray<Case, 1> = PerCpuArray::new();

/// Connections that source prefixes opened, each in the second that began at the first word.
#[btf_map]
static SOURCES: LruHashMap<Addr, [u64; 2], { capacity::SOURCES as usize }> = LruHashMap::new();

/// What a socket was connected to; the kernel frees it with the socket.
#[btf_map]
static SOCKETS: SkStorage<Peer> = SkStorage::new();
/// The backend of a VIP for a socket without a peer.
#[btf_map]
static CHOSEN: LruHashMap<SocketKey, BackendId, { capacity::CHOSEN as usize }> = LruHashMap::new();
/// And whose answers come from a backend, of every UDP socket.
#[btf_map]
static ANSWERS: LruHashMap<SocketKey, Endpoint, { capacity::CHOSEN as usize }> = LruHashMap::new();

/// Set by the loader, then frozen. Read field by field, and volatile, so that the compiler does
/// not take the zeros for constants.
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings {
    flow_key: [0; 2],
    seed_tag: [0; 8],
    own_v4: Addr::UNSET,
    own_v6: Addr::UNSET,
    tunnel_port: Port::new(0),
    reserved: [0; 2],
    vni: 0,
    yield_after: 0,
    takes_over: 0,
    new_flows: 0,
    names_errors: 0,
    source_mask_v4: [0; 2],
    source_mask_v6: [0; 2],
};

macro_rules! settings {
    ($($field:ident: $type:ty),+ $(,)?) => {$(
        #[inline(always)]
        pub fn $field() -> $type {
            // SAFETY: a field of a static that only the loader wrote.
            unsafe { core::ptr::read_volatile(&raw const SETTINGS.$field) }
        }
    )+};
}

/// Load-time settings, one function a field.
pub mod setting {
    use super::{Addr, Port, SETTINGS};

    settings!(
        flow_key: [u64; 2],
        own_v4: Addr,
        own_v6: Addr,
        tunnel_port: Port,
        vni: u32,
        yield_after: u32,
        takes_over: u32,
        new_flows: u32,
        names_errors: u32,
        source_mask_v4: [u64; 2],
        source_mask_v6: [u64; 2],
    );

    /// Eight bytes as one word, as the tunnel's header holds them.
    #[inline(always)]
    pub fn seed_tag() -> u64 {
        // SAFETY: as above; the field is at a multiple of eight.
        unsafe { core::ptr::read_volatile((&raw const SETTINGS.seed_tag).cast()) }
    }
}

/// The same address, of which the compiler knows nothing. A key is a copy made with this: what is
/// known of an address (that it is IPv4, say) would else become stores of constants that straddle
/// two words, and the verifier takes only aligned ones on the stack.
#[inline(always)]
fn opaque(addr: &Addr) -> Addr {
    let [mut first, mut second] = addr.halves();
    // SAFETY: moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) first, options(pure, nomem, nostack)) };
    // SAFETY: as above.
    unsafe { asm!("{0} = {0}", inout(reg) second, options(pure, nomem, nostack)) };
    Addr::from_halves([first, second])
}

#[inline(always)]
pub fn frontend(key: &Endpoint) -> Option<Frontend> {
    let key = Endpoint { addr: opaque(&key.addr), ..*key };
    // SAFETY: copied out at once.
    unsafe { FRONTENDS.get(key) }.copied()
}

/// Whether the frontend takes packets of this client. Those without ranges pay for no look-up.
#[inline(always)]
pub fn takes(frontend: &Frontend, client: &Addr) -> bool {
    let [first, second] = client.halves();
    frontend.flags & frontend_flags::RANGES == 0
        || in_ranges(frontend.outside >> 1, first, second) != 0
}

/// 1 or 0. The address comes in registers: what has its own address taken is kept in memory, and packets
/// for frontends without ranges would pay for it.
#[inline(never)]
fn in_ranges(frontend: u32, first: u64, second: u64) -> u64 {
    let client = SourceRange::of_client(frontend, Addr::from_halves([first, second]));
    // SAFETY: of the same size, all integers, and packed; the key outlives the look-up.
    let key = unsafe { &*(&raw const client).cast::<lpm_trie::Key<RangeBits>>() };
    SOURCE_RANGES.get(key).is_some() as u64
}

#[inline(always)]
pub fn frontend_of(service: u32) -> Option<Endpoint> {
    FRONTEND_OF.get(service).copied()
}

/// The service's current record; none while it has none.
#[inline(always)]
pub fn record(service: u32) -> Option<&'static Record> {
    let word = ServiceWord(*SERVICES.get(service)?);
    match word.record() {
        0 => None,
        record => RECORDS.get(record),
    }
}

/// The owner of a slot in the table that starts at block `first`.
#[inline(always)]
pub fn owner(first: u32, slot: u32) -> BackendId {
    match OWNERS.get(first + slot / BLOCK_SLOTS) {
        Some(block) => BackendId(block[(slot % BLOCK_SLOTS) as usize]),
        None => BackendId::NONE,
    }
}

/// The backend in that life; none where the life has ended.
#[inline(always)]
pub fn backend(id: BackendId) -> Option<&'static Backend> {
    let backend = BACKENDS.get(id.index())?;
    (backend.id == id).then_some(backend)
}

#[inline(always)]
pub fn local_backend(key: &Endpoint) -> Option<BackendId> {
    let key = Endpoint { addr: opaque(&key.addr), ..*key };
    // SAFETY: copied out at once.
    unsafe { LOCAL_BACKENDS.get(key) }.copied()
}

#[inline(always)]
pub fn hop(node: u32) -> Option<&'static Hop> {
    HOPS.get(node).filter(|hop| hop.ifindex != 0)
}

#[inline(always)]
pub fn vip(addr: &Addr) -> Option<Vip> {
    // SAFETY: copied out at once.
    unsafe { VIPS.get(opaque(addr)) }.copied()
}

/// Whether another node took the VIP, and still says so.
#[inline(always)]
pub fn is_yielded(vip: &Addr) -> bool {
    // SAFETY: copied out at once.
    match unsafe { YIELDS.get(opaque(vip)) }.copied() {
        Some(said) => boot_now().saturating_sub(said) < YIELD_LIFE,
        None => false,
    }
}

/// Another node has the VIP from now on. The map has room for every VIP.
#[inline(always)]
pub fn put_yield(vip: &Addr) {
    let _ = YIELDS.insert(opaque(vip), boot_now(), 0);
}

/// False proves that the address is no VIP: one array look-up, which all traffic that is not ours
/// pays.
#[inline(always)]
pub fn may_be_vip(addr: &Addr) -> bool {
    let (word, bit) = frontend::filter_position(addr);
    VIP_FILTER.get(word).is_some_and(|bits| bits & bit != 0)
}

/// The uplink of that index.
#[inline(always)]
pub fn uplink(ifindex: u32) -> Option<&'static Uplink> {
    UPLINKS.get(0)?.list.iter().find(|uplink| uplink.ifindex == ifindex)
}

/// What the socket was connected to; some value where it ever sent to a VIP.
#[inline(always)]
pub fn peer(socket: &SockAddrContext) -> Option<Peer> {
    // SAFETY: the context is the one that the kernel passed.
    let place = unsafe { SOCKETS.get_ptr_mut(socket) };
    // SAFETY: null, or an element that lives as long as the socket; copied out at once.
    unsafe { place.as_ref() }.copied()
}

/// Keeps with the socket what it was connected to. False where the kernel has no memory for it.
#[inline(always)]
pub fn put_peer(socket: &SockAddrContext, peer: &Peer) -> bool {
    let mut first = *peer;
    // SAFETY: the context is the one that the kernel passed, the value is copied.
    let place = unsafe { SOCKETS.get_or_insert_ptr_mut(socket, Some(&mut first)) };
    // SAFETY: null, or an element that lives as long as the socket, whose owner waits for this call.
    let place = unsafe { place.as_mut() };
    place.map(|place| *place = *peer).is_some()
}

/// The backend that a socket without a peer sends to.
#[inline(always)]
pub fn chosen(key: &SocketKey) -> Option<BackendId> {
    // SAFETY: copied out at once.
    unsafe { CHOSEN.get(key) }.copied()
}

/// Whose answers come from a backend.
#[inline(always)]
pub fn answers_for(key: &SocketKey) -> Option<Endpoint> {
    // SAFETY: copied out at once.
    unsafe { ANSWERS.get(key) }.copied()
}

/// What a UDP socket gets from this backend comes from the VIP. False where the map takes no more,
/// which evicts before.
#[inline(always)]
pub fn put_answer(cookie: u64, vip: &Endpoint, backend: &Endpoint) -> bool {
    ANSWERS.insert(SocketKey { cookie, endpoint: *backend }, vip, 0).is_ok()
}

/// A socket without a peer sends to this backend from now on. False as above.
#[inline(always)]
pub fn put_choice(cookie: u64, vip: &Endpoint, id: BackendId, backend: &Endpoint) -> bool {
    // First, so that no answer comes from a stranger.
    put_answer(cookie, vip, backend)
        && CHOSEN.insert(SocketKey { cookie, endpoint: *vip }, id, 0).is_ok()
}

#[inline(always)]
pub fn is_member(addr: &Addr) -> bool {
    // SAFETY: only its presence is looked at.
    unsafe { MEMBERS.get(opaque(addr)) }.is_some()
}

#[inline(always)]
pub fn state(index: u32) -> u64 {
    STATE.get(index).copied().unwrap_or(0)
}

/// The key of a flow's arrival.
#[inline(always)]
pub fn arrival_key(client: &Addr, client_port: Port, backend: BackendId) -> ArrivalKey {
    ArrivalKey::new(opaque(client), client_port, backend)
}

/// Who claims a slot of either service of a frontend.
#[inline(always)]
pub fn claim(service: u32, slot: u32) -> Option<Claim> {
    // SAFETY: copied out at once.
    unsafe { CLAIMS.get(ClaimKey { frontend: service >> 1, slot }) }.copied()
}

/// One of the three maps of arrivals. While another layout is taken over from, its map is looked at
/// too; new arrivals are made in the own one. Otherwise `takes_over` is 0, which the verifier knows,
/// and the second looks are no part of the program.
#[derive(Clone, Copy)]
pub struct Arrivals<const ENTRIES: usize> {
    own: &'static LruHashMap<ArrivalKey, Arrival, ENTRIES>,
    old: &'static LruHashMap<ArrivalKey, ArrivalWords, 1>,
}

pub const fn opening() -> Arrivals<{ capacity::OPENING as usize }> {
    Arrivals { own: &OPENING, old: &OLD_OPENING }
}

pub const fn established() -> Arrivals<{ capacity::ESTABLISHED as usize }> {
    Arrivals { own: &ESTABLISHED, old: &OLD_ESTABLISHED }
}

pub const fn datagrams() -> Arrivals<{ capacity::DATAGRAMS as usize }> {
    Arrivals { own: &DATAGRAMS, old: &OLD_DATAGRAMS }
}

/// Places in [`ArrivalWords`].
const BACKEND_SEQ: usize = offset_of!(Arrival, backend_seq) / 4;
const SEEN: usize = offset_of!(Arrival, seen) / 4;

impl<const ENTRIES: usize> Arrivals<ENTRIES> {
    #[inline(always)]
    pub fn get(self, key: &ArrivalKey) -> Option<Arrival> {
        // SAFETY: copied out at once.
        match unsafe { self.own.get(key) }.copied() {
            None if setting::takes_over() != 0 => {
                // SAFETY: as above.
                unsafe { self.old.get(key) }.map(|words| Arrival::from_words(*words))
            }
            found => found,
        }
    }

    /// Where the flow's words are, in either map.
    #[inline(always)]
    fn place(self, key: &ArrivalKey) -> Option<*mut ArrivalWords> {
        match self.own.get_ptr_mut(key) {
            None if setting::takes_over() != 0 => self.old.get_ptr_mut(key),
            found => found.map(|place| place.cast()),
        }
    }

    /// Changes what is known in place; the fields are words, so a reader sees each whole. Of the time
    /// it may see bytes of before: then it is up to a minute older, for an instant.
    /// Returns what was there.
    #[inline(always)]
    pub fn update(
        self,
        key: &ArrivalKey,
        change: impl FnOnce(&Arrival) -> Arrival,
    ) -> Option<Arrival> {
        let place = self.place(key)?;
        // SAFETY: the look-up gave a valid element, copied out at once.
        let before = Arrival::from_words(unsafe { *place });
        let after = change(&before);
        // SAFETY: the element outlives the program's run; at worst it now serves another flow, whose
        // time is then a little newer.
        let seen = unsafe { &raw mut (*place)[SEEN] };
        let bytes = seen.cast::<u8>();
        let [flags, time @ ..] = after.seen.to_le_bytes();
        // Both sides often close at once, each on its CPU: neither FIN must be lost to what the other
        // direction notes.
        let set = (after.seen & !before.seen) & 0xff;
        if set != 0 {
            // SAFETY: as above.
            unsafe { or(seen, set) };
        }
        if before.seen & !after.seen & 0xff != 0 {
            // SAFETY: as above. The bytes are those of one word.
            unsafe { bytes.write(flags) };
        }
        if (after.seen ^ before.seen) >> 8 != 0 {
            // SAFETY: as above.
            unsafe { bytes.add(1).cast::<[u8; 3]>().write(time) };
        }
        if after.backend_seq != before.backend_seq {
            // SAFETY: as above.
            unsafe { (*place)[BACKEND_SEQ] = after.backend_seq };
        }
        Some(before)
    }

    /// A full map evicts, so this fails only under contention; then the next packet tries again.
    #[inline(always)]
    pub fn insert(self, key: &ArrivalKey, arrival: &Arrival) {
        let _ = self.own.insert(key, arrival, 0);
        if setting::takes_over() != 0 {
            let _ = self.old.remove(key);
        }
    }

    #[inline(always)]
    pub fn remove(self, key: &ArrivalKey) {
        let _ = self.own.remove(key);
        if setting::takes_over() != 0 {
            let _ = self.old.remove(key);
        }
    }
}

/// Sets bits of a word in one step.
///
/// # Safety
/// `word` is valid and aligned.
#[inline(always)]
unsafe fn or(word: *mut u32, bits: u32) {
    // SAFETY: the caller's; nothing else is touched.
    unsafe { asm!("lock *(u32 *)({0} + 0) |= {1}", in(reg) word, in(wreg) bits) };
}

#[inline(always)]
fn add(counter: Option<*mut Counter>, bytes: usize) {
    if let Some(counter) = counter {
        // SAFETY: this CPU's own element; programs are not interrupted by others of their kind.
        unsafe { (*counter).packets += 1 };
        // SAFETY: as above.
        unsafe { (*counter).bytes += bytes as u64 };
    }
}

/// By the reason's number.
#[inline(always)]
pub fn count(reason: u32, bytes: usize) {
    add(REASON_COUNTERS.get_ptr_mut(reason), bytes);
}

#[inline(always)]
pub fn count_service(service: u32, bytes: usize) {
    add(SERVICE_COUNTERS.get_ptr_mut(service), bytes);
}

#[inline(always)]
pub fn count_backend(id: BackendId, bytes: usize) {
    add(BACKEND_COUNTERS.get_ptr_mut(id.index()), bytes);
}

/// The place of the packet that is put aside on this CPU.
#[inline(always)]
pub fn case() -> Option<&'static mut Case> {
    let place = UNDECIDED.get_ptr_mut(0)?;
    // SAFETY: this CPU's own element, of which each stage takes one reference at a time; any bytes
    // that a stage wrote there make a valid value, and none is read before it was written.
    Some(unsafe { &mut *place })
}

/// Whether one more packet may be sent on; counts it.
#[inline(always)]
pub fn sends_allowed() -> bool {
    allowed(budget::SENDS, chain::WINDOW, chain::SENDS)
}

/// Whether one more stray may make an opening; counts it.
#[inline(always)]
pub fn stray_allowed() -> bool {
    allowed(budget::STRAYS, chain::WINDOW, chain::STRAYS)
}

/// Whether one more refusal may be sent; counts it.
#[inline(always)]
pub fn refusal_allowed(window: u64, limit: u64) -> bool {
    allowed(budget::REFUSALS, window, limit)
}

/// Counts one event against `limit` per `window` ns on this CPU; false when it is used up.
#[inline(always)]
fn allowed(index: u32, window: u64, limit: u64) -> bool {
    match BUDGETS.get_ptr_mut(index) {
        Some(place) => spend(place, window, limit),
        None => false,
    }
}

/// Whether the prefix may open one more connection in this second; counts it. CPUs that count at
/// once may lose some, which lets a few more through.
#[inline(always)]
pub fn source_allowed(prefix: &Addr, limit: u64) -> bool {
    let prefix = opaque(prefix);
    match SOURCES.get_ptr_mut(prefix) {
        Some(place) => spend(place, SECOND, limit),
        None => {
            let _ = SOURCES.insert(prefix, [coarse_now(), 1], 0);
            true
        }
    }
}

/// Counts one event at `place`.
#[inline(always)]
fn spend(place: *mut [u64; 2], window: u64, limit: u64) -> bool {
    // SAFETY: an element of a map, which outlives the program's run; its words are read one by one.
    let [mut start, mut sent] = unsafe { *place };
    let now = coarse_now();
    if now.wrapping_sub(start) >= window {
        (start, sent) = (now, 0);
    }
    if sent >= limit {
        return false;
    }
    // SAFETY: as above.
    unsafe { *place = [start, sent + 1] };
    true
}

/// CLOCK_MONOTONIC at the resolution of the tick, in ns.
#[inline(always)]
fn coarse_now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// CLOCK_BOOTTIME in ns, the clock of the agent's heartbeat.
#[inline(always)]
pub fn boot_now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Now, as arrivals note it.
#[inline(always)]
pub fn now() -> Tick {
    Tick::from_nanos(coarse_now())
}
