//! Private address spaces: no translation of theirs outlives what it stands for, and no write through one is missed.

mod support;
#[path = "support/touch.rs"]
mod touch;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use dune::PAGE_SIZE as PAGE;
use dune::address_space::{AddressSpace, tables_in_use};
use dune::faults::FaultFrame;
use dune::inside::Inside;
use support::{End, passes};
use touch::{ACCERR, Faulted, MAPERR, catch_faults, map_aligned, read, word, write};

/// Bytes that a table maps.
const BLOCK: usize = 2 << 20;
const BLOCK_PAGES: usize = BLOCK / PAGE;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn pages(start: usize, first: usize, count: usize) -> Range<usize> {
    start + first * PAGE..start + (first + count) * PAGE
}

fn passes_inside(body: fn(Inside)) {
    passes(|| {
        catch_faults();
        body(Inside::current().expect("inside"));
    });
}

/// A space that hides the pages of `range`.
fn hiding(inside: Inside, range: Range<usize>) -> AddressSpace {
    let mut space = AddressSpace::new(inside).expect("a space");
    space.hide(range).expect("a range");
    space
}

/// The pages of `range` that are dirty, which are clean afterwards.
fn collect(inside: Inside, range: Range<usize>) -> HashSet<usize> {
    let pages = (range.end - range.start) / PAGE;
    let mut bits = vec![0u64; pages.div_ceil(64)];
    inside.collect(range, &mut bits).expect("a range").flush_everywhere();
    (0..pages).filter(|page| bits[page / 64] >> (page % 64) & 1 != 0).collect()
}

fn peek(inside: Inside, range: Range<usize>) -> HashSet<usize> {
    let pages = (range.end - range.start) / PAGE;
    let mut bits = vec![0u64; pages.div_ceil(64)];
    inside.peek(range, &mut bits).expect("a range");
    (0..pages).filter(|page| bits[page / 64] >> (page % 64) & 1 != 0).collect()
}

/// What a thread is told to do with a page, and what came of it.
struct Hand {
    /// The address, and in its lowest bits [`LOAD`] or [`STORE`]; 0: nothing.
    order: AtomicUsize,
    answer: AtomicU64,
    stop: AtomicBool,
}

const LOAD: usize = 1;
const STORE: usize = 2;
const FAULTED: u64 = 1 << 63;

impl Hand {
    /// A thread in a space that hides `range`; it touches what it was told again and again, so that it has translations.
    fn new(range: Range<usize>) -> (Arc<Self>, std::thread::JoinHandle<()>) {
        let hand = Arc::new(Self {
            order: AtomicUsize::new(0),
            answer: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let told = Arc::clone(&hand);
        let thread = std::thread::spawn(move || {
            let inside = Inside::current().expect("inside");
            let space = hiding(inside, range);
            let _entered = space.enter(inside).expect("entered");
            while !told.stop.load(Ordering::Relaxed) {
                let order = told.order.load(Ordering::Acquire);
                if order & (LOAD | STORE) == 0 {
                    std::hint::spin_loop();
                    continue;
                }
                let at = order & !7;
                let done = if order & STORE != 0 { write(at, 77).map(|()| 77) } else { read(at) };
                let answer = done.unwrap_or_else(|fault| {
                    assert_eq!(fault.address, at);
                    FAULTED | fault.code as u64
                });
                told.answer.store(answer, Ordering::Relaxed);
                let _ = told.order.compare_exchange(order, 0, Ordering::Release, Ordering::Relaxed);
            }
        });
        (hand, thread)
    }

    fn ask(&self, order: usize) -> Result<u64, Faulted> {
        self.order.store(order, Ordering::Release);
        while self.order.load(Ordering::Acquire) != 0 {
            std::hint::spin_loop();
        }
        let answer = self.answer.load(Ordering::Relaxed);
        if answer & FAULTED == 0 {
            Ok(answer)
        } else {
            Err(Faulted { address: order & !7, code: answer as i32 })
        }
    }

    fn load(&self, at: usize) -> Result<u64, Faulted> {
        self.ask(at | LOAD)
    }

    fn store(&self, at: usize) -> Result<(), Faulted> {
        self.ask(at | STORE).map(drop)
    }
}

/// Rights and pages are taken by one thread while another, in a private space, has just used them; both where the
/// space has entries of its own and where it has the main ones.
#[test]
fn what_is_taken_is_gone_in_a_space_that_somebody_is_in() {
    passes_inside(|_| {
        let start = map_aligned(8 * BLOCK_PAGES, BLOCK);
        let (hand, thread) = Hand::new(pages(start, 1, 1));
        for round in 0..6 {
            for at in [start + 8 * PAGE, start + 2 * BLOCK + 8 * PAGE] {
                let page = at as *mut libc::c_void;
                let fault = |code| Faulted { address: at, code };
                let hot = |value: u64| {
                    word(at).store(value, Ordering::Relaxed);
                    for _ in 0..3 {
                        assert_eq!(hand.load(at), Ok(value));
                    }
                    assert_eq!(hand.store(at), Ok(()));
                    assert_eq!(word(at).load(Ordering::Relaxed), 77);
                };
                // SAFETY: memory of ours, changed while the other thread stands by.
                unsafe {
                    hot(round);
                    assert_eq!(libc::mprotect(page, PAGE, libc::PROT_READ), 0);
                    assert_eq!(hand.store(at), Err(fault(ACCERR)));
                    assert_eq!(hand.load(at), Ok(77));
                    assert_eq!(libc::mprotect(page, PAGE, libc::PROT_NONE), 0);
                    assert_eq!(hand.load(at), Err(fault(ACCERR)));
                    assert_eq!(libc::mprotect(page, PAGE, READ_WRITE), 0);
                    hot(round + 1);
                    assert_eq!(libc::madvise(page, PAGE, libc::MADV_DONTNEED), 0);
                    assert_eq!(hand.load(at), Ok(0));
                    hot(round + 2);
                    // Moved to where the space has entries of the other kind, and back.
                    let there = start + 5 * BLOCK + 3 * PAGE;
                    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                    assert_eq!(libc::mremap(page, PAGE, PAGE, flags, there) as usize, there);
                    assert_eq!(hand.load(at), Err(fault(MAPERR)));
                    assert_eq!(hand.load(there), Ok(77));
                    assert_eq!(libc::mremap(there as *mut _, PAGE, PAGE, flags, at), page);
                    assert_eq!(hand.load(there), Err(Faulted { address: there, code: MAPERR }));
                    hot(round + 3);
                    assert_eq!(libc::munmap(page, PAGE), 0);
                    assert_eq!(hand.store(at), Err(fault(MAPERR)));
                    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                    assert_eq!(libc::mmap(page, PAGE, READ_WRITE, flags, -1, 0), page);
                    assert_eq!(hand.load(at), Ok(0));
                    hot(round + 4);
                    // In one step: another page at the same place.
                    assert_eq!(libc::mmap(page, PAGE, READ_WRITE, flags, -1, 0), page);
                    assert_eq!(hand.load(at), Ok(0));
                }
            }
        }
        hand.stop.store(true, Ordering::Relaxed);
        thread.join().expect("it ends");
    });
}

/// A page that is copied when somebody writes to it after a fork: the write is seen in no other process.
#[test]
fn a_write_in_a_space_after_a_fork_is_the_writers_own() {
    passes_inside(|_| {
        let start = map_aligned(4 * BLOCK_PAGES, BLOCK);
        let (hand, thread) = Hand::new(pages(start, 1, 1));
        for at in [start + 8 * PAGE, start + 2 * BLOCK + 8 * PAGE] {
            for round in 0..10u64 {
                assert_eq!(hand.store(at), Ok(()));
                word(at).store(round, Ordering::Relaxed);
                assert_eq!(hand.load(at), Ok(round));
                let mut pipe = [0; 2];
                // SAFETY: two descriptors; the child looks at a word, and ends.
                unsafe {
                    assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
                    let pid = libc::fork();
                    if pid == 0 {
                        let mut byte = 0u8;
                        libc::read(pipe[0], (&raw mut byte).cast(), 1);
                        libc::_exit(i32::from(word(at).load(Ordering::Relaxed) != round));
                    }
                    assert_eq!(hand.store(at), Ok(()));
                    assert_eq!(word(at).load(Ordering::Relaxed), 77);
                    libc::write(pipe[1], b"x".as_ptr().cast(), 1);
                    let mut status = 0;
                    assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
                    assert_eq!(support::end(status), End::Exit(0), "round {round}");
                    libc::close(pipe[0]);
                    libc::close(pipe[1]);
                }
            }
        }
        hand.stop.store(true, Ordering::Relaxed);
        thread.join().expect("it ends");
    });
}

/// Whoever wrote, and wherever: reported once, and nothing else is.
#[test]
fn what_is_written_in_any_space_is_dirty_once_and_nothing_else_is() {
    passes_inside(|inside| {
        const COUNT: usize = 3 * BLOCK_PAGES;
        let start = map_aligned(COUNT, BLOCK);
        let all = start..start + COUNT * PAGE;
        inside.populate(all.clone()).expect("memory");
        // Two spaces have entries of their own for the first block, one of them for the second, none for the third.
        let one = hiding(inside, pages(start, 1, 1));
        let mut two = hiding(inside, pages(start, 2, 1));
        two.read_only(pages(start, BLOCK_PAGES, 1)).expect("a range");
        for space in [&one, &two] {
            let _entered = space.enter(inside).expect("entered");
            (0..3).for_each(|block| assert!(read(start + block * BLOCK + 9 * PAGE).is_ok()));
        }
        collect(inside, all.clone());
        assert_eq!(collect(inside, all.clone()), HashSet::new());
        for round in 0..8usize {
            let mut written = HashSet::new();
            for (index, space) in [None, Some(&one), Some(&two)].into_iter().enumerate() {
                let entered = space.map(|space| space.enter(inside).expect("entered"));
                for n in 0..30 {
                    let page = (n * 37 + round * 11 + index * 5) % COUNT;
                    if ![1, 2, BLOCK_PAGES].contains(&page) {
                        assert_eq!(write(start + page * PAGE + 8 * index, 1), Ok(()));
                        written.insert(page);
                    }
                    assert!(read(start + (page + 7) % COUNT * PAGE).is_ok() || page < BLOCK_PAGES);
                }
                // By the kernel, for a thread that is there.
                // SAFETY: a structure in the mapping.
                unsafe { libc::fstat(0, (start + (40 + index) * PAGE) as *mut _) };
                written.insert(40 + index);
                drop(entered);
            }
            assert_eq!(peek(inside, all.clone()), written, "round {round}");
            // Collected in the main space, or in a private one.
            let entered = (round % 2 == 1).then(|| one.enter(inside).expect("entered"));
            assert_eq!(collect(inside, all.clone()), written, "round {round}");
            drop(entered);
            assert_eq!(collect(inside, all.clone()), HashSet::new(), "round {round}");
        }
        // One page, by its entry.
        let entered = one.enter(inside).expect("entered");
        let at = start + 100 * PAGE;
        let entry = inside.entry(at).expect("an entry");
        assert!(!entry.is_dirty());
        assert_eq!(write(at, 5), Ok(()));
        assert!(entry.is_dirty());
        entry.clear_dirty().flush_everywhere();
        assert!(!entry.is_dirty());
        assert_eq!(write(at, 6), Ok(()));
        assert_eq!(collect(inside, all.clone()), HashSet::from([100]));
        // Some of them are made clean.
        assert_eq!(write(at, 7), Ok(()));
        assert_eq!(write(at + PAGE, 7), Ok(()));
        let mut among = vec![0u64; COUNT / 64];
        among[100 / 64] |= 1 << (100 % 64);
        inside.clear(all.clone(), Some(&among)).expect("a range").flush_everywhere();
        assert_eq!(collect(inside, all), HashSet::from([101]));
        drop(entered);
    });
}

/// A call that fails, or changes other pages, takes entries away all the same, and a processor or a host that shadows
/// tables may go on with what it has of them: what is written through that is not missed.
#[test]
fn what_is_written_through_an_entry_that_was_taken_in_vain_is_dirty() {
    passes_inside(|inside| {
        let start = map_aligned(4 * BLOCK_PAGES, BLOCK);
        let (hand, thread) = Hand::new(pages(start, 1, 1));
        for round in 0..20 {
            for at in [start + 8 * PAGE, start + 2 * BLOCK + 8 * PAGE] {
                let page = at..at + PAGE;
                assert_eq!(hand.store(at), Ok(()));
                // SAFETY: no such rights: nothing changes. Or the last page's do.
                unsafe {
                    if round % 2 == 0 {
                        assert_eq!(libc::mprotect(at as *mut _, PAGE, 0x400), -1);
                    } else {
                        let (last, grows) =
                            (start + 4 * BLOCK - PAGE, READ_WRITE | libc::PROT_GROWSDOWN);
                        libc::mprotect(last as *mut _, PAGE, grows);
                    }
                }
                inside.populate(page.clone()).expect("memory");
                if round % 3 == 0 {
                    assert!(inside.entry(at).expect("an entry").is_dirty());
                    inside.clear(page.clone(), None).expect("a range").flush_everywhere();
                } else {
                    assert_eq!(collect(inside, page.clone()).len(), 1);
                }
                assert_eq!(collect(inside, page.clone()).len(), 0, "round {round}");
                assert_eq!(hand.store(at), Ok(()));
                // The copy that is made for it, if it is, is dirty; if it was not, the translation was flushed.
                assert_eq!(collect(inside, page.clone()).len(), 1, "round {round}");
                assert_eq!(collect(inside, page.clone()).len(), 0, "round {round}");
                assert_eq!(hand.store(at), Ok(()));
                assert_eq!(collect(inside, page).len(), 1, "round {round}");
            }
        }
        hand.stop.store(true, Ordering::Relaxed);
        thread.join().expect("it ends");
    });
}

/// What was written in a space that is gone by the time somebody asks, or that has new limits, is dirty.
#[test]
fn what_was_written_in_a_space_that_is_gone_is_dirty() {
    passes_inside(|inside| {
        let start = map_aligned(BLOCK_PAGES, BLOCK);
        let all = start..start + BLOCK;
        inside.populate(all.clone()).expect("memory");
        for round in 0..20 {
            let mut space = hiding(inside, pages(start, 1, 1));
            let entered = space.enter(inside).expect("entered");
            assert!(read(start).is_ok());
            collect(inside, all.clone());
            assert_eq!(collect(inside, all.clone()), HashSet::new());
            assert_eq!(write(start + (9 + round) * PAGE, 1), Ok(()));
            drop(entered);
            if round % 2 == 0 {
                space.hide(pages(start, 2, 1)).expect("a range");
            } else {
                drop(space);
                assert_eq!(tables_in_use(), 0);
            }
            assert_eq!(collect(inside, all.clone()), HashSet::from([9 + round]), "round {round}");
        }
    });
}

/// Also by whoever looks while the space is ending: at each moment the page is dirty in the space, or in the main tables.
#[test]
fn what_was_written_is_dirty_while_its_space_ends() {
    passes_inside(|inside| {
        const BLOCKS: usize = 60;
        let start = map_aligned(BLOCKS * BLOCK_PAGES, BLOCK);
        let all = start..start + BLOCKS * BLOCK;
        inside.populate(all).expect("memory");
        // The last page of what takes long to end: much is dirty in it.
        let at = start + BLOCKS * BLOCK - PAGE;
        let (written, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (tell, wait) = (Arc::clone(&written), Arc::clone(&seen));
        let begin = std::time::Instant::now();
        let thread = std::thread::spawn(move || {
            let inside = Inside::current().expect("inside");
            let mut round = 0;
            while begin.elapsed().as_secs() < 4 && round < 150 {
                let mut space = AddressSpace::new(inside).expect("a space");
                for block in 0..BLOCKS {
                    space.hide(pages(start, block * BLOCK_PAGES + 1, 1)).expect("a range");
                }
                let entered = space.enter(inside).expect("entered");
                (0..BLOCKS).for_each(|block| assert!(read(start + block * BLOCK).is_ok()));
                assert_eq!(write(at, 0), Ok(()));
                // As if it had been collected so far: only what comes now is looked for.
                inside.clear(at..at + PAGE, None).expect("a range").flush_everywhere();
                round += 1;
                assert_eq!(write(at, round as u64), Ok(()));
                drop(entered);
                tell.store(round, Ordering::Release);
                drop(space);
                while wait.load(Ordering::Acquire) != round {
                    std::hint::spin_loop();
                }
            }
            tell.store(usize::MAX, Ordering::Release);
        });
        let mut random = 1u64;
        for round in 1.. {
            let now = || written.load(Ordering::Acquire);
            while now() != round && now() != usize::MAX {
                std::hint::spin_loop();
            }
            if now() == usize::MAX {
                break;
            }
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let until =
                std::time::Instant::now() + std::time::Duration::from_micros((random >> 33) % 4000);
            while std::time::Instant::now() < until {
                std::hint::spin_loop();
            }
            assert_eq!(collect(inside, at..at + PAGE).len(), 1, "round {round}");
            seen.store(round, Ordering::Release);
        }
        thread.join().expect("it ends");
    });
}

/// In a forked child as well, whose tables are new.
#[test]
fn a_childs_writes_in_its_space_are_tracked() {
    passes_inside(|inside| {
        let start = map_aligned(BLOCK_PAGES, BLOCK);
        let all = start..start + BLOCK;
        let space = hiding(inside, pages(start, 1, 1));
        let _entered = space.enter(inside).expect("entered");
        assert_eq!(write(start, 1), Ok(()));
        // SAFETY: the child does what it does, and ends.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                inside.populate(all.clone()).expect("memory");
                assert!(read(start).is_ok());
                collect(inside, all.clone());
                let clean = collect(inside, all.clone()).is_empty();
                let wrote = write(start + 30 * PAGE, 1) == Ok(());
                let found = collect(inside, all.clone()) == HashSet::from([30]);
                libc::_exit(i32::from(!(clean && wrote && found)));
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
            assert_eq!(support::end(status), End::Exit(0));
        }
    });
}

/// A page that the program protects itself is so in all spaces.
#[test]
fn a_write_to_a_protected_page_calls_the_handler_in_any_space() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    fn handler(address: usize, _: &mut FaultFrame) -> bool {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // In guest mode handlers are.
        let Some(inside) = INSIDE.with(|proof| proof.get()) else { return false };
        let page = address & !(PAGE - 1);
        inside.unprotect(page..page + PAGE).is_ok()
    }
    std::thread_local!(static INSIDE: std::cell::Cell<Option<Inside>> = const { std::cell::Cell::new(None) });
    passes_inside(|inside| {
        INSIDE.set(Some(inside));
        let start = map_aligned(2 * BLOCK_PAGES, BLOCK);
        let all = start..start + 2 * BLOCK;
        inside.populate(all.clone()).expect("memory");
        let space = hiding(inside, pages(start, 1, 1));
        // SAFETY: the handler calls nothing but what its type allows.
        unsafe { inside.handle_faults(handler) };
        let entered = space.enter(inside).expect("entered");
        for round in 1..20 {
            for at in [start + 8 * PAGE, start + BLOCK + 8 * PAGE] {
                assert_eq!(write(at, 1), Ok(()));
                let before = CALLS.load(Ordering::Relaxed);
                inside.protect(at..at + PAGE).expect("a range").flush_everywhere();
                assert_eq!(read(at), Ok(1));
                assert_eq!(CALLS.load(Ordering::Relaxed), before);
                assert_eq!(write(at, 2), Ok(()));
                assert_eq!(CALLS.load(Ordering::Relaxed), before + 1, "round {round}");
                assert_eq!(write(at, 3), Ok(()));
                assert_eq!(CALLS.load(Ordering::Relaxed), before + 1);
            }
        }
        drop(entered);
    });
}

/// What the oracle below varies.
#[derive(Clone, Copy)]
struct Plan {
    seconds: u64,
    /// The collecting thread is in a private space too.
    collector_inside: bool,
    /// The pages are written to through one mapping, and looked at through another: nobody touches the first one in the
    /// main space.
    alias: bool,
}

/// Threads in private spaces write stamps all the while. One stays in its space and writes to pages of which the
/// space has entries of its own; one to others; one has the kernel write; one makes a new space each time. A page that
/// holds a newer stamp than when it was last found must be found again.
fn oracle(plan: Plan, collect: impl Fn(Inside, Range<usize>) -> HashSet<usize>) -> (u64, u32, u64) {
    const COUNT: usize = 3 * BLOCK_PAGES;
    const WRITERS: usize = 5;
    let inside = Inside::current().expect("inside");
    let (start, seen_at) = if plan.alias {
        twice(COUNT)
    } else {
        let start = map_aligned(COUNT, BLOCK);
        inside.populate(start..start + COUNT * PAGE).expect("memory");
        (start, start)
    };
    // The last pages of the first and the second block; the third is shared.
    let secret = pages(start, 2 * BLOCK_PAGES - 3, 2);
    let first_secret = pages(start, BLOCK_PAGES - 3, 2);
    let make = move |inside: Inside| {
        let mut space = hiding(inside, secret.clone());
        space.read_only(first_secret.clone()).expect("a range");
        space
    };
    let stop = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (stop, count, make) = (Arc::clone(&stop), Arc::clone(&count), make.clone());
            std::thread::spawn(move || {
                let inside = Inside::current().expect("inside");
                let mut random = writer as u64 + 1;
                let mut pipe = [0; 2];
                // SAFETY: two descriptors.
                assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
                let mut stamp = 1u64;
                let space = make(inside);
                let mut fresh = make(inside);
                let mut entered = (writer != 4).then(|| space.enter(inside).expect("entered"));
                while !stop.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let any = (random >> 33) as usize;
                    // Each writer has pages of its own, so stamps only grow. Two write to shared tables only.
                    let page = match writer {
                        0 => any % 90 * 4,
                        1 => 2 * BLOCK_PAGES + any % 200 * 2,
                        2 => BLOCK_PAGES + any % 90 * 4 + 1,
                        3 => 2 * BLOCK_PAGES + any % 200 * 2 + 1,
                        _ => any % 90 * 4 + 2,
                    };
                    let place = start + page * PAGE + 8;
                    stamp += 1;
                    if writer == 2 {
                        // By the kernel.
                        // SAFETY: eight bytes through the pipe, into the mapping.
                        unsafe {
                            libc::write(pipe[1], (&raw const stamp).cast(), 8);
                            assert_eq!(libc::read(pipe[0], place as *mut _, 8), 8);
                        }
                    } else if writer == 4 {
                        drop(entered.take());
                        // Now and then all is new: tables come and go while others look.
                        if stamp % 8 == 0 {
                            fresh = make(inside);
                        }
                        let here = fresh.enter(inside).expect("entered");
                        word(place).store(stamp, Ordering::Relaxed);
                        drop(here);
                    } else {
                        if writer == 3 && stamp % 512 == 0 {
                            // Out and in again.
                            entered = None;
                            entered.replace(space.enter(inside).expect("entered"));
                        }
                        word(place).store(stamp, Ordering::Relaxed);
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
                drop(entered);
            })
        })
        .collect();
    let own = make(inside);
    let _entered = plan.collector_inside.then(|| own.enter(inside).expect("entered"));
    // The collector looks at what its own space hides as well as at anything else.
    let visible = |page: &usize| !(2 * BLOCK_PAGES - 3..2 * BLOCK_PAGES - 1).contains(page);
    let look = |page: usize| word(seen_at + page * PAGE + 8).load(Ordering::Acquire);
    let mut seen = vec![u64::MAX; COUNT];
    let (mut missed, mut rounds) = (0, 0u32);
    let begin = std::time::Instant::now();
    // On a machine with one CPU, and an emulated one, the collector's turn comes seldom.
    let wanted = |elapsed: u64, rounds| {
        elapsed < plan.seconds || rounds < 20 && elapsed < 4 * plan.seconds || rounds < 3
    };
    while wanted(begin.elapsed().as_secs(), rounds) {
        // Stamps first: whatever is newer than at the last look was written before this collection.
        let now: Vec<u64> =
            (0..COUNT).map(|page| if visible(&page) { look(page) } else { 0 }).collect();
        let dirty = collect(inside, start..start + COUNT * PAGE);
        for page in (0..COUNT).filter(visible) {
            if now[page] != seen[page] && !dirty.contains(&page) {
                missed += 1;
                eprintln!(
                    "missed page {page}: {} after {} in round {rounds}",
                    now[page], seen[page]
                );
            }
            seen[page] = if dirty.contains(&page) { u64::MAX } else { now[page] };
        }
        for page in dirty.into_iter().filter(visible) {
            seen[page] = look(page);
        }
        rounds += 1;
    }
    stop.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| writer.join().expect("it ends"));
    (missed, rounds, count.load(Ordering::Relaxed))
}

/// The same memory at two addresses.
fn twice(pages: usize) -> (usize, usize) {
    let len = (pages * PAGE).next_multiple_of(BLOCK);
    let place = map_aligned(2 * len / PAGE, BLOCK);
    // SAFETY: memory of ours is replaced by a file of ours, twice.
    unsafe {
        let fd = libc::memfd_create(c"pages".as_ptr(), 0);
        assert_eq!(libc::ftruncate(fd, len as i64), 0);
        for at in [place, place + len] {
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            assert_eq!(libc::mmap(at as *mut _, len, READ_WRITE, flags, fd, 0) as usize, at);
        }
        libc::close(fd);
    }
    (place, place + len)
}

#[test]
fn no_write_in_a_private_space_is_missed() {
    passes_inside(|_| {
        for collector_inside in [false, true] {
            for alias in [false, true] {
                let plan = Plan { seconds: 2, collector_inside, alias };
                let (missed, rounds, writes) = oracle(plan, collect);
                assert_eq!(
                    missed, 0,
                    "{rounds} rounds, {writes} writes, {collector_inside} {alias}"
                );
                assert!(writes > 100, "{writes} writes");
            }
        }
        assert_eq!(tables_in_use(), 0);
    });
}

/// The oracle is not blind: a collection that loses one page is found out.
#[test]
fn a_collection_that_loses_a_page_of_a_space_is_found_out() {
    passes_inside(|_| {
        let plan = Plan { seconds: 2, collector_inside: false, alias: false };
        let (missed, ..) = oracle(plan, |inside, range| {
            let mut dirty = collect(inside, range);
            dirty.remove(&0);
            dirty
        });
        assert_ne!(missed, 0);
    });
}
