//! The mprotect source and other handlers of SIGSEGV, before and after its own: in a process of its own, as the source's
//! handler is installed once and stays. So each test opens it in a child only.

mod common;

use std::sync::atomic::{AtomicI32, Ordering};

use barchan::{ErrorKind, PAGE_SIZE, Source, Tracker};
use common::{Memory, child_status, collect, make_read_only, tracker};

extern "C" fn exit_42(_: libc::c_int) {
    // SAFETY: _exit is async-signal-safe.
    unsafe { libc::_exit(42) }
}

extern "C" fn exit_if_null(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo; _exit is async-signal-safe.
    unsafe { libc::_exit(if (*info).si_addr() as usize == 16 { 43 } else { 1 }) }
}

#[test]
fn an_earlier_handler_gets_the_faults_that_are_not_ours() {
    let handlers: [(usize, i32, i32); 2] = [
        (exit_42 as *const () as usize, 0, 42),
        (exit_if_null as *const () as usize, libc::SA_SIGINFO, 43),
    ];
    for (handler, flags, code) in handlers {
        let status = child_status(false, || {
            // SAFETY: an all-zero sigaction is valid, and the handler fits the flags.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler;
                action.sa_flags = flags;
                libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
            }
            let tracker = tracker(Source::Mprotect).expect("mprotect is everywhere");
            let memory = Memory::touched(4);
            let region = memory.track(&tracker);
            collect(&region);
            memory.write(2);
            // SAFETY: the handler ends the process.
            unsafe { (16 as *mut u8).write_volatile(1) };
            drop(region);
            false
        });
        assert!(libc::WIFEXITED(status), "{status:#x}");
        assert_eq!(libc::WEXITSTATUS(status), code);
    }
}

/// Has `handler` (of one argument) handle SIGSEGV.
fn set_handler(handler: libc::sighandler_t) {
    // SAFETY: the handler fits.
    assert_ne!(unsafe { libc::signal(libc::SIGSEGV, handler) }, libc::SIG_ERR);
}

#[test]
fn faults_of_the_program_kill_it_as_before() {
    let killed_by_segv = |what: &str, status: i32| {
        assert!(libc::WIFSIGNALED(status), "{what}: {status:#x}");
        assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV, "{what}");
    };
    // SAFETY: the child is to die of these stores.
    let crash = |address: usize| unsafe { (address as *mut u8).write_volatile(1) };
    let armed = |crash: &dyn Fn(&Memory)| {
        // The test harness' own handler (for stack overflows) would report the crash.
        set_handler(libc::SIG_DFL);
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
                make_read_only(&other, 0);
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

#[test]
fn a_signal_that_is_sent_is_ignored_if_it_was_and_a_fault_is_not() {
    let armed = |what: &dyn Fn()| {
        child_status(false, || {
            set_handler(libc::SIG_IGN);
            let tracker = tracker(Source::Mprotect).expect("mprotect is everywhere");
            let memory = Memory::touched(4);
            let region = memory.track(&tracker);
            collect(&region);
            what();
            memory.write(2);
            collect(&region) == [2]
        })
    };
    // SAFETY: raising a signal is what is tested.
    assert_eq!(armed(&|| assert_eq!(unsafe { libc::raise(libc::SIGSEGV) }, 0)), 0);
    // SAFETY: the child is to die of it.
    let status = armed(&|| unsafe { (16 as *mut u8).write_volatile(1) });
    assert!(libc::WIFSIGNALED(status), "{status:#x}");
    assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
}

#[test]
fn a_handler_that_was_replaced_is_an_error_when_opening_again() {
    common::in_child("replaced", || {
        drop(tracker(Source::Mprotect).expect("mprotect is everywhere"));
        // SAFETY: an all-zero sigaction is valid; it is filled.
        let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: a null action only asks.
        unsafe { libc::sigaction(libc::SIGSEGV, std::ptr::null(), &mut ours) };
        set_handler(exit_42 as *const () as usize);
        let again = || Tracker::builder().source(Source::Mprotect).open();
        let why = again().map(|tracker| tracker.source()).expect_err("its faults would be others'");
        assert_eq!(why.kind(), ErrorKind::Denied, "{why}");
        assert!(why.to_string().contains("SIGSEGV"), "{why}");
        // SAFETY: the action is as it was.
        unsafe { libc::sigaction(libc::SIGSEGV, &ours, std::ptr::null_mut()) };
        again().is_ok()
    });
}

/// Whether the tracker's faults reach its handler.
fn reports_a_store(tracker: &Tracker) -> bool {
    let memory = Memory::touched(4);
    let region = memory.track(tracker);
    collect(&region);
    memory.write(2);
    collect(&region) == [2]
}

/// In a child, the wait status of the next that is forked as the handler is about to be installed.
static FORKED: AtomicI32 = AtomicI32::new(0);
const TO_BE_FORKED: i32 = -1;

/// In place of the C library's.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn sigaction(
    signal: libc::c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> libc::c_int {
    if signal == libc::SIGSEGV
        && !new.is_null()
        && FORKED.compare_exchange(TO_BE_FORKED, 1, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    {
        let status = child_status(false, || {
            // The thread that installs has blocked all signals; the one that would fork has not.
            // SAFETY: an all-zero set is valid, and emptied.
            unsafe {
                let mut none: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&mut none);
                libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            }
            reports_a_store(&tracker(Source::Mprotect).expect("mprotect is everywhere"))
        });
        FORKED.store(status, Ordering::SeqCst);
    }
    // SAFETY: the C library has a function of that name and type.
    unsafe {
        let next = libc::dlsym(libc::RTLD_NEXT, c"sigaction".as_ptr());
        assert!(!next.is_null());
        let next: unsafe extern "C" fn(
            libc::c_int,
            *const libc::sigaction,
            *mut libc::sigaction,
        ) -> libc::c_int = std::mem::transmute(next);
        next(signal, new, old)
    }
}

/// As another thread may do at any moment.
#[test]
fn a_child_forked_before_the_handler_is_installed_installs_its_own() {
    common::in_child("forked meanwhile", || {
        FORKED.store(TO_BE_FORKED, Ordering::SeqCst);
        let tracker = tracker(Source::Mprotect).expect("mprotect is everywhere");
        assert_eq!(FORKED.load(Ordering::SeqCst), 0);
        reports_a_store(&tracker)
    });
}
