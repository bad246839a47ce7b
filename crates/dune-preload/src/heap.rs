//! An allocator that only gives: the little that making the first machine needs, and the tables of the
//! decoder of instructions (about 400 KiB, once), if the program tracks writes by page faults.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that there are. What is not used costs no memory.
const LEN: usize = 1024 * 1024;

#[repr(align(64))]
struct Space(std::cell::UnsafeCell<[u8; LEN]>);

// SAFETY: each byte is given out once.
unsafe impl Sync for Space {}

static SPACE: Space = Space(std::cell::UnsafeCell::new([0; LEN]));
static USED: AtomicUsize = AtomicUsize::new(0);

/// The allocator.
pub(crate) struct Bump;

// SAFETY: blocks do not overlap, are aligned, and last for ever.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let base = SPACE.0.get() as usize;
        let mut used = USED.load(Ordering::Relaxed);
        loop {
            let start = (base + used).next_multiple_of(layout.align());
            let end = start - base + layout.size();
            if end > LEN {
                return std::ptr::null_mut();
            }
            match USED.compare_exchange_weak(used, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return start as *mut u8,
                Err(now) => used = now,
            }
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}
