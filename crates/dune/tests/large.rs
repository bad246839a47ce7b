//! Large pages: 2 MiB with one entry, until somebody wants to know which of its pages were written to, or takes a
//! part away.

mod support;

use std::collections::HashSet;
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use dune::PAGE_SIZE as PAGE;
use dune::inside::Inside;
use support::{End, passes};

/// Bytes and pages of a large page.
const LARGE: usize = 2 << 20;
const PAGES: usize = LARGE / PAGE;

/// Memory for so many large pages: where it starts.
fn reserve(count: usize) -> usize {
    let (rights, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(null_mut(), (count + 2) * LARGE, rights, flags, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    // Not at the beginning: there the pages have entries from the start.
    (start as usize + 1).next_multiple_of(LARGE)
}

/// So many large pages.
fn large(inside: Inside, count: usize) -> usize {
    let start = reserve(count);
    let made = inside.populate_large(start..start + count * LARGE);
    // The first may have had entries.
    assert!(made.is_ok_and(|made| made + 1 >= count), "{made:?}");
    start
}

/// Passes in guest mode, over huge pages of the host's and over small ones.
fn passes_over_both(body: fn(Inside)) {
    passes(|| {
        let inside = Inside::current().expect("inside");
        body(inside);
        // Whether it is given or not: from now on nobody but the program asks for huge pages.
        // SAFETY: no pointer.
        unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        body(inside);
    });
}

/// How a forked child ends that does this.
fn child(act: impl FnOnce() -> i32) -> End {
    // SAFETY: the child acts and ends, and nothing else.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::_exit(act());
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        support::end(status)
    }
}

fn read(address: usize) {
    word(address).load(Ordering::Relaxed);
}

fn word(address: usize) -> &'static AtomicU64 {
    // SAFETY: an aligned word of a mapping that stays, used only as an atomic.
    unsafe { AtomicU64::from_ptr(address as *mut u64) }
}

/// The pages of `range` that are dirty, which are clean afterwards.
fn collect(inside: Inside, range: Range<usize>) -> HashSet<usize> {
    let mut bits = vec![0u64; ((range.end - range.start) / PAGE).div_ceil(64)];
    let pages = (range.end - range.start) / PAGE;
    inside.collect(range, &mut bits).expect("a range").flush_everywhere();
    (0..pages).filter(|page| bits[page / 64] >> (page % 64) & 1 != 0).collect()
}

/// Whether the page at `address` has no entry of its own.
fn is_large(inside: Inside, address: usize) -> bool {
    inside.entry(address).is_none()
}

#[test]
fn a_large_page_is_memory_like_any() {
    passes_over_both(|inside| {
        let start = large(inside, 4);
        for at in (start..start + 4 * LARGE).step_by(PAGE) {
            assert_eq!(word(at).load(Ordering::Relaxed), 0);
            word(at).store(at as u64, Ordering::Relaxed);
        }
        assert!(is_large(inside, start + 2 * LARGE + 5 * PAGE));
        assert_eq!(inside.populate_large(start..start + 4 * LARGE), Ok(0), "they are there");
        for at in (start..start + 4 * LARGE).step_by(PAGE) {
            assert_eq!(word(at).load(Ordering::Relaxed), at as u64);
        }
        let end = child(|| {
            let same = |at| word(at).load(Ordering::Relaxed) == at as u64;
            let all = (start..start + 4 * LARGE).step_by(PAGE).all(same);
            word(start + LARGE).store(1, Ordering::Relaxed);
            i32::from(!all)
        });
        assert_eq!(end, End::Exit(0));
        assert_eq!(word(start + LARGE).load(Ordering::Relaxed), (start + LARGE) as u64);
    });
}

/// From the first collection on each page has a dirty bit of its own, whoever asks for a part only.
#[test]
fn a_large_page_that_is_tracked_is_tracked_by_the_page() {
    passes_over_both(|inside| {
        let start = large(inside, 4);
        let whole = start..start + 4 * LARGE;
        (whole.clone()).step_by(PAGE).for_each(|at| word(at).store(1, Ordering::Relaxed));
        let mut bits = vec![0u64; 4 * PAGES / 64];
        inside.peek(whole.clone(), &mut bits).expect("a range");
        assert!(bits.iter().all(|word| *word == !0), "all of it is dirty");
        assert!(is_large(inside, start + 2 * LARGE), "looking changes nothing");
        // A part of one of them.
        let part = start + 2 * LARGE + 7 * PAGE..start + 2 * LARGE + 9 * PAGE;
        assert_eq!(collect(inside, part.clone()).len(), 2);
        assert_eq!(collect(inside, part.clone()).len(), 0);
        word(part.start).store(2, Ordering::Relaxed);
        word(part.end).store(2, Ordering::Relaxed);
        assert_eq!(collect(inside, part), HashSet::from([0]));
        assert!(is_large(inside, start + 3 * LARGE), "the neighbour is as it was");
        // All of them.
        inside.clear(whole.clone(), None).expect("a range").flush_everywhere();
        assert_eq!(collect(inside, whole.clone()), HashSet::new());
        for round in 0..20 {
            let pages = (0..50).map(|n| (n * 131 + round * 17) % (4 * PAGES));
            let written: HashSet<_> = pages.collect();
            written.iter().for_each(|page| word(start + page * PAGE).store(3, Ordering::Relaxed));
            assert_eq!(collect(inside, whole.clone()), written, "round {round}");
        }
    });
}

/// Threads write through a large page while it becomes small ones, and after: nothing that was written since is missed.
#[test]
fn no_write_is_missed_while_a_large_page_becomes_small_ones() {
    passes_over_both(|inside| {
        let stop = Arc::new(AtomicBool::new(false));
        let where_ = Arc::new(AtomicUsize::new(large(inside, 1)));
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (stop, where_) = (Arc::clone(&stop), Arc::clone(&where_));
                std::thread::spawn(move || {
                    let (mut random, mut stamp) = (writer as u64 + 1, 1);
                    while !stop.load(Ordering::Relaxed) {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let page = (random >> 33) as usize % (PAGES / 2) * 2 + writer;
                        stamp += 1;
                        let start = where_.load(Ordering::Acquire);
                        word(start + page * PAGE).store(stamp, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let (mut missed, mut found) = (0, 0);
        for round in 0..12 {
            let start = if round == 0 { where_.load(Ordering::Relaxed) } else { large(inside, 1) };
            where_.store(start, Ordering::Release);
            std::thread::sleep(std::time::Duration::from_millis(5));
            let read = || -> Vec<u64> {
                let at = |page| word(start + page * PAGE).load(Ordering::Acquire);
                (0..PAGES).map(at).collect()
            };
            let all = start..start + LARGE;
            let mut before: Option<Vec<u64>> = None;
            for _ in 0..12 {
                // What has another stamp now than after the last collection was written since.
                let now = read();
                let dirty = collect(inside, all.clone());
                if let Some(before) = &before {
                    let changed = (0..PAGES).filter(|page| now[*page] != before[*page]);
                    missed += changed.filter(|page| !dirty.contains(page)).count();
                    found += dirty.len();
                }
                before = Some(read());
            }
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().for_each(|writer| writer.join().expect("it ends"));
        assert_eq!(missed, 0);
        assert!(found > 100, "{found} pages were dirty in all");
    });
}

/// What is left of a large page keeps its content and its rights, and what was taken is gone.
#[test]
fn a_part_of_a_large_page_can_be_taken_away() {
    passes_over_both(|inside| {
        let start = large(inside, 4);
        let fill = |from: usize| {
            (from..from + LARGE).step_by(PAGE).for_each(|at| {
                word(at).store(at as u64, Ordering::Relaxed);
            });
        };
        (1..4).for_each(|n| fill(start + n * LARGE));
        let hole = start + LARGE + 100 * PAGE;
        // SAFETY: parts of the mapping, which nothing else uses.
        unsafe {
            assert_eq!(libc::munmap(hole as *mut _, 3 * PAGE), 0);
        }
        // At once: whoever maps something next may get this place.
        assert!(faults(|| read(hole)));
        assert!(faults(|| read(hole + 2 * PAGE)));
        // SAFETY: as above.
        unsafe {
            let second = (start + 2 * LARGE) as *mut libc::c_void;
            assert_eq!(libc::mprotect(second, 5 * PAGE, libc::PROT_READ), 0);
            let third = (start + 3 * LARGE + 8 * PAGE) as *mut libc::c_void;
            assert_eq!(libc::madvise(third, 2 * PAGE, libc::MADV_DONTNEED), 0);
        }
        let protected = start + 2 * LARGE..start + 2 * LARGE + 5 * PAGE;
        let given = start + 3 * LARGE + 8 * PAGE..start + 3 * LARGE + 10 * PAGE;
        for at in (start + LARGE..start + 4 * LARGE).step_by(PAGE) {
            if (hole..hole + 3 * PAGE).contains(&at) {
                continue;
            }
            let expected = if given.contains(&at) { 0 } else { at as u64 };
            assert_eq!(word(at).load(Ordering::Relaxed), expected, "{:#x}", at - start);
            if !protected.contains(&at) {
                word(at).store(at as u64 + 1, Ordering::Relaxed);
            }
        }
        let killed = |act: fn(usize), at: usize| {
            let end = child(|| {
                act(at);
                0
            });
            assert_eq!(end, End::Signal(libc::SIGSEGV), "{:#x}", at - start);
        };
        killed(|at| word(at).store(1, Ordering::Relaxed), protected.start);
        killed(|at| word(at).store(1, Ordering::Relaxed), protected.end - PAGE);
        // And here, where the large page was.
        assert!(faults(|| word(protected.start + PAGE).store(1, Ordering::Relaxed)));
        // What is left is tracked by the page.
        let whole = start + LARGE..start + 4 * LARGE;
        collect(inside, whole.clone());
        let written = [3, 99, 103, 511, 512 + 5, 1024 + 9];
        for page in written {
            word(whole.start + page * PAGE).store(7, Ordering::Relaxed);
        }
        let mut dirty = collect(inside, whole);
        // Where nothing is, nothing is known to be clean.
        dirty.retain(|page| !(100..103).contains(page));
        assert_eq!(dirty, HashSet::from(written));
    });
}

/// Whether `act` raises SIGSEGV here, in this process.
fn faults(act: impl FnOnce()) -> bool {
    static CAUGHT: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn caught(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel's siginfo of a fault; the page of the address is made anew.
        unsafe {
            let page = (*info).si_addr() as usize & !(PAGE - 1);
            let (rights, flags) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            );
            libc::mmap(page as *mut _, PAGE, rights, flags, -1, 0);
        }
        CAUGHT.fetch_add(1, Ordering::Relaxed);
    }
    let before = CAUGHT.load(Ordering::Relaxed);
    // SAFETY: a handler of the right type, and back again.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut old: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = caught as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSEGV, &raw const action, &raw mut old);
        act();
        libc::sigaction(libc::SIGSEGV, &raw const old, null_mut());
    }
    CAUGHT.load(Ordering::Relaxed) == before + 1
}

/// A mapping that goes and comes again may have large pages again, also where there were small ones meanwhile.
#[test]
fn a_large_page_may_come_again_where_one_was() {
    passes_over_both(|inside| {
        let start = large(inside, 2) + LARGE;
        let again = || {
            let (rights, flags) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            );
            // SAFETY: in place of what is ours.
            unsafe {
                assert_eq!(libc::munmap(start as *mut _, LARGE), 0);
                let again = libc::mmap(start as *mut _, LARGE, rights, flags, -1, 0);
                assert_eq!(again as usize, start);
            }
        };
        let entry = inside.entry(start + 3 * PAGE);
        assert!(entry.is_none(), "it is large");
        for round in 1..4u64 {
            word(start + 8).store(round, Ordering::Relaxed);
            again();
            let made = inside.populate_large(start..start + LARGE);
            assert!(made.is_ok(), "{made:?}");
            assert_eq!(word(start + 8).load(Ordering::Relaxed), 0, "round {round}");
        }
        for _ in 0..3 {
            assert_eq!(collect(inside, start..start + LARGE).len(), PAGES);
            word(start + 3 * PAGE).store(1, Ordering::Relaxed);
            assert_eq!(collect(inside, start..start + LARGE), HashSet::from([3]));
            let entry = inside.entry(start + 3 * PAGE).expect("an entry");
            assert!(!entry.is_dirty());
            // The first 2 MiB of a mapping have entries from the start.
            let (before, len) = ((start - LARGE) as *mut libc::c_void, 2 * LARGE);
            let (rights, flags) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            );
            // SAFETY: memory that is ours goes, and comes again.
            unsafe {
                assert_eq!(libc::munmap(before, len), 0);
                assert!(entry.is_dirty(), "there is nothing");
                assert_eq!(libc::mmap(before, len, rights, flags, -1, 0), before);
            }
            assert_eq!(inside.populate_large(start..start + LARGE), Ok(1));
            assert!(is_large(inside, start), "in place of a table");
            assert!(entry.is_dirty(), "who has looked there may look again");
            (start..start + LARGE).step_by(PAGE).for_each(|at| {
                assert_eq!(word(at).swap(at as u64, Ordering::Relaxed), 0);
            });
        }
        assert_eq!(collect(inside, start..start + LARGE).len(), PAGES);
        word(start + 9 * PAGE).store(1, Ordering::Relaxed);
        assert_eq!(collect(inside, start..start + LARGE), HashSet::from([9]));
    });
}

/// The store that links a table is made in the middle of a fault or a call: a signal that comes then is delivered
/// afterwards, and nothing is lost.
#[test]
fn signals_come_while_large_pages_become_small_ones() {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn count(_: i32) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
    passes_over_both(|inside| {
        // One at a time: emulated hosts may take longer to deliver it than any interval is.
        let after = |microseconds| {
            let zero = libc::timeval { tv_sec: 0, tv_usec: 0 };
            let time = libc::timeval { tv_sec: 0, tv_usec: microseconds };
            let timer = libc::itimerval { it_interval: zero, it_value: time };
            // SAFETY: a timer and a handler that only counts.
            unsafe {
                libc::signal(libc::SIGALRM, count as extern "C" fn(i32) as usize);
                libc::setitimer(libc::ITIMER_REAL, &raw const timer, null_mut());
            }
        };
        for round in 0..60 {
            after(20 + round * 61);
            let start = large(inside, 3) + LARGE;
            (start..start + 2 * LARGE).step_by(PAGE).for_each(|at| {
                word(at).store(at as u64, Ordering::Relaxed);
            });
            // SAFETY: a page of the second.
            let gone = unsafe { libc::munmap((start + LARGE) as *mut _, PAGE) };
            assert_eq!(gone, 0);
            for at in (start + PAGE..start + 2 * LARGE).step_by(PAGE) {
                let found =
                    if at == start + LARGE { at as u64 } else { word(at).load(Ordering::Relaxed) };
                assert_eq!(found, at as u64);
            }
            assert_eq!(collect(inside, start..start + LARGE).len(), PAGES);
            word(start + 5 * PAGE).store(1, Ordering::Relaxed);
            assert_eq!(collect(inside, start..start + LARGE), HashSet::from([5]));
            // SAFETY: all of it, so that it does not add up.
            unsafe { libc::munmap((start - LARGE) as *mut _, 3 * LARGE) };
        }
        let count = COUNT.swap(0, Ordering::Relaxed);
        assert!(count > 10, "{count} signals");
    });
}

/// Several threads fault at once where a large page was.
#[test]
fn threads_share_what_is_left_of_a_large_page() {
    passes_over_both(|inside| {
        let start = large(inside, 9) + LARGE;
        (start..start + 8 * LARGE).step_by(PAGE).for_each(|at| {
            word(at).store(at as u64, Ordering::Relaxed);
        });
        for block in (start..start + 8 * LARGE).step_by(LARGE) {
            // SAFETY: a page of ours, given back.
            unsafe { libc::mprotect(block as *mut _, PAGE, libc::PROT_READ) };
        }
        let threads: Vec<_> = (1..4usize)
            .map(|n| {
                std::thread::spawn(move || {
                    for at in (start..start + 8 * LARGE).step_by(LARGE) {
                        for page in (n..PAGES).step_by(3) {
                            let at = at + page * PAGE;
                            assert_eq!(word(at).swap(at as u64 + 1, Ordering::Relaxed), at as u64);
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
        for at in (start..start + 8 * LARGE).step_by(PAGE) {
            let expected = at as u64 + u64::from((at - start) % LARGE != 0);
            assert_eq!(word(at).load(Ordering::Relaxed), expected);
        }
        assert_eq!(collect(inside, start..start + 8 * LARGE).len(), 8 * PAGES);
        word(start + 3 * LARGE + 7 * PAGE).store(1, Ordering::Relaxed);
        let only = HashSet::from([3 * PAGES + 7]);
        assert_eq!(collect(inside, start..start + 8 * LARGE), only);
    });
}

/// Where the host shadows page tables, what is written in order gets large pages by itself.
#[test]
fn what_is_written_in_order_gets_large_pages_where_tables_are_shadowed() {
    passes(|| {
        let inside = Inside::current().expect("inside");
        let start = reserve(16);
        for at in (start..start + 16 * LARGE).step_by(PAGE) {
            word(at + 16).store(1, Ordering::Relaxed);
        }
        // SYSCALL stays at ring 3 on the kind of host that shadows them.
        let shadowed = dune::stats::Snapshot::current().syscall_ring == Some(3);
        let large = |n: &usize| is_large(inside, start + n * LARGE);
        let found = (0..16).filter(large).count();
        if shadowed {
            assert!(found >= 8, "{found} large pages");
        } else {
            assert_eq!(found, 0, "nobody asked for them");
        }
        let whole = start..start + 16 * LARGE;
        assert_eq!(collect(inside, whole.clone()).len(), 16 * PAGES);
        word(start + 9 * LARGE + 77 * PAGE).store(2, Ordering::Relaxed);
        assert_eq!(collect(inside, whole), HashSet::from([9 * PAGES + 77]));
    });
}
