//! Dirty bits of the guest's tables: what was written is reported, by whomever.

mod support;

use std::collections::HashSet;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dune::PAGE_SIZE as PAGE;
use dune::inside::{Inside, RangeError};
use support::passes;

/// New private memory.
fn map(pages: usize) -> *mut u8 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(null_mut(), pages * PAGE, rights, flags, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    start.cast()
}

fn range(start: *mut u8, pages: usize) -> std::ops::Range<usize> {
    start as usize..start as usize + pages * PAGE
}

/// The pages that are dirty, which are clean afterwards.
fn collect(inside: Inside, start: *mut u8, pages: usize) -> HashSet<usize> {
    let mut bits = vec![0u64; pages.div_ceil(64)];
    inside.collect(range(start, pages), &mut bits).expect("a range").flush_everywhere();
    (0..pages).filter(|page| bits[page / 64] >> (page % 64) & 1 != 0).collect()
}

#[test]
fn outside_there_is_no_proof() {
    assert!(Inside::current().is_none());
}

#[test]
fn written_pages_are_dirty_once_and_no_others() {
    passes(|| {
        let inside = Inside::current().expect("inside");
        let start = map(1500);
        inside.populate(range(start, 1500)).expect("memory");
        assert_eq!(collect(inside, start, 1500).len(), 1500, "what is new is dirty");
        assert_eq!(collect(inside, start, 1500), HashSet::new());
        for round in 0..5 {
            let written: HashSet<_> = (0..40).map(|n| (n * 37 + round * 11) % 1500).collect();
            for page in &written {
                // SAFETY: in the mapping.
                unsafe { start.add(page * PAGE + round).write_volatile(1) };
            }
            for page in 0..1500 {
                // SAFETY: in the mapping.
                unsafe { start.add(page * PAGE).read_volatile() };
            }
            let mut bits = vec![0u64; 24];
            inside.peek(range(start, 1500), &mut bits).expect("a range");
            assert_eq!(bits.iter().map(|word| word.count_ones()).sum::<u32>(), 40);
            assert_eq!(collect(inside, start, 1500), written, "round {round}");
        }
    });
}

#[test]
fn pages_without_an_entry_are_dirty() {
    passes(|| {
        let inside = Inside::current().expect("inside");
        let start = map(64);
        collect(inside, start, 64);
        // SAFETY: the mapping goes, and comes again at the same place.
        unsafe {
            let (fixed, rights) = (libc::MAP_FIXED, libc::PROT_READ | libc::PROT_WRITE);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
            let again = libc::mmap(start.cast(), 32 * PAGE, rights, flags, -1, 0);
            assert_eq!(again, start.cast());
        }
        let dirty = collect(inside, start, 64);
        assert!((0..32).all(|page| dirty.contains(&page)), "{dirty:?}");
    });
}

/// The tables of new memory are read by the program itself, some of them in memory that the monitor has just begun to
/// use, which an older list of the kernel's mappings does not tell (Linux before 6.11).
#[test]
fn entries_can_be_looked_at_as_soon_as_they_are_there() {
    passes(|| {
        let inside = Inside::current().expect("inside");
        for _ in 0..300 {
            let start = map(3 * 512);
            inside.populate(range(start, 3 * 512)).expect("memory");
            for page in [0, 512, 1024, 1535] {
                let entry = inside.entry(start as usize + page * PAGE);
                assert!(entry.expect("an entry").is_dirty());
            }
        }
    });
}

/// A collection reads the records of all threads: new ones are in memory that the monitor has just begun to use, too.
#[test]
fn the_records_of_new_threads_can_be_read_at_once() {
    static OVER: AtomicBool = AtomicBool::new(false);
    extern "C" fn wait(_: *mut libc::c_void) -> *mut libc::c_void {
        while !OVER.load(Ordering::SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        null_mut()
    }
    passes(|| {
        let inside = Inside::current().expect("inside");
        let start = map(8);
        let mut threads = Vec::with_capacity(20);
        for _ in 0..20 {
            let (stack, far) = (map(64), map(3 * 512));
            // SAFETY: a stack of its own, and a write to a new mapping: where it has no entry yet, so that the monitor
            // asks for the kernel's mappings, and no call changes any before the thread is made.
            let thread = unsafe {
                let mut attributes = std::mem::zeroed();
                let mut thread = 0;
                assert_eq!(libc::pthread_attr_init(&raw mut attributes), 0);
                let set = libc::pthread_attr_setstack(&raw mut attributes, stack.cast(), 64 * PAGE);
                assert_eq!(set, 0);
                far.add(1200 * PAGE).write_volatile(1);
                let (thread_at, with) = (&raw mut thread, &raw const attributes);
                assert_eq!(libc::pthread_create(thread_at, with, wait, null_mut()), 0);
                thread
            };
            threads.push(thread);
            collect(inside, start, 8);
        }
        OVER.store(true, Ordering::SeqCst);
        for thread in threads {
            // SAFETY: made above, and joined once.
            assert_eq!(unsafe { libc::pthread_join(thread, null_mut()) }, 0);
        }
    });
}

#[test]
fn what_the_kernel_writes_for_the_program_is_dirty() {
    passes(|| {
        let inside = Inside::current().expect("inside");
        let start = map(64);
        inside.populate(range(start, 64)).expect("memory");
        collect(inside, start, 64);
        let page = |n: usize| start.wrapping_add(n * PAGE);
        let one = |n: usize| HashSet::from([n]);
        // SAFETY: buffers in the mapping.
        unsafe {
            let mut pipe = [0; 2];
            assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
            libc::write(pipe[1], b"abcdefgh".as_ptr().cast(), 8);
            assert_eq!(libc::read(pipe[0], page(3).cast(), 4), 4);
            assert_eq!(collect(inside, start, 64), one(3));
            let vector = libc::iovec { iov_base: page(9).cast(), iov_len: 4 };
            assert_eq!(libc::readv(pipe[0], &raw const vector, 1), 4);
            assert_eq!(collect(inside, start, 64), one(9));
            assert_eq!(libc::fstat(0, page(20).cast()), 0);
            assert_eq!(collect(inside, start, 64), one(20));
            let clock = libc::CLOCK_REALTIME;
            assert_eq!(libc::syscall(libc::SYS_clock_gettime, clock, page(21)), 0);
            assert_eq!(collect(inside, start, 64), one(21));
            assert!(libc::syscall(libc::SYS_getcwd, page(40), PAGE) > 0);
            assert!(collect(inside, start, 64).contains(&40));
            assert!(libc::syscall(libc::SYS_getppid) > 0);
            assert_eq!(collect(inside, start, 64), HashSet::new());
            // Refused by the monitor: nothing lasts.
            assert_eq!(libc::syscall(libc::SYS_rseq, page(50), 32, 0, 0), -1);
            collect(inside, start, 64);
            assert_eq!(collect(inside, start, 64), HashSet::new());
        }
    });
}

#[test]
fn a_read_that_waits_counts_as_writing_while_it_does() {
    passes(|| {
        let inside = Inside::current().expect("inside");
        let start = map(16);
        inside.populate(range(start, 16)).expect("memory");
        collect(inside, start, 16);
        let mut pipe = [0; 2];
        // SAFETY: two descriptors.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        let reader = waiting_reader(pipe[0], start as usize + 7 * PAGE);
        for _ in 0..3 {
            assert!(collect(inside, start, 16).contains(&7), "it may come at any time");
        }
        // SAFETY: a byte of ours.
        unsafe { libc::write(pipe[1], b"x".as_ptr().cast(), 1) };
        assert_eq!(reader.join().expect("it ends"), 1);
        assert!(collect(inside, start, 16).contains(&7));
        assert!(!collect(inside, start, 16).contains(&7));
    });
}

/// A child by vfork may end by `exit(2)`, as a thread does. Its parent, which hears of it late, does not take it for the
/// next thread at the child's place.
#[test]
fn the_place_of_a_vforked_child_is_given_back_once() {
    /// It takes several seconds, natively, for the two to meet.
    const LONG: std::time::Duration = std::time::Duration::from_secs(10);
    /// The first two of the processors that this thread may run on; `None`: it may run on one only. An emulated host
    /// keeps the others free for a reason.
    fn two_processors() -> Option<[usize; 2]> {
        // SAFETY: a set of processors is plain bits, and the kernel fills it in.
        let set = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::sched_getaffinity(0, size_of_val(&set), &raw mut set);
            set
        };
        // SAFETY: below the size of the set.
        let mut allowed = (0..libc::CPU_SETSIZE as usize)
            .filter(|processor| unsafe { libc::CPU_ISSET(*processor, &set) });
        Some([allowed.next()?, allowed.next()?])
    }
    /// Lets the calling thread run on one processor only.
    fn stay_on(processor: Option<usize>) {
        let Some(processor) = processor else { return };
        // SAFETY: a set of this thread's; it may be refused.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(processor, &mut set);
            libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
        }
    }
    /// A child that ends at once, and all alone.
    fn vfork_and_exit() {
        let flags = (libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD) as i64;
        let pid: i64;
        // SAFETY: the child runs on the same stack, which it does not touch, and ends.
        unsafe {
            std::arch::asm!(
                "syscall",
                "test rax, rax",
                "jnz 22f",
                "mov eax, 60", "xor edi, edi", "syscall",
                "22:",
                inlateout("rax") libc::SYS_clone => pid,
                inlateout("rdi") flags => _, in("rsi") 0, in("rdx") 0, in("r10") 0, in("r8") 0,
                out("rcx") _, out("r11") _,
            );
            assert!(pid > 0, "{pid}");
            assert_eq!(libc::waitpid(pid as i32, std::ptr::null_mut(), 0), pid as i32);
        }
    }
    passes(|| {
        let inside = Inside::current().expect("inside");
        let start = map(16);
        inside.populate(range(start, 16)).expect("memory");
        let mut pipe = [0; 2];
        // SAFETY: two descriptors.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        let processors = two_processors();
        let [crowded, ours] = [0, 1].map(|which| processors.map(|two| two[which]));
        let stop = Arc::new(AtomicBool::new(false));
        let (stops, spins) = (Arc::clone(&stop), Arc::clone(&stop));
        let parent = std::thread::spawn(move || {
            stay_on(crowded);
            // SAFETY: of this thread; it may be refused.
            unsafe {
                let lowest = libc::sched_param { sched_priority: 0 };
                libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const lowest);
            }
            while !stops.load(Ordering::Relaxed) {
                vfork_and_exit();
            }
        });
        let spinner = std::thread::spawn(move || {
            stay_on(crowded);
            while !spins.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        stay_on(ours);
        let begin = std::time::Instant::now();
        while begin.elapsed() < LONG {
            // They take the places that are free, the child's among them.
            let others = [(); 3].map(|()| std::thread::spawn(std::thread::park));
            let reader = waiting_reader(pipe[0], start as usize + 7 * PAGE);
            for _ in 0..3 {
                assert!(collect(inside, start, 16).contains(&7), "it may come at any time");
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            for other in others {
                other.thread().unpark();
                other.join().expect("it ends");
            }
            // SAFETY: a byte of ours.
            unsafe { libc::write(pipe[1], b"x".as_ptr().cast(), 1) };
            assert_eq!(reader.join().expect("it ends"), 1);
        }
        stop.store(true, Ordering::Relaxed);
        [parent, spinner].into_iter().for_each(|thread| thread.join().expect("it ends"));
    });
}

/// The kernel clears a word as a thread exits. It is there for whoever looks at that memory, though somebody looked
/// elsewhere before, or did not collect.
#[test]
fn what_the_kernel_writes_as_a_thread_exits_is_not_forgotten() {
    passes(|| {
        let inside = Inside::current().expect("inside");
        let (near, far) = (map(8), map(8));
        inside.populate(range(near, 8)).expect("memory");
        inside.populate(range(far, 8)).expect("memory");
        // SAFETY: in the mapping, which stays.
        let word = unsafe { AtomicU32::from_ptr(far.add(5 * PAGE).cast()) };
        let (id, go) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (told, goes) = (Arc::clone(&id), Arc::clone(&go));
        word.store(1, Ordering::SeqCst);
        // Never joined: that it ends is not told to the C library.
        core::mem::forget(std::thread::spawn(move || {
            // SAFETY: a word that stays; the thread has nothing to clean up.
            unsafe {
                let id = libc::syscall(libc::SYS_set_tid_address, word.as_ptr());
                told.store(id as u64, Ordering::SeqCst);
                while !goes.load(Ordering::SeqCst) {
                    std::hint::spin_loop();
                }
                libc::syscall(libc::SYS_exit, 0);
            }
        }));
        while id.load(Ordering::SeqCst) == 0 {
            std::hint::spin_loop();
        }
        collect(inside, far, 8);
        assert_eq!(collect(inside, far, 8), HashSet::new());
        go.store(true, Ordering::SeqCst);
        let id = id.load(Ordering::SeqCst);
        // SAFETY: signal 0 only asks.
        while unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), id, 0) } == 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(word.load(Ordering::SeqCst), 0);
        collect(inside, near, 8);
        let mut bits = [0];
        inside.peek(range(far, 8), &mut bits).expect("a range");
        assert_eq!(bits[0], 1 << 5);
        assert_eq!(collect(inside, far, 8), HashSet::from([5]));
    });
}

/// A thread that has come to wait for a byte from `fd`, which goes to address `buffer` of a mapping that stays.
fn waiting_reader(fd: i32, buffer: usize) -> std::thread::JoinHandle<isize> {
    let id = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&id);
    let reader = std::thread::spawn(move || {
        // SAFETY: no arguments; then a buffer in the mapping.
        unsafe {
            told.store(libc::gettid() as u64, Ordering::Release);
            libc::read(fd, buffer as *mut _, 1)
        }
    });
    wait_for_call(&id, libc::SYS_read);
    reader
}

/// Waits until the thread whose id comes to be in `id` waits in call `nr` of the kernel's.
///
/// On a loaded machine that takes its time: to start, a thread needs locks that one of the lowest priority may hold. What
/// never comes is ended by the limit of the whole test, which tells what each thread does.
fn wait_for_call(id: &AtomicU64, nr: i64) {
    let waits = || {
        let thread = id.load(Ordering::Acquire);
        let call = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall"));
        call.is_ok_and(|text| text.split(' ').next() == Some(&nr.to_string()))
    };
    while !waits() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_signal_frame_is_written_memory() {
    extern "C" fn nothing(_: i32) {}
    passes(|| {
        let inside = Inside::current().expect("inside");
        let start = map(64);
        inside.populate(range(start, 64)).expect("memory");
        let stack = libc::stack_t { ss_sp: start.cast(), ss_flags: 0, ss_size: 64 * PAGE };
        // SAFETY: the mapping serves as the alternate stack.
        unsafe {
            libc::sigaltstack(&raw const stack, null_mut());
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
            action.sa_flags = libc::SA_ONSTACK;
            libc::sigaction(libc::SIGUSR1, &raw const action, null_mut());
            collect(inside, start, 64);
            libc::raise(libc::SIGUSR1);
        }
        assert!(collect(inside, start, 64).contains(&63));
    });
}

/// A fault leaves SS null behind, which a return to ring 3 from ring 0 must not find.
#[test]
fn a_flush_right_after_a_fault_returns() {
    passes(|| {
        let inside = Inside::current().expect("inside");
        let start = map(16 * 512);
        for page in (0..16 * 512).step_by(512) {
            // No system call comes between the first touch and the flush: it would load SS again.
            // SAFETY: in the mapping.
            unsafe { start.add(page * PAGE).write_volatile(1) };
            inside.flush();
            // SAFETY: in the mapping.
            unsafe { start.add((page + 1) * PAGE).write_volatile(1) };
            inside.flush_page(start as usize + page * PAGE);
        }
    });
}

/// A flush that a signal swallows would leave the TLB's entry dirty: the write after it would set no bit.
#[test]
fn no_flush_is_lost_to_a_signal() {
    static SIGNALS: AtomicU64 = AtomicU64::new(0);
    extern "C" fn count(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        SIGNALS.fetch_add(1, Ordering::Relaxed);
    }
    passes(|| {
        let inside = Inside::current().expect("inside");
        let page = map(1);
        // SAFETY: ours.
        unsafe { page.write_volatile(1) };
        let entry = inside.entry(page as usize).expect("it was written to");
        support::install(libc::SIGALRM, count);
        support::tick(Duration::from_millis(1));
        let before = SIGNALS.load(Ordering::Relaxed);
        let start = Instant::now();
        let mut rounds = 0u64;
        while SIGNALS.load(Ordering::Relaxed) < before + 1000
            && start.elapsed() < Duration::from_secs(60)
        {
            entry.clear_dirty().flush_here();
            // SAFETY: ours.
            unsafe { page.write_volatile(2) };
            assert!(entry.is_dirty(), "the flush of round {rounds} was lost");
            rounds += 1;
        }
        assert!(SIGNALS.load(Ordering::Relaxed) >= before + 40, "{rounds} rounds");
    });
}

/// Who looks at a page that another has just made clean, and not flushed yet, finds it clean; so a write after that look
/// must be found, though a TLB may still know the page as dirty.
#[test]
fn a_write_after_a_look_is_seen_while_a_flush_is_owed() {
    passes(|| {
        let inside = Inside::current().expect("inside");
        let start = map(4);
        inside.populate(range(start, 4)).expect("memory");
        let look = || {
            let mut bits = [0];
            inside.peek(range(start, 4), &mut bits).expect("a range");
            bits[0]
        };
        // SAFETY: in the mapping.
        let write = || unsafe { start.add(PAGE).write_volatile(1) };
        for round in 0..100 {
            collect(inside, start, 4);
            write();
            let mut bits = [0];
            let owed = inside.collect(range(start, 4), &mut bits).expect("a range");
            assert_eq!((bits[0], look()), (1 << 1, 0), "round {round}");
            write();
            assert_eq!(look(), 1 << 1, "round {round}");
            owed.flush_everywhere();
            assert_eq!(look(), 1 << 1, "round {round}");
        }
    });
}

#[test]
fn arguments_are_checked() {
    passes(|| {
        let inside = Inside::current().expect("inside");
        let mut bits = [0u64; 1];
        let start = map(65) as usize;
        let odd = inside.collect(start + 1..start + PAGE, &mut bits);
        assert_eq!(odd.err(), Some(RangeError::Range));
        let long = inside.collect(start..start + 65 * PAGE, &mut bits);
        assert_eq!(long.err(), Some(RangeError::Bitmap));
        assert_eq!(inside.populate(1..2), Err(RangeError::Range));
    });
}

/// Threads write stamps into pages all the while; a page that holds a newer stamp than when it was last
/// found must be found again. Stamps are read after the collection's flush, so a stamp that is seen
/// was written before the next collection begins.
#[test]
fn no_write_is_missed_by_threads_and_system_calls() {
    passes(|| {
        let (missed, rounds, writes) = oracle(4, collect);
        assert_eq!(missed, 0, "{rounds} rounds, {writes} writes");
        assert!(writes > 100, "{writes} writes");
    });
}

/// The oracle is not blind: a collection that loses one page is found out.
#[test]
fn a_collection_that_loses_a_page_is_found_out() {
    passes(|| {
        let (missed, ..) = oracle(2, |inside, start, pages| {
            let mut dirty = collect(inside, start, pages);
            dirty.remove(&0);
            dirty
        });
        assert_ne!(missed, 0);
    });
}

/// Runs for so many seconds; how many writes were missed, how many collections and writes there were.
fn oracle(
    seconds: u64,
    collect: impl Fn(Inside, *mut u8, usize) -> HashSet<usize>,
) -> (u64, u32, u64) {
    const PAGES: usize = 700;
    let inside = Inside::current().expect("inside");
    let start = map(PAGES) as usize;
    inside.populate(start..start + PAGES * PAGE).expect("memory");
    let stop = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..3usize)
        .map(|writer| {
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
            std::thread::spawn(move || {
                let mut random = writer as u64 + 1;
                let mut pipe = [0; 2];
                // SAFETY: two descriptors.
                assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
                let mut stamp = 1u64;
                while !stop.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // Each writer has pages of its own, so stamps only grow.
                    let page = (random >> 33) as usize % (PAGES / 3) * 3 + writer;
                    let place = start + page * PAGE + 8;
                    stamp += 1;
                    if writer == 2 {
                        // By the kernel.
                        // SAFETY: eight bytes through the pipe, into the mapping.
                        unsafe {
                            libc::write(pipe[1], (&raw const stamp).cast(), 8);
                            assert_eq!(libc::read(pipe[0], place as *mut _, 8), 8);
                        }
                    } else {
                        // SAFETY: an aligned word of the mapping, written by this thread only.
                        unsafe { AtomicU64::from_ptr(place as *mut u64) }
                            .store(stamp, Ordering::Relaxed);
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut seen = vec![u64::MAX; PAGES];
    let mut missed = 0;
    let begin = std::time::Instant::now();
    let mut rounds = 0u32;
    while begin.elapsed() < std::time::Duration::from_secs(seconds) || rounds < 20 {
        // Stamps first: whatever is newer than at the last look was written before this collection.
        let now: Vec<u64> = (0..PAGES)
            .map(|page| {
                let place = start + page * PAGE + 8;
                // SAFETY: an aligned word of the mapping.
                unsafe { AtomicU64::from_ptr(place as *mut u64) }.load(Ordering::Acquire)
            })
            .collect();
        let dirty = collect(inside, start as *mut u8, PAGES);
        for page in 0..PAGES {
            if now[page] != seen[page] && !dirty.contains(&page) {
                missed += 1;
            }
            // Not known again until it is found clean and unchanged.
            seen[page] = if dirty.contains(&page) { u64::MAX } else { now[page] };
        }
        // What was found dirty is looked at now: a newer stamp later must be found later.
        for page in dirty {
            let place = start + page * PAGE + 8;
            // SAFETY: an aligned word of the mapping.
            seen[page] = unsafe { AtomicU64::from_ptr(place as *mut u64) }.load(Ordering::Acquire);
        }
        rounds += 1;
    }
    stop.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| writer.join().expect("it ends"));
    (missed, rounds, count.load(Ordering::Relaxed))
}
