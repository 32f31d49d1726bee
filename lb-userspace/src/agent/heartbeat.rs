//! Tells the data plane, and by it the other nodes, that the agent lives.

use std::{
    fs, io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lb_common::globals::state;
use nix::time::{ClockId, clock_gettime};

use crate::dataplane::mmap::Mapped;

const INTERVAL: Duration = Duration::from_millis(100);

/// A loop that has not turned for so long hangs: the node then counts as mute, as if its agent had died.
const STUCK: Duration = Duration::from_secs(5);

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Beats until dropped, or until the loop hangs.
pub struct Heartbeat(Arc<Shared>);

struct Shared {
    stop: AtomicBool,
    turned: Mutex<Instant>,
}

impl Heartbeat {
    /// The loop turns. Must come more often than every [`STUCK`].
    pub fn turn(&self) {
        *self.0.turned.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl Shared {
    fn hangs(&self) -> bool {
        self.turned.lock().unwrap_or_else(PoisonError::into_inner).elapsed() > STUCK
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// Writes the boot id, then the time again and again, from a thread of its own: nothing that the
/// agent does between two turns may make it look dead.
pub fn start(words: Mapped<u64>) -> io::Result<Heartbeat> {
    let [first, second] = boot_id(&fs::read_to_string(BOOT_ID)?)?;
    let written = words.set_word(state::BOOT_ID, 0, first)
        && words.set_word(state::BOOT_ID_2, 0, second)
        && beat(&words)?;
    if !written {
        return Err(io::Error::other("map STATE is too small"));
    }
    let heart =
        Arc::new(Shared { stop: AtomicBool::new(false), turned: Mutex::new(Instant::now()) });
    let shared = heart.clone();
    thread::Builder::new().name("heartbeat".into()).spawn(move || {
        while !shared.stop.load(Ordering::Relaxed) {
            if !shared.hangs() {
                // The first one succeeded, and nothing about the later ones differs.
                let _ = beat(&words);
            }
            thread::sleep(INTERVAL);
        }
    })?;
    Ok(Heartbeat(heart))
}

fn beat(words: &Mapped<u64>) -> io::Result<bool> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
    Ok(words.set_word(state::HEARTBEAT, 0, now.as_nanos() as u64))
}

/// The two halves of a UUID in text, in the order of its bytes.
fn boot_id(text: &str) -> io::Result<[u64; 2]> {
    let digits = text.trim().replace('-', "");
    let value = u128::from_str_radix(&digits, 16).map_err(io::Error::other)?;
    Ok(bytemuck::cast(value.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_id_is_read_as_its_bytes() {
        let words = boot_id("00112233-4455-6677-8899-aabbccddeeff\n").unwrap();
        let bytes: [u8; 16] = bytemuck::cast(words);
        assert_eq!((bytes[0], bytes[1], bytes[15]), (0, 0x11, 0xff));
        assert!(boot_id("none").is_err());
    }

    #[test]
    fn the_heart_beats_at_once_and_stops_when_dropped() {
        let words = Mapped::<u64>::plain(state::ENTRIES);
        assert!(beat(&words).unwrap());
        assert!(words.get(state::HEARTBEAT).unwrap() > 0);
        drop(start(words).unwrap());
    }
}
