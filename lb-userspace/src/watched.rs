//! Values of watch channels, by copy.

use tokio::sync::watch::{Receiver, Sender};

/// The newest value of a channel.
///
/// tokio's own `borrow` holds a lock until the end of its statement. A thread that borrows the same once more meanwhile waits
/// for ever if a writer has come in between, and that writer with it. So nothing else may call it, see `clippy.toml`; what is
/// large is in an [`Arc`](std::sync::Arc).
pub trait Watched<T> {
    fn copy(&self) -> T;

    /// The same, which then counts as seen; to its sender everything does.
    fn copy_and_update(&mut self) -> T;
}

#[expect(clippy::disallowed_methods, reason = "what the others are to call")]
impl<T: Clone> Watched<T> for Receiver<T> {
    fn copy(&self) -> T {
        self.borrow().clone()
    }

    fn copy_and_update(&mut self) -> T {
        self.borrow_and_update().clone()
    }
}

#[expect(clippy::disallowed_methods, reason = "what the others are to call")]
impl<T: Clone> Watched<T> for Sender<T> {
    fn copy(&self) -> T {
        self.borrow().clone()
    }

    fn copy_and_update(&mut self) -> T {
        self.copy()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use tokio::sync::watch;

    use super::*;

    #[test]
    fn a_writer_between_two_copies_of_one_statement_stops_nobody() {
        let (sender, receiver) = watch::channel(0_u64);
        let (done, end) = mpsc::channel();
        thread::spawn(move || {
            for _ in 0..1_000_000 {
                let _both = (receiver.copy(), receiver.copy());
            }
            done.send(())
        });
        let mut number = 0;
        // It waits with the reader where that waits for it, and is then left behind.
        let writer = thread::spawn(move || {
            while !sender.is_closed() {
                number ^= 1;
                sender.send_replace(number);
            }
        });
        assert_eq!(end.recv_timeout(Duration::from_secs(60)), Ok(()), "reader and writer wait");
        writer.join().unwrap();
    }
}
