//! The dirty bits of the guest's page tables, in a process that runs in guest mode: the processor sets
//! them itself, and nobody takes a fault.
//!
//! The tables are the guest-mode runtime's, which lives in another shared library; it is found by
//! `dlsym` (`dune_abi`). All state is in the tables: a page is clean if its entry is present and has no D
//! bit, and dirty in every other case. So there is nothing to lock here, and nothing to lose:
//!
//! - arming clears D bits and flushes the TLBs of all processors of the process before it returns;
//! - collecting takes each D bit by one atomic operation, and flushes before it returns, so a write
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

/// The opened source: the runtime's functions.
pub(crate) struct GuestPte {
    runtime: &'static DirtyBits,
    counters: Counters,
}

impl GuestPte {
    pub(crate) fn open() -> Result<Self, Unavailable> {
        let runtime = runtime()?;
        // SAFETY: it takes no arguments.
        unsafe { (runtime.retain)() };
        Ok(Self { runtime, counters: Counters::new() })
    }
}

impl Drop for GuestPte {
    fn drop(&mut self) {
        // SAFETY: once for the call in `open`.
        unsafe { (self.runtime.release)() };
    }
}

/// The table of the runtime that this process runs under.
fn runtime() -> Result<&'static DirtyBits, Unavailable> {
    let unavailable = |kind, step, remedy| Unavailable {
        source: Source::GuestPte,
        kind,
        step,
        errno: None,
        remedy,
    };
    // SAFETY: a name that ends in 0; it only looks.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, dune_abi::SYMBOL.as_ptr()) };
    if found.is_null() {
        return Err(unavailable(
            ErrorKind::Unsupported,
            "looking for the guest-mode runtime in this process",
            "start the program with `barchan run --dune`",
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

impl Opened for GuestPte {
    fn source(&self) -> Source {
        Source::GuestPte
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
        let region = GuestPteRegion { shared: self, range };
        region.mark(range)?;
        Ok(Box::new(region))
    }
}

/// One range. It has no state: that is in the page tables.
struct GuestPteRegion {
    shared: Arc<GuestPte>,
    range: PageRange,
}

impl GuestPteRegion {
    fn mark(&self, range: PageRange) -> Result<(), RegionError> {
        // SAFETY: any range may be given; it changes bits of page-table entries only.
        let code = unsafe { (self.shared.runtime.mark)(range.start(), range.end()) };
        done(code, "marking pages dirty", range)
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

impl WriteTracker for GuestPteRegion {
    fn source(&self) -> Source {
        Source::GuestPte
    }

    fn range(&self) -> PageRange {
        self.range
    }

    fn arm(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range, range)?;
        // SAFETY: as in `mark`.
        let code = unsafe { (self.shared.runtime.clear)(range.start(), range.end()) };
        done(code, "clearing dirty bits", range)?;
        Counters::add(&self.shared.counters.pages_armed, range.pages());
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
        // SAFETY: the bitmap is ours, and as long as is said.
        let code = unsafe {
            (self.shared.runtime.peek)(range.start(), range.end(), bits.as_mut_ptr(), bits.len())
        };
        done(code, "reading dirty bits", range)
    }

    fn collect_and_reset(&self, range: PageRange, bits: &mut [u64]) -> Result<usize, RegionError> {
        /// Pages at a time, their bits on the stack: `bits` may hold some from before, which are not to
        /// be counted.
        const CHUNK: usize = 64 * 1024;
        check_bitmap(self.range, range, bits)?;
        let _timer = ScanTimer::start(&self.shared.counters);
        let collect = |part: PageRange, bits: &mut [u64]| {
            // SAFETY: as in `peek`.
            let code = unsafe {
                let (start, end) = (part.start(), part.end());
                (self.shared.runtime.collect)(start, end, bits.as_mut_ptr(), bits.len())
            };
            done(code, "collecting dirty bits", part)
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
        // New pages are unarmed; those that are left out need nothing.
        let kept = self.range.intersection(&bounds);
        if kept.is_empty() {
            self.mark(bounds)?;
        } else {
            self.mark(PageRange::between(bounds.start(), kept.start()))?;
            self.mark(PageRange::between(kept.end(), bounds.end()))?;
        }
        self.range = bounds;
        Ok(())
    }
}
