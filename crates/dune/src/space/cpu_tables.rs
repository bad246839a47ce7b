//! What a virtual CPU finds in memory: descriptors, task state, and the stubs that call the monitor.
//!
//! Every exception is delivered **at the program's ring**, 3 but for an option ([`crate::ring`]): the gates name
//! the program's code segment, with a fault
//! stack (IST) of its own that the user may write. So no ring-0 instruction runs on a fault, which
//! costs microseconds each where ring 0 is interpreted, and the state at an exit is always that of
//! ring 3. A stub writes to an I/O port that the task state segment allows, which ends the run.
//! Only #BP goes to ring 0: INT3 is how the program asks for a flush of its TLB, which takes two
//! privileged instructions and no exit ([`FLUSH`]); any other INT3 calls the monitor from there. And #DF, which
//! comes when an exception cannot be delivered: on a stack of its own, so that the monitor can tell what
//! happened. Without, the CPU would shut down, and KVM on SVM resets the registers of one that does.
//! SYSCALL ends in a stub at ring 0 or, on a paravirtual host, at ring 3: the same instructions do for
//! both. (SDM 3A §6.14.5 "Interrupt Stack Table", §6.12.1 for gates of the same privilege.)

use core::sync::atomic::{AtomicU64, Ordering};

use super::arena;
use crate::faults::{self, Part};
use crate::host::kvm::{KERNEL_CS, TSS_SELECTOR};
use crate::ring::Ring;
use crate::sys::PAGE_SIZE;

/// The port that SYSCALL's stub writes to.
pub(crate) const PORT_SYSCALL: u8 = 0xb0;
/// The port that the stub of [`store`] writes to.
pub(crate) const PORT_STORED: u8 = 0xb1;
/// The port that the code of `faults` writes to at its end, if something waits for that.
pub(crate) const PORT_RETURNING: u8 = 0xb2;
/// The port of exception 0; that of exception `n` is `n` higher.
pub(crate) const PORT_EXCEPTION: u8 = 0xc0;
/// Exceptions that the processor defines.
pub(crate) const EXCEPTIONS: u8 = 32;

/// What RAX holds at an INT3 that asks to flush everything that is not global; RDX is overwritten.
pub(crate) const FLUSH: i32 = 0x4455_4e01;
/// What RAX holds at an INT3 that asks to flush the page at RDI.
pub(crate) const FLUSH_PAGE: i32 = 0x4455_4e02;

pub(crate) const GDT_LIMIT: u16 = 16 * 8 - 1;
pub(crate) const IDT_LIMIT: u16 = 4095;

pub(crate) const BREAKPOINT: u8 = 3;
pub(crate) const DOUBLE_FAULT: u8 = 8;
/// Offsets in the page of stubs.
const STUB_SYSCALL: usize = 0;
const STUB_SYSRET: usize = 16;
const STUB_IRET: usize = 32;
const STUB_BREAKPOINT: usize = 64;
const STUB_BREAKPOINT_LEN: usize = 64;
/// Where the stub of page faults goes, and the stub that ends the run for them.
const STUB_TARGET: usize = 128;
const STUB_PAGE_FAULT: usize = 136;
const STUB_STORE: usize = 144;
const STUB_WIPE: usize = 152;
const STUB_PROBE: usize = 160;
const PAGE_FAULT: u8 = 14;
const STUB_EXCEPTION: usize = 256;
const STUB_EXCEPTION_LEN: usize = 8;
/// What handles page faults, where it may not fault itself ([`faults::write_stubs`]).
const STUB_FAULT: usize = STUB_EXCEPTION + EXCEPTIONS as usize * STUB_EXCEPTION_LEN;

/// Offsets in a CPU's page of descriptors, which ring 3 cannot reach.
const TSS_OFFSET: usize = 512;
/// The end of the stack for #DF, which needs six words.
const DOUBLE_FAULT_TOP: usize = PAGE_SIZE - 64;
/// 104 bytes, then the permission bitmap of 256 ports, then a byte of ones.
const TSS_LEN: usize = 104 + 32 + 1;
pub(crate) const TSS_LIMIT: u32 = TSS_LEN as u32 - 1;

/// Linear addresses of what is made here.
pub(crate) fn idt() -> usize {
    arena::SHARED.start()
}

fn stubs() -> usize {
    arena::SHARED.start() + PAGE_SIZE
}

/// Where SYSCALL goes.
pub(crate) fn syscall_entry() -> usize {
    stubs() + STUB_SYSCALL
}

/// A SYSRETQ.
pub(crate) fn sysret() -> usize {
    stubs() + STUB_SYSRET
}

/// An IRETQ.
pub(crate) fn iret() -> usize {
    stubs() + STUB_IRET
}

/// A store of RAX to where RDI points, and then the monitor is called.
pub(crate) fn store() -> usize {
    stubs() + STUB_STORE
}

/// As [`store`], and stores nothing.
pub(crate) fn pass() -> usize {
    store() + 3
}

/// A SYSCALL, to see where it arrives.
pub(crate) fn probe() -> usize {
    stubs() + STUB_PROBE
}

/// RCX stores of RAX from where RDI points on, and then the monitor is called.
pub(crate) fn wipe() -> usize {
    stubs() + STUB_WIPE
}

pub(crate) fn gdt(cpu: usize) -> usize {
    arena::CPUS.start() + cpu * arena::CPU_LEN
}

pub(crate) fn tss(cpu: usize) -> usize {
    gdt(cpu) + TSS_OFFSET
}

/// The end of a CPU's fault stack, from the start of its area.
const FAULT_TOP: usize = 2 * PAGE_SIZE - 64;
/// Where the frame of a page fault is: six words below.
pub(crate) const FAULT_FRAME: usize = FAULT_TOP - 48;
/// The end of the stack for page-fault handlers,
pub(crate) const HANDLER_TOP: usize = arena::CPU_LEN - 64;
/// above it a word that is not zero while it is in use,
pub(crate) const HANDLER_BUSY: usize = HANDLER_TOP + 8;
/// and one for the address of a fault that the monitor hands over.
pub(crate) const HANDLER_ADDRESS: usize = HANDLER_TOP + 16;
/// and one that is not zero if the monitor wants to be called at the handler's end.
pub(crate) const HANDLER_AWAITED: usize = HANDLER_TOP + 24;
/// There: a signal waits for it.
const WAITING: u64 = 1;
/// There: a signal did not wait, and its own handler runs in the middle of it. It may wait for others.
const NO_MORE: u64 = 2;

/// The end of a CPU's fault stack.
pub(crate) fn fault_stack(cpu: usize) -> usize {
    gdt(cpu) + FAULT_TOP
}

/// The end of the stack that the processor switches to for exception `vector`.
fn stack_of(cpu: usize, vector: u8) -> usize {
    if vector == DOUBLE_FAULT { gdt(cpu) + DOUBLE_FAULT_TOP } else { fault_stack(cpu) }
}

/// A page fault of CPU `cpu` with the stack at `rsp` is not handled at ring 3 at the moment: the next
/// may be. A fault of the handler's own leaves it as it is.
pub(crate) fn release_handler(cpu: usize, rsp: u64) {
    let stack = gdt(cpu) + 2 * PAGE_SIZE..=gdt(cpu) + HANDLER_TOP;
    if !stack.contains(&(rsp as usize)) {
        put(gdt(cpu) + HANDLER_BUSY, 0);
        put(gdt(cpu) + HANDLER_AWAITED, 0);
    }
}

/// Whether CPU `cpu`, with the stack at `rsp`, is in the middle of a handler of page faults.
fn is_handling(cpu: usize, rsp: u64) -> bool {
    let stack = gdt(cpu) + 2 * PAGE_SIZE..gdt(cpu) + HANDLER_TOP;
    stack.contains(&(rsp as usize)) && get(gdt(cpu) + HANDLER_BUSY) != 0
}

/// Whether a signal can wait for the end of the handler that CPU `cpu`, with the stack at `rsp`, is in the middle of:
/// the CPU calls the monitor then ([`PORT_RETURNING`]).
pub(crate) fn await_handler(cpu: usize, rsp: u64) -> bool {
    let waits = is_handling(cpu, rsp) && get(gdt(cpu) + HANDLER_AWAITED) != NO_MORE;
    if waits {
        put(gdt(cpu) + HANDLER_AWAITED, WAITING);
    }
    waits
}

/// A signal's handler is about to be called with the stack at `rsp`.
pub(crate) fn signal_begins(cpu: usize, rsp: u64) {
    if is_handling(cpu, rsp) {
        put(gdt(cpu) + HANDLER_AWAITED, NO_MORE);
    }
}

/// The handler of CPU `cpu` has ended.
pub(crate) fn handler_ended(cpu: usize) {
    put(gdt(cpu) + HANDLER_AWAITED, 0);
}

/// Puts the frame of a page fault on CPU `cpu`'s handler stack, with the address. Returns where it is, or
/// `None` if the stack is in use.
pub(crate) fn hand_over(cpu: usize, pushed: &Frame, address: u64) -> Option<u64> {
    let area = gdt(cpu);
    // SAFETY: an aligned word of the arena.
    let busy = unsafe { &*((area + HANDLER_BUSY) as *const AtomicU64) };
    if busy.swap(1, Ordering::Relaxed) != 0 {
        return None;
    }
    put(area + HANDLER_ADDRESS, address);
    let bottom = area + HANDLER_TOP - 48;
    let words = [
        pushed.error,
        pushed.rip,
        u64::from(Ring::current().code()),
        pushed.rflags,
        pushed.rsp,
        u64::from(Ring::current().stack()),
    ];
    for (index, word) in words.into_iter().enumerate() {
        put(bottom + 8 * index, word);
    }
    Some(bottom as u64)
}

/// Whether the handler has just refused the fault at `address` that it was handed; asked once.
pub(crate) fn refused(cpu: usize, address: u64) -> bool {
    // SAFETY: an aligned word of the arena.
    let word = unsafe { &*((gdt(cpu) + HANDLER_ADDRESS) as *const AtomicU64) };
    word.swap(0, Ordering::Relaxed) == address && address != 0
}

/// Sends page faults to the program's handler, or to the monitor.
pub(crate) fn deliver_page_faults(handled: bool) {
    let target = if handled { STUB_FAULT } else { STUB_PAGE_FAULT };
    put(stubs() + STUB_TARGET, (stubs() + target) as u64);
}

/// What an address in the page of stubs is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stub {
    /// Call the monitor for a system call.
    Syscall,
    /// Return from one: RIP and RFLAGS are in RCX and R11.
    Sysret,
    /// Return through a frame at RSP.
    Iret,
    /// Flush, or call the monitor for a breakpoint: at ring 0, its frame in place. Nothing is lost if
    /// the INT3 is executed again.
    Breakpoint,
    /// Call the monitor for this exception.
    Exception(u8),
    /// Handle a page fault; `None`: in a part that needs no care.
    Fault(Option<Part>),
}

/// Which stub `rip` is in, if it is in one.
pub(crate) fn stub_at(rip: u64) -> Option<Stub> {
    let offset = (rip as usize).checked_sub(stubs()).filter(|offset| *offset < PAGE_SIZE)?;
    Some(match offset {
        STUB_SYSCALL => Stub::Syscall,
        STUB_IRET => Stub::Iret,
        _ if (STUB_BREAKPOINT..STUB_BREAKPOINT + STUB_BREAKPOINT_LEN).contains(&offset) => {
            Stub::Breakpoint
        }
        STUB_PAGE_FAULT => Stub::Exception(PAGE_FAULT),
        _ if offset < STUB_EXCEPTION => Stub::Sysret,
        _ if offset >= STUB_FAULT => Stub::Fault(faults::part_at(offset - STUB_FAULT)),
        _ => Stub::Exception(((offset - STUB_EXCEPTION) / STUB_EXCEPTION_LEN) as u8),
    })
}

/// Whether the processor pushes an error code for exception `vector` (SDM 3A, table 6-1).
pub(crate) fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// A code or data segment of 64-bit mode, its accessed bit set so that nobody writes to it.
fn segment(code: bool, dpl: u64) -> u64 {
    let kind: u64 = if code { 0xb } else { 0x3 };
    let long = u64::from(code) << 53;
    0x000f_0000_0000_ffff | 1 << 55 | long | 1 << 47 | dpl << 45 | 1 << 44 | kind << 40
}

fn get(address: usize) -> u64 {
    // SAFETY: an aligned word of the arena, which is mapped and written by no reference.
    unsafe { &*(address as *const AtomicU64) }.load(Ordering::Relaxed)
}

fn put(address: usize, value: u64) {
    // SAFETY: an aligned word of the arena, which is mapped and written by no reference.
    unsafe { &*(address as *const AtomicU64) }.store(value, Ordering::Relaxed);
}

/// Writes the shared parts: interrupt descriptors and stubs.
pub(crate) fn write_shared() {
    let ring = Ring::current();
    for vector in 0..EXCEPTIONS {
        let stub = (stubs() + STUB_EXCEPTION + STUB_EXCEPTION_LEN * usize::from(vector)) as u64;
        let (target, selector, stack) = match vector {
            BREAKPOINT => ((stubs() + STUB_BREAKPOINT) as u64, KERNEL_CS, 1),
            DOUBLE_FAULT => (stub, KERNEL_CS, 2),
            _ => (stub, ring.code(), 1),
        };
        // Only #BP and #OF may be raised by an instruction of ring 3, as on Linux.
        let dpl: u64 = if matches!(vector, 3 | 4) { 3 } else { 0 };
        let low = target & 0xffff
            | u64::from(selector) << 16
            | stack << 32 // IST
            | 0xe << 40
            | dpl << 45
            | 1 << 47
            | (target >> 16 & 0xffff) << 48;
        put(idt() + 16 * usize::from(vector), low);
        put(idt() + 16 * usize::from(vector) + 8, target >> 32);
        // out imm8, al; ud2
        let code = [0xe6, PORT_EXCEPTION + vector, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b];
        put(stub as usize, u64::from_le_bytes(code));
        if vector == PAGE_FAULT {
            put(stubs() + STUB_PAGE_FAULT, u64::from_le_bytes(code));
            faults::write_stubs(stubs() + STUB_FAULT, put);
            deliver_page_faults(faults::handled());
            // jmp [rip + target]
            let [d0, d1, d2, d3] = ((stubs() + STUB_TARGET) as i64 - (stub as i64 + 6))
                .to_le_bytes()[..4]
                .try_into()
                .unwrap_or([0; 4]);
            put(stub as usize, u64::from_le_bytes([0xff, 0x25, d0, d1, d2, d3, 0x0f, 0x0b]));
        }
    }
    const CODE_LEN: usize = 48;
    let [s0, s1] = ring.stack().to_le_bytes();
    let [f0, f1, f2, f3] = FLUSH.to_le_bytes();
    let [p0, p1, p2, p3] = FLUSH_PAGE.to_le_bytes();
    #[rustfmt::skip]
    let code: [u8; CODE_LEN] = [
        // An exception that goes through an IST loads SS with null (SDM Vol. 3A, §6.14.5), and is resumed
        // without SS being restored; iretq to ring 3 refuses null, and at ring 0 that is a triple fault.
        0x48, 0xc7, 0x44, 0x24, 0x20, s0, s1, 0, 0, // mov qword ptr [rsp + 32], SS
        0x48, 0x3d, f0, f1, f2, f3, // cmp rax, FLUSH
        0x75, 0x08,                 // jne 1f
        0x0f, 0x20, 0xda,           // mov rdx, cr3
        0x0f, 0x22, 0xda,           // mov cr3, rdx
        0x48, 0xcf,                 // iretq
        0x48, 0x3d, p0, p1, p2, p3, // 1: cmp rax, FLUSH_PAGE
        0x75, 0x05,                 // jne 2f
        0x0f, 0x01, 0x3f,           // invlpg [rdi]
        0x48, 0xcf,                 // iretq
        0xe6, PORT_EXCEPTION + BREAKPOINT, // 2: out imm8, al
        0x0f, 0x0b,                 // ud2
        0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
    ];
    const { assert!(CODE_LEN % 8 == 0 && CODE_LEN <= STUB_BREAKPOINT_LEN) };
    for (index, bytes) in code.chunks_exact(8).enumerate() {
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        put(stubs() + STUB_BREAKPOINT + 8 * index, u64::from_le_bytes(word));
    }
    // out imm8, al; ud2
    put(syscall_entry(), u64::from_le_bytes([0xe6, PORT_SYSCALL, 0xf, 0xb, 0xf, 0xb, 0xf, 0xb]));
    // mov [rdi], rax; out imm8, al; ud2
    put(store(), u64::from_le_bytes([0x48, 0x89, 0x07, 0xe6, PORT_STORED, 0x0f, 0x0b, 0x90]));
    // rep stosq; out imm8, al; ud2
    put(wipe(), u64::from_le_bytes([0xf3, 0x48, 0xab, 0xe6, PORT_STORED, 0x0f, 0x0b, 0x90]));
    // syscall; ud2
    put(probe(), u64::from_le_bytes([0x0f, 0x05, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b]));
    // sysretq; ud2
    put(sysret(), u64::from_le_bytes([0x48, 0x0f, 0x07, 0x0f, 0x0b, 0x0f, 0x0b, 0x90]));
    // iretq; ud2
    put(iret(), u64::from_le_bytes([0x48, 0xcf, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b]));
}

/// Writes the descriptors and the task state of CPU `cpu`.
pub(crate) fn write_cpu(cpu: usize) {
    let (gdt, tss) = (gdt(cpu), tss(cpu));
    put(gdt + 0x10, segment(true, 0));
    put(gdt + 0x18, segment(false, 0));
    put(gdt + 0x20, segment(false, 3));
    put(gdt + 0x28, segment(false, 3));
    put(gdt + 0x30, segment(true, 3));
    let (limit, base) = (u64::from(TSS_LIMIT), tss as u64);
    let low = limit | (base & 0xff_ffff) << 16 | 0xb << 40 | 1 << 47 | (base >> 24 & 0xff) << 56;
    put(gdt + usize::from(TSS_SELECTOR), low);
    put(gdt + usize::from(TSS_SELECTOR) + 8, base >> 32);

    let mut state = [0u8; TSS_LEN.next_multiple_of(8)];
    let stack = (fault_stack(cpu) as u64).to_le_bytes();
    state[4..12].copy_from_slice(&stack); // RSP0
    state[36..44].copy_from_slice(&stack); // IST 1
    state[44..52].copy_from_slice(&(stack_of(cpu, DOUBLE_FAULT) as u64).to_le_bytes()); // IST 2
    state[102..104].copy_from_slice(&104u16.to_le_bytes()); // the bitmap's offset
    state[104..].fill(0xff);
    let allowed = (PORT_EXCEPTION..PORT_EXCEPTION + EXCEPTIONS).chain([
        PORT_SYSCALL,
        PORT_STORED,
        PORT_RETURNING,
    ]);
    for port in allowed.map(usize::from) {
        state[104 + port / 8] &= !(1 << (port % 8));
    }
    for (word, bytes) in state.chunks_exact(8).enumerate() {
        let mut value = [0; 8];
        value.copy_from_slice(bytes);
        put(tss + 8 * word, u64::from_le_bytes(value));
    }
}

/// The words that the processor pushes for an exception, from the lowest address.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Frame {
    pub(crate) error: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

/// Reads what CPU `cpu` pushed for exception `vector`.
pub(crate) fn read_frame(cpu: usize, vector: u8) -> Frame {
    let top = stack_of(cpu, vector);
    // SAFETY: aligned words of the arena, which the CPU wrote before it stopped.
    let word =
        |back: usize| unsafe { (*((top - 8 * back) as *const AtomicU64)).load(Ordering::Relaxed) };
    let error = if has_error_code(vector) { word(6) } else { 0 };
    Frame { error, rip: word(5), cs: word(4), rflags: word(3), rsp: word(2), ss: word(1) }
}

/// Writes a frame through which IRETQ returns to the program, and returns its address.
pub(crate) fn write_iret_frame(cpu: usize, rip: u64, rflags: u64, rsp: u64) -> u64 {
    let bottom = fault_stack(cpu) - 40;
    let ring = Ring::current();
    let words = [rip, u64::from(ring.code()), rflags, rsp, u64::from(ring.stack())];
    for (index, word) in words.into_iter().enumerate() {
        put(bottom + 8 * index, word);
    }
    bottom as u64
}

/// Reads the frame of an IRETQ, at `rsp`, which is in the arena.
pub(crate) fn read_iret_frame(rsp: u64) -> Frame {
    let bottom = rsp as usize;
    if !arena::contains(bottom) || bottom % 8 != 0 {
        return Frame::default();
    }
    // SAFETY: aligned words of the arena.
    let word =
        |n: usize| unsafe { (*((bottom + 8 * n) as *const AtomicU64)).load(Ordering::Relaxed) };
    Frame { error: 0, rip: word(0), cs: word(1), rflags: word(2), rsp: word(3), ss: word(4) }
}
