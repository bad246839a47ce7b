//! Running a test's body in guest mode: in a forked child, with a time limit.
//!
//! A forked child has one thread, and what other threads held when it was made stays locked in it for
//! ever. The harness starts and ends threads all the while, and the standard library takes a lock of its own
//! for each (its list of guard pages, of which the C library's `fork` knows nothing): a child made in such a
//! moment hangs in the first thread that its body starts. So nothing is forked from a process that runs
//! several tests: each test runs whole in a process of its own ([`elsewhere`]), where the harness only waits.
#![allow(dead_code, reason = "each test file uses its part")]

use std::cell::Cell;
use std::io::Read as _;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

/// Emulated hosts are a hundred times slower, and the machine may be busy.
const LIMIT: Duration = Duration::from_secs(240);
/// How often it is looked whether something has come about.
const STEP: Duration = Duration::from_millis(2);
/// What a step counts at most.
const LONGEST_STEP: Duration = Duration::from_millis(100);

/// Waits until `done` says so; `false` if it does not within [`LIMIT`].
///
/// Time in which this thread did not run either does not count: whole machines stand still (an emulator that
/// is stopped, a container that is frozen), and nobody could have been done then.
fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let mut waited = Duration::ZERO;
    while !done() {
        if waited > LIMIT {
            return false;
        }
        let start = Instant::now();
        std::thread::sleep(STEP);
        waited += start.elapsed().min(LONGEST_STEP);
    }
    true
}

/// Set in a process that runs one test alone.
const ALONE: &str = "BARCHAN_DUNE_TEST_ALONE";

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

/// Runs the calling test, from its beginning to its end, in a process of its own, and fails if it fails there;
/// `false` in that process. After `true` the caller has nothing left to do here, whatever it had in mind.
fn elsewhere() -> bool {
    std::thread_local!(static DONE: Cell<bool> = const { Cell::new(false) });
    if std::env::var_os(ALONE).is_some() {
        return false;
    }
    if DONE.replace(true) {
        return true;
    }
    let thread = std::thread::current();
    let name = thread.name().expect("the harness names its threads after tests");
    let output = std::process::Command::new(std::env::current_exe().expect("/proc is mounted"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("the test's own program starts");
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().filter(|line| line.starts_with("skipped")).for_each(|line| println!("{line}"));
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{name}, in a process of its own: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    true
}

/// The ring at which the tests run: 3, or what `BARCHAN_DUNE_RING` says.
pub(crate) fn ring() -> dune::Ring {
    match std::env::var("BARCHAN_DUNE_RING") {
        Ok(text) => dune::Ring::parse(text.as_bytes()).expect("BARCHAN_DUNE_RING is 0 or 3"),
        Err(_) => dune::Ring::Three,
    }
}

/// Whether guest mode is to be had; prints why not.
fn available() -> bool {
    if let Err(error) = dune::host::open() {
        println!("skipped: no guest mode here: {error}");
        return false;
    }
    true
}

/// Runs `body` in guest mode in a child of its own; what the child printed and how it ended. `None`:
/// that was done in another process ([`elsewhere`]), or there is no guest mode here, and the reason is
/// printed.
pub(crate) fn run(body: impl FnOnce()) -> Option<(End, String)> {
    run_to_enter(|| {
        // SAFETY: the child has one thread, and at ring 0 it does nothing else than at ring 3.
        if let Err(error) = unsafe { dune::enter_at(ring()) } {
            dune::stats::report(format_args!("{error}\n"));
            // SAFETY: ends the child.
            unsafe { libc::_exit(99) };
        }
        body();
    })
}

/// As [`run`], but `body` begins outside and enters by itself.
pub(crate) fn run_to_enter(body: impl FnOnce()) -> Option<(End, String)> {
    (!elsewhere() && available()).then(|| run_in_child(body))
}

/// As [`run`], but natively.
pub(crate) fn run_natively(body: impl FnOnce()) -> Option<(End, String)> {
    (!elsewhere()).then(|| run_in_child(body))
}

/// Waits until this process has only the harness' thread and the test's: others end, and may hold locks
/// until they have.
fn alone() {
    let threads = || std::fs::read_dir("/proc/self/task").expect("/proc is mounted").count();
    assert!(wait_until(|| threads() <= 2), "a thread is left, and a child misses what it holds");
}

/// What each thread of a process does, as far as the kernel tells.
fn threads_of(pid: i32) -> String {
    let mut text = String::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        text += &format!("thread {}:", thread.file_name().to_string_lossy());
        for file in ["stat", "wchan", "syscall", "stack"] {
            let read = std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
            text += &format!(" {file}: {}\n", read.trim());
        }
    }
    text
}

fn run_in_child(body: impl FnOnce()) -> (End, String) {
    alone();
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
    let mut status = 0;
    // SAFETY: our child.
    let reap = |how, status: &mut i32| unsafe { libc::waitpid(pid, status, how) } == pid;
    if !wait_until(|| reap(libc::WNOHANG, &mut status)) {
        let found = threads_of(pid);
        // SAFETY: the child's group, which has not been reaped.
        unsafe { libc::kill(-pid, libc::SIGKILL) };
        reap(0, &mut status);
        let said = reader.join().unwrap_or_default();
        panic!("the guest did not end within {LIMIT:?}: {said}\n{found}");
    }
    (end(status), reader.join().expect("the reader ends"))
}

/// Expects that the body of a [`run`] has returned, if it was run.
#[track_caller]
pub(crate) fn ended_well(ended: Option<(End, String)>) {
    if let Some((end, text)) = ended {
        assert_eq!(end, End::Exit(0), "the guest said:\n{text}");
    }
}

/// Runs `body` in guest mode, and expects it to return.
pub(crate) fn passes(body: impl FnOnce()) {
    ended_well(run(body));
}

/// A signal handler with SA_SIGINFO.
pub(crate) type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// Makes `handler` the one of `signal`. It runs between two instructions of the test: it may only do what a signal
/// handler may.
pub(crate) fn install(signal: i32, handler: Handler) {
    // SAFETY: the type says that it takes what SA_SIGINFO gives.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
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
