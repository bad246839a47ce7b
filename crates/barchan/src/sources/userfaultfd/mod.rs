//! Synchronous userfaultfd write-protect: for kernels from 5.14 on that lack `WP_ASYNC`.
//!
//! As with `PAGEMAP_SCAN`, the kernel keeps the state: a page is clean exactly if its page-table
//! entry is write-protected by our userfaultfd, which bit 57 of its pagemap entry tells. To collect
//! is to read those bits and then to protect the pages that had none. A write in between lands in
//! a page that is being reported. Nothing is kept on our side, so nothing can come apart from the
//! truth: pages dropped by `MADV_DONTNEED`, moved or mapped anew are unprotected, hence dirty; so
//! are untouched pages on kernels that cannot protect them (before 6.4).
//!
//! A fault is answered by the `monitor` thread: two thread switches and two system calls. A fault
//! of the kernel itself (`read` into a clean page) is only delivered to a process that may handle
//! kernel faults; for others such a call fails with EFAULT.

mod monitor;

use core::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use self::monitor::Monitor;
use super::Opened;
use crate::bitmap;
use crate::error::kind_of;
use crate::os::lock::EpochLock;
use crate::os::pagemap::{self, entry};
use crate::os::uffd::{self, Mode, Protect, feature};
use crate::os::{epoch, syscall};
use crate::stats::{Counters, ScanTimer};
use crate::write_tracker::{check_bitmap, check_inside};
use crate::{
    Errno, ErrorKind, KernelWrites, PageRange, RegionError, Source, Stats, Unavailable,
    WriteTracker,
};

/// Pagemap entries read at a time (4 KiB of stack).
const ENTRIES: usize = 512;

/// The opened source.
pub(crate) struct Userfaultfd {
    epoch: AtomicU64,
    pagemap: AtomicI32,
    uffd: AtomicI32,
    mode: Mode,
    /// Guards `monitor`, and the change of epoch.
    reopening: EpochLock,
    monitor: UnsafeCell<Option<Monitor>>,
    /// For the life of the process: a monitor may be counting.
    counters: &'static Counters,
}

// SAFETY: `monitor` is touched under `reopening`, or by drop, which has the source to itself.
unsafe impl Sync for Userfaultfd {}

struct Descriptors {
    pagemap: i32,
    uffd: i32,
}

impl Descriptors {
    fn open() -> Result<(Self, Mode), Unavailable> {
        let refused = |kind, step, errno, remedy| Unavailable {
            source: Source::Userfaultfd,
            kind,
            step,
            errno: Some(errno),
            remedy,
        };
        let pagemap = pagemap::open().map_err(|errno| {
            let remedy = pagemap::open_remedy(errno);
            refused(kind_of(errno), "opening /proc/self/pagemap", errno, remedy)
        })?;
        let close = |fd| {
            // SAFETY: called once for each descriptor opened here, when it is given up.
            unsafe { syscall::close(fd) };
        };
        let (uffd, mode) = uffd::open(true).map_err(|errno| {
            close(pagemap);
            refused(kind_of(errno), "userfaultfd", errno, uffd::open_remedy(errno))
        })?;
        let wanted = feature::PAGEFAULT_FLAG_WP;
        // A failed negotiation cannot be repeated on the same descriptor before 5.x, so the
        // optional feature is tried on one that may be thrown away.
        let negotiated = match uffd::negotiate(uffd, wanted | feature::WP_UNPOPULATED) {
            Ok(_) => Ok(uffd),
            Err(_) => {
                close(uffd);
                uffd::open(true)
                    .and_then(|(fd, _)| {
                        uffd::negotiate(fd, wanted).map(|_| fd).inspect_err(|_| close(fd))
                    })
                    .map_err(|errno| {
                        refused(
                            ErrorKind::Unsupported,
                            "asking userfaultfd for write-protection",
                            errno,
                            "needs Linux 5.7 with CONFIG_HAVE_ARCH_USERFAULTFD_WP",
                        )
                    })
            }
        };
        match negotiated {
            Ok(uffd) => Ok((Self { pagemap, uffd }, mode)),
            Err(why) => {
                close(pagemap);
                Err(why)
            }
        }
    }

    fn close(&self) {
        // SAFETY: the pair is owned by whoever calls this, who forgets it.
        unsafe {
            syscall::close(self.pagemap);
            syscall::close(self.uffd);
        }
    }
}

impl Userfaultfd {
    pub(crate) fn open() -> Result<Self, Unavailable> {
        let (fds, mode) = Descriptors::open()?;
        let counters: &'static Counters = Box::leak(Box::new(Counters::new()));
        let monitor = Monitor::start(fds.uffd, counters).map_err(|errno| {
            fds.close();
            Unavailable {
                source: Source::Userfaultfd,
                kind: kind_of(errno),
                step: "starting the monitor thread",
                errno: Some(errno),
                remedy: "raise the limits of threads, descriptors and memory",
            }
        })?;
        Ok(Self {
            epoch: AtomicU64::new(epoch::current()),
            pagemap: AtomicI32::new(fds.pagemap),
            uffd: AtomicI32::new(fds.uffd),
            mode,
            reopening: EpochLock::new(),
            monitor: UnsafeCell::new(Some(monitor)),
            counters,
        })
    }

    fn fds(&self) -> Descriptors {
        Descriptors {
            pagemap: self.pagemap.load(Ordering::Relaxed),
            uffd: self.uffd.load(Ordering::Relaxed),
        }
    }

    /// The descriptors of this process; after a fork, new ones with a new monitor.
    fn fds_reopened(&self) -> Result<Descriptors, (&'static str, Errno)> {
        let now = epoch::current();
        let _held = self.reopening.lock();
        if self.epoch.load(Ordering::Acquire) != now {
            let (fds, _) = Descriptors::open()
                .map_err(|why| (why.step, why.errno.unwrap_or(Errno(libc::EINVAL))))?;
            let monitor = Monitor::start(fds.uffd, self.counters).map_err(|errno| {
                fds.close();
                ("starting the monitor thread", errno)
            })?;
            // SAFETY: `reopening` is held. The old monitor's drop finds itself in a child and
            // does nothing.
            unsafe { *self.monitor.get() = Some(monitor) };
            self.pagemap.store(fds.pagemap, Ordering::Relaxed);
            self.uffd.store(fds.uffd, Ordering::Relaxed);
            self.epoch.store(now, Ordering::Release);
        }
        Ok(self.fds())
    }
}

impl Drop for Userfaultfd {
    fn drop(&mut self) {
        *self.monitor.get_mut() = None;
        if self.epoch.load(Ordering::Acquire) == epoch::current() {
            self.fds().close();
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

fn refused(step: &'static str, range: PageRange, errno: Errno) -> RegionError {
    RegionError::System {
        step,
        range,
        errno,
        remedy: "the range must be mapped, private, anonymous and writable, and known to no other \
                 userfaultfd; its pages are dirty",
    }
}

fn register(uffd: i32, range: PageRange) -> Result<(), RegionError> {
    // SAFETY: 1. the pages belong to the region, by the promise of whoever tracks it. 2. The
    // monitor of this descriptor answers faults.
    unsafe { uffd::register(uffd, range) }.map_err(|e| refused("UFFDIO_REGISTER", range, e))
}

fn release(uffd: i32, range: PageRange) {
    if !range.is_empty() {
        // An error: no mapping there, so nothing is registered either.
        let _ = uffd::unregister(uffd, range);
    }
}

/// Sets or lifts protection, registering mappings anew that were replaced.
fn protect(uffd: i32, range: PageRange, what: Protect) -> Result<(), RegionError> {
    if range.is_empty() {
        return Ok(());
    }
    match uffd::write_protect(uffd, range, what) {
        Err(Errno(libc::ENOENT)) => {
            register(uffd, range)?;
            protect_piecewise(uffd, range, what)
        }
        other => other,
    }
    .map_err(|errno| refused("UFFDIO_WRITEPROTECT", range, errno))
}

/// As `write_protect`, for a range that may span several mappings, which kernels before 6.4 refuse
/// with ENOENT: halves it until each piece lies in one.
fn protect_piecewise(uffd: i32, range: PageRange, what: Protect) -> Result<(), Errno> {
    match uffd::write_protect(uffd, range, what) {
        Err(Errno(libc::ENOENT)) if range.pages() > 1 => {
            let half = range.pages() / 2;
            protect_piecewise(uffd, range.slice(0, half), what)?;
            protect_piecewise(uffd, range.slice(half, range.pages() - half), what)
        }
        other => other,
    }
}

impl UserfaultfdRegion {
    fn attached(&self) -> Option<Descriptors> {
        (self.epoch.load(Ordering::Acquire) == epoch::current()).then(|| self.shared.fds())
    }

    fn attach(&self) -> Result<Descriptors, RegionError> {
        let fds =
            self.shared.fds_reopened().map_err(|(step, errno)| refused(step, self.range, errno))?;
        register(fds.uffd, self.range)?;
        self.epoch.store(epoch::current(), Ordering::Release);
        Ok(fds)
    }

    /// Reports the pages of `range` that are not protected, and protects them if `reset`.
    fn scan(&self, fds: &Descriptors, range: PageRange, reset: bool, bits: &mut [u64]) -> usize {
        let mut entries = [0u64; ENTRIES];
        let mut dirty_words = [0u64; ENTRIES / 64];
        let (mut at, mut dirty) = (0, 0);
        while at < range.pages() {
            let rest = range.slice(at, range.pages() - at);
            let Ok(pages) = pagemap::read(fds.pagemap, rest, &mut entries) else {
                Counters::add(&self.shared.counters.degraded, 1);
                bitmap::set_run(bits, at, rest.pages());
                return dirty + rest.pages();
            };
            dirty_words.fill(0);
            for (page, entry) in entries[..pages].iter().enumerate() {
                dirty_words[page / 64] |= u64::from(entry & entry::UFFD_WP == 0) << (page % 64);
            }
            dirty += bitmap::or_into(bits, at, &dirty_words, pages);
            if reset {
                for (first, count) in bitmap::runs(&dirty_words, pages) {
                    if protect(fds.uffd, rest.slice(first, count), Protect::On).is_err() {
                        // They stay unprotected, hence dirty, which they are reported to be.
                        Counters::add(&self.shared.counters.degraded, 1);
                    }
                }
            }
            at += pages;
        }
        dirty
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
        let fds = match self.attached() {
            Some(fds) => fds,
            None => self.attach()?,
        };
        protect(fds.uffd, range, Protect::On)?;
        Counters::add(&self.shared.counters.pages_armed, range.pages());
        Ok(())
    }

    fn disarm(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range, range)?;
        let Some(fds) = self.attached() else { return Ok(()) };
        protect(fds.uffd, range, Protect::OffAndWake)?;
        Counters::add(&self.shared.counters.pages_disarmed, range.pages());
        Ok(())
    }

    fn peek(&self, range: PageRange, bits: &mut [u64]) -> Result<(), RegionError> {
        check_bitmap(self.range, range, bits)?;
        let _timer = ScanTimer::start(self.shared.counters);
        match self.attached() {
            Some(fds) => drop(self.scan(&fds, range, false, bits)),
            None => bitmap::set_run(bits, 0, range.pages()),
        }
        Ok(())
    }

    fn collect_and_reset(&self, range: PageRange, bits: &mut [u64]) -> Result<usize, RegionError> {
        check_bitmap(self.range, range, bits)?;
        let _timer = ScanTimer::start(self.shared.counters);
        let dirty = match self.attached() {
            Some(fds) => self.scan(&fds, range, true, bits),
            None => {
                bitmap::set_run(bits, 0, range.pages());
                self.arm(range)?;
                range.pages()
            }
        };
        self.shared.counters.collected(dirty);
        Ok(dirty)
    }

    fn remapped(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range, range)?;
        let Some(fds) = self.attached() else { return Ok(()) };
        if !range.is_empty() {
            register(fds.uffd, range)?;
        }
        // Parts that were not replaced may still be protected.
        self.disarm(range)
    }

    unsafe fn resize(&mut self, bounds: PageRange) -> Result<(), RegionError> {
        let old = self.range;
        if let Some(Descriptors { uffd, .. }) = self.attached() {
            let below = PageRange::between(bounds.start(), old.start().min(bounds.end()));
            let above = PageRange::between(old.end().max(bounds.start()), bounds.end());
            if !below.is_empty() {
                register(uffd, below)?;
            }
            if !above.is_empty() {
                register(uffd, above).inspect_err(|_| release(uffd, below))?;
            }
            release(uffd, PageRange::between(old.start(), bounds.start().min(old.end())));
            release(uffd, PageRange::between(bounds.end().max(old.start()), old.end()));
        }
        self.range = bounds;
        Ok(())
    }
}

impl Drop for UserfaultfdRegion {
    fn drop(&mut self) {
        if let Some(fds) = self.attached() {
            release(fds.uffd, self.range);
        }
    }
}
