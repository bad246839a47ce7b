//! Arming, disarming, peeking and collecting do not allocate, on any source, in a child neither.
//!
//! A program of its own, since the allocator is one for the process.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use barchan::{HotPagePolicy, HotPages, Source};
use common::{Memory, alone, trackers};

/// The system's allocator, counting its calls.
struct Counting;

static CALLS: AtomicU64 = AtomicU64::new(0);
/// Bytes that are allocated now.
static LIVE: AtomicI64 = AtomicI64::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        LIVE.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        CALLS.fetch_add(1, Ordering::Relaxed);
        LIVE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PAGES: usize = 10_000;

#[test]
fn the_collect_path_does_not_allocate() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::touched(PAGES);
        let region = memory.track(&tracker);
        let mut bits = vec![0u64; PAGES.div_ceil(64)];
        let mut ranges = vec![memory.range(); 64];
        let mut hot = HotPages::new(HotPagePolicy::default(), memory.range());
        let work = |bits: &mut [u64], ranges: &mut [_], hot: &mut HotPages| {
            let before = CALLS.load(Ordering::Relaxed);
            for round in 0..6 {
                let range = memory.range();
                let mut good = region.arm(range.slice(0, 500)).is_ok();
                (0..PAGES).step_by(9).for_each(|page| memory.write(page));
                good &= region.peek(range, bits).is_ok();
                good &= region.collect_and_reset(range, bits).is_ok();
                (0..PAGES).step_by(7 + round).for_each(|page| memory.write(page));
                // SAFETY: no other thread writes.
                good &= unsafe { region.collect_and_reset_stopped(range, bits) }.is_ok();
                good &= region.collect_ranges(range, ranges).is_ok();
                good &= region.collect_and_reset_with(hot, bits).is_ok();
                good &= region.disarm(range.slice(300, 900)).is_ok();
                assert!(good, "{}", tracker.source());
            }
            CALLS.load(Ordering::Relaxed) - before
        };
        let calls = work(&mut bits, &mut ranges, &mut hot);
        assert_eq!(calls, 0, "{}: heap calls", tracker.source());
        common::in_child(tracker.source().name(), || work(&mut bits, &mut ranges, &mut hot) == 0);
    }
}

/// Neither in the process that opened the tracker, nor in a child.
#[test]
fn regions_that_come_and_go_leave_no_memory_behind() {
    const ROUNDS: usize = 200;
    /// A few tables of 400 regions, which wait for the next change.
    const MAY_REMAIN: i64 = 20_000;
    let _alone = alone();
    for tracker in trackers() {
        let (memory, other) = (Memory::touched(400), Memory::touched(1));
        let regions: Vec<_> = (0..400).map(|page| memory.track_part(&tracker, page, 1)).collect();
        // What replaced tables held is freed at the next change.
        let grown = || {
            drop(other.track(&tracker));
            let before = LIVE.load(Ordering::Relaxed);
            (0..ROUNDS).for_each(|_| drop(other.track(&tracker)));
            LIVE.load(Ordering::Relaxed) - before
        };
        let source = tracker.source();
        let here = grown();
        assert!(here < MAY_REMAIN, "{source}: {here} bytes");
        common::in_child(source.name(), || {
            let grown = grown();
            println!("{source}: {grown} bytes in a child");
            grown < MAY_REMAIN
        });
        drop(regions);
    }
}

#[test]
fn the_counter_counts() {
    let _alone = alone();
    let before = CALLS.load(Ordering::Relaxed);
    drop(std::hint::black_box(Box::new(Source::ALL)));
    assert!(CALLS.load(Ordering::Relaxed) - before >= 2);
}

#[test]
fn all_of_this_in_guest_mode() {
    // It allocates, and every call counts.
    let _alone = alone();
    common::again_in_guest_mode();
}
