//! A system call of the program's, made for it, so that no signal is lost around it.
//!
//! A signal that comes just before a call that blocks must keep it from blocking. So the call sits
//! in a window of instructions that first looks whether a signal is pending; the monitor's signal
//! handler (`signals::capture`) looks where it interrupted, and moves the thread out of the window.
//! It also sees where the kernel would restart the call: there too it moves the thread out, so that
//! the program's handler runs first.

/// The result of a call that was not begun, or that was and is to be begun again whatever the
/// handler says: nothing has happened.
pub(crate) const NOT_BEGUN: i64 = -4096;
/// The result of a call that a signal interrupted and that the kernel would restart after a handler
/// with `SA_RESTART`.
pub(crate) const RESTART: i64 = -4097;

core::arch::global_asm!(
    ".globl barchan_dune_forward",
    ".globl barchan_dune_forward_begin",
    ".globl barchan_dune_forward_syscall",
    ".globl barchan_dune_forward_not_begun",
    ".globl barchan_dune_forward_restart",
    ".hidden barchan_dune_forward",
    ".hidden barchan_dune_forward_begin",
    ".hidden barchan_dune_forward_syscall",
    ".hidden barchan_dune_forward_not_begun",
    ".hidden barchan_dune_forward_restart",
    ".type barchan_dune_forward,@function",
    "barchan_dune_forward:",
    "push rbx",
    "mov rbx, rsi",
    "mov rax, [rdi]",
    "mov rsi, [rdi + 16]",
    "mov rdx, [rdi + 24]",
    "mov r10, [rdi + 32]",
    "mov r8, [rdi + 40]",
    "mov r9, [rdi + 48]",
    "mov rdi, [rdi + 8]",
    // Zero until the call is made: SYSCALL leaves the address behind itself here.
    "xor ecx, ecx",
    "barchan_dune_forward_begin:",
    "cmp dword ptr [rbx], 0",
    "jne barchan_dune_forward_not_begun",
    "barchan_dune_forward_syscall:",
    "syscall",
    "pop rbx",
    "ret",
    "barchan_dune_forward_not_begun:",
    "mov rax, {not_begun}",
    "pop rbx",
    "ret",
    "barchan_dune_forward_restart:",
    "mov rax, {restart}",
    "pop rbx",
    "ret",
    ".size barchan_dune_forward, . - barchan_dune_forward",
    not_begun = const NOT_BEGUN,
    restart = const RESTART,
);

unsafe extern "C" {
    fn barchan_dune_forward(call: *const [u64; 7], pending: *const u32) -> i64;
    fn barchan_dune_forward_begin();
    fn barchan_dune_forward_syscall();
    fn barchan_dune_forward_not_begun();
    fn barchan_dune_forward_restart();
}

/// Makes a call for the program; [`NOT_BEGUN`] and [`RESTART`] are results besides the kernel's.
///
/// # Safety
/// 1. The program asked for exactly this, so what it does to memory is the program's affair.
/// 2. `pending` is the flag that the signal handler of this thread sets.
pub(crate) unsafe fn forward(nr: u64, a: [u64; 6], pending: &core::sync::atomic::AtomicU32) -> i64 {
    let call = [nr, a[0], a[1], a[2], a[3], a[4], a[5]];
    // SAFETY: 1. the caller's. 2. The flag is an aligned word, alive as long as the call.
    unsafe { barchan_dune_forward(&call, pending.as_ptr()) }
}

/// Where a thread that a signal interrupted at `rip` with `rcx` goes on instead, if it is in the
/// window.
pub(crate) fn leave_window(rip: u64, rcx: u64) -> Option<u64> {
    let begin = barchan_dune_forward_begin as *const () as u64;
    let syscall = barchan_dune_forward_syscall as *const () as u64;
    if !(begin..=syscall).contains(&rip) {
        return None;
    }
    Some(if rcx == 0 {
        barchan_dune_forward_not_begun as *const () as u64
    } else {
        barchan_dune_forward_restart as *const () as u64
    })
}
