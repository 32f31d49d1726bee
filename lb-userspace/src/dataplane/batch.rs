//! Reads a hash map many elements at a time (linux kernel/bpf/hashtab.c,
//! `__htab_map_lookup_and_delete_batch`): a system call for thousands of elements, and no element of an
//! LRU map looks used because of it.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use bytemuck::Pod;

use super::grace::bpf;

const MAP_LOOKUP_BATCH: libc::c_int = 24;

/// Elements that one system call returns, unless a bucket holds more.
const BATCH: usize = 4096;

/// The beginning of `union bpf_attr` for BPF_MAP_LOOKUP_BATCH.
#[repr(C)]
struct Lookup {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

/// Shows every element to `visit`, in the map's order. While others write, one that moves may come twice;
/// none that stays is missed. `K` and `V` have the sizes of the map's keys and values.
///
/// # Errors
/// The kernel refused; it knows these calls since Linux 5.6.
pub fn for_each<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    mut visit: impl FnMut(&K, &V),
) -> io::Result<()> {
    let (mut keys, mut values) = (vec![K::zeroed(); BATCH], vec![V::zeroed(); BATCH]);
    // Where the kernel goes on: a number of its own.
    let mut place: Option<u32> = None;
    loop {
        let from = place.as_ref().map_or(0, |place| std::ptr::from_ref(place) as u64);
        let mut next = 0_u32;
        let mut lookup = Lookup {
            from,
            to: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: keys.len() as u32,
            map_fd: map.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        let result = bpf(MAP_LOOKUP_BATCH, &mut lookup);
        let error = result.err().and_then(|error| error.raw_os_error().or(Some(libc::EIO)));
        match error {
            None | Some(libc::ENOENT) => {
                let found = keys.iter().zip(&values).take(lookup.count as usize);
                found.for_each(|(key, value)| visit(key, value));
                if error.is_some() {
                    return Ok(());
                }
                place = Some(next);
            }
            // One bucket alone holds more.
            Some(libc::ENOSPC) => {
                let more = keys.len() * 2;
                keys.resize(more, K::zeroed());
                values.resize(more, V::zeroed());
            }
            Some(other) => return Err(io::Error::from_raw_os_error(other)),
        }
    }
}
