//! Writing maps by bytes, so that the object may be an earlier revision's.
//!
//! Its keys must have today's sizes. A value is cut where the map's is shorter and followed by zeros
//! where it is longer, which is right as long as fields are added and dropped at ends only; whether
//! the programs then do what they should is for the caller to see. Today's own object is held to
//! today's sizes.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Map, MapData};
use bytemuck::NoUninit;

/// `BPF_MAP_UPDATE_ELEM`.
const UPDATE: libc::c_int = 2;

/// What of `union bpf_attr` that command reads.
#[repr(C)]
struct Update {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// One map, to be written.
pub struct Writer<'r> {
    fd: BorrowedFd<'r>,
    key: usize,
    value: usize,
    /// Values of other sizes are fitted instead of refused.
    fits: bool,
}

impl<'r> Writer<'r> {
    pub(super) fn new(map: &'r Map, fits: bool) -> Result<Self> {
        let data = data(map)?;
        let info = data.info().context("ask for sizes")?;
        let [key, value] = [info.key_size() as usize, info.value_size() as usize];
        Ok(Self { fd: data.fd().as_fd(), key, value, fits })
    }

    /// Adds or changes one element.
    pub fn put<K: NoUninit, V: NoUninit>(&self, key: &K, value: &V) -> Result<()> {
        let [key, bytes] = [bytemuck::bytes_of(key), bytemuck::bytes_of(value)];
        ensure!(key.len() == self.key, "keys have {} bytes, not {}", self.key, key.len());
        if bytes.len() != self.value {
            ensure!(self.fits, "values have {} bytes, not {}", self.value, bytes.len());
        }
        let mut fitted = vec![0; self.value];
        let length = bytes.len().min(self.value);
        fitted[..length].copy_from_slice(&bytes[..length]);
        let update = Update {
            map: self.fd.as_raw_fd() as u32,
            reserved: 0,
            key: key.as_ptr() as u64,
            value: fitted.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the kernel reads `update`, and as many bytes at its two addresses as key and value
        // of the map have, which both buffers do.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, UPDATE, &raw const update, size_of::<Update>()) };
        ensure!(result == 0, io::Error::last_os_error());
        Ok(())
    }
}

/// The map behind one of the kinds that the data plane has.
pub(super) fn data(map: &Map) -> Result<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::ProgramArray(data) => Ok(data),
        _ => bail!("a map of a kind that the rig does not know"),
    }
}
