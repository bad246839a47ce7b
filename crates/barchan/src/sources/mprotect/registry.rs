//! From a fault address to its region, inside a signal handler: no lock, no allocation.
//!
//! Readers (handlers) look at an immutable sorted array; writers replace the array and free the old
//! one, and the regions that left with it, when no handler can be looking any more. A handler
//! announces itself in one of two counters; a writer flips which one newcomers use and waits for
//! the other to drain. The wait is bounded: a counter that does not drain costs memory, never a hang.
//! The counters are wiped in a forked child, where the handlers of the parent's other threads never
//! finish. All who announce themselves have all signals blocked, so none of them is the one that forks.

use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};

use super::state::{self, State};
use crate::os::lock::ForkMutex;
use crate::os::syscall::SignalMask;
use crate::os::{epoch, syscall};
use crate::{Errno, PageRange};

/// The regions of all mprotect trackers of the process, sorted by address.
struct Snapshot {
    regions: Vec<Arc<State>>,
}

static CURRENT: AtomicPtr<Snapshot> = AtomicPtr::new(core::ptr::null_mut());
/// How many arrays have been published.
static VERSION: AtomicUsize = AtomicUsize::new(0);
/// Which of the counters newcomers use: the first while it is even, the second while it is odd.
static GENERATION: AtomicUsize = AtomicUsize::new(0);

/// How often a writer yields to readers before it leaves its garbage to the next.
const PATIENCE: usize = 10_000;

/// Calls `f` with the region that holds `address`, if any. Async-signal-safe if `f` is.
pub(super) fn with<R>(address: usize, f: impl FnOnce(&State) -> R) -> Option<R> {
    with_regions(|regions| {
        let after = regions.partition_point(|r| r.range().start() <= address);
        let region = &**regions.get(after.checked_sub(1)?)?;
        (address < region.range().end()).then(|| f(region))
    })
}

/// Calls `f` with all regions. Async-signal-safe if `f` is. All signals are blocked.
///
/// All counters are sequentially consistent: a handler that reads the old array has added itself
/// before the writer's flip in the one total order, so the writer sees it.
fn with_regions<R>(f: impl FnOnce(&[Arc<State>]) -> R) -> R {
    let mine = loop {
        let generation = GENERATION.load(SeqCst);
        let counter = epoch::counters()[generation % 2];
        counter.fetch_add(1, SeqCst);
        if GENERATION.load(SeqCst) == generation {
            break counter;
        }
        counter.fetch_sub(1, SeqCst);
    };
    let snapshot = CURRENT.load(SeqCst);
    // SAFETY: 1. null, or a leaked box that `replace` published. 2. It is freed only after this
    // handler has left its counter.
    let result = f(unsafe { snapshot.as_ref() }.map_or(&[], |snapshot| &snapshot.regions));
    mine.fetch_sub(1, SeqCst);
    result
}

/// A number that changes between the moment a region is published and the moment it first protects
/// a page: while it stays, an address without a region is protected by nobody here.
pub(super) fn version() -> usize {
    VERSION.load(SeqCst)
}

/// Makes `of` writable and dirty, together with the regions that border on it, and with those that
/// border on these: for a process that is out of mappings. The kernel joins the mappings of
/// regions side by side that are all read-only, and to lift the protection of one of them takes two
/// mappings more; of all of them, none (but where the program's own read-only pages border on them,
/// for which there is the reserve).
///
/// No region's lock is held by the caller. The locks are taken in the order of the addresses, so
/// two that do this do not wait for each other; all others hold one at a time. A region that is
/// retired is found out by the version: it is published under its lock.
pub(super) fn unprotect_run(of: &State) -> Result<(), Errno> {
    let _mask = SignalMask::all_blocked();
    loop {
        let before = version();
        let done = with_regions(|regions| {
            let Some(at) = regions.iter().position(|r| core::ptr::eq(&raw const **r, of)) else {
                // Retired meanwhile, hence writable, or another's.
                return Some(Ok(()));
            };
            let borders = |i: usize| regions[i].range().end() == regions[i + 1].range().start();
            let first = (0..at).rev().take_while(|&i| borders(i)).last().unwrap_or(at);
            let last = (at..regions.len() - 1).take_while(|&i| borders(i)).last();
            let run = &regions[first..=last.map_or(at, |i| i + 1)];
            run.iter().for_each(|region| region.hold());
            let lifted = (version() == before).then(|| {
                state::lift(PageRange::between(
                    run[0].range().start(),
                    run[run.len() - 1].range().end(),
                ))
            });
            run.iter().for_each(|region| region.release(lifted));
            lifted
        });
        if let Some(result) = done {
            return result;
        }
    }
}

/// The right to change the registry; one holder at a time.
pub(super) struct Writer<'a> {
    garbage: &'a mut Vec<*mut Snapshot>,
}

/// What replaced arrays wait in until no handler can be looking at them. In a child of a fork in
/// the middle of a change some may be missing: they are leaked, and none is freed twice.
#[derive(Clone, Default)]
struct Garbage(Vec<*mut Snapshot>);

// SAFETY: the pointers are to boxes that nobody but the holder of WRITING frees.
unsafe impl Send for Garbage {}

static WRITING: ForkMutex<Garbage> = ForkMutex::new();

/// An array made ready, so that publishing it needs no memory.
pub(super) struct Prepared(Box<Snapshot>);

/// Runs `f` as the only writer, and then frees what nobody can see any more.
///
/// A region's lock may be taken within `f`, and not the other way round. Signals are not blocked:
/// memory is allocated here, and a thread that waits for the heap must be stoppable.
pub(super) fn write<R>(f: impl FnOnce(&mut Writer<'_>) -> R) -> R {
    let (result, old) = WRITING.with(|garbage| {
        let result = f(&mut Writer { garbage: &mut garbage.0 });
        let free = !garbage.0.is_empty() && drained();
        (result, if free { core::mem::take(&mut garbage.0) } else { Vec::new() })
    });
    for old in old {
        // SAFETY: 1. it came from Box::into_raw in `publish`. 2. It is unpublished, and every
        // handler that may have loaded it has left.
        drop(unsafe { Box::from_raw(old) });
    }
    result
}

impl Writer<'_> {
    /// The regions whose owners have gone, and which could not be unprotected.
    pub(super) fn abandoned(&self) -> Vec<Arc<State>> {
        self.published().iter().filter(|r| r.is_abandoned()).cloned().collect()
    }

    /// The regions that handlers see.
    fn published(&self) -> &[Arc<State>] {
        // SAFETY: null, or a leaked box that only a writer unpublishes, by `publish`, which borrows us exclusively.
        let now = unsafe { CURRENT.load(SeqCst).as_ref() };
        now.map_or(&[], |snapshot| &snapshot.regions)
    }

    /// The array that is wanted, with `new` added and `old` removed.
    pub(super) fn prepare(
        &mut self,
        old: Option<&Arc<State>>,
        new: Option<&Arc<State>>,
    ) -> Prepared {
        let mut regions: Vec<_> = self
            .published()
            .iter()
            .filter(|r| !old.is_some_and(|old| Arc::ptr_eq(r, old)))
            .chain(new)
            .cloned()
            .collect();
        regions.sort_by_key(|r| r.range().start());
        self.garbage.reserve(1);
        Prepared(Box::new(Snapshot { regions }))
    }

    /// Shows `prepared` to handlers; allocates nothing.
    pub(super) fn publish(&mut self, prepared: Prepared) {
        let before = CURRENT.swap(Box::into_raw(prepared.0), SeqCst);
        VERSION.fetch_add(1, SeqCst);
        if !before.is_null() {
            self.garbage.push(before);
        }
    }
}

/// Whether every handler that entered before the call has left.
fn drained() -> bool {
    let counters = epoch::counters();
    // Those who enter from now on count themselves where those before the last call did, of whom
    // some may be there still, if it gave up: they would be waited for no more.
    let generation = GENERATION.load(SeqCst);
    if !nobody_in(counters[(generation + 1) % 2]) {
        return false;
    }
    GENERATION.store(generation + 1, SeqCst);
    nobody_in(counters[generation % 2])
}

/// Waits, for a while, until nobody is counted.
fn nobody_in(readers: &AtomicU64) -> bool {
    for _ in 0..PATIENCE {
        if readers.load(SeqCst) == 0 {
            return true;
        }
        syscall::sched_yield();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn who_was_given_up_once_is_waited_for_again() {
        epoch::init().expect("a page for the epoch");
        let (entered, has_entered) = channel();
        let (leave, may_leave) = channel::<()>();
        let reader = std::thread::spawn(move || {
            with_regions(|_| {
                entered.send(()).expect("it waits");
                may_leave.recv().expect("it says so");
            });
        });
        has_entered.recv().expect("it enters");
        let drained = || WRITING.with(|_| drained());
        for attempt in 0..3 {
            assert!(!drained(), "attempt {attempt}: a reader is inside");
        }
        let status = syscall::in_child(|| drained() && drained());
        assert_eq!(status, 0, "in a child there is no such reader");
        leave.send(()).expect("it waits");
        reader.join().expect("it leaves");
        assert!(drained());
    }
}
