//! Faults of the program: the signal, its code and its address are those that Linux gives.

mod support;

use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

use dune::PAGE_SIZE as PAGE;
use dune::faults::FaultFrame;
use dune::inside::Inside;
use support::{End, install, passes, run};

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);
static TRAP: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicI32 = AtomicI32::new(0);

/// Notes what came, and goes on at the address in R15.
extern "C" fn note(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the arguments of a handler with SA_SIGINFO.
    unsafe {
        SIGNAL.store(signal, Ordering::Relaxed);
        CODE.store((*info).si_code, Ordering::Relaxed);
        ADDRESS.store((*info).si_addr() as usize, Ordering::Relaxed);
        COUNT.fetch_add(1, Ordering::Relaxed);
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        TRAP.store(registers[libc::REG_TRAPNO as usize] as u64, Ordering::Relaxed);
        registers[libc::REG_RIP as usize] = registers[libc::REG_R15 as usize];
    }
}

fn noted() -> (i32, i32, usize, u64) {
    (
        SIGNAL.swap(0, Ordering::Relaxed),
        CODE.swap(0, Ordering::Relaxed),
        ADDRESS.swap(0, Ordering::Relaxed),
        TRAP.swap(0, Ordering::Relaxed),
    )
}

macro_rules! faulting {
    ($rcx:expr; $($line:literal),+) => {
        // SAFETY: the instruction faults, and the handler goes on at the label.
        unsafe {
            std::arch::asm!(
                "push r15", "lea r15, [rip + 22f]", $($line),+, "22:", "pop r15",
                inlateout("rcx") $rcx => _, out("rax") _, out("rdx") _,
            )
        }
    };
}

fn read(address: usize) {
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("push r15", "lea r15, [rip + 22f]", "mov al, [{a}]", "22:", "pop r15",
            a = in(reg) address, out("rax") _);
    }
}

fn write(address: usize) {
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("push r15", "lea r15, [rip + 22f]", "mov byte ptr [{a}], 1", "22:", "pop r15",
            a = in(reg) address);
    }
}

const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;
const BUS_ADRERR: i32 = 2;

#[test]
fn accesses_without_a_right_are_segv_at_their_address() {
    passes(|| {
        install(libc::SIGSEGV, note);
        read(0);
        assert_eq!(noted(), (libc::SIGSEGV, SEGV_MAPERR, 0, 14));
        write(0x1234);
        assert_eq!(noted(), (libc::SIGSEGV, SEGV_MAPERR, 0x1234, 14));
        // SAFETY: a new mapping.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let page = libc::mmap(null_mut(), 3 * PAGE, libc::PROT_READ, flags, -1, 0) as usize;
            read(page + 5);
            assert_eq!(noted(), (0, 0, 0, 0));
            write(page + PAGE + 5);
            assert_eq!(noted(), (libc::SIGSEGV, SEGV_ACCERR, page + PAGE + 5, 14));
            assert_eq!(libc::mprotect(page as *mut _, 3 * PAGE, libc::PROT_NONE), 0);
            read(page + 7);
            assert_eq!(noted(), (libc::SIGSEGV, SEGV_ACCERR, page + 7, 14));
            let both = libc::PROT_READ | libc::PROT_WRITE;
            assert_eq!(libc::mprotect(page as *mut _, 3 * PAGE, both), 0);
            write(page + 2 * PAGE);
            assert_eq!(noted(), (0, 0, 0, 0));
            assert_eq!(libc::mprotect(page as *mut _, 3 * PAGE, libc::PROT_READ), 0);
            write(page + 2 * PAGE);
            assert_eq!(noted(), (libc::SIGSEGV, SEGV_ACCERR, page + 2 * PAGE, 14));
        }
    });
}

#[test]
fn memory_that_may_not_be_executed_is_not() {
    passes(|| {
        install(libc::SIGSEGV, note);
        let data = [0xc3u8; 64];
        let address = data.as_ptr() as usize;
        faulting!(address; "jmp rcx");
        assert_eq!(noted(), (libc::SIGSEGV, SEGV_ACCERR, address, 14));
    });
}

#[test]
fn addresses_that_are_none_are_segv_without_an_address() {
    passes(|| {
        install(libc::SIGSEGV, note);
        read(0x8000_0000_0000_0000);
        assert_eq!(noted(), (libc::SIGSEGV, 0x80, 0, 13));
        if support::ring() == dune::Ring::Three {
            faulting!(0u64; "hlt");
            assert_eq!(noted(), (libc::SIGSEGV, 0x80, 0, 13));
        }
    });
}

#[test]
fn pages_behind_the_end_of_a_file_are_bus_errors() {
    passes(|| {
        install(libc::SIGBUS, note);
        // SAFETY: a file of ours, mapped beyond its end.
        unsafe {
            let fd = libc::memfd_create(c"short".as_ptr(), libc::MFD_CLOEXEC);
            assert_eq!(libc::ftruncate(fd, 2 * PAGE as i64), 0);
            let both = libc::PROT_READ | libc::PROT_WRITE;
            let start = libc::mmap(null_mut(), 8 * PAGE, both, libc::MAP_SHARED, fd, 0) as usize;
            write(start + PAGE);
            assert_eq!(noted(), (0, 0, 0, 0));
            read(start + 3 * PAGE + 1);
            assert_eq!(noted(), (libc::SIGBUS, BUS_ADRERR, start + 3 * PAGE + 1, 14));
            // Truncated under the reader.
            assert_eq!(libc::ftruncate(fd, PAGE as i64), 0);
            write(start + PAGE + 9);
            assert_eq!(noted(), (libc::SIGBUS, BUS_ADRERR, start + PAGE + 9, 14));
            assert_eq!(libc::ftruncate(fd, 8 * PAGE as i64), 0);
            write(start + PAGE + 9);
            assert_eq!(noted(), (0, 0, 0, 0));
        }
    });
}

#[test]
fn arithmetic_and_illegal_instructions() {
    passes(|| {
        for signal in [libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            install(signal, note);
        }
        faulting!(1u64; "xor ecx, ecx", "div ecx");
        let (signal, code, address, trap) = noted();
        assert_eq!((signal, code, trap), (libc::SIGFPE, 1, 0));
        assert_ne!(address, 0);
        faulting!(0u64; "ud2");
        let (signal, code, address, trap) = noted();
        assert_eq!((signal, code, trap), (libc::SIGILL, 2, 6));
        assert_ne!(address, 0);
        faulting!(0u64; "int3");
        assert_eq!(noted(), (libc::SIGTRAP, 0x80, 0, 3));
    });
}

/// Divides by zero with the exception unmasked; a handler goes on at the label.
fn divide_by_zero() {
    let (unmasked, masked) = (0x1d80u32, 0x1f80u32);
    // SAFETY: the handler goes on at the label, where the control word is as it was.
    unsafe {
        std::arch::asm!(
            "push r15", "lea r15, [rip + 22f]", "ldmxcsr [{u}]", "xorps xmm0, xmm0",
            "mov eax, 0x3f800000", "movd xmm1, eax", "divss xmm1, xmm0", "22:",
            "ldmxcsr [{m}]", "pop r15",
            u = in(reg) &raw const unmasked, m = in(reg) &raw const masked,
            out("rax") _, out("xmm0") _, out("xmm1") _,
        );
    }
}

#[test]
fn a_floating_point_exception_has_its_code() {
    let Some((native, _)) = support::run_natively(divide_by_zero) else { return };
    if native != End::Signal(libc::SIGFPE) {
        println!("skipped: this processor raises no SSE exceptions (QEMU's emulator does not)");
        return;
    }
    passes(|| {
        install(libc::SIGFPE, note);
        divide_by_zero();
        let (signal, code, _, trap) = noted();
        assert_eq!((signal, code, trap), (libc::SIGFPE, 3, 19));
    });
}

#[test]
fn a_fault_without_a_handler_ends_the_process_by_its_signal() {
    type Body = fn();
    let cases: [(i32, Body); 5] = [
        (libc::SIGSEGV, || read(0)),
        (libc::SIGILL, || faulting!(0u64; "ud2")),
        (libc::SIGFPE, || faulting!(1u64; "xor ecx, ecx", "div ecx")),
        (libc::SIGTRAP, || faulting!(0u64; "int3")),
        // SAFETY: ends the child.
        (libc::SIGABRT, || unsafe { libc::abort() }),
    ];
    for (signal, body) in cases {
        let ended = run(|| {
            // SAFETY: libtest and the standard library handle SIGSEGV and SIGBUS: no more.
            unsafe {
                for signal in [libc::SIGSEGV, libc::SIGBUS] {
                    libc::signal(signal, libc::SIG_DFL);
                }
            }
            body();
        });
        if let Some((end, text)) = ended {
            assert_eq!((end, text.as_str()), (End::Signal(signal), ""));
        }
    }
}

#[test]
fn a_blocked_fault_ends_the_process() {
    let ended = run(|| {
        install(libc::SIGSEGV, note);
        // SAFETY: a set of ours.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&raw mut set, libc::SIGSEGV);
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, null_mut());
        }
        read(0);
    });
    if let Some((end, text)) = ended {
        assert_eq!((end, text.as_str()), (End::Signal(libc::SIGSEGV), ""));
    }
}

#[test]
fn a_stack_overflow_is_handled_on_the_alternate_stack() {
    passes(|| {
        install(libc::SIGSEGV, note);
        // SAFETY: the handler runs on the alternate stack, and goes on at the label with the stack
        // pointer that is put back there.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGSEGV, null_mut(), &raw mut action);
            action.sa_flags |= libc::SA_ONSTACK;
            libc::sigaction(libc::SIGSEGV, &raw const action, null_mut());
            let mut block = vec![0u8; 64 * 1024];
            let stack = libc::stack_t {
                ss_sp: block.as_mut_ptr().cast(),
                ss_flags: 0,
                ss_size: block.len(),
            };
            assert_eq!(libc::sigaltstack(&raw const stack, null_mut()), 0);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let both = libc::PROT_READ | libc::PROT_WRITE;
            let small = libc::mmap(null_mut(), 2 * PAGE, both, flags, -1, 0) as usize;
            libc::mprotect(small as *mut _, PAGE, libc::PROT_NONE);
            std::arch::asm!(
                "push r15", "mov r14, rsp", "lea r15, [rip + 22f]", "mov rsp, {s}",
                "33:", "push rax", "jmp 33b",
                "22:", "mov rsp, r14", "pop r15",
                s = in(reg) small + 2 * PAGE, out("r14") _,
            );
            assert_eq!(noted(), (libc::SIGSEGV, SEGV_ACCERR, small + PAGE - 8, 14));
        }
    });
}

/// KVM on SVM does not tell the type of the task state segment as it was set; set back as told, it made QEMU
/// refuse the stubs their port, and each fault raised the next, for ever.
#[test]
fn a_fault_is_delivered_after_a_base_was_set() {
    passes(|| {
        install(libc::SIGSEGV, note);
        const ARCH_SET_GS: i32 = 0x1001;
        // SAFETY: nothing of this process uses GS.
        assert_eq!(unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, 0x1234_5000u64) }, 0);
        read(0);
        assert_eq!(noted(), (libc::SIGSEGV, SEGV_MAPERR, 0, 14));
    });
}

/// An exception that cannot be delivered ends the process with a message that says which, and no hang.
#[test]
fn an_exception_that_cannot_be_delivered_is_told() {
    /// The page that exceptions of this CPU are pushed to: it is below the stack of eight pages, less 64 bytes,
    /// at whose end the handler's frame lies.
    static FAULT_STACK: AtomicUsize = AtomicUsize::new(0);
    fn look(address: usize, frame: &mut FaultFrame) -> bool {
        let end = std::ptr::from_mut(frame).wrapping_add(1) as usize;
        FAULT_STACK.store(end + 64 - 9 * PAGE, Ordering::Relaxed);
        let page = address & !(PAGE - 1);
        Inside::current().is_some_and(|inside| inside.unprotect(page..page + PAGE).is_ok())
    }
    let ended = run(|| {
        let inside = Inside::current().expect("inside");
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, written within its length; the handler changes an entry only.
        unsafe {
            let page = libc::mmap(null_mut(), PAGE, both, flags, -1, 0) as usize;
            inside.populate(page..page + PAGE).expect("memory");
            inside.handle_faults(look);
            inside.protect(page..page + PAGE).expect("a range").flush_everywhere();
            (page as *mut u8).write_volatile(1);
        }
        let stack = FAULT_STACK.load(Ordering::Relaxed);
        assert_eq!(stack % PAGE, 0, "{stack:#x}");
        // The fault stack's own entry loses the right to write.
        inside.protect(stack..stack + PAGE).expect("a range").flush_everywhere();
        read(0x1234);
    });
    if let Some((end, text)) = ended {
        assert_eq!(end, End::Signal(libc::SIGABRT), "{text}");
        assert!(text.contains("double fault") || text.contains("triple fault"), "{text}");
        println!("{text}");
    }
}

/// An exception that takes a stack of its own loads SS with null; the program finds it as it was.
#[test]
fn the_stack_segment_is_as_it_was_after_a_fault() {
    fn stack_segment() -> u16 {
        let ss: u16;
        // SAFETY: reads a register.
        unsafe { std::arch::asm!("mov {0:x}, ss", out(reg) ss, options(nomem, nostack)) };
        ss
    }
    passes(|| {
        install(libc::SIGSEGV, note);
        let before = stack_segment();
        assert_ne!(before & !3, 0, "{before:#x}");
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, touched within its length, each time in a part that has no entries yet.
        unsafe {
            let start = libc::mmap(null_mut(), 64 << 20, both, flags, -1, 0).cast::<u8>();
            let mut found = [0; 16];
            for (n, found) in found.iter_mut().enumerate() {
                // No system call comes between, which would load SS again.
                start.add((8 + n) * (2 << 20)).write_volatile(1);
                *found = stack_segment();
            }
            assert_eq!(found, [before; 16]);
        }
        read(0);
        assert_eq!((noted(), stack_segment()), ((libc::SIGSEGV, SEGV_MAPERR, 0, 14), before));
    });
}
