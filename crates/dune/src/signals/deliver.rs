//! Giving the program its signals: captured ones, and those of its own faults.

use core::sync::atomic::Ordering;

use super::actions::{self, Action, SA_NODEFER, SA_RESETHAND};
use super::frame::{self, Context};
use super::{Info, bit, fault_info, signal_of};
use crate::host::Vcpu as _;
use crate::process::run::{Guest, Restart};
use crate::process::thread::{AltStack, SS_DISABLE};
use crate::space::cpu_tables;
use crate::sys;

const SS_AUTODISARM: u32 = 1 << 31;

/// Gives the program the signal that was captured. `restart` says what an interrupted system call does
/// after the handler.
pub(crate) fn captured(guest: &mut Guest<'_>, restart: Restart) {
    let thread = guest.thread;
    // SAFETY: a signal is pending, so all are blocked and the handler does not write.
    let (info, signal, mask) = unsafe {
        let captured = &*thread.captured.get();
        (captured.info, captured.signal, captured.mask)
    };
    let action = handler(guest, signal);
    guest.restart(restart, action.is_some_and(|action| action.flags & actions::SA_RESTART != 0));
    thread.pending.store(0, Ordering::Release);
    thread.unkick();
    match action {
        Some(action) => {
            guest.forget_exception();
            call(guest, &action, &Context { info, mask, trap: [0; 3], space: thread.space.get() });
        }
        None => {
            // The program has changed its mind meanwhile: the kernel shall do as it now says.
            queue(&info);
            sys::set_mask(mask);
        }
    }
}

/// The program's handler of `signal`, reset if it is for one time.
fn handler(guest: &Guest<'_>, signal: u32) -> Option<Action> {
    let mut actions = guest.process().actions.lock();
    let action = actions[signal as usize];
    if !action.is_handler() {
        return None;
    }
    if action.flags & SA_RESETHAND != 0 {
        actions[signal as usize].handler = 0;
        let _ = actions::kernel(signal, Some(&Action::DEFAULT), None);
    }
    Some(action)
}

/// A fault of the program's: its handler, or the end. `trap` is the vector, the error code and CR2.
pub(crate) fn fault(guest: &mut Guest<'_>, signal: i32, code: i32, address: u64, trap: [u64; 3]) {
    let info = fault_info(signal, code, address);
    let before = sys::set_mask(!0);
    let pending = guest.thread.pending.load(Ordering::Acquire) != 0;
    if pending && !matches!(trap[0], 1 | 3 | 4) {
        // That signal first; then the instruction will fault again.
        return;
    }
    // SAFETY: while a signal is pending its record is stable.
    let mask = if pending { unsafe { (*guest.thread.captured.get()).mask } } else { before };
    let signal = signal as u32;
    let action = if mask & bit(signal) == 0 { handler(guest, signal) } else { None };
    match action {
        Some(action) => {
            let context = Context { info, mask, trap, space: guest.thread.space.get() };
            if pending {
                // The captured one comes on top, from the handler's first instruction.
                let mask = handler_mask(&action, mask, signal);
                push(guest, &action, &context);
                // SAFETY: as above.
                unsafe { (*guest.thread.captured.get()).mask = mask };
            } else {
                call(guest, &action, &context);
            }
        }
        None => die(&info),
    }
}

fn handler_mask(action: &Action, mask: u64, signal: u32) -> u64 {
    let own = if action.flags & SA_NODEFER == 0 { bit(signal) } else { 0 };
    mask | action.mask | own
}

/// Sets the guest to the handler, and the mask to the handler's.
fn call(guest: &mut Guest<'_>, action: &Action, context: &Context) {
    push(guest, action, context);
    sys::set_mask(handler_mask(action, context.mask, signal_of(&context.info)));
}

fn push(guest: &mut Guest<'_>, action: &Action, context: &Context) {
    crate::stats::signal();
    let thread = guest.thread;
    // SAFETY: the record is this thread's, and no other reference exists.
    let fpu = unsafe { &mut *thread.xsave.get() };
    guest.must(|cpu| cpu.xsave(fpu));
    let altstack = thread.altstack.get();
    let mut registers = *guest.cpu.registers();
    cpu_tables::signal_begins(thread.index, registers.rsp);
    if frame::push(&mut registers, action, altstack, fpu, context).is_err() {
        // No stack to call the handler on: SIGSEGV, and no handler for that either.
        let segv = fault_info(libc::SIGSEGV, 0x80, 0);
        die(&segv);
    }
    *guest.cpu.registers() = registers;
    if altstack.flags & SS_AUTODISARM != 0 {
        thread.altstack.set(AltStack { flags: SS_DISABLE, ..AltStack::default() });
    }
    frame::initial_fpu(fpu);
    guest.must(|cpu| cpu.xrstor(fpu));
    guest.leave_for_handler();
    guest.changed_all();
}

/// `rt_sigreturn(2)`.
pub(crate) fn sigreturn(guest: &mut Guest<'_>) {
    let thread = guest.thread;
    // SAFETY: the record is this thread's, and no other reference exists.
    let fpu = unsafe { &mut *thread.xsave.get() };
    let mut registers = *guest.cpu.registers();
    let Ok(popped) = frame::pop(&mut registers, fpu) else {
        return fault(guest, libc::SIGSEGV, 0x80, 0, [0; 3]);
    };
    *guest.cpu.registers() = registers;
    guest.changed_all();
    let returned = guest.return_from_handler(popped.space);
    if !popped.selectors_valid || !returned || guest.cpu.xrstor(fpu).is_err() {
        return fault(guest, libc::SIGSEGV, 0x80, 0, [0; 3]);
    }
    let stack = popped.altstack;
    let flags = stack.flags & SS_AUTODISARM;
    thread.altstack.set(if stack.flags & 3 == 2 || stack.len == 0 {
        AltStack { flags: 2, ..AltStack::default() }
    } else {
        AltStack { flags, ..stack }
    });
    sys::set_mask(!0);
    if thread.pending.load(Ordering::Acquire) != 0 {
        // SAFETY: while a signal is pending its record is stable.
        unsafe { (*thread.captured.get()).mask = popped.mask };
    } else {
        sys::set_mask(popped.mask);
    }
}

/// `sigaltstack(2)`. The kernel's result.
pub(crate) fn sigaltstack(guest: &mut Guest<'_>, new: u64, old: u64) -> i64 {
    let thread = guest.thread;
    let (before, rsp) = (thread.altstack.get(), guest.cpu.registers().rsp);
    let efault = -i64::from(libc::EFAULT);
    if new != 0 {
        let mut bytes = [0u8; 24];
        if sys::copy_in(new as usize, &mut bytes).is_err() {
            return efault;
        }
        let word = |i: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[8 * i..8 * i + 8]);
            u64::from_ne_bytes(word)
        };
        let (start, flags, len) = (word(0), word(1) as u32, word(2));
        if frame::altstack_flags(before, rsp) == 1 {
            return -i64::from(libc::EPERM);
        }
        let mode = flags & !SS_AUTODISARM;
        match mode {
            2 => thread.altstack.set(AltStack { flags: 2, ..AltStack::default() }),
            0 | 1 if len < libc::MINSIGSTKSZ as u64 => return -i64::from(libc::ENOMEM),
            0 | 1 => {
                thread.altstack.set(AltStack { start, flags: flags & SS_AUTODISARM, len });
            }
            _ => return -i64::from(libc::EINVAL),
        }
    }
    if old != 0 {
        let flags = frame::altstack_flags(before, rsp);
        let mut bytes = [0u8; 24];
        bytes[..8].copy_from_slice(&before.start.to_ne_bytes());
        bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
        bytes[16..].copy_from_slice(&before.len.to_ne_bytes());
        if sys::copy_out(&bytes, old as usize).is_err() {
            return efault;
        }
    }
    0
}

/// Gives this thread a signal by the kernel, with all that is known of it.
fn queue(info: &Info) {
    let (pid, tid) = (sys::process_id() as u64, sys::thread_id() as u64);
    let signal = u64::from(signal_of(info));
    // SAFETY: a whole siginfo. A process may send itself any.
    let _ = unsafe {
        sys::raw(libc::SYS_rt_tgsigqueueinfo, [pid, tid, signal, info.as_ptr() as u64, 0, 0])
    };
}

/// The program ends by this signal's default action, as the kernel has it.
pub(crate) fn die(info: &Info) -> ! {
    let signal = signal_of(info);
    let _ = actions::kernel(signal, Some(&Action::DEFAULT), None);
    queue(info);
    sys::set_mask(!bit(signal));
    sys::text::fatal(format_args!("barchan: signal {signal} did not end the process\n"));
}
