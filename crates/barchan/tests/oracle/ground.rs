//! The pages that are written, the stamps in them, and what the collector has seen of them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use barchan::{PAGE_SIZE, Region, Source};

use crate::common::Memory;

pub const PAGES: usize = 4096;

/// The pages; each holds one stamp for each thread.
pub struct Ground {
    pub memory: Memory,
    threads: usize,
}

/// The stamps of all pages at one time, `threads` a page.
pub type Stamps = Vec<u64>;

/// A write that was not reported.
#[derive(Debug)]
pub struct Miss {
    source: Source,
    pub round: u64,
    page: usize,
    thread: usize,
    stamp: u64,
    seen: u64,
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} MISSED A WRITE: in round {} page {} holds stamp {:#x} of thread {}, was last \
             reported with {:#x}, and is called clean",
            self.source, self.round, self.page, self.stamp, self.thread, self.seen
        )
    }
}

impl Ground {
    pub fn new(threads: usize) -> Self {
        Self { memory: Memory::touched(PAGES), threads }
    }

    /// Where the stamp of `thread` lies in `page`; not at the same offset in each.
    pub fn slot(&self, page: usize, thread: usize) -> *mut u64 {
        let offset = (page * 24 + thread * 8) % PAGE_SIZE;
        // SAFETY: within the page.
        unsafe { self.memory.page(page).add(offset).cast() }
    }

    fn atomic(&self, page: usize, thread: usize) -> &AtomicU64 {
        // SAFETY: mapped as long as `self`, aligned, and only ever accessed atomically or by the
        // kernel.
        unsafe { AtomicU64::from_ptr(self.slot(page, thread)) }
    }

    pub fn stamp(&self, page: usize, thread: usize, stamp: u64) {
        self.atomic(page, thread).store(stamp, Relaxed);
    }

    pub fn read_stamps(&self) -> Stamps {
        (0..PAGES * self.threads)
            .map(|i| self.atomic(i / self.threads, i % self.threads).load(Relaxed))
            .collect()
    }

    /// Nothing was seen of any page; no stamp has these values.
    pub fn unseen(&self) -> Stamps {
        vec![u64::MAX; PAGES * self.threads]
    }

    /// `page` was just reported: what it holds now has been told.
    pub fn see(&self, seen: &mut Stamps, page: usize) {
        for thread in 0..self.threads {
            seen[page * self.threads + thread] = self.atomic(page, thread).load(Relaxed);
        }
    }

    /// `page` was called clean: it must hold what was seen.
    pub fn check(
        &self,
        before: &Stamps,
        seen: &Stamps,
        page: usize,
        round: u64,
        source: Source,
    ) -> Result<(), Miss> {
        for thread in 0..self.threads {
            let (stamp, seen) =
                (before[page * self.threads + thread], seen[page * self.threads + thread]);
            if stamp != seen {
                return Err(Miss { source, round, page, thread, stamp, seen });
            }
        }
        Ok(())
    }

    /// The page of the ground where the region begins.
    pub fn first_page(&self, region: &Region) -> usize {
        (region.range().start() - self.memory.range().start()) / PAGE_SIZE
    }
}
