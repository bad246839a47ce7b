//! Bit arithmetic on caller-owned page bitmaps (`[u64]`, least significant bit first).
//!
//! Why free functions on slices and no bitmap type: the memory belongs to the caller (often a
//! collector that must not allocate), and the same words cross the C interface. This module knows
//! nothing of addresses; [`crate::PageRange`] does the translation.

/// How many words a bitmap needs to hold `pages` bits.
#[must_use]
pub const fn words_for(pages: usize) -> usize {
    pages.div_ceil(64)
}

/// The bits of one word that lie in `[first, end)`, both counted from that word's bit 0.
const fn mask(first: usize, end: usize) -> u64 {
    debug_assert!(first < end && end <= 64);
    (u64::MAX >> (64 - (end - first))) << first
}

/// Calls `f(word index, mask)` for every word that the run `[first, first + count)` touches.
fn for_words(first: usize, count: usize, mut f: impl FnMut(usize, u64)) {
    let end = first + count;
    let mut bit = first;
    while bit < end {
        let word = bit / 64;
        let stop = end.min((word + 1) * 64);
        f(word, mask(bit % 64, stop - word * 64));
        bit = stop;
    }
}

/// Sets `count` bits from bit `first` on.
///
/// # Panics
/// If the run does not lie within `bits`.
pub fn set_run(bits: &mut [u64], first: usize, count: usize) {
    for_words(first, count, |word, mask| bits[word] |= mask);
}

/// Clears `count` bits from bit `first` on.
///
/// # Panics
/// If the run does not lie within `bits`.
pub fn clear_run(bits: &mut [u64], first: usize, count: usize) {
    for_words(first, count, |word, mask| bits[word] &= !mask);
}

/// Whether bit `index` is set.
///
/// # Panics
/// If `index` lies beyond `bits`.
#[must_use]
pub fn get(bits: &[u64], index: usize) -> bool {
    bits[index / 64] >> (index % 64) & 1 == 1
}

/// The number of set bits among the first `pages`.
///
/// # Panics
/// If `bits` is shorter than `pages`.
#[must_use]
pub fn count(bits: &[u64], pages: usize) -> usize {
    let mut total = 0;
    for_words(0, pages, |word, mask| total += (bits[word] & mask).count_ones() as usize);
    total
}

/// The first bit in `[from, pages)` that has the value `set`, or `pages` if there is none.
fn find(bits: &[u64], from: usize, pages: usize, set: bool) -> usize {
    let mut bit = from;
    while bit < pages {
        let word = if set { bits[bit / 64] } else { !bits[bit / 64] };
        let rest = word >> (bit % 64);
        if rest != 0 {
            return pages.min(bit + rest.trailing_zeros() as usize);
        }
        bit = (bit / 64 + 1) * 64;
    }
    pages
}

/// The maximal runs of equal bits `set` among the first `pages`, as `(first bit, count)`.
///
/// # Panics
/// If `bits` is shorter than `pages` (when the iterator gets there).
pub fn runs_of(bits: &[u64], pages: usize, set: bool) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    core::iter::from_fn(move || {
        let first = find(bits, at, pages, set);
        if first >= pages {
            at = pages;
            return None;
        }
        let end = find(bits, first, pages, !set);
        at = end;
        Some((first, end - first))
    })
}

/// The maximal runs of set bits among the first `pages`, as `(first bit, count)`.
///
/// # Panics
/// As [`runs_of`].
pub fn runs(bits: &[u64], pages: usize) -> impl Iterator<Item = (usize, usize)> {
    runs_of(bits, pages, true)
}

/// ORs the `count` first bits of `src` into `dst` from bit `at` on; returns how many bits of `src`
/// were set.
///
/// # Panics
/// If either run does not lie within its bitmap.
pub fn or_into(dst: &mut [u64], at: usize, src: &[u64], count: usize) -> usize {
    let mut total = 0;
    for_words(0, count, |word, mask| {
        let bits = src[word] & mask;
        total += bits.count_ones() as usize;
        let first = at + word * 64;
        let shift = first % 64;
        if bits << shift != 0 {
            dst[first / 64] |= bits << shift;
        }
        if shift != 0 && bits >> (64 - shift) != 0 {
            dst[first / 64 + 1] |= bits >> (64 - shift);
        }
    });
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(bits: &[u64], pages: usize) -> Vec<bool> {
        (0..pages).map(|i| get(bits, i)).collect()
    }

    proptest! {
        #[test]
        fn set_and_clear_touch_exactly_their_run(
            words in proptest::collection::vec(any::<u64>(), 5), first in 0usize..300, n in 0usize..320,
        ) {
            let count = n.min(320 - first);
            let (mut set, mut clear) = (words.clone(), words.clone());
            set_run(&mut set, first, count);
            clear_run(&mut clear, first, count);
            for i in 0..320 {
                let inside = (first..first + count).contains(&i);
                prop_assert_eq!(get(&set, i), inside || get(&words, i));
                prop_assert_eq!(get(&clear, i), !inside && get(&words, i));
            }
        }

        #[test]
        fn runs_rebuild_the_bitmap(
            words in proptest::collection::vec(any::<u64>(), 4), pages in 0usize..=256,
        ) {
            let mut rebuilt = vec![0; 4];
            let mut last_end = None;
            for (first, n) in runs(&words, pages) {
                prop_assert!(n > 0);
                prop_assert!(last_end.is_none_or(|end| end < first), "runs must be maximal");
                last_end = Some(first + n);
                set_run(&mut rebuilt, first, n);
            }
            prop_assert_eq!(naive(&rebuilt, pages), naive(&words, pages));
            let zeros: usize = runs_of(&words, pages, false).map(|(_, n)| n).sum();
            prop_assert_eq!(zeros + count(&words, pages), pages);
        }

        #[test]
        fn or_into_shifts(
            src in proptest::collection::vec(any::<u64>(), 3), at in 0usize..200, n in 0usize..=192,
            old in proptest::collection::vec(any::<u64>(), 8),
        ) {
            let mut dst = old.clone();
            let total = or_into(&mut dst, at, &src, n);
            prop_assert_eq!(total, count(&src, n));
            for i in 0..512 {
                let hit = i >= at && i - at < n && get(&src, i - at);
                prop_assert_eq!(get(&dst, i), get(&old, i) || hit);
            }
        }
    }

    #[test]
    fn or_into_needs_no_word_beyond_the_last_set_bit() {
        let mut dst = [0u64; 1];
        assert_eq!(or_into(&mut dst, 60, &[0b1111], 4), 4);
        assert_eq!(dst[0], 0b1111 << 60);
    }
}
