//! The monitor's signal handler: takes down a signal, and lets nothing else happen before the program
//! has got it.
//!
//! It runs on whatever monitor stack the thread was on, finds the thread's record from there, and
//! writes to it. No lock, no allocation, no thread-local storage. A thread of the process that is not
//! in guest mode has no monitor stack: there the program's handler is called as the kernel would have.

use core::sync::atomic::Ordering;

use super::Info;
use super::actions::{Action, SA_SIGINFO};
use crate::process::PROCESS;
use crate::process::thread::{self, Thread};
use crate::sys::{forward, text};

/// Words of the kernel's `struct ucontext` (arch/x86/include/uapi/asm/ucontext.h, sigcontext.h).
const CONTEXT_RCX: usize = 5 + 14;
const CONTEXT_RSP: usize = 5 + 15;
const CONTEXT_RIP: usize = 5 + 16;
const CONTEXT_MASK: usize = 37;

core::arch::global_asm!(
    ".globl barchan_dune_restorer",
    ".hidden barchan_dune_restorer",
    ".type barchan_dune_restorer,@function",
    "barchan_dune_restorer:",
    "mov eax, 15",
    "syscall",
    ".size barchan_dune_restorer, . - barchan_dune_restorer",
);

unsafe extern "C" {
    fn barchan_dune_restorer();
}

/// The address of the handler.
pub(crate) fn entry() -> u64 {
    capture as extern "C" fn(i32, *const Info, *mut [u64; 38]) as *const () as u64
}

/// The address of what the handler returns to.
pub(crate) fn restorer() -> u64 {
    barchan_dune_restorer as *const () as u64
}

extern "C" fn capture(signal: i32, info: *const Info, context: *mut [u64; 38]) {
    // SAFETY: the kernel passes a siginfo and a ucontext of its own making.
    let (info, context) = unsafe { (&*info, &mut *context) };
    let Some(thread) = thread::on_stack(&raw const *context as usize) else {
        return outside(signal, info, context);
    };
    let code = info[1] as u32 as i32;
    let fault = matches!(signal, libc::SIGSEGV | libc::SIGILL | libc::SIGFPE) && code > 0
        || signal == libc::SIGBUS && (1..4).contains(&code);
    if fault {
        text::fatal(format_args!(
            "barchan: signal {signal}, code {code}, at address {:#x} in the monitor itself: \
             rip {:#x}, rsp {:#x}. This is a bug of barchan's.\n",
            info[2], context[CONTEXT_RIP], context[CONTEXT_RSP]
        ));
    }
    take_down(thread, signal as u32, info, context);
}

fn take_down(thread: &Thread, signal: u32, info: &Info, context: &mut [u64; 38]) {
    // SAFETY: all signals were unblocked or we would not be here, so nothing is captured, and the
    // thread itself is stopped.
    let captured = unsafe { &mut *thread.captured.get() };
    captured.info = *info;
    captured.signal = signal;
    captured.mask = context[CONTEXT_MASK];
    context[CONTEXT_MASK] = !0;
    thread.pending.store(1, Ordering::Release);
    thread.kick();
    if let Some(rip) = forward::leave_window(context[CONTEXT_RIP], context[CONTEXT_RCX]) {
        context[CONTEXT_RIP] = rip;
    }
}

/// A thread that is not in guest mode: calls the program's handler, with the mask that it wants.
fn outside(signal: i32, info: &Info, context: &mut [u64; 38]) {
    // Nobody holds this lock when such a thread runs, or else another thread that will let go.
    let action: Action = PROCESS.actions.lock()[signal as usize];
    if !action.is_handler() {
        return;
    }
    let before =
        crate::sys::set_mask(context[CONTEXT_MASK] | action.mask | super::bit(signal as u32));
    // SAFETY: the program gave this address for a function of this kind.
    unsafe {
        if action.flags & SA_SIGINFO != 0 {
            type Handler = extern "C" fn(i32, *const Info, *mut [u64; 38]);
            core::mem::transmute::<*const (), Handler>(action.handler as *const ())(
                signal, info, context,
            );
        } else {
            type Handler = extern "C" fn(i32);
            core::mem::transmute::<*const (), Handler>(action.handler as *const ())(signal);
        }
    }
    crate::sys::set_mask(before);
}
