//! The SIGSEGV handler: finds the region, lets it resolve the fault, and hands everything else to
//! whoever handled SIGSEGV before.
//!
//! It runs with all signals blocked, so a thread is never stopped by a suspend signal while it
//! holds a region's lock; on the alternate stack if the thread has one, as the handlers that it
//! may chain to expect. It does not allocate, panic, or touch `errno`. It is installed once and
//! stays; a program that replaces it later takes the faults of tracked pages upon itself.

use core::cell::UnsafeCell;
use core::mem::{self, MaybeUninit};
use std::sync::atomic::{AtomicBool, Ordering};

use super::registry;
use super::state::{Fault, is_writable};
use crate::os::lock::EpochLock;
use crate::os::syscall;
use crate::{Errno, PAGE_SIZE, PageRange};

/// The action that was there before ours.
struct Previous(UnsafeCell<MaybeUninit<libc::sigaction>>);

// SAFETY: 1. written under INSTALLING only, while our handler is not installed. 2. Read by our handler
// only, and never written again once it was installed.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(UnsafeCell::new(MaybeUninit::uninit()));
/// Our handler has been installed. Set after that is so: a child that another thread forks in between
/// has neither, or finds the handler itself.
static READY: AtomicBool = AtomicBool::new(false);
static INSTALLING: EpochLock = EpochLock::new();

/// Why the handler is not installed.
pub(super) enum Refused {
    /// The kernel refuses.
    System(Errno),
    /// It was, and the program has put another in its place.
    Replaced,
}

/// Installs the handler, once for the process.
pub(super) fn install() -> Result<(), Refused> {
    let _held = INSTALLING.lock();
    let last_error =
        || Refused::System(Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)));
    let mut previous = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: 1. a null new action only asks. 2. `previous` has room for the answer.
    if unsafe { libc::sigaction(libc::SIGSEGV, core::ptr::null(), previous.as_mut_ptr()) } != 0 {
        return Err(last_error());
    }
    // SAFETY: sigaction filled it.
    let previous = unsafe { previous.assume_init() };
    if previous.sa_sigaction == on_sigsegv as *const () as usize {
        READY.store(true, Ordering::Release);
        return Ok(());
    }
    if READY.load(Ordering::Acquire) {
        return Err(Refused::Replaced);
    }
    // SAFETY: the lock is held, and our handler was never installed, so nobody else looks.
    unsafe { (*PREVIOUS.0.get()).write(previous) };
    // SAFETY: an all-zero sigaction is valid; every field that matters is set below.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_sigsegv as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: 1. the mask is ours to fill. 2. `on_sigsegv` has the signature of SA_SIGINFO and is
    // async-signal-safe (see the module's description).
    let installed = unsafe {
        // The kernel's set, which holds the C library's own two signals too: one of them, of
        // pthread_cancel, would leave the handler with locks held.
        (&raw mut action.sa_mask).cast::<u64>().write(syscall::ALL_SIGNALS);
        libc::sigaction(libc::SIGSEGV, &action, core::ptr::null_mut())
    };
    if installed != 0 {
        return Err(last_error());
    }
    READY.store(true, Ordering::Release);
    Ok(())
}

extern "C" fn on_sigsegv(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes valid pointers to an SA_SIGINFO handler.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code == SEGV_ACCERR && is_store(context) && resolve(address) {
        return;
    }
    chain(signal, info, context);
}

/// Whether the faulting instruction is to run again.
fn resolve(address: usize) -> bool {
    let page = address & !(PAGE_SIZE - 1);
    loop {
        let version = registry::version();
        match registry::with(address, |region| region.on_fault(page)) {
            Some(fault) => return fault == Fault::Resolved,
            // The region may have gone while the fault was on its way here, and then its pages
            // are writable by now,
            None if is_writable_page(page) => return true,
            // unless another one has come and has armed them since.
            None if registry::version() == version => return false,
            None => {}
        }
    }
}

/// An access that the protection forbids, as opposed to an address that is not mapped.
const SEGV_ACCERR: i32 = 2;

fn is_writable_page(page: usize) -> bool {
    PageRange::new(page, PAGE_SIZE).is_ok_and(|page| is_writable(page) == Some(true))
}

/// Whether the faulting access was a store. Our pages can be read at any time, so a faulting load
/// is never ours.
#[cfg(target_arch = "x86_64")]
fn is_store(context: *mut libc::c_void) -> bool {
    // SAFETY: the third argument of an SA_SIGINFO handler is a ucontext_t.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    // The page fault's error code; bit 1 is set for a store (SDM 3A §4.7).
    context.uc_mcontext.gregs[libc::REG_ERR as usize] & 2 != 0
}

/// Whether the faulting access was a store: not told apart here, and then it is taken for one.
#[cfg(not(target_arch = "x86_64"))]
fn is_store(_context: *mut libc::c_void) -> bool {
    true
}

/// Does what would have happened without us.
fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the handler is installed after PREVIOUS was written, and it is not written again.
    let previous = unsafe { (*PREVIOUS.0.get()).assume_init_ref() };
    let action = previous.sa_sigaction;
    // SAFETY: the kernel passes a valid siginfo.
    let is_sent = unsafe { (*info).si_code } <= 0;
    if action == libc::SIG_IGN && is_sent {
        return;
    }
    if action == libc::SIG_DFL || action == libc::SIG_IGN {
        // A fault cannot be ignored: the kernel kills a process that ignores it. With the default
        // action back in place the instruction faults again, and the core dump shows it.
        // SAFETY: an all-zero action is SIG_DFL with an empty mask.
        unsafe {
            let default: libc::sigaction = mem::zeroed();
            libc::sigaction(signal, &default, core::ptr::null_mut());
            // No fault: nothing would fault again.
            if is_sent {
                libc::raise(signal);
            }
        }
        return;
    }
    // The mask that the previous handler would have run with. It may leave by siglongjmp, and
    // then what it sees here is what it saved.
    // SAFETY: 1. the third argument is a ucontext_t. 2. Both masks begin with the kernel's 64 bits.
    let (interrupted, extra) = unsafe {
        let context = &*context.cast::<libc::ucontext_t>();
        (kernel_mask(&context.uc_sigmask), kernel_mask(&previous.sa_mask))
    };
    let own = if previous.sa_flags & libc::SA_NODEFER != 0 { 0 } else { 1 << (signal - 1) };
    syscall::set_signal_mask(interrupted | extra | own);
    // SAFETY: the previous action was installed with a handler of the type that its flags say, and
    // it gets the arguments that the kernel gave us.
    unsafe {
        if previous.sa_flags & libc::SA_RESETHAND != 0 {
            let default: libc::sigaction = mem::zeroed();
            libc::sigaction(signal, &default, core::ptr::null_mut());
        }
        if previous.sa_flags & libc::SA_SIGINFO != 0 {
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                mem::transmute(action);
            handler(signal, info, context);
        } else {
            let handler: extern "C" fn(libc::c_int) = mem::transmute(action);
            handler(signal);
        }
    }
}

/// The 64 signals that the kernel knows of a C library's larger set.
///
/// # Safety
/// `set` is initialised.
unsafe fn kernel_mask(set: &libc::sigset_t) -> u64 {
    // SAFETY: a sigset_t is at least 8 bytes, aligned for a long, the first signals first.
    unsafe { core::ptr::from_ref(set).cast::<u64>().read() }
}
