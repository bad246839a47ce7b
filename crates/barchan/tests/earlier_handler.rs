//! The mprotect source and a handler of SIGSEGV that was there first: in a process of its own, as the source's handler
//! is installed once and stays.

mod common;

use barchan::Source;
use common::{Memory, child_status, collect, tracker};

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
