//! Page faults of protected pages, handled by the program itself at its ring, without an exit.
//!
//! [`Inside::protect`](crate::inside::Inside::protect) takes the right to write from entries and marks them
//! (software bit 9). A write to such a page faults; the gate delivers at the program's ring, on the CPU's fault
//! stack, and the code below moves the frame to a handler stack, finds which protected page the
//! instruction writes to by decoding it (CR2 cannot be read at ring 3), and calls the handler. Where
//! decoding does not find it (gathers and scatters, implicit operands) the page fault goes the long way: the
//! monitor reads CR2 and calls the same code.
//!
//! One fault of a CPU is in handling at a time: a fault in the handler goes to the monitor. Signals that
//! come before the frame is moved roll the fault back: the instruction faults again. Those that come later wait until
//! it is handled, so that their handlers may write to protected pages. Not where the handler makes a system call, or
//! cannot go on: there they are delivered, on its stack, and whatever they write to is no fault that can be handled.
//!
//! All of this code is memory like any other, whose entries may go at any time, and then it faults itself. So
//! what runs while a fault would overwrite the frame, or find it half taken, is in the page of stubs, which always
//! has its entry: from the gate until the handler stack is marked as in use, and from where it is free again
//! until the return. It touches nothing but the CPU's own stacks, which have theirs too.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};

use crate::paging::{Flags, HELD, PAGE};
use crate::ring::Ring;
use crate::space::{self, cpu_tables as tables};
use crate::stores;

/// The program's state at the fault; the handler may change it.
#[repr(C)]
#[derive(Debug)]
pub struct FaultFrame {
    /// R15, R14, … R8, RBP, RDI, RSI, RDX, RCX, RBX, RAX.
    pub registers: [u64; 15],
    /// The processor's error code (SDM 3A, figure 4-12).
    pub error: u64,
    /// The instruction that faulted.
    pub rip: u64,
    cs: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// RSP.
    pub rsp: u64,
    ss: u64,
}

/// Handles a write to the protected page at `address`: makes it writable and returns `true`, and the
/// instruction is executed again; or returns `false`, and the program gets SIGSEGV.
///
/// It runs at the program's ring, in the middle of it, on a stack of 24 KiB: it must return, and not
/// allocate, lock, fork or make another protected page fault. Signals wait for its end. But if it makes a
/// system call, they are delivered at that call's end, and a signal's handler that writes to a protected
/// page gets SIGSEGV then.
pub type FaultHandler = fn(address: usize, frame: &mut FaultFrame) -> bool;

static HANDLER: AtomicUsize = AtomicUsize::new(0);

/// Whether there is XSAVE; else FXSAVE has all that there is.
static XSAVE: AtomicBool = AtomicBool::new(false);

/// From the fault frame on the fault stack to where the handler stack begins.
const UP: usize = tables::HANDLER_TOP - tables::FAULT_FRAME;
/// From there to the word that is not zero while the handler stack is in use.
const BUSY: usize = tables::HANDLER_BUSY - tables::HANDLER_TOP;

core::arch::global_asm!(
    // Copied to the page of stubs ([`write_stubs`]), and executed only there.
    ".pushsection .rodata.barchan_dune_fault, \"a\"",
    ".globl barchan_dune_fault",
    ".globl barchan_dune_fault_exit",
    ".globl barchan_dune_fault_stack_segment",
    ".globl barchan_dune_fault_target",
    ".globl barchan_dune_fault_back",
    ".globl barchan_dune_fault_free",
    ".globl barchan_dune_fault_end",
    ".hidden barchan_dune_fault",
    ".hidden barchan_dune_fault_exit",
    ".hidden barchan_dune_fault_stack_segment",
    ".hidden barchan_dune_fault_target",
    ".hidden barchan_dune_fault_back",
    ".hidden barchan_dune_fault_free",
    ".hidden barchan_dune_fault_end",
    ".balign 8",
    // On the fault stack: error code, RIP, CS, RFLAGS, RSP, SS. No register is free.
    "barchan_dune_fault:",
    "bts dword ptr [rsp + {up} + {busy}], 0",
    "jnc 2f",
    "barchan_dune_fault_exit:",
    "out {port}, al",
    "ud2",
    "2:",
    "lea rsp, [rsp + {up}]",
    // SS is what it always is: QEMU's processor leaves a null selector behind where a stack is switched at
    // the same privilege level, and no processor returns to that. Then each push reads the next lower
    // word of the frame.
    "push {ss}",
    "barchan_dune_fault_stack_segment:",
    "push qword ptr [rsp + 40 - {up}]",
    "push qword ptr [rsp + 40 - {up}]",
    "push qword ptr [rsp + 40 - {up}]",
    "push qword ptr [rsp + 40 - {up}]",
    "push qword ptr [rsp + 40 - {up}]",
    "jmp qword ptr [rip + barchan_dune_fault_target]",
    ".balign 8",
    "barchan_dune_fault_target:",
    ".quad 0",
    // On the handler stack: the registers, whether the fault was handled, RIP, CS, RFLAGS, RSP, SS.
    "barchan_dune_fault_back:",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rbp",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rbx",
    "pop rax",
    // Not handled: left busy, so that the instruction, executed again, goes to the monitor. It may do without a fault
    // then, if another thread has given the right back; so a signal that waits cannot be left to that.
    "test dword ptr [rsp], 1",
    "lea rsp, [rsp + 8]",
    "jz barchan_dune_fault_free",
    "btr dword ptr [rsp + 40 + {busy}], 0",
    "barchan_dune_fault_free:",
    "cmp dword ptr [rsp + 40 + {awaited}], 0",
    "jne 3f",
    "iretq",
    // As if a signal had come here.
    "3:",
    "out {returning}, al",
    "ud2",
    ".balign 8",
    "barchan_dune_fault_end:",
    ".popsection",
    // And this is executed where it is.
    ".globl barchan_dune_fault_moved",
    ".hidden barchan_dune_fault_moved",
    ".type barchan_dune_fault_moved,@function",
    "barchan_dune_fault_moved:",
    "push rax",
    "push rbx",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push rbp",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "mov rbx, rsp",
    // Everything that a handler may overwrite, less than 4 KiB. Not AMX, which takes 8 KiB and which the
    // program is not given: a paravirtual host leaves it enabled.
    "sub rsp, 4096",
    "and rsp, -64",
    "xor eax, eax",
    "mov [rsp + 512], rax",
    "mov [rsp + 520], rax",
    "mov [rsp + 528], rax",
    "mov [rsp + 536], rax",
    "mov [rsp + 544], rax",
    "mov [rsp + 552], rax",
    "mov [rsp + 560], rax",
    "mov [rsp + 568], rax",
    "mov eax, {features}",
    "xor edx, edx",
    "cmp byte ptr [rip + {xsave}], 0",
    "je 4f",
    "xsave64 [rsp]",
    "jmp 5f",
    "4:",
    "fxsave64 [rsp]",
    "5:",
    "call {dispatch}",
    "movzx r12d, al",
    "mov eax, {features}",
    "xor edx, edx",
    "cmp byte ptr [rip + {xsave}], 0",
    "je 6f",
    "xrstor64 [rsp]",
    "jmp 7f",
    "6:",
    "fxrstor64 [rsp]",
    "7:",
    "mov rsp, rbx",
    // In place of the error code.
    "mov [rsp + 15 * 8], r12",
    "jmp qword ptr [rip + {back}]",
    ".size barchan_dune_fault_moved, . - barchan_dune_fault_moved",
    up = const UP,
    busy = const BUSY,
    awaited = const tables::HANDLER_AWAITED - tables::HANDLER_TOP,
    returning = const tables::PORT_RETURNING,
    port = const tables::PORT_EXCEPTION + 14,
    features = const crate::host::kvm::XCR0_WANTED,
    ss = const crate::host::kvm::USER_SS,
    xsave = sym XSAVE,
    back = sym BACK,
    dispatch = sym dispatch,
);

unsafe extern "C" {
    static barchan_dune_fault: [u8; 0];
    static barchan_dune_fault_exit: [u8; 0];
    static barchan_dune_fault_stack_segment: [u8; 0];
    static barchan_dune_fault_target: [u8; 0];
    static barchan_dune_fault_back: [u8; 0];
    static barchan_dune_fault_free: [u8; 0];
    static barchan_dune_fault_end: [u8; 0];
    fn barchan_dune_fault_moved();
}

/// Where the handled fault goes to return, in the page of stubs.
static BACK: AtomicU64 = AtomicU64::new(0);

/// Where the label is, from the beginning of what is copied.
fn offset(label: *const [u8; 0]) -> usize {
    label as usize - &raw const barchan_dune_fault as usize
}

/// The code for the page of stubs, to be put at `place`, in words; `put` writes one.
pub(crate) fn write_stubs(place: usize, mut put: impl FnMut(usize, u64)) {
    let len = offset(&raw const barchan_dune_fault_end);
    // SAFETY: the assembler's output, from its first label to its last.
    let code =
        unsafe { core::slice::from_raw_parts((&raw const barchan_dune_fault).cast::<u8>(), len) };
    // The byte that PUSH has pushed as SS.
    let selector = offset(&raw const barchan_dune_fault_stack_segment) - 1;
    for (index, bytes) in code.chunks_exact(8).enumerate() {
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        if selector / 8 == index {
            word[selector % 8] = Ring::current().stack() as u8;
        }
        put(place + 8 * index, u64::from_le_bytes(word));
    }
    put(place + offset(&raw const barchan_dune_fault_target), moved());
    BACK.store((place + offset(&raw const barchan_dune_fault_back)) as u64, Ordering::Release);
}

/// Where the monitor enters with a frame on the handler stack.
pub(crate) fn moved() -> u64 {
    barchan_dune_fault_moved as *const () as u64
}

/// What an instruction of the code above is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The frame is on the fault stack still, and no register is lost.
    Beginning,
    /// It calls the monitor for the fault.
    Exit,
    /// It returns through the frame at RSP, with all registers in place, or calls the monitor to do it.
    Return,
}

/// Which part the code is in that is `at` bytes behind the beginning of [`write_stubs`]', as far as a signal must
/// know. (While registers are taken from the handler stack, it is marked as in use, and nothing is lost.)
pub(crate) fn part_at(at: usize) -> Option<Part> {
    if at == offset(&raw const barchan_dune_fault_exit) {
        Some(Part::Exit)
    } else if at >= offset(&raw const barchan_dune_fault_free) {
        Some(Part::Return)
    } else if at < offset(&raw const barchan_dune_fault_target) {
        Some(Part::Beginning)
    } else {
        None
    }
}

/// Whether there is no other handler than this one.
pub(crate) fn free_for(handler: FaultHandler) -> bool {
    let now = HANDLER.load(Ordering::Acquire);
    now == 0 || now == handler as usize
}

/// Whether there is a handler.
pub(crate) fn handled() -> bool {
    HANDLER.load(Ordering::Acquire) != 0
}

/// Sets the handler. Decodes once, so that the decoder's tables are made, which takes a heap.
pub(crate) fn set_handler(handler: FaultHandler) {
    let nop = [0x90];
    let mut decoder = Decoder::with_ip(64, &nop, 0, DecoderOptions::NONE);
    core::hint::black_box(decoder.decode());
    XSAVE.store(crate::host::has_xsave(), Ordering::Release);
    HANDLER.store(handler as usize, Ordering::Release);
}

/// On the handler stack, at the program's ring.
extern "C" fn dispatch(frame: &mut FaultFrame) -> bool {
    let handler = HANDLER.load(Ordering::Acquire);
    if handler == 0 {
        return false;
    }
    // The monitor has left the address above the frame, or nobody has.
    // SAFETY: the word is this CPU's, above its handler stack; the monitor writes it while we do not run.
    let word = unsafe {
        let end = core::ptr::from_mut(frame).add(1).cast::<u8>();
        AtomicU64::from_ptr(end.add(tables::HANDLER_ADDRESS - tables::HANDLER_TOP).cast())
    };
    let told = word.swap(0, Ordering::Relaxed);
    let address = if told != 0 {
        told
    } else {
        match (frame.error & 3 == 3).then(|| protected_operand(frame)).flatten() {
            Some(address) => address,
            None => return false,
        }
    };
    // SAFETY: only `set_handler` stores here, and only functions of this type.
    let handler = unsafe { core::mem::transmute::<usize, FaultHandler>(handler) };
    let handled = handler(address as usize, frame);
    if !handled && told != 0 {
        // So that the monitor does not ask again.
        word.store(told, Ordering::Relaxed);
    }
    handled
}

/// The protected page that the instruction writes to, if its operands show it: the first byte there.
fn protected_operand(frame: &FaultFrame) -> Option<u64> {
    if Ring::current() == Ring::Zero {
        let address: u64;
        // SAFETY: at ring 0. A fault of this code's own since then has left its address there, of no protected page.
        unsafe { core::arch::asm!("mov {}, cr2", out(reg) address, options(nomem, nostack)) };
        if is_held(address) {
            return Some(address);
        }
    }
    let mut bytes = [0u8; 15];
    // Not into the next page, which may not be there.
    let len = (PAGE - frame.rip % PAGE).min(15) as usize;
    // SAFETY: the processor has just read the instruction from there.
    unsafe {
        core::ptr::copy_nonoverlapping(frame.rip as *const u8, bytes.as_mut_ptr(), len);
    }
    let plain = stores::address(&bytes[..len], |number| numbered_register(number, frame));
    if let Some(address) = plain.filter(|address| is_held(*address)) {
        return Some(address);
    }
    let instruction = Decoder::with_ip(64, &bytes[..len], frame.rip, DecoderOptions::NONE).decode();
    if instruction.is_invalid() {
        return None;
    }
    (0..instruction.op_count()).find_map(|operand| {
        let start = operand_address(&instruction, operand, frame)?;
        let size = instruction.memory_size().size().max(1) as u64;
        [start, (start + size - 1) & !(PAGE - 1)].into_iter().find(|address| is_held(*address))
    })
}

fn operand_address(instruction: &Instruction, operand: u32, frame: &FaultFrame) -> Option<u64> {
    let in_memory = matches!(
        instruction.op_kind(operand),
        OpKind::Memory
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI
    );
    if !in_memory {
        return None;
    }
    instruction.virtual_address(operand, 0, |register, _, _| register_value(register, frame))
}

/// A general register by its number in the encoding of instructions.
fn numbered_register(number: u8, frame: &FaultFrame) -> u64 {
    // As `FaultFrame::registers` has them; RSP is apart.
    const PLACES: [usize; 16] = [14, 12, 11, 13, 0, 8, 10, 9, 7, 6, 5, 4, 3, 2, 1, 0];
    if number == 4 { frame.rsp } else { frame.registers[PLACES[usize::from(number & 15)]] }
}

fn register_value(register: Register, frame: &FaultFrame) -> Option<u64> {
    // Flat segments; FS and GS have bases that cannot be told here.
    if matches!(register, Register::ES | Register::CS | Register::SS | Register::DS) {
        return Some(0);
    }
    if !register.is_gpr() {
        return None;
    }
    let value = match register.full_register() {
        Register::RAX => frame.registers[14],
        Register::RBX => frame.registers[13],
        Register::RCX => frame.registers[12],
        Register::RDX => frame.registers[11],
        Register::RSI => frame.registers[10],
        Register::RDI => frame.registers[9],
        Register::RBP => frame.registers[8],
        Register::R8 => frame.registers[7],
        Register::R9 => frame.registers[6],
        Register::R10 => frame.registers[5],
        Register::R11 => frame.registers[4],
        Register::R12 => frame.registers[3],
        Register::R13 => frame.registers[2],
        Register::R14 => frame.registers[1],
        Register::R15 => frame.registers[0],
        Register::RSP => frame.rsp,
        _ => return None,
    };
    Some(if register.is_gpr32() { value & 0xffff_ffff } else { value })
}

/// Whether the page at `address` is protected.
pub(crate) fn is_held(address: u64) -> bool {
    let entry = |address| Some(space::view()?.entry(address)?.load(Ordering::Acquire));
    address < crate::paging::USER_END
        && entry(address)
            .is_some_and(|entry| entry & HELD != 0 && entry & Flags::PRESENT.bits() != 0)
}
