//! The source that knows nothing and says so: every page is always dirty.
//!
//! Always available and right by definition: the last resort of the automatic choice, and the
//! reference that the oracle test compares with.

use std::sync::Arc;

use super::Opened;
use crate::bitmap;
use crate::stats::{Counters, ScanTimer};
use crate::write_tracker::{check_bitmap, check_inside};
use crate::{KernelWrites, PageRange, RegionError, Source, Stats, WriteTracker};

/// The opened source: only counters.
#[derive(Default)]
pub(crate) struct AllDirty {
    counters: Counters,
}

struct AllDirtyRegion {
    shared: Arc<AllDirty>,
    range: PageRange,
}

impl Opened for AllDirty {
    fn source(&self) -> Source {
        Source::AllDirty
    }

    fn kernel_writes(&self) -> KernelWrites {
        KernelWrites::Tracked
    }

    fn stats(&self) -> Stats {
        self.counters.snapshot(true)
    }

    unsafe fn track(
        self: Arc<Self>,
        range: PageRange,
    ) -> Result<Box<dyn WriteTracker>, RegionError> {
        Ok(Box::new(AllDirtyRegion { shared: self, range }))
    }
}

impl WriteTracker for AllDirtyRegion {
    fn source(&self) -> Source {
        Source::AllDirty
    }

    fn range(&self) -> PageRange {
        self.range
    }

    fn arm(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range, range)
    }

    fn disarm(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range, range)
    }

    fn peek(&self, range: PageRange, bits: &mut [u64]) -> Result<(), RegionError> {
        check_bitmap(self.range, range, bits)?;
        let _timer = ScanTimer::start(&self.shared.counters);
        bitmap::set_run(bits, 0, range.pages());
        Ok(())
    }

    fn collect_and_reset(&self, range: PageRange, bits: &mut [u64]) -> Result<usize, RegionError> {
        self.peek(range, bits)?;
        Counters::add(&self.shared.counters.pages_reported, range.pages());
        Ok(range.pages())
    }

    fn remapped(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range, range)
    }

    unsafe fn resize(&mut self, bounds: PageRange) -> Result<(), RegionError> {
        self.range = bounds;
        Ok(())
    }
}
