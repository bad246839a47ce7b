//! System calls: the cheapest one, and intercepting it.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use dune::inside::Inside;

use crate::clock::{repeat, samples, ticks};
use crate::{Error, Timed};

/// Calls that one sample of ptrace lets through.
const TRACED: usize = 200;
/// Samples of ptrace.
const TRACED_SAMPLES: usize = 21;

/// getpid, made and not taken from a cache.
pub(crate) fn getpid() -> Timed {
    repeat(|| {
        // SAFETY: no arguments.
        unsafe { libc::syscall(libc::SYS_getpid) };
    })
}

/// In guest mode: a call that the monitor answers without the kernel.
pub(crate) fn answered_by_monitor() -> Timed {
    repeat(|| {
        let _ = std::hint::black_box(Inside::current());
    })
}

/// getpid of a traced child. `made`: two stops, by PTRACE_SYSCALL; else one, by PTRACE_SYSEMU.
///
/// Tracer and child on one CPU, or wherever the scheduler puts them: the better of both.
pub(crate) fn ptrace(made: bool) -> Result<Timed, String> {
    let free = traced(made, false)?;
    let together = traced(made, true)?;
    Ok(Timed {
        ticks: free.ticks.min(together.ticks),
        operations: free.operations + together.operations,
    })
}

fn error(what: &str) -> String {
    format!("{what}: {}", std::io::Error::last_os_error())
}

fn traced(made: bool, together: bool) -> Result<Timed, String> {
    // SAFETY: the child makes system calls only.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(error("fork"));
    }
    if child == 0 {
        // SAFETY: asks to be traced, stops, and then makes calls until it is killed, which comes at the
        // latest when the tracer ends (PTRACE_O_EXITKILL).
        unsafe {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
            loop {
                libc::syscall(libc::SYS_getpid);
            }
        }
    }
    let before = together.then(|| pin(child));
    let result = trace(child, made);
    // SAFETY: our child, and a set of CPUs that we had.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, null_mut(), 0);
        if let Some(set) = before {
            libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
        }
    }
    result
}

/// Puts this thread and `child` on one CPU; where this thread might run before.
fn pin(child: libc::pid_t) -> libc::cpu_set_t {
    // SAFETY: sets of our own; zero is an empty set.
    unsafe {
        let (mut before, mut one): (libc::cpu_set_t, libc::cpu_set_t) = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of_val(&before), &raw mut before);
        libc::CPU_SET(usize::try_from(libc::sched_getcpu()).unwrap_or(0), &mut one);
        for pid in [0, child] {
            libc::sched_setaffinity(pid, size_of_val(&one), &raw const one);
        }
        before
    }
}

fn trace(child: libc::pid_t, made: bool) -> Result<Timed, String> {
    let wait = |expected: i32| {
        let mut status = 0;
        // SAFETY: our child, and a place of ours.
        let found = unsafe { libc::waitpid(child, &raw mut status, libc::__WALL) };
        let stopped = libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == expected;
        (found == child && stopped).then_some(()).ok_or_else(|| {
            format!("the traced child reported {status:#x} where a stop by {expected} was due")
        })
    };
    wait(libc::SIGSTOP)?;
    // SAFETY: the child is traced and stopped.
    if unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, child, 0, libc::PTRACE_O_EXITKILL) } != 0 {
        return Err(error("PTRACE_O_EXITKILL"));
    }
    let (request, stops) = if made { (libc::PTRACE_SYSCALL, 2) } else { (libc::PTRACE_SYSEMU, 1) };
    let mut failed = None;
    let mut operations = 0;
    let ticks = samples(TRACED_SAMPLES, || {
        let start = ticks();
        for _ in 0..TRACED * stops {
            // SAFETY: the child is traced and stopped.
            if unsafe { libc::ptrace(request, child, 0, 0) } != 0 {
                failed = Some(error("ptrace"));
                return None;
            }
            if let Err(why) = wait(libc::SIGTRAP) {
                failed = Some(why);
                return None;
            }
        }
        operations += TRACED as u64;
        Some((ticks() - start) as f64 / TRACED as f64)
    });
    match (ticks, failed) {
        (Some(ticks), None) => Ok(Timed { ticks, operations }),
        (_, why) => Err(why.unwrap_or_default()),
    }
}

/// What the kernel reads before each system call: 1 sends it to the handler, 0 lets it through.
static SELECTOR: AtomicU8 = AtomicU8::new(0);
/// Whether the handler makes the call.
static MADE: AtomicBool = AtomicBool::new(false);
static HANDLED: AtomicU64 = AtomicU64::new(0);

core::arch::global_asm!(
    ".globl dune_bench_restore",
    ".globl dune_bench_restored",
    ".hidden dune_bench_restore",
    ".hidden dune_bench_restored",
    ".type dune_bench_restore,@function",
    // Where the handler returns to: rt_sigreturn, in a range of its own that is always let through.
    "dune_bench_restore:",
    "mov eax, 15",
    "syscall",
    "dune_bench_restored:",
    "ud2",
    ".size dune_bench_restore, . - dune_bench_restore",
);

unsafe extern "C" {
    fn dune_bench_restore();
    fn dune_bench_restored();
}

extern "C" fn on_sigsys(_: i32, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    SELECTOR.store(0, Ordering::Relaxed);
    let mut result = 1;
    if MADE.load(Ordering::Relaxed) {
        // SAFETY: no arguments.
        result = unsafe { libc::syscall(libc::SYS_getpid) };
    }
    HANDLED.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the kernel's own record of the interrupted state.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_RAX as usize] = result };
    SELECTOR.store(1, Ordering::Relaxed);
}

/// The kernel's `struct sigaction`, which the C library's differs from.
#[repr(C)]
struct KernelAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

/// getpid, intercepted by syscall user dispatch: SIGSYS in the thread itself. `made`: by the handler.
pub(crate) fn user_dispatch(made: bool) -> Result<Timed, Error> {
    const SA_RESTORER: u64 = 0x0400_0000;
    const PR_SET_SYSCALL_USER_DISPATCH: libc::c_int = 59;
    const ON: usize = 1;
    MADE.store(made, Ordering::Relaxed);
    let restore = dune_bench_restore as *const () as usize;
    let restored = dune_bench_restored as *const () as usize;
    let action = KernelAction {
        handler: on_sigsys as *const () as usize,
        flags: SA_RESTORER | libc::SA_SIGINFO as u64 | libc::SA_NODEFER as u64,
        restorer: restore,
        mask: 0,
    };
    // SAFETY: a handler that touches atomics and its own context; then the kernel is told where the
    // selector is, which is static, and which code is let through.
    unsafe {
        let old = null_mut::<KernelAction>();
        let number = libc::SYS_rt_sigaction;
        if libc::syscall(number, libc::SIGSYS, &raw const action, old, size_of::<u64>()) != 0 {
            return Err(error("rt_sigaction").into());
        }
        // The address that is compared is the one after SYSCALL.
        let len = restored - restore + 1;
        let selector = SELECTOR.as_ptr();
        if libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, ON, restore, len, selector) != 0 {
            return Err("this kernel has no syscall user dispatch (Linux 5.11)".to_owned().into());
        }
    }
    let timed = repeat(|| {
        SELECTOR.store(1, Ordering::Relaxed);
        // SAFETY: no arguments.
        unsafe { libc::syscall(libc::SYS_getpid) };
        SELECTOR.store(0, Ordering::Relaxed);
    });
    let handled = HANDLED.load(Ordering::Relaxed);
    if handled != timed.operations {
        let why = format!("{handled} of {} calls were intercepted", timed.operations);
        return Err(Error::Failed(why));
    }
    Ok(timed)
}
