//! Programs that only the packet bench loads: the wrappers that restore and vary the packet, the
//! floors, the control, and the sender of floods. They are an object of their own, so the product's
//! holds none of them.
//!
//! `BPF_PROG_TEST_RUN` with `repeat` hands the packet on as the last run left it. So a wrapper first
//! undoes the last run (head adjustment, headers), chooses a flow, and tail-calls the program under
//! test, which never returns to it.
#![no_std]
#![no_main]

mod stray;
mod template;

use aya_ebpf::{
    bindings::{TC_ACT_UNSPEC, xdp_action},
    btf_maps::{Array, HashMap, LruHashMap, ProgramArray},
    helpers::generated::{bpf_get_prandom_u32, bpf_redirect, bpf_xdp_adjust_head},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    backend::BackendId,
    frontend::Endpoint,
    hash::{flow_hash, slot_of},
    net::{Addr, Flow},
    reason::Reason,
    wire::{
        eth::{Mac, ethertype},
        geneve::data_flags,
        ipv4::Ipv4,
        ipv6::Ipv6,
    },
};
use lb_ebpf::{
    frame::Frame,
    maps::{self, setting},
    parse::{Ip, Link, Macs},
    tunnel::{self, Note},
    verdict::Fate,
};
use stray::Flood;
use template::{TEMPLATE, Template, client};

#[btf_map]
static TEMPLATES: Array<Template, 1> = Array::new();
#[btf_map]
static XDP_UNDER_TEST: ProgramArray<1> = ProgramArray::new();
#[btf_map]
static TC_UNDER_TEST: ProgramArray<1> = ProgramArray::new();

/// Restores the headers and writes the next flow. `end - start` is at least [`TEMPLATE`].
#[inline(always)]
fn restore(start: usize, end: usize, template: *mut Template) {
    if start + TEMPLATE > end {
        return;
    }
    // SAFETY: one bench thread runs the wrapper; nobody else writes the element.
    let template = unsafe { &mut *template };
    for word in 0..TEMPLATE / 8 {
        if word as u32 >= template.restored {
            break;
        }
        // SAFETY: `start + TEMPLATE` lies in the packet, and the word before it.
        unsafe { ((start + word * 8) as *mut u64).write_unaligned(template.words[word]) };
    }
    // xorshift64 (Marsaglia 2003).
    let mut random = template.random;
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    template.random = random;
    let flow = (((random >> 32) * template.flows as u64) >> 32) as u32;
    let (address, port) = client(flow);
    put(start, end, template.address_at, address.to_be());
    put(start, end, template.port_at, port.to_be());
}

/// Writes a value that lies in the packet.
#[inline(always)]
fn put<T>(start: usize, end: usize, offset: u32, value: T) {
    if offset as usize > TEMPLATE {
        return;
    }
    let pos = start + offset as usize;
    if pos + size_of::<T>() <= end {
        // SAFETY: the value lies in the packet.
        unsafe { (pos as *mut T).write_unaligned(value) };
    }
}

#[xdp(frags)]
pub fn bench_xdp(ctx: XdpContext) -> u32 {
    let Some(template) = TEMPLATES.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the look-up gave a valid element.
    let length = unsafe { (*template).length } as usize;
    let grown = (ctx.data_end() - ctx.data()) as i32 - length as i32;
    if grown != 0 {
        // SAFETY: the context is the kernel's.
        unsafe { bpf_xdp_adjust_head(ctx.ctx, grown) };
    }
    let ctx = XdpContext::new(ctx.ctx);
    restore(ctx.data(), ctx.data_end(), template);
    // SAFETY: the context is the kernel's; failing, it comes back and the run shows "aborted".
    unsafe { XDP_UNDER_TEST.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

#[classifier]
pub fn bench_tc(ctx: TcContext) -> i32 {
    /// What no program under test returns.
    const FAILED: i32 = 99;
    let Some(template) = TEMPLATES.get_ptr_mut(0) else {
        return FAILED;
    };
    restore(ctx.data(), ctx.data_end(), template);
    // SAFETY: as in `bench_xdp`.
    unsafe { TC_UNDER_TEST.tail_call(&ctx, 0) };
    FAILED
}

/// The floor: what the wrapper and the test run cost.
#[xdp(frags)]
pub fn floor_xdp(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[classifier]
pub fn floor_tc(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Key of the control's flow table: the five-tuple, padded to words.
#[repr(C)]
#[derive(Clone, Copy)]
struct FlowKey {
    client: Addr,
    vip: Addr,
    ports: u32,
    proto: u32,
}

/// Room for the flows of the largest row, of both families.
#[btf_map]
static FLOWS: LruHashMap<FlowKey, BackendId, 2_097_152> = LruHashMap::new();

/// The control: the classic design. The same parser, tables and tunnel, but the backend of a flow is
/// remembered in a table of the forwarder, which every packet asks first.
#[xdp(frags)]
pub fn control(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let bytes = frame.view().len();
    let fate = classic(&mut frame).unwrap_or_else(|reason| Fate::of(Err(reason)));
    if let Some(reason) = fate.reason() {
        maps::count(reason, bytes);
    }
    // SAFETY: plain numbers.
    fate.act(|ifindex| unsafe { bpf_redirect(ifindex, 0) as u32 })
}

#[inline(always)]
fn classic(frame: &mut Frame) -> Result<Fate, Reason> {
    let view = frame.view();
    let link = Link::read(&view)?;
    let destination = match link.ethertype {
        ethertype::IPV4 => Addr::from_v4_word(view.at::<Ipv4>(link.l3)?.destination),
        ethertype::IPV6 => view.at::<Ipv6>(link.l3)?.destination.into(),
        _ => return Ok(Fate::NOT_OURS),
    };
    if !maps::may_be_vip(&destination) {
        return Ok(Fate::NOT_OURS);
    }
    let (ifindex, whole) = (frame.ifindex(), frame.whole());
    let view = frame.view();
    let macs = Macs::read(&view)?;
    if maps::uplink(ifindex).is_none_or(|uplink| macs.destination != Mac::new(uplink.mac)) {
        return Ok(Fate::NOT_OURS);
    }
    let ip = Ip::read(&view, link.l3, link.ethertype, || whole.len())?;
    let flow = ip.flow(&view)?;
    let Some(frontend) = maps::frontend(&Endpoint::new(flow.vip, flow.vip_port, flow.proto)) else {
        return Ok(Fate::NOT_OURS);
    };
    let service = frontend.outside;
    maps::count_service(service, ip.length);
    let id = remembered(service, &flow)?;
    let backend = maps::backend(id).ok_or(Reason::StaleOwner)?;
    maps::count_backend(id, ip.length);
    // Spreads source ports without the keyed hash, which only a new flow needs.
    let ports = (flow.client_port.wire() as u32) << 16 | flow.vip_port.wire() as u32;
    let spread = (ports ^ flow.client.v4_word()).wrapping_mul(0x9e37_79b1) as u64;
    // Receivers are to deliver what they get: who has the flow is known here or nowhere.
    let note = Note { flags: data_flags::LAST, ..Note::forwarded(0, 0) };
    Ok(tunnel::send(frame, &link, &ip, backend, spread << 32, note))
}

/// The flow's backend: as remembered, else the slot's owner, remembered from now on.
#[inline(always)]
fn remembered(service: u32, flow: &Flow) -> Result<BackendId, Reason> {
    let ports = (flow.client_port.wire() as u32) << 16 | flow.vip_port.wire() as u32;
    let key = FlowKey { client: flow.client, vip: flow.vip, ports, proto: flow.proto as u32 };
    // SAFETY: copied out at once.
    if let Some(known) = unsafe { FLOWS.get(key) } {
        return Ok(*known);
    }
    let record = maps::record(service).ok_or(Reason::RefusedNoBackend)?;
    let hash = flow_hash(&setting::flow_key(), flow);
    let id = maps::owner(record.owners, slot_of(hash, record.slots));
    let _ = FLOWS.insert(key, id, 0);
    Ok(id)
}

/// By the interface that they leave by.
#[btf_map]
static FLOODS: HashMap<u32, Flood, 16> = HashMap::new();

/// Makes one frame of a flood, and sends it out of the interface that the run names.
#[xdp]
pub fn flood(ctx: XdpContext) -> u32 {
    // SAFETY: nobody writes it while the program runs.
    let Some(flood) = (unsafe { FLOODS.get(ctx.ingress_ifindex() as u32) }) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the helper takes nothing and gives a number.
    let random = || unsafe { bpf_get_prandom_u32() };
    let stray = flood.stray([random(), random(), random()]);
    let (start, end) = (ctx.data(), ctx.data_end());
    for (index, word) in flood.words.iter().enumerate() {
        put(start, end, index as u32 * 8, *word);
    }
    if flood.ip_check_at != 0 {
        put(start, end, flood.ip_check_at, stray.ip_check.to_be());
    }
    put(start, end, flood.source_at, stray.source.to_be());
    put(start, end, flood.l4_at, stray.port.to_be());
    if flood.tcp == 1 {
        put(start, end, flood.l4_at + stray::SEQ, stray.seq.to_be());
        put(start, end, flood.l4_at + stray::ACK, stray.ack.to_be());
    }
    put(start, end, flood.l4_check_at, stray.l4_check.to_be());
    xdp_action::XDP_TX
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers called are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
