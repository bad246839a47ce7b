//! Counters of a tracker: what it did and what that cost.

use crate::Source;

/// A snapshot of a tracker's counters since it was opened (summed over all its regions).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Write faults that the tracker itself resolved; `None` where the kernel does it unseen.
    pub faults: Option<u64>,
    /// Pages armed, by `arm` and by `collect_and_reset`.
    pub pages_armed: u64,
    /// Pages disarmed by `disarm`.
    pub pages_disarmed: u64,
    /// Dirty pages reported by `collect_and_reset`.
    pub pages_reported: u64,
    /// Calls of `collect_and_reset` and `peek`.
    pub scans: u64,
    /// Time spent in those calls, in nanoseconds.
    pub scan_ns: u64,
    /// Times that the tracker gave up knowing and called pages dirty instead (out of mappings, a
    /// mapping replaced unannounced, a kernel error).
    pub degraded: u64,
    /// What the automatic choice of a source has measured in this process, if it had to.
    pub measured: Option<Measured>,
}

/// What a page costs that is written once between two collections, on this host: its first write, and its
/// part of the collection that finds it. In nanoseconds; medians of a few rounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Measured {
    /// With the dirty bits of the guest's page tables.
    pub guest_pte_ns: u64,
    /// With PAGEMAP_SCAN, in guest mode too.
    pub pagemap_scan_ns: u64,
}

impl Measured {
    /// The source that costs less.
    #[must_use]
    pub fn better(self) -> Source {
        if self.guest_pte_ns <= self.pagemap_scan_ns {
            Source::GuestPte
        } else {
            Source::PagemapScan
        }
    }
}

#[cfg(feature = "std")]
pub(crate) use counters::{Counters, ScanTimer};

#[cfg(feature = "std")]
mod counters {
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::time::Instant;

    use super::Stats;

    /// The live counters behind [`Stats`]; relaxed, since they order nothing.
    #[derive(Default)]
    pub(crate) struct Counters {
        pub(crate) faults: AtomicU64,
        pub(crate) pages_armed: AtomicU64,
        pub(crate) pages_disarmed: AtomicU64,
        pub(crate) pages_reported: AtomicU64,
        pub(crate) scans: AtomicU64,
        pub(crate) scan_ns: AtomicU64,
        pub(crate) degraded: AtomicU64,
    }

    impl Counters {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn snapshot(&self, sees_faults: bool) -> Stats {
            Stats {
                faults: sees_faults.then(|| self.faults.load(Relaxed)),
                pages_armed: self.pages_armed.load(Relaxed),
                pages_disarmed: self.pages_disarmed.load(Relaxed),
                pages_reported: self.pages_reported.load(Relaxed),
                scans: self.scans.load(Relaxed),
                scan_ns: self.scan_ns.load(Relaxed),
                degraded: self.degraded.load(Relaxed),
                measured: None,
            }
        }

        pub(crate) fn add(counter: &AtomicU64, n: usize) {
            counter.fetch_add(n as u64, Relaxed);
        }

        /// Counts a collection of `reported` pages, all of which were armed again.
        pub(crate) fn collected(&self, reported: usize) {
            Self::add(&self.pages_reported, reported);
            Self::add(&self.pages_armed, reported);
        }
    }

    /// Counts one scan and its time when dropped.
    pub(crate) struct ScanTimer<'a> {
        counters: &'a Counters,
        began: Instant,
    }

    impl<'a> ScanTimer<'a> {
        pub(crate) fn start(counters: &'a Counters) -> Self {
            Self { counters, began: Instant::now() }
        }
    }

    impl Drop for ScanTimer<'_> {
        fn drop(&mut self) {
            let ns = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.counters.scans.fetch_add(1, Relaxed);
            self.counters.scan_ns.fetch_add(ns, Relaxed);
        }
    }
}
