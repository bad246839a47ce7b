//! The owning handle of a tracked range.

use core::mem::ManuallyDrop;
use std::sync::Arc;

use crate::tracker::Shared;
use crate::write_tracker::{check_bitmap, check_inside};
use crate::{HotPages, PageRange, RegionError, Source, WriteTracker, bitmap};

/// Pages collected at a time when hot pages are spared (4 KiB of stack for their bits).
const CHUNK: usize = 16384;

/// A tracked range; dropping it ends the tracking and leaves every page writable. Pages that were unmapped
/// by then, with nothing else in their place, do no harm.
///
/// One exception, under mprotect: in a process that is out of mappings (`vm.max_map_count`) some pages may have to
/// stay read-only when their region is dropped. Stores to them go on working, as if the region were there. But a fault of
/// whatever else is mapped at these addresses later is then taken for one of theirs, and what is read-only there by the
/// program's will becomes writable. It is made up for by the next [`Tracker::track`](crate::Tracker::track),
/// [`Self::resize`] or drop of any region that finds room: so track or drop one when there is.
///
/// The methods that take `&self` are those of [`WriteTracker`], which states their semantics; they
/// neither allocate nor take a lock that a stopped thread could hold.
pub struct Region {
    inner: ManuallyDrop<Box<dyn WriteTracker>>,
    shared: Arc<Shared>,
}

/// How far [`Region::collect_ranges`] came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Collected {
    /// How many entries of the output were filled.
    pub filled: usize,
    /// What was not looked at for want of room, and is as dirty as before.
    pub rest: PageRange,
}

impl Region {
    pub(crate) fn new(inner: Box<dyn WriteTracker>, shared: Arc<Shared>) -> Self {
        Self { inner: ManuallyDrop::new(inner), shared }
    }

    /// The source behind it.
    #[must_use]
    pub fn source(&self) -> Source {
        self.inner.source()
    }

    /// The bounds.
    #[must_use]
    pub fn range(&self) -> PageRange {
        self.inner.range()
    }

    /// Makes the pages of `range` clean; see [`WriteTracker::arm`].
    ///
    /// # Errors
    /// If `range` is not within the bounds, or the kernel refuses.
    pub fn arm(&self, range: PageRange) -> Result<(), RegionError> {
        self.inner.arm(range)
    }

    /// Makes those pages of `range` clean whose bit in `among` is set; see [`WriteTracker::arm_among`].
    ///
    /// # Errors
    /// If `range` is not within the bounds, `among` is too small, or the kernel refuses.
    pub fn arm_among(&self, range: PageRange, among: &[u64]) -> Result<(), RegionError> {
        check_bitmap(self.range(), range, among)?;
        self.inner.arm_among(range, among)
    }

    /// Makes the pages of `range` dirty until armed again; see [`WriteTracker::disarm`].
    ///
    /// # Errors
    /// If `range` is not within the bounds, or the kernel refuses.
    pub fn disarm(&self, range: PageRange) -> Result<(), RegionError> {
        self.inner.disarm(range)
    }

    /// ORs the dirty pages of `range` into `bits`; see [`WriteTracker::peek`].
    ///
    /// # Errors
    /// If `range` is not within the bounds, or `bits` is too small.
    pub fn peek(&self, range: PageRange, bits: &mut [u64]) -> Result<(), RegionError> {
        self.inner.peek(range, bits)
    }

    /// ORs the dirty pages of `range` into `bits` and arms exactly them; returns their number. See
    /// [`WriteTracker::collect_and_reset`].
    ///
    /// # Errors
    /// If `range` is not within the bounds, `bits` is too small, or the kernel refuses.
    pub fn collect_and_reset(
        &self,
        range: PageRange,
        bits: &mut [u64],
    ) -> Result<usize, RegionError> {
        self.inner.collect_and_reset(range, bits)
    }

    /// As [`Self::collect_and_reset`], with nobody writing; see
    /// [`WriteTracker::collect_and_reset_stopped`].
    ///
    /// # Safety
    /// As [`WriteTracker::collect_and_reset_stopped`].
    ///
    /// # Errors
    /// As [`Self::collect_and_reset`].
    pub unsafe fn collect_and_reset_stopped(
        &self,
        range: PageRange,
        bits: &mut [u64],
    ) -> Result<usize, RegionError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.inner.collect_and_reset_stopped(range, bits) }
    }

    /// As [`Self::collect_and_reset`] over what `hot` covers, sparing the pages that `hot` found to
    /// be dirty time after time: those are left unarmed and reported dirty without asking.
    ///
    /// `hot` is of one region and has to see each of its collections to learn from them.
    ///
    /// # Errors
    /// As [`Self::collect_and_reset`]. Then every page of the range is dirty as far as is known,
    /// and `hot` has learnt nothing.
    pub fn collect_and_reset_with(
        &self,
        hot: &mut HotPages,
        bits: &mut [u64],
    ) -> Result<usize, RegionError> {
        let range = hot.range();
        check_bitmap(self.range(), range, bits)?;
        let mut dirty = 0;
        hot.begin();
        for first_chunk in (0..range.pages()).step_by(CHUNK) {
            // By chunks on the stack: `bits` may hold pages from before, which `hot` must not
            // take for news.
            let chunk = range.slice(first_chunk, CHUNK.min(range.pages() - first_chunk));
            let mut news = [0u64; CHUNK / 64];
            let (spared, words) = (hot.spared(), bitmap::words_for(chunk.pages()));
            let spared = &spared[first_chunk / 64..][..words];
            news[..words].copy_from_slice(spared);
            for (first, count) in bitmap::runs_of(spared, chunk.pages(), false) {
                let mut part = [0u64; CHUNK / 64];
                self.inner.collect_and_reset(chunk.slice(first, count), &mut part)?;
                bitmap::or_into(&mut news, first, &part, count);
            }
            dirty += bitmap::or_into(bits, first_chunk, &news, chunk.pages());
            hot.learn(first_chunk, &news[..words]);
        }
        for (first, count) in bitmap::runs(hot.newly_spared(), range.pages()) {
            self.inner.disarm(range.slice(first, count))?;
        }
        Ok(dirty)
    }

    /// As [`Self::collect_and_reset`], with the dirty pages as maximal ranges in `out`.
    ///
    /// Stops when `out` may not hold the answer for more pages; [`Collected::rest`] is where to go
    /// on. With `out` empty it does nothing.
    ///
    /// # Errors
    /// As [`Self::collect_and_reset`]; then every page of `range` has to be taken as dirty.
    pub fn collect_ranges(
        &self,
        range: PageRange,
        out: &mut [PageRange],
    ) -> Result<Collected, RegionError> {
        const WORDS: usize = 64;
        check_inside(self.range(), range)?;
        let (mut filled, mut at) = (0, 0);
        while at < range.pages() && filled < out.len() {
            // n pages have at most ceil(n / 2) runs.
            let room = 2 * (out.len() - filled);
            let part = range.slice(at, (range.pages() - at).min(room).min(WORDS * 64));
            let mut bits = [0; WORDS];
            self.inner.collect_and_reset(part, &mut bits)?;
            for (first, count) in bitmap::runs(&bits, part.pages()) {
                let run = part.slice(first, count);
                match filled.checked_sub(1).map(|last| &mut out[last]) {
                    Some(last) if last.end() == run.start() => {
                        *last = PageRange::between(last.start(), run.end());
                    }
                    _ => {
                        out[filled] = run;
                        filled += 1;
                    }
                }
            }
            at += part.pages();
        }
        Ok(Collected { filled, rest: range.slice(at, range.pages() - at) })
    }

    /// Says that mappings within `range` were replaced; see [`WriteTracker::remapped`].
    ///
    /// # Errors
    /// If `range` is not within the bounds, or the kernel refuses. Then take its pages as dirty, until a later call
    /// succeeds.
    pub fn remapped(&self, range: PageRange) -> Result<(), RegionError> {
        self.inner.remapped(range)
    }

    /// Changes the bounds: pages in both keep their state, new pages are unarmed. Until it returns, the pages of the
    /// old and of the new bounds are refused to other regions.
    ///
    /// # Safety
    /// As [`crate::Tracker::track`], for the new bounds.
    ///
    /// # Errors
    /// If the new bounds are empty or overlap another region (as for [`crate::Tracker::track`]), or the kernel
    /// refuses; the bounds are then as before.
    pub unsafe fn resize(&mut self, bounds: PageRange) -> Result<(), RegionError> {
        let old = self.range();
        if bounds == old {
            return Ok(());
        }
        self.shared.widen(old, bounds)?;
        // SAFETY: the caller's promises are the same.
        let resized = unsafe { self.inner.resize(bounds) };
        // Only now may somebody else track the pages that are left out.
        self.shared.settle(old, self.range());
        resized
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let range = self.range();
        // SAFETY: this is the only place that drops it, and it is not used afterwards.
        unsafe { ManuallyDrop::drop(&mut self.inner) };
        // Only now may somebody else track the pages.
        self.shared.release(range);
    }
}

impl core::fmt::Debug for Region {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Region({}, {})", self.source(), self.range())
    }
}
