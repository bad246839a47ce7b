//! The promises of `WriteTracker`, one test each, on every source that this machine has. Those
//! about changes of the mappings are in `mappings.rs`.

mod common;

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use barchan::{KernelWrites, PAGE_SIZE, PageRange, RegionError, Source, Tracker};
use common::{
    Memory, alone, assert_covers, assert_dirty, collect, errno, in_child, peek, tracker, trackers,
};

#[test]
fn a_new_region_is_all_dirty_touched_or_not() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::new(1100);
        memory.write(3);
        let region = memory.track(&tracker);
        let all: Vec<usize> = (0..1100).collect();
        assert_eq!(peek(&region), all, "{}", tracker.source());
        assert_eq!(collect(&region), all, "{}", tracker.source());
    }
}

#[test]
fn written_pages_are_reported_once_and_no_others() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::touched(300);
        let region = memory.track(&tracker);
        collect(&region);
        [5, 64, 255].into_iter().for_each(|page| memory.write(page));
        assert_dirty(&region, &peek(&region), &[5, 64, 255]);
        assert_dirty(&region, &collect(&region), &[5, 64, 255]);
        assert_dirty(&region, &collect(&region), &[]);
        memory.write(64);
        assert_dirty(&region, &collect(&region), &[64]);
    }
}

/// More than a processor's log and what is behind it hold (guest-pml: 512 and 4,096), twice.
#[test]
fn any_number_of_pages_may_be_written_between_two_collections() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::touched(10_000);
        let region = memory.track(&tracker);
        collect(&region);
        let written: Vec<_> = (0..10_000).filter(|page| !(3_000..3_100).contains(page)).collect();
        for _ in 0..2 {
            written.iter().for_each(|page| memory.write(*page));
            assert_dirty(&region, &collect(&region), &written);
        }
        assert_dirty(&region, &collect(&region), &[]);
    }
}

#[test]
fn reading_is_not_writing() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::touched(10);
        let region = memory.track(&tracker);
        collect(&region);
        (0..10).for_each(|page| assert_ne!(memory.read(page), 0));
        assert_dirty(&region, &collect(&region), &[]);
    }
}

#[test]
fn arming_makes_clean_and_disarming_dirty() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::touched(100);
        let region = memory.track(&tracker);
        collect(&region);
        region.disarm(memory.range().slice(10, 3)).expect("disarming");
        assert_dirty(&region, &peek(&region), &[10, 11, 12]);
        memory.write(11);
        assert_dirty(&region, &peek(&region), &[10, 11, 12]);
        assert_dirty(&region, &collect(&region), &[10, 11, 12]);
        region.disarm(memory.range().slice(10, 3)).expect("disarming");
        region.arm(memory.range().slice(12, 1)).expect("arming");
        assert_dirty(&region, &peek(&region), &[10, 11]);
        memory.write(12);
        assert_dirty(&region, &peek(&region), &[10, 11, 12]);
    }
}

#[test]
fn arming_among_arms_those_and_no_others() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::touched(200);
        let region = memory.track(&tracker);
        // (Soft-dirty arms a page only once the kernel's own bit has been reset.)
        collect(&region);
        region.disarm(memory.range()).expect("disarming");
        // A range that does not begin at a word of the region's, nor end with one.
        let range = memory.range().slice(3, 150);
        let mut among = [0u64; 3];
        for page in [0, 1, 60, 61, 62, 63, 64, 65, 149] {
            among[page / 64] |= 1 << (page % 64);
        }
        region.arm_among(range, &among).expect("arming");
        memory.write(3 + 64);
        let armed = [3, 4, 63, 64, 65, 66, 68, 152];
        let dirty: Vec<_> = (0..200).filter(|page| !armed.contains(page)).collect();
        assert_dirty(&region, &peek(&region), &dirty);
        assert_dirty(&region, &collect(&region), &dirty);
        let short = region.arm_among(range, &among[..2]);
        assert!(matches!(short, Err(RegionError::BitmapTooSmall { needed: 3, given: 2 })));
    }
}

#[test]
fn never_touched_pages_are_tracked_from_their_first_write() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::new(2048);
        let region = memory.track(&tracker);
        region.arm(memory.range()).expect("arming");
        memory.write(700);
        assert_covers(&region, &collect(&region), &[700]);
        let zero = memory.read(900);
        memory.write(900);
        assert_eq!(zero, 0);
        assert_covers(&region, &collect(&region), &[900]);
    }
}

/// Has the kernel write one byte or more to each page, one way a page; the errors.
fn kernel_writes(memory: &Memory) -> Vec<(&'static str, usize, Result<(), i32>)> {
    let outcome = |n: isize| if n > 0 { Ok(()) } else { Err(errno()) };
    // SAFETY: every buffer is a page of the test's memory, and every descriptor is opened here.
    unsafe {
        let zero = libc::open(c"/dev/zero".as_ptr(), libc::O_RDONLY);
        let mut pair = [0; 2];
        assert_eq!(libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()), 0);
        assert_eq!(libc::send(pair[0], c"abc".as_ptr().cast(), 3, 0), 3);
        let byte = 7u8;
        let from = libc::iovec { iov_base: (&raw const byte).cast_mut().cast(), iov_len: 1 };
        let into = libc::iovec { iov_base: memory.page(4).cast(), iov_len: 1 };
        let of_two = [
            libc::iovec { iov_base: memory.page(5).cast(), iov_len: 1 },
            libc::iovec { iov_base: memory.page(6).cast(), iov_len: PAGE_SIZE },
        ];
        let result = vec![
            ("read", 1, outcome(libc::read(zero, memory.page(1).cast(), PAGE_SIZE))),
            ("recv", 2, outcome(libc::recv(pair[1], memory.page(2).cast(), 3, 0))),
            ("getrandom", 3, outcome(libc::getrandom(memory.page(3).cast(), 8, 0))),
            (
                "process_vm_writev",
                4,
                outcome(libc::process_vm_writev(libc::getpid(), &from, 1, &into, 1, 0)),
            ),
            ("readv", 6, outcome(libc::readv(zero, of_two.as_ptr(), 2))),
        ];
        [zero, pair[0], pair[1]].into_iter().for_each(|fd| assert_eq!(libc::close(fd), 0));
        result
    }
}

#[test]
fn kernel_writes_are_reported_or_refused() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::touched(10);
        let region = memory.track(&tracker);
        collect(&region);
        let outcomes = kernel_writes(&memory);
        let dirty = collect(&region);
        for (call, page, outcome) in outcomes {
            match tracker.kernel_writes() {
                KernelWrites::Tracked => {
                    assert_eq!(outcome, Ok(()), "{}: {call}", tracker.source());
                    assert_covers(&region, &dirty, &[page]);
                }
                // Some calls store a first part and report that; then it must be dirty. Else they
                // fail, and nothing was written.
                KernelWrites::Efault => match outcome {
                    Ok(()) => assert_covers(&region, &dirty, &[page]),
                    Err(why) => assert_eq!(why, libc::EFAULT, "{}: {call}", tracker.source()),
                },
            }
        }
        // Disarmed pages take every call.
        region.disarm(memory.range()).expect("disarming");
        for (call, _, outcome) in kernel_writes(&memory) {
            assert_eq!(outcome, Ok(()), "{}: {call} into disarmed pages", tracker.source());
        }
    }
}

#[test]
fn writes_through_proc_self_mem_are_reported_but_by_mprotect() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::touched(4);
        let region = memory.track(&tracker);
        collect(&region);
        // SAFETY: the byte written is the test's own.
        let n = unsafe {
            let fd = libc::open(c"/proc/self/mem".as_ptr(), libc::O_RDWR);
            assert!(fd >= 0);
            let n = libc::pwrite(fd, c"x".as_ptr().cast(), 1, memory.page(2) as libc::off_t);
            libc::close(fd);
            n
        };
        let dirty = collect(&region);
        if tracker.source() == Source::Mprotect {
            // The documented limit: if this fails, the limit is gone and the text should go too.
            assert!(n == 1 && dirty.is_empty());
        } else if n == 1 {
            assert_covers(&region, &dirty, &[2]);
        } else {
            println!("{}: /proc/self/mem refuses, errno {}", tracker.source(), errno());
        }
    }
}

#[test]
fn many_regions_side_by_side() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::touched(600);
        let mut regions: Vec<_> = (0..200).map(|i| memory.track_part(&tracker, i * 3, 3)).collect();
        assert_eq!(tracker.regions(), 200);
        regions.iter().for_each(|region| drop(collect(region)));
        (0..600).step_by(7).for_each(|page| memory.write(page));
        for (i, region) in regions.iter().enumerate() {
            let expected: Vec<usize> = (0..3).filter(|page| (i * 3 + page) % 7 == 0).collect();
            assert_dirty(region, &peek(region), &expected);
        }
        regions.retain(|region| region.range().start() % (2 * PAGE_SIZE) == 0);
        (0..600).for_each(|page| memory.write(page));
        regions.iter().for_each(|region| assert_eq!(collect(region).len(), 3));
        drop(regions);
        assert_eq!(tracker.regions(), 0);
    }
}

#[test]
fn a_child_is_all_dirty_until_armed_and_the_parent_notices_nothing() {
    let _alone = alone();
    for tracker in trackers() {
        for raw in [false, true] {
            let memory = Memory::touched(100);
            let region = memory.track(&tracker);
            collect(&region);
            memory.write(7);
            let exact = tracker.source() != Source::AllDirty;
            let status = common::child_status(raw, || {
                let before = peek(&region).len() == 100;
                memory.write(8);
                region.arm(memory.range()).expect("arming in a child");
                let armed = peek(&region);
                memory.write(9);
                let dirty = collect(&region);
                memory.write(10);
                let again = collect(&region);
                // A child of the child.
                let nested = common::child_status(raw, || {
                    let all = peek(&region).len() == 100;
                    let reset = collect(&region).len() == 100;
                    memory.write(11);
                    all && reset && collect(&region).contains(&11)
                });
                let soft = tracker.source() == Source::SoftDirty;
                let expected = |got: &[usize], page| {
                    if exact && !soft { got == [page] } else { got.contains(&page) }
                };
                before
                    && (!exact || soft || armed.is_empty())
                    && expected(&dirty, 9)
                    && (!soft || dirty.len() <= 100)
                    && expected(&again, 10)
                    && nested == 0
            });
            assert_eq!(status, 0, "{}, raw clone: {raw}", tracker.source());
            memory.write(12);
            assert_dirty(&region, &collect(&region), &[7, 12]);
        }
    }
}

#[test]
fn a_child_made_while_other_threads_track_works() {
    let _alone = alone();
    for tracker in trackers().into_iter().filter(|t| t.source() != Source::SoftDirty) {
        let memory = Memory::touched(64);
        let region = memory.track(&tracker);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    (0..64).for_each(|page| memory.write(page));
                    let mut bits = [0];
                    region.collect_and_reset(memory.range(), &mut bits).expect("collecting");
                }
            });
            for i in 0..100 {
                let status = common::child_status(i % 2 == 0, || {
                    // No heap here: a raw clone may have caught the other thread in malloc.
                    let mut bits = [0];
                    let all = region.peek(memory.range(), &mut bits).is_ok() && bits == [u64::MAX];
                    let armed = region.collect_and_reset(memory.range(), &mut bits).is_ok();
                    memory.write(5);
                    bits = [0];
                    let again = region.collect_and_reset(memory.range(), &mut bits).is_ok();
                    all && armed && again && bits[0] & 1 << 5 != 0
                });
                assert_eq!(status, 0, "{} child {i}: {status:#x}", tracker.source());
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}

static IS_CHILD: AtomicBool = AtomicBool::new(false);
/// The wait status of the handler's child, or [`NOT_YET`].
static STATUS: AtomicI32 = AtomicI32::new(NOT_YET);
const NOT_YET: i32 = -1;

/// Forks: the child goes on where the signal came.
extern "C" fn fork_here(_: libc::c_int) {
    // SAFETY: these calls are async-signal-safe.
    unsafe {
        let pid = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as i32;
        if pid == 0 {
            libc::alarm(60);
            IS_CHILD.store(true, Ordering::SeqCst);
            return;
        }
        let mut status = 1;
        libc::waitpid(pid, &mut status, 0);
        STATUS.store(status, Ordering::SeqCst);
    }
}

#[test]
fn a_child_forked_by_a_signal_handler_in_a_collection_takes_nothing_from_its_parent() {
    let _alone = alone();
    // SAFETY: the handler fits, and the signal is used by nobody else.
    unsafe { libc::signal(libc::SIGUSR1, fork_here as *const () as usize) };
    for tracker in trackers() {
        // Where faults are dear there are fewer, in some requests all the same.
        let few = tracker.source() != Source::PagemapScan;
        let (pages, step) = if few { (6_000, 4) } else { (100_000, 1) };
        let memory = Memory::touched(pages);
        let region = memory.track(&tracker);
        let mut bits = vec![0; barchan::bitmap::words_for(pages)];
        for round in (0..8).step_by(step) {
            (0..pages).step_by(2).for_each(|page| memory.write(page));
            bits.fill(0);
            STATUS.store(NOT_YET, Ordering::SeqCst);
            let begins = AtomicBool::new(false);
            // SAFETY: no argument.
            let collector = unsafe { libc::pthread_self() };
            let is_missing = |bits: &[u64]| {
                (0..pages).step_by(2).find(|&page| !barchan::bitmap::get(bits, page))
            };
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !begins.load(Ordering::SeqCst) {
                        std::hint::spin_loop();
                    }
                    // Somewhere in the collection, most likely.
                    let (now, delay) = (Instant::now(), Duration::from_micros(120 * round));
                    while now.elapsed() < delay {
                        std::hint::spin_loop();
                    }
                    // SAFETY: the thread waits for the handler below.
                    assert_eq!(unsafe { libc::pthread_kill(collector, libc::SIGUSR1) }, 0);
                });
                begins.store(true, Ordering::SeqCst);
                let collected = region.collect_and_reset(memory.range(), &mut bits);
                if IS_CHILD.load(Ordering::SeqCst) {
                    // SAFETY: it exits without unwinding.
                    unsafe { libc::_exit(i32::from(is_missing(&bits).is_some())) };
                }
                collected.expect("collecting");
                while STATUS.load(Ordering::SeqCst) == NOT_YET {
                    if IS_CHILD.load(Ordering::SeqCst) {
                        // SAFETY: as above. The signal came too late, and there is nothing to see.
                        unsafe { libc::_exit(0) };
                    }
                    std::thread::yield_now();
                }
            });
            let source = tracker.source();
            assert_eq!(STATUS.load(Ordering::SeqCst), 0, "{source}: the child, round {round}");
            assert_eq!(is_missing(&bits), None, "{source}: the parent, round {round}");
        }
    }
}

/// The first thread's files in `/proc` are empty once it has exited, though the process goes on.
#[test]
fn a_tracker_is_opened_after_the_first_thread_has_exited() {
    let _alone = alone();
    for source in trackers().into_iter().map(|tracker| tracker.source()) {
        in_child("the first thread exits", || {
            std::thread::spawn(move || {
                let is_over = || {
                    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc");
                    stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"))
                };
                while !is_over() {
                    std::thread::yield_now();
                }
                let ok = std::panic::catch_unwind(|| {
                    let tracker = tracker(source).expect("as in the parent");
                    let memory = Memory::touched(20);
                    let region = memory.track(&tracker);
                    collect(&region);
                    memory.write(7);
                    assert_dirty(&region, &collect(&region), &[7]);
                });
                // SAFETY: no argument.
                unsafe { libc::_exit(i32::from(ok.is_err())) };
            });
            // SAFETY: the child's first thread holds nothing that the other waits for.
            unsafe { libc::syscall(libc::SYS_exit, 1) };
            false
        });
    }
}

#[test]
fn ranges_are_the_same_as_bits() {
    let _alone = alone();
    for tracker in trackers().into_iter().filter(|t| t.source() != Source::SoftDirty) {
        let memory = Memory::touched(500);
        let region = memory.track(&tracker);
        collect(&region);
        let written: Vec<usize> =
            (0..500).filter(|page| page % 11 < 3 || (200..300).contains(page)).collect();
        written.iter().for_each(|&page| memory.write(page));
        let mut out = [memory.range().slice(0, 0); 5];
        let (mut rest, mut got) = (memory.range(), Vec::new());
        while !rest.is_empty() {
            let collected = region.collect_ranges(rest, &mut out).expect("collecting");
            for run in &out[..collected.filled] {
                let first = (run.start() - memory.range().start()) / PAGE_SIZE;
                got.extend(first..first + run.pages());
            }
            rest = collected.rest;
        }
        assert_dirty(&region, &got, &written);
        assert_dirty(&region, &collect(&region), &[]);
        let none = region.collect_ranges(memory.range(), &mut []).expect("nothing to do");
        assert_eq!((none.filled, none.rest), (0, memory.range()));
    }
}

#[test]
fn hot_pages_are_spared_and_reported() {
    let _alone = alone();
    let policy = barchan::HotPagePolicy { after: 2, first_spared: 4, max_spared: 8 };
    for tracker in trackers().into_iter().filter(|t| t.source() != Source::SoftDirty) {
        let memory = Memory::touched(200);
        let region = memory.track(&tracker);
        let mut hot = barchan::HotPages::new(policy, memory.range());
        let mut spared = 0;
        for round in 0..40 {
            let hot_pages: &[usize] = if round < 30 { &[10, 11, 12] } else { &[] };
            hot_pages.iter().for_each(|&page| memory.write(page));
            memory.write(100 + round);
            let mut bits = [0; 4];
            region.collect_and_reset_with(&mut hot, &mut bits).expect("collecting");
            for page in hot_pages.iter().copied().chain([100 + round]) {
                assert!(barchan::bitmap::get(&bits, page), "{} round {round}", tracker.source());
            }
            spared += usize::from(barchan::bitmap::get(hot.spared(), 11));
        }
        assert!(spared > 15, "{}: page 11 was spared {spared} times of 40", tracker.source());
        let mut bits = [0; 4];
        region.collect_and_reset_with(&mut hot, &mut bits).expect("collecting");
        if tracker.source() != Source::AllDirty {
            assert!(!barchan::bitmap::get(&bits, 11), "{}: cold again", tracker.source());
        }
    }
}

/// The pages that a region is resized to leave out are its own until it is done with them.
#[test]
fn pages_that_a_region_leaves_out_are_tracked_by_another_at_once() {
    let _alone = alone();
    for tracker in trackers().into_iter().filter(|t| t.source() != Source::SoftDirty) {
        let memory = Memory::touched(16);
        let (left, right) = (memory.range().slice(0, 8), memory.range().slice(8, 8));
        let rounds = if tracker.source() == Source::Mprotect { 2_000 } else { 100 };
        // The round in which the region shrinks, and the last in which the pages were tracked.
        let (shrinks, tracked) = (AtomicI32::new(0), AtomicI32::new(0));
        let is_over = AtomicBool::new(false);
        let wait_for = |round: i32, counter: &AtomicI32| {
            while counter.load(Ordering::SeqCst) < round && !is_over.load(Ordering::SeqCst) {
                std::hint::spin_loop();
            }
        };
        std::thread::scope(|scope| {
            let mut resized = memory.track_part(&tracker, 0, 8);
            let (shrinks, tracked, is_over) = (&shrinks, &tracked, &is_over);
            let resizing = scope.spawn(move || {
                let done = (1..=rounds).try_for_each(|round| {
                    // SAFETY: the pages are the test's.
                    unsafe { resized.resize(memory_of(left, right)) }?;
                    shrinks.store(round, Ordering::SeqCst);
                    // SAFETY: as above.
                    unsafe { resized.resize(left) }?;
                    wait_for(round, tracked);
                    Ok::<_, RegionError>(())
                });
                is_over.store(true, Ordering::SeqCst);
                done
            });
            let missed = (1..=rounds).find(|&round| {
                wait_for(round, shrinks);
                let region = loop {
                    // SAFETY: as above.
                    match unsafe { tracker.track(right) } {
                        Ok(region) => break region,
                        Err(_) if is_over.load(Ordering::SeqCst) => return false,
                        Err(_) => {}
                    }
                };
                let mut bits = [0];
                region.collect_and_reset(right, &mut bits).expect("collecting");
                memory.write(12);
                bits = [0];
                region.collect_and_reset(right, &mut bits).expect("collecting");
                drop(region);
                tracked.store(round, Ordering::SeqCst);
                bits[0] & 1 << 4 == 0
            });
            is_over.store(true, Ordering::SeqCst);
            assert_eq!(missed, None, "{}: the round of a missed write", tracker.source());
            assert_eq!(resizing.join().expect("no panic"), Ok(()), "{}", tracker.source());
        });
        assert_eq!(tracked.into_inner(), rounds, "{}", tracker.source());
        assert_eq!(tracker.regions(), 0);
    }
}

/// From the start of one to the end of the other.
fn memory_of(left: PageRange, right: PageRange) -> PageRange {
    PageRange::new(left.start(), right.end() - left.start()).expect("pages")
}

#[test]
fn two_trackers_take_no_report_from_each_other() {
    let _alone = alone();
    for (one, other) in
        trackers().iter().flat_map(|one| trackers().into_iter().map(move |t| (one.clone(), t)))
    {
        let (source, both) = (one.source(), [one.source(), other.source()]);
        if both[0] != both[1] && !both.iter().all(|source| source.needs_guest_mode()) {
            continue;
        }
        let memory = Memory::touched(24);
        let outer = memory.track_part(&one, 0, 16);
        let mut beside = memory.track_part(&other, 16, 8);
        // SAFETY: the pages are the test's.
        let (inner, resized) = unsafe {
            let inner = other.track(memory.range().slice(4, 8));
            (inner, beside.resize(memory.range().slice(15, 9)))
        };
        let is_refused = |why: &RegionError| match source {
            Source::PagemapScan | Source::Userfaultfd => {
                matches!(why, RegionError::System { errno, .. } if errno.0 == libc::EBUSY)
            }
            _ => matches!(why, RegionError::Overlap { .. }),
        };
        match (inner, resized) {
            (Ok(inner), Ok(())) => {
                assert!(matches!(source, Source::SoftDirty | Source::AllDirty), "{both:?}");
                [&outer, &beside, &inner].into_iter().for_each(|region| drop(collect(region)));
                [6, 15].into_iter().for_each(|page| memory.write(page));
                assert_covers(&inner, &collect(&inner), &[2]);
                assert_covers(&beside, &collect(&beside), &[0]);
                assert_covers(&outer, &collect(&outer), &[6, 15]);
            }
            (Err(inner), Err(resized)) => {
                assert!(is_refused(&inner) && is_refused(&resized), "{both:?}: {inner}; {resized}");
                assert_eq!(beside.range(), memory.range().slice(16, 8));
                drop(outer);
                // SAFETY: as above.
                unsafe { beside.resize(memory.range()) }.expect("the pages are free");
                collect(&beside);
                memory.write(6);
                assert_covers(&beside, &collect(&beside), &[6]);
            }
            mixed => panic!("{both:?}: {mixed:?}"),
        }
    }
}

#[test]
fn arguments_are_checked() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::touched(130);
        let mut region = memory.track_part(&tracker, 0, 100);
        let outside = memory.range().slice(99, 2);
        assert!(matches!(region.arm(outside), Err(RegionError::Outside { .. })));
        assert!(matches!(region.disarm(outside), Err(RegionError::Outside { .. })));
        assert!(matches!(region.remapped(outside), Err(RegionError::Outside { .. })));
        let small = region.peek(region.range(), &mut [0]);
        assert_eq!(small, Err(RegionError::BitmapTooSmall { needed: 2, given: 1 }));
        let empty = PageRange::new(memory.range().start(), 0).expect("aligned");
        assert_eq!(region.arm(empty), Ok(()));
        assert_eq!(region.collect_and_reset(empty, &mut []), Ok(0));
        // SAFETY: refused before anything is touched.
        unsafe {
            assert!(matches!(tracker.track(empty), Err(RegionError::Empty)));
            assert!(matches!(tracker.track(outside), Err(RegionError::Overlap { .. })));
            assert!(matches!(region.resize(empty), Err(RegionError::Empty)));
            let other = tracker.track(memory.range().slice(110, 5)).expect("free pages");
            let over = region.resize(memory.range());
            assert!(matches!(over, Err(RegionError::Overlap { .. })), "{over:?}");
            drop(other);
            region.resize(memory.range()).expect("free now");
        }
        assert!(tracker.stats().scans < 10);
    }
}

#[test]
fn memory_that_cannot_be_tracked_is_an_error() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::touched(10);
        let nowhere = memory.range();
        drop(memory);
        let source = tracker.source();
        if matches!(source, Source::PagemapScan | Source::Userfaultfd) {
            // SAFETY: nothing is mapped there, which breaks the promise in a way that these
            // sources find out at once.
            let refused = unsafe { tracker.track(nowhere) };
            assert!(matches!(refused, Err(RegionError::System { .. })), "{source}: {refused:?}");
            assert_eq!(tracker.regions(), 0);
        }
    }
}

#[test]
fn statistics_count() {
    let _alone = alone();
    for tracker in trackers() {
        let memory = Memory::touched(20);
        let region = memory.track(&tracker);
        collect(&region);
        let before = tracker.stats();
        (0..5).for_each(|page| memory.write(page));
        collect(&region);
        region.disarm(memory.range()).expect("disarming");
        let after = tracker.stats();
        assert_eq!(after.scans - before.scans, 1);
        assert!(after.pages_reported - before.pages_reported >= 5);
        let faults = after.faults.zip(before.faults).map(|(after, before)| after - before);
        match tracker.source() {
            Source::GuestPte | Source::GuestPml | Source::PagemapScan | Source::SoftDirty => {
                assert_eq!(faults, None);
            }
            Source::AllDirty => assert_eq!(faults, Some(0)),
            _ => assert_eq!(faults, Some(5)),
        }
    }
}

#[test]
fn auto_is_the_best_that_works_and_the_environment_forces() {
    let _alone = alone();
    let works: Vec<Source> = trackers().iter().map(Tracker::source).collect();
    let automatic = works.iter().find(|source| source.is_automatic());
    let auto = Tracker::builder().ignore_env().open().expect("all-dirty is always there");
    match auto.stats().measured {
        // In guest mode: by the figures, whatever they are here.
        Some(measured) => {
            println!("measured: {measured:?}, chosen: {}", auto.source());
            assert!(works.starts_with(&[Source::GuestPte, Source::PagemapScan]), "{works:?}");
            assert_eq!(auto.source(), measured.better());
            assert!(measured.guest_pte_ns > 0 && measured.pagemap_scan_ns > 0, "{measured:?}");
            let again = Tracker::builder().ignore_env().open().expect("as before");
            assert_eq!(again.stats().measured, Some(measured), "once in a process");
        }
        None if automatic.is_none() => assert!(common::is_in_guest_mode()),
        None => assert_eq!(Some(&auto.source()), automatic),
    }
    let with_env = |value: &str| {
        // SAFETY: the child has this thread only.
        unsafe { std::env::set_var(barchan::ENV, value) };
        Tracker::open()
    };
    in_child("BARCHAN_TRACKER=all-dirty", || {
        with_env("all-dirty").is_ok_and(|tracker| tracker.source() == Source::AllDirty)
    });
    in_child("BARCHAN_TRACKER=auto", || {
        with_env("auto").is_ok_and(|tracker| tracker.source() == auto.source())
    });
    in_child("BARCHAN_TRACKER=nonsense", || {
        with_env("nonsense").is_err_and(|why| why.to_string().contains("pagemap-scan userfaultfd"))
    });
}

#[test]
fn all_of_this_in_guest_mode() {
    common::again_in_guest_mode();
}

/// To try soft-dirty again clears no bit of what is tracked, and written to meanwhile.
#[test]
fn trying_soft_dirty_loses_no_write() {
    const PAGES: usize = 20_000;
    let _alone = alone();
    let Some(tracker) = common::tracker(Source::SoftDirty) else { return };
    let memory = Memory::touched(PAGES);
    let region = memory.track(&tracker);
    collect(&region);
    assert!(peek(&region).is_empty());
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (0..PAGES).for_each(|page| memory.write(page)));
        while !writer.is_finished() {
            barchan::probe(Source::SoftDirty).expect("as before");
        }
    });
    assert_eq!(peek(&region).len(), PAGES);
}
