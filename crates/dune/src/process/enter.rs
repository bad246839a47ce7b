//! Entering: the calling thread's registers become a CPU's, and the thread becomes its monitor.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use super::thread::{AltStack, Thread};
use super::{PROCESS, run};
use crate::host::{Exit, HostError, Vcpu as _};
use crate::ring::Ring;
use crate::signals::actions;
use crate::space::{self, SPACE, cpu_tables as tables};
use crate::sys;

/// Why the process could not enter guest mode. It goes on as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnterError {
    /// A thread of this process is in guest mode already.
    Entered,
    /// There is guest mode, but not at ring 0: what was found.
    RingZero(&'static str),
    /// A step of making the guest failed.
    Host(HostError),
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entered => f.write_str("this process is in guest mode already"),
            Self::RingZero(found) => write!(
                f,
                "cannot run at ring 0: {found}, so ring 0 would be interpreted (a paravirtual host, PVM), which \
                 ends at the first vector instruction; leave the option out (ring 3 works on such hosts), or use a \
                 machine with VT-x or SVM"
            ),
            Self::Host(error) => write!(f, "cannot enter guest mode: {error}; {}", remedy(error)),
        }
    }
}

impl std::error::Error for EnterError {}

impl From<HostError> for EnterError {
    fn from(error: HostError) -> Self {
        Self::Host(error)
    }
}

fn remedy(error: &HostError) -> &'static str {
    if error.step == crate::host::WITHOUT_LOG {
        return "it takes the project's kernel module (kmod/README.md) on a processor with PML; leave the option \
                out, or another tracker than guest-pml";
    }
    match error.errno.0 {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => {
            "there is no virtual machine to be had here: `barchan doctor` says why"
        }
        libc::EACCES | libc::EPERM => "give this user access to /dev/kvm (on Debian: group kvm)",
        libc::ENOSYS => "a newer kernel is needed",
        libc::EMFILE | libc::ENFILE => "raise the limit on descriptors (ulimit -n)",
        libc::ENOMEM => "raise the limit on memory (ulimit -v), or free some",
        _ => "`barchan doctor` tells what this machine offers",
    }
}

static ENTERED: AtomicBool = AtomicBool::new(false);
/// Whether it had one thread when it did, so that all its threads are in guest mode.
static COMPLETE: AtomicBool = AtomicBool::new(false);

/// Whether all threads of this process are in guest mode: what they write sets dirty bits. (One that the
/// process had before it entered stays outside.)
pub(crate) fn complete() -> bool {
    entered() && COMPLETE.load(Ordering::Acquire)
}

/// Whether this process has entered guest mode.
#[must_use]
pub fn entered() -> bool {
    ENTERED.load(Ordering::Acquire)
}

core::arch::global_asm!(
    ".globl barchan_dune_switch",
    ".hidden barchan_dune_switch",
    ".type barchan_dune_switch,@function",
    // rdi: the record, rsi: the end of its monitor stack, rdx: where RSP and RIP of the guest go.
    "barchan_dune_switch:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "stmxcsr [rsp]",
    "fnstcw [rsp + 4]",
    "mov [rdx], rsp",
    "lea rax, [rip + 2f]",
    "mov [rdx + 8], rax",
    "mov rsp, rsi",
    "xor ebp, ebp",
    "call {main}",
    "ud2",
    // From here on in guest mode.
    "2:",
    "ldmxcsr [rsp]",
    "fldcw [rsp + 4]",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    ".size barchan_dune_switch, . - barchan_dune_switch",
    main = sym main,
);

unsafe extern "C" {
    fn barchan_dune_switch(thread: usize, stack: usize, guest: *mut [u64; 2]);
}

/// Moves the calling thread into guest mode: it goes on where it is, in the same address space, at
/// ring 3 of a virtual CPU. Threads and processes that it creates from then on are in guest mode
/// too. There is no way back.
///
/// Threads that exist already stay outside, and share everything as before.
///
/// # Errors
/// [`EnterError`]; then nothing has changed.
///
/// # Safety
/// 1. No other thread exists that handles signals by handlers and would not stand being called by
///    another handler; a program of one thread is always fine.
/// 2. The process does not rely on what guest mode does not give: seccomp filters of its own
///    making, restartable sequences, AMX, protection keys, shadow stacks, 32-bit code.
pub unsafe fn enter() -> Result<(), EnterError> {
    // SAFETY: the caller's promise; a program at ring 3 cannot do what the third is about.
    unsafe { enter_at(Ring::Three) }
}

/// As [`enter`], at the privilege level `ring`: at ring 0 the program may use privileged instructions, on the
/// virtual CPU that it has for itself (INVLPG, reading and loading CR3, reading CR0 and CR4, model-specific registers as
/// far as the host has them). Threads and children are at the same level.
///
/// # Security
/// **It is no security boundary, at either ring.** What the program may do to the machine outside is what
/// the process may do. But ring 0 takes away the guard against the program's own mistakes: a store that goes
/// astray can hit the CPU's descriptors, and private address spaces hide nothing from who loads CR3.
///
/// What cannot go on ends the process with a message and the CPU's registers: HLT, a CR3 that leads nowhere, a port
/// that nobody uses. Interrupts do not exist in guest mode, so CLI is without effect: signals come all the same, and
/// RFLAGS.IF is set again at the next system call or fault. A privileged instruction that the host refuses is SIGSEGV.
/// Alignment checks (RFLAGS.AC) are for ring 3 only (SDM 3A §6.15, #AC).
///
/// # Errors
/// [`EnterError::RingZero`] where virtualization is not real, and what [`enter`] says; then nothing has changed.
///
/// # Safety
/// What [`enter`] says, and:
/// 3. At ring 0 the program leaves alone what the runtime relies on: the descriptor tables, the task register, STAR,
///    LSTAR, FMASK, EFER, CR4, CR0 (above all WP: without, stores to protected pages do not fault, and a tracker by
///    protection misses them), and the tables that CR3 leads to. It loads CR3 with nothing but what it
///    holds already.
pub unsafe fn enter_at(ring: Ring) -> Result<(), EnterError> {
    if ENTERED.swap(true, Ordering::AcqRel) {
        return Err(EnterError::Entered);
    }
    let mask = sys::set_mask(!0);
    match prepare(mask, ring) {
        Ok(thread) => {
            COMPLETE.store(sys::threads() == Some(1), Ordering::Release);
            let guest = thread.start.as_ptr();
            // SAFETY: `thread` is ours, and its stack unused. The two words are next to each other
            // in no type: so they get an array of their own, on this stack, which the guest keeps.
            unsafe {
                let mut place = [0u64; 2];
                let words = &raw mut place;
                (*guest).registers.rdi = words as u64;
                barchan_dune_switch(thread as *const Thread as usize, thread.stack_top(), words);
            }
            Ok(())
        }
        Err(error) => {
            sys::set_mask(mask);
            Ring::Three.set();
            ENTERED.store(false, Ordering::Release);
            Err(error)
        }
    }
}

/// All that can fail.
fn prepare(mask: u64, ring: Ring) -> Result<&'static Thread, EnterError> {
    if let Some(found) = ring.lacking() {
        return Err(EnterError::RingZero(found));
    }
    ring.set();
    space::build()?;
    let thread = Thread::take()?;
    if ring == Ring::Zero && syscall_arrives_at(thread)? != 0 {
        // All that was made goes, so that the program may still enter at ring 3.
        thread.abandon_all();
        thread.give_back();
        SPACE.lock().abandon();
        space::arena::wipe();
        return Err(EnterError::RingZero("SYSCALL arrives at ring 3"));
    }
    SPACE.lock().fill_eagerly()?;
    leave_rseq();
    thread.process.set(&raw const PROCESS);
    thread.altstack.set(current_altstack());
    let mut start = super::thread::Start { mask, ..Default::default() };
    // SAFETY: reading the bases of this thread's FS and GS into words of ours.
    unsafe {
        const ARCH_GET_FS: u64 = 0x1003;
        const ARCH_GET_GS: u64 = 0x1004;
        let (fs, gs) = (&raw mut start.fs_base as u64, &raw mut start.gs_base as u64);
        sys::raw(libc::SYS_arch_prctl, [ARCH_GET_FS, fs, 0, 0, 0, 0]);
        sys::raw(libc::SYS_arch_prctl, [ARCH_GET_GS, gs, 0, 0, 0, 0]);
    }
    start.registers.rflags = 0x202;
    thread.start.set(start);
    // SAFETY: the record is ours alone.
    unsafe { crate::signals::frame::initial_fpu(&mut *thread.xsave.get()) };
    actions::adopt();
    Ok(thread)
}

/// The ring at which SYSCALL of a program at ring 3 arrives, found by executing one: 0 on real virtualization.
fn syscall_arrives_at(thread: &Thread) -> Result<u8, HostError> {
    let errno = sys::Errno(libc::EIO);
    let failed = HostError { step: "asking at which ring SYSCALL arrives", errno };
    // SAFETY: the thread's own CPU, and no other reference exists yet.
    let cpu = unsafe { thread.cpu() };
    // SAFETY: the record is ours alone.
    unsafe { crate::signals::frame::initial_fpu(&mut *thread.xsave.get()) };
    thread.load_at(cpu, Ring::Three)?;
    cpu.registers().rip = tables::probe() as u64;
    cpu.registers().rflags = 0x202;
    for _ in 0..1000 {
        match cpu.run() {
            Exit::Interrupted => {}
            Exit::Port(tables::PORT_SYSCALL) => {
                cpu.settle();
                return Ok(cpu.segments()?.privilege());
            }
            _ => break,
        }
    }
    Err(failed)
}

/// The monitor's life, on its own stack.
extern "C" fn main(thread: &'static Thread) -> ! {
    let mut start = thread.start.get();
    // SAFETY: `enter` put the address of its two words there, and waits.
    let [rsp, rip] = unsafe { *(start.registers.rdi as *const [u64; 2]) };
    (start.registers.rsp, start.registers.rip) = (rsp, rip);
    thread.start.set(start);
    run::begin(thread)
}

/// The alternate signal stack that the thread has.
fn current_altstack() -> AltStack {
    let mut stack = [0u64; 3];
    // SAFETY: `stack_t` is three words.
    let _ = unsafe { sys::raw(libc::SYS_sigaltstack, [0, stack.as_mut_ptr() as u64, 0, 0, 0, 0]) };
    AltStack { start: stack[0], flags: stack[1] as u32, len: stack[2] }
}

/// Restartable sequences end: the kernel would look for them where the monitor runs. The C library
/// sees that its thread has none, and asks the kernel for the CPU's number instead.
fn leave_rseq() {
    /// What glibc 2.35 and later register with.
    const SIGNATURE: u64 = 0x5305_3053;
    const UNREGISTER: u64 = 1;
    // SAFETY: names of data that glibc exports; other libraries have none, and register nothing.
    let (offset, size) = unsafe {
        (
            libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()),
            libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()),
        )
    };
    if offset.is_null() || size.is_null() {
        return;
    }
    let thread_pointer: u64;
    // SAFETY: glibc's types are `ptrdiff_t` and `unsigned int`; the word at FS:0 is the thread
    // pointer itself. The kernel checks that what is unregistered is what was registered.
    unsafe {
        if *size.cast::<u32>() == 0 {
            return;
        }
        core::arch::asm!("mov {}, fs:0", out(reg) thread_pointer, options(nostack, readonly));
        let area = thread_pointer.wrapping_add_signed(*offset.cast::<i64>());
        // Its size was at least 32 when it was registered, whatever is in use of it.
        for len in [32, 33, 28, 24, 20] {
            if sys::raw(libc::SYS_rseq, [area, len, UNREGISTER, SIGNATURE, 0, 0]) == 0 {
                break;
            }
        }
    }
}
