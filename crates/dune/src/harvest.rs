//! Harvest: which pages were written, read from the D bits of leaf page-table entries and cleared.
//!
//! The processor sets bit 6 (D) of the entry that maps a page when it writes to the page (Intel SDM
//! Vol. 3A, §4.8 "Accessed and Dirty Flags"; AMD APM Vol. 2, §5.4.2), with a locked cycle and with
//! no fault. So the dirty pages of a heap are an array scan away. Almost all entries are clean at
//! almost all times; the scan is made for that: 64 entries are or-ed together and left alone unless
//! some D bit is among them.
//!
//! What it is not: it flushes nothing. A processor may keep the translation of a page it has written
//! to, with D set, and then writes again without a look at the entry (SDM §4.10.2.3): **a page whose
//! D bit was cleared is not tracked before the TLBs were flushed**. Hence the result is `#[must_use]`
//! and gives the token that [`crate::shootdown`] redeems.
//! Neither does it walk: the caller finds the tables. Entries of upper levels that do not map a page
//! have no D bit (SDM Table 4-18 and following: bit 6 is ignored) and must not be given.
//!
//! # Concurrency
//!
//! Processors, other harvesters and a mapping thread may change the entries all the while.
//!
//! - An entry is changed only by a compare-exchange of a value that had P and D both set, to the same
//!   value without D. A D bit that is set at any moment is thus seen by exactly one harvester: this
//!   one, or a later one. Entries that are not present, and may hold software's own format, are never
//!   written. A bit that the processor or another thread sets meanwhile makes it try again.
//! - All accesses are relaxed: D bits order nothing. That the *contents* of a reported page are seen
//!   is the flush's business: read them after it, never before.
//! - A D bit that is set while the scan is past its entry is not lost: it stays for the next one.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// Bit 0 of an entry, P: it maps a page.
pub const PRESENT: u64 = 1 << 0;
/// Bit 6 of an entry, D: the page was written to.
pub const DIRTY: u64 = 1 << 6;

const WRITTEN: u64 = PRESENT | DIRTY;

/// Entries to a word of the bitmap.
const CHUNK: usize = 64;

/// What [`harvest`] found and cleared. The TLBs do not know yet.
#[must_use = "the D bits are cleared, and writes through TLBs that still have them are lost: flush"]
#[derive(Debug, PartialEq, Eq)]
pub struct Harvest {
    /// How many entries were dirty, are reported, and are clean now.
    pub cleared: usize,
    /// The first of them, as an index of the array; meaningless if there is none.
    first: usize,
    /// The last of them.
    last: usize,
}

impl Harvest {
    const NONE: Self = Self { cleared: 0, first: usize::MAX, last: 0 };

    /// The indices of the first and last entry that changed, or `None` if nothing did, in which case
    /// no flush is owed.
    #[must_use]
    pub fn span(&self) -> Option<(usize, usize)> {
        (self.cleared > 0).then_some((self.first, self.last))
    }

    fn take(&mut self, base: usize, found: u64) {
        if found != 0 {
            self.cleared += found.count_ones() as usize;
            self.first = self.first.min(base + found.trailing_zeros() as usize);
            self.last = base + (63 - found.leading_zeros() as usize);
        }
    }
}

/// Clears the D bits of all entries that are present and dirty, and sets bit `i` of `bits` for each
/// such entry `i`. Bits that are set already stay.
///
/// # Panics
/// If `bits` has fewer bits than there are entries.
pub fn harvest(entries: &[AtomicU64], bits: &mut [u64]) -> Harvest {
    assert!(bits.len() >= entries.len().div_ceil(CHUNK), "the bitmap is too short");
    let mut sum = Harvest::NONE;
    for_dirty_chunks(entries, |index, chunk| {
        let found = clear(chunk, u64::MAX);
        bits[index] |= found;
        sum.take(index * CHUNK, found);
    });
    sum
}

/// As [`harvest`], and sets the bits of entries that are not present too: what is not known to be clean
/// is dirty. Those are not written.
///
/// An entry that appears meanwhile is found absent, or is looked at as it is.
///
/// # Panics
/// If `bits` has fewer bits than there are entries.
pub fn harvest_unclean(entries: &[AtomicU64], bits: &mut [u64]) -> Harvest {
    assert!(bits.len() >= entries.len().div_ceil(CHUNK), "the bitmap is too short");
    let mut sum = Harvest::NONE;
    for_unclean_chunks(entries, |index, chunk| {
        let mut cleared = 0;
        for (bit, entry) in chunk.iter().enumerate() {
            let value = entry.load(Relaxed);
            if value & PRESENT == 0 {
                bits[index] |= 1 << bit;
            } else if value & DIRTY != 0 {
                // Whatever becomes of it meanwhile, it was dirty.
                bits[index] |= 1 << bit;
                cleared |= u64::from(clear_one(entry)) << bit;
            }
        }
        sum.take(index * CHUNK, cleared);
    });
    sum
}

/// Sets bit `i` of `bits` for each entry `i` that is dirty or not present; changes nothing.
///
/// # Panics
/// If `bits` has fewer bits than there are entries.
pub fn peek_unclean(entries: &[AtomicU64], bits: &mut [u64]) {
    assert!(bits.len() >= entries.len().div_ceil(CHUNK), "the bitmap is too short");
    for_unclean_chunks(entries, |index, chunk| {
        for (bit, entry) in chunk.iter().enumerate() {
            if entry.load(Relaxed) & WRITTEN != PRESENT {
                bits[index] |= 1 << bit;
            }
        }
    });
}

/// As [`harvest`], but only entries whose bit in `among` is set are looked at; the rest keep
/// their D bits. For hosts where a write to a page with a cleared D bit is expensive: there a collector
/// clears what it has use for (old blocks that are alive).
///
/// # Panics
/// If `bits` or `among` has fewer bits than there are entries.
pub fn harvest_among(entries: &[AtomicU64], among: &[u64], bits: &mut [u64]) -> Harvest {
    let words = entries.len().div_ceil(CHUNK);
    assert!(bits.len() >= words, "the bitmap is too short");
    assert!(among.len() >= words, "the bitmap of what is asked for is too short");
    let mut sum = Harvest::NONE;
    for_dirty_chunks(entries, |index, chunk| {
        let found = clear(chunk, among[index]);
        bits[index] |= found;
        sum.take(index * CHUNK, found);
    });
    sum
}

/// Sets bit `i` of `bits` for each entry `i` that is present and dirty, clears nothing, and returns
/// how many there are.
///
/// # Panics
/// If `bits` has fewer bits than there are entries.
pub fn peek(entries: &[AtomicU64], bits: &mut [u64]) -> usize {
    assert!(bits.len() >= entries.len().div_ceil(CHUNK), "the bitmap is too short");
    let mut sum = 0;
    for_dirty_chunks(entries, |index, chunk| {
        let found = written(chunk);
        bits[index] |= found;
        sum += found.count_ones() as usize;
    });
    sum
}

/// How many entries are present and dirty.
#[must_use]
pub fn count(entries: &[AtomicU64]) -> usize {
    let mut sum = 0;
    for_dirty_chunks(entries, |_, chunk| sum += written(chunk).count_ones() as usize);
    sum
}

/// The entries of `chunk` that are present and dirty, as bits.
fn written(chunk: &[AtomicU64]) -> u64 {
    let mut found = 0;
    for (bit, entry) in chunk.iter().enumerate() {
        if entry.load(Relaxed) & WRITTEN == WRITTEN {
            found |= 1 << bit;
        }
    }
    found
}

/// Clears the D bits of those entries of `chunk` that are present, dirty and in `among`; returns them.
fn clear(chunk: &[AtomicU64], among: u64) -> u64 {
    let mut left = written(chunk) & among;
    let mut found = 0;
    while left != 0 {
        let bit = left.trailing_zeros();
        left &= left - 1;
        if clear_one(&chunk[bit as usize]) {
            found |= 1 << bit;
        }
    }
    found
}

/// Clears the D bit if the entry is present and dirty; whether this call did.
fn clear_one(entry: &AtomicU64) -> bool {
    let mut value = entry.load(Relaxed);
    while value & WRITTEN == WRITTEN {
        match entry.compare_exchange_weak(value, value & !DIRTY, Relaxed, Relaxed) {
            Ok(_) => return true,
            Err(now) => value = now,
        }
    }
    false
}

/// Calls `f` with each run of 64 entries (the last may be shorter) in which some bit 6 is set, and its
/// number.
fn for_dirty_chunks(entries: &[AtomicU64], f: impl FnMut(usize, &[AtomicU64])) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        let some_dirty = |chunk: &[AtomicU64; CHUNK]| unsafe { avx2::some_dirty(chunk) };
        return for_chunks(entries, some_dirty, f);
    }
    for_chunks(entries, some_dirty, f);
}

/// Calls `f` with each run of 64 entries (the last may be shorter) in which some entry has bit 6 or
/// lacks bit 0, and its number.
fn for_unclean_chunks(entries: &[AtomicU64], f: impl FnMut(usize, &[AtomicU64])) {
    for_chunks(entries, some_unclean, f);
}

/// Whether some entry has bit 6 or lacks bit 0: one load and two operations an entry.
fn some_unclean(chunk: &[AtomicU64; CHUNK]) -> bool {
    chunk.iter().fold(0, |all, entry| all | (entry.load(Relaxed) ^ PRESENT)) & WRITTEN != 0
}

#[inline]
fn for_chunks(
    entries: &[AtomicU64],
    some_dirty: impl Fn(&[AtomicU64; CHUNK]) -> bool,
    mut f: impl FnMut(usize, &[AtomicU64]),
) {
    let mut chunks = entries.chunks_exact(CHUNK);
    let mut index = 0;
    for chunk in &mut chunks {
        if <&[AtomicU64; CHUNK]>::try_from(chunk).is_ok_and(&some_dirty) {
            f(index, chunk);
        }
        index += 1;
    }
    if !chunks.remainder().is_empty() {
        f(index, chunks.remainder());
    }
}

/// Whether some entry has bit 6, present or not: one load and one OR an entry.
fn some_dirty(chunk: &[AtomicU64; CHUNK]) -> bool {
    chunk.iter().fold(0, |all, entry| all | entry.load(Relaxed)) & DIRTY != 0
}

/// Four entries at a time.
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod avx2 {
    use super::{AtomicU64, CHUNK, DIRTY};

    /// As the portable function.
    ///
    /// Why assembly: others write the entries meanwhile, so no ordinary vector load may read them.
    /// Here each 8-byte element is read once and not torn (SDM §9.1.1: a quadword on its natural
    /// boundary; the vector loads of processors with AVX are atomic for each 16 bytes), which is
    /// what relaxed loads, one an element, would do.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn some_dirty(chunk: &[AtomicU64; CHUNK]) -> bool {
        let none: u8;
        // SAFETY: 1. It reads the 512 bytes of `chunk` and writes no memory. 2. AVX2 is there.
        // 3. The registers it changes are declared, and so are the flags.
        unsafe {
            core::arch::asm!(
                "vpbroadcastq {mask}, {bit}",
                "vmovdqu {a}, [{p}]",
                "vmovdqu {b}, [{p} + 32]",
                "vpor {a}, {a}, [{p} + 64]",
                "vpor {b}, {b}, [{p} + 96]",
                "vpor {a}, {a}, [{p} + 128]",
                "vpor {b}, {b}, [{p} + 160]",
                "vpor {a}, {a}, [{p} + 192]",
                "vpor {b}, {b}, [{p} + 224]",
                "vpor {a}, {a}, [{p} + 256]",
                "vpor {b}, {b}, [{p} + 288]",
                "vpor {a}, {a}, [{p} + 320]",
                "vpor {b}, {b}, [{p} + 352]",
                "vpor {a}, {a}, [{p} + 384]",
                "vpor {b}, {b}, [{p} + 416]",
                "vpor {a}, {a}, [{p} + 448]",
                "vpor {b}, {b}, [{p} + 480]",
                "vpor {a}, {a}, {b}",
                "vptest {a}, {mask}",
                "setz {none}",
                p = in(reg) chunk.as_ptr(),
                bit = in(xmm_reg) f64::from_bits(DIRTY),
                mask = out(ymm_reg) _,
                a = out(ymm_reg) _,
                b = out(ymm_reg) _,
                none = out(reg_byte) none,
                options(nostack, readonly),
            );
        }
        none == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_scans_see_a_bit_anywhere_in_a_chunk() {
        let chunk = [const { AtomicU64::new(!DIRTY) }; CHUNK];
        let see = |expected: bool| {
            assert_eq!(some_dirty(&chunk), expected);
            #[cfg(not(miri))]
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has AVX2.
                assert_eq!(unsafe { avx2::some_dirty(&chunk) }, expected);
            } else {
                println!("skipped: no AVX2, so the scan with it is not tried");
            }
        };
        see(false);
        for entry in &chunk {
            entry.store(DIRTY, Relaxed);
            see(true);
            entry.store(!DIRTY, Relaxed);
        }
    }
}
