//! Maps as bytes: for values whose types this build does not have, those of another layout.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use aya::{
    maps::{MapData, MapError, MapInfo, MapType},
    util::nr_cpus,
};

use super::grace::bpf;

/// Commands and flags of linux/bpf.h.
const LOOKUP: libc::c_int = 1;
const UPDATE: libc::c_int = 2;
const DELETE: libc::c_int = 3;
const NEXT_KEY: libc::c_int = 4;
const ANY: u64 = 0;
const NO_EXIST: u64 = 1;
const EXIST: u64 = 2;

/// The head of `union bpf_attr` for commands on elements.
#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    /// Or the next key.
    value: u64,
    flags: u64,
}

/// An entry: key and value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// A pinned map.
pub struct Raw {
    data: MapData,
    kind: MapType,
    key_size: usize,
    /// Of one CPU's part; a map that is not per CPU has one.
    value_size: usize,
    parts: usize,
    entries: u32,
}

impl Raw {
    pub fn open(path: &Path) -> Result<Self, MapError> {
        let data = MapData::from_pin(path)?;
        let info: MapInfo = data.info()?;
        let kind = info.map_type()?;
        let per_cpu = matches!(kind, MapType::PerCpuArray | MapType::PerCpuHash);
        let value_size = info.value_size() as usize;
        let (value_size, parts) = match per_cpu {
            true => {
                let cpus = nr_cpus().map_err(|(path, error)| io::Error::new(error.kind(), path));
                (value_size.next_multiple_of(8), cpus?)
            }
            false => (value_size, 1),
        };
        Ok(Self {
            kind,
            key_size: info.key_size() as usize,
            value_size,
            parts,
            entries: info.max_entries(),
            data,
        })
    }

    pub fn is_array(&self) -> bool {
        matches!(self.kind, MapType::Array | MapType::PerCpuArray)
    }

    /// Most entries.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// A value of another map as this one takes it: cut off or filled up with zeros.
    pub fn fit(&self, from: &Self, value: &[u8]) -> Vec<u8> {
        let part = |part: &[u8]| {
            let mut part = part.to_vec();
            part.resize(self.value_size, 0);
            part
        };
        value.chunks_exact(from.value_size).flat_map(part).collect()
    }

    pub fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_size * self.parts];
        let found = self.run(LOOKUP, key.as_ptr(), value.as_mut_ptr(), 0);
        Ok(none_if(libc::ENOENT, found)?.map(|()| value))
    }

    /// Makes or replaces an entry.
    pub fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.update(key, value, ANY)
    }

    /// Makes an entry; false where there is one.
    pub fn make(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        Ok(none_if(libc::EEXIST, self.update(key, value, NO_EXIST))?.is_some())
    }

    /// Replaces an entry; false where there is none.
    pub fn replace(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        Ok(none_if(libc::ENOENT, self.update(key, value, EXIST))?.is_some())
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        assert_eq!((key.len(), value.len()), (self.key_size, self.value_size * self.parts));
        self.run(UPDATE, key.as_ptr(), value.as_ptr().cast_mut(), flags)
    }

    /// Removes an entry; false where there is none.
    pub fn remove(&self, key: &[u8]) -> io::Result<bool> {
        let removed = self.run(DELETE, key.as_ptr(), std::ptr::null_mut(), 0);
        Ok(none_if(libc::ENOENT, removed)?.is_some())
    }

    /// The key after one; the first one also where `key` is gone.
    fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let mut next = vec![0; self.key_size];
        let key = key.map_or(std::ptr::null(), <[u8]>::as_ptr);
        let found = self.run(NEXT_KEY, key, next.as_mut_ptr(), 0);
        Ok(none_if(libc::ENOENT, found)?.map(|()| next))
    }

    /// The first entries, at most so many. While others write, some may be missing or come twice.
    pub fn first(&self, most: usize) -> io::Result<Vec<Entry>> {
        let mut list = Vec::new();
        let mut key = self.next_key(None)?;
        while let Some(this) = key
            && list.len() < most
        {
            key = self.next_key(Some(&this))?;
            if let Some(value) = self.get(&this)? {
                list.push((this, value));
            }
        }
        Ok(list)
    }

    fn run(
        &self,
        command: libc::c_int,
        key: *const u8,
        value: *mut u8,
        flags: u64,
    ) -> io::Result<()> {
        let map_fd = self.data.fd().as_fd().as_raw_fd() as u32;
        let mut element = Element { map_fd, pad: 0, key: key as u64, value: value as u64, flags };
        bpf(command, &mut element).map(drop)
    }
}

fn none_if<T>(errno: i32, result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(errno) => Ok(None),
        Err(error) => Err(error),
    }
}
