//! Threads, and children that share the program's memory (vfork, posix_spawn).
//!
//! The kernel makes them by the very call that the program asked for, with its flags, thread pointer
//! and thread-id addresses; only the stack is another: the new host thread starts on a monitor stack,
//! and the program's stack becomes the guest's.

use super::run;
use super::run::Guest;
use super::thread::Thread;
use crate::host::Vcpu as _;
use crate::space::{SPACE, private};
use crate::sys;

core::arch::global_asm!(
    ".globl barchan_dune_spawn",
    ".hidden barchan_dune_spawn",
    ".type barchan_dune_spawn,@function",
    // rdi: the number and the arguments of a clone call that gives the child a monitor stack, at
    // whose end is the address of its record.
    "barchan_dune_spawn:",
    "mov rax, [rdi]",
    "mov rsi, [rdi + 16]",
    "mov rdx, [rdi + 24]",
    "mov r10, [rdi + 32]",
    "mov r8, [rdi + 40]",
    "mov r9, [rdi + 48]",
    "mov rdi, [rdi + 8]",
    "syscall",
    "test rax, rax",
    "jz 2f",
    "ret",
    "2:",
    "xor ebp, ebp",
    "mov rdi, [rsp]",
    "call {child}",
    "ud2",
    ".size barchan_dune_spawn, . - barchan_dune_spawn",
    ".globl barchan_dune_exit",
    ".hidden barchan_dune_exit",
    ".type barchan_dune_exit,@function",
    // rdi: a word that becomes 0 when nothing of the slot is used any more; rsi: the exit status.
    // Whoever sees the 0 may use this stack at once, so none is used from there on.
    "barchan_dune_exit:",
    "mov dword ptr [rdi], 0",
    "mov edi, esi",
    "3:",
    "mov eax, 60",
    "syscall",
    "jmp 3b",
    ".size barchan_dune_exit, . - barchan_dune_exit",
    child = sym child,
);

unsafe extern "C" {
    fn barchan_dune_spawn(call: *const [u64; 7]) -> i64;
    fn barchan_dune_exit(state: *mut u32, status: u64) -> !;
}

/// How the program asked for a new thread or process.
pub(crate) struct Request {
    /// The call to make, its arguments in the order of the registers.
    pub(crate) nr: u64,
    pub(crate) arguments: [u64; 6],
    /// Its flags, wherever they are.
    pub(crate) flags: u64,
    /// The child's stack pointer; 0: the parent's.
    pub(crate) stack: u64,
    /// Where the kernel writes the child's id in its own memory; 0: nowhere.
    pub(crate) child_tid: u64,
    /// The child's thread pointer, if `CLONE_SETTLS` is among the flags.
    pub(crate) tls: u64,
    /// `struct clone_args`, for `clone3`.
    pub(crate) clone3: Option<[u64; 16]>,
}

const CLONE_SETTLS: u64 = libc::CLONE_SETTLS as u64;
const CLONE_VFORK: u64 = libc::CLONE_VFORK as u64;
const CLONE_SIGHAND: u64 = libc::CLONE_SIGHAND as u64;

/// Makes a thread or process that shares memory. Returns its id, or a negative error number.
pub(crate) fn spawn(guest: &mut Guest<'_>, mut request: Request) -> i64 {
    let thread = match Thread::take() {
        Ok(thread) => thread,
        Err(_) => return -i64::from(libc::EAGAIN),
    };
    let Ok((fs_base, gs_base)) = guest.cpu.bases() else {
        thread.give_back();
        return -i64::from(libc::EAGAIN);
    };
    // SAFETY: nobody else uses the record of a thread that has not started.
    let saved = guest.cpu.xsave(unsafe { &mut *thread.xsave.get() });
    if saved.is_err() {
        thread.give_back();
        return -i64::from(libc::EAGAIN);
    }
    let mut start = super::thread::Start { fs_base, gs_base, ..Default::default() };
    start.registers = *guest.cpu.registers();
    start.registers.rax = 0;
    if request.stack != 0 {
        start.registers.rsp = request.stack;
    }
    if request.flags & CLONE_SETTLS != 0 {
        start.fs_base = request.tls;
    }
    let parent = guest.thread;
    // A thread begins where its creator is.
    thread.space.set(parent.space.get());
    private::join(thread.space.get());
    thread.process.set(parent.process.get());
    if request.flags & CLONE_SIGHAND == 0 {
        // The child's handlers are its own, though its memory is not.
        // SAFETY: nobody else uses the record of a thread that has not started; the parent's process
        // outlives the parent.
        unsafe {
            let actions = *(*parent.process.get()).actions.lock();
            thread
                .own_process
                .get()
                .write(super::Process { actions: sys::lock::Lock::new(actions) });
        }
        thread.process.set(thread.own_process.get());
        if request.flags & CLONE_VFORK != 0 {
            // As the kernel: a child on its parent's stack keeps the alternate one.
            thread.altstack.set(parent.altstack.get());
        }
    }
    // All signals wait until the child is in order.
    let mask = sys::set_mask(!0);
    start.mask = mask;
    start.child_tid = request.child_tid;
    thread.start.set(start);
    thread.lent.set(request.flags & CLONE_VFORK != 0);
    crate::calls::written::child_starts(&thread.under_way);

    let top = thread.stack_top();
    // SAFETY: the end of an unused monitor stack.
    unsafe { *(top as *mut u64) = thread as *const Thread as u64 };
    if let Some(arguments) = &mut request.clone3 {
        // stack and stack_size: the kernel starts the child at their sum.
        (arguments[5], arguments[6]) = (top as u64 - 64, 64);
        request.arguments[0] = arguments.as_ptr() as u64;
    } else {
        request.arguments[1] = top as u64;
    }
    let a = request.arguments;
    let call = [request.nr, a[0], a[1], a[2], a[3], a[4], a[5]];
    // SAFETY: the program asked for it; the child's stack holds what the entry expects.
    let result = unsafe { barchan_dune_spawn(&call) };
    sys::set_mask(mask);
    let gone = result < 0 || request.flags & CLONE_VFORK != 0;
    if gone {
        if result < 0 {
            crate::calls::written::child_runs(&thread.under_way, 0);
        } else {
            // It may have been killed in a call; and the memory was this process's too.
            crate::calls::written::settle(&thread.under_way);
        }
        guest.leave_all(thread);
        thread.give_back();
    }
    result
}

/// A new host thread, on its monitor stack.
extern "C" fn child(thread: &'static Thread) -> ! {
    run::begin(thread)
}

/// Ends the calling thread; its slot is free the moment it no longer needs it, or when its parent has seen it end.
pub(crate) fn exit(guest: &mut Guest<'_>, status: u64) -> ! {
    let thread = guest.thread;
    sys::set_mask(!0);
    guest.leave_all(thread);
    // No signal can come any more, and no lock of the space is held.
    drop(SPACE.lock());
    // SAFETY: nothing of this thread is used again.
    unsafe { barchan_dune_exit(thread.state_word(), status) }
}
