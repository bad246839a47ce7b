//! From a fault address to its region, inside a signal handler: no lock, no allocation.
//!
//! Readers (handlers) look at an immutable sorted array; writers replace the array and free the old
//! one, and the regions that left with it, when no handler can be looking any more. A handler
//! announces itself in one of two counters; a writer flips which one newcomers use and waits for
//! the other to drain. The wait is bounded: a counter that does not drain (in a forked child, the
//! handlers of the parent's other threads never finish) costs memory, never a hang.

use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};

use super::state::State;
use crate::os::lock::ForkMutex;
use crate::os::{epoch, syscall};

/// The regions of all mprotect trackers of the process, sorted by address.
struct Snapshot {
    regions: Vec<Arc<State>>,
}

static CURRENT: AtomicPtr<Snapshot> = AtomicPtr::new(core::ptr::null_mut());
/// How many arrays have been published.
static VERSION: AtomicUsize = AtomicUsize::new(0);
/// Handlers that entered while the generation was even, and odd.
static READERS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
static GENERATION: AtomicUsize = AtomicUsize::new(0);
/// The epoch in which the counters are right; 0 before the first writer.
static COUNTED_IN: AtomicU64 = AtomicU64::new(0);

/// How often a writer yields to readers before it leaves its garbage to the next.
const PATIENCE: usize = 10_000;

/// Calls `f` with the region that holds `address`, if any. Async-signal-safe if `f` is.
///
/// All counters are sequentially consistent: a handler that reads the old array has added itself
/// before the writer's flip in the one total order, so the writer sees it.
pub(super) fn with<R>(address: usize, f: impl FnOnce(&State) -> R) -> Option<R> {
    let mine = loop {
        let generation = GENERATION.load(SeqCst);
        let counter = &READERS[generation % 2];
        counter.fetch_add(1, SeqCst);
        if GENERATION.load(SeqCst) == generation {
            break counter;
        }
        counter.fetch_sub(1, SeqCst);
    };
    let snapshot = CURRENT.load(SeqCst);
    // SAFETY: 1. null, or a leaked box that `replace` published. 2. It is freed only after this
    // handler has left its counter.
    let result = unsafe { snapshot.as_ref() }.and_then(|snapshot| {
        let after = snapshot.regions.partition_point(|r| r.range().start() <= address);
        let region = &**snapshot.regions.get(after.checked_sub(1)?)?;
        (address < region.range().end()).then(|| f(region))
    });
    mine.fetch_sub(1, SeqCst);
    result
}

/// A number that changes between the moment a region is published and the moment it first protects
/// a page: while it stays, an address without a region is protected by nobody here.
pub(super) fn version() -> usize {
    VERSION.load(SeqCst)
}

/// The right to change the registry; one holder at a time.
pub(super) struct Writer<'a> {
    garbage: &'a mut Vec<*mut Snapshot>,
}

/// What replaced arrays wait in until no handler can be looking at them.
struct Garbage(Vec<*mut Snapshot>);

// SAFETY: the pointers are to boxes that nobody but the holder of WRITING frees.
unsafe impl Send for Garbage {}

static WRITING: ForkMutex<Garbage> = ForkMutex::new(Garbage(Vec::new()));

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
    /// The array that is wanted, with `new` added and `old` removed.
    pub(super) fn prepare(
        &mut self,
        old: Option<&Arc<State>>,
        new: Option<&Arc<State>>,
    ) -> Prepared {
        // SAFETY: null, or a leaked box that only a writer unpublishes, and we are the writer.
        let now = unsafe { CURRENT.load(SeqCst).as_ref() };
        let mut regions: Vec<_> = now
            .iter()
            .flat_map(|snapshot| &snapshot.regions)
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
    let now = epoch::current();
    let counted_in = COUNTED_IN.load(SeqCst);
    if counted_in == 0 {
        COUNTED_IN.store(now, SeqCst);
    } else if counted_in != now {
        // A child: the counters may hold handlers that exist in the parent only.
        return false;
    }
    let left = GENERATION.fetch_add(1, SeqCst) % 2;
    for _ in 0..PATIENCE {
        if READERS[left].load(SeqCst) == 0 {
            return true;
        }
        syscall::sched_yield();
    }
    false
}
