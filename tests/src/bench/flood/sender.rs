//! Sends the frames of a flood out of the switch's ports towards forwarders, until it is stopped.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData},
    programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
};

use crate::{
    bench::churn::site::{PORT, Site, mac, vips},
    packet::Frame,
    rig::XdpMd,
};

#[path = "../../../../lb-ebpf/bench/stray.rs"]
#[cfg_attr(not(test), expect(dead_code, reason = "only the BPF program makes strays of it"))]
mod stray;

use stray::Flood;

const PROGRAM: &str = "flood";
/// Frames are sent in portions, so many a second and thread: those of usual rates fit into the 256 places that a veth device
/// has for frames.
const PORTIONS: u64 = 1000;
/// Frames that the kernel makes before it hands them on.
const BATCH: u32 = 64;
/// Bytes of the shortest frame, with a word more than Ethernet asks.
const SHORTEST: usize = 64;
const PAYLOAD: &[u8] = b"nobody asked";

// SAFETY: `Flood` is `bytemuck::Pod`, which asks for all that `aya::Pod` does.
unsafe impl aya::Pod for Flood {}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Strays {
    pub kind: Segment,
    pub ipv6: bool,
    /// All from one address (IPv4) or one /64 (IPv6).
    pub one_prefix: bool,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    Syn,
    Ack,
    Datagram,
}

/// A running flood: one thread for each CPU.
pub struct Sender {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// One forwarder: the switch's port towards it, and a frame as long as those made for it.
#[derive(Clone)]
struct Port {
    index: u32,
    frame: Vec<u8>,
}

impl Sender {
    /// Floods all forwarders in turn with `rate` frames a second.
    pub fn start(site: &Site, strays: Strays, rate: u64) -> Result<Self> {
        let switch = site.lab.switch();
        let mut ebpf = switch.run(load)?;
        let mut ports = Vec::new();
        for name in &site.forwarders {
            let index = switch.run(|| crate::lab::index(name))?;
            let (frame, flood) = template(strays, mac(site.lab.node(name))?)?;
            let mut floods: HashMap<&mut MapData, u32, Flood> =
                ebpf.map_mut("FLOODS").context("no map FLOODS")?.try_into()?;
            floods.insert(index, flood, 0)?;
            ports.push(Port { index, frame });
        }
        let ebpf = Arc::new(ebpf);
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut sender = Self { stop, sent, threads: Vec::new() };
        let cpus = thread::available_parallelism().context("count CPUs")?.get();
        for _ in 0..cpus {
            let (until, count) = (Arc::clone(&sender.stop), Arc::clone(&sender.sent));
            // No two begin with the same forwarder.
            ports.rotate_left(1);
            let (ebpf, ports, rate) = (Arc::clone(&ebpf), ports.clone(), rate / cpus as u64);
            let work = move || send(&ebpf, &ports, rate, &until, &count);
            sender.threads.push(switch.spawn_thread("flood", work)?);
        }
        Ok(sender)
    }

    /// Ends it; how many frames were sent.
    pub fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a sender panicked"))??;
        }
        Ok(self.sent.load(Ordering::Relaxed))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic in it was printed by it.
            drop(thread.join());
        }
    }
}

/// Loads the program, in the switch.
fn load() -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for map in ["FLOWS", "ESTABLISHED", "OPENING", "DATAGRAMS"] {
        loader.map_max_entries(map, 1);
    }
    let mut ebpf = loader.load(&crate::bench::packet::bench_object()?)?;
    let program: &mut Xdp = ebpf.program_mut(PROGRAM).context("no flood program")?.try_into()?;
    program.load()?;
    // For a program that is attached nowhere each run waits twice for an RCU grace period, while it enters and leaves the
    // dispatcher of XDP programs. Nothing ever comes by loopback here.
    program.attach_to_if_index(LOOPBACK, XdpMode::Skb).context("attach to loopback")?;
    Ok(ebpf)
}

/// Its index in every network namespace.
const LOOPBACK: u32 = 1;
/// Clients are of 198.18.0.0/15 and 2001:2::/48, which are for benchmarks (RFC 2544 C.2.2, RFC 5180 section 8).
const NETWORKS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 18, 0, 0)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0)),
];
/// Where fields stand in a frame without options and extensions, IPv4 and IPv6: the 32 bits of the source in which clients
/// differ, TCP or UDP.
const SOURCE_AT: [usize; 2] = [26, 28];
const L4_AT: [usize; 2] = [34, 54];
/// Bits that differ: all that the network leaves, in IPv6 16 of the prefix of 64 bits and 16 behind it.
const MASK: [u32; 2] = [0x0001_ffff, 0xffff_ffff];
/// The same for clients of one prefix.
const MASK_OF_ONE: [u32; 2] = [0, 0x0000_ffff];
const IP_CHECK_AT: usize = 24;
const TCP_CHECK: usize = 16;
const UDP_CHECK: usize = 6;

/// The frame with all that differs left zero, and checksums of that; and what the program is told of it.
fn template(strays: Strays, to: [u8; 6]) -> Result<(Vec<u8>, Flood)> {
    let family = usize::from(strays.ipv6);
    let frame = Frame::ip(NETWORKS[family], vips()[family]).macs(to, [2, 0, 0, 0, 0, 1]);
    let frame = match strays.kind {
        Segment::Syn => frame.tcp(0, PORT, "S").seq(0).ack(0),
        Segment::Datagram => frame.udp(0, PORT).payload(PAYLOAD),
        Segment::Ack => frame.tcp(0, PORT, "A").seq(0).ack(0),
    };
    // The shortest that Ethernet has, in whole words.
    let length = frame.build().len();
    let frame = frame.trailer(length.max(SHORTEST).next_multiple_of(8) - length).build();
    let mut words = [0; stray::WORDS];
    bytemuck::cast_slice_mut(&mut words)
        .get_mut(..frame.len())
        .context("the template is too long")?
        .copy_from_slice(&frame);
    let tcp = strays.kind != Segment::Datagram;
    let (source_at, l4_at) = (SOURCE_AT[family], L4_AT[family]);
    let ip_check_at = if strays.ipv6 { 0 } else { IP_CHECK_AT };
    let l4_check_at = l4_at + if tcp { TCP_CHECK } else { UDP_CHECK };
    let half = |at: usize| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    // What the checksum says is the sum of, without these bits of the source.
    let source = half(source_at) << 16 | half(source_at + 2);
    let sum = |at: usize| {
        u32::from(!(half(at) as u16)) + 2 * 0xffff - half(source_at) - half(source_at + 2)
    };
    let mask = if strays.one_prefix { MASK_OF_ONE } else { MASK }[family];
    let flood = Flood {
        words,
        source,
        mask,
        source_at: source_at as u32,
        ip_check_at: ip_check_at as u32,
        l4_at: l4_at as u32,
        l4_check_at: l4_check_at as u32,
        ip_sum: sum(ip_check_at),
        l4_sum: sum(l4_check_at),
        tcp: tcp.into(),
        acks: (strays.kind == Segment::Ack).into(),
    };
    Ok((frame, flood))
}

/// Sends until it is told to stop, on a thread inside the switch.
fn send(ebpf: &Ebpf, ports: &[Port], rate: u64, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let portion = (rate / PORTIONS).max(1) as u32;
    let program: &Xdp = ebpf.program(PROGRAM).context("no flood program")?.try_into()?;
    let mut due = Instant::now();
    for port in ports.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        run(program, port, portion)?;
        sent.fetch_add(portion.into(), Ordering::Relaxed);
        // A machine that cannot keep up sends as fast as it can, and makes up for a second at most.
        due += Duration::from_secs(1) / PORTIONS as u32;
        due = due.max(Instant::now() - Duration::from_secs(1));
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn run(program: &Xdp, port: &Port, frames: u32) -> Result<()> {
    let context = XdpMd {
        data_end: port.frame.len() as u32,
        ingress_ifindex: port.index,
        ..Default::default()
    };
    let options = TestRunOptions {
        data_in: Some(&port.frame),
        ctx_in: Some(bytemuck::bytes_of(&context)),
        repeat: frames,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
        ..Default::default()
    };
    program.test_run(options).context("send live frames")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet;

    #[test]
    fn strays_of_each_kind_are_sound_frames() {
        for kind in [Segment::Syn, Segment::Ack, Segment::Datagram] {
            for (ipv6, one_prefix) in [(false, false), (false, true), (true, false), (true, true)] {
                let (mut frame, flood) =
                    template(Strays { kind, ipv6, one_prefix }, [2; 6]).unwrap();
                let stray = flood.stray([0xfedc_ba98, 0x8765_4321, 0xffff_0001]);
                let mut put = |at: u32, bytes: &[u8]| {
                    frame[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
                };
                if !ipv6 {
                    put(flood.ip_check_at, &stray.ip_check.to_be_bytes());
                }
                put(flood.source_at, &stray.source.to_be_bytes());
                put(flood.l4_at, &stray.port.to_be_bytes());
                if kind != Segment::Datagram {
                    put(flood.l4_at + stray::SEQ, &stray.seq.to_be_bytes());
                    put(flood.l4_at + stray::ACK, &stray.ack.to_be_bytes());
                }
                put(flood.l4_check_at, &stray.l4_check.to_be_bytes());
                assert_eq!(packet::check(&frame), Ok(()), "{kind:?} {ipv6} {one_prefix}");
            }
        }
    }
}
