//! Zeroed memory straight from the kernel: a table of words that is not on the heap.
//!
//! The heap may be the very thing that is tracked, and its lock may be held by a stopped thread.

use core::sync::atomic::AtomicU64;

use super::syscall;
use crate::{Errno, PAGE_SIZE};

/// A zeroed, page-aligned array of atomic words.
pub(crate) struct Words {
    start: usize,
    words: usize,
}

impl Words {
    /// `words` zeroed words (at least one page is mapped).
    pub(crate) fn new(words: usize) -> Result<Self, Errno> {
        let start = syscall::mmap_anonymous(
            Self::bytes(words),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_NORESERVE,
        )?;
        Ok(Self { start, words })
    }

    fn bytes(words: usize) -> usize {
        (words.max(1) * size_of::<u64>()).next_multiple_of(PAGE_SIZE)
    }

    /// The words.
    pub(crate) fn as_slice(&self) -> &[AtomicU64] {
        // SAFETY: 1. `new` mapped at least `words` words here, readable and writable. 2. They stay
        // mapped until drop, which the borrow precedes. 3. Any bytes are a valid AtomicU64.
        unsafe { core::slice::from_raw_parts(self.start as *const AtomicU64, self.words) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no borrow of it is left.
        unsafe { syscall::munmap(self.start, Self::bytes(self.words)) };
    }
}
