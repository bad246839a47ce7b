//! Write tracking by protection, with faults that the runtime handles itself: how Boehm's collector was ported
//! to Dune before it used dirty bits, and how the paper measured it ("direct", "TLB control").
//!
//! All state is in the entries, as with dirty bits ([`crate::inside`]). A page is clean if its entry is
//! present and has neither W nor D; in every other case it is dirty:
//!
//! - collecting and clearing take W and D from an entry in one atomic step, and mark it ([`HELD`]), so that
//!   the monitor does not give W back;
//! - a write faults to ring 3 ([`crate::faults`]), where [`on_fault`] sets W and D in one step;
//! - what the kernel writes for a system call sets D ([`crate::calls`]), and needs no W: the kernel goes by its
//!   own tables;
//! - an entry that goes, and comes again, is new and has D.
//!
//! As with dirty bits, a write through a translation that a TLB has kept is reported: the page was found dirty
//! by that very collection, which returns after the flush.
//!
//! The two ways differ in their flushes only ([`Flushes`]).

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::faults::{self, FaultFrame};
use crate::inside::{self, Clean, Clearing, FlushOwed, Inside};
use crate::paging::{FLUSHED, Flags, HELD, PAGE};
use crate::process::thread;
use crate::space::{self, private};

/// What is flushed, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushes {
    /// All of every TLB when rights are taken, all of this CPU's when a fault gives one back: as where
    /// protections are changed by a call that knows nothing of who asks ("direct").
    All,
    /// Pages, up to [`PAGES`] and if there is one CPU only, when rights are taken; else all. Nothing when a
    /// fault gives one back: an entry that a TLB holds without the right would only fault once more
    /// ("TLB").
    Pages,
}

impl Flushes {
    /// The mark of an entry.
    fn mark(self) -> u64 {
        match self {
            Self::All => HELD | FLUSHED,
            Self::Pages => HELD,
        }
    }
}

/// Pages that are flushed one by one at most.
const PAGES: usize = 32;
/// Entries to a word of a bitmap.
const CHUNK: usize = 64;

const PRESENT: u64 = Flags::PRESENT.bits();
/// What a clean page's entry has not.
const WRITTEN: u64 = Flags::WRITABLE.bits() | Flags::DIRTY.bits();
const CLEAN: Clean = Clean { of: PRESENT | WRITTEN, set: PRESENT };

/// Faults handled, by the flushes of their entries.
static FAULTS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Begins to handle faults; `false` if somebody else does.
pub(crate) fn start(inside: Inside) -> bool {
    if !faults::free_for(on_fault) {
        return false;
    }
    // SAFETY: the handler changes entries and counters, and asks for flushes; it takes no lock.
    unsafe { inside.handle_faults(on_fault) };
    true
}

/// How many faults were handled.
pub(crate) fn faults(flushes: Flushes) -> u64 {
    FAULTS[flushes as usize].load(Ordering::Relaxed)
}

/// At ring 3, in the middle of a program, on the handler stack: gives the right to write back.
fn on_fault(address: usize, _: &mut FaultFrame) -> bool {
    let Some(tables) = space::view() else { return false };
    let Some(entry) = tables.entry(address as u64) else { return false };
    let before = entry.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |entry| {
        (entry & (HELD | PRESENT) == HELD | PRESENT).then_some(entry & !(HELD | FLUSHED) | WRITTEN)
    });
    // If it is held no longer, another thread was quicker, or the mapping has changed: the instruction is
    // executed again, and what is wrong then is the monitor's to say.
    if let Ok(before) = before {
        let flushes = if before & FLUSHED != 0 { Flushes::All } else { Flushes::Pages };
        FAULTS[flushes as usize].fetch_add(1, Ordering::Relaxed);
        if flushes == Flushes::All {
            // SAFETY: handlers run in guest mode.
            unsafe { Inside::assume() }.flush();
        }
    }
    true
}

/// How many faults were handled, whatever the flushes.
pub(crate) fn all_faults() -> u64 {
    FAULTS.iter().map(|count| count.load(Ordering::Relaxed)).sum()
}

/// Sets a bit of `bits` for each page of `range` that is dirty, and makes those pages clean; the flush is done
/// when it returns. The arguments are right, and the kernel's writes are being noted.
pub(crate) fn collect(inside: Inside, range: &Range<usize>, bits: &mut [u64], flushes: Flushes) {
    inside::split(range);
    let mut taken = Taken::begin(flushes);
    inside.add_under_way(range, bits);
    taken.withdraw(range);
    CLEAN.report_others(range, bits, |page, entry| {
        taken.take(entry, range.start + page * PAGE as usize);
    });
    inside.add_under_way(range, bits);
    taken.withdraw(range);
    taken.flush(inside);
}

/// Makes pages clean: those of `range`, or those of them whose bit in `among` is set.
pub(crate) fn clear(inside: Inside, range: &Range<usize>, among: Option<&[u64]>, flushes: Flushes) {
    inside::split(range);
    let mut taken = Taken::begin(flushes);
    taken.withdraw(range);
    CLEAN.for_others_among(range, among, |page, entry| {
        taken.take(entry, range.start + page * PAGE as usize);
    });
    taken.flush(inside);
}

/// Sets a bit of `bits` for each page of `range` that is dirty; changes nothing.
pub(crate) fn peek(inside: Inside, range: &Range<usize>, bits: &mut [u64]) {
    inside.add_under_way(range, bits);
    private::peek(range, |page| bits[page / CHUNK] |= 1 << (page % CHUNK));
    CLEAN.report_others(range, bits, |_, _| ());
    inside.pay_for_others();
}

/// Makes the pages of `range` dirty, and those that were held writable.
pub(crate) fn mark(range: &Range<usize>) {
    let Some(tables) = space::view() else { return };
    tables.for_each_table(range.start as u64..range.end as u64, |table, slots| {
        for entry in table.entries(slots) {
            let _ = entry.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |now| {
                let new = if now & HELD != 0 {
                    now & !(HELD | FLUSHED) | WRITTEN
                } else {
                    now | Flags::DIRTY.bits()
                };
                (now & PRESENT != 0 && new != now).then_some(new)
            });
        }
    });
}

/// Rights that were taken, and whose flush is owed.
struct Taken {
    flushes: Flushes,
    clearing: Clearing,
    count: usize,
    /// The first of the pages.
    pages: [usize; PAGES],
}

impl Taken {
    fn begin(flushes: Flushes) -> Self {
        Self { flushes, clearing: Clearing::begin(), count: 0, pages: [0; PAGES] }
    }

    /// Takes W and D from the entry of `page`, if it is present.
    fn take(&mut self, entry: &AtomicU64, page: usize) {
        let before = entry.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |now| {
            // What the mapping does not allow to write is not given back by us.
            let mark =
                if now & (Flags::WRITABLE.bits() | HELD) != 0 { self.flushes.mark() } else { 0 };
            let new = now & !(WRITTEN | FLUSHED) | mark;
            (now & PRESENT != 0).then_some(new)
        });
        if before.is_ok() {
            if let Some(slot) = self.pages.get_mut(self.count) {
                *slot = page;
            }
            self.count += 1;
        }
    }

    /// Takes the entries that private spaces have of their own: the next write there faults, and is found here again.
    /// Before the main ones, which it makes dirty; and again behind them, for those that were made meanwhile.
    fn withdraw(&mut self, range: &Range<usize>) {
        let count = private::withdraw(range);
        if count > 0 {
            // More than are flushed one by one.
            self.count = self.count.max(PAGES) + count;
        }
    }

    fn flush(self, inside: Inside) {
        let one_by_one = self.flushes == Flushes::Pages && self.count <= PAGES && thread::alone();
        if one_by_one {
            self.pages[..self.count].iter().for_each(|page| inside.flush_page(*page));
        } else {
            FlushOwed { inside, cleared: self.count, clearing: self.clearing }.flush_everywhere();
        }
    }
}
