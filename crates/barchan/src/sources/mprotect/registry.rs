//! From a fault address to its region, inside a signal handler: no lock, no allocation.
//!
//! Readers (handlers) look at an immutable sorted array; writers replace the array and free the old
//! one, and the regions that left with it, when no handler can be looking any more. A handler
//! announces itself in one of two counters; a writer flips which one newcomers use and waits for
//! the other to drain. The wait is bounded: a counter that does not drain (in a forked child, the
//! handlers of the parent's other threads never finish) costs memory, never a hang.

use core::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};

use super::state::State;
use crate::os::lock::{EpochLock, Held};
use crate::os::{epoch, syscall};

/// The regions of all mprotect trackers of the process, sorted by address.
struct Snapshot {
    regions: Vec<Arc<State>>,
}

static CURRENT: AtomicPtr<Snapshot> = AtomicPtr::new(core::ptr::null_mut());
/// Handlers that entered while the generation was even, and odd.
static READERS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
static GENERATION: AtomicUsize = AtomicUsize::new(0);
/// The epoch in which the counters are right; 0 before the first writer.
static COUNTED_IN: AtomicU64 = AtomicU64::new(0);
/// Guards every change.
static WRITING: EpochLock = EpochLock::new();

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

/// Adds `new` and removes `old`, in one step. What is replaced is kept until [`reclaim`].
pub(super) fn publish(old: Option<&Arc<State>>, new: Option<Arc<State>>) {
    let held = WRITING.lock();
    let before = CURRENT.load(SeqCst);
    // SAFETY: null, or a leaked box that only a writer frees, and we are the writer.
    let mut regions = unsafe { before.as_ref() }.map_or_else(Vec::new, |s| s.regions.clone());
    if let Some(old) = old {
        regions.retain(|r| !Arc::ptr_eq(r, old));
    }
    if let Some(new) = new {
        let at = regions.partition_point(|r| r.range().start() < new.range().start());
        regions.insert(at, new);
    }
    CURRENT.store(Box::into_raw(Box::new(Snapshot { regions })), SeqCst);
    if !before.is_null() {
        GARBAGE.with(&held, |garbage| garbage.push(before));
    }
}

/// Frees what was replaced, if the handlers that may look at it leave soon; else a later call
/// does. Not with a region's lock held: a handler may be waiting for it.
pub(super) fn reclaim() {
    let held = WRITING.lock();
    GARBAGE.with(&held, |garbage| {
        if !garbage.is_empty() && drained() {
            for old in garbage.drain(..) {
                // SAFETY: 1. it came from Box::into_raw in `publish`. 2. It is unpublished, and
                // every handler that may have loaded it has left.
                drop(unsafe { Box::from_raw(old) });
            }
        }
    });
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

/// Arrays that were replaced and not yet freed.
struct Garbage(UnsafeCell<Vec<*mut Snapshot>>);

// SAFETY: `with` asks for the lock, so only one thread at a time looks.
unsafe impl Sync for Garbage {}

static GARBAGE: Garbage = Garbage(UnsafeCell::new(Vec::new()));

impl Garbage {
    fn with(&self, _held: &Held<'_>, f: impl FnOnce(&mut Vec<*mut Snapshot>)) {
        // SAFETY: 1. both callers pass the guard of WRITING, so they exclude each other. 2. `f`
        // does not come back here.
        f(unsafe { &mut *self.0.get() });
    }
}
