//! Running the loaded programs, and what a run reports.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use aya::maps::{MapData, PerCpuArray};
use aya::programs::{Program, ProgramFd, SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use lb_common::abi::{map, program};
use lb_common::reason::{Counter, Reason};

use super::Rig;
use crate::{packet, pins};

/// What XDP or tc says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    Drop,
    Pass,
    Tx,
    Redirect,
    /// tc: go on to the next program.
    Next,
    /// Nothing a weir program may return.
    Other(u32),
}

/// All that one run did.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub action: Action,
    pub frame: Vec<u8>,
    /// Reasons counted, by number; twice where counted twice.
    pub reasons: Vec<Reason>,
    /// Packets and bytes added, by index: service, backend.
    pub services: BTreeMap<u32, Counter>,
    pub backends: BTreeMap<u32, Counter>,
    /// Bytes added to reasons.
    pub reason_bytes: u64,
}

/// Metadata that leaves no headroom: of 256 bytes the kernel keeps 40 for itself.
pub const NO_HEADROOM: usize = 216;

impl Rig {
    /// What one map of counters gained since it was last read, by index.
    fn gained(&mut self, name: &'static str) -> Result<BTreeMap<u32, Counter>> {
        let map: PerCpuArray<&mut MapData, Counter> = self.map(name)?;
        let mut now = Vec::new();
        for values in map.iter() {
            now.push(values?.iter().fold(Counter::default(), |sum, one| Counter {
                packets: sum.packets + one.packets,
                bytes: sum.bytes + one.bytes,
            }));
        }
        let before = self.counters.insert(name, now.clone()).unwrap_or_default();
        let before = before.into_iter().chain(std::iter::repeat(Counter::default()));
        Ok((0u32..)
            .zip(now.into_iter().zip(before))
            .filter(|(_, (now, before))| now != before)
            .map(|(index, (now, before))| {
                (
                    index,
                    Counter {
                        packets: now.packets - before.packets,
                        bytes: now.bytes - before.bytes,
                    },
                )
            })
            .collect())
    }

    /// How often each reason was counted since the last run that reported, and the bytes in all.
    pub fn reasons(&mut self) -> Result<(BTreeMap<Reason, u64>, u64)> {
        let gained = self.gained(map::REASON_COUNTERS)?;
        let bytes = gained.values().map(|counter| counter.bytes).sum();
        let packets =
            gained.iter().map(|(index, counter)| (Reason::ALL[*index as usize], counter.packets));
        Ok((packets.collect(), bytes))
    }

    /// Runs `weir_ingress` on a frame that came by `self.ifindex`.
    pub fn ingress(&mut self, frame: &[u8]) -> Result<Outcome> {
        self.run(program::INGRESS, frame)
    }

    /// Runs `weir_egress` on a frame about to leave.
    pub fn egress(&mut self, frame: &[u8]) -> Result<Outcome> {
        self.run(program::EGRESS, frame)
    }

    fn run(&mut self, name: &str, frame: &[u8]) -> Result<Outcome> {
        let (action, frame) = self.verdict(name, frame)?;
        let (reasons, reason_bytes) = self.reasons()?;
        Ok(Outcome {
            action,
            frame,
            reason_bytes,
            reasons: reasons
                .iter()
                .flat_map(|(reason, packets)| std::iter::repeat_n(*reason, *packets as usize))
                .collect(),
            services: self.gained(map::SERVICE_COUNTERS)?,
            backends: self.gained(map::BACKEND_COUNTERS)?,
        })
    }

    /// Verdict and bytes alone, for runs by the hundred thousand.
    pub fn verdict(&mut self, name: &str, frame: &[u8]) -> Result<(Action, Vec<u8>)> {
        if name == program::EGRESS { self.verdict_tc(frame) } else { self.verdict_xdp(name, frame) }
    }

    fn verdict_tc(&mut self, frame: &[u8]) -> Result<(Action, Vec<u8>)> {
        /// `TC_ACT_UNSPEC`, also `TCX_NEXT`.
        const NEXT: u32 = u32::MAX;
        let mut out = vec![0; frame.len() + 64];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..Default::default() };
        let loaded = self.ebpf.program_mut(program::EGRESS).context("no egress program")?;
        let tc: &mut SchedClassifier = loaded.try_into()?;
        let result = tc.test_run(options)?;
        out.truncate(result.data_size_out as usize);
        let action = if result.return_value == NEXT {
            Action::Next
        } else {
            Action::Other(result.return_value)
        };
        Ok((action, out))
    }

    fn verdict_xdp(&mut self, name: &str, frame: &[u8]) -> Result<(Action, Vec<u8>)> {
        const ACTIONS: [Action; 5] =
            [Action::Other(0), Action::Drop, Action::Pass, Action::Tx, Action::Redirect];
        let mut input = vec![0xff; self.metadata];
        input.extend(frame);
        let mut out = vec![0; input.len() + 512];
        let context = XdpMd {
            data: self.metadata as u32,
            data_end: input.len() as u32,
            ingress_ifindex: self.ifindex,
            ..Default::default()
        };
        let options = TestRunOptions {
            data_in: Some(&input),
            data_out: Some(&mut out),
            ctx_in: Some(bytemuck::bytes_of(&context)),
            ..Default::default()
        };
        let loaded = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        let xdp: &mut Xdp = loaded.try_into()?;
        let result = xdp.test_run(options)?;
        out.truncate(result.data_size_out as usize);
        out.drain(..self.metadata);
        let value = result.return_value;
        Ok((ACTIONS.get(value as usize).copied().unwrap_or(Action::Other(value)), out))
    }

    /// A second handle of a loaded program.
    pub fn program(&self, name: &str) -> Result<ProgramFd> {
        let fd = match self.ebpf.program(name).with_context(|| format!("no program {name}"))? {
            Program::Xdp(xdp) => xdp.fd()?,
            Program::SchedClassifier(tc) => tc.fd()?,
            _ => bail!("{name} is neither XDP nor tc"),
        };
        Ok(fd.try_clone()?)
    }

    /// Runs a program `repeat` times on a frame, which each run leaves to the next; mean ns a run.
    pub fn time(&mut self, name: &str, frame: &[u8], repeat: u32) -> Result<(u32, u64)> {
        let options = TestRunOptions { data_in: Some(frame), repeat, ..Default::default() };
        let result = match self.ebpf.program(name).with_context(|| format!("no program {name}"))? {
            Program::Xdp(xdp) => xdp.test_run(options)?,
            Program::SchedClassifier(tc) => tc.test_run(options)?,
            _ => bail!("{name} is neither XDP nor tc"),
        };
        Ok((result.return_value, result.duration.as_nanos() as u64))
    }

    /// Entries that a map has room for, and the bytes that the kernel accounts for it.
    pub fn memory(&self, name: &str) -> Result<(u32, u64)> {
        let map = self.ebpf.map(name).with_context(|| format!("no map {name} in the object"))?;
        let map = super::raw::data(map)?;
        Ok((map.info()?.max_entries(), pins::accounted(map)?))
    }

    /// Loaded programs: name, verified instructions, bytes of translated code.
    pub fn program_sizes(&self) -> Result<Vec<(String, u32, u32)>> {
        let mut sizes = Vec::new();
        // Those of sockets are not loaded: there is no test run of them.
        let is_loaded =
            |program: &Program| matches!(program, Program::Xdp(_) | Program::SchedClassifier(_));
        for (name, program) in self.ebpf.programs().filter(|(_, program)| is_loaded(program)) {
            let info = program.info().with_context(|| format!("info of {name}"))?;
            let verified = info
                .verified_instruction_count()
                .context("the kernel tells no instruction count")?;
            let translated = info.size_translated().context("the kernel tells no size")?;
            sizes.push((name.to_owned(), verified, translated));
        }
        sizes.sort();
        Ok(sizes)
    }
}

/// `struct xdp_md`, as a test run takes it.
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct XdpMd {
    pub data: u32,
    pub data_end: u32,
    pub data_meta: u32,
    pub ingress_ifindex: u32,
    pub rx_queue_index: u32,
    pub egress_ifindex: u32,
}

/// Writes frames as a capture file for a closer look; returns its path.
pub fn dump(name: &str, frames: &[&[u8]]) -> Result<PathBuf> {
    /// Little-endian, microseconds (0xa1b2c3d4), version 2.4, snap length 65,535, Ethernet.
    const HEAD: [u32; 6] = [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 65_535, 1];
    let mut bytes: Vec<u8> = HEAD.iter().flat_map(|word| word.to_le_bytes()).collect();
    for (second, frame) in frames.iter().enumerate() {
        let length = frame.len() as u32;
        bytes.extend([second as u32, 0, length, length].iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(*frame);
    }
    let file: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let dir = std::env::temp_dir().join("weir-packets");
    std::fs::create_dir_all(&dir).context("create the folder for captures")?;
    let path = dir.join(format!("{file}.pcap"));
    std::fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Fails with a readable difference and a capture (in, wanted, got) unless the bytes are equal.
#[track_caller]
pub fn assert_same(name: &str, input: &[u8], want: &[u8], got: &[u8]) {
    if let Some(text) = packet::difference(want, got) {
        let path = dump(name, &[input, want, got]).expect("write the capture");
        panic!("{name}: {text}capture (in, wanted, got): {}", path.display());
    }
}
