//! The program break, which allocators move a few pages at a time.
//!
//! Where the host shadows page tables, each such step costs a dozen events for first touches. So once the heap has grown to
//! [`LARGE_HEAP`], the kernel's break is kept at a multiple of 2 MiB, in front of the program's, and what is between gets
//! large pages. When the program moves its break down, the pages it gives up are made zero rather than taken away, but
//! for whole large pages.
//!
//! The price: up to 2 MiB behind the program's break can be accessed where that would be a fault natively. Whoever maps,
//! unmaps or protects something there finds it as it would be: the kernel's break goes back first ([`trim`]).

use core::ops::Range;

use super::memory::make;
use crate::paging::{PAGE, TABLE_SPAN};
use crate::process::run::Guest;
use crate::space::{SPACE, Space};

/// Bytes that the break has moved up by before it is kept in front.
const LARGE_HEAP: u64 = 4 << 20;

/// Where the break is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Break {
    /// The first that the program had, as far as is known; 0: not known.
    first: u64,
    /// The program's, if the kernel's is in front of it; else 0.
    program: u64,
    /// The kernel's, if it is in front.
    kernel: u64,
}

impl Break {
    pub(crate) const UNKNOWN: Self = Self { first: 0, program: 0, kernel: 0 };

    /// What is between the program's break and the kernel's: nothing, as far as the program is concerned.
    pub(crate) fn between(self) -> Range<u64> {
        self.program.next_multiple_of(PAGE)..self.kernel
    }
}

/// Sets the kernel's break, or asks for it (0).
fn kernels(value: u64) -> u64 {
    make(libc::SYS_brk, [value, 0, 0, 0, 0, 0]) as u64
}

/// `range` is about to be changed: if it reaches behind the program's break, the kernel's goes back there.
pub(super) fn trim(space: &mut Space, range: Range<u64>) {
    let between = space.program_break.between();
    if range.start < between.end && range.end > between.start && !between.is_empty() {
        let program = space.program_break.program;
        space.zap(between);
        kernels(program);
        (space.program_break.program, space.program_break.kernel) = (0, 0);
    }
}

pub(super) fn brk(guest: &mut Guest<'_>, wanted: u64) -> i64 {
    let mut guard = SPACE.lock();
    let space = &mut *guard;
    let state = space.program_break;
    let before = if state.program == 0 { kernels(0) } else { state.program };
    if state.first == 0 {
        space.program_break.first = before;
    }
    let result = if wanted > before {
        up(guest, space, before, wanted)
    } else if wanted < before && wanted != 0 {
        down(space, before, wanted)
    } else {
        before
    };
    result as i64
}

fn up(guest: &mut Guest<'_>, space: &mut Space, before: u64, wanted: u64) -> u64 {
    let Break { first, kernel, .. } = space.program_break;
    let large = space.makes_pages() && before - first >= LARGE_HEAP;
    let mut after = wanted;
    if kernel != 0 && wanted <= kernel {
        space.program_break.program = wanted;
    } else {
        let old = if kernel == 0 { before } else { kernel };
        let target = wanted.next_multiple_of(TABLE_SPAN);
        if large && kernels(target) == target {
            space.forget();
            (space.program_break.program, space.program_break.kernel) = (wanted, target);
            let mut block = old.next_multiple_of(TABLE_SPAN);
            while block < target {
                if let Ok(Some(link)) = space.make_large(block) {
                    guest.store(link);
                }
                block += TABLE_SPAN;
            }
        } else {
            // As natively.
            trim(space, 0..u64::MAX);
            after = kernels(wanted);
        }
    }
    let (old, new) = (before.next_multiple_of(PAGE), after.next_multiple_of(PAGE));
    if new > old && !space.is_large(old..new) {
        let _ = space.mapped_to_write(old, new - old, libc::PROT_READ | libc::PROT_WRITE);
    }
    after
}

fn down(space: &mut Space, before: u64, wanted: u64) -> u64 {
    let kernel = space.program_break.kernel;
    let given_up = wanted.next_multiple_of(PAGE)..before.next_multiple_of(PAGE);
    let target = wanted.next_multiple_of(TABLE_SPAN);
    let kept = given_up.start..given_up.end.min(target);
    let in_front = kernel != 0 && wanted >= space.program_break.first + LARGE_HEAP;
    if !in_front || !space.makes_pages() || !space.wipe(kept) {
        trim(space, 0..u64::MAX);
        space.zap(given_up);
        return kernels(wanted);
    }
    if target < kernel {
        space.zap(target..kernel);
        kernels(target);
        space.program_break.kernel = target;
    }
    space.program_break.program = wanted;
    wanted
}
