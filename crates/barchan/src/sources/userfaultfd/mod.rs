//! Synchronous userfaultfd write-protect: for kernels from 5.14 on that lack `WP_ASYNC`.
//!
//! As with `PAGEMAP_SCAN`, the kernel keeps the state: a page is clean exactly if its page-table
//! entry is write-protected by our userfaultfd, which bit 57 of its pagemap entry tells. To collect
//! is to read those bits and then to protect the pages that had none. A write in between lands in
//! a page that is being reported. Nothing is kept on our side, so nothing can come apart from the
//! truth: pages dropped by `MADV_DONTNEED` or mapped anew are unprotected, hence dirty; so
//! are untouched pages on kernels that cannot protect them (before 6.4). That armed pages were moved
//! into a region (`mremap`) has to be told: up to Linux 6.12.10 they look armed there, and are not
//! (CVE-2025-21696).
//!
//! A fault is answered by the `monitor` thread: two thread switches and two system calls. A fault
//! of the kernel itself (`read` into a clean page) is only delivered to a process that may handle
//! kernel faults; for others such a call fails with EFAULT.
//!
//! The `descriptors` are that thread's, in a table of its own, where no program can close them; so
//! each operation is a request to the thread, and costs what a fault costs on top of its own work
//! (for long ranges, once every 16 MiB).
//!
//! Drop privileges first, then open: the monitor has the user id of whoever opened the source, and
//! keeps it when the program changes its own (libc changes only the threads that it knows). Its
//! capabilities it gives up once the descriptors are open. To have a table of its own it closes
//! copies of the program's descriptors, as `close` does: that ends the process' `mq_notify`
//! registrations (open the tracker first, then register), and waits for files of a network or FUSE
//! file system to be flushed.

mod descriptors;
mod monitor;

use core::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::descriptors::{CHUNK, ChunkBits, Refused};
use self::monitor::{Monitor, Request};
use super::{Opened, Registered};
use crate::bitmap;
use crate::os::epoch;
use crate::os::lock::EpochLock;
use crate::os::syscall::SignalMask;
use crate::os::uffd::{Mode, Protect};
use crate::stats::Counters;
use crate::write_tracker::check_inside;
use crate::{
    Errno, KernelWrites, PageRange, RegionError, Source, Stats, Unavailable, WriteTracker,
};

/// The opened source.
pub(crate) struct Userfaultfd {
    /// The epoch that the monitor belongs to; written under `lock` only.
    epoch: AtomicU64,
    mode: Mode,
    /// Guards `monitor`, and the change of epoch.
    lock: EpochLock,
    monitor: UnsafeCell<Option<Monitor>>,
    /// For the life of the process: a monitor may be counting.
    counters: &'static Counters,
}

// SAFETY: `monitor` is touched under `lock`, or by drop, which has the source to itself.
unsafe impl Sync for Userfaultfd {}

impl Userfaultfd {
    pub(crate) fn open() -> Result<Self, Unavailable> {
        let counters: &'static Counters = Box::leak(Box::new(Counters::new()));
        let (monitor, mode) = Monitor::start(counters).inspect_err(|_| {
            // SAFETY: leaked above, and the thread has ended.
            drop(unsafe { Box::from_raw(core::ptr::from_ref(counters).cast_mut()) });
        })?;
        Ok(Self {
            epoch: AtomicU64::new(epoch::current()),
            mode,
            lock: EpochLock::new(),
            monitor: UnsafeCell::new(Some(monitor)),
            counters,
        })
    }

    /// Has a monitor in this process: after a fork, a new one with new descriptors.
    fn reopen(&self) -> Result<(), Refused> {
        let now = epoch::current();
        let _held = self.lock.lock();
        if self.epoch.load(Ordering::Acquire) != now {
            let (monitor, _) = Monitor::start(self.counters)
                .map_err(|why| (why.step, why.errno.unwrap_or(Errno(libc::EIO))))?;
            // SAFETY: 1. the lock is held. 2. The old one is not dropped: it has no thread here,
            // and the fork may have come while it was being written.
            unsafe { self.monitor.get().write(Some(monitor)) };
            self.epoch.store(now, Ordering::Release);
        }
        Ok(())
    }

    /// Has the monitor do `request`; the bits of a scan are in `bits`. Only for a caller that knows
    /// the monitor to be of this epoch.
    fn ask_with(&self, request: Request, bits: &mut ChunkBits) -> Result<(), Refused> {
        let _held = self.lock.lock();
        // SAFETY: the lock is held.
        let monitor = unsafe { &mut *self.monitor.get() };
        match monitor {
            Some(monitor) => monitor.ask(request, bits),
            None => Err(("asking the monitor thread", Errno(libc::EIO))),
        }
    }

    fn ask(&self, request: Request) -> Result<(), Refused> {
        self.ask_with(request, &mut [0; CHUNK / 64])
    }
}

impl Drop for Userfaultfd {
    fn drop(&mut self) {
        if let Some(monitor) = self.monitor.get_mut().take() {
            monitor.stop();
        }
    }
}

impl Opened for Userfaultfd {
    fn source(&self) -> Source {
        Source::Userfaultfd
    }

    fn kernel_writes(&self) -> KernelWrites {
        match self.mode {
            Mode::Full => KernelWrites::Tracked,
            Mode::UserOnly => KernelWrites::Efault,
        }
    }

    fn stats(&self) -> Stats {
        self.counters.snapshot(true)
    }

    unsafe fn track(
        self: Arc<Self>,
        range: PageRange,
    ) -> Result<Box<dyn WriteTracker>, RegionError> {
        let region = UserfaultfdRegion { shared: self, range, epoch: AtomicU64::new(0) };
        region.attach()?;
        Ok(Box::new(region))
    }
}

/// One registered range.
struct UserfaultfdRegion {
    shared: Arc<Userfaultfd>,
    range: PageRange,
    /// The epoch in which the range was registered; in any other, all is dirty.
    epoch: AtomicU64,
}

fn refused(range: PageRange, (step, errno): Refused) -> RegionError {
    RegionError::System {
        step,
        range,
        errno,
        remedy: "the range must be mapped, private, anonymous and writable, and known to no other \
                 userfaultfd; its pages are dirty",
    }
}

impl UserfaultfdRegion {
    fn attach(&self) -> Result<(), RegionError> {
        // A child that a signal handler forked in between would take the parent's monitor for its own.
        let _mask = SignalMask::all_blocked();
        self.shared.reopen().map_err(|why| refused(self.range, why))?;
        self.register(self.range)?;
        self.epoch.store(epoch::current(), Ordering::Release);
        Ok(())
    }

    fn register(&self, range: PageRange) -> Result<(), RegionError> {
        self.shared.ask(Request::Register(range)).map_err(|why| refused(range, why))
    }

    /// Ends the registration of pages that the region gives up; they may be unmapped already.
    fn release(&self, range: PageRange) {
        if !range.is_empty() {
            // Unanswered: the monitor is gone, and with it every registration.
            let _ = self.shared.ask(Request::Release(range));
        }
    }

    /// Sets or lifts protection, registering mappings anew that were replaced.
    fn protect(&self, range: PageRange, what: Protect) -> Result<(), RegionError> {
        range.chunks(CHUNK).try_for_each(|(_, part)| {
            self.shared.ask(Request::Protect(part, what)).map_err(|why| refused(part, why))
        })
    }
}

impl Registered for UserfaultfdRegion {
    fn counters(&self) -> &Counters {
        self.shared.counters
    }

    fn is_attached(&self) -> bool {
        self.epoch.load(Ordering::Acquire) == epoch::current()
    }

    fn scan(&self, range: PageRange, reset: bool, bits: &mut [u64]) -> usize {
        let mut chunk: ChunkBits = [0; CHUNK / 64];
        range.chunks(CHUNK).fold(0, |dirty, (first, part)| {
            if self.shared.ask_with(Request::Scan { range: part, reset }, &mut chunk).is_err() {
                Counters::add(&self.shared.counters.degraded, 1);
                chunk.fill(u64::MAX);
            }
            // The caller's bitmap may itself be tracked memory: it is written with the lock free.
            dirty + bitmap::or_into(bits, first, &chunk, part.pages())
        })
    }
}

impl WriteTracker for UserfaultfdRegion {
    fn source(&self) -> Source {
        Source::Userfaultfd
    }

    fn range(&self) -> PageRange {
        self.range
    }

    fn arm(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range, range)?;
        if !self.is_attached() {
            self.attach()?;
        }
        self.protect(range, Protect::On)?;
        Counters::add(&self.shared.counters.pages_armed, range.pages());
        Ok(())
    }

    fn disarm(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range, range)?;
        if !self.is_attached() {
            return Ok(());
        }
        self.protect(range, Protect::OffAndWake)?;
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
        if !self.is_attached() || range.is_empty() {
            return Ok(());
        }
        self.register(range)?;
        // Parts that were not replaced may still be protected.
        self.disarm(range)
    }

    unsafe fn resize(&mut self, bounds: PageRange) -> Result<(), RegionError> {
        let old = self.range;
        if self.is_attached() {
            let below = PageRange::between(bounds.start(), old.start().min(bounds.end()));
            let above = PageRange::between(old.end().max(bounds.start()), bounds.end());
            if !below.is_empty() {
                self.register(below)?;
            }
            if !above.is_empty() {
                self.register(above).inspect_err(|_| self.release(below))?;
            }
            self.release(PageRange::between(old.start(), bounds.start().min(old.end())));
            self.release(PageRange::between(bounds.end().max(old.start()), old.end()));
        }
        self.range = bounds;
        Ok(())
    }
}

impl Drop for UserfaultfdRegion {
    fn drop(&mut self) {
        if self.is_attached() {
            self.release(self.range);
        }
    }
}
