//! Running a test's body in guest mode: in a forked child, with a time limit.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::Read as _;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

/// Emulated hosts are a hundred times slower, and the machine may be busy.
const LIMIT: Duration = Duration::from_secs(120);

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Exit(i32),
    Signal(i32),
}

/// The status of a child by `waitpid`.
pub(crate) fn end(status: i32) -> End {
    if libc::WIFEXITED(status) {
        End::Exit(libc::WEXITSTATUS(status))
    } else {
        End::Signal(libc::WTERMSIG(status))
    }
}

/// Whether guest mode is to be had; prints why not.
pub(crate) fn available() -> bool {
    if let Err(error) = dune::host::open() {
        println!("skipped: no guest mode here: {error}");
        return false;
    }
    true
}

/// Runs `body` in guest mode in a child of its own; what the child printed and how it ended. `None`:
/// there is no guest mode here, and the reason is printed.
pub(crate) fn run(body: impl FnOnce()) -> Option<(End, String)> {
    if !available() {
        return None;
    }
    Some(run_in_child(|| {
        // SAFETY: the child has one thread.
        if let Err(error) = unsafe { dune::enter() } {
            dune::stats::report(format_args!("{error}\n"));
            // SAFETY: ends the child.
            unsafe { libc::_exit(99) };
        }
        body();
    }))
}

/// Runs `body` in a child, natively.
pub(crate) fn run_in_child(body: impl FnOnce()) -> (End, String) {
    let mut pipe = [0; 2];
    // SAFETY: two descriptors go into the array.
    assert_eq!(unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    // SAFETY: the child runs the body and leaves by _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        // SAFETY: the child's own descriptors and process group.
        unsafe {
            libc::setpgid(0, 0);
            libc::dup2(pipe[1], 1);
            libc::dup2(pipe[1], 2);
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: ends the child.
        unsafe { libc::_exit(if result.is_ok() { 0 } else { 101 }) };
    }
    // SAFETY: this end is the child's.
    unsafe { libc::close(pipe[1]) };
    // SAFETY: this end is ours.
    let out = unsafe { OwnedFd::from_raw_fd(pipe[0]) };
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = std::fs::File::from(out).read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let start = Instant::now();
    let mut status = 0;
    loop {
        // SAFETY: our child.
        let done = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
        if done == pid {
            break;
        }
        if start.elapsed() > LIMIT {
            // SAFETY: the child's group; then the child is reaped.
            unsafe {
                libc::kill(-pid, libc::SIGKILL);
                libc::waitpid(pid, &raw mut status, 0);
            }
            panic!("the guest did not end within {LIMIT:?}: {}", reader.join().unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    (end(status), reader.join().expect("the reader ends"))
}

/// Runs `body` in guest mode, and expects it to return.
pub(crate) fn passes(body: impl FnOnce()) {
    if let Some((end, text)) = run(body) {
        assert_eq!(end, End::Exit(0), "the guest said:\n{text}");
    }
}

/// Sends SIGALRM every so often, of which there is a handler: as often as leaves the program time to
/// get on, by what one signal costs here (an emulator needs a millisecond for it).
pub(crate) fn tick(least: Duration) {
    let start = Instant::now();
    for _ in 0..8 {
        // SAFETY: a signal with a handler.
        unsafe { libc::raise(libc::SIGALRM) };
    }
    let period = least.max(start.elapsed() / 8 * 10);
    let every = libc::timeval {
        tv_sec: period.as_secs() as i64,
        tv_usec: i64::from(period.subsec_micros()),
    };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: a timer of ours.
    let set = unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    assert_eq!(set, 0);
}
