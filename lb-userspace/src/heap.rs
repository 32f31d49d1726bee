//! How the C library keeps free memory.

/// Has it return what is free to the kernel (mallopt(3)): to be called before there are threads. By itself the GNU
/// library keeps a heap for each of the threads that now and then write reports and checkpoints, and blocks as
/// large as the largest that was ever freed; others do neither. But a heap does not shrink after each slot table, only
/// to grow again for the next.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    {
        const HEAPS: libc::c_int = 2;
        /// Bytes from which on a free block goes back: what the library begins with.
        const LARGE: libc::c_int = 128 << 10;
        /// Bytes that a heap grows by.
        const GROWTH: libc::c_int = 1 << 20;
        let settings = [
            (libc::M_ARENA_MAX, HEAPS),
            (libc::M_MMAP_THRESHOLD, LARGE),
            (libc::M_TRIM_THRESHOLD, 4 * GROWTH),
            (libc::M_TOP_PAD, GROWTH),
        ];
        for (setting, value) in settings {
            // SAFETY: it touches no memory that anybody has, and what it refuses stays as it was.
            unsafe { libc::mallopt(setting, value) };
        }
    }
}
