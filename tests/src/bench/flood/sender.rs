//! Sends the frames of a flood out of the switch's ports towards forwarders, until it is stopped.

use std::{
    net::Ipv4Addr,
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
    maps::{Array, MapData},
    programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
};

use super::Kind;
use crate::{
    bench::churn::site::{PORT, Site, mac, vips},
    packet::Frame,
};

#[path = "../../../../lb-ebpf/bench/stray.rs"]
#[cfg_attr(not(test), expect(dead_code, reason = "only the BPF program makes strays of it"))]
mod stray;

use stray::Flood;

const PROGRAM: &str = "flood";
/// Frames are sent in portions, so many a second.
const PORTIONS: u64 = 100;
/// Frames that the kernel makes before it hands them on.
const BATCH: u32 = 64;
const PAYLOAD: &[u8] = b"nobody asked";

// SAFETY: `Flood` is `bytemuck::Pod`, which asks for all that `aya::Pod` does.
unsafe impl aya::Pod for Flood {}

/// A running flood.
pub struct Sender {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// One forwarder: the switch's port towards it, and the frame made for it.
struct Port {
    index: u32,
    frame: [u8; FRAME],
}

impl Sender {
    /// Floods all forwarders in turn with `rate` frames a second.
    pub fn start(site: &Site, kind: Kind, rate: u64) -> Result<Self> {
        let ebpf = load()?;
        let mut ports = Vec::new();
        for name in &site.forwarders {
            let index = site.lab.switch().run(|| crate::lab::index(name))?;
            ports.push(Port { index, frame: template(kind, mac(site.lab.node(name))?)? });
        }
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let work = move || send(ebpf, &ports, rate, &until, &count);
        let thread = Some(site.lab.switch().spawn_thread("flood", work)?);
        Ok(Self { stop, sent, thread })
    }

    /// Ends it; how many frames were sent.
    pub fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the sender panicked"))??;
        }
        Ok(self.sent.load(Ordering::Relaxed))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed by it.
            drop(thread.join());
        }
    }
}

fn load() -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for map in ["FLOWS", "ESTABLISHED", "OPENING", "DATAGRAMS"] {
        loader.map_max_entries(map, 1);
    }
    let mut ebpf = loader.load(&crate::bench::packet::bench_object()?)?;
    let program: &mut Xdp = ebpf.program_mut(PROGRAM).context("no flood program")?.try_into()?;
    program.load()?;
    Ok(ebpf)
}

/// What the program is told of a template.
fn flood(frame: &[u8; FRAME]) -> Flood {
    let word =
        |at: u32| u32::from(!u16::from_be_bytes([frame[at as usize], frame[at as usize + 1]]));
    let tcp = frame[PROTOCOL_AT] == libc::IPPROTO_TCP as u8;
    Flood {
        words: bytemuck::cast(*frame),
        ip_sum: word(stray::IP_CHECK_AT),
        l4_sum: word(if tcp { stray::TCP_CHECK_AT } else { stray::UDP_CHECK_AT }),
        tcp: tcp.into(),
        acks: (tcp && frame[TCP_FLAGS_AT] & TCP_ACK != 0).into(),
    }
}

/// Length of all frames.
const FRAME: usize = 8 * stray::WORDS;
/// Its index in every network namespace.
const LOOPBACK: u32 = 1;
const PROTOCOL_AT: usize = 23;
const TCP_FLAGS_AT: usize = 47;
const TCP_ACK: u8 = 0x10;

/// The frame with all that differs left zero, and checksums of that.
fn template(kind: Kind, to: [u8; 6]) -> Result<[u8; FRAME]> {
    let std::net::IpAddr::V4(vip) = vips()[0] else {
        return Err(anyhow!("the first VIP is one of IPv4"));
    };
    let frame = Frame::ip(Ipv4Addr::UNSPECIFIED, vip).macs(to, [2, 0, 0, 0, 0, 1]);
    let frame = match kind {
        Kind::Syn => frame.tcp(0, PORT, "S").seq(0).ack(0),
        Kind::Datagram => frame.udp(0, PORT).payload(PAYLOAD),
        _ => frame.tcp(0, PORT, "A").seq(0).ack(0),
    };
    let padding = FRAME.saturating_sub(frame.build().len());
    frame.trailer(padding).build().try_into().map_err(|_| anyhow!("the template is too long"))
}

/// Sends until it is told to stop, on a thread inside the switch.
fn send(
    mut ebpf: Ebpf,
    ports: &[Port],
    rate: u64,
    stop: &AtomicBool,
    sent: &AtomicU64,
) -> Result<()> {
    let portion = (rate / PORTIONS).max(1) as u32;
    let program: &mut Xdp = ebpf.program_mut(PROGRAM).context("no flood program")?.try_into()?;
    // For a program that is attached nowhere each run waits twice for an RCU grace period, while it enters and leaves the
    // dispatcher of XDP programs. Nothing ever comes by loopback here.
    program.attach_to_if_index(LOOPBACK, XdpMode::Skb).context("attach to loopback")?;
    let mut due = Instant::now();
    for port in ports.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut floods: Array<&mut MapData, Flood> =
            ebpf.map_mut("FLOODS").context("no map FLOODS")?.try_into()?;
        floods.set(0, flood(&port.frame), 0)?;
        run(ebpf.program(PROGRAM).context("no flood program")?.try_into()?, port, portion)?;
        sent.fetch_add(portion.into(), Ordering::Relaxed);
        // A machine that cannot keep up sends as fast as it can, and makes up for a second at most.
        due += Duration::from_secs(1) / PORTIONS as u32;
        due = due.max(Instant::now() - Duration::from_secs(1));
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// `struct xdp_md` as the run takes it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

fn run(program: &Xdp, port: &Port, frames: u32) -> Result<()> {
    let context = XdpMd {
        data: 0,
        data_end: port.frame.len() as u32,
        data_meta: 0,
        ingress_ifindex: port.index,
        rx_queue_index: 0,
        egress_ifindex: 0,
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
        for kind in [Kind::Syn, Kind::Ack, Kind::Datagram] {
            let mut frame = template(kind, [2; 6]).unwrap();
            let flood = flood(&frame);
            let (tcp, acks) = (kind != Kind::Datagram, kind == Kind::Ack);
            assert_eq!((flood.tcp, flood.acks), (tcp.into(), acks.into()));
            let check_at = if tcp { stray::TCP_CHECK_AT } else { stray::UDP_CHECK_AT };
            let stray = flood.stray([0xfedc_ba98, 0x8765_4321, 0xffff_0001]);
            let mut put = |at: u32, bytes: &[u8]| {
                frame[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
            };
            put(stray::SOURCE_AT, &stray.source.to_be_bytes());
            put(stray::PORT_AT, &stray.port.to_be_bytes());
            put(stray::IP_CHECK_AT, &stray.ip_check.to_be_bytes());
            put(check_at, &stray.l4_check.to_be_bytes());
            if tcp {
                put(stray::SEQ_AT, &stray.seq.to_be_bytes());
                put(stray::ACK_AT, &stray.ack.to_be_bytes());
            }
            assert_eq!(packet::check(&frame), Ok(()), "{kind:?}");
        }
    }
}
