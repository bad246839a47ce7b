//! The dirty-bit sources, one file each (mprotect has three), behind one interface.
//!
//! A source is opened once for a tracker and then makes one [`WriteTracker`] for each region. The
//! choice among them, and the checks that are the same for all (overlaps, empty regions), are the
//! tracker's.

use std::sync::Arc;

use crate::stats::{Counters, ScanTimer};
use crate::write_tracker::check_bitmap;
use crate::{
    KernelWrites, PageRange, RegionError, Source, Stats, Unavailable, WriteTracker, bitmap,
};

pub(crate) mod all_dirty;
pub(crate) mod guest;
pub(crate) mod mprotect;
pub(crate) mod pagemap_scan;
pub(crate) mod soft_dirty;
pub(crate) mod userfaultfd;

/// A source that works here.
pub(crate) trait Opened: Send + Sync {
    /// Which one.
    fn source(&self) -> Source;

    /// What becomes of system calls that write to armed pages.
    fn kernel_writes(&self) -> KernelWrites;

    /// The counters of all its regions.
    fn stats(&self) -> Stats;

    /// Begins to track `range`, unarmed.
    ///
    /// # Safety
    /// As `Tracker::track`.
    unsafe fn track(
        self: Arc<Self>,
        range: PageRange,
    ) -> Result<Box<dyn WriteTracker>, RegionError>;
}

/// A region that the kernel knows through a descriptor: a forked child has to register it anew, and until then all
/// of its pages are dirty.
trait Registered: WriteTracker {
    fn counters(&self) -> &Counters;

    /// Whether it is registered in this process.
    fn is_attached(&self) -> bool;

    /// ORs what is dirty into `bits`, protecting it if `reset`; how many pages that are.
    fn scan(&self, range: PageRange, reset: bool, bits: &mut [u64]) -> usize;

    /// As [`WriteTracker::peek`].
    fn peek_registered(&self, range: PageRange, bits: &mut [u64]) -> Result<(), RegionError> {
        check_bitmap(self.range(), range, bits)?;
        let _timer = ScanTimer::start(self.counters());
        if self.is_attached() {
            self.scan(range, false, bits);
        } else {
            bitmap::set_run(bits, 0, range.pages());
        }
        Ok(())
    }

    /// As [`WriteTracker::collect_and_reset`].
    fn collect_registered(&self, range: PageRange, bits: &mut [u64]) -> Result<usize, RegionError> {
        check_bitmap(self.range(), range, bits)?;
        let _timer = ScanTimer::start(self.counters());
        let dirty = if self.is_attached() {
            self.scan(range, true, bits)
        } else {
            bitmap::set_run(bits, 0, range.pages());
            self.arm(range)?;
            range.pages()
        };
        self.counters().collected(dirty);
        Ok(dirty)
    }
}

/// Opens `source`; whether it then also works is for the probe to see.
pub(crate) fn open(source: Source) -> Result<Arc<dyn Opened>, Unavailable> {
    Ok(match source {
        Source::GuestPte | Source::GuestPml | Source::GuestTlb | Source::GuestDirect => {
            Arc::new(guest::Guest::open(source)?)
        }
        Source::PagemapScan => Arc::new(pagemap_scan::PagemapScan::open()?),
        Source::Mprotect => Arc::new(mprotect::Mprotect::open()?),
        Source::AllDirty => Arc::new(all_dirty::AllDirty::default()),
        Source::Userfaultfd => Arc::new(userfaultfd::Userfaultfd::open()?),
        Source::SoftDirty => Arc::new(soft_dirty::SoftDirty::open()?),
    })
}
