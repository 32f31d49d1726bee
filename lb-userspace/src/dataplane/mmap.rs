//! Arrays shared with the BPF programs, as memory.
//!
//! All access is by whole 64-bit words, atomic and without locks: a value of one word is read and
//! switched as one, a longer one may be seen half written by a reader, and its type says what that
//! costs. The same type over plain memory serves the fake data plane.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    slice,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use bytemuck::Pod;

const WORD: usize = size_of::<u64>();

/// Values of a window. So many of whatever size end on a page, of 64 KiB too; more would cost a change that touches one of
/// them as much as all their pages.
const WINDOW: usize = 1 << 13;

/// An array of `T`, whose size is a multiple of eight bytes.
///
/// A map is mapped window by window, as it is touched, until [`Mapped::release`]: a process is no larger than
/// what it works on.
pub struct Mapped<T> {
    memory: Memory,
    entries: u32,
    _value: PhantomData<T>,
}

enum Memory {
    Kernel { map: OwnedFd, access: Access, windows: Box<[OnceLock<Window>]> },
    Plain(Box<[AtomicU64]>),
}

/// A mapping that lives as long as this.
struct Window {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the pointer is to shared memory that lives until drop, and is only read and written
// through atomics.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// `words` words of a map from byte `offset` on, which a page begins with.
    fn open(map: &OwnedFd, access: Access, offset: usize, words: usize) -> io::Result<Self> {
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            let (null, fd) = (std::ptr::null_mut(), map.as_raw_fd());
            libc::mmap(null, words * WORD, protection, libc::MAP_SHARED, fd, offset as libc::off_t)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, words })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page aligned, `words` words long and lives until drop; a page of a BPF map
        // always holds some value, and any bits are an AtomicU64.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: exactly what mmap returned, and no reference outlives self.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.words * WORD) };
    }
}

/// What a mapping may be used for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    Read,
    ReadWrite,
}

impl<T: Pod> Mapped<T> {
    const WORDS: usize = {
        assert!(size_of::<T>().is_multiple_of(WORD) && size_of::<T>() > 0);
        size_of::<T>() / WORD
    };

    /// An array map of `entries` values. Writing to one opened for reading is a fault, so only the agent, which
    /// opens for both, calls the methods that write.
    ///
    /// # Errors
    /// It is none that can be mapped: the first window is, at once.
    pub fn open(map: BorrowedFd<'_>, entries: u32, access: Access) -> io::Result<Self> {
        let windows = (entries as usize).div_ceil(WINDOW);
        let windows = (0..windows).map(|_| OnceLock::new()).collect();
        let memory = Memory::Kernel { map: map.try_clone_to_owned()?, access, windows };
        let mapped = Self { memory, entries, _value: PhantomData };
        mapped.window(0)?;
        Ok(mapped)
    }

    /// The same over plain memory, zeroed.
    pub fn plain(entries: u32) -> Self {
        let words = (0..entries as usize * Self::WORDS).map(|_| AtomicU64::new(0)).collect();
        Self { memory: Memory::Plain(words), entries, _value: PhantomData }
    }

    /// Where more than `most` windows are mapped, gives back the memory that they take; what is touched next is
    /// mapped again.
    pub fn release(&mut self, most: usize) {
        let Memory::Kernel { windows, .. } = &mut self.memory else { return };
        if windows.iter().filter(|window| window.get().is_some()).count() > most {
            windows.iter_mut().for_each(|window| drop(window.take()));
        }
    }

    /// The words of a window; none beyond the end.
    fn window(&self, number: usize) -> io::Result<&[AtomicU64]> {
        let (map, access, windows) = match &self.memory {
            Memory::Plain(words) => {
                let start = words.len().min(number * WINDOW * Self::WORDS);
                return Ok(&words[start..]);
            }
            Memory::Kernel { map, access, windows } => (map, *access, windows),
        };
        let Some(window) = windows.get(number) else { return Ok(&[]) };
        if let Some(window) = window.get() {
            return Ok(window.words());
        }
        let first = number * WINDOW;
        let words = WINDOW.min(self.entries as usize - first) * Self::WORDS;
        let opened = Window::open(map, access, first * Self::WORDS * WORD, words)?;
        // Of two that come at once one is enough.
        Ok(window.get_or_init(|| opened).words())
    }

    /// Number of values.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// The words of a window; none where no memory is left to map it.
    fn mapped(&self, number: usize) -> Option<&[AtomicU64]> {
        let window = self.window(number).inspect_err(|error| {
            tracing::error!(%error, "a part of a map cannot be mapped");
        });
        window.ok()
    }

    fn value(&self, index: u32) -> Option<&[AtomicU64]> {
        let (number, at) = (index as usize / WINDOW, index as usize % WINDOW);
        self.mapped(number)?.get(at * Self::WORDS..(at + 1) * Self::WORDS)
    }

    /// The value at an index, word by word; none beyond the end, or where no memory is left to map it.
    pub fn get(&self, index: u32) -> Option<T> {
        let mut value = T::zeroed();
        let bytes = bytemuck::bytes_of_mut(&mut value).chunks_exact_mut(WORD);
        for (bytes, word) in bytes.zip(self.value(index)?) {
            bytes.copy_from_slice(&word.load(Ordering::Acquire).to_ne_bytes());
        }
        Some(value)
    }

    /// One word of a value; none beyond the end.
    pub fn word(&self, index: u32, at: usize) -> Option<u64> {
        self.value(index)?.get(at).map(|word| word.load(Ordering::Acquire))
    }

    /// All values by index.
    pub fn iter(&self) -> impl Iterator<Item = (u32, T)> {
        (0..self.entries).filter_map(|index| Some((index, self.get(index)?)))
    }

    /// Writes a value, its word number `last` after all others; false beyond the end.
    #[must_use]
    pub fn set(&self, index: u32, value: &T, last: usize) -> bool {
        let Some(words) = self.value(index) else { return false };
        let bytes = bytemuck::bytes_of(value);
        let word = |at: usize| {
            let mut word = [0; WORD];
            word.copy_from_slice(&bytes[at * WORD..(at + 1) * WORD]);
            u64::from_ne_bytes(word)
        };
        for (at, place) in words.iter().enumerate().filter(|(at, _)| *at != last) {
            place.store(word(at), Ordering::Relaxed);
        }
        words[last].store(word(last), Ordering::Release);
        true
    }

    /// Writes values from an index on, for readers who are not there yet; false where they go beyond the end.
    #[must_use]
    pub fn set_all(&self, first: u32, values: &[T]) -> bool {
        let (mut index, mut values) = (first as usize, values);
        while !values.is_empty() {
            let (number, at) = (index / WINDOW, index % WINDOW);
            let Some(words) = self.mapped(number).and_then(|it| it.get(at * Self::WORDS..)) else {
                return false;
            };
            let count = values.len().min(WINDOW - at).min(words.len() / Self::WORDS);
            if count == 0 {
                return false;
            }
            let (now, later) = values.split_at(count);
            let (bytes, _) = bytemuck::cast_slice(now).as_chunks::<WORD>();
            for (place, bytes) in words.iter().zip(bytes) {
                place.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
            }
            (index, values) = (index + count, later);
        }
        true
    }

    /// Writes one word of a value; false beyond the end.
    #[must_use]
    pub fn set_word(&self, index: u32, at: usize, word: u64) -> bool {
        let place = self.value(index).and_then(|words| words.get(at));
        place.map(|place| place.store(word, Ordering::Release)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use lb_common::backend::{Backend, BackendId};

    use super::*;

    #[test]
    fn values_come_back_and_the_end_is_kept() {
        let mapped = Mapped::<Backend>::plain(3);
        let backend =
            Backend { id: BackendId::new(2, 5), node: 9, fingerprint: 3, ..Backend::default() };
        assert!(mapped.set(2, &backend, 2) && !mapped.set(3, &backend, 2));
        assert_eq!((mapped.get(2), mapped.get(3)), (Some(backend), None));
        assert_eq!(mapped.get(1), Some(Backend::default()));
        assert!(mapped.set_all(1, &[backend; 2]) && !mapped.set_all(1, &[backend; 3]));
        assert_eq!([0, 1, 2].map(|index| mapped.get(index).unwrap().node), [0, 9, 9]);
        assert!(mapped.set_word(2, 2, 0) && !mapped.set_word(2, 4, 0));
        assert_eq!(
            mapped.get(2).map(|backend| (backend.id, backend.node)),
            Some((BackendId::NONE, 0))
        );
    }
}
