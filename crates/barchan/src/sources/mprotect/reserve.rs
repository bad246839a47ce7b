//! Mappings kept in reserve: lifting a protection may take up to two more mappings than there are
//! (one more at each end of the range), and must work when the process is out of them.
//!
//! The reserve is a run of pages of alternating protection, each a mapping of its own. Made equal
//! they are one, and the others' room is free. It is filled again when there is room, by those who
//! arm; arming itself never draws on it.
//!
//! Other threads may take the room first. Whoever needs it does not rely on having got it.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::os::lock::EpochLock;
use crate::os::syscall;
use crate::{PAGE_SIZE, PageRange};

/// A region that had to be given up as a whole keeps at most two of them until it is collected.
const PAGES: usize = 64;

static LOCK: EpochLock = EpochLock::new();
/// The first address; 0 until it is mapped.
static START: AtomicUsize = AtomicUsize::new(0);
/// How many pages from the second on, every other, differ from those around; under the lock.
static FILLED: AtomicUsize = AtomicUsize::new(0);

fn pages() -> Option<PageRange> {
    let start = START.load(Ordering::Relaxed);
    (start != 0).then(|| PageRange::between(start, start + PAGES * PAGE_SIZE))
}

fn protect(range: PageRange, prot: i32) -> bool {
    // SAFETY: the pages are the reserve's, and nobody touches them.
    unsafe { syscall::mprotect(range, prot) }.is_ok()
}

/// Gives the reserve's room to whoever needs it now. Async-signal-safe, with signals blocked.
pub(super) fn spend() {
    let held = LOCK.lock_with_signals_blocked();
    if FILLED.swap(0, Ordering::Relaxed) != 0 || held.inherited {
        if let Some(pages) = pages() {
            protect(pages, libc::PROT_NONE);
        }
    }
}

/// Fills the reserve, as far as there is room. Allocates nothing on the heap.
pub(super) fn fill() {
    if FILLED.load(Ordering::Relaxed) == PAGES / 2 {
        return;
    }
    let _held = LOCK.lock();
    if pages().is_none() {
        let Ok(start) =
            syscall::mmap_anonymous(PAGES * PAGE_SIZE, libc::PROT_NONE, libc::MAP_NORESERVE)
        else {
            return;
        };
        START.store(start, Ordering::Relaxed);
    }
    if let Some(pages) = pages() {
        let filled = FILLED.load(Ordering::Relaxed);
        let more = (filled..PAGES / 2)
            .take_while(|&i| protect(pages.slice(2 * i + 1, 1), libc::PROT_READ))
            .count();
        FILLED.store(filled + more, Ordering::Relaxed);
    }
}
