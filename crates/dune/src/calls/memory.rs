//! Calls that change mappings.
//!
//! Entries go *before* the kernel takes pages or rights away, under the lock that a page fault takes too:
//! so no fault brings one back meanwhile, and the kernel's own notice to the virtual machine, which
//! flushes the TLBs, comes after. A call that fails costs a few faults, nothing else.

use core::ops::Range;

use super::program_break::trim;
use crate::paging::USER_END;
use crate::space::{SPACE, Space, arena};
use crate::sys;

const EINVAL: i64 = -(libc::EINVAL as i64);
const ENOMEM: i64 = -(libc::ENOMEM as i64);

pub(super) fn make(nr: i64, a: [u64; 6]) -> i64 {
    // SAFETY: the program asked for it, and it does not touch the arena: `touches_arena`. None of
    // these calls waits for a signal.
    unsafe { sys::raw(nr, a) }
}

fn touches_arena(start: u64, len: u64) -> bool {
    let arena = arena::range();
    start < arena.end as u64 && start.saturating_add(len) > arena.start as u64
}

/// The pages of `range` are about to go, or to be others.
fn take(space: &mut Space, range: Range<u64>) {
    trim(space, range.clone());
    space.zap(range);
}

/// New rights to a range: entries at once, so that no fault is needed. Failing costs faults.
fn granted(space: &mut Space, result: i64, len: u64, prot: u64) {
    if result > 0 {
        let _ = space.mapped(result as u64, len, prot as i32);
    }
}

pub(super) fn mmap(a: [u64; 6]) -> i64 {
    let [start, len, prot, flags, ..] = a;
    let fixed = flags & libc::MAP_FIXED as u64 != 0;
    if fixed && touches_arena(start, len) {
        return ENOMEM;
    }
    if start != 0 {
        trim(&mut SPACE.lock(), start..start.saturating_add(len));
    }
    if !fixed {
        // Takes nothing from anybody, so needs no lock, and may take long.
        let result = make(libc::SYS_mmap, a);
        if (0..USER_END as i64).contains(&result) && flags & libc::MAP_GROWSDOWN as u64 == 0 {
            granted_later(result, len, prot, flags);
        }
        return result;
    }
    let mut space = SPACE.lock();
    space.zap(start..start.saturating_add(len));
    let result = make(libc::SYS_mmap, a);
    if flags & libc::MAP_ANONYMOUS as u64 != 0 {
        granted(&mut space, result, len, prot);
    }
    result
}

/// As [`granted`], for a mapping made without the lock: another thread may have changed it since, so
/// the kernel is asked by faults, unless it is certain what it says.
fn granted_later(start: i64, len: u64, prot: u64, flags: u64) {
    let mut space = SPACE.lock();
    if flags & libc::MAP_ANONYMOUS as u64 != 0 && flags & libc::MAP_PRIVATE as u64 != 0 {
        let sparse =
            libc::MAP_STACK | libc::MAP_NORESERVE | libc::MAP_HUGETLB | libc::MAP_GROWSDOWN;
        if start > 0 && prot & libc::PROT_WRITE as u64 != 0 && flags & sparse as u64 == 0 {
            let _ = space.mapped_to_write(start as u64, len, prot as i32);
        } else {
            granted(&mut space, start, len, prot);
        }
    }
}

pub(super) fn munmap(a: [u64; 6]) -> i64 {
    if touches_arena(a[0], a[1]) {
        return EINVAL;
    }
    let mut space = SPACE.lock();
    take(&mut space, a[0]..a[0].saturating_add(a[1]));
    make(libc::SYS_munmap, a)
}

pub(super) fn mprotect(nr: u64, a: [u64; 6]) -> i64 {
    let [start, len, prot, ..] = a;
    if touches_arena(start, len) {
        return ENOMEM;
    }
    let mut space = SPACE.lock();
    trim(&mut space, start..start.saturating_add(len));
    let plain = prot & !7 == 0;
    // PROT_GROWSDOWN and PROT_GROWSUP reach beyond the range.
    space.zap(if plain { start..start.saturating_add(len) } else { 0..USER_END });
    let result = make(nr as i64, a);
    if result == 0 && plain {
        granted(&mut space, start as i64, len, prot);
    }
    result
}

pub(super) fn mremap(a: [u64; 6]) -> i64 {
    let [start, old_len, new_len, flags, new, _] = a;
    if touches_arena(start, old_len.max(new_len)) {
        return -(libc::EFAULT as i64);
    }
    let fixed = flags & libc::MREMAP_FIXED as u64 != 0;
    if fixed && touches_arena(new, new_len) {
        return ENOMEM;
    }
    let mut space = SPACE.lock();
    trim(&mut space, start..start.saturating_add(old_len.max(new_len)));
    space.zap(start..start.saturating_add(old_len));
    if fixed {
        take(&mut space, new..new.saturating_add(new_len));
    }
    make(libc::SYS_mremap, a)
}

/// The arguments of madvise, with MADV_FREE made MADV_DONTNEED where the kernel would take it.
///
/// It allows that. Pages that are free to take are taken when memory is short, which would be a write at
/// any time that nobody sees.
pub(super) fn advice(mut a: [u64; 6]) -> [u64; 6] {
    if a[2] as i32 == libc::MADV_FREE && make(libc::SYS_madvise, a) == 0 {
        a[2] = libc::MADV_DONTNEED as u64;
    }
    a
}

/// Rare ones, whose ranges only the kernel knows.
pub(super) fn other(nr: u64, a: [u64; 6]) -> i64 {
    if touches_arena(a[0], 1) {
        return EINVAL;
    }
    let mut space = SPACE.lock();
    take(&mut space, 0..USER_END);
    make(nr as i64, a)
}
