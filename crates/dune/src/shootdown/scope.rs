//! What has to be flushed.

/// Translations to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of `count` pages of 4 KiB (or of the huge pages that hold them) from page number `first`
    /// on; a page number is a guest-virtual address shifted right by 12.
    Pages {
        /// The first page's number.
        first: u64,
        /// How many.
        count: u64,
    },
    /// Those of the whole address space.
    All,
}

/// Pages from which on flushing everything is cheaper than each. (An `INVLPG` costs some hundred cycles,
/// or an exit where it is intercepted.)
const MOST_PAGES: u64 = 32;

/// Bits of the count in a packed scope.
const COUNT_BITS: u32 = 12;

impl Scope {
    /// Pages, or all if they are so many that it is cheaper.
    #[must_use]
    pub fn pages(first: u64, count: u64) -> Self {
        if count > MOST_PAGES || first >> (64 - COUNT_BITS) != 0 {
            Self::All
        } else {
            Self::Pages { first, count }
        }
    }

    /// What covers both.
    pub(super) fn merged(self, other: Self) -> Self {
        match (self, other) {
            (Self::Pages { count: 0, .. }, scope) | (scope, Self::Pages { count: 0, .. }) => scope,
            (Self::Pages { first: a, count: m }, Self::Pages { first: b, count: n }) => {
                let first = a.min(b);
                let end = a.saturating_add(m).max(b.saturating_add(n));
                Self::pages(first, end - first)
            }
            _ => Self::All,
        }
    }

    /// In one word: 0 pages mean all.
    pub(super) fn pack(self) -> u64 {
        match Self::normal(self) {
            Self::All => 0,
            Self::Pages { first, count } => first << COUNT_BITS | count,
        }
    }

    pub(super) fn unpack(word: u64) -> Self {
        match word & ((1 << COUNT_BITS) - 1) {
            0 => Self::All,
            count => Self::Pages { first: word >> COUNT_BITS, count },
        }
    }

    fn normal(self) -> Self {
        match self {
            Self::Pages { first, count } => Self::pages(first, count),
            Self::All => Self::All,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_the_scope_or_makes_it_wider() {
        for scope in [Scope::All, Scope::pages(0, 1), Scope::pages(0x7_ffff_ffff, 32)] {
            assert_eq!(Scope::unpack(scope.pack()), scope);
        }
        assert_eq!(Scope::unpack(Scope::Pages { first: 1, count: 5000 }.pack()), Scope::All);
        assert_eq!(Scope::unpack(Scope::Pages { first: u64::MAX, count: 1 }.pack()), Scope::All);
    }

    #[test]
    fn merging_covers_both() {
        let (a, b) = (Scope::pages(10, 2), Scope::pages(20, 3));
        assert_eq!(a.merged(b), Scope::pages(10, 13));
        assert_eq!(b.merged(a), Scope::pages(10, 13));
        assert_eq!(a.merged(Scope::pages(1000, 1)), Scope::All);
        assert_eq!(a.merged(Scope::All), Scope::All);
        assert_eq!(a.merged(Scope::pages(999, 0)), a);
    }
}
