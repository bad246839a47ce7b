//! Which source is used if none is forced: the first of [`Source::ALL`] that works, but where the guest's
//! page tables and PAGEMAP_SCAN both do, the one that is cheaper on this host.
//!
//! That cannot be told by names. With nested paging the processor sets a D bit by itself, for nothing, and
//! a fault that the kernel resolves is an exit more than natively; on a host that shadows the guest's tables
//! each first write to a clean page is a fault that the host has to emulate. So both are used: [`PAGES`] pages
//! are written and collected in [`ROUNDS`] rounds, by turns, and the medians are compared. It takes some
//! milliseconds on the slowest kind of host, once in a process, and only in guest mode.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Instant;

use crate::probe::Scratch;
use crate::sources::Opened;
use crate::tracker::open_probed;
use crate::{Measured, OpenError, Source, WriteTracker, bitmap};

/// Pages of each source that are written in a round.
const PAGES: usize = 32;
/// Rounds that count; one more, the first, does not.
const ROUNDS: usize = 5;

/// What was measured in this process: nanoseconds a page, plus one; 0: nothing yet. The second is stored
/// last.
static GUEST_PTE: AtomicU64 = AtomicU64::new(0);
static PAGEMAP_SCAN: AtomicU64 = AtomicU64::new(0);

/// What was measured in this process to choose between the guest's page tables and PAGEMAP_SCAN.
///
/// `None`: nothing, because no tracker was opened without naming its source, or not both of them work.
#[must_use]
pub fn measured() -> Option<Measured> {
    let pagemap_scan_ns = PAGEMAP_SCAN.load(Ordering::Acquire).checked_sub(1)?;
    let guest_pte_ns = GUEST_PTE.load(Ordering::Relaxed).checked_sub(1)?;
    Some(Measured { guest_pte_ns, pagemap_scan_ns })
}

/// The best that works: all-dirty, if nothing else does.
pub(crate) fn open_best() -> Result<Arc<dyn Opened>, OpenError> {
    let first = Source::ALL
        .into_iter()
        .filter(|source| source.is_automatic())
        .find_map(|source| open_probed(source).ok())
        .map_or_else(|| open_probed(Source::AllDirty), Ok)?;
    if first.source() != Source::GuestPte {
        return Ok(first);
    }
    let Ok(other) = open_probed(Source::PagemapScan) else { return Ok(first) };
    let measured = measured().or_else(|| measure([&first, &other]));
    match measured.map(Measured::better) {
        Some(Source::PagemapScan) => Ok(other),
        // It works, and the other could not be measured.
        _ => Ok(first),
    }
}

/// Measures, and remembers it. (Two threads may do so side by side: the later figures stay.)
fn measure(sources: [&Arc<dyn Opened>; 2]) -> Option<Measured> {
    let [mut guest_pte, mut pagemap_scan] = [Trial::new(sources[0])?, Trial::new(sources[1])?];
    for _ in 0..=ROUNDS {
        guest_pte.round()?;
        pagemap_scan.round()?;
    }
    GUEST_PTE.store(guest_pte.median_ns().saturating_add(1), Ordering::Relaxed);
    PAGEMAP_SCAN.store(pagemap_scan.median_ns().saturating_add(1), Ordering::Release);
    measured()
}

/// One source at work.
struct Trial {
    // Dropped before the memory.
    region: Box<dyn WriteTracker>,
    memory: Scratch,
    /// Nanoseconds of each round.
    rounds: Vec<u64>,
}

impl Trial {
    fn new(source: &Arc<dyn Opened>) -> Option<Self> {
        let memory = Scratch::new(PAGES).ok()?;
        // SAFETY: 1. the pages are ours, private, anonymous and writable, and outlive the region.
        // 2. No stack lies within.
        let region = unsafe { Arc::clone(source).track(memory.range()) }.ok()?;
        let mut trial = Self { region, memory, rounds: Vec::with_capacity(ROUNDS + 1) };
        // The first makes the pages.
        trial.round()?;
        trial.rounds.clear();
        Some(trial)
    }

    /// Writes to each page and collects, as an epoch of a collector does; all are clean before and after.
    fn round(&mut self) -> Option<()> {
        let range = self.memory.range();
        let mut bits = [0; bitmap::words_for(PAGES)];
        let began = Instant::now();
        (0..PAGES).for_each(|page| self.memory.store(page));
        // SAFETY: only this thread knows the pages, and it is not writing.
        let dirty = unsafe { self.region.collect_and_reset_stopped(range, &mut bits) }.ok()?;
        let ns = began.elapsed().as_nanos();
        if dirty != PAGES {
            return None; // It is not what it claims to be: no figure.
        }
        self.rounds.push(u64::try_from(ns).unwrap_or(u64::MAX));
        Some(())
    }

    /// The median of all rounds but the first, for one page.
    fn median_ns(&self) -> u64 {
        let mut counted = self.rounds.get(1..).unwrap_or_default().to_vec();
        counted.sort_unstable();
        counted.get(counted.len() / 2).map_or(u64::MAX, |ns| ns / PAGES as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_median_for_a_page() {
        crate::tracker::prepare().expect("forks can be found");
        let opened = open_probed(Source::Mprotect).expect("mprotect works everywhere");
        let mut trial = Trial::new(&opened).expect("memory");
        for _ in 0..=ROUNDS {
            trial.round().expect("every page is reported");
        }
        assert_eq!(trial.rounds.len(), ROUNDS + 1);
        let ns = trial.median_ns();
        // A signal and a system call.
        assert!((50..1_000_000).contains(&ns), "{ns} ns");
        trial.rounds = [9_999_999, 320, 32, 3_200_000, 64, 640].to_vec();
        assert_eq!(trial.median_ns(), 10, "the first does not count");
    }

    #[test]
    fn without_both_there_is_no_figure() {
        // Outside of guest mode, as tests of this crate are.
        crate::tracker::prepare().expect("forks can be found");
        let best = open_best().expect("all-dirty is always there");
        assert_ne!(best.source(), Source::GuestPte);
        assert_eq!(measured(), None);
    }
}
