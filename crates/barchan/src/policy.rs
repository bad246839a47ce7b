//! Cost control: pages that come up dirty time after time are not worth arming.
//!
//! Arming a page that is certain to be written again buys nothing and costs a fault. So a page
//! that was dirty in several collections in a row is *spared*: left unarmed, and reported dirty
//! without asking. After some collections it is tried again: armed, and asked about in the next
//! collection. If it is still dirty it is spared for twice as long, up to a bound.
//!
//! This is bookkeeping only. It can never cause an under-report: a spared page is reported dirty
//! each time. The cost is over-reports: a page that turned cold is reported until it is tried.

use alloc::vec;
use alloc::vec::Vec;

use crate::bitmap;
use crate::{PageRange, RangeError};

/// When a page is hot, and how long it is then left alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HotPagePolicy {
    /// Spare a page after this many dirty collections in a row; 0 spares none.
    pub after: u8,
    /// For how many collections a page is spared the first time.
    pub first_spared: u16,
    /// The most collections for which it is spared; each time in a row doubles until here.
    pub max_spared: u16,
}

impl Default for HotPagePolicy {
    /// Three dirty collections in a row; then 4, 8, 16, 32 collections of rest.
    fn default() -> Self {
        Self { after: 3, first_spared: 4, max_spared: 32 }
    }
}

impl HotPagePolicy {
    /// Never spares a page.
    pub const OFF: Self = Self { after: 0, first_spared: 0, max_spared: 0 };
}

/// What is remembered of one page that was dirty lately.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Page {
    /// Dirty collections in a row, up to the policy's `after`.
    streak: u8,
    /// How often in a row it was spared; the exponent of the rest.
    times: u8,
    /// Collections for which it still rests.
    rest: u16,
    /// It has rested, so it is unarmed and its next report says nothing.
    on_trial: bool,
}

/// The memory of a [`HotPagePolicy`] for one range: 6 bytes and 3 bits a page.
///
/// Allocates when made, not when used.
#[derive(Clone, Debug)]
pub struct HotPages {
    policy: HotPagePolicy,
    range: PageRange,
    pages: Vec<Page>,
    /// Pages that rest now.
    spared: Vec<u64>,
    /// Pages with anything to remember: the others need no look.
    known: Vec<u64>,
    /// Pages that began to rest in this collection, and have to be disarmed.
    newly_spared: Vec<u64>,
}

impl HotPages {
    /// No page of `range` is hot yet.
    #[must_use]
    pub fn new(policy: HotPagePolicy, range: PageRange) -> Self {
        let words = bitmap::words_for(range.pages());
        Self {
            policy,
            range,
            pages: vec![Page::default(); range.pages()],
            spared: vec![0; words],
            known: vec![0; words],
            newly_spared: vec![0; words],
        }
    }

    /// As [`Self::new`], from numbers.
    ///
    /// # Errors
    /// If they are no page range.
    pub fn at(policy: HotPagePolicy, start: usize, len: usize) -> Result<Self, RangeError> {
        Ok(Self::new(policy, PageRange::new(start, len)?))
    }

    /// What it covers.
    #[must_use]
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// The pages that rest, one bit each: not to be asked about, and dirty.
    #[must_use]
    pub fn spared(&self) -> &[u64] {
        &self.spared
    }

    /// The pages that began to rest since [`Self::begin`], which are to be disarmed.
    #[must_use]
    pub fn newly_spared(&self) -> &[u64] {
        &self.newly_spared
    }

    /// Begins a collection: pages whose rest is over are asked about again.
    pub fn begin(&mut self) {
        self.newly_spared.fill(0);
        for word in 0..self.spared.len() {
            let mut resting = self.spared[word];
            while resting != 0 {
                let bit = resting.trailing_zeros() as usize;
                resting &= resting - 1;
                let page = &mut self.pages[word * 64 + bit];
                page.rest = page.rest.saturating_sub(1);
                if page.rest == 0 {
                    page.on_trial = true;
                    self.spared[word] &= !(1 << bit);
                }
            }
        }
    }

    /// Learns which pages were dirty, for whole words of pages from `first` (a multiple of 64) on.
    ///
    /// # Panics
    /// If `first` is no multiple of 64, or `dirty` reaches beyond the range.
    pub fn learn(&mut self, first: usize, dirty: &[u64]) {
        assert!(first % 64 == 0, "learning goes by whole words");
        if self.policy.after == 0 {
            return;
        }
        for (word, &dirty) in (first / 64..).zip(dirty) {
            let mut todo = (dirty | self.known[word]) & !self.spared[word];
            while todo != 0 {
                let bit = todo.trailing_zeros() as usize;
                todo &= todo - 1;
                self.learn_page(word, bit, dirty >> bit & 1 == 1);
            }
        }
    }

    fn learn_page(&mut self, word: usize, bit: usize, dirty: bool) {
        let page = &mut self.pages[word * 64 + bit];
        if !dirty {
            *page = Page::default();
            self.known[word] &= !(1 << bit);
            return;
        }
        self.known[word] |= 1 << bit;
        if core::mem::take(&mut page.on_trial) {
            // It was unarmed; now it is armed, and the next report decides. If it is dirty then,
            // it need not prove itself again.
            return;
        }
        page.streak = page.streak.saturating_add(1).min(self.policy.after);
        if page.streak == self.policy.after {
            let doubled = u32::from(self.policy.first_spared.max(1)) << page.times.min(16);
            page.rest =
                u16::try_from(doubled).unwrap_or(u16::MAX).min(self.policy.max_spared.max(1));
            page.times = page.times.saturating_add(1);
            self.spared[word] |= 1 << bit;
            self.newly_spared[word] |= 1 << bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAGE_SIZE;
    use proptest::prelude::*;

    fn hot(policy: HotPagePolicy, pages: usize) -> HotPages {
        HotPages::at(policy, PAGE_SIZE, pages * PAGE_SIZE).expect("aligned numbers")
    }

    /// A range whose pages are armed and written, as a tracker would have it.
    struct Model {
        hot: HotPages,
        unarmed: u64,
    }

    impl Model {
        fn new(policy: HotPagePolicy) -> Self {
            Self { hot: hot(policy, 64), unarmed: 0 }
        }

        /// Pages are written and collected; the pages that were asked about.
        fn collect(&mut self, written: u64) -> u64 {
            self.hot.begin();
            let asked = !self.hot.spared()[0];
            let reported = (written | self.unarmed) & asked | self.hot.spared()[0];
            assert_eq!(written & !reported, 0, "an under-report");
            self.unarmed &= !asked;
            self.hot.learn(0, &[reported]);
            self.unarmed |= self.hot.newly_spared()[0];
            asked
        }
    }

    #[test]
    fn a_page_dirty_three_times_rests_four_then_eight() {
        let policy = HotPagePolicy { after: 3, first_spared: 4, max_spared: 8 };
        let mut model = Model::new(policy);
        let asked: Vec<bool> = (0..30).map(|_| model.collect(1) & 1 == 1).collect();
        let rests: Vec<usize> =
            asked.split(|&a| a).map(<[bool]>::len).filter(|&rest| rest > 0).collect();
        assert_eq!(&asked[..3], &[true; 3]);
        // A rest of n: not asked for n - 1 collections, armed in the n-th, judged in the next.
        assert_eq!(rests, [3, 7, 7, 4]);
    }

    #[test]
    fn a_page_that_turns_cold_is_found_out_and_forgotten() {
        let mut model = Model::new(HotPagePolicy { after: 2, first_spared: 2, max_spared: 8 });
        model.collect(1);
        model.collect(1);
        assert_eq!(model.hot.newly_spared(), [1]);
        let asked: Vec<u64> = (0..6).map(|_| model.collect(0) & 1).collect();
        assert_eq!(asked, [0, 1, 1, 1, 1, 1]);
        assert_eq!((model.hot.known[0], model.hot.pages[0]), (0, Page::default()));
    }

    #[test]
    fn off_spares_nothing() {
        let mut model = Model::new(HotPagePolicy::OFF);
        assert!((0..100).all(|_| model.collect(u64::MAX) == u64::MAX));
    }

    proptest! {
        #[test]
        fn rests_are_bounded_and_new_ones_are_spared(
            after in 1u8..4, first in 0u16..5, max in 0u16..9,
            rounds in proptest::collection::vec(any::<u64>(), 1..80),
        ) {
            let policy = HotPagePolicy { after, first_spared: first, max_spared: max };
            let mut model = Model::new(policy);
            let mut unasked = [0u16; 64];
            for written in rounds {
                let asked = model.collect(written);
                let hot = &model.hot;
                for (bit, unasked) in unasked.iter_mut().enumerate() {
                    *unasked = if asked >> bit & 1 == 1 { 0 } else { *unasked + 1 };
                    prop_assert!(*unasked < max.max(1));
                }
                prop_assert_eq!(hot.newly_spared()[0] & !hot.spared()[0], 0);
                prop_assert_eq!(hot.newly_spared()[0] & !asked, 0, "resting pages begin no rest");
            }
        }
    }
}
