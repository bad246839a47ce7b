//! Tracking writes by the page-modification log: the processor itself writes down which pages it makes dirty
//! (SDM 3C, "Page-Modification Logging"), and nobody has to look for them.
//!
//! Only `/dev/dune` has it, and only for a machine that was made with it: `BARCHAN_DUNE_PML=1`.
//!
//! The log is of the second level of paging, of guest-physical addresses, whatever the guest's own tables say. It
//! names a page once, and again only after the page was *forgotten*: its dirty bit there cleared. A page is
//! clean if its entry is present and has the mark [`CLEAN`]; in every other case it is dirty:
//!
//! - collecting and clearing *take down* the log of all CPUs (each page that it names loses its mark), set marks, and
//!   have the pages forgotten, in this order;
//! - taking down happens also whenever a CPU's log is full;
//! - what the kernel writes for a system call takes the mark away ([`crate::calls`]);
//! - an entry that goes, and comes again, is new and has no mark.
//!
//! Why no write is missed: let a collection find page P without mark, report it, set the mark and have it forgotten. A
//! write that came before P was forgotten came before the collection returns, so whoever reads P's content afterwards sees it.
//! A write that comes later is logged, as the processor finds the bit clear: the module makes all CPUs leave guest mode and flush
//! before it returns (`DUNE_VM_CLEAR_DIRTY`). If P had the mark, its bit has been clear since it was last forgotten, or P is in a
//! log, and the next taking down finds it. Two collections at the same time: the one that finds the other's mark has the
//! range forgotten too before it returns ([`Clearing::others`]), and so does who only looks ([`Clearing::any`]). Taking down
//! twice, or too early, only reports more.
//!
//! Taking down is the monitor's, with a lock of its own; all else is the program's.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::calls::CALL_LOG;
use crate::host::{self, Vm as _};
use crate::inside::{self, Clean, Clearing, Inside};
use crate::paging::{CLEAN, Flags};
use crate::process::thread;
use crate::space::{self, SPACE};
use crate::sys;
use crate::sys::lock::Lock;

const PRESENT: u64 = Flags::PRESENT.bits();
const MARKED: Clean = Clean { of: PRESENT | CLEAN, set: PRESENT | CLEAN };

/// What the monitor is asked for.
pub(crate) mod request {
    /// 1 if there is a log, else 0.
    pub(crate) const IS_KEPT: u64 = 0;
    /// Takes down all that was written before.
    pub(crate) const TAKE_DOWN: u64 = 1;
    /// Has the pages from here to there forgotten.
    pub(crate) const FORGET: u64 = 2;
}

/// Who takes down: the tails of all rings. Comes after [`SPACE`].
static READER: Lock<()> = Lock::new(());

/// Keeps everybody from taking down, until it is dropped.
pub(crate) fn hold() -> impl Drop {
    READER.lock()
}

// For code in guest mode.

/// Whether the processor keeps a log for this process.
pub(crate) fn is_kept() -> bool {
    ask(request::IS_KEPT, 0..0) == 1
}

fn ask(what: u64, range: Range<usize>) -> i64 {
    // SAFETY: a number that Linux does not have; entries lose a mark, and no memory is touched.
    unsafe { sys::raw(CALL_LOG, [what, range.start as u64, range.end as u64, 0, 0, 0]) }
}

/// Sets a bit of `bits` for each page of `range` that is dirty, and makes those pages clean. The arguments are right, and
/// the kernel's writes are being noted.
pub(crate) fn collect(inside: Inside, range: &Range<usize>, bits: &mut [u64]) {
    inside::split(range);
    let clearing = Clearing::begin();
    inside.add_under_way(range, bits);
    ask(request::TAKE_DOWN, 0..0);
    let mut marked = 0;
    MARKED.report_others(range, bits, |_, entry| marked += mark_clean(entry));
    inside.add_under_way(range, bits);
    forget(range, marked, clearing);
}

/// Makes pages clean: those of `range`, or those of them whose bit in `among` is set. Pages without an entry stay dirty.
pub(crate) fn clear(range: &Range<usize>, among: Option<&[u64]>) {
    inside::split(range);
    let clearing = Clearing::begin();
    // What is in the logs already would only make them dirty again.
    ask(request::TAKE_DOWN, 0..0);
    let mut marked = 0;
    MARKED.for_others_among(range, among, |_, entry| marked += mark_clean(entry));
    forget(range, marked, clearing);
}

/// Sets a bit of `bits` for each page of `range` that is dirty; changes nothing.
pub(crate) fn peek(inside: Inside, range: &Range<usize>, bits: &mut [u64]) {
    inside.add_under_way(range, bits);
    ask(request::TAKE_DOWN, 0..0);
    MARKED.report_others(range, bits, |_, _| ());
    if Clearing::any() {
        ask(request::FORGET, range.clone());
    }
}

fn forget(range: &Range<usize>, marked: usize, clearing: Clearing) {
    if marked > 0 || Clearing::others() {
        ask(request::FORGET, range.clone());
    }
    drop(clearing);
}

/// Marks the entry clean if it is present; how many that is.
fn mark_clean(entry: &AtomicU64) -> usize {
    let marked = entry.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |now| {
        (now & PRESENT != 0).then_some(now | CLEAN)
    });
    usize::from(marked.is_ok())
}

// For the monitor.

/// Does what the program's side asks for.
pub(crate) fn answer(what: u64, range: Range<u64>) -> i64 {
    match what {
        request::IS_KEPT => i64::from(SPACE.lock().vm.as_ref().is_some_and(host::AnyVm::keeps_log)),
        request::TAKE_DOWN => {
            // This CPU's log was emptied into its ring as it left guest mode.
            if !thread::alone() {
                done(SPACE.lock().forget_log(0..0));
            }
            take_down();
            0
        }
        request::FORGET => {
            done(SPACE.lock().forget_log(range));
            0
        }
        _ => -i64::from(libc::EINVAL),
    }
}

/// Takes the marks from the pages that are in the rings of all CPUs.
pub(crate) fn take_down() {
    let reader = READER.lock();
    if let Some(tables) = space::view() {
        host::dune::for_each_logged(|gpa| {
            let entry = space::address_of(gpa).and_then(|address| tables.entry(address));
            if let Some(entry) = entry.filter(|entry| entry.load(Ordering::Relaxed) & CLEAN != 0) {
                entry.fetch_and(!CLEAN, Ordering::AcqRel);
            }
        });
    }
    drop(reader);
}

/// Without it writes would be missed from now on.
fn done(result: Result<(), host::HostError>) {
    if let Err(error) = result {
        sys::text::fatal(format_args!(
            "barchan: the log of written pages cannot be used: {error}\n"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_present_entries_with_the_mark_are_clean() {
        let clean = PRESENT | CLEAN;
        let values = |n: usize| match n {
            3 => 0,
            64 => PRESENT,
            65 => CLEAN,
            200 => PRESENT | Flags::DIRTY.bits() | Flags::WRITABLE.bits(),
            _ => clean | Flags::DIRTY.bits(),
        };
        let entries: Vec<_> = (0..512).map(|n| AtomicU64::new(values(n))).collect();
        let mut found = Vec::new();
        MARKED.for_others(&entries, |index, _| found.push(index));
        assert_eq!(found, [3, 64, 65, 200]);
        let mut marked = Vec::new();
        MARKED.for_others(&entries, |index, entry| {
            if mark_clean(entry) == 1 {
                marked.push(index);
            }
        });
        assert_eq!(marked, [64, 200], "what is absent stays dirty");
        assert_eq!(entries[65].load(Ordering::Relaxed), CLEAN);
        found.clear();
        MARKED.for_others(&entries, |index, _| found.push(index));
        assert_eq!(found, [3, 65]);
    }
}
