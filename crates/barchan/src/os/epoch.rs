//! Which process am I: a number that changes in a forked child and nowhere else.
//!
//! A descriptor of `/proc/self/pagemap` or of a userfaultfd that a child inherits refers to its
//! parent's memory. Re-arming through it would lose the parent's writes, so every operation
//! compares the current epoch with the one in which its descriptors were opened.
//!
//! `MADV_WIPEONFORK` gives the child a zeroed page whatever way it was made (`fork`, a raw
//! `clone`); `pthread_atfork` would miss the raw call, and a cached `getpid` misses pid reuse. A
//! child that shares our memory (`vfork`, `CLONE_VM`) also shares the page and the epoch, rightly:
//! the descriptors still refer to the memory it runs in.

use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::syscall;
use crate::{Errno, PAGE_SIZE, PageRange};

/// The page; null until [`init`]. It lives as long as the process.
static PAGE: AtomicPtr<AtomicU64> = AtomicPtr::new(core::ptr::null_mut());
/// The last epoch given out, in this line of ancestors.
static LAST: AtomicU64 = AtomicU64::new(0);

/// Maps the page, once.
pub(crate) fn init() -> Result<(), Errno> {
    if !PAGE.load(Ordering::Acquire).is_null() {
        return Ok(());
    }
    let start = syscall::mmap_anonymous(PAGE_SIZE, libc::PROT_READ | libc::PROT_WRITE, 0)?;
    let range = PageRange::between(start, start + PAGE_SIZE);
    // SAFETY: the page is ours and new; wiping it in children is the point.
    if let Err(errno) = unsafe { syscall::madvise(range, libc::MADV_WIPEONFORK) } {
        // SAFETY: nobody else has seen the address.
        unsafe { syscall::munmap(start, PAGE_SIZE) };
        return Err(errno);
    }
    let page = start as *mut AtomicU64;
    let won =
        PAGE.compare_exchange(core::ptr::null_mut(), page, Ordering::AcqRel, Ordering::Acquire);
    if won.is_err() {
        // SAFETY: another thread's page won; nobody else has seen this one.
        unsafe { syscall::munmap(start, PAGE_SIZE) };
    }
    current();
    Ok(())
}

/// Two counters that are 0 in a new child, as the page is wiped there: of threads that are somewhere, for those
/// of the parent that were there when it forked are not in the child, and never leave. Who counts itself
/// blocks all signals, so that it is not itself the thread that forks.
pub(crate) fn counters() -> [&'static AtomicU64; 2] {
    let page = PAGE.load(Ordering::Acquire);
    debug_assert!(!page.is_null(), "a tracker was used before epoch::init");
    // Each on a cache line of its own.
    // SAFETY: 1. as in `current`, and the page is 512 words. 2. It is never unmapped.
    [8, 16].map(|word| unsafe { &*page.add(word) })
}

/// The epoch of this process; never 0.
///
/// In a child, the first caller after the fork names the new epoch.
#[inline]
pub(crate) fn current() -> u64 {
    let page = PAGE.load(Ordering::Acquire);
    debug_assert!(!page.is_null(), "a tracker was used before epoch::init");
    // SAFETY: 1. `init` succeeded before any tracker existed, so the page is mapped. 2. It is
    // never unmapped. 3. An AtomicU64 is valid for any bytes, zero included.
    let epoch = unsafe { &*page };
    match epoch.load(Ordering::Acquire) {
        0 => first_in_child(epoch),
        known => known,
    }
}

#[cold]
fn first_in_child(epoch: &AtomicU64) -> u64 {
    let next = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    match epoch.compare_exchange(0, next, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => next,
        Err(other) => other,
    }
}
