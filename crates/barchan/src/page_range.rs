//! A checked, page-aligned address range; the only form in which addresses enter the trackers.
//!
//! It says nothing about what is mapped there: that is the promise of whoever calls
//! `Tracker::track`.

use core::fmt;

/// The page size that every source works in, in bytes. Opening a tracker checks it against the
/// running kernel.
pub const PAGE_SIZE: usize = 4096;

/// Page-aligned addresses `[start, start + len)` that do not wrap around.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageRange {
    start: usize,
    pages: usize,
}

/// Why two numbers are not a [`PageRange`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RangeError {
    /// The start or the length is not a multiple of [`PAGE_SIZE`].
    Unaligned {
        /// The start address given.
        start: usize,
        /// The length given, in bytes.
        len: usize,
    },
    /// `start + len` goes beyond the address space.
    Overflow {
        /// The start address given.
        start: usize,
        /// The length given, in bytes.
        len: usize,
    },
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaligned { start, len } => write!(
                f,
                "start {start:#x} and length {len:#x} must both be multiples of the page size {PAGE_SIZE}"
            ),
            Self::Overflow { start, len } => {
                write!(f, "start {start:#x} plus length {len:#x} exceeds the address space")
            }
        }
    }
}

impl core::error::Error for RangeError {}

impl PageRange {
    /// The range of `len` bytes at `start`; may be empty.
    ///
    /// # Errors
    /// If `start` or `len` is not page-aligned, or their sum overflows.
    pub const fn new(start: usize, len: usize) -> Result<Self, RangeError> {
        if start % PAGE_SIZE != 0 || len % PAGE_SIZE != 0 {
            return Err(RangeError::Unaligned { start, len });
        }
        // The very last page is refused too, so that `end()` is always a valid number.
        if start.checked_add(len).is_none() {
            return Err(RangeError::Overflow { start, len });
        }
        Ok(Self { start, pages: len / PAGE_SIZE })
    }

    /// `[start, end)`, for bounds that come from other ranges; empty if `end <= start`.
    pub(crate) const fn between(start: usize, end: usize) -> Self {
        debug_assert!(start % PAGE_SIZE == 0 && end % PAGE_SIZE == 0);
        Self { start, pages: end.saturating_sub(start) / PAGE_SIZE }
    }

    /// The first address.
    #[must_use]
    pub const fn start(&self) -> usize {
        self.start
    }

    /// The first address after the range.
    #[must_use]
    pub const fn end(&self) -> usize {
        self.start + self.pages * PAGE_SIZE
    }

    /// The length in pages.
    #[must_use]
    pub const fn pages(&self) -> usize {
        self.pages
    }

    /// The length in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.pages * PAGE_SIZE
    }

    /// Whether there is no page in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// Whether `other` lies within (an empty range does if its start does, the end included).
    #[must_use]
    pub const fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// The pages in both.
    #[must_use]
    pub const fn intersection(&self, other: &Self) -> Self {
        let start = if self.start > other.start { self.start } else { other.start };
        let end = if self.end() < other.end() { self.end() } else { other.end() };
        Self::between(start, end)
    }

    /// Whether they share a page.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        !self.intersection(other).is_empty()
    }

    /// `count` pages from page `first` of this range on.
    ///
    /// # Panics
    /// If they do not lie within.
    #[must_use]
    pub const fn slice(&self, first: usize, count: usize) -> Self {
        assert!(first <= self.pages && count <= self.pages - first);
        Self { start: self.start + first * PAGE_SIZE, pages: count }
    }

    /// Pieces of at most `pages` pages, each with the index of its first page.
    #[cfg(feature = "std")]
    pub(crate) fn chunks(self, pages: usize) -> impl Iterator<Item = (usize, Self)> {
        (0..self.pages)
            .step_by(pages)
            .map(move |first| (first, self.slice(first, pages.min(self.pages - first))))
    }

    /// The index in this range of the page at `address`, which must not lie before the start.
    #[cfg(feature = "std")]
    #[must_use]
    pub(crate) const fn index_of(&self, address: usize) -> usize {
        debug_assert!(address >= self.start);
        (address - self.start) / PAGE_SIZE
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x} ({} pages)", self.start(), self.end(), self.pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_not_pages() {
        assert_eq!(PageRange::new(1, 4096), Err(RangeError::Unaligned { start: 1, len: 4096 }));
        assert_eq!(PageRange::new(0, 5), Err(RangeError::Unaligned { start: 0, len: 5 }));
        let top = usize::MAX - 4095;
        assert_eq!(PageRange::new(top, 4096), Err(RangeError::Overflow { start: top, len: 4096 }));
        assert!(PageRange::new(top, 0).is_ok_and(|r| r.is_empty()));
    }

    #[test]
    fn set_arithmetic() {
        let a = PageRange::between(0x1000, 0x5000);
        let b = PageRange::between(0x3000, 0x9000);
        assert_eq!(a.intersection(&b), PageRange::between(0x3000, 0x5000));
        assert!(a.overlaps(&b) && !a.contains(&b) && a.contains(&a.slice(1, 3)));
        assert!(!a.overlaps(&PageRange::between(0x5000, 0x6000)));
        #[cfg(feature = "std")]
        assert_eq!(a.index_of(0x2fff), 1);
    }
}
