//! userfaultfd `WP_ASYNC` + `PAGEMAP_SCAN`: the kernel keeps the dirty bits.
//!
//! A page is armed when its page-table entry carries the userfaultfd write-protect bit. The first
//! write faults in the kernel, which drops the bit and goes on; nothing is delivered to anyone.
//! One ioctl finds the pages without the bit and sets it, under the page-table lock, so no write
//! falls between. All state is the kernel's: nothing to lock here, and nothing to lose.
//!
//! What it relies on, each with a test in `tests/semantics`:
//! - a page never touched, dropped by `MADV_DONTNEED`, or mapped anew counts as written;
//! - kernel writes (`read`, `/proc/self/mem`, `process_vm_writev`) count as written;
//! - a huge page is split by the first write or by arming a part of it, so reports are 4 KiB;
//! - an error of a protecting scan may leave pages protected whose report is gone: then everything
//!   asked for is reported.
//!
//! Signals are blocked from each look at the epoch to the last use of the descriptors that it allows: in between a
//! handler of the program's might fork, and its child would go on with the parent's memory.

mod descriptors;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::descriptors::{Descriptors, are_holes_apart, is_lost, register, release};
use super::{Opened, Registered};
use crate::bitmap;
use crate::os::lock::EpochLock;
use crate::os::own::OwnCell;
use crate::os::pagemap::{Found, Query, Scanned};
use crate::os::syscall::SignalMask;
use crate::os::{epoch, syscall};
use crate::stats::Counters;
use crate::write_tracker::check_inside;
use crate::{
    Errno, KernelWrites, PAGE_SIZE, PageRange, RegionError, Source, Stats, Unavailable,
    WriteTracker,
};

/// Entries of a scan's output on the stack (12 KiB): what one 2 MiB step of the kernel can fill.
const FOUND: usize = 512;

/// The opened source: two descriptors and the epoch in which they were opened.
pub(crate) struct PagemapScan {
    /// The epoch that the descriptors belong to; written under `reopening` only.
    epoch: AtomicU64,
    pagemap: OwnCell,
    uffd: OwnCell,
    reopening: EpochLock,
    /// What finds written pages on this kernel.
    written: Query,
    /// Whether holes in the page tables have to be asked for by name on this kernel.
    holes_apart: bool,
    counters: Counters,
}

impl PagemapScan {
    pub(crate) fn open() -> Result<Self, Unavailable> {
        let _mask = SignalMask::all_blocked();
        let fds = Descriptors::open()?;
        let written = Query::written(syscall::kernel_release());
        let holes_apart = are_holes_apart(fds, written).inspect_err(|_| fds.close())?;
        Ok(Self {
            epoch: AtomicU64::new(epoch::current()),
            pagemap: OwnCell::new(fds.pagemap),
            uffd: OwnCell::new(fds.uffd),
            reopening: EpochLock::new(),
            written,
            holes_apart,
            counters: Counters::new(),
        })
    }

    /// The descriptors; only for a caller that knows them to be of this epoch.
    fn fds(&self) -> Descriptors {
        Descriptors { pagemap: self.pagemap.get(), uffd: self.uffd.get() }
    }

    /// The descriptors of this process, opened anew after a fork.
    ///
    /// The inherited pair is left open: the child may have closed those numbers and given them to
    /// files of its own, and a descriptor that nobody uses harms nobody.
    fn fds_reopened(&self) -> Result<Descriptors, Unavailable> {
        let now = epoch::current();
        let _held = self.reopening.lock();
        if self.epoch.load(Ordering::Acquire) != now {
            let fds = Descriptors::open()?;
            self.pagemap.set(fds.pagemap);
            self.uffd.set(fds.uffd);
            self.epoch.store(now, Ordering::Release);
        }
        Ok(self.fds())
    }
}

/// Which of the two descriptors somebody closed behind our back (`closefrom`, a daemon's start).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lost {
    Pagemap,
    Uffd,
}

impl PagemapScan {
    /// Opens anew what was lost, unless another thread already has. The old number is not closed:
    /// it is nobody's, or by now somebody else's.
    #[cold]
    fn replace(&self, lost: Lost, was: Descriptors) {
        let _held = self.reopening.lock();
        let now = self.fds();
        if self.epoch.load(Ordering::Acquire) != epoch::current() {
            return;
        }
        // If it cannot be had, everything stays dirty, and the next collection tries again.
        match lost {
            // A new one may have the number of the old, and is the same file.
            Lost::Pagemap if now.pagemap == was.pagemap && now.pagemap.number().is_err() => {
                if let Ok(pagemap) = Descriptors::open_pagemap() {
                    self.pagemap.set(pagemap);
                }
            }
            Lost::Uffd if now.uffd == was.uffd => {
                if let Ok(uffd) = Descriptors::open_uffd() {
                    self.uffd.set(uffd);
                }
            }
            _ => {}
        }
    }
}

impl Drop for PagemapScan {
    fn drop(&mut self) {
        let _mask = SignalMask::all_blocked();
        if self.epoch.load(Ordering::Acquire) == epoch::current() {
            self.fds().close();
        }
    }
}

impl Opened for PagemapScan {
    fn source(&self) -> Source {
        Source::PagemapScan
    }

    fn kernel_writes(&self) -> KernelWrites {
        KernelWrites::Tracked
    }

    fn stats(&self) -> Stats {
        self.counters.snapshot(false)
    }

    unsafe fn track(
        self: Arc<Self>,
        range: PageRange,
    ) -> Result<Box<dyn WriteTracker>, RegionError> {
        let region = PagemapScanRegion { shared: self, range, epoch: AtomicU64::new(0) };
        {
            // Not while the heap is used, for which a thread may have to wait.
            let _mask = SignalMask::all_blocked();
            region.attach(range)?;
        }
        Ok(Box::new(region))
    }
}

/// One registered range.
struct PagemapScanRegion {
    shared: Arc<PagemapScan>,
    range: PageRange,
    /// The epoch in which the range was registered; in any other, all is dirty.
    epoch: AtomicU64,
}

impl PagemapScanRegion {
    /// The descriptors, if the region is registered in this process. All signals are blocked while they are used.
    fn attached(&self) -> Option<Descriptors> {
        self.is_attached().then(|| self.shared.fds())
    }

    /// Registers `range` in this process, opening descriptors of its own if needed. With all signals blocked.
    fn attach(&self, range: PageRange) -> Result<Descriptors, RegionError> {
        let fds = self.shared.fds_reopened().map_err(|why| RegionError::System {
            step: why.step,
            range,
            errno: why.errno.unwrap_or(Errno(libc::EINVAL)),
            remedy: why.remedy,
        })?;
        register(fds, range)?;
        if range == self.range {
            self.epoch.store(epoch::current(), Ordering::Release);
        }
        Ok(fds)
    }

    /// ORs the pages of `range` that match `query` into `bits`; returns their number.
    fn scan_for(&self, query: Query, range: PageRange, bits: &mut [u64]) -> usize {
        let mut found = [Found::default(); FOUND];
        let mut at = range.start();
        let mut dirty = 0;
        while at < range.end() {
            let rest = PageRange::between(at, range.end());
            let (filled, walked_to) = match self.scan_once(query, rest, &mut found) {
                Some(Ok(scanned)) if scanned.walked_to > at => (scanned.filled, scanned.walked_to),
                Some(Ok(_)) | None => return dirty + self.give_up(range, rest, bits, None),
                Some(Err(errno)) => return dirty + self.give_up(range, rest, bits, Some(errno)),
            };
            for pages in found[..filled].iter().map(Found::range) {
                bitmap::set_run(bits, range.index_of(pages.start()), pages.pages());
                dirty += pages.pages();
            }
            at = walked_to;
        }
        dirty
    }

    /// One call; `None` in a child that was forked, by a signal handler, in the middle of the scan.
    ///
    /// Each call blocks signals for itself. The caller's bitmap, which is written in between, may be tracked memory of
    /// another source, or somebody else's, whose faults are signals.
    fn scan_once(
        &self,
        query: Query,
        range: PageRange,
        found: &mut [Found],
    ) -> Option<Result<Scanned, Errno>> {
        let _mask = SignalMask::all_blocked();
        self.attached().map(|fds| fds.scan(query, range, found))
    }

    /// The scan failed somewhere in `rest`: calls all of it dirty, and registers the mappings
    /// anew where they were replaced, so that the next collection is exact again.
    #[cold]
    fn give_up(
        &self,
        range: PageRange,
        rest: PageRange,
        bits: &mut [u64],
        errno: Option<Errno>,
    ) -> usize {
        Counters::add(&self.shared.counters.degraded, 1);
        bitmap::set_run(bits, range.index_of(rest.start()), rest.pages());
        let _mask = SignalMask::all_blocked();
        let Some(fds) = self.attached() else { return rest.pages() };
        match errno {
            Some(errno) if is_lost(errno) => self.shared.replace(Lost::Pagemap, fds),
            // Some mapping is not registered: it was replaced, or the userfaultfd is gone. If it
            // can never be tracked it stays dirty, which is what has just been said.
            Some(Errno(libc::EPERM)) => drop(self.register_again(fds, rest)),
            _ => {}
        }
        rest.pages()
    }

    /// Registers `range`, with a new userfaultfd if the one there was is gone; its descriptors.
    fn register_again(
        &self,
        fds: Descriptors,
        range: PageRange,
    ) -> Result<Descriptors, RegionError> {
        match register(fds, range) {
            Err(RegionError::System { errno, .. }) if is_lost(errno) => {
                self.shared.replace(Lost::Uffd, fds);
                let fds = self.shared.fds();
                register(fds, range).map(|()| fds)
            }
            other => other.map(|()| fds),
        }
    }

    /// Arms `range`, which must be registered.
    fn protect(&self, fds: Descriptors, range: PageRange) -> Result<(), Errno> {
        let mut at = range.start();
        while at < range.end() {
            let rest = PageRange::between(at, range.end());
            let scanned = fds.scan(Query::EVERY.protecting(), rest, &mut [])?;
            if scanned.walked_to <= at {
                return Err(Errno(libc::EINVAL));
            }
            at = scanned.walked_to;
        }
        Ok(())
    }
}

impl Registered for PagemapScanRegion {
    fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    fn is_attached(&self) -> bool {
        self.epoch.load(Ordering::Acquire) == epoch::current()
    }

    /// What the kernel does not answer for is dirty.
    fn scan(&self, range: PageRange, reset: bool, bits: &mut [u64]) -> usize {
        let with = |query: Query| if reset { query.protecting() } else { query.checking() };
        let written = self.scan_for(with(self.shared.written), range, bits);
        if !self.shared.holes_apart {
            return written;
        }
        // In this order: a hole that is written to after the first scan is found by neither, and
        // stays unprotected for the next collection, as is right for a concurrent write. A page
        // that becomes a hole after the first scan is found by the second.
        (written + self.scan_for(with(Query::ABSENT), range, bits)).min(range.pages())
    }
}

impl WriteTracker for PagemapScanRegion {
    fn source(&self) -> Source {
        Source::PagemapScan
    }

    fn range(&self) -> PageRange {
        self.range
    }

    fn arm(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range, range)?;
        if range.is_empty() {
            return Ok(());
        }
        let _mask = SignalMask::all_blocked();
        let fds = match self.attached() {
            Some(fds) => fds,
            None => self.attach(self.range)?,
        };
        let armed = match self.protect(fds, range) {
            // Some mapping was replaced unannounced; once registered anew it can be armed.
            Err(Errno(libc::EPERM)) => {
                let fds = self.register_again(fds, range)?;
                self.protect(fds, range)
            }
            Err(errno) if is_lost(errno) => {
                self.shared.replace(Lost::Pagemap, fds);
                let fds = self.register_again(self.shared.fds(), range)?;
                self.protect(fds, range)
            }
            other => other,
        };
        armed.map_err(|errno| RegionError::System {
            step: "PAGEMAP_SCAN to arm",
            range,
            errno,
            remedy: "the range must be mapped; the pages stay dirty",
        })?;
        Counters::add(&self.shared.counters.pages_armed, range.pages());
        Ok(())
    }

    fn disarm(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range, range)?;
        let _mask = SignalMask::all_blocked();
        let Some(fds) = self.attached() else { return Ok(()) };
        if range.is_empty() {
            return Ok(());
        }
        match fds.unprotect(range) {
            // A mapping in the range is not registered, so nothing in it is protected; registering
            // anew lets the rest be disarmed.
            Err(errno) if errno.0 == libc::ENOENT || is_lost(errno) => {
                self.register_again(fds, range)?.unprotect(range)
            }
            other => other,
        }
        .map_err(|errno| RegionError::System {
            step: "UFFDIO_WRITEPROTECT to disarm",
            range,
            errno,
            remedy: "the range must be mapped; writes to it are still tracked",
        })?;
        Counters::add(&self.shared.counters.pages_disarmed, range.pages());
        Ok(())
    }

    fn peek(&self, range: PageRange, bits: &mut [u64]) -> Result<(), RegionError> {
        self.peek_registered(range, bits)
    }

    fn collect_and_reset(&self, range: PageRange, bits: &mut [u64]) -> Result<usize, RegionError> {
        self.collect_registered(range, bits)
    }

    fn remapped(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range, range)?;
        let _mask = SignalMask::all_blocked();
        let Some(fds) = self.attached() else { return Ok(()) };
        if range.is_empty() {
            return Ok(());
        }
        self.register_again(fds, range)?;
        // Parts that were not replaced may still be armed.
        self.disarm(range)
    }

    unsafe fn resize(&mut self, bounds: PageRange) -> Result<(), RegionError> {
        let old = self.range;
        let _mask = SignalMask::all_blocked();
        if let Some(mut fds) = self.attached() {
            let below = PageRange::between(bounds.start(), old.start().min(bounds.end()));
            let above = PageRange::between(old.end().max(bounds.start()), bounds.end());
            if !below.is_empty() {
                fds = self.register_again(fds, below)?;
            }
            if !above.is_empty() {
                fds = self.register_again(fds, above).inspect_err(|_| release(fds, below))?;
            }
            release(fds, PageRange::between(old.start(), bounds.start().min(old.end())));
            release(fds, PageRange::between(bounds.end().max(old.start()), old.end()));
        }
        self.range = bounds;
        Ok(())
    }
}

impl Drop for PagemapScanRegion {
    fn drop(&mut self) {
        let _mask = SignalMask::all_blocked();
        if let Some(fds) = self.attached() {
            release(fds, self.range);
        }
    }
}

const _: () = assert!(FOUND * PAGE_SIZE == 2 << 20);
