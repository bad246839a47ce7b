//! The program at ring 0: what it may do there, what stays as it was, and how it ends what cannot go on.
//!
//! All other tests of the runtime run at ring 0 too, if `BARCHAN_DUNE_RING` says so.

mod support;

use std::arch::asm;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use dune::host::kind;
use dune::inside::Inside;
use dune::paging::Flags;
use dune::{EnterError, PAGE_SIZE as PAGE, Ring};
use support::{End, ended_well, install, run_to_enter};

/// Runs `body` at ring 0 in a child; `None`: there is none here, and the reason is printed.
fn run(body: impl FnOnce()) -> Option<(End, String)> {
    if kind::hardware().is_none() {
        println!("skipped: no ring 0 without VT-x or SVM");
        return None;
    }
    run_to_enter(|| {
        // SAFETY: the child has one thread; what the bodies change of the CPU they are here to try.
        unsafe { dune::enter_at(Ring::Zero) }.expect("ring 0");
        body();
    })
}

fn passes(body: impl FnOnce()) {
    ended_well(run(body));
}

/// The privilege level that the CPU is at.
fn level() -> u16 {
    let cs: u16;
    // SAFETY: reads a register.
    unsafe { asm!("mov {0:x}, cs", out(reg) cs, options(nomem, nostack)) };
    cs & 3
}

fn cr3() -> u64 {
    let value;
    // SAFETY: at ring 0.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack)) };
    value
}

fn cr0() -> u64 {
    let value;
    // SAFETY: at ring 0.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack)) };
    value
}

fn map(pages: usize, rights: i32) -> usize {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(null_mut(), pages * PAGE, rights, flags, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    start as usize
}

const BOTH: i32 = libc::PROT_READ | libc::PROT_WRITE;

static SIGNALS: AtomicUsize = AtomicUsize::new(0);
static SELECTORS: AtomicU64 = AtomicU64::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);

/// Notes what came; after a fault goes on at the address in R15.
extern "C" fn note(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the arguments of a handler with SA_SIGINFO.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        SELECTORS.store(registers[libc::REG_CSGSFS as usize] as u64, Ordering::Relaxed);
        SIGNALS.fetch_add(1, Ordering::Relaxed);
        if signal == libc::SIGSEGV {
            ADDRESS.store((*info).si_addr() as usize, Ordering::Relaxed);
            registers[libc::REG_RIP as usize] = registers[libc::REG_R15 as usize];
        }
    }
}

#[test]
fn a_host_that_interprets_ring_0_refuses_it_and_ring_3_works_there() {
    if kind::hardware().is_some() {
        println!("skipped: virtualization is real here");
        return;
    }
    let ended = run_to_enter(|| {
        // SAFETY: the child has one thread.
        let error = unsafe { dune::enter_at(Ring::Zero) }.expect_err("there is none");
        assert!(matches!(error, EnterError::RingZero(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains("neither VT-x nor SVM") && text.contains("leave the option out"));
        assert!(!dune::entered());
        // SAFETY: as above.
        unsafe { dune::enter() }.expect("ring 3");
        assert_eq!((Ring::current(), level()), (Ring::Three, 3));
        println!("{text}");
    });
    if let Some((end, text)) = ended {
        assert_eq!(end, End::Exit(0), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn privileged_instructions_work() {
    passes(|| {
        assert_eq!((Ring::current(), level()), (Ring::Zero, 0));
        let ss: u16;
        // SAFETY: reads a register.
        unsafe { asm!("mov {0:x}, ss", out(reg) ss, options(nomem, nostack)) };
        assert_eq!(ss, 0x18);
        const PAGING: u64 = 1 << 31;
        const WRITE_PROTECT: u64 = 1 << 16;
        assert_eq!(cr0() & (PAGING | WRITE_PROTECT), PAGING | WRITE_PROTECT);
        let root = cr3();
        assert_ne!(root, 0);
        assert_eq!(root % PAGE as u64, 0);
        // SAFETY: flushes; the root stays.
        unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack)) };
        let cr4: u64;
        // SAFETY: at ring 0.
        unsafe { asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack)) };
        assert_ne!(cr4 & 1 << 5, 0, "PAE");
        // Still so after system calls and signals.
        install(libc::SIGUSR1, note);
        // SAFETY: a signal with a handler.
        unsafe { libc::raise(libc::SIGUSR1) };
        assert_eq!(SIGNALS.load(Ordering::Relaxed), 1);
        assert_eq!((level(), cr3()), (0, root));
    });
}

/// The entry changes, and the TLB is the program's own to flush.
#[test]
fn a_page_flushed_by_the_programs_own_invlpg_is_dirty_again() {
    passes(|| {
        let inside = Inside::current().expect("inside");
        let start = map(64, BOTH);
        inside.populate(start..start + 64 * PAGE).expect("memory");
        for round in 0..50 {
            for page in (start..start + 64 * PAGE).step_by(PAGE) {
                let entry = inside.entry(page).expect("a table");
                // SAFETY: memory of the test's; INVLPG changes nothing that can be seen.
                unsafe {
                    (page as *mut u64).write_volatile(round);
                    assert!(entry.flags().contains(Flags::DIRTY));
                    entry.clear_dirty().defer();
                    if round % 2 == 0 {
                        asm!("invlpg [{}]", in(reg) page, options(nostack));
                    } else {
                        inside.flush_page(page);
                    }
                    assert!(!entry.flags().contains(Flags::DIRTY), "reading is not writing");
                    (page as *mut u64).write_volatile(round + 1);
                }
                assert!(entry.flags().contains(Flags::DIRTY), "round {round}, page {page:#x}");
            }
        }
    });
}

/// CR0.WP: what may not be written at ring 3 may not be written at ring 0.
#[test]
fn pages_that_may_only_be_read_are_not_written() {
    passes(|| {
        install(libc::SIGSEGV, note);
        let page = map(1, libc::PROT_READ);
        // SAFETY: the handler goes on at the label.
        unsafe {
            asm!("mov al, [{p}]", "lea r15, [rip + 22f]", "mov byte ptr [{p}], 1", "22:",
                p = in(reg) page, out("rax") _, out("r15") _);
        }
        assert_eq!(SIGNALS.load(Ordering::Relaxed), 1);
        assert_eq!(ADDRESS.load(Ordering::Relaxed), page);
        // Nor what a child shares with its parent until one of them writes.
        let shared = map(1, BOTH);
        // SAFETY: memory of the test's; the child only writes there, and ends.
        unsafe {
            (shared as *mut u64).write_volatile(1);
            let child = libc::fork();
            if child == 0 {
                let before = level();
                (shared as *mut u64).write_volatile(2);
                libc::_exit(i32::from(before));
            }
            let mut status = -1;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            assert_eq!((support::end(status), level()), (End::Exit(0), 0));
            assert_eq!((shared as *const u64).read_volatile(), 1);
        }
        // The descriptors of the CPU among them.
        let mut idt = [0u16; 5];
        // SAFETY: the handler goes on at the label.
        unsafe {
            asm!("sidt [{}]", in(reg) idt.as_mut_ptr(), options(nostack));
            let start = usize::from(idt[1]) | usize::from(idt[2]) << 16 | usize::from(idt[3]) << 32;
            asm!("lea r15, [rip + 22f]", "mov byte ptr [{p}], 1", "22:",
                p = in(reg) start + 0x123, out("r15") _);
            assert_eq!(ADDRESS.load(Ordering::Relaxed), start + 0x123);
        }
        assert_eq!(SIGNALS.load(Ordering::Relaxed), 2);
    });
}

/// Fills the red zone, writes to `page`, spins, and says how many words of the red zone are others.
fn red_zone(page: usize, spin: u64) -> u64 {
    let wrong: u64;
    // SAFETY: 128 bytes below the stack pointer are a leaf's own, and the compiler has moved it clear of its own.
    unsafe {
        asm!(
            "sub rsp, 256",
            "mov rax, 16",
            "2:", "mov rdx, rax", "neg rdx", "mov [rsp + 8 * rdx], rax", "dec rax", "jnz 2b",
            "mov byte ptr [{page}], 7",
            "3:", "dec {spin}", "jnz 3b",
            "xor {wrong:e}, {wrong:e}",
            "mov rax, 16",
            "4:", "mov rdx, rax", "neg rdx", "cmp [rsp + 8 * rdx], rax", "je 5f", "inc {wrong}",
            "5:", "dec rax", "jnz 4b",
            "add rsp, 256",
            page = in(reg) page, spin = inout(reg) spin => _, wrong = out(reg) wrong,
            out("rax") _, out("rdx") _,
        );
    }
    wrong
}

#[test]
fn the_red_zone_survives_faults_and_signals() {
    passes(|| {
        install(libc::SIGALRM, note);
        support::tick(Duration::from_millis(1));
        let start = map(16 * 512, BOTH);
        for block in 0..16 {
            // A first touch; the others have entries.
            for page in [0, 1, 2] {
                assert_eq!(red_zone(start + (block * 512 + page) * PAGE, 20_000), 0);
            }
        }
        assert!(SIGNALS.load(Ordering::Relaxed) > 8);
    });
}

#[test]
fn signal_frames_show_the_selectors_of_user_programs() {
    passes(|| {
        install(libc::SIGUSR1, note);
        // SAFETY: a signal with a handler.
        unsafe { libc::raise(libc::SIGUSR1) };
        let selectors = SELECTORS.load(Ordering::Relaxed);
        assert_eq!((selectors & 0xffff, selectors >> 48), (0x33, 0x2b), "{selectors:#x}");
        assert_eq!(level(), 0, "whatever the frame shows");
    });
}

#[test]
fn interrupts_that_are_off_stop_no_signal() {
    passes(|| {
        install(libc::SIGALRM, note);
        support::tick(Duration::from_millis(2));
        let before = SIGNALS.load(Ordering::Relaxed);
        while SIGNALS.load(Ordering::Relaxed) < before + 5 {
            // SAFETY: there are no interrupts; without system calls or faults in between.
            unsafe { asm!("cli", "mov {n}, 1000", "2:", "dec {n}", "jnz 2b", n = out(reg) _) };
        }
    });
}

#[test]
fn threads_and_children_are_at_ring_0() {
    passes(|| {
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(|| (level(), cr3()))).collect();
        for thread in threads {
            assert_eq!(thread.join().expect("it ends"), (0, cr3()));
        }
        // Of a thread, and of a child.
        let of_a_thread = std::thread::spawn(|| {
            // SAFETY: the children only read registers, and end.
            unsafe {
                let child = libc::fork();
                if child == 0 {
                    let grandchild = libc::fork();
                    if grandchild == 0 {
                        libc::_exit(40 + i32::from(level()));
                    }
                    let mut status = 0;
                    libc::waitpid(grandchild, &raw mut status, 0);
                    libc::_exit(libc::WEXITSTATUS(status) + i32::from(level()));
                }
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
                support::end(status)
            }
        });
        assert_eq!(of_a_thread.join().expect("it ends"), End::Exit(40));
    });
}

/// What a privileged instruction meets that the host does not allow.
#[test]
fn a_register_that_the_host_does_not_have_is_a_segmentation_fault() {
    if std::env::var_os("BARCHAN_DUNE_HOST").is_some_and(|host| host == "dune") {
        println!("skipped: /dev/dune ends the run at a register that it does not have");
        return;
    }
    passes(|| {
        install(libc::SIGSEGV, note);
        let (mut low, mut high) = (0xc000_0080u32, 0u32);
        // SAFETY: EFER; then a number that no processor has, and the handler goes on at the label.
        unsafe {
            asm!("mov ecx, eax", "rdmsr", inout("eax") low, out("edx") high, out("ecx") _);
            assert_eq!((low & 1 << 10, high), (1 << 10, 0), "long mode");
            asm!("lea r15, [rip + 22f]", "mov ecx, 0x12345678", "rdmsr", "22:",
                out("r15") _, out("rax") _, out("rcx") _, out("rdx") _);
        }
        assert_eq!(SIGNALS.load(Ordering::Relaxed), 1);
    });
}

/// Ends with a message and the registers; no hang.
fn ends_with_a_message(body: fn(), message: &str) {
    if let Some((end, text)) = run(body) {
        println!("{text}");
        assert_eq!(end, End::Signal(libc::SIGABRT), "{text}");
        assert!(text.contains("cannot go on in guest mode") && text.contains("rip 0x"), "{text}");
        assert!(text.contains(message), "{text}");
    }
}

#[test]
fn hlt_ends_the_program() {
    // SAFETY: ends the child.
    ends_with_a_message(|| unsafe { asm!("hlt") }, "HLT at ring 0");
}

#[test]
fn hlt_without_interrupts_ends_the_program() {
    // SAFETY: ends the child.
    ends_with_a_message(|| unsafe { asm!("cli", "hlt") }, "HLT at ring 0");
}

#[test]
fn page_tables_that_are_none_end_the_program() {
    // Zeros: not even the descriptors are there.
    let zeros = || {
        static EMPTY: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];
        let page = (EMPTY.as_ptr() as usize).next_multiple_of(PAGE);
        // SAFETY: a page of the program's.
        unsafe { (page as *mut u64).write_volatile(0) };
        let entry = Inside::current().and_then(|inside| inside.entry(page)).expect("a table");
        // SAFETY: ends the child.
        unsafe { asm!("mov cr3, {}", in(reg) entry.frame(), options(nostack)) };
    };
    ends_with_a_message(zeros, "");
    // Where the machine has no memory: KVM walks for ever (seen in QEMU), until a signal comes.
    let nowhere = || {
        install(libc::SIGALRM, note);
        support::tick(Duration::from_millis(50));
        // SAFETY: ends the child.
        unsafe { asm!("mov cr3, {}", in(reg) 0x5000u64, options(nostack)) };
    };
    ends_with_a_message(nowhere, "");
}

/// By the environment, as `barchan run --dune --ring 0` does: the whole program, and what it executes.
#[test]
fn the_preloaded_runtime_enters_at_ring_0_and_so_do_programs_that_are_executed() {
    let preload = std::env::var("LD_PRELOAD").unwrap_or_default();
    let ring = std::env::var("BARCHAN_DUNE_RING").unwrap_or_default();
    if !preload.contains("barchan_dune") || ring != "0" {
        println!("skipped: needs LD_PRELOAD=libbarchan_dune.so and BARCHAN_DUNE_RING=0");
        return;
    }
    assert_eq!(level(), 0, "the preloaded runtime");
    const EXECUTED: &str = "BARCHAN_TEST_EXECUTED";
    if std::env::var_os(EXECUTED).is_some() {
        println!("executed at ring {}", level());
        return;
    }
    let name = "the_preloaded_runtime_enters_at_ring_0_and_so_do_programs_that_are_executed";
    let output = std::process::Command::new(std::env::current_exe().expect("/proc is mounted"))
        .args(["--exact", name, "--nocapture"])
        .env(EXECUTED, "1")
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("executed at ring 0"), "{said}");
}
