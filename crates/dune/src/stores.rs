//! Where a plain store writes to: the few forms that nearly all stores have, decoded in some dozen instructions.
//!
//! The decoder that [`crate::faults`] uses for everything takes hundreds, which is most of what a page fault
//! handled at ring 3 costs. What is not known here is left to it. A wrong answer would do no harm: the caller
//! looks whether the page is protected, and unprotecting one too many costs precision only.
//!
//! (Intel SDM Vol. 2A, chapter 2: prefixes, ModR/M and SIB bytes, REX.)

/// The address of the memory operand of the instruction that `code` begins with. `register` tells a general
/// register by its number in the encoding.
///
/// `None`: it is no plain store (moves, arithmetic, exchanges of general registers and immediates; moves of
/// SSE registers), or it is relative to RIP or to a segment, or `code` ends before it does.
pub(crate) fn address(code: &[u8], register: impl Fn(u8) -> u64) -> Option<u64> {
    let mut rest = code.iter().copied();
    let mut byte = rest.next()?;
    // Operand size, LOCK, REPNE, REP: what they change of the address is nothing.
    while matches!(byte, 0x66 | 0xf0 | 0xf2 | 0xf3) {
        byte = rest.next()?;
    }
    let mut rex = 0;
    if byte & 0xf0 == 0x40 {
        rex = byte;
        byte = rest.next()?;
    }
    // Which fields of ModR/M that extend the opcode make it a store: bit n for /n.
    let forms = match byte {
        0x00 | 0x01 | 0x08 | 0x09 | 0x10 | 0x11 | 0x18 | 0x19 => 0xff, // ADD, OR, ADC, SBB
        0x20 | 0x21 | 0x28 | 0x29 | 0x30 | 0x31 => 0xff,               // AND, SUB, XOR
        0x86..=0x89 => 0xff,                                           // XCHG, MOV
        0x80 | 0x81 | 0x83 => 0x7f, // the same with a constant, but CMP
        0xc6 | 0xc7 => 1,           // MOV of a constant
        0xfe | 0xff => 3,           // INC, DEC
        0x0f => match rest.next()? {
            0x11 | 0x13 | 0x17 | 0x29 | 0x2b => 0xff, // MOVUPS and the like, MOVLPS, MOVHPS, MOVAPS, MOVNTPS
            0x7e | 0x7f | 0xd6 | 0xe7 => 0xff,        // MOVD, MOVDQA, MOVQ, MOVNTDQ
            0xb0 | 0xb1 | 0xc0 | 0xc1 | 0xc3 => 0xff, // CMPXCHG, XADD, MOVNTI
            _ => return None,
        },
        _ => return None,
    };
    let modrm = rest.next()?;
    let (mode, rm) = (modrm >> 6, modrm & 7);
    if forms >> (modrm >> 3 & 7) & 1 == 0 || mode == 3 || (mode, rm) == (0, 5) {
        return None;
    }
    let mut address = 0;
    let mut base = Some(rm);
    if rm == 4 {
        let sib = rest.next()?;
        let index = sib >> 3 & 7 | (rex & 2) << 2;
        if index != 4 {
            address = register(index) << (sib >> 6);
        }
        base = (mode != 0 || sib & 7 != 5).then_some(sib & 7);
    }
    if let Some(base) = base {
        address = address.wrapping_add(register(base | (rex & 1) << 3));
    }
    let offset = match (mode, base) {
        (1, _) => i64::from(rest.next()? as i8),
        (2, _) | (_, None) => {
            let bytes = [rest.next()?, rest.next()?, rest.next()?, rest.next()?];
            i64::from(i32::from_le_bytes(bytes))
        }
        _ => 0,
    };
    Some(address.wrapping_add_signed(offset))
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions, OpKind, Register};

    use super::*;

    fn register(number: u8) -> u64 {
        0x1111_0000_0000 * (u64::from(number) + 1) + 0x123
    }

    /// The same by the decoder that knows everything.
    fn decoded(code: &[u8]) -> Option<u64> {
        let instruction = Decoder::with_ip(64, code, 0, DecoderOptions::NONE).decode();
        let operand = (0..instruction.op_count())
            .find(|operand| instruction.op_kind(*operand) == OpKind::Memory)?;
        instruction.virtual_address(operand, 0, |asked, _, _| match asked {
            Register::ES | Register::CS | Register::SS | Register::DS => Some(0),
            _ => Some(register(asked.full_register().number() as u8)),
        })
    }

    #[test]
    fn whatever_it_answers_is_what_the_decoder_says() {
        let mut random = 1u64;
        let mut next = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as u8
        };
        let (mut answered, mut stores) = (0, 0);
        for round in 0..400_000 {
            let mut code = [0u8; 15];
            code.iter_mut().for_each(|byte| *byte = next());
            // Each first byte and each REX with each byte after it, and whatever else comes about.
            match round % 4 {
                0 => code[0] = (round / 4) as u8,
                1 => code[..2].copy_from_slice(&[0x40 | next() & 15, (round / 4) as u8]),
                2 => code[..2].copy_from_slice(&[0x0f, (round / 4) as u8]),
                _ => {}
            }
            let valid = !Decoder::with_ip(64, &code, 0, DecoderOptions::NONE).decode().is_invalid();
            if let Some(address) = address(&code, register).filter(|_| valid) {
                assert_eq!(Some(address), decoded(&code), "{code:02x?}");
                answered += 1;
                stores += u32::from(matches!(code[0], 0x88 | 0x89 | 0xc6 | 0xc7));
            }
        }
        assert!(answered > 10_000 && stores > 500, "{answered} answers, {stores} moves");
    }

    #[test]
    fn code_that_ends_too_early_and_other_instructions_have_no_answer() {
        let store = [0x48, 0x89, 0x84, 0xc8, 0x10, 0x20, 0x30, 0x40]; // mov [rax + rcx * 8 + 0x40302010], rax
        assert!(address(&store, register).is_some());
        for len in 0..store.len() {
            assert_eq!(address(&store[..len], register), None, "{len} bytes");
        }
        for other in [
            &[0x8b, 0x00][..],         // mov eax, [rax]
            &[0x89, 0xc0],             // mov eax, eax
            &[0x64, 0x89, 0x00],       // mov fs:[rax], eax
            &[0x89, 0x05, 0, 0, 0, 0], // mov [rip], eax
            &[0xff, 0x30],             // push [rax]
            &[0x81, 0x38, 0, 0, 0, 0], // cmp dword ptr [rax], 0
            &[0xa4],                   // movsb
        ] {
            assert_eq!(address(other, register), None, "{other:02x?}");
        }
    }
}
