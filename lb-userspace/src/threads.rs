//! Work that falls apart into equal pieces, on all processors.

use std::{num::NonZeroUsize, panic::resume_unwind, sync::LazyLock, thread};

/// Most threads for one piece of work.
const MAX_THREADS: usize = 8;

/// Asked once: the answer takes longer than a small change of the maps.
static PROCESSORS: LazyLock<usize> =
    LazyLock::new(|| thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_THREADS));

/// Processors that this process may use at once.
pub fn processors() -> usize {
    *PROCESSORS
}

/// What `each` makes of all items, in their order; on several threads where there are `worth` items
/// for each of them.
pub fn map<T: Sync, R: Send>(items: &[T], worth: usize, each: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = processors().min(items.len() / worth.max(1)).max(1);
    let share = items.len().div_ceil(threads).max(1);
    let each = &each;
    thread::scope(|scope| {
        let mut shares = items.chunks(share);
        let own = shares.next().unwrap_or_default();
        let others: Vec<_> = shares
            .map(|share| scope.spawn(move || share.iter().map(each).collect::<Vec<R>>()))
            .collect();
        let mut all: Vec<R> = own.iter().map(each).collect();
        for other in others {
            all.append(&mut other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_their_items() {
        for count in [0, 1, 2, 7, 1000] {
            let items: Vec<usize> = (0..count).collect();
            let doubled: Vec<_> = items.iter().map(|n| n * 2).collect();
            assert_eq!(map(&items, 1, |n| n * 2), doubled);
            assert_eq!(map(&items, 1 << 20, |n| n * 2), doubled);
        }
    }
}
