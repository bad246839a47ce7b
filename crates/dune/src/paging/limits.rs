//! What a private address space may not do: ranges with their rights, in order.
//!
//! Pure, of fixed size, and without a heap: the monitor has none. Everything that is in no range has all rights that
//! the main space has.

use core::ops::Range;

use super::Rights;

/// Ranges that one space can have.
pub const MAX_LIMITS: usize = 64;

/// What a page may be used for at most; `None`: not even read.
pub type Limit = Option<Rights>;

/// No limit.
pub const UNLIMITED: Limit = Some(Rights { write: true, execute: true });

/// More than [`MAX_LIMITS`] ranges would be needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyLimits;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Part {
    start: u64,
    end: u64,
    limit: Limit,
}

/// Ranges with limits: disjoint, ascending, and as few as possible.
pub struct Limits {
    count: usize,
    parts: [Part; MAX_LIMITS],
}

// Bytes of zeros, so that a static of many takes no room in a file.
const EMPTY: Part = Part { start: 0, end: 0, limit: Some(Rights { write: false, execute: false }) };

impl Limits {
    /// None.
    pub const NONE: Self = Self { count: 0, parts: [EMPTY; MAX_LIMITS] };

    fn parts(&self) -> &[Part] {
        &self.parts[..self.count]
    }

    /// How many ranges have a limit.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether no range has one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The limit of the page at `address`.
    #[must_use]
    pub fn at(&self, address: u64) -> Limit {
        let after = self.parts().partition_point(|part| part.end <= address);
        self.parts().get(after).filter(|part| part.start <= address).map_or(UNLIMITED, |p| p.limit)
    }

    /// The limit of all of `range`, which is not empty; `None` if it is not one and the same.
    #[must_use]
    pub fn over(&self, range: Range<u64>) -> Option<Limit> {
        let after = self.parts().partition_point(|part| part.end <= range.start);
        match self.parts().get(after) {
            None => Some(UNLIMITED),
            Some(part) if part.start >= range.end => Some(UNLIMITED),
            Some(part) if part.start <= range.start && range.end <= part.end => Some(part.limit),
            Some(_) => None,
        }
    }

    /// Gives `range` this limit, whatever it had; [`UNLIMITED`] takes limits away.
    ///
    /// # Errors
    /// [`TooManyLimits`]; then nothing has changed.
    pub fn set(&mut self, range: Range<u64>, limit: Limit) -> Result<(), TooManyLimits> {
        if range.is_empty() {
            return Ok(());
        }
        let mut new = Self::NONE;
        let part = Part { start: range.start, end: range.end, limit };
        for old in self.parts() {
            new.push(Part { end: old.end.min(range.start), ..*old })?;
        }
        new.push(part)?;
        for old in self.parts() {
            new.push(Part { start: old.start.max(range.end), ..*old })?;
        }
        *self = new;
        Ok(())
    }

    /// Adds a part behind all others.
    fn push(&mut self, part: Part) -> Result<(), TooManyLimits> {
        if part.start >= part.end || part.limit == UNLIMITED {
            return Ok(());
        }
        if let Some(last) = self.parts[..self.count].last_mut() {
            if last.end == part.start && last.limit == part.limit {
                last.end = part.end;
                return Ok(());
            }
        }
        *self.parts.get_mut(self.count).ok_or(TooManyLimits)? = part;
        self.count += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const READ: Limit = Some(Rights { write: false, execute: true });

    #[test]
    fn one_range_is_found_and_nothing_around_it() {
        let mut limits = Limits::NONE;
        limits.set(10..20, None).expect("room");
        assert_eq!([9, 10, 19, 20].map(|at| limits.at(at)), [UNLIMITED, None, None, UNLIMITED]);
        assert_eq!(limits.over(0..10), Some(UNLIMITED));
        assert_eq!(limits.over(20..30), Some(UNLIMITED));
        assert_eq!(limits.over(10..20), Some(None));
        assert_eq!(limits.over(5..11), None);
        assert_eq!(limits.over(19..21), None);
        assert_eq!(limits.over(0..100), None);
    }

    #[test]
    fn too_many_change_nothing() {
        let mut limits = Limits::NONE;
        for n in 0..MAX_LIMITS as u64 {
            limits.set(n * 10..n * 10 + 5, None).expect("room");
        }
        assert_eq!(limits.set(2..3, READ), Err(TooManyLimits));
        assert_eq!(limits.at(2), None);
        assert_eq!(limits.set(1000..1001, None), Err(TooManyLimits));
        limits.set(0..1000, None).expect("one range");
        assert_eq!(limits.len(), 1);
    }

    proptest! {
        #[test]
        fn as_an_array_of_pages_has_it(steps in prop::collection::vec((0u64..40, 0u64..20, 0usize..3), 1..40)) {
            let all = [None, READ, UNLIMITED];
            let (mut limits, mut pages) = (Limits::NONE, [UNLIMITED; 64]);
            for (start, len, which) in steps {
                limits.set(start..start + len, all[which]).expect("room");
                pages[start as usize..(start + len) as usize].fill(all[which]);
                for (at, page) in pages.iter().enumerate() {
                    prop_assert_eq!(limits.at(at as u64), *page);
                }
                for (from, to) in [(0, 64), (start as usize, 60), (7, 11), (start as usize, start as usize + 1)] {
                    let same = pages[from..to].iter().all(|page| *page == pages[from]);
                    let found = limits.over(from as u64..to as u64);
                    prop_assert_eq!(found, same.then_some(pages[from]));
                }
                let changes = pages.windows(2).filter(|two| two[0] != two[1]).count();
                prop_assert!(limits.len() <= changes + 1, "as few as possible");
            }
        }
    }
}
