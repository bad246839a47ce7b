//! The C interface of [`barchan`]: `barchan.h`, generated from this crate, and the library behind
//! it.
//!
//! A thin crate: it checks what C cannot promise (null, alignment, overflow, overlaps), turns
//! errors into a status and a text of the calling thread, and catches panics, which must not
//! unwind into C. It tracks nothing itself. The types are named as in C.
#![allow(non_camel_case_types)]

mod last_error;
mod types;

use core::ffi::{c_char, c_int, c_void};
use core::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};

use barchan::{KernelWrites, PageRange, Region, RegionError, Tracker};

pub use last_error::barchan_last_error;
use last_error::fail;
use types::number;
pub use types::{barchan_kernel_writes, barchan_source, barchan_stats, barchan_status};

/// An opened source of dirty bits; thread-safe. One for a process is the intention.
pub struct barchan_tracker {
    tracker: Tracker,
}

/// The tracking of one range of memory.
pub struct barchan_region {
    region: Region,
}

/// Runs `f`, with a panic turned into `BARCHAN_ERR_INTERNAL`.
fn guarded(f: impl FnOnce() -> barchan_status) -> barchan_status {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| {
        fail(barchan_status::BARCHAN_ERR_INTERNAL, "a bug in libbarchan: it panicked")
    })
}

fn null(what: &str) -> barchan_status {
    fail(barchan_status::BARCHAN_ERR_INVALID, format_args!("{what} is NULL"))
}

fn done(result: Result<(), RegionError>) -> barchan_status {
    match result {
        Ok(()) => barchan_status::BARCHAN_OK,
        Err(why) => fail(why.kind().into(), why),
    }
}

/// The version of the library: major << 16 | minor << 8 | patch.
#[unsafe(no_mangle)]
pub extern "C" fn barchan_version() -> u32 {
    const fn number(text: &str) -> u32 {
        let (mut value, mut i) = (0, 0);
        while i < text.len() {
            value = value * 10 + (text.as_bytes()[i] - b'0') as u32;
            i += 1;
        }
        value
    }
    const VERSION: u32 = number(env!("CARGO_PKG_VERSION_MAJOR")) << 16
        | number(env!("CARGO_PKG_VERSION_MINOR")) << 8
        | number(env!("CARGO_PKG_VERSION_PATCH"));
    VERSION
}

/// Opens a tracker into *out.
///
/// BARCHAN_SOURCE_AUTO: what BARCHAN_TRACKER in the environment names (guest-pte, pagemap-scan,
/// userfaultfd, soft-dirty, guest-pml, guest-tlb, guest-direct, mprotect, all-dirty, auto), or else the best that works when
/// tried. A source that is forced and not there is an error, whose text says why and what would give it.
///
/// To try soft-dirty clears the soft-dirty bits of the whole process (unless regions are tracked by it already); mprotect's
/// handler of SIGSEGV stays; userfaultfd has a thread of its own, so the process has several. A seccomp
/// policy that kills on a call that is tried (userfaultfd, for one) kills the process; one that refuses it does not.
///
/// # Safety
/// `out` is NULL or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn barchan_tracker_open(
    source: MaybeUninit<barchan_source>,
    out: *mut *mut barchan_tracker,
) -> barchan_status {
    guarded(|| {
        if out.is_null() {
            return null("out");
        }
        // SAFETY: not null, and room for a pointer by the caller's promise.
        unsafe { out.write(core::ptr::null_mut()) };
        let Some(source) = barchan_source::from_number(number(source)) else {
            return fail(
                barchan_status::BARCHAN_ERR_INVALID,
                format_args!("{} is no barchan_source", number(source)),
            );
        };
        let mut builder = Tracker::builder();
        if let Some(source) = source.forced() {
            builder = builder.source(source);
        }
        match builder.open() {
            Ok(tracker) => {
                let handle = Box::into_raw(Box::new(barchan_tracker { tracker }));
                // SAFETY: as above.
                unsafe { out.write(handle) };
                barchan_status::BARCHAN_OK
            }
            Err(why) => fail(why.kind().into(), why),
        }
    })
}

/// Closes a tracker; NULL does nothing. While it has regions it stays open, and
/// barchan_last_error() says so.
///
/// # Safety
/// `t` is NULL or an open tracker, which is not used again (unless it had regions).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn barchan_tracker_close(t: *mut barchan_tracker) {
    guarded(|| {
        // SAFETY: an open tracker, or NULL, by the caller's promise.
        let Some(tracker) = (unsafe { t.as_ref() }) else {
            return barchan_status::BARCHAN_OK;
        };
        let regions = tracker.tracker.regions();
        if regions != 0 {
            return fail(
                barchan_status::BARCHAN_ERR_INVALID,
                format_args!("the tracker still has {regions} regions; untrack them first"),
            );
        }
        // SAFETY: it came from Box::into_raw in barchan_tracker_open, and is closed once.
        drop(unsafe { Box::from_raw(t) });
        barchan_status::BARCHAN_OK
    });
}

/// The source that an open tracker uses; BARCHAN_SOURCE_AUTO for NULL.
///
/// # Safety
/// `t` is NULL or an open tracker.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn barchan_tracker_source(t: *const barchan_tracker) -> barchan_source {
    // SAFETY: an open tracker, or NULL, by the caller's promise.
    match unsafe { t.as_ref() } {
        Some(tracker) => tracker.tracker.source().into(),
        None => barchan_source::BARCHAN_SOURCE_AUTO,
    }
}

/// What becomes of system calls that write to armed pages; of a forced or chosen source this is known only now.
/// BARCHAN_KERNEL_WRITES_EFAULT for NULL.
///
/// # Safety
/// `t` is NULL or an open tracker.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn barchan_tracker_kernel_writes(
    t: *const barchan_tracker,
) -> barchan_kernel_writes {
    // SAFETY: an open tracker, or NULL, by the caller's promise.
    match unsafe { t.as_ref() }.map(|tracker| tracker.tracker.kernel_writes()) {
        Some(KernelWrites::Tracked) => barchan_kernel_writes::BARCHAN_KERNEL_WRITES_TRACKED,
        Some(KernelWrites::Efault) | None => barchan_kernel_writes::BARCHAN_KERNEL_WRITES_EFAULT,
    }
}

/// 1 if the source sees by itself that the contents of pages were dropped or replaced (madvise(MADV_DONTNEED),
/// a new mapping); 0 if it must be told by barchan_region_remapped before the next write, as soft-dirty and
/// mprotect must, or is no source.
#[unsafe(no_mangle)]
pub extern "C" fn barchan_source_sees_discards(s: MaybeUninit<barchan_source>) -> c_int {
    let source = barchan_source::from_number(number(s)).and_then(barchan_source::forced);
    source.map_or(0, |source| source.sees_discards().into())
}

/// The name of a source, e.g. "pagemap-scan"; a static string, "unknown" for no source.
#[unsafe(no_mangle)]
pub extern "C" fn barchan_source_name(s: MaybeUninit<barchan_source>) -> *const c_char {
    barchan_source::from_number(number(s)).map_or(c"unknown", barchan_source::c_name).as_ptr()
}

/// Begins to track `len` bytes at `start`: nothing is armed, every page is dirty.
///
/// The caller keeps the memory mapped, private, anonymous, readable and writable while tracked. No stack of a
/// thread lies in it that may write with signals blocked or without an alternate stack, or that calls the
/// functions of a region, which block signals: a fault there could not be handled. Nothing that this library
/// allocates by malloc lies in it (where malloc is redirected to the collector itself): a fault is handled with
/// such data. A forked child has the region, with every page unarmed and dirty, and may go on with it.
///
/// Under mprotect no thread stores to armed pages with SIGSEGV blocked (that kills the process), the program does
/// not replace the handler of SIGSEGV, and pages that were armed once have lost PROT_EXEC.
///
/// BARCHAN_ERR_INVALID if the memory overlaps another region of the tracker, or, under mprotect and in guest
/// mode, of any tracker of the process.
///
/// # Safety
/// `t` is NULL or an open tracker; `out` is NULL or points to room for a pointer; the memory is as
/// said.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn barchan_region_track(
    t: *mut barchan_tracker,
    start: *mut c_void,
    len: usize,
    out: *mut *mut barchan_region,
) -> barchan_status {
    guarded(|| {
        if out.is_null() {
            return null("out");
        }
        // SAFETY: not null, and room for a pointer by the caller's promise.
        unsafe { out.write(core::ptr::null_mut()) };
        // SAFETY: an open tracker, or NULL, by the caller's promise.
        let Some(tracker) = (unsafe { t.as_ref() }) else { return null("the tracker") };
        let tracked = PageRange::new(start as usize, len).map_err(RegionError::from).and_then(
            // SAFETY: the caller's promise about the memory.
            |range| unsafe { tracker.tracker.track(range) },
        );
        match tracked {
            Ok(region) => {
                let handle = Box::into_raw(Box::new(barchan_region { region }));
                // SAFETY: as above.
                unsafe { out.write(handle) };
                barchan_status::BARCHAN_OK
            }
            Err(why) => fail(why.kind().into(), why),
        }
    })
}

/// Ends the tracking and leaves every page writable; NULL does nothing. Pages that were unmapped by
/// then, with nothing else in their place, do no harm.
///
/// Under mprotect, in a process that is out of mappings (vm.max_map_count), some pages may stay read-only; stores to
/// them go on working, but faults of what is mapped there later are taken for theirs, until a region is tracked,
/// resized or untracked when there is room again.
///
/// # Safety
/// `r` is NULL or a tracked region, which is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn barchan_region_untrack(r: *mut barchan_region) {
    guarded(|| {
        if !r.is_null() {
            // SAFETY: it came from Box::into_raw in barchan_region_track, and is untracked once.
            drop(unsafe { Box::from_raw(r) });
        }
        barchan_status::BARCHAN_OK
    });
}

/// Changes the bounds (grows or shrinks at either end): pages in both keep their state, new pages
/// are unarmed and dirty, pages left out are writable.
///
/// # Safety
/// `r` is NULL or a tracked region that no other thread uses meanwhile; the memory is as for
/// barchan_region_track.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn barchan_region_resize(
    r: *mut barchan_region,
    start: *mut c_void,
    len: usize,
) -> barchan_status {
    guarded(|| {
        // SAFETY: a tracked region used by nobody else, or NULL, by the caller's promise.
        let Some(region) = (unsafe { r.as_mut() }) else { return null("the region") };
        done(PageRange::new(start as usize, len).map_err(RegionError::from).and_then(
            // SAFETY: the caller's promise about the memory.
            |bounds| unsafe { region.region.resize(bounds) },
        ))
    })
}

/// Runs `f` on a region and a range of it.
///
/// # Safety
/// `r` is NULL or a tracked region.
unsafe fn on_range(
    r: *mut barchan_region,
    start: *mut c_void,
    len: usize,
    f: impl FnOnce(&Region, PageRange) -> Result<(), RegionError>,
) -> barchan_status {
    guarded(|| {
        // SAFETY: a tracked region, or NULL, by the caller's promise.
        let Some(region) = (unsafe { r.as_ref() }) else { return null("the region") };
        done(
            PageRange::new(start as usize, len)
                .map_err(RegionError::from)
                .and_then(|range| f(&region.region, range)),
        )
    })
}

/// As [`on_range`], with the number of words of a bitmap that are to be looked at; it is neither null nor unaligned.
///
/// # Safety
/// As [`on_range`].
unsafe fn on_words(
    r: *mut barchan_region,
    start: *mut c_void,
    len: usize,
    (bitmap, words): (*const u64, usize),
    f: impl FnOnce(&Region, PageRange, usize) -> Result<(), RegionError>,
) -> barchan_status {
    if bitmap.is_null() {
        return null("the bitmap");
    }
    if !bitmap.is_aligned() || words > isize::MAX as usize / size_of::<u64>() {
        return fail(
            barchan_status::BARCHAN_ERR_INVALID,
            format_args!("the bitmap {bitmap:p} of {words} words is not an array of uint64_t"),
        );
    }
    // SAFETY: the caller's promise about the region.
    unsafe {
        on_range(r, start, len, |region, range| {
            // No more words than the range needs are looked at, whatever the caller claims.
            f(region, range, words.min(barchan::bitmap::words_for(range.pages())))
        })
    }
}

/// As [`on_range`], with a bitmap to be filled.
///
/// # Safety
/// As [`on_range`]; `bitmap` is NULL or points to `words` words that nobody else uses meanwhile.
unsafe fn on_bitmap(
    r: *mut barchan_region,
    start: *mut c_void,
    len: usize,
    (bitmap, words): (*mut u64, usize),
    f: impl FnOnce(&Region, PageRange, &mut [u64]) -> Result<(), RegionError>,
) -> barchan_status {
    // SAFETY: 1. the caller's promise about the region. 2. The bitmap is not null and aligned, with as many words
    // that nobody else uses, by the caller's promise.
    unsafe {
        on_words(r, start, len, (bitmap, words), |region, range, words| {
            f(region, range, core::slice::from_raw_parts_mut(bitmap, words))
        })
    }
}

/// Tracks a part of the region anew whose mapping was replaced (mmap with MAP_FIXED over it,
/// mremap), or whose contents were dropped (madvise(MADV_DONTNEED)) under a source that does not see it
/// (barchan_source_sees_discards): its pages become unarmed and dirty. After an error take them as dirty, until a
/// later call succeeds.
///
/// # Safety
/// `r` is NULL or a tracked region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn barchan_region_remapped(
    r: *mut barchan_region,
    start: *mut c_void,
    len: usize,
) -> barchan_status {
    // SAFETY: the caller's promise.
    unsafe { on_range(r, start, len, Region::remapped) }
}

/// Makes pages clean: from the return on, writes to them are reported.
///
/// Writes that race with the call may go unreported: stop or otherwise order the writers, or use
/// barchan_region_collect_and_reset, which loses nothing.
///
/// # Safety
/// `r` is NULL or a tracked region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn barchan_region_arm(
    r: *mut barchan_region,
    start: *mut c_void,
    len: usize,
) -> barchan_status {
    // SAFETY: the caller's promise.
    unsafe { on_range(r, start, len, Region::arm) }
}

/// As barchan_region_arm, for those pages only whose bit in the bitmap is set (bit i, least significant first,
/// is page i of the range): all of them at the price of one flush, where arming costs one.
///
/// # Safety
/// `r` is NULL or a tracked region; `bitmap` is NULL or `bitmap_words` words that others may read meanwhile, and
/// nobody writes to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn barchan_region_arm_among(
    r: *mut barchan_region,
    start: *mut c_void,
    len: usize,
    bitmap: *const u64,
    bitmap_words: usize,
) -> barchan_status {
    // SAFETY: 1. the caller's promises. 2. The bitmap is not null and aligned, and only read.
    unsafe {
        on_words(r, start, len, (bitmap, bitmap_words), |region, range, words| {
            region.arm_among(range, core::slice::from_raw_parts(bitmap, words))
        })
    }
}

/// Lifts the protection: pages are dirty until armed again, and writing to them costs nothing.
///
/// # Safety
/// `r` is NULL or a tracked region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn barchan_region_disarm(
    r: *mut barchan_region,
    start: *mut c_void,
    len: usize,
) -> barchan_status {
    // SAFETY: the caller's promise.
    unsafe { on_range(r, start, len, Region::disarm) }
}

/// ORs into the bitmap the pages written since armed, and all unarmed pages; changes no state.
///
/// # Safety
/// `r` is NULL or a tracked region; `bitmap` is NULL or `bitmap_words` words used by nobody else.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn barchan_region_peek(
    r: *mut barchan_region,
    start: *mut c_void,
    len: usize,
    bitmap: *mut u64,
    bitmap_words: usize,
) -> barchan_status {
    // SAFETY: the caller's promises.
    unsafe { on_bitmap(r, start, len, (bitmap, bitmap_words), Region::peek) }
}

/// ORs the dirty pages into the bitmap and arms exactly them (including those that were unarmed).
/// No write is lost between the two.
///
/// With BARCHAN_SOURCE_SOFT_DIRTY, which cannot do both at once, it only reports; see
/// barchan_region_collect_and_reset_stopped. After an error other than BARCHAN_ERR_INVALID the
/// bitmap holds every page that may be dirty.
///
/// # Safety
/// As barchan_region_peek.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn barchan_region_collect_and_reset(
    r: *mut barchan_region,
    start: *mut c_void,
    len: usize,
    bitmap: *mut u64,
    bitmap_words: usize,
) -> barchan_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_bitmap(r, start, len, (bitmap, bitmap_words), |region, range, bits| {
            region.collect_and_reset(range, bits).map(drop)
        })
    }
}

/// As barchan_region_collect_and_reset, for a caller who vouches that no thread, system call or
/// other process writes meanwhile to any region of any tracker of this process with the same source, and
/// that the bitmap lies in none (a stopped world).
///
/// # Safety
/// As barchan_region_peek, and the promise above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn barchan_region_collect_and_reset_stopped(
    r: *mut barchan_region,
    start: *mut c_void,
    len: usize,
    bitmap: *mut u64,
    bitmap_words: usize,
) -> barchan_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_bitmap(r, start, len, (bitmap, bitmap_words), |region, range, bits| {
            // SAFETY: the caller's promise that nobody writes.
            region.collect_and_reset_stopped(range, bits).map(drop)
        })
    }
}

/// The counters of a tracker. Set out->size_bytes to sizeof(barchan_stats) before; it is set to
/// how many bytes were filled.
///
/// # Safety
/// `t` is NULL or an open tracker; `out` is NULL or points to `out->size_bytes` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn barchan_tracker_stats(
    t: *const barchan_tracker,
    out: *mut barchan_stats,
) -> barchan_status {
    guarded(|| {
        // SAFETY: an open tracker, or NULL, by the caller's promise.
        let Some(tracker) = (unsafe { t.as_ref() }) else { return null("the tracker") };
        if out.is_null() || !out.is_aligned() {
            return null("out (or unaligned: it)");
        }
        // SAFETY: not null, aligned, and its first field is initialised by the caller's promise.
        match unsafe { barchan_stats::fill(out, tracker.tracker.stats()) } {
            Ok(()) => barchan_status::BARCHAN_OK,
            Err(given) => fail(
                barchan_status::BARCHAN_ERR_INVALID,
                format_args!("out->size_bytes is {given}; set it to sizeof(barchan_stats)"),
            ),
        }
    })
}
