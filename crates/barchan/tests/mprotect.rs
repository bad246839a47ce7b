//! What only the mprotect source can do wrong: exhaust the mappings, hang, or swallow the faults
//! of others. Each test that ends in a signal runs in a child.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use barchan::{ErrorKind, PAGE_SIZE, Source, bitmap};
use common::{Memory, alone, child_status, collect, in_child, make_read_only, peek, tracker};

const ALTERNATING: usize = 200_000;

/// Arms every page and writes every second.
fn alternate(source: Source) -> Option<(Result<usize, barchan::RegionError>, Duration, u64)> {
    let tracker = tracker(source)?;
    let memory = Memory::touched(2 * ALTERNATING);
    let region = memory.track(&tracker);
    let began = Instant::now();
    region.arm(memory.range()).expect("one run needs no mappings");
    (0..2 * ALTERNATING).step_by(2).for_each(|page| memory.write(page));
    let mut bits = vec![0; bitmap::words_for(2 * ALTERNATING)];
    let collected = region.collect_and_reset(memory.range(), &mut bits);
    for page in (0..2 * ALTERNATING).step_by(2) {
        assert!(bitmap::get(&bits, page), "{source}: page {page} is missing");
    }
    // It goes on working, whatever came of it.
    [1, 2, 77_777].into_iter().for_each(|page| memory.write(page));
    let dirty = peek(&region);
    assert!([1, 2, 77_777].iter().all(|page| dirty.contains(page)), "{source}");
    Some((collected, began.elapsed(), tracker.stats().degraded))
}

#[test]
fn pagemap_scan_does_not_mind_200_000_alternating_pages() {
    let _alone = alone();
    if let Some((collected, took, degraded)) = alternate(Source::PagemapScan) {
        println!("pagemap-scan: {took:?}");
        assert_eq!((collected, degraded), (Ok(ALTERNATING), 0));
    }
}

#[test]
fn mprotect_survives_200_000_alternating_pages() {
    let _alone = alone();
    if let Some((collected, took, degraded)) = alternate(Source::Mprotect) {
        println!("mprotect: {took:?}, degraded {degraded} times, {collected:?}");
        assert!(took < Duration::from_secs(60), "no hang: {took:?}");
        assert!(degraded > 0, "vm.max_map_count is larger than this test knows of");
    }
}

#[test]
fn running_out_of_mappings_is_an_error_that_says_so() {
    let _alone = alone();
    let Some(tracker) = tracker(Source::Mprotect) else { return };
    let memory = Memory::touched(2 * ALTERNATING);
    let region = memory.track(&tracker);
    region.arm(memory.range()).expect("arming");
    region.disarm(memory.range()).expect("disarming");
    let failed = (0..2 * ALTERNATING)
        .step_by(2)
        .find_map(|page| region.arm(memory.range().slice(page, 1)).err());
    let why = failed.expect("65,530 mappings are not enough for 200,000 runs");
    assert_eq!(why.kind(), ErrorKind::Exhausted);
    assert!(why.to_string().contains("vm.max_map_count"), "{why}");
    assert_eq!(peek(&region).len(), 2 * ALTERNATING, "all dirty");
    memory.write(5);
    collect(&region);
    memory.write(6);
    assert!(peek(&region).contains(&6));
}

/// Mappings of the program's own, up to the limit.
struct OutOfMappings(#[allow(dead_code)] Memory);

impl OutOfMappings {
    fn new() -> Self {
        let memory = Memory::new(2 * ALTERNATING);
        let failed = (1..2 * ALTERNATING).step_by(2).find(|&page| {
            // SAFETY: the page is the test's, and not touched.
            unsafe { libc::mprotect(memory.page(page).cast(), PAGE_SIZE, libc::PROT_READ) != 0 }
        });
        assert!(failed.is_some(), "vm.max_map_count is larger than this test knows of");
        Self(memory)
    }
}

/// Runs `body` in a child, where a crash is no crash of the test.
#[track_caller]
fn at_the_limit(what: &str, body: impl FnOnce(barchan::Tracker)) {
    let _alone = alone();
    let Some(tracker) = tracker(Source::Mprotect) else { return };
    in_child(what, || {
        body(tracker);
        true
    });
}

/// The kernel has joined their mappings, and to lift the protection of one takes two more.
#[test]
fn a_store_between_armed_regions_works_without_mappings() {
    at_the_limit("three regions side by side", |tracker| {
        let memory = Memory::touched(96);
        let regions: Vec<_> = (0..3).map(|i| memory.track_part(&tracker, i * 32, 32)).collect();
        regions.iter().for_each(|region| assert_eq!(collect(region).len(), 32));
        let _limit = OutOfMappings::new();
        memory.write(40);
        assert!(tracker.stats().degraded > 0, "the store took no mapping");
        assert!(peek(&regions[1]).contains(&8));
        memory.write(5);
        memory.write(70);
        assert!(collect(&regions[0]).contains(&5));
        assert!(peek(&regions[2]).contains(&6));
        drop(regions);
        (0..96).for_each(|page| memory.write(page));
    });
}

/// More regions than the reserve is for.
#[test]
fn a_store_to_each_of_many_regions_works_without_mappings() {
    at_the_limit("400 regions side by side", |tracker| {
        let memory = Memory::touched(1200);
        let regions: Vec<_> = (0..400).map(|i| memory.track_part(&tracker, i * 3, 3)).collect();
        let mut bits = [0];
        for region in &regions {
            region.collect_and_reset(region.range(), &mut bits).expect("arming");
        }
        let _limit = OutOfMappings::new();
        for round in 0..2 {
            // Every other region, so that each keeps read-only neighbours.
            (round..400).step_by(2).for_each(|i| memory.write(3 * i + 1));
            for (i, region) in regions.iter().enumerate().skip(round).step_by(2) {
                let mut again = [0];
                bits = [0];
                region.peek(region.range(), &mut bits).expect("peeking");
                assert_ne!(bits[0] & 2, 0, "region {i}");
                // It may be refused, and then all is dirty.
                let _ = region.collect_and_reset(region.range(), &mut again);
                assert_ne!(again[0] & 2, 0, "region {i}");
            }
        }
        (0..1200).for_each(|page| memory.write(page));
        for region in &regions {
            bits = [0];
            region.peek(region.range(), &mut bits).expect("peeking");
            assert_eq!(bits, [7]);
        }
        drop(regions);
        (0..1200).for_each(|page| memory.write(page));
    });
}

#[test]
fn a_region_is_given_back_writable_without_mappings() {
    at_the_limit("one of two regions side by side", |tracker| {
        let memory = Memory::touched(64);
        let first = memory.track_part(&tracker, 0, 32);
        let mut second = memory.track_part(&tracker, 32, 32);
        collect(&first);
        collect(&second);
        let _limit = OutOfMappings::new();
        drop(first);
        (0..32).for_each(|page| memory.write(page));
        collect(&second);
        // SAFETY: the pages are the test's.
        unsafe { second.resize(memory.range().slice(40, 10)) }.expect("resizing");
        (32..64).for_each(|page| memory.write(page));
        assert_eq!(peek(&second).len(), 10);
    });
}

/// Read-only pages of the program's own border on each region: no neighbour to be unprotected with.
#[test]
fn what_cannot_be_unprotected_goes_on_working() {
    at_the_limit("regions between read-only pages", |tracker| {
        let memory = Memory::touched(3 * 100);
        let ours = |i: usize| memory.range().slice(3 * i + 1, 1);
        let regions: Vec<_> = (0..100).map(|i| memory.track_part(&tracker, 3 * i + 1, 1)).collect();
        regions.iter().for_each(|region| assert_eq!(collect(region), [0]));
        (0..300).filter(|page| page % 3 != 1).for_each(|page| make_read_only(&memory, page));
        let limit = OutOfMappings::new();
        memory.write(1);
        assert_eq!(peek(&regions[0]), [0]);
        drop(regions);
        // SAFETY: the pages are the test's; some are still protected.
        let refused = (0..100).filter(|&i| unsafe { tracker.track(ours(i)) }.is_err()).count();
        assert!(refused > 0, "the reserve is larger than this test knows of");
        drop(limit);
        (0..50).for_each(|i| memory.write(3 * i + 1));
        for i in 0..100 {
            // SAFETY: as above.
            let region = unsafe { tracker.track(ours(i)) }.expect("there are mappings again");
            assert_eq!(collect(&region), [0]);
            assert_eq!(collect(&region), []);
            memory.write(3 * i + 1);
            assert_eq!(collect(&region), [0]);
        }
        (0..100).for_each(|i| memory.write(3 * i + 1));
    });
}

/// As the test above; here the regions stay.
#[test]
fn what_cannot_be_unprotected_goes_on_working_at_another_size() {
    at_the_limit("regions between read-only pages, resized", |tracker| {
        let memory = Memory::touched(5 * 100);
        let mut regions: Vec<_> =
            (0..100).map(|i| memory.track_part(&tracker, 5 * i + 1, 3)).collect();
        regions.iter().for_each(|region| assert_eq!(collect(region), [0, 1, 2]));
        let between = (0..500).filter(|page| page % 5 == 0 || page % 5 == 4);
        between.for_each(|page| make_read_only(&memory, page));
        let limit = OutOfMappings::new();
        let middle = |region: &barchan::Region| region.disarm(region.range().slice(1, 1));
        let refused = regions.iter().filter(|region| middle(region).is_err()).count();
        assert!(refused > 0, "the reserve is larger than this test knows of");
        drop(limit);
        for (i, region) in regions.iter_mut().enumerate() {
            // SAFETY: the pages are the test's.
            unsafe { region.resize(memory.range().slice(5 * i + 1, 2)) }.expect("resizing");
        }
        for (i, region) in regions.iter().enumerate() {
            memory.write(5 * i + 1);
            memory.write(5 * i + 2);
            assert_eq!(peek(region), [0, 1], "region {i}");
        }
    });
}

/// What is left of a region without an owner is kept no longer than need be: other memory may come there.
#[test]
fn what_could_not_be_unprotected_is_when_there_are_mappings_again() {
    at_the_limit("abandoned regions", |tracker| {
        let (memory, unrelated) = (Memory::touched(3 * 100), Memory::touched(1));
        let regions: Vec<_> = (0..100).map(|i| memory.track_part(&tracker, 3 * i + 1, 1)).collect();
        regions.iter().for_each(|region| assert_eq!(collect(region), [0]));
        (0..300).filter(|page| page % 3 != 1).for_each(|page| make_read_only(&memory, page));
        let limit = OutOfMappings::new();
        drop(regions);
        drop(limit);
        drop(unrelated.track(&tracker));
        for page in (0..100).map(|i| 3 * i + 1) {
            memory.write(page);
            // Another page, and read-only for a reason of the program's.
            memory.replace(page, 1);
            make_read_only(&memory, page);
        }
        // The last regions to be dropped are those for which there was no reserve.
        for page in [1, 148, 295, 298] {
            let status = child_status(false, || {
                memory.write(page);
                true
            });
            assert!(libc::WIFSIGNALED(status), "a store to page {page}: {status:#x}");
            assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
        }
    });
}

/// The kernel stops at the first page that is not there.
#[test]
fn a_region_with_pages_unmapped_is_given_back_writable() {
    let _alone = alone();
    let Some(tracker) = tracker(Source::Mprotect) else { return };
    let unmap = |memory: &Memory, first, count| {
        // SAFETY: the pages are the test's, and not used any more.
        assert_eq!(unsafe { libc::munmap(memory.page(first).cast(), count * PAGE_SIZE) }, 0);
    };
    in_child("dropped", || {
        let memory = Memory::touched(16);
        let region = memory.track(&tracker);
        collect(&region);
        unmap(&memory, 4, 1);
        unmap(&memory, 9, 2);
        drop(region);
        [0, 3, 5, 8, 11, 15].into_iter().for_each(|page| memory.write(page));
        true
    });
    in_child("resized", || {
        let memory = Memory::touched(16);
        let mut region = memory.track(&tracker);
        collect(&region);
        unmap(&memory, 4, 1);
        // SAFETY: the pages are the test's.
        unsafe { region.resize(memory.range().slice(8, 4)) }.expect("resizing");
        [0, 3, 5, 7, 12, 15].into_iter().for_each(|page| memory.write(page));
        memory.write(9);
        collect(&region) == [1]
    });
    in_child("all of it", || {
        let memory = Memory::touched(1);
        let large = Memory::new(16 << 18);
        let region = large.track(&tracker);
        region.arm(large.range()).expect("arming");
        unmap(&large, 0, 16 << 18);
        drop(region);
        let region = memory.track(&tracker);
        collect(&region) == [0]
    });
}

/// A fault whose signal is blocked ends the process.
#[test]
fn a_thread_that_blocks_the_signal_may_open_it() {
    let _alone = alone();
    in_child("SIGSEGV is blocked", || {
        // SAFETY: an all-zero set is valid, and made empty besides.
        let is_blocked = |how: Option<libc::c_int>| unsafe {
            let [mut set, mut old]: [libc::sigset_t; 2] = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGSEGV);
            let set = if how.is_some() { &raw const set } else { std::ptr::null() };
            assert_eq!(libc::pthread_sigmask(how.unwrap_or(0), set, &mut old), 0);
            libc::sigismember(&old, libc::SIGSEGV) == 1
        };
        is_blocked(Some(libc::SIG_BLOCK));
        barchan::probe(Source::Mprotect).expect("mprotect is everywhere");
        let tracker = tracker(Source::Mprotect).expect("mprotect is everywhere");
        assert!(is_blocked(None), "the mask is as it was");
        is_blocked(Some(libc::SIG_UNBLOCK));
        let memory = Memory::touched(4);
        let region = memory.track(&tracker);
        collect(&region);
        memory.write(2);
        collect(&region) == [2]
    });
}

/// Runs `body` in a child, while three threads write to all of `memory`.
#[track_caller]
fn while_threads_fault(what: &str, memory: &Memory, body: impl FnOnce()) {
    in_child(what, || {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        (0..memory.range().pages()).for_each(|page| memory.write(page));
                    }
                });
            }
            body();
            stop.store(true, Ordering::Relaxed);
        });
        true
    });
}

#[test]
fn regions_may_come_and_go_while_threads_fault() {
    let _alone = alone();
    let Some(tracker) = tracker(Source::Mprotect) else { return };
    let memory = Memory::touched(512);
    while_threads_fault("regions that come and go", &memory, || {
        for round in 0..500 {
            let mut region = memory.track_part(&tracker, round % 64, 256);
            region.arm(region.range()).expect("arming");
            // SAFETY: the pages are the test's.
            unsafe { region.resize(memory.range().slice(32, 400)) }.expect("resizing");
            region.arm(region.range()).expect("arming");
        }
    });
}

/// A fault that finds its region gone, and the page protected again by the next one.
#[test]
fn a_region_may_follow_another_while_threads_fault() {
    let _alone = alone();
    let Some(tracker) = tracker(Source::Mprotect) else { return };
    let memory = Memory::touched(8);
    while_threads_fault("regions one after the other", &memory, || {
        for _ in 0..5_000 {
            let region = memory.track(&tracker);
            region.arm(region.range()).expect("arming");
        }
    });
}
