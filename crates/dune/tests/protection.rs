//! Pages that the program protects in its own tables, and its handler at ring 3.

mod support;

use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};

use dune::PAGE_SIZE as PAGE;
use dune::faults::FaultFrame;
use dune::inside::Inside;
use support::{End, install, passes, run};

static COUNT: AtomicUsize = AtomicUsize::new(0);
static LAST: AtomicUsize = AtomicUsize::new(0);

/// New private memory with entries.
fn map(inside: Inside, pages: usize) -> usize {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(null_mut(), pages * PAGE, rights, flags, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    let start = start as usize;
    inside.populate(start..start + pages * PAGE).expect("memory");
    start
}

fn inside() -> Inside {
    Inside::current().expect("inside")
}

/// Unprotects the page, and notes it. It has no proof at hand, and needs none: it runs inside.
fn unprotect(address: usize, _: &mut FaultFrame) -> bool {
    COUNT.fetch_add(1, Ordering::Relaxed);
    LAST.store(address, Ordering::Relaxed);
    let page = address & !(PAGE - 1);
    INSIDE.with(|inside| inside.unprotect(page..page + PAGE).is_ok())
}

std::thread_local!(static INSIDE: Inside = inside());

fn write(address: usize) {
    // SAFETY: mapped memory of the test's.
    unsafe { (address as *mut u8).write_volatile(1) };
}

/// Sets the handler up, with the proof made beforehand.
fn handle() -> Inside {
    let inside = INSIDE.with(|inside| *inside);
    // SAFETY: the handler only touches atomics and entries.
    unsafe { inside.handle_faults(unprotect) };
    inside
}

#[test]
fn a_write_to_a_protected_page_calls_the_handler_once() {
    passes(|| {
        let inside = handle();
        let start = map(inside, 100);
        inside.protect(start..start + 100 * PAGE).expect("a range").flush_everywhere();
        for page in 0..100 {
            // SAFETY: in the mapping: reading is allowed.
            unsafe { ((start + page * PAGE) as *const u8).read_volatile() };
        }
        assert_eq!(COUNT.load(Ordering::Relaxed), 0);
        let before = dune::stats::Snapshot::current().faults;
        for page in 0..100 {
            write(start + page * PAGE + page);
            assert_eq!(LAST.load(Ordering::Relaxed), start + page * PAGE + page);
            write(start + page * PAGE + 99);
        }
        assert_eq!(COUNT.load(Ordering::Relaxed), 100);
        let exits = dune::stats::Snapshot::current().faults - before;
        assert!(exits < 10, "{exits} faults went to the monitor");
    });
}

#[test]
fn registers_and_vectors_survive_the_handler() {
    passes(|| {
        let inside = handle();
        let start = map(inside, 1);
        inside.protect(start..start + PAGE).expect("a range").flush_everywhere();
        let (a, b, flags): (u64, u64, u64);
        // SAFETY: a store into the mapping.
        unsafe {
            std::arch::asm!(
                "mov r12, 0x1234567812345678", "movq xmm9, r12", "mov r11, r12", "stc",
                "mov qword ptr [{p}], r12",
                "pushfq", "pop {f}", "movq {b}, xmm9", "mov {a}, r11",
                p = in(reg) start, a = lateout(reg) a, b = lateout(reg) b, f = lateout(reg) flags,
                out("r11") _, out("r12") _, out("xmm9") _,
            );
        }
        assert_eq!((a, b, flags & 1), (0x1234_5678_1234_5678, 0x1234_5678_1234_5678, 1));
        assert_eq!(COUNT.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn all_kinds_of_stores_find_their_page() {
    passes(|| {
        let inside = handle();
        let start = map(inside, 4);
        let again = || {
            COUNT.store(0, Ordering::Relaxed);
            inside.protect(start..start + 4 * PAGE).expect("a range").flush_everywhere();
        };
        let source = [7u8; 64];
        // SAFETY: stores into the mapping.
        unsafe {
            again();
            std::arch::asm!("rep movsb", inout("rdi") start => _, inout("rsi") source.as_ptr() => _,
                inout("rcx") 64usize => _);
            assert_eq!(COUNT.load(Ordering::Relaxed), 1);
            again();
            std::arch::asm!("lock xadd dword ptr [{p} + {i} * 4 + 8], {v:e}", p = in(reg) start,
                i = in(reg) 3usize, v = inout(reg) 1 => _);
            assert_eq!(LAST.load(Ordering::Relaxed), start + 20);
            again();
            std::arch::asm!("movups [{p}], xmm0", p = in(reg) start + PAGE + 16, out("xmm0") _);
            assert_eq!(LAST.load(Ordering::Relaxed), start + PAGE + 16);
            // Across two pages: two faults.
            again();
            std::arch::asm!("mov qword ptr [{p}], rax", p = in(reg) start + 3 * PAGE - 4);
            assert_eq!(COUNT.load(Ordering::Relaxed), 2);
            // Implicit: the stack itself, which only the monitor can tell.
            for _ in 0..3 {
                again();
                std::arch::asm!("mov {s}, rsp", "mov rsp, {p}", "push rax", "mov rsp, {s}",
                s = out(reg) _, p = in(reg) start + PAGE);
                assert_eq!(
                    (COUNT.load(Ordering::Relaxed), LAST.load(Ordering::Relaxed)),
                    (1, start + PAGE - 8)
                );
            }
        }
    });
}

#[test]
fn without_a_handler_it_is_a_segmentation_fault() {
    let ended = run(|| {
        // SAFETY: libtest's and the standard library's handler goes.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        let inside = inside();
        let start = map(inside, 1);
        inside.protect(start..start + PAGE).expect("a range").flush_everywhere();
        write(start);
    });
    if let Some((end, text)) = ended {
        assert_eq!((end, text.as_str()), (End::Signal(libc::SIGSEGV), ""));
    }
}

#[test]
fn faults_of_others_are_segmentation_faults_as_before() {
    fn refuse(_: usize, _: &mut FaultFrame) -> bool {
        COUNT.fetch_add(1, Ordering::Relaxed);
        false
    }
    // A page that the handler refuses.
    let ended = run(|| {
        // SAFETY: libtest's and the standard library's handler goes; the new one only counts.
        unsafe {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            inside().handle_faults(refuse);
        }
        let start = map(inside(), 1);
        inside().protect(start..start + PAGE).expect("a range").flush_everywhere();
        write(start);
    });
    if let Some((end, text)) = ended {
        assert_eq!((end, text.as_str()), (End::Signal(libc::SIGSEGV), ""));
    }
    // And one that is not there.
    let ended = run(|| {
        // SAFETY: as above; the handler only counts.
        unsafe {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            inside().handle_faults(refuse);
        }
        write(8);
    });
    if let Some((end, text)) = ended {
        assert_eq!((end, text.as_str()), (End::Signal(libc::SIGSEGV), ""));
    }
}

#[test]
fn the_kernel_may_write_to_a_protected_page() {
    passes(|| {
        let inside = handle();
        let start = map(inside, 1);
        let mut dirty = [0u64; 1];
        inside.collect(start..start + PAGE, &mut dirty).expect("a range").flush_everywhere();
        inside.protect(start..start + PAGE).expect("a range").flush_everywhere();
        let mut pipe = [0; 2];
        // SAFETY: two descriptors, and a buffer in the mapping.
        unsafe {
            assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
            libc::write(pipe[1], b"x".as_ptr().cast(), 1);
            assert_eq!(libc::read(pipe[0], start as *mut _, 1), 1);
            assert_eq!((start as *const u8).read_volatile(), b'x');
        }
        dirty = [0];
        inside.collect(start..start + PAGE, &mut dirty).expect("a range").flush_everywhere();
        assert_eq!(dirty, [1], "and it is dirty");
        assert_eq!(COUNT.load(Ordering::Relaxed), 0);
    });
}

/// Everything loses its entry, the handler's own code included: a page of a file that has become shorter is
/// touched, and the host does not say which page it has not.
fn lose_all_entries() {
    extern "C" fn skip(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the third argument of a handler with SA_SIGINFO.
        let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        registers[libc::REG_RIP as usize] = registers[libc::REG_R15 as usize];
        SKIPPED.fetch_add(1, Ordering::Relaxed);
    }
    install(libc::SIGBUS, skip);
    // SAFETY: a file of ours, mapped within its length.
    unsafe {
        let fd = libc::memfd_create(c"short".as_ptr(), libc::MFD_CLOEXEC);
        assert_eq!(libc::ftruncate(fd, PAGE as i64), 0);
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let page = libc::mmap(null_mut(), PAGE, rights, libc::MAP_SHARED, fd, 0);
        assert_ne!(page, libc::MAP_FAILED);
        let page = page as usize;
        (page as *mut u8).write_volatile(1);
        assert_eq!(libc::ftruncate(fd, 0), 0);
        let before = SKIPPED.load(Ordering::Relaxed);
        std::arch::asm!("push r15", "lea r15, [rip + 22f]", "mov al, [{a}]", "22:", "pop r15",
            a = in(reg) page, out("rax") _);
        assert_eq!(SKIPPED.load(Ordering::Relaxed), before + 1);
        libc::munmap(page as *mut _, PAGE);
        libc::close(fd);
    }
}

static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// The way to the handler faults, and the handler's own code. It faulted for ever, each fault at the first
/// instruction of the code for the one before.
#[test]
fn a_handler_whose_code_has_no_entries_is_called() {
    passes(|| {
        let inside = handle();
        let start = map(inside, 8);
        for round in 1..=8 {
            lose_all_entries();
            inside.populate(start..start + 8 * PAGE).expect("memory");
            inside.protect(start..start + 8 * PAGE).expect("a range").flush_everywhere();
            for page in 0..8 {
                write(start + page * PAGE);
                assert_eq!(LAST.load(Ordering::Relaxed), start + page * PAGE);
            }
            assert_eq!(COUNT.load(Ordering::Relaxed), 8 * round);
        }
    });
}

/// And so is the way back from it, if the entries go while it runs.
#[test]
fn a_handler_whose_entries_go_meanwhile_returns() {
    fn lose(address: usize, frame: &mut FaultFrame) -> bool {
        let done = unprotect(address, frame);
        lose_all_entries();
        done
    }
    passes(|| {
        let inside = inside();
        // SAFETY: the handler changes entries, and makes system calls that do not block.
        unsafe { inside.handle_faults(lose) };
        INSIDE.with(|_| ());
        let start = map(inside, 8);
        for round in 0..8 {
            inside.populate(start..start + 8 * PAGE).expect("memory");
            inside.protect(start..start + 8 * PAGE).expect("a range").flush_everywhere();
            let (mut a, mut b, mut c) = (round, 2usize, 3usize);
            // SAFETY: mapped memory of the test's; all registers are as they were.
            unsafe {
                std::arch::asm!("mov [{p}], rax", p = in(reg) start + round * PAGE,
                    inlateout("rax") a, inlateout("rcx") b, inlateout("r11") c);
                assert_eq!(*((start + round * PAGE) as *const usize), round);
            }
            assert_eq!((a, b, c), (round, 2, 3));
            assert_eq!(COUNT.load(Ordering::Relaxed), round + 1);
        }
    });
}

/// Signals whose own handler writes to a protected page, from one thread to another that writes to such pages.
///
/// Each is sent when the one before has been handled. One that comes while its handler runs is delivered as soon as
/// that has returned: a sender that does not look, and gets the processor once in each run of the handler (where there
/// is one, or an emulated one), leaves the program no time at all, in guest mode or not.
mod signals {
    use super::*;

    pub(super) static OWN_PAGE: AtomicUsize = AtomicUsize::new(0);
    pub(super) static SENT: AtomicUsize = AtomicUsize::new(0);
    pub(super) static CAME: AtomicUsize = AtomicUsize::new(0);
    /// Writes of the program's that are done.
    pub(super) static WRITTEN: AtomicUsize = AtomicUsize::new(0);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    const PAGES: usize = 16;

    extern "C" fn came(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        let page = OWN_PAGE.load(Ordering::Relaxed);
        write(page);
        INSIDE.with(|inside| {
            inside.protect(page..page + PAGE).expect("a range").flush_here();
        });
        CAME.fetch_add(1, Ordering::Release);
    }

    fn send_while(pid: i32, tid: i64, mut ready: impl FnMut() -> bool) {
        while DONE.load(Ordering::Acquire) == 0 {
            let handled = CAME.load(Ordering::Acquire) == SENT.load(Ordering::Relaxed);
            if handled && ready() {
                // SAFETY: a thread that waits for this one.
                unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGUSR1) };
                SENT.fetch_add(1, Ordering::Release);
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Writes to protected pages until `many` signals have come, the next of which is sent when `ready` says so.
    pub(super) fn come(inside: Inside, many: usize, ready: impl FnMut() -> bool + Send + 'static) {
        INSIDE.with(|_| ());
        let own = map(inside, 1);
        inside.protect(own..own + PAGE).expect("a range").flush_everywhere();
        OWN_PAGE.store(own, Ordering::Relaxed);
        install(libc::SIGUSR1, came);
        // SAFETY: they ask for this thread's ids.
        let (pid, tid) = unsafe { (libc::getpid(), libc::syscall(libc::SYS_gettid)) };
        let start = map(inside, PAGES);
        let sender = std::thread::spawn(move || send_while(pid, tid, ready));
        while CAME.load(Ordering::Relaxed) < many {
            inside.protect(start..start + PAGES * PAGE).expect("a range").flush_here();
            for page in 0..PAGES {
                write(start + page * PAGE);
                WRITTEN.fetch_add(1, Ordering::Release);
                // It comes by itself, and not only at the end of some system call.
                while CAME.load(Ordering::Acquire) < SENT.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
            }
        }
        DONE.store(1, Ordering::Release);
        sender.join().expect("it ends");
        // The last one comes at the end of a system call at the latest; none is lost.
        assert_eq!(CAME.load(Ordering::Relaxed), SENT.load(Ordering::Relaxed));
    }
}

/// A signal that comes in the middle of a handler was delivered there, and its own handler's write was SIGSEGV.
#[test]
fn a_signal_in_the_middle_of_a_handler_waits_for_its_end() {
    static HANDLING: AtomicUsize = AtomicUsize::new(0);
    static EARLY: AtomicUsize = AtomicUsize::new(0);
    static OTHER_PAGE: AtomicUsize = AtomicUsize::new(0);
    /// Goes on until a signal has been sent, if it is the program's write and not the signal's. Makes no system call,
    /// at whose end the signal would be delivered.
    fn until_sent(address: usize, _: &mut FaultFrame) -> bool {
        let page = address & !(PAGE - 1);
        let came = signals::CAME.load(Ordering::Acquire);
        let sent = signals::SENT.load(Ordering::Acquire);
        let own = page == signals::OWN_PAGE.load(Ordering::Relaxed);
        // Not while one is on its way, which would wait for this handler, and the sender for it.
        if !own && came == sent {
            HANDLING.store(1, Ordering::Release);
            while signals::SENT.load(Ordering::Acquire) == sent {
                // Where there is one processor, the sender gets it when an interrupt ends the run. Bochs takes none in
                // a guest entered without RFLAGS.IF, as a handler is; but CPUID ends a run.
                let _ = std::arch::x86_64::__cpuid(0);
            }
            HANDLING.store(0, Ordering::Release);
            for _ in 0..1000 {
                std::hint::spin_loop();
            }
            // SAFETY: mapped memory of the test's. The sender has taken its entry: a fault of the handler's own.
            unsafe { (OTHER_PAGE.load(Ordering::Relaxed) as *const u8).read_volatile() };
            EARLY.fetch_add(signals::CAME.load(Ordering::Relaxed) - came, Ordering::Relaxed);
        }
        INSIDE.with(|inside| inside.unprotect(page..page + PAGE).is_ok())
            // As if another thread had been quicker, and this one found nothing to do: no fault comes after it.
            && (own || sent % 4 != 1)
    }
    passes(|| {
        let inside = inside();
        // SAFETY: the handler changes entries and atomics only.
        unsafe { inside.handle_faults(until_sent) };
        let other = map(inside, 1);
        OTHER_PAGE.store(other, Ordering::Relaxed);
        // SAFETY: a file of ours.
        let file = unsafe { libc::memfd_create(c"other".as_ptr(), libc::MFD_CLOEXEC) };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::ftruncate(file, PAGE as i64) }, 0);
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let before = dune::stats::Snapshot::current().faults;
        signals::come(inside, 100, move || {
            // SAFETY: in place of memory of the test's, which nobody reads meanwhile. A file's pages have no entries.
            HANDLING.load(Ordering::Acquire) != 0
                && unsafe { libc::mmap(other as *mut _, PAGE, libc::PROT_READ, flags, file, 0) }
                    as usize
                    == other
        });
        let faults = dune::stats::Snapshot::current().faults - before;
        assert!(faults >= 100, "{faults} faults of the handler's own");
        assert_eq!(EARLY.load(Ordering::Relaxed), 0, "signals in the middle of a handler");
    });
}

/// The same wherever a signal comes: before the handler and after it, in its flushes, at its return.
#[test]
fn signal_handlers_write_to_protected_pages_whenever_they_come() {
    /// Long enough to be interrupted, by its flushes above all.
    fn slow(address: usize, _: &mut FaultFrame) -> bool {
        let page = address & !(PAGE - 1);
        let run = COUNT.fetch_add(1, Ordering::Relaxed);
        INSIDE.with(|inside| {
            (0..run % 8).for_each(|_| inside.flush());
            inside.unprotect(page..page + PAGE).is_ok()
        })
    }
    passes(|| {
        let inside = inside();
        // SAFETY: the handler changes entries and atomics only, and flushes.
        unsafe { inside.handle_faults(slow) };
        let mut seen = usize::MAX;
        signals::come(inside, 200, move || {
            let now = signals::WRITTEN.load(Ordering::Acquire);
            let ready = now != seen;
            seen = now;
            for _ in 0..if ready { now * 31 % 977 } else { 0 } {
                std::hint::spin_loop();
            }
            ready
        });
    });
}

/// A handler that makes a system call gets its signals there; one that comes then does not wait for the handler, since
/// the one before may be waiting for it.
#[test]
fn a_signal_that_interrupts_a_handler_may_wait_for_another() {
    static WAITS: AtomicUsize = AtomicUsize::new(0);
    static SECOND: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn first(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        WAITS.store(1, Ordering::Release);
        // Without a system call, at whose end the other would come anyhow.
        while SECOND.load(Ordering::Acquire) == 0 {
            std::hint::spin_loop();
        }
    }
    extern "C" fn second(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        SECOND.store(1, Ordering::Release);
    }
    fn calls(address: usize, frame: &mut FaultFrame) -> bool {
        // SAFETY: a signal with a handler.
        unsafe { libc::raise(libc::SIGUSR1) };
        unprotect(address, frame)
    }
    passes(|| {
        let inside = inside();
        // SAFETY: the handler makes a system call that does not block, and changes entries.
        unsafe { inside.handle_faults(calls) };
        INSIDE.with(|_| ());
        install(libc::SIGUSR1, first);
        install(libc::SIGUSR2, second);
        let start = map(inside, 1);
        inside.protect(start..start + PAGE).expect("a range").flush_everywhere();
        // SAFETY: they ask for this thread's ids.
        let (pid, tid) = unsafe { (libc::getpid(), libc::syscall(libc::SYS_gettid)) };
        let sender = std::thread::spawn(move || {
            while WAITS.load(Ordering::Acquire) == 0 {
                std::thread::yield_now();
            }
            // SAFETY: a thread that waits for this one.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGUSR2) };
        });
        write(start);
        sender.join().expect("it ends");
        assert_eq!(COUNT.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn threads_fault_side_by_side_under_signals() {
    extern "C" fn tick(_: i32) {}
    passes(|| {
        let inside = handle();
        // SAFETY: a handler that does nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = tick as extern "C" fn(i32) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(libc::SIGALRM, &raw const action, null_mut());
        }
        support::tick(std::time::Duration::from_micros(1500));
        let start = map(inside, 4 * 64);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    let inside = INSIDE.with(|inside| *inside);
                    let mine = start + thread * 64 * PAGE;
                    for round in 0..8 {
                        let range = mine..mine + 64 * PAGE;
                        inside.protect(range).expect("a range").flush_everywhere();
                        for page in 0..64 {
                            write(mine + page * PAGE + round);
                        }
                    }
                });
            }
        });
        assert_eq!(COUNT.load(Ordering::Relaxed), 4 * 8 * 64);
    });
}
