//! Loads and stores that may fault: a handler of SIGSEGV and SIGBUS makes them fail instead.
#![allow(dead_code, reason = "each test file uses its part")]

use std::ptr::null_mut;
use std::sync::atomic::AtomicU64;

/// How a load or store faulted: `si_addr` and `si_code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Faulted {
    pub(crate) address: usize,
    pub(crate) code: i32,
}

/// `SEGV_MAPERR`
pub(crate) const MAPERR: i32 = 1;
/// `SEGV_ACCERR`
pub(crate) const ACCERR: i32 = 2;

/// Goes on where R15 points, as the code below has it, and tells what happened in R13 and R14.
extern "C" fn on_fault(_: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: what the kernel gives a handler with SA_SIGINFO.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        registers[libc::REG_R13 as usize] = i64::from((*info).si_code);
        registers[libc::REG_R14 as usize] = (*info).si_addr() as i64;
        registers[libc::REG_RIP as usize] = registers[libc::REG_R15 as usize];
    }
}

/// From now on [`read`], [`write`] and [`call`] fail where they fault.
pub(crate) fn catch_faults() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        crate::support::install(signal, on_fault);
    }
}

macro_rules! attempt {
    ($instruction:literal, $address:expr, $value:expr) => {{
        let (mut value, code, address): (u64, u64, usize);
        // SAFETY: the instruction faults, which the handler answers, or uses memory that the caller knows of.
        unsafe {
            std::arch::asm!(
                "lea r15, [rip + 2f]",
                "mov r12, rsp",
                "xor r13d, r13d",
                $instruction,
                "2:",
                "mov rsp, r12",
                inout("rax") $value => value,
                in("rdi") $address,
                out("r12") _,
                out("r13") code,
                out("r14") address,
                out("r15") _,
                clobber_abi("C"),
            );
        }
        if code == 0 { Ok(value) } else { Err(Faulted { address, code: code as i32 }) }
    }};
}

pub(crate) fn read(address: usize) -> Result<u64, Faulted> {
    attempt!("mov rax, [rdi]", address, 0u64)
}

pub(crate) fn write(address: usize, value: u64) -> Result<(), Faulted> {
    attempt!("mov [rdi], rax", address, value).map(drop)
}

/// Calls what is there: code that returns at once.
pub(crate) fn call(address: usize) -> Result<(), Faulted> {
    attempt!("call rdi", address, 0u64).map(drop)
}

/// A word, without any of that.
pub(crate) fn word(address: usize) -> &'static AtomicU64 {
    // SAFETY: an aligned word of a mapping that stays, used only as an atomic.
    unsafe { AtomicU64::from_ptr(address as *mut u64) }
}

/// New private memory of so many pages.
pub(crate) fn map(pages: usize) -> usize {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let len = pages * dune::PAGE_SIZE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(null_mut(), len, rights, flags, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    start as usize
}

/// As [`map`], from a multiple of `align` bytes on.
pub(crate) fn map_aligned(pages: usize, align: usize) -> usize {
    map(pages + align / dune::PAGE_SIZE).next_multiple_of(align)
}
