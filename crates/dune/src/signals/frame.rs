//! `rt_sigframe`: what a handler finds on its stack, as the kernel lays it out.
//!
//! From the top down: the alternate stack or the program's, less the red zone; the XSAVE area,
//! aligned to 64, with the kernel's note of its size in bytes 464 to 511; then the return address, the
//! ucontext and the siginfo, placed so that the handler's stack is aligned as after a call.
//! (Linux: arch/x86/kernel/signal_64.c `x64_setup_rt_frame`, fpu/signal.c, uapi/asm/sigcontext.h.)

use super::Info;
use super::actions::{Action, SA_ONSTACK};
use crate::host::{self, Registers, Xsave, kvm};
use crate::process::thread::{AltStack, SS_DISABLE};
use crate::sys::{self, Errno};

/// Return address, ucontext (304 bytes) and siginfo, as words.
pub(crate) const WORDS: usize = 1 + 38 + 16;
const FRAME: u64 = (WORDS * 8) as u64;
const UCONTEXT: usize = 1;
const REGISTERS: usize = UCONTEXT + 5;
const MASK: usize = UCONTEXT + 37;
const INFO: usize = UCONTEXT + 38;
/// The last of the words that `struct sigcontext` reserves: which private space was left for the handler.
const SPACE: usize = REGISTERS + 31;
/// Upper half of that word, if there was one.
const SPACE_MAGIC: u64 = 0x6475_6e65;

/// `UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS`
const UC_FLAGS: u64 = 7;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// `SS_ONSTACK`, `SS_AUTODISARM`
const SS_ONSTACK: u32 = 1;
const SS_AUTODISARM: u32 = 1 << 31;
/// Flags that a program may change: CF PF AF ZF SF TF DF OF RF AC, and ID.
pub(crate) const USER_FLAGS: u64 = 0x25_0dd5;
const RED_ZONE: u64 = 128;

/// What a frame says besides registers and the floating-point state.
pub(crate) struct Context {
    pub(crate) info: Info,
    pub(crate) mask: u64,
    /// Of a fault: the vector, the error code and CR2.
    pub(crate) trap: [u64; 3],
    /// The private space that the program was in; 0: none.
    pub(crate) space: u32,
}

/// Bytes of the XSAVE area in a frame, with its end marker.
fn fpu_len() -> u64 {
    u64::from(host::xsave_layout().0) + 4
}

/// Whether `rsp` is on the alternate stack.
fn on(stack: AltStack, rsp: u64) -> bool {
    stack.flags & SS_AUTODISARM == 0
        && stack.len > 0
        && rsp > stack.start
        && rsp - stack.start <= stack.len
}

/// What `sigaltstack` reports as flags.
pub(crate) fn altstack_flags(stack: AltStack, rsp: u64) -> u32 {
    if stack.len == 0 {
        SS_DISABLE
    } else if on(stack, rsp) {
        SS_ONSTACK
    } else {
        stack.flags & SS_AUTODISARM
    }
}

/// Writes a frame for `action`, and sets `registers` to the handler's start.
///
/// # Errors
/// There is no stack to write to.
pub(crate) fn push(
    registers: &mut Registers,
    action: &Action,
    altstack: AltStack,
    fpu: &mut Xsave,
    context: &Context,
) -> Result<(), Errno> {
    let mut top = registers.rsp.wrapping_sub(RED_ZONE);
    let nested = on(altstack, registers.rsp);
    if action.flags & SA_ONSTACK != 0 && altstack.len > 0 && !nested {
        top = altstack.start + altstack.len;
    }
    let fpu_at = top.wrapping_sub(fpu_len()) & !63;
    let frame_at = (fpu_at.wrapping_sub(FRAME) & !15).wrapping_sub(8);
    if nested && frame_at <= altstack.start {
        return Err(Errno(libc::EFAULT));
    }
    write_fpu(fpu, fpu_at)?;

    let mut words = [0u64; WORDS];
    words[0] = action.restorer;
    words[UCONTEXT] = UC_FLAGS;
    words[UCONTEXT + 2] = altstack.start;
    words[UCONTEXT + 3] = u64::from(altstack_flags(altstack, registers.rsp));
    words[UCONTEXT + 4] = altstack.len;
    let r = &*registers;
    let selectors = u64::from(kvm::USER_CS) | u64::from(kvm::USER_SS) << 48;
    let [vector, error, cr2] = context.trap;
    let saved = [
        r.r8,
        r.r9,
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15,
        r.rdi,
        r.rsi,
        r.rbp,
        r.rbx,
        r.rdx,
        r.rax,
        r.rcx,
        r.rsp,
        r.rip,
        r.rflags,
        selectors,
        error,
        vector,
        context.mask,
        cr2,
        fpu_at,
    ];
    words[REGISTERS..][..saved.len()].copy_from_slice(&saved);
    if context.space != 0 {
        words[SPACE] = SPACE_MAGIC << 32 | u64::from(context.space);
    }
    words[MASK] = context.mask;
    words[INFO..].copy_from_slice(&context.info);
    sys::copy_out(as_bytes(&words), frame_at as usize)?;

    let signal = super::signal_of(&context.info);
    registers.rdi = u64::from(signal);
    registers.rsi = frame_at + 8 * INFO as u64;
    registers.rdx = frame_at + 8 * UCONTEXT as u64;
    registers.rax = 0;
    registers.rip = action.handler;
    registers.rsp = frame_at;
    registers.rflags = registers.rflags & !0x1_0500 | 0x202;
    Ok(())
}

/// What `rt_sigreturn` finds.
pub(crate) struct Popped {
    pub(crate) mask: u64,
    pub(crate) altstack: AltStack,
    pub(crate) selectors_valid: bool,
    /// The private space that was left for the handler; 0: none.
    pub(crate) space: u32,
}

/// Reads the frame that a handler returns from, into `registers` and `fpu`.
///
/// # Errors
/// There is no frame to read.
pub(crate) fn pop(registers: &mut Registers, fpu: &mut Xsave) -> Result<Popped, Errno> {
    let frame_at = registers.rsp.wrapping_sub(8);
    let mut words = [0u64; WORDS];
    sys::copy_in(frame_at as usize, as_bytes_mut(&mut words))?;
    let saved = &words[REGISTERS..];
    let flags = saved[17] & USER_FLAGS | registers.rflags & !USER_FLAGS;
    *registers = Registers {
        r8: saved[0],
        r9: saved[1],
        r10: saved[2],
        r11: saved[3],
        r12: saved[4],
        r13: saved[5],
        r14: saved[6],
        r15: saved[7],
        rdi: saved[8],
        rsi: saved[9],
        rbp: saved[10],
        rbx: saved[11],
        rdx: saved[12],
        rax: saved[13],
        rcx: saved[14],
        rsp: saved[15],
        rip: saved[16],
        rflags: flags | 0x202,
    };
    read_fpu(fpu, saved[23])?;
    Ok(Popped {
        mask: words[MASK],
        altstack: AltStack {
            start: words[UCONTEXT + 2],
            flags: words[UCONTEXT + 3] as u32,
            len: words[UCONTEXT + 4],
        },
        selectors_valid: saved[18] as u16 == kvm::USER_CS,
        space: if words[SPACE] >> 32 == SPACE_MAGIC { words[SPACE] as u32 } else { 0 },
    })
}

fn write_fpu(fpu: &mut Xsave, at: u64) -> Result<(), Errno> {
    let (len, features) = host::xsave_layout();
    let note = [FP_XSTATE_MAGIC1, len + 4, features as u32, (features >> 32) as u32, len];
    fpu.region[116..116 + note.len()].copy_from_slice(&note);
    fpu.region[121..128].fill(0);
    // x87 and SSE count as in use always: the kernel writes their part in full.
    fpu.region[128] |= 3;
    let len = len as usize;
    let area = fpu_bytes(fpu);
    sys::copy_out(&area[..len.min(area.len())], at as usize)?;
    sys::copy_out(&FP_XSTATE_MAGIC2.to_ne_bytes(), at as usize + len)
}

fn read_fpu(fpu: &mut Xsave, at: u64) -> Result<(), Errno> {
    initial_fpu(fpu);
    if at == 0 {
        return Ok(());
    }
    let (len, features) = host::xsave_layout();
    // First the part that every frame has, then, if the note says so, the rest.
    sys::copy_in(at as usize, &mut fpu_bytes_mut(fpu)[..512])?;
    let note = &fpu.region[116..121];
    let whole = note[0] == FP_XSTATE_MAGIC1 && (576..=len).contains(&note[4]);
    if whole {
        let len = note[4] as usize;
        sys::copy_in(at as usize, &mut fpu_bytes_mut(fpu)[..len.min(4096)])?;
        fpu.region[128] &= features as u32;
        fpu.region[129] &= (features >> 32) as u32;
        // No compacted format, and nothing reserved.
        fpu.region[130..144].fill(0);
    } else {
        fpu.region[128] = 3;
    }
    fpu.region[116..128].fill(0);
    // Reserved bits of MXCSR are refused by the processor.
    fpu.region[6] &= 0xffff;
    Ok(())
}

/// The state of a fresh program: all exceptions masked, round to nearest.
pub(crate) fn initial_fpu(fpu: &mut Xsave) {
    fpu.region.fill(0);
    fpu.region[0] = 0x37f;
    fpu.region[6] = 0x1f80;
    fpu.region[128] = 3;
}

fn fpu_bytes(fpu: &Xsave) -> &[u8] {
    // SAFETY: an array of words, read as bytes.
    unsafe { core::slice::from_raw_parts(fpu.region.as_ptr().cast(), size_of_val(&fpu.region)) }
}

fn fpu_bytes_mut(fpu: &mut Xsave) -> &mut [u8] {
    let len = size_of_val(&fpu.region);
    // SAFETY: an array of words, for which every pattern of bytes is valid.
    unsafe { core::slice::from_raw_parts_mut(fpu.region.as_mut_ptr().cast(), len) }
}

fn as_bytes(words: &[u64; WORDS]) -> &[u8] {
    // SAFETY: an array of words, read as bytes.
    unsafe { core::slice::from_raw_parts(words.as_ptr().cast(), WORDS * 8) }
}

fn as_bytes_mut(words: &mut [u64; WORDS]) -> &mut [u8] {
    // SAFETY: an array of words, for which every pattern of bytes is valid.
    unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), WORDS * 8) }
}
