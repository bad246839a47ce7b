//! The guest's page tables as a source, in a process that runs in guest mode, by four means:
//!
//! - *guest-pte*: the dirty bits, which the processor sets itself; nobody takes a fault;
//! - *guest-pml*: the processor's log of written pages, where the host has one for its guests, and keeps it for this one;
//! - *guest-tlb* and *guest-direct*: write protection, and faults that the guest-mode runtime handles at ring 3.
//!   These are how others have done it before (`dune_abi::Protection`), here to be compared with.
//!
//! The tables are the guest-mode runtime's, which lives in another shared library; it is found by
//! `dlsym` (`dune_abi`). All state is in the tables: a page is clean if its entry is present and has no D
//! bit (nor, under protection, the right to write), and dirty in every other case. So there is nothing to lock
//! here, and nothing to lose:
//!
//! - arming clears these bits and flushes the TLBs of all processors of the process before it returns;
//! - collecting takes them by one atomic operation an entry, and flushes before it returns, so a write
//!   through a translation that a processor had kept happened before the return, and is reported;
//! - what the kernel writes for a system call is marked by the runtime, which makes the call;
//! - pages whose entries go (new mappings, `mprotect`, `MADV_DONTNEED`, a forked child, whose tables start
//!   empty) are dirty again.
//!
//! What it cannot see: writes by other processes, as those of a debugger, and of devices.

use core::ffi::{CStr, c_char};
use std::sync::Arc;

use dune_abi::DirtyBits;

use super::Opened;
use crate::bitmap;
use crate::stats::{Counters, ScanTimer};
use crate::write_tracker::{check_bitmap, check_inside};
use crate::{
    Errno, ErrorKind, KernelWrites, PageRange, RegionError, Source, Stats, Unavailable,
    WriteTracker,
};

/// How the tables are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    /// D bits.
    DirtyBits,
    /// Protection, with these flushes.
    Protection(u32),
    /// The log of written pages.
    Log,
}

impl Means {
    fn of(source: Source) -> Self {
        match source {
            Source::GuestTlb => Self::Protection(dune_abi::FLUSH_PAGES),
            Source::GuestDirect => Self::Protection(dune_abi::FLUSH_ALL),
            Source::GuestPml => Self::Log,
            _ => Self::DirtyBits,
        }
    }
}

/// The opened source: the runtime's functions.
pub(crate) struct Guest {
    source: Source,
    means: Means,
    runtime: &'static DirtyBits,
    counters: Counters,
    /// Faults that had been handled before.
    faults_before: u64,
}

impl Guest {
    /// Opens `source`, one of the four.
    pub(crate) fn open(source: Source) -> Result<Self, Unavailable> {
        let runtime = runtime(source)?;
        let means = Means::of(source);
        let start = match means {
            Means::DirtyBits => None,
            Means::Protection(_) => Some((
                runtime.protection.start,
                "beginning to handle page faults at ring 3",
                "the program handles them itself; use guest-pte",
            )),
            Means::Log => Some((
                runtime.log.start,
                "asking the guest-mode runtime for the processor's log of written pages",
                "it takes /dev/dune on a processor with PML, and BARCHAN_DUNE_PML=1 from the start, which \
                 `barchan run --dune --tracker guest-pml` sets; or use guest-pte",
            )),
        };
        if let Some((start, step, remedy)) = start {
            // SAFETY: it takes no arguments.
            if unsafe { start() } != dune_abi::OK {
                return Err(unavailable(source, ErrorKind::Unsupported, step, remedy));
            }
        }
        // SAFETY: it takes no arguments.
        unsafe { (runtime.retain)() };
        let mut opened =
            Self { source, means, runtime, counters: Counters::new(), faults_before: 0 };
        opened.faults_before = opened.faults().unwrap_or(0);
        Ok(opened)
    }

    /// How many faults the runtime has handled by this means, in this process.
    fn faults(&self) -> Option<u64> {
        let Means::Protection(flushes) = self.means else { return None };
        // SAFETY: it only reads a counter.
        Some(unsafe { (self.runtime.protection.faults)(flushes) })
    }

    fn mark(&self, range: PageRange) -> i32 {
        let mark = match self.means {
            Means::DirtyBits | Means::Log => self.runtime.mark,
            Means::Protection(_) => self.runtime.protection.mark,
        };
        // SAFETY: any range may be given; it changes bits of page-table entries only.
        unsafe { mark(range.start(), range.end()) }
    }

    fn clear(&self, range: PageRange) -> i32 {
        let (start, end) = (range.start(), range.end());
        // SAFETY: as in `mark`.
        unsafe {
            match self.means {
                Means::DirtyBits => (self.runtime.clear)(start, end),
                Means::Log => (self.runtime.log.clear)(start, end),
                Means::Protection(flushes) => (self.runtime.protection.clear)(flushes, start, end),
            }
        }
    }

    fn clear_among(&self, range: PageRange, among: &[u64]) -> i32 {
        let (start, end) = (range.start(), range.end());
        let (bits, words) = (among.as_ptr(), among.len());
        // SAFETY: as in `mark`; the bitmap is as long as is said, and only read.
        unsafe {
            match self.means {
                Means::DirtyBits => (self.runtime.clear_among)(start, end, bits, words),
                Means::Log => (self.runtime.log.clear_among)(start, end, bits, words),
                Means::Protection(flushes) => {
                    (self.runtime.protection.clear_among)(flushes, start, end, bits, words)
                }
            }
        }
    }

    fn peek(&self, range: PageRange, bits: &mut [u64]) -> i32 {
        let peek = match self.means {
            Means::DirtyBits => self.runtime.peek,
            Means::Log => self.runtime.log.peek,
            Means::Protection(_) => self.runtime.protection.peek,
        };
        // SAFETY: the bitmap is ours, and as long as is said.
        unsafe { peek(range.start(), range.end(), bits.as_mut_ptr(), bits.len()) }
    }

    fn collect(&self, range: PageRange, bits: &mut [u64]) -> i32 {
        let (start, end) = (range.start(), range.end());
        let (bits, words) = (bits.as_mut_ptr(), bits.len());
        // SAFETY: as in `peek`.
        unsafe {
            match self.means {
                Means::DirtyBits => (self.runtime.collect)(start, end, bits, words),
                Means::Log => (self.runtime.log.collect)(start, end, bits, words),
                Means::Protection(flushes) => {
                    (self.runtime.protection.collect)(flushes, start, end, bits, words)
                }
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // SAFETY: once for the call in `open`.
        unsafe { (self.runtime.release)() };
    }
}

fn unavailable(
    source: Source,
    kind: ErrorKind,
    step: &'static str,
    remedy: &'static str,
) -> Unavailable {
    Unavailable { source, kind, step, errno: None, remedy }
}

/// The table of the runtime that this process runs under.
fn runtime(source: Source) -> Result<&'static DirtyBits, Unavailable> {
    let unavailable = |kind, step, remedy| unavailable(source, kind, step, remedy);
    // SAFETY: a name that ends in 0; it only looks.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, dune_abi::SYMBOL.as_ptr()) };
    if found.is_null() {
        return Err(unavailable(
            ErrorKind::Unsupported,
            "looking for the guest-mode runtime in this process",
            match source {
                Source::GuestPml => {
                    "start the program with `barchan run --dune --tracker guest-pml`, over the kernel \
                     module (kmod/README.md); it is for comparison, and guest-pte costs less"
                }
                Source::GuestTlb => {
                    "start the program with `barchan run --dune --tracker guest-tlb`; it is for \
                     comparison, and guest-pte costs less"
                }
                Source::GuestDirect => {
                    "start the program with `barchan run --dune --tracker guest-direct`; it is for \
                     comparison, and guest-pte costs less"
                }
                _ => "start the program with `barchan run --dune --tracker auto`",
            },
        ));
    }
    // SAFETY: whoever exports that name promises that type.
    let lookup = unsafe { core::mem::transmute::<*mut libc::c_void, dune_abi::Lookup>(found) };
    let mut why: *const c_char = core::ptr::null();
    // SAFETY: room for a pointer.
    let table = unsafe { lookup(dune_abi::VERSION, &raw mut why) };
    // SAFETY: null, or a table that lives as long as the process.
    match unsafe { table.as_ref() } {
        Some(table) if table.size_bytes as usize >= size_of::<DirtyBits>() => Ok(table),
        Some(_) => Err(unavailable(
            ErrorKind::Internal,
            "asking the guest-mode runtime for its functions gave too few of them",
            "use the runtime that was built together with this library",
        )),
        None => {
            let why = if why.is_null() {
                "no reason is known"
            } else {
                // SAFETY: a C string of static lifetime by the interface's promise.
                unsafe { CStr::from_ptr::<'static>(why) }.to_str().unwrap_or("no reason is known")
            };
            Err(unavailable(
                ErrorKind::Unsupported,
                "asking the guest-mode runtime for its dirty bits",
                why,
            ))
        }
    }
}

impl Opened for Guest {
    fn source(&self) -> Source {
        self.source
    }

    fn kernel_writes(&self) -> KernelWrites {
        KernelWrites::Tracked
    }

    fn stats(&self) -> Stats {
        let faults = self.faults().map(|faults| faults.saturating_sub(self.faults_before));
        Stats { faults, ..self.counters.snapshot(false) }
    }

    unsafe fn track(
        self: Arc<Self>,
        range: PageRange,
    ) -> Result<Box<dyn WriteTracker>, RegionError> {
        let region = GuestRegion { shared: self, range };
        region.mark(range)?;
        Ok(Box::new(region))
    }
}

/// One range. It has no state: that is in the page tables.
struct GuestRegion {
    shared: Arc<Guest>,
    range: PageRange,
}

impl GuestRegion {
    fn mark(&self, range: PageRange) -> Result<(), RegionError> {
        done(self.shared.mark(range), "marking pages dirty", range)
    }
}

fn done(code: i32, step: &'static str, range: PageRange) -> Result<(), RegionError> {
    let errno = match code {
        dune_abi::OK => return Ok(()),
        dune_abi::NO_MEMORY => libc::ENOMEM,
        _ => libc::EINVAL,
    };
    let remedy = "the range must lie below 2^47; its pages are dirty";
    Err(RegionError::System { step, range, errno: Errno(errno), remedy })
}

impl Drop for GuestRegion {
    fn drop(&mut self) {
        if matches!(self.shared.means, Means::Protection(_)) {
            // So that nobody takes a fault for nothing.
            let _ = self.mark(self.range);
        }
    }
}

impl WriteTracker for GuestRegion {
    fn source(&self) -> Source {
        self.shared.source
    }

    fn range(&self) -> PageRange {
        self.range
    }

    fn arm(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range, range)?;
        done(self.shared.clear(range), "clearing dirty bits", range)?;
        Counters::add(&self.shared.counters.pages_armed, range.pages());
        Ok(())
    }

    fn arm_among(&self, range: PageRange, among: &[u64]) -> Result<(), RegionError> {
        check_bitmap(self.range, range, among)?;
        done(self.shared.clear_among(range, among), "clearing dirty bits", range)?;
        let pages = bitmap::count(among, range.pages());
        Counters::add(&self.shared.counters.pages_armed, pages);
        Ok(())
    }

    fn disarm(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range, range)?;
        self.mark(range)?;
        Counters::add(&self.shared.counters.pages_disarmed, range.pages());
        Ok(())
    }

    fn peek(&self, range: PageRange, bits: &mut [u64]) -> Result<(), RegionError> {
        check_bitmap(self.range, range, bits)?;
        let _timer = ScanTimer::start(&self.shared.counters);
        done(self.shared.peek(range, bits), "reading dirty bits", range)
    }

    fn collect_and_reset(&self, range: PageRange, bits: &mut [u64]) -> Result<usize, RegionError> {
        /// Pages at a time, their bits on the stack: `bits` may hold some from before, which are not to
        /// be counted.
        const CHUNK: usize = 64 * 1024;
        check_bitmap(self.range, range, bits)?;
        let _timer = ScanTimer::start(&self.shared.counters);
        let collect = |part: PageRange, bits: &mut [u64]| {
            done(self.shared.collect(part, bits), "collecting dirty bits", part)
        };
        let words = bitmap::words_for(range.pages());
        let mut dirty = 0;
        if bits[..words].iter().all(|word| *word == 0) {
            collect(range, bits).inspect_err(|_| bitmap::set_run(bits, 0, range.pages()))?;
            dirty = bitmap::count(bits, range.pages());
        } else {
            for first in (0..range.pages()).step_by(CHUNK) {
                let part = range.slice(first, CHUNK.min(range.pages() - first));
                let mut news = [0u64; CHUNK / 64];
                collect(part, &mut news)
                    .inspect_err(|_| bitmap::set_run(bits, 0, range.pages()))?;
                dirty += bitmap::or_into(bits, first, &news, part.pages());
            }
        }
        self.shared.counters.collected(dirty);
        Ok(dirty)
    }

    fn remapped(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range, range)?;
        self.mark(range)
    }

    unsafe fn resize(&mut self, bounds: PageRange) -> Result<(), RegionError> {
        // New pages are unarmed, and those that are left out are given back.
        let old = self.range;
        let kept = old.intersection(&bounds);
        for all in [old, bounds] {
            if kept.is_empty() {
                self.mark(all)?;
            } else {
                self.mark(PageRange::between(all.start(), kept.start()))?;
                self.mark(PageRange::between(kept.end(), all.end()))?;
            }
        }
        self.range = bounds;
        Ok(())
    }
}
