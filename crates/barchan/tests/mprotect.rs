//! What only the mprotect source can do wrong: exhaust the mappings, hang, or swallow the faults
//! of others. Each test that ends in a signal runs in a child.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use barchan::{ErrorKind, PAGE_SIZE, Source, bitmap};
use common::{Memory, alone, child_status, collect, in_child, peek, tracker};

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

#[test]
fn faults_of_the_program_kill_it_as_before() {
    let _alone = alone();
    let killed_by_segv = |what: &str, status: i32| {
        assert!(libc::WIFSIGNALED(status), "{what}: {status:#x}");
        assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV, "{what}");
    };
    // SAFETY: the child is to die of these stores.
    let crash = |address: usize| unsafe { (address as *mut u8).write_volatile(1) };
    let armed = |crash: &dyn Fn(&Memory)| {
        // SAFETY: the test harness' own handler (for stack overflows) would report the crash.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        let tracker = tracker(Source::Mprotect).expect("mprotect is everywhere");
        let memory = Memory::touched(4);
        let region = memory.track(&tracker);
        collect(&region);
        memory.write(2);
        crash(&memory);
        true
    };
    killed_by_segv("null", child_status(false, || armed(&|_| crash(8))));
    killed_by_segv(
        "a read-only page of the program's",
        child_status(false, || {
            armed(&|_| {
                let other = Memory::touched(1);
                // SAFETY: the page is the test's.
                unsafe { libc::mprotect(other.page(0).cast(), PAGE_SIZE, libc::PROT_READ) };
                other.write(0);
            })
        }),
    );
    killed_by_segv(
        "a tracked page that the program protected itself",
        child_status(false, || {
            armed(&|memory| {
                // SAFETY: the page is the test's.
                unsafe { libc::mprotect(memory.page(2).cast(), PAGE_SIZE, libc::PROT_NONE) };
                memory.write(2);
            })
        }),
    );
    killed_by_segv(
        "a signal sent by somebody",
        // SAFETY: raising a signal is what is tested.
        child_status(false, || armed(&|_| assert_eq!(unsafe { libc::raise(libc::SIGSEGV) }, 0))),
    );
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
