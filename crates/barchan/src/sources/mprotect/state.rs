//! The dirty bits of one mprotect region, and the two sides that change them: the fault handler
//! and the collector.
//!
//! A set bit means: dirty, and writable. A clear bit means: clean, and read-only. Both sides
//! change the bit and the protection together under the region's lock, so between two holders of
//! the lock the two always agree. Hence no write is lost: to collect is to make the page read-only
//! and then clear the bit, under the lock. A store that lands before the page is read-only is
//! covered by the report being made. A store after it faults, waits for the lock in the handler,
//! finds the bit clear, sets it, and makes the page writable.
//!
//! Nothing here hangs when the kernel runs out of mappings (`vm.max_map_count`): the whole region
//! is made writable, which merges its mappings into one, and all its pages are dirty. Where even
//! that takes more mappings, as its ends are shared with read-only neighbours, there is the
//! `reserve`; and if others took it, the neighbours become writable with it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{registry, reserve};
use crate::bitmap;
use crate::os::lock::{EpochLock, Held};
use crate::os::mapping::Words;
use crate::os::{epoch, maps, syscall};
use crate::stats::Counters;
use crate::{Errno, PageRange};

/// Pages handled under one hold of the lock: 16 MiB, whose bits fit on the stack.
pub(super) const CHUNK: usize = 4096;
/// The bits of one chunk.
pub(super) type ChunkBits = [u64; CHUNK / 64];

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// What the handler made of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// Run the instruction again.
    Resolved,
    /// Somebody else's.
    Foreign,
}

/// One region.
pub(super) struct State {
    range: PageRange,
    /// Bit i: page i is dirty and writable. Changed under `lock` only.
    bits: Words,
    lock: EpochLock,
    /// The epoch in which `bits` hold; in any other, all is dirty.
    epoch: AtomicU64,
    /// Replaced by a resized copy: whoever finds this one looks again. Changed under `lock`.
    replaced: AtomicBool,
    /// Pages may be read-only whose bits are set: there were no mappings to unprotect them with.
    /// Changed under `lock`.
    left_protected: AtomicBool,
    /// Its owner has gone, and it could not be unprotected: it stays, and goes on working.
    abandoned: AtomicBool,
    counters: &'static Counters,
}

impl State {
    /// A region whose pages are all dirty and writable.
    pub(super) fn new(range: PageRange, counters: &'static Counters) -> Result<Self, Errno> {
        let bits = Words::new(bitmap::words_for(range.pages()))?;
        let state = Self {
            range,
            bits,
            lock: EpochLock::new(),
            epoch: AtomicU64::new(epoch::current()),
            replaced: AtomicBool::new(false),
            left_protected: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            counters,
        };
        state.set_all();
        Ok(state)
    }

    pub(super) fn range(&self) -> PageRange {
        self.range
    }

    /// Whether the bits hold in this process.
    pub(super) fn is_current(&self) -> bool {
        self.epoch.load(Ordering::Acquire) == epoch::current()
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        &self.bits.as_slice()[index]
    }

    fn set_all(&self) {
        for word in self.bits.as_slice() {
            word.store(u64::MAX, Ordering::Relaxed);
        }
    }

    fn is_set(&self, page: usize) -> bool {
        self.word(page / 64).load(Ordering::Relaxed) >> (page % 64) & 1 == 1
    }

    /// Sets or clears the bits of a run of pages, under the lock.
    fn put(&self, first: usize, count: usize, set: bool) {
        let mut page = first;
        while page < first + count {
            let n = (64 - page % 64).min(first + count - page);
            let mask = (u64::MAX >> (64 - n)) << (page % 64);
            let word = self.word(page / 64);
            let old = word.load(Ordering::Relaxed);
            word.store(if set { old | mask } else { old & !mask }, Ordering::Relaxed);
            page += n;
        }
    }

    /// Copies the bits of `count` pages from `first` on into `out`; at most [`CHUNK`].
    pub(super) fn copy_bits(&self, first: usize, count: usize, out: &mut ChunkBits) {
        let (shift, base) = (first % 64, first / 64);
        for (i, out) in out.iter_mut().enumerate().take(bitmap::words_for(count)) {
            let low = self.word(base + i).load(Ordering::Relaxed) >> shift;
            let high = match self.bits.as_slice().get(base + i + 1) {
                Some(next) if shift != 0 => next.load(Ordering::Relaxed) << (64 - shift),
                _ => 0,
            };
            *out = low | high;
        }
    }

    /// Makes `range` writable or read-only.
    fn protect(&self, range: PageRange, prot: i32) -> Result<(), Errno> {
        // SAFETY: 1. the pages belong to the region. 2. Read-only pages are made writable by the
        // handler when someone writes to them.
        unsafe { syscall::mprotect(range, prot) }
    }

    /// Everything writable, everything dirty: what is left when protections cannot be had.
    fn unprotect_all(&self) -> Result<(), Errno> {
        let result = self.protect(self.range, READ_WRITE).or_else(|_| {
            // The ends may be shared with a neighbour's mapping, which takes a split, which there
            // is no room for. Merging the inside first makes room.
            let dirty = |&page: &usize| self.is_set(page);
            let first = (0..self.range.pages()).find(dirty).unwrap_or(0);
            let last = (first..self.range.pages()).rev().find(dirty).unwrap_or(first);
            self.protect(self.range.slice(first, last + 1 - first), READ_WRITE)?;
            self.protect(self.range, READ_WRITE)
        });
        let result = result.or_else(|_| lift(self.range));
        self.all_became_dirty(result.is_ok());
        result
    }

    /// All bits are set, in this process; `lifted`: and all pages are writable.
    fn all_became_dirty(&self, lifted: bool) {
        self.set_all();
        self.left_protected.store(!lifted, Ordering::Relaxed);
        self.epoch.store(epoch::current(), Ordering::Release);
    }

    /// As [`Self::unprotect_all`], together with the neighbours if need be; gives back the lock.
    fn give_up(&self, held: Held<'_>) -> Result<(), Errno> {
        let result = self.unprotect_all();
        drop(held);
        result.or_else(|_| registry::unprotect_run(self))
    }

    /// As [`Self::give_up`], counted.
    fn degrade(&self, held: Held<'_>) -> Result<(), Errno> {
        Counters::add(&self.counters.degraded, 1);
        self.give_up(held)
    }

    /// Takes the lock for [`Self::release`], with signals blocked.
    pub(super) fn hold(&self) {
        self.lock.lock_without_guard();
    }

    /// Gives back the lock after an attempt, if there was one, to make the region writable as a
    /// part of something larger. Where it failed it may have been done in part.
    pub(super) fn release(&self, lifted: Option<Result<(), Errno>>) {
        if let Some(lifted) = lifted {
            self.all_became_dirty(lifted.is_ok());
        }
        self.lock.unlock();
    }

    /// Says that nobody owns the region any more.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Takes the lock. In a forked child, the first holder starts over: all writable and dirty.
    fn enter(&self) -> Result<Held<'_>, Errno> {
        loop {
            let held = self.lock.lock();
            if !held.inherited && self.is_current() {
                return Ok(held);
            }
            self.give_up(held)?;
        }
    }

    /// A store to `address`, within the region, faulted. All signals are blocked.
    pub(super) fn on_fault(&self, address: usize) -> Fault {
        let resolved = |done: Result<(), Errno>| match done {
            Ok(()) => Fault::Resolved,
            Err(_) => Fault::Foreign,
        };
        let held = self.lock.lock_with_signals_blocked();
        if held.inherited || !self.is_current() {
            return resolved(self.give_up(held));
        }
        if self.replaced.load(Ordering::Relaxed) {
            return Fault::Resolved;
        }
        let page = self.range.index_of(address);
        let at = self.range.slice(page, 1);
        if self.is_set(page) {
            // Another thread resolved it while we waited; or the program protected the page
            // itself, and then the fault is the program's.
            // Where the kernel cannot say, its owner's promise that it is writable is enforced,
            // rather than faulting forever.
            let writable = is_writable(at).unwrap_or_else(|| self.protect(at, READ_WRITE).is_ok());
            return match writable {
                true => Fault::Resolved,
                false if self.left_protected.load(Ordering::Relaxed) => {
                    resolved(self.give_up(held))
                }
                false => Fault::Foreign,
            };
        }
        self.put(page, 1, true);
        Counters::add(&self.counters.faults, 1);
        resolved(self.protect(at, READ_WRITE).or_else(|_| self.degrade(held)))
    }

    /// Makes `range` clean.
    pub(super) fn arm(&self, range: PageRange) -> Result<(), Errno> {
        let held = self.enter()?;
        if let Err(errno) = self.protect(range, libc::PROT_READ) {
            self.degrade(held)?;
            return Err(errno);
        }
        self.put(self.range.index_of(range.start()), range.pages(), false);
        drop(held);
        reserve::fill();
        Ok(())
    }

    /// Makes `range` dirty.
    pub(super) fn disarm(&self, range: PageRange) -> Result<(), Errno> {
        let held = self.enter()?;
        self.put(self.range.index_of(range.start()), range.pages(), true);
        self.protect(range, READ_WRITE).or_else(|_| self.degrade(held))
    }

    /// Takes the dirty bits of `range`, at most [`CHUNK`] pages, and makes those pages clean.
    ///
    /// On an error the whole region has become dirty, and so is every bit of the answer.
    pub(super) fn collect_chunk(&self, range: PageRange, out: &mut ChunkBits) -> Result<(), Errno> {
        let first = self.range.index_of(range.start());
        let collected = self.enter().and_then(|held| {
            self.copy_bits(first, range.pages(), out);
            for (run, count) in bitmap::runs(&*out, range.pages()) {
                if let Err(errno) = self.protect(range.slice(run, count), libc::PROT_READ) {
                    self.degrade(held)?;
                    return Err(errno);
                }
                self.put(first + run, count, false);
            }
            drop(held);
            reserve::fill();
            Ok(())
        });
        if collected.is_err() {
            out.fill(u64::MAX);
        }
        collected
    }

    /// Ends this state in favour of `next` (which has other bounds and takes over the bits of the
    /// pages in both), or of nothing. `publish` makes the change visible to handlers; without it
    /// (on an error) the state stays as it is, to be found and to resolve faults.
    pub(super) fn retire(&self, next: Option<&Self>, publish: impl FnOnce()) -> Result<(), Errno> {
        let mut held = self.enter()?;
        let kept = next.map_or(PageRange::between(self.range.start(), self.range.start()), |n| {
            n.range.intersection(&self.range)
        });
        for outside in [
            PageRange::between(self.range.start(), kept.start().min(self.range.end())),
            PageRange::between(kept.end().max(self.range.start()), self.range.end()),
        ] {
            if !outside.is_empty() && lift_or_gone(outside).is_err() {
                self.give_up(held)?;
                held = self.enter()?;
            }
        }
        if let Some(next) = next {
            for page in 0..kept.pages() {
                let at = kept.slice(page, 1).start();
                if !self.is_set(self.range.index_of(at)) {
                    next.put(next.range.index_of(at), 1, false);
                }
            }
            let left = self.left_protected.load(Ordering::Relaxed);
            next.left_protected.store(left, Ordering::Relaxed);
        }
        self.replaced.store(true, Ordering::Relaxed);
        publish();
        drop(held);
        Ok(())
    }
}

/// Makes `range` writable, if need be with what is in reserve.
pub(super) fn lift(range: PageRange) -> Result<(), Errno> {
    // SAFETY: the pages belong to regions, and only regions protect them.
    let lift = || unsafe { syscall::mprotect(range, READ_WRITE) };
    lift().or_else(|_| {
        reserve::spend();
        lift()
    })
}

/// As [`lift`], for a range of which some or all may be unmapped already, and then needs no protection lifted:
/// the kernel stops at the first hole.
fn lift_or_gone(range: PageRange) -> Result<(), Errno> {
    match lift(range) {
        Err(errno) if is_mapped(range) => Err(errno),
        Err(_) => maps::each_read_only(range, lift_by_halves).or_else(|_| lift_by_halves(range)),
        Ok(()) => Ok(()),
    }
}

/// As [`lift_or_gone`], with two calls a page that is unmapped: for where the list of mappings cannot be had, or
/// has changed since.
fn lift_by_halves(range: PageRange) -> Result<(), Errno> {
    match lift(range) {
        Err(errno) if is_mapped(range) => Err(errno),
        Err(_) if range.pages() > 1 => {
            let half = range.pages() / 2;
            lift_by_halves(range.slice(0, half))?;
            lift_by_halves(range.slice(half, range.pages() - half))
        }
        _ => Ok(()),
    }
}

/// Whether every page of `range` is mapped.
fn is_mapped(range: PageRange) -> bool {
    syscall::msync(range, libc::MS_ASYNC).is_ok()
}

/// Whether a store to `page` would succeed now, found out without storing: the page is populated
/// for writing. `None` where that cannot be said: before Linux 5.14, or where a policy refuses the call.
pub(super) fn is_writable(page: PageRange) -> Option<bool> {
    // SAFETY: populating a page changes no byte of it.
    let populated = |page| unsafe { syscall::madvise(page, libc::MADV_POPULATE_WRITE) };
    match populated(page) {
        Ok(()) => Some(true),
        // No permission; or an advice that the kernel does not know, which then does not work on
        // an empty range either.
        Err(Errno(libc::EINVAL)) => populated(page.slice(0, 0)).is_ok().then_some(false),
        Err(Errno(libc::EPERM | libc::EACCES | libc::ENOSYS)) => None,
        Err(_) => Some(false),
    }
}
