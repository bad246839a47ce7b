//! What the guest-mode runtime offers to other libraries of the same process, across library borders.
//!
//! The runtime lives in one shared library (`libbarchan_dune.so`), a tracker of writes in others, each
//! with statics of its own. So nothing is linked: the runtime exports the one symbol [`SYMBOL`], which
//! is looked up with `dlsym`, and answers with a table of functions. If nobody exports it, the process is
//! not in guest mode. This crate is the only definition of both; it has no code that does anything.
//!
//! # Versions
//! The caller says which [`VERSION`] it was built for, and gets that table or a reason. A field is never
//! changed or removed within a version; new ones go to the end, and [`DirtyBits::size_bytes`] tells
//! whether they are there.
#![no_std]

use core::ffi::{CStr, c_char};

/// The name of the function of type [`Lookup`].
pub const SYMBOL: &CStr = c"barchan_dune_dirty_bits";

/// The version of [`DirtyBits`] that is described here.
pub const VERSION: u32 = 1;

/// Asks for the table of version `version`.
///
/// `NULL`: it is not to be had, and `*why` is a sentence of static lifetime that says why. `why` may be
/// `NULL`. The table lives, and does not change, as long as the process; a forked child keeps it.
pub type Lookup = unsafe extern "C" fn(version: u32, why: *mut *const c_char) -> *const DirtyBits;

/// It worked.
pub const OK: i32 = 0;
/// The range is not one of whole pages below 2⁴⁷, or the bitmap is too short.
pub const INVALID: i32 = -1;
/// There is no memory for page tables.
pub const NO_MEMORY: i32 = -2;
/// The program handles page faults itself.
pub const BUSY: i32 = -3;
/// The processor keeps no log of written pages for this process.
pub const NO_LOG: i32 = -4;

/// The guest's dirty bits. All functions may be called by any thread at any time, also concurrently; they
/// take no lock that a stopped thread could hold, and do not allocate. `start` and `end` are addresses of
/// whole pages; a bitmap's bit *i*, least significant first, is page *i* of the range.
///
/// A page that has no page-table entry, or a new one, is dirty. What the kernel writes for the program
/// counts as written.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DirtyBits {
    /// Bytes of the table that this runtime fills.
    pub size_bytes: u32,
    /// [`VERSION`].
    pub version: u32,

    /// Counts one more user: from now on the runtime notes what the kernel writes. What was written
    /// before is dirty wherever [`mark`](Self::mark) is called afterwards, and unknown elsewhere.
    pub retain: unsafe extern "C" fn(),
    /// Counts one user less.
    pub release: unsafe extern "C" fn(),

    /// Makes entries for all that is mapped, so that no first access has to; [`NO_MEMORY`] if it cannot.
    /// Takes the runtime's own lock, which no stopped thread holds, and a system call.
    pub populate: unsafe extern "C" fn(start: usize, end: usize) -> i32,
    /// Makes the pages dirty until they are collected or cleared.
    pub mark: unsafe extern "C" fn(start: usize, end: usize) -> i32,
    /// Makes the pages clean; when it returns, no processor writes without setting the bit again. Pages
    /// without an entry stay dirty.
    pub clear: unsafe extern "C" fn(start: usize, end: usize) -> i32,
    /// As `clear`, for those pages only whose bit is set in `among`, with one flush for all of them.
    pub clear_among:
        unsafe extern "C" fn(start: usize, end: usize, among: *const u64, words: usize) -> i32,
    /// Sets the bits of dirty pages; changes nothing.
    pub peek: unsafe extern "C" fn(start: usize, end: usize, bits: *mut u64, words: usize) -> i32,
    /// Sets the bits of dirty pages and makes them clean, without losing a write between the two. When it
    /// returns, no processor writes without setting the bit again.
    pub collect:
        unsafe extern "C" fn(start: usize, end: usize, bits: *mut u64, words: usize) -> i32,

    /// The same by write protection.
    pub protection: Protection,

    /// The same by the processor's log of written pages.
    pub log: Log,
}

/// Tracking by write protection in the guest's page tables, as the ports of Boehm's collector to Dune did it
/// that did not use dirty bits. The functions are as those of [`DirtyBits`] of the same name; a page is clean if
/// it is there and neither writable nor dirty. A write to a clean page is a fault that the runtime handles at
/// ring 3: it gives the right back.
///
/// `flushes` is [`FLUSH_ALL`] or [`FLUSH_PAGES`], anything else is [`INVALID`]. A range should be tracked by one
/// means at a time.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Protection {
    /// Begins to handle faults; [`BUSY`] if somebody else does.
    pub start: unsafe extern "C" fn() -> i32,
    /// Makes the pages dirty, and writable, until they are collected or cleared.
    pub mark: unsafe extern "C" fn(start: usize, end: usize) -> i32,
    /// Makes the pages clean.
    pub clear: unsafe extern "C" fn(flushes: u32, start: usize, end: usize) -> i32,
    /// As `clear`, for those pages only whose bit is set in `among`.
    pub clear_among: unsafe extern "C" fn(
        flushes: u32,
        start: usize,
        end: usize,
        among: *const u64,
        words: usize,
    ) -> i32,
    /// Sets the bits of dirty pages; changes nothing.
    pub peek: unsafe extern "C" fn(start: usize, end: usize, bits: *mut u64, words: usize) -> i32,
    /// Sets the bits of dirty pages and makes them clean, without losing a write between the two.
    pub collect: unsafe extern "C" fn(
        flushes: u32,
        start: usize,
        end: usize,
        bits: *mut u64,
        words: usize,
    ) -> i32,
    /// How many faults were handled so far, of pages cleared or collected with this `flushes`.
    pub faults: unsafe extern "C" fn(flushes: u32) -> u64,
}

/// Tracking by the processor's page-modification log, which only some hosts have. The functions are as those of
/// [`DirtyBits`] of the same name, and so is `mark`, which is for both; each of these takes system calls. A range should be
/// tracked by one means at a time.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// Whether there is one: [`OK`] or [`NO_LOG`].
    pub start: unsafe extern "C" fn() -> i32,
    /// Makes the pages clean.
    pub clear: unsafe extern "C" fn(start: usize, end: usize) -> i32,
    /// As `clear`, for those pages only whose bit is set in `among`.
    pub clear_among:
        unsafe extern "C" fn(start: usize, end: usize, among: *const u64, words: usize) -> i32,
    /// Sets the bits of dirty pages; changes nothing.
    pub peek: unsafe extern "C" fn(start: usize, end: usize, bits: *mut u64, words: usize) -> i32,
    /// Sets the bits of dirty pages and makes them clean, without losing a write between the two.
    pub collect:
        unsafe extern "C" fn(start: usize, end: usize, bits: *mut u64, words: usize) -> i32,
}

/// Whole TLBs are flushed, when rights are taken and also when a fault gives one back.
pub const FLUSH_ALL: u32 = 0;
/// Single pages are flushed when rights are taken, if they are few and no other processor could hold them;
/// nothing is flushed when a fault gives one back.
pub const FLUSH_PAGES: u32 = 1;
