//! The dirty bits for other libraries of the process: the table of functions that `dune_abi` describes.
//!
//! The same as [`crate::inside`], with C's types. A library that uses it cannot prove that each calling
//! thread is in guest mode without a system call; so the table is only given out where all threads of the
//! process are ([`table`]), and those that they make are too.

use core::ffi::CStr;
use core::ops::Range;

use dune_abi::{
    BUSY, DirtyBits, FLUSH_ALL, FLUSH_PAGES, INVALID, Log, NO_LOG, NO_MEMORY, OK, Protection,
    VERSION,
};

use crate::calls::written;
use crate::inside::{self, Inside, RangeError};
use crate::page_log;
use crate::process::enter;
use crate::protection::{self, Flushes};

static TABLE: DirtyBits = DirtyBits {
    size_bytes: size_of::<DirtyBits>() as u32,
    version: VERSION,
    retain,
    release,
    populate,
    mark,
    clear,
    clear_among,
    peek,
    collect,
    protection: Protection {
        start: protection_start,
        mark: protection_mark,
        clear: protection_clear,
        clear_among: protection_clear_among,
        peek: protection_peek,
        collect: protection_collect,
        faults: protection_faults,
    },
    log: Log {
        start: log_start,
        clear: log_clear,
        clear_among: log_clear_among,
        peek: log_peek,
        collect: log_collect,
    },
};

/// The table.
///
/// # Errors
/// A sentence that says why there is none.
pub fn table(version: u32) -> Result<&'static DirtyBits, &'static CStr> {
    if version != VERSION {
        Err(c"the guest-mode runtime speaks another version of the interface: use the one that was built \
             together with this library")
    } else if !enter::entered() {
        Err(c"the process did not enter guest mode: `barchan doctor` says why")
    } else if !enter::complete() {
        Err(c"a thread of the process is outside guest mode, where its writes set no dirty bits: it was \
             made before the process entered")
    } else {
        Ok(&TABLE)
    }
}

fn inside() -> Inside {
    // SAFETY: whoever has the table got it where all threads were in guest mode, and such threads make
    // no others.
    unsafe { Inside::assume() }
}

fn code(error: RangeError) -> i32 {
    match error {
        RangeError::Range | RangeError::Bitmap => INVALID,
        RangeError::Memory => NO_MEMORY,
    }
}

/// Whether there are pages in the range, and a bitmap for them.
fn fits(range: &Range<usize>, bits: *const u64, words: usize) -> bool {
    inside::check(range)
        .is_ok_and(|pages| !bits.is_null() && bits.is_aligned() && words >= pages.div_ceil(64))
}

/// Does `act` with a bitmap to read, if it fits the range.
///
/// # Safety
/// `words` words at `bits` are there, and nobody writes to them.
unsafe fn reading(
    range: Range<usize>,
    bits: *const u64,
    words: usize,
    act: impl FnOnce(&Range<usize>, &[u64]),
) -> i32 {
    if !fits(&range, bits, words) {
        return INVALID;
    }
    // SAFETY: not null, aligned, and by the caller's promise long enough and constant.
    act(&range, unsafe { core::slice::from_raw_parts(bits, words) });
    OK
}

/// Does `act` with a bitmap to write to, if it fits the range.
///
/// # Safety
/// `words` words at `bits` are there, and nobody else uses them.
unsafe fn writing(
    range: Range<usize>,
    bits: *mut u64,
    words: usize,
    act: impl FnOnce(&Range<usize>, &mut [u64]),
) -> i32 {
    if !fits(&range, bits, words) {
        return INVALID;
    }
    // SAFETY: not null, aligned, and by the caller's promise long enough and ours.
    act(&range, unsafe { core::slice::from_raw_parts_mut(bits, words) });
    OK
}

unsafe extern "C" fn retain() {
    written::retain();
}

unsafe extern "C" fn release() {
    written::release();
}

unsafe extern "C" fn populate(start: usize, end: usize) -> i32 {
    inside().populate(start..end).map_or_else(code, |()| OK)
}

unsafe extern "C" fn mark(start: usize, end: usize) -> i32 {
    inside().mark(start..end).map_or_else(code, |()| OK)
}

unsafe extern "C" fn clear(start: usize, end: usize) -> i32 {
    let range = start..end;
    if inside::check(&range).is_err() {
        return INVALID;
    }
    inside().clear_noted(&range, None).flush_everywhere();
    OK
}

unsafe extern "C" fn clear_among(start: usize, end: usize, among: *const u64, words: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        reading(start..end, among, words, |range, among| {
            inside().clear_noted(range, Some(among)).flush_everywhere();
        })
    }
}

unsafe extern "C" fn peek(start: usize, end: usize, bits: *mut u64, words: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { writing(start..end, bits, words, |range, bits| inside().peek_noted(range, bits)) }
}

unsafe extern "C" fn collect(start: usize, end: usize, bits: *mut u64, words: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        writing(start..end, bits, words, |range, bits| {
            inside().collect_noted(range, bits).flush_everywhere();
        })
    }
}

fn flushes(number: u32) -> Option<Flushes> {
    match number {
        FLUSH_ALL => Some(Flushes::All),
        FLUSH_PAGES => Some(Flushes::Pages),
        _ => None,
    }
}

unsafe extern "C" fn protection_start() -> i32 {
    if protection::start(inside()) { OK } else { BUSY }
}

unsafe extern "C" fn protection_mark(start: usize, end: usize) -> i32 {
    let range = start..end;
    if inside::check(&range).is_err() {
        return INVALID;
    }
    protection::mark(&range);
    OK
}

unsafe extern "C" fn protection_clear(number: u32, start: usize, end: usize) -> i32 {
    let range = start..end;
    let Some(flushes) = flushes(number).filter(|_| inside::check(&range).is_ok()) else {
        return INVALID;
    };
    protection::clear(inside(), &range, None, flushes);
    OK
}

unsafe extern "C" fn protection_clear_among(
    number: u32,
    start: usize,
    end: usize,
    among: *const u64,
    words: usize,
) -> i32 {
    let Some(flushes) = flushes(number) else { return INVALID };
    // SAFETY: the caller's promise.
    unsafe {
        reading(start..end, among, words, |range, among| {
            protection::clear(inside(), range, Some(among), flushes);
        })
    }
}

unsafe extern "C" fn protection_peek(
    start: usize,
    end: usize,
    bits: *mut u64,
    words: usize,
) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        writing(start..end, bits, words, |range, bits| protection::peek(inside(), range, bits))
    }
}

unsafe extern "C" fn protection_collect(
    number: u32,
    start: usize,
    end: usize,
    bits: *mut u64,
    words: usize,
) -> i32 {
    let Some(flushes) = flushes(number) else { return INVALID };
    // SAFETY: the caller's promise.
    unsafe {
        writing(start..end, bits, words, |range, bits| {
            protection::collect(inside(), range, bits, flushes);
        })
    }
}

unsafe extern "C" fn protection_faults(number: u32) -> u64 {
    flushes(number).map_or(0, protection::faults)
}

unsafe extern "C" fn log_start() -> i32 {
    if page_log::is_kept() { OK } else { NO_LOG }
}

unsafe extern "C" fn log_clear(start: usize, end: usize) -> i32 {
    let range = start..end;
    if inside::check(&range).is_err() {
        return INVALID;
    }
    page_log::clear(&range, None);
    OK
}

unsafe extern "C" fn log_clear_among(
    start: usize,
    end: usize,
    among: *const u64,
    words: usize,
) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { reading(start..end, among, words, |range, among| page_log::clear(range, Some(among))) }
}

unsafe extern "C" fn log_peek(start: usize, end: usize, bits: *mut u64, words: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { writing(start..end, bits, words, |range, bits| page_log::peek(inside(), range, bits)) }
}

unsafe extern "C" fn log_collect(start: usize, end: usize, bits: *mut u64, words: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        writing(start..end, bits, words, |range, bits| page_log::collect(inside(), range, bits))
    }
}
